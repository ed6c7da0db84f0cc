//! What the workload controllers share: facts about pods, pods from templates, slow-start batches, status patches
//! and conditions.

use crate::context::Context;
use crate::owner::Kind;
use client::cache::Cache;
use client::events::EventType;
use client::{DeleteOptions, Object, ObjectKey};
use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::{Gvr, gvr};
use machinery::status::ApiError;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Pods that one look creates or deletes at most, as upstream's `BurstReplicas`: then other keys have a turn.
pub const BURST: usize = 500;
/// Calls in the first batch of a slow start.
const FIRST_BATCH: usize = 1;
/// A lower value of this annotation goes first when a set shrinks.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What the workload controllers need to know of a pod.
#[derive(Clone, Debug, Default)]
pub struct PodFacts {
    /// Namespace and name.
    pub key: Option<ObjectKey>,
    /// UID.
    pub uid: String,
    /// Node, "" for none yet.
    pub node: String,
    /// `Pending`, `Running`, `Succeeded`, `Failed`, `Unknown`; "" is Pending.
    pub phase: String,
    /// Since when it is ready.
    pub ready_since: Option<Timestamp>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// The most restarts of one of its containers.
    pub restarts: i32,
    /// The annotation that says how much losing it costs.
    pub deletion_cost: i32,
    /// Is it on its way out?
    pub deleting: bool,
}

impl PodFacts {
    /// Reads a pod.
    pub fn read(object: &Object) -> PodFacts {
        let meta = object.meta();
        let cost = meta.annotations.get(DELETION_COST).and_then(|c| c.parse().ok());
        let mut facts = PodFacts {
            key: Some(object.key.clone()),
            uid: meta.uid.clone(),
            deleting: meta.deletion_timestamp.is_some(),
            created: meta.creation_timestamp.as_deref().and_then(|t| machinery::time::parse(t).ok()),
            deletion_cost: cost.unwrap_or(0),
            ..PodFacts::default()
        };
        let Ok(pod) = object.view::<core::Pod>() else { return facts };
        facts.node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        if let Some(status) = &pod.status {
            facts.phase = status.phase.clone().unwrap_or_default();
            let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready" && c.status == "True");
            facts.ready_since =
                ready.map(|c| c.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0));
            let containers = status.container_statuses.iter().flatten();
            facts.restarts = containers.map(|c| c.restart_count).max().unwrap_or(0);
        }
        facts
    }

    /// Has it run to its end?
    pub fn is_finished(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Does it count as one of a set's replicas?
    pub fn is_active(&self) -> bool {
        !self.deleting && !self.is_finished()
    }

    /// Is it ready?
    pub fn is_ready(&self) -> bool {
        self.ready_since.is_some()
    }

    /// How long until it has been ready for that many seconds; `None` while it is not ready, zero when it has.
    pub fn until_available(&self, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
        let since = self.ready_since?;
        let wanted = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
        Some(wanted.saturating_sub(machinery::time::since(now, since)))
    }

    /// Has it been ready for that many seconds?
    pub fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        self.until_available(min_ready_seconds, now) == Some(Duration::ZERO)
    }
}

/// When the next of these pods turns from ready to available.
pub fn next_available<'a>(
    pods: impl Iterator<Item = &'a PodFacts>,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Option<Duration> {
    pods.filter_map(|p| p.until_available(min_ready_seconds, now)).filter(|d| !d.is_zero()).min()
}

/// The UIDs of pods whose deletion was asked for and is not in the cache yet: they count as gone, so that a late
/// cache does not lead to a second victim.
pub struct Doomed(Arc<Mutex<BTreeSet<String>>>);

impl Doomed {
    /// Forgets a pod when the cache shows it going or gone.
    pub fn start(pods: &Cache) -> Doomed {
        let set: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let kept = set.clone();
        pods.on_change(Box::new(move |old, new| {
            let seen = match (old, new) {
                (Some(old), None) => Some(old),
                (_, Some(new)) => Some(new).filter(|n| n.meta().deletion_timestamp.is_some()),
                (None, None) => None,
            };
            if let Some(object) = seen {
                kept.lock().remove(object.uid());
            }
        }));
        Doomed(set)
    }

    /// Was its deletion asked for?
    pub fn contains(&self, uid: &str) -> bool {
        self.0.lock().contains(uid)
    }
}

