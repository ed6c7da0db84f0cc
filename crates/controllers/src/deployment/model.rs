//! Deployments and their ReplicaSets as numbers, and the words that mark them.

use crate::workload;
use client::{Object, ObjectKey};
use jiff::Timestamp;
use machinery::intstr::IntOrString;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Counts the templates a Deployment has had; `kubectl rollout history` and `undo` go by it.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revisions of a template that came back, separated by commas.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// What the Deployment asked for when the set was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The same with the surge.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Asks to go back to that revision, 0 for the last one.
pub const ROLLBACK_TO: &str = "deprecated.deployment.rollback.to";
/// The label that tells the sets of one Deployment apart.
pub const HASH_LABEL: &str = "pod-template-hash";
/// Annotations of a Deployment that its sets do not get.
pub const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    ROLLBACK_TO,
];
/// Seconds without progress until a rollout counts as failed, as the API defaults it.
const DEADLINE_SECONDS: i64 = 600;
/// Old sets that are kept, as the API defaults it.
const HISTORY_LIMIT: i64 = 10;

/// How old pods give way to new ones, in whole pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// All old ones go first.
    Recreate,
    /// Step by step.
    Rolling {
        /// Pods above the wanted number.
        surge: i64,
        /// Pods that may be missing.
        unavailable: i64,
    },
}

/// What a Deployment asks for and what it reports.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// Name.
    pub name: String,
    /// Wanted pods.
    pub replicas: i64,
    /// Strategy.
    pub strategy: Strategy,
    /// Is the rollout held?
    pub paused: bool,
    /// Seconds a pod must be ready to be available.
    pub min_ready_seconds: i64,
    /// Seconds without progress until the rollout counts as failed; `None`: never.
    pub deadline: Option<i64>,
    /// Old sets that are kept; `None`: all.
    pub history_limit: Option<usize>,
    /// `spec.selector`.
    pub selector: Value,
    /// `spec.template`.
    pub template: Value,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Is it on its way out?
    pub going: bool,
    /// `status`.
    pub status: Value,
}

/// A 32-bit field that means "unlimited" at its largest value.
fn limited(value: &Value, default: i64) -> Option<i64> {
    Some(value.as_i64().unwrap_or(default)).filter(|n| *n < i64::from(i32::MAX))
}

impl Deployment {
    /// Reads one; `None` when the bytes make no sense.
    pub fn read(object: &Object) -> Option<Deployment> {
        let mut value = object.value().ok()?;
        let meta = object.meta();
        let spec = &mut value["spec"];
        let replicas = spec["replicas"].as_i64().unwrap_or(1).max(0);
        Some(Deployment {
            name: object.key.name.to_string(),
            replicas,
            strategy: strategy(&spec["strategy"], replicas),
            paused: spec["paused"].as_bool().unwrap_or(false),
            min_ready_seconds: spec["minReadySeconds"].as_i64().unwrap_or(0),
            deadline: limited(&spec["progressDeadlineSeconds"], DEADLINE_SECONDS),
            history_limit: limited(&spec["revisionHistoryLimit"], HISTORY_LIMIT)
                .and_then(|n| usize::try_from(n).ok()),
            selector: spec["selector"].take(),
            template: spec["template"].take(),
            annotations: meta.annotations.clone(),
            generation: meta.generation,
            going: meta.deletion_timestamp.is_some(),
            status: value["status"].take(),
        })
    }

    /// Pods that may stand above the wanted number.
    pub fn surge(&self) -> i64 {
        match self.strategy {
            Strategy::Rolling { surge, .. } => surge,
            Strategy::Recreate => 0,
        }
    }

    /// Pods that may be missing.
    pub fn unavailable(&self) -> i64 {
        match self.strategy {
            Strategy::Rolling { unavailable, .. } => unavailable.min(self.replicas),
            Strategy::Recreate => 0,
        }
    }

    /// A count in the stored status.
    pub fn reported(&self, field: &str) -> i64 {
        self.status[field].as_i64().unwrap_or(0)
    }

    /// Templates whose names clashed so far.
    pub fn collisions(&self) -> i64 {
        self.reported("collisionCount")
    }
}

