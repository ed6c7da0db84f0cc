//! Generators shared by this crate's property tests.

use proptest::prelude::*;
use serde_json::Value;

/// Any small JSON value; keys and strings from a small alphabet, so that documents meet each other.
pub fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..70_000).prop_map(Value::from),
        (-999i32..999).prop_map(|n| Value::from(f64::from(n) / 8.0)), // exact, so that a round trip is
        "[abc$/0-9.-]{0,4}".prop_map(Value::from),
        "(Always|Never|TCP|100m|1Gi|25%|2026-01-01T00:00:00Z|\u{e4})".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key(), inner, 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![Just("$patch".to_string()), Just("name".to_string()), "[abc]", "(metadata|spec|status)"]
}
