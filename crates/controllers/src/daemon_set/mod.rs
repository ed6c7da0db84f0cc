//! DaemonSets: one pod on every node that fits.
//!
//! [`decide`] says which pods come and go; the shell judges the nodes with the scheduler's own rules, keeps the history
//! of templates and the pods. The scheduler binds the pods: each names its node in a required affinity.

mod decide;
#[cfg(test)]
mod tests;

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use crate::owner::{Claimant, Kind, OwnedIndex, enqueue_owners};
use crate::revision::{CONTROLLER_REVISIONS, HASH_LABEL, History};
use crate::workload::{self, BURST, Doomed, PodControl};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::EventType;
use client::queue::Queue;
use client::{Object, ObjectKey};
use decide::{Daemon, Fit, Plan, Scene, Set, decide, fit};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::{View, gvr};
use machinery::status::ApiError;
use sched::{NodeSpec, PodInfo};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Sets looked at at the same time.
const WORKERS: usize = 2;

static DAEMON_SET: Kind = Kind { gvr: gvr::DAEMON_SETS, api_version: "apps/v1", kind: "DaemonSet" };

/// Taints that daemons bear: key and effect. The last one only where a pod has its node's network.
const TOLERATED: [(&str, &str); 7] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ("node.kubernetes.io/network-unavailable", "NoSchedule"),
];

struct Controller {
    context: Context,
    sets: Arc<Cache>,
    nodes: Arc<Cache>,
    pods: Arc<Cache>,
    pod_index: Arc<OwnedIndex>,
    revisions: Arc<Cache>,
    revision_index: Arc<OwnedIndex>,
    doomed: Doomed,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let of = |gvr| context.informers.of(gvr);
    let pods = context.informers.of(&gvr::PODS);
    let controller = Controller {
        context: context.clone(),
        sets: of(&gvr::DAEMON_SETS),
        nodes: of(&gvr::NODES),
        pod_index: context.informers.owned(&gvr::PODS),
        revisions: of(&CONTROLLER_REVISIONS),
        revision_index: context.informers.owned(&CONTROLLER_REVISIONS),
        doomed: Doomed::start(&pods),
        pods,
    };
    enqueue_self(&controller.sets, &queue);
    enqueue_owners(&DAEMON_SET, &controller.pods, &controller.sets, &queue, selects);
    let (sets, all) = (Arc::downgrade(&controller.sets), queue.clone());
    controller.nodes.on_change(Box::new(move |old, new| {
        let Some(sets) = sets.upgrade().filter(|_| fits_otherwise(old, new)) else { return };
        sets.list().iter().for_each(|set| all.add(set.key.clone()));
    }));
    let caches = [&controller.sets, &controller.nodes, &controller.pods, &controller.revisions];
    let caches = caches.into_iter().cloned().collect();
    run("daemonset", caches, queue, WORKERS, Arc::new(controller))
}

fn selects(set: &Object, pod: &Object) -> bool {
    Set::read(set).is_some_and(|s| !s.selector.is_everything() && s.selector.matches(&pod.meta().labels))
}

/// Did something change that decides which pods a node takes? (Most changes of nodes are heartbeats.)
fn fits_otherwise(old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) -> bool {
    let facts = |o: &Arc<Object>| {
        o.view::<core::Node>().ok().map(|n| NodeSpec::read(&n)).map(|n| (n.labels, n.taints))
    };
    old.map(facts) != new.map(facts)
}

/// The body of a pod for a node, as the scheduler will see it.
fn pod_body(set: &Set, owner: &Object, hash: &str, node: &str) -> Value {
    let mut body = workload::pod_of_template(&set.template, owner, DAEMON_SET.reference(owner));
    body["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let spec = &mut body["spec"];
    let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
    let borne = if spec["hostNetwork"] == true { &TOLERATED[..] } else { &TOLERATED[..TOLERATED.len() - 1] };
    for (key, effect) in borne {
        let same = |t: &Value| t["key"] == *key && t["effect"] == *effect && t["operator"] == "Exists";
        if !tolerations.iter().any(same) {
            tolerations.push(json!({"key": key, "operator": "Exists", "effect": effect}));
        }
    }
    spec["tolerations"] = json!(tolerations);
    let field = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] =
        json!({"nodeSelectorTerms": [{"matchFields": [field]}]});
    body
}

