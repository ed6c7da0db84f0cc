//! JSON patch, RFC 6902, with upstream's limits and words.

use super::{COPIED_BYTES_MAX, OPS_MAX, PatchError};
use serde_json::Value;

/// One operation, checked.
enum Op<'a> {
    Add(Pointer, &'a Value),
    Remove(Pointer),
    Replace(Pointer, &'a Value),
    Move(Pointer, Pointer),
    Copy(Pointer, Pointer),
    Test(Pointer, &'a Value),
}

/// A JSON pointer: its text (for messages) and its unescaped tokens.
struct Pointer {
    text: String,
    tokens: Vec<String>,
}

/// Applies `patch` to `target`. On an error `target` is left as it was.
pub fn json(target: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let Value::Array(rows) = patch else {
        return Err(PatchError::Malformed("a JSON patch must be an array of operations".into()));
    };
    if rows.len() > OPS_MAX {
        let count = rows.len();
        return Err(PatchError::TooLarge(format!(
            "The allowed maximum operations in a JSON patch is {OPS_MAX}, got {count}"
        )));
    }
    let ops = rows.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let mut work = target.clone();
    let mut copied = 0;
    for op in ops {
        apply(&mut work, op, &mut copied)?;
    }
    *target = work;
    Ok(())
}

fn parse(row: &Value) -> Result<Op<'_>, PatchError> {
    let malformed = |words: String| PatchError::Malformed(words);
    let text = |key: &str| row.get(key).and_then(Value::as_str);
    let name = text("op").ok_or_else(|| malformed("a JSON patch operation needs an op".into()))?;
    let pointer = |key: &str| -> Result<Pointer, PatchError> {
        let text =
            text(key).ok_or_else(|| malformed(format!("JSON patch operation {name} missing {key} field")))?;
        parse_pointer(text).ok_or_else(|| malformed(format!("invalid JSON pointer {text:?}")))
    };
    let value = || {
        row.get("value").ok_or_else(|| malformed(format!("JSON patch operation {name} missing value field")))
    };
    Ok(match name {
        "add" => Op::Add(pointer("path")?, value()?),
        "remove" => Op::Remove(pointer("path")?),
        "replace" => Op::Replace(pointer("path")?, value()?),
        "move" => Op::Move(pointer("from")?, pointer("path")?),
        "copy" => Op::Copy(pointer("from")?, pointer("path")?),
        // A test without a value tests for null, as upstream's library does.
        "test" => Op::Test(pointer("path")?, row.get("value").unwrap_or(&Value::Null)),
        other => return Err(malformed(format!("Unexpected kind: {other}"))),
    })
}

fn parse_pointer(text: &str) -> Option<Pointer> {
    let tokens = match text.strip_prefix('/') {
        Some(rest) => rest.split('/').map(|t| t.replace("~1", "/").replace("~0", "~")).collect(),
        None if text.is_empty() => Vec::new(),
        None => return None,
    };
    Some(Pointer { text: text.into(), tokens })
}

fn apply(document: &mut Value, op: Op<'_>, copied: &mut usize) -> Result<(), PatchError> {
    match op {
        Op::Add(at, value) => add(document, &at, value.clone(), "add"),
        Op::Remove(at) => remove(document, &at, "remove").map(drop),
        Op::Replace(at, value) => {
            let slot = find_mut(document, &at.tokens).ok_or_else(|| missing("replace", &at))?;
            *slot = value.clone();
            Ok(())
        }
        Op::Move(from, to) => {
            if to.text.starts_with(&format!("{}/", from.text)) {
                return Err(PatchError::Inapplicable(format!(
                    "cannot move {} into one of its own children",
                    from.text
                )));
            }
            let value = remove(document, &from, "move")?;
            add(document, &to, value, "move")
        }
        Op::Copy(from, to) => {
            let value = find(document, &from.tokens).ok_or_else(|| missing("copy", &from))?.clone();
            *copied += weight(&value);
            if *copied > COPIED_BYTES_MAX {
                return Err(PatchError::TooLarge(format!(
                    "the copy operations of the JSON patch add more than {COPIED_BYTES_MAX} bytes"
                )));
            }
            add(document, &to, value, "copy")
        }
        Op::Test(at, expected) => {
            let actual = find(document, &at.tokens).unwrap_or(&Value::Null);
            if equal(actual, expected) {
                return Ok(());
            }
            Err(PatchError::Inapplicable(format!("testing value {} failed", at.text)))
        }
    }
}

fn missing(op: &str, at: &Pointer) -> PatchError {
    PatchError::Inapplicable(format!(
        "{op} operation does not apply: doc is missing path: \"{}\": missing value",
        at.text
    ))
}

/// Rough size of a value in bytes.
fn weight(value: &Value) -> usize {
    match value {
        Value::String(s) => s.len() + 2,
        Value::Array(items) => 2 + items.iter().map(weight).sum::<usize>(),
        Value::Object(fields) => 2 + fields.iter().map(|(k, v)| k.len() + 4 + weight(v)).sum::<usize>(),
        _ => 8,
    }
}

/// Equality of JSON values where `1` and `1.0` are the same number.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => x == y || x.as_f64() == y.as_f64(),
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| equal(a, b)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(k, v)| y.get(k).is_some_and(|w| equal(v, w)))
        }
        _ => a == b,
    }
}

