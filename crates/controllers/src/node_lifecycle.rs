//! Nodes that fall silent: their conditions become Unknown, taints keep and drive pods away, their pods leave their
//! Services. Also gives each node its part of the pod range.
//!
//! A node lives while its Lease or its status is renewed. The decision ([`decide`]) is pure; silence is measured by
//! the node's own stamps against our clock, so both must agree within [`GRACE`]; it begins when we begin to listen.
//! Nodes of a zone are emptied one after the other, and not at all while every zone is down ([`pause`]).
//! Deliberately not here: removing pods (`taint_eviction`).

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{Object, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr;
use machinery::status::ApiError;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Silence after which a node's state is unknown (upstream's node-monitor-grace-period).
const GRACE: Duration = Duration::from_secs(50);
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Taints that follow the conditions, or the cordon.
const OWN_TAINTS: [&str; 7] =
    [NOT_READY, UNREACHABLE, UNSCHEDULABLE, PRESSURE[0].1, PRESSURE[1].1, PRESSURE[2].1, PRESSURE[3].1];
/// Conditions that keep new pods away while they are true, and their taints.
const PRESSURE: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Conditions that a node's agent keeps: of a silent node they are unknown.
const AGENTS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Pods of one node after the other are driven away: this long between two nodes of a zone (upstream's
/// node-eviction-rate, 0.1 a second).
const EVICTION_PAUSE: Duration = Duration::from_secs(10);
/// The same in a large zone that is mostly down (secondary-node-eviction-rate, 0.01 a second).
const EVICTION_PAUSE_UNHEALTHY: Duration = Duration::from_secs(100);
/// A zone with this part of its nodes down is unhealthy (unhealthy-zone-threshold).
const UNHEALTHY_PERCENT: usize = 55;
/// More nodes make a zone large (large-cluster-size-threshold); an unhealthy small one evicts nobody.
const LARGE_ZONE: usize = 50;

/// Labels that old manifests select by, and what they follow.
const OLD_LABELS: [(&str, &str); 2] =
    [("beta.kubernetes.io/os", "kubernetes.io/os"), ("beta.kubernetes.io/arch", "kubernetes.io/arch")];

/// The old labels that do not say what the new ones say.
fn old_labels(node: &core::Node) -> BTreeMap<&'static str, &str> {
    let label = |key: &str| node.metadata.labels.as_ref()?.get(key).map(String::as_str);
    let follow = |(old, new): (&'static str, &str)| Some((old, label(new)?));
    OLD_LABELS.into_iter().filter_map(follow).filter(|(old, value)| label(old) != Some(*value)).collect()
}

struct Controller {
    context: Context,
    nodes: Arc<Cache>,
    leases: Arc<Cache>,
    pods: Arc<Cache>,
    /// Since when we listen.
    since: Timestamp,
    /// When a node of a zone was last tainted so that its pods go.
    last_tainted: Mutex<BTreeMap<String, Timestamp>>,
    /// Nodes that we have seen.
    known: Mutex<BTreeMap<ObjectKey, Subject>>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let (nodes, leases) = (context.informers.of(&gvr::NODES), context.informers.of(&gvr::LEASES));
    let pods = context.informers.of(&gvr::PODS);
    enqueue_self(&nodes, &queue);
    let caches = vec![nodes.clone(), leases.clone(), pods.clone()];
    let (context, since) = (context.clone(), context.now());
    let (last_tainted, known) = (Mutex::default(), Mutex::default());
    let controller = Controller { context, nodes, leases, pods, since, last_tainted, known };
    run("nodelifecycle", caches, queue, 1, Arc::new(controller))
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let object = self.nodes.get(key);
        self.tell_coming_and_going(key, object.as_deref());
        let Some(object) = object else { return Ok(None) };
        let Ok(node) = object.view::<core::Node>() else { return Ok(None) };
        if object.meta().deletion_timestamp.is_some() {
            return Ok(None);
        }
        let lease = self.lease(&key.name);
        // A node whose pods are being driven away stays so, unless every zone is down.
        let may_evict = || match is_driven(&node) {
            true => self.zones().iter().any(|(_, well)| *well),
            false => self.may_evict(&node),
        };
        let plan = decide(&node, lease.as_deref(), self.since, self.context.now(), may_evict);
        let mut revision = object.revision;
        if let Some(conditions) = plan.conditions {
            // With its revision: what a node says meanwhile counts.
            let patch = json!({"metadata": {"resourceVersion": revision.to_string()},
                "status": {"conditions": conditions}});
            let written = self.context.client.merge_patch_status(&gvr::NODES, key, patch).await?;
            revision = written.revision;
            self.nodes.observe(written);
            self.tell_state(&object, "NodeNotReady");
        }
        let mut spec = json!({});
        if let Some(taints) = plan.taints {
            let driven = taints
                .as_array()
                .into_iter()
                .flatten()
                .any(|t| t["effect"] == "NoExecute" && t["timeAdded"].is_string());
            if driven && !is_driven(&node) {
                crate::figures::node_emptied(&zone(&node));
            }
            spec["taints"] = taints;
        }
        match self.missing_range(&node) {
            Ok(None) => {}
            Ok(Some(range)) => {
                spec["podCIDR"] = json!(range);
                spec["podCIDRs"] = json!([range]);
            }
            Err(NoneFree) => self.tell_state(&object, "CIDRNotAvailable"),
        }
        let labels = old_labels(&node);
        if spec != json!({}) || !labels.is_empty() {
            let metadata = json!({"resourceVersion": revision.to_string(), "labels": labels});
            let patch = json!({"metadata": metadata, "spec": spec});
            let written = self.context.client.merge_patch(&gvr::NODES, key, patch).await?;
            // The next node must not be given the same range.
            self.nodes.observe(written);
        }
        if plan.silent {
            self.silence_pods(&key.name).await?;
        }
        Ok(plan.look_again)
    }
}

