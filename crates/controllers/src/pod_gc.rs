//! Pods that nobody else will remove: on nodes that are gone, or finished ones beyond a bound. And the condition that
//! tells, of whoever removes a pod, why.

use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use crate::workload;
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey, PatchKind, Verb, Write};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Finished pods that are kept for their logs, as upstream.
const FINISHED_MAX: usize = 12_500;
/// The taint by which an operator says that a node's pods and volumes may be had elsewhere.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// A pod whose node is missing is given this time: the node may just be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);
/// How often pods of nodes out of service are looked for: the same taint drives them away, some of them later.
const LOOK: Duration = Duration::from_secs(5);

struct Controller {
    context: Context,
    nodes: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Starts it. One key stands for the whole cluster: changes coalesce.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let (nodes, pods) = (context.informers.of(&gvr::NODES), context.informers.of(&gvr::PODS));
    let late = queue.clone();
    nodes.on_change(Box::new(move |_, new| match new {
        None => late.add_after(ObjectKey::cluster("all"), QUARANTINE),
        Some(node) if node.view::<core::Node>().is_ok_and(|n| is_out_of_service(&n)) => {
            late.add(ObjectKey::cluster("all"));
        }
        Some(_) => {}
    }));
    enqueue(&pods, &queue, |pod| {
        let concerns = pod.view::<core::Pod>().is_ok_and(|p| is_finished(&p) || waits_for_nobody(&p));
        concerns.then(|| ObjectKey::cluster("all")).into_iter().collect()
    });
    queue.add_after(ObjectKey::cluster("all"), QUARANTINE);
    let caches = vec![nodes.clone(), pods.clone()];
    run("podgc", caches, queue, 1, Arc::new(Controller { context: context.clone(), nodes, pods }))
}

fn is_finished(pod: &core::Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"))
}

/// Being deleted, and no node ever took it.
fn waits_for_nobody(pod: &core::Pod) -> bool {
    let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty()));
    pod.metadata.deletion_timestamp.is_some() && !bound
}

/// Its node is gone.
fn is_orphan(pod: &core::Pod, nodes: &BTreeSet<String>) -> bool {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_ref()).filter(|n| !n.is_empty());
    node.is_some_and(|n| !nodes.contains(n))
}

/// Is it going on a node that is down, of which its operator says that it does not come back soon?
fn is_abandoned(pod: &core::Pod, abandoned: &BTreeSet<String>) -> bool {
    let node = pod.spec.as_ref().and_then(|s| s.node_name.as_ref());
    pod.metadata.deletion_timestamp.is_some() && node.is_some_and(|n| abandoned.contains(n))
}

/// Is it not ready, and tainted as out of service?
fn is_out_of_service(node: &core::Node) -> bool {
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten());
    let mut conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    taints.any(|t| t.key == OUT_OF_SERVICE) && !conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The pods to remove; `abandoned` are the nodes out of service.
fn decide(pods: &[Arc<Object>], nodes: &BTreeSet<String>, abandoned: &BTreeSet<String>) -> Vec<Arc<Object>> {
    let mut gone = Vec::new();
    let mut finished = Vec::new();
    for object in pods {
        let Ok(pod) = object.view::<core::Pod>() else { continue };
        if is_orphan(&pod, nodes) || waits_for_nobody(&pod) || is_abandoned(&pod, abandoned) {
            gone.push(object.clone());
        } else if is_finished(&pod) {
            finished.push((object.meta().creation_timestamp.clone(), object.clone()));
        }
    }
    finished.sort_by(|a, b| a.0.cmp(&b.0));
    let surplus = finished.len().saturating_sub(FINISHED_MAX);
    gone.extend(finished.into_iter().take(surplus).map(|(_, object)| object));
    gone
}

/// The condition of a pod that is about to go, and why.
pub(crate) fn disruption_target(reason: &str, message: &str, now: Timestamp) -> Value {
    workload::condition("DisruptionTarget", "True", reason, message, now)
}