/// An array index; `len` is one past the largest allowed. Upstream also takes negative ones.
fn index(token: &str, len: usize) -> Option<usize> {
    let canonical = token == "0" || !token.trim_start_matches('-').starts_with('0');
    let digits = token.strip_prefix('-').unwrap_or(token);
    if !canonical || digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: usize = digits.parse().ok()?;
    let n = if token.starts_with('-') { len.checked_sub(n)? } else { n };
    (n < len).then_some(n)
}

fn find<'a>(value: &'a Value, tokens: &[String]) -> Option<&'a Value> {
    tokens.iter().try_fold(value, |value, token| match value {
        Value::Object(fields) => fields.get(token),
        Value::Array(items) => items.get(index(token, items.len())?),
        _ => None,
    })
}

fn find_mut<'a>(value: &'a mut Value, tokens: &[String]) -> Option<&'a mut Value> {
    tokens.iter().try_fold(value, |value, token| match value {
        Value::Object(fields) => fields.get_mut(token),
        Value::Array(items) => {
            let i = index(token, items.len())?;
            items.get_mut(i)
        }
        _ => None,
    })
}

fn add(document: &mut Value, at: &Pointer, value: Value, op: &str) -> Result<(), PatchError> {
    let Some((last, parents)) = at.tokens.split_last() else {
        *document = value;
        return Ok(());
    };
    match find_mut(document, parents) {
        Some(Value::Object(fields)) => {
            fields.insert(last.clone(), value);
            Ok(())
        }
        Some(Value::Array(items)) => {
            let len = items.len();
            let i = if last == "-" { Some(len) } else { index(last, len + 1) };
            let i = i.ok_or_else(|| {
                PatchError::Inapplicable(format!(
                    "{op} operation does not apply: doc is missing path: \"{}\": Unable to access invalid index: {last}: invalid index referenced",
                    at.text
                ))
            })?;
            items.insert(i, value);
            Ok(())
        }
        _ => Err(missing(op, at)),
    }
}

