//! `emptyDir`: an empty folder that lives as long as the pod. With medium `Memory` the shim mounts a tmpfs on it.

use super::{Context, fs_group, make_folder, ownership};
use crate::config::mounts::MountedVolume;
use k8s_openapi::api::core::v1::Volume;

pub(super) fn mount(context: &Context, volume: &Volume) -> Result<MountedVolume, String> {
    let path = context.facts.volume_dir(context.pod.uid(), &volume.name);
    if !path.exists() {
        make_folder(&path)?;
        ownership::open_to_all(&path, fs_group(context.pod), ownership::ON_DISK)
            .map_err(|e| format!("chmod {}: {e}", path.display()))?;
    }
    Ok(MountedVolume { path, ..MountedVolume::default() })
}
