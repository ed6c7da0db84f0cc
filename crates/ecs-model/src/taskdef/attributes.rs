//! `requiresAttributes`: what an instance must be able to do, as ECS names it. One row a capability.

use super::container::is_set;
use machinery::kinds::get::{has, list, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::LazyLock;

const PREFIX: &str = "com.amazonaws.ecs.capability.";

/// One capability and who needs it.
struct Row {
    name: &'static str,
    needed: fn(&Value) -> bool,
}

fn any(doc: &Value, needs: impl Fn(&Value) -> bool) -> bool {
    list(doc, "/containerDefinitions").iter().any(needs)
}

fn logs_to(doc: &Value, driver: &str) -> bool {
    any(doc, |c| text(c, "/logConfiguration/logDriver") == driver)
}

fn secret_from(doc: &Value, service: &str) -> bool {
    let here = |v: &Value| {
        let from = text(v, "/valueFrom");
        // A bare name is a parameter.
        let named = from.split(':').nth(2).unwrap_or("ssm");
        named == service
    };
    any(doc, |c| list(c, "/secrets").iter().any(here))
}

fn container_set(doc: &Value, at: &str) -> bool {
    any(doc, |c| c.pointer(at).is_some_and(is_set))
}

/// Is the image in a private registry of ECR?
pub fn is_ecr_image(image: &str) -> bool {
    let host = image.split('/').next().unwrap_or_default();
    host.contains(".dkr.ecr") && host.contains(".amazonaws.com")
}

const ROWS: [Row; 30] = [
    Row { name: "privileged-container", needed: |d| container_set(d, "/privileged") },
    Row { name: "logging-driver.json-file", needed: |d| logs_to(d, "json-file") },
    Row { name: "logging-driver.syslog", needed: |d| logs_to(d, "syslog") },
    Row { name: "logging-driver.journald", needed: |d| logs_to(d, "journald") },
    Row { name: "logging-driver.gelf", needed: |d| logs_to(d, "gelf") },
    Row { name: "logging-driver.fluentd", needed: |d| logs_to(d, "fluentd") },
    Row { name: "logging-driver.splunk", needed: |d| logs_to(d, "splunk") },
    Row { name: "logging-driver.awslogs", needed: |d| logs_to(d, "awslogs") },
    Row { name: "logging-driver.awsfirelens", needed: |d| logs_to(d, "awsfirelens") },
    Row {
        name: "ecs.capability.execution-role-awslogs",
        needed: |d| logs_to(d, "awslogs") && has(d, "/executionRoleArn"),
    },
    Row {
        name: "ecs.capability.firelens.fluentbit",
        needed: |d| any(d, |c| text(c, "/firelensConfiguration/type") == "fluentbit"),
    },
    Row {
        name: "ecs.capability.firelens.fluentd",
        needed: |d| any(d, |c| text(c, "/firelensConfiguration/type") == "fluentd"),
    },
    Row { name: "docker-remote-api.1.18", needed: |d| text(d, "/networkMode") == "awsvpc" },
    Row { name: "docker-remote-api.1.19", needed: |d| logs_to(d, "awslogs") },
    Row { name: "docker-remote-api.1.21", needed: |d| container_set(d, "/memoryReservation") },
    Row { name: "docker-remote-api.1.22", needed: |d| container_set(d, "/linuxParameters/tmpfs") },
    Row { name: "docker-remote-api.1.24", needed: |d| container_set(d, "/healthCheck") },
    Row {
        name: "docker-remote-api.1.25",
        needed: |d| container_set(d, "/linuxParameters/initProcessEnabled"),
    },
    Row { name: "ecr-auth", needed: |d| any(d, |c| is_ecr_image(text(c, "/image"))) },
    Row {
        name: "ecs.capability.execution-role-ecr-pull",
        needed: |d| has(d, "/executionRoleArn") && any(d, |c| is_ecr_image(text(c, "/image"))),
    },
    Row { name: "task-iam-role", needed: |d| has(d, "/taskRoleArn") && text(d, "/networkMode") != "host" },
    Row {
        name: "task-iam-role-network-host",
        needed: |d| has(d, "/taskRoleArn") && text(d, "/networkMode") == "host",
    },
    Row { name: "ecs.capability.task-eni", needed: |d| text(d, "/networkMode") == "awsvpc" },
    Row { name: "ecs.capability.container-health-check", needed: |d| container_set(d, "/healthCheck") },
    Row {
        name: "ecs.capability.container-ordering",
        needed: |d| ["/dependsOn", "/startTimeout", "/stopTimeout"].iter().any(|at| container_set(d, at)),
    },
    Row { name: "ecs.capability.secrets.ssm.environment-variables", needed: |d| secret_from(d, "ssm") },
    Row {
        name: "ecs.capability.secrets.asm.environment-variables",
        needed: |d| secret_from(d, "secretsmanager"),
    },
    Row {
        name: "ecs.capability.pid-ipc-namespace-sharing",
        needed: |d| has(d, "/pidMode") || has(d, "/ipcMode"),
    },
    Row {
        name: "ecs.capability.efs",
        needed: |d| list(d, "/volumes").iter().any(|v| has(v, "/efsVolumeConfiguration")),
    },
    Row { name: "ecs.capability.env-files.s3", needed: |d| container_set(d, "/environmentFiles") },
];

/// What our nodes cannot do (yet): a task that needs it is not placed on them.
const NOT_OURS: [&str; 5] = [
    "logging-driver.syslog",
    "logging-driver.journald",
    "logging-driver.gelf",
    "logging-driver.fluentd",
    "logging-driver.splunk",
];

/// The full names of the capabilities that every one of our nodes has.
pub fn capabilities() -> &'static BTreeSet<String> {
    static ALL: LazyLock<BTreeSet<String>> =
        LazyLock::new(|| ROWS.iter().map(|r| r.name).filter(|n| !NOT_OURS.contains(n)).map(full).collect());
    &ALL
}

fn full(name: &str) -> String {
    if name.starts_with("ecs.") { name.to_string() } else { format!("{PREFIX}{name}") }
}

/// The definition's `requiresAttributes`.
pub fn required(doc: &Value) -> Value {
    ROWS.iter().filter(|r| (r.needed)(doc)).map(|r| json!({"name": full(r.name)})).collect()
}
