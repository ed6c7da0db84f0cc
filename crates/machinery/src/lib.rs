//! Pure API machinery: selectors, patches, schema walks, defaulting, validation, tables, Status errors.
//!
//! Invariants: no I/O, no clock, no random, no async; nothing panics on any input.
//! Deliberately not here: the kinds' field facts (`k8s-schema`), HTTP (`apiserver`).

pub mod field_errors;
pub mod intstr;
pub mod name;
pub mod quantity;
pub mod selector;
pub mod status;
pub mod time;
