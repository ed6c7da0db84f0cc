//! The node agent: desired pods + what is observed + now → actions; probes, volumes, logs, status.
//!
//! Pure: [`pod`], [`state`], [`decide`], [`status`]. Shells: everything else.
//! Invariants: the agent knows Pods only; it may die at any time and re-adopts what runs when it comes back.
//! Deliberately not here: running containers (`runtime`), images (`image`), addresses (`net`).

pub mod config;
pub mod decide;
pub mod facts;
pub mod pod;
pub mod state;
pub mod status;
