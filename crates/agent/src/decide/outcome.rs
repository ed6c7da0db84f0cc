//! Books what the shell reports into a pod's state; returns the events that the report is worth.

use super::{
    CONFIG_RETRY, Note, PULL_ERROR_SHOWN, RESTART, SETUP_RETRY, after, delay, has_post_start, probe, restart,
    stop, task,
};
use super::{HookKind, Input, Plan};
use crate::pod::{PodView, Role};
use crate::state::{Facts, Hook, Phase, PodState, ProbeKind, Setup, Terminated, Waiting};
use crate::volumes::memory_sources;
use jiff::{SignedDuration, Timestamp};
use std::net::IpAddr;

/// Why an instance could not be started.
#[derive(Clone, Debug, PartialEq)]
pub struct StartFailure {
    /// Which step failed.
    pub step: StartStep,
    /// The status's waiting reason (`ErrImagePull`, `CreateContainerConfigError`, …).
    pub reason: &'static str,
    /// For humans.
    pub message: String,
}

/// The steps of a start, as far as their failures differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartStep {
    /// The image is not there: tried again with back-off, at once when images change.
    Image,
    /// The configuration cannot be made: tried again, at once when objects change.
    Config,
    /// Created, but its process could not be started: counts as an end.
    Run,
}

/// What the shell reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Volumes are mounted (to be refreshed after that time), or not.
    Volumes(Result<Option<SignedDuration>, String>),
    /// Devices of the pod's claims are not ready, because.
    Claims(String),
    /// The image of a volume (by name) is not to be had.
    VolumeImage(String, StartFailure),
    /// Volumes need the sandbox, which was not made: they come with the next one.
    VolumesWait,
    /// The sandbox is made, or not.
    Sandbox(Result<Vec<IpAddr>, String>),
    /// An instance is running, or not.
    Started {
        /// Container name.
        container: String,
        /// Instance.
        attempt: u32,
        /// Its facts and start time.
        result: Result<(Facts, Timestamp), StartFailure>,
    },
    /// A hook is over.
    Hook {
        /// Container name.
        container: String,
        /// Which.
        kind: HookKind,
        /// How.
        result: Result<(), String>,
    },
    /// A container ended.
    Exited {
        /// Container name.
        container: String,
        /// Instance.
        attempt: u32,
        /// How.
        end: Terminated,
    },
    /// A probe is over; the error says why it failed.
    Probe {
        /// Container name.
        container: String,
        /// Instance.
        attempt: u32,
        /// Which.
        kind: ProbeKind,
        /// How.
        result: Result<(), String>,
    },
    /// The shim is gone, and with it all containers.
    SandboxDied,
    /// Images came: containers that wait for one try again at once.
    ImagesChanged,
    /// Objects that the pod uses changed: volumes are written anew, what waits for them tries again at once.
    ObjectsChanged,
    /// A resize is over.
    Resized {
        /// To the amounts of that generation.
        generation: i64,
        /// What has what now.
        result: Result<super::resize::Resized, String>,
    },
    /// The tear-down is over.
    TornDown(Result<(), String>),
    /// The deletion from the API is over.
    Finalized(Result<(), String>),
}

fn settle(setup: &mut Setup, error: Option<&String>, now: Timestamp) {
    setup.busy = false;
    match error {
        None => {
            setup.ready = true;
            setup.failures = 0;
            setup.error.clear();
            setup.retry_at = None;
        }
        Some(error) => {
            setup.error.clone_from(error);
            // What is there stays in use; its refresh is tried again.
            setup.dirty |= setup.ready;
            setup.retry_at = Some(after(now, delay(SETUP_RETRY, setup.failures)));
            setup.failures = setup.failures.saturating_add(1);
        }
    }
}

/// The containers that use the volume say why they wait, as for their own image.
fn volume_image(state: &mut PodState, input: &Input, volume: &str, failure: StartFailure, plan: &mut Plan) {
    let first = state.volumes.failures == 0;
    settle(&mut state.volumes, Some(&failure.message), input.now);
    let source = input.pod.spec().volumes.iter().flatten().find(|v| v.name == volume);
    let image = source.and_then(|v| v.image.as_ref()?.reference.as_deref()).unwrap_or_default();
    let StartFailure { reason, message, .. } = failure;
    plan.note(true, "Failed", "", format!("Failed to pull image \"{image}\": {message}"));
    let why = if first || reason != "ErrImagePull" {
        Waiting { reason: reason.into(), message }
    } else {
        let message = format!("Back-off pulling image \"{image}\": {reason}: {message}");
        Waiting { reason: "ImagePullBackOff".into(), message }
    };
    for container in &input.pod.containers {
        let uses = container.spec.volume_mounts.iter().flatten().any(|m| m.name == volume);
        let record = state.containers.get_mut(container.name()).filter(|_| uses);
        if let Some(Phase::Waiting { why: shown, .. }) = record.map(|r| &mut r.phase) {
            shown.clone_from(&why);
        }
    }
}

