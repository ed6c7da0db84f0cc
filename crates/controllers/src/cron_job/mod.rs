//! CronJobs: a Job at each time that the schedule names.
//!
//! [`decide`] says which Jobs come and go. A Job's name holds the minute it was due, so that a run is never begun
//! twice, whatever is lost on the way. Time zones are those that are built in: hosts may have none.

mod decide;
mod schedule;
#[cfg(test)]
mod tests;

use crate::context::{Context, Outcome, Reconcile, enqueue_owner, enqueue_self, run};
use crate::owner::{Kind, OwnedIndex};
use crate::workload;
use async_trait::async_trait;
use client::cache::Cache;
use client::events::EventType;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey, Propagation};
use decide::{CronJob, Run, decide};
use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use k8s_schema::{Gvr, gvr};
use machinery::status::ApiError;
use schedule::Schedule;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::JoinHandle;

const CRON_JOBS: Gvr = Gvr::new("batch", "v1", "cronjobs");
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
static CRON_JOB: Kind = Kind { gvr: CRON_JOBS, api_version: "batch/v1", kind: "CronJob" };

struct Controller {
    context: Context,
    crons: Arc<Cache>,
    jobs: Arc<Cache>,
    job_index: Arc<OwnedIndex>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let (crons, jobs) = (context.informers.of(&CRON_JOBS), context.informers.of(&gvr::JOBS));
    let job_index = context.informers.owned(&gvr::JOBS);
    enqueue_self(&crons, &queue);
    enqueue_owner(&jobs, &queue, CRON_JOB.api_version, CRON_JOB.kind);
    let caches = vec![crons.clone(), jobs.clone()];
    run(
        "cronjob",
        caches,
        queue,
        2,
        Arc::new(Controller { context: context.clone(), crons, jobs, job_index }),
    )
}

/// The zone of that name.
fn zone(name: Option<&str>) -> Option<TimeZone> {
    name.map_or(Some(TimeZone::UTC), |name| TimeZoneDatabase::bundled().get(name).ok())
}

/// RFC 3339 in a zone, as Go writes it.
fn local(at: Timestamp, zone: &TimeZone) -> String {
    let zoned = at.to_zoned(zone.clone());
    if zoned.offset().is_zero() {
        return machinery::time::format(at);
    }
    strtime::format("%Y-%m-%dT%H:%M:%S%:z", &zoned).unwrap_or_else(|_| machinery::time::format(at))
}

/// The body of the Job that was due at that time.
fn job_body(cron: &CronJob, owner: &Object, at: Timestamp, zone: &TimeZone) -> Value {
    let mut metadata = json!({"namespace": &*owner.key.namespace, "ownerReferences": [CRON_JOB.reference(owner)],
        "name": format!("{}-{}", owner.key.name, at.as_second() / 60)});
    for field in ["labels", "annotations"] {
        if let Some(map) = cron.template["metadata"][field].as_object() {
            metadata[field] = json!(map);
        }
    }
    metadata["annotations"][SCHEDULED] = json!(local(at, zone));
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": cron.template["spec"]})
}

impl Controller {
    fn tell(&self, owner: &Object, kind: EventType, reason: &str, message: String) {
        self.context.recorder.record(CRON_JOB.subject(owner), kind, reason, message);
    }

    /// The schedule and its zone; a complaint when either is wrong.
    fn schedule(&self, owner: &Object, cron: &CronJob) -> Option<(Schedule, TimeZone)> {
        let Some(schedule) = Schedule::parse(&cron.schedule) else {
            let message = format!("unparseable schedule: {:?}", cron.schedule);
            self.tell(owner, EventType::Warning, "UnparseableSchedule", message);
            return None;
        };
        let Some(zone) = zone(cron.zone.as_deref()) else {
            let name = cron.zone.as_deref().unwrap_or_default();
            let message = format!("invalid timeZone: {name:?} - unknown time zone {name}");
            self.tell(owner, EventType::Warning, "UnknownTimeZone", message);
            return None;
        };
        Some((schedule, zone))
    }

    async fn delete(&self, owner: &Object, job: &Object) -> Result<(), ApiError> {
        let options = DeleteOptions {
            uid: Some(job.uid().into()),
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        match self.context.client.delete(&gvr::JOBS, &job.key, options).await {
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => {
                let message = format!("Deleted job {}", job.key.name);
                self.tell(owner, EventType::Normal, "SuccessfulDelete", message);
                Ok(())
            }
        }
    }

    /// Creates the Job; one that an earlier look made is as good. `None`: the name is somebody else's.
    async fn create(&self, owner: &Object, body: Value) -> Result<Option<Arc<Object>>, ApiError> {
        let name = body["metadata"]["name"].as_str().unwrap_or_default().to_string();
        match self.context.client.create(&gvr::JOBS, body).await {
            Ok(job) => {
                self.jobs.observe(job.clone());
                self.tell(owner, EventType::Normal, "SuccessfulCreate", format!("Created job {name}"));
                Ok(Some(job))
            }
            Err(error) if error.is_already_exists() => {
                let key = ObjectKey::new(owner.key.namespace.clone(), name);
                let there = self.context.client.get(&gvr::JOBS, &key).await?;
                let ours = there.meta().controller().is_some_and(|o| o.uid == owner.uid());
                Ok(ours.then_some(there))
            }
            Err(error) if workload::is_namespace_going(&error) => Ok(None),
            Err(error) => {
                let message = format!("Error creating job: {error}");
                self.tell(owner, EventType::Warning, "FailedCreate", message);
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.crons.get(key) else { return Ok(None) };
        let Some(cron) = CronJob::read(&object) else { return Ok(None) };
        if object.meta().deletion_timestamp.is_some() {
            return Ok(None);
        }
        let owned = self.job_index.of(&self.jobs, &key.namespace, object.uid());
        let runs: Vec<Run> = owned.iter().map(Run::read).collect();
        let schedule = self.schedule(&object, &cron);
        let timed = schedule.as_ref().map(|(schedule, zone)| (schedule, zone));
        let mut plan = decide(&cron, &runs, timed, self.context.now());
        for (kind, reason, message) in std::mem::take(&mut plan.events) {
            self.tell(&object, kind, reason, message);
        }
        for i in &plan.delete {
            self.delete(&object, &runs[*i].object).await?;
        }
        if let (Some(at), Some((_, zone))) = (plan.create, &schedule) {
            let job = self.create(&object, job_body(&cron, &object, at, zone)).await?;
            crate::figures::job_created_after(machinery::time::since(self.context.now(), at));
            let mut active = plan.status["active"].as_array().cloned().unwrap_or_default();
            active.extend(job.map(|job| Run::read(&job)).filter(|r| r.end.is_none()).map(|r| r.reference()));
            plan.status["active"] = workload::list_or_null(active);
        }
        let patch = workload::status_patch(&cron.status, &plan.status);
        if !workload::report(&self.context, &CRON_JOBS, &self.crons, key, patch).await? {
            return Ok(None);
        }
        Ok(plan.again)
    }
}
