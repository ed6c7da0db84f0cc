//! Load balancers, networks and Cloud Map: operations on a real API server, called in process.

mod discovery;
mod ec2;
mod elb;

use apiserver::{Api, ApiConfig};
use auth::Identity;
use aws_server::service::{AwsError, Call, Caller, Service, Shared};
use aws_server::services::{ec2 as networks, elbv2, servicediscovery};
use client::ApiClient;
use k8s_schema::gvr::NAMESPACES;
use serde_json::{Value, json};
use std::sync::Arc;

const ACCOUNT: &str = "123456789012";

struct Net {
    services: Vec<Arc<dyn Service>>,
    client: ApiClient,
    api: Arc<Api>,
    _folder: tempfile::TempDir,
}

impl Drop for Net {
    fn drop(&mut self) {
        self.api.close();
    }
}

async fn net() -> Net {
    let folder = tempfile::tempdir().unwrap();
    let store =
        store::Embedded::open(&folder.path().join("store"), store::EmbeddedOptions::default()).unwrap();
    let api = Api::open(ApiConfig::new("main", Arc::new(store))).await.unwrap();
    let client = api.client(Identity::new("system:gantry-aws", ["system:masters", "system:authenticated"]));
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "aws"}});
    client.create(&NAMESPACES, body).await.unwrap();
    let shared = Shared {
        client: client.clone(),
        account: ACCOUNT.into(),
        region: "us-east-1".into(),
        zones: vec!["us-east-1a".into(), "us-east-1b".into()],
    };
    let vpc = Arc::new(networks::Store::new(&shared, "10.244.0.0/16"));
    let services = vec![
        networks::service(&vpc),
        elbv2::service(&shared, "elb.cluster.local", vpc),
        servicediscovery::service(&shared),
    ];
    Net { services, client, api, _folder: folder }
}

impl Net {
    async fn call_as(&self, account: &str, name: &str, input: Value) -> Result<Value, AwsError> {
        let (service, operation) = name.split_once(' ').unwrap();
        let service = self.services.iter().find(|s| s.name() == service).unwrap();
        let operation = service.served().into_iter().find(|o| *o == operation).expect("served");
        let caller = Caller {
            account: account.into(),
            access_key: "testing".into(),
            arn: format!("arn:aws:iam::{account}:root"),
            user_id: account.into(),
        };
        let call = Call {
            caller,
            region: "us-east-1".into(),
            operation,
            input,
            request_id: "r".into(),
            now_ms: 1_700_000_000_000,
            endpoint: "http://localhost:4566".into(),
        };
        service.call(&call).await
    }

    /// The answer of a call that goes well: `elbv2 CreateLoadBalancer`.
    async fn ok(&self, name: &str, input: Value) -> Value {
        self.call_as(ACCOUNT, name, input).await.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Calls that are refused: operation, input, code, and words of the message.
    async fn refused(&self, rows: &[(&str, Value, &str, &str)]) {
        for (name, input, code, words) in rows {
            let error = self.call_as(ACCOUNT, name, input.clone()).await.expect_err(name);
            assert!(error.code == *code && error.message.contains(words), "{name} {input}: {error}");
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_string()
}
