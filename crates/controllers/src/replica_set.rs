//! ReplicaSets and ReplicationControllers: as many pods as asked for, made from a template.
//!
//! [`decide`] says what to do, [`status`] what to report; the shell claims pods, creates and deletes them.
//! A set that is going creates and deletes nothing more.
//! Deliberately not here: which set gets how many replicas (`deployment`).

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use crate::owner::{Claimant, Kind, OwnedIndex, enqueue_owners};
use crate::workload::{self, BURST, Doomed, PodControl, PodFacts, count};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{Object, ObjectKey};
use jiff::Timestamp;
use k8s_schema::{Gvr, gvr};
use machinery::selector::LabelSelector;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::task::JoinHandle;

const FAILURE: &str = "ReplicaFailure";
/// Sets looked at at the same time, as upstream has it.
const WORKERS: usize = 5;

static REPLICA_SET: Kind = Kind { gvr: gvr::REPLICA_SETS, api_version: "apps/v1", kind: "ReplicaSet" };
static REPLICATION_CONTROLLER: Kind = Kind {
    gvr: Gvr::new("", "v1", "replicationcontrollers"),
    api_version: "v1",
    kind: "ReplicationController",
};

/// Starts the controller of ReplicaSets.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    start_kind(context, "replicaset", &REPLICA_SET)
}

/// Starts the controller of ReplicationControllers.
pub fn start_replication(context: &Context) -> Vec<JoinHandle<()>> {
    start_kind(context, "replicationcontroller", &REPLICATION_CONTROLLER)
}

fn start_kind(context: &Context, name: &'static str, kind: &'static Kind) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let (sets, pods) = (context.informers.of(&kind.gvr), context.informers.of(&gvr::PODS));
    let set_index = context.informers.owned(&kind.gvr);
    let pod_index = context.informers.owned(&gvr::PODS);
    let doomed = Doomed::start(&pods);
    enqueue_self(&sets, &queue);
    enqueue_owners(kind, &pods, &sets, &queue, selects);
    let caches = vec![sets.clone(), pods.clone()];
    let controller = Controller { context: context.clone(), kind, sets, set_index, pods, pod_index, doomed };
    run(name, caches, queue, WORKERS, Arc::new(controller))
}

fn selects(set: &Object, pod: &Object) -> bool {
    Set::read(set).is_some_and(|s| !s.selector.is_everything() && s.selector.matches(&pod.meta().labels))
}

/// What a set asks for.
#[derive(Debug)]
struct Set {
    replicas: usize,
    min_ready_seconds: i32,
    selector: LabelSelector,
    template: Value,
    status: Value,
}

impl Set {
    fn read(object: &Object) -> Option<Set> {
        let mut value = object.value().ok()?;
        let spec = &mut value["spec"];
        let template = spec["template"].take();
        let selector = &spec["selector"];
        // A ReplicationController's selector is a plain map, its template's labels by default.
        let map = match selector {
            Value::Object(map) if map.values().any(Value::is_string) => Some(map),
            Value::Null => template["metadata"]["labels"].as_object(),
            _ => None,
        };
        let selector = match map {
            Some(map) => {
                LabelSelector::from_map(map.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default())))
            }
            None => LabelSelector::from_json(Some(selector)).ok()?,
        };
        Some(Set {
            replicas: usize::try_from(spec["replicas"].as_i64().unwrap_or(1)).unwrap_or(0),
            min_ready_seconds: i32::try_from(spec["minReadySeconds"].as_i64().unwrap_or(0)).unwrap_or(0),
            selector,
            template,
            status: value["status"].take(),
        })
    }
}

/// What to do about a set.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing.
    Rest,
    /// Create that many pods.
    Create(usize),
    /// Delete these (key and UID).
    Delete(Vec<(ObjectKey, String)>),
}

/// How many pods of the set and its siblings run on each node.
type Crowds = BTreeMap<String, usize>;

/// Compares active pods with the wish.
fn decide(replicas: usize, active: &[&PodFacts], crowds: &Crowds, now: Timestamp) -> Step {
    if active.len() < replicas {
        return Step::Create((replicas - active.len()).min(BURST));
    }
    let surplus = (active.len() - replicas).min(BURST);
    if surplus == 0 {
        return Step::Rest;
    }
    let mut victims: Vec<&PodFacts> = active.to_vec();
    victims.sort_by_cached_key(|p| cost(p, crowds, now));
    let victims = victims.into_iter().take(surplus);
    Step::Delete(victims.filter_map(|p| Some((p.key.clone()?, p.uid.clone()))).collect())
}

