//! Why a task ends: the stop code and the reason in the words that people search for.

use super::Seen;
use crate::annotation::TaskNote;
use crate::lower::{NetworkMode, items, text};
use serde_json::Value;

/// The end of a task, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cause {
    pub code: String,
    pub reason: String,
}

/// Reasons of containers that never ran, and what ECS calls them.
const START_FAILURES: &[(&str, &str)] = &[
    ("ErrImagePull", "CannotPullContainerError"),
    ("InvalidImageName", "CannotPullContainerError"),
    ("ErrImageNeverPull", "CannotPullContainerError"),
    ("CreateContainerConfigError", "ResourceInitializationError"),
    ("CreateContainerError", "CannotCreateContainerError"),
    ("StartError", "CannotStartContainerError"),
    ("RunContainerError", "CannotStartContainerError"),
    ("DependencyError", "DependencyError"),
];
const OUT_OF_MEMORY: &str = "OutOfMemoryError: Container killed due to memory usage";
const ESSENTIAL: &str = "Essential container in task exited";
/// Longest reason that ECS tells.
const REASON_MAX_BYTES: usize = 1_024;

/// Did a container that ended ever run?
pub(super) fn ran(ended: &Value) -> bool {
    let never = START_FAILURES.iter().any(|(reason, _)| *reason == text(&ended["reason"]));
    let started = text(&ended["startedAt"]);
    !never && !started.is_empty() && !started.starts_with("1970-01-01T00:00:00")
}

/// `reason` of a container that ended, where ECS tells one.
pub(super) fn reason(ended: &Value) -> Option<String> {
    let why = text(&ended["reason"]);
    if why == "OOMKilled" {
        return Some(OUT_OF_MEMORY.to_string());
    }
    let (_, word) = START_FAILURES.iter().find(|(reason, _)| *reason == why)?;
    let mut full = format!("{word}: {}", text(&ended["message"]));
    let end = (0..=REASON_MAX_BYTES.min(full.len())).rev().find(|i| full.is_char_boundary(*i)).unwrap_or(0);
    full.truncate(end);
    Some(full)
}

fn told(code: &str, reason: impl Into<String>) -> Option<Cause> {
    Some(Cause { code: code.to_string(), reason: reason.into() })
}

/// Why the task ends, if it does.
pub(super) fn cause(seen: &Seen, note: &TaskNote) -> Option<Cause> {
    if text(&seen.spec["desiredStatus"]) == "STOPPED" {
        let code = Some(text(&seen.spec["stopCode"])).filter(|c| !c.is_empty()).unwrap_or("UserInitiated");
        let reason = text(&seen.spec["stoppedReason"]);
        return told(code, if reason.is_empty() { "Task stopped by user" } else { reason });
    }
    let Some(pod) = seen.pod else { return told("TaskFailedToStart", "The task's pod is gone.") };
    if let Some(node) = seen.lost_node {
        return match seen.mode {
            NetworkMode::AwsVpc if text(&seen.spec["launchType"]) == "FARGATE" => {
                told("InfrastructureHealth", format!("The host ({node}) that the task ran on was lost."))
            }
            _ => told("TerminationNotice", format!("Host EC2 (instance {node}) terminated.")),
        };
    }
    if let Some(cause) = by_containers(pod, note) {
        return Some(cause);
    }
    match text(&pod["status"]["phase"]) {
        "Failed" | "Succeeded" => {
            let message = text(&pod["status"]["message"]);
            told("EssentialContainerExited", if message.is_empty() { ESSENTIAL } else { message })
        }
        _ if !pod["metadata"]["deletionTimestamp"].is_null() => {
            told("UserInitiated", "The task's pod was deleted.")
        }
        _ => None,
    }
}

/// The first essential container that ended; all of them count when all have ended.
fn by_containers(pod: &Value, note: &TaskNote) -> Option<Cause> {
    let statuses = items(&pod["status"]["containerStatuses"]);
    let over = matches!(text(&pod["status"]["phase"]), "Failed" | "Succeeded");
    let essential = |c: &&Value| over || note.containers.get(text(&c["name"])).is_some_and(|n| n.essential);
    let ended = statuses.iter().filter(|c| !c["state"]["terminated"].is_null()).filter(essential);
    let restarts = |c: &&Value| {
        let rule = note.containers.get(text(&c["name"])).and_then(|n| n.restart.as_ref());
        // Only the node knows whether it has run for long enough; the pod's end tells.
        rule.is_some() && !over
    };
    let ends = ended.filter(|c| !restarts(c)).map(|c| &c["state"]["terminated"]);
    let order = |end: &&Value| (ran(end), text(&end["finishedAt"]).to_string());
    let first = ends.min_by_key(order)?;
    match reason(first) {
        Some(text) if !ran(first) => told("TaskFailedToStart", text),
        Some(text) => told("EssentialContainerExited", text),
        None => told("EssentialContainerExited", ESSENTIAL),
    }
}
