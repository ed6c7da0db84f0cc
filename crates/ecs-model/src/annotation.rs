//! The one annotation by which a Pod carries what ECS knows and a Pod lacks: `ecs.gantry.dev/task`.
//!
//! Written by [`crate::lower`], read by the node agent and its log drivers. Versioned: a reader that meets a newer
//! version refuses the pod instead of running it wrongly. Keep it short; what a Pod can say, the Pod says.

use crate::refusal::refuse_if;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The annotation's key.
pub const KEY: &str = "ecs.gantry.dev/task";
/// Condition of a task's pod, set by the agent: `False` names in its message the containers whose health check failed,
/// with spaces between.
pub const HEALTH_CONDITION: &str = "ecs.gantry.dev/ContainersHealthy";
/// The version written here, and the newest that is understood.
pub const VERSION: u32 = 1;
/// Seconds that a container has to stop when nothing else is said (ECS's default).
pub const STOP_TIMEOUT_S: u32 = 30;

fn yes() -> bool {
    true
}
fn is_yes(value: &bool) -> bool {
    *value
}
/// Does a member say nothing?
fn is_unset<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Why an annotation cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// Not JSON of this shape.
    #[error("annotation {KEY}: {0}")]
    Shape(String),
    /// From a newer release.
    #[error("annotation {KEY} has version {0}, this release knows {VERSION}")]
    Version(u32),
}

/// What the annotation holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TaskNote {
    /// [`VERSION`] of the writer.
    pub version: u32,
    /// Who the task is, for its metadata endpoint.
    pub task: Identity,
    /// No network but the loopback link (`networkMode` none).
    #[serde(skip_serializing_if = "is_unset")]
    pub isolated: bool,
    /// By container name; one for each container of the pod.
    pub containers: BTreeMap<String, ContainerNote>,
}

/// Facts of the task that its metadata endpoint tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Identity {
    /// The task's ARN.
    pub arn: String,
    /// Its cluster's ARN.
    pub cluster_arn: String,
    /// Task definition family.
    pub family: String,
    /// Task definition revision.
    pub revision: String,
    /// `FARGATE`, `EC2`.
    pub launch_type: String,
    /// `us-east-1a`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub availability_zone: String,
    /// `awsvpc`, `bridge`, `host`, `none`.
    pub network_mode: String,
    /// Task role, "" when it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub role_arn: String,
    /// Last path segment of the credentials URI, "" without a role.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub credentials_id: String,
    /// `service:web`, …; the group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// CPU units of the whole task; 0 when not given.
    #[serde(skip_serializing_if = "is_unset")]
    pub cpu: u64,
    /// MiB of the whole task; 0 when not given.
    #[serde(skip_serializing_if = "is_unset")]
    pub memory: u64,
    /// The task's tags, for `taskWithTags`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

/// What one container needs besides its part of the Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerNote {
    /// Its name in ECS, where that is no name for a Pod's container; "" when they are the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its end ends the task.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub essential: bool,
    /// Last path segment of its metadata URI.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata_id: String,
    /// Starts only when these conditions hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<Dependency>,
    /// Seconds within which others may wait for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_timeout: Option<u32>,
    /// Seconds from the stop signal to SIGKILL; `None`: [`STOP_TIMEOUT_S`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<u32>,
    /// Restarts by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<Restart>,
    /// Seconds after the start in which failed health checks do not count.
    #[serde(default, skip_serializing_if = "is_unset")]
    pub start_period: u32,
    /// `user` as Docker writes it: `1000`, `1000:1000`, `nginx`, `nginx:www`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Resource limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// Where its output goes, beside the node's own log file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Log>,
    /// It is a log router (`firelensConfiguration`): `fluentd` or `fluentbit`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub firelens: String,
    /// Devices of the node that it may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// Memory file systems of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<Tmpfs>,
    /// MiB of swap; `None`: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_swap: Option<u32>,
    /// 0 to 100, where the kernel has it per container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swappiness: Option<u32>,
    /// Docker labels, for the metadata endpoint.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Default for ContainerNote {
    fn default() -> Self {
        serde_json::from_str("{}").expect("every member has a default")
    }
}

