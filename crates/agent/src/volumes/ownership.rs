//! Owners and modes of volumes: `fsGroup` and folders open to all.

use rustix::fs::{CWD, FileType, Mode, OFlags, RawDir, fstat, openat};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

/// Group bits that `fsGroup` adds to files of a read-only volume.
const READ: u32 = 0o440;
/// What it adds to folders besides: entering, and handing the group on.
const FOLDER: u32 = 0o2110;

/// Mode of an empty folder on disk.
pub const ON_DISK: u32 = 0o777;
/// Mode of one in memory: as a fresh tmpfs has it, nobody removes others' files.
pub const IN_MEMORY: u32 = 0o1777;

/// A folder that every user may write; with a group, new files in it belong to that group.
pub fn open_to_all(path: &Path, group: Option<u32>, mode: u32) -> io::Result<()> {
    if let Some(gid) = group {
        lchown(path, None, Some(gid))?;
    }
    let mode = if group.is_some() { mode | 0o2000 } else { mode };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Gives a tree that nobody else sees yet to a group, readable.
pub(super) fn give_to_group(path: &Path, gid: u32) -> io::Result<()> {
    let meta = path.symlink_metadata()?;
    lchown(path, None, Some(gid))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let add = if meta.is_dir() { READ | FOLDER } else { READ };
    std::fs::set_permissions(
        path,
        std::fs::Permissions::from_mode((meta.permissions().mode() & 0o7777) | add),
    )?;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_to_group(&entry?.path(), gid)?;
        }
    }
    Ok(())
}

/// What `fsGroup` adds to files of a volume that is written.
const WRITE: u32 = 0o660;
/// Folders below folders: deeper ones keep their owners. (Each level holds a descriptor.)
const DEPTH_MAX: usize = 200;
/// Bytes of folder entries read at a time.
const ENTRIES_BYTES: usize = 2 << 10;

/// Gives a volume to a group, writable; with `once` only if its root does not say that this was done. Others may be
/// at work in it: every file is held by a descriptor, and no link is followed.
pub(super) fn hand_over(path: &Path, gid: u32, once: bool) -> io::Result<()> {
    let root = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let meta = fstat(&root)?;
    let wanted = WRITE | FOLDER;
    if once && meta.st_gid == gid && meta.st_mode & wanted == wanted {
        return Ok(());
    }
    // The root last: a walk that was cut short is walked again.
    hand_over_entries(&root, gid, 0)?;
    hand_over_one(&root, gid)
}

fn hand_over_one(fd: &OwnedFd, gid: u32) -> io::Result<()> {
    let meta = fstat(fd)?;
    let kind = FileType::from_raw_mode(meta.st_mode);
    let at = format!("/proc/self/fd/{}", fd.as_raw_fd());
    if kind == FileType::Symlink {
        return Ok(());
    }
    std::os::unix::fs::chown(&at, None, Some(gid))?;
    let add = if kind == FileType::Directory { WRITE | FOLDER } else { WRITE };
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode((meta.st_mode & 0o7777) | add))
}

fn hand_over_entries(folder: &OwnedFd, gid: u32, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let listing = openat(folder, ".", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); ENTRIES_BYTES];
    let mut entries = RawDir::new(&listing, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match openat(folder, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        if FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Directory {
            hand_over_entries(&fd, gid, depth + 1)?;
        }
        hand_over_one(&fd, gid)?;
    }
    Ok(())
}
