//! [`Api`]: one realm's server, made from a config, running until it is closed.

use crate::aggregation::{self, Aggregator};
use crate::audit::Audit;
use crate::authz::{Authorizer, Standard, Step};
use crate::cache::{Cache, Objects};
use crate::config::ApiConfig;
use crate::fairness::{self, Fairness};
use crate::inproc::InProcess;
use crate::metrics::Metrics;
use crate::node_access::NodeAccess;
use crate::node_metrics::NodeMetrics;
use crate::openapi::{Documents, Row};
use crate::pod_figures::PodFigures;
use crate::rbac::Rbac;
use crate::resources::{LiveRegistry, Registry};
use crate::services::ServicePools;
use crate::storage::Storage;
use crate::{admission, bootstrap, custom, expiry, migration, presence, resources};
use auth::Identity;
use client::{ApiClient, Object, ObjectKey};
use k8s_schema::{Gvr, gates};
use machinery::status::ApiError;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use std::sync::Arc;
use tokio::sync::watch;

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store could not be listed.
    #[error("reading the store: {0}")]
    Store(#[from] store::StoreError),
    /// The audit log could not be opened.
    #[error("audit log: {0}")]
    Audit(#[from] std::io::Error),
    /// The front-proxy authority is none.
    #[error("front-proxy authority: {0}")]
    FrontProxy(#[from] auth::TlsError),
    /// An object that must be there could not be made.
    #[error("making {what}: {error}")]
    Bootstrap {
        /// Which object.
        what: String,
        /// Why.
        error: ApiError,
    },
}

/// Documents, and what they were made from: resources, other servers' parts.
type Kept = (Arc<Registry>, Vec<Arc<Value>>, Arc<Documents>);

/// One realm's API server.
pub struct Api {
    pub(crate) config: ApiConfig,
    pub(crate) registry: LiveRegistry,
    pub(crate) storage: Storage,
    pub(crate) services: Arc<ServicePools>,
    pub(crate) metrics: Metrics,
    documents: Mutex<Kept>,
    pub(crate) discovery: crate::discovery::Kept,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) rbac: Arc<Rbac>,
    pub(crate) aggregator: Aggregator,
    pub(crate) node_metrics: NodeMetrics,
    pub(crate) figures: PodFigures,
    pub(crate) fairness: Arc<Fairness>,
    /// Records requests, where that is wanted.
    pub(crate) audit: Option<Arc<Audit>>,
    /// Tells front proxies from ordinary clients.
    pub(crate) front_proxies: Option<auth::ClientAuthority>,
    pub(crate) webhooks: crate::webhooks::Webhooks,
    pub(crate) policies: crate::admission::policy::Policies,
    /// Room for watches.
    pub(crate) places: crate::watch::Places,
    closing: watch::Sender<bool>,
    /// When it was opened.
    pub(crate) started: jiff::Timestamp,
}

impl Api {
    /// Opens a realm: reads the store, starts the feed of the cache, makes the objects that must be there.
    pub async fn open(config: ApiConfig) -> Result<Arc<Api>, OpenError> {
        let cache = Cache::open(&config.store, &config.realm).await?;
        let closing = watch::Sender::new(false);
        tokio::spawn(cache.clone().feed(config.store.clone(), closing.subscribe()));
        let registry = Registry::builtin(&config.realm, config.legacy, &config.gates);
        let rbac = Arc::new(Rbac::new(cache.clone(), &registry));
        let nodes = NodeAccess::new(cache.clone(), &registry);
        let order = RwLock::new(config.authorization.clone().into());
        let standard = || Arc::new(Standard { nodes, rbac: rbac.clone(), order }) as Arc<dyn Authorizer>;
        let authorizer = config.authorizer.clone().unwrap_or_else(standard);
        let registry = LiveRegistry::new(registry);
        let front_proxies = front_proxies(&config)?;
        let audit = config.audit.clone().map(|a| Audit::new(a, config.clock.clone())).transpose()?;
        let api = Arc::new(Api {
            documents: Mutex::new((
                registry.now(),
                Vec::new(),
                Arc::new(documents(&registry.now(), Vec::new())),
            )),
            discovery: crate::discovery::Kept::default(),
            registry,
            storage: Storage::new(config.store.clone(), cache),
            services: Arc::new(ServicePools::new(config.service_cidr, &config.node_ports)),
            metrics: Metrics::default(),
            authorizer,
            rbac,
            aggregator: Aggregator::default(),
            node_metrics: NodeMetrics::default(),
            figures: PodFigures::default(),
            fairness: Arc::default(),
            front_proxies,
            audit,
            webhooks: crate::webhooks::Webhooks::default(),
            policies: crate::admission::policy::Policies::default(),
            places: crate::watch::Places::default(),
            closing,
            started: (config.clock)(),
            config,
        });
        for service in api.cached_all(&k8s_schema::gvr::SERVICES).values() {
            api.services.adopt(&service.key, &service.value().unwrap_or_default());
        }
        custom::controller::adopt(&api);
        if api.config.pod_security_policy {
            use admission::pod_security_policy::definition as policies;
            let all = policies::resources(&api.config.realm);
            api.registry.change(|registry| registry.define(&policies::NAME.into(), all));
        }
        bootstrap::ensure(&api).await?;
        let definitions = api.client(bootstrap::server());
        tokio::spawn(custom::controller::run(Arc::downgrade(&api), definitions));
        let services = api.client(bootstrap::server());
        tokio::spawn(aggregation::controller::run(Arc::downgrade(&api), services));
        let flows = api.client(bootstrap::server());
        tokio::spawn(fairness::run(Arc::downgrade(&api), flows));
        let policies = api.client(bootstrap::server());
        tokio::spawn(admission::policy::types::run(Arc::downgrade(&api), policies));
        tokio::spawn(expiry::run(Arc::downgrade(&api)));
        if !api.config.host.is_empty() {
            let (client, host) = (api.client(bootstrap::server()), api.config.host.clone());
            tokio::spawn(presence::run(Arc::downgrade(&api), client, host));
        }
        if api.config.gates.on(gates::STORAGE_VERSION_MIGRATOR) {
            tokio::spawn(migration::run(Arc::downgrade(&api), api.client(bootstrap::server())));
        }
        Ok(api)
    }

    /// A door for a component in this process, acting as `identity`.
    pub fn client(self: &Arc<Self>, identity: Identity) -> ApiClient {
        Arc::new(InProcess::new(self.clone(), identity))
    }

    /// Others have a say about access from now on.
    pub fn reorder_authorizers(&self, steps: Vec<Step>) {
        self.authorizer.reorder(steps);
    }

    /// Ends watches, connections and the feed. The store stays open.
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Turns true when the server closes.
    pub(crate) fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }

    /// The OpenAPI documents of what is served now.
    pub(crate) fn documents(&self) -> Arc<Documents> {
        let (now, foreign) = (self.registry.now(), self.aggregator.v2_parts());
        let mut kept = self.documents.lock();
        let same = |a: &Vec<Arc<Value>>, b: &Vec<Arc<Value>>| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
        };
        if !Arc::ptr_eq(&kept.0, &now) || !same(&kept.1, &foreign) {
            *kept = (now.clone(), foreign.clone(), Arc::new(documents(&now, foreign)));
        }
        kept.2.clone()
    }

    /// Now, as objects carry it.
    pub(crate) fn now_text(&self) -> String {
        machinery::time::format((self.config.clock)())
    }

    /// An object of a built-in resource as the cache has it now.
    pub(crate) fn cached(&self, gvr: &Gvr, namespace: &str, name: &str) -> Option<Arc<Object>> {
        let resource = self.registry.find(gvr)?;
        self.storage.cache.get(&resource.prefix, &resource.suffix(namespace, name))
    }

    /// All objects of a built-in resource as the cache has them now.
    pub(crate) fn cached_all(&self, gvr: &Gvr) -> Objects {
        self.registry.find(gvr).map(|r| self.storage.cache.snapshot(&r.prefix).objects).unwrap_or_default()
    }

    /// Gives back what a removed object held.
    pub(crate) async fn released(&self, resource: &resources::Resource, key: &ObjectKey) {
        if resource.is("", "services") {
            for ip in self.services.release(key) {
                self.let_go(key, ip).await;
            }
        }
    }
}

fn front_proxies(config: &ApiConfig) -> Result<Option<auth::ClientAuthority>, auth::TlsError> {
    config.front_proxy.as_ref().map(|proxy| auth::ClientAuthority::new(&proxy.ca_pem)).transpose()
}

fn documents(registry: &Registry, foreign: Vec<Arc<Value>>) -> Documents {
    let row = |r: &Arc<resources::Resource>| Row {
        row: r.row.clone(),
        custom: r.custom.as_ref().map(|c| c.version.clone()),
    };
    Documents::new(registry.all().map(row).collect(), foreign)
}
