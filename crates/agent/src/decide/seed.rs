//! The first state of a pod: from what the runtime still has of it, and from what the API says.

use crate::pod::{PodView, Role};
use crate::state::{
    ContainerRecord, Ending, Facts, Phase, PodState, ProbeKind, ProbeState, Resize, Sandbox, Setup,
    Terminated, Waiting, Why,
};
use crate::status::{container_id, terminated};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus};
use runtime::api::{ContainerInfo, ContainerState as Running, PodInfo};

/// Annotation of a container in the runtime: its [`Facts`] as JSON.
pub const FACTS: &str = "gantry.dev/facts";
/// Annotation of a pod in the runtime: its addresses, comma-separated.
pub const IPS: &str = "gantry.dev/ips";

/// A pod that nobody has touched, or one that a former agent ran. (The decider's clock starts as the wall clock.)
pub fn seed(pod: &PodView, live: Option<&PodInfo>, now: Timestamp, wall: Timestamp) -> PodState {
    let status = pod.pod.status.as_ref();
    let start_time = status.and_then(|s| s.start_time.as_ref()).map_or(wall, |t| t.0);
    let mut state = PodState {
        start_time,
        begun: now.saturating_sub(wall.duration_since(start_time)).unwrap_or(now),
        sandbox: Sandbox::default(),
        volumes: Setup::default(),
        volumes_refresh_at: None,
        initialized: false,
        restarting_all: false,
        containers: Default::default(),
        // What is new starts with what it shall have; what ran before is seen to once.
        resize: Resize {
            settled: if live.is_none() { pod.object.meta().generation } else { 0 },
            ..Resize::default()
        },
        verdict: None,
        ending: None,
        teardown: Setup::default(),
        finalize: Setup::default(),
    };
    let stored_ips = status.and_then(|s| s.pod_ips.as_ref());
    state.sandbox.ips = stored_ips.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    if let Some(live) = live {
        // Without any container the former agent may have died before network and files were there; making a
        // sandbox completes one that is half made.
        state.sandbox.setup.ready = !live.containers.is_empty();
        state.sandbox.exists = true;
        if let Some(ips) = live.spec.annotations.get(IPS) {
            state.sandbox.ips = ips.split(',').filter_map(|ip| ip.parse().ok()).collect();
        }
    }
    add_records(&mut state, pod, now);
    for container in &pod.containers {
        let name = container.name();
        let stored = stored_status(pod, name);
        let found = live
            .and_then(|l| l.containers.iter().filter(|c| c.spec.name == name).max_by_key(|c| c.spec.attempt));
        let Some(record) = state.containers.get_mut(name) else { continue };
        match (found, stored) {
            (Some(info), stored) => from_runtime(record, info, stored, pod.uid()),
            (None, Some(stored)) => from_api(record, stored, wall),
            (None, None) => {}
        }
    }
    go_on_restarting(&mut state, pod);
    let begun = |role: Role| {
        pod.containers.iter().filter(|c| c.role == role).any(|c| {
            let record = &state.containers[c.name()];
            let begun = record.running() || record.ended().is_some() || record.last.is_some();
            begun && !record.restart_now
        })
    };
    state.initialized = live.is_some() && begun(Role::Main);
    if pod.stored_phase_is_terminal() {
        state.ending = Some(Ending { why: Why::Finished, at: now, grace: pod.spec_grace() });
        state.teardown.ready = live.is_none();
    }
    state
}

/// A former agent was ended while all containers started anew: those that have not are due.
fn go_on_restarting(state: &mut PodState, pod: &PodView) {
    let of = |record: &ContainerRecord| record.facts.as_ref().map(|f| f.round);
    let round = state.containers.values().filter_map(of).max().unwrap_or(0);
    for container in &pod.containers {
        let Some(record) = state.containers.get_mut(container.name()) else { continue };
        record.round = round;
        record.restart_now = container.role != Role::Ephemeral && of(record).is_some_and(|r| r < round);
        state.restarting_all |= record.restart_now;
    }
}

