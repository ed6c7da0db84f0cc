//! Pods that a NoExecute taint of their node drives away, at once or when their toleration ends.
//!
//! The time under a taint counts from when it was added (a taint that does not say it: from when it was first seen),
//! but not from before the pod came. Deliberately not here: taints of silent nodes (`node_lifecycle`).

use crate::context::{Context, Outcome, Reconcile, enqueue, enqueue_self, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr;
use machinery::status::ApiError;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// When taints that carry no time were first seen: by key and value.
type Seen = BTreeMap<(String, String), Timestamp>;

struct Controller {
    context: Context,
    nodes: Arc<Cache>,
    pods: Arc<Cache>,
    seen: Mutex<BTreeMap<ObjectKey, Seen>>,
    /// Pods whose time runs, by node.
    running_out: Mutex<BTreeMap<ObjectKey, Running>>,
}

/// Starts it. A key is a node.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let (nodes, pods) = (context.informers.of(&gvr::NODES), context.informers.of(&gvr::PODS));
    enqueue_self(&nodes, &queue);
    enqueue(&pods, &queue, |pod| {
        let node = pod.view::<core::Pod>().ok().and_then(|p| p.spec.as_ref()?.node_name.clone());
        node.map(ObjectKey::cluster).into_iter().collect()
    });
    let caches = vec![nodes.clone(), pods.clone()];
    let (seen, running_out) = (Mutex::default(), Mutex::default());
    let controller = Controller { context: context.clone(), nodes, pods, seen, running_out };
    run("taint-eviction", caches, queue, 1, Arc::new(controller))
}

/// The node's NoExecute taints, each with the time since when it counts; `seen` is brought up to date.
fn dated(node: &core::Node, seen: &mut Seen, now: Timestamp) -> Vec<(sched::Taint, Timestamp)> {
    let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let mut kept = Seen::new();
    let mut all = Vec::new();
    for taint in taints.filter(|t| t.effect == "NoExecute") {
        let key = (taint.key.clone(), taint.value.clone().unwrap_or_default());
        let since = taint.time_added.as_ref().map(|t| t.0);
        let since =
            since.unwrap_or_else(|| *kept.entry(key.clone()).or_insert(*seen.get(&key).unwrap_or(&now)));
        all.push((sched::Taint::read(taint), since));
    }
    *seen = kept;
    all
}

/// When the pod came to its node.
fn came(pod: &core::Pod) -> Option<Timestamp> {
    let mut conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let scheduled = conditions.find(|c| c.type_ == "PodScheduled" && c.status == "True");
    let scheduled = scheduled.and_then(|c| c.last_transition_time.as_ref());
    scheduled.or(pod.metadata.creation_timestamp.as_ref()).map(|t| t.0)
}

/// How long the pod may stay under these taints: zero is over, `None` is for ever.
fn stays_for(pod: &core::Pod, taints: &[(sched::Taint, Timestamp)], now: Timestamp) -> Option<Duration> {
    let tolerations: &[core::Toleration] =
        pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut shortest: Option<Duration> = None;
    for (taint, since) in taints {
        let since = came(pod).map_or(*since, |came| came.max(*since));
        let left = match tolerations.iter().find(|t| sched::covers(t, taint)) {
            None => Duration::ZERO,
            Some(toleration) => match toleration.toleration_seconds {
                None => continue,
                Some(seconds) => Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
                    .saturating_sub(machinery::time::since(now, since)),
            },
        };
        shortest = Some(shortest.map_or(left, |s| s.min(left)));
    }
    shortest
}

