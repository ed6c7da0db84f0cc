//! The registry's API byte by byte: a raw client on one side, a depot in a temporary folder on the other.
#![expect(clippy::unwrap_used, reason = "a test stops at whatever it did not expect")]

mod api;
mod http;
mod push;
mod speed;
