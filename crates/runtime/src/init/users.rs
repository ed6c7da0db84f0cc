//! The pod's user namespace, from a container's side: mounts whose ids are mapped, files that its root owns, and going in.
//!
//! Everything that touches the node is done before, with the node's rights; its last act out here is to go in. Ids in a
//! configuration are the container's; [`Users::host`] tells the node's.

use super::{Failure, Init};
use crate::oci::{IdMapping, Linux};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::caps::{self, Sets};
use sys::mount::{MountAttr, set_attr};
use sys::process::ns;
use sys::rustix::fs::{Gid, Uid, fchown};
use sys::rustix::mount::{UnmountFlags, unmount};
use sys::rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// `MOUNT_ATTR_IDMAP`.
const IDMAP: u64 = 0x10_0000;

/// The pod's user namespace.
#[derive(Debug)]
pub(super) struct Users {
    namespace: OwnedFd,
    /// The node's id of its root.
    first: u32,
}

impl Users {
    /// What the configuration asks for, and the pod has.
    pub(super) fn of(linux: &Linux, pods: Option<BorrowedFd<'_>>) -> Result<Option<Users>, Failure> {
        let fail = |why: &str| Failure::new("user namespace", why);
        let wanted = linux.namespaces.iter().any(|n| n.kind == "user");
        match (wanted, pods, linux.uid_mappings.as_slice()) {
            (false, _, []) => Ok(None),
            (true, Some(fd), [IdMapping { container_id: 0, host_id, .. }]) => {
                let namespace = fd.try_clone_to_owned().map_err(|e| Failure::new("dup", e))?;
                Ok(Some(Users { namespace, first: *host_id }))
            }
            (true, None, _) => Err(fail("the pod has none")),
            _ => Err(fail("one range from 0 on is supported")),
        }
    }

    /// The node's id of one of the container's.
    pub(super) fn host(&self, id: u32) -> u32 {
        self.first.saturating_add(id)
    }

    /// Maps the ids of a detached mount: what `id` owns on disk, the container's `id` owns.
    pub(super) fn map(&self, mount: BorrowedFd<'_>, what: &Path) -> Result<(), Failure> {
        use std::os::fd::AsRawFd;
        let fd = u64::try_from(self.namespace.as_raw_fd()).unwrap_or(0);
        let attrs = MountAttr { set: IDMAP, userns_fd: fd, ..MountAttr::default() };
        set_attr(mount, &attrs, false).map_err(|error| {
            let hint = match error.raw_os_error() {
                // What the kernel says when the file system cannot do it.
                Some(22) => " (maybe the filesystem used doesn't support idmap mounts on this kernel?)",
                _ => "",
            };
            let failure = Failure::new("x", error).0;
            let why = failure.strip_prefix("x: ").unwrap_or_default();
            Failure(format!("failed to set MOUNT_ATTR_IDMAP on {}: {why}{hint}", what.display()))
        })
    }

    /// The layers with their ids mapped, as mounts below `folder`: an overlay over them shows the container's ids.
    pub(super) fn layers(&self, lowers: &[PathBuf], folder: &Path) -> Result<Vec<PathBuf>, Failure> {
        let mut mapped = Vec::with_capacity(lowers.len());
        for (number, lower) in lowers.iter().enumerate() {
            let at = folder.join(format!("layer-{number}"));
            std::fs::create_dir_all(&at).map_err(|e| Failure::at(&at, e))?;
            let tree = super::mounts::clone_at(super::rootfs::folder(lower)?.as_fd(), false)
                .map_err(|e| Failure::at(lower, e))?;
            self.map(tree.as_fd(), lower)?;
            super::mounts::attach(tree.as_fd(), super::rootfs::folder(&at)?.as_fd())
                .map_err(|e| Failure::at(&at, e))?;
            mapped.push(at);
        }
        Ok(mapped)
    }

    /// Mount options of a new file system speak of the container's ids.
    pub(super) fn shift(&self, data: &mut std::collections::BTreeMap<String, String>) {
        for key in ["uid", "gid"] {
            if let Some(value) = data.get_mut(key)
                && let Ok(id) = value.parse()
            {
                *value = self.host(id).to_string();
            }
        }
    }
}

/// Takes off what [`Users::layers`] mounted: the overlay has its own copies.
pub(super) fn drop_layers(mapped: &[PathBuf]) {
    for at in mapped {
        let _ = unmount(at, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(at);
    }
}

/// Step: files made from here on belong to the container's root. The rights to make them stay.
pub(super) fn act_for(init: &mut Init) -> Result<(), Failure> {
    let Some(users) = &init.users else { return Ok(()) };
    let before = caps::get().map_err(|e| Failure::new("capabilities", e))?;
    sys::process::set_fs_ids(users.first, users.first);
    let sets = Sets { effective: before.permitted, ..before };
    caps::set(sets).map_err(|e| Failure::new("capabilities", e))
}

/// Step: goes in, and takes the mounts along: what is mounted now cannot be taken off there.
pub(super) fn enter(init: &mut Init) -> Result<(), Failure> {
    let Some(users) = &init.users else { return Ok(()) };
    sys::process::set_ns(users.namespace.as_fd(), ns::USER).map_err(|e| Failure::new("setns", e))?;
    become_root()?;
    sys::process::unshare(ns::MOUNT).map_err(|e| Failure::new("unshare", e))
}

/// Becomes the root of a user namespace that this process just entered.
pub(crate) fn become_root() -> Result<(), Failure> {
    set_thread_groups(&[]).map_err(|e| Failure::new("setgroups", e))?;
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    set_thread_res_gid(gid, gid, gid).map_err(|e| Failure::new("setgid", e))?;
    set_thread_res_uid(uid, uid, uid).map_err(|e| Failure::new("setuid", e))
}

/// Gives pipes to the process that will have them, so that it can open them again by name (`/dev/stdout`).
pub(super) fn hand_over(stdio: &[Option<BorrowedFd<'_>>], user: u32) {
    for fd in stdio.iter().flatten() {
        // Only convenience: it has them open anyway.
        let _ = fchown(fd, Some(Uid::from_raw(user)), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Namespace;

    #[test]
    fn configuration_and_pod_must_agree() {
        let file = std::fs::File::open("/proc/self/ns/user").unwrap();
        let user = Namespace { kind: "user".into(), path: None };
        let range = IdMapping { container_id: 0, host_id: 131_072, size: 65_536 };
        let linux = |namespaces, uid_mappings| Linux { namespaces, uid_mappings, ..Linux::default() };
        let given = || Some(file.as_fd());
        assert!(Users::of(&linux(vec![], vec![]), given()).unwrap().is_none());
        let users = Users::of(&linux(vec![user.clone()], vec![range]), given()).unwrap().unwrap();
        assert_eq!((users.host(0), users.host(1000)), (131_072, 132_072));
        let mut data = [("gid".to_string(), "5".to_string()), ("mode".into(), "620".into())].into();
        users.shift(&mut data);
        assert_eq!((data["gid"].as_str(), data["mode"].as_str()), ("131077", "620"));
        assert!(Users::of(&linux(vec![user.clone()], vec![range]), None).is_err());
        assert!(Users::of(&linux(vec![user], vec![]), given()).is_err());
        assert!(Users::of(&linux(vec![], vec![range]), given()).is_err());
    }
}
