//! From pod and image to what the runtime runs: OCI configuration and pod sandbox. Pure.
//!
//! Objects (ConfigMaps, Secrets, Services), the image and the texts of `/etc/passwd` and `/etc/group` come in as
//! values. Deliberately not here: making folders and files (`volumes`, `ops`).

pub mod edits;
pub mod env;
mod env_file;
pub mod expand;
pub mod fields;
pub mod files;
pub mod mounts;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod user;
pub mod users;

use crate::facts::NodeFacts;
use crate::pod::{ContainerView, PodView};
use client::Object;
use ecs_model::annotation::{ContainerNote, Ulimit};
use image::ImageConfig;
use runtime::oci;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a container cannot be configured; the variant decides the waiting reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// `CreateContainerConfigError`: something that it refers to is missing, or its identity is not allowed.
    #[error("{0}")]
    Config(String),
    /// `CreateContainerError`: image and spec together make no process.
    #[error("{0}")]
    Create(String),
}

/// Kinds that containers and volumes read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefKind {
    /// A ConfigMap.
    ConfigMap,
    /// A Secret.
    Secret,
}

impl RefKind {
    /// `configmap` or `secret`, as "not found" names them.
    pub fn singular(self) -> &'static str {
        match self {
            RefKind::ConfigMap => "configmap",
            RefKind::Secret => "secret",
        }
    }

    /// `ConfigMap` or `Secret`.
    pub fn title(self) -> &'static str {
        match self {
            RefKind::ConfigMap => "ConfigMap",
            RefKind::Secret => "Secret",
        }
    }
}

/// Objects of the pod's namespace, by kind and name.
pub type Objects = BTreeMap<(RefKind, String), Arc<Object>>;

/// Everything that a container's configuration is made from.
pub struct ContainerInput<'a> {
    /// The pod.
    pub pod: &'a PodView,
    /// The container.
    pub container: &'a ContainerView,
    /// The image's configuration.
    pub image: &'a ImageConfig,
    /// `/etc/passwd` of the image.
    pub passwd: &'a str,
    /// `/etc/group` of the image.
    pub group: &'a str,
    /// ConfigMaps and Secrets.
    pub objects: &'a Objects,
    /// Reads a file of one of its volumes (name, path); `None`: it is not there.
    pub files: &'a dyn Fn(&str, &str) -> Option<String>,
    /// Services that it shall find in its environment.
    pub services: &'a [Arc<Object>],
    /// The pod's addresses.
    pub pod_ips: &'a [IpAddr],
    /// The node.
    pub facts: &'a NodeFacts,
    /// Mounts besides the default ones.
    pub mounts: Vec<oci::Mount>,
    /// Its volumes that are devices, and whether they may be written.
    pub devices: Vec<(oci::Device, bool)>,
    /// Devices of the node, for privileged containers.
    pub host_devices: Vec<oci::Device>,
    /// Devices of the node that the task's container names, and what it may do with each.
    pub task_devices: Vec<(oci::Device, String)>,
    /// What plug-ins of devices add.
    pub edits: edits::Edits,
    /// A seccomp profile from the node's disk, where the container names one.
    pub local_seccomp: Option<oci::seccomp::Seccomp>,
    /// The AppArmor profiles that the kernel has loaded; `None`: it does not confine by them.
    pub armour: Option<BTreeSet<String>>,
    /// Does the kernel label by SELinux?
    pub labels: bool,
}

/// A container's configuration and who it runs as.
#[derive(Debug)]
pub struct Configured {
    /// OCI configuration.
    pub spec: oci::Spec,
    /// Its user.
    pub user: user::Identity,
    /// Its stop signal's name.
    pub stop_signal: String,
}

