//! The configuration that every container starts from: containerd's defaults, as data.

use super::{Capabilities, Device, Linux, Mount, Namespace, Process, Spec, User};
use std::path::PathBuf;

/// What a container may do when nobody says otherwise (containerd's list).
pub const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Destination, type, source, options.
const MOUNTS: &[(&str, &str, &str, &str)] = &[
    ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
    ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
    ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
    ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
];

const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Name below `/dev`, major, minor.
const DEVICES: &[(&str, i64, i64)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The device nodes that the specification wants in every container.
pub fn default_devices() -> Vec<Device> {
    let node = |&(name, major, minor): &(&str, i64, i64)| Device {
        kind: "c".to_owned(),
        path: PathBuf::from("/dev").join(name),
        major,
        minor,
        file_mode: Some(0o666),
        ..Device::default()
    };
    DEVICES.iter().map(node).collect()
}

/// A runnable configuration without `args`: default mounts, masked and read-only paths, capabilities, own PID,
/// mount and cgroup namespaces. Network, IPC and UTS are the pod's and are not listed. No seccomp profile.
pub fn default_spec() -> Spec {
    let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
    let caps: Vec<String> = DEFAULT_CAPABILITIES.iter().map(|&c| c.to_owned()).collect();
    let namespace = |&kind: &&str| Namespace { kind: kind.to_owned(), path: None };
    Spec {
        oci_version: "1.1.0".to_owned(),
        process: Process {
            user: User::default(),
            env: vec![PATH.to_owned()],
            cwd: "/".to_owned(),
            capabilities: Some(Capabilities {
                bounding: caps.clone(),
                effective: caps.clone(),
                permitted: caps,
                ..Capabilities::default()
            }),
            ..Process::default()
        },
        mounts: MOUNTS.iter().map(mount).collect(),
        linux: Linux {
            namespaces: ["pid", "mount", "cgroup"].iter().map(namespace).collect(),
            masked_paths: paths(MASKED),
            readonly_paths: paths(READONLY),
            ..Linux::default()
        },
        ..Spec::default()
    }
}

fn mount(&(destination, kind, source, options): &(&str, &str, &str, &str)) -> Mount {
    Mount {
        destination: destination.into(),
        kind: kind.to_owned(),
        source: source.into(),
        options: options.split(',').map(str::to_owned).collect(),
        ..Mount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_names_are_the_specifications() {
        let mut spec = default_spec();
        spec.process.args = vec!["sh".into()];
        spec.linux.resources.memory.limit = Some(1 << 20);
        spec.linux.seccomp = Some(super::super::seccomp::runtime_default(DEFAULT_CAPABILITIES));
        let json = serde_json::to_value(&spec).unwrap();
        assert_eq!(json["ociVersion"], "1.1.0");
        assert_eq!(json["process"]["noNewPrivileges"], false);
        assert_eq!(json["linux"]["maskedPaths"][0], "/proc/acpi");
        assert_eq!(json["linux"]["resources"]["memory"]["limit"], 1 << 20);
        assert_eq!(json["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert!(json["linux"]["resources"].get("pids").is_none());
        assert_eq!(serde_json::from_value::<Spec>(json).unwrap(), spec);
    }
}
