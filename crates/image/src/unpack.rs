//! Unpacks one layer into a folder that overlayfs can use as a lower layer.
//!
//! OCI whiteouts become overlay's (character device 0/0, `trusted.overlay.opaque`), ownership, modes with setuid,
//! times and harmless xattrs are kept; device nodes and sockets are left out, like under a container's default
//! device rules. Whiteouts speak of lower layers only: what the same layer puts at that name stays.
//! Invariants: nothing outside the folder is touched whatever the tar says; on error the caller drops the folder.
//! As in Docker, a hard link must point into its own layer, and a parent that the layer does not list is 0755 root.

use crate::error::ImageError;
use crate::fs::{There, folder_in, free_bytes, look, open_root, remove};
use crate::limits::{DEFERRED_BYTES, Limits, PATH_BYTES, SPACE_CHECK_BYTES};
use crate::tarball::{Entry, Kind, TarReader, skip_by_reading};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT: &[u8] = b".wh.";
const COPY_BYTES: usize = 128 << 10;

/// Unpacks the tar stream `reader` below `root` (an empty folder); gives the stream back behind the archive's end.
pub(crate) fn unpack<R: Read>(reader: R, root: &Path, limits: &Limits) -> Result<R, ImageError> {
    let root_fd = open_root(root).map_err(ImageError::io("open", root))?;
    let mut unpacker = Unpacker {
        root: root_fd,
        limits,
        parent: None,
        deferred: Vec::new(),
        deferred_bytes: 0,
        unchecked_bytes: SPACE_CHECK_BYTES,
        buffer: vec![0; COPY_BYTES],
    };
    let mut tar = TarReader::new(reader, skip_by_reading);
    let mut entries = 0;
    while let Some(entry) = tar.next_entry().map_err(ImageError::io("read a layer for", root))? {
        entries += 1;
        if entries > limits.entries {
            return Err(ImageError::too_big("the number of entries of a layer", limits.entries));
        }
        unpacker.entry(&entry, &mut tar).map_err(|e| match e.downcast::<ImageError>() {
            Ok(inner) => inner,
            Err(e) => ImageError::entry(&entry.path, e),
        })?;
    }
    unpacker.finish().map_err(ImageError::io("set folder times in", root))?;
    Ok(tar.into_inner())
}

