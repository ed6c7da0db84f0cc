//! The agent's decisions: one pod's state, its specification and the time in; actions out. Pure.
//!
//! [`step`] looks at everything anew each time (level-triggered), marks in the state what it asks for, and says
//! when to look again. [`outcome::apply`] books what the shell reports. No I/O, no clock, no random.
//!
//! ```text
//! pod:        prepare (volumes ∥ sandbox) → init containers in order → regular ones in parallel → finished
//!             any of these → ending (deleted, deadline, finished) → stop containers → tear down → delete
//! container:  Waiting → Starting → Running → Exited → (back-off) → Starting …
//! ```

pub mod outcome;
mod probe;
pub mod resize;
mod restart;
pub mod seed;
mod stop;
pub mod task;

use crate::pod::{ContainerView, PodView, Role};
use crate::state::{
    ContainerRecord, Ending, Hook, Phase, PodState, ProbeKind, Setup, Terminated, Waiting, Why,
};
use crate::volumes::memory_sources;
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use stdx::backoff::Backoff;

pub use restart::{Next, may_restart_all, next, restarts};

/// Delay between attempts to mount volumes or to make a sandbox.
pub const SETUP_RETRY: Backoff =
    Backoff { base: Duration::from_millis(500), factor: 2, max: Duration::from_secs(122) };
/// Crash and image back-off (Kubernetes' figures).
pub const RESTART: Backoff =
    Backoff { base: Duration::from_secs(10), factor: 2, max: Duration::from_secs(300) };
/// A container that ran so long before it ended starts its back-off anew.
pub const FORGET_AFTER: SignedDuration = SignedDuration::from_secs(600);
/// How long `ErrImagePull` is shown before `ImagePullBackOff`.
pub const PULL_ERROR_SHOWN: SignedDuration = SignedDuration::from_secs(1);
/// Between attempts after a configuration error (a missing ConfigMap …); objects that appear shorten it.
pub const CONFIG_RETRY: SignedDuration = SignedDuration::from_secs(10);

/// Seconds of grace for a pod whose object vanished: only a forced deletion does that, and its last known grace may
/// be any number.
pub const FORCED_GRACE: i64 = 1;
/// A sidecar that no probe vouches for counts as started when it has run so long: one that fails at once shall not have
/// let the next one start, and its first words come before the next one's.
pub const SETTLED: SignedDuration = SignedDuration::from_millis(300);
/// Longest grace in seconds when the node is emptied: `gantry down` waits for it.
pub const NODE_DOWN_GRACE_MAX: i64 = 20;

/// What a decision is made from, besides the state.
pub struct Input<'a> {
    /// The pod.
    pub pod: &'a PodView,
    /// Does the API still have it?
    pub present: bool,
    /// Is the node being emptied (`gantry down`)?
    pub node_down: bool,
    /// Now, on a clock that never jumps.
    pub now: Timestamp,
    /// Now, as the wall clock has it: for what people read.
    pub wall: Timestamp,
}

/// A signal to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The container's own stop signal.
    Stop,
    /// SIGKILL.
    Kill,
}

/// Which hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    /// After the start.
    PostStart,
    /// Before the stop signal.
    PreStop,
}

/// An event to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// `Warning` or `Normal`.
    pub warning: bool,
    /// Reason.
    pub reason: &'static str,
    /// Message.
    pub message: String,
    /// The container it is about; "" for the pod.
    pub container: String,
}

