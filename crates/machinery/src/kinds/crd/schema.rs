//! The rules for a custom resource's OpenAPI schema: what is not supported, and what makes it *structural*.
//!
//! A structural schema gives every field its type outside of `allOf`, `anyOf`, `oneOf` and `not`, so that a server
//! can prune, default and convert by it. Deliberately not here: whether defaults fit their schema, CEL rules beyond
//! their form (both need the compiled schema).

use super::super::admission_policy::message;
use crate::field_errors::FieldErrors;
use crate::kinds::get::{entries, flag, has, list, text, texts};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
const META: [&str; 3] = ["metadata", "kind", "apiVersion"];
const REASONS: [&str; 4] =
    ["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
/// Keywords that OpenAPI has and Kubernetes does not support.
const UNSUPPORTED: [&str; 6] =
    ["$ref", "additionalItems", "definitions", "dependencies", "id", "patternProperties"];
/// With a status subresource, only these may stand at the root.
const AT_ROOT_WITH_STATUS: [&str; 24] = [
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
    "nullable",
    "default",
];
/// What may not stand inside `allOf`, `anyOf`, `oneOf`, `not`, with the words for it.
const OUTSIDE_ONLY: [(&str, &str); 11] = [
    ("type", "must be empty to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("default", "must be undefined to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("nullable", "must be false to be structural"),
    ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
];

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Field,
    Item,
}

/// Checks the root schema of a version.
pub fn root(schema: &Value, with_status: bool, path: &str, errors: &mut FieldErrors) {
    if with_status {
        let kind = text(schema, "/type");
        if !kind.is_empty() && kind != "object" {
            let words = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            errors.invalid(&format!("{path}.type"), kind, words);
        }
        if entries(schema, "").any(|(k, v)| !v.is_null() && !AT_ROOT_WITH_STATUS.contains(&k)) {
            let words = format!(
                "only {AT_ROOT_WITH_STATUS:?} fields are allowed at the root of the schema if the status subresource is enabled"
            );
            errors.invalid(path, "", &words);
        }
    }
    if flag(schema, "/nullable") {
        errors.forbidden(&format!("{path}.nullable"), "nullable cannot be true at the root");
    }
    let before = errors.causes().len();
    supported(schema, path, Place { root: true, no_default: "", in_meta: false }, errors);
    if errors.causes().len() == before {
        structural(schema, Level::Root, path, errors);
    }
}

/// What the place of a schema forbids.
#[derive(Clone, Copy)]
struct Place {
    root: bool,
    /// Why no default may be set here; "": it may.
    no_default: &'static str,
    in_meta: bool,
}

/// The schemas directly below, with their paths.
fn children<'a>(schema: &'a Value, path: &str) -> Vec<(String, &'a Value)> {
    let mut all = Vec::new();
    for key in ["properties", "definitions"] {
        all.extend(entries(schema, &format!("/{key}")).map(|(k, v)| (format!("{path}.{key}[{k}]"), v)));
    }
    for key in ["additionalProperties", "items", "not"] {
        if schema.get(key).is_some_and(Value::is_object) {
            all.push((format!("{path}.{key}"), &schema[key]));
        }
    }
    for key in ["allOf", "oneOf", "anyOf"] {
        let nested = list(schema, &format!("/{key}")).iter().enumerate();
        all.extend(nested.map(|(i, v)| (format!("{path}.{key}[{i}]"), v)));
    }
    all
}

