//! Lists of `{"Key", "Value"}` tags. Pure.

use super::kept::{items, text};
use crate::service::{Call, Outcome};
use serde_json::{Value, json};

/// Old tags with new ones: a key has one value.
pub(crate) fn merged(old: &Value, new: &Value) -> Value {
    let new = items(new);
    let kept = items(old).iter().filter(|tag| new.iter().all(|n| text(n, "Key") != text(tag, "Key")));
    Value::Array(kept.chain(new).cloned().collect())
}

/// Tags without those keys.
pub(crate) fn without(tags: &Value, keys: &Value) -> Value {
    let keys = items(keys);
    Value::Array(items(tags).iter().filter(|tag| !keys.contains(&tag["Key"])).cloned().collect())
}

/// What a call that tags or untags makes of a resource's tags. `members`: of tags, and of the keys that go.
pub(crate) fn change(spec: &mut Value, call: &Call, (tags, keys): (&str, &str)) -> Outcome {
    spec[tags] = match &call.input[keys] {
        Value::Null => merged(&spec[tags], &call.input[tags]),
        gone => without(&spec[tags], gone),
    };
    Ok(json!({}))
}

/// Their names in most services.
pub(crate) const MEMBERS: (&str, &str) = ("Tags", "TagKeys");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_a_map_in_a_list() {
        let old = json!([{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]);
        let all = merged(&old, &json!([{"Key": "a", "Value": "3"}]));
        assert_eq!(all, json!([{"Key": "b", "Value": "2"}, {"Key": "a", "Value": "3"}]));
        assert_eq!(without(&all, &json!(["b", "x"])), json!([{"Key": "a", "Value": "3"}]));
        assert_eq!(merged(&Value::Null, &Value::Null), json!([]));
    }
}
