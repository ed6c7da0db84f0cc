//! Raising: what a task's Pod shows becomes the task's status in ECS's words. Pure.
//!
//! ```text
//! awsvpc:   PROVISIONING → PENDING → RUNNING → STOPPING → DEPROVISIONING → STOPPED
//! others:   PENDING → RUNNING → STOPPING → STOPPED
//! services: ACTIVATING before RUNNING, DEACTIVATING after it, with load balancers or Cloud Map
//! ```
//! Invariants: a task never goes back in that order; its stop code, once told, stays; it is STOPPED exactly when its
//! Pod is gone, so that a stopped task holds nothing any more. A status that says nothing new comes out as it went in,
//! so that it need not be written. (When ACTIVATING and DEACTIVATING end is the service scheduler's to say: it brings
//! tasks into load balancers and takes them out.)

mod cause;
mod container;

use crate::annotation::{self, TaskNote};
use crate::lower::{NetworkMode, items, text, uuid};
use serde_json::{Value, json};

/// What is known of a task at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The Task's `spec`.
    pub spec: &'a Value,
    /// Its `status` so far (never null: see [`crate::task::initial_status`]).
    pub status: &'a Value,
    /// The task's id.
    pub id: &'a str,
    /// How it is connected.
    pub mode: NetworkMode,
    /// Its Pod.
    pub pod: Option<&'a Value>,
    /// Its Pod was made, at some time.
    pub made: bool,
    /// The node it ran on is gone or does not answer: its name.
    pub lost_node: Option<&'a str>,
    /// Seconds since 1970.
    pub now: f64,
}

/// All states in order.
const ORDER: [&str; 8] = [
    "PROVISIONING",
    "PENDING",
    "ACTIVATING",
    "RUNNING",
    "DEACTIVATING",
    "STOPPING",
    "DEPROVISIONING",
    "STOPPED",
];

fn rank(state: &str) -> usize {
    ORDER.iter().position(|s| *s == state).unwrap_or(0)
}

/// The task's status now.
pub fn raise(seen: &Seen) -> Value {
    if crate::task::is_stopped(seen.status) || !(seen.made || seen.pod.is_some()) {
        return seen.status.clone();
    }
    let mut status = seen.status.clone();
    let note = seen.pod.and_then(note).unwrap_or_default();
    let containers: Vec<Value> =
        items(&seen.status["containers"]).iter().map(|c| container::raise(seen, c)).collect();
    status["containers"] = Value::Array(containers);
    let cause = cause::cause(seen, &note);
    let state = state(seen, &note, &status, cause.is_some());
    let before = rank(text(&seen.status["lastStatus"]));
    if rank(state) > before || seen.status["lastStatus"].is_null() {
        status["lastStatus"] = json!(state);
    }
    status["healthStatus"] = json!(health(&note, &status));
    if seen.mode == NetworkMode::AwsVpc {
        attach(seen, &mut status);
    }
    if let Some(cause) = cause.filter(|_| seen.status["stopCode"].is_null()) {
        status["stopCode"] = json!(cause.code);
        status["stoppedReason"] = json!(cause.reason);
    }
    stamp(seen, &mut status);
    if text(&status["lastStatus"]) == "STOPPED" {
        end_containers(&mut status);
    }
    if status != *seen.status {
        status["version"] = json!(seen.status["version"].as_u64().unwrap_or(0) + 1);
    }
    status
}

/// The status of a task that came to nothing before it had a Pod.
pub fn fail(status: &Value, reason: &str, now: f64) -> Value {
    let mut status = status.clone();
    status["lastStatus"] = json!("STOPPED");
    status["stopCode"] = json!("TaskFailedToStart");
    status["stoppedReason"] = json!(reason);
    for member in ["stoppingAt", "executionStoppedAt", "stoppedAt"] {
        status[member] = json!(now);
    }
    for attachment in status["attachments"].as_array_mut().into_iter().flatten() {
        attachment["status"] = json!("DELETED");
    }
    end_containers(&mut status);
    status["version"] = json!(status["version"].as_u64().unwrap_or(0) + 1);
    status
}

/// The annotation of a task's pod.
pub fn note(pod: &Value) -> Option<TaskNote> {
    TaskNote::parse(text(&pod["metadata"]["annotations"][annotation::KEY])).ok()
}

/// Has everything of the pod ended, so that it may go?
pub fn is_over(pod: &Value) -> bool {
    let bound = !text(&pod["spec"]["nodeName"]).is_empty();
    let deleting = !pod["metadata"]["deletionTimestamp"].is_null();
    let no_grace = pod["metadata"]["deletionGracePeriodSeconds"] == 0;
    let done = matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed");
    done || (deleting && (no_grace || !bound))
}

