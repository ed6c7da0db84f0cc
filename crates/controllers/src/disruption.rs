//! PodDisruptionBudgets: how many of a budget's pods may go now.
//!
//! [`expected`] counts what the owners of the pods ask for, [`status`] computes the whole status; the shell finds
//! pods and owners (of built-in kinds from caches, of custom kinds by their `scale`). Evictions debit the status (`apiserver`) and note the pod in `disruptedPods`; here the note is
//! dropped when the pod is seen going, or was not removed in time. A pod that was to go and did not loses the
//! condition that says so ([`stale_in`]).

use crate::context::{Context, Outcome, Reconcile, enqueue, enqueue_self, run};
use crate::custom_kinds::Kinds;
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{Object, ObjectKey, OwnerRef};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;
use k8s_schema::{Gvr, gvr};
use machinery::intstr::IntOrString;
use machinery::kinds::get::{int, list, text};
use machinery::kinds::pod::condition;
use machinery::selector::LabelSelector;
use machinery::time;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

const BUDGETS: Gvr = Gvr::new("policy", "v1", "poddisruptionbudgets");
/// An evicted pod that is not gone by then was not evicted after all; upstream's figure.
const NOTE_LIFETIME: SignedDuration = SignedDuration::from_secs(120);
/// Owners that say how many pods they want: kind, API group, resource.
const SCALABLE: [(&str, &str, Gvr); 4] = [
    ("ReplicationController", "", Gvr::new("", "v1", "replicationcontrollers")),
    ("ReplicaSet", "apps", gvr::REPLICA_SETS),
    ("StatefulSet", "apps", gvr::STATEFUL_SETS),
    ("Deployment", "apps", gvr::DEPLOYMENTS),
];

struct Controller {
    context: Context,
    budgets: Arc<Cache>,
    pods: Arc<Cache>,
    owners: BTreeMap<&'static str, Arc<Cache>>,
    kinds: Arc<Kinds>,
}

/// Clears the mark of pods that were to go and did not. A key is a pod.
struct Cleaner {
    context: Context,
    pods: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let of = |gvr: &Gvr| context.informers.of(gvr);
    let owners: BTreeMap<&'static str, Arc<Cache>> =
        SCALABLE.iter().map(|(kind, _, gvr)| (*kind, of(gvr))).collect();
    let kinds = Kinds::start(&context.informers);
    let (budgets, pods) = (of(&BUDGETS), of(&gvr::PODS));
    let controller = Controller { context: context.clone(), budgets, pods, owners, kinds };
    enqueue_self(&controller.budgets, &queue);
    let budgets = Arc::downgrade(&controller.budgets);
    enqueue(&controller.pods, &queue, move |pod: &Object| {
        let Some(budgets) = budgets.upgrade() else { return Vec::new() };
        let selects = |b: &Arc<Object>| selector(b).is_some_and(|s| s.matches(&pod.meta().labels));
        budgets.list_in(&pod.key.namespace).into_iter().filter(selects).map(|b| b.key.clone()).collect()
    });
    // A changed scale changes what a percentage means.
    for cache in controller.owners.values() {
        let budgets = Arc::downgrade(&controller.budgets);
        enqueue(cache, &queue, move |owner: &Object| {
            let Some(budgets) = budgets.upgrade() else { return Vec::new() };
            budgets.list_in(&owner.key.namespace).into_iter().map(|b| b.key.clone()).collect()
        });
    }
    let mut caches = vec![controller.budgets.clone(), controller.pods.clone()];
    caches.extend(controller.owners.values().cloned());
    let (marked, pods) = (Arc::new(Queue::default()), controller.pods.clone());
    enqueue(&pods, &marked, |pod| {
        let told = pod.meta().deletion_timestamp.is_none() && mark(pod).is_some();
        told.then(|| pod.key.clone()).into_iter().collect()
    });
    let cleaner = Cleaner { context: context.clone(), pods: pods.clone() };
    let mut tasks = run("disruption-marks", vec![pods], marked, 1, Arc::new(cleaner));
    tasks.extend(run("disruption", caches, queue, 1, Arc::new(controller)));
    tasks
}

/// The condition that says that a pod is about to go, where it is true.
fn mark(pod: &Object) -> Option<core::PodCondition> {
    let view = pod.view::<core::Pod>().ok()?;
    let mut all = view.status.as_ref()?.conditions.as_ref()?.iter();
    all.find(|c| c.type_ == "DisruptionTarget" && c.status == "True").cloned()
}

/// How long until a mark is stale.
fn stale_in(mark: &core::PodCondition, now: Timestamp) -> Duration {
    let since = mark.last_transition_time.as_ref().map_or(now, |t| t.0);
    let lifetime = Duration::try_from(NOTE_LIFETIME).unwrap_or_default();
    lifetime.saturating_sub(time::since(now, since))
}

