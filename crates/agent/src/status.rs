//! What the API shall say of a pod: its state in, `status` out. Pure.
//!
//! Invariants: a terminal phase is reported only when no container runs any more; foreign conditions are kept;
//! `lastTransitionTime` changes only with the condition's status.

use crate::decide::may_restart_all;
use crate::decide::resize::{actuated, pending};
use crate::decide::task::unhealthy;
use crate::pod::{ContainerView, PodView, Role};
use crate::state::{ContainerRecord, Hook, Phase, PodState, ProbeKind, Terminated, Waiting, Why};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PodCondition, VolumeMount};
use machinery::time::format as time_text;
use runtime::api::Exit;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::net::IpAddr;

/// The condition of a pod that the node evicts.
const DISRUPTED: &str = "DisruptionTarget";

/// Condition of a task's pod: false names the containers whose health check failed, with spaces between.
pub const HEALTH_CONDITION: &str = ecs_model::annotation::HEALTH_CONDITION;

/// `gantry://<64 hex digits>`: the id of one instance of a container.
pub fn container_id(uid: &str, name: &str, attempt: u32) -> String {
    let digest = Sha256::digest(format!("{uid}/{name}/{attempt}"));
    digest.iter().fold(String::from("gantry://"), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}

/// A container's end in the API's words (the message comes from the termination log).
pub fn terminated(started_at_ns: i64, exit: &Exit, container_id: String) -> Terminated {
    let time = |ns: i64| Timestamp::from_nanosecond(i128::from(ns)).ok();
    let reason = match (exit.start_error.is_empty(), exit.oom_killed, exit.code) {
        (false, _, _) => "StartError",
        (_, true, _) => "OOMKilled",
        (_, _, 0) => "Completed",
        _ => "Error",
    };
    Terminated {
        exit_code: if exit.start_error.is_empty() { exit.code } else { 128 },
        signal: 0,
        reason: reason.into(),
        message: exit.start_error.clone(),
        started_at: if started_at_ns > 0 { time(started_at_ns) } else { None },
        finished_at: time(exit.finished_at_ns),
        container_id,
    }
}

/// Is the container ready, as far as its probes say?
pub fn is_ready(record: &ContainerRecord, container: &ContainerView) -> bool {
    if container.role == Role::Init {
        return record.ended().is_some_and(|end| end.exit_code == 0);
    }
    let probed = match &container.spec.readiness_probe {
        None => true,
        Some(_) => record.probes.get(&ProbeKind::Readiness).is_some_and(|p| p.result == Some(true)),
    };
    record.running() && record.started && record.post_start == Hook::Done && probed
}

/// The whole `status` of the pod.
pub fn status(state: &PodState, pod: &PodView, host_ips: &[IpAddr], now: Timestamp) -> Value {
    let phase = phase(state, pod);
    let mut status = Map::new();
    let mut put = |key: &str, value: Value| status.insert(key.to_string(), value);
    put("phase", json!(phase));
    put("observedGeneration", json!(pod.object.meta().generation));
    put("qosClass", json!(pod.qos().as_str()));
    put("startTime", json!(time_text(state.start_time)));
    let rejected = was_rejected(state, pod);
    // A pod that was never let in has neither containers nor conditions of its own.
    put("conditions", Value::Array(if rejected { Vec::new() } else { conditions(state, pod, phase, now) }));
    if let Some(first) = host_ips.first() {
        put("hostIP", json!(first));
        put("hostIPs", host_ips.iter().map(|ip| json!({"ip": ip})).collect());
    }
    if let Some(first) = state.sandbox.ips.first() {
        put("podIP", json!(first));
        put("podIPs", state.sandbox.ips.iter().map(|ip| json!({"ip": ip})).collect());
    }
    let stored = pod.pod.status.as_ref();
    if let Some(verdict) = &state.verdict {
        put("reason", json!(verdict.reason));
        let prefix = if verdict.rejected { "Pod was rejected: " } else { "" };
        put("message", json!(format!("{prefix}{}", verdict.message)));
    } else if state.ending.as_ref().is_some_and(|e| e.why == Why::Deadline) {
        put("reason", json!("DeadlineExceeded"));
        put("message", json!("Pod was active on the node longer than the specified deadline"));
    } else if pod.stored_phase_is_terminal() {
        let texts = stored.map(|s| [("reason", &s.reason), ("message", &s.message)]);
        for (key, text) in texts.into_iter().flatten() {
            if let Some(text) = text {
                put(key, json!(text));
            }
        }
    }
    if let Some(node) = stored.and_then(|s| s.nominated_node_name.as_ref()) {
        put("nominatedNodeName", json!(node));
    }
    let refused = state.resize.refusal.is_some();
    let list = |roles: &[Role]| -> Value {
        let wanted = pod.containers.iter().filter(|c| roles.contains(&c.role));
        wanted
            .filter_map(|c| Some(container_status(state.containers.get(c.name())?, c, pod, refused)))
            .collect()
    };
    let groups = [
        ("containerStatuses", list(&[Role::Main])),
        ("initContainerStatuses", list(&[Role::Init, Role::Sidecar])),
        ("ephemeralContainerStatuses", list(&[Role::Ephemeral])),
    ];
    for (key, list) in groups {
        if !rejected && list.as_array().is_some_and(|l| !l.is_empty()) {
            put(key, list);
        }
    }
    let running = !rejected && state.containers.values().any(ContainerRecord::running);
    if let Some(whole) = pod.spec().resources.as_ref().filter(|_| running) {
        // Until a resize is done, what was there before stands.
        let before = stored.and_then(|s| s.resources.as_ref()).filter(|_| pending(state, pod));
        put("resources", json!(before.unwrap_or(whole)));
        let kept = stored.and_then(|s| s.allocated_resources.as_ref()).filter(|_| refused);
        if let Some(given) = kept.or(whole.requests.as_ref()) {
            put("allocatedResources", json!(given));
        }
    }
    Value::Object(status)
}

/// Was the pod never let in, by this agent or the one before it?
fn was_rejected(state: &PodState, pod: &PodView) -> bool {
    let told = |s: &k8s_openapi::api::core::v1::PodStatus| s.container_statuses.is_some();
    let before =
        pod.stored_phase() == "Failed" && !state.sandbox.exists && !pod.pod.status.as_ref().is_some_and(told);
    before || state.verdict.as_ref().is_some_and(|v| v.rejected)
}

/// The pod's phase.
pub fn phase(state: &PodState, pod: &PodView) -> &'static str {
    let mut ends = Vec::new();
    let (mut waiting, mut running) = (0, 0);
    let mut init_left = false;
    let mut init_failed = false;
    let mut any_up = false;
    for container in &pod.containers {
        let Some(record) = state.containers.get(container.name()) else { continue };
        let up = matches!(record.phase, Phase::Running { .. } | Phase::Starting { .. });
        any_up |= up;
        let end = record.ended().or(record.last.as_ref());
        match container.role {
            Role::Init => {
                init_left |= !state.initialized && record.ended().is_none_or(|e| e.exit_code != 0);
                init_failed |= record.ended().is_some_and(|e| e.exit_code != 0);
            }
            Role::Sidecar => init_left |= !state.initialized && !record.started,
            Role::Main if record.running() => running += 1,
            Role::Main => match end {
                Some(end) => ends.push(end.exit_code),
                None => waiting += 1,
            },
            Role::Ephemeral => {}
        }
    }
    match pod.stored_phase() {
        // A terminal phase is for ever.
        "Succeeded" => return "Succeeded",
        "Failed" => return "Failed",
        _ => {}
    }
    if let Some(ending) = &state.ending {
        if any_up {
            return if init_left { "Pending" } else { "Running" };
        }
        let clean = waiting == 0 && !init_failed && ends.iter().all(|code| *code == 0);
        return match (ending.why, clean) {
            _ if state.verdict.is_some() => "Failed",
            (Why::Deadline, _) => "Failed",
            (_, true) => "Succeeded",
            (_, false) => "Failed",
        };
    }
    if init_left || waiting > 0 {
        return "Pending";
    }
    if running > 0 || !ends.is_empty() { "Running" } else { "Pending" }
}

