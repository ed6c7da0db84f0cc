//! Defaults of custom objects.

use super::schema::{Additional, Schema};
use serde_json::Value;

/// Fills in defaults, depth first after the place itself. A null where null is not allowed and a default exists is
/// replaced by it; where there is none it is dropped, as upstream does.
pub fn default(value: &mut Value, schema: &Schema) {
    match value {
        Value::Object(map) => {
            for (name, below) in &schema.properties {
                if map.get(name).is_some_and(|v| v.is_null() && !below.nullable) {
                    map.remove(name);
                }
                if let (None, Some(fallback)) = (map.get(name), &below.default) {
                    map.insert(name.clone(), fallback.clone());
                }
            }
            if let Additional::Of(below) = &schema.additional
                && !below.nullable
            {
                map.retain(|key, v| !v.is_null() || schema.properties.contains_key(key));
            }
            for (key, value) in map.iter_mut() {
                if let Some(below) = schema.property(key) {
                    default(value, below);
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = &schema.items else { return };
            for item in items {
                if let (true, false, Some(fallback)) = (item.is_null(), below.nullable, &below.default) {
                    *item = fallback.clone();
                }
                default(item, below);
            }
        }
        _ => {}
    }
}