fn remove(document: &mut Value, at: &Pointer, op: &str) -> Result<Value, PatchError> {
    let Some((last, parents)) = at.tokens.split_last() else {
        return Ok(document.take());
    };
    let removed = match find_mut(document, parents) {
        Some(Value::Object(fields)) => fields.remove(last),
        Some(Value::Array(items)) => index(last, items.len()).map(|i| items.remove(i)),
        _ => None,
    };
    removed.ok_or_else(|| missing(op, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::any_json;
    use proptest::prelude::*;
    use serde_json::json;

    fn run(document: Value, patch: Value) -> Result<Value, PatchError> {
        let mut target = document;
        super::json(&mut target, &patch)?;
        Ok(target)
    }

    #[test]
    fn examples_of_the_rfc() {
        for (document, patch, result) in [
            (
                json!({"foo": "bar"}),
                json!([{"op": "add", "path": "/baz", "value": 1}]),
                json!({"baz": 1, "foo": "bar"}),
            ),
            (
                json!({"a": [1, 3]}),
                json!([{"op": "add", "path": "/a/1", "value": 2}]),
                json!({"a": [1, 2, 3]}),
            ),
            (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-", "value": [2]}]), json!({"a": [1, [2]]})),
            (json!({"a": 1, "b": 2}), json!([{"op": "remove", "path": "/a"}]), json!({"b": 2})),
            (
                json!({"a": [1, 2]}),
                json!([{"op": "replace", "path": "/a/0", "value": null}]),
                json!({"a": [null, 2]}),
            ),
            (
                json!({"a": {"b": 1}, "c": {}}),
                json!([{"op": "move", "from": "/a/b", "path": "/c/d"}]),
                json!({"a": {}, "c": {"d": 1}}),
            ),
            (
                json!({"a": [1, 2, 3]}),
                json!([{"op": "move", "from": "/a/0", "path": "/a/2"}]),
                json!({"a": [2, 3, 1]}),
            ),
            (json!({"a": 1}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), json!({"a": 1, "b": 1})),
            (
                json!({"a/b": 1, "m~n": 2}),
                json!([{"op": "test", "path": "/a~1b", "value": 1}, {"op": "test", "path": "/m~0n", "value": 2.0}]),
                json!({"a/b": 1, "m~n": 2}),
            ),
            (json!({"~1": 1}), json!([{"op": "test", "path": "/~01", "value": 1}]), json!({"~1": 1})),
            (json!({"a": 1}), json!([{"op": "replace", "path": "", "value": 2}]), json!(2)),
        ] {
            assert_eq!(run(document, patch).unwrap(), result);
        }
    }

    #[test]
    fn refusals() {
        for (patch, words) in [
            (json!({}), "must be an array"),
            (json!([{"op": "nope", "path": "/a"}]), "Unexpected kind: nope"),
            (json!([{"op": "add", "path": "/a"}]), "missing value"),
            (json!([{"op": "add", "path": "a", "value": 1}]), "invalid JSON pointer"),
            (
                json!([{"op": "remove", "path": "/x"}]),
                "remove operation does not apply: doc is missing path: \"/x\": missing value",
            ),
            (json!([{"op": "add", "path": "/a/7", "value": 1}]), "invalid index referenced"),
            (json!([{"op": "add", "path": "/a/01", "value": 1}]), "invalid index referenced"),
            (json!([{"op": "test", "path": "/a", "value": 1}]), "testing value /a failed"),
            (json!([{"op": "move", "from": "/a", "path": "/a/0"}]), "own children"),
        ] {
            let error = run(json!({"a": [1]}), patch).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let many: Vec<Value> = vec![json!({"op": "test", "path": "/z"}); OPS_MAX + 1];
        assert!(matches!(run(json!({}), Value::Array(many)), Err(PatchError::TooLarge(_))));
    }

    #[test]
    fn a_doubling_patch_is_stopped() {
        let mut ops = vec![json!({"op": "add", "path": "/a", "value": ["x"]})];
        for _ in 0..200 {
            ops.push(json!({"op": "copy", "from": "/a", "path": "/a/-"}));
        }
        assert!(matches!(run(json!({}), Value::Array(ops)), Err(PatchError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn never_panics(document in any_json(), ops in proptest::collection::vec(
            ("(add|remove|replace|move|copy|test)", "(/[ab0-2~-]{0,2}){0,3}", "(/[ab0-2]){0,3}", any_json()), 0..6)) {
            let patch: Vec<Value> = ops.into_iter()
                .map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value})).collect();
            let _ = run(document, Value::Array(patch));
        }

        #[test]
        fn an_add_can_be_tested_and_removed(document in any_json(), value in any_json()) {
            prop_assume!(document.is_object());
            let patch = json!([{"op": "add", "path": "/zz", "value": value}, {"op": "test", "path": "/zz", "value": value},
                {"op": "remove", "path": "/zz"}]);
            prop_assert_eq!(run(document.clone(), patch).unwrap(), document);
        }
    }
}