/// How much is lost with a pod; the cheapest go first: those without a node, not running, not ready, with a low
/// deletion cost, on crowded nodes, ready for a short time, often restarted, young. Times count by magnitude, so
/// that the choice among pods of about the same age is even.
fn cost(pod: &PodFacts, crowds: &Crowds, now: Timestamp) -> impl Ord {
    let phase = match pod.phase.as_str() {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let crowd = crowds.get(&pod.node).copied().unwrap_or(0);
    (
        (!pod.node.is_empty(), phase, pod.is_ready(), pod.deletion_cost, Reverse(crowd)),
        (pod.ready_since.map(|t| magnitude(t, now)), Reverse(pod.restarts)),
        (pod.created.map(|t| magnitude(t, now)), pod.uid.clone()),
    )
}

/// The binary logarithm of an age in nanoseconds; -1 for none.
fn magnitude(since: Timestamp, now: Timestamp) -> i64 {
    machinery::time::since(now, since).as_nanos().checked_ilog2().map_or(-1, i64::from)
}

/// The status a set should have, without conditions. `owned` are all its pods.
fn status(set: &Set, owned: &[(Arc<Object>, PodFacts)], generation: i64, now: Timestamp) -> Value {
    let template_labels = LabelSelector::from_map(
        set.template["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default())),
    );
    let active = || owned.iter().filter(|(_, p)| p.is_active());
    let labeled = active().filter(|(o, _)| template_labels.matches(&o.meta().labels)).count();
    json!({
        "replicas": active().count(),
        "fullyLabeledReplicas": count(labeled),
        "readyReplicas": count(active().filter(|(_, p)| p.is_ready()).count()),
        "availableReplicas": count(active().filter(|(_, p)| p.is_available(set.min_ready_seconds, now)).count()),
        "terminatingReplicas": owned.iter().filter(|(_, p)| p.deleting && !p.is_finished()).count(),
        "observedGeneration": count(usize::try_from(generation).unwrap_or(0)),
    })
}

/// The conditions after an attempt: the first failure stays until an attempt succeeds.
fn conditions(old: &Value, step: &Step, failure: Option<&ApiError>, now: Timestamp) -> Vec<Value> {
    let mut conditions = workload::conditions_of(old);
    match failure {
        None => workload::remove_condition(&mut conditions, FAILURE),
        Some(_) if workload::find_condition(&conditions, FAILURE).is_some() => {}
        Some(error) => {
            let reason = if matches!(step, Step::Create(_)) { "FailedCreate" } else { "FailedDelete" };
            conditions.push(workload::condition(FAILURE, "True", reason, &error.message, now));
        }
    }
    conditions
}

struct Controller {
    context: Context,
    kind: &'static Kind,
    sets: Arc<Cache>,
    set_index: Arc<OwnedIndex>,
    pods: Arc<Cache>,
    pod_index: Arc<OwnedIndex>,
    doomed: Doomed,
}

impl Controller {
    /// Active pods by node, of the set and of all sets of the same owner.
    fn crowds(&self, set: &Object) -> Crowds {
        let namespace = &*set.key.namespace;
        let uids = match set.meta().controller() {
            Some(owner) => {
                let siblings = self.set_index.of(&self.sets, namespace, &owner.uid);
                siblings.iter().map(|s| s.uid().to_string()).collect()
            }
            None => vec![set.uid().to_string()],
        };
        let mut crowds = Crowds::new();
        for pod in uids.iter().flat_map(|uid| self.pod_index.of(&self.pods, namespace, uid)) {
            let facts = PodFacts::read(&pod);
            if facts.is_active() && !facts.node.is_empty() {
                *crowds.entry(facts.node).or_default() += 1;
            }
        }
        crowds
    }

    async fn act(&self, object: &Arc<Object>, set: &Set, step: &Step) -> Option<ApiError> {
        let control = PodControl {
            context: &self.context,
            kind: self.kind,
            owner: object,
            pods: &self.pods,
            doomed: &self.doomed,
        };
        match step {
            Step::Rest => None,
            Step::Create(number) => {
                let body = workload::pod_of_template(&set.template, object, self.kind.reference(object));
                let one = |_| {
                    let (control, body) = (&control, body.clone());
                    async move { control.create(body).await.map(|_| ()) }
                };
                workload::slow_start(*number, one).await.1
            }
            Step::Delete(victims) => {
                let all = victims.iter().map(|(key, uid)| control.delete(key, uid));
                futures_util::future::join_all(all).await.into_iter().find_map(Result::err)
            }
        }
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.sets.get(key) else { return Ok(None) };
        let Some(set) = Set::read(&object).filter(|s| !s.selector.is_everything()) else { return Ok(None) };
        let claimant = Claimant {
            context: &self.context,
            kind: self.kind,
            owner: &object,
            cache: &self.pods,
            index: &self.pod_index,
            gvr: &gvr::PODS,
        };
        let owned = claimant.claim(&set.selector).await?;
        let owned: Vec<_> = owned.into_iter().map(|o| (o.clone(), PodFacts::read(&o))).collect();
        let now = self.context.now();
        let active: Vec<&PodFacts> =
            owned.iter().map(|(_, p)| p).filter(|p| p.is_active() && !self.doomed.contains(&p.uid)).collect();
        let going = object.meta().deletion_timestamp.is_some();
        let surplus = active.len() > set.replicas;
        let crowds = if surplus { self.crowds(&object) } else { Crowds::new() };
        let step = if going { Step::Rest } else { decide(set.replicas, &active, &crowds, now) };
        let failure = self.act(&object, &set, &step).await;
        let mut wanted = status(&set, &owned, object.meta().generation, now);
        wanted["conditions"] = workload::list_or_null(conditions(&set.status, &step, failure.as_ref(), now));
        let patch = workload::status_patch(&set.status, &wanted);
        if !workload::report(&self.context, &self.kind.gvr, &self.sets, key, patch).await? {
            return Ok(None);
        }
        match failure {
            Some(error) if !workload::is_namespace_going(&error) => Err(error),
            _ => Ok(workload::next_available(active.into_iter(), set.min_ready_seconds, now)),
        }
    }
}

#[cfg(test)]
mod tests;
