//! `subPath` without races: the path is walked by the kernel below the volume's root and held open as a descriptor,
//! so no link that a container plants can lead outside (CVE-2017-1002101, CVE-2021-25741).

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

/// What a new folder takes over of the volume's mode: who may do what, who may remove, and whose group new files get.
const MODE_TAKEN: u32 = 0o3777;
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// A link that leads out of the volume is refused, as upstream does, even where it could be read as one inside.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);

/// Opens (`O_PATH`) what is at `below` in `volume`; makes folders where nothing is, if `create`: open to the same users
/// as the volume.
pub fn open(volume: &Path, below: &Path, create: bool) -> Result<OwnedFd, String> {
    let fail =
        |e: Errno| format!("failed to prepare subPath {:?}: {}", below.display(), std::io::Error::from(e));
    let root = openat(CWD, volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(fail)?;
    match openat2(&root, below, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH) {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) if create => {}
        Err(e) => return Err(fail(e)),
    }
    let mode = Mode::from_raw_mode(fstat(&root).map_err(fail)?.st_mode & MODE_TAKEN);
    let mut walked = std::path::PathBuf::new();
    let mut parent = root.try_clone().map_err(|e| format!("failed to prepare subPath: {e}"))?;
    for part in below.components() {
        let Component::Normal(name) = part else { continue };
        let name: &OsStr = name;
        walked.push(name);
        match openat2(&root, &walked, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH) {
            Ok(fd) => parent = fd,
            Err(Errno::NOENT) => {
                make(&parent, name, mode).map_err(fail)?;
                parent = openat2(&root, &walked, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH)
                    .map_err(fail)?;
            }
            Err(e) => return Err(fail(e)),
        }
    }
    Ok(parent)
}

fn make(parent: &OwnedFd, name: &OsStr, mode: Mode) -> Result<(), Errno> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(e) => return Err(e),
    }
    // Apart, because of the umask; no link is followed, so what is changed is in the volume.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fchmod(openat(parent, name, flags, Mode::empty())?, mode)
}

/// Reads a small file below a root, links resolved inside the root. `None`: not there, or too large.
pub fn read_text(root: &Path, below: &str, max: u64) -> Option<String> {
    use std::io::Read;
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = std::fs::File::from(openat2(&root, below, flags, Mode::empty(), INSIDE).ok()?);
    let meta = file.metadata().ok()?;
    if !meta.is_file() || meta.len() > max {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
