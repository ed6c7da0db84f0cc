//! Publishing a payload so that readers see either all of the old files or all of the new ones.
//!
//! ```text
//! volume/..<stamp>/a      the files
//! volume/..data -> ..<stamp>      swapped by rename
//! volume/a -> ..data/a    what containers open
//! ```

use super::payload::Payload;
use super::{Context, fs_group, make_folder, ownership};
use crate::config::mounts::MountedVolume;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Writes the payload of a volume, if it differs from what is there.
pub(super) fn publish(context: &Context, volume: &str, payload: &Payload) -> Result<MountedVolume, String> {
    let path = context.facts.volume_dir(context.pod.uid(), volume);
    publish_at(context, &path, payload)?;
    Ok(MountedVolume { path, read_only: true, ..MountedVolume::default() })
}

/// The same into the pod's memory file system, where it has one. The path is the shim's.
pub(super) fn publish_in_memory(
    context: &Context,
    volume: &str,
    payload: &Payload,
) -> Result<MountedVolume, String> {
    let Some(root) = context.shim_root else { return publish(context, volume, payload) };
    let path = context.facts.memory_dir(context.pod.uid()).join(volume);
    publish_at(context, &root.join(path.strip_prefix("/").unwrap_or(&path)), payload)?;
    Ok(MountedVolume { path, read_only: true, ..MountedVolume::default() })
}

fn publish_at(context: &Context, folder: &Path, payload: &Payload) -> Result<(), String> {
    make_folder(folder)?;
    let written = write(folder, payload, fs_group(context.pod));
    written.map(drop).map_err(|e| format!("writing {}: {e}", folder.display()))
}

/// True when something was written.
fn write(folder: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    let current = fs::read_link(folder.join(DATA)).ok();
    if let Some(current) = &current
        && same(&folder.join(current), payload, group)
    {
        return Ok(false);
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let fresh = fresh_folder(folder)?;
    let whole = fill(&folder.join(&fresh), payload, group);
    if let Err(error) = whole {
        let _ = fs::remove_dir_all(folder.join(&fresh));
        return Err(error);
    }
    let _ = fs::remove_file(folder.join(DATA_NEW));
    symlink(&fresh, folder.join(DATA_NEW))?;
    fs::rename(folder.join(DATA_NEW), folder.join(DATA))?;
    link_visible(folder, payload)?;
    if let Some(gid) = group {
        ownership_of_top(folder, gid)?;
    }
    // Whatever older stamp is left (a crash included) goes.
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let old = name.to_string_lossy().starts_with("..") && name != DATA && name != fresh;
        if old {
            let _ = fs::remove_dir_all(folder.join(name));
        }
    }
    Ok(true)
}

fn ownership_of_top(folder: &Path, gid: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(folder, None, Some(gid))
}

/// A new folder of a name that was not there.
fn fresh_folder(folder: &Path) -> io::Result<OsString> {
    for number in 0.. {
        let name = format!("..{}_{number}", jiff::Timestamp::now().as_nanosecond());
        match fs::create_dir(folder.join(&name)) {
            Ok(()) => return Ok(name.into()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    unreachable!("an endless range ends only by return")
}

fn fill(folder: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        let target = folder.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        // Closed to others until it is as it must be: the folder is in the containers' sight already.
        let mut made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        made.write_all(&file.data)?;
        std::os::unix::fs::chown(&target, Some(file.owner), None)?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
    }
    match group {
        Some(gid) => ownership::give_to_group(folder, gid),
        None => Ok(()),
    }
}

/// Does the folder hold exactly this payload?
fn same(folder: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let extra_mode = if group.is_some() { 0o440 } else { 0 };
    let mut found = BTreeSet::new();
    if collect(folder, Path::new(""), &mut found).is_err() || !found.iter().eq(payload.keys()) {
        return false;
    }
    payload.iter().all(|(path, file)| {
        let target = folder.join(path);
        let found = target.symlink_metadata().map(|m| (m.permissions().mode() & 0o777, m.uid())).ok();
        found == Some((file.mode | extra_mode, file.owner))
            && fs::read(&target).is_ok_and(|data| data == file.data)
    })
}

fn collect(folder: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(folder, &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

/// One link for each first component; links of entries that are gone go.
fn link_visible(folder: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<OsString> =
        payload.keys().filter_map(|p| p.components().next()).map(|c| c.as_os_str().to_owned()).collect();
    for name in &wanted {
        let link = folder.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !name.to_string_lossy().starts_with("..") && !wanted.contains(&name) {
            fs::remove_file(folder.join(name))?;
        }
    }
    Ok(())
}