/// What is not supported at all, here and below.
fn supported(schema: &Value, path: &str, place: Place, errors: &mut FieldErrors) {
    let kind = text(schema, "/type");
    if kind == "null" {
        let words = "type cannot be set to null, use nullable as an alternative";
        errors.forbidden(&format!("{path}.type"), words);
    } else if !kind.is_empty() {
        errors.one_of(&format!("{path}.type"), kind, &TYPES);
    }
    if has(schema, "/default") && !place.no_default.is_empty() {
        errors.forbidden(&format!("{path}.default"), &format!("must not be set {}", place.no_default));
    }
    for key in UNSUPPORTED {
        let given = schema.get(key).filter(|v| !v.is_null() && **v != json!("") && **v != json!({}));
        if given.is_some() {
            errors.forbidden(&format!("{path}.{key}"), &format!("{key} is not supported"));
        }
    }
    if schema.get("items").is_some_and(Value::is_array) {
        errors.forbidden(&format!("{path}.items"), "items must be a schema object and not an array");
    }
    if place.in_meta && flag(schema, "/x-kubernetes-embedded-resource") {
        let words = "must not be used inside of resource meta";
        errors.forbidden(&format!("{path}.x-kubernetes-embedded-resource"), words);
    }
    if flag(schema, "/uniqueItems") {
        let words = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.forbidden(&format!("{path}.uniqueItems"), words);
    }
    let additional = schema.get("additionalProperties").filter(|v| !v.is_null() && **v != json!(true));
    if additional.is_some() && entries(schema, "/properties").next().is_some() {
        let words = "additionalProperties and properties are mutual exclusive";
        errors.forbidden(&format!("{path}.additionalProperties"), words);
    }
    extensions(schema, path, errors);
    rules(schema, path, errors);
    let embedded = flag(schema, "/x-kubernetes-embedded-resource");
    for (below, child) in children(schema, path) {
        let meta = META.iter().find(|m| below == format!("{path}.properties[{m}]"));
        let inner = match meta {
            Some(own) if place.root => Place { root: false, no_default: in_top_level(own), in_meta: true },
            Some(_) if embedded => Place { root: false, in_meta: true, ..place },
            _ if place.in_meta && below.ends_with(".additionalProperties") => Place {
                root: false,
                no_default: "inside additionalProperties applying to object metadata",
                ..place
            },
            _ => Place { root: false, ..place },
        };
        supported(child, &below, inner, errors);
    }
}

fn in_top_level(field: &str) -> &'static str {
    match field {
        "metadata" => "in top-level metadata",
        "kind" => "in top-level kind",
        _ => "in top-level apiVersion",
    }
}

/// List and map types.
fn extensions(schema: &Value, path: &str, errors: &mut FieldErrors) {
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(false)) {
        let at = format!("{path}.x-kubernetes-preserve-unknown-fields");
        errors.invalid(&at, false, "must be true or undefined");
    }
    let kind = text(schema, "/type");
    for (key, wanted, known) in [
        ("x-kubernetes-map-type", "object", &["atomic", "granular"][..]),
        ("x-kubernetes-list-type", "array", &["atomic", "map", "set"]),
    ] {
        let Some(given) = schema.get(key).and_then(Value::as_str) else { continue };
        let words = format!("must be {wanted} if {key} is specified");
        match kind {
            "" => errors.required(&format!("{path}.type"), &words),
            kind if kind != wanted => errors.invalid(&format!("{path}.type"), kind, &words),
            _ => {}
        }
        errors.one_of(&format!("{path}.{key}"), given, known);
    }
    let list_type = text(schema, "/x-kubernetes-list-type");
    let keys: Vec<&str> = texts(schema, "/x-kubernetes-list-map-keys").collect();
    if !keys.is_empty() && list_type != "map" {
        let at = format!("{path}.x-kubernetes-list-type");
        let words = "must be map if x-kubernetes-list-map-keys is non-empty";
        if list_type.is_empty() { errors.required(&at, words) } else { errors.invalid(&at, list_type, words) }
    }
    let items = &schema["items"];
    match list_type {
        "set" => set_items(items, &format!("{path}.items"), errors),
        "map" => map_items(items, &keys, path, errors),
        _ => return,
    }
    if flag(items, "/nullable") {
        let words = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.forbidden(&format!("{path}.items.nullable"), &words);
    }
}

