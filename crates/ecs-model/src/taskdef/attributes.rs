//! `requiresAttributes`: what an instance must be able to do, as ECS names it. One row a capability.

use super::container::is_set;
use machinery::kinds::get::{has, list, text};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::LazyLock;

const PREFIX: &str = "com.amazonaws.ecs.capability.";

/// One capability and who needs it.
type Row = (&'static str, fn(&Value) -> bool);

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
    ("privileged-container", |d| container_set(d, "/privileged")),
    ("logging-driver.json-file", |d| logs_to(d, "json-file")),
    ("logging-driver.syslog", |d| logs_to(d, "syslog")),
    ("logging-driver.journald", |d| logs_to(d, "journald")),
    ("logging-driver.gelf", |d| logs_to(d, "gelf")),
    ("logging-driver.fluentd", |d| logs_to(d, "fluentd")),
    ("logging-driver.splunk", |d| logs_to(d, "splunk")),
    ("logging-driver.awslogs", |d| logs_to(d, "awslogs")),
    ("logging-driver.awsfirelens", |d| logs_to(d, "awsfirelens")),
    ("ecs.capability.execution-role-awslogs", |d| logs_to(d, "awslogs") && has(d, "/executionRoleArn")),
    ("ecs.capability.firelens.fluentbit", |d| {
        any(d, |c| text(c, "/firelensConfiguration/type") == "fluentbit")
    }),
    ("ecs.capability.firelens.fluentd", |d| any(d, |c| text(c, "/firelensConfiguration/type") == "fluentd")),
    ("docker-remote-api.1.18", |d| text(d, "/networkMode") == "awsvpc"),
    ("docker-remote-api.1.19", |d| logs_to(d, "awslogs")),
    ("docker-remote-api.1.21", |d| container_set(d, "/memoryReservation")),
    ("docker-remote-api.1.22", |d| container_set(d, "/linuxParameters/tmpfs")),
    ("docker-remote-api.1.24", |d| container_set(d, "/healthCheck")),
    ("docker-remote-api.1.25", |d| container_set(d, "/linuxParameters/initProcessEnabled")),
    ("ecr-auth", |d| any(d, |c| is_ecr_image(text(c, "/image")))),
    ("ecs.capability.execution-role-ecr-pull", |d| {
        has(d, "/executionRoleArn") && any(d, |c| is_ecr_image(text(c, "/image")))
    }),
    ("task-iam-role", |d| has(d, "/taskRoleArn") && text(d, "/networkMode") != "host"),
    ("task-iam-role-network-host", |d| has(d, "/taskRoleArn") && text(d, "/networkMode") == "host"),
    ("ecs.capability.task-eni", |d| text(d, "/networkMode") == "awsvpc"),
    ("ecs.capability.container-health-check", |d| container_set(d, "/healthCheck")),
    ("ecs.capability.container-ordering", |d| {
        ["/dependsOn", "/startTimeout", "/stopTimeout"].iter().any(|at| container_set(d, at))
    }),
    ("ecs.capability.secrets.ssm.environment-variables", |d| secret_from(d, "ssm")),
    ("ecs.capability.secrets.asm.environment-variables", |d| secret_from(d, "secretsmanager")),
    ("ecs.capability.pid-ipc-namespace-sharing", |d| has(d, "/pidMode") || has(d, "/ipcMode")),
    ("ecs.capability.efs", |d| list(d, "/volumes").iter().any(|v| has(v, "/efsVolumeConfiguration"))),
    ("ecs.capability.env-files.s3", |d| container_set(d, "/environmentFiles")),
];

/// What our nodes cannot do (yet): a task that needs it is not placed on them.
const NOT_OURS: &str = "logging-driver.syslog logging-driver.journald logging-driver.gelf \
    logging-driver.fluentd logging-driver.splunk";

/// The full names of the capabilities that every one of our nodes has.
pub fn capabilities() -> &'static BTreeSet<String> {
    static ALL: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        ROWS.iter()
            .map(|(name, _)| *name)
            .filter(|n| !NOT_OURS.split(' ').any(|not| not == *n))
            .map(full)
            .collect()
    });
    &ALL
}

fn full(name: &str) -> String {
    if name.starts_with("ecs.") { name.to_string() } else { format!("{PREFIX}{name}") }
}

/// The definition's `requiresAttributes`.
pub fn required(doc: &Value) -> Value {
    ROWS.iter().filter(|(_, needed)| needed(doc)).map(|(name, _)| json!({"name": full(name)})).collect()
}