/// The body of a pod made from a template (`spec.template`), controlled by an owner.
pub fn pod_of_template(template: &Value, owner: &Object, reference: Value) -> Value {
    let mut metadata = Map::new();
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field).filter(|v| !v.is_null()) {
            metadata.insert(field.into(), value.clone());
        }
    }
    metadata.insert("generateName".into(), format!("{}-", owner.key.name).into());
    metadata.insert("namespace".into(), owner.key.namespace.to_string().into());
    metadata.insert("ownerReferences".into(), json!([reference]));
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Calls `one` for 0 … `count`-1 in batches of 1, 2, 4, …; after a batch with a failure no further one begins.
/// How many succeeded, and the first failure.
pub async fn slow_start<F: Future<Output = Result<(), ApiError>>>(
    count: usize,
    one: impl Fn(usize) -> F,
) -> (usize, Option<ApiError>) {
    let (mut done, mut batch) = (0, FIRST_BATCH);
    while done < count {
        let end = count.min(done + batch);
        let results = join_all((done..end).map(&one)).await;
        let failed = results.iter().filter(|r| r.is_err()).count();
        done += results.len() - failed;
        if let Some(error) = results.into_iter().find_map(Result::err) {
            return (done, Some(error));
        }
        batch *= 2;
    }
    (done, None)
}

/// Creates and deletes pods for an owner, with the events that tell of it.
pub struct PodControl<'a> {
    /// The surroundings.
    pub context: &'a Context,
    /// The owner's kind.
    pub kind: &'a Kind,
    /// The owner.
    pub owner: &'a Arc<Object>,
    /// The pods.
    pub pods: &'a Cache,
    /// Pods whose deletion was asked for.
    pub doomed: &'a Doomed,
}

impl PodControl<'_> {
    fn event(&self, kind: EventType, reason: &str, message: String) {
        self.context.recorder.record(self.kind.subject(self.owner), kind, reason, message);
    }

    /// Creates one pod.
    pub async fn create(&self, body: Value) -> Result<Arc<Object>, ApiError> {
        match self.context.client.create(&gvr::PODS, body).await {
            Ok(pod) => {
                self.pods.observe(pod.clone());
                self.event(EventType::Normal, "SuccessfulCreate", format!("Created pod: {}", pod.key.name));
                Ok(pod)
            }
            Err(error) => {
                if !is_namespace_going(&error) {
                    self.event(EventType::Warning, "FailedCreate", format!("Error creating: {error}"));
                }
                Err(error)
            }
        }
    }

    /// Deletes one pod; one that is gone already is as good.
    pub async fn delete(&self, key: &ObjectKey, uid: &str) -> Result<(), ApiError> {
        self.doomed.0.lock().insert(uid.to_string());
        let options = DeleteOptions { uid: Some(uid.into()), ..DeleteOptions::default() };
        match self.context.client.delete(&gvr::PODS, key, options).await {
            Ok(_) => {
                self.event(EventType::Normal, "SuccessfulDelete", format!("Deleted pod: {}", key.name));
                // The cache may have shown the end before the set had the UID.
                if self.pods.get(key).is_none_or(|p| p.uid() != uid || p.meta().deletion_timestamp.is_some())
                {
                    self.doomed.0.lock().remove(uid);
                }
                Ok(())
            }
            Err(error) => {
                self.doomed.0.lock().remove(uid);
                if error.is_not_found() || error.is_conflict() {
                    return Ok(());
                }
                self.event(EventType::Warning, "FailedDelete", format!("Error deleting: {error}"));
                Err(error)
            }
        }
    }
}

/// Was a creation refused because its namespace is being emptied?
pub fn is_namespace_going(error: &ApiError) -> bool {
    error.causes.iter().any(|c| c.reason == "NamespaceTerminating")
        || (error.code == 403 && error.message.contains("because it is being terminated"))
}

/// A count that is left out when it is zero, as Go's `omitempty` does; in a merge patch the null removes it.
pub fn count(number: usize) -> Value {
    if number == 0 { Value::Null } else { json!(number) }
}

/// The merge patch that turns one status into another (nulls in `wanted` mean absent); `None` when nothing differs.
pub fn status_patch(current: &Value, wanted: &Value) -> Option<Value> {
    let wanted = wanted.as_object()?;
    let differs =
        |(key, value): &(&String, &Value)| current.get(key.as_str()).unwrap_or(&Value::Null) != *value;
    let changed: Map<String, Value> =
        wanted.iter().filter(differs).map(|(k, v)| (k.clone(), v.clone())).collect();
    (!changed.is_empty()).then(|| json!({"status": changed}))
}

