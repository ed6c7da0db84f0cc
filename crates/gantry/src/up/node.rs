//! The node's components: images, network, agent, services, DNS.

use super::Instance;
use super::control::{AdminNode, AdminView, KUBELET_CLIENT};
use super::facts::Facts;
use crate::admin::Question;
use crate::config::Config;
use crate::join;
use agent::eviction::Settings;
use agent::{Agent, AgentConfig, Capacity};
use anyhow::{Context, Result, ensure};
use auth::Identity;
use image::{Images, Sweep};
use k8s_schema::gates;
use machinery::status::ApiError;
use net::{Ipv4Net, NetConfig, Network};
use runtime::api::RuntimeConfig;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Largest packet of a pod: the usual device's, less what the tunnel to other nodes adds.
const MTU: u32 = 1_450;
/// How long the control plane may take to give a node its pod range.
const RANGE_MAX: Duration = Duration::from_secs(30);
const DNS_PORT: u16 = 53;
/// Handlers that need no setting where their binary is installed.
const WELL_KNOWN_HANDLERS: [(&str, &str); 2] = [("crun", "/usr/bin/crun"), ("runc", "/usr/sbin/runc")];

/// What the node's components leave for others.
#[derive(Default)]
pub struct Parts {
    images: Option<Images>,
    /// Left by the registry.
    pub puller: Option<image::Puller>,
    /// Who may use the registry from outside; others may add their own users.
    pub registry_users: registry::Authorizers,
    network: Option<Arc<Network>>,
    agent: Option<Arc<Agent>>,
    dns: Option<dns::Server>,
}

impl Parts {
    /// The node's images.
    pub fn images(&self) -> Result<Images> {
        self.images.clone().context("images start before what uses them")
    }

    /// What brings images.
    pub fn puller(&self) -> Result<image::Puller> {
        self.puller.clone().context("the registry starts before what uses it")
    }

    /// The network.
    pub fn network(&self) -> Result<Arc<Network>> {
        self.network.clone().context("the network starts before what uses it")
    }

    /// The agent.
    pub fn agent(&self) -> Result<Arc<Agent>> {
        self.agent.clone().context("the agent starts before what uses it")
    }

    /// What the admin socket sees of all that, if there is a node.
    pub fn view(&self) -> Option<AdminNode> {
        let (agent, images, puller) = (self.agent.clone()?, self.images.clone()?, self.puller.clone()?);
        Some(AdminNode { images, puller, agent })
    }

    /// Stops in reverse order; containers run on.
    pub async fn stop(&mut self) {
        if let Some(dns) = self.dns.take() {
            dns.stop().await;
        }
        if let Some(agent) = self.agent.take().and_then(Arc::into_inner) {
            agent.shutdown().await;
        }
    }
}

/// The image store.
pub async fn images(instance: &mut Instance) -> Result<()> {
    let folder = instance.config.data_dir.join("images");
    instance.node.images = Some(tokio::task::spawn_blocking(move || Images::open(folder)).await??);
    Ok(())
}

/// The network's part of an instance.
pub fn net_config(config: &Config, facts: &Facts) -> NetConfig {
    NetConfig {
        prefix: config.name.clone(),
        node_ip: facts.node_ip,
        pod_cidr: facts.pod_cidr,
        cluster_cidr: facts.cluster_cidr,
        service_cidr: facts.service_cidr,
        dns_ip: facts.dns_ip,
        mtu: MTU,
    }
}

/// Who a node is.
fn identity(facts: &Facts) -> Identity {
    let user = format!("system:node:{}", facts.node_name);
    Identity::new(&user, ["system:nodes", "system:authenticated"])
}

