//! What there is left on the node, and what pods use of it. Everything here reads the kernel or the disk; blocking.
//!
//! Disks are measured without the blocks that are reserved for root, as everywhere in Gantry: they are nobody's.

use super::limits::DiskUsage;
use super::rank::{Candidate, ContainerUse};
use super::{Observation, Signal};
use crate::ops::Node;
use crate::pod::PodView;
use machinery::quantity::Quantity;
use runtime::api::Usage;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes of a block in `st_blocks`, whatever the file system's own.
const BLOCK_BYTES: u64 = 512;
/// Files of one pod that are counted: a walk must end.
const FILES_MAX: u64 = 1 << 20;

/// Measures everything that can be measured.
pub fn observe(node: &Node) -> BTreeMap<Signal, Observation> {
    let mut seen = BTreeMap::new();
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    seen.extend(memory(&text("/proc/meminfo")).map(|o| (Signal::MemoryAvailable, o)));
    let number = |path: &str| text(path).trim().parse::<u64>().ok();
    let most = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    if let Some(capacity) = most.into_iter().flatten().min()
        && let Some(running) = processes(&text("/proc/loadavg"))
    {
        let available = capacity.saturating_sub(running);
        seen.insert(Signal::PidAvailable, Observation { available, capacity });
    }
    disk(&node.facts.data_dir, [Signal::NodefsAvailable, Signal::NodefsInodesFree], &mut seen);
    disk(node.images.folder(), [Signal::ImagefsAvailable, Signal::ImagefsInodesFree], &mut seen);
    seen
}

/// Memory that is free, or that idle file pages give back at once: all but the working set, as the kubelet counts.
fn memory(meminfo: &str) -> Option<Observation> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    let available = field("MemFree")? + field("Inactive(file)")?;
    Some(Observation { available: available * 1024, capacity: field("MemTotal")? * 1024 })
}

/// All tasks of the machine: the second number of `3/512`.
fn processes(loadavg: &str) -> Option<u64> {
    loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()
}

fn disk(folder: &Path, [bytes, inodes]: [Signal; 2], seen: &mut BTreeMap<Signal, Observation>) {
    let Ok(stat) = rustix::fs::statvfs(folder) else { return };
    let reserved = stat.f_bfree.saturating_sub(stat.f_bavail);
    let size = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let capacity = size(stat.f_blocks.saturating_sub(reserved));
    seen.insert(bytes, Observation { available: size(stat.f_bavail), capacity });
    // Some file systems make inodes as they need them.
    if stat.f_files > 0 {
        seen.insert(inodes, Observation { available: stat.f_favail, capacity: stat.f_files });
    }
}

/// What a pod has on the node's disk; nothing behind mounts.
pub fn disk_usage(node: &Node, pod: &PodView) -> DiskUsage {
    let facts = &node.facts;
    let mut usage = DiskUsage::default();
    let logs = facts.log_folder(pod.namespace(), pod.name(), pod.uid());
    for container in &pod.containers {
        let layers = facts.pod_dir(pod.uid()).join("containers").join(container.name());
        let used = [layers, logs.join(container.name())].map(|folder| walk(&folder));
        usage.containers.insert(container.name().into(), used.iter().map(|(bytes, _)| bytes).sum());
        usage.inodes += used.iter().map(|(_, files)| files).sum::<u64>();
    }
    for volume in pod.spec().volumes.iter().flatten() {
        let (bytes, files) = walk(&facts.volume_dir(pod.uid(), &volume.name));
        usage.volumes.insert(volume.name.clone(), bytes);
        usage.inodes += files;
    }
    usage
}

/// Bytes and files below a folder, on its file system. A file with several names counts each time.
pub(crate) fn walk(folder: &Path) -> (u64, u64) {
    let Ok(top) = folder.symlink_metadata() else { return (0, 0) };
    let (mut bytes, mut files) = (top.blocks() * BLOCK_BYTES, 1);
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() || files >= FILES_MAX {
                continue;
            }
            bytes += meta.blocks() * BLOCK_BYTES;
            files += 1;
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    (bytes, files)
}

/// A pod as a candidate, by what is short.
pub fn candidate(node: &Node, pod: &PodView, signal: Signal) -> Candidate {
    let mut candidate = Candidate {
        uid: pod.uid().into(),
        priority: pod.spec().priority.unwrap_or(0),
        ..Candidate::default()
    };
    let resource = signal.resource();
    let usage = |id: Option<&str>| node.runtime.usage(pod.uid(), id).unwrap_or_default();
    let requests = crate::admit::Claim::of(pod).requests;
    let live = node.live(pod.uid()).map(|l| l.containers).unwrap_or_default();
    let disk = if matches!(resource, "ephemeral-storage" | "inodes") {
        disk_usage(node, pod)
    } else {
        DiskUsage::default()
    };
    let of = |usage: &Usage| if resource == "memory" { usage.working_set_bytes } else { usage.pids };
    (candidate.used, candidate.requested) = match resource {
        "memory" => (of(&usage(None)), positive(requests.memory_bytes)),
        "ephemeral-storage" => (disk.total(), positive(requests.ephemeral_bytes)),
        "inodes" => (disk.inodes, 0),
        _ => (of(&usage(None)), 0),
    };
    for container in &pod.containers {
        let newest = live.iter().filter(|c| c.spec.name == container.name()).max_by_key(|c| c.spec.attempt);
        let used = match resource {
            "ephemeral-storage" => disk.containers.get(container.name()).copied().unwrap_or(0),
            "memory" => newest.map_or(0, |c| of(&usage(Some(&c.spec.id)))),
            _ => continue,
        };
        let asked = container.spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
        let requested = asked.and_then(|q| q.0.parse::<Quantity>().ok()).map_or(0, |q| positive(q.units()));
        candidate.containers.push(ContainerUse { name: container.name().into(), used, requested });
    }
    candidate
}

fn positive(amount: i64) -> u64 {
    u64::try_from(amount).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files() {
        let meminfo = "MemTotal:  1000 kB\nMemFree:  100 kB\nInactive:  900 kB\nInactive(file):  50 kB\n";
        assert_eq!(memory(meminfo), Some(Observation { available: 150 << 10, capacity: 1000 << 10 }));
        assert_eq!(memory("MemTotal: 1 kB\n"), None);
        assert_eq!(processes("0.61 1.01 1.80 3/512 999\n"), Some(512));
    }

    #[test]
    fn walks_a_tree() {
        let folder = tempfile::tempdir().unwrap();
        let (empty, files) = walk(folder.path());
        assert_eq!(files, 1);
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/b"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("root")).unwrap();
        let (bytes, files) = walk(folder.path());
        assert!((empty + (1 << 20)..empty + (1 << 20) + (64 << 10)).contains(&bytes), "{bytes}");
        assert_eq!(files, 4);
        assert_eq!(walk(&folder.path().join("none")), (0, 0));
    }
}
