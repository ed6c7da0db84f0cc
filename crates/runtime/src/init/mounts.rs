//! Mounting by descriptor: source and target are opened first, then joined, so nothing can be swapped between.

use super::options::{self, Attrs, Options, attr};
use super::paths::{self, Make};
use super::users::Users;
use super::{Failure, Init, rootfs};
use crate::oci;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use sys::mount::{MS_PRIVATE, MountAttr, set_attr};
use sys::rustix::fs::{FileType, OFlags, fstat};
use sys::rustix::io::Errno;
use sys::rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// Attaches a detached mount to the target that `to` refers to.
pub(super) fn attach(mount: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", to, "", flags)
}

/// A detached mount of a new file system.
pub(super) fn new_fs(
    kind: &str,
    source: &Path,
    data: &[(&str, &str)],
    attrs: u64,
) -> Result<OwnedFd, Failure> {
    let fail = |what: &str| {
        let what = format!("{kind}: {what}");
        move |errno: Errno| Failure::new(&what, errno)
    };
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail("fsopen"))?;
    if !source.as_os_str().is_empty() {
        fsconfig_set_string(&fs, "source", source).map_err(fail("source"))?;
    }
    for (key, value) in data {
        let set = match value.is_empty() {
            true => fsconfig_set_flag(&fs, *key),
            false => fsconfig_set_string(&fs, *key, *value),
        };
        set.map_err(fail(&format!("option {key}={value}")))?;
    }
    fsconfig_create(&fs).map_err(fail("create"))?;
    let attrs = MountAttrFlags::from_bits_retain(u32::try_from(attrs).unwrap_or(0));
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs).map_err(fail("fsmount"))
}

/// A detached copy of the mount at `fd`, beginning there.
pub(super) fn clone_at(fd: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd, "", flags)
}

fn change(mount: BorrowedFd<'_>, attrs: Attrs, recursive: bool) -> Result<(), Failure> {
    if attrs == Attrs::default() {
        return Ok(());
    }
    let attrs = MountAttr { set: attrs.set, clear: attrs.clear, ..MountAttr::default() };
    set_attr(mount, &attrs, recursive).map_err(|e| Failure::new("set mount attributes", e))
}

/// Makes the mount at `fd` read-only where it is.
pub(super) fn make_read_only(fd: BorrowedFd<'_>, recursive: bool) -> Result<(), Failure> {
    change(fd, Attrs { set: attr::RDONLY, clear: 0 }, recursive)
}

/// Sets propagation of the mount at `fd`.
pub(super) fn propagate(fd: BorrowedFd<'_>, propagation: u64, recursive: bool) -> Result<(), Failure> {
    let attrs = MountAttr { propagation, ..MountAttr::default() };
    set_attr(fd, &attrs, recursive).map_err(|e| Failure::new("set mount propagation", e))
}

/// Step: everything in the configuration's `mounts`, in order.
pub(super) fn mount_all(init: &mut Init) -> Result<(), Failure> {
    let mounts = std::mem::take(&mut init.file.spec.config.mounts);
    for mount in &mounts {
        mount_one(init, mount).map_err(|f| f.about(format!("mount {}", mount.destination.display())))?;
    }
    Ok(())
}

fn mount_one(init: &mut Init, mount: &oci::Mount) -> Result<(), Failure> {
    let shared = if super::is_shared(mount) { init.shared.pop_front() } else { None };
    let mut options = options::parse(&mount.options);
    let mapped = match (&init.users, mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty()) {
        (_, true) => None,
        (Some(users), false) => Some(users),
        (None, false) => {
            let why = "ids are mapped in a user namespace only";
            return Err(Failure::new(why, Errno::NOTSUP));
        }
    };
    let root = init.root();
    if !options.lowers.is_empty() {
        let tree = image_tree(init, &options, mapped)?;
        return bind(root, tree, &mount.destination, &options);
    }
    if options.bind || mount.kind == "bind" {
        let tree = match shared {
            Some(tree) => tree,
            None => source_tree(&mount.source, &options)?,
        };
        if let Some(users) = mapped {
            users.map(tree.as_fd(), &mount.source)?;
        }
        return bind(root, tree, &mount.destination, &options);
    }
    // The pod's shared memory belongs to its IPC namespace, so all its containers see the same.
    if let (true, Some(shm)) = (mount.kind == "tmpfs" && mount.source.as_os_str() == "shm", &init.shm) {
        let options = Options { data: Default::default(), ..options };
        return bind(root, source_tree(shm, &options)?, &mount.destination, &options);
    }
    if let Some(users) = &init.users {
        users.shift(&mut options.data);
    }
    let label = &init.file.spec.config.linux.mount_label;
    if mount.kind == "tmpfs" && !label.is_empty() {
        options.data.insert("context".into(), label.clone());
    }
    match mount.kind.as_str() {
        "cgroup" | "cgroup2" => return super::cgroupfs::mount(init, mount, &options),
        // A link there would let an image choose where the kernel's files appear (CVE-2019-19921).
        "proc" | "sysfs" => {
            paths::ensure(root, &mount.destination, Make::Folder)?;
            let target =
                paths::open_no_links(root, &relative(&mount.destination), OFlags::PATH | OFlags::DIRECTORY)
                    .map_err(|e| Failure::at(&mount.destination, e))?;
            return fresh(&mount.kind, &mount.source, &options, target.as_fd());
        }
        _ => {}
    }
    let target = paths::ensure(root, &mount.destination, Make::Folder)?;
    fresh(&mount.kind, &mount.source, &options, target.as_fd())
}

