//! Killing a whole v1 cgroup where there is no `cgroup.kill`: freeze, signal, thaw.
//!
//! Frozen, the tree cannot fork away from the list of PIDs; a frozen task dies only once thawed, so thawing is
//! never skipped.

use super::layout::Layout;
use super::{CgroupError, io_error};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use sys::rustix::process::{Pid, Signal, kill_process};

/// How long a freeze may take; a task in an uninterruptible wait never freezes, the rest is killed regardless.
const FREEZE_WAIT: Duration = Duration::from_millis(100);

pub(super) fn with_freezer(layout: &Layout, relative: &Path) -> Result<(), CgroupError> {
    let Some(tree) = layout.tree("freezer") else { return Ok(()) };
    let folder = tree.join(relative);
    let state = folder.join("freezer.state");
    match std::fs::write(&state, "FROZEN") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io_error("write", &state))?,
    }
    let end = Instant::now() + FREEZE_WAIT;
    while std::fs::read_to_string(&state).is_ok_and(|s| s.trim() == "FREEZING") && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    for pid in pids(&folder) {
        let _ = kill_process(pid, Signal::KILL);
    }
    std::fs::write(&state, "THAWED").map_err(io_error("write", &state))
}

fn pids(folder: &Path) -> Vec<Pid> {
    let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<Pid> = text.lines().filter_map(|l| Pid::from_raw(l.parse().ok()?)).collect();
    let children: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .collect();
    all.extend(children.iter().flat_map(|child| pids(child)));
    all
}
