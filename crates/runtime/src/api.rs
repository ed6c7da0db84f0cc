//! What the agent asks of the runtime: values only.
//!
//! Lifecycle of a container: `Created` → `Running` → `Exited`; never back. A pod is a shim process plus the
//! namespaces it holds; it is gone when the shim, its children, its cgroups and its state folder are gone.

use crate::oci;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where the runtime keeps its things.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// State folder on tmpfs, one folder a pod below it (`/run/gantry/<instance>/pods`).
    pub state_dir: PathBuf,
    /// Cgroup path below every hierarchy's root, without slashes at its ends (`gantry-<instance>`).
    pub cgroup_root: String,
    /// The binary to re-exec as shim; called as `<exe> shim …`.
    pub shim_exe: PathBuf,
    /// Other OCI runtimes by RuntimeClass handler name (`crun` → `/usr/bin/crun`).
    pub handlers: BTreeMap<String, PathBuf>,
}

/// A memory file system that lives in the shim's mount namespace, hence exactly as long as the pod.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Mount point on the host (an existing folder); other processes of the host do not see the mount.
    pub path: PathBuf,
    /// Size limit in bytes; 0: the kernel's default.
    pub size_bytes: u64,
    /// Its pages, as the mount option wants them (`2M`); "": ordinary ones.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub page_size: String,
}

/// The node's ids that a pod's ids from 0 on stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRange {
    /// The node's id of the pod's root.
    pub first: u32,
    /// How many.
    pub size: u32,
}

/// Everything a pod's shim needs to know. Written to the pod's state folder, so a restarted agent can re-adopt.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PodSpec {
    /// Pod UID; names the state folder.
    pub uid: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Host name inside the pod.
    pub hostname: String,
    /// Cgroup path below the root, e.g. `burstable/pod<uid>`; containers get a child each.
    pub cgroup: String,
    /// Limits of the pod's cgroup.
    pub resources: oci::Resources,
    /// Stay in the node's network namespace.
    pub host_network: bool,
    /// Stay in the node's PID namespace.
    pub host_pid: bool,
    /// Stay in the node's IPC namespace.
    pub host_ipc: bool,
    /// One PID namespace for all containers.
    pub share_pid: bool,
    /// The pod's own user namespace; its other namespaces belong to it. `None`: the node's.
    #[serde(default)]
    pub users: Option<UserRange>,
    /// Sysctls of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Memory volumes.
    pub tmpfs: Vec<Tmpfs>,
    /// RuntimeClass handler; `None`: Gantry's own runtime.
    pub handler: Option<String>,
    /// Opaque to the runtime; comes back on recovery (the agent keeps addresses and hashes here).
    pub annotations: BTreeMap<String, String>,
}

/// The root file system of a container: an overlay, mounted in the shim's mount namespace.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Rootfs {
    /// Read-only layers, uppermost first.
    pub lowers: Vec<PathBuf>,
    /// Folder for `upper` and `work` (made and removed by the runtime).
    pub scratch: PathBuf,
}

/// Where a container's output goes: the CRI log format (`<time> stdout F <line>`).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogSpec {
    /// File path; its folder is made.
    pub path: PathBuf,
    /// Rotate when the file is larger, in bytes.
    pub max_bytes: u64,
    /// Keep so many files in all.
    pub max_files: u32,
}

/// One container to create.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique in the pod (`<name>-<attempt>`).
    pub id: String,
    /// Container name.
    pub name: String,
    /// How often it was started before.
    pub attempt: u32,
    /// OCI configuration: process, mounts, linux. `root.path` is filled in by the runtime.
    pub config: oci::Spec,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Its log.
    pub log: LogSpec,
    /// Keep a stdin open for attach.
    pub stdin: bool,
    /// Close stdin after the first attached client left.
    pub stdin_once: bool,
    /// Opaque to the runtime; comes back on recovery.
    pub annotations: BTreeMap<String, String>,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal when killed by one.
    pub code: i32,
    /// The signal, 0 when none.
    pub signal: i32,
    /// Killed by the kernel for memory (the container, or a child of it).
    pub oom_killed: bool,
    /// Nanoseconds since the epoch.
    pub finished_at_ns: i64,
    /// Why it never ran (`exec: "foo": executable file not found in $PATH`); "" when it ran.
    pub start_error: String,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Running since then (nanoseconds since the epoch).
    Running {
        /// Host PID of its first process.
        pid: i32,
        /// Start time.
        started_at_ns: i64,
    },
    /// Ended.
    Exited {
        /// Start time; 0 when it never ran.
        started_at_ns: i64,
        /// How.
        exit: Exit,
    },
}

