//! An ECS object as a JSON document, decoded once and shared (`Object::view::<Doc>()`), and words to build one.

use serde_json::{Value, json};

/// The API version of every ECS kind.
pub const API_VERSION: &str = "ecs.gantry.dev/v1";

/// The whole object: `metadata`, `spec`, `status`.
#[derive(Clone, Debug, PartialEq)]
pub struct Doc(pub Value);

impl k8s_schema::View for Doc {
    fn decode(raw: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(raw).map(Doc)
    }
}

impl Doc {
    /// The spec; null where there is none.
    pub fn spec(&self) -> &Value {
        &self.0["spec"]
    }

    /// The status; null where there is none.
    pub fn status(&self) -> &Value {
        &self.0["status"]
    }
}

/// A new object of an ECS kind.
pub fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": API_VERSION, "kind": kind, "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// Copies those of the named members that are set; names stand between spaces.
pub fn copy(to: &mut Value, from: &Value, names: &str) {
    for name in names.split_whitespace().filter(|name| !from[*name].is_null()) {
        to[name] = from[name].clone();
    }
}

/// Removes members that are null, all the way down: unset members are absent in our documents.
pub fn drop_nulls(v: &mut Value) {
    match v {
        Value::Object(members) => {
            members.retain(|_, v| !v.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
