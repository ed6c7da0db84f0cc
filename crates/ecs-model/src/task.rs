//! A task as two documents (`spec`: what was decided, `status`: what was seen) and as the one that users see.
//!
//! `spec` holds AWS's members, and these of our own, which no answer shows: `nodeName` (EC2: the chosen instance's
//! node), `networkConfiguration`, `protection` (`{enabled, expirationDate}`), `activating` (it has yet to
//! join load balancers and Cloud Map, before it counts as running), `deactivating` (since when it leaves its load
//! balancers, before it stops). `status` starts with the task ([`initial_status`]) and is the task
//! controller's from then on. Deliberately not here: the state machine (`lifecycle`).

use crate::names::{Resource, Scope, derived_id};
use machinery::kinds::get::{list, text};
use serde_json::{Map, Value, json};

/// Members of `spec` that are ours, not AWS's.
pub const OWN_MEMBERS: [&str; 5] =
    ["activating", "deactivating", "networkConfiguration", "nodeName", "protection"];
/// Members that only the spec decides, whatever the status says.
const DECIDED: [&str; 2] = ["desiredStatus", "tags"];
/// Why a Fargate task was not placed, in AWS's words.
pub const NO_CAPACITY: &str =
    "Capacity is unavailable at this time. Please try again later or in a different availability zone";
/// Annotation: a fingerprint of the RunTask request that made the task, where it had a client token.
pub const REQUEST_ANNOTATION: &str = "ecs.gantry.dev/request";

/// The status of a task nobody has acted on: containers pending, the network interface announced.
pub fn initial_status(scope: &Scope, cluster: &str, id: &str, spec: &Value, definition: &Value) -> Value {
    let awsvpc = text(definition, "/networkMode") == "awsvpc";
    let task_arn = text(spec, "/taskArn");
    let containers: Vec<Value> = list(definition, "/containerDefinitions")
        .iter()
        .map(|c| container(container_arn(scope, cluster, id, text(c, "/name")), task_arn, spec, c))
        .collect();
    let mut attachments = Vec::new();
    if awsvpc {
        let subnet = text(spec, "/networkConfiguration/awsvpcConfiguration/subnets/0");
        attachments.push(json!({
            "id": attachment_id(id), "type": "ElasticNetworkInterface", "status": "PRECREATED",
            "details": [{"name": "subnetId", "value": subnet}],
        }));
    }
    json!({
        "lastStatus": if awsvpc { "PROVISIONING" } else { "PENDING" },
        "healthStatus": "UNKNOWN", "containers": containers, "attachments": attachments, "version": 1,
    })
}

fn container(arn: String, task_arn: &str, spec: &Value, definition: &Value) -> Value {
    let name = text(definition, "/name");
    let overridden = list(spec, "/overrides/containerOverrides").iter().find(|o| text(o, "/name") == name);
    let mut out = json!({
        "containerArn": arn, "taskArn": task_arn, "name": name,
        "image": definition["image"], "lastStatus": "PENDING", "networkInterfaces": [],
        "healthStatus": "UNKNOWN",
    });
    for member in ["cpu", "memory", "memoryReservation"] {
        let own = definition.get(member).filter(|v| !v.is_null());
        let value = overridden.and_then(|o| o.get(member)).filter(|v| !v.is_null()).or(own);
        if let Some(value) = value {
            out[member] = json!(value.to_string());
        }
    }
    out
}

/// The ARN of a container of a task: the same whenever it is asked for.
pub fn container_arn(scope: &Scope, cluster: &str, task_id: &str, container: &str) -> String {
    let id = dashed(&derived_id(&format!("container/{task_id}/{container}")));
    scope.arn(&Resource::Container([cluster.to_string(), task_id.to_string(), id]))
}

/// The id of a task's network attachment: the same whenever it is asked for.
pub fn attachment_id(task_id: &str) -> String {
    dashed(&derived_id(&format!("attachment/{task_id}")))
}

