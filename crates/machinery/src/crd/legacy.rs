//! Definitions as old manifests write them (`apiextensions.k8s.io/v1beta1`), as today's, and back.
//!
//! One schema, one set of columns and subresources for all versions move into each version; schemas that leave types
//! out get them, so that they are structural; what kept unknown fields says so in its schema.

use serde_json::{Map, Value, json};

/// Keys that v1beta1 may have once for all versions.
const SHARED: [&str; 2] = ["subresources", "additionalPrinterColumns"];
/// Deeper schemas are left as they are, for validation to judge.
const DEPTH_MAX: usize = 64;

/// From v1beta1. Never fails: what makes no sense is validation's to refuse.
pub fn to_v1(definition: &mut Value) {
    let Some(spec) = definition.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let only = spec.remove("version").and_then(|v| v.as_str().map(str::to_string)).filter(|v| !v.is_empty());
    let versions = spec.entry("versions").or_insert_with(|| json!([]));
    if let (Some(only), Some([])) = (only, versions.as_array().map(Vec::as_slice)) {
        *versions = json!([{"name": only, "served": true, "storage": true}]);
    }
    let keeps = spec.remove("preserveUnknownFields").is_none_or(|v| v != false);
    let schema = spec.remove("validation").map(|mut v| v["openAPIV3Schema"].take()).filter(|v| !v.is_null());
    let shared: Vec<(&str, Value)> = SHARED.iter().filter_map(|k| Some((*k, spec.remove(*k)?))).collect();
    for version in spec.get_mut("versions").and_then(Value::as_array_mut).into_iter().flatten() {
        for (key, value) in &shared {
            if version.get(*key).is_none_or(Value::is_null) {
                version[*key] = value.clone();
            }
        }
        if version["schema"]["openAPIV3Schema"].is_null() {
            version["schema"] = json!({"openAPIV3Schema": schema.clone().unwrap_or_else(|| json!({}))});
        }
        let schema = &mut version["schema"]["openAPIV3Schema"];
        structural(schema, 0);
        schema["type"] = json!("object");
        if keeps {
            schema["x-kubernetes-preserve-unknown-fields"] = json!(true);
        }
        for column in version["additionalPrinterColumns"].as_array_mut().into_iter().flatten() {
            rename(column, "JSONPath", "jsonPath");
        }
    }
    spec.entry("scope").or_insert_with(|| json!("Namespaced"));
    let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) else { return };
    let client = conversion.remove("webhookClientConfig").filter(|v| !v.is_null());
    let reviews = conversion.remove("conversionReviewVersions").filter(|v| !v.is_null());
    if let Some(client) = client {
        let reviews = reviews.unwrap_or_else(|| json!(["v1beta1"]));
        conversion
            .insert("webhook".into(), json!({"clientConfig": client, "conversionReviewVersions": reviews}));
    }
}

/// To v1beta1: versions keep what is theirs, which that version allows too.
pub fn from_v1(definition: &mut Value) {
    let Some(spec) = definition.get_mut("spec").and_then(Value::as_object_mut) else { return };
    spec.insert("preserveUnknownFields".into(), json!(false));
    let mut first = Value::Null;
    for version in spec.get_mut("versions").and_then(Value::as_array_mut).into_iter().flatten() {
        for column in version["additionalPrinterColumns"].as_array_mut().into_iter().flatten() {
            rename(column, "jsonPath", "JSONPath");
        }
        let empty: Vec<&str> = SHARED.into_iter().filter(|k| version[*k].is_null()).collect();
        for key in empty {
            version.as_object_mut().and_then(|v| v.remove(key));
        }
        if first.is_null() {
            first = version["name"].clone();
        }
    }
    spec.insert("version".into(), first);
    let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) else { return };
    if let Some(mut webhook) = conversion.remove("webhook") {
        conversion.insert("webhookClientConfig".into(), webhook["clientConfig"].take());
        conversion.insert("conversionReviewVersions".into(), webhook["conversionReviewVersions"].take());
    }
}

fn rename(object: &mut Value, from: &str, to: &str) {
    let Some(map) = object.as_object_mut() else { return };
    if let Some(value) = map.remove(from) {
        map.insert(to.into(), value);
    }
}

/// Gives every place a type: what it must be, or anything.
fn structural(schema: &mut Value, depth: usize) {
    let Some(map) = schema.as_object_mut().filter(|_| depth < DEPTH_MAX) else { return };
    let typed = map.get("type").and_then(Value::as_str).is_some_and(|t| !t.is_empty());
    let anything = ["x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"];
    if !typed && !anything.iter().any(|k| map.get(*k) == Some(&json!(true))) {
        match guessed(map) {
            Some(ty) => drop(map.insert("type".into(), json!(ty))),
            None => drop(map.insert("x-kubernetes-preserve-unknown-fields".into(), json!(true))),
        }
    }
    for below in
        map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
    {
        structural(below, depth + 1);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(below) = map.get_mut(key) {
            structural(below, depth + 1);
        }
    }
}

fn guessed(map: &Map<String, Value>) -> Option<&'static str> {
    let has = |keys: &[&str]| keys.iter().any(|k| map.contains_key(*k));
    match () {
        () if has(&["properties", "additionalProperties", "required"]) => Some("object"),
        () if has(&["items", "minItems", "maxItems"]) => Some("array"),
        () if has(&["pattern", "minLength", "maxLength"]) => Some("string"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_manifests_become_todays_and_come_back() {
        let mut definition = json!({"spec": {"group": "stable.example.com", "version": "v1",
            "names": {"plural": "crontabs", "kind": "CronTab"}, "subresources": {"status": {}},
            "additionalPrinterColumns": [{"name": "Spec", "type": "string", "JSONPath": ".spec.cronSpec"}],
            "validation": {"openAPIV3Schema": {"properties": {"spec": {"required": ["cronSpec"],
                "properties": {"cronSpec": {"type": "string"}, "list": {"items": {}}}}}}},
            "conversion": {"strategy": "Webhook", "webhookClientConfig": {"url": "https://x/y"}}}});
        to_v1(&mut definition);
        let version = &definition["spec"]["versions"][0];
        assert_eq!((version["name"].as_str(), version["storage"].as_bool()), (Some("v1"), Some(true)));
        assert_eq!(version["subresources"], json!({"status": {}}));
        assert_eq!(version["additionalPrinterColumns"][0]["jsonPath"], ".spec.cronSpec");
        assert_eq!(
            version["schema"]["openAPIV3Schema"],
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "spec": {"type": "object", "required": ["cronSpec"], "properties": {"cronSpec": {"type": "string"},
                    "list": {"type": "array", "items": {"x-kubernetes-preserve-unknown-fields": true}}}}}})
        );
        assert_eq!(definition["spec"]["scope"], "Namespaced");
        assert_eq!(
            definition["spec"]["conversion"]["webhook"]["conversionReviewVersions"],
            json!(["v1beta1"])
        );
        let stored = definition.clone();
        from_v1(&mut definition);
        assert_eq!(definition["spec"]["version"], "v1");
        assert_eq!(definition["spec"]["conversion"]["webhookClientConfig"]["url"], "https://x/y");
        to_v1(&mut definition);
        assert_eq!(definition, stored);
        let mut bare = json!({"spec": {"version": "v1"}});
        to_v1(&mut bare);
        let schema = &bare["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        assert_eq!(*schema, json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
        for odd in [json!(null), json!({"spec": []}), json!({"spec": {"versions": {}, "conversion": 1}})] {
            to_v1(&mut odd.clone());
            from_v1(&mut odd.clone());
        }
    }
}
