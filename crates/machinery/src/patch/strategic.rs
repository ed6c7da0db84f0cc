//! Strategic merge patch: a merge that knows from the schema which lists are maps and sets.
//!
//! Follows upstream's algorithm (apimachinery `strategicpatch`), with its directives `$patch`,
//! `$retainKeys`, `$deleteFromPrimitiveList/x` and `$setElementOrder/x`. Lists of types that the schema
//! does not know (a field of `Any`) are replaced. The caller answers 415 for custom resources.

use super::PatchError;
use crate::schema;
use k8s_schema::{Def, Field, PatchStrategy, Type};
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

type Object = Map<String, Value>;
type Result<T> = std::result::Result<T, PatchError>;

/// Applies `patch` to `target`, an object of definition `def`. On an error `target` is left as it was.
pub fn strategic(target: &mut Value, patch: &Value, def: &Def) -> Result<()> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed("invalid JSON document".into()));
    };
    let original = target.as_object().cloned().unwrap_or_default();
    *target = Value::Object(merge_object(original, patch.clone(), Some(def))?);
    Ok(())
}

fn bad_directive(kind: &str, patch: &Object) -> PatchError {
    PatchError::Malformed(format!("unknown patch type: {kind} in map: {}", Value::Object(patch.clone())))
}

fn merge_object(mut original: Object, mut patch: Object, def: Option<&Def>) -> Result<Object> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            Some("merge") => merge_object(original, patch, def),
            other => Err(bad_directive(other.unwrap_or_default(), &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    ordered_lists(&mut original, &mut patch, def)?;
    for (key, change) in patch {
        if let Some(name) = key.strip_prefix(DELETE_PREFIX) {
            delete_from_primitives(&mut original, name, &change)?;
            continue;
        }
        merge_field(&mut original, key, change, def)?;
    }
    Ok(original)
}

fn merge_field(original: &mut Object, key: String, change: Value, def: Option<&Def>) -> Result<()> {
    if change.is_null() {
        original.remove(&key);
        return Ok(());
    }
    let field = def.and_then(|d| d.field(&key));
    let old = original.remove(&key);
    let whole = field.is_some_and(|f| f.patch_strategy == PatchStrategy::ReplaceObject);
    let merged = match (old, change) {
        (Some(Value::Object(_)), Value::Object(change)) if whole => Value::Object(change),
        (Some(Value::Object(old)), Value::Object(change)) => {
            Value::Object(merge_object(old, change, field.and_then(|f| schema::object_of(&f.ty)))?)
        }
        (Some(Value::Array(old)), Value::Array(change)) => Value::Array(merge_list(old, change, field)?),
        (_, change) => without_directives(change),
    };
    original.insert(key, merged);
    Ok(())
}

fn merge_list(old: Vec<Value>, change: Vec<Value>, field: Option<&Field>) -> Result<Vec<Value>> {
    let Some(field) = field.filter(|f| merges(f)) else {
        return Ok(change);
    };
    if old.is_empty() && change.is_empty() {
        return Ok(old);
    }
    let key = &*field.merge_key;
    if !old.iter().chain(&change).any(Value::is_object) {
        let merged = dedup(old.iter().chain(&change).cloned());
        return Ok(in_order(merged, &change, &old, ""));
    }
    if key.is_empty() {
        return Err(PatchError::Inapplicable(format!(
            "cannot merge lists without merge key for {}",
            &*field.name
        )));
    }
    let (old, change) = special_elements(old, change, key)?;
    let mut merged = old.clone();
    for item in &change {
        let wanted = key_of(item, key)?;
        let Value::Object(item) = item else { return Err(mixed()) };
        match merged.iter().position(|m| m.get(key) == Some(&wanted)) {
            Some(i) => {
                let Value::Object(base) = merged[i].take() else { return Err(mixed()) };
                let def = schema::element_of(&field.ty).and_then(schema::object_of);
                merged[i] = Value::Object(merge_object(base, item.clone(), def)?);
            }
            None => merged.push(without_directives(Value::Object(item.clone()))),
        }
    }
    Ok(in_order(merged, &change, &old, key))
}

fn merges(field: &Field) -> bool {
    matches!(field.patch_strategy, PatchStrategy::Merge | PatchStrategy::MergeRetainKeys)
        && matches!(field.ty, Type::Array(_))
}

fn mixed() -> PatchError {
    PatchError::Malformed("invalid patch: a list mixes objects and other values".into())
}

fn key_of(item: &Value, key: &str) -> Result<Value> {
    let Value::Object(fields) = item else { return Err(mixed()) };
    fields.get(key).cloned().ok_or_else(|| {
        PatchError::Inapplicable(format!("map: {item} does not contain declared merge key: {key}"))
    })
}

/// Obeys `$patch` in list elements: deletes matching originals, or replaces the list as a whole.
fn special_elements(mut old: Vec<Value>, change: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let (mut rest, mut replace) = (Vec::new(), false);
    for item in change {
        match item.get(DIRECTIVE).map(|d| d.as_str().unwrap_or_default()) {
            None => rest.push(item),
            Some("delete") => {
                let wanted = key_of(&item, key)?;
                old.retain(|o| o.get(key) != Some(&wanted));
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(PatchError::Malformed(
                    "merging lists cannot yet be specified in the patch".into(),
                ));
            }
            Some(other) => {
                let fields = item.as_object().cloned().unwrap_or_default();
                return Err(bad_directive(other, &fields));
            }
        }
    }
    if replace {
        old.clear();
    }
    Ok((old, rest))
}

/// `$retainKeys`: drops every original field that is not listed.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(list) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || PatchError::Malformed("invalid patch format of retainKeys".into());
    let Value::Array(list) = list else { return Err(bad()) };
    let keep: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    let covered = |k: &String, v: &Value| v.is_null() || k.starts_with('$') || keep.contains(&k.as_str());
    if !patch.iter().all(|(k, v)| covered(k, v)) {
        return Err(bad());
    }
    original.retain(|k, _| keep.contains(&k.as_str()));
    Ok(())
}

