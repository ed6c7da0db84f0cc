//! The security context: capabilities, privileges, seccomp, masked paths.

use super::{ConfigError, ContainerInput};
use crate::pod::{ContainerView, PodView};
use k8s_openapi::api::core::v1::{AppArmorProfile, SELinuxOptions};
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

/// Profiles of AppArmor that engines install as their default; the first that is loaded is ours.
const DEFAULT_ARMOUR: [&str; 3] = ["cri-containerd.apparmor.d", "crio-default", "docker-default"];

/// The AppArmor profile that a container asks for: its own, or its pod's.
pub fn apparmor<'a>(pod: &'a PodView, container: &'a ContainerView) -> Option<&'a AppArmorProfile> {
    let own = container.spec.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    own.or_else(|| pod.spec().security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref()))
}

/// The SELinux options of a container: its own, or its pod's; privileged ones are not confined.
fn selinux<'a>(pod: &'a PodView, container: &'a ContainerView) -> Option<&'a SELinuxOptions> {
    let context = container.spec.security_context.as_ref();
    if context.is_some_and(|c| c.privileged == Some(true)) {
        return None;
    }
    let own = context.and_then(|c| c.se_linux_options.as_ref());
    own.or_else(|| pod.spec().security_context.as_ref().and_then(|c| c.se_linux_options.as_ref()))
}

/// Domains that confine nothing: without SELinux there is nothing to miss.
const UNCONFINED: [&str; 2] = ["spc_t", "unconfined_t"];

/// What a kernel without SELinux would leave out of what a container asks for.
pub enum Unlabelled {
    /// A domain that confines it: it may not run without.
    Domain(String),
    /// A level (categories keep pods apart), a user or a role: worth a word.
    Words,
}

/// The gravest of a pod's containers; `None`: nothing is left out.
pub fn unlabelled(pod: &PodView) -> Option<Unlabelled> {
    let mut found = None;
    for options in pod.containers.iter().filter_map(|c| selinux(pod, c)) {
        match options.type_.as_deref().filter(|t| !t.is_empty()) {
            Some(domain) if UNCONFINED.contains(&domain) => {}
            Some(domain) => return Some(Unlabelled::Domain(domain.into())),
            None => found = Some(Unlabelled::Words),
        }
    }
    found
}

/// Labels of a process and of its files where nothing is asked for, as container engines have them.
const LABELS: [&str; 2] = ["system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"];

/// The labels that a container asks for, of its processes and its files; `None`: it asks for none. The domain is that of
/// the processes, user and level are both's.
fn labels(options: &SELinuxOptions) -> [String; 2] {
    let given = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    LABELS.map(|label| {
        let process = label == LABELS[0];
        let mut parts = label.splitn(4, ':').map(str::to_string);
        let asked = [
            given(&options.user),
            given(&options.role).filter(|_| process),
            given(&options.type_).filter(|_| process),
            given(&options.level),
        ];
        asked.map(|own| own.or(parts.next()).unwrap_or_default()).join(":")
    })
}

/// The name of the profile to run under; "" for none. Who asks for one and cannot have it does not run.
fn armour(input: &ContainerInput) -> Result<String, ConfigError> {
    let Some(loaded) = &input.armour else { return Ok(String::new()) };
    let default = DEFAULT_ARMOUR.into_iter().find(|name| loaded.contains(*name));
    let Some(wanted) = apparmor(input.pod, input.container) else {
        return Ok(default.unwrap_or_default().into());
    };
    match wanted.type_.as_str() {
        "RuntimeDefault" => default
            .map(str::to_string)
            .ok_or_else(|| ConfigError::Create(format!("apparmor profile not found {}", DEFAULT_ARMOUR[0]))),
        "Localhost" => {
            let name = wanted.localhost_profile.clone().unwrap_or_default();
            let missing = ConfigError::Create(format!("apparmor profile not found {name}"));
            if loaded.contains(&name) { Ok(name) } else { Err(missing) }
        }
        _ => Ok("unconfined".into()),
    }
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
    spec.process.apparmor_profile = armour(input)?;
    if let Some(options) = selinux(input.pod, input.container).filter(|_| input.labels) {
        [spec.process.selinux_label, spec.linux.mount_label] = labels(options);
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
