//! Nodes that fall silent: their Ready condition becomes Unknown, taints keep and drive pods away. Also gives each
//! node its part of the pod range.
//!
//! A node lives while its Lease or its status is renewed. The decision ([`decide`]) is pure; silence is measured by
//! the node's own stamps against our clock, so both must agree within [`GRACE`].

use crate::context::{Context, Outcome, Reconcile, enqueue, enqueue_self, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{DeleteOptions, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Silence after which a node's state is unknown (upstream's node-monitor-grace-period).
const GRACE: Duration = Duration::from_secs(50);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Taints that follow the conditions.
const OWN_TAINTS: [&str; 5] = [NOT_READY, UNREACHABLE, PRESSURE[0].1, PRESSURE[1].1, PRESSURE[2].1];
/// Conditions that keep new pods away while they are true, and their taints.
const PRESSURE: [(&str, &str); 3] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];

struct Controller {
    context: Context,
    nodes: Arc<Cache>,
    leases: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let (nodes, leases) = (context.informers.of(&gvr::NODES), context.informers.of(&gvr::LEASES));
    let pods = context.informers.of(&gvr::PODS);
    enqueue_self(&nodes, &queue);
    enqueue(&pods, &queue, |pod| {
        let node = pod.view::<core::Pod>().ok().and_then(|p| p.spec.as_ref()?.node_name.clone());
        node.map(ObjectKey::cluster).into_iter().collect()
    });
    let caches = vec![nodes.clone(), leases.clone(), pods.clone()];
    let controller = Controller { context: context.clone(), nodes, leases, pods };
    run("nodelifecycle", caches, queue, 1, Arc::new(controller))
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.nodes.get(key) else { return Ok(None) };
        let Ok(node) = object.view::<core::Node>() else { return Ok(None) };
        if object.meta().deletion_timestamp.is_some() {
            return Ok(None);
        }
        let lease = self.leases.view::<Lease>(&ObjectKey::new("kube-node-lease", key.name.clone()));
        let plan = decide(&node, lease.as_deref(), self.context.now());
        if let Some(conditions) = plan.conditions {
            let patch = json!({"status": {"conditions": conditions}});
            self.context.client.merge_patch_status(&gvr::NODES, key, patch).await?;
            let words = format!("Node {} status is now: NodeNotReady", key.name);
            let subject = Subject::of("v1", "Node", &object);
            self.context.recorder.record(subject, EventType::Normal, "NodeNotReady", words);
        }
        let mut spec = json!({});
        if let Some(taints) = plan.taints {
            spec["taints"] = taints;
        }
        if let Some(range) = self.missing_range(&node) {
            spec["podCIDR"] = json!(range);
            spec["podCIDRs"] = json!([range]);
        }
        if spec != json!({}) {
            let patch = json!({"metadata": {"resourceVersion": object.revision.to_string()}, "spec": spec});
            let written = self.context.client.merge_patch(&gvr::NODES, key, patch).await?;
            // The next node must not be given the same range.
            self.nodes.observe(written);
        }
        let evicted = self.evict(key, &node).await?;
        Ok([plan.look_again, evicted].into_iter().flatten().min())
    }
}

impl Controller {
    /// The first free part of the pod range for a node that has none.
    fn missing_range(&self, node: &core::Node) -> Option<String> {
        let (base, prefix) = self.context.config.pod_cidr?;
        if node.spec.as_ref().is_some_and(|s| s.pod_cidr.as_ref().is_some_and(|c| !c.is_empty())) {
            return None;
        }
        let taken = self.nodes.list().into_iter().filter_map(|n| {
            let node = n.view::<core::Node>().ok()?;
            node.spec.as_ref()?.pod_cidr.clone()
        });
        first_free(base, prefix, self.context.config.node_prefix, &taken.collect())
    }

    /// Deletes the pods that a NoExecute taint drives away now; says when the next one is due.
    async fn evict(&self, key: &ObjectKey, node: &core::Node) -> Outcome {
        let taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
        let taints: Vec<core::Taint> = taints.filter(|t| t.effect == "NoExecute").cloned().collect();
        if taints.is_empty() {
            return Ok(None);
        }
        let mut next: Option<Duration> = None;
        for object in self.pods.list() {
            let Ok(pod) = object.view::<core::Pod>() else { continue };
            let here = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(&key.name);
            if !here || pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            match stays_for(&pod, &taints, self.context.now()) {
                None => {}
                Some(Duration::ZERO) => {
                    let words = format!("Marking for deletion Pod {}", object.key);
                    let subject = Subject::of("v1", "Pod", &object);
                    self.context.recorder.record(subject, EventType::Normal, "TaintManagerEviction", words);
                    let why = "Taint manager: deleting due to NoExecute taint";
                    self.context.disrupt(&object, "DeletionByTaintManager", why, None).await?;
                    let options =
                        DeleteOptions { uid: Some(object.uid().into()), ..DeleteOptions::default() };
                    match self.context.client.delete(&gvr::PODS, &object.key, options).await {
                        Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                        _ => {}
                    }
                }
                Some(left) => next = Some(next.map_or(left, |n| n.min(left))),
            }
        }
        Ok(next)
    }
}

