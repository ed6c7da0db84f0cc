//! Pure API machinery: selectors, patches, schema walks, defaulting, validation, tables, Status errors.
//!
//! Invariants: no I/O, no clock, no random, no async; nothing panics on any input.
//! Deliberately not here: the kinds' field facts (`k8s-schema`), HTTP (`apiserver`).

#![deny(missing_docs)]

pub mod apply;
pub mod body;
pub mod cel;
pub mod convert;
pub mod crd;
pub mod field_errors;
pub mod intstr;
pub mod kinds;
pub mod name;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod quota;
mod schema;
pub mod selector;
pub mod status;
pub mod table;
#[cfg(test)]
mod testing;
pub mod time;
pub mod usage;
pub mod walk;
pub mod yaml;
pub mod zpages;
