//! Volumes: one file a kind, one row a kind in [`KINDS`].
//!
//! Reads the pod's spec and the objects it refers to; writes below `<pod dir>/volumes/<name>`. What holds secrets,
//! tokens or fields of the pod goes to memory instead: one file system a pod, mounted in its shim's namespace, so that
//! it is never on a disk and ends with the pod; we reach it through the shim's root. Mounting is idempotent: running
//! it again refreshes what changed. Everything here blocks; callers use a blocking thread.
//! Deliberately not here: binding into containers (`config::mounts`), making memory file systems (the shim's).

mod atomic;
mod claim;
mod config_map;
mod downward;
mod empty_dir;
mod host_path;
mod image;
mod ownership;
mod payload;
mod projected;
mod secret;
pub mod subpath;

use crate::config::mounts::MountedVolume;
use crate::config::{Objects, RefKind};
use crate::csi::PublishedVolumes;
use crate::facts::NodeFacts;
use crate::pod::PodView;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeSpec, Volume};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub(crate) use claim::block_device;
pub use claim::{DRIVER, claim_of, folder as claim_folder, is_ready};
pub use ownership::{IN_MEMORY, open_to_all};
pub use projected::{TokenNeed, token_needs};

/// A token that was minted for the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub text: String,
    /// To be replaced then.
    pub refresh_at: Timestamp,
    /// Worth nothing from then on.
    pub expires_at: Timestamp,
}

/// The PersistentVolume that a claim is bound to.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// Its specification.
    pub spec: PersistentVolumeSpec,
}

/// The PersistentVolumes behind a pod's claims, or why there is none, by the pod's name for the volume.
pub type Claims = BTreeMap<String, Result<Bound, String>>;

/// Layers of the images of a pod's image volumes, or why there are none, by the volume's name.
pub type ImageLayers = BTreeMap<String, Vec<PathBuf>>;

/// What volumes are made from.
pub struct Context<'a> {
    /// The pod.
    pub pod: &'a PodView,
    /// The node.
    pub facts: &'a NodeFacts,
    /// ConfigMaps and Secrets of its namespace.
    pub objects: &'a Objects,
    /// Tokens, or why there is none.
    pub tokens: &'a BTreeMap<TokenNeed, Result<Token, String>>,
    /// What its claims are bound to.
    pub claims: &'a Claims,
    /// Those that drivers published.
    pub drivers: &'a PublishedVolumes,
    /// Its image volumes.
    pub images: &'a ImageLayers,
    /// The pod's addresses, as far as known.
    pub pod_ips: &'a [IpAddr],
    /// The root of the shim that has the pod's memory file system; `None`: a pod without one.
    pub shim_root: Option<&'a Path>,
}

/// Shall this volume be in memory?
fn in_memory(volume: &Volume) -> bool {
    volume.secret.is_some() || volume.downward_api.is_some() || volume.projected.is_some()
}

/// How many sources the pod has that belong into memory.
pub fn memory_sources(pod: &PodView) -> usize {
    let sources = |v: &Volume| v.projected.as_ref().and_then(|p| p.sources.as_ref()).map_or(1, Vec::len);
    pod.spec().volumes.iter().flatten().filter(|v| in_memory(v)).map(sources).sum()
}

/// One kind of volume.
struct Kind {
    /// Is it this kind?
    is: fn(&Volume) -> bool,
    /// Makes or refreshes it.
    mount: fn(&Context, &Volume) -> Result<MountedVolume, String>,
}

const KINDS: &[Kind] = &[
    Kind { is: |v| v.empty_dir.is_some(), mount: empty_dir::mount },
    Kind { is: |v| v.config_map.is_some(), mount: config_map::mount },
    Kind { is: |v| v.secret.is_some(), mount: secret::mount },
    Kind { is: |v| v.downward_api.is_some(), mount: downward::mount },
    Kind { is: |v| v.projected.is_some(), mount: projected::mount },
    Kind { is: |v| v.host_path.is_some(), mount: host_path::mount },
    Kind { is: |v| v.image.is_some(), mount: image::mount },
    Kind { is: |v| v.csi.is_some(), mount: claim::inline },
    Kind { is: |v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some(), mount: claim::mount },
];

/// Mounts all volumes of a pod; the error is the first failure in the words of its event.
pub fn mount_all(context: &Context) -> Result<BTreeMap<String, MountedVolume>, String> {
    let mut mounted = BTreeMap::new();
    for volume in context.pod.spec().volumes.iter().flatten() {
        let done = match KINDS.iter().find(|kind| (kind.is)(volume)) {
            Some(kind) => (kind.mount)(context, volume),
            None => Err(format!("volume type {} is not supported yet", type_name(volume))),
        };
        let done =
            done.map_err(|e| format!("MountVolume.SetUp failed for volume \"{}\" : {e}", volume.name))?;
        mounted.insert(volume.name.clone(), done);
    }
    Ok(mounted)
}

/// The JSON name of the volume's source.
fn type_name(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let keys = value.as_object().into_iter().flat_map(|o| o.keys());
    keys.into_iter().find(|k| *k != "name").cloned().unwrap_or_else(|| "unknown".into())
}

/// The ConfigMaps and Secrets that the pod's volumes and environments refer to.
pub fn references(pod: &PodView) -> BTreeSet<(RefKind, String)> {
    use RefKind::{ConfigMap, Secret};
    let mut all = BTreeSet::new();
    let mut add = |kind, name: &str| {
        if !name.is_empty() {
            all.insert((kind, name.to_string()));
        }
    };
    for volume in pod.spec().volumes.iter().flatten() {
        if let Some(v) = &volume.config_map {
            add(ConfigMap, &v.name);
        }
        if let Some(v) = &volume.secret {
            add(Secret, v.secret_name.as_deref().unwrap_or_default());
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(v) = &source.config_map {
                add(ConfigMap, &v.name);
            }
            if let Some(v) = &source.secret {
                add(Secret, &v.name);
            }
        }
    }
    for container in &pod.containers {
        for source in container.spec.env_from.iter().flatten() {
            if let Some(r) = &source.config_map_ref {
                add(ConfigMap, &r.name);
            }
            if let Some(r) = &source.secret_ref {
                add(Secret, &r.name);
            }
        }
        for source in container.spec.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
            if let Some(r) = &source.config_map_key_ref {
                add(ConfigMap, &r.name);
            }
            if let Some(r) = &source.secret_key_ref {
                add(Secret, &r.name);
            }
        }
    }
    all
}

/// The group that shall own the pod's volumes.
pub(crate) fn fs_group(pod: &PodView) -> Option<u32> {
    let group = pod.spec().security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Makes a folder and its parents; only root may look into the ones made here.
fn make_folder(path: &Path) -> Result<(), String> {
    std::fs::create_dir_all(path).map_err(|e| format!("mkdir {}: {e}", path.display()))
}

#[cfg(test)]
mod tests;
