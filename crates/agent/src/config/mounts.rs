//! Mounts of a container: its volumes, the files below `/etc`, the termination log.

use super::{ConfigError, expand::expand};
use crate::facts::NodeFacts;
use crate::pod::{ContainerView, PodView};
use runtime::oci;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Where a volume is on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountedVolume {
    /// File or folder on the host.
    pub path: PathBuf,
    /// Never writable (ConfigMaps, Secrets, the downward API).
    pub read_only: bool,
    /// An image's layers, the topmost first; no folder then.
    pub lowers: Vec<PathBuf>,
    /// A block device's major and minor number; nothing to be mounted then.
    pub device: Option<(i64, i64)>,
}

/// A path below a volume that a mount shows, checked as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubPath {
    /// The volume's name.
    pub volume: String,
    /// Path below it; no `..`, not absolute.
    pub below: PathBuf,
}

/// The runtime's option for a bind of a path below the source; the runtime resolves it inside the source.
const SUB_PATH_OPTION: &str = "x-gantry.subpath=";

/// The runtime's option for a layer of an image volume, and the type of such a mount.
const LOWER_OPTION: &str = "x-gantry.lower=";
pub const IMAGE_MOUNT: &str = "x-gantry.image";

/// Mounts, and the sub paths that must exist before.
#[derive(Debug, Default, PartialEq)]
pub struct Mounts {
    /// In the order of the spec.
    pub list: Vec<oci::Mount>,
    /// Folders to be made where nothing is.
    pub sub_paths: Vec<SubPath>,
    /// Volumes that are devices, and whether they may be written.
    pub devices: Vec<(oci::Device, bool)>,
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        kind: "bind".into(),
        source: source.into(),
        options: options.iter().map(|&o| o.to_string()).collect(),
        ..oci::Mount::default()
    }
}

/// Checks a sub path as text: relative, without `..`.
pub fn checked_sub_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    for part in path.components() {
        match part {
            Component::Normal(_) | Component::CurDir => {}
            _ => return Err(format!("subPath {text:?} must be relative and must not contain '..'")),
        }
    }
    Ok(path.to_path_buf())
}

/// All mounts of a container.
pub fn mounts(
    pod: &PodView,
    container: &ContainerView,
    attempt: u32,
    volumes: &BTreeMap<String, MountedVolume>,
    (facts, env): (&NodeFacts, &BTreeMap<String, String>),
) -> Result<Mounts, ConfigError> {
    let mut mounts = Mounts::default();
    for mount in container.spec.volume_mounts.iter().flatten() {
        let missing = || ConfigError::Config(format!("volume {:?} is not mounted", mount.name));
        let volume = volumes.get(&mount.name).filter(|v| v.device.is_none()).ok_or_else(missing)?;
        let propagation = match mount.mount_propagation.as_deref() {
            Some("Bidirectional") => "rshared",
            Some("HostToContainer") => "rslave",
            _ => "rprivate",
        };
        let read_only = mount.read_only.unwrap_or(false) || volume.read_only;
        let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        let access = match (read_only, recursive) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        };
        let sub = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) if !path.is_empty() => Some(path.clone()),
            (_, Some(expr)) if !expr.is_empty() => Some(expand(expr, env)),
            _ => None,
        };
        let mut made = bind(&volume.path, &mount.mount_path, &["rbind", propagation, access]);
        if !volume.lowers.is_empty() {
            made.kind = IMAGE_MOUNT.into();
            made.options.push("noexec".into());
            made.options.extend(volume.lowers.iter().map(|l| format!("{LOWER_OPTION}{}", l.display())));
        }
        if let Some(sub) = sub {
            let below = checked_sub_path(&sub).map_err(ConfigError::Config)?;
            made.options.push(format!("{SUB_PATH_OPTION}{}", below.display()));
            if !volume.read_only {
                mounts.sub_paths.push(SubPath { volume: mount.name.clone(), below });
            }
        }
        mounts.list.push(made);
    }
    for device in container.spec.volume_devices.iter().flatten() {
        let missing = || ConfigError::Config(format!("volume {:?} is no block device", device.name));
        let volume = volumes.get(&device.name).ok_or_else(missing)?;
        let (major, minor) = volume.device.ok_or_else(missing)?;
        let path = PathBuf::from(&device.device_path);
        let made = oci::Device { kind: "b".into(), path, major, minor, ..oci::Device::default() };
        mounts.devices.push((made, !volume.read_only));
    }
    let taken = |path: &str| mounts.list.iter().any(|m| m.destination == Path::new(path));
    let etc = facts.pod_dir(pod.uid()).join("etc");
    let access = match container.spec.security_context.as_ref().and_then(|c| c.read_only_root_filesystem) {
        Some(true) => "ro",
        _ => "rw",
    };
    let mut own = Vec::new();
    for name in ["hosts", "hostname", "resolv.conf"] {
        let destination = format!("/etc/{name}");
        if !taken(&destination) {
            own.push(bind(&etc.join(name), &destination, &["rbind", "rprivate", access]));
        }
    }
    let log = container.spec.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
    if !log.is_empty() && !taken(log) {
        let source = facts.termination_log(pod.uid(), container.name(), attempt);
        own.push(bind(&source, log, &["rbind", "rprivate", "rw"]));
    }
    if pod.spec().host_ipc == Some(true) {
        own.push(bind(Path::new("/dev/shm"), "/dev/shm", &["rbind", "rprivate", "rw"]));
    }
    mounts.list.extend(own);
    Ok(mounts)
}
