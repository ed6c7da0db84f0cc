//! When a container starts again: policy, rules and crash back-off.

use super::{FORGET_AFTER, Input, Plan, RESTART, after, delay, stop};
use crate::pod::{ContainerView, PodView, Role};
use crate::state::{ContainerRecord, Hook, Phase, PodState, Terminated, Tries, Waiting};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerRestartRule;
use std::collections::BTreeMap;

/// The action that has all containers start anew.
const RESTART_ALL: &str = "RestartAllContainers";

/// When the next instance starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is up, on its way, or done.
    Nothing,
    /// Not before.
    At(Timestamp),
    /// Now.
    Now,
}

/// Does the policy want another instance after this end?
pub fn restarts(pod: &PodView, container: &ContainerView, end: &Terminated) -> bool {
    if let (Some(task), Role::Main) = (&pod.task, container.role) {
        return super::task::restarts(task, container.name(), end);
    }
    match container.role {
        Role::Ephemeral => return false,
        Role::Sidecar => return true,
        Role::Init | Role::Main => {}
    }
    if rule(container, end).is_some() {
        return true;
    }
    match container.spec.restart_policy.as_deref().unwrap_or(pod.restart_policy()) {
        "Never" => false,
        // An init container that succeeded is done, whatever the policy.
        "Always" if container.role == Role::Main => true,
        _ => end.exit_code != 0,
    }
}

/// Does the policy alone want another instance after a failure?
pub(super) fn restarts_on_failure(pod: &PodView, container: &ContainerView) -> bool {
    let policy = container.spec.restart_policy.as_deref().unwrap_or(pod.restart_policy());
    pod.task.is_none() && policy != "Never"
}

/// The action of the first rule that this end matches.
fn rule<'a>(container: &'a ContainerView, end: &Terminated) -> Option<&'a str> {
    let mut rules = container.spec.restart_policy_rules.iter().flatten();
    let matches = |rule: &&ContainerRestartRule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|c| *c == end.exit_code);
        listed == (codes.operator == "In")
    };
    rules.find(matches).map(|rule| rule.action.as_str())
}

/// May an end of this container have all start anew?
pub fn may_restart_all(container: &ContainerView) -> bool {
    container.spec.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL)
}

/// Does a container's end ask for all containers to start anew?
pub(super) fn asks_for_all(state: &PodState, pod: &PodView) -> bool {
    pod.containers.iter().filter(|c| c.role != Role::Ephemeral).any(|c| {
        let record = state.containers.get(c.name()).filter(|r| !r.restart_now);
        record.and_then(ContainerRecord::ended).is_some_and(|end| rule(c, end) == Some(RESTART_ALL))
    })
}

/// Where a container's end asks for it, has all containers start anew, init containers first. True while some of them
/// still stop.
pub(super) fn all(state: &mut PodState, input: &Input, plan: &mut Plan) -> bool {
    let containers = || input.pod.containers.iter().filter(|c| c.role != Role::Ephemeral);
    if asks_for_all(state, input.pod) {
        state.initialized = false;
        state.restarting_all = true;
        for container in containers() {
            let Some(record) = state.containers.get_mut(container.name()) else { continue };
            record.restart_now |= !matches!(record.phase, Phase::Waiting { .. });
            record.round += 1;
        }
    }
    if state.restarting_all {
        // One that was on its way up stops when it is there.
        for container in containers() {
            let Some(record) = state.containers.get_mut(container.name()) else { continue };
            if record.restart_now && record.running() && record.stopping.is_none() {
                let message = format!("Container {} restarts with all others", container.name());
                let reason = stop::Reason { message, grace: input.pod.spec_grace() };
                stop::begin_quiet(record, container, reason, input.now, plan);
                if let Some(stopping) = &mut record.stopping {
                    // As upstream: no preStop hooks.
                    stopping.hook = Hook::Done;
                }
                stop::drive(record, container, true, input.now, plan);
            }
        }
        let up = |r: &ContainerRecord| matches!(r.phase, Phase::Starting { .. } | Phase::Running { .. });
        state.restarting_all = state.containers.values().any(|r| r.restart_now && up(r));
    }
    state.restarting_all
}

/// When the container's next instance is due.
pub fn next(record: &ContainerRecord, container: &ContainerView, pod: &PodView, now: Timestamp) -> Next {
    match &record.phase {
        Phase::Waiting { retry_at: Some(at), .. } if *at > now => Next::At(*at),
        Phase::Waiting { .. } => Next::Now,
        Phase::Starting { .. } | Phase::Running { .. } => Next::Nothing,
        Phase::Exited(_) if record.restart_now => Next::Now,
        Phase::Exited(end) if !record.again && !restarts(pod, container, end) => Next::Nothing,
        // A task's container has run for its attempt period: no back-off.
        Phase::Exited(_) if pod.task.is_some() => Next::Now,
        Phase::Exited(_) => match due(&record.crash, record.since) {
            Some(at) if at > now => Next::At(at),
            _ => Next::Now,
        },
    }
}

/// The end of the back-off after an instance that ended at `ended`; `None` when there is none.
fn due(crash: &Tries, ended: Timestamp) -> Option<Timestamp> {
    let since = crash.since?;
    let forgotten = ended.duration_since(since) > FORGET_AFTER;
    (crash.level > 0 && !forgotten).then(|| after(ended, delay(RESTART, crash.level - 1)))
}

/// Books the start of the next instance.
pub(super) fn begin(record: &mut ContainerRecord, now: Timestamp) {
    let before = match std::mem::replace(&mut record.phase, Phase::Starting { before: None }) {
        Phase::Exited(end) => {
            if !record.restart_now {
                next_try(&mut record.crash, record.since, now);
            }
            record.attempt += 1;
            record.last = Some(end.clone());
            Some(end)
        }
        _ => None,
    };
    record.phase = Phase::Starting { before };
    record.shown = None;
    record.pull_shown_at = None;
    record.restart_now = false;
    record.again = false;
    record.started = false;
    record.post_start = Hook::Done;
    record.probes = BTreeMap::new();
    record.stopping = None;
}

/// One step up in a back-off; back to the first step after a long quiet time.
pub(super) fn next_try(tries: &mut Tries, ended: Timestamp, now: Timestamp) {
    let forgotten = tries.since.is_some_and(|since| ended.duration_since(since) > FORGET_AFTER);
    tries.level = if forgotten { 1 } else { tries.level.saturating_add(1) };
    tries.since = Some(now);
}

/// Shows `CrashLoopBackOff`, once per end.
pub(super) fn show_back_off(
    record: &mut ContainerRecord,
    container: &ContainerView,
    pod: &PodView,
    plan: &mut Plan,
) {
    if record.shown.as_ref().is_some_and(|w| w.reason == "CrashLoopBackOff") {
        return;
    }
    let (name, full) = (container.name(), pod.full_name());
    let seconds = RESTART.delay(record.crash.level.saturating_sub(1)).as_secs();
    let pretty = match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    };
    record.shown = Some(Waiting {
        reason: "CrashLoopBackOff".into(),
        message: format!("back-off {pretty} restarting failed container={name} pod={full}"),
    });
    plan.note(true, "BackOff", name, format!("Back-off restarting failed container {name} in pod {full}"));
}
