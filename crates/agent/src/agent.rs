//! The agent as a whole: what it is given, how it starts and ends.

use crate::backend::Backend;
use crate::cpus::{self, Cpus};
use crate::csi::{self, Place, Plugins};
use crate::devices::{self, Devices};
use crate::dra::Dra;
use crate::events::Recorder;
use crate::eviction;
use crate::facts::NodeFacts;
use crate::inbox::Inbox;
use crate::logging::{LogSink, Logging};
use crate::node::NodeTask;
use crate::nodeapi::{Authorize, NodeApi, Reviews};
use crate::objects::ObjectCaches;
use crate::ops::{MAKING_MAX, Node};
use crate::shutdown;
use crate::statics;
use crate::taskmeta::{self, Endpoint, TaskServices};
use crate::worker::{Event, Parts, Worker};
use client::cache::Cache;
use client::{ApiClient, ListOptions};
use image::Images;
use k8s_schema::gvr::{NODES, PODS, SERVICES};
use net::Network;
use runtime::api::{PodInfo, RuntimeConfig};
use runtime::{Runtime, RuntimeError, oci};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

/// What the node shall claim to have; `None`: what it has.
#[derive(Clone, Debug, Default)]
pub struct Capacity {
    /// CPU in thousandths.
    pub cpu_milli: Option<i64>,
    /// Memory in bytes.
    pub memory_bytes: Option<i64>,
    /// Disk in bytes.
    pub storage_bytes: Option<i64>,
}

/// What an agent is made from.
pub struct AgentConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// The node's address.
    pub node_ip: Ipv4Addr,
    /// The API, as this node.
    pub client: ApiClient,
    /// Where and how the runtime works.
    pub runtime: RuntimeConfig,
    /// Images on disk.
    pub images: Arc<Images>,
    /// Brings images that are not on disk.
    pub puller: image::Puller,
    /// The pod network; its `setup_node` is the caller's business.
    pub network: Arc<Network>,
    /// Pods' folders go to `<data_dir>/pods`.
    pub data_dir: PathBuf,
    /// Container logs.
    pub log_dir: PathBuf,
    /// The folder that drivers' manifests call `/var/lib/kubelet`, under its own name; `None`: one below `data_dir`,
    /// which pods see under the usual name.
    pub kubelet_dir: Option<PathBuf>,
    /// The cluster's DNS service; `None`: pods resolve as the node does.
    pub cluster_dns: Option<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Pod range of this node, for a Node object without one; "" to leave it.
    pub pod_cidr: String,
    /// How many pods.
    pub max_pods: u32,
    /// Processes per pod; 0: no limit.
    pub pids_max: i64,
    /// CPUs for containers alone.
    pub cpus: cpus::Settings,
    /// A folder with manifests of static pods.
    pub manifests: Option<PathBuf>,
    /// What `/flagz` tells: settings by name, without secrets; `None`: there is no such page.
    pub flags: Option<BTreeMap<String, String>>,
    /// Is there a `/statusz`?
    pub statusz: bool,
    /// Labels of the Node beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Overrides of what the node has.
    pub capacity: Capacity,
    /// When pods must go because the node runs short.
    pub eviction: eviction::Settings,
    /// How long pods have when the node goes down.
    pub shutdown: shutdown::Settings,
    /// TLS of the node API: its certificate, and the CA of its clients.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who may call the node API.
    pub authorize: Authorize,
    /// Where the node API listens; port 0 takes any.
    pub listen: SocketAddr,
}