/// 32 hex digits in a UUID's form.
pub fn dashed(hex: &str) -> String {
    let part = |a, b| hex.get(a..b).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

/// What DescribeTasks answers: the decided members and the seen ones. `tags` is always there: callers that did not ask
/// for tags empty it.
pub fn describe(spec: &Value, status: &Value) -> Value {
    let members = |v: &Value| v.as_object().cloned().unwrap_or_default();
    let mut out: Map<String, Value> = members(spec);
    OWN_MEMBERS.iter().for_each(|m| drop(out.remove(*m)));
    out.extend(members(status).into_iter().filter(|(k, v)| !DECIDED.contains(&k.as_str()) && !v.is_null()));
    if is_stopped(status) {
        out.insert("desiredStatus".into(), json!("STOPPED"));
    }
    out.entry("tags").or_insert_with(|| json!([]));
    Value::Object(out)
}

/// Is the task over, by its status?
pub fn is_stopped(status: &Value) -> bool {
    matches!(text(status, "/lastStatus"), "STOPPED" | "DELETED")
}

/// `RUNNING` or `STOPPED`: what the task should be.
pub fn desired_status(spec: &Value, status: &Value) -> &'static str {
    if is_stopped(status) || text(spec, "/desiredStatus") == "STOPPED" { "STOPPED" } else { "RUNNING" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Place;

    fn scope() -> Scope {
        let place = Place::new("123456789012", "us-east-1");
        Scope { place: place.clone(), defaults: place }
    }

    #[test]
    fn a_new_task_shows_what_was_decided_and_that_nothing_happened() {
        let definition = json!({"networkMode": "awsvpc", "containerDefinitions": [
            {"name": "web", "image": "nginx", "cpu": 128, "memory": 256}, {"name": "log", "image": "x", "cpu": 0}]});
        let spec = json!({"taskArn": "arn:t", "desiredStatus": "RUNNING", "nodeName": "n1", "launchType": "EC2",
            "overrides": {"containerOverrides": [{"name": "web", "cpu": 64}]},
            "networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-a", "subnet-b"]}}});
        let status = initial_status(&scope(), "prod", "0a", &spec, &definition);
        assert_eq!(status["containers"][0]["cpu"], "64");
        assert_eq!(status["containers"][0]["memory"], "256");
        assert!(status["containers"][1].get("memory").is_none());
        assert_eq!(status["attachments"][0]["details"][0]["value"], "subnet-a");
        let shown = describe(&spec, &status);
        assert_eq!(
            (&shown["lastStatus"], &shown["desiredStatus"]),
            (&json!("PROVISIONING"), &json!("RUNNING"))
        );
        assert!(shown.get("nodeName").is_none());
        assert_eq!(shown["tags"], json!([]));
        let bridge = initial_status(&scope(), "prod", "0a", &spec, &json!({"containerDefinitions": []}));
        assert_eq!((&bridge["lastStatus"], &bridge["attachments"]), (&json!("PENDING"), &json!([])));
    }

    #[test]
    fn what_was_seen_wins_but_for_what_is_wanted() {
        let spec = json!({"desiredStatus": "RUNNING", "stoppedReason": "asked", "stopCode": "UserInitiated"});
        let status = json!({"lastStatus": "STOPPED", "desiredStatus": "RUNNING", "stoppedReason": "seen"});
        let shown = describe(&spec, &status);
        assert_eq!(shown["desiredStatus"], "STOPPED");
        assert_eq!((&shown["stoppedReason"], &shown["stopCode"]), (&json!("seen"), &json!("UserInitiated")));
        assert_eq!(desired_status(&json!({"desiredStatus": "STOPPED"}), &json!({})), "STOPPED");
    }

    #[test]
    fn derived_ids_look_like_uuids() {
        assert_eq!(dashed("00112233445566778899aabbccddeeff"), "00112233-4455-6677-8899-aabbccddeeff");
        let arn = container_arn(&scope(), "prod", "0a", "web");
        assert!(arn.starts_with("arn:aws:ecs:us-east-1:123456789012:container/prod/0a/"), "{arn}");
        assert_ne!(arn, container_arn(&scope(), "prod", "0a", "log"));
    }
}