/// What the shell shall do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Mount (or refresh) all volumes.
    MountVolumes,
    /// Make shim, namespaces, cgroup, network.
    MakeSandbox,
    /// Resolve the image, create and start instance `attempt`.
    Start {
        /// Container name.
        container: String,
        /// Instance number.
        attempt: u32,
        /// How the instance before ended.
        last: Option<Terminated>,
        /// Its [`ContainerRecord::round`].
        round: u32,
    },
    /// Run a hook.
    Hook {
        /// Container name.
        container: String,
        /// Which.
        kind: HookKind,
        /// It must be done within.
        within: Option<SignedDuration>,
    },
    /// Send a signal.
    Signal {
        /// Container name.
        container: String,
        /// Instance.
        attempt: u32,
        /// Which.
        signal: Signal,
    },
    /// Run a probe once.
    Probe {
        /// Container name.
        container: String,
        /// Instance.
        attempt: u32,
        /// Which.
        kind: ProbeKind,
    },
    /// Give the pod's cgroup and these running containers (name, instance) the resources of that generation.
    Resize {
        /// Containers that stay as they run.
        containers: Vec<(String, u32)>,
        /// Whose amounts.
        generation: i64,
        /// Others restart for it, and still have what they had: the pod's cgroup may be unable to shrink yet.
        part: bool,
    },
    /// Remove everything of the pod from the node (its logs stay while the API has the pod).
    Teardown,
    /// Write the final status, then delete the pod from the API.
    Finalize,
    /// Record an event.
    Note(Note),
}

/// The answer of [`step`].
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// In order; independent ones may run in parallel.
    pub actions: Vec<Action>,
    /// Look again then.
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }

    fn note(&mut self, warning: bool, reason: &'static str, container: &str, message: String) {
        self.act(Action::Note(Note { warning, reason, message, container: container.to_string() }));
    }
}

/// `at + seconds`, without overflow.
pub fn after(at: Timestamp, delay: SignedDuration) -> Timestamp {
    at.saturating_add(delay).unwrap_or(at)
}

/// A back-off's delay in the arithmetic of timestamps.
pub fn delay(backoff: Backoff, level: u32) -> SignedDuration {
    SignedDuration::try_from(backoff.delay(level)).unwrap_or(SignedDuration::from_secs(300))
}

/// Decides what to do now for one pod.
pub fn step(state: &mut PodState, input: &Input) -> Plan {
    let mut plan = Plan::default();
    if input.pod.containers.iter().any(|c| !state.containers.contains_key(c.name())) {
        seed::add_records(state, input.pod, input.now);
    }
    note_ending(state, input, &mut plan);
    if state.ending.is_some() {
        stop::wind_down(state, input, &mut plan);
    } else {
        advance(state, input, &mut plan);
        if state.ending.is_some() {
            stop::wind_down(state, input, &mut plan);
        }
    }
    plan
}

/// Begins (or hastens) the pod's end where there is a reason.
fn note_ending(state: &mut PodState, input: &Input, plan: &mut Plan) {
    let pod = input.pod;
    let begin = |why, grace: i64| Ending { why, at: input.now, grace: grace.max(0) };
    let asked = pod.object.meta().deletion_grace_period_seconds.unwrap_or_else(|| pod.spec_grace());
    let wanted = if !input.present {
        Some(begin(Why::Removed, FORCED_GRACE))
    } else if pod.deleting() {
        Some(begin(Why::Deleted, asked))
    } else if input.node_down {
        Some(begin(Why::NodeDown, pod.spec_grace().min(NODE_DOWN_GRACE_MAX)))
    } else if state.ending.is_some() {
        None
    } else if pod.stored_phase_is_terminal() {
        // Somebody else (an eviction, say) called it done, and what is done stays done.
        Some(begin(Why::Finished, pod.spec_grace()))
    } else if let Some(verdict) = &state.verdict {
        Some(begin(Why::Verdict, verdict.grace))
    } else if let Some(seconds) = pod.spec().active_deadline_seconds {
        let due = after(state.begun, SignedDuration::from_secs(seconds));
        if due > input.now {
            plan.wake_at(due);
            None
        } else {
            let text = "Pod was active on the node longer than the specified deadline";
            plan.note(false, "DeadlineExceeded", "", text.into());
            Some(begin(Why::Deadline, pod.spec_grace()))
        }
    } else {
        None
    };
    match (&mut state.ending, wanted) {
        (Some(ending), Some(new)) => {
            let sooner = new.kill_at().min(ending.kill_at());
            if ending.why != new.why {
                // A pod that is done and is now deleted, or one whose object vanished meanwhile.
                ending.why = new.why;
                (ending.at, ending.grace) = (new.at, new.grace);
            } else if new.grace < ending.grace {
                ending.grace = new.grace;
            }
            if sooner < ending.kill_at() {
                ending.grace = (sooner.as_second() - ending.at.as_second()).max(0);
            }
        }
        (none, Some(new)) => *none = Some(new),
        (_, None) => {}
    }
}

