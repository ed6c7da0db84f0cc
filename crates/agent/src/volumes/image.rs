//! `image`: the layers of an image, read-only; the runtime puts them together in each container. No program runs
//! from it.

use super::Context;
use crate::config::mounts::MountedVolume;
use k8s_openapi::api::core::v1::Volume;

pub(super) fn mount(context: &Context, volume: &Volume) -> Result<MountedVolume, String> {
    let lowers = context.images.get(&volume.name).ok_or("the image was not looked for")?;
    let path = lowers.first().cloned().ok_or("the image has no layers")?;
    Ok(MountedVolume { path, read_only: true, lowers: lowers.clone(), ..MountedVolume::default() })
}
