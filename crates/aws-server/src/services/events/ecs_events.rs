//! What ECS tells the default bus, as values: from an object's old and new form to events. Pure (ids are added later).

use ecs_model::doc::Doc;
use ecs_model::task;
use jiff::Timestamp;
use machinery::kinds::get::{list, text};
use serde_json::{Value, json};

/// A happening: what it is, whose it is, what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// `ECS Task State Change`.
    pub detail_type: &'static str,
    /// The ARN that it is about; its account and region are the event's.
    pub resource: String,
    /// The detail.
    pub detail: Value,
}

/// Members of a task that the event has as text.
const TASK_TIMES: &str = "connectivityAt createdAt executionStoppedAt pullStartedAt pullStoppedAt startedAt \
    stoppedAt stoppingAt";
/// A change of one of these is told.
const TASK_TOLD: [&str; 6] =
    ["connectivity", "containers", "desiredStatus", "healthStatus", "lastStatus", "attachments"];
/// The words of a service's own events, and the action that they tell of.
const ACTIONS: [(&str, &str, &str); 4] = [
    ("has reached a steady state", "SERVICE_STEADY_STATE", "INFO"),
    ("was unable to place a task", "SERVICE_TASK_PLACEMENT_FAILURE", "ERROR"),
    ("unable to consistently start tasks successfully", "SERVICE_TASK_START_IMPAIRED", "WARN"),
    ("updated desired count", "SERVICE_DESIRED_COUNT_UPDATED", "INFO"),
];

fn iso(seconds: &Value) -> Option<Value> {
    let ms = (seconds.as_f64()? * 1_000.0) as i64;
    Some(json!(format!("{:.3}", Timestamp::from_millisecond(ms).ok()?)))
}

/// The event of a task that changed; `None`: nothing that is told.
pub fn of_task(old: Option<&Doc>, new: &Doc, now: Timestamp) -> Option<Told> {
    let shown = task::describe(new.spec(), new.status());
    if text(&shown, "/lastStatus").is_empty() {
        // Not looked at by the controller yet: it writes the first status at once.
        return None;
    }
    if let Some(old) = old {
        let before = task::describe(old.spec(), old.status());
        if TASK_TOLD.iter().all(|m| before[*m] == shown[*m]) {
            return None;
        }
    }
    let mut detail = shown;
    for member in TASK_TIMES.split(' ') {
        if let Some(time) = iso(&detail[member]) {
            detail[member] = time;
        }
    }
    detail["updatedAt"] = json!(format!("{now:.3}"));
    detail.as_object_mut().map(|d| d.remove("tags"));
    for attachment in detail["attachments"].as_array_mut().into_iter().flatten() {
        if attachment["type"] == "ElasticNetworkInterface" {
            attachment["type"] = json!("eni");
        }
    }
    let resource = text(new.spec(), "/taskArn").to_string();
    Some(Told { detail_type: "ECS Task State Change", resource, detail })
}

/// The events of a service that changed: its own new lines, and its deployments' new states.
pub fn of_service(old: Option<&Doc>, new: &Doc, now: Timestamp) -> Vec<Told> {
    let resource = text(new.spec(), "/serviceArn").to_string();
    let before = |member: &str| old.map(|o| list(o.status(), member)).unwrap_or_default();
    let mut out = Vec::new();
    for deployment in list(new.status(), "/deployments") {
        let same =
            |d: &&Value| d["id"] == deployment["id"] && d["rolloutState"] == deployment["rolloutState"];
        let (kind, name) = match text(deployment, "/rolloutState") {
            "IN_PROGRESS" => ("INFO", "SERVICE_DEPLOYMENT_IN_PROGRESS"),
            "COMPLETED" => ("INFO", "SERVICE_DEPLOYMENT_COMPLETED"),
            "FAILED" => ("ERROR", "SERVICE_DEPLOYMENT_FAILED"),
            _ => continue,
        };
        if before("/deployments").iter().any(|d| same(&d)) {
            continue;
        }
        let detail = json!({"eventType": kind, "eventName": name, "deploymentId": deployment["id"],
            "updatedAt": format!("{now:.3}"), "reason": text(deployment, "/rolloutStateReason")});
        out.push(Told { detail_type: "ECS Deployment State Change", resource: resource.clone(), detail });
    }
    // The newest line comes first.
    for line in list(new.status(), "/events").iter().rev() {
        if before("/events").iter().any(|e| e["id"] == line["id"]) {
            continue;
        }
        let message = text(line, "/message");
        let Some((_, name, kind)) = ACTIONS.iter().find(|(words, ..)| message.contains(words)) else {
            continue;
        };
        let mut detail = json!({"eventType": kind, "eventName": name, "clusterArn": new.spec()["clusterArn"],
            "createdAt": iso(&line["createdAt"]).unwrap_or_else(|| json!(format!("{now:.3}")))});
        if *kind != "INFO" {
            detail["reason"] = json!(reason(message));
        }
        out.push(Told { detail_type: "ECS Service Action", resource: resource.clone(), detail });
    }
    out
}

