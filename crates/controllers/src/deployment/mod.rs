//! Deployments: rollouts from one ReplicaSet to the next.
//!
//! `model` reads, `rollout` decides one step (`rollback` one back), `status` reports; this file acts. Every change of a set is made against
//! the revision it was decided on, so a step on a stale cache fails and is decided anew.
//! Deliberately not here: pods (`replica_set` makes them).

mod model;
mod rollback;
mod rollout;
mod status;
#[cfg(test)]
mod tests;

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use crate::owner::{Claimant, Kind, OwnedIndex, enqueue_owners};
use crate::workload::{self, PodFacts};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::EventType;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey};
use k8s_schema::gvr;
use machinery::selector::LabelSelector;
use machinery::status::ApiError;
use model::{Deployment, HASH_LABEL, REVISION, Set, Strategy};
use rollout::{Change, NewSet, Plan};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Deployments looked at at the same time, as upstream has it.
const WORKERS: usize = 5;

static DEPLOYMENT: Kind = Kind { gvr: gvr::DEPLOYMENTS, api_version: "apps/v1", kind: "Deployment" };

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let deployments = context.informers.of(&gvr::DEPLOYMENTS);
    let sets = context.informers.of(&gvr::REPLICA_SETS);
    let pods = context.informers.of(&gvr::PODS);
    let set_index = context.informers.owned(&gvr::REPLICA_SETS);
    let pod_index = context.informers.owned(&gvr::PODS);
    enqueue_self(&deployments, &queue);
    enqueue_owners(&DEPLOYMENT, &sets, &deployments, &queue, selects);
    let caches = vec![deployments.clone(), sets.clone(), pods.clone()];
    let controller = Controller { context: context.clone(), deployments, sets, set_index, pods, pod_index };
    run("deployment", caches, queue, WORKERS, Arc::new(controller))
}

fn selects(deployment: &Object, set: &Object) -> bool {
    let selector =
        Deployment::read(deployment).and_then(|d| LabelSelector::from_json(Some(&d.selector)).ok());
    selector.is_some_and(|s| !s.is_everything() && s.matches(&set.meta().labels))
}

struct Controller {
    context: Context,
    deployments: Arc<Cache>,
    sets: Arc<Cache>,
    set_index: Arc<OwnedIndex>,
    pods: Arc<Cache>,
    pod_index: Arc<OwnedIndex>,
}

/// The body of a new set.
fn body(owner: &Object, deployment: &Deployment, new: &NewSet) -> Value {
    let mut template = deployment.template.clone();
    template["metadata"]["labels"][HASH_LABEL] = json!(new.hash);
    let mut selector = deployment.selector.clone();
    selector["matchLabels"][HASH_LABEL] = json!(new.hash);
    json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": format!("{}-{}", owner.key.name, new.hash), "namespace": &*owner.key.namespace,
            "labels": template["metadata"]["labels"], "annotations": new.annotations,
            "ownerReferences": [DEPLOYMENT.reference(owner)]},
        "spec": {"replicas": new.replicas, "minReadySeconds": deployment.min_ready_seconds,
            "selector": selector, "template": template}})
}

