//! Caches of what ECS reads, and the indexes over them that keep calls short: families of task definitions, and what is
//! taken on each node.

use client::cache::Cache;
use client::{ApiClient, ListOptions, Object};
use ecs_model::doc::Doc;
use ecs_model::ledger::{Ledger, Place, Usage};
use ecs_model::names::{Arn, Resource};
use ecs_model::overrides::GPU_RESOURCE;
use ecs_model::task::{desired_status, is_stopped};
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource;
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::text;
use machinery::quantity::Quantity;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A kind of objects as a cache shows them.
pub struct Stored {
    pub gvr: Gvr,
    cache: Arc<Cache>,
}

impl std::ops::Deref for Stored {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        &self.cache
    }
}

/// Every cache; the two indexes follow theirs.
pub struct Views {
    pub clusters: Stored,
    pub definitions: Stored,
    pub tasks: Stored,
    pub services: Stored,
    pub service_deployments: Stored,
    pub service_revisions: Stored,
    pub instances: Stored,
    pub providers: Stored,
    pub settings: Stored,
    pub nodes: Stored,
    pub families: Arc<Mutex<Families>>,
    pub ledger: Arc<Mutex<Ledger>>,
    /// Held from looking at the ledger to writing a promise into it: one placement at a time.
    pub placing: Mutex<()>,
    /// Held for its handler.
    pods: Stored,
}

impl Views {
    /// Starts all and waits until they are complete.
    pub async fn start(client: &ApiClient) -> Views {
        let start = |gvr: Gvr| {
            let cache = Cache::start(client.clone(), gvr.clone(), ListOptions::default());
            Stored { gvr, cache }
        };
        let views = Views {
            clusters: start(gvr::ECS_CLUSTERS),
            definitions: start(gvr::ECS_TASK_DEFINITIONS),
            tasks: start(gvr::ECS_TASKS),
            services: start(gvr::ECS_SERVICES),
            service_deployments: start(gvr::ECS_SERVICE_DEPLOYMENTS),
            service_revisions: start(gvr::ECS_SERVICE_REVISIONS),
            instances: start(gvr::ECS_CONTAINER_INSTANCES),
            providers: start(gvr::ECS_CAPACITY_PROVIDERS),
            settings: start(gvr::ECS_ACCOUNT_SETTINGS),
            nodes: start(gvr::NODES),
            pods: start(gvr::PODS),
            families: Arc::default(),
            ledger: Arc::default(),
            placing: Mutex::default(),
        };
        let families = views.families.clone();
        views.definitions.on_change(Box::new(move |old, new| families.lock().change(old, new)));
        let ledger = views.ledger.clone();
        views.tasks.on_change(Box::new(move |old, new| forget_stopped(&ledger, old, new)));
        let ledger = views.ledger.clone();
        views.pods.on_change(Box::new(move |old, new| count_pod(&ledger, old, new)));
        let own = [&views.clusters, &views.definitions, &views.tasks, &views.services, &views.instances];
        let records = [&views.service_deployments, &views.service_revisions, &views.providers];
        for kept in own.into_iter().chain(records).chain([&views.settings, &views.nodes, &views.pods]) {
            kept.wait_synced().await;
        }
        views
    }
}

/// The revisions of a family, by account, region and family.
#[derive(Default)]
pub struct Families(BTreeMap<(String, String, String), BTreeMap<u64, Arc<Object>>>);

impl Families {
    fn change(&mut self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        let Some(object) = new.or(old) else { return };
        let Ok(doc) = object.view::<Doc>() else { return };
        let Some(arn) = Arn::parse(text(doc.spec(), "/taskDefinitionArn")) else { return };
        let Some(Resource::TaskDefinition(family, revision)) = Resource::parse(arn.resource) else { return };
        let key = (arn.account.to_string(), arn.region.to_string(), family);
        let revisions = self.0.entry(key.clone()).or_default();
        match new {
            Some(object) => drop(revisions.insert(revision, object.clone())),
            None => drop(revisions.remove(&revision)),
        }
        if revisions.is_empty() {
            self.0.remove(&key);
        }
    }

    /// A family's revisions in ascending order.
    pub fn revisions(&self, account: &str, region: &str, family: &str) -> BTreeMap<u64, Arc<Object>> {
        let key = (account.to_string(), region.to_string(), family.to_string());
        self.0.get(&key).cloned().unwrap_or_default()
    }

    /// The families of an account and region from a prefix on, in order.
    pub fn with_prefix(
        &self,
        account: &str,
        region: &str,
        prefix: &str,
    ) -> Vec<(String, BTreeMap<u64, Arc<Object>>)> {
        let from = (account.to_string(), region.to_string(), prefix.to_string());
        let here = self
            .0
            .range(from..)
            .take_while(|((a, r, f), _)| a == account && r == region && f.starts_with(prefix));
        here.map(|((_, _, family), revisions)| (family.clone(), revisions.clone())).collect()
    }
}

/// What a task was promised ends with the task.
fn forget_stopped(ledger: &Mutex<Ledger>, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
    let over = |o: &Arc<Object>| {
        o.view::<Doc>()
            .is_ok_and(|d| is_stopped(d.status()) || desired_status(d.spec(), d.status()) == "STOPPED")
    };
    match (old, new) {
        (_, Some(object)) if over(object) => ledger.lock().set_task(&object.key.to_string(), None),
        (Some(object), None) => ledger.lock().set_task(&object.key.to_string(), None),
        _ => {}
    }
}

fn count_pod(ledger: &Mutex<Ledger>, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
    let Some(key) = new.or(old).map(|o| o.key.to_string()) else { return };
    let place = new.and_then(|o| o.view::<Pod>().ok()).and_then(|pod| place_of(&pod));
    ledger.lock().set_pod(&key, place);
}

/// Where a pod is and what it takes; `None` for one that is over or nowhere yet.
fn place_of(pod: &Pod) -> Option<Place> {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let spec = pod.spec.as_ref().filter(|_| !matches!(phase, "Succeeded" | "Failed"))?;
    let node = spec.node_name.clone().filter(|n| !n.is_empty())?;
    let mut usage = Usage::default();
    for container in &spec.containers {
        let (cpu, memory) = requests(container.resources.as_ref());
        usage.milliunits += cpu.unwrap_or(0);
        usage.bytes += memory.unwrap_or(0);
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        usage.gpus += limits.and_then(|l| quantity(l.get(GPU_RESOURCE)?)).map_or(0, |q| q.units());
        let ports = container.ports.iter().flatten().filter_map(|p| {
            let number = u16::try_from(p.host_port?).ok().filter(|n| *n > 0)?;
            Some((number, p.protocol.as_deref().unwrap_or("tcp").to_ascii_lowercase()))
        });
        usage.ports.extend(ports);
    }
    let (cpu, memory) = requests(spec.resources.as_ref());
    usage.milliunits = cpu.unwrap_or(usage.milliunits);
    usage.bytes = memory.unwrap_or(usage.bytes);
    Some((node, usage))
}

/// Thousandths of CPU units, and bytes.
fn requests(resources: Option<&ResourceRequirements>) -> (Option<i64>, Option<i64>) {
    let all = resources.and_then(|r| r.requests.as_ref());
    let of = |name: &str| all.and_then(|r| r.get(name)).and_then(quantity);
    (of("cpu").map(|q| q.milli().saturating_mul(1024)), of("memory").map(|q| q.units()))
}

/// A quantity of the typed objects as a number.
pub fn quantity(q: &resource::Quantity) -> Option<Quantity> {
    q.0.parse().ok()
}
