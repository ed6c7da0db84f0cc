//! The rules for a custom resource's OpenAPI schema: what is not supported, and what makes it *structural*.
//!
//! A structural schema gives every field its type outside of `allOf`, `anyOf`, `oneOf` and `not`, so that a server
//! can prune, default and convert by it. Deliberately not here: whether defaults fit their schema, CEL rules beyond
//! their form (both need the compiled schema).

use super::super::admission_policy::message;
use crate::kinds::get::entries;
use crate::kinds::spot::Spot;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// Fields that are no resource's own, and where a default stands that is set there.
const META: [(&str, &str); 3] = [
    ("metadata", "in top-level metadata"),
    ("kind", "in top-level kind"),
    ("apiVersion", "in top-level apiVersion"),
];
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
/// What may not stand inside `allOf`, `anyOf`, `oneOf`, `not`, and what it must be there.
const OUTSIDE_ONLY: [(&str, &str); 11] = [
    ("type", "empty"),
    ("title", "empty"),
    ("description", "empty"),
    ("default", "undefined"),
    ("additionalProperties", "undefined"),
    ("nullable", "false"),
    ("x-kubernetes-preserve-unknown-fields", "false"),
    ("x-kubernetes-embedded-resource", "false"),
    ("x-kubernetes-int-or-string", "false"),
    ("x-kubernetes-list-map-keys", "empty"),
    ("x-kubernetes-list-type", "undefined"),
];

/// Where a schema stands.
#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Field,
    Item,
}

/// Checks the root schema of a version.
pub fn root(schema: &Spot, with_status: bool) {
    if with_status {
        let kind = schema.text("type");
        if !kind.is_empty() && kind != "object" {
            let words = "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
            schema.wrong("type", words);
        }
        if entries(schema.v, "").any(|(k, v)| !v.is_null() && !AT_ROOT_WITH_STATUS.contains(&k)) {
            let words = format!(
                "only {AT_ROOT_WITH_STATUS:?} fields are allowed at the root of the schema if the status subresource is enabled"
            );
            schema.invalid("", "", &words);
        }
    }
    if schema.flag("nullable") {
        schema.forbidden("nullable", "nullable cannot be true at the root");
    }
    let before = schema.count();
    supported(schema, Place { root: true, no_default: "", in_meta: false });
    if schema.count() == before {
        structural(schema, Level::Root);
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

/// The schema under a keyword, where it is one.
fn below<'a>(schema: &Spot<'a>, key: &str) -> Option<Spot<'a>> {
    schema.opt(key).filter(|s| s.v.is_object())
}

/// Those of `allOf`, `oneOf` and `anyOf`.
fn combined<'a>(schema: &Spot<'a>) -> impl Iterator<Item = Spot<'a>> + use<'a> {
    let all = ["allOf", "oneOf", "anyOf"].map(|key| schema.each(key));
    all.into_iter().flatten()
}

/// What stands under `not` and its like.
fn junctors<'a>(schema: &Spot<'a>) -> impl Iterator<Item = Spot<'a>> + use<'a> {
    below(schema, "not").into_iter().chain(combined(schema))
}

/// What is not supported at all, here and below.
fn supported(schema: &Spot, place: Place) {
    match schema.text("type") {
        "" => {}
        "null" => {
            schema.forbidden("type", "type cannot be set to null, use nullable as an alternative");
        }
        _ => schema.known("type", &TYPES),
    }
    if schema.has("default") && !place.no_default.is_empty() {
        schema.forbidden("default", &format!("must not be set {}", place.no_default));
    }
    for key in UNSUPPORTED {
        let given = schema.v.get(key).filter(|v| !v.is_null() && **v != json!("") && **v != json!({}));
        if given.is_some() {
            schema.forbidden(key, &format!("{key} is not supported"));
        }
    }
    if schema.v["items"].is_array() {
        schema.forbidden("items", "items must be a schema object and not an array");
    }
    let embedded = schema.flag("x-kubernetes-embedded-resource");
    if place.in_meta && embedded {
        schema.forbidden("x-kubernetes-embedded-resource", "must not be used inside of resource meta");
    }
    if schema.flag("uniqueItems") {
        let words = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        schema.forbidden("uniqueItems", words);
    }
    let additional = schema.has("additionalProperties") && schema.v["additionalProperties"] != true;
    if additional && schema.entries("properties").next().is_some() {
        schema.forbidden("additionalProperties", "additionalProperties and properties are mutual exclusive");
    }
    extensions(schema);
    rules(schema);
    let inner = Place { root: false, ..place };
    for (name, child) in schema.entries("properties") {
        let own = META.iter().find(|(own, _)| *own == name);
        let inner = match own {
            Some((_, words)) if place.root => Place { no_default: words, in_meta: true, ..inner },
            Some(_) if embedded => Place { in_meta: true, ..inner },
            _ => inner,
        };
        supported(&child, inner);
    }
    schema.entries("definitions").for_each(|(_, child)| supported(&child, inner));
    if let Some(child) = below(schema, "additionalProperties") {
        let no_default = "inside additionalProperties applying to object metadata";
        supported(&child, if place.in_meta { Place { no_default, ..inner } } else { inner });
    }
    let rest = below(schema, "items").into_iter().chain(junctors(schema));
    rest.for_each(|child| supported(&child, inner));
}