/// Why an agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The runtime could not be opened.
    #[error("container runtime: {0}")]
    Runtime(#[from] RuntimeError),
    /// The network of running pods could not be taken over.
    #[error("pod network: {0}")]
    Network(#[from] net::NetError),
    /// A folder could not be made.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The node API's port could not be taken.
    #[error("node API at {at}: {source}")]
    Listen {
        /// Where.
        at: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A thread died.
    #[error("a starting step was cancelled")]
    Cancelled,
}

/// What the parts of an agent share.
fn node(
    config: &AgentConfig,
    facts: Arc<NodeFacts>,
    runtime: &Runtime,
    inbox: &Arc<Inbox>,
    recorder: &Recorder,
) -> Arc<Node> {
    let of_node = |field: &str| ListOptions {
        field_selector: format!("{field}={}", config.node_name),
        ..ListOptions::default()
    };
    let changed = inbox.clone();
    let csi = Plugins::new(&facts);
    let devices = Arc::new(Devices::new(&facts.kubelet));
    let dra = Dra::new(&facts.kubelet);
    let cpus = Cpus::new(&facts.kubelet, &config.cpus);
    Arc::new(Node {
        facts,
        runtime: runtime.clone(),
        images: config.images.clone(),
        puller: config.puller.clone(),
        network: config.network.clone(),
        objects: ObjectCaches::new(config.client.clone(), move |kind, key| changed.object(kind, key)),
        services: Cache::start(config.client.clone(), SERVICES, ListOptions::default()),
        pods: Cache::start(config.client.clone(), PODS, of_node("spec.nodeName")),
        this: Cache::start(config.client.clone(), NODES, of_node("metadata.name")),
        pressure: watch::Sender::default(),
        shutting_down: watch::Sender::new(false),
        sandboxes: watch::Sender::default(),
        recorder: recorder.clone(),
        tokens: Default::default(),
        probed: Default::default(),
        user_ranges: Default::default(),
        statics: Default::default(),
        leases: Default::default(),
        pulling: Default::default(),
        making: Semaphore::new(MAKING_MAX),
        exits: watch::Sender::new(0),
        logging: Default::default(),
        csi,
        devices,
        dra,
        cpus,
        client: config.client.clone(),
    })
}

/// A running agent. Dropping it ends it; containers run on.
pub struct Agent {
    events: mpsc::UnboundedSender<Event>,
    tasks: JoinSet<()>,
    host_ports: watch::Receiver<Vec<net::HostPort>>,
    ready: watch::Receiver<bool>,
    runtime: Runtime,
    address: SocketAddr,
    node: Arc<Node>,
    going_down: shutdown::Settings,
}

/// CPU of the groups that hold the pods of lesser classes: (name, shares).
const GROUPS: &[(&str, Option<u64>)] = &[("burstable", None), ("besteffort", Some(2))];

impl Agent {
    /// Takes over what runs on this node, then serves it. Does not wait for the API.
    ///
    /// # Errors
    /// The runtime, the network, a folder or the port is not to be had. Nothing runs then.
    pub async fn start(config: AgentConfig) -> Result<Agent, AgentError> {
        for path in [config.data_dir.join("pods"), config.log_dir.clone()] {
            make_private(&path).map_err(|source| AgentError::Folder { path, source })?;
        }
        let listener = TcpListener::bind(config.listen).await;
        let failed = |source| AgentError::Listen { at: config.listen, source };
        let listener = listener.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (runtime, runtime_events) = Runtime::open(config.runtime.clone())?;
        let adopted = runtime.recover().await?;
        make_groups(&runtime).await?;
        recover_network(config.network.clone(), &adopted).await?;
        let facts = Arc::new(facts(&config));
        // Before any pod: one that is older than the mount would not see what drivers mount below it.
        let place = &facts.kubelet.root;
        csi::share(place).map_err(|source| AgentError::Folder { path: place.clone(), source })?;
        let recorder = Recorder::start(config.client.clone(), &config.node_name);
        let inbox = Arc::new(Inbox::default());
        let node = node(&config, facts.clone(), &runtime, &inbox, &recorder);
        let (publish, host_ports) = watch::channel(Vec::new());
        let parts =
            Parts { node: node.clone(), inbox: inbox.clone(), runtime_events, adopted, host_ports: publish };
        let shared = node.clone();
        let (worker, events) = Worker::new(parts);
        let (is_ready, ready) = watch::channel(false);
        let node_task = NodeTask {
            client: config.client,
            facts,
            labels: config.labels,
            pod_cidr: config.pod_cidr,
            port: address.port(),
            handlers: crate::node::handlers(config.runtime.handlers.keys()),
            images: config.images,
            pressure: node.pressure.subscribe(),
            shutting_down: node.shutting_down.subscribe(),
            recorder,
            this: node.this.clone(),
            devices: node.devices.clone(),
        };
        let backend = Arc::new(Backend::new(node.clone()));
        let reviews = Some(Arc::new(Reviews::new(node.client.clone(), &node.facts.node_name)));
        let api = NodeApi { tls: config.tls, authorize: config.authorize, reviews, backend };
        let mut tasks = JoinSet::new();
        spawn(&mut tasks, crate::images::collect(config.puller, node.recorder.clone(), config.node_name));
        spawn(&mut tasks, node_task.run(move || is_ready.send_modify(|ready| *ready = true)));
        spawn(&mut tasks, eviction::run(node.clone(), config.eviction, events.clone()));
        spawn(&mut tasks, api.serve(listener, std::future::pending()));
        spawn(&mut tasks, plugins(node.clone()));
        spawn(&mut tasks, crate::claims::run(node.client.clone(), node.facts.clone(), node.recorder.clone()));
        spawn(&mut tasks, statics::start(node.clone(), inbox.clone(), config.manifests));
        spawn(&mut tasks, drive(node, inbox, worker));
        Ok(Agent {
            events,
            tasks,
            host_ports,
            ready,
            runtime,
            address,
            node: shared,
            going_down: config.shutdown,
        })
    }

    /// Where the node API listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The ports of the node that pods ask for (`hostPort`), for `Network::apply`.
    pub fn host_ports(&self) -> watch::Receiver<Vec<net::HostPort>> {
        self.host_ports.clone()
    }

    /// Serves the metadata endpoint of ECS tasks at a listener, for ever. Without `services` credentials and protection
    /// are refused.
    pub fn task_metadata(
        &self,
        listener: TcpListener,
        services: Option<Arc<dyn TaskServices>>,
    ) -> impl Future<Output = ()> + Send + 'static {
        taskmeta::serve(Arc::new(Endpoint { node: self.node.clone(), services }), listener)
    }

    /// Starts the log drivers of ECS containers; they end when the handle is aborted. For once: a second sink is not
    /// asked about containers that start.
    pub fn ship_logs(&self, sink: Arc<dyn LogSink>) -> JoinHandle<()> {
        let backend = Arc::new(Backend::new(self.node.clone()));
        let (logging, task) = Logging::start(&self.node, backend, sink);
        let _ = self.node.logging.set(Arc::downgrade(&logging));
        task
    }

    /// Waits until the Node object says Ready.
    pub async fn wait_ready(&self) {
        let mut ready = self.ready.clone();
        // An error means that the task ended, which it never does before the agent.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// The runtime, for whoever shows what runs.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Graceful node shutdown: the node says that it goes, and its pods end in order of their priority, for good. False:
    /// settings give no time for it. For `gantry shutdown`.
    pub async fn shut_down(&self) -> bool {
        if !self.going_down.is_empty() {
            shutdown::run(&self.node, &self.going_down, &self.events).await;
        }
        !self.going_down.is_empty()
    }

    /// Stops all pods gracefully and removes them from the node; their API objects stay as they are, so that the
    /// next start brings them back. For `gantry down`.
    pub async fn stop_all(&self) {
        let (answer, done) = oneshot::channel();
        self.node.csi.emptying.store(true, Ordering::Relaxed);
        if self.events.send(Event::StopAll(answer)).is_ok() {
            let _ = done.await;
        }
        self.runtime.remove_groups().await;
    }

    /// Ends the agent; containers run on.
    pub async fn shutdown(mut self) {
        let _ = self.events.send(Event::Shutdown);
        self.tasks.shutdown().await;
    }
}

/// Serves plug-ins of volumes and of devices, for ever.
async fn plugins(node: Arc<Node>) {
    tokio::join!(csi::run(node.clone()), devices::run(node));
}

/// Has the worker look at pods: static ones at once, the API's when it can see them.
async fn drive(node: Arc<Node>, inbox: Arc<Inbox>, worker: Worker) {
    let seen = async move {
        node.pods.wait_synced().await;
        node.this.wait_synced().await;
        node.pods.on_change(Box::new(move |old, new| {
            if let Some(object) = new.or(old) {
                inbox.pod(&object.key);
            }
        }));
    };
    worker.run(seen).await;
}

fn spawn(tasks: &mut JoinSet<()>, task: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(task);
}

/// Secrets lie below: nobody but root looks in.
fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

async fn make_groups(runtime: &Runtime) -> Result<(), RuntimeError> {
    for (name, shares) in GROUPS {
        let cpu = oci::Cpu { shares: *shares, ..oci::Cpu::default() };
        runtime.set_group(name, oci::Resources { cpu, ..oci::Resources::default() }).await?;
    }
    Ok(())
}

async fn recover_network(network: Arc<Network>, adopted: &[PodInfo]) -> Result<(), AgentError> {
    let uids: Vec<String> =
        adopted.iter().filter(|p| !p.spec.host_network).map(|p| p.spec.uid.clone()).collect();
    let work = move || {
        let live: Vec<(String, Ipv4Addr)> =
            uids.into_iter().filter_map(|uid| network.pod(&uid).map(|place| (uid, place.ip))).collect();
        network.recover(&live)
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| AgentError::Cancelled)??;
    Ok(())
}

fn facts(config: &AgentConfig) -> NodeFacts {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    let memory = text("/proc/meminfo")
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<i64>().ok())
        .map_or(0, |kib| kib * 1024);
    let disk = rustix::fs::statvfs(&config.data_dir).map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize));
    NodeFacts {
        node_name: config.node_name.clone(),
        host_ips: vec![config.node_ip.into()],
        cluster_dns: config.cluster_dns,
        cluster_domain: config.cluster_domain.clone(),
        cpu_milli: config.capacity.cpu_milli.unwrap_or(i64::try_from(cpus).unwrap_or(1) * 1000),
        memory_bytes: config.capacity.memory_bytes.unwrap_or(memory),
        storage_bytes: config.capacity.storage_bytes.unwrap_or(i64::try_from(disk).unwrap_or(i64::MAX)),
        max_pods: config.max_pods,
        pids_max: config.pids_max,
        exclusive_cpus: config.cpus.exclusive,
        data_dir: config.data_dir.clone(),
        log_dir: config.log_dir.clone(),
        kubelet: Place::new(config.data_dir.join("kubelet"), config.kubelet_dir.clone()),
        resolv_conf: text("/etc/resolv.conf"),
        hosts: text("/etc/hosts"),
        hostname: text("/proc/sys/kernel/hostname").trim().to_string(),
        started: jiff::Timestamp::now(),
        flags: config.flags.clone(),
        statusz: config.statusz,
    }
}
