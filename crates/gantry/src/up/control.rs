//! The control plane's components: store, certificates, API server, controllers, admin socket.

use super::dial::KubeletDialer;
use super::door::Door;
use super::facts::Facts;
use super::leader::{self, Candidate};
use super::place::Place;
use super::{Instance, answer, encryption, outside};
use crate::config::Config;
use crate::join::Joined;
use crate::{admin as socket, kubeconfig, ports};
use anyhow::{Context, Result};
use apiserver::{Api, ApiConfig, FRONT_PROXY_CLIENT, FrontProxy, NameResolver};
use async_trait::async_trait;
use auth::{Ca, Identity, Issued, SYSTEM_MASTERS, ServiceTokens};
use client::ApiClient;
use controllers::{
    Controllers, ControllersConfig, Drivers, PortCheck, Scheduler, SchedulerConfig, SchedulerMetrics,
};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use store::Sealed;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The one realm of an instance so far.
const REALM: &str = "main";
/// Kubernetes' certificate users.
pub const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// The lease of the controllers and the scheduler: upstream's name.
const LEASE: &str = "kube-controller-manager";

/// The controllers, once they run here or, over a shared store, wait for their turn.
enum Running {
    Alone { _running: (Controllers, Scheduler) },
    InTurn { task: tokio::task::JoinHandle<()>, client: ApiClient, me: String },
}

/// What the control plane leaves for others.
#[derive(Default)]
pub struct Parts {
    store: Option<Place>,
    /// The same, with what is encrypted in it.
    sealed: Option<Arc<Sealed>>,
    /// Tells the encryption key of this installation from others.
    pub encryption: String,
    ca: Option<Arc<Ca>>,
    tokens: Option<Arc<ServiceTokens>>,
    api: Option<Arc<Api>>,
    controllers: Option<Running>,
    scheduler: Arc<SchedulerMetrics>,
    /// What load balancers count, for `/metrics`.
    pub load_balancers: ecs::loadbalancer::Figures,
    /// What nodes and other servers ask.
    pub door: Arc<Door>,
    /// Instead of all that: the cluster elsewhere that this node is of.
    pub joined: Option<Joined>,
}

impl Parts {
    /// The certificate authority.
    pub fn ca(&self) -> Result<Arc<Ca>> {
        self.ca.clone().context("certificates start before what uses them")
    }

    /// What signs service-account tokens.
    pub fn service_tokens(&self) -> Result<Arc<ServiceTokens>> {
        self.tokens.clone().context("certificates start before what uses them")
    }

    /// Do other servers use the same store?
    pub fn shares_store(&self) -> bool {
        self.store.as_ref().is_some_and(Place::is_shared)
    }

    /// A door to the API. (One to a server elsewhere has this node's identity, whoever asks.)
    pub fn client(&self, identity: Identity) -> Result<ApiClient> {
        if let Some(joined) = &self.joined {
            return Ok(joined.client.clone());
        }
        Ok(self.api.as_ref().context("the API server starts before what uses it")?.client(identity))
    }

    /// What the node API serves with.
    pub fn node_tls(&self, facts: &Facts) -> Result<Arc<rustls::ServerConfig>> {
        if let Some(joined) = &self.joined {
            return joined.tls.clone().context("the serving certificate comes before what serves");
        }
        let ca = self.ca()?;
        let (user, names) = (format!("system:node:{}", facts.node_name), [facts.node_name.clone()]);
        let certificate = ca.issue_server(&user, &names, &[facts.node_ip.into()], SystemTime::now())?;
        Ok(auth::server_config(&certificate, ca.cert_pem(), &["http/1.1"])?)
    }

    /// Stops in reverse order.
    pub async fn stop(&mut self) {
        if let Some(Running::InTurn { task, client, me }) = self.controllers.take() {
            task.abort();
            let _ = task.await;
            leader::release(client, LEASE, me).await;
        }
        if let Some(api) = self.api.take() {
            api.close();
        }
        if let Some(store) = self.store.take() {
            store.close().await;
        }
    }
}

/// Makes a folder that only root enters.
pub fn private_folder(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    Ok(())
}

/// The store.
pub async fn store(instance: &mut Instance) -> Result<()> {
    let data = &instance.config.data_dir;
    std::fs::create_dir_all(data).with_context(|| data.display().to_string())?;
    let folder = data.join("state");
    private_folder(&folder)?;
    let place = Place::open(&instance.config.store, &folder).await?;
    let pki = instance.config.data_dir.join("pki");
    private_folder(&pki)?;
    let sealing = encryption::load(&pki, &instance.config.encryption_config)?;
    instance.control.encryption = sealing.fingerprint;
    instance.control.sealed = Some(Arc::new(Sealed::new(place.store(), sealing.rules, sealing.keys)));
    instance.control.store = Some(place);
    Ok(())
}

