//! PodGroups: pods of a gang are placed all at once (as many as the group wants at least) or not at all, within one
//! domain where the group says so.
//!
//! A try places the pods one after the other in the snapshot, as if victims that they need were gone; then it is kept or
//! taken back to the last detail. Words are upstream's.
//! Deliberately not here: which pods may be tried (all there?): the queue (`controllers`). Preemption is by pod; a
//! group's own priority and disruption mode do not exist.

use crate::model::{NodeSpec, PodId, PodInfo, Snapshot};
use crate::preempt::Preemption;
use crate::schedule::{Diagnosis, Plan, Rescue, decide};
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const UNSCHEDULABLE: &str = "pod group is unschedulable";
const TOO_FEW: &str = "pod group is unschedulable, waiting for minCount pods from a gang to be scheduled";
const WAITS: &str = "pod group is unschedulable, pod group is waiting for preemption to complete";
/// The plug-in that keeps pods back whose group cannot be placed.
const PLUGIN: &str = "GangScheduling";

/// What a PodGroup asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// So many of its pods at once; 1 without a gang.
    pub min: usize,
    /// Node label whose value must be the same for all.
    pub topology: Option<String>,
}

impl Group {
    /// Reads a PodGroup; `topology`: do its constraints count?
    pub fn read(group: &Value, topology: bool) -> Group {
        let min = group["spec"]["schedulingPolicy"]["gang"]["minCount"].as_u64();
        let key = group["spec"]["schedulingConstraints"]["topology"][0]["key"].as_str();
        Group {
            min: min.and_then(|n| usize::try_from(n).ok()).unwrap_or(1).max(1),
            topology: key.filter(|_| topology).map(str::to_string),
        }
    }
}

/// The groups, and which of their pods stand somewhere.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    known: BTreeMap<PodId, Group>,
    placed: BTreeMap<PodId, BTreeSet<PodId>>,
    /// During a try: the only nodes asked are those with this label.
    fence: Option<(String, String)>,
}

impl Groups {
    /// Adds, replaces or (`None`) removes a group.
    pub fn set(&mut self, id: PodId, group: Option<Group>) {
        match group {
            Some(group) => drop(self.known.insert(id, group)),
            None => drop(self.known.remove(&id)),
        }
    }

    /// What a group asks for.
    pub fn get(&self, id: &PodId) -> Option<&Group> {
        self.known.get(id)
    }

    pub(crate) fn knows(&self, id: &PodId) -> bool {
        self.known.contains_key(id)
    }

    /// May the node be asked in this try?
    pub(crate) fn admits(&self, node: &NodeSpec) -> bool {
        self.fence.as_ref().is_none_or(|(key, value)| node.labels.get(key) == Some(value))
    }

    /// The domain that is tried, "" for none.
    pub(crate) fn fence(&self) -> &str {
        self.fence.as_ref().map_or("", |(_, value)| value)
    }

    /// A pod came to a node (`there`) or left it.
    pub(crate) fn placed(&mut self, pod: &PodInfo, there: bool) {
        let (Some(group), Some(id)) = (&pod.group, &pod.id) else { return };
        if there {
            self.placed.entry(group.clone()).or_default().insert(id.clone());
        } else if let Some(pods) = self.placed.get_mut(group) {
            pods.remove(id);
            if pods.is_empty() {
                self.placed.remove(group);
            }
        }
    }

    fn placed_of(&self, id: &PodId) -> impl Iterator<Item = &PodId> {
        self.placed.get(id).into_iter().flatten()
    }
}

/// What came of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As many as it wants have a node.
    Scheduled,
    /// They have not, because.
    Unschedulable(String),
    /// It makes no sense, because.
    Wrong(String),
}

/// What came of one pod in a try.
enum Outcome {
    Fits(String),
    /// It fits when these are gone.
    Preempts(Box<Diagnosis>),
    Refused(Box<Diagnosis>),
}

/// What takes a step of a try back.
enum Undo {
    /// The pod was placed; it was promised that node before.
    Placed(Arc<PodInfo>, Option<String>),
    /// A victim was taken from this node; was it going already?
    Removed(Arc<PodInfo>, String, bool),
}

