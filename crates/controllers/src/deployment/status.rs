//! What a Deployment reports: counts, and the conditions Available, Progressing and ReplicaFailure.

use super::model::{Deployment, Set};
use super::rollout::{Plan, is_complete};
use crate::workload::{self, condition, find_condition, remove_condition, set_condition};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const FAILURE: &str = "ReplicaFailure";
const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// Looking a little after the deadline, not just before it.
const DEADLINE_SLACK: Duration = Duration::from_secs(1);

/// The status after a step was decided (counts are those from before it).
pub fn wanted(
    deployment: &Deployment,
    sets: &[Set],
    new: Option<&Set>,
    plan: &Plan,
    now: Timestamp,
) -> Value {
    let sum = |field: fn(&Set) -> i64| sets.iter().map(field).sum::<i64>();
    let optional = |n: i64| if n == 0 { Value::Null } else { json!(n) };
    let available = sum(|s| s.available);
    let mut conditions = workload::conditions_of(&deployment.status);
    if let Some((status, reason, message)) = &plan.progress {
        set_condition(&mut conditions, dated(PROGRESSING, status, reason, message, now));
    }
    set_condition(&mut conditions, availability(deployment, available, now));
    let mut status = json!({
        "observedGeneration": optional(deployment.generation),
        "replicas": optional(sum(|s| s.actual)),
        "updatedReplicas": optional(new.map_or(0, |n| n.actual)),
        "readyReplicas": optional(sum(|s| s.ready)),
        "availableReplicas": optional(available),
        "unavailableReplicas": optional((sum(|s| s.replicas) - available).max(0)),
        "terminatingReplicas": sum(|s| s.terminating),
    });
    if plan.judged {
        judge(deployment, &status, &mut conditions, new, now);
        match failure_of(sets, new) {
            Some(c) => set_condition(
                &mut conditions,
                dated(FAILURE, text(c, "status"), text(c, "reason"), text(c, "message"), now),
            ),
            None => remove_condition(&mut conditions, FAILURE),
        }
    }
    status["conditions"] = workload::list_or_null(conditions);
    status
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// A condition with the time of its last update.
fn dated(kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Value {
    let mut condition = condition(kind, status, reason, message, now);
    condition["lastUpdateTime"] = condition["lastTransitionTime"].clone();
    condition
}

fn availability(deployment: &Deployment, available: i64, now: Timestamp) -> Value {
    if available >= deployment.replicas - deployment.unavailable() {
        let message = "Deployment has minimum availability.";
        dated(AVAILABLE, "True", "MinimumReplicasAvailable", message, now)
    } else {
        let message = "Deployment does not have minimum availability.";
        dated(AVAILABLE, "False", "MinimumReplicasUnavailable", message, now)
    }
}

/// The failure that counts: the new set's, else any other's.
fn failure_of<'a>(sets: &'a [Set], new: Option<&'a Set>) -> Option<&'a Value> {
    new.into_iter().chain(sets).find_map(|s| find_condition(&s.conditions, FAILURE))
}

/// Sets the Progressing condition: done, moving, or stuck for too long.
fn judge(
    deployment: &Deployment,
    status: &Value,
    conditions: &mut Vec<Value>,
    new: Option<&Set>,
    now: Timestamp,
) {
    let Some(deadline) = deployment.deadline else {
        remove_condition(conditions, PROGRESSING);
        return;
    };
    let current = find_condition(conditions, PROGRESSING).cloned();
    let reason = current.as_ref().map_or("", |c| text(c, "reason"));
    if status["replicas"] == status["updatedReplicas"] && reason == DONE {
        return;
    }
    let subject = match new {
        Some(new) => format!("ReplicaSet \"{}\"", new.key.name),
        None => format!("Deployment \"{}\"", deployment.name),
    };
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set_condition(conditions, dated(PROGRESSING, "True", DONE, &message, now));
    } else if has_moved(&deployment.status, status) {
        let message = format!("{subject} is progressing.");
        let mut condition = dated(PROGRESSING, "True", "ReplicaSetUpdated", &message, now);
        if let Some(current) = current.filter(|c| c["status"] == "True") {
            condition["lastTransitionTime"] = current["lastTransitionTime"].clone();
        }
        remove_condition(conditions, PROGRESSING);
        conditions.push(condition);
    } else if current.is_some_and(|c| is_overdue(&c, deadline, now)) {
        let message = format!("{subject} has timed out progressing.");
        set_condition(conditions, dated(PROGRESSING, "False", TIMED_OUT, &message, now));
    }
}

/// More new pods, fewer old ones, more ready or available ones?
fn has_moved(old: &Value, new: &Value) -> bool {
    let count = |v: &Value, field: &str| v[field].as_i64().unwrap_or(0);
    let rest = |v: &Value| count(v, "replicas") - count(v, "updatedReplicas");
    let more = |field: &str| count(new, field) > count(old, field);
    more("updatedReplicas") || rest(new) < rest(old) || more("readyReplicas") || more("availableReplicas")
}

fn updated_at(condition: &Value) -> Option<Timestamp> {
    machinery::time::parse(text(condition, "lastUpdateTime")).ok()
}

fn is_overdue(condition: &Value, deadline: i64, now: Timestamp) -> bool {
    match text(condition, "reason") {
        DONE => false,
        TIMED_OUT => true,
        _ => updated_at(condition).is_some_and(|at| now.as_second() - at.as_second() > deadline),
    }
}

/// When to look again because the deadline may have passed; `None` when nobody waits for it.
pub fn deadline_in(deployment: &Deployment, status: &Value, now: Timestamp) -> Option<Duration> {
    let deadline = deployment.deadline?;
    let conditions = workload::conditions_of(status);
    let progressing = find_condition(&conditions, PROGRESSING)?;
    let waits = !matches!(text(progressing, "reason"), DONE | TIMED_OUT | "DeploymentPaused");
    if !waits || is_complete(deployment, status) {
        return None;
    }
    let left = updated_at(progressing)?.as_second() + deadline - now.as_second();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0)) + DEADLINE_SLACK)
}
