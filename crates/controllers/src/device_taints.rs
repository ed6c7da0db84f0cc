//! Pods whose devices (of resource claims) get a NoExecute taint: driven away, at once or when their toleration ends.
//!
//! Taints stand in the ResourceSlices of drivers and in DeviceTaintRules ([`rules`]), tolerations in the claim's
//! allocation. [`stays_for`] is pure. Deliberately not here: keeping new pods off such devices (the scheduler).

mod rules;

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use crate::taint_eviction::{Running, Words, evict, spare};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::Subject;
use client::queue::Queue;
use client::{Object, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gates::DEVICE_TAINT_RULES;
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::{int, list, text};
use parking_lot::Mutex;
use rules::Rule;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

const CLAIMS: Gvr = Gvr::new("resource.k8s.io", "v1", "resourceclaims");
const SLICES: Gvr = Gvr::new("resource.k8s.io", "v1", "resourceslices");
const WORDS: Words = (
    "DeviceTaintManagerEviction",
    "DeletionByDeviceTaintManager",
    "Device Taint manager: deleting due to NoExecute taint",
);

struct Controller {
    context: Context,
    claims: Arc<Cache>,
    slices: Arc<Cache>,
    pods: Arc<Cache>,
    /// `None`: there are none, their gate is off.
    rules: Option<Arc<Cache>>,
    queue: Arc<Queue<ObjectKey>>,
    seen: Mutex<Seen>,
    /// Pods whose time runs, by claim.
    running_out: Mutex<BTreeMap<ObjectKey, Running>>,
    /// Pods that were driven away because of a rule, by the rule's UID.
    evicted: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

/// Starts it. A key is a claim; one without a namespace is a rule.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let of = |gvr: &Gvr| context.informers.of(gvr);
    let (claims, slices, pods) = (of(&CLAIMS), of(&SLICES), of(&gvr::PODS));
    let rules = context.config.gates.on(DEVICE_TAINT_RULES).then(|| of(&rules::RULES));
    enqueue_self(&claims, &queue);
    let all_claims = |known: std::sync::Weak<Cache>, all: Arc<Queue<ObjectKey>>| {
        move || {
            let claims = known.upgrade().map(|claims| claims.list()).unwrap_or_default();
            claims.iter().for_each(|claim| all.add(claim.key.clone()));
        }
    };
    let look = all_claims(Arc::downgrade(&claims), queue.clone());
    slices.on_change(Box::new(move |old, new| {
        let taints = |o: &Arc<Object>| o.value().is_ok_and(|slice| has_taints(&slice));
        if old.into_iter().chain(new).any(taints) {
            look();
        }
    }));
    let mut caches = vec![claims.clone(), slices.clone(), pods.clone()];
    if let Some(rules) = &rules {
        enqueue_self(rules, &queue);
        let look = all_claims(Arc::downgrade(&claims), queue.clone());
        rules.on_change(Box::new(move |_, _| look()));
        caches.push(rules.clone());
    }
    let controller = Controller {
        context: context.clone(),
        claims,
        slices,
        pods,
        rules,
        queue: queue.clone(),
        seen: Mutex::default(),
        running_out: Mutex::default(),
        evicted: Mutex::default(),
    };
    run("device-taint-eviction", caches, queue, 1, Arc::new(controller))
}

fn has_taints(slice: &Value) -> bool {
    list(slice, "/spec/devices").iter().any(|d| !list(d, "/taints").is_empty())
}

/// Driver, pool and device.
type Device = [String; 3];
/// NoExecute taints of devices, each with the time since when it counts.
type Dated = BTreeMap<Device, Vec<(sched::Taint, Timestamp)>>;
/// When taints that carry no time were first seen: of a device, by key and value.
type Seen = BTreeMap<(Device, String, String), Timestamp>;

/// The NoExecute taints of all devices in their pools' newest generation; `seen` is brought up to date.
fn dated(slices: &[Value], seen: &mut Seen, now: Timestamp) -> Dated {
    let pool =
        |slice: &Value| (text(slice, "/spec/driver").to_string(), text(slice, "/spec/pool/name").to_string());
    let generation = |slice: &Value| int(slice, "/spec/pool/generation").unwrap_or(0);
    let mut newest: BTreeMap<_, i64> = BTreeMap::new();
    for slice in slices {
        let known = newest.entry(pool(slice)).or_insert(i64::MIN);
        *known = generation(slice).max(*known);
    }
    let (mut all, mut kept) = (Dated::new(), Seen::new());
    for slice in slices.iter().filter(|s| newest.get(&pool(s)) == Some(&generation(s))) {
        for device in list(slice, "/spec/devices") {
            let (driver, pool) = pool(slice);
            let place: Device = [driver, pool, text(device, "/name").to_string()];
            for taint in list(device, "/taints").iter().filter(|t| text(t, "/effect") == "NoExecute") {
                let word = |field: &str| text(taint, field).to_string();
                let key = (place.clone(), word("/key"), word("/value"));
                let first = *seen.get(&key).unwrap_or(&now);
                let taint =
                    sched::Taint { key: word("/key"), value: word("/value"), effect: word("/effect") };
                let since = machinery::time::parse(&word("/timeAdded")).ok();
                let since = since.unwrap_or_else(|| *kept.entry(key).or_insert(first));
                all.entry(place.clone()).or_default().push((taint, since));
            }
        }
    }
    *seen = kept;
    all
}

/// How long users of a claim may keep its devices: zero is over, `None` is for ever; and the UIDs of the rules that do not
/// let them for ever.
fn stays_for(
    claim: &Value,
    taints: &Dated,
    rules: &[Rule],
    now: Timestamp,
) -> (Option<Duration>, BTreeSet<String>) {
    let (mut shortest, mut by): (Option<Duration>, BTreeSet<String>) = Default::default();
    for result in list(claim, "/status/allocation/devices/results") {
        let tolerations: Vec<core::Toleration> = list(result, "/tolerations")
            .iter()
            .filter_map(|t| serde_json::from_value(t.clone()).ok())
            .collect();
        let place = rules::place(result);
        let told = taints.get(&place).into_iter().flatten().map(|(taint, since)| (taint, since, None));
        let ruled = rules.iter().filter(|r| r.drives(&place)).map(|r| (r.taint(), &r.since, Some(&r.uid)));
        for (taint, since, rule) in told.chain(ruled) {
            let covering = tolerations.iter().filter(|t| sched::covers(t, taint));
            let covering: Vec<Option<i64>> = covering.map(|t| t.toleration_seconds).collect();
            if covering.contains(&None) {
                continue;
            }
            let seconds = covering.into_iter().flatten().min().unwrap_or(0);
            let left = Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
                .saturating_sub(machinery::time::since(now, *since));
            by.extend(rule.cloned());
            shortest = Some(shortest.map_or(left, |s| s.min(left)));
        }
    }
    (shortest, by)
}

impl Controller {
    /// The pods that a claim is for and that are not on their way out.
    fn users(&self, claim: &Value, namespace: &Arc<str>) -> Vec<Arc<Object>> {
        let users = list(claim, "/status/reservedFor").iter().filter(|u| text(u, "/resource") == "pods");
        let pods = users.filter_map(|user| {
            let pod = self.pods.get(&ObjectKey::new(namespace.clone(), text(user, "/name")))?;
            (pod.uid() == text(user, "/uid") && pod.meta().deletion_timestamp.is_none()).then_some(pod)
        });
        pods.collect()
    }

    /// Tells those that are still there that they may stay.
    fn spare(&self, mut pods: Running) {
        pods.retain(|key, subject| {
            let pod = self.pods.get(key).filter(|pod| pod.uid() == subject.uid);
            pod.is_some_and(|pod| pod.meta().deletion_timestamp.is_none())
        });
        spare(&self.context, &pods, WORDS);
    }

    fn all_rules(&self) -> Vec<Rule> {
        let all = self.rules.iter().flat_map(|rules| rules.list());
        all.filter_map(|rule| Rule::read(&rule, self.context.now())).collect()
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        if key.namespace.is_empty() {
            return self.tell(key).await;
        }
        let was_running = self.running_out.lock().remove(key).unwrap_or_default();
        let claim = self.claims.get(key).and_then(|c| c.value().ok()).unwrap_or_default();
        let pods = self.users(&claim, &key.namespace);
        if pods.is_empty() {
            self.spare(was_running);
            return Ok(None);
        }
        let slices: Vec<Value> = self.slices.list().iter().filter_map(|s| s.value().ok()).collect();
        let now = self.context.now();
        let rules = self.all_rules();
        let (left, by) = stays_for(&claim, &dated(&slices, &mut self.seen.lock(), now), &rules, now);
        if left == Some(Duration::ZERO) {
            for pod in &pods {
                evict(&self.context, pod, WORDS).await?;
                for rule in &by {
                    self.evicted.lock().entry(rule.clone()).or_default().insert(pod.uid().into());
                }
            }
            rules.iter().filter(|r| by.contains(&r.uid)).for_each(|r| self.queue.add(r.key.clone()));
        } else if left.is_some() {
            let running = pods.iter().map(|p| (p.key.clone(), Subject::of("v1", "Pod", p))).collect();
            self.running_out.lock().insert(key.clone(), running);
        } else {
            self.spare(was_running);
        }
        Ok(left.filter(|l| !l.is_zero()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, stamp};
    use serde_json::json;

    fn slice(generation: i64, taints: Value) -> Value {
        json!({"spec": {"driver": "d", "pool": {"name": "p", "generation": generation},
            "devices": [{"name": "gpu", "taints": taints}, {"name": "other"}]}})
    }

    #[test]
    fn taints_of_allocated_devices_drive_away() {
        let claim = |tolerations: Value| {
            json!({"status": {"allocation": {"devices": {"results": [
                {"driver": "d", "pool": "p", "device": "gpu", "tolerations": tolerations}]}}}})
        };
        let broken = slice(2, json!([{"key": "broken", "effect": "NoExecute", "timeAdded": stamp(10)}]));
        let of = |tolerations: Value, slices: &[Value]| {
            stays_for(&claim(tolerations), &dated(slices, &mut Seen::new(), at(30)), &[], at(30)).0
        };
        let all = [broken.clone()];
        assert_eq!(of(json!([]), &all), Some(Duration::ZERO));
        assert_eq!(of(json!([{"operator": "Exists"}]), &all), None);
        let minute = json!([{"key": "broken", "operator": "Exists", "tolerationSeconds": 60}]);
        assert_eq!(of(minute, &all), Some(Duration::from_secs(40)));
        let several = json!([{"operator": "Exists", "tolerationSeconds": 60},
            {"key": "broken", "operator": "Exists", "tolerationSeconds": 30}]);
        assert_eq!(of(several, &all), Some(Duration::from_secs(10)), "the shortest counts");
        assert_eq!(of(json!([]), &[slice(1, json!([{"key": "k", "effect": "NoSchedule"}]))]), None);
        assert_eq!(of(json!([]), &[broken, slice(3, json!([]))]), None, "the driver says otherwise by now");
    }

    #[test]
    fn a_taint_without_a_time_counts_from_when_it_was_seen() {
        let slices = [slice(1, json!([{"key": "k", "effect": "NoExecute"}]))];
        let mut seen = Seen::new();
        let mut since =
            |slices: &[Value], now| dated(slices, &mut seen, at(now)).into_values().next().map(|t| t[0].1);
        assert_eq!((since(&slices, 5), since(&slices, 9)), (Some(at(5)), Some(at(5))));
        assert_eq!((since(&[], 10), since(&slices, 11)), (None, Some(at(11))), "it was away");
    }
}
