//! Schemas at work, in upstream's words.

use super::jsonpath::JsonPath;
use super::*;
use crate::field_errors::FieldErrors;
use k8s_schema::{ListType, Type};
use serde_json::{Value, json};

fn schema() -> Schema {
    Schema::compile(&json!({
        "type": "object",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["replicas"],
                "properties": {
                    "replicas": {"type": "integer", "minimum": 1, "maximum": 10, "default": 3},
                    "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5, "enum": ["abc", "abd", "toolong"]},
                    "when": {"type": "string", "format": "date-time", "nullable": true},
                    "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                        "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}}},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "rules": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["host"],
                        "items": {"type": "object", "required": ["host"], "properties": {
                            "host": {"type": "string"}, "weight": {"type": "integer", "minimum": 0, "default": 1}}}},
                    "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}, "maxItems": 3},
                    "template": {"type": "object", "x-kubernetes-embedded-resource": true,
                        "x-kubernetes-preserve-unknown-fields": true},
                    "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                        "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                },
            },
        },
    }))
}

fn complaints(value: &Value, old: Option<&Value>) -> Vec<String> {
    let mut errors = FieldErrors::new();
    validate(value, &schema(), old, "", &mut errors);
    errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

#[test]
fn unknown_fields_go_and_are_named() {
    let mut value = json!({"apiVersion": "x/v1", "kind": "W", "metadata": {"name": "a", "odd": 1}, "extra": 1,
        "spec": {"colour": 1, "replicas": 2, "free": {"any": 1, "known": {"a": "x", "b": 1}}, "labels": {"k": "v"},
            "rules": [{"host": "a"}, {"host": "b", "odd": true}], "template": {"kind": "P", "metadata": {"name": "p", "odd": 1}, "x": 1}}});
    let unknown = prune(&mut value, &schema());
    assert_eq!(
        unknown,
        ["extra", "spec.colour", "spec.free.known.b", "spec.rules[1].odd", "spec.template.metadata.odd"]
    );
    assert_eq!(value["spec"]["template"], json!({"kind": "P", "metadata": {"name": "p"}, "x": 1}));
    assert_eq!(value["spec"]["free"], json!({"any": 1, "known": {"a": "x"}}));
    assert_eq!(value["metadata"]["odd"], 1, "metadata is not the schema's");
}

#[test]
fn defaults_fill_what_is_absent() {
    let mut value =
        json!({"spec": {"rules": [{"host": "a"}, {"host": "b", "weight": 5}], "name": null, "when": null}});
    default(&mut value, &schema());
    assert_eq!(value["spec"]["replicas"], 3);
    assert_eq!(value["spec"]["rules"], json!([{"host": "a", "weight": 1}, {"host": "b", "weight": 5}]));
    assert!(value["spec"].get("name").is_none() && value["spec"]["when"].is_null());
    assert!(value["spec"].as_object().unwrap().contains_key("when"));
}

#[test]
fn complaints_are_upstreams() {
    for (spec, expected) in [
        (json!({}), "spec.replicas: Required value"),
        (
            json!({"replicas": 11}),
            "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
        ),
        (
            json!({"replicas": 0}),
            "spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1",
        ),
        (
            json!({"replicas": "x"}),
            "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\"",
        ),
        (
            json!({"replicas": 1, "name": "abe"}),
            "spec.name: Unsupported value: \"abe\": supported values: \"abc\", \"abd\", \"toolong\"",
        ),
        (json!({"replicas": 1, "name": "toolong"}), "spec.name: Too long: may not be more than 5 bytes"),
        (
            json!({"replicas": 1, "when": "now"}),
            "spec.when: Invalid value: \"now\": spec.when in body must be of type date-time: \"now\"",
        ),
        (
            json!({"replicas": 1, "port": true}),
            "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
        ),
        (json!({"replicas": 1, "tags": ["a", "a"]}), "spec.tags[1]: Duplicate value: \"a\""),
        (
            json!({"replicas": 1, "tags": ["a", "b", "c", "d"]}),
            "spec.tags: Too many: 4: must have at most 3 items",
        ),
        (
            json!({"replicas": 1, "rules": [{"host": "a"}, {"host": "a"}]}),
            "spec.rules[1]: Duplicate value: {\"host\":\"a\"}",
        ),
        (
            json!({"replicas": 1, "labels": {"a": 1}}),
            "spec.labels.a: Invalid value: \"integer\": spec.labels.a in body must be of type string: \"integer\"",
        ),
        (
            json!({"replicas": 1, "one": {}}),
            "spec.one: Invalid value: {}: \"spec.one\" must validate one and only one schema (oneOf). Found none valid",
        ),
    ] {
        assert_eq!(complaints(&json!({"spec": spec}), None), [expected], "{spec}");
    }
    assert!(
        complaints(&json!({"spec": {"replicas": 2, "when": null, "port": "http", "one": {"a": "x"}}}), None)
            .is_empty()
    );
}

#[test]
fn what_did_not_change_is_not_checked_again() {
    let old =
        json!({"spec": {"replicas": 99, "rules": [{"host": "a", "weight": -1}, {"host": "b", "weight": 1}]}});
    let new =
        json!({"spec": {"replicas": 99, "rules": [{"host": "b", "weight": 2}, {"host": "a", "weight": -1}]}});
    assert!(complaints(&new, Some(&old)).is_empty());
    let worse = json!({"spec": {"replicas": 98, "rules": [{"host": "a", "weight": -2}]}});
    assert_eq!(complaints(&worse, Some(&old)).len(), 2);
}

#[test]
fn the_body_keeps_list_keys_for_apply() {
    let def = body::definition("org.example.v1.Widget", &schema());
    assert!(matches!(def.field("metadata").unwrap().ty, Type::Object(_)));
    let Type::Object(spec) = &def.field("spec").unwrap().ty else { panic!() };
    let rules = spec.get().field("rules").unwrap();
    assert_eq!(rules.list_type, ListType::Map);
    assert_eq!(&*rules.list_keys, ["host"]);
    assert!(matches!(spec.get().field("labels").unwrap().ty, Type::Map(_)));
}

#[test]
fn paths_find_what_kubectl_shows() {
    let object = json!({"metadata": {"labels": {"a.b/c": "x"}}, "spec": {"ports": [{"n": 1}, {"n": 2}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Synced", "status": "False"}]}});
    for (path, expected) in [
        (".spec.ports[0].n", json!([1])),
        (".spec.ports[-1].n", json!([2])),
        (".spec.ports[*].n", json!([1, 2])),
        (".spec.ports[?(@.n>1)].n", json!([2])),
        (".spec.ports[?(@.n<=1)].n", json!([1])),
        (".metadata.labels['a\\.b/c']", json!(["x"])),
        (".metadata.labels.a\\.b/c", json!(["x"])),
        (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
        (".status.conditions[?(@.type=='Nope')].status", json!([])),
        (".nothing.here", json!([])),
    ] {
        let found = JsonPath::parse(path).unwrap_or_else(|| panic!("{path}"));
        assert_eq!(json!(found.find(&object)), expected, "{path}");
    }
    for bad in ["spec", "..x", ".a[", ".a[?(b)]", ".a[x]"] {
        assert!(JsonPath::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn columns_show_by_type() {
    let now = "2026-01-01T00:10:00Z".parse().unwrap();
    let version = json!({"additionalPrinterColumns": [
        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
        {"name": "Since", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Ready", "type": "boolean", "jsonPath": ".status.ready", "priority": 1},
        {"name": "Text", "type": "string", "jsonPath": ".spec.missing"},
    ]});
    let object = json!({"metadata": {"name": "w", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"replicas": 3}, "status": {"ready": "yes"}});
    let columns = columns::columns(&version);
    assert_eq!(
        columns::cells(&columns, &object, now),
        [json!("w"), json!(3), json!("10m"), Value::Null, Value::Null]
    );
    let definitions = columns::definitions(&columns);
    assert_eq!(
        (definitions[0]["format"].as_str(), definitions[3]["priority"].as_i64()),
        (Some("name"), Some(1))
    );
    assert_eq!(columns::columns(&json!({})).len(), 1);
}

fn ruled() -> Schema {
    let rule = |rule: &str| json!([{ "rule": rule }]);
    Schema::compile(
        &json!({"type": "object", "x-kubernetes-validations": rule("self.metadata.name != 'bad'"), "properties": {
            "spec": {"type": "object",
                "x-kubernetes-validations": [
                    {"rule": "self.min <= self.max", "message": " min above max ", "fieldPath": ".min", "reason": "FieldValueForbidden"},
                    {"rule": "self.min > -100", "messageExpression": "'min is %d'.format([self.min])"},
                ],
                "properties": {
                    "min": {"type": "integer"},
                    "max": {"type": "integer"},
                    "fixed": {"type": "string", "x-kubernetes-validations": rule("self == oldSelf")},
                    "grows": {"type": "integer", "x-kubernetes-validations": [
                        {"rule": "!oldSelf.hasValue() || self > oldSelf.value()", "optionalOldSelf": true}]},
                    "port": {"x-kubernetes-int-or-string": true, "x-kubernetes-validations": rule("self > 1")},
                    "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                        "items": {"type": "object", "x-kubernetes-validations": rule("self.v >= oldSelf.v"),
                            "properties": {"n": {"type": "string"}, "v": {"type": "integer"}}}},
                    "when": {"type": "string", "format": "date-time", "x-kubernetes-validations": rule("self.getFullYear() > 2000")},
                    "sizes": {"type": "object", "additionalProperties": {"type": "integer", "x-kubernetes-validations": rule("self > 0")}},
                }},
        }}),
    )
}

fn broken(new: Value, old: Option<Value>) -> Vec<String> {
    let mut errors = FieldErrors::new();
    rules::validate(&new, &ruled(), old.as_ref(), &mut errors);
    errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
}

#[test]
fn rules_speak_in_upstreams_words() {
    let with = |spec: Value| json!({"metadata": {"name": "a"}, "spec": spec});
    let none: [&str; 0] = [];
    assert_eq!(
        broken(
            with(
                json!({"min": 1, "max": 2, "fixed": "x", "grows": 1, "port": 2, "when": "2026-01-01T00:00:00Z"})
            ),
            None
        ),
        none
    );
    assert_eq!(
        broken(json!({"metadata": {"name": "bad"}, "spec": {"min": 3, "max": 2, "port": "x"}}), None),
        [
            "<nil>: Invalid value: \"object\": failed rule: self.metadata.name != 'bad'",
            "spec.min: Forbidden: min above max",
            "spec.port: Invalid value: \"\": 'no such overload': call arguments did not match a supported operator, function or macro signature for rule: self > 1",
        ]
    );
    assert_eq!(
        broken(with(json!({"min": 1, "max": 2, "sizes": {"a": 1, "b": 0}})), None),
        ["spec.sizes[b]: Invalid value: \"integer\": failed rule: self > 0"]
    );
    assert_eq!(
        broken(with(json!({"min": -100, "max": 2})), None),
        ["spec: Invalid value: \"object\": min is -100"]
    );
    assert_eq!(
        broken(with(json!({})), None),
        [
            "spec: Invalid value: \"object\": no such key: min evaluating rule: min above max",
            "spec: Invalid value: \"object\": no such key: min evaluating rule: self.min > -100"
        ]
    );
}

#[test]
fn rules_compare_with_the_old_value() {
    let with = |spec: Value| {
        let mut spec = spec;
        spec["min"] = json!(1);
        spec["max"] = json!(2);
        json!({"metadata": {"name": "a"}, "spec": spec})
    };
    let old = with(json!({"fixed": "x", "grows": 1, "ports": [{"n": "a", "v": 5}, {"n": "b", "v": 5}]}));
    let new = with(json!({"fixed": "y", "grows": 1, "ports": [{"n": "b", "v": 4}, {"n": "c", "v": 0}]}));
    assert_eq!(
        broken(new, Some(old)),
        [
            "spec.fixed: Invalid value: \"string\": failed rule: self == oldSelf",
            "spec.grows: Invalid value: \"integer\": failed rule: !oldSelf.hasValue() || self > oldSelf.value()",
            "spec.ports[0]: Invalid value: \"object\": failed rule: self.v >= oldSelf.v"
        ]
    );
    let bad = json!({"metadata": {"name": "a"}, "spec": {"min": 3, "max": 2}});
    assert!(broken(bad.clone(), Some(bad)).is_empty(), "what did not change is not asked about again");
}

#[test]
fn definitions_with_wrong_rules_are_refused() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
        "x-kubernetes-validations": [{"rule": "self.nope > 1"}, {"rule": "1 + 1"}, {"rule": "true", "optionalOldSelf": true},
            {"rule": "true", "messageExpression": "1", "fieldPath": ".nope"}],
        "properties": {"list": {"type": "array", "maxItems": 9,
            "items": {"type": "string", "maxLength": 9, "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}}}});
    let mut errors = FieldErrors::new();
    rules::check(&schema, "s", &mut errors);
    let found: Vec<String> = errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
    let at = "s.properties[spec].x-kubernetes-validations";
    assert_eq!(
        found,
        [
            format!(
                "{at}[0].rule: Invalid value: {{\"message\":\"\",\"rule\":\"self.nope > 1\"}}: compilation failed: ERROR: <input>:1:5: undefined field 'nope'\n | self.nope > 1\n | ....^"
            ),
            format!(
                "{at}[1].rule: Invalid value: {{\"message\":\"\",\"rule\":\"1 + 1\"}}: cel expression must evaluate to a bool"
            ),
            format!("{at}[2].optionalOldSelf: Invalid value: true: must not be set if oldSelf is not used in rule"),
            format!(
                "{at}[3].messageExpression: Invalid value: \"1\": messageExpression must evaluate to a string"
            ),
            format!(
                "{at}[3].fieldPath: Invalid value: \".nope\": fieldPath must be a valid path: does not refer to a valid field"
            ),
            "s.properties[spec].properties[list].items.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[spec].properties[list]".to_string(),
        ]
    );
}
