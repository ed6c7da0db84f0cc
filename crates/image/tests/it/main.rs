//! The image crate as its callers use it: the store, the registry's content, pulls.
#![expect(clippy::unwrap_used, reason = "a test stops at whatever it did not expect")]

mod depot;
mod fake;
mod pull;
mod store;
