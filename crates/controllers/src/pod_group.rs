//! PodGroups (where the feature is on): one that is deleted stays while a pod of it is not done yet.
//!
//! Deliberately not here: placing the pods (`sched`), and the finalizer of new groups (the API server's admission).

use crate::context::{Context, Outcome, Reconcile, enqueue, enqueue_self, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{Object, ObjectKey};
use k8s_openapi::api::core::v1 as core;
use k8s_schema::{gates, gvr};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::task::JoinHandle;

const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

/// The pods of each group that are not done yet.
type Users = BTreeMap<ObjectKey, BTreeSet<ObjectKey>>;

struct Controller {
    context: Context,
    groups: Arc<Cache>,
    users: Arc<Mutex<Users>>,
}

/// The group of a pod that is not done yet.
fn used(pod: &Object) -> Option<ObjectKey> {
    let view = pod.view::<core::Pod>().ok()?;
    let phase = view.status.as_ref().and_then(|s| s.phase.as_deref());
    let name = view.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.as_deref()?;
    let done = matches!(phase, Some("Succeeded" | "Failed"));
    (!done).then(|| ObjectKey::new(pod.key.namespace.clone(), name))
}

/// Starts it, if there are such groups.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    if !context.config.gates.on(gates::GENERIC_WORKLOAD) {
        return Vec::new();
    }
    let queue = Arc::new(Queue::default());
    let (groups, pods) = (context.informers.of(&gvr::POD_GROUPS), context.informers.of(&gvr::PODS));
    let users = Arc::<Mutex<Users>>::default();
    let known = users.clone();
    // Before the queue's own handler: who is woken by a change finds it counted.
    pods.on_change(Box::new(move |old, new| {
        let mut known = known.lock();
        if let Some((group, old)) = old.and_then(|old| Some((used(old)?, old)))
            && let Some(pods) = known.get_mut(&group)
        {
            pods.remove(&old.key);
            if pods.is_empty() {
                known.remove(&group);
            }
        }
        if let Some((group, new)) = new.and_then(|new| Some((used(new)?, new))) {
            known.entry(group).or_default().insert(new.key.clone());
        }
    }));
    enqueue_self(&groups, &queue);
    enqueue(&pods, &queue, |pod| used(pod).into_iter().collect());
    let caches = vec![groups.clone(), pods];
    run(
        "podgroupprotection",
        caches,
        queue,
        1,
        Arc::new(Controller { context: context.clone(), groups, users }),
    )
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(group) = self.groups.get(key) else { return Ok(None) };
        let finalizers = &group.meta().finalizers;
        let going = group.meta().deletion_timestamp.is_some() && finalizers.iter().any(|f| f == FINALIZER);
        if !going || self.users.lock().contains_key(key) {
            return Ok(None);
        }
        let rest: Vec<&String> = finalizers.iter().filter(|f| *f != FINALIZER).collect();
        let patch = json!({"metadata": {"uid": group.uid(), "resourceVersion": group.revision.to_string(),
            "finalizers": rest}});
        match self.context.client.merge_patch(&gvr::POD_GROUPS, key, patch).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(None),
        }
    }
}
