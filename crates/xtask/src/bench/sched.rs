//! `cargo xtask bench sched [NAME]`: upstream's scheduler_perf lists by their names and sizes, on the real scheduler over
//! the real API server in this process (no HTTP), beside upstream's own thresholds; and a Deployment of 10,000 pods.
//!
//! A list is a row of operations. Measured as upstream measures: from the first pod created to the last one bound;
//! creating is part of it. CPU is all that this process used meanwhile, by pod. Nodes have a host-name label, which
//! upstream's have not: rules by host are at work here. Deliberately not here: any pass or fail.

use super::{cpu_seconds, row};
use anyhow::{Context, Result, bail};
use apiserver::{Api, ApiConfig};
use auth::Identity;
use client::cache::Cache;
use client::{ApiClient, ListOptions, ObjectKey};
use controllers::{Controllers, ControllersConfig, Drivers, PortCheck, Scheduler, SchedulerConfig};
use futures_util::{StreamExt, stream};
use k8s_schema::{Gvr, gvr};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

const CLASSES: Gvr = Gvr::new("scheduling.k8s.io", "v1", "priorityclasses");
const NAMESPACES: [&str; 2] = ["sched-0", "sched-1"];
/// Creations under way at the same time.
const CLIENTS: usize = 32;
const DEADLINE: Duration = Duration::from_secs(300);
/// Goal: so many times upstream's threshold.
const GOAL: f64 = 5.0;
const DEPLOYMENT: usize = 10_000;

/// What pods are like.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    /// On one node that it names, as a DaemonSet's.
    Daemon,
    Anti,
    Affine,
    PreferAffine,
    PreferAnti,
    NodeAffine,
    Spread,
    PreferSpread,
    Low,
    High,
    /// Wants nine cores, and is important: fits nowhere.
    Large,
    Gated,
    /// Asks for nothing: as many as there are fit.
    Empty,
}

enum Op {
    /// Nodes, in zones by turns.
    Nodes(usize, &'static [&'static str]),
    /// Pods in the first namespace, waited for (gated ones: not).
    Pods(usize, Kind),
    /// One more of these every so many milliseconds from now on.
    Churn(Kind, u64),
    /// Pods in the second namespace, whose time is taken.
    Measured(usize, Kind),
}

struct List {
    name: &'static str,
    /// Upstream's least rate, pods a second.
    threshold: f64,
    ops: &'static [Op],
}

use Kind::{
    Affine, Anti, Daemon, Empty, Gated, High, Large, Low, NodeAffine, Plain, PreferAffine, PreferAnti,
    PreferSpread, Spread,
};
use Op::{Churn, Measured, Nodes, Pods};

const ONE: &[&str] = &["zone1"];
const MOONS: &[&str] = &["moon-1", "moon-2", "moon-3"];

const fn list(name: &'static str, threshold: f64, ops: &'static [Op]) -> List {
    List { name, threshold, ops }
}

const LISTS: &[List] = &[
    list(
        "SchedulingBasic/5000Nodes_10000Pods",
        680.0,
        &[Nodes(5000, &[]), Pods(1000, Plain), Measured(10_000, Plain)],
    ),
    list("SchedulingDaemonset/15000Nodes", 1100.0, &[Nodes(15_000, &[]), Measured(10_000, Daemon)]),
    list(
        "SchedulingPodAntiAffinity/5000Nodes_2000Pods",
        60.0,
        &[Nodes(5000, &[]), Pods(1000, Anti), Measured(2000, Anti)],
    ),
    list(
        "SchedulingPodAffinity/5000Nodes_5000Pods",
        35.0,
        &[Nodes(5000, ONE), Pods(5000, Affine), Measured(5000, Affine)],
    ),
    list(
        "SchedulingPreferredPodAffinity/5000Nodes_5000Pods",
        90.0,
        &[Nodes(5000, &[]), Pods(5000, PreferAffine), Measured(5000, PreferAffine)],
    ),
    list(
        "SchedulingPreferredPodAntiAffinity/5000Nodes_5000Pods",
        90.0,
        &[Nodes(5000, &[]), Pods(5000, PreferAnti), Measured(5000, PreferAnti)],
    ),
    list(
        "SchedulingNodeAffinity/5000Nodes_10000Pods",
        220.0,
        &[Nodes(5000, ONE), Pods(5000, NodeAffine), Measured(10_000, NodeAffine)],
    ),
    list(
        "TopologySpreading/5000Nodes_5000Pods",
        460.0,
        &[Nodes(5000, MOONS), Pods(5000, Plain), Measured(5000, Spread)],
    ),
    list(
        "PreferredTopologySpreading/5000Nodes_5000Pods",
        340.0,
        &[Nodes(5000, MOONS), Pods(5000, Plain), Measured(5000, PreferSpread)],
    ),
    list(
        "PreemptionAsync/5000Nodes",
        570.0,
        &[Nodes(5000, &[]), Pods(20_000, Low), Churn(High, 200), Measured(5000, Plain)],
    ),
    list(
        "Unschedulable/5kNodes/100Init/10kPods",
        590.0,
        &[Nodes(5000, &[]), Pods(100, Plain), Churn(Large, 200), Measured(10_000, Plain)],
    ),
    list(
        "SchedulingWithMixedChurn/5000Nodes_10000Pods",
        710.0,
        &[Nodes(5000, &[]), Churn(Large, 1000), Measured(10_000, Plain)],
    ),
    list(
        "SchedulingWhileGated/10000GatedPods",
        910.0,
        &[Nodes(200, &[]), Pods(10_000, Gated), Measured(20_000, Empty)],
    ),
];