/// Registers the node and waits for its part of the pod range: the control plane gives each node one, once.
pub async fn range(instance: &mut Instance) -> Result<()> {
    let facts = &instance.facts;
    let client = instance.control.client(identity(facts))?;
    let (name, ip) = (facts.node_name.as_str(), facts.node_ip);
    let register = || async {
        let given = tokio::time::timeout(RANGE_MAX, ::agent::register(&client, name, ip)).await;
        given.unwrap_or_else(|_| {
            Err(ApiError::new(409, "Conflict", "the cluster has no free pod range for this node"))
        })
    };
    let what = "registering the node";
    let range = match instance.control.joined {
        Some(_) => {
            let file = join::pki(&instance.config).join("pod-range.json");
            let told = join::remembered(what, &file, || async { register().await.map(Value::from) }).await?;
            told.as_str().unwrap_or_default().to_string()
        }
        None => join::patiently(what, register).await?,
    };
    let range: Ipv4Net = range.parse().context("the node's pod range")?;
    let all = facts.cluster_cidr;
    ensure!(
        all.contains(range.base()) && range.prefix_len() >= all.prefix_len(),
        "node {name} has the pod range {range}, which is not in {all}: give --pod-cidr as before, or delete the node"
    );
    instance.facts.pod_cidr = range;
    Ok(())
}

/// Links, routes and tables of the node.
pub async fn network(instance: &mut Instance) -> Result<()> {
    let config = net_config(&instance.config, &instance.facts);
    let open = move || -> Result<Network> {
        let network = Network::open(config)?;
        network.setup_node()?;
        Ok(network)
    };
    instance.node.network = Some(Arc::new(tokio::task::spawn_blocking(open).await??));
    Ok(())
}

/// The runtime's part of an instance.
pub fn runtime_config(config: &Config) -> Result<RuntimeConfig> {
    let mut handlers: BTreeMap<String, PathBuf> = WELL_KNOWN_HANDLERS
        .iter()
        .map(|(name, path)| ((*name).to_string(), PathBuf::from(path)))
        .filter(|(_, path)| path.exists())
        .collect();
    for entry in config.runtimes.split(',').filter(|e| !e.is_empty()) {
        let (name, path) =
            entry.split_once('=').with_context(|| format!("--runtimes: {entry:?} is not name=path"))?;
        handlers.insert(name.into(), path.into());
    }
    Ok(RuntimeConfig {
        state_dir: config.run_dir().join("pods"),
        cgroup_root: config.name.clone(),
        shim_exe: std::env::current_exe()?,
        handlers,
    })
}

/// When pods go because the node runs short.
pub fn eviction(config: &Config) -> Result<Settings> {
    let hard = if config.eviction_hard == "none" { "" } else { &config.eviction_hard };
    let read =
        Settings::parse(hard, &config.eviction_soft, &config.eviction_soft_grace, &config.eviction_reclaim);
    let settings = read.map_err(|e| anyhow::anyhow!("--eviction-…: {e}"))?;
    Ok(Settings {
        transition: jiff::SignedDuration::from_secs(config.eviction_transition.into()),
        max_pod_grace: config.eviction_pod_grace.into(),
        ..settings
    })
}

/// How long pods have when the node goes down.
pub fn shutdown(config: &Config) -> Result<agent::shutdown::Settings> {
    let times = &config.shutdown_grace;
    let read = agent::shutdown::Settings::parse(&times.all, &times.critical, &times.by_priority);
    read.map_err(|e| anyhow::anyhow!("--shutdown-grace-period…: {e}"))
}

/// The node agent.
pub async fn agent(instance: &mut Instance) -> Result<()> {
    let (config, facts) = (&instance.config, &instance.facts);
    std::fs::create_dir_all(config.run_dir())?;
    let agent = Agent::start(AgentConfig {
        node_name: facts.node_name.clone(),
        node_ip: facts.node_ip,
        client: instance.control.client(identity(facts))?,
        runtime: runtime_config(config)?,
        images: Arc::new(instance.node.images()?),
        puller: instance.node.puller()?,
        network: instance.node.network()?,
        data_dir: config.data_dir.clone(),
        log_dir: config.data_dir.join("logs"),
        kubelet_dir: config.kubelet_dir.clone(),
        cluster_dns: Some(facts.dns_ip.into()),
        cluster_domain: config.cluster_domain.clone(),
        pod_cidr: String::new(),
        max_pods: config.max_pods,
        pids_max: instance.config.pod_pids_max,
        cpus: instance.config.cpus.clone(),
        manifests: Some(&config.pod_manifests).filter(|p| !p.is_empty()).map(PathBuf::from),
        flags: config.gates.on(gates::COMPONENT_FLAGZ).then(|| config.given.clone()),
        statusz: config.gates.on(gates::COMPONENT_STATUSZ),
        labels: BTreeMap::new(),
        capacity: Capacity::default(),
        eviction: eviction(config)?,
        shutdown: shutdown(config)?,
        tls: instance.control.node_tls(facts)?,
        authorize: Arc::new(|certificate| {
            auth::identity_of(std::slice::from_ref(certificate)).is_some_and(|i| i.user == KUBELET_CLIENT)
        }),
        listen: (Ipv4Addr::UNSPECIFIED, config.node_port).into(),
    });
    instance.node.agent = Some(Arc::new(agent.await?));
    Ok(())
}