/// The code of a placement failure, where its line tells which.
fn reason(message: &str) -> &str {
    let known = [
        ("insufficient CPU", "RESOURCE:CPU"),
        ("insufficient memory", "RESOURCE:MEMORY"),
        ("port", "RESOURCE:PORTS"),
        ("attribute", "ATTRIBUTE"),
        ("no container instances", "NO_CONTAINER_INSTANCES"),
    ];
    known.iter().find(|(words, _)| message.contains(words)).map_or(message, |(_, code)| code)
}

/// The event of a container instance, as DescribeContainerInstances shows it; `None`: nothing that is told.
pub fn of_instance(old: Option<&Value>, new: &Value, now: Timestamp) -> Option<Told> {
    let told = ["agentConnected", "status", "attributes", "registeredResources"];
    if old.is_some_and(|old| told.iter().all(|m| old[*m] == new[*m])) {
        return None;
    }
    let mut detail = new.clone();
    if let Some(time) = iso(&detail["registeredAt"]) {
        detail["registeredAt"] = time;
    }
    detail["updatedAt"] = json!(format!("{now:.3}"));
    let resource = text(new, "/containerInstanceArn").to_string();
    Some(Told { detail_type: "ECS Container Instance State Change", resource, detail })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_100).unwrap()
    }

    fn task(last: &str, more: Value) -> Doc {
        let mut status = json!({"lastStatus": last, "containers": [{"name": "web", "lastStatus": last}],
            "attachments": [{"type": "ElasticNetworkInterface", "status": "ATTACHED"}], "version": 3});
        machinery::patch::merge(&mut status, &more);
        Doc(json!({"spec": {"taskArn": "arn:t", "clusterArn": "arn:c", "createdAt": 1_700_000_000.25,
            "desiredStatus": "RUNNING", "nodeName": "n", "tags": [{"key": "a", "value": "b"}]}, "status": status}))
    }

    #[test]
    fn a_task_tells_of_its_states() {
        let told = of_task(Some(&task("PENDING", json!({}))), &task("RUNNING", json!({})), now()).unwrap();
        assert_eq!((told.detail_type, told.resource.as_str()), ("ECS Task State Change", "arn:t"));
        let detail = &told.detail;
        assert_eq!((&detail["lastStatus"], &detail["desiredStatus"]), (&json!("RUNNING"), &json!("RUNNING")));
        assert_eq!(detail["createdAt"], "2023-11-14T22:13:20.250Z");
        assert_eq!(detail["attachments"][0]["type"], "eni");
        assert!(detail.get("tags").is_none() && detail.get("nodeName").is_none(), "{detail}");
        let running = task("RUNNING", json!({}));
        assert_eq!(of_task(Some(&running), &task("RUNNING", json!({"version": 4})), now()), None);
        let sick = task("RUNNING", json!({"healthStatus": "UNHEALTHY"}));
        assert!(of_task(Some(&running), &sick, now()).is_some());
        let fresh = Doc(json!({"spec": {"taskArn": "arn:t"}}));
        assert_eq!(of_task(None, &fresh, now()), None);
        assert!(of_task(Some(&fresh), &running, now()).is_some());
    }

    #[test]
    fn a_service_tells_of_deployments_and_actions() {
        let service = |rollout: &str, lines: &[(&str, &str)]| {
            let events: Vec<Value> = lines
                .iter()
                .map(|(id, m)| json!({"id": id, "message": m, "createdAt": 1_700_000_000.0}))
                .collect();
            Doc(json!({"spec": {"serviceArn": "arn:s", "clusterArn": "arn:c"}, "status": {"events": events,
                "deployments": [{"id": "ecs-svc/1", "rolloutState": rollout, "rolloutStateReason": "why"}]}}))
        };
        let old = service("IN_PROGRESS", &[("1", "(service web) has started 1 tasks: (task 1).")]);
        let new = service(
            "COMPLETED",
            &[
                (
                    "3",
                    "(service web) was unable to place a task because no container instance met all of its requirements. The closest matching (container-instance 1) has insufficient CPU units available.",
                ),
                ("2", "(service web) has reached a steady state."),
                ("1", "(service web) has started 1 tasks: (task 1)."),
            ],
        );
        let told = of_service(Some(&old), &new, now());
        let names: Vec<_> = told.iter().map(|t| text(&t.detail, "/eventName")).collect();
        assert_eq!(
            names,
            ["SERVICE_DEPLOYMENT_COMPLETED", "SERVICE_STEADY_STATE", "SERVICE_TASK_PLACEMENT_FAILURE"]
        );
        assert_eq!(told[2].detail["reason"], "RESOURCE:CPU");
        assert_eq!(told[0].detail["deploymentId"], "ecs-svc/1");
        assert!(of_service(Some(&new), &new, now()).is_empty());
    }

    #[test]
    fn an_instance_tells_when_it_comes_and_drains() {
        let new = json!({"containerInstanceArn": "arn:i", "status": "DRAINING", "agentConnected": true, "runningTasksCount": 1});
        let mut old = new.clone();
        old["runningTasksCount"] = json!(0);
        assert_eq!(of_instance(Some(&old), &new, now()), None);
        old["status"] = json!("ACTIVE");
        assert_eq!(of_instance(Some(&old), &new, now()).unwrap().resource, "arn:i");
        assert!(of_instance(None, &new, now()).is_some());
    }
}