/// One cluster in this process.
struct World {
    client: ApiClient,
    api: Arc<Api>,
    pods: Arc<Cache>,
    /// Bound pods, by namespace.
    bound: Arc<[AtomicUsize; 2]>,
    woken: Arc<Notify>,
    _scheduler: Scheduler,
    _folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.api.close();
    }
}

fn has_node(object: &client::Object) -> bool {
    object
        .view::<k8s_openapi::api::core::v1::Pod>()
        .is_ok_and(|p| p.spec.as_ref().is_some_and(|s| s.node_name.is_some()))
}

impl World {
    async fn open() -> Result<World> {
        let folder = tempfile::tempdir()?;
        let options = store::EmbeddedOptions::default();
        let store = store::Embedded::open(&folder.path().join("store"), options)?;
        let api = Api::open(ApiConfig::new("main", Arc::new(store))).await?;
        let client = api.client(Identity::new("admin", ["system:masters", "system:authenticated"]));
        let scheduler = api.client(Identity::component("system:kube-scheduler"));
        let config = SchedulerConfig::default();
        let scheduler = Scheduler::start(scheduler, config, Arc::new(jiff::Timestamp::now));
        let pods = Cache::start(client.clone(), gvr::PODS, ListOptions::default());
        let (bound, woken) = (Arc::<[AtomicUsize; 2]>::default(), Arc::new(Notify::new()));
        let (counts, wake) = (bound.clone(), woken.clone());
        pods.on_change(Box::new(move |old, new| {
            let Some(new) = new.filter(|n| has_node(n) && !old.is_some_and(|o| has_node(o))) else { return };
            if let Some(at) = NAMESPACES.iter().position(|n| *n == &*new.key.namespace) {
                counts[at].fetch_add(1, Ordering::Relaxed);
                wake.notify_one();
            }
        }));
        pods.wait_synced().await;
        let world = World { client, api, pods, bound, woken, _scheduler: scheduler, _folder: folder };
        for name in NAMESPACES {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            world.client.create(&gvr::NAMESPACES, namespace).await?;
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": name}});
            world.client.create(&gvr::SERVICE_ACCOUNTS, account).await?;
        }
        for (name, value) in [("low", 1), ("high", 1000)] {
            let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                "metadata": {"name": name}, "value": value});
            world.client.create(&CLASSES, class).await?;
        }
        Ok(world)
    }

    async fn nodes(&self, count: usize, zones: &[&str]) -> Result<()> {
        let each = stream::iter(0..count).map(|i| async move {
            let name = format!("n{i:05}");
            let mut labels = json!({"kubernetes.io/hostname": name});
            if !zones.is_empty() {
                labels["topology.kubernetes.io/zone"] = json!(zones[i % zones.len()]);
            }
            let amounts = json!({"pods": "110", "cpu": "4", "memory": "32Gi"});
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
                "spec": {}, "status": {"capacity": amounts, "allocatable": amounts,
                    "conditions": [{"type": "Ready", "status": "True"}]}});
            let made = self.client.create(&gvr::NODES, node).await?;
            let mut made = made.value().map_err(anyhow::Error::msg)?;
            if made["spec"]["taints"].is_array() {
                // What a node's first report brings.
                made["spec"]["taints"] = json!([]);
                self.client.update(&gvr::NODES, &ObjectKey::cluster(name.as_str()), made).await?;
            }
            anyhow::Ok(())
        });
        let mut each = std::pin::pin!(each.buffer_unordered(CLIENTS));
        while let Some(done) = each.next().await {
            done?;
        }
        Ok(())
    }

    async fn create(&self, count: usize, kind: Kind, namespace: usize) -> Result<()> {
        let template = pod(kind, NAMESPACES[namespace]);
        // On all cores, as upstream's bench creates.
        let each = stream::iter(0..count).map(|_| {
            let (client, body) = (self.client.clone(), template.clone());
            tokio::spawn(async move { client.create(&gvr::PODS, body).await })
        });
        let mut each = std::pin::pin!(each.buffer_unordered(CLIENTS));
        while let Some(done) = each.next().await {
            done??;
        }
        Ok(())
    }

    /// Comes back when so many pods of the namespace have a node.
    async fn until_bound(&self, namespace: usize, count: usize) -> Result<()> {
        let all = async {
            while self.bound[namespace].load(Ordering::Relaxed) < count {
                self.woken.notified().await;
            }
        };
        let late = || format!("{} of {count} pods are bound", self.bound[namespace].load(Ordering::Relaxed));
        tokio::time::timeout(DEADLINE, all).await.with_context(late)
    }
}

