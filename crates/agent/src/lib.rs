//! The node agent: desired pods + what is observed + now → actions; probes, volumes, logs, status.
//!
//! Pure: [`pod`], [`state`], [`decide`], [`status`], [`config`]. Shells: everything else; `worker` drives them.
//! Invariants: the agent knows Pods only; it may die at any time and re-adopts what runs when it comes back.
//! Deliberately not here: running containers (`runtime`), images (`image`), addresses (`net`).

pub mod admit;
mod agent;
mod backend;
mod claims;
pub mod config;
pub mod cpus;
pub mod csi;
pub mod decide;
pub mod devices;
mod dra;
mod events;
pub mod eviction;
pub mod facts;
mod images;
mod inbox;
pub mod logging;
mod node;
pub mod nodeapi;
mod objects;
mod ops;
pub mod pod;
mod probes;
pub mod services;
pub mod shutdown;
pub mod state;
mod statics;
mod stats;
pub mod status;
mod stream;
pub mod taskmeta;
pub mod volumes;
mod worker;

pub use agent::{Agent, AgentConfig, AgentError, Capacity};
pub use node::register;