/// May this setup step begin now? Marks it as begun.
fn begin(setup: &mut Setup, now: Timestamp, plan: &mut Plan) -> bool {
    if setup.busy || (setup.ready && !setup.dirty) {
        return false;
    }
    if let Some(at) = setup.retry_at
        && at > now
    {
        plan.wake_at(at);
        return false;
    }
    setup.busy = true;
    setup.dirty = false;
    true
}

/// Drives a pod that shall run.
fn advance(state: &mut PodState, input: &Input, plan: &mut Plan) {
    task::give_up(state, input);
    if end_if_finished(state, input) {
        return;
    }
    if let Some(at) = state.volumes_refresh_at {
        if at <= input.now {
            state.volumes.dirty = true;
            state.volumes_refresh_at = None;
        } else {
            plan.wake_at(at);
        }
    }
    if begin(&mut state.sandbox.setup, input.now, plan) {
        state.sandbox.exists = true;
        plan.act(Action::MakeSandbox);
    }
    // What goes into the sandbox's memory waits for it.
    let there = state.sandbox.setup.ready || state.sandbox.setup.busy;
    if (there || memory_sources(input.pod) == 0) && begin(&mut state.volumes, input.now, plan) {
        plan.act(Action::MountVolumes);
    }
    if !state.sandbox.setup.ready {
        return;
    }
    for container in &input.pod.containers {
        let Some(record) = state.containers.get_mut(container.name()) else { continue };
        tend(record, container, input, plan);
    }
    if end_if_finished(state, input) {
        return;
    }
    resize::drive(state, input, plan);
    if restart::all(state, input, plan) || !state.volumes.ready {
        return;
    }
    let run_main = init(state, input, plan);
    for container in &input.pod.containers {
        let wanted = match container.role {
            Role::Main | Role::Ephemeral => run_main,
            Role::Init | Role::Sidecar => false,
        };
        if wanted
            && task::may_start(state, container, input, plan)
            && let Some(record) = state.containers.get_mut(container.name())
        {
            start_if_due(record, container, input, plan);
            let hooking = match record.phase {
                Phase::Starting { .. } => has_post_start(container),
                _ => record.running() && record.post_start != Hook::Done,
            };
            if hooking && container.role == Role::Main {
                // Those after it wait for its postStart hook.
                break;
            }
        }
    }
    if input.pod.task.is_some() {
        // A dependency that cannot be met any more.
        end_if_finished(state, input);
    }
}

/// Init containers in order; true when regular containers may run.
fn init(state: &mut PodState, input: &Input, plan: &mut Plan) -> bool {
    for container in &input.pod.containers {
        let Some(record) = state.containers.get_mut(container.name()) else { continue };
        match container.role {
            Role::Init if state.initialized => {}
            Role::Init => match record.ended() {
                Some(end) if end.exit_code == 0 && !record.restart_now => {}
                _ => {
                    start_if_due(record, container, input, plan);
                    return false;
                }
            },
            Role::Sidecar => {
                start_if_due(record, container, input, plan);
                let up = record.running() && record.started && record.post_start == Hook::Done;
                if state.initialized {
                    continue;
                }
                let settled = after(record.since, SETTLED);
                if up && settled > input.now && container.spec.startup_probe.is_none() {
                    plan.wake_at(settled);
                    return false;
                }
                if !up {
                    return false;
                }
            }
            Role::Main | Role::Ephemeral => {}
        }
    }
    state.initialized = true;
    true
}

/// Has it a postStart hook?
fn has_post_start(container: &ContainerView) -> bool {
    container.spec.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some())
}