/// Percentages become pods: the surge rounds up, what may be missing rounds down, and both cannot be nothing.
fn strategy(value: &Value, replicas: i64) -> Strategy {
    if value["type"] == "Recreate" {
        return Strategy::Recreate;
    }
    let total = i32::try_from(replicas).unwrap_or(i32::MAX);
    let part = |field: &str, up: bool| {
        let given = IntOrString::from_json(&value["rollingUpdate"][field]);
        let given = given.unwrap_or_else(|| IntOrString::Str("25%".into()));
        i64::from(given.scaled(total, up).unwrap_or(0).max(0))
    };
    let (surge, unavailable) = (part("maxSurge", true), part("maxUnavailable", false));
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    Strategy::Rolling { surge, unavailable }
}

/// One ReplicaSet of a Deployment.
#[derive(Clone, Debug)]
pub struct Set {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID.
    pub uid: String,
    /// resourceVersion as a number.
    pub resource_version: u64,
    /// `spec.replicas`.
    pub replicas: i64,
    /// `spec.minReadySeconds`.
    pub min_ready_seconds: i64,
    /// `spec.template` without the hash label.
    pub template: Value,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Generation minus observed generation.
    pub unobserved: i64,
    /// Is it on its way out?
    pub going: bool,
    /// Pods it reports.
    pub actual: i64,
    /// Ready ones.
    pub ready: i64,
    /// Available ones.
    pub available: i64,
    /// Ones on their way out.
    pub terminating: i64,
    /// `status.conditions`.
    pub conditions: Vec<Value>,
}

impl Set {
    /// Reads one.
    pub fn read(object: &Arc<Object>) -> Option<Set> {
        let mut value = object.value().ok()?;
        let meta = object.meta();
        let number = |v: &Value| v.as_i64().unwrap_or(0);
        let status = &value["status"];
        Some(Set {
            key: object.key.clone(),
            uid: meta.uid.clone(),
            resource_version: object.revision,
            replicas: value["spec"]["replicas"].as_i64().unwrap_or(1),
            min_ready_seconds: number(&value["spec"]["minReadySeconds"]),
            annotations: meta.annotations.clone(),
            created: meta.creation_timestamp.as_deref().and_then(|t| machinery::time::parse(t).ok()),
            unobserved: meta.generation - number(&status["observedGeneration"]),
            going: meta.deletion_timestamp.is_some(),
            actual: number(&status["replicas"]),
            ready: number(&status["readyReplicas"]),
            available: number(&status["availableReplicas"]),
            terminating: number(&status["terminatingReplicas"]),
            conditions: workload::conditions_of(status),
            template: without_hash(value["spec"]["template"].take()),
        })
    }

    /// Its revision; 0 for none.
    pub fn revision(&self) -> i64 {
        self.annotations.get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
    }

    /// A number in an annotation.
    pub fn noted(&self, annotation: &str) -> Option<i64> {
        self.annotations.get(annotation)?.parse().ok()
    }

    /// Does it ask for pods?
    pub fn is_active(&self) -> bool {
        self.replicas > 0
    }
}

/// A template without the label that tells sets apart, and without what is null or empty.
pub fn without_hash(mut template: Value) -> Value {
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(HASH_LABEL);
    }
    if let Some(metadata) = template["metadata"].as_object_mut() {
        metadata.retain(|_, v| !v.is_null() && v.as_object().is_none_or(|o| !o.is_empty()));
    }
    template
}

/// A short name for a template: stable, without vowels, another with each collision.
pub fn hash(template: &Value, collisions: i64) -> String {
    crate::workload::hash(&without_hash(template.clone()).to_string(), collisions)
}

/// The set of the present template (the oldest, should there be several) and the others.
pub fn split<'a>(deployment: &Deployment, sets: &'a [Set]) -> (Option<&'a Set>, Vec<&'a Set>) {
    let template = without_hash(deployment.template.clone());
    let same = sets.iter().filter(|s| s.template == template);
    let new = same.min_by_key(|s| (s.created, s.key.clone()));
    let old = sets.iter().filter(|s| new.is_none_or(|n| n.uid != s.uid)).collect();
    (new, old)
}
