//! DaemonSets: one pod on every node that fits.
//!
//! [`decide`] says which pods come and go; the shell judges the nodes with the scheduler's own rules, keeps the history
//! of templates and the pods. The scheduler binds the pods: each names its node in a required affinity.

mod decide;
#[cfg(test)]
mod tests;

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use crate::owner::{Kind, enqueue_owners};
use crate::revision::{HASH_LABEL, Templated};
use crate::workload::{self, BURST, Doomed, PodControl};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::EventType;
use client::queue::Queue;
use client::{Object, ObjectKey};
use decide::{Daemon, Failures, Fit, Plan, Scene, Set, decide, fit};
use futures_util::future::join_all;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::{View, gvr};
use machinery::status::ApiError;
use parking_lot::Mutex;
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
    home: Templated,
    nodes: Arc<Cache>,
    doomed: Doomed,
    /// Failed pods of each set.
    failures: Mutex<BTreeMap<ObjectKey, (Generation, Failures)>>,
}

/// What failures are counted for: a set's UID and generation.
type Generation = (String, i64);

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let home = Templated::new(context, &DAEMON_SET);
    let (nodes, doomed) = (context.informers.of(&gvr::NODES), Doomed::start(&home.pods));
    enqueue_self(&home.sets, &queue);
    enqueue_owners(&DAEMON_SET, &home.pods, &home.sets, &queue, selects);
    let (sets, all) = (Arc::downgrade(&home.sets), queue.clone());
    nodes.on_change(Box::new(move |old, new| {
        let Some(sets) = sets.upgrade().filter(|_| fits_otherwise(old, new)) else { return };
        sets.list().iter().for_each(|set| all.add(set.key.clone()));
    }));
    let mut caches = home.caches();
    caches.push(nodes.clone());
    let controller = Controller { home, nodes, doomed, failures: Mutex::default() };
    run("daemonset", caches, queue, WORKERS, Arc::new(controller))
}

fn generation(set: &Object) -> Generation {
    (set.uid().to_string(), set.meta().generation)
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

    /// Failures under this generation of the set: a new one begins anew.
    fn failures_of(&self, object: &Object) -> Failures {
        let all = self.failures.lock();
        let known = all.get(&object.key).filter(|(of, _)| *of == generation(object));
        known.map(|(_, failures)| failures.clone()).unwrap_or_default()
    }

    fn note_failures(&self, object: &Object, scene: &Scene<'_>, plan: &Plan) {
        let failed = plan.ended.iter().map(|i| &scene.daemons[*i]).filter(|d| d.facts.phase == "Failed");
        let mut failures = scene.failures.clone();
        failed.for_each(|d| failures.note(&d.node, scene.now));
        if failures != *scene.failures {
            self.failures.lock().insert(object.key.clone(), (generation(object), failures));
        }
    }

    async fn act(
        &self,
        owner: &Arc<Object>,
        scene: &Scene<'_>,
        pods: &[Arc<Object>],
        plan: &Plan,
    ) -> Result<(), ApiError> {
        let control = PodControl {
            context: &self.home.context,
            kind: &DAEMON_SET,
            owner,
            pods: &self.home.pods,
            doomed: &self.doomed,
        };
        for i in &plan.ended {
            let (node, key) = (&scene.daemons[*i].node, &pods[*i].key);
            let (kind, reason, how, what) = match scene.daemons[*i].facts.phase.as_str() {
                "Failed" => (EventType::Warning, "FailedDaemonPod", "failed", "kill"),
                _ => (EventType::Normal, "SucceededDaemonPod", "succeeded", "delete"),
            };
            let message = format!("Found {how} daemon pod {key} on node {node}, will try to {what} it");
            self.home.context.recorder.record(DAEMON_SET.subject(owner), kind, reason, message);
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
        let home = &self.home;
        let object = home.sets.get(key).filter(|o| o.meta().deletion_timestamp.is_none());
        let Some((object, set)) = object.and_then(|o| Some((o.clone(), Set::read(&o)?))) else {
            self.failures.lock().remove(key);
            return Ok(None);
        };
        if set.selector.is_everything() {
            return Ok(None);
        }
        let (owned, all) = home.begin(&object, &set.selector, &set.template).await?;
        let hash = all.last().map(|r| r.hash.clone()).unwrap_or_default();
        let nodes = self.judge_nodes(&set, &object)?;
        let mut daemons: Vec<Daemon> = owned.iter().map(Daemon::read).collect();
        // One whose deletion the cache does not show yet is on its way out, and still holds its node.
        daemons.iter_mut().for_each(|d| d.facts.deleting |= self.doomed.contains(&d.facts.uid));
        let failures = self.failures_of(&object);
        let scene = Scene {
            set: &set,
            nodes: &nodes,
            daemons: &daemons,
            hash: &hash,
            failures: &failures,
            now: home.context.now(),
        };
        let plan = decide(&scene);
        self.note_failures(&object, &scene, &plan);
        let done = self.act(&object, &scene, &owned, &plan).await;
        let wanted = decide::status(&scene, object.meta().generation);
        let patch = workload::status_patch(&set.status, &wanted);
        if !workload::report(&home.context, &gvr::DAEMON_SETS, &home.sets, key, patch).await? {
            return Ok(None);
        }
        done?;
        let hashes: BTreeSet<&str> = daemons.iter().map(|d| d.hash.as_str()).chain([hash.as_str()]).collect();
        let used = all.iter().filter(|r| hashes.contains(r.hash.as_str())).map(|r| r.name.clone()).collect();
        home.trim(&object, &all, &used, set.history_limit).await?;
        let next =
            workload::next_available(daemons.iter().map(|d| &d.facts), set.min_ready_seconds, scene.now);
        Ok([plan.again, next].into_iter().flatten().min())
    }
}
