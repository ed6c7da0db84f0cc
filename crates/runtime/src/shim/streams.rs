//! A container's output on its way to the log and to attached clients.
//!
//! Invariant: memory is bounded. A client that does not read holds its container's output back (as a terminal
//! would), and is let go after [`STALL_MAX`]; nothing is dropped for a client that reads.

use super::log::{Framer, Log};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use sys::rustix::io::{Errno, read, write};
use sys::rustix::pipe::{PipeFlags, pipe_with};

/// How long a client may stop reading before it is let go.
pub(super) const STALL_MAX: Duration = Duration::from_secs(10);

pub(super) fn nonblocking(fd: BorrowedFd<'_>) {
    if let Ok(flags) = fcntl_getfl(fd) {
        let _ = fcntl_setfl(fd, flags | OFlags::NONBLOCK);
    }
}

/// A close-on-exec pipe: (read end, write end).
pub(super) fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// One output of a container.
#[derive(Debug)]
pub(super) struct Stream {
    /// `stdout` or `stderr`.
    pub name: &'static str,
    pub fd: OwnedFd,
    framer: Framer,
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Got {
    Bytes(usize),
    NothingNow,
    End,
}

impl Stream {
    pub(super) fn new(name: &'static str, fd: OwnedFd) -> Self {
        nonblocking(fd.as_fd());
        Self { name, fd, framer: Framer::default() }
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> Got {
        loop {
            return match read(&self.fd, &mut *buffer) {
                Ok(0) => Got::End,
                Ok(n) => Got::Bytes(n),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Got::NothingNow,
                Err(_) => Got::End, // EIO: the terminal's last slave is closed.
            };
        }
    }

    pub(super) fn log(&mut self, log: &mut Log, data: &[u8], now_ns: i64) {
        log.push(&mut self.framer, self.name, data, now_ns);
    }

    pub(super) fn finish(&mut self, log: &mut Log, now_ns: i64) {
        log.finish(&mut self.framer, self.name, now_ns);
    }
}

/// One pipe to an attached client.
#[derive(Debug)]
pub(super) struct Follower {
    /// The stream that it follows.
    pub name: &'static str,
    pub fd: OwnedFd,
    pending: Vec<u8>,
    stalled: Option<Instant>,
}

impl Follower {
    pub(super) fn new(name: &'static str, fd: OwnedFd) -> Self {
        nonblocking(fd.as_fd());
        Self { name, fd, pending: Vec::new(), stalled: None }
    }

    /// Still owes its client something.
    pub(super) fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Passes data on; `false` when the client is gone or has stalled for too long.
    pub(super) fn push(&mut self, data: &[u8]) -> bool {
        self.pending.extend_from_slice(data);
        self.flush()
    }

    /// Looks after the pipe: `false` when the client has closed its end, or as [`Follower::push`].
    pub(super) fn tend(&mut self) -> bool {
        use sys::rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let gone = fds[0].revents().contains(PollFlags::ERR);
        !gone && self.flush()
    }

    /// Passes on what is pending.
    fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match write(&self.fd, &self.pending) {
                Ok(n) => {
                    self.pending.drain(..n);
                    self.stalled = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    return self.stalled.get_or_insert_with(Instant::now).elapsed() < STALL_MAX;
                }
                Err(_) => return false,
            }
        }
        self.pending = Vec::new();
        true
    }
}
