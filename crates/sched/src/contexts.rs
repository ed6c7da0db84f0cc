//! What was counted over all nodes for a pod serves the next one that asks the same: replicas, mostly.
//!
//! Invariant: a context that is kept equals one made anew; every placed and removed pod is counted in it, and a change
//! of nodes' labels or taints drops it.

use crate::interpod::PodContext;
use crate::model::{NodeSpec, PodInfo};
use std::sync::Arc;

/// Contexts kept: as many kinds of pods are scheduled in turns without counting anew.
const KEPT_MAX: usize = 8;

/// The contexts, the latest last.
#[derive(Clone, Debug, Default)]
pub struct Contexts(Vec<(Arc<PodInfo>, PodContext)>);

impl Contexts {
    /// Takes out the one that holds for this pod.
    pub fn take(&mut self, pod: &PodInfo) -> Option<PodContext> {
        let at = self.0.iter().rposition(|(known, _)| known.asks_the_same(pod))?;
        Some(self.0.remove(at).1)
    }

    /// Keeps one, in the state of the snapshot.
    pub fn keep(&mut self, pod: &Arc<PodInfo>, context: PodContext) {
        if self.0.len() == KEPT_MAX {
            self.0.remove(0);
        }
        self.0.push((pod.clone(), context));
    }

    /// A pod comes to a node (`by` 1) or leaves it (-1).
    pub fn count(&mut self, node: &NodeSpec, placed: &PodInfo, by: i64) {
        for (pod, context) in &mut self.0 {
            context.count_pod(pod, node, placed, by);
        }
    }

    /// Nodes changed.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
