//! `secret`: the entries of a Secret as files.

use super::payload::{Payload, Selection, add_object};
use super::{Context, atomic};
use crate::config::RefKind;
use crate::config::mounts::MountedVolume;
use k8s_openapi::api::core::v1::Volume;

pub(super) fn mount(context: &Context, volume: &Volume) -> Result<MountedVolume, String> {
    let source = volume.secret.as_ref().ok_or("not a secret volume")?;
    let mut payload = Payload::new();
    let what = Selection {
        kind: RefKind::Secret,
        name: source.secret_name.as_deref().unwrap_or_default(),
        items: source.items.as_deref(),
        optional: source.optional.unwrap_or(false),
        default_mode: source.default_mode,
    };
    add_object(&mut payload, context.objects, &what)?;
    atomic::publish_in_memory(context, &volume.name, &payload)
}