/// The way to other nodes' pods.
pub async fn peers(instance: &mut Instance) -> Result<()> {
    let client = instance.control.client(Identity::component("system:kube-proxy"))?;
    let node = instance.facts.node_name.clone();
    instance.tasks.push(agent::services::feed_peers(client, instance.node.network()?, node));
    Ok(())
}

/// Service maps.
pub async fn services(instance: &mut Instance) -> Result<()> {
    let client = instance.control.client(Identity::component("system:kube-proxy"))?;
    let host_ports = instance.node.agent()?.host_ports();
    let node = instance.facts.node_name.clone();
    instance.tasks.push(agent::services::start(client, instance.node.network()?, node, host_ports));
    Ok(())
}

/// Cluster DNS.
pub async fn dns(instance: &mut Instance) -> Result<()> {
    let facts = &instance.facts;
    let client = instance.control.client(Identity::component("system:coredns"))?;
    let (zone, task) = agent::services::feed_dns(
        client,
        instance.config.cluster_domain.clone(),
        (facts.dns_ip, facts.node_ip),
    );
    instance.tasks.push(task);
    let bind = [(facts.dns_ip, DNS_PORT).into()];
    let server = dns::Server::start(&bind, zone, facts.upstreams.clone(), Arc::default()).await;
    instance.node.dns = Some(server.with_context(|| format!("listening at {}:{DNS_PORT}", facts.dns_ip))?);
    Ok(())
}

/// Waits until the API shows the node Ready, if there is one here.
pub async fn wait_ready(instance: &Instance) -> Result<()> {
    if let Ok(agent) = instance.node.agent() {
        agent.wait_ready().await;
    }
    Ok(())
}

/// Answers questions about images.
pub async fn answer(view: &AdminView, question: Question) -> Result<Value> {
    let Some(node) = &view.node else {
        ensure!(matches!(question, Question::Down), "no node runs in this process");
        view.stop.send_replace(true);
        return Ok(Value::Null);
    };
    match question {
        Question::ImageLoad { path } => {
            let loaded = node.images.load_async(path).await?;
            Ok(loaded
                .into_iter()
                .flat_map(|l| if l.names.is_empty() { vec![l.id] } else { l.names })
                .collect())
        }
        Question::ImageList => {
            let line =
                |name: &str, i: &image::Image| json!({"name": name, "id": i.id, "sizeBytes": i.size_bytes});
            let lines = |i: Arc<image::Image>| -> Vec<Value> {
                if i.names.is_empty() {
                    vec![line("<none>", &i)]
                } else {
                    i.names.iter().map(|n| line(n, &i)).collect()
                }
            };
            Ok(node.images.list().into_iter().flat_map(lines).collect())
        }
        Question::Shutdown { down } => {
            let offered = node.agent.shut_down().await;
            ensure!(offered, "--shutdown-grace-period is 0: pods of this node are not ended in order");
            if down {
                node.agent.stop_all().await;
            }
            view.stop.send_replace(true);
            Ok(Value::Null)
        }
        Question::Down => {
            node.agent.stop_all().await;
            view.stop.send_replace(true);
            Ok(Value::Null)
        }
        _ => {
            let puller = node.puller.clone();
            let collect = move || {
                if let Some(depot) = puller.depot() {
                    depot.gc(image::GcHow::Untagged)?;
                }
                puller.images().gc(&BTreeSet::new(), Sweep::Unused)
            };
            let removed = tokio::task::spawn_blocking(collect).await??;
            Ok(json!(removed.len()))
        }
    }
}
