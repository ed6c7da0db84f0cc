//! Mounting a pod's volumes: gather objects and tokens, then write on a blocking thread.

use super::{Mounted, Node, blocking, tokens::tokens};
use crate::decide::outcome::Outcome;
use crate::pod::PodView;
use crate::volumes::{Context, mount_all, references};
use jiff::Timestamp;
use std::sync::Arc;

/// Mounts (or refreshes) all volumes.
pub async fn volumes(node: Arc<Node>, pod: PodView) -> (Outcome, Option<Mounted>) {
    if pod.spec().volumes.as_ref().is_none_or(Vec::is_empty) {
        return (Outcome::Volumes(Ok(None)), Some(Mounted::default()));
    }
    let tokens = tokens(&node, &pod).await;
    let refresh_at = tokens.values().flatten().map(|t| t.refresh_at).min();
    let refresh = refresh_at.map(|at| at.duration_since(Timestamp::now()));
    let objects = match node.objects.snapshot(pod.namespace(), &references(&pod)).await {
        Ok(objects) => objects,
        Err(error) => return (Outcome::Volumes(Err(error)), None),
    };
    let facts = node.facts.clone();
    let done = blocking(move || {
        let context = Context { pod: &pod, facts: &facts, objects: &objects, tokens: &tokens, pod_ips: &[] };
        mount_all(&context)
    });
    match done.await.and_then(|mounted| mounted) {
        Ok(mounted) => (Outcome::Volumes(Ok(refresh)), Some(Arc::new(mounted))),
        Err(error) => (Outcome::Volumes(Err(error)), None),
    }
}
