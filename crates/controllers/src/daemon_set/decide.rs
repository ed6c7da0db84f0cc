//! What to do about a DaemonSet. Pure.
//!
//! First every node gets the pods it should have ([`staff`]); then old pods make room for new ones within the bounds
//! of the update strategy ([`roll`]). A pod on its way out still holds its node.

use crate::workload::{PodFacts, count};
use client::Object;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use machinery::intstr::IntOrString;
use machinery::selector::LabelSelector;
use sched::{NodeSpec, PodInfo, Taint};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stdx::backoff::Backoff;

/// Pauses between replacing failed pods of one node, as upstream: a pod that fails at once must not be made in a loop.
const FAILED: Backoff = Backoff { base: Duration::from_secs(1), factor: 2, max: Duration::from_secs(900) };
/// So long after the last one a failure counts as the first again (twice the longest pause).
const FORGOTTEN: Duration = Duration::from_secs(1_800);

/// What a set asks for.
#[derive(Clone, Debug)]
pub struct Set {
    /// Does nobody but the user replace old pods?
    pub on_delete: bool,
    /// Nodes that may be without an available pod during an update.
    pub max_unavailable: IntOrString,
    /// Nodes that may have two pods during an update.
    pub max_surge: IntOrString,
    /// Seconds of readiness that make a pod available.
    pub min_ready_seconds: i32,
    /// Old revisions that are kept.
    pub history_limit: usize,
    /// Its pods.
    pub selector: LabelSelector,
    /// What pods are made of.
    pub template: Value,
    /// `status` as it is.
    pub status: Value,
}

impl Set {
    /// Reads one.
    pub fn read(object: &Object) -> Option<Set> {
        let mut value = object.value().ok()?;
        let spec = &mut value["spec"];
        let rolling = &spec["updateStrategy"]["rollingUpdate"];
        let number = |field: &str, default| {
            IntOrString::from_json(&rolling[field]).unwrap_or(IntOrString::Int(default))
        };
        let history = spec["revisionHistoryLimit"].as_u64().and_then(|n| usize::try_from(n).ok());
        Some(Set {
            on_delete: spec["updateStrategy"]["type"] == "OnDelete",
            max_unavailable: number("maxUnavailable", 1),
            max_surge: number("maxSurge", 0),
            min_ready_seconds: i32::try_from(spec["minReadySeconds"].as_i64().unwrap_or(0)).unwrap_or(0),
            history_limit: history.unwrap_or(10),
            selector: LabelSelector::from_json(Some(&spec["selector"])).ok()?,
            template: spec["template"].take(),
            status: value["status"].take(),
        })
    }

    fn bound(&self, which: &IntOrString, nodes: usize) -> usize {
        let nodes = i32::try_from(nodes).unwrap_or(i32::MAX);
        usize::try_from(which.scaled(nodes, true).unwrap_or(0)).unwrap_or(0)
    }
}

/// How a node and the set's pods go together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    /// A pod should run there.
    Run,
    /// None should come, but one that is there may stay.
    Stay,
    /// None may be there.
    No,
}

/// How a node and a pod of the set go together. Cordons do not keep daemons away.
pub fn fit(pod: &PodInfo, wanted_node: Option<&str>, node: &NodeSpec) -> Fit {
    if wanted_node.is_some_and(|n| n != node.name) || !pod.selects_node(node) {
        return Fit::No;
    }
    let kept_away = |effect: &str| {
        let against = |t: &&Taint| t.effect == effect && !pod.tolerates(t);
        node.taints.iter().find(against).is_some()
    };
    match () {
        () if kept_away("NoExecute") => Fit::No,
        () if kept_away("NoSchedule") => Fit::Stay,
        () => Fit::Run,
    }
}

/// One pod of the set.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// The node it is on, or is meant for.
    pub node: String,
    /// What every workload controller knows of it.
    pub facts: PodFacts,
    /// Hash of its revision.
    pub hash: String,
}

