//! Which cgroup hierarchies there are and where: parsed from `/proc/self/mountinfo`.

use super::{CgroupError, io_error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// v1 hierarchies that hold every container; the others are touched only where a limit asks for it.
const V1_USED: &[&str] = &["cpu", "cpuacct", "memory", "pids", "devices"];
/// v2 controllers that are switched on for our cgroups where the kernel has them.
const V2_WANTED: &[&str] = &["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

/// The hierarchies in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// One tree a controller (or a few), and perhaps a v2 tree without controllers for `cgroup.kill`.
    V1 { controllers: BTreeMap<String, PathBuf>, unified: Option<PathBuf> },
    /// One tree.
    V2 { mount: PathBuf },
}

/// How a process enters a cgroup. Travels to the shim, so it is part of the protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// `cgroup.procs` files to write "0" to (v1).
    pub procs: Vec<PathBuf>,
    /// Folder in the v2 tree to be born in.
    pub unified: Option<PathBuf>,
    /// File whose `oom_kill` line counts the kernel's kills.
    pub oom: Option<PathBuf>,
    /// Folders to show in the container's `/sys/fs/cgroup`, by name ("" for v2).
    pub view: BTreeMap<String, PathBuf>,
}

/// Whether a mount option of a v1 tree is a controller or the tree's name.
fn names_tree(option: &str) -> bool {
    !matches!(option, "rw" | "ro" | "xattr" | "noprefix" | "clone_children")
        && (!option.contains('=') || option.starts_with("name="))
}

impl Layout {
    pub(super) fn parse(mountinfo: &str) -> Option<Self> {
        let mut controllers = BTreeMap::new();
        let mut unified = None;
        for line in mountinfo.lines() {
            let Some((mount, fs)) = line.split_once(" - ") else { continue };
            let (Some(point), Some(kind)) = (mount.split(' ').nth(4), fs.split(' ').next()) else { continue };
            match kind {
                "cgroup2" => unified = unified.or(Some(PathBuf::from(point))),
                "cgroup" => {
                    let options = fs.rsplit(' ').next().unwrap_or_default();
                    for option in options.split(',').filter(|o| names_tree(o)) {
                        controllers.entry(option.to_owned()).or_insert_with(|| PathBuf::from(point));
                    }
                }
                _ => {}
            }
        }
        match (controllers.is_empty(), unified) {
            (true, Some(mount)) => Some(Self::V2 { mount }),
            (true, None) => None,
            (false, unified) => Some(Self::V1 { controllers, unified }),
        }
    }

    pub(super) fn drop_unified(&mut self) {
        if let Self::V1 { unified, .. } = self {
            *unified = None;
        }
    }

    /// The tree of a controller (v2: always the one tree).
    pub(super) fn tree(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V1 { controllers, .. } => controllers.get(controller).map(PathBuf::as_path),
            Self::V2 { mount } => Some(mount),
        }
    }

    /// The v2 tree, alone or beside v1's.
    pub(super) fn unified(&self) -> Option<&Path> {
        match self {
            Self::V1 { unified, .. } => unified.as_deref(),
            Self::V2 { mount } => Some(mount),
        }
    }

    fn used(&self) -> Vec<(&str, &Path)> {
        match self {
            Self::V1 { controllers, unified } => {
                // Without `cgroup.kill`, the freezer is what makes a kill complete.
                let extra: &[&str] = if unified.is_some() { &[] } else { &["freezer"] };
                let names = V1_USED.iter().chain(extra);
                let mut used: Vec<(&str, &Path)> =
                    names.filter_map(|n| controllers.get(*n).map(|p| (*n, p.as_path()))).collect();
                used.dedup_by_key(|(_, path)| *path);
                used
            }
            Self::V2 { mount } => vec![("", mount)],
        }
    }

    /// The root of every tree in use.
    pub(super) fn trees(&self) -> impl Iterator<Item = &Path> {
        let beside = match self {
            Self::V1 { unified, .. } => unified.as_deref(),
            Self::V2 { .. } => None,
        };
        self.used().into_iter().map(|(_, path)| path).chain(beside)
    }

    /// The root of every tree in which a limit may have made something.
    pub(super) fn all_trees(&self) -> Vec<&Path> {
        match self {
            Self::V1 { controllers, unified } => {
                let mut all: Vec<&Path> = controllers.values().chain(unified).map(PathBuf::as_path).collect();
                all.sort_unstable();
                all.dedup();
                all
            }
            Self::V2 { mount } => vec![mount],
        }
    }

    pub(super) fn join(&self, relative: &Path) -> Join {
        let folders: Vec<(&str, PathBuf)> =
            self.used().into_iter().map(|(name, tree)| (name, tree.join(relative))).collect();
        let view = folders.iter().map(|(name, folder)| ((*name).to_owned(), folder.clone()));
        match self {
            Self::V1 { unified, controllers } => Join {
                procs: folders
                    .iter()
                    .map(|(_, folder)| folder)
                    // A cpuset exists only where a limit made it.
                    .chain(
                        controllers.get("cpuset").map(|t| t.join(relative)).filter(|f| f.is_dir()).as_ref(),
                    )
                    .map(|folder| folder.join("cgroup.procs"))
                    .collect(),
                unified: unified.as_ref().map(|tree| tree.join(relative)),
                oom: controllers.get("memory").map(|tree| tree.join(relative).join("memory.oom_control")),
                view: view.collect(),
            },
            Self::V2 { mount } => Join {
                procs: vec![],
                unified: Some(mount.join(relative)),
                oom: Some(mount.join(relative).join("memory.events")),
                view: view.collect(),
            },
        }
    }

    /// The file that kills a whole cgroup at once, where there is a v2 tree.
    pub(super) fn killer(&self, relative: &Path) -> Option<PathBuf> {
        let tree = match self {
            Self::V1 { unified, .. } => unified.as_ref()?,
            Self::V2 { mount } => mount,
        };
        Some(tree.join(relative).join("cgroup.kill"))
    }
}