/// The body of a pod; the server names it.
fn pod(kind: Kind, namespace: &str) -> Value {
    let (cpu, memory, class, colour) = match kind {
        Low => ("900m", "500Mi", "low", "grey"),
        High => ("3000m", "500Mi", "high", "grey"),
        Large => ("9", "500Mi", "high", "grey"),
        Anti => ("100m", "500Mi", "", "green"),
        Affine | Spread | PreferSpread => ("100m", "500Mi", "", "blue"),
        PreferAffine => ("100m", "500Mi", "", "red"),
        PreferAnti => ("100m", "500Mi", "", "yellow"),
        Daemon | Gated | Empty => ("0", "0", "", "grey"),
        Plain | NodeAffine => ("100m", "500Mi", "", "grey"),
    };
    let mut spec = json!({"containers": [{"name": "pause", "image": "pause", "ports": [{"containerPort": 80}],
        "resources": {"requests": {"cpu": cpu, "memory": memory}}}]});
    if !class.is_empty() {
        spec["priorityClassName"] = json!(class);
    }
    let term = |key: &str| json!({"labelSelector": {"matchLabels": {"color": colour}}, "topologyKey": key, "namespaces": NAMESPACES});
    let (host, zone) = ("kubernetes.io/hostname", "topology.kubernetes.io/zone");
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    let soft = || json!([{"weight": 1, "podAffinityTerm": term(host)}]);
    let even = |unsatisfiable: &str| {
        json!([{"maxSkew": 5, "topologyKey": zone, "whenUnsatisfiable": unsatisfiable,
            "labelSelector": {"matchLabels": {"color": colour}}}])
    };
    match kind {
        Anti => spec["affinity"]["podAntiAffinity"][required] = json!([term(host)]),
        Affine => spec["affinity"]["podAffinity"][required] = json!([term(zone)]),
        PreferAffine => spec["affinity"]["podAffinity"][preferred] = soft(),
        PreferAnti => spec["affinity"]["podAntiAffinity"][preferred] = soft(),
        NodeAffine => {
            spec["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"] = json!([{"matchExpressions": [{"key": zone, "operator": "In", "values": ["zone1", "zone2"]}]}]);
        }
        Daemon => {
            spec["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"] =
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["big"]}]}]);
        }
        Spread => spec["topologySpreadConstraints"] = even("DoNotSchedule"),
        PreferSpread => spec["topologySpreadConstraints"] = even("ScheduleAnyway"),
        Gated => spec["schedulingGates"] = json!([{"name": "bench.io/gate"}]),
        Plain | Empty | Low | High | Large => {}
    }
    json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"generateName": "p-", "namespace": namespace, "labels": {"color": colour}}})
}

/// Ends with its owner.
struct Background(JoinHandle<()>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn play(list: &List) -> Result<()> {
    let world = Arc::new(World::open().await?);
    let (mut waited, mut churns) = (0, Vec::new());
    if list.ops.iter().any(|op| matches!(op, Measured(_, Daemon))) {
        let amounts = json!({"pods": "90000", "cpu": "90000", "memory": "90000Gi"});
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "big"},
            "status": {"capacity": amounts, "allocatable": amounts}});
        world.client.create(&gvr::NODES, node).await?;
    }
    for op in list.ops {
        match op {
            Nodes(count, zones) => world.nodes(*count, zones).await?,
            Pods(count, Gated) => world.create(*count, Gated, 0).await?,
            Pods(count, kind) => {
                world.create(*count, *kind, 0).await?;
                waited += count;
                world.until_bound(0, waited).await?;
            }
            Churn(kind, every) => {
                let (world, kind) = (world.clone(), *kind);
                let mut tick = tokio::time::interval(Duration::from_millis(*every));
                churns.push(Background(tokio::spawn(async move {
                    loop {
                        tick.tick().await;
                        if world.create(1, kind, 0).await.is_err() {
                            return;
                        }
                    }
                })));
            }
            Measured(count, kind) => {
                let (begun, cpu) = (Instant::now(), cpu_seconds(std::process::id())?);
                world.create(*count, *kind, 1).await?;
                world.until_bound(1, *count).await?;
                let rate = *count as f64 / begun.elapsed().as_secs_f64();
                let each = (cpu_seconds(std::process::id())? - cpu) * 1000.0 / *count as f64;
                let value = format!("{rate:.0} pods/s, {:.1}x, {each:.2} ms CPU", rate / list.threshold);
                row(
                    list.name,
                    &value,
                    &format!(">= {:.0} ({GOAL} x {})", GOAL * list.threshold, list.threshold),
                );
            }
        }
    }
    Ok(())
}