impl ContainerNote {
    /// The name that ECS knows it by; `key` is its name in the Pod.
    pub fn ecs_name<'a>(&'a self, key: &'a str) -> &'a str {
        if self.name.is_empty() { key } else { &self.name }
    }

    /// Seconds from the stop signal to SIGKILL.
    pub fn stop_seconds(&self) -> u32 {
        self.stop_timeout.unwrap_or(STOP_TIMEOUT_S)
    }
}

/// A condition on another container of the task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// The other container.
    pub container: String,
    /// What is waited for.
    pub condition: Condition,
}

/// What a container waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Condition {
    /// It has started.
    Start,
    /// It has ended.
    Complete,
    /// It has ended with exit code 0.
    Success,
    /// Its health check succeeds.
    Healthy,
}

/// `restartPolicy` of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Restart {
    /// Exit codes after which it stays down.
    pub ignored_exit_codes: Vec<i32>,
    /// Seconds that it must have run to be restarted.
    pub attempt_period: u32,
}

/// One `ulimits` entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ulimit {
    /// `nofile`, `core`, ….
    pub name: String,
    /// In force; -1: no limit.
    pub soft: i64,
    /// Ceiling; -1: no limit.
    pub hard: i64,
}

/// One entry of `linuxParameters.devices`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// On the node.
    pub host: String,
    /// In the container.
    pub path: String,
    /// Some of `rwm`.
    pub access: String,
}

/// A memory file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tmpfs {
    /// In the container.
    pub path: String,
    /// Mount options, size included.
    pub options: Vec<String>,
}

/// `logConfiguration` of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Log {
    /// `awslogs`, `awsfirelens`, `json-file`, ….
    pub driver: String,
    /// The driver's options.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

impl TaskNote {
    /// Reads the annotation's text.
    ///
    /// # Errors
    /// It is not of this shape, or of a newer version.
    pub fn parse(text: &str) -> Result<TaskNote, AnnotationError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let shape = |e: serde_json::Error| AnnotationError::Shape(e.to_string());
        let head: Head = serde_json::from_str(text).map_err(shape)?;
        refuse_if(head.version == 0 || head.version > VERSION, || AnnotationError::Version(head.version))?;
        serde_json::from_str(text).map_err(shape)
    }

    /// The annotation's text.
    pub fn print(&self) -> String {
        serde_json::to_string(self).expect("the note has string keys only")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_text_of_version_one() {
        let web = ContainerNote {
            depends_on: vec![Dependency { container: "db".into(), condition: Condition::Healthy }],
            log: Some(Log { driver: "awslogs".into(), options: BTreeMap::new() }),
            ..ContainerNote::default()
        };
        let db = ContainerNote {
            essential: false,
            restart: Some(Restart { ignored_exit_codes: vec![0], attempt_period: 60 }),
            ..ContainerNote::default()
        };
        let note = TaskNote {
            version: VERSION,
            containers: [("db".to_string(), db), ("web".to_string(), web)].into(),
            ..TaskNote::default()
        };
        let text = concat!(
            r#"{"version":1,"task":{"arn":"","clusterArn":"","family":"","revision":"","launchType":"","networkMode":""},"#,
            r#""containers":{"db":{"essential":false,"restart":{"ignoredExitCodes":[0],"attemptPeriod":60}},"#,
            r#""web":{"dependsOn":[{"container":"db","condition":"HEALTHY"}],"log":{"driver":"awslogs"}}}}"#
        );
        assert_eq!(note.print(), text);
        assert_eq!(TaskNote::parse(text), Ok(note));
    }

    #[test]
    fn newer_or_broken_notes_are_refused() {
        assert_eq!(TaskNote::parse(r#"{"version":2,"new":{}}"#), Err(AnnotationError::Version(2)));
        assert_eq!(TaskNote::parse(r#"{"version":0}"#), Err(AnnotationError::Version(0)));
        assert!(matches!(TaskNote::parse("{}"), Err(AnnotationError::Shape(_))));
        assert!(matches!(
            TaskNote::parse(r#"{"version":1,"containers":[]}"#),
            Err(AnnotationError::Shape(_))
        ));
    }
}
