//! What the agent knows of one pod on this node: plain data, changed only by `decide`.
//!
//! Invariants: at most one operation runs at a time for each of: the sandbox, the volumes, one container's
//! start, one container's hook, one probe of one kind. What is under way is marked here before it begins.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ResourceRequirements;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A step of the pod's preparation that may fail and be tried again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Setup {
    /// Done.
    pub ready: bool,
    /// Under way.
    pub busy: bool,
    /// Its inputs changed: do it again (volumes only).
    pub dirty: bool,
    /// Failures in a row.
    pub failures: u32,
    /// What the last one said.
    pub error: String,
    /// Not before.
    pub retry_at: Option<Timestamp>,
}

/// How a container ended, in the words of the API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Terminated {
    /// Exit code.
    pub exit_code: i32,
    /// Signal, 0 when none.
    #[serde(default)]
    pub signal: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, ….
    pub reason: String,
    /// Termination message.
    #[serde(default)]
    pub message: String,
    /// When it started; `None` when it never ran.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// `gantry://…`.
    #[serde(default)]
    pub container_id: String,
}

/// Why a container is not running.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Waiting {
    /// `ContainerCreating`, `ErrImagePull`, `CrashLoopBackOff`, ….
    pub reason: String,
    /// For humans.
    pub message: String,
}

/// Facts of the current instance, fixed when it was created; kept in the runtime's annotations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The image as the spec asked for it then.
    pub spec_image: String,
    /// The image's full name.
    pub image: String,
    /// Its id for `status.imageID`.
    pub image_id: String,
    /// Signal that stops it (`SIGTERM`).
    pub stop_signal: String,
    /// User id of its first process.
    pub uid: u32,
    /// Group id of its first process.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// How the instance before it ended.
    pub last: Option<Terminated>,
    /// How often a rule had had all containers of the pod start anew.
    #[serde(default)]
    pub round: u32,
    /// What it was started with.
    #[serde(default)]
    pub resources: Option<Box<ResourceRequirements>>,
}

/// Where one container is.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Nothing made; `retry_at`: not before.
    Waiting {
        /// Shown in the status.
        why: Waiting,
        /// Not before.
        retry_at: Option<Timestamp>,
    },
    /// Being created and started; `before` is shown meanwhile.
    Starting {
        /// How the instance before ended.
        before: Option<Terminated>,
    },
    /// Running since then.
    Running {
        /// Start time.
        started_at: Timestamp,
    },
    /// Ended.
    Exited(Terminated),
}

/// A back-off of doubling delays that forgets after a long quiet time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tries {
    /// How many delays were handed out.
    pub level: u32,
    /// When the last one was.
    pub since: Option<Timestamp>,
}

/// A hook of the current instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Hook {
    /// To be run.
    Due,
    /// Under way.
    Running,
    /// Ran, or there is none.
    #[default]
    Done,
}

/// A stop under way.
#[derive(Clone, Debug, PartialEq)]
pub struct Stopping {
    /// The grace period's end; once the stop signal is sent: SIGKILL at that time.
    pub kill_at: Timestamp,
    /// What is left for the stop signal even where the grace period is used up.
    pub window: SignedDuration,
    /// The preStop hook; while it runs within the grace period no signal is sent.
    pub hook: Hook,
    /// The stop signal was sent.
    pub term_sent: bool,
    /// SIGKILL was sent; again not before.
    pub kill_again_at: Option<Timestamp>,
}

/// The three kinds of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Until it succeeds, the others wait.
    Startup,
    /// Failure restarts.
    Liveness,
    /// Decides readiness.
    Readiness,
}

impl ProbeKind {
    /// All, in the order of their evaluation.
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    /// Lower-case name, as in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeKind::Startup => "startup",
            ProbeKind::Liveness => "liveness",
            ProbeKind::Readiness => "readiness",
        }
    }

    /// Capitalised name, as events begin.
    pub fn title(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// One probe of the current instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProbeState {
    /// Under way.
    pub busy: bool,
    /// Next one; `None`: at once (after the initial delay).
    pub next_at: Option<Timestamp>,
    /// Successes in a row.
    pub good: u32,
    /// Failures in a row.
    pub bad: u32,
    /// The settled result.
    pub result: Option<bool>,
}

/// One container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerRecord {
    /// Number of the current (or next) instance: `status.restartCount`.
    pub attempt: u32,
    /// Where it is.
    pub phase: Phase,
    /// When it started or ended, on the decider's clock.
    pub since: Timestamp,
    /// How the instance before ended.
    pub last: Option<Terminated>,
    /// Crash back-off.
    pub crash: Tries,
    /// Shown instead of the end while it waits for its restart.
    pub shown: Option<Waiting>,
    /// Image back-off.
    pub pull: Tries,
    /// When `ErrImagePull` becomes `ImagePullBackOff`.
    pub pull_shown_at: Option<Timestamp>,
    /// The image that was last asked for.
    pub tried: String,
    /// Of the current or last instance.
    pub facts: Option<Facts>,
    /// The postStart hook.
    pub post_start: Hook,
    /// Passed its startup probe (or has none).
    pub started: bool,
    /// Probes, by [`ProbeKind`].
    pub probes: BTreeMap<ProbeKind, ProbeState>,
    /// A stop under way.
    pub stopping: Option<Stopping>,
    /// Restart without back-off (its definition changed).
    pub restart_now: bool,
    /// How often a rule has had all containers of the pod start anew: the [`Facts`] of an instance that has yet to end
    /// for it say less.
    pub round: u32,
    /// Stopped since a probe failed: another instance is wanted whatever its exit code.
    pub again: bool,
    /// What a resize gave the instance since it started.
    pub resources: Option<ResourceRequirements>,
}

