//! The way to registries elsewhere: names, connections, HTTP/1.1 with TLS, and who we are there.
//!
//! Invariants: every wait has an end; no credential goes to another host than the one it is for, nor in the clear
//! where the registry itself is encrypted; what comes back is bounded by the caller.

pub(crate) mod auth;
pub(crate) mod http;
pub(crate) mod keyring;
mod resolve;
mod send;
pub(crate) mod url;

pub use resolve::resolve;
pub use send::{Outgoing, send};