fn delete_from_primitives(original: &mut Object, name: &str, gone: &Value) -> Result<()> {
    let Value::Array(gone) = gone else {
        return Err(PatchError::Malformed("invalid patch format of primitive list".into()));
    };
    if let Some(Value::Array(items)) = original.get_mut(name) {
        items.retain(|i| !gone.contains(i));
    }
    Ok(())
}

/// `$setElementOrder/x`: merges list `x` (when the patch has it) and puts the result into that order.
fn ordered_lists(original: &mut Object, patch: &mut Object, def: Option<&Def>) -> Result<()> {
    let keys: Vec<String> = patch.keys().filter(|k| k.starts_with(ORDER_PREFIX)).cloned().collect();
    for directive in keys {
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(PatchError::Malformed("invalid patch format of setElementOrder list".into()));
        };
        let name = directive.trim_start_matches(ORDER_PREFIX);
        let field = def.and_then(|d| d.field(name));
        let key = field.map_or("", |f| &*f.merge_key);
        let change = match patch.remove(name) {
            Some(Value::Array(items)) => Some(items),
            Some(Value::Null) => {
                original.remove(name);
                continue;
            }
            Some(_) => return Err(mixed()),
            None => None,
        };
        if let Some(change) = &change {
            check_order(change, &order, key)?;
        }
        let old = match original.remove(name) {
            Some(Value::Array(items)) => Some(items),
            Some(other) => {
                original.insert(name.into(), other);
                None
            }
            None => None,
        };
        let server = old.clone().unwrap_or_default();
        let merged = match (old, change) {
            (Some(old), None) => old,
            (Some(old), Some(change)) => merge_list(old, change, field)?,
            (None, Some(change)) => match without_directives(Value::Array(change)) {
                Value::Array(items) => items,
                _ => Vec::new(),
            },
            (None, None) => continue,
        };
        original.insert(name.into(), Value::Array(in_order(merged, &order, &server, key)));
    }
    Ok(())
}