/// The template as a pod for no node yet: with its own affinity and the tolerations of a daemon.
fn model_pod(set: &Set, owner: &Object) -> Result<PodInfo, ApiError> {
    let mut body = pod_body(set, owner, "", "");
    body["spec"]["affinity"] = set.template["spec"]["affinity"].clone();
    body["metadata"]["name"] = json!("");
    let pod = core::Pod::decode(body.to_string().as_bytes()).map_err(ApiError::internal)?;
    Ok(PodInfo::read(&pod))
}

impl Controller {
    /// How every node and the set's pods go together.
    fn judge_nodes(&self, set: &Set, owner: &Object) -> Result<BTreeMap<String, Fit>, ApiError> {
        let pod = model_pod(set, owner)?;
        let wanted = set.template["spec"]["nodeName"].as_str().filter(|n| !n.is_empty());
        let judged = self.nodes.list().into_iter().filter_map(|node| {
            let spec = NodeSpec::read(&*node.view::<core::Node>().ok()?);
            Some((node.key.name.to_string(), fit(&pod, wanted, &spec)))
        });
        Ok(judged.collect())
    }

    async fn act(
        &self,
        owner: &Arc<Object>,
        scene: &Scene<'_>,
        pods: &[Arc<Object>],
        plan: &Plan,
    ) -> Result<(), ApiError> {
        let control = PodControl {
            context: &self.context,
            kind: &DAEMON_SET,
            owner,
            pods: &self.pods,
            doomed: &self.doomed,
        };
        for i in &plan.failed {
            let (node, key) = (&scene.daemons[*i].node, &pods[*i].key);
            let message = format!("Found failed daemon pod {key} on node {node}, will try to kill it");
            let subject = DAEMON_SET.subject(owner);
            self.context.recorder.record(subject, EventType::Warning, "FailedDaemonPod", message);
        }
        let victims: Vec<&Arc<Object>> = plan.delete.iter().take(BURST).map(|i| &pods[*i]).collect();
        let deleted = join_all(victims.iter().map(|p| control.delete(&p.key, p.uid()))).await;
        let one = |i: usize| {
            let (control, body) = (&control, pod_body(scene.set, owner, scene.hash, &plan.create[i]));
            async move { control.create(body).await.map(drop) }
        };
        let (_, failure) = workload::slow_start(plan.create.len().min(BURST), one).await;
        match deleted.into_iter().find_map(Result::err).or(failure) {
            Some(error) if !workload::is_namespace_going(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.sets.get(key) else { return Ok(None) };
        let Some(set) = Set::read(&object).filter(|s| !s.selector.is_everything()) else { return Ok(None) };
        if object.meta().deletion_timestamp.is_some() {
            return Ok(None);
        }
        let (context, kind) = (&self.context, &DAEMON_SET);
        let claimant = Claimant {
            context,
            kind,
            owner: &object,
            cache: &self.pods,
            index: &self.pod_index,
            gvr: &gvr::PODS,
        };
        let owned = claimant.claim(&set.selector).await?;
        let history =
            History { context, kind, owner: &object, cache: &self.revisions, index: &self.revision_index };
        let all = history.keep(&set.selector, &set.template).await?;
        let hash = all.last().map(|r| r.hash.clone()).unwrap_or_default();
        let nodes = self.judge_nodes(&set, &object)?;
        let mut daemons: Vec<Daemon> = owned.iter().map(Daemon::read).collect();
        // One whose deletion the cache does not show yet is on its way out, and still holds its node.
        daemons.iter_mut().for_each(|d| d.facts.deleting |= self.doomed.contains(&d.facts.uid));
        let scene =
            Scene { set: &set, nodes: &nodes, daemons: &daemons, hash: &hash, now: self.context.now() };
        let plan = decide(&scene);
        let done = self.act(&object, &scene, &owned, &plan).await;
        let wanted = decide::status(&scene, object.meta().generation);
        if let Some(patch) = workload::status_patch(&set.status, &wanted) {
            match self.context.client.merge_patch_status(&gvr::DAEMON_SETS, key, patch).await {
                Ok(stored) => self.sets.observe(stored),
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        done?;
        let hashes: BTreeSet<&str> = daemons.iter().map(|d| d.hash.as_str()).chain([hash.as_str()]).collect();
        let used = all.iter().filter(|r| hashes.contains(r.hash.as_str())).map(|r| r.name.clone()).collect();
        history.trim(&all, &used, set.history_limit).await?;
        let next =
            workload::next_available(daemons.iter().map(|d| &d.facts), set.min_ready_seconds, scene.now);
        Ok([plan.again, next].into_iter().flatten().min())
    }
}
