//! The kinds and field facts of Kubernetes: one table that serves validation, patches, discovery and OpenAPI.
//!
//! Invariants: no I/O; built-in rows are data made at build time from the doc-free tables in `specs/`.
//! Deliberately not here: behaviour (defaults that need code, validation, strategies): `machinery::kinds`.

pub mod gates;
pub mod gvr;
mod order;
pub mod proto;
mod table;
mod types;
mod view;

pub use gates::Gates;
pub use order::{compare_groups, compare_versions};
pub use table::{TABLE_HASH, def, def_by_name, defs, groups, resource, resource_for_kind, resources};
pub use types::{
    Def, DefRef, Field, Gvr, Held, ListType, MadeLater, PatchStrategy, ResourceRow, Subresource, Type,
};
pub use view::View;
