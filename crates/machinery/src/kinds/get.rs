//! Reading and filling JSON documents by path, without ever panicking. Shared by all kinds.

use serde_json::{Map, Value};

/// What is at a JSON pointer. (`Value::pointer` copies each name, for escapes, which hardly any has.)
fn found<'a>(v: &'a Value, pointer: &str) -> Option<&'a Value> {
    let Some(path) = pointer.strip_prefix('/').filter(|path| !path.bytes().any(|b| b == b'~')) else {
        return v.pointer(pointer);
    };
    // By bytes: splitting at a char searches and compares more than short names are worth.
    path.as_bytes().split(|b| *b == b'/').try_fold(v, |v, name| {
        let name = std::str::from_utf8(name).ok()?;
        match v {
            Value::Array(items) => items.get(name.parse::<usize>().ok()?),
            other => other.get(name),
        }
    })
}

/// The string at a JSON pointer; "" when absent or no string.
pub fn text<'a>(v: &'a Value, pointer: &str) -> &'a str {
    found(v, pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at a JSON pointer.
pub fn int(v: &Value, pointer: &str) -> Option<i64> {
    found(v, pointer).and_then(Value::as_i64)
}

/// The boolean at a JSON pointer; false when absent.
pub fn flag(v: &Value, pointer: &str) -> bool {
    found(v, pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// The list at a JSON pointer; empty when absent.
pub fn list<'a>(v: &'a Value, pointer: &str) -> &'a [Value] {
    found(v, pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The entries of the object at a JSON pointer; none when absent.
pub fn entries<'a>(v: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
    found(v, pointer).and_then(Value::as_object).into_iter().flatten().map(|(k, v)| (k.as_str(), v))
}

/// Is there something (not null) at the pointer?
pub fn has(v: &Value, pointer: &str) -> bool {
    found(v, pointer).is_some_and(|v| !v.is_null())
}

/// The string elements of the list at a pointer.
pub fn texts<'a>(v: &'a Value, pointer: &str) -> impl Iterator<Item = &'a str> {
    list(v, pointer).iter().filter_map(Value::as_str)
}

/// Is `key` absent, null or an empty string (Go's zero values of a string)?
fn unset(fields: &Map<String, Value>, key: &str) -> bool {
    match fields.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(_) => false,
    }
}

/// Are two documents the same to Go, which cannot tell an absent field from a zero one? A typed client's round
/// trip drops `readOnly: false` and `args: []`; that is no change.
pub fn same(a: &Value, b: &Value) -> bool {
    same_but(a, b, |v| matches!(v, Value::Null | Value::Bool(false)) || v.as_i64() == Some(0))
}

/// The same, where `false` and 0 do count: only empty and absent are alike.
pub fn same_exactly(a: &Value, b: &Value) -> bool {
    same_but(a, b, Value::is_null)
}

fn same_but(a: &Value, b: &Value, zero: fn(&Value) -> bool) -> bool {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let null = Value::Null;
            x.iter().all(|(k, v)| same_but(v, y.get(k).unwrap_or(&null), zero))
                && y.iter().all(|(k, v)| x.contains_key(k) || is_empty(v, zero))
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).all(|(a, b)| same_but(a, b, zero))
        }
        _ => a == b || (is_empty(a, zero) && is_empty(b, zero)),
    }
}

fn is_empty(v: &Value, zero: fn(&Value) -> bool) -> bool {
    match v {
        Value::String(s) => s.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(|v| is_empty(v, zero)),
        other => zero(other),
    }
}

/// Sets `v[key]` where it is unset (absent, null, ""). Does nothing where `v` is no object.
pub fn default(v: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(fields) = v
        && unset(fields, key)
    {
        fields.insert(key.into(), value.into());
    }
}

/// As [`default`], for numbers whose zero also means unset.
pub fn default_nonzero(v: &mut Value, key: &str, value: i64) {
    if let Value::Object(fields) = v
        && (unset(fields, key) || fields.get(key).and_then(Value::as_i64) == Some(0))
    {
        fields.insert(key.into(), value.into());
    }
}

/// Sets a key of an object; nothing where `v` is none.
pub fn set(v: &mut Value, key: &str, value: impl Into<Value>) {
    if let Value::Object(fields) = v {
        fields.insert(key.into(), value.into());
    }
}

/// Removes a key and gives its value.
pub fn remove(v: &mut Value, key: &str) -> Option<Value> {
    v.as_object_mut().and_then(|fields| fields.remove(key))
}

/// The object at `v[key]`, made when unset; `None` where there is something else.
pub fn child<'a>(v: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    let fields = v.as_object_mut()?;
    if unset(fields, key) {
        fields.insert(key.into(), Value::Object(Map::new()));
    }
    fields.get_mut(key).filter(|v| v.is_object())
}

/// Runs `f` on the value at a pointer, if there is one that is not null.
pub fn at(v: &mut Value, pointer: &str, f: impl FnOnce(&mut Value)) {
    if let Some(v) = v.pointer_mut(pointer).filter(|v| !v.is_null()) {
        f(v);
    }
}

/// Runs `f` on every element of the list at a pointer.
pub fn each(v: &mut Value, pointer: &str, f: impl FnMut(&mut Value)) {
    if let Some(Value::Array(items)) = v.pointer_mut(pointer) {
        items.iter_mut().for_each(f);
    }
}

/// `path.key`, or `key` at the top.
pub fn field(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pointers_lead_where_they_lead_everywhere() {
        let v = json!({"a": [{"b/c": 1}], "": 2, "~": 3, "d": {"e": null}});
        for pointer in
            ["", "/", "/a", "/a/0", "/a/0/b~1c", "/a/1", "/a/x", "/~0", "/d/e", "/d/e/f", "d", "/q"]
        {
            assert_eq!(found(&v, pointer), v.pointer(pointer), "{pointer}");
        }
    }

    #[test]
    fn zero_values_are_no_change() {
        let old = json!({"a": [{"name": "x", "readOnly": false, "n": 0}], "b": {}, "c": "", "d": 1});
        let new = json!({"a": [{"name": "x"}], "d": 1});
        assert!(same(&old, &new) && same(&new, &old));
        assert!(!same_exactly(&old, &new) && !same_exactly(&new, &old));
        assert!(same_exactly(&json!({"a": {"b": []}}), &json!({})));
        for other in
            [json!({"d": 1}), json!({"a": [{"name": "y"}], "d": 1}), json!({"a": [{"name": "x"}], "d": 2})]
        {
            assert!(!same(&new, &other) && !same(&other, &new), "{other}");
        }
    }
}