/// Writes a status that differs; false when the object is gone.
pub async fn report(
    context: &Context,
    gvr: &Gvr,
    cache: &Cache,
    key: &ObjectKey,
    patch: Option<Value>,
) -> Result<bool, ApiError> {
    let Some(patch) = patch else { return Ok(true) };
    match context.client.merge_patch_status(gvr, key, patch).await {
        Ok(stored) => cache.observe(stored),
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// A condition as `apps` objects carry it.
pub fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": machinery::time::format(now)})
}

/// The condition of that type.
pub fn find_condition<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a Value> {
    conditions.iter().find(|c| c["type"] == kind)
}

/// Puts a condition. One with the same status and reason stays as it is; with the same status its transition time is
/// kept. A changed one moves to the end.
pub fn set_condition(conditions: &mut Vec<Value>, mut new: Value) {
    if let Some(present) = conditions.iter().find(|c| c["type"] == new["type"]) {
        if present["status"] == new["status"] && present["reason"] == new["reason"] {
            return;
        }
        if present["status"] == new["status"] {
            new["lastTransitionTime"] = present["lastTransitionTime"].clone();
        }
    }
    conditions.retain(|c| c["type"] != new["type"]);
    conditions.push(new);
}

/// Takes the condition of that type away.
pub fn remove_condition(conditions: &mut Vec<Value>, kind: &str) {
    conditions.retain(|c| c["type"] != kind);
}

/// The conditions of a status.
pub fn conditions_of(status: &Value) -> Vec<Value> {
    status["conditions"].as_array().cloned().unwrap_or_default()
}

/// A list that is left out when it is empty.
pub fn list_or_null(list: Vec<Value>) -> Value {
    if list.is_empty() { Value::Null } else { Value::Array(list) }
}

/// The short text that marks a pod template: stable, in letters that spell no words.
pub fn hash(text: &str, collisions: i64) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let digits = format!("{text}{collisions}").bytes().fold(0x811c_9dc5, step).to_string();
    digits.bytes().map(|d| char::from(ALPHABET[usize::from(d) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_slow_start_stops_after_the_batch_that_failed() {
        let calls = AtomicUsize::new(0);
        let calls = &calls;
        let (done, error) = slow_start(100, |i| async move {
            calls.fetch_add(1, Ordering::Relaxed);
            if i == 4 { Err(ApiError::bad_request("no")) } else { Ok(()) }
        })
        .await;
        assert_eq!((done, calls.load(Ordering::Relaxed)), (6, 7), "1 + 2 + 4, one of them failed");
        assert!(error.is_some());
        assert_eq!(slow_start(0, |_| async { Ok(()) }).await.0, 0);
        assert_eq!(slow_start(5, |_| async { Ok(()) }).await, (5, None));
    }

    #[test]
    fn conditions_keep_their_transition_while_the_status_stays() {
        let mut list = Vec::new();
        set_condition(&mut list, condition("A", "True", "x", "m", at(0)));
        set_condition(&mut list, condition("A", "True", "x", "other", at(1)));
        assert_eq!(list[0]["message"], "m", "same status and reason: left alone");
        set_condition(&mut list, condition("A", "True", "y", "m", at(2)));
        assert_eq!(
            (list[0]["reason"].as_str(), list[0]["lastTransitionTime"].as_str()),
            (Some("y"), Some("2026-01-01T00:00:00Z"))
        );
        set_condition(&mut list, condition("A", "False", "y", "m", at(3)));
        assert_eq!(list[0]["lastTransitionTime"], "2026-01-01T00:00:03Z");
    }

    #[test]
    fn a_status_patch_holds_what_differs() {
        let current = json!({"replicas": 2, "readyReplicas": 1});
        assert_eq!(status_patch(&current, &json!({"replicas": 2, "readyReplicas": 1, "x": null})), None);
        let patch = status_patch(&current, &json!({"replicas": 2, "readyReplicas": count(0)}));
        assert_eq!(patch, Some(json!({"status": {"readyReplicas": null}})));
        assert_eq!(
            status_patch(&Value::Null, &json!({"replicas": 0})),
            Some(json!({"status": {"replicas": 0}}))
        );
    }
}
