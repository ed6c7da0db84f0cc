//! What an ECS task adds to the life of its pod, by its annotation (`ecs_model::annotation`): the order of starts and
//! stops, essential containers, per-container restarts and stop timeouts. Pure.
//!
//! A pod without the annotation is not touched by anything here. A container that cannot start counts as ended:
//! ECS stops such a task within seconds, where Kubernetes would try for ever. A health check that fails is reported
//! and nothing more: who replaces the task is the service scheduler's business.

use super::{Input, Plan, after};
use crate::pod::{ContainerView, PodView, Role};
use crate::state::{ContainerRecord, Phase, PodState, ProbeKind, Setup, Terminated};
use ecs_model::annotation::{Condition, ContainerNote, Dependency, TaskNote};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;

/// Exit code that stands for "never ran", as the runtime's own start errors have it.
const NEVER_RAN: i32 = 128;
/// `reason` of a container whose pod could not be prepared (ECS: `ResourceInitializationError`).
const SETUP_ERROR: &str = "CreateContainerConfigError";
/// Failed preparations (some two seconds) before a task is given up.
const SETUP_ATTEMPTS_MAX: u32 = 3;
/// `reason` of a container whose dependency cannot be met any more.
pub const DEPENDENCY_ERROR: &str = "DependencyError";

fn note<'a>(pod: &'a PodView, container: &str) -> Option<&'a ContainerNote> {
    pod.task.as_ref()?.containers.get(container)
}

/// How a dependency stands.
#[derive(Debug, PartialEq)]
enum Standing {
    Met,
    /// Not yet; decided then at the latest.
    Open(Option<Timestamp>),
    Never,
}

fn standing(
    state: &PodState,
    pod: &PodView,
    dependency: &Dependency,
    healthy: bool,
    now: Timestamp,
) -> Standing {
    let Some(record) = state.containers.get(&dependency.container) else { return Standing::Never };
    let limit = note(pod, &dependency.container).and_then(|n| n.start_timeout);
    let since = record.since;
    let open = || match limit.map(|s| after(since, SignedDuration::from_secs(i64::from(s)))) {
        Some(at) if at <= now => Standing::Never,
        at => Standing::Open(at),
    };
    let unmet = |met: bool, end: Option<&Terminated>| match (met, end) {
        (true, _) => Standing::Met,
        (false, Some(_)) => Standing::Never,
        (false, None) => open(),
    };
    let end = record.ended();
    let ran = end.is_some_and(|e| e.started_at.is_some());
    match dependency.condition {
        Condition::Start => unmet(record.running() || ran, end),
        Condition::Complete => unmet(ran, end),
        Condition::Success => unmet(ran && end.is_some_and(|e| e.exit_code == 0), end),
        Condition::Healthy => unmet(record.running() && healthy, end),
    }
}

fn healthy(state: &PodState, container: &str) -> bool {
    let probe = state.containers.get(container).and_then(|r| r.probes.get(&ProbeKind::Readiness));
    probe.is_some_and(|p| p.result == Some(true))
}

/// May this container start, as far as others are concerned? One that never will counts as ended from now on.
pub(super) fn may_start(
    state: &mut PodState,
    container: &ContainerView,
    input: &Input,
    plan: &mut Plan,
) -> bool {
    let Some(note) = note(input.pod, container.name()) else { return true };
    let waits = |s: &PodState| {
        matches!(s.containers.get(container.name()).map(|r| &r.phase), Some(Phase::Waiting { .. }))
    };
    if note.depends_on.is_empty() || !waits(state) {
        return true;
    }
    let mut open = false;
    for dependency in &note.depends_on {
        let well = healthy(state, &dependency.container);
        match standing(state, input.pod, dependency, well, input.now) {
            Standing::Met => {}
            Standing::Open(at) => {
                open = true;
                at.into_iter().for_each(|at| plan.wake_at(at));
            }
            Standing::Never => {
                let message = format!(
                    "dependency graph: failed to resolve the container ordering dependency [{}] for target [{}]",
                    dependency.container,
                    container.name()
                );
                if let Some(record) = state.containers.get_mut(container.name()) {
                    end_unstarted(record, DEPENDENCY_ERROR, message, input);
                }
                return false;
            }
        }
    }
    !open
}

