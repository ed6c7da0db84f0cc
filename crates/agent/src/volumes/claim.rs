//! Claims (`persistentVolumeClaim`, and the claims of `ephemeral` volumes): what the bound PersistentVolume names on
//! this node. Known are `hostPath`, `local`, Gantry's own driver, whose volumes are folders below
//! `<data_dir>/claims`, and what other drivers published (`csi`), inline volumes too.
//!
//! Invariant: owners and modes of a volume change once for each pod, before its containers start.

use super::{Context, fs_group, host_path, make_folder, ownership};
use crate::config::mounts::MountedVolume;
use crate::facts::NodeFacts;
use k8s_openapi::api::core::v1::{PersistentVolumeSpec, Volume};
use std::fs::{DirBuilder, Permissions, set_permissions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Gantry's own driver.
pub const DRIVER: &str = "gantry.dev/local";

/// The claim's name and whether it is made for the pod alone.
pub fn claim_of(pod: &str, volume: &Volume) -> Option<(String, bool)> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some((claim.claim_name.clone(), false)),
        (_, Some(_)) => Some((format!("{pod}-{}", volume.name), true)),
        _ => None,
    }
}

/// Was the volume made ready for the pod before?
pub fn is_ready(facts: &NodeFacts, uid: &str, volume: &str) -> bool {
    facts.volume_dir(uid, volume).exists()
}

/// The folder of a volume of Gantry's driver; `None` for a handle that is no plain name.
pub fn folder(facts: &NodeFacts, handle: &str) -> Option<PathBuf> {
    let mut parts = Path::new(handle).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(p)), None) if p == handle);
    plain.then(|| facts.data_dir.join("claims").join(handle))
}

pub(super) fn mount(context: &Context, volume: &Volume) -> Result<MountedVolume, String> {
    let found = context.claims.get(&volume.name).ok_or("the claim was not looked for")?;
    let spec = &found.as_ref().map_err(Clone::clone)?.spec;
    if spec.csi.as_ref().is_some_and(|c| c.driver != DRIVER) {
        return inline(context, volume);
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return device(spec);
    }
    let path = place(context, spec)?;
    let read_only = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only).unwrap_or(false);
    let uid = context.pod.uid();
    if !is_ready(context.facts, uid, &volume.name) {
        let only_read = spec.access_modes.as_ref().is_some_and(|m| m.iter().all(|m| m == "ReadOnlyMany"));
        // The node's own files keep their owners.
        let fixed = read_only || only_read || spec.host_path.is_some();
        if !fixed {
            hand_over(context, volume, &path)?;
        }
        make_folder(&context.facts.volume_dir(uid, &volume.name))?;
    }
    Ok(MountedVolume { path, read_only, ..MountedVolume::default() })
}

/// A volume that a driver published.
pub(super) fn inline(context: &Context, volume: &Volume) -> Result<MountedVolume, String> {
    let found = context.drivers.get(&volume.name).ok_or("the volume was not published")?;
    let published = found.as_ref().map_err(Clone::clone)?;
    let uid = context.pod.uid();
    if !is_ready(context.facts, uid, &volume.name) {
        if published.group {
            hand_over(context, volume, &published.mounted.path)?;
        }
        make_folder(&context.facts.volume_dir(uid, &volume.name))?;
    }
    Ok(published.mounted.clone())
}

fn hand_over(context: &Context, volume: &Volume, path: &Path) -> Result<(), String> {
    let Some(group) = fs_group(context.pod) else { return Ok(()) };
    let policy = context.pod.spec().security_context.as_ref();
    let once = policy.and_then(|s| s.fs_group_change_policy.as_deref()) == Some("OnRootMismatch");
    ownership::hand_over(path, group, once)
        .map_err(|e| format!("applyFSGroup failed for vol {}: {e}", volume.name))
}

/// A device of the node.
fn device(spec: &PersistentVolumeSpec) -> Result<MountedVolume, String> {
    let path = match (&spec.local, &spec.host_path) {
        (Some(local), _) => PathBuf::from(&local.path),
        (_, Some(host)) => PathBuf::from(&host.path),
        _ => return Err(format!("volume type {} is no block device on this node", kind(spec))),
    };
    let device = block_device(&path)?;
    Ok(MountedVolume { path, device: Some(device), ..MountedVolume::default() })
}

/// The numbers of the device that a path names.
pub(crate) fn block_device(path: &Path) -> Result<(i64, i64), String> {
    let meta = path.metadata().map_err(|e| format!("{}: {e}", path.display()))?;
    if !meta.file_type().is_block_device() {
        return Err(format!("{} is no block device", path.display()));
    }
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    Ok((i64::from(major), i64::from(minor)))
}

/// Where the volume is on this node.
fn place(context: &Context, spec: &PersistentVolumeSpec) -> Result<PathBuf, String> {
    if let Some(source) = &spec.host_path {
        host_path::ready(&source.path, source.type_.as_deref())?;
        return Ok(source.path.clone().into());
    }
    if let Some(source) = &spec.local {
        let path = PathBuf::from(&source.path);
        return match path.metadata() {
            Ok(meta) if meta.is_dir() => Ok(path),
            Ok(_) => Err(format!("local volume {:?} is not a directory", source.path)),
            Err(_) => Err(format!("path {:?} does not exist", source.path)),
        };
    }
    match &spec.csi {
        Some(csi) if csi.driver == DRIVER => {
            let path = folder(context.facts, &csi.volume_handle);
            let path = path.ok_or_else(|| format!("volumeHandle {:?} is no name", csi.volume_handle))?;
            make(&path).map_err(|e| format!("mkdir {}: {e}", path.display()))?;
            Ok(path)
        }
        _ => Err(format!("volume type {} is not supported on this node", kind(spec))),
    }
}

/// Every user of a container may write the folder; nobody else of the node gets past the one above it.
fn make(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    if let Some(above) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(above)?;
    }
    DirBuilder::new().create(path)?;
    set_permissions(path, Permissions::from_mode(0o777))
}

/// The JSON name of the volume's source.
fn kind(spec: &PersistentVolumeSpec) -> String {
    const SOURCES: [&str; 8] =
        ["nfs", "iscsi", "fc", "cephfs", "rbd", "glusterfs", "awsElasticBlockStore", "gcePersistentDisk"];
    let value = serde_json::to_value(spec).unwrap_or_default();
    SOURCES.into_iter().find(|s| value[*s].is_object()).unwrap_or("of this PersistentVolume").into()
}
