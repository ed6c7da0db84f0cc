//! Jobs: pods that run to their end, as often as asked for.
//!
//! [`decide`] says what to do; the shell writes the status first, because a pod may only lose its finalizer after its
//! end is noted. A second queue frees pods of Jobs that are gone. Finished Jobs are deleted after their time.
//! Failure and success policies are rules of [`policy`].

mod decide;
mod model;
mod policy;
#[cfg(test)]
mod tests;

use crate::context::{Context, Outcome, Reconcile, enqueue_self, run};
use crate::figures;
use crate::owner::{Claimant, Kind, OwnedIndex, enqueue_owners};
use crate::workload::{self, Doomed, PodControl};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey, Propagation};
use decide::{Plan, decide};
use k8s_schema::gvr;
use machinery::status::ApiError;
use model::{FAILURES, IGNORED, INDEX, Job, JobPod, TRACKING, is_tracked, time};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Jobs looked at at the same time, as upstream has it.
const WORKERS: usize = 5;

/// Jobs as owners.
static JOB: Kind = Kind { gvr: gvr::JOBS, api_version: "batch/v1", kind: "Job" };

struct Controller {
    context: Context,
    jobs: Arc<Cache>,
    pods: Arc<Cache>,
    pod_index: Arc<OwnedIndex>,
    doomed: Doomed,
}

/// Frees pods whose Job is gone.
struct Liberator {
    context: Context,
    pods: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let (queue, freed) = (Arc::new(Queue::default()), Arc::new(Queue::default()));
    let (jobs, pods) = (context.informers.of(&gvr::JOBS), context.informers.of(&gvr::PODS));
    let pod_index = context.informers.owned(&gvr::PODS);
    let doomed = Doomed::start(&pods);
    enqueue_self(&jobs, &queue);
    enqueue_owners(&JOB, &pods, &jobs, &queue, selects);
    watch_orphans(&jobs, &pods, &pod_index, &freed);
    let caches = || vec![jobs.clone(), pods.clone()];
    let liberator = Liberator { context: context.clone(), pods: pods.clone() };
    let mut tasks = run("job-orphans", caches(), freed, 1, Arc::new(liberator));
    let controller =
        Controller { context: context.clone(), jobs: jobs.clone(), pods: pods.clone(), pod_index, doomed };
    tasks.extend(run("job", caches(), queue, WORKERS, Arc::new(controller)));
    tasks
}

/// Enqueues tracked pods that have no Job (any more).
fn watch_orphans(
    jobs: &Arc<Cache>,
    pods: &Arc<Cache>,
    index: &Arc<OwnedIndex>,
    queue: &Arc<Queue<ObjectKey>>,
) {
    let (known, freed) = (Arc::downgrade(jobs), queue.clone());
    pods.on_change(Box::new(move |_, new| {
        let (Some(pod), Some(jobs)) = (new.filter(|p| is_tracked(p)), known.upgrade()) else { return };
        let owner = JOB.controller_of(pod);
        let here = owner.is_some_and(|(key, uid)| jobs.get(&key).is_some_and(|j| j.uid() == uid));
        if !here {
            freed.add(pod.key.clone());
        }
    }));
    let (pods, index, freed) = (Arc::downgrade(pods), index.clone(), queue.clone());
    jobs.on_change(Box::new(move |old, new| {
        let (Some(job), None, Some(pods)) = (old, new, pods.upgrade()) else { return };
        let left = index.of(&pods, &job.key.namespace, job.uid());
        left.into_iter().filter(|p| is_tracked(p)).for_each(|p| freed.add(p.key.clone()));
    }));
}

fn selects(job: &Object, pod: &Object) -> bool {
    Job::read(job)
        .is_some_and(|j| j.ours && !j.selector.is_everything() && j.selector.matches(&pod.meta().labels))
}

