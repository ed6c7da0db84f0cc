//! A server over the embedded store in a temporary folder with all controllers on it, and words to speak to it.

use apiserver::{Api, ApiConfig};
use auth::Identity;
use client::{ApiClient, DeleteOptions, ListOptions, Object, ObjectKey, Propagation};
use controllers::{Controllers, ControllersConfig, Scheduler, SchedulerConfig};
use k8s_schema::{Gates, Gvr, gvr};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A cluster without nodes.
pub struct Cluster {
    pub client: ApiClient,
    api: Arc<Api>,
    _controllers: Controllers,
    _folder: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.api.close();
    }
}

struct NoDrivers;

#[async_trait::async_trait]
impl controllers::Reach for NoDrivers {
    async fn call(&self, _: &str, driver: &str, _: &str, _: &Value) -> grpc::Answer {
        Err(grpc::Status::new(grpc::code::UNAVAILABLE, driver))
    }
}

pub async fn cluster() -> Cluster {
    cluster_with(Gates::default()).await
}

/// A cluster with these features.
pub async fn cluster_with(gates: Gates) -> Cluster {
    cluster_through(gates, |client| client).await
}

/// A cluster whose controllers see the server through a client of the test's.
pub async fn cluster_through(gates: Gates, through: impl FnOnce(ApiClient) -> ApiClient) -> Cluster {
    let folder = tempfile::tempdir().unwrap();
    let store =
        store::Embedded::open(&folder.path().join("store"), store::EmbeddedOptions::default()).unwrap();
    let api = ApiConfig { gates: gates.clone(), ..ApiConfig::new("main", Arc::new(store)) };
    let api = Api::open(api).await.unwrap();
    let config = ControllersConfig {
        root_ca_pem: "pem".into(),
        pod_cidr: None,
        node_prefix: 24,
        lb_pool: None,
        port_check: controllers::PortCheck(Arc::new(|_, _| None)),
        dns_ip: "10.96.0.10".parse().unwrap(),
        authority: None,
        drivers: controllers::Drivers(Arc::new(NoDrivers)),
        gates,
    };
    let identity = Identity::component("system:kube-controller-manager");
    let client = through(api.client(identity));
    let controllers = Controllers::start(client, config, Arc::new(jiff::Timestamp::now));
    let client = api.client(Identity::new("admin", ["system:masters", "system:authenticated"]));
    Cluster { client, api, _controllers: controllers, _folder: folder }
}

/// The key of an object in namespace `default`.
pub fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// A reference to an owner.
pub fn owned_by(api_version: &str, kind: &str, owner: &Object) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "name": &*owner.key.name, "uid": owner.uid(),
        "blockOwnerDeletion": true})
}

impl Cluster {
    /// Starts the scheduler.
    pub fn scheduler(&self) -> Scheduler {
        self.scheduler_with(SchedulerConfig::default())
    }

    /// Starts one that is told more.
    pub fn scheduler_with(&self, config: SchedulerConfig) -> Scheduler {
        let identity = Identity::component("system:kube-scheduler");
        Scheduler::start(self.api.client(identity), config, Arc::new(jiff::Timestamp::now))
    }

    /// Serves on a loopback port until the sender goes; the folder holds a `kubeconfig` for an admin.
    pub async fn serve(&self) -> (tempfile::TempDir, tokio::sync::watch::Sender<bool>) {
        let (folder, now) = (tempfile::tempdir().unwrap(), std::time::SystemTime::now());
        let ca = auth::Ca::load_or_create(folder.path(), now).unwrap();
        let server =
            ca.issue_server("s", &["localhost".into()], &["127.0.0.1".parse().unwrap()], now).unwrap();
        let tls = auth::server_config(&server, ca.cert_pem(), &["h2", "http/1.1"]).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        tokio::spawn(self.api.clone().serve(listener, tls, stopped));
        let admin = ca.issue_client("admin", Some("system:masters"), now).unwrap();
        for (name, text) in [("admin.crt", &admin.cert_pem), ("admin.key", &admin.key_pem)] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("https://127.0.0.1:{port}"),
                "certificate-authority": "ca.crt"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"client-certificate": "admin.crt", "client-key": "admin.key"}}]});
        std::fs::write(folder.path().join("kubeconfig"), config.to_string()).unwrap();
        (folder, stop)
    }

    /// Creates an object; the literal names its namespace.
    pub async fn create(&self, gvr: &Gvr, body: Value) -> Arc<Object> {
        self.client.create(gvr, body).await.unwrap()
    }

    /// A ConfigMap in `default` with these owners.
    pub async fn map(&self, name: &str, owners: Vec<Value>) -> Arc<Object> {
        let metadata = json!({"name": name, "namespace": "default", "ownerReferences": owners});
        self.create(&gvr::CONFIG_MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}))
            .await
    }

    pub async fn delete(
        &self,
        gvr: &Gvr,
        key: &ObjectKey,
        propagation: Option<Propagation>,
    ) -> Result<Arc<Object>, ApiError> {
        self.client.delete(gvr, key, DeleteOptions { propagation, ..DeleteOptions::default() }).await
    }

    pub async fn list(&self, gvr: &Gvr) -> Vec<Arc<Object>> {
        self.client.list(gvr, &ListOptions::default()).await.unwrap().items
    }

    /// The objects of a resource, as values, once they are as wanted.
    pub async fn until(&self, gvr: &Gvr, what: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let values: Vec<Value> = self.list(gvr).await.iter().map(|o| o.value().unwrap()).collect();
            if wanted(&values) {
                return values;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: {}", json!(values));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The object of that name as a value, once it is as wanted.
    pub async fn until_object(&self, gvr: &Gvr, key: &ObjectKey, wanted: impl Fn(&Value) -> bool) -> Value {
        let here = |v: &&Value| {
            v["metadata"]["name"] == *key.name
                && v["metadata"]["namespace"].as_str().unwrap_or_default() == &*key.namespace
        };
        let found = |all: &[Value]| all.iter().find(here).is_some_and(&wanted);
        let all = self.until(gvr, &format!("{key}"), found).await;
        all.iter().find(here).unwrap().clone()
    }

    /// Waits until the object is gone.
    pub async fn until_gone(&self, gvr: &Gvr, key: &ObjectKey) {
        let here = |v: &Value| {
            v["metadata"]["name"] == *key.name
                && v["metadata"]["namespace"].as_str().unwrap_or_default() == &*key.namespace
        };
        self.until(gvr, &format!("{key} should be gone"), |all| !all.iter().any(here)).await;
    }
}
