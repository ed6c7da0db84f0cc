//! Owners and modes of volumes: `fsGroup` and folders open to all.

use std::io;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;

/// Group bits that `fsGroup` adds to files of a read-only volume.
const READ: u32 = 0o440;
/// What it adds to folders besides: entering, and handing the group on.
const FOLDER: u32 = 0o2110;

/// A folder that every user may write; with a group, new files in it belong to that group.
pub fn open_to_all(path: &Path, group: Option<u32>) -> io::Result<()> {
    if let Some(gid) = group {
        lchown(path, None, Some(gid))?;
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
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
