//! What plug-ins of devices add to a container.

use runtime::oci;
use std::collections::BTreeMap;

/// What is added.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    /// Variables that the container's own win over.
    pub weak_env: BTreeMap<String, String>,
    /// Variables that win over the container's own.
    pub strong_env: BTreeMap<String, String>,
    /// Mounts.
    pub mounts: Vec<oci::Mount>,
    /// Devices, and what may be done with each.
    pub devices: Vec<(oci::Device, String)>,
    /// Further groups of its user.
    pub groups: Vec<u32>,
    /// For the runtime.
    pub annotations: BTreeMap<String, String>,
}

/// Adds all but the weak variables, which are the caller's.
pub(super) fn apply(spec: &mut oci::Spec, edits: Edits) {
    let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_string();
    spec.process.env.retain(|pair| !edits.strong_env.contains_key(&name(pair)));
    spec.process.env.extend(edits.strong_env.iter().map(|(k, v)| format!("{k}={v}")));
    devices(spec, &edits.devices);
    spec.mounts.retain(|m| !edits.mounts.iter().any(|own| own.destination == m.destination));
    spec.mounts.extend(edits.mounts);
    spec.process.user.additional_gids.extend(edits.groups);
    spec.annotations.extend(edits.annotations);
}

/// Adds devices of the node.
pub(super) fn devices(spec: &mut oci::Spec, devices: &[(oci::Device, String)]) {
    for (device, access) in devices {
        spec.linux.devices.retain(|d| d.path != device.path);
        spec.linux.devices.push(device.clone());
        spec.linux.resources.devices.push(oci::DeviceRule {
            allow: true,
            kind: Some(device.kind.clone()),
            major: Some(device.major),
            minor: Some(device.minor),
            access: access.clone(),
        });
    }
}
