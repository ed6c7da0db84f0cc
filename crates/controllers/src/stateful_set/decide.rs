//! What to do about a StatefulSet. Pure.
//!
//! Ordered sets take one step at a time: the lowest missing pod comes, the highest surplus pod goes, and only while
//! everything before is ready. A rolling update goes from the highest ordinal down, with no more pods down at a time
//! than `maxUnavailable` allows, in every set.

use crate::workload::{self, PodFacts, count};
use client::Object;
use jiff::Timestamp;
use machinery::intstr::IntOrString;
use machinery::selector::LabelSelector;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What a set asks for.
#[derive(Clone, Debug)]
pub struct Set {
    /// How many pods.
    pub replicas: usize,
    /// The first one's ordinal.
    pub start: usize,
    /// All at once?
    pub parallel: bool,
    /// Does nobody but the user replace old pods?
    pub on_delete: bool,
    /// Ordinals (from the first) that keep the current revision.
    pub partition: usize,
    /// Pods that may be down during an update: at least one.
    pub unavailable_max: usize,
    /// Seconds of readiness that make a pod available.
    pub min_ready_seconds: i32,
    /// Old revisions that are kept.
    pub history_limit: usize,
    /// Do claims go with the set; with a pod that is scaled away?
    pub claims_go: (bool, bool),
    /// The governing Service.
    pub service: String,
    /// Its pods.
    pub selector: LabelSelector,
    /// What pods are made of.
    pub template: Value,
    /// `volumeClaimTemplates`.
    pub claims: Vec<Value>,
    /// `status` as it is.
    pub status: Value,
}

impl Set {
    /// Reads one.
    pub fn read(object: &Object) -> Option<Set> {
        let mut value = object.value().ok()?;
        let spec = &mut value["spec"];
        let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let strategy = &spec["updateStrategy"];
        let replicas = number(&spec["replicas"]).unwrap_or(1);
        let down = IntOrString::from_json(&strategy["rollingUpdate"]["maxUnavailable"])
            .and_then(|most| most.scaled(i32::try_from(replicas).unwrap_or(i32::MAX), false));
        let retention = &spec["persistentVolumeClaimRetentionPolicy"];
        Some(Set {
            replicas,
            unavailable_max: down.and_then(|n| usize::try_from(n).ok()).unwrap_or(1).max(1),
            start: number(&spec["ordinals"]["start"]).unwrap_or(0),
            parallel: spec["podManagementPolicy"] == "Parallel",
            on_delete: strategy["type"] == "OnDelete",
            partition: number(&strategy["rollingUpdate"]["partition"]).unwrap_or(0),
            min_ready_seconds: i32::try_from(spec["minReadySeconds"].as_i64().unwrap_or(0)).unwrap_or(0),
            history_limit: number(&spec["revisionHistoryLimit"]).unwrap_or(10),
            claims_go: (retention["whenDeleted"] == "Delete", retention["whenScaled"] == "Delete"),
            service: spec["serviceName"].as_str().unwrap_or_default().into(),
            selector: LabelSelector::from_json(Some(&spec["selector"])).ok()?,
            template: spec["template"].take(),
            claims: spec["volumeClaimTemplates"].as_array().cloned().unwrap_or_default(),
            status: value["status"].take(),
        })
    }

    /// Is a pod of that ordinal one of the set's?
    pub fn wants(&self, ordinal: usize) -> bool {
        (self.start..self.start + self.replicas).contains(&ordinal)
    }

    /// Is a pod of that ordinal made of the current revision while another one is rolled out?
    fn keeps_current(&self, ordinal: usize) -> bool {
        !self.on_delete && ordinal < self.start + self.partition
    }
}

/// One pod of the set.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its number.
    pub ordinal: usize,
    /// What every workload controller knows of it.
    pub facts: PodFacts,
    /// Name of its revision.
    pub revision: String,
    /// The pod.
    pub object: Arc<Object>,
}

impl Member {
    /// Reads a pod of the set of that name; `None` for a pod of another name.
    pub fn read(set: &str, object: &Arc<Object>) -> Option<Member> {
        let ordinal = object.key.name.strip_prefix(set)?.strip_prefix('-')?.parse().ok()?;
        let revision = object.meta().labels.get(crate::revision::HASH_LABEL).cloned().unwrap_or_default();
        Some(Member { ordinal, facts: PodFacts::read(object), revision, object: object.clone() })
    }

    fn is_ready(&self) -> bool {
        self.facts.phase == "Running" && self.facts.is_ready()
    }

    fn is_healthy(&self, set: &Set, now: Timestamp) -> bool {
        !self.facts.deleting && self.is_ready() && self.facts.is_available(set.min_ready_seconds, now)
    }
}

/// Names of the two revisions that matter.
#[derive(Clone, Debug)]
pub struct Revisions {
    /// Where the set comes from.
    pub current: String,
    /// Where it goes.
    pub update: String,
}

/// A pod that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It comes back.
    Replaced,
    /// The set is smaller now.
    ScaledAway,
}

/// What to do.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Ordinals that come, with the revision they get.
    pub create: Vec<(usize, String)>,
    /// Ordinals that go.
    pub delete: Vec<(usize, Why)>,
}

/// Decides about a set that stays.
pub fn decide(set: &Set, members: &[Member], revisions: &Revisions, now: Timestamp) -> Plan {
    let by_ordinal: BTreeMap<usize, &Member> = members.iter().map(|m| (m.ordinal, m)).collect();
    let mut plan = Plan::default();
    let settled =
        fill(set, &by_ordinal, revisions, &mut plan, now) && shrink(set, &by_ordinal, &mut plan, now);
    if settled && !set.on_delete {
        roll(set, &by_ordinal, revisions, &mut plan, now);
    }
    plan
}

