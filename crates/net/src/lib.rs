//! The pod network of one node: routed point-to-point veths, a tunnel to other nodes, services as flat nftables
//! maps, netlink only.
//!
//! Reads and writes: links, addresses, routes, neighbours, one nftables table, `ip_forward`; all of it in the
//! network namespace of the caller, all of it named after the configured prefix, so that [`teardown`] finds
//! it with nothing else running.
//! Invariants: what is on the node (links with their alias, the table) is the only record; memory is rebuilt
//! from it. Compute, diff and apply are separate functions. Calls block for microseconds to milliseconds.
//! Deliberately not here: IPv6, network policy (it comes later, as a module beside `services`), making network namespaces, knowledge of Kubernetes objects.

#![deny(missing_docs)]

mod addr;
mod base;
mod conntrack;
mod doctor;
mod nft;
mod node;
mod pods;
mod pool;
mod rt;
mod services;
mod teardown;
mod tunnel;

pub use addr::{BadRange, Ipv4Net, Protocol};
pub use doctor::{Conflict, Finding, doctor, overlaps};
pub use node::{Applied, NetConfig, NetError, Network};
pub use pods::{PodNet, Recovered};
pub use services::{
    Change, Element, Endpoint, Front, Group, HostPort, Ruleset, ServicePort, Target, View, desired, diff,
};
pub use teardown::{Removed, teardown};
pub use tunnel::Peer;
