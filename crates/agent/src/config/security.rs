//! The security context: capabilities, privileges, seccomp, masked paths.

use super::{ConfigError, ContainerInput};
use runtime::oci::{self, DEFAULT_CAPABILITIES, seccomp};
use std::collections::BTreeSet;

/// All capabilities that Linux has.
const ALL: &str = "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE \
    DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN \
    NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT \
    SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM";

fn all() -> BTreeSet<String> {
    ALL.split_whitespace().map(|c| format!("CAP_{c}")).collect()
}

/// Default set, plus `add`, minus `drop`; `ALL` in either.
fn capabilities(input: &ContainerInput) -> BTreeSet<String> {
    let context = input.container.spec.security_context.as_ref();
    let wanted = context.and_then(|c| c.capabilities.as_ref());
    let add = wanted.and_then(|c| c.add.as_deref()).unwrap_or_default();
    let drop = wanted.and_then(|c| c.drop.as_deref()).unwrap_or_default();
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let full = |name: &String| {
        let upper = name.to_uppercase();
        if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
    };
    let mut set: BTreeSet<String> = DEFAULT_CAPABILITIES.iter().map(|&c| c.to_string()).collect();
    if add.iter().any(is_all) {
        set = all();
    }
    if drop.iter().any(is_all) {
        set = BTreeSet::new();
    }
    set.extend(add.iter().filter(|n| !is_all(n)).map(full));
    for name in drop.iter().filter(|n| !is_all(n)) {
        set.remove(&full(name));
    }
    set
}

/// Writes the security context into the configuration.
pub(super) fn apply(spec: &mut oci::Spec, input: &ContainerInput) -> Result<(), ConfigError> {
    let context = input.container.spec.security_context.as_ref();
    let privileged = context.and_then(|c| c.privileged).unwrap_or(false);
    let set: Vec<String> = if privileged { all() } else { capabilities(input) }.into_iter().collect();
    spec.process.capabilities = Some(oci::Capabilities {
        bounding: set.clone(),
        effective: set.clone(),
        permitted: set.clone(),
        ..oci::Capabilities::default()
    });
    spec.root.readonly = context.and_then(|c| c.read_only_root_filesystem).unwrap_or(false);
    spec.process.no_new_privileges = context.and_then(|c| c.allow_privilege_escalation) == Some(false);
    if privileged {
        privileges(spec, input);
        return Ok(());
    }
    if context.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked") {
        spec.linux.masked_paths.clear();
        spec.linux.readonly_paths.clear();
    }
    let pods = input.pod.spec().security_context.as_ref();
    let profile =
        context.and_then(|c| c.seccomp_profile.as_ref()).or(pods.and_then(|s| s.seccomp_profile.as_ref()));
    spec.linux.seccomp = match profile.map(|p| p.type_.as_str()) {
        Some("RuntimeDefault") => {
            let names: Vec<&str> = set.iter().map(String::as_str).collect();
            Some(seccomp::runtime_default(&names))
        }
        Some("Localhost") => {
            let name = profile.and_then(|p| p.localhost_profile.as_deref()).unwrap_or_default();
            let missing = || ConfigError::Create(format!("cannot load seccomp profile \"{name}\""));
            Some(input.local_seccomp.clone().ok_or_else(missing)?)
        }
        _ => None,
    };
    Ok(())
}

/// A privileged container sees what the node sees.
fn privileges(spec: &mut oci::Spec, input: &ContainerInput) {
    spec.linux.masked_paths.clear();
    spec.linux.readonly_paths.clear();
    spec.process.no_new_privileges = false;
    spec.linux.devices.clone_from(&input.host_devices);
    spec.linux.resources.devices =
        vec![oci::DeviceRule { allow: true, access: "rwm".into(), ..oci::DeviceRule::default() }];
    for mount in &mut spec.mounts {
        if mount.destination.starts_with("/sys") {
            for option in mount.options.iter_mut().filter(|o| *o == "ro") {
                *option = "rw".into();
            }
        }
    }
}
