//! Streams to a process in a container, for whoever serves exec and attach. Data flows through the descriptors
//! only; the shim is not in its way.

use std::os::fd::{AsFd, OwnedFd};
use tokio::sync::oneshot;

/// Exit code of an exec whose pod died under it.
const LOST: i32 = 137;

/// A program that was started in a container.
///
/// With a terminal, `stdin` and `stdout` are both its master; a read that fails with `EIO` is its end. Without,
/// they are pipes. Dropping the session closes them and leaves the program running (a terminal hangs up).
#[derive(Debug)]
pub struct ExecSession {
    /// Write end; close it to end the program's input.
    pub stdin: Option<OwnedFd>,
    /// Read end.
    pub stdout: Option<OwnedFd>,
    /// Read end; never with a terminal.
    pub stderr: Option<OwnedFd>,
    pub(super) master: Option<OwnedFd>,
    pub(super) exit: oneshot::Receiver<i32>,
    pub(super) code: Option<i32>,
    pub(super) number: u64,
}

impl ExecSession {
    /// Sets the terminal's size in characters; without a terminal, nothing.
    pub fn resize(&self, width: u16, height: u16) {
        if let Some(master) = &self.master {
            crate::init::terminal::resize(master.as_fd(), width, height);
        }
    }

    /// The exit code (128 + signal when killed by one), once the program has ended. May be called again.
    pub async fn wait(&mut self) -> i32 {
        if let Some(code) = self.code {
            return code;
        }
        let code = (&mut self.exit).await.unwrap_or(LOST);
        self.code = Some(code);
        code
    }
}

/// A live copy of a container's output, from now on. Ends of file are the container's end.
#[derive(Debug)]
pub struct AttachSession {
    /// To the container's stdin, where it has one and it was asked for. With a terminal: its master (also for
    /// several clients at once).
    pub stdin: Option<OwnedFd>,
    /// Read end.
    pub stdout: OwnedFd,
    /// Read end; `None` with a terminal.
    pub stderr: Option<OwnedFd>,
    /// The container has a terminal.
    pub tty: bool,
}