impl Controller {
    /// Events about nodes that are new to us, or gone.
    fn tell_coming_and_going(&self, key: &ObjectKey, node: Option<&Object>) {
        let mut known = self.known.lock();
        let name = &key.name;
        let (subject, reason, what) = match (known.get(key), node) {
            (None, Some(node)) => {
                let subject = Subject::of("v1", "Node", node);
                known.insert(key.clone(), subject.clone());
                (subject, "RegisteredNode", format!("Registered Node {name} in Controller"))
            }
            (Some(_), None) => {
                let Some(subject) = known.remove(key) else { return };
                (subject, "RemovingNode", format!("Removing Node {name} from Controller"))
            }
            _ => return,
        };
        let words = format!("Node {name} event: {what}");
        self.context.recorder.record(subject, EventType::Normal, reason, words);
    }

    fn tell_state(&self, node: &Object, state: &str) {
        let words = format!("Node {} status is now: {state}", node.key.name);
        self.context.recorder.record(Subject::of("v1", "Node", node), EventType::Normal, state, words);
    }

    /// The first free part of the pod range for a node that has none.
    fn missing_range(&self, node: &core::Node) -> Result<Option<String>, NoneFree> {
        let Some((base, prefix)) = self.context.config.pod_cidr else { return Ok(None) };
        if node.spec.as_ref().is_some_and(|s| s.pod_cidr.as_ref().is_some_and(|c| !c.is_empty())) {
            return Ok(None);
        }
        let taken = self.nodes.list().into_iter().filter_map(|n| {
            let node = n.view::<core::Node>().ok()?;
            node.spec.as_ref()?.pod_cidr.clone()
        });
        let free = first_free(base, prefix, self.context.config.node_prefix, &taken.collect());
        free.map(Some).ok_or(NoneFree)
    }