/// Makes the OCI configuration; `env` is what [`env::environment`] answered.
pub fn container(input: ContainerInput, env: BTreeMap<String, String>) -> Result<Configured, ConfigError> {
    let user = user::identity(&input)?;
    let c = &input.container.spec;
    let mut spec = oci::default_spec();
    spec.process.args = args(&input, &env)?;
    spec.process.cwd = match (&c.working_dir, input.image.working_dir.as_str()) {
        (Some(dir), _) if !dir.is_empty() => expand::expand(dir, &env),
        (_, "") => "/".into(),
        (_, dir) => dir.to_string(),
    };
    spec.process.terminal = c.tty.unwrap_or(false);
    spec.process.env = process_env(&input, env);
    spec.process.user =
        oci::User { uid: user.uid, gid: user.gid, additional_gids: user.groups.clone(), umask: None };
    let qos = input.pod.qos();
    spec.process.oom_score_adj = Some(resources::oom_score_adj(input.pod, input.container, qos, input.facts));
    spec.linux.resources = resources::container(input.pod, input.container, input.facts);
    security::apply(&mut spec, &input)?;
    let own = input.pod.task.as_ref().and_then(|t| t.containers.get(input.container.name()));
    if let Some(own) = own {
        of_task(&mut spec, own, &input.task_devices);
    }
    for (device, writable) in input.devices {
        spec.linux.resources.devices.push(oci::DeviceRule {
            allow: true,
            kind: Some("b".into()),
            major: Some(device.major),
            minor: Some(device.minor),
            access: if writable { "rwm" } else { "rm" }.into(),
        });
        spec.linux.devices.push(device);
    }
    let own: Vec<PathBuf> = input.mounts.iter().map(|m| m.destination.clone()).collect();
    spec.mounts.retain(|m| !own.contains(&m.destination));
    spec.mounts.extend(input.mounts);
    edits::apply(&mut spec, input.edits);
    spec.mounts.sort_by_key(|m| m.destination.components().count());
    let lifecycle = c.lifecycle.as_ref().and_then(|l| l.stop_signal.clone());
    let from_image = || Some(input.image.stop_signal.clone()).filter(|s| !s.is_empty());
    let stop_signal = lifecycle.or_else(from_image).unwrap_or_else(|| "SIGTERM".into());
    Ok(Configured { spec, user, stop_signal })
}

/// What a task's container has beside its part of the Pod.
fn of_task(spec: &mut oci::Spec, own: &ContainerNote, devices: &[(oci::Device, String)]) {
    // -1 is no limit.
    let bound = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
    let limit = |limit: &Ulimit| oci::Rlimit {
        kind: format!("RLIMIT_{}", limit.name.to_uppercase()),
        hard: bound(limit.hard),
        soft: bound(limit.soft),
    };
    spec.process.rlimits = own.ulimits.iter().map(limit).collect();
    edits::devices(spec, devices);
    for tmpfs in &own.tmpfs {
        spec.mounts.retain(|m| m.destination != Path::new(&tmpfs.path));
        spec.mounts.push(oci::Mount {
            destination: tmpfs.path.as_str().into(),
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            options: tmpfs.options.clone(),
            ..oci::Mount::default()
        });
    }
    let memory = &mut spec.linux.resources.memory;
    if let (Some(swap), Some(limit)) = (own.max_swap, memory.limit) {
        memory.swap = Some(limit.saturating_add(i64::from(swap) << 20));
    }
    memory.swappiness = own.swappiness.map(u64::from);
}

fn args(input: &ContainerInput, env: &BTreeMap<String, String>) -> Result<Vec<String>, ConfigError> {
    let c = &input.container.spec;
    let expand = |list: &[String]| -> Vec<String> { list.iter().map(|a| expand::expand(a, env)).collect() };
    let command = c.command.as_deref().unwrap_or_default();
    let given = c.args.as_deref().unwrap_or_default();
    let mut args = if command.is_empty() { input.image.entrypoint.clone() } else { expand(command) };
    if !given.is_empty() {
        args.extend(expand(given));
    } else if command.is_empty() {
        args.extend(input.image.cmd.iter().cloned());
    }
    if args.is_empty() {
        return Err(ConfigError::Create("no command specified".into()));
    }
    Ok(args)
}

/// Image's variables first, then the container's; a `PATH` and a `HOSTNAME` always.
fn process_env(input: &ContainerInput, env: BTreeMap<String, String>) -> Vec<String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    all.insert("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    all.insert("HOSTNAME".into(), files::hostname(input.pod, input.facts));
    if input.container.spec.tty == Some(true) {
        all.insert("TERM".into(), "xterm".into());
    }
    let image = input.image.env.iter().filter_map(|pair| pair.split_once('='));
    all.extend(image.map(|(k, v)| (k.to_string(), v.to_string())));
    all.extend(env);
    all.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
}

/// The node's ports that a pod asks for.
pub fn host_ports(pod: &PodView, ips: &[IpAddr]) -> Vec<net::HostPort> {
    let Some(pod_ip) = ips.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None })
    else {
        return Vec::new();
    };
    let ports = pod.containers.iter().flat_map(|c| c.spec.ports.iter().flatten());
    let one = |port: &k8s_openapi::api::core::v1::ContainerPort| {
        let protocol = match port.protocol.as_deref() {
            Some("UDP") => net::Protocol::Udp,
            Some("SCTP") => net::Protocol::Sctp,
            _ => net::Protocol::Tcp,
        };
        let host_ip = port.host_ip.as_deref().and_then(|ip| ip.parse().ok());
        Some(net::HostPort {
            host_ip: host_ip.filter(|ip: &std::net::Ipv4Addr| !ip.is_unspecified()),
            protocol,
            host_port: u16::try_from(port.host_port?).ok().filter(|p| *p > 0)?,
            pod_ip,
            pod_port: u16::try_from(port.container_port).ok()?,
        })
    };
    ports.filter_map(one).collect()
}

#[cfg(test)]
mod tests;
