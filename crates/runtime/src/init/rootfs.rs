//! The root file system: overlay of the image's layers, its devices, what is hidden in it, and moving into it.

use super::mounts::{attach, clone_at, make_read_only, new_fs, propagate};
use super::paths::{self, Make};
use super::{Failure, Init};
use crate::api::Rootfs;
use crate::oci;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::rustix::fs::{self, CWD, FileType, Mode, OFlags, fchown, fstat, mknodat, openat, symlinkat};
use sys::rustix::io::Errno;
use sys::rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, unmount,
};
use sys::rustix::process::{chdir, fchdir, pivot_root};
use sys::rustix::system::uname;

pub(super) fn folder(path: &Path) -> Result<OwnedFd, Failure> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Failure::at(path, e))
}

/// Step: no mount made here reaches the host; those of the host still arrive in shared volumes.
pub(super) fn isolate(_: &mut Init) -> Result<(), Failure> {
    isolate_all()
}

/// See [`isolate`].
pub(super) fn isolate_all() -> Result<(), Failure> {
    propagate(folder(Path::new("/"))?.as_fd(), sys::mount::MS_SLAVE, true)
}

/// Step: mounts the root file system at its place in the state folder and keeps a descriptor of it.
pub(super) fn mount_root(init: &mut Init) -> Result<(), Failure> {
    let root = &init.file.spec.config.root;
    let at = init.dir.join("rootfs");
    std::fs::create_dir_all(&at).map_err(|e| Failure::at(&at, e))?;
    let rootfs = &init.file.spec.rootfs;
    let label = &init.file.spec.config.linux.mount_label;
    if rootfs.lowers.is_empty() {
        let mount = clone_at(folder(&root.path)?.as_fd(), true).map_err(|e| Failure::at(&root.path, e))?;
        if let Some(users) = &init.users {
            users.map(mount.as_fd(), &root.path)?;
        }
        attach(mount.as_fd(), folder(&at)?.as_fd()).map_err(|e| Failure::at(&at, e))?;
    } else {
        match &init.users {
            None => overlay(rootfs, &at, label)?,
            Some(users) => {
                let lowers = users.layers(&rootfs.lowers, &init.dir)?;
                let mapped = Rootfs { lowers, scratch: rootfs.scratch.clone() };
                overlay(&mapped, &at, label)?;
                super::users::drop_layers(&mapped.lowers);
            }
        }
    }
    let root = folder(&at)?;
    propagate(root.as_fd(), sys::mount::MS_PRIVATE, true)?;
    init.root = Some(root);
    Ok(())
}

/// Mounts the overlay at `at`. Layers are given one by one, so there is no limit on their number; kernels before
/// 6.8 cannot do that and get one option string. `label`: SELinux' of all files in it; "" none.
pub(crate) fn overlay(rootfs: &Rootfs, at: &Path, label: &str) -> Result<(), Failure> {
    let (upper, work) = (rootfs.scratch.join("upper"), rootfs.scratch.join("work"));
    for path in [&upper, &work] {
        std::fs::create_dir_all(path).map_err(|e| Failure::at(path, e))?;
    }
    // The root folder that is seen is the upper layer's own: it has to be like the image's.
    if let Some(image) = rootfs.lowers.first() {
        let like = fs::stat(image).map_err(|e| Failure::at(image, e))?;
        let (uid, gid) = (fs::Uid::from_raw(like.st_uid), fs::Gid::from_raw(like.st_gid));
        fs::chown(&upper, Some(uid), Some(gid)).map_err(|e| Failure::at(&upper, e))?;
        fs::chmod(&upper, Mode::from_raw_mode(like.st_mode & 0o7777)).map_err(|e| Failure::at(&upper, e))?;
    }
    overlay_layers(&rootfs.lowers, Some((&upper, &work, label)), at)
}

/// A container's own layer, the folder that the kernel works in, and the label of all files.
type Own<'a> = Option<(&'a Path, &'a Path, &'a str)>;

/// Mounts layers, without one of its own read-only (then two at least), at `at`.
pub(super) fn overlay_layers(lowers: &[PathBuf], own: Own<'_>, at: &Path) -> Result<(), Failure> {
    // Only tried where it can work: each refusal is a line in the kernel's log.
    let tried = if takes_layers(&uname().release().to_string_lossy()) {
        overlay_by_layer(lowers, own)
    } else {
        Err(Errno::INVAL)
    };
    match tried {
        Ok(mount) => attach(mount.as_fd(), folder(at)?.as_fd()).map_err(|e| Failure::at(at, e)),
        Err(Errno::INVAL) => overlay_by_string(lowers, own, at),
        Err(errno) => Err(Failure::new("overlay", errno)),
    }
}

