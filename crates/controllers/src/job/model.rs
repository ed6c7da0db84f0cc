//! A Job and its pods as the decision reads them. Pure.

use super::policy::{self, Action, FailureRule, SuccessRule};
use crate::workload::PodFacts;
use client::Object;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use machinery::selector::LabelSelector;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// On every pod until its end is counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label that hold a pod's index.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation of a pod: how often its index failed before it.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation of a pod: how often its index failed before it and a rule said to ignore that.
pub const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// `spec.managedBy` of the Jobs that are ours.
const OURS: &str = "kubernetes.io/job-controller";

/// What a Job asks for.
#[derive(Clone, Debug)]
pub struct Job {
    /// Pods at a time.
    pub parallelism: usize,
    /// Pods that must succeed; `None`: one, and it speaks for all.
    pub completions: Option<usize>,
    /// Does each completion have its own index?
    pub indexed: bool,
    /// Failures that are borne.
    pub backoff_limit: usize,
    /// Failures of each index that are borne; only of an indexed Job.
    pub limit_per_index: Option<usize>,
    /// Failed indexes that are borne.
    pub failed_indexes_max: Option<usize>,
    /// What failures of pods mean.
    pub failure_rules: Vec<FailureRule>,
    /// Which successes are enough.
    pub success_rules: Vec<SuccessRule>,
    /// How long it may be active.
    pub deadline: Option<Duration>,
    /// How long it is kept once it is finished.
    pub ttl: Option<Duration>,
    /// Is it to rest?
    pub suspended: bool,
    /// Is a pod on its way out replaced only when it is gone?
    pub replaces_late: bool,
    /// Are containers restarted in their pod?
    pub restarts_in_place: bool,
    /// Is it being deleted?
    pub going: bool,
    /// Does nobody else run it?
    pub ours: bool,
    /// Its pods.
    pub selector: LabelSelector,
    /// What pods are made of.
    pub template: Value,
    /// `status` as it is.
    pub status: Value,
}

impl Job {
    /// Reads one.
    pub fn read(object: &Object) -> Option<Job> {
        let mut value = object.value().ok()?;
        let spec = &mut value["spec"];
        let count = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        let seconds = |v: &Value| v.as_u64().map(Duration::from_secs);
        Some(Job {
            parallelism: count(&spec["parallelism"]).unwrap_or(1),
            completions: count(&spec["completions"]),
            indexed: spec["completionMode"] == "Indexed",
            backoff_limit: count(&spec["backoffLimit"]).unwrap_or(6),
            limit_per_index: count(&spec["backoffLimitPerIndex"]),
            failed_indexes_max: count(&spec["maxFailedIndexes"]),
            failure_rules: policy::failure_rules(&spec["podFailurePolicy"]),
            success_rules: policy::success_rules(&spec["successPolicy"]),
            deadline: seconds(&spec["activeDeadlineSeconds"]),
            ttl: seconds(&spec["ttlSecondsAfterFinished"]),
            suspended: spec["suspend"] == true,
            replaces_late: spec["podReplacementPolicy"] == "Failed" || spec["podFailurePolicy"].is_object(),
            restarts_in_place: spec["template"]["spec"]["restartPolicy"] == "OnFailure",
            ours: spec["managedBy"].as_str().is_none_or(|m| m == OURS),
            going: object.meta().deletion_timestamp.is_some(),
            selector: LabelSelector::from_json(Some(&spec["selector"])).ok()?,
            template: spec["template"].take(),
            status: value["status"].take(),
        })
    }

    /// Has the pod failed? A pod on its way out counts as failed where it is replaced at once, and at the end.
    pub fn has_failed(&self, pod: &JobPod, over: bool) -> bool {
        pod.facts.phase == "Failed"
            || (pod.facts.phase != "Succeeded" && pod.facts.deleting && (!self.replaces_late || over))
    }

    /// What a failed pod means, where a rule says it.
    pub fn meaning(&self, pod: &JobPod) -> Option<Action> {
        policy::of_failure(&self.failure_rules, pod).map(|(action, _)| action)
    }

    /// The condition of that type, when it is true.
    pub fn condition(&self, kind: &str) -> Option<&Value> {
        let conditions = self.status["conditions"].as_array()?;
        conditions.iter().find(|c| c["type"] == kind && c["status"] == "True")
    }

    /// The condition that ended it.
    pub fn end(&self) -> Option<&Value> {
        self.condition("Complete").or_else(|| self.condition("Failed"))
    }
}

/// A time in JSON.
pub fn time(value: &Value) -> Option<Timestamp> {
    machinery::time::parse(value.as_str()?).ok()
}

/// One of its pods.
#[derive(Clone, Debug, Default)]
pub struct JobPod {
    /// What every workload controller knows of it.
    pub facts: PodFacts,
    /// Does it carry [`TRACKING`]?
    pub tracked: bool,
    /// Its index.
    pub index: Option<usize>,
    /// When it ended, or began to.
    pub ended: Option<Timestamp>,
    /// Restarts of all its containers.
    pub restarts: usize,
    /// Failures of its index before it, and those that were ignored.
    pub before: (usize, usize),
    /// Containers that ended, with their exit codes.
    pub exits: Vec<(String, i64)>,
    /// Types and statuses of its conditions.
    pub conditions: Vec<(String, String)>,
}

impl JobPod {
    /// Reads one.
    pub fn read(object: &Arc<Object>) -> JobPod {
        let meta = object.meta();
        let number = |name: &str| meta.annotations.get(name).and_then(|n| n.parse().ok()).unwrap_or(0);
        let mut pod = JobPod {
            facts: PodFacts::read(object),
            tracked: is_tracked(object),
            index: meta.annotations.get(INDEX).and_then(|i| i.parse().ok()),
            ended: meta.deletion_timestamp.as_deref().and_then(|t| machinery::time::parse(t).ok()),
            before: (number(FAILURES), number(IGNORED)),
            ..JobPod::default()
        };
        let Ok(view) = object.view::<core::Pod>() else { return pod };
        let Some(status) = &view.status else { return pod };
        let containers = || status.container_statuses.iter().flatten();
        let all = || containers().chain(status.init_container_statuses.iter().flatten());
        let exit = |c: &core::ContainerStatus| {
            let end = c.state.as_ref()?.terminated.as_ref()?;
            Some((c.name.clone(), i64::from(end.exit_code)))
        };
        pod.exits = all().filter_map(exit).collect();
        pod.conditions =
            status.conditions.iter().flatten().map(|c| (c.type_.clone(), c.status.clone())).collect();
        pod.restarts = all().map(|c| usize::try_from(c.restart_count).unwrap_or(0)).sum();
        let ends = containers().filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
        let last = ends.map(|t| t.0).max();
        let unready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready" && c.status != "True");
        let unready = unready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
        if pod.facts.is_finished() {
            pod.ended = last.or(unready).or(pod.ended).or(pod.facts.created);
        }
        pod
    }
}

/// Does it carry [`TRACKING`]?
pub fn is_tracked(object: &Object) -> bool {
    object.meta().finalizers.iter().any(|f| f == TRACKING)
}

/// Reads `0-2,5`.
pub fn parse_indexes(text: &str) -> BTreeSet<usize> {
    let mut all = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) {
            all.extend(from..=to);
        }
    }
    all
}

/// Writes `0-2,5`: pairs as `0,1`, longer runs as ranges.
pub fn format_indexes(indexes: &BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let text = runs.into_iter().map(|(from, to)| match to - from {
        0 => from.to_string(),
        1 => format!("{from},{to}"),
        _ => format!("{from}-{to}"),
    });
    text.collect::<Vec<_>>().join(",")
}
