//! gRPC as a node's plug-ins speak it: calls over unix sockets, messages as JSON values, field numbers in tables.
//!
//! A [`Schema`] is read from a doc-free text (`tables/`), so a further protocol is a table and no code. JSON keys are
//! the names of the `.proto` files; what a message does not have is `null`, as proto3 leaves zeros out.
//! Invariants: a call ends by its deadline; an answer has at most [`MESSAGE_BYTES_MAX`] bytes; messages are never
//! logged, since they carry secrets. Deliberately not here: TLS, names, compression, repeating calls (the store's
//! etcd client has its own channel: it must know on which side of "sent" a call failed).

#![deny(missing_docs)]

mod call;
mod relay;
mod schema;
mod serve;
mod stream;

pub use call::{Answer, Call, unary};
pub use relay::relayed;
pub use schema::{Method, Schema};
pub use serve::{Handler, serve};
pub use stream::Stream;

use std::fmt;
use std::sync::LazyLock;

/// Largest message taken: drivers list volumes in pages, everything else is small.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// `csi.v1`: volumes.
pub static CSI: LazyLock<Schema> = LazyLock::new(|| Schema::parse(include_str!("../tables/csi.txt")));
/// `pluginregistration`: how a plug-in says that it is there.
pub static REGISTRATION: LazyLock<Schema> =
    LazyLock::new(|| Schema::parse(include_str!("../tables/registration.txt")));

/// `v1beta1`: device plug-ins.
pub static DEVICES: LazyLock<Schema> = LazyLock::new(|| Schema::parse(include_str!("../tables/devices.txt")));
/// `v1` of the kubelet's pod resources: which pod has which devices.
pub static POD_RESOURCES: LazyLock<Schema> =
    LazyLock::new(|| Schema::parse(include_str!("../tables/podresources.txt")));

/// `dra.v1`: drivers of devices that claims get; and `v1alpha1.DRAResourceHealth`, how these are.
pub static DRA: LazyLock<Schema> = LazyLock::new(|| Schema::parse(include_str!("../tables/dra.txt")));
/// `dra.v1beta1`: the same under its older name.
pub static DRA_BETA: LazyLock<Schema> =
    LazyLock::new(|| Schema::parse(include_str!("../tables/dra.txt")).renamed("dra.v1.", "dra.v1beta1."));

/// gRPC's codes that callers tell apart.
#[expect(missing_docs, reason = "the names are gRPC's")]
pub mod code {
    pub const CANCELLED: u32 = 1;
    pub const UNKNOWN: u32 = 2;
    pub const INVALID_ARGUMENT: u32 = 3;
    pub const DEADLINE_EXCEEDED: u32 = 4;
    pub const NOT_FOUND: u32 = 5;
    pub const ALREADY_EXISTS: u32 = 6;
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    pub const FAILED_PRECONDITION: u32 = 9;
    pub const ABORTED: u32 = 10;
    pub const OUT_OF_RANGE: u32 = 11;
    pub const UNIMPLEMENTED: u32 = 12;
    pub const INTERNAL: u32 = 13;
    pub const UNAVAILABLE: u32 = 14;
}

/// Their names, by number, as Go prints them.
const NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// A call that failed: in the plug-in, or on the way to it ([`code::UNAVAILABLE`], [`code::DEADLINE_EXCEEDED`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Status {
    /// gRPC's code.
    pub code: u32,
    /// The plug-in's words.
    pub message: String,
}

impl Status {
    /// A failure.
    pub fn new(code: u32, message: impl fmt::Display) -> Status {
        Status { code, message: message.to_string() }
    }

    /// Is nothing under way any more? Otherwise the plug-in may still be at it.
    pub fn is_final(&self) -> bool {
        let open = [
            code::CANCELLED,
            code::DEADLINE_EXCEEDED,
            code::UNAVAILABLE,
            code::RESOURCE_EXHAUSTED,
            code::ABORTED,
        ];
        !open.contains(&self.code)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(self.code as usize) {
            Some(name) => write!(f, "rpc error: code = {name} desc = {}", self.message),
            None => write!(f, "rpc error: code = Code({}) desc = {}", self.code, self.message),
        }
    }
}
