//! The scheduler's decision: given nodes with what runs on them and pods that wait, which pod goes where.
//!
//! Reads typed views through [`PodInfo::read`] and [`NodeSpec::read`]; yields a [`Plan`]. Filters and scores are
//! rows of two tables ([`filter::FILTERS`], [`score::SCORES`]); their words are upstream's. Which of them count, and how
//! much, is a [`Profile`]'s matter.
//!
//! Invariants: no I/O, clock, random or async; the same snapshot and pods in the same order yield the same plan;
//! a plan never overcommits a node, because each placement is assumed before the next pod is looked at.
//! A pod that fits nowhere may push less important ones out ([`Preemption`]); the plan says which, nothing is done here.
//! Deliberately not here: the queue, binding, deleting and events (`controllers`).

pub mod config;
mod contexts;
pub mod dra;
mod explain;
pub mod extend;
mod filter;
mod groups;
mod interpod;
mod model;
mod nominations;
mod preempt;
mod profile;
mod ratings;
mod resources;
mod schedule;
mod score;
mod terms;
#[cfg(test)]
mod tests;
mod trial;
pub mod volumes;

pub use explain::{Explanation, Verdict, explain};
pub use groups::{Group, Groups, Verdict as GroupVerdict};
pub use model::{NodeInfo, NodeSpec, PodId, PodInfo, Snapshot, Taint, covers};
pub use preempt::{Budget, Preemption};
pub use profile::{DEFAULT_NAME, DENSITY_NAME, Profile, Profiles};
pub use resources::{Basis, Resources, of_placed, of_pod};
pub use schedule::{Diagnosis, Plan, Rescue, schedule};
