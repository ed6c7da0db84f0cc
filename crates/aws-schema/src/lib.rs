//! What AWS services look like on the wire: operations, shapes and their constraints, as doc-free tables.
//!
//! Pure facts: no I/O, no clock. Tables stand in `specs/aws/`, made by `cargo xtask specs aws` from a pinned botocore
//! wheel. Deliberately not here: protocols and errors (`aws-server`), what operations do.
