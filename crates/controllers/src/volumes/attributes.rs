//! VolumeAttributesClasses stay while a claim or a volume has them, as claims stay while a pod uses them.

use super::{ATTRIBUTES_CLASSES as CLASSES, is_held, with, without};
use crate::context::{Context, Outcome, Reconcile, enqueue, enqueue_self, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{Object, ObjectKey};
use k8s_schema::Gvr;
use k8s_schema::gvr::{PERSISTENT_VOLUME_CLAIMS as CLAIMS, PERSISTENT_VOLUMES as VOLUMES};
use serde_json::Value;
use std::sync::Arc;
use tokio::task::JoinHandle;

const FINALIZER: &str = "kubernetes.io/vac-protection";
/// Where claims and volumes name classes.
const NAMES: [&str; 3] = [
    "/spec/volumeAttributesClassName",
    "/status/currentVolumeAttributesClassName",
    "/status/modifyVolumeStatus/targetVolumeAttributesClassName",
];

struct Controller {
    context: Context,
    classes: Arc<Cache>,
    users: [Arc<Cache>; 2],
}

/// The classes that a claim or a volume has, has asked for or is given.
fn names(user: &Value) -> impl Iterator<Item = &str> {
    NAMES.iter().filter_map(|at| user.pointer(at)?.as_str()).filter(|name| !name.is_empty())
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let of = |gvr: &Gvr| context.informers.of(gvr);
    let queue = Arc::new(Queue::default());
    let classes = of(&CLASSES);
    enqueue_self(&classes, &queue);
    let users = [of(&CLAIMS), of(&VOLUMES)];
    for cache in &users {
        // What it had before may be free now.
        enqueue(cache, &queue, |o| {
            let value = o.value().unwrap_or_default();
            names(&value).map(ObjectKey::cluster).collect()
        });
    }
    let caches = users.iter().chain([&classes]).cloned().collect();
    let controller = Controller { context: context.clone(), classes, users };
    run("volumeattributesclass-protection-controller", caches, queue, 1, Arc::new(controller))
}

impl Controller {
    fn is_used(&self, class: &Object) -> bool {
        let uses = |o: &Arc<Object>| o.value().is_ok_and(|v| names(&v).any(|name| name == &*class.key.name));
        self.users.iter().any(|cache| cache.list().iter().any(uses))
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(class) = self.classes.get(key) else { return Ok(None) };
        let patch = match (class.meta().deletion_timestamp.is_some(), is_held(&class, FINALIZER)) {
            (false, false) => with(&class, FINALIZER),
            (true, true) if !self.is_used(&class) => without(&class, FINALIZER),
            _ => return Ok(None),
        };
        match self.context.client.merge_patch(&CLASSES, key, patch).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_given_counts_as_what_is_had() {
        let claim = json!({"spec": {"volumeAttributesClassName": "a"}, "status": {
            "currentVolumeAttributesClassName": "b", "modifyVolumeStatus": {"targetVolumeAttributesClassName": "c"}}});
        assert_eq!(names(&claim).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(names(&json!({"spec": {"volumeAttributesClassName": ""}})).count(), 0);
    }
}
