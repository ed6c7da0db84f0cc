//! What to do about a Job. Pure.
//!
//! Ends of pods are counted exactly once, although pods may vanish at any time: an end is first noted by UID in
//! `uncountedTerminatedPods`, then the pod loses its finalizer, then the note becomes a number. Indexed successes
//! need no note: a set of indexes cannot count twice.

use super::model::{Job, JobPod, format_indexes, parse_indexes, time};
use super::policy::{self, Action};
use crate::workload::{self, BURST, count};
use client::events::EventType;
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
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
    /// With a limit per index: failures of each created index before, counted and ignored ones.
    pub before: BTreeMap<usize, (usize, usize)>,
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
    failed_indexes: BTreeSet<usize>,
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
            failed_indexes: parse_indexes(status["failedIndexes"].as_str().unwrap_or_default()),
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

    /// Gives up indexes that failed too often, or whose failure a rule says is final.
    fn fail_indexes(&mut self, job: &Job, pods: &[JobPod]) {
        let Some(limit) = job.limit_per_index.filter(|_| job.indexed) else { return };
        for pod in pods.iter().filter(|p| p.tracked && job.has_failed(p, false)) {
            let lost = match job.meaning(pod) {
                Some(Action::FailIndex) => true,
                Some(Action::Ignore) => false,
                _ => pod.before.0 >= limit,
            };
            self.failed_indexes.extend(pod.index.filter(|_| lost));
        }
    }

    /// Must this index still succeed?
    fn is_open(&self, index: usize) -> bool {
        !self.completed.contains(&index) && !self.failed_indexes.contains(&index)
    }

    /// With a limit per index: the last failed pods of open indexes without an active one. They stay until they
    /// are replaced, for they alone know how often their index failed.
    fn held(&self, job: &Job, scene: &Scene<'_>) -> BTreeSet<usize> {
        if job.limit_per_index.is_none() {
            return BTreeSet::new();
        }
        let active: BTreeSet<usize> = scene.active.iter().filter_map(|i| scene.pods[*i].index).collect();
        let wanted = |i: &usize| self.is_open(*i) && !active.contains(i);
        last_failures(job, scene.pods)
            .into_iter()
            .filter(|(index, _)| wanted(index))
            .map(|(_, at)| at)
            .collect()
    }

    /// Notes the ends among the pods but the held ones; those that may lose their finalizer.
    fn note(&mut self, job: &Job, pods: &[JobPod], held: &BTreeSet<usize>, over: bool) -> Vec<usize> {
        let mut release = Vec::new();
        for (i, pod) in pods.iter().enumerate().filter(|(i, p)| p.tracked && !held.contains(i)) {
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
            } else if job.has_failed(pod, over) {
                if job.meaning(pod) != Some(Action::Ignore) {
                    self.noted_failed.insert(uid.clone());
                }
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

/// The last failed pod of each index.
fn last_failures(job: &Job, pods: &[JobPod]) -> BTreeMap<usize, usize> {
    let mut last: BTreeMap<usize, usize> = BTreeMap::new();
    for (at, pod) in pods.iter().enumerate().filter(|(_, p)| job.has_failed(p, false)) {
        let Some(index) = pod.index else { continue };
        let rank = |i: usize| (pods[i].before.0 + pods[i].before.1, pods[i].facts.created);
        if last.get(&index).is_none_or(|known| rank(*known) <= rank(at)) {
            last.insert(index, at);
        }
    }
    last
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

    fn success(reason: &str, message: &str) -> Verdict {
        Verdict { success: true, reason: reason.into(), message: message.into() }
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
    let failed = scene.pods.iter().filter(|p| p.tracked && p.facts.phase == "Failed");
    let fatal = |p: &JobPod| policy::of_failure(&job.failure_rules, p).filter(|(a, _)| *a == Action::FailJob);
    if let Some((_, why)) = failed.into_iter().find_map(fatal) {
        return Verdict::failure("PodFailurePolicy", &why);
    }
    let restarts: usize = scene.active.iter().map(|i| scene.pods[*i].restarts).sum();
    let worn_out = job.restarts_in_place && restarts > 0 && restarts >= job.backoff_limit;
    if tally.failures() > job.backoff_limit || worn_out {
        return Verdict::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if remaining(job, scene.now).is_some_and(|left| left.is_zero()) {
        return Verdict::failure("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    judge_indexes(job, tally).or_else(|| {
        let done = match job.completions {
            Some(wanted) => tally.successes() >= wanted,
            None => tally.successes() > 0 && scene.active.is_empty() && scene.terminating.is_empty(),
        };
        done.then(|| Verdict::success("CompletionsReached", "Reached expected number of succeeded pods"))
    })
}

/// Judges by indexes: too many failed, all ended but not all well, or enough succeeded.
fn judge_indexes(job: &Job, tally: &Tally) -> Option<Verdict> {
    if !job.indexed {
        return None;
    }
    let failed = tally.failed_indexes.len();
    if job.failed_indexes_max.is_some_and(|max| failed > max) {
        let why = "Job has exceeded the specified maximal number of failed indexes";
        return Verdict::failure("MaxFailedIndexesExceeded", why);
    }
    if failed > 0 && job.completions.is_some_and(|all| failed + tally.completed.len() >= all) {
        return Verdict::failure("FailedIndexes", "Job has failed indexes");
    }
    policy::of_successes(&job.success_rules, &tally.completed)
        .map(|why| Verdict::success("SuccessPolicy", &why))
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
    tally.fail_indexes(job, pods);
    let held = if over { BTreeSet::new() } else { tally.held(job, &scene) };
    plan.release = tally.note(job, pods, &held, over);
    let mut conditions = workload::conditions_of(&job.status);
    let mut status = job.status.as_object().cloned().unwrap_or_default();
    let verdict = judge(job, &tally, &scene);
    if let Some(verdict) = &verdict {
        plan.delete = scene.active.clone();
        conclude(verdict, &mut conditions, now);
        let idle = scene.active.is_empty() && scene.terminating.is_empty() && held.is_empty();
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
        if job.limit_per_index.is_some() {
            status.insert("failedIndexes".into(), json!(format_indexes(&tally.failed_indexes)));
        }
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
    // One that has nothing to do ends without having begun.
    status.entry("startTime").or_insert_with(|| json!(machinery::time::format(now)));
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
        Some(all) => all.saturating_sub(tally.successes() + tally.failed_indexes.len()).min(job.parallelism),
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
    let pause = if job.limit_per_index.is_some() { Duration::ZERO } else { pause(pods, scene.now) };
    if !pause.is_zero() {
        plan.again = Some(pause);
    } else if job.indexed {
        let late = scene.terminating.iter().filter(|_| job.replaces_late);
        let taken = active.iter().chain(late).filter_map(|i| pods[*i].index).collect();
        fill(job, tally, scene, (&taken, missing), plan);
    } else {
        plan.create = vec![None; missing];
    }
}

/// Creates up to `missing` of the open indexes that are not `taken`; one that failed has a pause of its own.
fn fill(
    job: &Job,
    tally: &Tally,
    scene: &Scene<'_>,
    (taken, missing): (&BTreeSet<usize>, usize),
    plan: &mut Plan,
) {
    let last = if job.limit_per_index.is_some() { last_failures(job, scene.pods) } else { BTreeMap::new() };
    for index in (0..job.completions.unwrap_or(0)).filter(|i| !taken.contains(i) && tally.is_open(*i)) {
        if plan.create.len() == missing {
            return;
        }
        let mut before = (0, 0);
        if let Some(pod) = last.get(&index).map(|at| &scene.pods[*at]) {
            let (counted, ignored) = pod.before;
            let delay = FAILED.delay(u32::try_from(counted + ignored).unwrap_or(u32::MAX));
            let ended = pod.ended.unwrap_or(scene.now);
            let left = delay.saturating_sub(machinery::time::since(scene.now, ended));
            if !left.is_zero() {
                plan.again = plan.again.into_iter().chain([left]).min();
                continue;
            }
            let is_ignored = job.meaning(pod) == Some(Action::Ignore);
            before = if is_ignored { (counted, ignored + 1) } else { (counted + 1, ignored) };
        }
        plan.create.push(Some(index));
        if job.limit_per_index.is_some() {
            plan.before.insert(index, before);
        }
    }
}

/// Active pods whose index is none, done, or another's.
fn misplaced(job: &Job, tally: &Tally, pods: &[JobPod], active: &[usize]) -> BTreeSet<usize> {
    let mut seen = BTreeSet::new();
    let mut fits = |i: &usize| {
        let index = pods[*i].index;
        let wanted = index.is_some_and(|n| job.completions.is_none_or(|all| n < all));
        let open = index.is_some_and(|n| tally.is_open(n));
        wanted && open && seen.insert(index)
    };
    let kept: BTreeSet<usize> = active.iter().copied().filter(|i| fits(i)).collect();
    active.iter().copied().filter(|i| !kept.contains(i)).collect()
}
