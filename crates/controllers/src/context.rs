//! What every controller is given: a client, shared caches, an event recorder, a clock. (The worker loop is `client::work`.)

use crate::owner::OwnedIndex;
use async_trait::async_trait;
use client::cache::Cache;
use client::events::Recorder;
pub use client::work::{Outcome, Reconcile, enqueue, enqueue_owner, enqueue_self, run, spawn};
use client::{ApiClient, ListOptions};
use jiff::Timestamp;
use k8s_schema::Gvr;
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

type WhoListens = dyn Fn(&str, u16) -> Option<String> + Send + Sync;

/// Says who listens on a port (protocol, number) of the node itself, if somebody does.
#[derive(Clone)]
pub struct PortCheck(pub Arc<WhoListens>);

impl std::fmt::Debug for PortCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PortCheck")
    }
}

/// The way to a driver's controller service on a node.
#[async_trait]
pub trait Reach: Send + Sync {
    /// Calls it.
    async fn call(&self, node: &str, driver: &str, method: &str, request: &Value) -> grpc::Answer;
}

/// How drivers of volumes are called.
#[derive(Clone)]
pub struct Drivers(pub Arc<dyn Reach>);

impl std::fmt::Debug for Drivers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Drivers")
    }
}

/// What the controllers must be told.
#[derive(Clone, Debug)]
pub struct ControllersConfig {
    /// PEM of the cluster's CA, for the `kube-root-ca.crt` ConfigMaps.
    pub root_ca_pem: String,
    /// Addresses of pods; each node gets a part. `None`: nodes bring their own range.
    pub pod_cidr: Option<(std::net::Ipv4Addr, u8)>,
    /// Prefix length of a node's part.
    pub node_prefix: u8,
    /// Addresses for Services of type LoadBalancer; `None`: the nodes' own.
    pub lb_pool: Option<std::ops::RangeInclusive<std::net::Ipv4Addr>>,
    /// Keeps load balancers with the nodes' own addresses off ports that host processes hold.
    pub port_check: PortCheck,
    /// The cluster DNS service's address.
    pub dns_ip: std::net::Ipv4Addr,
    /// What certificate requests are signed with; `None`: they are left alone.
    pub authority: Option<Arc<auth::Ca>>,
    /// How drivers of volumes are called.
    pub drivers: Drivers,
    /// Which features are on.
    pub gates: k8s_schema::Gates,
}

/// The shared caches of the process, one a resource, started when first asked for.
pub struct Informers {
    client: ApiClient,
    caches: Mutex<BTreeMap<Gvr, Arc<Cache>>>,
    indexes: Mutex<BTreeMap<Gvr, Arc<OwnedIndex>>>,
}

impl Informers {
    /// No cache yet.
    pub fn new(client: ApiClient) -> Arc<Informers> {
        Arc::new(Informers { client, caches: Mutex::default(), indexes: Mutex::default() })
    }

    /// The cache of a resource.
    pub fn of(&self, gvr: &Gvr) -> Arc<Cache> {
        let mut caches = self.caches.lock();
        let start = || Cache::start(self.client.clone(), gvr.clone(), ListOptions::default());
        caches.entry(gvr.clone()).or_insert_with(start).clone()
    }

    /// The shared index by owner of a resource's cache. Ask for it before enqueueing from that cache.
    pub(crate) fn owned(&self, gvr: &Gvr) -> Arc<OwnedIndex> {
        let cache = self.of(gvr);
        self.indexes.lock().entry(gvr.clone()).or_insert_with(|| OwnedIndex::start(&cache)).clone()
    }
}

/// A controller's surroundings; cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The API, as this controller's identity.
    pub client: ApiClient,
    /// Shared caches.
    pub informers: Arc<Informers>,
    /// Events about objects.
    pub recorder: Recorder,
    /// Settings.
    pub config: Arc<ControllersConfig>,
    /// Now.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Context {
    /// Now.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }
}