/// List and map types.
fn extensions(schema: &Spot) {
    if schema.v["x-kubernetes-preserve-unknown-fields"] == false {
        schema.invalid("x-kubernetes-preserve-unknown-fields", false, "must be true or undefined");
    }
    for (key, wanted, known) in [
        ("x-kubernetes-map-type", "object", &["atomic", "granular"][..]),
        ("x-kubernetes-list-type", "array", &["atomic", "map", "set"]),
    ] {
        if !schema.v[key].is_string() {
            continue;
        }
        let words = format!("must be {wanted} if {key} is specified");
        match schema.text("type") {
            "" => schema.required("type", &words),
            kind if kind != wanted => schema.wrong("type", &words),
            _ => {}
        }
        schema.known(key, known);
    }
    let list_type = schema.text("x-kubernetes-list-type");
    let keys = schema.texts("x-kubernetes-list-map-keys");
    if !keys.is_empty() && list_type != "map" {
        let words = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            "" => schema.required("x-kubernetes-list-type", words),
            _ => schema.wrong("x-kubernetes-list-type", words),
        }
    }
    let items = schema.key("items");
    match list_type {
        "set" => set_items(&items),
        "map" => map_items(schema, &items, &keys),
        _ => return,
    }
    if items.flag("nullable") {
        let words = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        items.forbidden("nullable", &words);
    }
}

fn set_items(items: &Spot) {
    let words = "must be atomic as item of a list with x-kubernetes-list-type=set";
    let (list_type, map_type) = (items.text("x-kubernetes-list-type"), items.text("x-kubernetes-map-type"));
    match items.text("type") {
        "array" if !matches!(list_type, "" | "atomic") => items.wrong("x-kubernetes-list-type", words),
        "object" if map_type != "atomic" => items.invalid("x-kubernetes-map-type", map_type, words),
        _ => {}
    }
}

fn map_items(schema: &Spot, items: &Spot, keys: &[&str]) {
    let at_keys = "x-kubernetes-list-map-keys";
    if keys.is_empty() {
        schema.required(at_keys, "must not be empty if x-kubernetes-list-type is map");
    }
    if items.v.is_null() {
        return items.required("", "must have a schema if x-kubernetes-list-type is map");
    }
    let kind = items.text("type");
    if kind != "object" {
        let words = "must be object if parent array's x-kubernetes-list-type is map";
        return items.invalid("type", kind, words);
    }
    let mut seen = BTreeSet::new();
    for key in keys {
        if !seen.insert(*key) {
            schema.invalid(at_keys, keys.to_vec(), "must not contain duplicate entries");
        }
        let Some((_, property)) = items.entries("properties").find(|(k, _)| k == key) else {
            schema.invalid(at_keys, keys.to_vec(), "entries must all be names of item properties");
            continue;
        };
        if matches!(property.text("type"), "array" | "object") {
            let words = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            property.invalid("type", kind, words);
        }
        let listed = "this property is in x-kubernetes-list-map-keys, so it";
        if !items.texts("required").contains(key) && !property.has("default") {
            property.required("default", &format!("{listed} must have a default or be a required property"));
        }
        if property.flag("nullable") {
            property.forbidden("nullable", &format!("{listed} cannot be nullable"));
        }
    }
}

/// The form of CEL rules.
fn rules(schema: &Spot) {
    for rule in schema.each("x-kubernetes-validations") {
        let own = rule.text("rule").trim();
        if own.is_empty() {
            rule.required("rule", "rule is not specified");
        }
        message(&rule);
        if own.contains('\n') && rule.text("message").is_empty() {
            rule.required("message", "message must be specified if rule contains line breaks");
        }
        let expression = rule.text("messageExpression");
        if !expression.is_empty() && expression.trim().is_empty() {
            rule.required("messageExpression", "messageExpression must be non-empty if specified");
        }
        rule.one_of_opt("reason", &REASONS);
    }
}