/// Every kept element of the patch list must stand in the order list, in the same relative order.
fn check_order(change: &[Value], order: &[Value], key: &str) -> Result<()> {
    let mut rest = order.iter();
    for item in change.iter().filter(|i| i.get(DIRECTIVE).is_none()) {
        if !rest.any(|o| same(o, item, key)) {
            let show = |list: &[Value]| Value::Array(list.to_vec()).to_string();
            return Err(PatchError::Malformed(format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                show(change),
                show(order)
            )));
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, key: &str) -> bool {
    if key.is_empty() { a == b } else { a.get(key).is_some() && a.get(key) == b.get(key) }
}

/// Puts `merged` in order: items named by `order` keep that order, the others keep the server's, and
/// the two rows are interleaved by the server's order where it knows both.
fn in_order(merged: Vec<Value>, order: &[Value], server: &[Value], key: &str) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| list.iter().position(|o| same(o, item, key));
    let (mut ours, mut theirs): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(order, item).is_some());
    ours.sort_by_key(|item| place(order, item));
    theirs.sort_by_key(|item| place(server, item).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(ours.len() + theirs.len());
    let mut ours = ours.into_iter().peekable();
    for item in theirs {
        let at = place(server, &item);
        // An item of ours goes first unless the server knows both and has `item` in front.
        while let Some(next) =
            ours.next_if(|o| !matches!((at, place(server, o)), (Some(l), Some(r)) if l < r))
        {
            out.push(next);
        }
        out.push(item);
    }
    out.extend(ours);
    out
}

fn dedup(items: impl Iterator<Item = Value>) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    for item in items {
        if !out.contains(&item) {
            out.push(item);
        }
    }
    out
}