/// A container as the shim reports it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// What it was created from.
    pub spec: ContainerSpec,
    /// Its state.
    pub state: ContainerState,
}

/// A pod as the runtime knows it.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// What it was created from.
    pub spec: PodSpec,
    /// The shim's PID; `/proc/<pid>/ns/net` is the pod's network namespace.
    pub shim_pid: i32,
    /// Its containers.
    pub containers: Vec<ContainerInfo>,
}

/// Something happened in a pod.
#[derive(Clone, Debug)]
pub enum RuntimeEvent {
    /// A container changed state.
    Container {
        /// Pod UID.
        uid: String,
        /// Container id.
        id: String,
        /// Its new state.
        state: ContainerState,
    },
    /// The shim is gone; the runtime has killed what was left of the pod.
    PodDied {
        /// Pod UID.
        uid: String,
    },
}

/// A command to run in a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Arguments; the first is looked up in the container's PATH.
    pub args: Vec<String>,
    /// A terminal?
    pub tty: bool,
    /// Connect stdin.
    pub stdin: bool,
    /// Connect stdout.
    pub stdout: bool,
    /// Connect stderr (never with `tty`).
    pub stderr: bool,
}

/// What a pod uses, from its cgroups.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Of that, in user mode.
    pub user_ns: u64,
    /// Of that, in the kernel.
    pub system_ns: u64,
    /// Periods of its CPU limit, those in which it was held back, and for how many nanoseconds.
    pub throttling: [u64; 3],
    /// Memory in bytes, caches included.
    pub memory_bytes: u64,
    /// Memory in bytes that cannot be reclaimed at once (working set).
    pub working_set_bytes: u64,
    /// Anonymous memory in bytes.
    pub rss_bytes: u64,
    /// Memory in bytes that holds files' contents.
    pub cache_bytes: u64,
    /// Of that, mapped.
    pub mapped_bytes: u64,
    /// Files' contents in use lately, and those that are not.
    pub file_bytes: [u64; 2],
    /// Memory in bytes that the kernel keeps for it.
    pub kernel_bytes: u64,
    /// Swap in bytes.
    pub swap_bytes: u64,
    /// The most memory in bytes since the cgroup was made; 0 where the kernel does not say.
    pub peak_bytes: u64,
    /// How often memory ran against its limit.
    pub memory_failures: u64,
    /// Kills for lack of memory.
    pub oom_kills: u64,
    /// Page faults, and those that read a disk.
    pub faults: [u64; 2],
    /// Bytes and operations read from disks and written to disks.
    pub disk: Disk,
    /// Processes and threads.
    pub pids: u64,
    /// How many there may be; 0: no limit.
    pub pids_max: u64,
    /// How long its processes waited for CPU, memory and disks; none where the kernel does not count it.
    pub pressure: [Option<Pressure>; 3],
}

/// Time in which work waited for a resource (PSI): some of it, or all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// At least one process waited.
    pub some: Stall,
    /// Nothing went on.
    pub full: Stall,
}

/// One line of the kernel's pressure files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// Hundredths of a percent of the last 10, 60 and 300 seconds.
    pub averages: [u32; 3],
    /// Microseconds in all.
    pub total_us: u64,
}

impl Pressure {
    /// Reads a file of the kernel's: `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Pressure> {
        let stall = |kind: &str| {
            let words = text.lines().find_map(|l| l.strip_prefix(kind))?;
            let value = |name: &str| {
                words
                    .split(' ')
                    .find_map(|w| w.strip_prefix(name)?.strip_prefix('='))
                    .map(|v| v.replace('.', ""))
            };
            let average = |name: &str| value(name)?.parse().ok();
            let averages = [average("avg10")?, average("avg60")?, average("avg300")?];
            Some(Stall { averages, total_us: value("total")?.parse().ok()? })
        };
        // Old kernels count no `full` for CPU.
        Some(Pressure { some: stall("some")?, full: stall("full").unwrap_or_default() })
    }
}

/// Traffic with disks since the cgroup was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}
