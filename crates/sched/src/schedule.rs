//! The decision itself: for each waiting pod in turn, filter, score, place; or say why not.

use crate::filter::{Objection, Question, objection};
use crate::interpod::PodContext;
use crate::model::{NodeSpec, PodId, PodInfo, Snapshot};
use crate::preempt::{Preemption, Refused, preempt};
use crate::score;
use crate::trial::{Subject, Trial};
use crate::volumes::Step;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What pushing others out can do for a pod that fits nowhere.
#[derive(Clone, Debug)]
pub enum Rescue {
    /// It may not, or need not yet; a node promised to it before stays promised.
    NotEligible(String),
    /// No node can be freed for it; it has no promise any more.
    Hopeless(String),
    /// These must go.
    Found(Preemption),
}

/// Why a pod found no node.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    /// How many nodes there are.
    pub nodes: usize,
    /// Reason → how many nodes gave it.
    pub reasons: BTreeMap<String, usize>,
    /// Names of the filters that objected.
    pub filters: BTreeSet<&'static str>,
    /// Why no node was asked at all, "" where they were.
    pub before: String,
    /// What was tried for it then.
    pub rescue: Rescue,
}

/// "0/3 nodes are available: 1 this, 2 that."
pub fn sentence(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

impl Diagnosis {
    /// The sentence of the pod's condition and event, in upstream's words.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let first = match self.before.is_empty() {
            true => sentence(self.nodes, &self.reasons),
            false => format!("0/{} nodes are available: {}.", self.nodes, self.before),
        };
        match &self.rescue {
            Rescue::NotEligible(words) | Rescue::Hopeless(words) => format!("{first} preemption: {words}"),
            Rescue::Found(_) => first,
        }
    }
}

/// What to do with the waiting pods.
#[derive(Debug, Default)]
pub struct Plan {
    /// Pod → node, in the order decided.
    pub bindings: Vec<(Arc<PodInfo>, String)>,
    /// Pods that fit nowhere, with the reason.
    pub unschedulable: Vec<(Arc<PodInfo>, Diagnosis)>,
}

/// Decides for every waiting pod, highest priority first (then in the order given). Placements and promises are
/// assumed in the snapshot; the caller takes back ([`Snapshot::remove_pod`]) those that it cannot bind.
pub fn schedule(snapshot: &mut Snapshot, waiting: &[Arc<PodInfo>]) -> Plan {
    let mut order: Vec<&Arc<PodInfo>> = waiting.iter().collect();
    order.sort_by_key(|p| std::cmp::Reverse(p.priority));
    let mut plan = Plan::default();
    for pod in order {
        match place(snapshot, pod) {
            Ok((node, steps)) => {
                snapshot.place(&node, pod.clone());
                pod.id.iter().for_each(|id| snapshot.volumes.assume(id, steps.clone()));
                plan.bindings.push((pod.clone(), node));
            }
            Err(diagnosis) => {
                assume_rescue(snapshot, pod, &diagnosis.rescue);
                plan.unschedulable.push((pod.clone(), *diagnosis));
            }
        }
    }
    plan
}

fn assume_rescue(snapshot: &mut Snapshot, pod: &Arc<PodInfo>, rescue: &Rescue) {
    match rescue {
        Rescue::NotEligible(_) => {}
        Rescue::Hopeless(_) => pod.id.iter().for_each(|id| snapshot.clear_nomination(id)),
        Rescue::Found(found) => {
            snapshot.nominations.going.extend(found.victims.iter().filter_map(|v| v.id.clone()));
            found.displaced.iter().filter_map(|d| d.id.as_ref()).for_each(|id| snapshot.clear_nomination(id));
            snapshot.nominate(&found.node, pod.clone());
        }
    }
}

/// Node and what must be written before the pod is bound there.
type Place = (String, Vec<Step>);

