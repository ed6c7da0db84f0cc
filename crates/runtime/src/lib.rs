//! OCI containers: one shim a pod, create, start, exec, attach, kill, delete; one state machine a container.
//!
//! Deliberately not here: images (`image`), addresses (`net`), Kubernetes (`agent`).

pub mod api;
pub mod oci;
