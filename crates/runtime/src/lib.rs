//! OCI containers: one shim a pod, create, start, exec, attach, kill, delete; one state machine a container.
//!
//! `host` ([`Runtime`]) lives in the agent (tokio); `shim` is the single-threaded process that owns a pod's
//! namespaces and children; `init` is what a container's first process does before its program; `cgroup` is used
//! by host. They meet in `proto` only.
//!
//! Deliberately not here: images (`image`), addresses (`net`), Kubernetes (`agent`).

#![deny(missing_docs)]

pub mod api;
pub mod cgroup;
mod error;
mod host;
mod init;
pub mod oci;
mod proto;
mod shim;

pub use error::RuntimeError;
pub use host::{AttachSession, ExecSession, Runtime};
pub use shim::shim_main;
