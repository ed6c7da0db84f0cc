//! A Pod's printer columns: the famous STATUS and RESTARTS columns of `kubectl get pods`.

use crate::kinds::get::{flag, has, int, list, text};
use crate::table::{Cell, Column, none_if_empty};
use crate::time;
use jiff::Timestamp;
use serde_json::Value;

/// The columns.
pub const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::new("Ready", Cell::Fn(|p| summary(p).ready().into())),
    Column::new("Status", Cell::Fn(|p| summary(p).reason.into())),
    Column::new("Restarts", Cell::At(|p, now| summary(p).restarts(now).into())),
    Column::AGE,
    Column::wide("IP", Cell::Fn(|p| none_if_empty(pod_ip(p)).into())),
    Column::wide("Node", Cell::TextOrNone("/spec/nodeName")),
    Column::wide("Nominated Node", Cell::TextOrNone("/status/nominatedNodeName")),
    Column::wide("Readiness Gates", Cell::Fn(|p| gates(p).into())),
];

fn pod_ip(p: &Value) -> &str {
    let first = text(p, "/status/podIPs/0/ip");
    if first.is_empty() { text(p, "/status/podIP") } else { first }
}

fn gates(p: &Value) -> String {
    let gates = list(p, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates.iter().filter(|g| condition(p, text(g, "/conditionType")) == "True").count();
    format!("{met}/{}", gates.len())
}

/// The status of a condition, "" when there is none of that type.
pub fn condition<'a>(p: &'a Value, ty: &str) -> &'a str {
    let found = list(p, "/status/conditions").iter().find(|c| text(c, "/type") == ty);
    found.map_or("", |c| text(c, "/status"))
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    /// When the last container that restarted had ended, RFC 3339; "" when unknown.
    last_restart: String,
}

impl Summary {
    fn ready(&self) -> String {
        format!("{}/{}", self.ready, self.total)
    }

    fn restarts(&self, now: Timestamp) -> String {
        if self.restarts == 0 || self.last_restart.is_empty() {
            return self.restarts.to_string();
        }
        format!("{} ({} ago)", self.restarts, time::age(now, Some(&self.last_restart)))
    }

    fn count(&mut self, status: &Value) {
        self.restarts += int(status, "/restartCount").unwrap_or(0);
        let ended = text(status, "/lastState/terminated/finishedAt");
        // RFC 3339 in UTC sorts as text.
        if *ended > *self.last_restart {
            self.last_restart = ended.into();
        }
    }
}

fn summary(p: &Value) -> Summary {
    let phase = text(p, "/status/phase");
    let given = text(p, "/status/reason");
    let mut s = Summary {
        ready: 0,
        total: list(p, "/spec/containers").len(),
        reason: if given.is_empty() { phase } else { given }.into(),
        restarts: 0,
        last_restart: String::new(),
    };
    let gated = |c: &Value| text(c, "/type") == "PodScheduled" && text(c, "/reason") == "SchedulingGated";
    if list(p, "/status/conditions").iter().any(gated) {
        s.reason = "SchedulingGated".into();
    }
    let initializing = init_containers(p, &mut s);
    if !initializing || condition(p, "Initialized") == "True" {
        containers(p, &mut s);
    }
    if has(p, "/metadata/deletionTimestamp") {
        if given == "NodeLost" {
            s.reason = "Unknown".into();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            s.reason = "Terminating".into();
        }
    }
    s
}

fn is_sidecar(p: &Value, name: &str) -> bool {
    let mut own = list(p, "/spec/initContainers").iter().filter(|c| text(c, "/name") == name);
    own.next().is_some_and(|c| text(c, "/restartPolicy") == "Always")
}