    /// A node that nobody hears of serves nobody: its pods leave their Services. Its agent, if it comes back, says
    /// how they are.
    async fn silence_pods(&self, node: &str) -> Result<(), ApiError> {
        for object in self.pods.list() {
            let Ok(pod) = object.view::<core::Pod>() else { continue };
            if pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) != Some(node) || !is_ready(&pod) {
                continue;
            }
            let subject = Subject::of("v1", "Pod", &object);
            self.context.recorder.record(subject, EventType::Warning, "NodeNotReady", "Node is not ready");
            let condition = json!({"type": "Ready", "status": "False",
                "lastTransitionTime": machinery::time::format(self.context.now())});
            self.context.put_condition(&object, condition, None).await?;
        }
        Ok(())
    }

    /// How all nodes are, by zone.
    fn zones(&self) -> Vec<(String, bool)> {
        let now = self.context.now();
        let read = |object: Arc<Object>| {
            let node = object.view::<core::Node>().ok()?;
            let lease = self.lease(&object.key.name);
            let well = !is_silent(&node, lease.as_deref(), self.since, now) && ready(&node) == Some("True");
            Some((zone(&node), well))
        };
        self.nodes.list().into_iter().filter_map(read).collect()
    }

    fn lease(&self, node: &str) -> Option<Arc<Lease>> {
        self.leases.view::<Lease>(&ObjectKey::new("kube-node-lease", node))
    }

    /// May this node's pods be driven away now? While whole zones are down it may be this side that is cut off.
    fn may_evict(&self, node: &core::Node) -> bool {
        let own = zone(node);
        let Some(pause) = pause(&self.zones(), &own) else { return false };
        let now = self.context.now();
        let mut last = self.last_tainted.lock();
        if last.get(&own).is_some_and(|at| machinery::time::since(now, *at) < pause) {
            return false;
        }
        last.insert(own, now);
        true
    }
}

/// Every part of the pod range is taken.
struct NoneFree;

/// What to do about a node.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    /// All conditions, if some must become Unknown.
    conditions: Option<Value>,
    /// All taints, if they must change.
    taints: Option<Value>,
    /// Has nobody heard of it?
    silent: bool,
    /// When its silence would matter.
    look_again: Option<Duration>,
}

/// What its Ready condition says.
fn ready(node: &core::Node) -> Option<&str> {
    conditions(node).iter().find(|c| c.type_ == "Ready").map(|c| c.status.as_str())
}

fn conditions(node: &core::Node) -> &[core::NodeCondition] {
    node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

fn is_ready(pod: &core::Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Region and zone.
fn zone(node: &core::Node) -> String {
    let label =
        |name: &str| node.metadata.labels.as_ref().and_then(|l| l.get(name)).map_or("", String::as_str);
    match (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone")) {
        ("", "") => String::new(),
        // Upstream's key, which is the label of its figures too.
        (region, zone) => format!("{region}:\0:{zone}"),
    }
}

/// How long nothing was heard of a node, counted from `since` at the earliest: what we did not watch is no silence.
fn silence(node: &core::Node, lease: Option<&Lease>, since: Timestamp, now: Timestamp) -> Duration {
    let renewed = lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref()).map(|t| t.0);
    let beats = conditions(node).iter().filter_map(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0);
    let created = node.metadata.creation_timestamp.as_ref().map(|t| t.0);
    let last = beats.chain(renewed).max().or(created).unwrap_or(now);
    machinery::time::since(now, last.max(since))
}

fn is_silent(node: &core::Node, lease: Option<&Lease>, since: Timestamp, now: Timestamp) -> bool {
    silence(node, lease, since, now) > GRACE
}

/// The time between two nodes of this zone whose pods begin to be driven away; `None`: not now, because every zone is
/// down, or most of a small one.
fn pause(nodes: &[(String, bool)], own: &str) -> Option<Duration> {
    if nodes.iter().all(|(_, well)| !well) {
        return None;
    }
    let here = nodes.iter().filter(|(zone, _)| zone == own);
    let (sick, all) = here.fold((0, 0), |(sick, all), (_, well)| (sick + usize::from(!well), all + 1));
    let unhealthy = sick > 2 && sick < all && sick * 100 >= all * UNHEALTHY_PERCENT;
    match unhealthy {
        false => Some(EVICTION_PAUSE),
        true if all > LARGE_ZONE => Some(EVICTION_PAUSE_UNHEALTHY),
        true => None,
    }
}

/// Decides about a node; `may_evict` is asked only before pods begin to be driven away.
fn decide(
    node: &core::Node,
    lease: Option<&Lease>,
    since: Timestamp,
    now: Timestamp,
    may_evict: impl FnOnce() -> bool,
) -> Plan {
    let silence = silence(node, lease, since, now);
    let silent = silence > GRACE;
    let mut plan = Plan { silent, ..Plan::default() };
    if silent {
        plan.conditions = unknown(node, now);
    } else {
        plan.look_again = Some(GRACE - silence + Duration::from_secs(1));
    }
    let wanted = match ready(node) {
        _ if silent => Some(UNREACHABLE),
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        // Not ready, or not heard of yet.
        _ => Some(NOT_READY),
    };
    let is = |kind: &str| !silent && conditions(node).iter().any(|c| c.type_ == kind && c.status == "True");
    let cordoned = node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true));
    let mut want: BTreeSet<(&str, &str)> = wanted.map(|key| (key, "NoSchedule")).into_iter().collect();
    if let Some(key) = wanted {
        if may_evict() {
            want.insert((key, "NoExecute"));
        }
        plan.look_again = plan.look_again.into_iter().chain([EVICTION_PAUSE]).min();
    }
    want.extend(PRESSURE.iter().filter(|(kind, _)| is(kind)).map(|(_, taint)| (*taint, "NoSchedule")));
    want.extend(cordoned.then_some((UNSCHEDULABLE, "NoSchedule")));
    plan.taints = taints(node, &want, now);
    plan
}

