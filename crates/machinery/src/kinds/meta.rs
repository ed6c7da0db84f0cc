//! Rules for `metadata` that every kind shares.

use super::get::{entries, has, int, text, texts};
use super::spot::Spot;
use super::{Behaviour, NameRule};
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
            NameRule::ConfigKey => name::config_key(text),
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
pub fn validate(obj: &Spot, behaviour: &Behaviour, namespaced: bool) {
    let metadata = obj.key("metadata");
    let prefix = metadata.text("generateName");
    if !prefix.is_empty() {
        metadata.invalid_all("generateName", prefix, behaviour.name.check(prefix, true));
    }
    match metadata.text("name") {
        "" => metadata.required("name", "name or generateName is required"),
        own => metadata.invalid_all("name", own, behaviour.name.check(own, false)),
    }
    match (namespaced, metadata.text("namespace")) {
        (true, "") => metadata.required("namespace", ""),
        (true, _) => metadata.like("namespace", name::dns1123_label),
        (false, "") => {}
        (false, _) => metadata.forbidden("namespace", "not allowed on this type"),
    }
    common(obj, &metadata);
}

/// What creates and updates check alike.
fn common(obj: &Spot, metadata: &Spot) {
    metadata.non_negative(&["generation"]);
    labels(&metadata.key("labels"));
    annotations(&metadata.key("annotations"));
    owners(metadata);
    let finalizers = metadata.texts("finalizers");
    // Upstream is stricter about built-in kinds than about custom resources and their definitions.
    let group = obj.text("apiVersion").split_once('/').map_or("", |(group, _)| group);
    let strict = group != "apiextensions.k8s.io" && k8s_schema::groups().contains(&group);
    for finalizer in &finalizers {
        metadata.invalid_all("finalizers", finalizer, name::qualified_name(finalizer));
        if strict && !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(finalizer) {
            let words = "name is neither a standard finalizer name nor is it fully qualified";
            metadata.invalid("finalizers", *finalizer, words);
        }
    }
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        metadata.wrong("finalizers", "finalizer orphan and foregroundDeletion cannot be both set");
    }
}

/// A map of labels.
pub fn labels(s: &Spot) {
    for (key, value) in entries(s.v, "") {
        s.invalid_all("", key, name::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        s.invalid_all("", value, name::label_value(value));
    }
}

/// A map of annotations.
pub fn annotations(s: &Spot) {
    let mut total = 0;
    for (key, value) in entries(s.v, "") {
        s.invalid_all("", key, name::qualified_name(&key.to_lowercase()));
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    s.no_longer("", total, ANNOTATIONS_BYTES_MAX);
}

fn owners(metadata: &Spot) {
    let all = metadata.key("ownerReferences");
    let mut controllers = Vec::new();
    for owner in all.list("") {
        for key in ["apiVersion", "kind", "name", "uid"]
            .into_iter()
            .filter(|k| !owner[*k].is_string() || owner[*k] == "")
        {
            let words = if key == "apiVersion" { "version must not be empty" } else { "must not be empty" };
            all.invalid(key, "", words);
        }
        let kind = text(owner, "/kind");
        if text(owner, "/apiVersion") == "v1" && kind == "Event" {
            all.invalid("", owner.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        if super::get::flag(owner, "/controller") {
            controllers.push(format!("{kind}/{}", text(owner, "/name")));
        }
    }
    if let [first, second, ..] = &controllers[..] {
        let words = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        all.wrong("", &words);
    }
}

/// Checks the metadata of an update against what is stored (after `strategy::prepare_update`).
pub fn validate_update(new: &Spot, old: &Value) {
    let (metadata, before) = (new.key("metadata"), &old["metadata"]);
    common(new, &metadata);
    if has(before, "/deletionTimestamp") {
        let known: Vec<&str> = texts(before, "/finalizers").collect();
        let added: Vec<&str> =
            metadata.texts("finalizers").into_iter().filter(|f| !known.contains(f)).collect();
        if !added.is_empty() {
            let words = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
            );
            metadata.forbidden("finalizers", &words);
        }
    }
    let least = int(before, "/generation").unwrap_or(0);
    metadata.within_or_zero("generation", least..=i64::MAX, "must not be decremented");
    for key in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        metadata.immutable(key, before);
    }
}