/// A try: what came of each pod, and how to take it back.
struct Try {
    outcomes: Vec<Outcome>,
    undo: Vec<Undo>,
    next: String,
    /// How many pods of the group stand somewhere then.
    placed: usize,
}

impl Try {
    fn preempts(&self) -> bool {
        self.outcomes.iter().any(|o| matches!(o, Outcome::Preempts(..)))
    }
}

/// Decides for the waiting pods of a group, in this order.
pub fn schedule(snapshot: &mut Snapshot, id: &PodId, pods: &[&Arc<PodInfo>], plan: &mut Plan) {
    let Some(group) = snapshot.groups.get(id).cloned() else { return };
    let names: BTreeSet<&str> = pods.iter().map(|p| p.scheduler()).collect();
    if let [one, other, ..] = names.into_iter().collect::<Vec<_>>()[..] {
        let why = format!(
            "all pods in a single pod group should have the same .spec.schedulerName set, got: {one:?} and {other:?}"
        );
        pods.iter().for_each(|pod| {
            plan.refuse(snapshot, pod, Diagnosis::wrong(&why, Rescue::Hopeless(String::new())))
        });
        return plan.groups.push((id.clone(), Verdict::Wrong(why)));
    }
    let placed = place(snapshot, (id, &group), pods, plan);
    snapshot.groups.fence = None;
    if let Err((pod, diagnosis)) = placed {
        plan.refuse(snapshot, &pod, *diagnosis);
    }
}

/// A pod about which extenders must be asked before the group can be decided for.
type Unasked = (Arc<PodInfo>, Box<Diagnosis>);

/// Tries what there is to try and keeps the best; nothing has changed where somebody must be asked.
fn place(
    snapshot: &mut Snapshot,
    (id, group): (&PodId, &Group),
    pods: &[&Arc<PodInfo>],
    plan: &mut Plan,
) -> Result<(), Unasked> {
    let Some(key) = &group.topology else {
        let tried = attempt(snapshot, id, pods)?;
        settle(snapshot, (id, group), pods, tried, plan);
        return Ok(());
    };
    let domains = domains(snapshot, id, key);
    let mut best: Option<(bool, Reverse<usize>, &String)> = None;
    for value in &domains {
        snapshot.groups.fence = Some((key.clone(), value.clone()));
        let tried = attempt(snapshot, id, pods)?;
        let good = tried.placed >= group.min;
        let rank = (tried.preempts(), Reverse(tried.placed), value);
        take_back(snapshot, tried);
        best = [best, good.then_some(rank)].into_iter().flatten().min();
    }
    // The best one once more, to keep it; where none will do, the first one's words are told.
    let chosen = best.map(|(.., value)| value).or(domains.first());
    snapshot.groups.fence = Some((key.clone(), chosen.cloned().unwrap_or_default()));
    let tried = attempt(snapshot, id, pods)?;
    settle(snapshot, (id, group), pods, tried, plan);
    if let (None, Some((_, verdict))) = (best, plan.groups.last_mut()) {
        let n = domains.len();
        *verdict = Verdict::Unschedulable(format!(
            "0/{n} placements are available, first placement status: {UNSCHEDULABLE}"
        ));
    }
    Ok(())
}

/// The domains to try: that of the group's placed pods, if there are such; else all.
fn domains(snapshot: &Snapshot, id: &PodId, key: &str) -> Vec<String> {
    let of = |node: &NodeSpec| node.labels.get(key).cloned();
    let taken = snapshot.groups.placed_of(id).filter_map(|pod| snapshot.node(snapshot.place_of(pod)?));
    let taken: BTreeSet<String> = taken.filter_map(|(node, _)| of(node)).collect();
    let all = || snapshot.nodes().filter_map(|(node, _)| of(node)).collect::<BTreeSet<_>>();
    (if taken.is_empty() { all() } else { taken }).into_iter().collect()
}

