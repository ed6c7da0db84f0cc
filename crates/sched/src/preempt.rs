//! Preemption: which less important pods must go from which node so that a pod fits. Upstream's DefaultPreemption.
//!
//! On each candidate node all less important pods are taken away; if the pod fits then, they are put back one by one,
//! those whose disruption budget is exhausted first and the important ones before others, as long as the pod still
//! fits. Who cannot come back is a victim. Of the nodes, the one that hurts least is taken.
//! Deliberately not here: deleting victims; a claim that only one pod may use frees nobody's place.

use crate::extend::{Candidates, Extender, Question};
use crate::model::{NodeInfo, NodeSpec, PodId, PodInfo, Snapshot};
use crate::schedule::tie;
use crate::trial::{Subject, Trial};
use machinery::selector::LabelSelector;
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const NO_HELP: &str = "Preemption is not helpful for scheduling";

/// A disruption budget.
#[derive(Clone, Debug)]
pub struct Budget {
    selector: LabelSelector,
    allowed: i64,
    /// Pods whose end is counted already.
    noted: BTreeSet<String>,
}

impl Budget {
    /// Reads a PodDisruptionBudget. One without selector is about no pod.
    pub fn read(budget: &Value) -> Option<Budget> {
        let selector = LabelSelector::from_json(Some(budget["spec"].get("selector")?)).ok()?;
        let noted = budget["status"]["disruptedPods"].as_object().into_iter().flatten();
        Some(Budget {
            selector,
            allowed: budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0),
            noted: noted.map(|(name, _)| name.clone()).collect(),
        })
    }

    fn covers(&self, name: &str, pod: &PodInfo) -> bool {
        !pod.labels.is_empty()
            && !self.selector.is_everything()
            && self.selector.matches(&pod.labels)
            && !self.noted.contains(name)
    }
}

/// Who makes room, and where.
#[derive(Clone, Debug)]
pub struct Preemption {
    /// The node that the pod is promised.
    pub node: String,
    /// Pods that must go, the most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// Waiting pods that were promised that node and are less important: their promise falls.
    pub displaced: Vec<Arc<PodInfo>>,
}

/// Why there is none.
#[derive(Clone, Debug)]
pub enum Refused {
    /// The pod may not, or need not yet.
    NotEligible(&'static str),
    /// It was tried; upstream's sentence.
    Hopeless(String),
    /// Extenders must be asked first.
    Consult(Question),
}

/// Who must go from a node, and how many budgets break.
pub type Victims = (Vec<Arc<PodInfo>>, usize);

/// The order in which pods are spared: important ones first, then those that run for longer.
fn importance(pod: &PodInfo) -> (Reverse<i32>, i64, &Option<PodId>) {
    (Reverse(pod.priority), pod.started_ms, &pod.id)
}

/// What taking a node costs; less is better, upstream's order.
fn cost(found: &Victims) -> (usize, i64, i64, usize, Reverse<i64>) {
    let (victims, violations) = found;
    let highest = victims.iter().map(|p| p.priority).max();
    let sum = victims.iter().map(|p| i64::from(p.priority) - i64::from(i32::MIN)).sum();
    let first = victims.iter().filter(|p| Some(p.priority) == highest).map(|p| p.started_ms).min();
    let highest = highest.map_or(i64::MIN, i64::from);
    (*violations, highest, sum, victims.len(), Reverse(first.unwrap_or(i64::MAX)))
}

/// May the pod push others out at all now?
fn eligible(snapshot: &Snapshot, pod: &PodInfo, helpable: &[&NodeSpec]) -> Result<(), Refused> {
    if pod.never_preempts {
        return Err(Refused::NotEligible("not eligible due to preemptionPolicy=Never."));
    }
    let promised = pod.id.as_ref().and_then(|id| snapshot.nominated_node(id));
    let Some(promised) = promised.filter(|n| helpable.iter().any(|h| h.name == *n)) else { return Ok(()) };
    let Some((_, node)) = snapshot.node(promised) else { return Ok(()) };
    let leaves = |(id, p): (&PodId, &Arc<PodInfo>)| {
        p.priority < pod.priority && (p.preempted || snapshot.nominations.going.contains(id))
    };
    if node.pods.iter().any(leaves) {
        return Err(Refused::NotEligible("not eligible due to a terminating pod on the nominated node."));
    }
    Ok(())
}

/// Splits pods, the important ones first, into those whose budget would be broken and the others.
fn by_budget(snapshot: &Snapshot, pods: Vec<Arc<PodInfo>>) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: BTreeMap<&PodId, i64> = BTreeMap::new();
    let mut breaks = |pod: &Arc<PodInfo>| {
        let Some((namespace, name)) = &pod.id else { return false };
        let mut broken = false;
        let mine = snapshot.budgets.iter().filter(|(id, b)| id.0 == *namespace && b.covers(name, pod));
        for (id, budget) in mine {
            let left = left.entry(id).or_insert(budget.allowed);
            *left -= 1;
            broken |= *left < 0;
        }
        broken
    };
    pods.into_iter().partition(|p| breaks(p))
}

