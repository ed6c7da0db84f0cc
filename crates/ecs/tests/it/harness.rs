//! A server in a temporary folder, the task controller on it, and a simulated node that runs every pod.

use apiserver::{Api, ApiConfig};
use async_trait::async_trait;
use auth::Identity;
use client::cache::Cache;
use client::{ApiClient, DeleteOptions, ListOptions, ObjectKey};
use ecs::{Ecs, EcsConfig, Launcher, SecretSource};
use ecs_model::lower::Settings;
use ecs_model::names::Place;
use ecs_model::secret::SecretRef;
use k8s_schema::Gvr;
use k8s_schema::gvr::{ECS_TASK_DEFINITIONS, ECS_TASKS, NAMESPACES, NODES, PODS, SERVICE_ACCOUNTS};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(180);
/// The namespace of cluster `prod`.
pub const NAMESPACE: &str = "ecs-prod";
const ACCOUNT: &str = "123456789012";

struct Secrets;

#[async_trait]
impl SecretSource for Secrets {
    async fn read(&self, reference: &SecretRef) -> Result<String, String> {
        match reference {
            SecretRef::Parameter(name) if name == "/db/password" => Ok("s3cret".into()),
            _ => Err("ParameterNotFound".into()),
        }
    }
}

/// After how long a task counts as healthy here.
const SETTLED: Duration = Duration::from_millis(300);

/// Starts tasks of services as the ECS operations do, on Fargate.
struct Starter {
    client: ApiClient,
    next: Arc<AtomicU64>,
}

#[async_trait]
impl Launcher for Starter {
    async fn ask(&self, _: &Place, operation: &'static str, input: Value) -> Result<Value, String> {
        if operation != "gantry:StartServiceTasks" {
            return Ok(json!({"places": [], "zones": ["us-east-1a"]}));
        }
        let mut tasks = Vec::new();
        for _ in 0..input["count"].as_u64().unwrap() {
            let number = self.next.fetch_add(1, Ordering::Relaxed) + 1000;
            let more = json!({"group": input["group"], "startedBy": input["startedBy"],
                "activating": (input["activates"] == true).then_some(true),
                "taskDefinitionArn": input["taskDefinition"], "createdAt": number as f64});
            let key = create_task(&self.client, number, more).await.map_err(|e| e.to_string())?;
            tasks.push(json!({"taskArn": format!("arn:aws:ecs:us-east-1:{ACCOUNT}:task/prod/{}", key.name)}));
        }
        Ok(json!({"tasks": tasks, "failures": []}))
    }
}

/// A Fargate task of `f:1`, but for what `more` says.
async fn create_task(client: &ApiClient, number: u64, more: Value) -> Result<ObjectKey, ApiError> {
    let id = format!("{number:032x}");
    let mut spec = json!({
        "taskArn": format!("arn:aws:ecs:us-east-1:{ACCOUNT}:task/prod/{id}"),
        "clusterArn": format!("arn:aws:ecs:us-east-1:{ACCOUNT}:cluster/prod"),
        "taskDefinitionArn": format!("arn:aws:ecs:us-east-1:{ACCOUNT}:task-definition/f:1"),
        "launchType": "FARGATE", "desiredStatus": "RUNNING", "cpu": "256", "memory": "512",
        "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-default-a"]}}});
    spec.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
    let body = json!({"apiVersion": "ecs.gantry.dev/v1", "kind": "Task",
        "metadata": {"namespace": NAMESPACE, "name": id}, "spec": spec});
    Ok(client.create(&ECS_TASKS, body).await?.key.clone())
}

pub struct World {
    pub client: ApiClient,
    api: Arc<Api>,
    ecs: Option<Ecs>,
    /// How long stopped tasks are kept, from the next start on.
    pub retention: Duration,
    /// Tasks of services that were started.
    pub started: Arc<AtomicU64>,
    _folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.ecs = None;
        self.api.close();
    }
}

/// A world with one node and cluster `prod`.
pub async fn world(retention: Duration) -> World {
    let folder = tempfile::tempdir().unwrap();
    let store =
        store::Embedded::open(&folder.path().join("store"), store::EmbeddedOptions::default()).unwrap();
    let api = Api::open(ApiConfig::new("main", Arc::new(store))).await.unwrap();
    let client = api.client(Identity::new("system:gantry-ecs", ["system:masters", "system:authenticated"]));
    let mut world = World { client, api, ecs: None, retention, started: Arc::default(), _folder: folder };
    world.restart();
    for namespace in ["ecs", NAMESPACE] {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        world.client.create(&NAMESPACES, body).await.unwrap();
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
        world.client.create(&SERVICE_ACCOUNTS, account).await.unwrap();
    }
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}});
    world.client.create(&NODES, node).await.unwrap();
    world
}

