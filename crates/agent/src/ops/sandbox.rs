//! Making a pod's sandbox: shim and namespaces, network, the files below `/etc`.

use super::{Node, blocking};
use crate::config::{
    files,
    sandbox::{MemoryVolume, memory_volumes, pod_spec},
    users,
};
use crate::decide::outcome::Outcome;
use crate::pod::PodView;
use crate::stats::own::{self, Made};
use crate::volumes::{IN_MEMORY, open_to_all};
use client::ObjectKey;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_schema::gvr::RUNTIME_CLASSES;
use runtime::api::{PodInfo, UserRange};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Says, as long as it lives, that a pod's sandbox is being made.
pub struct Making(Arc<Node>, String);

impl Making {
    /// From now on.
    pub fn begin(node: &Arc<Node>, uid: &str) -> Making {
        node.sandboxes.send_modify(|all| {
            all.insert(uid.into());
        });
        Making(node.clone(), uid.into())
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        self.0.sandboxes.send_modify(|all| {
            all.remove(&self.1);
        });
    }
}

/// Makes the sandbox, or completes a half-made one.
pub async fn sandbox(making: Making, pod: PodView) -> Outcome {
    let node = making.0.clone();
    let _permit = node.making.acquire().await;
    let begun = Instant::now();
    let result = make(&node, &pod).await;
    let handler = node.live(pod.uid()).and_then(|live| live.spec.handler).unwrap_or_default();
    own::done(Made::Pod(&handler), begun, &result);
    Outcome::Sandbox(result)
}

async fn make(node: &Arc<Node>, pod: &PodView) -> Result<Vec<IpAddr>, String> {
    let live = match node.live(pod.uid()) {
        Some(live) if Path::new(&format!("/proc/{}", live.shim_pid)).exists() => live,
        Some(_) => {
            // The shim died, and its remains could not be removed at once.
            node.runtime.remove_pod(pod.uid()).await.map_err(|e| e.to_string())?;
            create(node, pod).await?
        }
        None => create(node, pod).await?,
    };
    let (node, pod) = (node.clone(), pod.clone());
    let work = move || {
        let isolated = pod.task.as_ref().is_some_and(|t| t.isolated);
        let ips = if isolated {
            Vec::new()
        } else if pod.host_network() {
            node.facts.host_ips.clone()
        } else {
            let netns = PathBuf::from(format!("/proc/{}/ns/net", live.shim_pid));
            let attached = node.network.attach(pod.uid(), &netns);
            vec![IpAddr::from(attached.map_err(|e| format!("failed to set up pod network: {e}"))?.ip)]
        };
        open_memory_volumes(&node, &pod, live.shim_pid)?;
        write_files(&node, &pod, &ips)?;
        Ok(ips)
    };
    blocking(work).await?
}

async fn create(node: &Arc<Node>, pod: &PodView) -> Result<PodInfo, String> {
    let handler = handler(node, pod).await?;
    let mut spec = pod_spec(pod, &node.facts, handler)?;
    if pod.spec().host_users == Some(false) {
        spec.users = Some(user_range(node, pod.uid())?);
    }
    for folder in spec.tmpfs.iter().map(|t| t.path.clone()).chain([node.facts.pod_dir(pod.uid())]) {
        std::fs::create_dir_all(&folder).map_err(|e| format!("mkdir {}: {e}", folder.display()))?;
    }
    let made = node.runtime.create_pod(spec).await.map_err(|e| e.to_string());
    // Whoever waits for the shim looks again.
    node.sandboxes.send_modify(|_| {});
    made
}

/// Ids for a pod. Those of running pods are with their shims, so that they are known after a restart.
fn user_range(node: &Node, uid: &str) -> Result<UserRange, String> {
    let mut given = node.user_ranges.lock();
    let running: BTreeSet<u32> =
        node.runtime.pods().iter().filter_map(|p| p.spec.users).map(|range| range.first).collect();
    if let Some(first) = given.get(uid).filter(|first| !running.contains(first)) {
        return Ok(UserRange { first: *first, size: users::RANGE_SIZE });
    }
    let own = given.values().copied().chain(running).map(|first| (first, users::RANGE_SIZE));
    let taken: Vec<(u32, u32)> = own.chain(others_ranges()).collect();
    let range = users::free_range(&taken, node.runtime.cgroup_root())
        .ok_or("could not find an empty slot to allocate a user namespace")?;
    given.insert(uid.into(), range.first);
    Ok(range)
}

/// Ids that somebody on this machine has: processes (of other instances, of other engines) and users by their files.
fn others_ranges() -> Vec<(u32, u32)> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let maps = processes.filter(|p| p.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit));
    let files = maps.map(|p| p.path().join("uid_map")).chain(["/etc/subuid".into()]);
    let all: BTreeSet<(u32, u32)> =
        files.filter_map(|f| std::fs::read_to_string(f).ok()).flat_map(|text| users::ranges(&text)).collect();
    all.into_iter().collect()
}

/// The RuntimeClass's handler; `None`: Gantry's own runtime.
async fn handler(node: &Node, pod: &PodView) -> Result<Option<String>, String> {
    let Some(name) = pod.spec().runtime_class_name.as_deref().filter(|n| !n.is_empty()) else {
        return Ok(None);
    };
    let found = node.client.get(&RUNTIME_CLASSES, &ObjectKey::cluster(name)).await;
    let class = found.map_err(|e| e.to_string())?.view::<RuntimeClass>().map_err(|e| e.to_string())?;
    Ok(Some(class.handler.clone()).filter(|h| !h.is_empty() && h != "gantry"))
}

/// Memory volumes exist in the shim's mount namespace only: reached through its root.
fn open_memory_volumes(node: &Node, pod: &PodView, shim: i32) -> Result<(), String> {
    let group =
        pod.spec().security_context.as_ref().and_then(|s| s.fs_group).and_then(|g| u32::try_from(g).ok());
    for MemoryVolume { name, .. } in memory_volumes(pod) {
        let path = in_shim(shim, &node.facts.volume_dir(pod.uid(), &name));
        open_to_all(&path, group, IN_MEMORY).map_err(|e| format!("opening memory volume {name}: {e}"))?;
    }
    Ok(())
}

/// A host path as the shim sees it.
pub(super) fn in_shim(shim: i32, path: &Path) -> PathBuf {
    let below = path.strip_prefix("/").unwrap_or(path);
    PathBuf::from(format!("/proc/{shim}/root")).join(below)
}

fn write_files(node: &Node, pod: &PodView, ips: &[IpAddr]) -> Result<(), String> {
    let etc = node.facts.pod_dir(pod.uid()).join("etc");
    let wrong = |e: std::io::Error| format!("writing {}: {e}", etc.display());
    std::fs::create_dir_all(&etc).map_err(wrong)?;
    let texts = [
        ("hosts", files::hosts(pod, &node.facts, ips)),
        ("hostname", format!("{}\n", files::hostname(pod, &node.facts))),
        ("resolv.conf", files::resolv_conf(pod, &node.facts)),
    ];
    for (name, text) in texts {
        std::fs::write(etc.join(name), text).map_err(wrong)?;
    }
    Ok(())
}
