//! The one door to the API for Gantry's own components: the [`Client`] trait, shared objects and caches.
//!
//! Two real implementations: in process (`apiserver`'s: shared `Arc<Object>`, no TLS, no JSON on the way,
//! the same authentication, authorization and admission as everybody) and [`remote`] (HTTPS).
//! Deliberately not here: any private way to the store.

mod api;
pub mod cache;
pub mod events;
pub mod metrics;
mod object;
pub mod queue;
pub mod remote;
pub mod work;

pub use api::{
    ApiClient, Client, DeleteOptions, Event, EventKind, EventStream, ListOptions, ObjectList, PatchKind,
    Propagation, Verb, WatchOptions, Write,
};
pub use object::{Meta, Object, ObjectKey, OwnerRef};
