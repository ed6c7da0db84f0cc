//! What to do about a CronJob. Pure.

use super::schedule::Schedule;
use crate::workload;
use client::Object;
use client::events::EventType;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// So many missed times are worth a warning: more than 100, as upstream.
const MISSED_MANY: usize = 101;
/// Waking up a little late is better than a little early.
const SLACK: Duration = Duration::from_millis(100);

/// What happens when a run is due and another one still runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Concurrency {
    /// Both run.
    Allow,
    /// The new one is left out.
    Forbid,
    /// The old one is deleted.
    Replace,
}

/// What a CronJob asks for.
#[derive(Clone, Debug)]
pub struct CronJob {
    /// Text of the schedule.
    pub schedule: String,
    /// Name of a time zone; `None`: UTC.
    pub zone: Option<String>,
    /// Is it to rest?
    pub suspended: bool,
    /// About runs at the same time.
    pub concurrency: Concurrency,
    /// How late a run may begin.
    pub deadline: Option<Duration>,
    /// Finished Jobs that are kept: successful, failed.
    pub keep: (usize, usize),
    /// When it was made.
    pub created: Timestamp,
    /// `spec.jobTemplate`.
    pub template: Value,
    /// `status` as it is.
    pub status: Value,
}

impl CronJob {
    /// Reads one.
    pub fn read(object: &Object) -> Option<CronJob> {
        let mut value = object.value().ok()?;
        let spec = &mut value["spec"];
        let keep = |v: &Value, default| v.as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(default);
        Some(CronJob {
            schedule: spec["schedule"].as_str()?.into(),
            zone: spec["timeZone"].as_str().map(str::to_string),
            suspended: spec["suspend"] == true,
            concurrency: match spec["concurrencyPolicy"].as_str() {
                Some("Forbid") => Concurrency::Forbid,
                Some("Replace") => Concurrency::Replace,
                _ => Concurrency::Allow,
            },
            deadline: spec["startingDeadlineSeconds"].as_u64().map(Duration::from_secs),
            keep: (keep(&spec["successfulJobsHistoryLimit"], 3), keep(&spec["failedJobsHistoryLimit"], 1)),
            created: machinery::time::parse(object.meta().creation_timestamp.as_deref()?).ok()?,
            template: spec["jobTemplate"].take(),
            status: value["status"].take(),
        })
    }

    /// From when on a missed time still counts.
    fn earliest(&self, now: Timestamp) -> Timestamp {
        let last = self.status["lastScheduleTime"].as_str().and_then(|t| machinery::time::parse(t).ok());
        let since = last.unwrap_or(self.created);
        let limit = self.deadline.and_then(|d| now.checked_sub(d).ok());
        limit.map_or(since, |limit| limit.max(since))
    }
}

/// One of its Jobs.
#[derive(Clone, Debug)]
pub struct Run {
    /// The Job.
    pub object: Arc<Object>,
    /// How it ended (`Complete`, `Failed`) and when.
    pub end: Option<(String, Timestamp)>,
    /// When it began.
    began: Option<Timestamp>,
}

impl Run {
    /// Reads a Job.
    pub fn read(object: &Arc<Object>) -> Run {
        let value = object.value().unwrap_or_default();
        let time = |v: &Value| v.as_str().and_then(|t| machinery::time::parse(t).ok());
        let mut conditions = value["status"]["conditions"].as_array().into_iter().flatten();
        let last =
            conditions.find(|c| (c["type"] == "Complete" || c["type"] == "Failed") && c["status"] == "True");
        let end = last.map(|c| {
            let when = time(&value["status"]["completionTime"]).or(time(&c["lastTransitionTime"]));
            (c["type"].as_str().unwrap_or_default().to_string(), when.unwrap_or(Timestamp::UNIX_EPOCH))
        });
        Run { object: object.clone(), end, began: time(&value["status"]["startTime"]) }
    }

    /// As `status.active` names it.
    pub fn reference(&self) -> Value {
        json!({"apiVersion": "batch/v1", "kind": "Job", "namespace": &*self.object.key.namespace,
            "name": &*self.object.key.name, "uid": self.object.uid(),
            "resourceVersion": self.object.revision.to_string()})
    }
}

