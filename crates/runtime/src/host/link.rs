//! A connection to one shim: requests with their answers, and what the shim says by itself.

use crate::error::RuntimeError;
use crate::init::RUN_STEP;
use crate::proto::{Answer, MESSAGE_MAX, Message, Op, Request};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use sys::rustix::fs::{CWD, Mode, OFlags, openat};
use sys::rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// An answer with its descriptors; for an exec also the receiver of its exit code.
#[derive(Debug)]
pub(super) struct Reply {
    pub answer: Answer,
    pub fds: Vec<OwnedFd>,
    pub exit: Option<oneshot::Receiver<i32>>,
}

type Waiter = oneshot::Sender<Result<Reply, RuntimeError>>;

#[derive(Debug)]
pub(super) struct Link {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Waiter>>,
    execs: Mutex<BTreeMap<u64, oneshot::Sender<i32>>>,
}

impl Link {
    /// Takes over a connected, non-blocking socket.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: super::async_fd(socket)?,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            execs: Mutex::default(),
        })
    }

    /// Connects to the shim of the pod whose state folder this is.
    pub(super) fn connect(dir: &Path) -> io::Result<Self> {
        let folder = openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &crate::shim::address(folder.as_fd())?)?;
        Self::new(socket)
    }

    /// Sends a request and waits for its answer. No time limit: the shim's end is an answer too.
    pub(super) async fn call(&self, op: Op) -> Result<Reply, RuntimeError> {
        self.call_with(op, &[]).await
    }

    /// The same with descriptors.
    pub(super) async fn call_with(&self, op: Op, fds: &[OwnedFd]) -> Result<Reply, RuntimeError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let bytes = serde_json::to_vec(&Request { id, op }).expect("requests have a JSON form");
        if bytes.len() > MESSAGE_MAX {
            return Err(RuntimeError::TooLong);
        }
        let (tx, rx) = oneshot::channel();
        self.waiting.lock().insert(id, tx);
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let send = |fd: &OwnedFd| sys::fdpass::send(fd.as_fd(), &bytes, &fds);
        if self.socket.async_io(Interest::WRITABLE, send).await.is_err() {
            self.waiting.lock().remove(&id);
            return Err(RuntimeError::Gone);
        }
        rx.await.unwrap_or(Err(RuntimeError::Gone))
    }

    /// The next thing that the shim says by itself; answers are passed on to their callers. `None`: it is gone.
    pub(super) async fn next(&self) -> Option<Message> {
        loop {
            let receive = |fd: &OwnedFd| {
                let mut buffer = vec![0; MESSAGE_MAX];
                let (n, fds) = sys::fdpass::receive(fd.as_fd(), &mut buffer)?;
                buffer.truncate(n);
                Ok((buffer, fds))
            };
            let (bytes, fds) = self.socket.async_io(Interest::READABLE, receive).await.ok()?;
            if bytes.is_empty() {
                return None;
            }
            match serde_json::from_slice::<Message>(&bytes) {
                Ok(Message::Done { id, answer }) => self.done(id, answer, fds),
                Ok(Message::Failed { id, step, error }) => {
                    let failure = if step == RUN_STEP {
                        RuntimeError::Start(error)
                    } else {
                        RuntimeError::Shim { step, error }
                    };
                    if let Some(waiter) = self.waiting.lock().remove(&id) {
                        let _ = waiter.send(Err(failure));
                    }
                }
                Ok(Message::ExecExited { exec, code }) => {
                    if let Some(waiter) = self.execs.lock().remove(&exec) {
                        let _ = waiter.send(code);
                    }
                }
                Ok(other) => return Some(other),
                // A newer shim may say what this runtime does not know.
                Err(error) => tracing::warn!(%error, "unknown message from a shim"),
            }
        }
    }

    fn done(&self, id: u64, answer: Answer, fds: Vec<OwnedFd>) {
        let Some(waiter) = self.waiting.lock().remove(&id) else { return };
        let exit = match answer {
            // Registered here, in the order of the socket: the exit may be the very next message.
            Answer::Exec(exec) => {
                let (tx, rx) = oneshot::channel();
                self.execs.lock().insert(exec, tx);
                Some(rx)
            }
            _ => None,
        };
        let _ = waiter.send(Ok(Reply { answer, fds, exit }));
    }

    /// Nobody will answer any more.
    pub(super) fn abandon(&self) {
        self.waiting.lock().clear();
        self.execs.lock().clear();
    }
}