/// A running container: its hook, its definition, its probes, a stop under way.
fn tend(record: &mut ContainerRecord, container: &ContainerView, input: &Input, plan: &mut Plan) {
    if !record.running() {
        return;
    }
    if record.stopping.is_some() {
        stop::drive(record, container, true, input.now, plan);
        return;
    }
    if record.post_start == Hook::Due {
        record.post_start = Hook::Running;
        plan.act(Action::Hook {
            container: container.name().into(),
            kind: HookKind::PostStart,
            within: None,
        });
    }
    let changed = record.facts.as_ref().is_some_and(|f| f.spec_image != container.image());
    if changed && container.role != Role::Ephemeral {
        record.restart_now = true;
        let why = format!("Container {} definition changed, will be restarted", container.name());
        stop::begin(
            record,
            container,
            stop::Reason { message: why, grace: input.pod.spec_grace() },
            input.now,
            plan,
        );
        return;
    }
    if record.post_start == Hook::Done {
        probe::drive(record, container, input, plan);
    }
}

/// Starts (or restarts) a container when it is time.
fn start_if_due(record: &mut ContainerRecord, container: &ContainerView, input: &Input, plan: &mut Plan) {
    if !record.tried.is_empty() && record.tried != container.image() {
        // What failed before was another image: back-offs begin anew.
        (record.crash, record.pull, record.pull_shown_at) = Default::default();
        if let Phase::Waiting { retry_at, .. } = &mut record.phase {
            *retry_at = None;
        }
    }
    show_pull_back_off(record, container, input.now, plan);
    match next(record, container, input.pod, input.now) {
        Next::Nothing => {}
        Next::At(at) => {
            if record.ended().is_some() {
                restart::show_back_off(record, container, input.pod, plan);
            }
            plan.wake_at(at);
        }
        Next::Now => {
            restart::begin(record, input.now);
            record.tried = container.image().into();
            let (container, last) = (container.name().into(), record.last.clone());
            plan.act(Action::Start { container, attempt: record.attempt, last, round: record.round });
        }
    }
}

/// `ErrImagePull` becomes `ImagePullBackOff` while the next attempt is awaited.
fn show_pull_back_off(
    record: &mut ContainerRecord,
    container: &ContainerView,
    now: Timestamp,
    plan: &mut Plan,
) {
    let Some(at) = record.pull_shown_at else { return };
    let Phase::Waiting { why, .. } = &mut record.phase else { return };
    if at > now {
        plan.wake_at(at);
        return;
    }
    record.pull_shown_at = None;
    let text = format!("Back-off pulling image \"{}\"", container.image());
    *why = Waiting {
        reason: "ImagePullBackOff".into(),
        message: format!("{text}: {}: {}", why.reason, why.message),
    };
    plan.note(false, "BackOff", container.name(), text);
    plan.note(true, "Failed", container.name(), "Error: ImagePullBackOff".into());
}

/// Has a pod that is done for ever end; is it?
fn end_if_finished(state: &mut PodState, input: &Input) -> bool {
    let done = finished(state, input.pod);
    if done {
        state.ending = Some(Ending { why: Why::Finished, at: input.now, grace: input.pod.spec_grace() });
    }
    done
}

/// Are all regular containers (or a decisive init container) done for ever?
fn finished(state: &PodState, pod: &PodView) -> bool {
    if let Some(task) = &pod.task {
        return task::finished(state, pod, task);
    }
    let done = |c: &ContainerView| {
        let Some(record) = state.containers.get(c.name()) else { return false };
        // One that is stopped for good takes the pod with it before it has ended.
        let last = !restart::restarts_on_failure(pod, c) && c.spec.restart_policy_rules.is_none();
        let ending = last && record.running() && record.stopping.is_some();
        let ended = record.ended().is_some_and(|end| !restarts(pod, c, end));
        (ended || ending) && !record.restart_now && !record.again
    };
    let failed_init = |c: &&ContainerView| {
        c.role == Role::Init
            && done(c)
            && state.containers[c.name()].ended().is_some_and(|e| e.exit_code != 0)
    };
    if !state.initialized && pod.containers.iter().any(|c| failed_init(&c)) {
        return true;
    }
    let mut main = pod.containers.iter().filter(|c| c.role == Role::Main).peekable();
    main.peek().is_some() && main.all(done) && !restart::asks_for_all(state, pod)
}

#[cfg(test)]
mod tests;
