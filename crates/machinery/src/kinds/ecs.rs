//! The ECS kinds: printer columns. What they hold is checked by the AWS front end, by AWS's rules.

use super::get::{list, text};
use super::{Behaviour, GENERIC};
use crate::table::{Cell, Column, none_if_empty};
use serde_json::Value;

const GROUP: &str = "ecs.gantry.dev";

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        group: GROUP,
        resource: "clusters",
        columns: &[
            Column::NAME,
            Column::new("Status", Cell::Text("/spec/status")),
            Column::new("Capacity-Providers", Cell::Fn(|c| joined(c, "/spec/capacityProviders").into())),
            Column::AGE,
            Column::wide("Cluster", Cell::Text("/spec/clusterName")),
        ],
        ..GENERIC
    },
    Behaviour {
        group: GROUP,
        resource: "taskdefinitions",
        columns: &[
            Column::NAME,
            Column::new("Family", Cell::Text("/spec/family")),
            Column::new("Revision", Cell::Int("/spec/revision")),
            Column::new("Status", Cell::Text("/spec/status")),
            Column::new("Network", Cell::TextOrNone("/spec/networkMode")),
            Column::AGE,
            Column::wide("Containers", Cell::Fn(|d| names(d, "/spec/containerDefinitions").into())),
        ],
        ..GENERIC
    },
    // A task's status starts with the task: one write, not two.
    Behaviour {
        group: GROUP,
        resource: "tasks",
        generation: true,
        drops_status: false,
        columns: &[
            Column::NAME,
            Column::new("Definition", Cell::Fn(|t| tail(text(t, "/spec/taskDefinitionArn")).into())),
            Column::new("Desired", Cell::Fn(|t| desired(t).into())),
            Column::new("Status", Cell::Text("/status/lastStatus")),
            Column::new("Health", Cell::TextOrNone("/status/healthStatus")),
            Column::new("Launch", Cell::Text("/spec/launchType")),
            Column::new("Group", Cell::TextOrNone("/spec/group")),
            Column::AGE,
            Column::wide(
                "Instance",
                Cell::Fn(|t| none_if_empty(tail(text(t, "/spec/containerInstanceArn"))).into()),
            ),
            Column::wide("Reason", Cell::Fn(|t| none_if_empty(reason(t)).into())),
        ],
        ..GENERIC
    },
    Behaviour {
        group: GROUP,
        resource: "services",
        generation: true,
        columns: &[
            Column::NAME,
            Column::new("Definition", Cell::Fn(|s| tail(text(s, "/spec/taskDefinition")).into())),
            Column::new("Desired", Cell::Int("/spec/desiredCount")),
            Column::new("Running", Cell::Int("/status/runningCount")),
            Column::new("Pending", Cell::Int("/status/pendingCount")),
            Column::new("Status", Cell::Text("/spec/status")),
            Column::AGE,
            Column::wide("Launch", Cell::TextOrNone("/spec/launchType")),
            Column::wide("Deployments", Cell::Fn(|s| list(s, "/status/deployments").len().into())),
        ],
        ..GENERIC
    },
    Behaviour {
        group: GROUP,
        resource: "containerinstances",
        columns: &[
            Column::NAME,
            Column::new("Node", Cell::Text("/spec/nodeName")),
            Column::new("Status", Cell::Text("/spec/status")),
            Column::AGE,
        ],
        ..GENERIC
    },
    Behaviour {
        group: GROUP,
        resource: "capacityproviders",
        columns: &[
            Column::NAME,
            Column::new("Status", Cell::Text("/spec/status")),
            Column::new("Type", Cell::Text("/spec/type")),
            Column::AGE,
        ],
        ..GENERIC
    },
];

/// What stands behind the last `/` of an ARN.
fn tail(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or_default()
}

fn joined(v: &Value, at: &str) -> String {
    let all: Vec<&str> = list(v, at).iter().filter_map(Value::as_str).collect();
    none_if_empty(&all.join(",")).to_string()
}

fn names(v: &Value, at: &str) -> String {
    list(v, at).iter().map(|c| text(c, "/name")).collect::<Vec<_>>().join(",")
}

/// What a task should be: nothing, once it has stopped.
fn desired(task: &Value) -> &str {
    match text(task, "/status/lastStatus") {
        "STOPPED" => "STOPPED",
        _ => text(task, "/spec/desiredStatus"),
    }
}

/// Why a task stopped: what was seen, else what was asked.
fn reason(task: &Value) -> &str {
    let seen = text(task, "/status/stoppedReason");
    if seen.is_empty() { text(task, "/spec/stoppedReason") } else { seen }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Include, columns, table_row};
    use serde_json::json;

    fn cells(resource: &str, object: &Value) -> Value {
        let rows = k8s_schema::resources();
        let row = rows.iter().find(|r| &*r.gvr.group == GROUP && &*r.gvr.resource == resource).unwrap();
        assert_eq!(columns(row).as_array().unwrap().len(), super::super::behaviour_of(row).columns.len());
        table_row(row, object, jiff::Timestamp::UNIX_EPOCH, Include::None, "v1")["cells"].clone()
    }

    #[test]
    fn a_task_shows_what_people_look_for() {
        let task = json!({"metadata": {"name": "0a", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"taskDefinitionArn": "arn:aws:ecs:r:a:task-definition/web:3", "desiredStatus": "STOPPED",
                "launchType": "EC2", "group": "family:web", "stoppedReason": "asked",
                "containerInstanceArn": "arn:aws:ecs:r:a:container-instance/c/1f"},
            "status": {"lastStatus": "STOPPED"}});
        let expected =
            json!(["0a", "web:3", "STOPPED", "STOPPED", "<none>", "EC2", "family:web", "0s", "1f", "asked"]);
        assert_eq!(cells("tasks", &task), expected);
    }

    #[test]
    fn absent_members_do_not_break_a_row() {
        for resource in
            ["clusters", "taskdefinitions", "tasks", "services", "containerinstances", "capacityproviders"]
        {
            assert!(cells(resource, &json!({"metadata": {"name": "x"}})).is_array());
        }
        let service = json!({"metadata": {"name": "x"}, "status": {"deployments": [{}, {}]}});
        assert_eq!(cells("services", &service).as_array().unwrap().last(), Some(&json!(2)));
    }
}
