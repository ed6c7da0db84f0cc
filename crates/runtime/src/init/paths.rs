//! Paths inside a container: every component is resolved below the container's root, by the kernel, in one step.
//!
//! Invariant: nothing here ever follows a link, a `..` or a magic link out of `root`, whatever another process
//! in the container does to the tree meanwhile (CVE-2021-30465, CVE-2025-52881). The results are `O_PATH`
//! descriptors; whoever mounts, mounts on the descriptor.

use super::Failure;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use sys::rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2, readlinkat};
use sys::rustix::io::Errno;

/// As the kernel's limit of links in one path.
const LINKS_MAX: usize = 40;

/// What a missing path becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Make {
    Folder,
    File,
}

fn relative(path: &Path) -> PathBuf {
    let plain: PathBuf = path.components().filter(|c| matches!(c, Component::Normal(_))).collect();
    if plain.as_os_str().is_empty() { PathBuf::from(".") } else { plain }
}

/// Opens `path` below `root` with `flags`; links are resolved inside the root.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_with(root, path, flags, ResolveFlags::empty())
}

/// The same without following any link.
pub(super) fn open_no_links(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_with(root, path, flags, ResolveFlags::NO_SYMLINKS)
}

fn open_with(root: BorrowedFd<'_>, path: &Path, flags: OFlags, more: ResolveFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | more;
    loop {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel saw a rename on the way and wants it tried again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens `path` below `root` as `O_PATH`, making what is missing of it (folders 0755, files 0644).
pub(super) fn ensure(root: BorrowedFd<'_>, path: &Path, make: Make) -> Result<OwnedFd, Failure> {
    let fail = |errno: Errno| Failure::at(path, errno);
    match open(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        other => return other.map_err(fail),
    }
    // The walk: `done` exists and is free of links, `todo` is what remains.
    let mut todo: VecDeque<OsString> = split(path);
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            done.pop();
            continue;
        }
        let parent = open_no_links(root, or_dot(&done), OFlags::PATH | OFlags::DIRECTORY).map_err(fail)?;
        match readlinkat(&parent, name.as_os_str(), Vec::new()) {
            Ok(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(fail(Errno::LOOP));
                }
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    done = PathBuf::new();
                }
                for part in split(&target).into_iter().rev() {
                    todo.push_front(part);
                }
                continue;
            }
            Err(Errno::NOENT) => make_one(parent.as_fd(), &name, todo.is_empty(), make).map_err(fail)?,
            Err(_) => {} // There, and no link.
        }
        done.push(name);
    }
    open_no_links(root, or_dot(&done), OFlags::PATH).map_err(fail)
}

/// An empty path is the root itself.
fn or_dot(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn make_one(parent: BorrowedFd<'_>, name: &OsString, last: bool, make: Make) -> Result<(), Errno> {
    let made = if last && make == Make::File {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
        sys::rustix::fs::openat(parent, name.as_os_str(), flags, Mode::from_raw_mode(0o644)).map(drop)
    } else {
        mkdirat(parent, name.as_os_str(), Mode::from_raw_mode(0o755))
    };
    match made {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Components without the root and `.`; `..` is kept.
fn split(path: &Path) -> VecDeque<OsString> {
    let keep = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::ParentDir);
    path.components().filter(|c| keep(*c)).map(|c| c.as_os_str().to_owned()).collect()
}

/// Opens the folder of `path` below `root` (making it) and gives the last name: for making nodes and links.
pub(super) fn parent(root: BorrowedFd<'_>, path: &Path) -> Result<(OwnedFd, OsString), Failure> {
    let path = relative(path);
    let name = path.file_name().ok_or_else(|| Failure::at(&path, Errno::INVAL))?.to_owned();
    let folder = ensure(root, path.parent().unwrap_or(Path::new(".")), Make::Folder)?;
    Ok((folder, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use sys::rustix::fs::{CWD, openat};

    fn root(path: &Path) -> OwnedFd {
        openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    fn real(fd: &OwnedFd) -> PathBuf {
        use std::os::fd::AsRawFd;
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn links_never_leave_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("root");
        fs::create_dir(&inside).unwrap();
        symlink("/etc", inside.join("abs")).unwrap();
        symlink("../../../../etc", inside.join("up")).unwrap();
        symlink("/run", inside.join("dangling")).unwrap();
        symlink("loop", inside.join("loop")).unwrap();
        let root = root(&inside);
        for (path, lands) in [
            ("/abs/new", "etc/new"),
            ("/up/other", "etc/other"),
            ("/dangling/lock", "run/lock"),
            ("/a/b/c", "a/b/c"),
            ("/a/../../b", "b"),
        ] {
            let fd = ensure(root.as_fd(), Path::new(path), Make::Folder).unwrap();
            assert_eq!(real(&fd), inside.join(lands), "{path}");
        }
        assert!(ensure(root.as_fd(), Path::new("/loop/x"), Make::Folder).is_err());
        assert!(open_no_links(root.as_fd(), Path::new("/abs"), OFlags::PATH).is_err());
        let file = ensure(root.as_fd(), Path::new("/up/file"), Make::File).unwrap();
        assert!(real(&file).is_file() && inside.join("etc/file").is_file());
    }
}
