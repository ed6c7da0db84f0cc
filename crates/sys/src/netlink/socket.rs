//! A blocking netlink socket: requests with acknowledgements, dumps, atomic netfilter batches.
//!
//! Invariants: sequence numbers pair every answer with its request, strays are skipped; a socket stays in
//! the network namespace it was opened in, whatever its user does later.
//! Deliberately not here: retries of failed requests (the caller knows whether they make sense).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size_force, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, sendto, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::codec::{Attrs, HEADER, Message, Reply, attrs, ne32, replies};
use super::flags;

/// How long one answer may take. The kernel answers in microseconds; a removal of many links in seconds.
pub const RECEIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Dumps the kernel marks as torn by a concurrent change are repeated at most this often.
const DUMP_ATTEMPTS: u32 = 8;
/// One receive; the kernel fills at most 32 KiB of a dump at a time, batches of errors fit too.
const RECEIVE_BUFFER: usize = 128 * 1024;
/// Slack on top of a batch's length, for the kernel's own bookkeeping in the send buffer.
const SEND_SLACK: usize = 64 * 1024;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// What can go wrong on a netlink socket, by step.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be made (or its namespace not entered).
    #[error("opening a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The request could not be sent.
    #[error("sending to netlink: {0}")]
    Send(#[source] io::Error),
    /// The answer could not be received in time.
    #[error("receiving from netlink: {0}")]
    Receive(#[source] io::Error),
    /// The kernel refused message number `index` (0-based) of the request.
    #[error("the kernel refused netlink message {index} (type {kind:#x}): {} {text}", io::Error::from_raw_os_error(*.errno))]
    Kernel {
        /// Which message of the request, from 0.
        index: usize,
        /// Its `nlmsg_type`.
        kind: u16,
        /// The error number, positive.
        errno: i32,
        /// The kernel's explanation, often empty.
        text: String,
    },
    /// A dump kept being torn by concurrent changes.
    #[error("a netlink dump was interrupted {DUMP_ATTEMPTS} times")]
    Interrupted,
}

impl NetlinkError {
    /// The kernel's error number, if the kernel refused the request.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// The kernel subsystem a socket talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, routes, neighbours.
    Route,
    /// nftables and connection tracking.
    Netfilter,
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    seq: u32,
    buffer: Vec<u8>,
}

/// Runs `work` on a fresh thread inside the network namespace `ns`; the thread ends with it, so that no
/// other code ever sees the foreign namespace.
///
/// # Errors
/// The namespace cannot be entered, or no thread can be made.
pub fn in_netns<T: Send>(ns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            move_into_link_name_space(ns, Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes a new, empty network namespace; it lives as long as the returned descriptor (or a bind mount of it).
///
/// # Errors
/// No right to make namespaces, or no more room for them.
pub fn new_netns() -> io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            unshare_net()?;
            std::fs::File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
        })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open(protocol: Protocol) -> Result<Self, NetlinkError> {
        Self::create(protocol).map_err(NetlinkError::Open)
    }

    /// Opens a socket in the network namespace that `ns` refers to.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open_in(ns: BorrowedFd<'_>, protocol: Protocol) -> Result<Self, NetlinkError> {
        in_netns(ns, || Self::create(protocol)).and_then(|made| made).map_err(NetlinkError::Open)
    }

    fn create(protocol: Protocol) -> io::Result<Self> {
        let kind = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(NETFILTER),
        };
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, kind)?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(RECEIVE_TIMEOUT))?;
        // Short acknowledgements with the kernel's explanation; old kernels know neither, which is fine.
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
            let _ = set_flag(fd.as_fd(), option);
        }
        Ok(Self { fd, seq: 1, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Sends all messages in one go; the kernel works through them in order and does not stop at a failure.
    ///
    /// # Errors
    /// The first failure, with the index of its message.
    pub fn request(&mut self, messages: &[Message]) -> Result<(), NetlinkError> {
        self.exchange(messages).map(|_| ())
    }

    /// Sends one message and returns what the kernel answers before its acknowledgement.
    ///
    /// # Errors
    /// As [`Socket::request`].
    pub fn query(&mut self, message: &Message) -> Result<Vec<Reply>, NetlinkError> {
        self.exchange(std::slice::from_ref(message))
    }

    fn exchange(&mut self, messages: &[Message]) -> Result<Vec<Reply>, NetlinkError> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.seq;
        let mut wire = Vec::new();
        for message in messages {
            message.write(&mut wire, flags::REQUEST | flags::ACK, self.next_seq());
        }
        self.send(&wire)?;
        let (mut data, mut failure, mut pending) = (Vec::new(), None, messages.len());
        while pending > 0 {
            for reply in self.receive()? {
                let index = reply.seq.wrapping_sub(first) as usize;
                if index >= messages.len() {
                    continue;
                }
                if reply.kind != NLMSG_ERROR {
                    data.push(reply);
                    continue;
                }
                pending -= 1;
                if let Err(error) = acknowledged(&reply, index, messages[index].kind) {
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(data), Err)
    }

    /// Returns a whole table.
    ///
    /// # Errors
    /// The kernel's refusal, or [`NetlinkError::Interrupted`] if it never stood still.
    pub fn dump(&mut self, message: &Message) -> Result<Vec<Reply>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(table) = self.dump_once(message)? {
                return Ok(table);
            }
        }
        Err(NetlinkError::Interrupted)
    }

    fn dump_once(&mut self, message: &Message) -> Result<Option<Vec<Reply>>, NetlinkError> {
        let seq = self.next_seq();
        let mut wire = Vec::new();
        message.write(&mut wire, flags::REQUEST | flags::DUMP, seq);
        self.send(&wire)?;
        let (mut table, mut torn) = (Vec::new(), false);
        loop {
            for reply in self.receive()?.into_iter().filter(|reply| reply.seq == seq) {
                torn |= reply.flags & NLM_F_DUMP_INTR != 0;
                match reply.kind {
                    NLMSG_DONE => return Ok((!torn).then_some(table)),
                    NLMSG_ERROR => {
                        acknowledged(&reply, 0, message.kind)?;
                        return Ok((!torn).then_some(table));
                    }
                    _ => table.push(reply),
                }
            }
        }
    }

    /// Applies netfilter messages of one subsystem as one transaction: all of them or none.
    ///
    /// # Errors
    /// The first refusal; nothing was applied then.
    pub fn transact(&mut self, subsystem: u16, messages: &[Message]) -> Result<(), NetlinkError> {
        let Some(last) = messages.len().checked_sub(1) else { return Ok(()) };
        let header = {
            let id = subsystem.to_be_bytes();
            [0, 0, id[0], id[1]]
        };
        let begin = self.next_seq();
        let mut wire = Vec::new();
        Message::new(BATCH_BEGIN, 0, &header, Attrs::new()).write(&mut wire, flags::REQUEST, begin);
        for (index, message) in messages.iter().enumerate() {
            // Only the last is acknowledged on success; failures are always reported, each with its number.
            let ack = if index == last { flags::ACK } else { 0 };
            let seq = self.next_seq();
            message.write(&mut wire, flags::REQUEST | ack, seq);
        }
        let end = self.next_seq();
        Message::new(BATCH_END, 0, &header, Attrs::new()).write(&mut wire, flags::REQUEST, end);
        // The whole transaction must be one datagram. Needs CAP_NET_ADMIN, as the batch itself does.
        set_socket_send_buffer_size_force(&self.fd, wire.len() + SEND_SLACK)
            .map_err(|e| NetlinkError::Send(e.into()))?;
        self.send(&wire)?;
        self.batch_result(begin, messages)
    }

    fn batch_result(&mut self, begin: u32, messages: &[Message]) -> Result<(), NetlinkError> {
        let mut failure = None;
        loop {
            for reply in self.receive()?.into_iter().filter(|reply| reply.kind == NLMSG_ERROR) {
                let offset = reply.seq.wrapping_sub(begin) as usize;
                if offset > messages.len() + 1 {
                    continue;
                }
                let index = offset.saturating_sub(1).min(messages.len() - 1);
                if let Err(error) = acknowledged(&reply, index, messages[index].kind) {
                    failure.get_or_insert(error);
                }
                // A refused begin or end answers alone; the last message answers in any case.
                if offset == 0 || offset >= messages.len() {
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn next_seq(&mut self) -> u32 {
        let seq = self.seq;
        self.seq = self.seq.wrapping_add(1);
        seq
    }

    fn send(&self, wire: &[u8]) -> Result<(), NetlinkError> {
        sendto(&self.fd, wire, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))
            .map(|_| ())
            .map_err(|e| NetlinkError::Send(e.into()))
    }

    fn receive(&mut self) -> Result<Vec<Reply>, NetlinkError> {
        loop {
            match recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((len, _)) => return Ok(replies(&self.buffer[..len])),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(NetlinkError::Receive(error.into())),
            }
        }
    }
}

/// Reads an `NLMSG_ERROR`: `Ok` when it is a plain acknowledgement.
fn acknowledged(reply: &Reply, index: usize, kind: u16) -> Result<(), NetlinkError> {
    let code = ne32(&reply.body).cast_signed();
    if code == 0 {
        return Ok(());
    }
    let echoed = if reply.flags & NLM_F_CAPPED != 0 {
        HEADER
    } else {
        ne32(reply.body.get(4..).unwrap_or_default()) as usize
    };
    let mut text = String::new();
    if reply.flags & NLM_F_ACK_TLVS != 0 {
        let tail = reply.body.get(4 + ((echoed + 3) & !3)..).unwrap_or_default();
        if let Some((_, value)) = attrs(tail).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG) {
            text = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
        }
    }
    Err(NetlinkError::Kernel { index, kind, errno: code.wrapping_neg(), text })
}

#[expect(unsafe_code, reason = "leaving a namespace is only sound on a thread that owns no shared state")]
fn unshare_net() -> io::Result<()> {
    // SAFETY: only the network namespace of this fresh thread changes; no descriptor table is unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.map_err(Into::into)
}

#[expect(unsafe_code, reason = "rustix has no wrapper for these two socket options")]
fn set_flag(fd: BorrowedFd<'_>, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and length describe `on`, which outlives the call; the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTM_GETLINK: u16 = 18;

    #[test]
    fn dumps_links_and_reports_refusals() {
        let mut socket = Socket::open(Protocol::Route).unwrap();
        let header = [0; 16];
        let links = socket.dump(&Message::new(RTM_GETLINK, 0, &header, Attrs::new())).unwrap();
        assert!(links.iter().any(|link| link.attrs(16).any(|attr| attr == (3, b"lo\0"))));

        let query = Message::new(RTM_GETLINK, 0, &header, Attrs::new().str(3, "gt-no-such"));
        assert_eq!(socket.query(&query).unwrap_err().errno(), Some(libc::ENODEV));
        // Strays of the failed query do not disturb the next request.
        let query = Message::new(RTM_GETLINK, 0, &header, Attrs::new().str(3, "lo"));
        assert_eq!(socket.query(&query).unwrap().len(), 1);
    }

    #[test]
    fn index_names_the_refused_message() {
        let mut socket = Socket::open(Protocol::Route).unwrap();
        let ask = |name| Message::new(RTM_GETLINK, 0, &[0; 16], Attrs::new().str(3, name));
        let error = socket.request(&[ask("lo"), ask("gt-no-such"), ask("lo")]).unwrap_err();
        assert!(matches!(error, NetlinkError::Kernel { index: 1, .. }), "{error}");
    }
}