fn set_items(items: &Value, path: &str, errors: &mut FieldErrors) {
    let words = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let (list_type, map_type) =
        (text(items, "/x-kubernetes-list-type"), text(items, "/x-kubernetes-map-type"));
    match text(items, "/type") {
        "array" if !matches!(list_type, "" | "atomic") => {
            errors.invalid(&format!("{path}.x-kubernetes-list-type"), list_type, words);
        }
        "object" if map_type != "atomic" => {
            errors.invalid(&format!("{path}.x-kubernetes-map-type"), map_type, words);
        }
        _ => {}
    }
}

fn map_items(items: &Value, keys: &[&str], path: &str, errors: &mut FieldErrors) {
    let at_keys = format!("{path}.x-kubernetes-list-map-keys");
    if keys.is_empty() {
        errors.required(&at_keys, "must not be empty if x-kubernetes-list-type is map");
    }
    if items.is_null() {
        let words = "must have a schema if x-kubernetes-list-type is map";
        return errors.required(&format!("{path}.items"), words);
    }
    let kind = text(items, "/type");
    if kind != "object" {
        let words = "must be object if parent array's x-kubernetes-list-type is map";
        return errors.invalid(&format!("{path}.items.type"), kind, words);
    }
    let mut seen = BTreeSet::new();
    for key in keys {
        if !seen.insert(*key) {
            errors.invalid(&at_keys, keys.to_vec(), "must not contain duplicate entries");
        }
        let Some((_, property)) = entries(items, "/properties").find(|(k, _)| k == key) else {
            errors.invalid(&at_keys, keys.to_vec(), "entries must all be names of item properties");
            continue;
        };
        let at = format!("{path}.items.properties[{key}]");
        if matches!(text(property, "/type"), "array" | "object") {
            let words = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            errors.invalid(&format!("{at}.type"), kind, words);
        }
        if !texts(items, "/required").any(|r| r == *key) && !has(property, "/default") {
            let words = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.required(&format!("{at}.default"), words);
        }
        if flag(property, "/nullable") {
            let words = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.forbidden(&format!("{at}.nullable"), words);
        }
    }
}

/// The form of CEL rules.
fn rules(schema: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, rule) in list(schema, "/x-kubernetes-validations").iter().enumerate() {
        let path = format!("{path}.x-kubernetes-validations[{i}]");
        let own = text(rule, "/rule").trim();
        if own.is_empty() {
            errors.required(&format!("{path}.rule"), "rule is not specified");
        }
        message(rule, &path, errors);
        if own.contains('\n') && text(rule, "/message").is_empty() {
            let words = "message must be specified if rule contains line breaks";
            errors.required(&format!("{path}.message"), words);
        }
        let expression = text(rule, "/messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            let words = "messageExpression must be non-empty if specified";
            errors.required(&format!("{path}.messageExpression"), words);
        }
        let reason = text(rule, "/reason");
        if !reason.is_empty() {
            errors.one_of(&format!("{path}.reason"), reason, &REASONS);
        }
    }
}

/// The rules of structural schemas, here and below.
fn structural(schema: &Value, level: Level, path: &str, errors: &mut FieldErrors) {
    let kind = text(schema, "/type");
    let either = flag(schema, "/x-kubernetes-int-or-string");
    let open = flag(schema, "/x-kubernetes-preserve-unknown-fields");
    let embedded = flag(schema, "/x-kubernetes-embedded-resource");
    let at = |key: &str| format!("{path}.{key}");
    if kind == "array" && !has(schema, "/items") {
        errors.required(&at("items"), "must be specified");
    }
    if kind.is_empty() && (level == Level::Root || !(either || open)) {
        let words = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        errors.required(&at("type"), words);
    }
    if either && !kind.is_empty() {
        errors.invalid(&at("type"), kind, "must be empty if x-kubernetes-int-or-string is true");
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.invalid(&at("type"), kind, "must be object at the root");
    }
    if level == Level::Root && has(schema, "/additionalProperties") {
        errors.forbidden(&at("additionalProperties"), "must not be used at the root");
    }
    if either && (open || embedded) {
        for (key, given) in
            [("x-kubernetes-preserve-unknown-fields", open), ("x-kubernetes-embedded-resource", embedded)]
        {
            if given {
                errors.invalid(&at(key), true, "must be false if x-kubernetes-int-or-string is true");
            }
        }
    }
    if embedded {
        embedded_resource(schema, path, errors);
    }
    if embedded || level == Level::Root {
        metadata(schema, level, path, errors);
    }
    for (name, property) in entries(schema, "/properties") {
        structural(property, Level::Field, &format!("{path}.properties[{name}]"), errors);
    }
    if schema.get("additionalProperties").is_some_and(Value::is_object) {
        structural(&schema["additionalProperties"], Level::Field, &at("additionalProperties"), errors);
    }
    if schema.get("items").is_some_and(Value::is_object) {
        structural(&schema["items"], Level::Item, &at("items"), errors);
    }
    for (nested, value) in junctors(schema, path) {
        value_validation(value, schema, &nested, either, errors);
    }
}

