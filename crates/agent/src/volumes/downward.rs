//! `downwardAPI`: fields of the pod and resources of its containers as files.

use super::payload::{File, Payload, mode, safe_path};
use super::{Context, atomic};
use crate::config::fields;
use crate::config::mounts::MountedVolume;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Volume};

pub(super) fn mount(context: &Context, volume: &Volume) -> Result<MountedVolume, String> {
    let source = volume.downward_api.as_ref().ok_or("not a downwardAPI volume")?;
    let mut payload = Payload::new();
    add(&mut payload, context, source.items.as_deref().unwrap_or_default(), source.default_mode)?;
    atomic::publish_in_memory(context, &volume.name, &payload)
}

/// Adds the files of a downward API source.
pub(super) fn add(
    payload: &mut Payload,
    context: &Context,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<(), String> {
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            fields::field(context.pod, &field.field_path, context.facts, context.pod_ips)?
        } else if let Some(resource) = &item.resource_field_ref {
            let container = resource.container_name.as_deref().unwrap_or_default();
            fields::resource(context.pod, container, resource, context.facts)?
        } else {
            return Err(format!("file {:?} names neither a field nor a resource", item.path));
        };
        let file = File { data: text.into_bytes(), mode: mode(item.mode, default_mode), owner: 0 };
        payload.insert(safe_path(&item.path)?, file);
    }
    Ok(())
}
