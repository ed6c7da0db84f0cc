//! Stopping: preStop hook, stop signal, SIGKILL; and the winding down of a whole pod.
//!
//! When a pod ends, the hooks of all its containers run at once; each then waits for its turn to be signalled. Who has
//! waited till the grace period's end is signalled then, and has a short window of its own.

use super::{Action, HookKind, Input, Plan, Signal, after, probe, task};
use crate::pod::{ContainerView, Role};
use crate::state::{ContainerRecord, Ending, Hook, Phase, PodState, Stopping, Why};
use jiff::{SignedDuration, Timestamp};

/// SIGKILL is repeated so often: a task that does not die at once (frozen, in `D`) may later.
const KILL_AGAIN: SignedDuration = SignedDuration::from_secs(10);

/// The stop signal is at least so far ahead of SIGKILL (the kubelet's figure), or as far as the grace period is long.
const WINDOW: SignedDuration = SignedDuration::from_secs(2);

/// What a process that survives SIGKILL is doing.
const STUCK: &str =
    "a process of it waits in the kernel (state D), mostly for a file system that does not answer";

/// Why and how patiently a container is stopped.
pub(super) struct Reason {
    /// The event's message.
    pub message: String,
    /// Seconds until SIGKILL.
    pub grace: i64,
}

/// Begins to stop a running container.
pub(super) fn begin(
    record: &mut ContainerRecord,
    container: &ContainerView,
    reason: Reason,
    now: Timestamp,
    plan: &mut Plan,
) {
    begin_quiet(record, container, reason, now, plan);
    drive(record, container, true, now, plan);
}

/// The same, but the first action is left to the next step.
pub(super) fn begin_quiet(
    record: &mut ContainerRecord,
    container: &ContainerView,
    reason: Reason,
    now: Timestamp,
    plan: &mut Plan,
) {
    plan.note(false, "Killing", container.name(), reason.message);
    let has_hook = container.spec.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some());
    let grace = reason.grace.max(0);
    let length = SignedDuration::from_secs(grace);
    record.stopping = Some(Stopping {
        kill_at: after(now, length),
        window: length.min(WINDOW),
        hook: if has_hook && grace > 0 { Hook::Due } else { Hook::Done },
        term_sent: grace == 0,
        kill_again_at: None,
    });
}

/// Goes on with a stop; is it the container's turn to be signalled?
pub(super) fn drive(
    record: &mut ContainerRecord,
    container: &ContainerView,
    turn: bool,
    now: Timestamp,
    plan: &mut Plan,
) {
    probe::readiness(record, container, now, plan);
    let attempt = record.attempt;
    let Some(stopping) = &mut record.stopping else { return };
    let signal = |signal| Action::Signal { container: container.name().into(), attempt, signal };
    let spent = stopping.kill_at <= now;
    if spent && stopping.term_sent {
        match stopping.kill_again_at {
            Some(at) if at > now => plan.wake_at(at),
            before => {
                if before.is_some() {
                    let text = format!(
                        "error killing pod: container {} runs on after SIGKILL: {STUCK}",
                        container.name()
                    );
                    plan.note(true, "FailedKillPod", container.name(), text);
                }
                plan.act(signal(Signal::Kill));
                let again = after(now, KILL_AGAIN);
                stopping.kill_again_at = Some(again);
                plan.wake_at(again);
            }
        }
        return;
    }
    match stopping.hook {
        _ if stopping.term_sent => {}
        Hook::Due if !spent => {
            stopping.hook = Hook::Running;
            let within = Some(stopping.kill_at.duration_since(now));
            plan.act(Action::Hook { container: container.name().into(), kind: HookKind::PreStop, within });
        }
        Hook::Running if !spent => {}
        Hook::Done if !(spent || turn) => {}
        _ => {
            stopping.term_sent = true;
            stopping.kill_at = stopping.kill_at.max(after(now, stopping.window));
            plan.act(signal(Signal::Stop));
        }
    }
    plan.wake_at(stopping.kill_at);
}

/// Winds a pod down: containers, then what the node holds of it, then its API object.
pub(super) fn wind_down(state: &mut PodState, input: &Input, plan: &mut Plan) {
    let Some(ending) = state.ending.clone() else { return };
    if !state.teardown.ready {
        let quiet = stop_containers(state, &ending, input, plan);
        let preparing = state.sandbox.setup.busy || state.volumes.busy;
        if !quiet || preparing {
            return;
        }
        if super::begin(&mut state.teardown, input.now, plan) {
            plan.act(Action::Teardown);
        }
        return;
    }
    let wanted = ending.why == Why::Deleted;
    if wanted && super::begin(&mut state.finalize, input.now, plan) {
        plan.act(Action::Finalize);
    }
}

/// Stops all containers: regular ones first, then sidecars in reverse order. True when none is left.
fn stop_containers(state: &mut PodState, ending: &Ending, input: &Input, plan: &mut Plan) -> bool {
    let kill_at = ending.kill_at();
    let mut main_left = false;
    let mut left = false;
    let held = task::held(state, input.pod);
    let sidecars = input.pod.containers.iter().filter(|c| c.role == Role::Sidecar).rev();
    let others = input.pod.containers.iter().filter(|c| c.role != Role::Sidecar);
    for container in others.chain(sidecars) {
        let Some(record) = state.containers.get_mut(container.name()) else { continue };
        match record.phase {
            Phase::Waiting { .. } | Phase::Exited(_) => continue,
            Phase::Starting { .. } => {
                left = true;
                main_left = true;
                continue;
            }
            Phase::Running { .. } => left = true,
        }
        let first = (container.role != Role::Sidecar || !main_left) && !held.contains(container.name());
        let in_turn = first || kill_at <= input.now;
        main_left = true;
        if let Some(stopping) = &mut record.stopping {
            let left = if stopping.term_sent { stopping.window } else { SignedDuration::ZERO };
            stopping.kill_at = stopping.kill_at.min(after(kill_at, left));
            drive(record, container, in_turn, input.now, plan);
        } else if !in_turn && input.pod.task.is_some() {
            // A task's containers have times of their own, which begin with their turn.
            plan.wake_at(kill_at);
        } else {
            let grace = (kill_at.duration_since(input.now).as_millis() + 999) / 1000;
            let grace = task::stop_grace(input.pod, container.name(), i64::try_from(grace).unwrap_or(0));
            let message = format!("Stopping container {}", container.name());
            begin_quiet(record, container, Reason { message, grace }, input.now, plan);
            drive(record, container, in_turn, input.now, plan);
        }
    }
    !left
}
