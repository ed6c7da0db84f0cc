//! ResourceQuotas: `status.used` counted anew from what is really there.
//!
//! Admission charges every write before it is stored and never counts; here is what it cannot see: objects that went,
//! pods that ended, limits that changed. [`status`] is pure.
//! Invariant: a count never overwrites a charge. The quota is read, then left alone for [`SETTLE`], then counted, then
//! written only if nobody charged it meanwhile; so what was charged before is in the caches by the time they are
//! counted. Deliberately not here: creations, which admission has charged already.

use crate::context::{Context, Outcome, Reconcile, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{Object, ObjectKey, Verb, Write};
use jiff::Timestamp;
use k8s_schema::{Gates, Gvr};
use machinery::kinds::get::{entries, list, text};
use machinery::quantity::Quantity;
use machinery::quota::{self, Kind};
use machinery::status::ApiError;
use machinery::usage::{self, Amounts};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

const QUOTAS: Gvr = Gvr::new("", "v1", "resourcequotas");
const DEFINITIONS: Gvr = Gvr::new("apiextensions.k8s.io", "v1", "customresourcedefinitions");
/// How long a quota must be left alone before it is counted: many times what a write takes from charge to cache.
const SETTLE: Duration = Duration::from_millis(100);
/// A new quota is counted once more after this: a write that was let through before admission knew of it was charged
/// nothing, and may come after the first count.
const SECOND_LOOK: Duration = Duration::from_secs(5);
/// What nothing told us of (a pod that should be gone by now, a charge that nobody gave back) is found after this.
const RECOUNT: Duration = Duration::from_secs(600);
/// A kind that a quota counts may be defined later.
const LATER: Duration = Duration::from_secs(30);
/// How long a first list of a kind may take before the quota is tried again later.
const SYNC_MAX: Duration = Duration::from_secs(10);

type Tracked = BTreeMap<(String, String), Arc<Cache>>;

struct Controller {
    context: Context,
    quotas: Arc<Cache>,
    queue: Arc<Queue<ObjectKey>>,
    tracked: Mutex<Tracked>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let quotas = context.informers.of(&QUOTAS);
    let own = queue.clone();
    quotas.on_change(Box::new(move |old, new| {
        let Some(new) = new else { return };
        // Charges are changes too: they must not lead to a count each.
        if old.is_none() || new.value().is_ok_and(|quota| is_stale(&quota)) {
            own.add(new.key.clone());
        }
    }));
    let controller = Controller {
        context: context.clone(),
        quotas: quotas.clone(),
        queue: queue.clone(),
        tracked: Mutex::default(),
    };
    run("resourcequota", vec![quotas], queue, 1, Arc::new(controller))
}

/// Does the status not say what the limits ask for?
fn is_stale(quota: &Value) -> bool {
    let wanted = usage::amounts(quota, "/spec/hard");
    let used = usage::amounts(quota, "/status/used");
    wanted != usage::amounts(quota, "/status/hard") || wanted.keys().ne(used.keys())
}

/// The status of a quota, given the objects of each kind in its namespace.
fn status(quota: &Value, objects: &BTreeMap<(String, String), Vec<Value>>, now: Timestamp) -> Value {
    let mut used: Amounts =
        entries(quota, "/spec/hard").map(|(name, _)| (name.to_string(), Quantity::from_units(0))).collect();
    for ((group, resource), all) in objects {
        let kind = Kind { group, resource };
        for object in all.iter().filter(|o| quota::in_scope(quota, kind, o)) {
            let own = quota::used(kind, object, now);
            let limited = own.into_iter().filter(|(name, _)| used.contains_key(name)).collect();
            usage::add(&mut used, &limited);
        }
    }
    let shown: BTreeMap<String, String> =
        used.iter().map(|(n, amount)| (n.clone(), amount.to_string())).collect();
    json!({"hard": quota["spec"]["hard"], "used": shown})
}

/// The kinds that a quota is about.
fn kinds(quota: &Value) -> BTreeSet<(String, String)> {
    let counted = entries(quota, "/spec/hard").filter_map(|(name, _)| quota::counted(name));
    counted.map(|(group, resource)| (group.to_string(), resource.to_string())).collect()
}

/// Where a built-in kind is served.
fn builtin(gates: &Gates, group: &str, resource: &str) -> Option<Gvr> {
    let mut rows = k8s_schema::resources().iter().filter(|r| !r.legacy && r.namespaced && gates.serve(r));
    let listed = |r: &&k8s_schema::ResourceRow| {
        *r.gvr.group == *group && *r.gvr.resource == *resource && r.verbs.contains(&"list")
    };
    rows.find(listed).map(|r| r.gvr.clone())
}

/// Where a custom kind is served.
fn custom(definitions: &[Arc<Object>], group: &str, resource: &str) -> Option<Gvr> {
    definitions.iter().find_map(|definition| {
        let value = definition.value().ok()?;
        let named =
            text(&value, "/spec/group") == group && text(&value, "/status/acceptedNames/plural") == resource;
        let served = list(&value, "/spec/versions").iter().find(|v| v["served"] == true).filter(|_| named)?;
        Some(Gvr {
            group: group.to_string().into(),
            version: text(served, "/name").to_string().into(),
            resource: resource.to_string().into(),
        })
    })
}

impl Controller {
    async fn find(&self, group: &str, resource: &str) -> Result<Option<Gvr>, ApiError> {
        if let Some(known) = builtin(&self.context.config.gates, group, resource) {
            return Ok(Some(known));
        }
        let definitions = self.context.informers.of(&DEFINITIONS);
        synced(&definitions).await?;
        Ok(custom(&definitions.list(), group, resource))
    }

    /// The cache of a kind, watched from now on.
    async fn track(&self, kind: &(String, String)) -> Result<Option<Arc<Cache>>, ApiError> {
        let known = self.tracked.lock().get(kind).cloned();
        let cache = match known {
            Some(cache) => cache,
            None => {
                let Some(gvr) = self.find(&kind.0, &kind.1).await? else { return Ok(None) };
                let cache = self.context.informers.of(&gvr);
                self.tracked.lock().insert(kind.clone(), cache.clone());
                self.listen(&cache, kind.clone());
                cache
            }
        };
        synced(&cache).await?;
        Ok(Some(cache))
    }

    /// Has the quotas of a namespace counted when something there goes or uses another amount.
    fn listen(&self, cache: &Cache, kind: (String, String)) {
        let (queue, clock) = (self.queue.clone(), self.context.clock.clone());
        let quotas = Arc::downgrade(&self.quotas);
        cache.on_change(Box::new(move |old, new| {
            let (Some(old), Some(quotas)) = (old, quotas.upgrade()) else { return };
            let concerned = quotas.list_in(&old.key.namespace);
            if concerned.is_empty() {
                return;
            }
            let used = |object: &Object| {
                let kind = Kind { group: &kind.0, resource: &kind.1 };
                quota::used(kind, &object.value().unwrap_or_default(), clock())
            };
            if new.is_none_or(|new| used(old) != used(new)) {
                concerned.iter().for_each(|quota| queue.add(quota.key.clone()));
            }
        }));
    }
}

async fn synced(cache: &Cache) -> Result<(), ApiError> {
    let waited = tokio::time::timeout(SYNC_MAX, cache.wait_synced()).await;
    waited.map_err(|_| ApiError::internal("a kind that a quota counts could not be listed yet"))
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let read = match self.context.client.get(&QUOTAS, key).await {
            Err(error) if error.is_not_found() => return Ok(None),
            read => read?,
        };
        let quota = read.value().map_err(ApiError::internal)?;
        let (mut caches, mut again) = (Vec::new(), RECOUNT);
        for kind in kinds(&quota) {
            match self.track(&kind).await? {
                Some(cache) => caches.push((kind, cache)),
                None => again = LATER,
            }
        }
        if is_stale(&quota) {
            again = SECOND_LOOK;
        }
        tokio::time::sleep(SETTLE).await;
        let objects = caches.into_iter().map(|(kind, cache)| {
            let own = cache.list_in(&key.namespace);
            (kind, own.iter().filter_map(|o| o.value().ok()).collect())
        });
        let status = status(&quota, &objects.collect(), self.context.now());
        if quota["status"] != status {
            let mut body = quota;
            body["status"] = status;
            let (gvr, key) = (QUOTAS, key.clone());
            let written = self.context.client.write(Write {
                gvr,
                key,
                subresource: "status",
                verb: Verb::Update(body),
            });
            self.quotas.observe(written.await?);
        }
        Ok(Some(again))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    #[test]
    fn what_is_there_is_counted() {
        let quota = json!({"spec": {"hard": {"pods": "3", "cpu": "2", "secrets": "5", "count/jobs.batch": "1"},
            "scopes": []}, "status": {}});
        assert!(is_stale(&quota));
        let pod = |cpu: &str, phase: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu}}}]}, "status": {"phase": phase}});
        let key = |resource: &str, group: &str| (group.to_string(), resource.to_string());
        assert_eq!(
            kinds(&quota),
            BTreeSet::from([key("pods", ""), key("secrets", ""), key("jobs", "batch")])
        );
        let objects = BTreeMap::from([
            (key("pods", ""), vec![pod("500m", "Running"), pod("1", "Succeeded"), pod("250m", "Pending")]),
            (key("jobs", "batch"), vec![json!({})]),
        ]);
        let status = status(&quota, &objects, at(0));
        assert_eq!(
            status["used"],
            json!({"pods": "2", "cpu": "750m", "secrets": "0", "count/jobs.batch": "1"})
        );
        let mut counted = quota.clone();
        counted["status"] = status;
        assert!(!is_stale(&counted));
        counted["spec"]["hard"]["pods"] = json!("4");
        assert!(is_stale(&counted));
    }

    #[test]
    fn kinds_are_found_where_they_are_served() {
        let builtin = |group, resource| builtin(&Gates::default(), group, resource);
        assert_eq!(builtin("batch", "jobs").unwrap().version, "v1");
        assert!(builtin("", "nodes").is_none() && builtin("", "bindings").is_none());
        let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "w.x"}, "status": {"acceptedNames": {"plural": "w"}},
            "spec": {"group": "x", "versions": [{"name": "v0", "served": false}, {"name": "v1", "served": true}]}});
        let all = [crate::testing::object(definition)];
        assert_eq!(custom(&all, "x", "w").unwrap().version, "v1");
        assert!(custom(&all, "y", "w").is_none());
    }
}
