//! The ECS service over an API server in a temporary folder, and words to speak to it.

use apiserver::{Api, ApiConfig};
use auth::Identity;
use aws_server::service::{AwsError, Call, Caller, Outcome, Service, Shared};
use aws_server::services::ecs;
use client::{ApiClient, ObjectKey};
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const ACCOUNT: &str = "123456789012";
/// Prefix of every ECS ARN here.
pub const ARN: &str = "arn:aws:ecs:us-east-1:123456789012";

/// One service.
pub struct Ecs {
    service: Arc<dyn Service>,
    api: Arc<Api>,
    pub client: ApiClient,
    /// Milliseconds since 1970 of the next call.
    pub now_ms: AtomicU64,
    _folder: tempfile::TempDir,
}

impl Drop for Ecs {
    fn drop(&mut self) {
        self.api.close();
    }
}

pub async fn ecs() -> Ecs {
    let folder = tempfile::tempdir().unwrap();
    let store =
        store::Embedded::open(&folder.path().join("store"), store::EmbeddedOptions::default()).unwrap();
    let api = Api::open(ApiConfig::new("main", Arc::new(store))).await.unwrap();
    let client = api.client(Identity::new("system:gantry-aws", ["system:masters", "system:authenticated"]));
    let shared = Shared {
        client: client.clone(),
        account: ACCOUNT.into(),
        region: "us-east-1".into(),
        zones: vec!["us-east-1a".into(), "us-east-1b".into()],
    };
    let now_ms = AtomicU64::new(1_700_000_000_000);
    Ecs { service: ecs::service(&shared), api, client, now_ms, _folder: folder }
}

impl Ecs {
    /// A client with another identity.
    pub fn as_user(&self, identity: Identity) -> ApiClient {
        self.api.client(identity)
    }

    pub async fn call_in(&self, account: &str, region: &str, operation: &str, input: Value) -> Outcome {
        let operation = self.service.served().into_iter().find(|o| *o == operation).expect("served");
        let caller = Caller {
            account: account.into(),
            access_key: "testing".into(),
            arn: format!("arn:aws:iam::{account}:root"),
            user_id: account.into(),
        };
        let call = Call {
            caller,
            region: region.into(),
            operation,
            input,
            request_id: "r".into(),
            now_ms: self.now_ms.load(Ordering::Relaxed),
            endpoint: "http://localhost:4566".into(),
        };
        self.service.call(&call).await
    }

    /// The answer to a call that goes well.
    pub async fn ok(&self, operation: &str, input: Value) -> Value {
        let answer = self.call_in(ACCOUNT, "us-east-1", operation, input).await;
        answer.unwrap_or_else(|e| panic!("{operation}: {e}"))
    }

    /// Code and message of a call that is refused.
    pub async fn refused(&self, operation: &str, input: Value) -> (String, String) {
        let answer = self.call_in(ACCOUNT, "us-east-1", operation, input).await;
        let AwsError { code, message, .. } = answer.expect_err(operation);
        (code, message)
    }

    /// A ready node of that many CPUs and MiB, once the front end has seen it.
    pub async fn node(&self, name: &str, cpus: u32, mib: u32) {
        let count = |seen: &Value| seen["containerInstanceArns"].as_array().map_or(0, Vec::len);
        let before = count(&self.ok("ListContainerInstances", json!({})).await);
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name,
            "labels": {"topology.kubernetes.io/zone": format!("us-east-1{}", name.chars().last().unwrap())}}});
        let mut node = self.client.create(&gvr::NODES, node).await.unwrap().value().unwrap();
        node["status"] = json!({
            "allocatable": {"cpu": cpus.to_string(), "memory": format!("{mib}Mi"), "pods": "110"},
            "capacity": {"cpu": cpus.to_string(), "memory": format!("{mib}Mi"), "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"architecture": "amd64", "bootID": "", "containerRuntimeVersion": "gantry://1",
                "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
                "operatingSystem": "linux", "osImage": "", "systemUUID": ""}});
        self.client.update_status(&gvr::NODES, &ObjectKey::cluster(name), node).await.unwrap();
        let seen = self.until("ListContainerInstances", json!({}), |seen| count(seen) > before).await;
        let all = json!({"containerInstances": seen["containerInstanceArns"]});
        let sized = |one: &Value| one["registeredResources"][0]["integerValue"] != 0;
        let all_sized = |seen: &Value| seen["containerInstances"].as_array().unwrap().iter().all(sized);
        self.until("DescribeContainerInstances", all, all_sized).await;
    }

    /// Registers a bridge definition of one container with that memory; its ARN.
    pub async fn definition(&self, family: &str, mib: u32) -> String {
        let container = json!({"name": "web", "image": "nginx", "memory": mib, "cpu": 256});
        let input = json!({"family": family, "containerDefinitions": [container]});
        let answer = self.ok("RegisterTaskDefinition", input).await;
        answer["taskDefinition"]["taskDefinitionArn"].as_str().unwrap().to_string()
    }

    /// Registers the smallest Fargate definition.
    pub async fn fargate_definition(&self, family: &str) {
        let input = json!({"family": family, "networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"],
            "cpu": "256", "memory": "512", "containerDefinitions": [{"name": "web", "image": "nginx"}]});
        self.ok("RegisterTaskDefinition", input).await;
    }

    /// What the task controller would write.
    pub async fn set_status(&self, cluster: &str, arn: &Value, status: Value) {
        let id = arn.as_str().unwrap().rsplit('/').next().unwrap();
        let key = ObjectKey::new(format!("ecs-{cluster}"), id);
        self.client.merge_patch_status(&gvr::ECS_TASKS, &key, json!({"status": status})).await.unwrap();
    }

    /// The answer once it is as wanted: what others wrote comes through a watch.
    pub async fn until(&self, operation: &str, input: Value, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
        loop {
            let answer = self.ok(operation, input.clone()).await;
            if wanted(&answer) {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{operation}: {answer}");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

/// `RunTask` members for Fargate in a subnet.
pub fn on_fargate(definition: &str) -> Value {
    json!({"taskDefinition": definition, "launchType": "FARGATE",
        "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-default-a"]}}})
}

/// A refusal as a pair.
pub fn is(code: &str, message: &str) -> (String, String) {
    (code.to_string(), message.to_string())
}
