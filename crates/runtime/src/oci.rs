//! The OCI runtime specification's `config.json` (v1.1): the fields that Gantry writes and its runtime reads.
//!
//! JSON names are the specification's, so crun and runc accept the same file. Absent and empty are the same.
//! Deliberately not here: hooks (nothing in Gantry uses them), Windows, Solaris, VM.

mod defaults;
pub mod seccomp;

pub use defaults::{DEFAULT_CAPABILITIES, default_devices, default_spec};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Declares one object of the specification: camelCase names, every field optional, empty ones not written.
macro_rules! oci {
    ($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name {
            $($(#[$fmeta])* #[serde(skip_serializing_if = "is_default")] pub $field: $ty,)*
        }
    };
}

oci! {
    /// The whole configuration of one container.
    Spec {
        /// Version of the specification (`1.1.0`).
        oci_version: String,
        /// The container's first process.
        process: Process,
        /// Its root file system.
        root: Root,
        /// Host name; only with a UTS namespace of its own.
        hostname: String,
        /// File systems to mount, in order.
        mounts: Vec<Mount>,
        /// Linux's part.
        linux: Linux,
        /// Free-form notes.
        annotations: BTreeMap<String, String>,
    }
}

/// A process: the container's first one, or one that joins it (`exec`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Process {
    /// Connect a terminal.
    pub terminal: bool,
    /// First size of the terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    /// Identity (always written: runc wants it).
    pub user: User,
    /// The first is looked up in the container's `PATH`.
    pub args: Vec<String>,
    /// `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Working folder, absolute; made when absent.
    pub cwd: String,
    /// Capability sets; `None`: none at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<Capabilities>,
    /// Resource limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// Set `no_new_privs`.
    pub no_new_privileges: bool,
    /// `oom_score_adj`; `None`: inherited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// AppArmor profile; "" none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub apparmor_profile: String,
    /// SELinux label; "" none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selinux_label: String,
}

oci! {
    /// Size of a terminal in characters.
    ConsoleSize {
        /// Rows.
        height: u16,
        /// Columns.
        width: u16,
    }
}

/// Identity of a process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct User {
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
    /// Supplementary groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
    /// File mode mask; `None`: 0o022.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
}

oci! {
    /// Capability sets, names as `CAP_CHOWN`.
    Capabilities {
        /// Upper bound over `execve`.
        bounding: Vec<String>,
        /// In force.
        effective: Vec<String>,
        /// Kept over `execve` when the file allows.
        inheritable: Vec<String>,
        /// May be made effective.
        permitted: Vec<String>,
        /// Kept over `execve` of ordinary files.
        ambient: Vec<String>,
    }
}

/// One resource limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Name as `RLIMIT_NOFILE`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Ceiling.
    pub hard: u64,
    /// In force.
    pub soft: u64,
}

/// The root file system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Folder; filled in by the runtime.
    pub path: PathBuf,
    /// Remount read-only before the process starts.
    pub readonly: bool,
}

oci! {
    /// One file system to mount.
    Mount {
        /// Absolute path in the container; links in it are resolved inside the container's root.
        destination: PathBuf,
        /// File system type; `bind` for binds.
        #[serde(rename = "type")]
        kind: String,
        /// What to mount.
        source: PathBuf,
        /// Options in `mount(8)`'s words, plus `rbind`, `rro`, `rprivate` … of the specification.
        options: Vec<String>,
        /// Identity mapping of an idmapped bind (container → file system).
        uid_mappings: Vec<IdMapping>,
        /// The same for groups.
        gid_mappings: Vec<IdMapping>,
    }
}

oci! {
    /// The Linux part.
    Linux {
        /// Maps of a user namespace.
        uid_mappings: Vec<IdMapping>,
        /// The same for groups.
        gid_mappings: Vec<IdMapping>,
        /// Sysctls of the container's namespaces.
        sysctl: BTreeMap<String, String>,
        /// Limits.
        resources: Resources,
        /// Cgroup, absolute below every hierarchy's root; filled in by the runtime.
        cgroups_path: String,
        /// Namespaces to make, or to join where a path stands.
        namespaces: Vec<Namespace>,
        /// Device nodes.
        devices: Vec<Device>,
        /// System call filter.
        seccomp: Option<seccomp::Seccomp>,
        /// Propagation of the root (`rprivate`, `rslave`, `rshared`); "" means rprivate.
        rootfs_propagation: String,
        /// Paths hidden from the container.
        masked_paths: Vec<PathBuf>,
        /// Paths that cannot be written.
        readonly_paths: Vec<PathBuf>,
        /// SELinux label of mounts; "" none.
        mount_label: String,
    }
}

/// A range of ids mapped from a container to its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id in the container.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id on the host.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

oci! {
    /// A namespace to make or to join.
    Namespace {
        /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`.
        #[serde(rename = "type")]
        kind: String,
        /// Join this one; `None`: make a new one.
        path: Option<PathBuf>,
    }
}

oci! {
    /// A device node in the container.
    Device {
        /// `c`, `b`, `u` or `p`.
        #[serde(rename = "type")]
        kind: String,
        /// Absolute path in the container.
        path: PathBuf,
        /// Major number.
        major: i64,
        /// Minor number.
        minor: i64,
        /// Permissions; `None`: 0o666.
        file_mode: Option<u32>,
        /// Owner; `None`: root.
        uid: Option<u32>,
        /// Group; `None`: root.
        gid: Option<u32>,
    }
}

oci! {
    /// Limits of a cgroup.
    Resources {
        /// Access to devices, later rules win; the default rules stand before them.
        devices: Vec<DeviceRule>,
        /// Memory.
        memory: Memory,
        /// CPU.
        cpu: Cpu,
        /// Processes.
        pids: Option<Pids>,
        /// Huge pages.
        hugepage_limits: Vec<HugepageLimit>,
        /// Files of the v2 hierarchy to write as they are; not used on v1.
        unified: BTreeMap<String, String>,
    }
}

/// One rule of device access.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// `c`, `b`, `a` (all).
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Major number; `None`: every.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Minor number; `None`: every.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Some of `rwm`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub access: String,
}

oci! {
    /// Memory limits in bytes; `None`: untouched, -1: none.
    Memory {
        /// Hard limit.
        limit: Option<i64>,
        /// Soft limit (v2: `memory.low`).
        reservation: Option<i64>,
        /// Memory and swap together.
        swap: Option<i64>,
        /// How readily it is swapped out, 0 to 100; v1 only.
        swappiness: Option<u64>,
    }
}

oci! {
    /// CPU limits; `None`: untouched.
    Cpu {
        /// v1 shares (1,024 is one CPU's worth), turned into a weight on v2.
        shares: Option<u64>,
        /// Microseconds a period; -1: no limit.
        quota: Option<i64>,
        /// Period in microseconds; `None`: 100,000.
        period: Option<u64>,
        /// CPUs (`0-1,4`).
        cpus: Option<String>,
        /// Memory nodes.
        mems: Option<String>,
    }
}

/// Process limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// How many; ≤ 0: no limit.
    pub limit: i64,
}

oci! {
    /// Limit of one size of huge page.
    HugepageLimit {
        /// As `2MB`.
        page_size: String,
        /// In bytes.
        limit: u64,
    }
}
