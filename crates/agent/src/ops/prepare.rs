//! The blocking half of a start: files on disk, identity from the image, the container's specification.

use super::sandbox::in_shim;
use super::{Instance, Mounted, Node, instance_id};
use crate::config::{self, ConfigError, ContainerInput, Objects, env, mounts};
use crate::decide::outcome::{StartFailure, StartStep};
use crate::decide::seed::FACTS;
use crate::facts::NodeFacts;
use crate::images::Found;
use crate::pod::{ContainerView, PodView};
use crate::state::Facts;
use crate::volumes::subpath;
use client::Object;
use runtime::api::{ContainerSpec, LogSpec, Rootfs};
use runtime::oci;
use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

/// Rotation of container logs (the kubelet's figures).
const LOG_BYTES_MAX: u64 = 10 << 20;
const LOG_FILES_MAX: u32 = 5;
/// A larger `/etc/passwd` is not read.
const PASSWD_MAX: u64 = 1 << 20;
/// Largest file of variables (upstream's figure for its lines together).
const ENV_FILE_MAX: u64 = 64 << 10;
/// A larger seccomp profile is none.
const PROFILE_MAX: u64 = 1 << 20;

/// What a start is made from.
pub(super) struct Start {
    pub instance: Instance,
    pub container: ContainerView,
    pub objects: Objects,
    pub services: Vec<Arc<Object>>,
    pub found: Found,
}

pub(super) fn config_failure(error: ConfigError) -> StartFailure {
    let reason = match error {
        ConfigError::Config(_) => "CreateContainerConfigError",
        ConfigError::Create(_) => "CreateContainerError",
    };
    StartFailure { step: StartStep::Config, reason, message: error.to_string() }
}

/// Makes the specification and everything on disk that it refers to.
pub(super) fn prepare(node: &Node, start: Start) -> Result<(ContainerSpec, Facts), StartFailure> {
    let Start { instance, container, objects, services, found } = start;
    let Instance { pod, attempt, last, round, mounted, ips, .. } = instance;
    let facts = &*node.facts;
    let image = found.lease.image().clone();
    let text = |path: &str| {
        let read = |layer: &PathBuf| subpath::read_text(layer, path, PASSWD_MAX);
        image.layers.iter().find_map(read).unwrap_or_default()
    };
    let context = container.spec.security_context.as_ref();
    let privileged = context.and_then(|c| c.privileged).unwrap_or(false);
    let cdi = node.dra.cdi_names(&pod, &container);
    let input = ContainerInput {
        pod: &pod,
        container: &container,
        image: &image.config,
        passwd: &text("etc/passwd"),
        group: &text("etc/group"),
        objects: &objects,
        files: &|volume, path| subpath::read_text(&mounted.get(volume)?.path, path, ENV_FILE_MAX),
        services: &services,
        pod_ips: &ips,
        facts,
        mounts: Vec::new(),
        devices: Vec::new(),
        task_devices: task_devices(&pod, container.name()).map_err(config_failure)?,
        host_devices: if privileged { host_devices() } else { Vec::new() },
        edits: node
            .devices
            .edits(pod.uid(), container.name(), cdi, &|path| found_device(path, path))
            .map_err(|e| config_failure(ConfigError::Create(e)))?,
        local_seccomp: local_profile(facts, &pod, &container),
        armour: apparmor_enabled().then(loaded_armour),
        labels: selinux_enabled(),
    };
    let mut env = env::environment(&input).map_err(config_failure)?;
    for (name, value) in &input.edits.weak_env {
        env.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let made = mounts::mounts(&pod, &container, attempt, &mounted, (facts, &env)).map_err(config_failure)?;
    make_sub_paths(node, &pod, &mounted, &made.sub_paths)
        .map_err(|e| config_failure(ConfigError::Config(e)))?;
    let mut configured =
        config::container(ContainerInput { mounts: made.list, devices: made.devices, ..input }, env)
            .map_err(config_failure)?;
    if let Some(range) = node.live(pod.uid()).and_then(|live| live.spec.users) {
        config::users::apply(&mut configured.spec, range);
    }
    let known = Facts {
        spec_image: container.image().into(),
        image: found.name,
        image_id: found.id,
        stop_signal: configured.stop_signal,
        uid: configured.user.uid,
        gid: configured.user.gid,
        groups: configured.user.groups,
        last,
        round,
        resources: Some(Box::new(container.spec.resources.clone().unwrap_or_default())),
    };
    let name = container.name();
    make_termination_log(facts, &pod, name, attempt)
        .map_err(|e| config_failure(ConfigError::Create(format!("preparing container folder: {e}"))))?;
    let logs = facts.log_folder(pod.namespace(), pod.name(), pod.uid()).join(name);
    let scratch = facts.pod_dir(pod.uid()).join("containers").join(name).join(format!("rw-{attempt}"));
    let spec = ContainerSpec {
        id: instance_id(name, attempt),
        name: name.into(),
        attempt,
        config: configured.spec,
        rootfs: Rootfs { lowers: image.layers.clone(), scratch },
        log: log_files(&logs, attempt),
        stdin: container.spec.stdin.unwrap_or(false),
        stdin_once: container.spec.stdin_once.unwrap_or(false),
        annotations: [(FACTS.to_string(), serde_json::to_string(&known).unwrap_or_default())].into(),
    };
    node.leases.lock().entry(pod.uid().into()).or_default().insert(name.into(), found.lease);
    Ok((spec, known))
}

fn make_termination_log(facts: &NodeFacts, pod: &PodView, name: &str, attempt: u32) -> io::Result<()> {
    let path = facts.termination_log(pod.uid(), name, attempt);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&path, "")?;
    // Whoever the container runs as may write it.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))
}