/// Creates what is missing; false when an ordered set has to wait.
fn fill(
    set: &Set,
    members: &BTreeMap<usize, &Member>,
    revisions: &Revisions,
    plan: &mut Plan,
    now: Timestamp,
) -> bool {
    for ordinal in set.start..set.start + set.replicas {
        let Some(member) = members.get(&ordinal) else {
            let current = set.keeps_current(ordinal);
            let revision = if current { &revisions.current } else { &revisions.update };
            plan.create.push((ordinal, revision.clone()));
            if set.parallel {
                continue;
            }
            return false;
        };
        if member.facts.is_finished() && !member.facts.deleting {
            plan.delete.push((ordinal, Why::Replaced));
        }
        if !set.parallel && !member.is_healthy(set, now) {
            return false;
        }
    }
    true
}

/// Deletes what is too much; false while something is.
fn shrink(set: &Set, members: &BTreeMap<usize, &Member>, plan: &mut Plan, now: Timestamp) -> bool {
    let surplus: Vec<&Member> = members.values().rev().filter(|m| !set.wants(m.ordinal)).copied().collect();
    if surplus.is_empty() {
        return true;
    }
    if set.parallel {
        let staying = surplus.iter().filter(|m| !m.facts.deleting);
        plan.delete.extend(staying.map(|m| (m.ordinal, Why::ScaledAway)));
        return false;
    }
    let highest = surplus[0];
    // One that is not healthy may go only when no lower surplus pod is sick, too: order matters.
    let first_sick = members.values().find(|m| !m.is_healthy(set, now)).map(|m| m.ordinal);
    let may_go = first_sick.is_none_or(|sick| sick == highest.ordinal || highest.is_healthy(set, now));
    if !highest.facts.deleting && may_go {
        plan.delete.push((highest.ordinal, Why::ScaledAway));
    }
    false
}

/// Replaces old pods, the highest first, as many as may be down; one that is down already costs nothing.
fn roll(
    set: &Set,
    members: &BTreeMap<usize, &Member>,
    revisions: &Revisions,
    plan: &mut Plan,
    now: Timestamp,
) {
    let all = set.start..set.start + set.replicas;
    let is_up = |ordinal: usize| members.get(&ordinal).is_some_and(|m| m.is_healthy(set, now));
    let down = all.clone().filter(|o| !is_up(*o)).count();
    let mut room = set.unavailable_max.saturating_sub(down);
    let from = set.start + set.partition.min(set.replicas);
    for ordinal in (from..all.end).rev() {
        let Some(member) = members.get(&ordinal) else { continue };
        if member.revision == revisions.update || member.facts.deleting {
            continue;
        }
        if is_up(ordinal) {
            if room == 0 {
                continue;
            }
            room -= 1;
        }
        if !plan.delete.iter().any(|(o, _)| *o == ordinal) {
            plan.delete.push((ordinal, Why::Replaced));
        }
    }
}

/// The owners of a claim as its retention policy has it: the set while the pod is wanted, the pod once it is scaled
/// away; others stay. `None` when they are right already, or somebody else controls the claim.
pub fn claim_owners(set: &Set, wanted: bool, now: &[Value], own: &Value, pod: &Value) -> Option<Vec<Value>> {
    let same = |a: &Value, b: &Value| a["kind"] == b["kind"] && a["name"] == b["name"];
    let ours = |r: &Value| same(r, own) || same(r, pod);
    if now.iter().any(|r| r["controller"] == true && !ours(r)) {
        return None;
    }
    let (deleted, scaled) = set.claims_go;
    let by_pod = scaled && !wanted;
    let kept = [(deleted && !by_pod, own), (by_pod, pod)];
    let kept = kept.into_iter().filter(|(keep, _)| *keep).map(|(_, r)| r);
    let mut all: Vec<Value> = now.iter().filter(|r| !ours(r)).cloned().collect();
    let controls = |r: &Value| r["controller"] == true;
    all.extend(kept.map(|r| now.iter().find(|n| n["uid"] == r["uid"] && controls(n)).unwrap_or(r).clone()));
    let told =
        |list: &[Value]| list.iter().map(|r| (r["uid"].to_string(), controls(r))).collect::<BTreeSet<_>>();
    (told(&all) != told(now)).then_some(all)
}

/// The status to report.
pub fn status(
    set: &Set,
    members: &[Member],
    revisions: &Revisions,
    generation: i64,
    now: Timestamp,
) -> Value {
    let number = |wanted: &dyn Fn(&Member) -> bool| members.iter().filter(|m| wanted(m)).count();
    let stays = |m: &Member, revision: &str| !m.facts.deleting && m.revision == revision;
    let ready = number(&|m| m.is_ready());
    let updated = number(&|m| stays(m, &revisions.update));
    let done = !set.on_delete && [ready, updated, members.len()].iter().all(|n| *n == set.replicas);
    let current = if done { &revisions.update } else { &revisions.current };
    let available = number(&|m| m.is_ready() && m.facts.is_available(set.min_ready_seconds, now));
    json!({
        "replicas": members.len(),
        "readyReplicas": count(ready),
        "availableReplicas": available,
        "currentReplicas": count(number(&|m| stays(m, current))),
        "updatedReplicas": count(updated),
        "currentRevision": current,
        "updateRevision": revisions.update,
        "collisionCount": set.status["collisionCount"].as_i64().unwrap_or(0),
        "observedGeneration": generation,
    })
}

/// When a pod turns available by itself.
pub fn again(set: &Set, members: &[Member], now: Timestamp) -> Option<Duration> {
    workload::next_available(members.iter().map(|m| &m.facts), set.min_ready_seconds, now)
}