impl ContainerRecord {
    /// A container of which nothing exists.
    pub fn new(reason: &str, now: Timestamp) -> Self {
        ContainerRecord {
            attempt: 0,
            since: now,
            phase: Phase::Waiting {
                why: Waiting { reason: reason.into(), message: String::new() },
                retry_at: None,
            },
            last: None,
            crash: Tries::default(),
            shown: None,
            pull: Tries::default(),
            pull_shown_at: None,
            tried: String::new(),
            facts: None,
            post_start: Hook::Done,
            started: false,
            probes: BTreeMap::new(),
            stopping: None,
            restart_now: false,
            round: 0,
            again: false,
            resources: None,
        }
    }

    /// Running?
    pub fn running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// The end, when it ended.
    pub fn ended(&self) -> Option<&Terminated> {
        match &self.phase {
            Phase::Exited(terminated) => Some(terminated),
            _ => None,
        }
    }
}

/// Why a pod comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The API asks for its deletion.
    Deleted,
    /// The API no longer has it.
    Removed,
    /// `activeDeadlineSeconds` is over.
    Deadline,
    /// The agent's own judgement ([`Verdict`]).
    Verdict,
    /// All its containers are done.
    Finished,
    /// `gantry down`.
    NodeDown,
}

/// The agent's own judgement that a pod must not run here (any more): it becomes Failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It was never let in; otherwise it was evicted.
    pub rejected: bool,
    /// `OutOfcpu`, `Evicted`, ….
    pub reason: String,
    /// For humans.
    pub message: String,
    /// Seconds to stop.
    pub grace: i64,
}

/// A pod's end under way.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// Why.
    pub why: Why,
    /// When it began.
    pub at: Timestamp,
    /// Grace period in seconds.
    pub grace: i64,
}

impl Ending {
    /// When what still runs is killed.
    pub fn kill_at(&self) -> Timestamp {
        self.at.saturating_add(jiff::SignedDuration::from_secs(self.grace)).unwrap_or(self.at)
    }
}

/// The pod's shim, namespaces and network.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Sandbox {
    /// Its making.
    pub setup: Setup,
    /// Addresses; kept when the sandbox is gone, as the API keeps them.
    pub ips: Vec<IpAddr>,
    /// Something may exist on the node (a failed making included).
    pub exists: bool,
}

/// Why a resize is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `Infeasible` (never on this node) or `Deferred` (not now).
    pub reason: &'static str,
    /// For humans.
    pub message: String,
}

impl Refusal {
    /// Of a pod with CPUs of its own, in the kubelet's words.
    pub fn of_cpus() -> Refusal {
        let message = "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy".into();
        Refusal { reason: "Infeasible", message }
    }
}

/// An in-place resize.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resize {
    /// The node has no room for it.
    pub refusal: Option<Refusal>,
    /// Under way.
    pub busy: bool,
    /// Not before.
    pub retry_at: Option<Timestamp>,
    /// Failures in a row.
    pub failures: u32,
    /// Why the last attempt failed.
    pub error: String,
    /// The generation whose amounts the pod's cgroup has.
    pub settled: i64,
    /// Containers restart for it: the pod's cgroup gets its amounts once more after that.
    pub again: bool,
    /// The last event about it, and of which generation.
    pub told: Option<(&'static str, i64)>,
}

/// Everything known of one pod.
#[derive(Clone, Debug, PartialEq)]
pub struct PodState {
    /// When the agent took it on (`status.startTime`).
    pub start_time: Timestamp,
    /// The same on the decider's clock.
    pub begun: Timestamp,
    /// Namespaces and network.
    pub sandbox: Sandbox,
    /// Volumes.
    pub volumes: Setup,
    /// When a volume wants to be written again (tokens).
    pub volumes_refresh_at: Option<Timestamp>,
    /// All init containers are done in this sandbox.
    pub initialized: bool,
    /// A rule has all containers start anew, and some have yet to stop.
    pub restarting_all: bool,
    /// By name.
    pub containers: BTreeMap<String, ContainerRecord>,
    /// A change of its resources.
    pub resize: Resize,
    /// Why the agent ends it, when it does.
    pub verdict: Option<Verdict>,
    /// Its end.
    pub ending: Option<Ending>,
    /// The tear-down: `ready` means that nothing is left on the node.
    pub teardown: Setup,
    /// The deletion from the API: `ready` means done.
    pub finalize: Setup,
}