impl Daemon {
    /// Reads a pod.
    pub fn read(object: &Arc<Object>) -> Daemon {
        let facts = PodFacts::read(object);
        let hash = object.meta().labels.get(crate::revision::HASH_LABEL).cloned().unwrap_or_default();
        let meant =
            || object.view::<core::Pod>().ok().and_then(|p| target(p.spec.as_ref()?)).unwrap_or_default();
        let node = if facts.node.is_empty() { meant() } else { facts.node.clone() };
        Daemon { node, facts, hash }
    }

    fn is_available(&self, set: &Set, now: Timestamp) -> bool {
        !self.facts.deleting && self.facts.is_available(set.min_ready_seconds, now)
    }
}

/// The node that a pod's required affinity names.
fn target(spec: &core::PodSpec) -> Option<String> {
    let node = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &node.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    fields.find(|f| f.key == "metadata.name" && f.operator == "In")?.values.as_ref()?.first().cloned()
}

/// When failed pods of each node were replaced last, and how often in a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Failures(BTreeMap<String, (Timestamp, u32)>);

impl Failures {
    /// How long to wait before a pod that failed on this node is replaced.
    fn left(&self, node: &str, now: Timestamp) -> Duration {
        let Some((last, before)) = self.0.get(node) else { return Duration::ZERO };
        FAILED.delay(before.saturating_sub(1)).saturating_sub(machinery::time::since(now, *last))
    }

    /// Notes that a pod which failed on this node is replaced.
    pub fn note(&mut self, node: &str, now: Timestamp) {
        self.0.retain(|_, (last, _)| machinery::time::since(now, *last) < FORGOTTEN);
        let (last, times) = self.0.entry(node.into()).or_insert((now, 0));
        (*last, *times) = (now, *times + 1);
    }
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    /// Pods that go, by their place in the input.
    pub delete: BTreeSet<usize>,
    /// Pods among them that ended by themselves.
    pub ended: Vec<usize>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// All that a decision looks at.
pub struct Scene<'a> {
    /// The set.
    pub set: &'a Set,
    /// Every node.
    pub nodes: &'a BTreeMap<String, Fit>,
    /// Every pod of the set.
    pub daemons: &'a [Daemon],
    /// Hash of the newest revision.
    pub hash: &'a str,
    /// Pods that failed.
    pub failures: &'a Failures,
    /// Now.
    pub now: Timestamp,
}

impl Scene<'_> {
    /// The pods on a node, the oldest first.
    fn on(&self, node: &str) -> Vec<usize> {
        let mut here: Vec<usize> =
            (0..self.daemons.len()).filter(|i| self.daemons[*i].node == node).collect();
        here.sort_by_key(|i| (self.daemons[*i].facts.created, self.daemons[*i].facts.uid.clone()));
        here
    }

    fn is_new(&self, i: usize) -> bool {
        self.daemons[i].hash == self.hash
    }

    fn wanted(&self) -> Vec<&String> {
        self.nodes.iter().filter(|(_, fit)| **fit == Fit::Run).map(|(node, _)| node).collect()
    }
}

/// Decides about a set that stays.
pub fn decide(scene: &Scene<'_>) -> Plan {
    let mut plan = Plan::default();
    for (i, daemon) in scene.daemons.iter().enumerate() {
        // Meant for a node that is gone; those that were there already are `pod_gc`'s.
        if daemon.facts.node.is_empty() && !scene.nodes.contains_key(&daemon.node) && !daemon.facts.deleting {
            plan.delete.insert(i);
        }
    }
    for (node, fit) in scene.nodes {
        staff(scene, node, *fit, &mut plan);
    }
    if !scene.set.on_delete {
        roll(scene, &mut plan);
    }
    plan
}

