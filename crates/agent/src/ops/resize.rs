//! Changing the resources of running containers: cgroup limits only, no process notices.

use super::{Node, instance_id};
use crate::config::resources;
use crate::decide::outcome::Outcome;
use crate::decide::resize::Resized;
use crate::pod::PodView;
use std::sync::Arc;

/// Gives the pod's cgroup and these containers what the pod asks for; of a part, the pod's what it can take.
pub async fn resize(node: Arc<Node>, pod: PodView, containers: Vec<(String, u32)>, part: bool) -> Outcome {
    let generation = pod.object.meta().generation;
    let result = try_resize(&node, &pod, containers, part).await;
    Outcome::Resized { generation, result }
}

async fn try_resize(
    node: &Node,
    pod: &PodView,
    containers: Vec<(String, u32)>,
    part: bool,
) -> Result<Resized, String> {
    let uid = pod.uid();
    let (runtime, facts) = (&node.runtime, &*node.facts);
    for (name, attempt) in &containers {
        let Some(view) = pod.container(name) else { continue };
        let limit = resources::container(pod, view, facts).memory.limit;
        let used =
            runtime.usage(uid, Some(&instance_id(name, *attempt))).unwrap_or_default().working_set_bytes;
        let used = i64::try_from(used).unwrap_or(i64::MAX);
        if let Some(limit) = limit.filter(|limit| *limit < used) {
            // The kernel would kill for it.
            return Err(format!(
                "container {name}: attempting to set memory limit ({limit}) below current usage ({used})"
            ));
        }
    }
    let whole = resources::pod(pod, facts);
    // No child may have more than its parent: what grows does so from above, what shrinks from below. The first
    // attempt fails where the pod shrinks, which the last one sets right.
    let _ = runtime.update_resources(uid, None, whole.clone()).await;
    let mut done = Vec::new();
    for (name, attempt) in containers {
        let Some(view) = pod.container(&name) else { continue };
        let id = instance_id(&name, attempt);
        let wanted = resources::container(pod, view, facts);
        runtime.update_resources(uid, Some(&id), wanted).await.map_err(|e| e.to_string())?;
        done.push((name, attempt, view.spec.resources.clone().unwrap_or_default()));
    }
    match runtime.update_resources(uid, None, whole).await {
        Err(error) if !part => Err(error.to_string()),
        _ => Ok(done),
    }
}
