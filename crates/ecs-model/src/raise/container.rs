//! One container of a task, from its entry in the Pod's status.

use super::{Seen, cause};
use crate::annotation::HEALTH_CONDITION;
use crate::lower::{NetworkMode, container_name, items, number, text};
use crate::task::attachment_id;
use serde_json::{Value, json};

/// The entry of a container in one of the Pod's lists.
pub(super) fn of<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    items(list).iter().find(|c| text(&c["name"]) == name)
}

/// The container now, from what it was.
pub(super) fn raise(seen: &Seen, before: &Value) -> Value {
    let mut container = before.clone();
    let key = container_name(text(&before["name"]));
    let Some(pod) = seen.pod else { return container };
    let spec = of(&pod["spec"]["containers"], &key).unwrap_or(&Value::Null);
    let Some(status) = of(&pod["status"]["containerStatuses"], &key) else { return container };
    let (running, ended) = (&status["state"]["running"], &status["state"]["terminated"]);
    if let Some(id) = text(&status["containerID"]).split("://").nth(1) {
        container["runtimeId"] = json!(id);
    }
    let image = text(&status["imageID"]);
    if let Some(digest) = image.rsplit('@').next().filter(|d| d.starts_with("sha256:")) {
        container["imageDigest"] = json!(digest);
    }
    if !running.is_null() {
        container["lastStatus"] = json!("RUNNING");
        container.as_object_mut().into_iter().for_each(|c| {
            // It may have been restarted by its own policy.
            c.remove("exitCode");
            c.remove("reason");
        });
    } else if !ended.is_null() {
        container["lastStatus"] = json!("STOPPED");
        if cause::ran(ended) {
            container["exitCode"] = ended["exitCode"].clone();
        }
        if let Some(reason) = cause::reason(ended) {
            container["reason"] = json!(reason);
        }
    }
    connect(seen, pod, spec, &mut container);
    container["healthStatus"] = json!(health(pod, spec, status, text(&before["healthStatus"])));
    if seen.spec["enableExecuteCommand"] == true {
        manage(seen, &mut container);
    }
    container
}

fn connect(seen: &Seen, pod: &Value, spec: &Value, container: &mut Value) {
    let ip = text(&pod["status"]["podIP"]);
    if seen.mode == NetworkMode::AwsVpc {
        if !ip.is_empty() {
            container["networkInterfaces"] =
                json!([{"attachmentId": attachment_id(seen.id), "privateIpv4Address": ip}]);
            container["networkBindings"] = json!([]);
        }
        return;
    }
    let placed = !text(&pod["spec"]["nodeName"]).is_empty();
    let bound = |port: &Value| {
        let host = number(&port["hostPort"]).filter(|p| *p > 0)?;
        let protocol = text(&port["protocol"]).to_lowercase();
        Some(
            json!({"bindIP": "0.0.0.0", "containerPort": port["containerPort"], "hostPort": host, "protocol": protocol}),
        )
    };
    if placed {
        container["networkBindings"] = items(&spec["ports"]).iter().filter_map(bound).collect();
    }
}

fn health(pod: &Value, spec: &Value, status: &Value, before: &str) -> &'static str {
    if spec["readinessProbe"].is_null() {
        return "UNKNOWN";
    }
    let key = text(&spec["name"]);
    let condition = items(&pod["status"]["conditions"]).iter().find(|c| c["type"] == HEALTH_CONDITION);
    let failed =
        condition.filter(|c| c["status"] == "False").map(|c| text(&c["message"])).unwrap_or_default();
    let running = !status["state"]["running"].is_null();
    match (running, failed.split(' ').any(|name| name == key), status["ready"] == true) {
        (true, true, _) => "UNHEALTHY",
        (true, false, true) => "HEALTHY",
        // Its end says nothing about its health.
        (false, ..) if before == "HEALTHY" => "HEALTHY",
        (false, ..) if before == "UNHEALTHY" => "UNHEALTHY",
        _ => "UNKNOWN",
    }
}

/// The agent by which commands are executed: it is there as soon as the container runs.
fn manage(seen: &Seen, container: &mut Value) {
    let state = text(&container["lastStatus"]).to_string();
    let known = container["managedAgents"][0]["lastStartedAt"].clone();
    let mut agent = json!({"name": "ExecuteCommandAgent", "lastStatus": state});
    if !known.is_null() {
        agent["lastStartedAt"] = known;
    } else if state == "RUNNING" {
        agent["lastStartedAt"] = json!(seen.now);
    }
    container["managedAgents"] = json!([agent]);
}