/// The authority, and the administrator's kubeconfig.
pub async fn certificates(instance: &mut Instance) -> Result<()> {
    let folder = instance.config.data_dir.join("pki");
    private_folder(&folder)?;
    let now = SystemTime::now();
    let ca = Arc::new(Ca::load_or_create(&folder, now)?);
    let admin = ca.issue_client("kubernetes-admin", Some(SYSTEM_MASTERS), now)?;
    let server = instance.config.server();
    let text = kubeconfig::text(&server, ca.cert_pem(), "kubernetes-admin", &admin);
    kubeconfig::write(&instance.config.kubeconfig(), &text)?;
    instance.control.ca = Some(ca);
    // Early: a first key is made while the rest starts.
    instance.control.tokens = Some(Arc::new(service_tokens(&instance.config)?));
    Ok(())
}

fn server_certificate(instance: &Instance, ca: &Ca) -> Result<Issued> {
    let domain = &instance.config.cluster_domain;
    let mut names: Vec<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from).into();
    names.push(format!("kubernetes.default.svc.{domain}"));
    names.push(instance.facts.node_name.clone());
    let mut ips: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), instance.facts.node_ip.into()];
    ips.push(instance.facts.api_service_ip.into());
    ips.extend(instance.config.bind.filter(|ip| !ip.is_unspecified()).map(IpAddr::from));
    Ok(ca.issue_server("kube-apiserver", &names, &ips, SystemTime::now())?)
}

/// The keys of service-account tokens. Their issuer names the realm: the first one has the name that every cluster
/// has, others add theirs.
fn service_tokens(config: &Config) -> Result<ServiceTokens> {
    let host = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
    let own = if REALM == "main" { host } else { format!("{host}/realms/{REALM}") };
    let issuer = if config.token_issuer.is_empty() { own } else { config.token_issuer.clone() };
    Ok(ServiceTokens::open(&config.data_dir.join("pki"), issuer, config.token_algorithm)?)
}

/// Whom extension servers trust to speak for others: an authority of its own, so that no other client can.
fn front_proxy(instance: &Instance, ca: &Ca) -> Result<FrontProxy> {
    let now = SystemTime::now();
    let authority = Ca::named(&instance.config.data_dir.join("pki"), "front-proxy-ca", now)?;
    Ok(FrontProxy {
        client_ca_pem: ca.cert_pem().to_string(),
        ca_pem: authority.cert_pem().to_string(),
        client: authority.issue_client(FRONT_PROXY_CLIENT, None, now)?,
    })
}

/// Hosts outside the cluster, as this machine knows them.
struct HostNames;

#[async_trait]
impl apiserver::NameResolver for HostNames {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        image::resolve(host).await
    }
}

/// The API server and its listener.
pub async fn api(instance: &mut Instance) -> Result<()> {
    let ca = instance.control.ca()?;
    let place = instance.control.store.as_ref().context("the store starts first")?;
    let (of_store, of_scheduler) = (place.metrics(), instance.control.scheduler.clone());
    let store = instance.control.sealed.clone().context("the store starts first")?;
    let kubelet_client = ca.issue_client(KUBELET_CLIENT, Some(SYSTEM_MASTERS), SystemTime::now())?;
    let dialer = KubeletDialer::new(&kubelet_client, ca.cert_pem())?;
    let front = front_proxy(instance, &ca)?;
    let resolver: Option<Arc<dyn NameResolver>> = Some(Arc::new(HostNames));
    let tokens = instance.control.service_tokens()?;
    let callers = outside::callers(&instance.config, &resolver, tokens.issuer())?;
    let (followed, balancers) = (callers.followed.clone(), instance.control.load_balancers.clone());
    let client_authorities = format!("{}{}", ca.cert_pem(), front.ca_pem);
    let config = ApiConfig {
        front_proxy: Some(front),
        audit: outside::audit(&instance.config, &resolver)?,
        authenticator: Some(callers.tokens),
        anonymous: callers.anonymous,
        authorization: callers.authorization,
        plugins: outside::plugins(&instance.config)?,
        pod_security_policy: instance.config.pod_security_policy,
        gates: instance.config.gates.clone(),
        flags: Arc::new(instance.config.given.clone()),
        host: instance.facts.node_name.clone(),
        service_cidr: instance.facts.service_range,
        cluster_dns_ip: instance.facts.dns_ip,
        advertise: Some((instance.facts.node_ip, instance.config.port)),
        nodes: Some(dialer.clone()),
        resolver,
        service_tokens: Some(tokens),
        door: Some(instance.control.door.clone()),
        more_metrics: Arc::new(move || {
            [of_store(), of_scheduler.text(), followed.metrics(), balancers.text()].concat()
        }),
        ..ApiConfig::new(REALM, store.clone())
    };
    let api = Api::open(config).await?;
    instance.tasks.append(&mut callers.followed.start(&api));
    dialer.set_client(api.client(Identity::new("system:apiserver", [SYSTEM_MASTERS])));
    let certificate = server_certificate(instance, &ca)?;
    let tls = auth::server_config(&certificate, &client_authorities, &["h2", "http/1.1"])?;
    let bind = instance.config.bind.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let listener = TcpListener::bind((bind, instance.config.port)).await?;
    instance.tasks.push(tokio::spawn(api.clone().serve(listener, tls, instance.stop.subscribe())));
    instance.control.api = Some(api);
    instance.tasks.push(tokio::spawn(async move {
        match store.renew(REALM).await {
            Ok(0) => {}
            Ok(values) => tracing::info!(values, "written anew, as the encryption settings want it"),
            Err(error) => tracing::warn!(%error, "not all values are encrypted as the settings want it"),
        }
    }));
    println!("API answering in {} ms", instance.started.elapsed().as_millis());
    Ok(())
}

