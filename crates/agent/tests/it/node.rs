//! One node for one test: folders, image, network, API, agent.

use crate::fake::Fake;
use agent::{Agent, AgentConfig, Capacity};
use image::Images;
use k8s_schema::gvr::{EVENTS, NAMESPACES, PODS};
use net::{NetConfig, Network};
use runtime::api::{PodInfo, RuntimeConfig};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Waits of a test: far longer than anything takes.
const WAIT: Duration = Duration::from_secs(180);
const PREFIX: &str = "gtagent";

pub struct Bench {
    pub api: Arc<Fake>,
    pub dir: tempfile::TempDir,
    pub images: Arc<Images>,
    network: Arc<Network>,
    agent: Option<Agent>,
}

fn tls() -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pair = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["node".into()]).unwrap().self_signed(&pair).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap())
}

impl Bench {
    pub fn run(test: crate::Test) {
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        tokio.block_on(async {
            let mut bench = Bench::new().await;
            let outcome =
                futures_util::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(test(&mut bench))).await;
            if outcome.is_err() {
                eprintln!("events: {:#?}", bench.events());
                for pod in bench.api.all(&PODS) {
                    eprintln!("{}", pod["status"]);
                }
            }
            let left = bench.end().await;
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
            assert_eq!(left, Vec::<String>::new(), "left behind");
        });
        tokio.shutdown_timeout(Duration::from_secs(2));
    }

    async fn new() -> Bench {
        let dir = tempfile::Builder::new().prefix("gantry-agent-").tempdir().unwrap();
        let images = Arc::new(Images::open(dir.path().join("images")).unwrap());
        let builder = testkit::image::ImageBuilder::busybox("box:1");
        let archive = builder.write_docker_archive(&dir.path().join("box.tar"));
        images.load(&archive, &|_| {}).unwrap();
        let network = Network::open(NetConfig {
            prefix: PREFIX.into(),
            node_ip: [192, 0, 2, 1].into(),
            pod_cidr: "10.99.0.0/24".parse().unwrap(),
            cluster_cidr: "10.99.0.0/16".parse().unwrap(),
            service_cidr: "10.98.0.0/16".parse().unwrap(),
            dns_ip: [10, 98, 0, 10].into(),
            mtu: 1500,
        });
        let network = Arc::new(network.unwrap());
        network.setup_node().unwrap();
        let mut bench = Bench { api: Fake::new(), dir, images, network, agent: None };
        let client: client::ApiClient = bench.api.clone();
        client.create(&NAMESPACES, json!({"metadata": {"name": "n"}})).await.unwrap();
        bench.start().await;
        bench
    }

    fn config(&self) -> AgentConfig {
        let root = self.dir.path();
        AgentConfig {
            node_name: "node-1".into(),
            node_ip: [192, 0, 2, 1].into(),
            client: self.api.clone(),
            runtime: RuntimeConfig {
                state_dir: root.join("run"),
                cgroup_root: self.cgroup(),
                shim_exe: std::env::current_exe().unwrap(),
                handlers: Default::default(),
            },
            images: self.images.clone(),
            puller: image::Puller::new((*self.images).clone(), None, image::PullConfig::default()),
            network: self.network.clone(),
            data_dir: root.join("data"),
            kubelet_dir: None,
            log_dir: root.join("logs"),
            cluster_dns: Some([10, 98, 0, 10].into()),
            cluster_domain: "cluster.local".into(),
            pod_cidr: "10.99.0.0/24".into(),
            max_pods: 110,
            pids_max: 0,
            cpus: Default::default(),
            manifests: Some(root.join("manifests")),
            flags: None,
            statusz: true,
            labels: Default::default(),
            capacity: Capacity::default(),
            eviction: Default::default(),
            shutdown: agent::shutdown::Settings::parse("60s", "30s", "").unwrap(),
            tls: tls(),
            authorize: Arc::new(|_| true),
            listen: ([127, 0, 0, 1], 0).into(),
        }
    }

    fn cgroup(&self) -> String {
        format!("gantry-agent-test-{}", std::process::id())
    }

    /// Starts an agent (again).
    pub async fn start(&mut self) {
        self.start_only().await;
        self.agent().wait_ready().await;
    }

    /// The same, whether or not there is an API.
    pub async fn start_only(&mut self) {
        self.agent = Some(Agent::start(self.config()).await.unwrap());
    }

    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    /// Ends the agent; pods run on.
    pub async fn stop(&mut self) {
        self.agent.take().unwrap().shutdown().await;
    }

    pub fn live(&self) -> Vec<PodInfo> {
        self.agent().runtime().pods()
    }

    /// Creates a pod bound to the node; its UID.
    pub async fn create(&self, name: &str, mut spec: Value) -> String {
        spec["nodeName"] = json!("node-1");
        for list in ["containers", "initContainers"] {
            for container in spec[list].as_array_mut().into_iter().flatten() {
                if container.get("image").is_none() {
                    container["image"] = json!("box:1");
                }
            }
        }
        if spec.get("terminationGracePeriodSeconds").is_none() {
            spec["terminationGracePeriodSeconds"] = json!(1);
        }
        let body = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "n", "name": name, "labels": {"app": name}}, "spec": spec, "status": {"phase": "Pending"}});
        let client: client::ApiClient = self.api.clone();
        client.create(&PODS, body).await.unwrap().uid().to_string()
    }

    pub fn pod(&self, name: &str) -> Value {
        self.api.value(&PODS, "n", name)
    }

    pub async fn delete(&self, name: &str, grace: Option<i64>) {
        let client: client::ApiClient = self.api.clone();
        let options = client::DeleteOptions { grace_period_seconds: grace, ..Default::default() };
        client.delete(&PODS, &client::ObjectKey::new("n", name), options).await.unwrap();
    }

    /// Waits for a condition on a pod.
    pub async fn pod_is(&self, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut seen = Value::Null;
        wait(what, || {
            seen = self.pod(name);
            is(&seen)
        })
        .await;
        self.pod(name)
    }

    pub async fn running(&self, name: &str) -> Value {
        let ready = |pod: &Value| condition(pod, "Ready") == "True";
        self.pod_is(name, "pod is ready", ready).await
    }

    /// Messages of all events, by reason.
    pub fn events(&self) -> Vec<String> {
        let all = self.api.all(&EVENTS);
        all.iter()
            .map(|e| format!("{} {}", e["reason"].as_str().unwrap(), e["message"].as_str().unwrap()))
            .collect()
    }

    pub fn log(&self, name: &str, uid: &str, container: &str, attempt: u32) -> String {
        let path = self.dir.path().join(format!("logs/n_{name}_{uid}/{container}/{attempt}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|l| l.splitn(4, ' ').nth(3).unwrap_or_default().to_string() + "\n").collect()
    }

    pub fn volume(&self, uid: &str, volume: &str) -> PathBuf {
        self.dir.path().join(format!("data/pods/{uid}/volumes/{volume}"))
    }

    /// Ends everything; what is left behind.
    async fn end(mut self) -> Vec<String> {
        let mut left = Vec::new();
        if let Some(agent) = self.agent.take() {
            if tokio::time::timeout(WAIT, agent.stop_all()).await.is_err() {
                left.push("pods that do not stop".into());
            }
            left.extend(agent.runtime().pods().iter().map(|p| format!("pod {}", p.spec.name)));
            agent.shutdown().await;
        }
        let begin = Instant::now();
        loop {
            let links: Vec<String> = std::fs::read_dir("/sys/class/net")
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .filter(|n| n.starts_with(PREFIX))
                .collect();
            if links.is_empty() || begin.elapsed() > Duration::from_secs(5) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = net::teardown(PREFIX);
        // As `gantry down`: the folder that drivers see is a mount of its own where the root is private.
        if let Err(error) = agent::csi::unmount_below(&self.dir.path().join("data/kubelet")) {
            left.push(format!("mounts of the kubelet folder: {error}"));
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let path = hierarchy.path().join(self.cgroup());
            if path.exists() {
                left.push(format!("cgroup {}", path.display()));
            }
        }
        left
    }
}

/// The status of a condition; "" when there is none.
pub fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let conditions = pod["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|c| c["type"] == kind);
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}

/// Waits until something holds.
pub async fn wait(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < WAIT, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