/// Gives one node what it should have.
fn staff(scene: &Scene<'_>, node: &str, fit: Fit, plan: &mut Plan) {
    let here = scene.on(node);
    if here.is_empty() {
        if fit == Fit::Run {
            plan.create.push(node.into());
        }
        return;
    }
    // One old and one new pod may be there while an update surges.
    let mut kept: BTreeSet<bool> = BTreeSet::new();
    let surges = scene.set.bound(&scene.set.max_surge, scene.wanted().len()) > 0;
    for i in here.into_iter().filter(|i| !scene.daemons[*i].facts.deleting) {
        let facts = &scene.daemons[i].facts;
        if fit == Fit::No {
            plan.delete.insert(i);
        } else if facts.is_finished() {
            let failed = facts.phase == "Failed";
            let left = if failed { scene.failures.left(node, scene.now) } else { Duration::ZERO };
            if left.is_zero() {
                plan.delete.insert(i);
                plan.ended.push(i);
            } else {
                plan.again = [plan.again, Some(left)].into_iter().flatten().min();
            }
        } else if !kept.insert(surges && scene.is_new(i)) {
            plan.delete.insert(i);
        }
    }
}

/// Replaces old pods within the bounds of the strategy.
fn roll(scene: &Scene<'_>, plan: &mut Plan) {
    let (set, wanted) = (scene.set, scene.wanted());
    let surge = set.bound(&set.max_surge, wanted.len());
    let (mut unavailable, mut surging) = (0, 0);
    let mut candidates: Vec<(&String, usize)> = Vec::new();
    for node in wanted {
        let here = scene.on(node);
        let stays = |i: &usize| !plan.delete.contains(i);
        let old = here.iter().copied().filter(stays).find(|i| !scene.is_new(*i));
        let new = here.iter().copied().filter(stays).find(|i| scene.is_new(*i));
        let available = |i: Option<usize>| i.is_some_and(|i| scene.daemons[i].is_available(set, scene.now));
        let going = |i: usize| scene.daemons[i].facts.deleting;
        if !available(old) && !available(new) {
            unavailable += 1;
        }
        match (old, new) {
            (Some(old), None) if going(old) => {}
            // It serves nobody: replacing it costs nothing.
            (Some(old), None) if !available(Some(old)) && surge == 0 => drop(plan.delete.insert(old)),
            (Some(old), None) if !available(Some(old)) => plan.create.push(node.clone()),
            (Some(old), None) => candidates.push((node, old)),
            (Some(old), Some(_)) if available(new) => drop(plan.delete.insert(old)),
            (Some(_), Some(_)) => surging += 1,
            (None, _) => {}
        }
    }
    if surge > 0 {
        let room = surge.saturating_sub(surging);
        plan.create.extend(candidates.into_iter().take(room).map(|(node, _)| node.clone()));
    } else {
        let bound = set.bound(&set.max_unavailable, scene.wanted().len());
        let room = bound.saturating_sub(unavailable);
        plan.delete.extend(candidates.into_iter().take(room).map(|(_, old)| old));
    }
}

/// The status to report.
pub fn status(scene: &Scene<'_>, generation: i64) -> Value {
    let (mut current, mut ready, mut available, mut updated, mut misplaced) = (0, 0, 0, 0, 0);
    for (node, fit) in scene.nodes {
        let here = scene.on(node);
        if *fit != Fit::Run {
            misplaced += usize::from(!here.is_empty());
            continue;
        }
        let Some(first) = here.iter().find(|i| !scene.daemons[**i].facts.deleting).or(here.first()) else {
            continue;
        };
        let is_ready = |i: &usize| scene.daemons[*i].facts.is_ready() && !scene.daemons[*i].facts.deleting;
        // While an update surges, the pod that serves is the one that counts.
        let shown = here.iter().find(|i| is_ready(i)).unwrap_or(first);
        current += 1;
        ready += usize::from(is_ready(shown));
        available += usize::from(scene.daemons[*shown].is_available(scene.set, scene.now));
        updated += usize::from(here.iter().any(|i| scene.is_new(*i) && !scene.daemons[*i].facts.deleting));
    }
    let desired = scene.wanted().len();
    json!({
        "desiredNumberScheduled": desired,
        "currentNumberScheduled": current,
        "numberMisscheduled": misplaced,
        "numberReady": ready,
        "updatedNumberScheduled": count(updated),
        "numberAvailable": count(available),
        "numberUnavailable": count(desired - available),
        "observedGeneration": generation,
    })
}
