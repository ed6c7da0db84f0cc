//! A few megabytes kept aside on the store's disk, so that a full disk can be emptied through the store.
//!
//! SQLite needs room to delete. When a commit finds the disk full, the reserve is given up: from then on
//! only deletions and updates that hardly grow are taken (see [`Reserve::is_low`]), which keeps heartbeats
//! and clean-up going. Once there is ample room again, the reserve is taken back and all is as before.
//!
//! Invariant: `low` is only ever left by taking the reserve back.
//! Deliberately not here: which writes count as growing (`index`).

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Room for one whole write-ahead log to move into the main file.
pub(crate) const RESERVE_BYTES: u64 = 8 << 20;
/// Free bytes at which the reserve is taken back: as much again stays for the writes that follow.
const AMPLE_BYTES: u64 = 2 * RESERVE_BYTES;

pub(crate) struct Reserve {
    path: PathBuf,
    low: bool,
}

impl Reserve {
    /// Takes the reserve, in a file at this path; without room for it the store starts out low.
    pub fn open(path: PathBuf) -> Reserve {
        let low = match take(&path) {
            Ok(()) => false,
            Err(error) if is_full(&error) => true,
            Err(error) => {
                // As on file systems that cannot set room aside: a full disk then needs help from outside.
                tracing::warn!(path = %path.display(), %error, "no disk space can be reserved");
                false
            }
        };
        Reserve { path, low }
    }

    /// Whether room is so short that nothing may grow.
    pub fn is_low(&self) -> bool {
        self.low
    }

    /// Gives the reserve up.
    pub fn release(&mut self) {
        self.low = true;
        remove(&self.path);
        tracing::warn!(path = %self.path.display(), "the disk is full: writes that need room are refused");
    }

    /// Takes the reserve back if there is room again.
    pub fn retake(&mut self) {
        let ample = statvfs(folder(&self.path)).is_ok_and(|fs| fs.f_bavail * fs.f_frsize >= AMPLE_BYTES);
        if self.low && ample && take(&self.path).is_ok() {
            self.low = false;
            tracing::info!(path = %self.path.display(), "the disk has room again");
        }
    }
}

/// The folder that a file is in.
pub(crate) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn take(path: &Path) -> io::Result<()> {
    let file: File = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let taken = fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES);
    if taken.is_err() {
        remove(path);
    }
    Ok(taken?)
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "the reserve cannot be given up");
    }
}

fn is_full(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT].contains(&Errno::from_io_error(error).unwrap_or(Errno::IO))
}
