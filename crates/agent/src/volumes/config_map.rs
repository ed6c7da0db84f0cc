//! `configMap`: the entries of a ConfigMap as files.

use super::payload::{Payload, Selection, add_object};
use super::{Context, atomic};
use crate::config::RefKind;
use crate::config::mounts::MountedVolume;
use k8s_openapi::api::core::v1::Volume;

pub(super) fn mount(context: &Context, volume: &Volume) -> Result<MountedVolume, String> {
    let source = volume.config_map.as_ref().ok_or("not a configMap volume")?;
    let mut payload = Payload::new();
    let what = Selection {
        kind: RefKind::ConfigMap,
        name: &source.name,
        items: source.items.as_deref(),
        optional: source.optional.unwrap_or(false),
        default_mode: source.default_mode,
    };
    add_object(&mut payload, context.objects, &what)?;
    atomic::publish(context, &volume.name, &payload)
}
