//! The decision itself: for each waiting pod in turn, filter, score, place; or say why not.

use crate::filter::{Objection, Question, objection};
use crate::interpod::PodContext;
use crate::model::{NodeInfo, NodeSpec, PodId, PodInfo, Snapshot};
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
            Rescue::NotEligible(words) if words.is_empty() => first,
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
        let known = snapshot.contexts.take(pod);
        let context = known.unwrap_or_else(|| PodContext::new(snapshot, pod));
        let (placed, context) = place(snapshot, pod, context);
        if snapshot.termed > 0 || pod.has_terms() || !pod.spread.is_empty() {
            snapshot.contexts.keep(pod, context);
        }
        match placed {
            Ok(Place { node, steps, next }) => {
                next.into_iter().for_each(|next| snapshot.next = next);
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

/// Where a pod goes.
struct Place {
    node: String,
    /// What must be written before it is bound there.
    steps: Vec<Step>,
    /// Where the look at the nodes ended, if some were enough.
    next: Option<String>,
}

fn place(
    snapshot: &Snapshot,
    pod: &PodInfo,
    context: PodContext,
) -> (Result<Place, Box<Diagnosis>>, PodContext) {
    let hopeless = |n: usize| {
        let reasons = [("Preemption is not helpful for scheduling".to_string(), n)].into();
        Rescue::Hopeless(sentence(n, &reasons))
    };
    let volumes = match snapshot.volumes.needs(pod, snapshot) {
        Ok(needs) => needs,
        Err(before) => {
            let nodes = snapshot.nodes_len();
            let (reasons, filters) = (BTreeMap::new(), ["VolumeBinding"].into());
            let diagnosis = Diagnosis { nodes, reasons, filters, before, rescue: hopeless(nodes) };
            return (Err(Box::new(diagnosis)), context);
        }
    };
    let profile = snapshot.profiles.of(pod.scheduler());
    let mut subject = Subject { pod, profile, context, volumes: &volumes };
    let asked = ask(snapshot, &mut subject);
    if let Some(place) = best(snapshot, &subject, &asked) {
        return (Ok(place), subject.context);
    }
    let rescue = match asked.nodes {
        0 => hopeless(0),
        _ if !profile.preempts => Rescue::NotEligible(String::new()),
        all => match preempt(snapshot, &mut subject, &asked.helpable, all) {
            Ok(found) => Rescue::Found(found),
            Err(Refused::NotEligible(words)) => Rescue::NotEligible(words.into()),
            Err(Refused::Hopeless(words)) => Rescue::Hopeless(words),
        },
    };
    let Asked { nodes, reasons, filters, .. } = asked;
    let diagnosis = Diagnosis { nodes, reasons, filters, before: String::new(), rescue };
    (Err(Box::new(diagnosis)), subject.context)
}

/// What the filters said of the nodes.
#[derive(Default)]
struct Asked<'a> {
    nodes: usize,
    feasible: Vec<(&'a Arc<NodeSpec>, &'a NodeInfo)>,
    /// Nodes that an eviction could open.
    helpable: Vec<&'a Arc<NodeSpec>>,
    reasons: BTreeMap<String, usize>,
    filters: BTreeSet<&'static str>,
    next: Option<String>,
}

impl<'a> Asked<'a> {
    fn ask(&mut self, snapshot: &Snapshot, subject: &mut Subject<'_>, at: (&'a Arc<NodeSpec>, &'a NodeInfo)) {
        self.nodes += 1;
        let (spec, node) = at;
        let mut promised = snapshot.nominations.ahead_of(subject.pod, &spec.name).peekable();
        let found: Option<(Objection, bool)> = if promised.peek().is_none() {
            let Subject { pod, profile, context, volumes } = &*subject;
            let question = Question { pod, profile, spec, node, context, volumes };
            objection(&question).map(|found| {
                let resolvable = (found.0.resolvable)(&question);
                (found, resolvable)
            })
        } else {
            let promised: Vec<&Arc<PodInfo>> = promised.collect();
            Trial::new(subject, spec, node).objection_beside(&promised)
        };
        let Some(((row, reasons), resolvable)) = found else { return self.feasible.push(at) };
        if resolvable {
            self.helpable.push(spec);
        }
        self.filters.insert(row.name);
        for reason in reasons {
            match self.reasons.get_mut(&reason) {
                Some(count) => *count += 1,
                None => drop(self.reasons.insert(reason, 1)),
            }
        }
    }
}

/// Asks the nodes that the pod names, if it does; else as many as yield enough good ones, each time from where the
/// last time ended.
fn ask<'a>(snapshot: &'a Snapshot, subject: &mut Subject<'_>) -> Asked<'a> {
    let pod = subject.pod;
    if let Some(names) = pod.named_nodes() {
        let mut asked = Asked::default();
        let names: BTreeSet<&str> = names.into_iter().collect();
        names.into_iter().filter_map(|n| snapshot.node(n)).for_each(|at| asked.ask(snapshot, subject, at));
        if !asked.feasible.is_empty() {
            return asked;
        }
    }
    let promised = pod.id.as_ref().and_then(|id| snapshot.nominated_node(id)).is_some();
    let enough = if promised { usize::MAX } else { subject.profile.enough(snapshot.nodes_len()) };
    let mut asked = Asked::default();
    for at in snapshot.nodes_from(&snapshot.next) {
        if asked.feasible.len() >= enough {
            asked.next = Some(at.0.name.clone());
            break;
        }
        asked.ask(snapshot, subject, at);
    }
    asked
}

/// The node promised to the pod where it is good, else the one with most points.
fn best(snapshot: &Snapshot, subject: &Subject<'_>, asked: &Asked<'_>) -> Option<Place> {
    let Subject { pod, profile, context, volumes } = subject;
    let found = |spec: &NodeSpec| Place {
        node: spec.name.clone(),
        steps: volumes.steps(spec).unwrap_or_default(),
        next: asked.next.clone(),
    };
    let promised = pod.id.as_ref().and_then(|id| snapshot.nominated_node(id));
    if let Some((spec, _)) = asked.feasible.iter().find(|(s, _)| Some(s.name.as_str()) == promised) {
        return Some(found(spec));
    }
    if let [(spec, _)] = asked.feasible[..] {
        return Some(found(spec));
    }
    let questions: Vec<Question<'_>> = asked
        .feasible
        .iter()
        .map(|(spec, node)| Question { pod, profile, spec, node, context, volumes })
        .collect();
    let totals = score::totals(profile, &questions);
    // Ties go to the node that a hash of pod and node prefers: even, yet the same at every run.
    let most = totals.iter().copied().max()?;
    let best = questions.iter().zip(totals).filter(|(_, total)| *total == most);
    best.max_by_key(|(q, _)| tie(&pod.id, &q.spec.name)).map(|(q, _)| found(q.spec))
}

/// FNV-1a over pod and node names.
pub fn tie(pod: &Option<PodId>, node: &str) -> u64 {
    let names = pod.iter().flat_map(|(ns, name)| ns.bytes().chain(name.bytes())).chain(node.bytes());
    names.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests;
