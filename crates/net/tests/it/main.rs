//! The network against the real kernel. Every test makes its own namespaces: a node, an outside host and
//! pods; all of them end with their descriptors.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod lab;
mod links;
mod service;
mod tunnel;