/// What to do about a node.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// All conditions, if some must become Unknown.
    conditions: Option<Value>,
    /// All taints, if they must change.
    taints: Option<Value>,
    /// When its silence would matter.
    look_again: Option<Duration>,
}

fn decide(node: &core::Node, lease: Option<&Lease>, now: Timestamp) -> Plan {
    let conditions: &[core::NodeCondition] =
        node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let renewed = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref()).map(|t| t.0);
    let beats = conditions.iter().filter_map(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0);
    let created = node.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let last = beats.chain(renewed).max().or(created).unwrap_or(now);
    let silence = machinery::time::since(now, last);
    let silent = silence > GRACE;
    let mut ready = conditions.iter().find(|c| c.type_ == "Ready").map_or("Unknown", |c| c.status.as_str());
    let mut plan = Plan::default();
    if silent {
        if conditions.iter().any(|c| c.status != "Unknown") {
            plan.conditions = Some(unknown(conditions, now));
        }
        ready = "Unknown";
    } else {
        plan.look_again = Some(GRACE - silence + Duration::from_secs(1));
    }
    let wanted = match ready {
        "True" => None,
        "False" => Some(NOT_READY),
        _ if silent => Some(UNREACHABLE),
        // A node that has not reported yet.
        _ => Some(NOT_READY),
    };
    let is = |kind: &str| !silent && conditions.iter().any(|c| c.type_ == kind && c.status == "True");
    let mut want: BTreeSet<(&str, &str)> =
        wanted.into_iter().flat_map(|key| [(key, "NoSchedule"), (key, "NoExecute")]).collect();
    want.extend(PRESSURE.iter().filter(|(kind, _)| is(kind)).map(|(_, taint)| (*taint, "NoSchedule")));
    plan.taints = taints(node, &want, now);
    plan
}

fn unknown(conditions: &[core::NodeCondition], now: Timestamp) -> Value {
    let stamp = machinery::time::format(now);
    conditions
        .iter()
        .map(|c| {
            let beat = c.last_heartbeat_time.as_ref().map(|t| machinery::time::format(t.0));
            let changed = if c.status == "Unknown" {
                c.last_transition_time.as_ref().map(|t| machinery::time::format(t.0)).unwrap_or(stamp.clone())
            } else {
                stamp.clone()
            };
            json!({"type": c.type_, "status": "Unknown", "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.", "lastHeartbeatTime": beat,
                "lastTransitionTime": changed})
        })
        .collect()
}

/// The node's taints with ours as `wanted`; `None` when they are right already.
fn taints(node: &core::Node, want: &BTreeSet<(&str, &str)>, now: Timestamp) -> Option<Value> {
    let present: Vec<&core::Taint> = node.spec.iter().flat_map(|s| s.taints.iter().flatten()).collect();
    let ours: BTreeSet<(&str, &str)> = present
        .iter()
        .filter(|t| OWN_TAINTS.contains(&t.key.as_str()))
        .map(|t| (t.key.as_str(), t.effect.as_str()))
        .collect();
    if ours == *want {
        return None;
    }
    let keep = present.iter().filter(|t| {
        !OWN_TAINTS.contains(&t.key.as_str()) || want.contains(&(t.key.as_str(), t.effect.as_str()))
    });
    let mut all: Vec<Value> = keep.map(|t| json!(t)).collect();
    for (key, effect) in want.difference(&ours) {
        let mut taint = json!({"key": key, "effect": effect});
        if *effect == "NoExecute" {
            taint["timeAdded"] = json!(machinery::time::format(now));
        }
        all.push(taint);
    }
    Some(json!(all))
}