/// The rules of structural schemas, here and below.
fn structural(schema: &Spot, level: Level) {
    let kind = schema.text("type");
    let either = schema.flag("x-kubernetes-int-or-string");
    let open = schema.flag("x-kubernetes-preserve-unknown-fields");
    let embedded = schema.flag("x-kubernetes-embedded-resource");
    if kind == "array" && !schema.has("items") {
        schema.required("items", "must be specified");
    }
    if kind.is_empty() && (level == Level::Root || !(either || open)) {
        let words = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        schema.required("type", words);
    }
    if either && !kind.is_empty() {
        schema.wrong("type", "must be empty if x-kubernetes-int-or-string is true");
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        schema.wrong("type", "must be object at the root");
    }
    if level == Level::Root && schema.has("additionalProperties") {
        schema.forbidden("additionalProperties", "must not be used at the root");
    }
    for (key, given) in
        [("x-kubernetes-preserve-unknown-fields", open), ("x-kubernetes-embedded-resource", embedded)]
    {
        if either && given {
            schema.invalid(key, true, "must be false if x-kubernetes-int-or-string is true");
        }
    }
    if embedded {
        embedded_resource(schema);
    }
    if embedded || level == Level::Root {
        metadata(schema, level);
    }
    schema.entries("properties").for_each(|(_, property)| structural(&property, Level::Field));
    below(schema, "additionalProperties").iter().for_each(|s| structural(s, Level::Field));
    below(schema, "items").iter().for_each(|s| structural(s, Level::Item));
    junctors(schema).for_each(|s| value_validation(&s, schema, either));
}

fn embedded_resource(schema: &Spot) {
    if schema.has("additionalProperties") {
        let words = "must not be used if x-kubernetes-embedded-resource is set";
        schema.forbidden("additionalProperties", words);
    }
    let kind = schema.text("type");
    if kind != "object" {
        schema.invalid("type", kind, "must be object if x-kubernetes-embedded-resource is true");
    }
    let open = schema.flag("x-kubernetes-preserve-unknown-fields");
    if !open && schema.entries("properties").next().is_none() {
        let words = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        schema.required("properties", words);
    }
}

/// `kind`, `apiVersion` and `metadata` have fixed types; at the root, `metadata` may say little.
fn metadata(schema: &Spot, level: Level) {
    let property = |key: &str| schema.entries("properties").find(|(k, _)| *k == key).map(|(_, own)| own);
    for (key, wanted) in [("kind", "string"), ("apiVersion", "string"), ("metadata", "object")] {
        let Some(own) = property(key) else { continue };
        if own.text("type") != wanted {
            own.invalid("type", own.text("type"), &format!("must be {wanted}"));
        }
    }
    let Some(metadata) = property("metadata").filter(|_| level == Level::Root) else { return };
    let only_names = metadata.entries("properties").all(|(k, _)| matches!(k, "name" | "generateName"));
    let says_more = entries(metadata.v, "")
        .any(|(k, v)| !v.is_null() && !matches!(k, "type" | "properties" | "default" | "description"));
    if !only_names || says_more {
        let words = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        metadata.forbidden("", words);
    }
}

/// What stands inside a junctor: value validation only, of fields that `outer` specifies.
fn value_validation(value: &Spot, outer: &Spot, either: bool) {
    for (key, state) in OUTSIDE_ONLY {
        let given = value.v.get(key).filter(|v| !v.is_null() && **v != json!(false) && **v != json!(""));
        // `anyOf: [{type: integer}, {type: string}]` is how int-or-string is written for other readers.
        let allowed = key == "type" && either && matches!(value.text("type"), "integer" | "string");
        if given.is_some() && !allowed {
            value.forbidden(key, &format!("must be {state} to be structural"));
        }
    }
    let missing = |inner: &Spot| {
        let at = inner.at("");
        inner.named(outer_path(&at)).required("", &format!("because it is defined in {at}"));
    };
    for (name, property) in value.entries("properties") {
        match outer.entries("properties").find(|(k, _)| *k == name) {
            Some((_, own)) => value_validation(&property, &own, own.flag("x-kubernetes-int-or-string")),
            None => missing(&property),
        }
    }
    if let Some(items) = below(value, "items") {
        match below(outer, "items") {
            Some(own) => value_validation(&items, &own, false),
            None => missing(&items),
        }
    }
    junctors(value).for_each(|inner| value_validation(&inner, outer, either));
}

/// The path without its junctors: where the field must be specified.
fn outer_path(path: &str) -> String {
    let is_junctor =
        |part: &&str| *part == "not" || ["allOf[", "anyOf[", "oneOf["].iter().any(|j| part.starts_with(j));
    path.split('.').filter(|part| !is_junctor(part)).collect::<Vec<_>>().join(".")
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
    use crate::field_errors::FieldErrors;

    fn found(schema: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        root(&Spot::new(&schema, "s", &mut errors), false);
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
