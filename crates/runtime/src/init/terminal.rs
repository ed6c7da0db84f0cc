//! Pseudo terminals, made in the container's own devpts.

use super::Failure;
use super::paths;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use sys::rustix::fs::{OFlags, fstatfs};
use sys::rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use sys::rustix::termios::{Winsize, tcsetwinsize};

/// Both ends of a terminal.
#[derive(Debug)]
pub(super) struct Pty {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Opens a new terminal below `root`. Only the real devpts will do (CVE-2025-52565).
pub(super) fn open(root: BorrowedFd<'_>) -> Result<Pty, Failure> {
    let fail = |e| Failure::new("/dev/pts/ptmx", e);
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = paths::open_no_links(root, Path::new("dev/pts/ptmx"), flags).map_err(fail)?;
    if fstatfs(&master).map_err(fail)?.f_type as i64 != DEVPTS_MAGIC {
        return Err(Failure::new(
            "/dev/pts/ptmx is not a terminal multiplexer",
            sys::rustix::io::Errno::NOTTY,
        ));
    }
    unlockpt(&master).map_err(fail)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .map_err(fail)?;
    Ok(Pty { master, slave })
}

/// Sets the size; a terminal that is gone does not mind.
pub(crate) fn resize(master: BorrowedFd<'_>, width: u16, height: u16) {
    let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    let _ = tcsetwinsize(master.as_fd(), size);
}
