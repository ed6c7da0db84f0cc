//! What to do about a Job. Pure.
//!
//! Ends of pods are counted exactly once, although pods may vanish at any time: an end is first noted by UID in
//! `uncountedTerminatedPods`, then the pod loses its finalizer, then the note becomes a number. Indexed successes
//! need no note: a set of indexes cannot count twice.

use super::model::{Job, JobPod, format_indexes, parse_indexes, time};
use crate::workload::{self, BURST, count};
use client::events::EventType;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::time::Duration;
use stdx::backoff::Backoff;

/// Pause after failed pods in a row, as upstream.
const FAILED: Backoff = Backoff { base: Duration::from_secs(10), factor: 2, max: Duration::from_secs(600) };

/// What to do, in this order: write the status, release, delete, create. Pods by their place in the input.
#[derive(Debug, Default)]
pub struct Plan {
    /// The status to write.
    pub status: Value,
    /// Pods that lose their finalizer.
    pub release: Vec<usize>,
    /// Pods that are deleted.
    pub delete: Vec<usize>,
    /// Pods to create, each with its index.
    pub create: Vec<Option<usize>>,
    /// Events: type, reason, message.
    pub events: Vec<(EventType, String, String)>,
    /// When to look again.
    pub again: Option<Duration>,
}

/// Ends of pods so far.
#[derive(Clone, Debug, Default)]
struct Tally {
    succeeded: usize,
    failed: usize,
    completed: BTreeSet<usize>,
    noted_succeeded: BTreeSet<String>,
    noted_failed: BTreeSet<String>,
}

impl Tally {
    fn read(status: &Value) -> Tally {
        let number = |field: &str| status[field].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let uids = |field: &str| {
            let list = status["uncountedTerminatedPods"][field].as_array().into_iter().flatten();
            list.filter_map(|uid| uid.as_str().map(str::to_string)).collect()
        };
        Tally {
            succeeded: number("succeeded"),
            failed: number("failed"),
            completed: parse_indexes(status["completedIndexes"].as_str().unwrap_or_default()),
            noted_succeeded: uids("succeeded"),
            noted_failed: uids("failed"),
        }
    }

    /// Notes become numbers once their pods are free of the finalizer.
    fn settle(&mut self, pods: &[JobPod]) {
        let held: BTreeSet<&str> = pods.iter().filter(|p| p.tracked).map(|p| p.facts.uid.as_str()).collect();
        let settle = |noted: &mut BTreeSet<String>| {
            let before = noted.len();
            noted.retain(|uid| held.contains(uid.as_str()));
            before - noted.len()
        };
        self.succeeded += settle(&mut self.noted_succeeded);
        self.failed += settle(&mut self.noted_failed);
    }

    fn successes(&self) -> usize {
        self.succeeded + self.noted_succeeded.len()
    }

    fn failures(&self) -> usize {
        self.failed + self.noted_failed.len()
    }

    /// Notes the ends among the pods; those that may lose their finalizer.
    fn note(&mut self, job: &Job, pods: &[JobPod], over: bool) -> Vec<usize> {
        let mut release = Vec::new();
        for (i, pod) in pods.iter().enumerate().filter(|(_, p)| p.tracked) {
            let uid = &pod.facts.uid;
            if self.noted_failed.contains(uid) || self.noted_succeeded.contains(uid) {
                release.push(i);
            } else if pod.facts.phase == "Succeeded" {
                let wanted = |index: &usize| job.completions.is_some_and(|n| *index < n);
                if !job.indexed {
                    self.noted_succeeded.insert(uid.clone());
                } else if let Some(index) = pod.index.filter(wanted) {
                    self.completed.insert(index);
                }
                release.push(i);
            } else if pod.facts.phase == "Failed" || (pod.facts.deleting && (!job.replaces_late || over)) {
                self.noted_failed.insert(uid.clone());
                release.push(i);
            }
        }
        if job.indexed {
            self.completed.retain(|i| job.completions.is_none_or(|n| *i < n));
            self.succeeded = self.completed.len();
        }
        release
    }
}

/// How a Job ends.
struct Verdict {
    success: bool,
    reason: String,
    message: String,
}

impl Verdict {
    fn failure(reason: &str, message: &str) -> Option<Verdict> {
        Some(Verdict { success: false, reason: reason.into(), message: message.into() })
    }

    fn kinds(&self) -> (&'static str, &'static str) {
        if self.success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") }
    }
}

/// The pods, by what they do now.
struct Scene<'a> {
    pods: &'a [JobPod],
    now: Timestamp,
    /// Running or about to.
    active: Vec<usize>,
    /// On their way out.
    terminating: Vec<usize>,
}