/// Takes the tracking finalizer off a pod; one that is gone is as good.
async fn release(context: &Context, pods: &Cache, pod: &Object) -> Result<(), ApiError> {
    if !is_tracked(pod) {
        return Ok(());
    }
    let left: Vec<&String> = pod.meta().finalizers.iter().filter(|f| *f != TRACKING).collect();
    let patch = json!({"metadata": {"uid": pod.uid(), "resourceVersion": pod.revision.to_string(), "finalizers": left}});
    match context.client.merge_patch(&gvr::PODS, &pod.key, patch).await {
        Ok(patched) => {
            pods.observe(patched);
            Ok(())
        }
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The body of a pod of a Job, with its index when it has one.
fn pod_body(job: &Job, owner: &Object, index: Option<usize>) -> Value {
    let mut body = workload::pod_of_template(&job.template, owner, JOB.reference(owner));
    let metadata = &mut body["metadata"];
    let mut finalizers = metadata["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.push(json!(TRACKING));
    metadata["finalizers"] = json!(finalizers);
    let Some(index) = index else { return body };
    let name = format!("{}-{index}", owner.key.name);
    metadata["generateName"] = json!(format!("{name}-"));
    metadata["annotations"][INDEX] = json!(index.to_string());
    metadata["labels"][INDEX] = json!(index.to_string());
    let spec = &mut body["spec"];
    spec["hostname"] = json!(name);
    let variable = json!({"name": "JOB_COMPLETION_INDEX",
        "valueFrom": {"fieldRef": {"fieldPath": format!("metadata.labels['{INDEX}']")}}});
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            let mut env = container["env"].as_array().cloned().unwrap_or_default();
            if !env.iter().any(|e| e["name"] == variable["name"]) {
                env.push(variable.clone());
            }
            container["env"] = json!(env);
        }
    }
    body
}

impl Controller {
    async fn act(
        &self,
        object: &Arc<Object>,
        job: &Job,
        pods: &[Arc<Object>],
        plan: &Plan,
    ) -> Result<(), ApiError> {
        let control = PodControl {
            context: &self.context,
            kind: &JOB,
            owner: object,
            pods: &self.pods,
            doomed: &self.doomed,
        };
        for i in &plan.release {
            release(&self.context, &self.pods, &pods[*i]).await?;
        }
        for i in &plan.delete {
            control.delete(&pods[*i].key, pods[*i].uid()).await?;
        }
        let one = |i: usize| {
            let (control, mut body) = (&control, pod_body(job, object, plan.create[i]));
            if let Some((counted, ignored)) = plan.create[i].and_then(|index| plan.before.get(&index)) {
                body["metadata"]["annotations"][FAILURES] = json!(counted.to_string());
                if *ignored > 0 {
                    body["metadata"]["annotations"][IGNORED] = json!(ignored.to_string());
                }
            }
            async move { control.create(body).await.map(drop) }
        };
        match workload::slow_start(plan.create.len(), one).await.1 {
            Some(error) if !workload::is_namespace_going(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes the status against the revision it was decided on; says whether that was needed.
    async fn report(&self, object: &Object, job: &Job, status: &Value) -> Result<bool, ApiError> {
        let mut body = object.value().map_err(ApiError::internal)?;
        if body["status"] == *status {
            return Ok(false);
        }
        body["status"] = status.clone();
        let stored = self.context.client.update_status(&gvr::JOBS, &object.key, body).await?;
        self.jobs.observe(stored);
        figures::job_told(job.indexed, &job.status, status);
        Ok(true)
    }

    /// A finished Job: its pods are free, and after its time it goes.
    async fn bury(&self, object: &Object, job: &Job, pods: &[Arc<Object>], end: &Value) -> Outcome {
        for pod in pods {
            release(&self.context, &self.pods, pod).await?;
        }
        let (Some(ttl), Some(ended), false) = (job.ttl, time(&end["lastTransitionTime"]), job.going) else {
            return Ok(None);
        };
        let left = ttl.saturating_sub(machinery::time::since(self.context.now(), ended));
        if left > Duration::ZERO {
            return Ok(Some(left));
        }
        let options = DeleteOptions {
            uid: Some(object.uid().into()),
            resource_version: Some(object.revision.to_string()),
            propagation: Some(Propagation::Foreground),
            ..DeleteOptions::default()
        };
        self.context.client.delete(&gvr::JOBS, &object.key, options).await.map(|_| None)
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.jobs.get(key) else { return Ok(None) };
        let Some(job) = Job::read(&object).filter(|j| !j.selector.is_everything()) else { return Ok(None) };
        if !job.ours {
            // Once it has ended it goes after its time, whoever ran it.
            return match job.end() {
                Some(end) => self.bury(&object, &job, &[], end).await,
                None => Ok(None),
            };
        }
        let claimant = Claimant {
            context: &self.context,
            kind: &JOB,
            owner: &object,
            cache: &self.pods,
            index: &self.pod_index,
            gvr: &gvr::PODS,
        };
        let owned = claimant.claim(&job.selector).await?;
        if let Some(end) = job.end() {
            return self.bury(&object, &job, &owned, end).await;
        }
        let pods: Vec<JobPod> = owned.iter().map(JobPod::read).collect();
        let (plan, begun) =
            (decide(&job, &pods, |uid| self.doomed.contains(uid), self.context.now()), Instant::now());
        let told = match self.report(&object, &job, &plan.status).await {
            Err(error) if error.is_not_found() => return Ok(None),
            reported => reported?,
        };
        for (kind, reason, message) in &plan.events {
            self.context.recorder.record(JOB.subject(&object), *kind, reason, message.as_str());
        }
        let acted = self.act(&object, &job, &owned, &plan).await;
        let action = match (plan.create.is_empty(), plan.delete.is_empty()) {
            (false, _) => "pods_created",
            (true, false) => "pods_deleted",
            _ if told => "tracking",
            _ => "reconciling",
        };
        figures::job_synced(job.indexed, action, acted.is_ok(), begun.elapsed());
        acted?;
        Ok(plan.again)
    }
}

#[async_trait]
impl Reconcile for Liberator {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(pod) = self.pods.get(key).filter(|p| is_tracked(p)) else { return Ok(None) };
        if let Some((job, uid)) = JOB.controller_of(&pod) {
            match self.context.client.get(&gvr::JOBS, &job).await {
                Ok(job) if job.uid() == uid => return Ok(None),
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        release(&self.context, &self.pods, &pod).await?;
        Ok(None)
    }
}