/// Places the pods as far as they fit.
fn attempt(snapshot: &mut Snapshot, id: &PodId, pods: &[&Arc<PodInfo>]) -> Result<Try, Unasked> {
    let mut tried = Try { outcomes: Vec::new(), undo: Vec::new(), next: snapshot.next.clone(), placed: 0 };
    for pod in pods {
        let promised = pod.id.as_ref().and_then(|id| snapshot.nominated_node(id)).map(str::to_string);
        let outcome = match decide(snapshot, pod) {
            Ok(node) => Outcome::Fits(node),
            Err(diagnosis) => match diagnosis.rescue.clone() {
                Rescue::Found(found) => {
                    for victim in &found.victims {
                        let Some(id) = &victim.id else { continue };
                        let going = snapshot.nominations.going.contains(id);
                        snapshot.remove_pod(id);
                        tried.undo.push(Undo::Removed(victim.clone(), found.node.clone(), going));
                    }
                    snapshot.place(&found.node, (*pod).clone());
                    Outcome::Preempts(diagnosis)
                }
                Rescue::Consult(_) => {
                    take_back(snapshot, tried);
                    return Err(((*pod).clone(), diagnosis));
                }
                _ => Outcome::Refused(diagnosis),
            },
        };
        if !matches!(outcome, Outcome::Refused(_)) {
            tried.undo.push(Undo::Placed((*pod).clone(), promised));
        }
        tried.outcomes.push(outcome);
    }
    tried.placed = snapshot.groups.placed_of(id).count();
    Ok(tried)
}

/// Leaves the snapshot as it was before the try.
fn take_back(snapshot: &mut Snapshot, tried: Try) {
    for step in tried.undo.into_iter().rev() {
        match step {
            Undo::Placed(pod, promised) => {
                if let Some(id) = &pod.id {
                    snapshot.remove_pod(id);
                    snapshot.volumes.forget(id);
                }
                promised.into_iter().for_each(|node| snapshot.nominate(&node, pod.clone()));
            }
            Undo::Removed(pod, node, going) => {
                let id = pod.id.clone();
                snapshot.place(&node, pod);
                snapshot.nominations.going.extend(id.filter(|_| going));
            }
        }
    }
    snapshot.next = tried.next;
}

/// A pod that would fit by itself.
fn kept_back(why: &str, rescue: Rescue) -> Diagnosis {
    Diagnosis::kept_back(PLUGIN, why, rescue)
}

/// Keeps the try where it is enough and nobody must go first; takes it back otherwise.
fn settle(
    snapshot: &mut Snapshot,
    (id, group): (&PodId, &Group),
    pods: &[&Arc<PodInfo>],
    mut tried: Try,
    plan: &mut Plan,
) {
    let (enough, preempts) = (tried.placed >= group.min, tried.preempts());
    let outcomes = std::mem::take(&mut tried.outcomes);
    let verdict = match (enough, preempts) {
        (true, false) => Verdict::Scheduled,
        (true, true) => Verdict::Unschedulable(WAITS.into()),
        (false, _) => Verdict::Unschedulable(UNSCHEDULABLE.into()),
    };
    if verdict != Verdict::Scheduled {
        take_back(snapshot, tried);
    }
    // While victims of an earlier try are leaving, promises stay.
    let pending = |o: &Outcome| matches!(o, Outcome::Refused(d) if matches!(&d.rescue, Rescue::NotEligible(w) if !w.is_empty()));
    let pending = outcomes.iter().any(pending);
    let freed = || match pending {
        true => Rescue::NotEligible(String::new()),
        false => Rescue::Hopeless(String::new()),
    };
    let promise =
        |node: String| Rescue::Found(Preemption { node, victims: Vec::new(), displaced: Vec::new() });
    for (pod, outcome) in pods.iter().zip(outcomes) {
        match outcome {
            Outcome::Fits(node) if enough && !preempts => plan.bindings.push(((*pod).clone(), node)),
            Outcome::Fits(node) if enough => plan.refuse(snapshot, pod, kept_back(WAITS, promise(node))),
            Outcome::Preempts(diagnosis) if enough => plan.refuse(snapshot, pod, *diagnosis),
            Outcome::Fits(_) | Outcome::Preempts(..) => {
                plan.refuse(snapshot, pod, kept_back(TOO_FEW, freed()));
            }
            Outcome::Refused(diagnosis) => plan.refuse(snapshot, pod, *diagnosis),
        }
    }
    plan.groups.push((id.clone(), verdict));
}

#[cfg(test)]
mod tests;