/// The controllers and the scheduler: at once, or where servers share a store, in the one whose turn it is.
pub async fn controllers(instance: &mut Instance) -> Result<()> {
    let facts = &instance.facts;
    let node_ip = facts.node_ip;
    let ca = instance.control.ca()?;
    let kubelet_client = ca.issue_client(KUBELET_CLIENT, Some(SYSTEM_MASTERS), SystemTime::now())?;
    let drivers = KubeletDialer::new(&kubelet_client, ca.cert_pem())?;
    let config = ControllersConfig {
        root_ca_pem: instance.control.ca()?.cert_pem().to_string(),
        pod_cidr: Some((facts.cluster_cidr.base(), facts.cluster_cidr.prefix_len())),
        node_prefix: facts.node_prefix(),
        lb_pool: facts.lb_pool.clone(),
        port_check: PortCheck(Arc::new(move |protocol, port| {
            // Only who listens on the node's address is in the way: the tasks' endpoint has one of its own.
            let taken = (protocol == "TCP").then(|| ports::taken(&[(node_ip, port)]));
            taken?.pop().map(|t| t.holder)
        })),
        dns_ip: facts.dns_ip,
        authority: Some(instance.control.ca()?),
        drivers: Drivers(drivers.clone()),
        gates: instance.config.gates.clone(),
    };
    let clock = Arc::new(jiff::Timestamp::now);
    let manager = instance.control.client(Identity::component("system:kube-controller-manager"))?;
    let scheduler = instance.control.client(Identity::component("system:kube-scheduler"))?;
    let client = manager.clone();
    drivers.set_client(client.clone());
    let (configuration, metrics) = (instance.config.scheduler(), instance.control.scheduler.clone());
    if !configuration.ignored.is_empty() {
        tracing::warn!(fields = ?configuration.ignored, "the scheduler's file sets what has no effect here");
    }
    let gates = instance.config.gates.clone();
    let calls = Arc::new(super::extenders::Extenders(Arc::new(HostNames)));
    let scheduling = SchedulerConfig { calls: Some(calls), configuration, metrics, gates };
    let start = move || {
        let controllers = Controllers::start(manager.clone(), config.clone(), clock.clone());
        (controllers, Scheduler::start(scheduler.clone(), scheduling.clone(), clock.clone()))
    };
    let running = if instance.control.store.as_ref().is_some_and(Place::is_shared) {
        let me = format!("{}_{}", facts.node_name, instance.config.name);
        let candidate = Candidate { client: client.clone(), lease: LEASE, me: me.clone() };
        Running::InTurn { task: tokio::spawn(candidate.run(start)), client, me }
    } else {
        Running::Alone { _running: start() }
    };
    instance.control.controllers = Some(running);
    Ok(())
}

/// What the admin socket can see.
pub struct AdminView {
    /// Ends the process.
    pub stop: Arc<watch::Sender<bool>>,
    /// The node, if one runs in this process.
    pub node: Option<AdminNode>,
    facts: Vec<(&'static str, String)>,
    started: std::time::Instant,
}

/// What the admin socket can see of a node.
pub struct AdminNode {
    /// The node's images.
    pub images: image::Images,
    /// What brings images, and our own registry's content.
    pub puller: image::Puller,
    /// The node's agent.
    pub agent: Arc<agent::Agent>,
}

impl AdminView {
    /// A line a fact.
    pub fn status(&self) -> serde_json::Value {
        let mut status: serde_json::Map<String, serde_json::Value> =
            self.facts.iter().map(|(k, v)| ((*k).to_string(), v.as_str().into())).collect();
        status.insert("uptime".into(), format!("{} s", self.started.elapsed().as_secs()).into());
        status.into()
    }
}

/// The admin socket.
pub async fn admin(instance: &mut Instance) -> Result<()> {
    let run_dir = instance.config.run_dir();
    std::fs::create_dir_all(&run_dir).with_context(|| run_dir.display().to_string())?;
    let listener = socket::listen(&instance.config.socket())?;
    let own = format!("https://{}:{}", instance.facts.node_ip, instance.config.port);
    let view = Arc::new(AdminView {
        stop: instance.stop.clone(),
        node: instance.node.view(),
        facts: vec![
            ("pid", std::process::id().to_string()),
            ("node", instance.facts.node_name.clone()),
            ("address", instance.facts.node_ip.to_string()),
            ("api", instance.control.joined.as_ref().map_or(own, |j| j.server.clone())),
            ("data", instance.config.data_dir.display().to_string()),
        ],
        started: instance.started,
    });
    instance
        .tasks
        .push(tokio::spawn(socket::serve(listener, move |question| answer(view.clone(), question))));
    Ok(())
}