/// Judges a Job: the verdict that stands already, or a new one.
fn judge(job: &Job, tally: &Tally, scene: &Scene<'_>) -> Option<Verdict> {
    for (kind, success) in [("FailureTarget", false), ("SuccessCriteriaMet", true)] {
        if let Some(condition) = job.condition(kind) {
            let text = |field: &str| condition[field].as_str().unwrap_or_default().to_string();
            return Some(Verdict { success, reason: text("reason"), message: text("message") });
        }
    }
    let restarts: usize = scene.active.iter().map(|i| scene.pods[*i].restarts).sum();
    let worn_out = job.restarts_in_place && restarts > 0 && restarts >= job.backoff_limit;
    if tally.failures() > job.backoff_limit || worn_out {
        return Verdict::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if remaining(job, scene.now).is_some_and(|left| left.is_zero()) {
        return Verdict::failure("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let done = match job.completions {
        Some(wanted) => tally.successes() >= wanted,
        None => tally.successes() > 0 && scene.active.is_empty() && scene.terminating.is_empty(),
    };
    done.then(|| Verdict {
        success: true,
        reason: "CompletionsReached".into(),
        message: "Reached expected number of succeeded pods".into(),
    })
}

/// Time left until the deadline; `None` when there is none or the Job has not begun.
fn remaining(job: &Job, now: Timestamp) -> Option<Duration> {
    let deadline = job.deadline.filter(|_| !job.suspended)?;
    let begun = time(&job.status["startTime"])?;
    Some(deadline.saturating_sub(machinery::time::since(now, begun)))
}

/// How long to wait before the next pod, because the last ones failed.
fn pause(pods: &[JobPod], now: Timestamp) -> Duration {
    let ends =
        |phase: &'static str| pods.iter().filter(move |p| p.facts.phase == phase).filter_map(|p| p.ended);
    let success = ends("Succeeded").max();
    let failures: Vec<Timestamp> = ends("Failed").filter(|t| success.is_none_or(|s| *t > s)).collect();
    let Some(last) = failures.iter().max() else { return Duration::ZERO };
    let delay = FAILED.delay(u32::try_from(failures.len() - 1).unwrap_or(u32::MAX));
    delay.saturating_sub(machinery::time::since(now, *last))
}

/// Decides about a Job that has not ended; `doomed` pods count as deleted.
pub fn decide(job: &Job, pods: &[JobPod], doomed: impl Fn(&str) -> bool, now: Timestamp) -> Plan {
    let of = |wanted: &dyn Fn(&JobPod) -> bool| {
        pods.iter().enumerate().filter(|(_, p)| !p.facts.is_finished() && wanted(p)).map(|(i, _)| i).collect()
    };
    let gone = |p: &JobPod| p.facts.deleting || doomed(&p.facts.uid);
    let scene = Scene { pods, now, active: of(&|p| !gone(p)), terminating: of(&gone) };
    let mut tally = Tally::read(&job.status);
    let mut plan = Plan::default();
    tally.settle(pods);
    let over = job.going || job.condition("FailureTarget").or(job.condition("SuccessCriteriaMet")).is_some();
    plan.release = tally.note(job, pods, over);
    let mut conditions = workload::conditions_of(&job.status);
    let mut status = job.status.as_object().cloned().unwrap_or_default();
    let verdict = judge(job, &tally, &scene);
    if let Some(verdict) = &verdict {
        plan.delete = scene.active.clone();
        conclude(verdict, &mut conditions, now);
        let idle = scene.active.is_empty() && scene.terminating.is_empty();
        if idle && tally.noted_succeeded.is_empty() && tally.noted_failed.is_empty() {
            end(verdict, &mut conditions, &mut status, &mut plan, now);
        }
    } else if !job.going {
        suspend_or_resume(job, &mut conditions, &mut status, &mut plan, now);
        if job.suspended {
            plan.release.extend(&scene.active);
            plan.delete = scene.active.clone();
        } else {
            staff(job, &tally, &scene, &mut plan);
        }
        plan.again = [plan.again, remaining(job, now)].into_iter().flatten().min();
    }
    let ready = scene.active.iter().filter(|i| pods[**i].facts.is_ready()).count();
    for (field, value) in [
        ("active", count(scene.active.len())),
        ("ready", json!(ready)),
        ("terminating", json!(scene.terminating.len())),
    ] {
        status.insert(field.into(), value);
    }
    report(job, &tally, &mut status);
    status.insert("conditions".into(), workload::list_or_null(conditions));
    status.retain(|_, v| !v.is_null());
    plan.status = Value::Object(status);
    plan
}

fn report(job: &Job, tally: &Tally, status: &mut Map<String, Value>) {
    let uids = |set: &BTreeSet<String>| set.iter().map(|u| json!(u)).collect::<Vec<_>>();
    let mut uncounted = Map::new();
    for (field, set) in [("succeeded", &tally.noted_succeeded), ("failed", &tally.noted_failed)] {
        if !set.is_empty() {
            uncounted.insert(field.into(), json!(uids(set)));
        }
    }
    status.insert("uncountedTerminatedPods".into(), Value::Object(uncounted));
    status.insert("succeeded".into(), count(tally.succeeded));
    status.insert("failed".into(), count(tally.failed));
    if job.indexed {
        let text = format_indexes(&tally.completed);
        status.insert("completedIndexes".into(), if text.is_empty() { Value::Null } else { json!(text) });
    }
}

/// A condition as Jobs carry it.
fn condition(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let mut condition = workload::condition(kind, status, reason, message, now);
    condition["lastProbeTime"] = condition["lastTransitionTime"].clone();
    condition
}

/// Says that the end is near: pods that still run are deleted first.
fn conclude(verdict: &Verdict, conditions: &mut Vec<Value>, now: Timestamp) {
    let (near, _) = verdict.kinds();
    workload::set_condition(conditions, condition(near, "True", &verdict.reason, &verdict.message, now));
}

fn end(
    verdict: &Verdict,
    conditions: &mut Vec<Value>,
    status: &mut Map<String, Value>,
    plan: &mut Plan,
    now: Timestamp,
) {
    let (_, last) = verdict.kinds();
    workload::set_condition(conditions, condition(last, "True", &verdict.reason, &verdict.message, now));
    if verdict.success {
        status.insert("completionTime".into(), json!(machinery::time::format(now)));
        plan.events.push((EventType::Normal, "Completed".into(), "Job completed".into()));
    } else {
        plan.events.push((EventType::Warning, verdict.reason.clone(), verdict.message.clone()));
    }
}

/// Keeps the `Suspended` condition and the start time.
fn suspend_or_resume(
    job: &Job,
    conditions: &mut Vec<Value>,
    status: &mut Map<String, Value>,
    plan: &mut Plan,
    now: Timestamp,
) {
    let was = job.condition("Suspended").is_some();
    if job.suspended && !was {
        workload::set_condition(
            conditions,
            condition("Suspended", "True", "JobSuspended", "Job suspended", now),
        );
        plan.events.push((EventType::Normal, "Suspended".into(), "Job suspended".into()));
    }
    if !job.suspended && was {
        workload::set_condition(
            conditions,
            condition("Suspended", "False", "JobResumed", "Job resumed", now),
        );
        plan.events.push((EventType::Normal, "Resumed".into(), "Job resumed".into()));
    }
    if job.suspended {
        status.remove("startTime");
    } else if was || !status.contains_key("startTime") {
        status.insert("startTime".into(), json!(machinery::time::format(now)));
        plan.again = job.deadline;
    }
}

/// Brings the number of active pods to what is wanted.
fn staff(job: &Job, tally: &Tally, scene: &Scene<'_>, plan: &mut Plan) {
    let pods = scene.pods;
    let mut active = scene.active.clone();
    if job.indexed {
        let surplus = misplaced(job, tally, pods, &active);
        active.retain(|i| !surplus.contains(i));
        plan.delete.extend(surplus);
    }
    let wanted = match job.completions {
        Some(all) => all.saturating_sub(tally.successes()).min(job.parallelism),
        None if tally.successes() > 0 => active.len(),
        None => job.parallelism,
    };
    if active.len() > wanted {
        // Those that got least far go first.
        active.sort_by_key(|i| {
            let f = &pods[*i].facts;
            (
                !f.node.is_empty(),
                f.phase == "Running",
                f.is_ready(),
                std::cmp::Reverse(f.created),
                f.uid.clone(),
            )
        });
        plan.delete.extend(active.drain(..active.len() - wanted));
    }
    // What is taken away by us is no failure.
    plan.release.extend(&plan.delete);
    let late = if job.replaces_late { scene.terminating.len() } else { 0 };
    let missing = wanted.saturating_sub(active.len() + late).min(BURST);
    if missing == 0 {
        return;
    }
    let pause = pause(pods, scene.now);
    if !pause.is_zero() {
        plan.again = Some(pause);
        return;
    }
    if !job.indexed {
        plan.create = vec![None; missing];
        return;
    }
    let late = scene.terminating.iter().filter(|_| job.replaces_late);
    let taken: BTreeSet<usize> = active.iter().chain(late).filter_map(|i| pods[*i].index).collect();
    let free =
        (0..job.completions.unwrap_or(0)).filter(|i| !taken.contains(i) && !tally.completed.contains(i));
    plan.create = free.take(missing).map(Some).collect();
}

/// Active pods whose index is none, done, or another's.
fn misplaced(job: &Job, tally: &Tally, pods: &[JobPod], active: &[usize]) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    let mut fits = |i: &usize| {
        let index = pods[*i].index;
        let wanted = index.is_some_and(|n| job.completions.is_none_or(|all| n < all));
        let open = index.is_some_and(|n| !tally.completed.contains(&n));
        wanted && open && seen.insert(index)
    };
    let kept: BTreeSet<usize> = active.iter().copied().filter(|i| fits(i)).collect();
    active.iter().copied().filter(|i| !kept.contains(i)).collect()
}
