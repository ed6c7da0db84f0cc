//! Unknown fields of custom objects: found, and dropped.

use super::body::OBJECT_META;
use super::schema::Schema;
use crate::walk::{self as table, Unknown};
use serde_json::Value;

/// Fields of every object, and of embedded ones, that the schema need not list.
const OBJECT_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// Drops every field that the schema does not know; returns their paths (`spec.colour`, `spec.list[2].x`) in order.
/// The root's `apiVersion`, `kind` and `metadata` are not the schema's; metadata of embedded objects is checked here.
pub fn prune(value: &mut Value, schema: &Schema) -> Vec<String> {
    let mut unknown = Vec::new();
    walk(value, schema, true, &mut String::new(), &mut unknown);
    unknown
}

fn walk(value: &mut Value, schema: &Schema, object: bool, path: &mut String, unknown: &mut Vec<String>) {
    let length = path.len();
    match value {
        Value::Object(map) => {
            let own = |key: &str| object && OBJECT_FIELDS.contains(&key);
            if !schema.keeps_unknown() {
                let gone = |key: &str| !own(key) && schema.property(key).is_none();
                let gone: Vec<String> = map.keys().filter(|k| gone(k)).cloned().collect();
                for key in gone {
                    map.remove(&key);
                    unknown.push(join(path, &key));
                }
            }
            if let Some(metadata) = map.get_mut("metadata").filter(|_| object && !path.is_empty())
                && let Some(def) = k8s_schema::def_by_name(OBJECT_META)
            {
                let odd = table::check(metadata, def, Unknown::Warn).unknown;
                unknown.extend(odd.iter().map(|key| join(&join(path, "metadata"), key)));
            }
            for (key, value) in map.iter_mut().filter(|(key, _)| !own(key)) {
                if let Some(below) = schema.property(key) {
                    *path = join(path, key);
                    walk(value, below, below.embedded, path, unknown);
                    path.truncate(length);
                }
            }
        }
        Value::Array(items) => {
            let Some(below) = &schema.items else { return };
            for (index, item) in items.iter_mut().enumerate() {
                path.push_str(&format!("[{index}]"));
                walk(item, below, below.embedded, path, unknown);
                path.truncate(length);
            }
        }
        _ => {}
    }
}

/// A path one level deeper.
pub fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}
