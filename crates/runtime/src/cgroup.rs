//! Control groups: one value with two backends, v1 (with or without the v2 tree beside it) and v2.
//!
//! Invariants: every path is absolute below `<hierarchy>/<root>`, a component is never `..`; nothing outside the
//! root is written, except that v2 controllers are enabled in the ancestors' `cgroup.subtree_control`.
//! Computing what to write is in `convert` and `devices` (pure). Deliberately not here: which limits (`agent`).

mod convert;
mod devices;
mod kill;
mod layout;

pub use layout::Join;

use crate::api::{Pressure, Usage};
use crate::oci::{DeviceRule, Resources};
use convert::Write;
use layout::Layout;
use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Neither hierarchy is mounted.
    #[error("no cgroup hierarchy is mounted")]
    NotMounted,
    /// A path that would leave the root.
    #[error("bad cgroup path {0:?}")]
    BadPath(String),
    /// A file operation.
    #[error("{step} {}: {source}", path.display())]
    Io {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A v2 controller that a limit needs cannot be switched on.
    #[error("cgroup controller {controller} cannot be enabled in {}: {source}{}", path.display(), hint(source))]
    Off {
        /// Which one.
        controller: &'static str,
        /// Where the kernel refused.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Processes remain although they were killed.
    #[error("cgroup {} still has processes after {seconds} s", path.display())]
    Stuck {
        /// The cgroup.
        path: PathBuf,
        /// How long it was tried.
        seconds: u64,
    },
}

fn io_error<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CgroupError + 'a {
    move |source| CgroupError::Io { step, path: path.to_owned(), source }
}

/// What to do about a refused controller. Only the real root may hold processes and pass controllers on; a
/// container's root is not one.
fn hint(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::ResourceBusy {
        " (processes sit in it: move them to a cgroup below)"
    } else {
        ""
    }
}

/// The cgroups below one root.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
    layout: Layout,
}

/// How often a directory that is still busy is tried again.
const REMOVE_RETRY: Duration = Duration::from_millis(2);

fn checked(path: &str) -> Result<PathBuf, CgroupError> {
    let path = Path::new(path.trim_matches('/'));
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    if plain { Ok(path.to_owned()) } else { Err(CgroupError::BadPath(path.display().to_string())) }
}

impl Cgroups {
    /// Finds the mounted hierarchies; `root` is the path below each.
    ///
    /// # Errors
    /// When none is mounted, or the root is not a plain path.
    pub fn detect(root: &str) -> Result<Self, CgroupError> {
        let info = Path::new("/proc/self/mountinfo");
        let text = std::fs::read_to_string(info).map_err(io_error("read", info))?;
        let root = checked(root)?;
        if root.as_os_str().is_empty() {
            return Err(CgroupError::BadPath(String::new()));
        }
        Ok(Self { root, layout: Layout::parse(&text).ok_or(CgroupError::NotMounted)? })
    }

    /// A given v2 tree alone.
    ///
    /// # Errors
    /// When the root is not a plain path.
    pub fn at_v2(mount: &Path, root: &str) -> Result<Self, CgroupError> {
        Ok(Self { root: checked(root)?, layout: Layout::V2 { mount: mount.to_owned() } })
    }

    /// The same without the v2 tree beside v1, as on old systems: kills go through the freezer.
    #[must_use]
    pub fn without_unified(mut self) -> Self {
        self.layout.drop_unified();
        self
    }

