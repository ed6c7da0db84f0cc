//! File operations inside one folder that symbolic links cannot leave, and durable writes.
//!
//! Invariant: no path that came from an image is ever given to the kernel but through `openat2` with
//! `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`, or as a single name below a folder opened that way.

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, openat2, statat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// `openat2` answers EAGAIN when some rename anywhere raced with `..`; that often in a row is no race.
const RACE_RETRIES: u32 = 128;

/// Opens an existing folder as the root of later look-ups.
pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Resolves `path` as a process chrooted to `root` would; the folder that it is.
pub(crate) fn folder_in(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { &b"."[..] } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut result = Err(Errno::AGAIN);
    for _ in 0..RACE_RETRIES {
        result = openat2(root, path, flags, Mode::empty(), resolve);
        if !matches!(result, Err(Errno::AGAIN)) {
            break;
        }
    }
    result
}

/// What stands at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum There {
    Nothing,
    Folder,
    /// An overlay whiteout: character device 0/0.
    Whiteout,
    Something,
}

/// Looks at `name` in `folder` without following it.
pub(crate) fn look(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<There> {
    match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(There::Nothing),
        Err(e) => Err(e.into()),
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => There::Folder,
            FileType::CharacterDevice if stat.st_rdev == 0 => There::Whiteout,
            _ => There::Something,
        }),
    }
}

/// Removes `name` from `folder`, with all below it, following nothing.
pub(crate) fn remove(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => {
            use std::os::unix::ffi::OsStrExt;
            // The standard library removes trees by file descriptors and does not follow a link at the end.
            let base = format!("/proc/self/fd/{}", folder.as_raw_fd());
            std::fs::remove_dir_all(Path::new(&base).join(std::ffi::OsStr::from_bytes(name)))
        }
        Err(e) => Err(e.into()),
    }
}

/// Replaces `folder/name` by `bytes`, atomically and durably.
pub(crate) fn write_durably(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!(".{name}.{}.{:?}", std::process::id(), std::thread::current().id()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, folder.join(name))?;
        File::open(folder)?.sync_all()
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Puts names that were given or taken in a folder on disk.
pub(crate) fn sync_folder(path: &Path) -> Result<(), crate::ImageError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(crate::ImageError::io("sync", path))
}

/// Removes the files in a folder.
pub(crate) fn empty(folder: &Path) -> Result<(), crate::ImageError> {
    for entry in std::fs::read_dir(folder).map_err(crate::ImageError::io("list", folder))? {
        let path = entry.map_err(crate::ImageError::io("list", folder))?.path();
        std::fs::remove_file(&path).map_err(crate::ImageError::io("remove", &path))?;
    }
    Ok(())
}

/// An anonymous file below a folder: it goes with its last handle, whatever happens.
pub(crate) fn anonymous(folder: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Puts everything written to `path`'s file system on disk: one call for thousands of files of a layer.
pub(crate) fn sync_file_system(path: &Path) -> io::Result<()> {
    let fd = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::syncfs(fd)?)
}

/// Free bytes for us on the file system of `fd`.
pub(crate) fn free_bytes(fd: impl AsFd) -> io::Result<u64> {
    let stat = rustix::fs::fstatvfs(fd)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