/// Whether a kernel of this release takes layers one by one.
fn takes_layers(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(8))
}

/// Longest option string: a page with its final zero. The kernel would cut a longer one without a word.
const OPTIONS_MAX: usize = 4095;

/// Names folders by descriptor: that keeps 200 layers within the page, and a comma or colon in a path harmless.
fn overlay_by_string(lowers: &[PathBuf], own: Own<'_>, at: &Path) -> Result<(), Failure> {
    let open = |paths: &[PathBuf]| paths.iter().map(|p| folder(p)).collect::<Result<Vec<_>, _>>();
    let lowers = open(lowers)?;
    let label = own.map_or("", |(.., label)| label);
    let own = open(&own.map_or(Vec::new(), |(upper, work, _)| vec![upper.to_owned(), work.to_owned()]))?;
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let names: Vec<String> = lowers.iter().map(name).collect();
    let mut data = format!("lowerdir={}", names.join(":"));
    if let [upper, work] = &own[..] {
        data = format!("volatile,{data},upperdir={},workdir={}", name(upper), name(work));
    }
    if !label.is_empty() {
        data = format!("{data},context=\"{label}\"");
    }
    if data.len() > OPTIONS_MAX {
        return Err(Failure::new("overlay: too many layers for this kernel", Errno::TOOBIG));
    }
    let data = CString::new(data).map_err(|e| Failure::new("overlay", e))?;
    sys::rustix::mount::mount("overlay", at, "overlay", MountFlags::empty(), Some(data.as_c_str()))
        .map_err(|e| Failure::new("overlay", e))
}

fn overlay_by_layer(lowers: &[PathBuf], own: Own<'_>) -> Result<OwnedFd, Errno> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for lower in lowers {
        fsconfig_set_string(&fs, "lowerdir+", lower)?;
    }
    if let Some((upper, work, label)) = own {
        fsconfig_set_string(&fs, "upperdir", upper)?;
        fsconfig_set_string(&fs, "workdir", work)?;
        // A container's own layer dies with it: syncing it at the end would be wasted (best effort, since 5.10).
        let _ = fsconfig_set_flag(&fs, "volatile");
        if !label.is_empty() {
            fsconfig_set_string(&fs, "context", label)?;
        }
    }
    fsconfig_create(&fs)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// Links below `/dev` that programs expect.
const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Step: device nodes and links, where the container has a `/dev` of its own.
pub(super) fn devices(init: &mut Init) -> Result<(), Failure> {
    if !init.own_dev {
        return Ok(());
    }
    let listed = &init.file.spec.config.linux.devices;
    let missing = oci::default_devices().into_iter().filter(|d| !listed.iter().any(|l| l.path == d.path));
    for device in listed.iter().cloned().chain(missing) {
        make_device(init, &device).map_err(|f| f.about(format!("device {}", device.path.display())))?;
    }
    for (link, target) in LINKS {
        let (parent, name) = paths::parent(init.root(), Path::new(link))?;
        match symlinkat(*target, &parent, name.as_os_str()) {
            Err(Errno::EXIST) => {}
            other => other.map_err(|e| Failure::at(Path::new(link), e))?,
        }
    }
    Ok(())
}

fn make_device(init: &Init, device: &oci::Device) -> Result<(), Failure> {
    let fail = |e| Failure::at(&device.path, e);
    let (parent, name) = paths::parent(init.root(), &device.path)?;
    let kind = match device.kind.as_str() {
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => FileType::CharacterDevice,
    };
    let number = |n: i64| u32::try_from(n).unwrap_or(0);
    let dev = fs::makedev(number(device.major), number(device.minor));
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match mknodat(&parent, name.as_os_str(), kind, mode, dev) {
        Err(Errno::EXIST) => return Ok(()),
        other => other.map_err(fail)?,
    }
    // The mask of the process does not apply to what the configuration asks for.
    fs::chmodat(&parent, name.as_os_str(), mode, fs::AtFlags::empty()).map_err(fail)?;
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if (uid, gid) != (0, 0) {
        let (uid, gid) = (fs::Uid::from_raw(init.host_id(uid)), fs::Gid::from_raw(init.host_id(gid)));
        fs::chownat(&parent, name.as_os_str(), Some(uid), Some(gid), fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fail)?;
    }
    Ok(())
}