/// The pods a budget is about; `None`: none at all.
fn selector(budget: &Object) -> Option<LabelSelector> {
    let value = budget.value().ok()?;
    let given = value["spec"].get("selector").filter(|s| !s.is_null())?.clone();
    LabelSelector::from_json(Some(&given)).ok()
}

/// A pod with the size of the owner that scales it.
struct Member {
    pod: Value,
    /// The owner's UID and the replicas it asks for; the reason why there are none otherwise.
    owner: Scaler,
}

/// UID of an owner and the replicas it asks for, or why there is none.
type Scaler = Result<(String, i64), String>;

/// How many pods there should be, and how many must be healthy. An error is what the status then says.
fn expected(spec: &Value, members: &[Member]) -> Result<(i64, i64), String> {
    let scaled = |value: &IntOrString, total: i64| {
        let total = i32::try_from(total).unwrap_or(i32::MAX);
        value.scaled(total, true).map(i64::from).ok_or_else(|| "invalid value for IntOrString".to_string())
    };
    let of_owners = || -> Result<i64, String> {
        let mut owners: BTreeMap<&str, i64> = BTreeMap::new();
        for member in members {
            let (uid, replicas) = member.owner.as_ref().map_err(Clone::clone)?;
            owners.insert(uid, *replicas);
        }
        Ok(owners.values().sum())
    };
    let field = |key: &str| spec.get(key).and_then(IntOrString::from_json);
    if let Some(most) = field("maxUnavailable") {
        let total = of_owners()?;
        return Ok((total, (total - scaled(&most, total)?).max(0)));
    }
    match field("minAvailable") {
        Some(IntOrString::Int(n)) => Ok((i64::try_from(members.len()).unwrap_or(i64::MAX), n.into())),
        Some(least) => {
            let total = of_owners()?;
            Ok((total, scaled(&least, total)?))
        }
        // As upstream: without either, nobody is expected and everybody may go.
        None => Ok((i64::try_from(members.len()).unwrap_or(i64::MAX), 0)),
    }
}

/// The evictions that are still under way: pods that are there, not going, and were noted a short time ago.
fn under_way(noted: &Value, members: &[Member], now: Timestamp) -> BTreeMap<String, String> {
    let mut kept = BTreeMap::new();
    for member in members {
        let name = text(&member.pod, "/metadata/name");
        let Some(since) = noted.get(name).and_then(Value::as_str) else { continue };
        let fresh = time::parse(since).is_ok_and(|at| now.duration_since(at) < NOTE_LIFETIME);
        if fresh && text(&member.pod, "/metadata/deletionTimestamp").is_empty() {
            kept.insert(name.to_string(), since.to_string());
        }
    }
    kept
}