/// What to do.
#[derive(Debug, Default)]
pub struct Plan {
    /// Runs that go, by their place in the input.
    pub delete: Vec<usize>,
    /// The run that begins, by the time it was due.
    pub create: Option<Timestamp>,
    /// Events: type, reason, message.
    pub events: Vec<(EventType, &'static str, String)>,
    /// The status to write, without the new run.
    pub status: Value,
    /// When to look again.
    pub again: Option<Duration>,
}

/// Decides; `None` for a schedule makes no run.
pub fn decide(
    cron: &CronJob,
    runs: &[Run],
    schedule: Option<(&Schedule, &TimeZone)>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan { delete: surplus(cron, runs), ..Plan::default() };
    note_ends(cron, runs, &mut plan);
    let active: Vec<usize> = (0..runs.len()).filter(|i| runs[*i].end.is_none()).collect();
    if let Some((schedule, zone)) = schedule.filter(|_| !cron.suspended) {
        let due = schedule.last_due(cron.earliest(now), now, zone, MISSED_MANY);
        if let Some((at, missed)) = due {
            begin(cron, &active, at, &mut plan);
            if missed >= MISSED_MANY {
                let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or \
                    check clock skew";
                plan.events.push((EventType::Warning, "TooManyMissedTimes", message.into()));
            }
        }
        let next = schedule.next(now, zone).map(|at| machinery::time::since(at, now) + SLACK);
        plan.again = next;
    }
    plan.status = status(cron, runs, &plan);
    plan
}

fn begin(cron: &CronJob, active: &[usize], at: Timestamp, plan: &mut Plan) {
    match cron.concurrency {
        Concurrency::Forbid if !active.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push((EventType::Normal, "JobAlreadyActive", message.into()));
        }
        Concurrency::Replace => {
            plan.delete
                .extend(active.iter().filter(|i| !plan.delete.contains(i)).copied().collect::<Vec<_>>());
            plan.create = Some(at);
        }
        _ => plan.create = Some(at),
    }
}

/// Finished runs beyond what is kept, the oldest first.
fn surplus(cron: &CronJob, runs: &[Run]) -> Vec<usize> {
    let of = |kind: &str, keep: usize| {
        let is = |i: &usize| runs[*i].end.as_ref().is_some_and(|(k, _)| k == kind);
        let mut ended: Vec<usize> = (0..runs.len()).filter(is).collect();
        ended.sort_by_key(|i| (runs[*i].began, runs[*i].object.key.clone()));
        ended.truncate(ended.len().saturating_sub(keep));
        ended
    };
    [of("Complete", cron.keep.0), of("Failed", cron.keep.1)].concat()
}

/// Events about runs that the status still calls active.
fn note_ends(cron: &CronJob, runs: &[Run], plan: &mut Plan) {
    for reference in cron.status["active"].as_array().into_iter().flatten() {
        let name = reference["name"].as_str().unwrap_or_default();
        match runs.iter().find(|r| reference["uid"] == r.object.uid()) {
            None => {
                let message = format!("Active job went missing: {name}");
                plan.events.push((EventType::Normal, "MissingJob", message));
            }
            Some(Run { end: Some((kind, _)), .. }) => {
                let message = format!("Saw completed job: {name}, condition: {kind}");
                plan.events.push((EventType::Normal, "SawCompletedJob", message));
            }
            Some(_) => {}
        }
    }
}

fn status(cron: &CronJob, runs: &[Run], plan: &Plan) -> Value {
    let known = |run: &Run| {
        let mut all = cron.status["active"].as_array().into_iter().flatten();
        all.find(|a| a["uid"] == run.object.uid()).cloned().unwrap_or_else(|| run.reference())
    };
    let active = runs.iter().enumerate().filter(|(i, r)| r.end.is_none() && !plan.delete.contains(i));
    let active = active.map(|(_, run)| known(run)).collect();
    let ends = runs.iter().filter_map(|r| r.end.as_ref()).filter(|(kind, _)| kind == "Complete");
    let success = ends.map(|(_, at)| machinery::time::format(*at)).max();
    let before = cron.status["lastSuccessfulTime"].as_str().map(str::to_string);
    let scheduled = plan.create.map(machinery::time::format);
    json!({
        "active": workload::list_or_null(active),
        "lastSuccessfulTime": success.max(before),
        "lastScheduleTime": scheduled.map_or_else(|| cron.status["lastScheduleTime"].clone(), Value::from),
    })
}