/// Ends a task whose volumes or sandbox cannot be made, where a pod would go on trying.
pub(super) fn give_up(state: &mut PodState, input: &Input) {
    let hopeless = |setup: &Setup| !setup.ready && setup.failures >= SETUP_ATTEMPTS_MAX;
    let failed = [&state.volumes, &state.sandbox.setup].into_iter().find(|s| hopeless(s));
    let Some(error) = failed.filter(|_| input.pod.task.is_some()).map(|s| s.error.clone()) else { return };
    for record in state.containers.values_mut().filter(|r| matches!(r.phase, Phase::Waiting { .. })) {
        end_unstarted(record, SETUP_ERROR, error.clone(), input);
    }
}

/// Books a container as ended that never ran.
pub(super) fn end_unstarted(record: &mut ContainerRecord, reason: &str, message: String, input: &Input) {
    record.since = input.now;
    record.phase = Phase::Exited(Terminated {
        exit_code: NEVER_RAN,
        reason: reason.into(),
        message,
        finished_at: Some(input.wall),
        ..Terminated::default()
    });
}

/// Does the container's own restart policy want another instance?
pub(super) fn restarts(task: &TaskNote, container: &str, end: &Terminated) -> bool {
    let Some(rule) = task.containers.get(container).and_then(|n| n.restart.as_ref()) else { return false };
    let (Some(started), Some(finished)) = (end.started_at, end.finished_at) else { return false };
    let ran = finished.duration_since(started);
    !rule.ignored_exit_codes.contains(&end.exit_code)
        && ran >= SignedDuration::from_secs(i64::from(rule.attempt_period))
}

/// Is the task over: an essential container has ended for good, or all have?
pub(super) fn finished(state: &PodState, pod: &PodView, task: &TaskNote) -> bool {
    let over = |c: &&ContainerView| {
        let record = state.containers.get(c.name());
        let ended = record.and_then(ContainerRecord::ended);
        ended.is_some_and(|end| !restarts(task, c.name(), end)) && record.is_some_and(|r| !r.restart_now)
    };
    let essential = |c: &&ContainerView| task.containers.get(c.name()).is_some_and(|n| n.essential);
    let mains = || pod.containers.iter().filter(|c| c.role == Role::Main);
    mains().any(|c| essential(&c) && over(&c)) || mains().all(|c| over(&c))
}

/// Containers that must not be stopped yet, since others that depend on them still run.
pub(super) fn held(state: &PodState, pod: &PodView) -> BTreeSet<String> {
    let Some(task) = &pod.task else { return BTreeSet::new() };
    let up = |name: &String| {
        let phase = state.containers.get(name).map(|r| &r.phase);
        matches!(phase, Some(Phase::Running { .. } | Phase::Starting { .. }))
    };
    let running = task.containers.iter().filter(|(name, _)| up(name));
    running.flat_map(|(_, note)| note.depends_on.iter().map(|d| d.container.clone())).collect()
}

/// Seconds that a container has to stop when the pod would give it `grace`.
pub(super) fn stop_grace(pod: &PodView, container: &str, grace: i64) -> i64 {
    note(pod, container).map_or(grace, |n| grace.min(i64::from(n.stop_seconds())))
}

/// Does a failed health check not count yet?
pub(super) fn forgives(pod: &PodView, container: &str, record: &ContainerRecord, now: Timestamp) -> bool {
    let Some(note) = note(pod, container) else { return false };
    let until = after(record.since, SignedDuration::from_secs(i64::from(note.start_period)));
    let well = record.probes.get(&ProbeKind::Readiness).is_some_and(|p| p.result == Some(true));
    now < until && !well
}

/// Containers whose health check has failed as often as it takes, in the pod's order.
pub fn unhealthy(state: &PodState, pod: &PodView) -> Vec<String> {
    let failed = |c: &&ContainerView| {
        let record = state.containers.get(c.name()).filter(|r| r.running());
        let probe = record.and_then(|r| r.probes.get(&ProbeKind::Readiness));
        probe.is_some_and(|p| p.result == Some(false))
    };
    pod.containers.iter().filter(failed).map(|c| c.name().to_string()).collect()
}
