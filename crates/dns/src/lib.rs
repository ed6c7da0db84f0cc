//! Cluster DNS: a pure answer function over a zone snapshot, and a server that forwards the rest.
//!
//! Reads: queries, a [`Zone`] value from a watch channel. Writes: replies, questions to upstream resolvers.
//! Invariants: [`answer`] has no I/O and survives any bytes; a name of the cluster never leaves the node and
//! is never refused; every queue, cache and wait has a bound.
//! Deliberately not here: DNSSEC, zone transfers, IPv6 records (names that exist answer "no data"), watching
//! Kubernetes objects (the caller makes zones).

#![deny(missing_docs)]

mod answer;
mod cache;
mod forward;
mod message;
mod name;
mod server;
mod zone;

pub use answer::{Action, Chase, Transport, answer};
pub use forward::upstreams_from;
pub use name::Name;
pub use server::{Metrics, Server};
pub use zone::{EndpointRecord, ExtraRecord, ExtraZone, PortRecord, ServiceKind, ServiceRecord, Zone};
