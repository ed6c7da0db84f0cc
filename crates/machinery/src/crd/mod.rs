//! Custom resources: a definition's structural schema compiled once, and what it does to objects.
//!
//! [`Schema`] is compiled from `openAPIV3Schema`; `prune`, `default` and `validate` walk it together with a value;
//! [`rules`] runs `x-kubernetes-validations`; [`body`] makes the table definition that patches and server-side apply read;
//! [`columns`] renders printer columns.
//! Whether a definition itself is right is `kinds::crd`'s; the expression language is `cel`'s;
//! discovery, storage and conversion by webhook are the API server's.

pub mod body;
pub mod columns;
mod costs;
mod default;
pub mod jsonpath;
pub mod legacy;
mod prune;
pub mod rules;
mod schema;
mod validate;

pub use body::REST;
pub use default::default;
pub use prune::prune;
pub use schema::{Additional, Checks, Rule, Schema, Ty};
pub use validate::validate;

#[cfg(test)]
mod tests;
