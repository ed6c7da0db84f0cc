//! Probes: when the next one is due and what its results mean.

use super::{Action, Input, Plan, after, restart, stop};
use crate::pod::ContainerView;
use crate::state::{ContainerRecord, ProbeKind, ProbeState};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Probe;

/// The probe of that kind, where the container has one.
pub fn spec(container: &ContainerView, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Startup => container.spec.startup_probe.as_ref(),
        ProbeKind::Liveness => container.spec.liveness_probe.as_ref(),
        ProbeKind::Readiness => container.spec.readiness_probe.as_ref(),
    }
}

fn seconds(value: Option<i32>, default: i32) -> SignedDuration {
    SignedDuration::from_secs(i64::from(value.unwrap_or(default).max(0)))
}

/// Issues due probes; a settled failure of liveness or startup begins the stop.
pub(super) fn drive(record: &mut ContainerRecord, container: &ContainerView, input: &Input, plan: &mut Plan) {
    if !record.running() {
        return;
    }
    if container.spec.startup_probe.is_none() {
        record.started = true;
    }
    for kind in ProbeKind::ALL {
        let Some(probe) = spec(container, kind) else { continue };
        if (kind == ProbeKind::Startup) == record.started {
            continue;
        }
        let failed = record.probes.get(&kind).is_some_and(|p| p.result == Some(false));
        if failed && kind != ProbeKind::Readiness {
            let mut message = format!("Container {} failed {} probe", container.name(), kind.as_str());
            record.again = restart::restarts_on_failure(input.pod, container);
            if record.again {
                message += ", will be restarted";
            }
            let grace = probe.termination_grace_period_seconds.unwrap_or_else(|| input.pod.spec_grace());
            stop::begin(record, container, stop::Reason { message, grace }, input.now, plan);
            return;
        }
        ask(record, (container, kind, probe), input.now, plan);
    }
}

/// Whether it still serves is asked of a container until it is gone.
pub(super) fn readiness(
    record: &mut ContainerRecord,
    container: &ContainerView,
    now: Timestamp,
    plan: &mut Plan,
) {
    if let Some(probe) = spec(container, ProbeKind::Readiness).filter(|_| record.started) {
        ask(record, (container, ProbeKind::Readiness, probe), now, plan);
    }
}

/// Issues the probe where it is due.
fn ask(
    record: &mut ContainerRecord,
    (container, kind, probe): (&ContainerView, ProbeKind, &Probe),
    now: Timestamp,
    plan: &mut Plan,
) {
    let (attempt, since) = (record.attempt, record.since);
    let state = record.probes.entry(kind).or_default();
    if state.busy {
        return;
    }
    let first = after(since, seconds(probe.initial_delay_seconds, 0));
    let due = state.next_at.map_or(first, |at| at.max(first));
    if due > now {
        plan.wake_at(due);
        return;
    }
    state.busy = true;
    plan.act(Action::Probe { container: container.name().into(), attempt, kind });
}

/// Books a failure that does not count.
pub(super) fn forgive(state: &mut ProbeState, probe: &Probe, now: Timestamp) {
    state.busy = false;
    state.next_at = Some(after(now, seconds(Some(probe.period_seconds.unwrap_or(10).max(1)), 10)));
}

/// Books one result. True when the settled result changed.
pub(super) fn book(state: &mut ProbeState, probe: &Probe, success: bool, now: Timestamp) -> bool {
    let at_least_one =
        |value: Option<i32>, default: i32| u32::try_from(value.unwrap_or(default)).unwrap_or(1).max(1);
    forgive(state, probe, now);
    if success {
        (state.good, state.bad) = (state.good.saturating_add(1), 0);
    } else {
        (state.good, state.bad) = (0, state.bad.saturating_add(1));
    }
    let before = state.result;
    if state.good >= at_least_one(probe.success_threshold, 1) {
        state.result = Some(true);
    } else if state.bad >= at_least_one(probe.failure_threshold, 3) {
        state.result = Some(false);
    }
    state.result != before
}