/// A patch value where there is nothing to merge it into: directives and nulls are dropped, and list
/// elements that only say `$patch: delete` or `replace`.
fn without_directives(value: Value) -> Value {
    match value {
        Value::Object(mut fields) => {
            fields.retain(|k, v| !k.starts_with('$') && !v.is_null());
            Value::Object(fields.into_iter().map(|(k, v)| (k, without_directives(v))).collect())
        }
        Value::Array(items) => {
            let kept = items.into_iter().filter(|i| i.get(DIRECTIVE).is_none());
            Value::Array(kept.map(without_directives).collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::any_json;
    use proptest::prelude::*;
    use serde_json::json;

    fn def(kind: &str) -> &'static Def {
        k8s_schema::def_by_name(kind).expect("a built-in definition")
    }

    fn run(document: Value, patch: Value) -> Result<Value> {
        let mut target = document;
        strategic(&mut target, &patch, def("io.k8s.api.apps.v1.Deployment"))?;
        Ok(target)
    }

    fn pod(spec: Value) -> Value {
        json!({"spec": {"template": {"spec": spec}}})
    }

    #[test]
    fn documents() {
        let two = || json!({"containers": [{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]});
        for (name, before, patch, after) in [
            (
                "merge by key",
                two(),
                json!({"containers": [{"name": "a", "image": "a:2"}]}),
                json!({"containers": [{"name": "a", "image": "a:2", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}),
            ),
            (
                "a new element goes in front",
                two(),
                json!({"containers": [{"name": "c"}]}),
                json!({"containers": [{"name": "c"}, two()["containers"][0], two()["containers"][1]]}),
            ),
            (
                "delete an element",
                two(),
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b"}]}),
            ),
            (
                "replace a list",
                two(),
                json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
                json!({"containers": [{"name": "z"}]}),
            ),
            (
                "order",
                two(),
                json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}], "containers": [{"name": "c"}]}),
                json!({"containers": [{"name": "b"}, {"name": "c"}, two()["containers"][0]]}),
            ),
            (
                "an atomic list is replaced",
                json!({"tolerations": [{"key": "a"}]}),
                json!({"tolerations": [{"key": "b"}]}),
                json!({"tolerations": [{"key": "b"}]}),
            ),
            (
                "null deletes",
                json!({"nodeName": "x", "hostname": "h"}),
                json!({"nodeName": null}),
                json!({"hostname": "h"}),
            ),
            (
                "replace a map",
                json!({"nodeSelector": {"a": "1"}}),
                json!({"nodeSelector": {"$patch": "replace", "b": "2"}}),
                json!({"nodeSelector": {"b": "2"}}),
            ),
            (
                "retain keys",
                json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
                json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
            ),
            (
                "nulls of new fields vanish",
                json!({}),
                json!({"securityContext": {"runAsUser": 1, "fsGroup": null}}),
                json!({"securityContext": {"runAsUser": 1}}),
            ),
        ] {
            assert_eq!(run(pod(before), pod(patch)).unwrap(), pod(after), "{name}");
        }
    }

    #[test]
    fn primitive_lists() {
        let before = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
        let run = |patch| {
            run(before.clone(), json!({"metadata": patch})).unwrap()["metadata"]["finalizers"].clone()
        };
        assert_eq!(run(json!({"finalizers": ["d"]})), json!(["d", "a", "b", "c"]));
        assert_eq!(run(json!({"$deleteFromPrimitiveList/finalizers": ["b", "z"]})), json!(["a", "c"]));
        assert_eq!(
            run(
                json!({"$setElementOrder/finalizers": ["c", "d", "a"], "finalizers": ["d"], "$deleteFromPrimitiveList/finalizers": ["b"]})
            ),
            json!(["c", "d", "a"])
        );
    }

    #[test]
    fn refusals() {
        for (patch, words) in [
            (json!([]), "invalid JSON document"),
            (json!({"spec": {"$patch": "nope"}}), "unknown patch type: nope in map: {}"),
            (pod(json!({"containers": [{"image": "x"}]})), "does not contain declared merge key: name"),
            (pod(json!({"containers": ["x"]})), "mixes objects"),
            (
                json!({"spec": {"strategy": {"$retainKeys": ["type"], "rollingUpdate": {}}}}),
                "invalid patch format of retainKeys",
            ),
            (
                pod(json!({"$setElementOrder/containers": [{"name": "z"}], "containers": [{"name": "a"}]})),
                "The order in patch list",
            ),
        ] {
            let mut before = pod(json!({"containers": [{"name": "a"}]}));
            before["spec"]["strategy"] = json!({"type": "RollingUpdate"});
            let error = run(before, patch.clone()).unwrap_err().to_string();
            assert!(error.contains(words), "{patch}: {error}");
        }
    }

    /// What kubectl sends for `apply`: a three-way patch with an order of all elements.
    #[test]
    fn apply_of_a_changed_env() {
        let before = pod(
            json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}]}),
        );
        let patch = pod(json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "a",
            "$setElementOrder/env": [{"name": "Y"}, {"name": "Z"}],
            "env": [{"name": "Z", "value": "3"}, {"name": "X", "$patch": "delete"}]}]}));
        let after = pod(
            json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}, {"name": "Z", "value": "3"}]}]}),
        );
        assert_eq!(run(before, patch).unwrap(), after);
    }

    /// Merges a keyed list in the plainest way: a map by key, order ignored.
    fn twin(old: &[(String, u8)], new: &[(String, u8)]) -> std::collections::BTreeMap<String, u8> {
        old.iter().chain(new).cloned().collect()
    }

    proptest! {
        #[test]
        fn never_panics(document in any_json(), patch in any_json()) {
            for name in ["io.k8s.api.core.v1.Pod", "io.k8s.api.apps.v1.Deployment"] {
                let mut target = json!({"metadata": document, "spec": document});
                let _ = strategic(&mut target, &json!({"metadata": patch, "spec": patch}), def(name));
            }
        }

        #[test]
        fn keyed_lists_agree_with_the_twin(old in proptest::collection::btree_map("[a-d]", any::<u8>(), 0..4),
                                           new in proptest::collection::btree_map("[a-d]", any::<u8>(), 1..4)) {
            let rows = |m: &std::collections::BTreeMap<String, u8>| m.iter().map(|(k, v)| (k.clone(), *v)).collect::<Vec<_>>();
            let list = |m: &[(String, u8)]| m.iter().map(|(k, v)| json!({"name": k, "value": v.to_string()})).collect::<Value>();
            let env = |m: &[(String, u8)]| pod(json!({"containers": [{"name": "c", "env": list(m)}]}));
            let (old, new) = (rows(&old), rows(&new));
            let merged = run(env(&old), env(&new)).unwrap();
            let merged: std::collections::BTreeMap<String, u8> = merged.pointer("/spec/template/spec/containers/0/env").unwrap()
                .as_array().unwrap().iter().map(|e| (e["name"].as_str().unwrap().into(), e["value"].as_str().unwrap().parse().unwrap())).collect();
            prop_assert_eq!(merged, twin(&old, &new));
        }
    }
}