struct Unpacker<'a> {
    root: OwnedFd,
    limits: &'a Limits,
    /// The last parent: most entries follow a sibling.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Folder times, set last because making children changes them.
    deferred: Vec<(Vec<u8>, Timestamps)>,
    deferred_bytes: usize,
    unchecked_bytes: u64,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> io::Result<()> {
        let path = clean(&entry.path)?;
        if path.is_empty() {
            return match entry.kind {
                Kind::Folder => {
                    let root = open_folder(self.root.as_fd(), b".")?;
                    self.folder_attributes(root.as_fd(), entry, path)
                }
                _ => Err(refuse("it would replace the root folder")),
            };
        }
        let (parent_path, _) = split(&path);
        if matches!(entry.kind, Kind::Block | Kind::Other(_))
            || (entry.kind == Kind::Char && entry.device != (0, 0))
        {
            tracing::debug!(path = %String::from_utf8_lossy(&path), kind = ?entry.kind, "left out of the layer");
            return Ok(());
        }
        let parent = self.parent(parent_path)?;
        let made = self.make(entry, parent.as_fd(), data, &path);
        self.parent = Some((parent_path.to_vec(), parent));
        made
    }

    fn make(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        data: &mut impl Read,
        path: &[u8],
    ) -> io::Result<()> {
        let (_, name) = split(path);
        if name == OPAQUE {
            return set_opaque(&open_folder(parent, b".")?);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return whiteout(parent, hidden);
        }
        let there = look(parent, name)?;
        if entry.kind == Kind::Folder {
            return self.folder(entry, parent, (name, there), path);
        }
        if there != There::Nothing {
            remove(parent, name)?;
        }
        match entry.kind {
            Kind::File => self.file(entry, parent, name, data),
            Kind::Symlink => symlink(entry, parent, name),
            Kind::Hardlink => self.hardlink(entry, parent, name),
            Kind::Fifo => {
                rustix::fs::mknodat(parent, name, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
                node_attributes(entry, parent, name)
            }
            Kind::Char => make_whiteout(parent, name),
            Kind::Folder | Kind::Block | Kind::Other(_) => Ok(()),
        }
    }

    fn folder(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        (name, there): (&[u8], There),
        path: &[u8],
    ) -> io::Result<()> {
        if matches!(there, There::Whiteout | There::Something) {
            remove(parent, name)?;
        }
        if there != There::Folder {
            rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
        }
        let folder = open_folder(parent, name)?;
        if there == There::Whiteout {
            set_opaque(&folder)?;
        }
        self.folder_attributes(folder.as_fd(), entry, path.to_vec())
    }

    fn folder_attributes(&mut self, folder: BorrowedFd<'_>, entry: &Entry, path: Vec<u8>) -> io::Result<()> {
        attributes(entry, folder)?;
        self.deferred_bytes += path.len() + size_of::<(Vec<u8>, Timestamps)>();
        if self.deferred_bytes > DEFERRED_BYTES {
            return Err(ImageError::too_big("the folder list of a layer", DEFERRED_BYTES).into_io());
        }
        self.deferred.push((path, times(entry)));
        Ok(())
    }

    fn file(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        name: &[u8],
        data: &mut impl Read,
    ) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?);
        loop {
            let n = data.read(&mut self.buffer)?;
            if n == 0 {
                break;
            }
            self.check_space(n as u64)?;
            file.write_all(&self.buffer[..n])?;
        }
        attributes(entry, file.as_fd())?;
        Ok(rustix::fs::futimens(&file, &times(entry))?)
    }

    fn hardlink(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        let target = clean(&entry.link)?;
        let (folder, target_name) = split(&target);
        let folder = folder_in(self.root.as_fd(), folder)?;
        match look(folder.as_fd(), target_name) {
            Ok(There::Something) => {}
            _ => return Err(refuse("its hard link target is not a file of the same layer")),
        }
        Ok(rustix::fs::linkat(&folder, target_name, parent, name, AtFlags::empty())?)
    }

    /// The folder `path`, made where it is missing.
    fn parent(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        if let Some((cached, fd)) = self.parent.take()
            && cached == path
        {
            return Ok(fd);
        }
        match folder_in(self.root.as_fd(), path) {
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path),
            other => Ok(other?),
        }
    }

    fn make_parents(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        let mut folder = folder_in(self.root.as_fd(), b"")?;
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i).chain([path.len()]);
        let mut start = 0;
        for end in ends {
            let name = &path[start..end];
            start = end + 1;
            let there = look(folder.as_fd(), name)?;
            if there == There::Whiteout {
                remove(folder.as_fd(), name)?;
            }
            if matches!(there, There::Nothing | There::Whiteout) {
                rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o755))?;
                let made = open_folder(folder.as_fd(), name)?;
                rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
                if there == There::Whiteout {
                    set_opaque(&made)?;
                }
            }
            folder = folder_in(self.root.as_fd(), &path[..end]).map_err(|e| match e {
                Errno::NOTDIR | Errno::NOENT | Errno::LOOP => refuse("its parent is not a folder"),
                e => e.into(),
            })?;
        }
        Ok(folder)
    }

    fn check_space(&mut self, bytes: u64) -> io::Result<()> {
        self.unchecked_bytes += bytes;
        if self.unchecked_bytes > SPACE_CHECK_BYTES {
            self.unchecked_bytes = 0;
            let floor_bytes = self.limits.free_floor_bytes;
            if free_bytes(&self.root)? < floor_bytes + SPACE_CHECK_BYTES {
                return Err(ImageError::NoSpace { floor_bytes }.into_io());
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        for (path, times) in self.deferred.iter().rev() {
            // Gone or replaced meanwhile by a later entry: then its time does not matter.
            if let Ok(folder) = folder_in(self.root.as_fd(), path) {
                let folder = open_folder(folder.as_fd(), b".")?;
                rustix::fs::futimens(&folder, times)?;
            }
        }
        Ok(())
    }
}

/// Components joined by single slashes: no leading slash, no `.`, never `..`.
fn clean(path: &[u8]) -> io::Result<Vec<u8>> {
    if path.len() > PATH_BYTES {
        return Err(ImageError::too_big("a path in a layer", PATH_BYTES).into_io());
    }
    if path.contains(&0) {
        return Err(refuse("NUL in its path"));
    }
    let mut clean = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(refuse("`..` in its path")),
            part => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
    Ok(clean)
}

/// Folder and last name of a clean path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn refuse(why: &str) -> io::Error {
    io::Error::other(why.to_string())
}

fn open_folder(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn set_opaque(folder: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(folder, c"trusted.overlay.opaque", b"y", XattrFlags::empty())?)
}

fn whiteout(parent: BorrowedFd<'_>, hidden: &[u8]) -> io::Result<()> {
    match hidden {
        // `.wh..wh.*` is aufs' own bookkeeping (plnk, aufs, orph).
        hidden if hidden.starts_with(WHITEOUT) => Ok(()),
        b"" | b"." | b".." => Err(refuse("a whiteout of nothing")),
        hidden => match look(parent, hidden)? {
            There::Nothing => make_whiteout(parent, hidden),
            There::Folder => set_opaque(&open_folder(parent, hidden)?),
            There::Whiteout | There::Something => Ok(()),
        },
    }
}

fn make_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mknodat(parent, name, rustix::fs::FileType::CharacterDevice, Mode::empty(), 0)?)
}

fn symlink(entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    if entry.link.is_empty() || entry.link.len() > PATH_BYTES {
        return Err(refuse("bad symbolic link target"));
    }
    rustix::fs::symlinkat(entry.link.as_slice(), parent, name)?;
    let (uid, gid) = owner(entry);
    rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner, mode and times of a node that was just made under `name` and cannot be opened (a FIFO would block).
fn node_attributes(entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let (uid, gid) = owner(entry);
    rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    Ok(rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner, then mode (a chown clears setuid), then xattrs (a chown clears capabilities).
fn attributes(entry: &Entry, fd: BorrowedFd<'_>) -> io::Result<()> {
    let (uid, gid) = owner(entry);
    rustix::fs::fchown(fd, uid, gid)?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| keeps_xattr(name)) {
        match rustix::fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
            Err(Errno::NOTSUP) => tracing::debug!(name, "the file system takes no such attribute"),
            other => other?,
        }
    }
    Ok(())
}

/// Overlay's own attributes could redirect a folder into another image's layers; they are never taken.
fn keeps_xattr(name: &str) -> bool {
    name == "security.capability" || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

/// The largest id means "leave it" to chown; no file has it.
fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    let valid = |id: u32| (id != u32::MAX).then_some(id);
    (valid(entry.uid).map(Uid::from_raw), valid(entry.gid).map(Gid::from_raw))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}