/// Reads the init containers into the summary; true while they are not done. What is left in the restart
/// counts when they are done is the sidecars' share.
fn init_containers(p: &Value, s: &mut Summary) -> bool {
    let all = list(p, "/spec/initContainers");
    s.total += all.iter().filter(|c| text(c, "/restartPolicy") == "Always").count();
    let mut sidecars = Summary { reason: String::new(), last_restart: String::new(), ..*s };
    for (i, status) in list(p, "/status/initContainerStatuses").iter().enumerate() {
        s.count(status);
        let sidecar = is_sidecar(p, text(status, "/name"));
        if sidecar {
            sidecars.count(status);
        }
        let ended = status.pointer("/state/terminated").filter(|t| !t.is_null());
        let exit = ended.map(|t| int(t, "/exitCode").unwrap_or(0));
        if exit == Some(0) {
            continue;
        }
        if sidecar && flag(status, "/started") {
            s.ready += usize::from(flag(status, "/ready"));
            continue;
        }
        let waiting = text(status, "/state/waiting/reason");
        s.reason = match ended {
            Some(ended) => format!("Init:{}", ended_reason(ended)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{}", all.len()),
        };
        return true;
    }
    s.restarts = sidecars.restarts;
    s.last_restart = sidecars.last_restart;
    false
}

fn ended_reason(ended: &Value) -> String {
    let reason = text(ended, "/reason");
    let signal = int(ended, "/signal").unwrap_or(0);
    match (reason.is_empty(), signal) {
        (false, _) => reason.into(),
        (true, 0) => format!("ExitCode:{}", int(ended, "/exitCode").unwrap_or(0)),
        (true, signal) => format!("Signal:{signal}"),
    }
}

fn containers(p: &Value, s: &mut Summary) {
    let mut running = false;
    for status in list(p, "/status/containerStatuses").iter().rev() {
        s.count(status);
        let waiting = text(status, "/state/waiting/reason");
        if !waiting.is_empty() {
            s.reason = waiting.into();
        } else if let Some(ended) = status.pointer("/state/terminated").filter(|t| !t.is_null()) {
            s.reason = ended_reason(ended);
        } else if flag(status, "/ready") && has(status, "/state/running") {
            running = true;
            s.ready += 1;
        }
    }
    if s.reason == "Completed" && running {
        s.reason = if condition(p, "Ready") == "True" { "Running" } else { "NotReady" }.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn show(status: Value) -> (String, String, String) {
        let p = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
            "status": status});
        let s = summary(&p);
        let now = time::parse("2026-01-01T00:01:00Z").unwrap();
        (s.ready(), s.reason.clone(), s.restarts(now))
    }

    #[test]
    fn statuses() {
        let init_ok = json!([{"name": "i", "state": {"terminated": {"exitCode": 0}}, "restartCount": 7}]);
        let up = json!({"name": "a", "ready": true, "state": {"running": {}}, "restartCount": 2,
            "lastState": {"terminated": {"finishedAt": "2026-01-01T00:00:00Z"}}});
        for (status, ready, reason, restarts) in [
            (json!({"phase": "Pending"}), "0/2", "Pending", "0"),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
                "0/2",
                "SchedulingGated",
                "0",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                "0/2",
                "Init:0/1",
                "0",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "0/2",
                "Init:CrashLoopBackOff",
                "3",
            ),
            (
                json!({"phase": "Running", "initContainerStatuses": init_ok, "containerStatuses": [up, up]}),
                "2/2",
                "Running",
                "4 (60s ago)",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [up, {"name": "b", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
                "1/2",
                "ImagePullBackOff",
                "2 (60s ago)",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"name": "b", "state": {"terminated": {"exitCode": 3}}}]}),
                "0/2",
                "ExitCode:3",
                "0",
            ),
            (
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"name": "b", "state": {"terminated": {"reason": "Completed"}}}, up]}),
                "1/2",
                "Running",
                "2 (60s ago)",
            ),
            (json!({"phase": "Failed", "reason": "Evicted"}), "0/2", "Evicted", "0"),
        ] {
            assert_eq!(show(status.clone()), (ready.into(), reason.into(), restarts.into()), "{status}");
        }
    }
}
