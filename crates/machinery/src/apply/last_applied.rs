//! From client-side to server-side apply: kubectl's annotation says what it owned before there were managers.

use super::compare::{compare, field_set};
use super::set::{self, Node};
use super::shape::Spot;
use serde_json::Value;

/// The manager whose annotation is believed and kept up to date; others opt out by their name.
pub const KUBECTL: &str = "kubectl";
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// All annotations of an object together, as upstream bounds them.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// What the annotation claims and the object still holds.
pub fn still_true(root: Spot<'_>, live: &Value, api_version: &str) -> Node {
    let text = live["metadata"]["annotations"][ANNOTATION].as_str().unwrap_or_default();
    let Ok(applied) = serde_json::from_str::<Value>(text) else { return Node::new() };
    if applied["apiVersion"] != api_version {
        return Node::new();
    }
    let found = compare(root, Some(&applied), live);
    let mut set = field_set(root, &applied);
    for differs in [&found.modified, &found.added, &found.removed] {
        set::subtract(&mut set, differs);
    }
    set
}

/// Writes the configuration into the annotation, if the object has one.
pub fn sync(object: &mut Value, config: &Value) {
    let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else {
        return;
    };
    if !annotations.contains_key(ANNOTATION) {
        return;
    }
    let mut config = config.clone();
    if let Some(own) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        own.remove(ANNOTATION);
    }
    let text = format!("{config}\n");
    let others = annotations.iter().filter(|(key, _)| *key != ANNOTATION);
    let bytes: usize = others.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if bytes + ANNOTATION.len() + text.len() > ANNOTATIONS_BYTES_MAX {
        annotations.remove(ANNOTATION);
    } else {
        annotations.insert(ANNOTATION.into(), text.into());
    }
}
