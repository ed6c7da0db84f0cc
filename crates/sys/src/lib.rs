//! Safe, typed Linux: what neither std nor `rustix` offers. The only crate with `unsafe`.
//!
//! Invariants: every function here is safe to call with any arguments; every `unsafe` block says why it is
//! sound; every fd that is returned is close-on-exec.
//! Deliberately not here: policy (which namespaces, which limits), anything that `rustix` wraps already.

#![deny(missing_docs)]
#![expect(unsafe_code, reason = "this is the crate that keeps it out of all others")]

pub mod bpf;
pub mod caps;
pub mod fdpass;
pub mod memory;
pub mod mount;
pub mod netlink;
pub mod process;
pub mod seccomp;

pub use rustix;
