//! The pod's sandbox: what its shim is told.

use super::files;
use super::resources::{self, HUGE};
use crate::facts::NodeFacts;
use crate::pod::PodView;
use crate::volumes::memory_sources;
use machinery::kinds::pod::SAFE_SYSCTLS;
use machinery::quantity::Quantity;
use runtime::api::{PodSpec, Tmpfs};
use std::collections::BTreeSet;

/// What a pod with a network of its own gets unasked, as containerd gives it: any user may listen at low ports and
/// send pings, since neither reaches beyond the pod.
const OWN_NETWORK_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// What a task may set: all that its own namespaces hold (`systemControls`).
const TASK_SYSCTLS: [&str; 5] = ["net.", "kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."];

/// Room for one source of a memory volume: an object has 1 MiB at most, is there twice while it is swapped, and each
/// of its files takes whole pages.
const SOURCE_BYTES: u64 = 16 << 20;

/// A volume in memory.
pub struct MemoryVolume {
    /// Its name.
    pub name: String,
    /// Size in bytes; 0: the kernel's default.
    pub bytes: u64,
    /// The size of its huge pages (`2Mi`), "" for the one that the pod asks for; `None`: ordinary pages.
    pages: Option<String>,
}

/// The pod's volumes in memory.
pub fn memory_volumes(pod: &PodView) -> Vec<MemoryVolume> {
    let volumes = pod.spec().volumes.iter().flatten();
    let memory = volumes.filter_map(|v| {
        let dir = v.empty_dir.as_ref()?;
        let pages = match dir.medium.as_deref()? {
            "Memory" => None,
            medium => Some(medium.strip_prefix("HugePages")?.trim_start_matches('-').to_string()),
        };
        let limit = dir.size_limit.as_ref().and_then(|q| q.0.parse::<Quantity>().ok());
        let bytes = limit.map_or(0, |q| u64::try_from(q.units()).unwrap_or(0));
        Some(MemoryVolume { name: v.name.clone(), bytes, pages })
    });
    memory.collect()
}

/// The size of a volume's huge pages: its medium's, or the only one that the pod's containers ask for.
fn page_size(pod: &PodView, medium: &str) -> Result<String, String> {
    let asked = pod.containers.iter().filter_map(|c| c.spec.resources.as_ref());
    let names = asked.flat_map(|r| r.requests.iter().chain(&r.limits).flat_map(|list| list.keys()));
    let sizes: BTreeSet<&str> = names.filter_map(|name| name.strip_prefix(HUGE)).collect();
    let size = match (medium, sizes.len()) {
        ("", 1) => sizes.first().copied().unwrap_or_default(),
        ("", _) => {
            return Err(format!(
                "medium HugePages can only be used by pods with huge pages of one size, this one has {}",
                sizes.len()
            ));
        }
        (size, _) if sizes.contains(size) => size,
        (size, _) => return Err(format!("medium HugePages-{size}: no container has such pages")),
    };
    Ok(size.trim_end_matches('i').into())
}

/// Why the pod may not have its sysctls: the first that reaches beyond the pod.
pub fn sysctl_objection(pod: &PodView) -> Option<String> {
    let spec = pod.spec();
    let shared = |name: &str| match name.starts_with("net.") {
        true => spec.host_network.unwrap_or(false).then_some("Net"),
        false => spec.host_ipc.unwrap_or(false).then_some("IPC"),
    };
    let asked = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    let mut names = asked.map(|s| s.name.replace('/', "."));
    names.find_map(|name| {
        let namespaced = |prefix: &&str| name.starts_with(*prefix);
        let of_task = pod.task.is_some() && TASK_SYSCTLS.iter().any(namespaced);
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !of_task {
            return Some(format!("\"{name}\" not allowlisted"));
        }
        shared(&name).map(|host| format!("\"{name}\" not allowed with host {host} enabled"))
    })
}

/// The shim's specification, but for its range of ids; an error for sysctls that reach beyond the pod.
pub fn pod_spec(pod: &PodView, facts: &NodeFacts, handler: Option<String>) -> Result<PodSpec, String> {
    if let Some(error) = &pod.task_error {
        return Err(error.clone());
    }
    let spec = pod.spec();
    let mut sysctls = std::collections::BTreeMap::new();
    if !pod.host_network() {
        sysctls.extend(OWN_NETWORK_SYSCTLS.map(|(name, value)| (name.to_string(), value.to_string())));
    }
    if let Some(objection) = sysctl_objection(pod) {
        return Err(format!("forbidden sysctl: {objection}"));
    }
    for sysctl in spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten()) {
        sysctls.insert(sysctl.name.replace('/', "."), sysctl.value.clone());
    }
    if let (Some(false), Some(handler)) = (spec.host_users, &handler) {
        return Err(format!("RuntimeClass handler {handler:?} does not support user namespaces"));
    }
    let hostname = files::hostname(pod, facts);
    if hostname.len() > 64 {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {hostname} is too long (64 characters \
             is the max, {} characters requested)",
            hostname.len()
        ));
    }
    let resources = resources::pod(pod, facts);
    // As upstream: no larger than what the pod, or else the node, has.
    let most = resources.memory.limit.unwrap_or(facts.memory_bytes);
    let most = u64::try_from(most).unwrap_or(0);
    let size = |asked: u64| if asked == 0 { most } else { asked.min(most) };
    let mut tmpfs = Vec::new();
    for volume in memory_volumes(pod) {
        let path = facts.volume_dir(pod.uid(), &volume.name);
        tmpfs.push(match &volume.pages {
            None => Tmpfs { path, size_bytes: size(volume.bytes), ..Tmpfs::default() },
            Some(medium) => Tmpfs { path, size_bytes: volume.bytes, page_size: page_size(pod, medium)? },
        });
    }
    let sources = memory_sources(pod) as u64;
    if sources > 0 {
        tmpfs.push(Tmpfs {
            path: facts.memory_dir(pod.uid()),
            size_bytes: sources * SOURCE_BYTES,
            ..Tmpfs::default()
        });
    }
    Ok(PodSpec {
        uid: pod.uid().into(),
        namespace: pod.namespace().into(),
        name: pod.name().into(),
        hostname,
        cgroup: resources::cgroup(pod),
        resources,
        host_network: pod.host_network(),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        share_pid: spec.share_process_namespace.unwrap_or(false),
        users: None,
        sysctls,
        tmpfs,
        handler,
        annotations: std::collections::BTreeMap::new(),
    })
}
