//! What every controller is given: a client, shared caches, an event recorder, a clock; and the worker loop.

use crate::owner::OwnedIndex;
use crate::queue::Queue;
use async_trait::async_trait;
use client::cache::Cache;
use client::events::Recorder;
use client::{ApiClient, ListOptions, Object, ObjectKey};
use jiff::Timestamp;
use k8s_schema::Gvr;
use machinery::status::ApiError;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

type WhoListens = dyn Fn(&str, u16) -> Option<String> + Send + Sync;

/// Says who listens on a port (protocol, number) of the node itself, if somebody does.
#[derive(Clone)]
pub struct PortCheck(pub Arc<WhoListens>);

impl std::fmt::Debug for PortCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PortCheck")
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

/// What came of looking at a key.
pub type Outcome = Result<Option<Duration>, ApiError>;

/// Brings the world to what one object asks for. Called with a key that may be gone by now.
#[async_trait]
pub trait Reconcile<K: Sync = ObjectKey>: Send + Sync + 'static {
    /// Looks at a key; asks to look again after the returned time.
    async fn reconcile(&self, key: &K) -> Outcome;
}

/// Enqueues the key of every object of `cache` that changes.
pub fn enqueue_self(cache: &Cache, queue: &Arc<Queue<ObjectKey>>) {
    enqueue(cache, queue, |object| vec![object.key.clone()]);
}

/// Enqueues what `keys` yields of the old and the new form of every object that changes.
pub fn enqueue(
    cache: &Cache,
    queue: &Arc<Queue<ObjectKey>>,
    keys: impl Fn(&Object) -> Vec<ObjectKey> + Send + Sync + 'static,
) {
    let queue = queue.clone();
    cache.on_change(Box::new(move |old, new| {
        for object in old.into_iter().chain(new) {
            keys(object).into_iter().for_each(|key| queue.add(key));
        }
    }));
}

/// Enqueues the controlling owner of that kind (`apps/v1`, `ReplicaSet`).
pub fn enqueue_owner(
    cache: &Cache,
    queue: &Arc<Queue<ObjectKey>>,
    api_version: &'static str,
    kind: &'static str,
) {
    enqueue(cache, queue, move |object| {
        let owner = object.meta().controller().filter(|o| o.kind == kind && o.api_version == api_version);
        owner.map(|o| ObjectKey::new(object.key.namespace.clone(), o.name.as_str())).into_iter().collect()
    });
}

/// Waits until the caches have their first list, then works on the queue with `workers` tasks.
pub fn run<K: Ord + Clone + Display + Send + Sync + 'static>(
    name: &'static str,
    caches: Vec<Arc<Cache>>,
    queue: Arc<Queue<K>>,
    workers: usize,
    reconciler: Arc<dyn Reconcile<K>>,
) -> Vec<JoinHandle<()>> {
    let work = move || {
        let (caches, queue, reconciler) = (caches.clone(), queue.clone(), reconciler.clone());
        async move {
            for cache in &caches {
                cache.wait_synced().await;
            }
            while let Some(key) = queue.next().await {
                match reconciler.reconcile(&key).await {
                    Ok(again) => {
                        queue.succeeded(&key);
                        if let Some(delay) = again {
                            queue.add_after(key.clone(), delay);
                        }
                    }
                    Err(error) => {
                        tracing::debug!(controller = name, %key, %error, "will retry");
                        queue.retry(key.clone());
                    }
                }
                queue.done(&key);
            }
        }
    };
    (0..workers).map(|_| spawn(work())).collect()
}

/// The one place where controllers start tasks.
pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(work)
}