/// How a pod that is driven away is told so: an event's reason; a condition's reason and message.
pub type Words = (&'static str, &'static str, &'static str);

const WORDS: Words =
    ("TaintManagerEviction", "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint");

/// Deletes a pod and says why; one that is gone is as good.
pub async fn evict(context: &Context, pod: &Object, (event, reason, why): Words) -> Result<(), ApiError> {
    let words = format!("Marking for deletion Pod {}", pod.key);
    context.recorder.record(Subject::of("v1", "Pod", pod), EventType::Normal, event, words);
    context.disrupt(pod, reason, why, None).await?;
    let options = DeleteOptions { uid: Some(pod.uid().into()), ..DeleteOptions::default() };
    match context.client.delete(&gvr::PODS, &pod.key, options).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let node = self.nodes.get(key).and_then(|object| object.view::<core::Node>().ok());
        let taints = {
            let mut all = self.seen.lock();
            let mut seen = all.remove(key).unwrap_or_default();
            let taints = node.map(|node| dated(&node, &mut seen, self.context.now())).unwrap_or_default();
            if !seen.is_empty() {
                all.insert(key.clone(), seen);
            }
            taints
        };
        let mut running = self.running_out.lock().remove(key).unwrap_or_default();
        if taints.is_empty() {
            spare(&self.context, &running, WORDS);
            return Ok(None);
        }
        let (mut next, mut still): (Option<Duration>, _) = (None, BTreeMap::new());
        let mut failed = Ok(());
        for object in self.pods.list() {
            let Ok(pod) = object.view::<core::Pod>() else { continue };
            let here = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(&key.name);
            if !here || pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            match stays_for(&pod, &taints, self.context.now()) {
                None => {}
                Some(Duration::ZERO) => {
                    running.remove(&object.key);
                    if let Err(error) = evict(&self.context, &object, WORDS).await {
                        failed = Err(error);
                    }
                }
                Some(left) => {
                    next = Some(next.map_or(left, |n| n.min(left)));
                    let subject = running.remove(&object.key);
                    let subject = subject.unwrap_or_else(|| Subject::of("v1", "Pod", &object));
                    still.insert(object.key.clone(), subject);
                }
            }
        }
        spare(&self.context, &running, WORDS);
        if !still.is_empty() {
            self.running_out.lock().insert(key.clone(), still);
        }
        failed.map(|()| next)
    }
}

/// Pods whose time under a taint runs.
pub type Running = BTreeMap<ObjectKey, Subject>;

/// Tells pods whose time no longer runs: the taint is gone, or they are.
pub fn spare(context: &Context, pods: &Running, (event, ..): Words) {
    for (key, subject) in pods {
        let words = format!("Cancelling deletion of Pod {key}");
        context.recorder.record(subject.clone(), EventType::Normal, event, words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, stamp};
    use serde_json::{Value, json};

    fn pod(came: i64, tolerations: Value) -> core::Pod {
        serde_json::from_value(
            json!({"spec": {"containers": [], "tolerations": tolerations}, "status": {"conditions":
            [{"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(came)}]}}),
        )
        .unwrap()
    }

    fn node(taint: Value) -> core::Node {
        serde_json::from_value(json!({"metadata": {}, "spec": {"taints": [taint]}})).unwrap()
    }

    #[test]
    fn tolerations_bound_the_stay() {
        let node = node(json!({"key": "k", "effect": "NoExecute", "timeAdded": stamp(60)}));
        let taints = dated(&node, &mut Seen::new(), at(120));
        let seconds = |came, n: i64| {
            let toleration = json!([{"key": "k", "operator": "Exists", "tolerationSeconds": n}]);
            stays_for(&pod(came, toleration), &taints, at(120)).unwrap().as_secs()
        };
        assert_eq!(stays_for(&pod(0, json!([])), &taints, at(120)), Some(Duration::ZERO));
        assert_eq!(stays_for(&pod(0, json!([{"operator": "Exists"}])), &taints, at(120)), None);
        assert_eq!((seconds(0, 90), seconds(0, 60)), (30, 0));
        assert_eq!(seconds(100, 60), 40, "a pod that came under the taint has its time, too");
    }

    #[test]
    fn a_taint_without_a_time_counts_from_when_it_was_seen() {
        let node = node(json!({"key": "k", "value": "v", "effect": "NoExecute"}));
        let mut seen = Seen::new();
        assert_eq!(dated(&node, &mut seen, at(5))[0].1, at(5));
        assert_eq!(dated(&node, &mut seen, at(9))[0].1, at(5));
        dated(&core::Node::default(), &mut seen, at(10));
        assert_eq!(dated(&node, &mut seen, at(11))[0].1, at(11), "it was away");
    }
}