fn container_status(
    record: &ContainerRecord,
    container: &ContainerView,
    pod: &PodView,
    refused: bool,
) -> Value {
    let uid = pod.uid();
    let creating = || json!({"waiting": {"reason": pod.creating_reason()}});
    let facts = record.facts.as_ref();
    let state = match (&record.shown, &record.phase) {
        (Some(why), _) if record.stopping.is_none() => waiting(why),
        (_, Phase::Waiting { why, .. }) => waiting(why),
        (_, Phase::Starting { before: Some(end) } | Phase::Exited(end)) => {
            json!({"terminated": end_value(end)})
        }
        (_, Phase::Starting { before: None }) => creating(),
        (_, Phase::Running { .. }) if record.post_start != Hook::Done => creating(),
        (_, Phase::Running { started_at }) => json!({"running": {"startedAt": time_text(*started_at)}}),
    };
    let shown_end = record.shown.as_ref().and_then(|_| record.ended());
    // While the next instance starts, the API still sees the one before it.
    let starting = matches!(record.phase, Phase::Starting { before: Some(_) });
    let last = match (shown_end, starting) {
        (Some(end), _) => Some(end),
        (None, true) => facts.and_then(|f| f.last.as_ref()),
        (None, false) => record.last.as_ref(),
    };
    let attempt = if starting { record.attempt.saturating_sub(1) } else { record.attempt };
    let mut value = json!({
        "name": container.name(),
        "image": facts.map_or(container.image(), |f| f.image.as_str()),
        "imageID": facts.map_or("", |f| f.image_id.as_str()),
        "restartCount": attempt,
        "ready": is_ready(record, container),
        "started": record.running() && record.started && record.post_start == Hook::Done,
        "state": state,
        "lastState": last.map_or_else(|| json!({}), |end| json!({"terminated": end_value(end)})),
    });
    let made = record.running() || record.ended().is_some_and(|e| !e.container_id.is_empty());
    if made || starting {
        value["containerID"] = json!(container_id(uid, container.name(), attempt));
    } else if let Some(last) = last.filter(|l| !l.container_id.is_empty()) {
        value["containerID"] = json!(last.container_id);
    }
    if value.get("containerID").is_some() {
        let mounts: Vec<Value> = container.spec.volume_mounts.iter().flatten().map(mount_status).collect();
        if !mounts.is_empty() {
            value["volumeMounts"] = json!(mounts);
        }
        if let Some(facts) = facts {
            let mut user = json!({"linux": {"uid": facts.uid, "gid": facts.gid}});
            if !facts.groups.is_empty() {
                user["linux"]["supplementalGroups"] = json!(facts.groups);
            }
            value["user"] = user;
        }
    }
    if record.running() {
        if let Some(signal) = container.spec.lifecycle.as_ref().and_then(|l| l.stop_signal.as_ref()) {
            value["stopSignal"] = json!(signal);
        }
        let has = actuated(record).or(container.spec.resources.as_ref());
        // What was refused is not given; what is under way is.
        let given = if refused { has } else { container.spec.resources.as_ref() };
        if let Some(requests) = given.and_then(|r| r.requests.as_ref()) {
            value["allocatedResources"] = json!(requests);
        }
        if let Some(has) = has {
            value["resources"] = json!(has);
        }
    }
    value
}