fn state(seen: &Seen, note: &TaskNote, status: &Value, ending: bool) -> &'static str {
    let Some(pod) = seen.pod else { return "STOPPED" };
    if seen.lost_node.is_some() {
        // Nobody will ever say more about it.
        return if seen.mode == NetworkMode::AwsVpc { "DEPROVISIONING" } else { "STOPPING" };
    }
    let containers = items(&status["containers"]);
    let all = |what: &dyn Fn(&Value) -> bool| !containers.is_empty() && containers.iter().all(what);
    if ending {
        let over = is_over(pod) || all(&|c| c["lastStatus"] == "STOPPED");
        let leaving = !seen.spec["deactivating"].is_null();
        return match (over, seen.mode) {
            (true, NetworkMode::AwsVpc) => "DEPROVISIONING",
            (false, _) if leaving => "DEACTIVATING",
            _ => "STOPPING",
        };
    }
    let begun = |c: &Value| c["lastStatus"] == "RUNNING" || c["lastStatus"] == "STOPPED";
    let some_run = containers.iter().any(|c| c["lastStatus"] == "RUNNING");
    if all(&begun) && some_run && !note.containers.is_empty() {
        return if seen.spec["activating"].is_null() { "RUNNING" } else { "ACTIVATING" };
    }
    let connected = !text(&pod["status"]["podIP"]).is_empty();
    match seen.mode {
        NetworkMode::AwsVpc if !connected => "PROVISIONING",
        _ => "PENDING",
    }
}

/// Of the essential containers that have a health check.
fn health(note: &TaskNote, status: &Value) -> &'static str {
    let essential = |c: &&Value| {
        let key = crate::lower::container_name(text(&c["name"]));
        note.containers.get(&key).is_none_or(|n| n.essential)
    };
    let checked: Vec<&str> = items(&status["containers"])
        .iter()
        .filter(essential)
        .map(|c| text(&c["healthStatus"]))
        .filter(|h| !h.is_empty() && *h != "UNKNOWN")
        .collect();
    match checked.as_slice() {
        [] => "UNKNOWN",
        all if all.contains(&"UNHEALTHY") => "UNHEALTHY",
        _ => "HEALTHY",
    }
}

/// The network interface that stands for the pod's address.
fn attach(seen: &Seen, status: &mut Value) {
    let state = match text(&status["lastStatus"]) {
        "STOPPED" => "DELETED",
        "DEPROVISIONING" => "DETACHING",
        _ => "ATTACHED",
    };
    let ip = seen.pod.map(|p| text(&p["status"]["podIP"])).unwrap_or_default();
    let Some(list) = status["attachments"].as_array_mut() else { return };
    for attachment in list.iter_mut().filter(|a| a["type"] == "ElasticNetworkInterface") {
        let details = attachment["details"].as_array_mut();
        let known = details.as_ref().is_some_and(|d| d.iter().any(|d| d["name"] == "privateIPv4Address"));
        if let Some(details) = details.filter(|_| !known && !ip.is_empty()) {
            details.extend(interface(seen.id, ip));
        }
        if known || !ip.is_empty() || state == "DELETED" {
            attachment["status"] = json!(state);
        }
    }
}

/// The details that AWS tells of an interface. Its identifiers follow from the task's.
fn interface(id: &str, ip: &str) -> Vec<Value> {
    let hex = uuid(id, "interface").replace('-', "");
    let mac: Vec<&str> = (0..5).map(|i| &hex[i * 2..i * 2 + 2]).collect();
    let detail = |name: &str, value: String| json!({"name": name, "value": value});
    vec![
        detail("networkInterfaceId", format!("eni-{}", &hex[..17])),
        detail("macAddress", format!("0a:{}", mac.join(":"))),
        detail("privateDnsName", format!("ip-{}.ec2.internal", ip.replace('.', "-"))),
        detail("privateIPv4Address", ip.to_string()),
    ]
}

/// Times, each told once.
fn stamp(seen: &Seen, status: &mut Value) {
    let now = json!(seen.now);
    let state = rank(text(&status["lastStatus"]));
    let mut once = |member: &str, due: bool| {
        if due && status[member].is_null() {
            status[member] = now.clone();
        }
    };
    let placed = seen.pod.is_some_and(|p| !text(&p["spec"]["nodeName"]).is_empty());
    let any_run = items(&seen.pod.unwrap_or(&Value::Null)["status"]["containerStatuses"])
        .iter()
        .any(|c| !c["state"]["running"].is_null());
    once("connectivityAt", placed);
    once("pullStartedAt", placed);
    once("pullStoppedAt", any_run);
    once("startedAt", state == rank("RUNNING"));
    once("stoppingAt", state >= rank("STOPPING"));
    once("executionStoppedAt", state >= rank("DEPROVISIONING"));
    once("stoppedAt", state == rank("STOPPED"));
    if placed && status["connectivity"].is_null() {
        status["connectivity"] = json!("CONNECTED");
    }
}

/// With the pod gone nothing runs any more, whatever was seen last.
fn end_containers(status: &mut Value) {
    for container in status["containers"].as_array_mut().into_iter().flatten() {
        container["lastStatus"] = json!("STOPPED");
        for agent in container["managedAgents"].as_array_mut().into_iter().flatten() {
            agent["lastStatus"] = json!("STOPPED");
        }
    }
}

#[cfg(test)]
mod tests;
