//! Custom resources in the graph: watched from their definition's establishment to its end.

use super::Collector;
use crate::context::spawn;
use k8s_schema::Gvr;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Kinds that come within such a time are looked at together.
const GATHER_PAUSE: Duration = Duration::from_millis(50);
/// With thousands of kinds a look takes long: the pause is so many times that, up to [`GATHER_MAX`].
const GATHER_TIMES: u32 = 10;
const GATHER_MAX: Duration = Duration::from_millis(500);

/// A watch that ends with this value.
struct Followed {
    gvr: Gvr,
    resource: u16,
    task: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Follows the custom kinds until it is dropped.
pub async fn follow_all(collector: Arc<Collector>) {
    let mut followed: BTreeMap<String, Followed> = BTreeMap::new();
    let mut places: BTreeMap<String, u16> = BTreeMap::new();
    let mut changed = collector.kinds.changed();
    loop {
        let began = Instant::now();
        let kinds: BTreeMap<String, Gvr> =
            collector.kinds.all().into_iter().map(|k| (k.gvr.group_resource(), k.gvr)).collect();
        followed.retain(|name, followed| {
            let stays = kinds.get(name) == Some(&followed.gvr);
            if !stays && !kinds.contains_key(name) {
                // The definition took its objects along.
                let look = collector.graph.lock().replace(followed.resource, BTreeMap::new());
                collector.look_at(look);
            }
            stays
        });
        for (name, gvr) in kinds {
            if followed.contains_key(&name) {
                continue;
            }
            let Some(resource) = collector.place(&gvr, places.get(&name).copied()) else {
                tracing::warn!(resource = name, "more kinds than the collector can tell apart");
                continue;
            };
            places.insert(name.clone(), resource);
            let task = spawn(collector.clone().follow(resource));
            followed.insert(name, Followed { gvr, resource, task });
        }
        let pause = (began.elapsed() * GATHER_TIMES).clamp(GATHER_PAUSE, GATHER_MAX);
        if changed.changed().await.is_err() {
            return;
        }
        // Definitions come in crowds.
        tokio::time::sleep(pause).await;
    }
}

impl Collector {
    /// The place of a custom resource: the one that it had, or a new one. It stays where only its version changes.
    fn place(&self, gvr: &Gvr, had: Option<u16>) -> Option<u16> {
        let mut resources = self.resources.write();
        match had {
            Some(at) => resources[usize::from(at)] = gvr.clone(),
            None => resources.push(gvr.clone()),
        }
        had.or_else(|| u16::try_from(resources.len() - 1).ok())
    }
}