fn mount_status(mount: &VolumeMount) -> Value {
    let mut value = json!({"name": mount.name, "mountPath": mount.mount_path});
    if mount.read_only == Some(true) {
        let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        value["readOnly"] = json!(true);
        value["recursiveReadOnly"] = json!(if recursive { "Enabled" } else { "Disabled" });
    }
    value
}

fn waiting(why: &Waiting) -> Value {
    let mut value = json!({"reason": why.reason});
    if !why.message.is_empty() {
        value["message"] = json!(why.message);
    }
    json!({"waiting": value})
}

fn end_value(end: &Terminated) -> Value {
    let time = |at: Option<Timestamp>| json!(time_text(at.unwrap_or(Timestamp::UNIX_EPOCH)));
    let mut value = json!({
        "exitCode": end.exit_code, "reason": end.reason,
        "startedAt": time(end.started_at), "finishedAt": time(end.finished_at),
    });
    if !end.container_id.is_empty() {
        value["containerID"] = json!(end.container_id);
    }
    if !end.message.is_empty() {
        value["message"] = json!(end.message);
    }
    if end.signal != 0 {
        value["signal"] = json!(end.signal);
    }
    value
}

struct Verdict {
    kind: &'static str,
    /// `None`: true. Reason and message otherwise.
    why_not: Option<(&'static str, String)>,
    /// Reason of a true condition.
    reason: &'static str,
}

fn verdicts(state: &PodState, pod: &PodView, phase: &str) -> Vec<Verdict> {
    let names = |unfit: &dyn Fn(&ContainerView, &ContainerRecord) -> bool| -> Vec<String> {
        let all = pod.containers.iter().filter_map(|c| Some((c, state.containers.get(c.name())?)));
        all.filter(|(c, r)| unfit(c, r)).map(|(c, _)| c.name().to_string()).collect()
    };
    let incomplete = names(&|c, r| match c.role {
        Role::Init => !state.initialized && r.ended().is_none_or(|e| e.exit_code != 0),
        Role::Sidecar => !state.initialized && !r.started,
        Role::Main | Role::Ephemeral => false,
    });
    let unready = names(&|c, r| matches!(c.role, Role::Main | Role::Sidecar) && !is_ready(r, c));
    let done = match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        _ => None,
    };
    let not_ready = done.clone().or_else(|| {
        (!unready.is_empty()).then(|| {
            ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))
        })
    });
    let gates = || {
        let stored = pod.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let missing = pod.spec().readiness_gates.iter().flatten().filter_map(|gate| {
            let kind = &gate.condition_type;
            match stored.iter().find(|c| c.type_ == *kind) {
                Some(c) if c.status == "True" => None,
                Some(_) => Some(format!("the status of pod readiness gate \"{kind}\" is not \"True\"")),
                None => {
                    Some(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist."))
                }
            }
        });
        let missing: Vec<String> = missing.collect();
        (!missing.is_empty()).then(|| ("ReadinessGatesNotReady", missing.join(", ")))
    };
    let initialized = if phase == "Succeeded" || incomplete.is_empty() {
        None
    } else {
        let text = format!("containers with incomplete status: [{}]", incomplete.join(" "));
        Some(("ContainersNotInitialized", text))
    };
    // The sandbox is made while volumes are mounted: nothing starts before both are there.
    let begun = || state.containers.values().any(|r| r.running() || r.ended().is_some());
    let furnished = state.sandbox.setup.ready && (state.volumes.ready || begun());
    let sandboxed = furnished && state.ending.as_ref().is_none_or(|_| !state.teardown.ready);
    let mut list = vec![
        Verdict {
            kind: "PodReadyToStartContainers",
            why_not: (!sandboxed).then(|| ("", String::new())),
            reason: "",
        },
        Verdict {
            kind: "Initialized",
            why_not: initialized,
            reason: if phase == "Succeeded" { "PodCompleted" } else { "" },
        },
        Verdict { kind: "Ready", why_not: not_ready.clone().or_else(gates), reason: "" },
        Verdict { kind: "ContainersReady", why_not: not_ready, reason: "" },
        Verdict { kind: "PodScheduled", why_not: None, reason: "" },
    ];
    if pod.containers.iter().any(may_restart_all) {
        let idle = done.unwrap_or_default();
        let why_not = (!state.restarting_all).then_some(idle);
        list.push(Verdict {
            kind: "AllContainersRestarting",
            why_not,
            reason: "RestartAllContainersStarted",
        });
    }
    if pod.task.is_some() {
        let names = unhealthy(state, pod);
        let why_not = (!names.is_empty()).then(|| ("Unhealthy", names.join(" ")));
        list.push(Verdict { kind: HEALTH_CONDITION, why_not, reason: "" });
    }
    list
}

