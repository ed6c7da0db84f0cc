//! The decision itself: for each waiting pod in turn, filter, score, place; or say why not.

use crate::extend::{self, Advice};
use crate::filter::{Objection, Question, is_local, objection};
use crate::groups::{self, Verdict};
use crate::interpod::PodContext;
use crate::model::{NodeInfo, NodeSpec, PodId, PodInfo, Snapshot};
use crate::preempt::{Preemption, Refused, preempt};
use crate::ratings::{Rating, Ratings};
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
    /// Extenders must be asked this first; nothing is decided yet.
    Consult(extend::Question),
}

impl Rescue {
    /// Who must go.
    pub fn victims(&self) -> &[Arc<PodInfo>] {
        match self {
            Rescue::Found(found) => &found.victims,
            _ => &[],
        }
    }
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
    /// The whole sentence, where it is not about nodes; else "".
    pub instead: String,
    /// The condition's reason.
    pub reason: &'static str,
}

const UNSCHEDULABLE: &str = "Unschedulable";

/// "0/3 nodes are available: 1 this, 2 that."
pub fn sentence(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

impl Diagnosis {
    /// What is not about nodes: the pod is kept back, because.
    pub fn kept_back(by: &'static str, why: &str, rescue: Rescue) -> Diagnosis {
        Diagnosis {
            nodes: 0,
            reasons: BTreeMap::new(),
            filters: [by].into(),
            before: String::new(),
            rescue,
            instead: why.into(),
            reason: UNSCHEDULABLE,
        }
    }

    /// It could not be decided.
    pub fn wrong(why: &str, rescue: Rescue) -> Diagnosis {
        Diagnosis { reason: "SchedulerError", ..Diagnosis::kept_back("", why, rescue) }
    }

    /// The sentence of the pod's condition and event, in upstream's words.
    pub fn message(&self) -> String {
        if !self.instead.is_empty() {
            return self.instead.clone();
        }
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
            Rescue::Found(_) | Rescue::Consult(_) => first,
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
    /// What came of groups whose pods are placed together.
    pub groups: Vec<(PodId, Verdict)>,
}

/// Decides for every waiting pod, highest priority first (then in the order given); pods of a group that is known with
/// the first of them. Placements and promises are assumed in the snapshot; the caller takes back
/// ([`Snapshot::remove_pod`]) those that it cannot bind.
pub fn schedule(snapshot: &mut Snapshot, waiting: &[Arc<PodInfo>]) -> Plan {
    let mut order: Vec<&Arc<PodInfo>> = waiting.iter().collect();
    order.sort_by_key(|p| std::cmp::Reverse(p.priority));
    let mut plan = Plan::default();
    let mut seen = BTreeSet::new();
    for pod in &order {
        match pod.group.as_ref().filter(|id| snapshot.groups.knows(id)) {
            None => match decide(snapshot, pod) {
                Ok(node) => plan.bindings.push(((*pod).clone(), node)),
                Err(diagnosis) => plan.refuse(snapshot, pod, *diagnosis),
            },
            Some(id) if seen.insert(id) => {
                let together: Vec<_> =
                    order.iter().copied().filter(|p| p.group.as_ref() == Some(id)).collect();
                groups::schedule(snapshot, id, &together, &mut plan);
            }
            Some(_) => {}
        }
    }
    plan
}

impl Plan {
    /// Notes that a pod fits nowhere, and assumes what is tried for it.
    pub(crate) fn refuse(&mut self, snapshot: &mut Snapshot, pod: &Arc<PodInfo>, diagnosis: Diagnosis) {
        assume_rescue(snapshot, pod, &diagnosis.rescue);
        self.unschedulable.push((pod.clone(), diagnosis));
    }
}

/// Decides for one pod. A placement is assumed; a rescue is not.
pub(crate) fn decide(snapshot: &mut Snapshot, pod: &Arc<PodInfo>) -> Result<String, Box<Diagnosis>> {
    let known = snapshot.contexts.take(pod);
    let context = known.unwrap_or_else(|| PodContext::new(snapshot, pod));
    let mut ratings = snapshot.kinds.take(pod);
    let (placed, context) = place(snapshot, pod, context, &mut ratings);
    snapshot.kinds.keep(pod, ratings);
    if snapshot.termed > 0 || pod.has_terms() || !pod.spread.is_empty() {
        snapshot.contexts.keep(pod, context);
    }
    let Place { node, steps, next } = placed?;
    next.into_iter().for_each(|next| snapshot.next = next);
    snapshot.place(&node, pod.clone());
    pod.id.iter().for_each(|id| snapshot.volumes.assume(id, steps.clone()));
    Ok(node)
}

fn assume_rescue(snapshot: &mut Snapshot, pod: &Arc<PodInfo>, rescue: &Rescue) {
    match rescue {
        Rescue::NotEligible(_) | Rescue::Consult(_) => {}
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
    ratings: &mut Ratings,
) -> (Result<Place, Box<Diagnosis>>, PodContext) {
    let hopeless = |n: usize| {
        let reasons = [("Preemption is not helpful for scheduling".to_string(), n)].into();
        Rescue::Hopeless(sentence(n, &reasons))
    };
    let volumes = match snapshot.volumes.needs(pod, snapshot) {
        Ok(needs) => needs,
        Err(before) => {
            let nodes = snapshot.nodes_len();
            let (reasons, filters) = (BTreeMap::new(), ["VolumeBinding", "DynamicResources"].into());
            let rescue = hopeless(nodes);
            let diagnosis = Diagnosis {
                nodes,
                reasons,
                filters,
                before,
                rescue,
                instead: String::new(),
                reason: UNSCHEDULABLE,
            };
            return (Err(Box::new(diagnosis)), context);
        }
    };
    let profile = snapshot.profiles.of(pod.scheduler());
    let mut subject = Subject { pod, profile, context, volumes: &volumes, ratings: std::mem::take(ratings) };
    let mut asked = ask(snapshot, &mut subject);
    let unasked = asked.heed(snapshot, &subject);
    let found = best(snapshot, &subject, &asked);
    *ratings = std::mem::take(&mut subject.ratings);
    if let Some(place) = found {
        return (Ok(place), subject.context);
    }
    let rescue = match asked.nodes {
        _ if !unasked.is_empty() => Rescue::Consult(extend::Question::Nodes(unasked)),
        0 => hopeless(0),
        _ if !profile.preempts => Rescue::NotEligible(String::new()),
        all => match preempt(snapshot, &mut subject, &asked.helpable, all) {
            Ok(found) => Rescue::Found(found),
            Err(Refused::NotEligible(words)) => Rescue::NotEligible(words.into()),
            Err(Refused::Hopeless(words)) => Rescue::Hopeless(words),
            Err(Refused::Consult(question)) => Rescue::Consult(question),
        },
    };
    let Asked { nodes, reasons, filters, .. } = asked;
    let (before, instead) = (String::new(), String::new());
    let diagnosis = Diagnosis { nodes, reasons, filters, before, rescue, instead, reason: UNSCHEDULABLE };
    (Err(Box::new(diagnosis)), subject.context)
}

/// What the filters said of the nodes.
#[derive(Default)]
struct Asked<'a> {
    nodes: usize,
    feasible: Vec<(&'a NodeSpec, &'a NodeInfo)>,
    /// Nodes that an eviction could open.
    helpable: Vec<&'a NodeSpec>,
    reasons: BTreeMap<String, usize>,
    filters: BTreeSet<&'static str>,
    next: Option<String>,
    how: Haste,
    /// Was any node passed over?
    hasty: bool,
}

/// What may be left out.
#[derive(Clone, Copy, Default)]
struct Haste {
    /// Do ratings hold?
    rated: bool,
    /// Is there nothing but ratings to look at?
    free: bool,
    /// Are nodes passed over that are known not to fit? Nobody will ask why.
    passes: bool,
}

impl Haste {
    fn with(subject: &Subject<'_>) -> Haste {
        let rated = subject.pod.is_plain();
        Haste { rated, free: rated && subject.context.is_free(subject.pod), passes: true }
    }
}

impl<'a> Asked<'a> {
    fn ask(&mut self, snapshot: &Snapshot, subject: &mut Subject<'_>, at: (&'a NodeSpec, &'a NodeInfo)) {
        self.nodes += 1;
        let (spec, node) = at;
        let mut promised = snapshot.nominations.ahead_of(subject.pod, &spec.name).peekable();
        let found: Option<(Objection, bool)> = if promised.peek().is_none() {
            let Subject { pod, profile, context, volumes, ratings } = &*subject;
            let rating = ratings.get(node).filter(|_| self.how.rated);
            match rating {
                Some(rating) if self.how.passes && !rating.fits => return self.hasty = true,
                Some(rating) if self.how.free && rating.fits => return self.feasible.push(at),
                _ => {}
            }
            let question = Question { pod, profile, spec, node, context, volumes, rating };
            let found = objection(&question).map(|found| {
                let resolvable = (found.0.resolvable)(&question);
                (found, resolvable)
            });
            if rating.is_none() && self.how.rated {
                let fits = !found.as_ref().is_some_and(|(found, _)| is_local(found));
                let rating = Rating::new(&question, fits);
                subject.ratings.put(node, rating);
            }
            found
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

impl Asked<'_> {
    /// Takes up what extenders said; yields the nodes to ask them about, where they let none of the others be.
    fn heed(&mut self, snapshot: &Snapshot, subject: &Subject<'_>) -> Vec<String> {
        if !snapshot.extenders.iter().any(|e| e.judges(subject.pod)) {
            return Vec::new();
        }
        let nobody = Advice::default();
        let (advice, mut unasked) = (snapshot.advice_of(subject.pod).unwrap_or(&nobody), Vec::new());
        for at in std::mem::take(&mut self.feasible) {
            let name = &at.0.name;
            match advice.refused.get(name) {
                _ if advice.nodes.contains_key(name) => self.feasible.push(at),
                None => unasked.push(name.clone()),
                Some((why, helpable)) => {
                    self.filters.insert(extend::NAME);
                    if !why.is_empty() {
                        *self.reasons.entry(why.clone()).or_default() += 1;
                    }
                    self.helpable.extend(helpable.then_some(at.0));
                }
            }
        }
        if !self.feasible.is_empty() {
            return Vec::new();
        }
        unasked.truncate(subject.profile.enough(snapshot.nodes_len()));
        unasked
    }
}

/// Asks the nodes that the pod names, if it does; else as many as yield enough good ones, each time from where the
/// last time ended.
fn ask<'a>(snapshot: &'a Snapshot, subject: &mut Subject<'_>) -> Asked<'a> {
    let pod = subject.pod;
    let names = pod.named_nodes();
    let asked_by_name = names.is_some();
    if let Some(names) = names {
        let mut asked = Asked::default();
        let names: BTreeSet<&str> = names.into_iter().collect();
        let named =
            names.into_iter().filter_map(|n| snapshot.node(n)).filter(|at| snapshot.groups.admits(at.0));
        named.for_each(|at| asked.ask(snapshot, subject, at));
        if !asked.feasible.is_empty() {
            return asked;
        }
    }
    let promised = pod.id.as_ref().and_then(|id| snapshot.nominated_node(id)).is_some();
    let enough = if promised || snapshot.advice_of(pod).is_some() {
        usize::MAX
    } else {
        subject.profile.enough(snapshot.nodes_len())
    };
    let mut how = if asked_by_name { Haste::default() } else { Haste::with(subject) };
    how.passes &= snapshot.advice_of(pod).is_none();
    loop {
        let mut asked = Asked { how, ..Asked::default() };
        for at in snapshot.nodes_from(&snapshot.next).filter(|at| snapshot.groups.admits(at.0)) {
            if asked.feasible.len() >= enough {
                asked.next = Some(at.0.name.clone());
                break;
            }
            asked.ask(snapshot, subject, at);
        }
        if !asked.hasty || !asked.feasible.is_empty() {
            return asked;
        }
        // None was found: now it matters why.
        how.passes = false;
    }
}

/// The node promised to the pod where it is good, else the one with most points.
fn best(snapshot: &Snapshot, subject: &Subject<'_>, asked: &Asked<'_>) -> Option<Place> {
    let Subject { pod, profile, context, volumes, ratings } = subject;
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
        .map(|(spec, node)| {
            let rating = ratings.get(node).filter(|_| asked.how.rated);
            Question { pod, profile, spec, node, context, volumes, rating }
        })
        .collect();
    let mut totals = score::totals(profile, &questions);
    if let Some(advice) = snapshot.advice_of(pod) {
        for (total, question) in totals.iter_mut().zip(&questions) {
            *total += advice.nodes.get(&question.spec.name).copied().unwrap_or(0);
        }
    }
    // Ties go to the node that a hash of pod and node prefers: even, yet the same at every run.
    let most = totals.iter().copied().max()?;
    let best = questions.iter().zip(totals).filter(|(_, total)| *total == most);
    let begun = tie(&pod.id, "");
    best.max_by_key(|(q, _)| fnv(begun, q.spec.name.bytes())).map(|(q, _)| found(q.spec))
}

/// FNV-1a over pod and node names.
pub fn tie(pod: &Option<PodId>, node: &str) -> u64 {
    let names = pod.iter().flat_map(|(ns, name)| ns.bytes().chain(name.bytes()));
    fnv(fnv(0xcbf2_9ce4_8422_2325, names), node.bytes())
}

fn fnv(begun: u64, bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(begun, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests;