/// Step: hides paths. Files get the host's null device, folders an empty read-only file system.
pub(super) fn mask(init: &mut Init) -> Result<(), Failure> {
    let null = openat(CWD, "/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Failure::new("/dev/null", e))?;
    for path in &init.file.spec.config.linux.masked_paths {
        let target = match paths::open(init.root(), path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            other => other.map_err(|e| Failure::at(path, e))?,
        };
        let stat = fstat(&target).map_err(|e| Failure::at(path, e))?;
        let cover = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            new_fs("tmpfs", Path::new("tmpfs"), &[("size", "0"), ("nr_inodes", "2")], READ_ONLY)?
        } else {
            clone_at(null.as_fd(), false).map_err(|e| Failure::at(path, e))?
        };
        attach(cover.as_fd(), target.as_fd()).map_err(|e| Failure::at(path, e))?;
    }
    Ok(())
}

const READ_ONLY: u64 = super::options::attr::RDONLY;

/// Step: paths that cannot be written.
pub(super) fn read_only_paths(init: &mut Init) -> Result<(), Failure> {
    for path in &init.file.spec.config.linux.readonly_paths {
        let target = match paths::open(init.root(), path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            other => other.map_err(|e| Failure::at(path, e))?,
        };
        let copy = clone_at(target.as_fd(), true).map_err(|e| Failure::at(path, e))?;
        make_read_only(copy.as_fd(), true)?;
        attach(copy.as_fd(), target.as_fd()).map_err(|e| Failure::at(path, e))?;
    }
    Ok(())
}

/// Step: the working folder is made where it is missing.
pub(super) fn working_folder(init: &mut Init) -> Result<(), Failure> {
    let cwd = &init.file.spec.config.process.cwd;
    if cwd.is_empty() || cwd == "/" {
        return Ok(());
    }
    paths::ensure(init.root(), Path::new(cwd), Make::Folder).map(drop)
}

/// Step: a terminal for a container that wants one; its slave end becomes `/dev/console`.
pub(super) fn console(init: &mut Init) -> Result<(), Failure> {
    if !init.file.spec.config.process.terminal {
        return Ok(());
    }
    let pty = super::terminal::open(init.root())?;
    if let Some(size) = &init.file.spec.config.process.console_size {
        super::terminal::resize(pty.master.as_fd(), size.width, size.height);
    }
    let user = fs::Uid::from_raw(init.host_id(init.file.spec.config.process.user.uid));
    fchown(&pty.slave, Some(user), None).map_err(|e| Failure::new("chown the terminal", e))?;
    let target = paths::ensure(init.root(), Path::new("/dev/console"), Make::File)?;
    let slave = clone_at(pty.slave.as_fd(), false).map_err(|e| Failure::new("clone the terminal", e))?;
    attach(slave.as_fd(), target.as_fd()).map_err(|e| Failure::new("attach /dev/console", e))?;
    init.pty = Some(pty);
    Ok(())
}

/// Step: the new root becomes `/`, the host's file systems are gone.
pub(super) fn enter(init: &mut Init) -> Result<(), Failure> {
    let root = init.root();
    if init.file.spec.config.root.readonly {
        make_read_only(root, false)?;
    }
    fchdir(root).map_err(|e| Failure::new("fchdir", e))?;
    // Stacks the old root on top of the new one, from where it is taken off: no folder is needed for it.
    pivot_root(".", ".").map_err(|e| Failure::new("pivot_root", e))?;
    unmount(".", UnmountFlags::DETACH).map_err(|e| Failure::new("unmount the old root", e))?;
    chdir("/").map_err(|e| Failure::new("chdir", e))?;
    let propagation = match init.file.spec.config.linux.rootfs_propagation.trim_start_matches('r') {
        "shared" => sys::mount::MS_SHARED,
        "slave" => sys::mount::MS_SLAVE,
        _ => return Ok(()),
    };
    propagate(folder(Path::new("/"))?.as_fd(), propagation, false)
}

/// Whether the configuration mounts a `/dev` of its own (then nodes are made in it).
pub(super) fn has_own_dev(spec: &oci::Spec) -> bool {
    let dev = |m: &oci::Mount| m.destination.as_os_str() == OsStr::new("/dev") && m.kind != "bind";
    spec.mounts.iter().any(dev)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_that_take_layers() {
        for (release, takes) in [
            ("6.1.0-56-cloud-amd64", false),
            ("6.8.0", true),
            ("6.18.1+", true),
            ("7.0-rc1", true),
            ("5.14", false),
        ] {
            assert_eq!(takes_layers(release), takes, "{release}");
        }
    }
}