/// The victims on one node and how many budgets break; else why the node does not help.
fn victims(
    snapshot: &Snapshot,
    subject: &mut Subject<'_>,
    spec: &NodeSpec,
    node: &NodeInfo,
) -> Result<Victims, Vec<String>> {
    let pod = subject.pod;
    let mut lesser: Vec<Arc<PodInfo>> =
        node.pods.values().filter(|p| p.priority < pod.priority).cloned().collect();
    if lesser.is_empty() {
        return Err(vec![NO_VICTIMS.into()]);
    }
    lesser.sort_by(|a, b| importance(a).cmp(&importance(b)));
    let promised: Vec<&Arc<PodInfo>> = snapshot.nominations.ahead_of(pod, &spec.name).collect();
    let mut trial = Trial::new(subject, spec, node);
    lesser.iter().for_each(|p| trial.remove(p));
    if let Some(((_, reasons), _)) = trial.objection_beside(&promised) {
        return Err(reasons);
    }
    let (breaking, harmless) = by_budget(snapshot, lesser);
    let (mut victims, mut violations) = (Vec::new(), 0);
    for (candidate, breaks) in
        breaking.into_iter().map(|p| (p, true)).chain(harmless.into_iter().map(|p| (p, false)))
    {
        trial.add(&candidate);
        if trial.objection_beside(&promised).is_some() {
            trial.remove(&candidate);
            violations += usize::from(breaks);
            victims.push(candidate);
        }
    }
    victims.sort_by(|a, b| importance(a).cmp(&importance(b)));
    Ok((victims, violations))
}

/// Finds the node whose pods are pushed out at least cost. `helpable`: nodes that an eviction could open; `all`: how
/// many there are.
pub fn preempt(
    snapshot: &Snapshot,
    subject: &mut Subject<'_>,
    helpable: &[&NodeSpec],
    all: usize,
) -> Result<Preemption, Refused> {
    let pod = subject.pod;
    eligible(snapshot, pod, helpable)?;
    let place = snapshot.groups.fence();
    let found = match snapshot.advice_of(pod).and_then(|advice| advice.victims.get(place)) {
        Some(left) => {
            let here =
                |node: &str, p: &PodInfo| p.id.as_ref().and_then(|id| snapshot.place_of(id)) == Some(node);
            let mut left = left.clone();
            left.retain(|node, (pods, _)| pods.iter().all(|p| here(node, p)));
            left
        }
        None => {
            let found = candidates(snapshot, subject, helpable, all)?;
            let consulted = |e: &Extender| !e.preempt_verb.is_empty() && e.is_interested(pod);
            if snapshot.extenders.iter().any(consulted) {
                return Err(Refused::Consult(Question::Victims(place.into(), found)));
            }
            found
        }
    };
    let best = found.into_iter().min_by_key(|(node, victims)| (cost(victims), node.clone()));
    let Some((node, (victims, _))) = best else {
        return Err(Refused::Hopeless("no candidate node for preemption".into()));
    };
    let displaced = snapshot.nominations.behind(pod, &node).cloned().collect();
    Ok(Preemption { node, victims, displaced })
}

/// The nodes whose pods could go, with those; at least one.
fn candidates(
    snapshot: &Snapshot,
    subject: &mut Subject<'_>,
    helpable: &[&NodeSpec],
    all: usize,
) -> Result<Candidates, Refused> {
    let pod = subject.pod;
    // More are a matter of luck and cost time on large clusters.
    let part = helpable.len() * subject.profile.candidates_percent / 100;
    let wanted = part.max(subject.profile.candidates_min).max(1);
    // Where to begin differs by pod, so that many at once do not all look at the same nodes.
    let begin = tie(&pod.id, "") as usize % helpable.len().max(1);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let (mut found, mut harmless) = (Candidates::new(), false);
    for at in helpable[begin..].iter().chain(&helpable[..begin]) {
        let Some((spec, node)) = snapshot.node(&at.name) else { continue };
        match victims(snapshot, subject, spec, node) {
            Ok(victims) => {
                harmless |= victims.1 == 0;
                found.insert(at.name.clone(), victims);
            }
            Err(why) => why.into_iter().for_each(|r| *reasons.entry(r).or_default() += 1),
        }
        if found.len() >= wanted && harmless {
            break;
        }
    }
    if found.is_empty() {
        if all > helpable.len() {
            *reasons.entry(NO_HELP.into()).or_default() += all - helpable.len();
        }
        return Err(Refused::Hopeless(crate::schedule::sentence(all, &reasons)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