/// Is a node being emptied by one of our taints already?
fn is_driven(node: &core::Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    taints.any(|t| t.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&t.key.as_str()))
}

/// All conditions with those that a node's agent keeps turned to Unknown; `None` when they are already.
fn unknown(node: &core::Node, now: Timestamp) -> Option<Value> {
    let conditions = conditions(node);
    let stamp = json!(machinery::time::format(now));
    let mut all: Vec<Value> = conditions.iter().map(|c| json!(c)).collect();
    let mut changed = false;
    for kind in AGENTS {
        match all.iter_mut().find(|c| c["type"] == kind) {
            Some(condition) if condition["status"] == "Unknown" => continue,
            Some(condition) => {
                condition["status"] = json!("Unknown");
                condition["reason"] = json!("NodeStatusUnknown");
                condition["message"] = json!("Kubelet stopped posting node status.");
                condition["lastTransitionTime"] = stamp.clone();
            }
            None => {
                let mut condition = json!({"type": kind, "status": "Unknown", "lastTransitionTime": stamp,
                    "reason": "NodeStatusNeverUpdated", "message": "Kubelet never posted node status."});
                // Not now: this is no sign of life.
                if let Some(created) = &node.metadata.creation_timestamp {
                    condition["lastHeartbeatTime"] = json!(machinery::time::format(created.0));
                }
                all.push(condition);
            }
        }
        changed = true;
    }
    changed.then(|| json!(all))
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

    fn look(node: &core::Node, lease: Option<&Lease>, now: Timestamp) -> Plan {
        decide(node, lease, Timestamp::UNIX_EPOCH, now, || true)
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_tainted_once() {
        let now = at("2026-01-01T00:02:00Z");
        let plan = look(&node("True", "2026-01-01T00:00:00Z", json!([])), None, now);
        let conditions = plan.conditions.unwrap();
        assert_eq!(conditions[0]["status"], "Unknown");
        assert_eq!(conditions[0]["message"], "Kubelet stopped posting node status.");
        let taints = plan.taints.unwrap();
        assert_eq!((&taints[0]["key"], &taints[1]["effect"]), (&json!(UNREACHABLE), &json!("NoSchedule")));
        assert!(taints[0]["timeAdded"].is_string());
        assert_eq!(conditions.as_array().unwrap().len(), AGENTS.len());
        let mut silent = node("Unknown", "2026-01-01T00:00:00Z", taints);
        silent.status.as_mut().unwrap().conditions = serde_json::from_value(conditions).unwrap();
        let settled = Plan { silent: true, look_again: Some(EVICTION_PAUSE), ..Plan::default() };
        assert_eq!(look(&silent, None, now), settled);
        let held = decide(&silent, None, Timestamp::UNIX_EPOCH, now, || false).taints.unwrap();
        assert_eq!(
            held,
            json!([{"key": UNREACHABLE, "effect": "NoSchedule"}]),
            "all are down: nobody is driven out"
        );
    }

    #[test]
    fn nobody_is_silent_before_we_listened() {
        let now = at("2026-01-01T00:02:00Z");
        let node = node("True", "2026-01-01T00:00:00Z", json!([]));
        let plan = decide(&node, None, at("2026-01-01T00:01:50Z"), now, || true);
        assert_eq!((plan.silent, plan.taints), (false, None));
        assert_eq!(plan.look_again, Some(Duration::from_secs(41)));
    }

    #[test]
    fn old_labels_follow_the_new_ones() {
        let mut node = node("True", "2026-01-01T00:00:00Z", json!([]));
        assert_eq!(old_labels(&node), BTreeMap::new());
        let labels = json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64", "beta.kubernetes.io/arch": "amd64"});
        node.metadata.labels = serde_json::from_value(labels).unwrap();
        let wanted =
            BTreeMap::from([("beta.kubernetes.io/arch", "arm64"), ("beta.kubernetes.io/os", "linux")]);
        assert_eq!(old_labels(&node), wanted);
        node.metadata
            .labels
            .as_mut()
            .unwrap()
            .extend(wanted.iter().map(|(k, v)| (k.to_string(), v.to_string())));
        assert_eq!(old_labels(&node), BTreeMap::new());
    }

    #[test]
    fn a_cordon_is_a_taint_too() {
        let now = at("2026-01-01T00:00:01Z");
        let mut cordoned = node("True", "2026-01-01T00:00:00Z", json!([]));
        cordoned.spec.as_mut().unwrap().unschedulable = Some(true);
        let taints = look(&cordoned, None, now).taints.unwrap();
        assert_eq!(taints, json!([{"key": UNSCHEDULABLE, "effect": "NoSchedule"}]));
        assert_eq!(look(&node("True", "2026-01-01T00:00:00Z", taints), None, now).taints, Some(json!([])));
    }

    #[test]
    fn zones_are_emptied_slowly_and_not_when_all_is_down() {
        let zone = |name: &str, sick: usize, all: usize| {
            (0..all).map(|n| (name.to_string(), n >= sick)).collect::<Vec<_>>()
        };
        let of = |zones: &[Vec<(String, bool)>]| pause(&zones.concat(), "a");
        assert_eq!(of(&[zone("a", 1, 2)]), Some(EVICTION_PAUSE));
        assert_eq!(of(&[zone("a", 1, 1)]), None, "the only node there is");
        assert_eq!(of(&[zone("a", 3, 3), zone("b", 0, 1)]), Some(EVICTION_PAUSE), "one whole zone");
        assert_eq!(of(&[zone("a", 3, 5)]), None);
        assert_eq!(of(&[zone("a", 3, 6)]), Some(EVICTION_PAUSE));
        assert_eq!(of(&[zone("a", 40, 60)]), Some(EVICTION_PAUSE_UNHEALTHY));
    }

    #[test]
    fn a_renewed_lease_is_life_and_taints_go_with_readiness() {
        let now = at("2026-01-01T00:02:00Z");
        let lease =
            serde_json::from_value(json!({"spec": {"renewTime": "2026-01-01T00:01:55.000000Z"}})).unwrap();
        let tainted =
            json!([{"key": NOT_READY, "effect": "NoSchedule"}, {"key": "mine", "effect": "NoSchedule"}]);
        let plan = look(&node("True", "2026-01-01T00:00:00Z", tainted), Some(&lease), now);
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
        let taints = look(&pressed, None, now).taints.unwrap();
        assert_eq!(taints, json!([{"key": "node.kubernetes.io/disk-pressure", "effect": "NoSchedule"}]));
        let relieved = node("True", "2026-01-01T00:00:00Z", taints);
        assert_eq!(look(&relieved, None, now).taints, Some(json!([])));
    }

    #[test]
    fn ranges_are_given_in_order() {
        let taken = ["10.244.0.0/24".to_string()].into();
        assert_eq!(first_free(Ipv4Addr::new(10, 244, 0, 0), 16, 24, &taken), Some("10.244.1.0/24".into()));
        assert_eq!(first_free(Ipv4Addr::new(10, 244, 0, 0), 24, 24, &taken), None);
    }
}