/// Adds a record for each container that has none (a new pod, or an ephemeral container).
pub fn add_records(state: &mut PodState, pod: &PodView, now: Timestamp) {
    let reason = pod.creating_reason();
    for container in &pod.containers {
        if !state.containers.contains_key(container.name()) {
            state.containers.insert(container.name().to_string(), ContainerRecord::new(reason, now));
        }
    }
}

fn stored_status<'a>(pod: &'a PodView, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.pod.status.as_ref()?;
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|s| s.name == name)
}

fn from_runtime(
    record: &mut ContainerRecord,
    info: &ContainerInfo,
    stored: Option<&ContainerStatus>,
    uid: &str,
) {
    let facts: Option<Facts> =
        info.spec.annotations.get(FACTS).and_then(|text| serde_json::from_str(text).ok());
    record.attempt = info.spec.attempt;
    record.last = facts.as_ref().and_then(|f| f.last.clone());
    record.facts = facts;
    let time = |ns: i64| Timestamp::from_nanosecond(i128::from(ns)).unwrap_or(Timestamp::UNIX_EPOCH);
    match &info.state {
        Running::Created => {}
        Running::Running { started_at_ns, .. } => {
            record.since = time(*started_at_ns);
            record.phase = Phase::Running { started_at: record.since };
            // What the API last said stands until a probe says otherwise.
            record.started = stored.and_then(|s| s.started).unwrap_or(false);
            // What a former agent resized it to, it told.
            let id = container_id(uid, &info.spec.name, info.spec.attempt);
            let told = stored.filter(|s| s.container_id.as_deref() == Some(id.as_str()));
            record.resources = told.and_then(|s| s.resources.clone());
            if stored.is_some_and(|s| s.ready) {
                let ready = ProbeState { result: Some(true), good: 1, ..ProbeState::default() };
                record.probes.insert(ProbeKind::Readiness, ready);
            }
        }
        Running::Exited { started_at_ns, exit } => {
            let id = container_id(uid, &info.spec.name, info.spec.attempt);
            record.since = time(exit.finished_at_ns);
            record.phase = Phase::Exited(terminated(*started_at_ns, exit, id));
        }
    }
}

/// Nothing is left on the node (a reboot, a lost state folder): the API remembers the count, the last end and whose
/// processes they were.
fn from_api(record: &mut ContainerRecord, stored: &ContainerStatus, now: Timestamp) {
    let end = |state: Option<&ContainerState>| {
        let t = state?.terminated.as_ref()?;
        Some(Terminated {
            exit_code: t.exit_code,
            signal: t.signal.unwrap_or(0),
            reason: t.reason.clone().unwrap_or_default(),
            message: t.message.clone().unwrap_or_default(),
            started_at: t.started_at.as_ref().map(|t| t.0),
            finished_at: t.finished_at.as_ref().map(|t| t.0),
            container_id: t.container_id.clone().unwrap_or_default(),
        })
    };
    record.attempt = u32::try_from(stored.restart_count).unwrap_or(0);
    record.facts = stored.user.as_ref().and_then(|u| u.linux.as_ref()).map(|user| {
        let id = |id: &i64| u32::try_from(*id).unwrap_or(0);
        Facts {
            image: stored.image.clone(),
            image_id: stored.image_id.clone(),
            uid: id(&user.uid),
            gid: id(&user.gid),
            groups: user.supplemental_groups.iter().flatten().map(id).collect(),
            ..Facts::default()
        }
    });
    let state = stored.state.as_ref();
    let last = end(stored.last_state.as_ref());
    if let Some(ended) = end(state) {
        record.phase = Phase::Exited(ended);
        record.last = last;
    } else if let Some(running) = state.and_then(|s| s.running.as_ref()) {
        record.phase = Phase::Exited(Terminated {
            exit_code: 255,
            reason: "Unknown".into(),
            started_at: running.started_at.as_ref().map(|t| t.0),
            finished_at: Some(now),
            container_id: stored.container_id.clone().unwrap_or_default(),
            ..Terminated::default()
        });
        record.last = last;
    } else if let Some(ended) = last {
        if let Some(waiting) = state.and_then(|s| s.waiting.as_ref()) {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            record.shown = Some(Waiting { reason: text(&waiting.reason), message: text(&waiting.message) });
        }
        record.phase = Phase::Exited(ended);
    }
}
