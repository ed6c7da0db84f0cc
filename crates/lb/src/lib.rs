//! The load-balancer data plane: L4 and L7 listeners whose configuration is a value.
//!
//! A [`Config`] names listeners, rules and target groups; [`Balancer::apply`] compares it with what runs and changes
//! only the difference: a connection whose listener stays is never cut by another change. Routing, balancing and
//! health are pure (`route`, `balance`, `health`); sockets stand in `serve`, `http`, `relay` and `check`.
//! Deliberately not here: the AWS and Kubernetes objects that a configuration is made from.

mod balance;
mod check;
pub mod config;
mod forward;
mod headers;
pub mod health;
mod relay;
pub mod route;
mod serve;
mod state;
mod tls;
mod udp;

pub use config::Config;
pub use serve::{Balancer, ListenError};
pub use state::TargetHealth;

/// Longest wait for a connection to a target; ALB's own.
pub const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);
/// Longest wait for a request's head, so that slow senders hold no connection for ever.
pub const HEAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);
/// Bytes of a request's head; ALB allows 60 KiB for all headers.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Header lines of a request; ALB's limit.
pub const MAX_HEADERS: usize = 100;
/// Connections of one listener at a time: what 24 GiB bear at some 64 KiB each with room for the rest.
pub const MAX_CONNECTIONS: usize = 65_536;
/// Other targets tried after a target refuses the connection, for requests without a body.
pub const CONNECT_ATTEMPTS: usize = 3;