/// Switches the controllers on that are missing in the ancestors of `relative`, from the top. One that the kernel
/// refuses stays off; [`why_off`] tells a limit that needs it why.
pub(super) fn enable_controllers(mount: &Path, relative: &Path) {
    for folder in ancestors(mount, relative) {
        let _ = enable(&folder);
    }
}

/// Where and why a controller cannot be had for `relative`.
pub(super) fn why_off(mount: &Path, relative: &Path, controller: &str) -> Option<(PathBuf, io::Error)> {
    let off = ancestors(mount, relative).into_iter().filter(|folder| is_off(folder, controller));
    off.map(|folder| (enable(&folder), folder)).find_map(|(done, folder)| Some((folder, done.err()?)))
}

fn enable(folder: &Path) -> io::Result<()> {
    let missing: Vec<String> =
        V2_WANTED.iter().filter(|c| is_off(folder, c)).map(|c| format!("+{c}")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let file = folder.join("cgroup.subtree_control");
    match std::fs::write(&file, missing.join(" ")) {
        // Processes sit in it. Some controllers alone would be let through, at the price of a threaded tree.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(error),
        // One that is refused takes the others with it: then one by one.
        Err(_) => missing.iter().map(|one| std::fs::write(&file, one)).fold(Ok(()), Result::and),
        Ok(()) => Ok(()),
    }
}

/// The folders above `relative`, the mount first.
fn ancestors(mount: &Path, relative: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        relative.ancestors().skip(1).map(|a| mount.join(a).components().collect()).collect();
    all.reverse();
    all
}

/// Whether a folder has a controller and does not pass it on.
fn is_off(folder: &Path, controller: &str) -> bool {
    let lists = |file: &str| {
        let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        text.split_whitespace().any(|c| c == controller)
    };
    lists("cgroup.controllers") && !lists("cgroup.subtree_control")
}

/// A new v1 cpuset is empty and admits nobody: fill it, and its ancestors, from the parent.
pub(super) fn inherit_cpuset(tree: &Path, folder: &Path) -> Result<(), CgroupError> {
    std::fs::create_dir_all(folder).map_err(io_error("make", folder))?;
    let mut chain: Vec<&Path> = folder.ancestors().take_while(|a| *a != tree).collect();
    chain.reverse();
    for step in chain {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = step.join(file);
            let empty = std::fs::read_to_string(&own).is_ok_and(|v| v.trim().is_empty());
            if let (true, Some(parent)) = (empty, step.parent()) {
                let value = std::fs::read(parent.join(file)).map_err(io_error("read", parent))?;
                std::fs::write(&own, value).map_err(io_error("write", &own))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn hybrid_is_v1_with_a_tree_beside() {
        let layout = Layout::parse(HYBRID).unwrap();
        let join = layout.join(Path::new("g/pod1"));
        assert_eq!(
            join.procs,
            [
                Path::new("/sys/fs/cgroup/cpu,cpuacct/g/pod1/cgroup.procs"),
                Path::new("/sys/fs/cgroup/memory/g/pod1/cgroup.procs")
            ]
        );
        assert_eq!(join.unified.unwrap(), Path::new("/sys/fs/cgroup/unified/g/pod1"));
        assert!(layout.killer(Path::new("g")).unwrap().ends_with("g/cgroup.kill"));
    }

    #[test]
    fn v2_is_one_tree() {
        let layout = Layout::parse("41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw").unwrap();
        let join = layout.join(Path::new("g/pod1"));
        assert!(join.procs.is_empty());
        assert_eq!(join.oom.unwrap(), Path::new("/sys/fs/cgroup/g/pod1/memory.events"));
        assert_eq!(Layout::parse("27 1 254:0 / / rw - ext4 /dev/vda rw"), None);
    }
}
