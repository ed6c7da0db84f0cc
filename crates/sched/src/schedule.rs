//! The decision itself: for each waiting pod in turn, filter, score, place; or say why not.

use crate::filter::{FILTERS, Question};
use crate::interpod::PodContext;
use crate::model::{PodId, PodInfo, Snapshot};
use crate::score;
use crate::volumes::{Needs, Step};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Why a pod found no node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// How many nodes there are.
    pub nodes: usize,
    /// Reason → how many nodes gave it.
    pub reasons: BTreeMap<String, usize>,
    /// Nodes that no eviction could open to the pod.
    pub unresolvable: usize,
    /// Why no node was asked at all, "" where they were.
    pub before: String,
}

impl Diagnosis {
    /// The sentence of the pod's condition and event, in upstream's words.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut reasons: Vec<String> = self.reasons.iter().map(|(r, n)| format!("{n} {r}")).collect();
        reasons.extend(Some(self.before.clone()).filter(|b| !b.is_empty()));
        reasons.sort();
        let preemption = [
            (self.nodes - self.unresolvable, "No preemption victims found for incoming pod"),
            (self.unresolvable, "Preemption is not helpful for scheduling"),
        ];
        let mut preemption: Vec<String> =
            preemption.iter().filter(|(n, _)| *n > 0).map(|(n, words)| format!("{n} {words}")).collect();
        preemption.sort();
        format!(
            "0/{n} nodes are available: {}. preemption: 0/{n} nodes are available: {}.",
            reasons.join(", "),
            preemption.join(", "),
            n = self.nodes
        )
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

/// Decides for every waiting pod, highest priority first (then in the order given). Placements are assumed in
/// the snapshot; the caller takes back ([`Snapshot::remove_pod`]) those that it cannot bind.
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
            Err(diagnosis) => plan.unschedulable.push((pod.clone(), diagnosis)),
        }
    }
    plan
}

/// Node and what must be written before the pod is bound there.
type Place = (String, Vec<Step>);

fn place(snapshot: &Snapshot, pod: &PodInfo) -> Result<Place, Diagnosis> {
    let volumes = snapshot.volumes.needs(pod, snapshot).map_err(|before| {
        let nodes = snapshot.nodes().count();
        Diagnosis { nodes, unresolvable: nodes, before, ..Diagnosis::default() }
    })?;
    place_with(snapshot, pod, &volumes)
}

fn place_with(snapshot: &Snapshot, pod: &PodInfo, volumes: &Needs<'_>) -> Result<Place, Diagnosis> {
    let context = PodContext::new(snapshot, pod);
    let mut diagnosis = Diagnosis::default();
    let mut feasible = Vec::new();
    for (spec, node) in snapshot.nodes() {
        diagnosis.nodes += 1;
        let question = Question { pod, spec, node, context: &context, volumes };
        let objections =
            FILTERS.iter().map(|row| (row, (row.filter)(&question))).find(|(_, r)| !r.is_empty());
        match objections {
            None => feasible.push(question),
            Some((row, reasons)) => {
                diagnosis.unresolvable += usize::from(!row.resolvable);
                for reason in reasons {
                    *diagnosis.reasons.entry(reason).or_default() += 1;
                }
            }
        }
    }
    let totals = score::totals(&feasible);
    // Ties go to the node that a hash of pod and node prefers: even, yet the same at every run.
    let best = feasible.iter().zip(totals).max_by_key(|(q, total)| (*total, tie(&pod.id, &q.spec.name)));
    best.map(|(q, _)| (q.spec.name.clone(), volumes.steps(q.spec).unwrap_or_default())).ok_or(diagnosis)
}

/// FNV-1a over pod and node names.
fn tie(pod: &Option<PodId>, node: &str) -> u64 {
    let names = pod.iter().flat_map(|(ns, name)| ns.bytes().chain(name.bytes())).chain(node.bytes());
    names.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests;