fn place(snapshot: &Snapshot, pod: &PodInfo) -> Result<Place, Box<Diagnosis>> {
    let hopeless = |n: usize| {
        let reasons = [("Preemption is not helpful for scheduling".to_string(), n)].into();
        Rescue::Hopeless(sentence(n, &reasons))
    };
    let volumes = snapshot.volumes.needs(pod, snapshot).map_err(|before| {
        let nodes = snapshot.nodes().count();
        let (reasons, filters) = (BTreeMap::new(), ["VolumeBinding"].into());
        Box::new(Diagnosis { nodes, reasons, filters, before, rescue: hopeless(nodes) })
    })?;
    let mut subject = Subject { pod, context: PodContext::new(snapshot, pod), volumes: &volumes };
    let asked = ask(snapshot, &mut subject);
    if let Some(place) = best(snapshot, &subject, &asked.feasible) {
        return Ok(place);
    }
    let rescue = match asked.nodes {
        0 => hopeless(0),
        all => match preempt(snapshot, &mut subject, &asked.helpable, all) {
            Ok(found) => Rescue::Found(found),
            Err(Refused::NotEligible(words)) => Rescue::NotEligible(words.into()),
            Err(Refused::Hopeless(words)) => Rescue::Hopeless(words),
        },
    };
    let Asked { nodes, reasons, filters, .. } = asked;
    Err(Box::new(Diagnosis { nodes, reasons, filters, before: String::new(), rescue }))
}

/// What the filters said of all nodes.
#[derive(Default)]
struct Asked {
    nodes: usize,
    feasible: Vec<Arc<NodeSpec>>,
    /// Nodes that an eviction could open.
    helpable: Vec<Arc<NodeSpec>>,
    reasons: BTreeMap<String, usize>,
    filters: BTreeSet<&'static str>,
}

fn ask(snapshot: &Snapshot, subject: &mut Subject<'_>) -> Asked {
    let mut asked = Asked::default();
    for (spec, node) in snapshot.nodes() {
        asked.nodes += 1;
        let promised: Vec<&Arc<PodInfo>> = snapshot.nominations.ahead_of(subject.pod, &spec.name).collect();
        let found: Option<(Objection, bool)> = if promised.is_empty() {
            let Subject { pod, context, volumes } = &*subject;
            let question = Question { pod, spec, node, context, volumes };
            objection(&question).map(|found| {
                let resolvable = (found.0.resolvable)(&question);
                (found, resolvable)
            })
        } else {
            Trial::new(subject, spec, node).objection_beside(&promised)
        };
        let Some(((row, reasons), resolvable)) = found else {
            asked.feasible.push(spec.clone());
            continue;
        };
        if resolvable {
            asked.helpable.push(spec.clone());
        }
        asked.filters.insert(row.name);
        reasons.into_iter().for_each(|r| *asked.reasons.entry(r).or_default() += 1);
    }
    asked
}

/// The node promised to the pod where it is good, else the one with most points.
fn best(snapshot: &Snapshot, subject: &Subject<'_>, feasible: &[Arc<NodeSpec>]) -> Option<Place> {
    let Subject { pod, context, volumes } = subject;
    let found = |name: &str, spec: &NodeSpec| (name.to_string(), volumes.steps(spec).unwrap_or_default());
    let promised = pod.id.as_ref().and_then(|id| snapshot.nominated_node(id));
    if let Some(spec) = feasible.iter().find(|s| Some(s.name.as_str()) == promised) {
        return Some(found(&spec.name, spec));
    }
    let questions: Vec<Question<'_>> = feasible
        .iter()
        .filter_map(|spec| snapshot.node(&spec.name))
        .map(|(spec, node)| Question { pod, spec, node, context, volumes })
        .collect();
    let totals = score::totals(snapshot.profile, &questions);
    // Ties go to the node that a hash of pod and node prefers: even, yet the same at every run.
    let best = questions.iter().zip(totals).max_by_key(|(q, total)| (*total, tie(&pod.id, &q.spec.name)));
    best.map(|(q, _)| found(&q.spec.name, q.spec))
}

/// FNV-1a over pod and node names.
pub fn tie(pod: &Option<PodId>, node: &str) -> u64 {
    let names = pod.iter().flat_map(|(ns, name)| ns.bytes().chain(name.bytes())).chain(node.bytes());
    names.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests;