/// All images are there: nobody waits for one of a volume (those of containers have a time to retry at).
fn forget_volume_images(state: &mut PodState, pod: &PodView) {
    for record in state.containers.values_mut() {
        if let Phase::Waiting { why, retry_at: None } = &mut record.phase {
            *why = Waiting { reason: pod.creating_reason().into(), message: String::new() };
        }
    }
}

/// Books one report.
pub fn apply(state: &mut PodState, input: &Input, outcome: Outcome) -> Vec<Note> {
    let mut plan = Plan::default();
    match outcome {
        Outcome::VolumeImage(volume, failure) => volume_image(state, input, &volume, failure, &mut plan),
        Outcome::Volumes(result) => {
            if result.is_ok() {
                forget_volume_images(state, input.pod);
            }
            settle(&mut state.volumes, result.as_ref().err(), input.now);
            match result {
                Ok(refresh) => state.volumes_refresh_at = refresh.map(|wait| after(input.now, wait)),
                Err(message) => plan.note(true, "FailedMount", "", message),
            }
        }
        Outcome::Claims(why) => {
            settle(&mut state.volumes, Some(&why), input.now);
            let text = format!("Failed to prepare dynamic resources: {why}");
            plan.note(true, "FailedPrepareDynamicResources", "", text);
        }
        Outcome::VolumesWait => {
            state.volumes.busy = false;
            state.volumes.dirty |= state.volumes.ready;
        }
        Outcome::Sandbox(result) => {
            settle(&mut state.sandbox.setup, result.as_ref().err(), input.now);
            match result {
                Ok(ips) => state.sandbox.ips = ips,
                Err(error) => {
                    let text = format!("Failed to create pod sandbox: {error}");
                    plan.note(true, "FailedCreatePodSandBox", "", text);
                }
            }
        }
        Outcome::Started { container, attempt, result } => {
            started(state, input, (&container, attempt), result, &mut plan)
        }
        Outcome::Hook { container, kind, result } => {
            hook(state, input, (&container, kind), result, &mut plan)
        }
        Outcome::Exited { container, attempt, end } => exited(state, (&container, attempt), end, input.now),
        Outcome::Probe { container, attempt, kind, result } => {
            probed(state, input, (&container, attempt, kind), result, &mut plan);
        }
        Outcome::SandboxDied => sandbox_died(state, input, &mut plan),
        Outcome::ImagesChanged => retry_containers(state),
        Outcome::ObjectsChanged => {
            state.volumes.dirty = true;
            state.volumes.retry_at = None;
            retry_containers(state);
        }
        Outcome::Resized { generation, result } => {
            super::resize::book(state, generation, result, input.now);
        }
        Outcome::TornDown(result) => {
            settle(&mut state.teardown, result.as_ref().err(), input.now);
            match result {
                Ok(()) => (state.sandbox.setup, state.sandbox.exists) = (Setup::default(), false),
                Err(error) => plan.note(true, "FailedKillPod", "", format!("error killing pod: {error}")),
            }
        }
        Outcome::Finalized(result) => settle(&mut state.finalize, result.as_ref().err(), input.now),
    }
    let notes = plan.actions.into_iter().filter_map(|action| match action {
        super::Action::Note(note) => Some(note),
        _ => None,
    });
    notes.collect()
}

fn started(
    state: &mut PodState,
    input: &Input,
    (name, attempt): (&str, u32),
    result: Result<(Facts, Timestamp), StartFailure>,
    plan: &mut Plan,
) {
    let (Some(record), Some(container)) = (state.containers.get_mut(name), input.pod.container(name)) else {
        return;
    };
    if record.attempt != attempt {
        return;
    }
    let failure = match result {
        Ok((facts, started_at)) => {
            record.pull = Default::default();
            record.facts = Some(facts);
            record.resources = None;
            if matches!(record.phase, Phase::Starting { .. }) {
                record.phase = Phase::Running { started_at };
                record.since = input.now;
                record.post_start = if has_post_start(container) { Hook::Due } else { Hook::Done };
                record.started = container.spec.startup_probe.is_none();
            }
            return;
        }
        Err(failure) => failure,
    };
    if input.pod.task.is_some() && container.role == Role::Main && failure.step != StartStep::Run {
        plan.note(true, "Failed", name, format!("Error: {}: {}", failure.reason, failure.message));
        task::end_unstarted(record, failure.reason, failure.message, input);
        return;
    }
    let why = Waiting { reason: failure.reason.into(), message: failure.message.clone() };
    let retry_at = match failure.step {
        StartStep::Image => {
            let text = match failure.reason {
                "ErrImagePull" => {
                    format!("Failed to pull image \"{}\": {}", container.image(), failure.message)
                }
                _ => failure.message.clone(),
            };
            let reason = match failure.reason {
                "ErrImageNeverPull" => "ErrImageNeverPull",
                "InvalidImageName" => "InspectFailed",
                _ => "Failed",
            };
            plan.note(true, reason, name, text);
            plan.note(true, "Failed", name, format!("Error: {}", failure.reason));
            restart::next_try(&mut record.pull, input.now, input.now);
            let pulls = failure.reason == "ErrImagePull";
            record.pull_shown_at = pulls.then(|| after(input.now, PULL_ERROR_SHOWN));
            after(input.now, delay(RESTART, record.pull.level.saturating_sub(1)))
        }
        StartStep::Config => {
            plan.note(true, "Failed", name, format!("Error: {}", failure.message));
            after(input.now, CONFIG_RETRY)
        }
        StartStep::Run => {
            plan.note(true, "Failed", name, format!("Error: {}", failure.message));
            let end = Terminated {
                exit_code: 128,
                reason: "StartError".into(),
                message: failure.message,
                finished_at: Some(input.wall),
                container_id: crate::status::container_id(input.pod.uid(), name, attempt),
                ..Terminated::default()
            };
            record.since = input.now;
            record.shown = restart::restarts(input.pod, container, &end).then_some(why);
            record.phase = Phase::Exited(end);
            return;
        }
    };
    record.phase = Phase::Waiting { why, retry_at: Some(retry_at) };
}

