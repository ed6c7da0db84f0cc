//! The scheduler's decision: given nodes with what runs on them and pods that wait, which pod goes where.
//!
//! Reads typed views through [`PodInfo::read`] and [`NodeSpec::read`]; yields a [`Plan`]. Filters and scores are
//! rows of two tables ([`filter::FILTERS`], [`score::SCORES`]); their words are upstream's.
//!
//! Invariants: no I/O, clock, random or async; the same snapshot and pods in the same order yield the same plan;
//! a plan never overcommits a node, because each placement is assumed before the next pod is looked at.
//! Deliberately not here: the queue, binding and events (`controllers`), preemption (later work).

mod filter;
mod interpod;
mod model;
mod resources;
mod schedule;
mod score;
mod terms;
pub mod volumes;

pub use model::{NodeInfo, NodeSpec, PodId, PodInfo, Snapshot, Taint, covers};
pub use resources::Resources;
pub use schedule::{Diagnosis, Plan, schedule};
