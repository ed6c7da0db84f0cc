//! Test tools: whole instances in namespaces of their own, and images made from what the machine has.
//!
//! Invariants: whatever is made here is gone when its value is dropped. Deliberately not here: assertions
//! about Kubernetes, which belong to the tests.

pub mod cluster;
pub mod debian;
pub mod image;