impl World {
    /// Stops the controllers.
    pub fn stop(&mut self) {
        self.ecs = None;
    }

    /// Starts the controllers anew.
    pub fn restart(&mut self) {
        let config = EcsConfig {
            defaults: Place::new(ACCOUNT, "us-east-1"),
            settings: Settings { volumes_root: "/v".into(), ..Settings::default() },
            retention: self.retention,
            settled: SETTLED,
        };
        let launcher = Starter { client: self.client.clone(), next: self.started.clone() };
        let seams = (Arc::new(Secrets) as Arc<dyn SecretSource>, Arc::new(launcher) as Arc<dyn Launcher>);
        self.ecs = Some(Ecs::start(self.client.clone(), seams, config, Arc::new(jiff::Timestamp::now)));
    }

    /// Binds and runs every task's pod at once; ends those that are deleted.
    pub fn node(&self) -> tokio::task::JoinHandle<()> {
        let client = self.client.clone();
        let pods = Cache::start(client.clone(), PODS, ListOptions::default());
        let (send, mut todo) = tokio::sync::mpsc::unbounded_channel();
        pods.on_change(Box::new(move |_, new| {
            if let Some(pod) = new {
                let _ = send.send(pod.clone());
            }
        }));
        tokio::spawn(async move {
            let _keep = pods;
            let mut work = tokio::task::JoinSet::new();
            while let Some(pod) = todo.recv().await {
                let client = client.clone();
                work.spawn(async move { run(&client, &pod.key, pod.value().unwrap()).await });
                while work.try_join_next().is_some() {}
            }
        })
    }

    /// Registers `f:1` from container definitions.
    pub async fn define(&self, mode: &str, containers: Value) {
        let body = json!({"apiVersion": "ecs.gantry.dev/v1", "kind": "TaskDefinition",
            "metadata": {"namespace": "ecs", "name": "f-1"},
            "spec": {"family": "f", "revision": 1, "networkMode": mode, "containerDefinitions": containers}});
        self.client.create(&ECS_TASK_DEFINITIONS, body).await.unwrap();
    }

    /// A task of `f:1`.
    pub async fn task(&self, number: u64, more: Value) -> ObjectKey {
        create_task(&self.client, number, more).await.unwrap()
    }

    /// The object, once it is as wanted.
    pub async fn until(&self, gvr: &Gvr, key: &ObjectKey, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.client.get(gvr, key).await.map(|o| o.value().unwrap()).unwrap_or_default();
            if wanted(&now) {
                return now;
            }
            assert!(Instant::now() < deadline, "{key}: {now}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The task's status, once it is in that state.
    pub async fn state(&self, key: &ObjectKey, state: &str) -> Value {
        self.until(&ECS_TASKS, key, |t| t["status"]["lastStatus"] == state).await["status"].clone()
    }

    /// What the pod's status says from now on, as the node writes it.
    pub async fn pod_status(&self, key: &ObjectKey, status: Value) {
        self.client.merge_patch_status(&PODS, key, json!({"status": status})).await.unwrap();
    }
}

/// What a node does about a pod now.
async fn run(client: &ApiClient, key: &ObjectKey, pod: Value) {
    let names = pod["spec"]["containers"].as_array().into_iter().flatten().map(|c| c["name"].clone());
    let containers = |state: Value| -> Vec<Value> {
        let one = |name: Value| json!({"name": name, "state": state, "ready": true, "image": "i", "imageID": "", "restartCount": 0, "containerID": "gantry://01"});
        names.clone().map(one).collect()
    };
    if pod["spec"]["nodeName"].is_null() && pod["metadata"]["deletionTimestamp"].is_null() {
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": &*key.name, "namespace": &*key.namespace},
            "target": {"kind": "Node", "name": "node-1"}});
        let verb = client::Verb::Create(binding);
        let write = client::Write { gvr: PODS, key: key.clone(), subresource: "binding", verb };
        let _ = client.write(write).await;
    } else if !pod["metadata"]["deletionTimestamp"].is_null()
        && pod["metadata"]["deletionGracePeriodSeconds"] != 0
    {
        let ended = json!({"terminated": {"exitCode": 143, "reason": "Error", "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}});
        let status = json!({"phase": "Failed", "containerStatuses": containers(ended)});
        let _ = client.merge_patch_status(&PODS, key, json!({"status": status})).await;
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        let _ = client.delete(&PODS, key, options).await;
    } else if pod["status"]["phase"] == "Pending" && !pod["spec"]["nodeName"].is_null() {
        let now = machinery::time::format(jiff::Timestamp::now());
        let state = json!({"running": {"startedAt": now}});
        let status = json!({"phase": "Running", "podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.9"}], "containerStatuses": containers(state)});
        let _ = client.merge_patch_status(&PODS, key, json!({"status": status})).await;
    }
}