fn relative(path: &Path) -> std::path::PathBuf {
    path.components().filter(|c| matches!(c, std::path::Component::Normal(_))).collect()
}

fn fresh(kind: &str, source: &Path, options: &Options, target: BorrowedFd<'_>) -> Result<(), Failure> {
    let data: Vec<(&str, &str)> = options.data.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let mount = new_fs(kind, source, &data, options.attrs.set | options.recursive.set)?;
    attach(mount.as_fd(), target).map_err(|e| Failure::new("attach", e))?;
    if options.propagation != 0 {
        propagate(mount.as_fd(), options.propagation, options.propagation_recursive)?;
    }
    Ok(())
}

/// A detached copy of what a bind's source (on the node) is.
fn source_tree(source: &Path, options: &Options) -> Result<OwnedFd, Failure> {
    let fail = |e| Failure::at(source, e);
    let mut found = sys::rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, 0.into()).map_err(fail)?;
    if let Some(subpath) = &options.subpath {
        // The volume belongs to its pods: a link in it may not lead out of it (CVE-2017-1002101, 2021-25741).
        let below = Path::new(subpath);
        found = paths::open(found.as_fd(), below, OFlags::PATH).map_err(|e| Failure::at(below, e))?;
    }
    clone_at(found.as_fd(), options.bind_recursive).map_err(fail)
}

/// A detached view of an image's layers, or of a path in it.
fn image_tree(init: &Init, options: &Options, mapped: Option<&Users>) -> Result<OwnedFd, Failure> {
    if let [only] = &options.lowers[..] {
        let tree = source_tree(only, options)?;
        mapped.map_or(Ok(()), |users| users.map(tree.as_fd(), only))?;
        return Ok(tree);
    }
    // Attached while it is copied: a path below a detached mount cannot be.
    let at = init.dir.join("image");
    std::fs::create_dir_all(&at).map_err(|e| Failure::at(&at, e))?;
    match mapped {
        None => rootfs::overlay_layers(&options.lowers, None, &at)?,
        Some(users) => {
            let lowers = users.layers(&options.lowers, &init.dir)?;
            rootfs::overlay_layers(&lowers, None, &at)?;
            super::users::drop_layers(&lowers);
        }
    }
    let tree = source_tree(&at, options);
    sys::rustix::mount::unmount(&at, UnmountFlags::DETACH).map_err(|e| Failure::at(&at, e))?;
    tree
}

/// For another OCI runtime, which does not know our option: binds each mount's path below its source to a place in
/// `folder`, resolved as for our own, and makes that the source. In the caller's mount namespace.
pub(crate) fn resolve_subpaths(mounts: &mut [oci::Mount], folder: &Path) -> Result<(), Failure> {
    for (number, mount) in mounts.iter_mut().enumerate() {
        let options = options::parse(&mount.options);
        if options.subpath.is_none() {
            continue;
        }
        let tree = source_tree(&mount.source, &options)?;
        let place = folder.join(format!("sub-{number}"));
        let fail = |e: Errno| Failure::at(&place, e);
        let made = match FileType::from_raw_mode(fstat(&tree).map_err(fail)?.st_mode) {
            FileType::Directory => std::fs::create_dir_all(&place),
            _ => std::fs::write(&place, ""),
        };
        made.map_err(|e| Failure::at(&place, e))?;
        let target = sys::rustix::fs::open(&place, OFlags::PATH | OFlags::CLOEXEC, 0.into()).map_err(fail)?;
        attach(tree.as_fd(), target.as_fd()).map_err(fail)?;
        mount.source = place;
        mount.options.retain(|o| !o.starts_with(options::SUBPATH));
    }
    Ok(())
}

/// Mounts `tree` at `destination` in the container; the target's kind follows the tree's.
fn bind(root: BorrowedFd<'_>, tree: OwnedFd, destination: &Path, options: &Options) -> Result<(), Failure> {
    let fail = |e| Failure::at(destination, e);
    let kind = FileType::from_raw_mode(fstat(&tree).map_err(fail)?.st_mode);
    let make = if kind == FileType::Directory { Make::Folder } else { Make::File };
    change(tree.as_fd(), options.attrs, false)?;
    change(tree.as_fd(), options.recursive, true)?;
    match options.propagation {
        0 => propagate(tree.as_fd(), MS_PRIVATE, true)?,
        bits => propagate(tree.as_fd(), bits, options.propagation_recursive)?,
    }
    let target = paths::ensure(root, destination, make)?;
    attach(tree.as_fd(), target.as_fd()).map_err(fail)
}