fn hook(
    state: &mut PodState,
    input: &Input,
    (name, kind): (&str, HookKind),
    result: Result<(), String>,
    plan: &mut Plan,
) {
    let (Some(record), Some(container)) = (state.containers.get_mut(name), input.pod.container(name)) else {
        return;
    };
    match kind {
        HookKind::PreStop => {
            if let Err(error) = &result {
                plan.note(true, "FailedPreStopHook", name, format!("PreStopHook failed: {error}"));
            }
            if let Some(stopping) = &mut record.stopping {
                stopping.hook = Hook::Done;
            }
        }
        HookKind::PostStart => {
            record.post_start = Hook::Done;
            let Err(error) = result else { return };
            plan.note(true, "FailedPostStartHook", name, format!("PostStartHook failed: {error}"));
            if record.running() && record.stopping.is_none() {
                let message = "FailedPostStartHook".to_string();
                let reason = stop::Reason { message, grace: input.pod.spec_grace() };
                stop::begin_quiet(record, container, reason, input.now, plan);
            }
        }
    }
}

fn exited(state: &mut PodState, (name, attempt): (&str, u32), end: Terminated, now: Timestamp) {
    let Some(record) = state.containers.get_mut(name) else { return };
    let current = matches!(record.phase, Phase::Starting { .. } | Phase::Running { .. });
    if record.attempt != attempt || !current {
        return;
    }
    record.phase = Phase::Exited(end);
    record.since = now;
    record.stopping = None;
    record.started = false;
    record.post_start = Hook::Done;
    record.probes.clear();
}

fn probed(
    state: &mut PodState,
    input: &Input,
    (name, attempt, kind): (&str, u32, ProbeKind),
    result: Result<(), String>,
    plan: &mut Plan,
) {
    let (Some(record), Some(container)) = (state.containers.get_mut(name), input.pod.container(name)) else {
        return;
    };
    let Some(spec) = probe::spec(container, kind) else { return };
    let late = record.stopping.is_some() && kind != ProbeKind::Readiness;
    if record.attempt != attempt || !record.running() || late {
        return;
    }
    if let Err(message) = &result {
        plan.note(true, "Unhealthy", name, format!("{} probe failed: {message}", kind.title()));
    }
    let forgiven = result.is_err() && task::forgives(input.pod, name, record, input.now);
    let state = record.probes.entry(kind).or_default();
    if forgiven {
        probe::forgive(state, spec, input.now);
        return;
    }
    probe::book(state, spec, result.is_ok(), input.now);
    if kind == ProbeKind::Startup && state.result == Some(true) {
        record.started = true;
    }
}

fn sandbox_died(state: &mut PodState, input: &Input, plan: &mut Plan) {
    plan.note(false, "SandboxChanged", "", "Pod sandbox changed, it will be killed and re-created.".into());
    state.sandbox.setup = Setup::default();
    state.initialized = false;
    if memory_sources(input.pod) > 0 {
        // They were in its memory.
        state.volumes.ready = false;
        state.volumes.dirty = state.volumes.busy;
        state.volumes.retry_at = None;
    }
    for container in &input.pod.containers {
        let name = container.name();
        let Some(record) = state.containers.get_mut(name) else { continue };
        if let Phase::Running { started_at } = record.phase {
            let attempt = record.attempt;
            let end = Terminated {
                exit_code: 137,
                reason: "Error".into(),
                started_at: Some(started_at),
                finished_at: Some(input.wall),
                container_id: crate::status::container_id(input.pod.uid(), name, attempt),
                ..Terminated::default()
            };
            exited(state, (name, attempt), end, input.now);
        }
        if let Some(record) = state.containers.get_mut(name)
            && container.role == Role::Init
            && record.ended().is_some()
        {
            record.restart_now = true;
        }
    }
}

fn retry_containers(state: &mut PodState) {
    for record in state.containers.values_mut() {
        if let Phase::Waiting { retry_at, .. } = &mut record.phase {
            *retry_at = None;
        }
    }
}