/// How long the pod may stay under these NoExecute taints: zero is over, `None` is for ever.
fn stays_for(pod: &core::Pod, taints: &[core::Taint], now: Timestamp) -> Option<Duration> {
    let tolerations: &[core::Toleration] =
        pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let plain = sched::Taint::read(taint);
        let since = taint.time_added.as_ref().map_or(Duration::ZERO, |t| machinery::time::since(now, t.0));
        let left = match tolerations.iter().find(|t| sched::covers(t, &plain)) {
            None => Duration::ZERO,
            Some(toleration) => match toleration.toleration_seconds {
                None => continue,
                Some(seconds) => Duration::from_secs(seconds.max(0) as u64).saturating_sub(since),
            },
        };
        shortest = Some(shortest.map_or(left, |s| s.min(left)));
    }
    shortest
}

/// The first range of `node_prefix` within `base/prefix` that is not taken.
fn first_free(base: Ipv4Addr, prefix: u8, node_prefix: u8, taken: &BTreeSet<String>) -> Option<String> {
    let step = 1u64 << (32 - u64::from(node_prefix.min(32)));
    let size = 1u64 << (32 - u64::from(prefix.min(32)));
    let first = u64::from(u32::from(base));
    (0..(size / step).max(1))
        .map(|n| format!("{}/{node_prefix}", Ipv4Addr::from((first + n * step) as u32)))
        .find(|range| !taken.contains(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, beat: &str, taints: Value) -> core::Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": beat,
                "lastTransitionTime": beat}]},
        }))
        .unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_tainted_once() {
        let now = at("2026-01-01T00:02:00Z");
        let plan = decide(&node("True", "2026-01-01T00:00:00Z", json!([])), None, now);
        let conditions = plan.conditions.unwrap();
        assert_eq!(conditions[0]["status"], "Unknown");
        assert_eq!(conditions[0]["message"], "Kubelet stopped posting node status.");
        let taints = plan.taints.unwrap();
        assert_eq!((&taints[0]["key"], &taints[1]["effect"]), (&json!(UNREACHABLE), &json!("NoSchedule")));
        assert!(taints[0]["timeAdded"].is_string());
        let plan = decide(&node("Unknown", "2026-01-01T00:00:00Z", taints), None, now);
        assert_eq!(plan, Plan::default());
    }

    #[test]
    fn a_renewed_lease_is_life_and_taints_go_with_readiness() {
        let now = at("2026-01-01T00:02:00Z");
        let lease =
            serde_json::from_value(json!({"spec": {"renewTime": "2026-01-01T00:01:55.000000Z"}})).unwrap();
        let tainted =
            json!([{"key": NOT_READY, "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}]);
        let plan = decide(&node("True", "2026-01-01T00:00:00Z", tainted), Some(&lease), now);
        assert_eq!(plan.conditions, None);
        assert_eq!(plan.taints, Some(json!([{"key": "mine", "effect": "NoSchedule"}])));
        assert_eq!(plan.look_again, Some(Duration::from_secs(46)));
    }

    #[test]
    fn pressure_keeps_new_pods_away_while_it_lasts() {
        let now = at("2026-01-01T00:00:01Z");
        let mut pressed = node("True", "2026-01-01T00:00:00Z", json!([]));
        let more = json!({"type": "DiskPressure", "status": "True"});
        let conditions = pressed.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions.push(serde_json::from_value(more).unwrap());
        let taints = decide(&pressed, None, now).taints.unwrap();
        assert_eq!(taints, json!([{"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}]));
        let relieved = node("True", "2026-01-01T00:00:00Z", taints);
        assert_eq!(decide(&relieved, None, now).taints, Some(json!([])));
    }

    #[test]
    fn tolerations_bound_the_stay() {
        let now = at("2026-01-01T00:02:00Z");
        let taint: core::Taint = serde_json::from_value(
            json!({"key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:01:00Z"}),
        )
        .unwrap();
        let pod = |tolerations: Value| -> core::Pod {
            serde_json::from_value(json!({"spec": {"containers": [], "tolerations": tolerations}})).unwrap()
        };
        let stay = |t: Value| stays_for(&pod(t), std::slice::from_ref(&taint), now);
        assert_eq!(stay(json!([])), Some(Duration::ZERO));
        assert_eq!(stay(json!([{"operator": "Exists"}])), None);
        assert_eq!(
            stay(json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 90}])),
            Some(Duration::from_secs(30))
        );
        assert_eq!(
            stay(json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 60}])),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn ranges_are_given_in_order() {
        let taken = ["10.244.0.0/24".to_string()].into();
        assert_eq!(first_free(Ipv4Addr::new(10, 244, 0, 0), 16, 24, &taken), Some("10.244.1.0/24".into()));
        assert_eq!(first_free(Ipv4Addr::new(10, 244, 0, 0), 24, 24, &taken), None);
    }
}
