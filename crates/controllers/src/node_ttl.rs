//! How long nodes may keep Secrets and ConfigMaps without asking again: an annotation that grows with the cluster, for
//! agents that go by it. [`step`] is pure.

use crate::context::{Context, Outcome, Reconcile, run};
use async_trait::async_trait;
use client::ObjectKey;
use client::cache::Cache;
use client::queue::Queue;
use k8s_schema::gvr;
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;
use tokio::task::JoinHandle;

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";
/// There is one job, whatever changed: look at every node.
const ALL: &str = "all";
/// Upstream's steps: fewer nodes than the first number lead to the step before, more than the second to the next one;
/// the third are the seconds.
const STEPS: [(usize, usize, u32); 5] =
    [(0, 100, 0), (90, 500, 15), (450, 1_000, 30), (900, 2_000, 60), (1_800, usize::MAX, 300)];

struct Controller {
    context: Context,
    nodes: Arc<Cache>,
    step: Mutex<usize>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let nodes = context.informers.of(&gvr::NODES);
    let all = queue.clone();
    // Most changes of nodes are heartbeats.
    nodes.on_change(Box::new(move |old, new| {
        let note = |o: &Arc<client::Object>| o.meta().annotations.get(ANNOTATION).cloned();
        if old.map(note) != new.map(note) {
            all.add(ObjectKey::cluster(ALL));
        }
    }));
    let controller = Controller { context: context.clone(), nodes: nodes.clone(), step: Mutex::new(0) };
    run("ttl", vec![nodes], queue, 1, Arc::new(controller))
}

/// The step for so many nodes, coming from another one: steps overlap, so that a node more or less changes nothing.
fn step(from: usize, nodes: usize) -> usize {
    let mut step = from;
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, _: &ObjectKey) -> Outcome {
        let nodes = self.nodes.list();
        let seconds = {
            let mut now = self.step.lock();
            *now = step(*now, nodes.len());
            STEPS[*now].2.to_string()
        };
        for node in nodes.iter().filter(|n| n.meta().annotations.get(ANNOTATION) != Some(&seconds)) {
            let patch = json!({"metadata": {"uid": node.uid(), "annotations": {ANNOTATION: seconds}}});
            match self.context.client.merge_patch(&gvr::NODES, &node.key, patch).await {
                Ok(written) => self.nodes.observe(written),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::step;

    #[test]
    fn steps_overlap() {
        let walk = |sizes: &[usize]| {
            let mut at = 0;
            sizes
                .iter()
                .map(|nodes| {
                    at = step(at, *nodes);
                    at
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(walk(&[0, 100, 101, 90, 89, 101]), [0, 0, 1, 1, 0, 1]);
        assert_eq!(walk(&[5_000, 1_800, 1_799, 3]), [4, 4, 3, 0]);
    }
}
