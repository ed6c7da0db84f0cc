//! The slice of EC2 that flows around containers need: networks as stored resources, nodes as instances.
//!
//! Deliberately not here: enforcing any of it (security groups, routes), launching instances.

mod kinds;
mod store;

pub use store::Store;