/// The whole status of a budget.
fn status(budget: &Value, members: &[Member], now: Timestamp) -> Value {
    let noted = under_way(&budget["status"]["disruptedPods"], members, now);
    let healthy = members.iter().filter(|m| {
        let going = !text(&m.pod, "/metadata/deletionTimestamp").is_empty();
        !going && !noted.contains_key(text(&m.pod, "/metadata/name")) && condition(&m.pod, "Ready") == "True"
    });
    let healthy = i64::try_from(healthy.count()).unwrap_or(i64::MAX);
    let generation = int(budget, "/metadata/generation").unwrap_or(0);
    let (total, desired, problem) = match expected(&budget["spec"], members) {
        Ok((total, desired)) => (total, desired, None),
        Err(why) => (0, 0, Some(why)),
    };
    let allowed = if problem.is_some() || total <= 0 { 0 } else { (healthy - desired).max(0) };
    let (truth, reason) = match (&problem, allowed) {
        (Some(_), _) => ("False", "SyncFailed"),
        (None, 0) => ("False", "InsufficientPods"),
        (None, _) => ("True", "SufficientPods"),
    };
    let old = list(budget, "/status/conditions").iter().find(|c| text(c, "/type") == "DisruptionAllowed");
    let since =
        old.filter(|c| text(c, "/status") == truth).map(|c| text(c, "/lastTransitionTime").to_string());
    let own = json!({"type": "DisruptionAllowed", "status": truth, "reason": reason,
        "message": problem.clone().unwrap_or_default(), "observedGeneration": generation,
        "lastTransitionTime": since.unwrap_or_else(|| time::format(now))});
    let mut conditions: Vec<Value> = list(budget, "/status/conditions").to_vec();
    conditions.retain(|c| text(c, "/type") != "DisruptionAllowed");
    conditions.push(own);
    if problem.is_some() {
        // What cannot be computed allows nothing; the last counts stay.
        let mut kept = budget["status"].clone();
        if !kept.is_object() {
            kept = json!({"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0});
        }
        kept["disruptionsAllowed"] = json!(0);
        kept["observedGeneration"] = json!(generation);
        kept["conditions"] = json!(conditions);
        return kept;
    }
    let mut status = json!({"currentHealthy": healthy, "desiredHealthy": desired, "expectedPods": total,
        "disruptionsAllowed": allowed, "observedGeneration": generation, "conditions": conditions});
    if !noted.is_empty() {
        status["disruptedPods"] = json!(noted);
    }
    status
}

impl Controller {
    /// The owner that scales this pod. A ReplicaSet's Deployment speaks for it. An owner of a custom kind is asked
    /// once a look: `asked` holds the answers.
    async fn owner(&self, pod: &Object, asked: &mut BTreeMap<String, Scaler>) -> Scaler {
        let Some(direct) = pod.meta().controller() else {
            return Err(format!("found no controller ref for pod {:?}", &*pod.key.name));
        };
        let namespace = pod.key.namespace.clone();
        let find = |kind: &str, version: &str, name: &str, uid: &str| {
            let group = version.split_once('/').map_or("", |(group, _)| group);
            let known = SCALABLE.iter().any(|(k, g, _)| *k == kind && *g == group);
            let cache = self.owners.get(kind).filter(|_| known)?;
            cache.get(&ObjectKey::new(namespace.clone(), name)).filter(|o| o.uid() == uid)
        };
        let Some(found) = find(&direct.kind, &direct.api_version, &direct.name, &direct.uid) else {
            if let Some(known) = asked.get(&direct.uid) {
                return known.clone();
            }
            let scaler = self.custom_owner(direct, &pod.key).await;
            asked.insert(direct.uid.clone(), scaler.clone());
            return scaler;
        };
        let above = found.meta().controller().filter(|_| direct.kind == "ReplicaSet");
        let above = above.and_then(|o| find(&o.kind, &o.api_version, &o.name, &o.uid));
        let scaler = above.unwrap_or(found);
        let value = scaler.value().map_err(|e| e.to_string())?;
        Ok((scaler.uid().to_string(), int(&value, "/spec/replicas").unwrap_or(1)))
    }

    async fn custom_owner(&self, owner: &OwnerRef, pod: &ObjectKey) -> Scaler {
        let none = || format!("found no controllers for pod {:?}", &*pod.name);
        let (group, version) = owner.api_version.split_once('/').ok_or_else(none)?;
        let kind = self.kinds.find(group, version, &owner.kind).ok_or_else(none)?;
        let key = ObjectKey::new(pod.namespace.clone(), owner.name.as_str());
        let scale = match self.context.client.scale(&kind.gvr, &key).await {
            Ok(scale) => scale.value().map_err(|e| e.to_string())?,
            Err(error) if error.is_not_found() => {
                return Err(format!(
                    "{}.{group}/{version} does not implement the scale subresource",
                    kind.gvr.resource
                ));
            }
            Err(error) => return Err(error.to_string()),
        };
        if text(&scale, "/metadata/uid") != owner.uid {
            return Err(none());
        }
        Ok((owner.uid.clone(), int(&scale, "/spec/replicas").unwrap_or(0)))
    }

    async fn members(&self, budget: &Object) -> Vec<Member> {
        let Some(selector) = selector(budget) else { return Vec::new() };
        let pods = self.pods.list_in(&budget.key.namespace);
        let mut asked = BTreeMap::new();
        let mut members = Vec::new();
        for pod in pods.into_iter().filter(|p| selector.matches(&p.meta().labels)) {
            let Ok(value) = pod.value() else { continue };
            if !matches!(text(&value, "/status/phase"), "Succeeded" | "Failed") {
                members.push(Member { owner: self.owner(&pod, &mut asked).await, pod: value });
            }
        }
        members
    }
}

#[async_trait]
impl Reconcile for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(pod) = self.pods.get(key).filter(|p| p.meta().deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let Some(mark) = mark(&pod) else { return Ok(None) };
        let now = self.context.now();
        let left = stale_in(&mark, now);
        if !left.is_zero() {
            return Ok(Some(left));
        }
        let mut condition = json!({"type": mark.type_, "status": "False",
            "lastTransitionTime": time::format(now)});
        condition["reason"] = json!(mark.reason);
        condition["message"] = json!(mark.message);
        self.context.put_condition(&pod, condition, None).await.map(|()| None)
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(budget) = self.budgets.get(key).filter(|b| b.meta().deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let Ok(value) = budget.value() else { return Ok(None) };
        let members = self.members(&budget).await;
        if members.is_empty() && list(&value, "/status/conditions").is_empty() {
            let subject = Subject::of("policy/v1", "PodDisruptionBudget", &budget);
            self.context.recorder.record(subject, EventType::Normal, "NoPods", "No matching pods found");
        }
        let now = self.context.now();
        let wanted = status(&value, &members, now);
        let again = wanted["disruptedPods"]
            .is_object()
            .then(|| Duration::try_from(NOTE_LIFETIME).unwrap_or_default() + Duration::from_secs(1));
        if wanted == value["status"] {
            return Ok(again);
        }
        let mut body = value;
        body["status"] = wanted;
        // With its revision: an eviction that spends meanwhile must not be undone.
        let written = self.context.client.update_status(&BUDGETS, key, body).await?;
        self.budgets.observe(written);
        Ok(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, ready: bool, replicas: i64) -> Member {
        let ready = if ready { "True" } else { "False" };
        let pod = json!({"metadata": {"name": name}, "status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": ready}]}});
        Member { pod, owner: Ok(("u".into(), replicas)) }
    }

    fn now() -> Timestamp {
        time::parse("2026-01-01T00:10:00Z").unwrap()
    }

    fn numbers(spec: Value, members: &[Member]) -> [i64; 4] {
        let s = status(&json!({"metadata": {"generation": 3}, "spec": spec}), members, now());
        assert_eq!(s["observedGeneration"], 3);
        ["expectedPods", "currentHealthy", "desiredHealthy", "disruptionsAllowed"]
            .map(|k| s[k].as_i64().unwrap())
    }

    #[test]
    fn counts() {
        let pods = [member("a", true, 4), member("b", true, 4), member("c", true, 4), member("d", false, 4)];
        assert_eq!(numbers(json!({"minAvailable": 2}), &pods), [4, 3, 2, 1]);
        assert_eq!(numbers(json!({"minAvailable": "50%"}), &pods), [4, 3, 2, 1]);
        assert_eq!(numbers(json!({"maxUnavailable": 1}), &pods), [4, 3, 3, 0]);
        // A percentage is of what is asked for, not of what there is, and is rounded up.
        assert_eq!(numbers(json!({"maxUnavailable": "30%"}), &pods[..3]), [4, 3, 2, 1]);
        assert_eq!(numbers(json!({"minAvailable": "100%"}), &pods[..1]), [4, 1, 4, 0]);
    }

    #[test]
    fn pods_without_a_scale_allow_nothing() {
        let stray =
            Member { owner: Err("found no controller ref for pod \"a\"".into()), ..member("a", true, 1) };
        let s = status(&json!({"spec": {"maxUnavailable": 1}}), &[stray], now());
        assert_eq!(s["disruptionsAllowed"], 0);
        assert_eq!(s["conditions"][0]["reason"], "SyncFailed");
        assert_eq!(s["conditions"][0]["message"], "found no controller ref for pod \"a\"");
        let stray = Member { owner: Err("none".into()), ..member("a", true, 1) };
        assert_eq!(numbers(json!({"minAvailable": 0}), &[stray]), [1, 1, 0, 1]);
    }

    #[test]
    fn evicted_pods_count_until_the_note_is_old() {
        let pods = [member("a", true, 2), member("b", true, 2)];
        let with = |since: &str| {
            let budget = json!({"spec": {"minAvailable": 1}, "status": {"disruptedPods": {"a": since, "gone": since}}});
            status(&budget, &pods, now())
        };
        let fresh = with("2026-01-01T00:09:30Z");
        assert_eq!((&fresh["currentHealthy"], &fresh["disruptionsAllowed"]), (&json!(1), &json!(0)));
        assert_eq!(fresh["disruptedPods"], json!({"a": "2026-01-01T00:09:30Z"}));
        let old = with("2026-01-01T00:00:00Z");
        assert_eq!(old["disruptionsAllowed"], 1);
        assert!(old["disruptedPods"].is_null());
    }

    #[test]
    fn a_pod_that_did_not_go_loses_its_mark_in_time() {
        let pod = |status: &str| {
            crate::testing::object(
                json!({"metadata": {"name": "a", "namespace": "n"}, "status": {"conditions": [
                {"type": "DisruptionTarget", "status": status, "lastTransitionTime": "2026-01-01T00:09:00Z"}]}}),
            )
        };
        assert_eq!(stale_in(&mark(&pod("True")).unwrap(), now()), Duration::from_secs(60));
        assert!(mark(&pod("False")).is_none());
    }

    #[test]
    fn transitions_are_dated_once() {
        let pods = [member("a", true, 2)];
        let mut budget = json!({"spec": {"minAvailable": 0}});
        budget["status"] = status(&budget, &pods, now());
        assert_eq!(
            status(&budget, &pods, now().saturating_add(SignedDuration::from_secs(9)).unwrap()),
            budget["status"]
        );
    }
}