/// Conditions that are there only while a resize is pending.
pub const RESIZING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

fn resizing(state: &PodState, pod: &PodView, stored: &[PodCondition], now: Timestamp) -> Option<Value> {
    if !pending(state, pod) {
        return None;
    }
    let (kind, reason, message) = match &state.resize.refusal {
        Some(refusal) => (RESIZING[0], refusal.reason, refusal.message.as_str()),
        None if state.resize.error.is_empty() => (RESIZING[1], "", ""),
        None => (RESIZING[1], "Error", state.resize.error.as_str()),
    };
    let old = stored.iter().find(|c| c.type_ == kind);
    let since = old.and_then(|c| c.last_transition_time.as_ref()).map_or(now, |t| t.0);
    let mut condition = json!({"type": kind, "status": "True", "lastProbeTime": null,
        "lastTransitionTime": time_text(since), "observedGeneration": pod.object.meta().generation});
    for (key, text) in [("reason", reason), ("message", message)] {
        if !text.is_empty() {
            condition[key] = json!(text);
        }
    }
    Some(condition)
}

fn conditions(state: &PodState, pod: &PodView, phase: &str, now: Timestamp) -> Vec<Value> {
    let stored = pod.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let generation = pod.object.meta().generation;
    let verdicts = verdicts(state, pod, phase);
    let mut list: Vec<Value> = Vec::new();
    for verdict in &verdicts {
        let status = if verdict.why_not.is_none() { "True" } else { "False" };
        let old = stored.iter().find(|c| c.type_ == verdict.kind);
        let since = old
            .filter(|c| c.status == status)
            .and_then(|c| c.last_transition_time.as_ref())
            .map_or(now, |t| t.0);
        let mut condition = json!({
            "type": verdict.kind, "status": status, "lastProbeTime": null,
            "lastTransitionTime": time_text(since),
        });
        if generation > 0 {
            condition["observedGeneration"] = json!(generation);
        }
        let (reason, message) = match &verdict.why_not {
            Some((reason, message)) => (*reason, message.as_str()),
            None => (verdict.reason, ""),
        };
        for (key, text) in [("reason", reason), ("message", message)] {
            if !text.is_empty() {
                condition[key] = json!(text);
            }
        }
        list.push(condition);
    }
    if let Some(verdict) = &state.verdict {
        let since = stored.iter().find(|c| c.type_ == DISRUPTED && c.status == "True");
        let since = since.and_then(|c| c.last_transition_time.as_ref()).map_or(now, |t| t.0);
        let message = match verdict.reason.as_str() {
            "Preempting" => "Pod was preempted by Kubelet to accommodate a critical pod.",
            _ => &verdict.message,
        };
        list.push(json!({"type": DISRUPTED, "status": "True", "reason": "TerminationByKubelet",
            "message": message, "lastProbeTime": null, "lastTransitionTime": time_text(since)}));
    }
    let known = |kind: &str| {
        verdicts.iter().any(|v| v.kind == kind) || (state.verdict.is_some() && kind == DISRUPTED)
    };
    list.extend(resizing(state, pod, stored, now));
    let foreign = |c: &&PodCondition| !known(&c.type_) && !RESIZING.contains(&c.type_.as_str());
    list.extend(stored.iter().filter(foreign).map(|c| json!(c)));
    list
}

#[cfg(test)]
mod tests;