fn junctors<'a>(schema: &'a Value, path: &str) -> Vec<(String, &'a Value)> {
    let logic = ["allOf", "oneOf", "anyOf"];
    let below = children(schema, path).into_iter();
    let ours = |p: &str| {
        let own = p.strip_prefix(path).unwrap_or_default();
        own == ".not" || logic.iter().any(|l| own.starts_with(&format!(".{l}[")))
    };
    below.filter(|(p, _)| ours(p)).collect()
}

fn embedded_resource(schema: &Value, path: &str, errors: &mut FieldErrors) {
    if has(schema, "/additionalProperties") {
        let words = "must not be used if x-kubernetes-embedded-resource is set";
        errors.forbidden(&format!("{path}.additionalProperties"), words);
    }
    let kind = text(schema, "/type");
    if kind != "object" {
        let words = "must be object if x-kubernetes-embedded-resource is true";
        errors.invalid(&format!("{path}.type"), kind, words);
    }
    let open = flag(schema, "/x-kubernetes-preserve-unknown-fields");
    if !open && entries(schema, "/properties").next().is_none() {
        let words = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        errors.required(&format!("{path}.properties"), words);
    }
}

/// `kind`, `apiVersion` and `metadata` have fixed types; at the root, `metadata` may say little.
fn metadata(schema: &Value, level: Level, path: &str, errors: &mut FieldErrors) {
    for (key, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
        let Some((_, own)) = entries(schema, "/properties").find(|(k, _)| *k == key) else { continue };
        let kind = text(own, "/type");
        if kind != wanted {
            let at = format!("{path}.properties[{key}].type");
            errors.invalid(&at, kind, &format!("must be {wanted}"));
        }
    }
    let Some(metadata) = schema.pointer("/properties/metadata").filter(|_| level == Level::Root) else {
        return;
    };
    let only_names = entries(metadata, "/properties").all(|(k, _)| matches!(k, "name" | "generateName"));
    let says_more = entries(metadata, "")
        .any(|(k, v)| !v.is_null() && !matches!(k, "type" | "properties" | "default" | "description"));
    if !only_names || says_more {
        let words = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        errors.forbidden(&format!("{path}.properties[metadata]"), words);
    }
}