struct NoDrivers;

#[async_trait::async_trait]
impl controllers::Reach for NoDrivers {
    async fn call(&self, _: &str, driver: &str, _: &str, _: &Value) -> grpc::Answer {
        Err(grpc::Status::new(grpc::code::UNAVAILABLE, driver))
    }
}

/// From a Deployment's creation until all its pods are available, where the nodes' agents take no time.
async fn deployment() -> Result<()> {
    let world = Arc::new(World::open().await?);
    let manager = world.api.client(Identity::component("system:kube-controller-manager"));
    let config = ControllersConfig {
        root_ca_pem: "pem".into(),
        pod_cidr: None,
        node_prefix: 24,
        lb_pool: None,
        port_check: PortCheck(Arc::new(|_, _| None)),
        dns_ip: [10, 96, 0, 10].into(),
        authority: None,
        drivers: Drivers(Arc::new(NoDrivers)),
        gates: Default::default(),
    };
    let _controllers = Controllers::start(manager, config, Arc::new(jiff::Timestamp::now));
    world.nodes(200, &[]).await?;
    let (send, mut receive) = mpsc::unbounded_channel();
    world.pods.on_change(Box::new(move |old, new| {
        if let Some(new) = new.filter(|n| has_node(n) && !old.is_some_and(|o| has_node(o))) {
            let _ = send.send(new.key.clone());
        }
    }));
    let agents = world.client.clone();
    let _agents = Background(tokio::spawn(async move {
        let now = machinery::time::format(jiff::Timestamp::now());
        let ready = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
        let status = json!({"status": {"phase": "Running", "startTime": now,
            "conditions": [ready("PodScheduled"), ready("Initialized"), ready("ContainersReady"), ready("Ready")]}});
        let keys = stream::poll_fn(move |cx| receive.poll_recv(cx));
        keys.for_each_concurrent(CLIENTS, |key| {
            let (agents, status) = (agents.clone(), status.clone());
            async move { drop(agents.merge_patch_status(&gvr::PODS, &key, status).await) }
        })
        .await;
    }));
    let template = json!({"metadata": {"labels": {"app": "d"}}, "spec": pod(Daemon, NAMESPACES[1])["spec"]["containers"]
        .as_array().map(|c| json!({"containers": c}))});
    let body = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d", "namespace": NAMESPACES[1]},
        "spec": {"replicas": DEPLOYMENT, "selector": {"matchLabels": {"app": "d"}}, "template": template}});
    let (begun, cpu) = (Instant::now(), cpu_seconds(std::process::id())?);
    world.client.create(&gvr::DEPLOYMENTS, body).await?;
    let key = ObjectKey::new(NAMESPACES[1], "d");
    loop {
        let now = world.client.get(&gvr::DEPLOYMENTS, &key).await?.value().map_err(anyhow::Error::msg)?;
        if now["status"]["availableReplicas"] == json!(DEPLOYMENT) {
            break;
        }
        if begun.elapsed() > DEADLINE {
            bail!("the Deployment says {}", now["status"]);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let cpu = cpu_seconds(std::process::id())? - cpu;
    let value = format!(
        "{:.1} s, {:.2} ms CPU a pod",
        begun.elapsed().as_secs_f64(),
        cpu * 1000.0 / DEPLOYMENT as f64
    );
    row("Deployment of 10,000 pods from 0", &value, "<= 15 s");
    Ok(())
}

/// Plays the lists with this in their names, and the Deployment.
pub fn run(only: &str) -> Result<()> {
    // The allocator is told this at its start; `gantry` has as many heaps.
    const HEAPS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");
    if std::env::var_os(HEAPS.0).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe()?);
        let status = again.args(std::env::args_os().skip(1)).env(HEAPS.0, HEAPS.1).status()?;
        anyhow::ensure!(status.success(), "the benchmark failed");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    row("list", "measured", "goal");
    for list in LISTS.iter().filter(|l| l.name.contains(only)) {
        if let Err(error) = runtime.block_on(play(list)) {
            row(list.name, &format!("failed: {error:#}"), "-");
        }
    }
    if "Deployment".contains(only) {
        runtime.block_on(deployment())?;
    }
    Ok(())
}