impl Context {
    /// Writes into a pod why it is about to go (Jobs may not count that as a failure), and a phase if there is a new
    /// one. A pod that is gone is no error.
    pub(crate) async fn disrupt(
        &self,
        pod: &Object,
        reason: &str,
        message: &str,
        phase: Option<&str>,
    ) -> Result<(), ApiError> {
        self.put_condition(pod, disruption_target(reason, message, self.now()), phase).await
    }

    /// Writes a phase into a pod's status. A pod that is gone is no error.
    async fn put_phase(&self, pod: &Object, phase: &str) -> Result<(), ApiError> {
        self.put_status(pod, json!({"phase": phase})).await
    }

    /// Writes a condition into a pod's status, and a phase if there is a new one. A pod that is gone is no error.
    pub(crate) async fn put_condition(
        &self,
        pod: &Object,
        condition: Value,
        phase: Option<&str>,
    ) -> Result<(), ApiError> {
        let mut status = json!({"conditions": [condition]});
        if let Some(phase) = phase {
            status["phase"] = json!(phase);
        }
        self.put_status(pod, status).await
    }

    async fn put_status(&self, pod: &Object, status: Value) -> Result<(), ApiError> {
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
        let verb = Verb::Patch(PatchKind::Strategic, patch);
        let write = Write { gvr: gvr::PODS, key: pod.key.clone(), subresource: "status", verb };
        let written = self.client.write(write).await.map(drop);
        written.or_else(|e| if e.is_not_found() || e.is_conflict() { Ok(()) } else { Err(e) })
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, _: &ObjectKey) -> Outcome {
        let nodes: BTreeSet<String> = self.nodes.list().iter().map(|n| n.key.name.to_string()).collect();
        let left = |n: &Arc<Object>| n.view::<core::Node>().is_ok_and(|n| is_out_of_service(&n));
        let abandoned: BTreeSet<String> =
            self.nodes.list().iter().filter(|n| left(n)).map(|n| n.key.name.to_string()).collect();
        for pod in decide(&self.pods.list(), &nodes, &abandoned) {
            let view = pod.view::<core::Pod>().ok().filter(|p| !is_finished(p));
            if view.as_ref().is_some_and(|p| is_orphan(p, &nodes)) {
                let why = "PodGC: node no longer exists";
                self.context.disrupt(&pod, "DeletionByPodGC", why, Some("Failed")).await?;
            } else if view.is_some_and(|p| is_abandoned(&p, &abandoned)) {
                self.context.put_phase(&pod, "Failed").await?;
            }
            let options = DeleteOptions {
                grace_period_seconds: Some(0),
                uid: Some(pod.uid().into()),
                ..DeleteOptions::default()
            };
            match self.context.client.delete(&gvr::PODS, &pod.key, options).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => tracing::info!(pod = %pod.key, "removed a pod that nobody else would"),
            }
        }
        Ok((!abandoned.is_empty()).then_some(LOOK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_orphans_and_the_forgotten_go() {
        let pod = |name: &str, node: &str, deleting: bool| {
            let mut value = json!({"metadata": {"name": name, "namespace": "n"},
                "spec": {"nodeName": node, "containers": []}, "status": {"phase": "Running"}});
            if deleting {
                value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            Arc::new(Object::parse(bytes::Bytes::from(value.to_string())).unwrap())
        };
        let pods = [
            pod("here", "a", false),
            pod("orphan", "b", false),
            pod("waiting", "", false),
            pod("forgotten", "", true),
        ];
        let gone: Vec<String> = decide(&pods, &["a".to_string()].into(), &BTreeSet::new())
            .iter()
            .map(|p| p.key.to_string())
            .collect();
        assert_eq!(gone, ["n/orphan", "n/forgotten"]);
        let pods = [pod("here", "a", false), pod("going", "a", true)];
        let gone = decide(&pods, &["a".to_string()].into(), &["a".to_string()].into());
        assert_eq!(gone[0].key.to_string(), "n/going", "on a node out of service");
        assert_eq!(gone.len(), 1);
    }
}