impl Controller {
    fn scaled(&self, owner: &Object, set: &str, from: i64, to: i64) {
        let direction = if from < to { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.context.recorder.record(
            DEPLOYMENT.subject(owner),
            EventType::Normal,
            "ScalingReplicaSet",
            message,
        );
    }

    async fn create(
        &self,
        owner: &Arc<Object>,
        deployment: &Deployment,
        new: &NewSet,
    ) -> Result<(), ApiError> {
        let body = body(owner, deployment, new);
        let key = ObjectKey::new(
            owner.key.namespace.clone(),
            body["metadata"]["name"].as_str().unwrap_or_default(),
        );
        match self.context.client.create(&gvr::REPLICA_SETS, body).await {
            Ok(set) => {
                self.sets.observe(set);
                if new.replicas > 0 {
                    self.scaled(owner, &key.name, 0, new.replicas);
                }
                Ok(())
            }
            Err(error) if error.is_already_exists() => self.collided(owner, deployment, &key).await,
            Err(error) => Err(error),
        }
    }

    /// A set of that name is there: ours that the cache has yet to show, or another template with the same hash.
    async fn collided(
        &self,
        owner: &Object,
        deployment: &Deployment,
        key: &ObjectKey,
    ) -> Result<(), ApiError> {
        let present = self.context.client.get(&gvr::REPLICA_SETS, key).await?;
        let ours = present.meta().controller().is_some_and(|c| c.uid == owner.uid());
        let template = Set::read(&present).map(|s| s.template);
        if ours && template == Some(model::without_hash(deployment.template.clone())) {
            self.sets.observe(present);
            return Ok(());
        }
        let patch = json!({"status": {"collisionCount": deployment.collisions() + 1}});
        let stored = self.context.client.merge_patch_status(&gvr::DEPLOYMENTS, &owner.key, patch).await?;
        self.deployments.observe(stored);
        Err(ApiError::already_exists(&gvr::REPLICA_SETS, &key.name))
    }

    async fn change(&self, owner: &Object, key: &ObjectKey, change: &Change) -> Result<(), ApiError> {
        let mut patch = json!({"metadata": {"resourceVersion": change.resource_version.to_string()}});
        if !change.annotations.is_empty() {
            patch["metadata"]["annotations"] = json!(change.annotations);
        }
        if let Some((_, to)) = change.replicas {
            patch["spec"]["replicas"] = json!(to);
        }
        if let Some(seconds) = change.min_ready_seconds {
            patch["spec"]["minReadySeconds"] = json!(seconds);
        }
        self.sets.observe(self.context.client.merge_patch(&gvr::REPLICA_SETS, key, patch).await?);
        if let Some((from, to)) = change.replicas {
            self.scaled(owner, &key.name, from, to);
        }
        Ok(())
    }

    async fn apply(
        &self,
        owner: &Arc<Object>,
        deployment: &Deployment,
        plan: &mut Plan,
    ) -> Result<(), ApiError> {
        for (key, change) in &plan.changes {
            self.change(owner, key, change).await?;
        }
        if let Some(new) = &plan.create
            && let Err(error) = self.create(owner, deployment, new).await
        {
            let name = format!("{}-{}", deployment.name, new.hash);
            let message = format!("Failed to create new replica set \"{name}\": {error}");
            if deployment.deadline.is_some() && !error.is_already_exists() {
                plan.progress = Some(("False", "ReplicaSetCreateError", message));
            } else {
                plan.progress = None;
            }
            (plan.judged, plan.revision) = (false, None);
            return Err(error);
        }
        for (key, uid) in &plan.delete {
            let options = DeleteOptions { uid: Some(uid.clone()), ..DeleteOptions::default() };
            match self.context.client.delete(&gvr::REPLICA_SETS, key, options).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    async fn report(
        &self,
        key: &ObjectKey,
        deployment: &Deployment,
        wanted: &Value,
        plan: &Plan,
    ) -> Result<(), ApiError> {
        let patch = workload::status_patch(&deployment.status, wanted);
        if patch.is_none() && plan.revision.is_none() {
            return Ok(());
        }
        let mut patch = patch.unwrap_or_else(|| json!({}));
        if let Some(revision) = &plan.revision {
            // By way of the status: the annotation is no new wish and must not make a new generation.
            patch["metadata"]["annotations"][REVISION] = json!(revision);
        }
        workload::report(&self.context, &gvr::DEPLOYMENTS, &self.deployments, key, Some(patch))
            .await
            .map(drop)
    }

    /// Goes back to an earlier template, if an annotation says so.
    async fn rolled_back(
        &self,
        object: &Object,
        deployment: &Deployment,
        sets: &[Set],
    ) -> Result<bool, ApiError> {
        let value = object.value().map_err(ApiError::internal)?;
        let Some(rollback) = rollback::decide(deployment, sets, value) else { return Ok(false) };
        let written = self.context.client.update(&gvr::DEPLOYMENTS, &object.key, rollback.body).await?;
        self.deployments.observe(written);
        let (kind, reason, message) = rollback.event;
        self.context.recorder.record(DEPLOYMENT.subject(object), kind, reason, message);
        Ok(true)
    }

    /// Does any pod of an old set still run (or wait to)?
    fn old_pods_run(&self, deployment: &Deployment, sets: &[Set]) -> bool {
        let (_, old) = model::split(deployment, sets);
        let pods = old.iter().flat_map(|s| self.pod_index.of(&self.pods, &s.key.namespace, &s.uid));
        pods.map(|p| PodFacts::read(&p)).any(|p| !p.is_finished())
    }

    async fn selects_all(&self, object: &Object, deployment: &Deployment) -> Outcome {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        self.context.recorder.record(DEPLOYMENT.subject(object), EventType::Warning, "SelectingAll", message);
        let wanted = json!({"observedGeneration": deployment.generation});
        if let Some(patch) = workload::status_patch(&deployment.status, &wanted) {
            self.context.client.merge_patch_status(&gvr::DEPLOYMENTS, &object.key, patch).await?;
        }
        Ok(None)
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.deployments.get(key) else { return Ok(None) };
        let Some(deployment) = Deployment::read(&object) else { return Ok(None) };
        let Ok(selector) = LabelSelector::from_json(Some(&deployment.selector)) else { return Ok(None) };
        if selector.is_everything() {
            return self.selects_all(&object, &deployment).await;
        }
        let claimant = Claimant {
            context: &self.context,
            kind: &DEPLOYMENT,
            owner: &object,
            cache: &self.sets,
            index: &self.set_index,
            gvr: &gvr::REPLICA_SETS,
        };
        let sets: Vec<Set> = claimant.claim(&selector).await?.iter().filter_map(Set::read).collect();
        if self.rolled_back(&object, &deployment, &sets).await? {
            return Ok(None);
        }
        let old_pods_run = deployment.strategy == Strategy::Recreate && self.old_pods_run(&deployment, &sets);
        let mut plan = rollout::decide(&deployment, &sets, old_pods_run);
        let applied = self.apply(&object, &deployment, &mut plan).await;
        if applied.as_ref().is_err_and(|e| e.is_conflict() || e.is_already_exists()) {
            return applied.map(|()| None);
        }
        let now = self.context.now();
        let (new, _) = model::split(&deployment, &sets);
        let wanted = status::wanted(&deployment, &sets, new, &plan, now);
        self.report(key, &deployment, &wanted, &plan).await?;
        match applied {
            Err(error) if !workload::is_namespace_going(&error) => Err(error),
            _ => Ok(status::deadline_in(&deployment, &wanted, now)),
        }
    }
}
