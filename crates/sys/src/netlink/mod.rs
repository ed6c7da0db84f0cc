//! Raw netlink: a socket with typed errors, and an encoder and decoder of messages and attributes.
//!
//! Reads and writes: kernel sockets of family `AF_NETLINK` in the namespace they were opened in, for ever.
//! Invariants: every request is acknowledged or fails with the kernel's own number and text; a dump that
//! the kernel says was torn is taken again; nothing waits longer than [`RECEIVE_TIMEOUT`].
//! Deliberately not here: what the messages mean (crate `net`), multicast groups, async (calls take
//! microseconds; callers on an async runtime use a blocking thread).

mod codec;
mod socket;

pub use codec::{Attrs, Message, Reply, attrs, be16, be32, ne16, ne32};
pub use socket::{NetlinkError, Protocol, RECEIVE_TIMEOUT, Socket, in_netns, new_netns};

/// Request flags (`linux/netlink.h`).
pub mod flags {
    /// The message is a request.
    pub const REQUEST: u16 = 0x1;
    /// Answer with an acknowledgement, also on success.
    pub const ACK: u16 = 0x4;
    /// Return the whole table.
    pub const DUMP: u16 = 0x300;
    /// Replace an existing object.
    pub const REPLACE: u16 = 0x100;
    /// Fail if the object exists.
    pub const EXCL: u16 = 0x200;
    /// Create the object if it does not exist.
    pub const CREATE: u16 = 0x400;
    /// Add to the end of a list.
    pub const APPEND: u16 = 0x800;
}
