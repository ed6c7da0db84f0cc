//! Rules for `metadata` that every kind shares.

use super::get::{entries, has, int, list, text, texts};
use super::{Behaviour, NameRule};
use crate::field_errors::FieldErrors;
use crate::name;
use serde_json::Value;

/// All annotations of one object, keys and values, in bytes.
pub const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Names that may stand without a domain among finalizers.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

impl NameRule {
    /// Complaints about a name, or about a prefix for generated ones.
    pub fn check(self, text: &str, prefix: bool) -> Vec<String> {
        let masked;
        let text = match text.strip_suffix('-') {
            // What is appended to a prefix makes its end valid.
            Some(head) if prefix => {
                masked = format!("{head}a");
                &masked
            }
            _ => text,
        };
        match self {
            NameRule::Subdomain => name::dns1123_subdomain(text),
            NameRule::Label => name::dns1123_label(text),
            NameRule::Label1035 => name::dns1035_label(text),
            NameRule::PathSegment => name::path_segment(text),
            NameRule::SubdomainUpTo(max) => {
                let mut errors = name::dns1123_subdomain(text);
                if !prefix && text.len() > max {
                    errors.push(format!("must be no more than {max} characters"));
                }
                errors
            }
        }
    }
}

/// Checks the metadata of an object that is about to be created.
pub fn validate(obj: &Value, behaviour: &Behaviour, namespaced: bool, errors: &mut FieldErrors) {
    let prefix = text(obj, "/metadata/generateName");
    if !prefix.is_empty() {
        errors.invalid_all("metadata.generateName", prefix, behaviour.name.check(prefix, true));
    }
    let own = text(obj, "/metadata/name");
    if own.is_empty() {
        errors.required("metadata.name", "name or generateName is required");
    } else {
        errors.invalid_all("metadata.name", own, behaviour.name.check(own, false));
    }
    let namespace = text(obj, "/metadata/namespace");
    match (namespaced, namespace.is_empty()) {
        (true, true) => errors.required("metadata.namespace", ""),
        (true, false) => errors.invalid_all("metadata.namespace", namespace, name::dns1123_label(namespace)),
        (false, false) => errors.forbidden("metadata.namespace", "not allowed on this type"),
        (false, true) => {}
    }
    common(obj, errors);
}

/// What creates and updates check alike.
fn common(obj: &Value, errors: &mut FieldErrors) {
    if let Some(generation) = int(obj, "/metadata/generation") {
        errors.non_negative("metadata.generation", generation);
    }
    labels(obj, "/metadata/labels", "metadata.labels", errors);
    annotations(obj, "/metadata/annotations", "metadata.annotations", errors);
    owners(obj, errors);
    let finalizers: Vec<&str> = texts(obj, "/metadata/finalizers").collect();
    // Upstream is stricter about built-in kinds than about custom resources and their definitions.
    let group = text(obj, "/apiVersion").split_once('/').map_or("", |(group, _)| group);
    let strict = group != "apiextensions.k8s.io" && k8s_schema::groups().contains(&group);
    for finalizer in &finalizers {
        errors.invalid_all("metadata.finalizers", finalizer, name::qualified_name(finalizer));
        if strict && !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(finalizer) {
            let words = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid("metadata.finalizers", *finalizer, words);
        }
    }
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        let words = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid("metadata.finalizers", Value::from(finalizers), words);
    }
}

/// A map of labels.
pub fn labels(obj: &Value, pointer: &str, field: &str, errors: &mut FieldErrors) {
    for (key, value) in entries(obj, pointer) {
        errors.invalid_all(field, key, name::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.invalid_all(field, value, name::label_value(value));
    }
}

/// A map of annotations.
pub fn annotations(obj: &Value, pointer: &str, field: &str, errors: &mut FieldErrors) {
    let mut total = 0;
    for (key, value) in entries(obj, pointer) {
        errors.invalid_all(field, key, name::qualified_name(&key.to_lowercase()));
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_BYTES_MAX {
        errors.too_long(field, ANNOTATIONS_BYTES_MAX);
    }
}

fn owners(obj: &Value, errors: &mut FieldErrors) {
    let mut controllers = Vec::new();
    for owner in list(obj, "/metadata/ownerReferences") {
        let field = |key: &str| format!("metadata.ownerReferences.{key}");
        for (key, words) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if text(owner, &format!("/{key}")).is_empty() {
                errors.invalid(&field(key), "", words);
            }
        }
        if text(owner, "/apiVersion") == "v1" && text(owner, "/kind") == "Event" {
            let words = "/v1, Kind=Event is disallowed from being an owner";
            errors.invalid("metadata.ownerReferences", owner.clone(), words);
        }
        if super::get::flag(owner, "/controller") {
            controllers.push(format!("{}/{}", text(owner, "/kind"), text(owner, "/name")));
        }
    }
    if let [first, second, ..] = &controllers[..] {
        let words = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        let all = obj.pointer("/metadata/ownerReferences").cloned().unwrap_or_default();
        errors.invalid("metadata.ownerReferences", all, &words);
    }
}

/// Checks the metadata of an update against what is stored (after `strategy::prepare_update`).
pub fn validate_update(new: &Value, old: &Value, errors: &mut FieldErrors) {
    common(new, errors);
    if has(old, "/metadata/deletionTimestamp") {
        let before: Vec<&str> = texts(old, "/metadata/finalizers").collect();
        let added: Vec<&str> = texts(new, "/metadata/finalizers").filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let words = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
            );
            errors.forbidden("metadata.finalizers", &words);
        }
    }
    let generation = |v: &Value| int(v, "/metadata/generation").unwrap_or(0);
    if generation(new) < generation(old) {
        errors.invalid("metadata.generation", generation(new), "must not be decremented");
    }
    for key in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let at = |v: &Value| v.pointer(&format!("/metadata/{key}")).cloned().unwrap_or_default();
        errors.immutable(&format!("metadata.{key}"), &at(new), &at(old));
    }
}
