//! The container's `/sys/fs/cgroup`: its own cgroups and nothing above them.

use super::mounts::{attach, clone_at, make_read_only, new_fs};
use super::options::{Options, attr};
use super::paths::{self, Make};
use super::{Failure, Init};
use crate::oci;
use std::os::fd::AsFd;
use std::path::Path;
use sys::rustix::fs::{CWD, OFlags, openat};

/// Mounts the view that the container's file names: one tree on v2, a folder a hierarchy on v1.
pub(super) fn mount(init: &Init, mount: &oci::Mount, options: &Options) -> Result<(), Failure> {
    let read_only = options.attrs.set & attr::RDONLY != 0;
    let bind = |source: &Path, to: &Path| -> Result<(), Failure> {
        let fail = |e| Failure::at(source, e);
        let found = openat(CWD, source, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, 0.into())
            .map_err(fail)?;
        let tree = clone_at(found.as_fd(), false).map_err(fail)?;
        sys::mount::set_attr(
            tree.as_fd(),
            &sys::mount::MountAttr {
                set: (options.attrs.set & !attr::ATIME_MASK) | if read_only { attr::RDONLY } else { 0 },
                propagation: sys::mount::MS_PRIVATE,
                ..Default::default()
            },
            true,
        )
        .map_err(|e| Failure::new("set mount attributes", e))?;
        let target = paths::ensure(init.root(), to, Make::Folder)?;
        attach(tree.as_fd(), target.as_fd()).map_err(fail)
    };
    let view = &init.file.join.view;
    if let Some(own) = view.get("") {
        return bind(own, &mount.destination);
    }
    let top = new_fs("tmpfs", Path::new("cgroup"), &[("mode", "755")], options.attrs.set & !attr::RDONLY)?;
    let target = paths::ensure(init.root(), &mount.destination, Make::Folder)?;
    attach(top.as_fd(), target.as_fd()).map_err(|e| Failure::at(&mount.destination, e))?;
    for (name, folder) in view {
        bind(folder, &mount.destination.join(name))?;
    }
    if read_only { make_read_only(top.as_fd(), false) } else { Ok(()) }
}