/// What stands inside a junctor: value validation only, of fields that `outer` specifies.
fn value_validation(value: &Value, outer: &Value, path: &str, either: bool, errors: &mut FieldErrors) {
    for (key, words) in OUTSIDE_ONLY {
        let given = value.get(key).filter(|v| !v.is_null() && **v != json!(false) && **v != json!(""));
        // `anyOf: [{type: integer}, {type: string}]` is how int-or-string is written for other readers.
        let allowed = key == "type" && either && matches!(text(value, "/type"), "integer" | "string");
        if given.is_some() && !allowed {
            errors.forbidden(&format!("{path}.{key}"), words);
        }
    }
    for (name, property) in entries(value, "/properties") {
        let at = format!("{path}.properties[{name}]");
        match entries(outer, "/properties").find(|(k, _)| *k == name) {
            Some((_, own)) => {
                value_validation(property, own, &at, flag(own, "/x-kubernetes-int-or-string"), errors)
            }
            None => errors.required(&outer_path(&at), &format!("because it is defined in {at}")),
        }
    }
    if value.get("items").is_some_and(Value::is_object) {
        let at = format!("{path}.items");
        if outer.get("items").is_some_and(Value::is_object) {
            value_validation(&value["items"], &outer["items"], &at, false, errors);
        } else {
            errors.required(&outer_path(&at), &format!("because it is defined in {at}"));
        }
    }
    for (nested, inner) in junctors(value, path) {
        value_validation(inner, outer, &nested, either, errors);
    }
}

/// The path without its junctors: where the field must be specified.
fn outer_path(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for part in path.split('.') {
        let junctor = part == "not" || ["allOf[", "anyOf[", "oneOf["].iter().any(|j| part.starts_with(j));
        if !junctor {
            out.push(part);
        }
    }
    out.join(".")
}

/// The schema of the field at a simple path (`.spec.replicas`).
pub fn at_path<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    path.strip_prefix('.')?
        .split('.')
        .try_fold(schema, |s, step| entries(s, "/properties").find(|(k, _)| *k == step).map(|(_, v)| v))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(schema: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        root(&schema, false, "s", &mut errors);
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    fn with(spec: Value) -> Value {
        json!({"type": "object", "properties": {"spec": spec}})
    }

    #[test]
    fn structural_ones_pass() {
        for spec in [
            json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}, "p": {"x-kubernetes-int-or-string": true,
                "anyOf": [{"type": "integer"}, {"type": "string"}]}}}),
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
            json!({"x-kubernetes-preserve-unknown-fields": true}),
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"properties": {"a": {"pattern": "x"}}}]}),
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}}),
        ] {
            assert_eq!(found(with(spec.clone())), Vec::<String>::new(), "{spec}");
        }
    }

    #[test]
    fn others_do_not() {
        for (spec, expected) in [
            (
                json!({}),
                "s.properties[spec].type: Required value: must not be empty for specified object fields",
            ),
            (json!({"type": "array"}), "s.properties[spec].items: Required value: must be specified"),
            (
                json!({"type": "array", "items": {}}),
                "s.properties[spec].items.type: Required value: must not be empty for specified array items",
            ),
            (
                json!({"type": "null"}),
                "s.properties[spec].type: Forbidden: type cannot be set to null, use nullable as an alternative",
            ),
            (
                json!({"type": "foo"}),
                "s.properties[spec].type: Unsupported value: \"foo\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
            ),
            (
                json!({"type": "object", "$ref": "#/x"}),
                "s.properties[spec].$ref: Forbidden: $ref is not supported",
            ),
            (
                json!({"type": "object", "oneOf": [{"properties": {"a": {"minimum": 1}}}]}),
                "s.properties[spec].properties[a]: Required value: because it is defined in s.properties[spec].oneOf[0].properties[a]",
            ),
            (
                json!({"type": "string", "allOf": [{"type": "string"}]}),
                "s.properties[spec].allOf[0].type: Forbidden: must be empty to be structural",
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}}),
                "s.properties[spec].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
            ),
            (
                json!({"type": "string", "x-kubernetes-validations": [{"rule": ""}]}),
                "s.properties[spec].x-kubernetes-validations[0].rule: Required value: rule is not specified",
            ),
        ] {
            assert_eq!(found(with(spec.clone())).first().map(String::as_str), Some(expected), "{spec}");
        }
        assert_eq!(
            found(json!({"type": "string"})),
            ["s.type: Invalid value: \"string\": must be object at the root"]
        );
        let meta = json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}});
        assert!(
            found(meta)[0].starts_with("s.properties[metadata]: Forbidden: must not specify anything other")
        );
    }
}