    /// Whether v2 is in charge: one tree holds the controllers.
    #[must_use]
    pub fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2 { .. })
    }

    fn below_root(&self, path: &str) -> Result<PathBuf, CgroupError> {
        Ok(self.root.join(checked(path)?))
    }

    /// Makes the cgroup and its ancestors, in every hierarchy in use. There already is fine.
    ///
    /// # Errors
    /// As `mkdir(2)`.
    pub fn create(&self, path: &str) -> Result<(), CgroupError> {
        let relative = self.below_root(path)?;
        for tree in self.layout.trees() {
            let folder = tree.join(&relative);
            std::fs::create_dir_all(&folder).map_err(io_error("make", &folder))?;
        }
        if let Layout::V2 { mount } = &self.layout {
            layout::enable_controllers(mount, &relative);
        }
        Ok(())
    }

    /// Sets limits. A controller that the kernel lacks is skipped with a log line, a refused value is an error.
    ///
    /// # Errors
    /// As the kernel's answer to the write.
    pub fn apply(&self, path: &str, resources: &Resources) -> Result<(), CgroupError> {
        let relative = self.below_root(path)?;
        let writes = match self.layout {
            Layout::V1 { .. } => convert::v1(resources),
            Layout::V2 { .. } => convert::v2(resources),
        };
        writes.iter().try_for_each(|write| self.write(&relative, write))
    }

    /// Closes all devices but the standard ones and those that `rules` open. For a new cgroup: on v2 it adds a
    /// program each time.
    ///
    /// # Errors
    /// As the kernel's answer to the write, or to the program.
    pub fn apply_devices(&self, path: &str, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        let relative = self.below_root(path)?;
        let rules = devices::effective(rules);
        if let Layout::V1 { .. } = self.layout {
            return devices::v1(rules.as_deref()).iter().try_for_each(|write| self.write(&relative, write));
        }
        let (Some(rules), Some(tree)) = (rules, self.layout.tree("devices")) else { return Ok(()) };
        let folder = tree.join(relative);
        let cgroup = std::fs::File::open(&folder).map_err(io_error("open", &folder))?;
        sys::bpf::attach_device_filter(cgroup.as_fd(), &devices::program(&rules))
            .map_err(io_error("attach the device filter to", &folder))
    }

    fn write(&self, relative: &Path, write: &Write) -> Result<(), CgroupError> {
        let Some(tree) = self.layout.tree(write.controller) else {
            if !write.optional {
                tracing::warn!(
                    controller = write.controller,
                    file = write.file,
                    "no such controller, limit skipped"
                );
            }
            return Ok(());
        };
        let folder = tree.join(relative);
        if write.controller == "cpuset" && !self.is_v2() {
            layout::inherit_cpuset(tree, &folder)?;
        }
        let file = folder.join(&write.file);
        match put(&file, &write.value) {
            Err(e) if write.optional && e.kind() == io::ErrorKind::NotFound => Ok(()),
            // A memory+swap limit below the new memory limit refuses it; the later write sets both right.
            Err(_) if write.retry_last => {
                let swap = folder.join("memory.memsw.limit_in_bytes");
                let _ = put(&swap, &write.value);
                put(&file, &write.value).map_err(io_error("write", &file))
            }
            Err(e) => Err(self.refusal(relative, write.controller, &file, e)),
            Ok(()) => Ok(()),
        }
    }

    /// Why a limit could not be written: on v2, its file is missing where its controller is off.
    fn refusal(&self, relative: &Path, controller: &'static str, file: &Path, e: io::Error) -> CgroupError {
        match &self.layout {
            Layout::V2 { mount } if e.kind() == io::ErrorKind::NotFound => {
                match layout::why_off(mount, relative, controller) {
                    Some((path, source)) => CgroupError::Off { controller, path, source },
                    None => io_error("write", file)(e),
                }
            }
            _ => io_error("write", file)(e),
        }
    }

    /// How a process gets into this cgroup.
    ///
    /// # Errors
    /// For a path that would leave the root.
    pub fn join(&self, path: &str) -> Result<Join, CgroupError> {
        Ok(self.layout.join(&self.below_root(path)?))
    }

    /// Kills every process in the cgroup and below it. Does not wait for them to be gone.
    ///
    /// # Errors
    /// As the write to `cgroup.kill` or `freezer.state`.
    pub fn kill(&self, path: &str) -> Result<(), CgroupError> {
        let relative = self.below_root(path)?;
        match self.layout.killer(&relative) {
            Some(file) => match put(&file, "1") {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other.map_err(io_error("write", &file)),
            },
            None => kill::with_freezer(&self.layout, &relative),
        }
    }

    /// Kills everything in the cgroup and removes it, in every hierarchy. Blocks until `deadline` at most.
    ///
    /// # Errors
    /// [`CgroupError::Stuck`] when processes remain at the deadline; the caller may call again.
    pub fn kill_and_remove(&self, path: &str, deadline: Duration) -> Result<(), CgroupError> {
        let end = Instant::now() + deadline;
        loop {
            self.kill(path)?;
            let mut busy = None;
            for tree in self.layout.all_trees() {
                let folder = tree.join(self.below_root(path)?);
                if !remove_tree(&folder)? {
                    busy = Some(folder);
                }
            }
            match busy {
                None => return Ok(()),
                Some(path) if Instant::now() >= end => {
                    return Err(CgroupError::Stuck { path, seconds: deadline.as_secs() });
                }
                Some(_) => std::thread::sleep(REMOVE_RETRY),
            }
        }
    }

    /// What the cgroup uses now; what cannot be read is 0.
    ///
    /// # Errors
    /// For a path that would leave the root.
    pub fn usage(&self, path: &str) -> Result<Usage, CgroupError> {
        let relative = self.below_root(path)?;
        let read = |controller: &str, file: &str| -> String {
            let folder = self.layout.tree(controller).map(|tree| tree.join(&relative));
            folder.and_then(|f| std::fs::read_to_string(f.join(file)).ok()).unwrap_or_default()
        };
        let usage = match self.layout {
            Layout::V1 { .. } => convert::usage_v1(read),
            Layout::V2 { .. } => convert::usage_v2(read),
        };
        // The tree that kills has these too, beside v1.
        let pressure = |what: &str| {
            let file = self.layout.unified()?.join(&relative).join(format!("{what}.pressure"));
            Pressure::parse(&std::fs::read_to_string(file).ok()?)
        };
        Ok(Usage { pressure: ["cpu", "memory", "io"].map(pressure), ..usage })
    }
}

/// Writes a file of the kernel's. Never makes one: for a missing one, that would be refused in other words.
fn put(file: &Path, value: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// Removes a cgroup and those below it; `false` when something in it is still alive.
fn remove_tree(folder: &Path) -> Result<bool, CgroupError> {
    if remove_leaf(folder)? {
        return Ok(true);
    }
    // Busy: with children (they go first), or with processes.
    let mut children = BTreeSet::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            children.insert(entry.path());
        }
    }
    for child in &children {
        if !remove_tree(child)? {
            return Ok(false);
        }
    }
    if children.is_empty() { Ok(false) } else { remove_leaf(folder) }
}

/// Removes a cgroup that has none below it; `false` when it is busy.
fn remove_leaf(folder: &Path) -> Result<bool, CgroupError> {
    const EBUSY: i32 = 16;
    match std::fs::remove_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) if e.raw_os_error() == Some(EBUSY) => Ok(false),
        other => other.map(|()| true).map_err(io_error("remove", folder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        assert!(checked("a/../b").is_err());
        assert!(checked("..").is_err());
        assert_eq!(checked("/burstable/pod1/").unwrap(), Path::new("burstable/pod1"));
    }
}
