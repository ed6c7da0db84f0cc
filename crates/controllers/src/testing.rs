//! Helpers for the unit tests of deciders.

use client::Object;
use jiff::Timestamp;
use serde_json::Value;
use std::sync::Arc;

/// An object of a JSON literal.
pub fn object(value: Value) -> Arc<Object> {
    Arc::new(Object::parse(value.to_string().into()).expect("a literal with a name"))
}

/// A time so many seconds after the start of 2026.
pub fn at(seconds: i64) -> Timestamp {
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a literal time");
    Timestamp::from_second(start.as_second() + seconds).expect("in range")
}

/// The same as the API writes it.
pub fn stamp(seconds: i64) -> String {
    machinery::time::format(at(seconds))
}