/// Where an instance's log goes. Logs of this and the previous instance stay; older ones go.
fn log_files(folder: &Path, attempt: u32) -> LogSpec {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.split('.').next()).and_then(|n| n.parse::<u32>().ok());
        if number.is_some_and(|n| n + 1 < attempt) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    LogSpec {
        path: folder.join(format!("{attempt}.log")),
        max_bytes: LOG_BYTES_MAX,
        max_files: LOG_FILES_MAX,
    }
}

fn make_sub_paths(
    node: &Node,
    pod: &PodView,
    mounted: &Mounted,
    list: &[mounts::SubPath],
) -> Result<(), String> {
    let memory = config::sandbox::memory_volumes(pod);
    for sub in list {
        let Some(volume) = mounted.get(&sub.volume) else { continue };
        let in_memory = memory.iter().any(|m| m.name == sub.volume);
        let root = match node.live(pod.uid()) {
            Some(live) if in_memory => in_shim(live.shim_pid, &volume.path),
            _ => volume.path.clone(),
        };
        subpath::open(&root, &sub.below, true)?;
    }
    Ok(())
}

/// A seccomp profile from `<data_dir>/seccomp`, where the container names one.
fn local_profile(
    facts: &NodeFacts,
    pod: &PodView,
    container: &ContainerView,
) -> Option<oci::seccomp::Seccomp> {
    let own = container.spec.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref());
    let pods = pod.spec().security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref());
    let name = own.or(pods)?.localhost_profile.as_deref()?;
    let text = subpath::read_text(&facts.data_dir.join("seccomp"), name, PROFILE_MAX)?;
    serde_json::from_str(&text).ok()
}

/// Does the kernel confine by AppArmor? It is decided when the machine starts.
pub fn apparmor_enabled() -> bool {
    static ENABLED: LazyLock<bool> = LazyLock::new(|| {
        std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.starts_with('Y'))
    });
    *ENABLED
}

/// Does it label by SELinux?
pub fn selinux_enabled() -> bool {
    static ENABLED: LazyLock<bool> = LazyLock::new(|| Path::new("/sys/fs/selinux/enforce").exists());
    *ENABLED
}

/// The names in lines such as `docker-default (enforce)`.
fn loaded_armour() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    text.lines().filter_map(|l| Some(l.rsplit_once(" (")?.0.to_string())).collect()
}

/// A device node under another path; `None`: it is something else.
fn device(path: PathBuf, meta: &std::fs::Metadata) -> Option<oci::Device> {
    let letter = match (meta.file_type().is_char_device(), meta.file_type().is_block_device()) {
        (true, _) => "c",
        (_, true) => "b",
        _ => return None,
    };
    Some(oci::Device {
        kind: letter.into(),
        path,
        major: i64::from(rustix::fs::major(meta.rdev())),
        minor: i64::from(rustix::fs::minor(meta.rdev())),
        file_mode: Some(meta.permissions().mode() & 0o777),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
    })
}

/// A device node of the host under another path.
fn found_device(host: &Path, path: &Path) -> Result<oci::Device, String> {
    let failed = |why: &dyn std::fmt::Display| {
        format!(
            "error gathering device information while adding custom device {:?}: {why}",
            host.display().to_string()
        )
    };
    let meta = std::fs::metadata(host).map_err(|e| failed(&e))?;
    device(path.into(), &meta).ok_or_else(|| failed(&"not a device node"))
}

/// The devices that a task's container names.
fn task_devices(pod: &PodView, container: &str) -> Result<Vec<(oci::Device, String)>, ConfigError> {
    let note = pod.task.as_ref().and_then(|t| t.containers.get(container));
    let one = |wanted: &ecs_model::annotation::Device| {
        let found = found_device(Path::new(&wanted.host), Path::new(&wanted.path));
        Ok((found.map_err(ConfigError::Create)?, wanted.access.clone()))
    };
    note.map(|n| n.devices.iter().map(one).collect()).unwrap_or_else(|| Ok(Vec::new()))
}

/// The node's devices, for privileged containers; what every container gets anyway is left out.
fn host_devices() -> Vec<oci::Device> {
    const SKIPPED: &[&str] = &["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
    const OWN: &[&str] = &["console", "null", "zero", "full", "random", "urandom", "tty", "ptmx"];
    let mut devices = Vec::new();
    let mut folders = vec![PathBuf::from("/dev")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() && !SKIPPED.contains(&&*name) {
                folders.push(path);
                continue;
            }
            if folder == Path::new("/dev") && OWN.contains(&&*name) {
                continue;
            }
            devices.extend(device(path, &meta));
        }
    }
    devices
}
