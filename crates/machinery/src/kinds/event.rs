//! Event, under both of its groups (stored as core/v1).

use super::get::{int, text};
use super::spot::Spot;
use super::{Behaviour, CHECKED, FieldKind};
use crate::table::{Cell, Column};
use crate::time;
use jiff::Timestamp;
use serde_json::Value;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[Behaviour {
    resource: "events",
    create_on_update: true,
    validate,

    fields: &[
        ("involvedObject.kind", FieldKind::Text("/involvedObject/kind")),
        ("involvedObject.namespace", FieldKind::Text("/involvedObject/namespace")),
        ("involvedObject.name", FieldKind::Text("/involvedObject/name")),
        ("involvedObject.uid", FieldKind::Text("/involvedObject/uid")),
        ("involvedObject.apiVersion", FieldKind::Text("/involvedObject/apiVersion")),
        ("involvedObject.resourceVersion", FieldKind::Text("/involvedObject/resourceVersion")),
        ("involvedObject.fieldPath", FieldKind::Text("/involvedObject/fieldPath")),
        ("regarding.kind", FieldKind::Text("/involvedObject/kind")),
        ("regarding.namespace", FieldKind::Text("/involvedObject/namespace")),
        ("regarding.name", FieldKind::Text("/involvedObject/name")),
        ("regarding.uid", FieldKind::Text("/involvedObject/uid")),
        ("reason", FieldKind::Text("/reason")),
        ("reportingComponent", FieldKind::Text("/reportingComponent")),
        ("reportingController", FieldKind::Text("/reportingComponent")),
        ("source", FieldKind::Either("/source/component", "/reportingComponent")),
        ("type", FieldKind::Text("/type")),
    ],
    columns: &[
        Column::new("Last Seen", Cell::At(|e, now| last_seen(e, now).into())),
        Column::new("Type", Cell::Text("/type")),
        Column::new("Reason", Cell::Text("/reason")),
        Column::new("Object", Cell::Fn(|e| object(e).into())),
        Column::wide("Subobject", Cell::Text("/involvedObject/fieldPath")),
        Column::wide("Source", Cell::Fn(|e| source(e).into())),
        Column::new("Message", Cell::Fn(|e| text(e, "/message").trim().into())),
        Column::wide("First Seen", Cell::At(|e, now| first_seen(e, now).into())),
        Column::wide("Count", Cell::Fn(|e| count(e).into())),
        Column { priority: 1, ..Column::NAME },
    ],
    ..CHECKED
}];

fn count(e: &Value) -> i64 {
    int(e, "/series/count").unwrap_or_else(|| int(e, "/count").unwrap_or(0).max(1))
}

fn object(e: &Value) -> String {
    let (kind, own) = (text(e, "/involvedObject/kind").to_lowercase(), text(e, "/involvedObject/name"));
    if own.is_empty() { kind } else { format!("{kind}/{own}") }
}

fn source(e: &Value) -> String {
    let (component, host) = (text(e, "/source/component"), text(e, "/source/host"));
    let component = if component.is_empty() { text(e, "/reportingComponent") } else { component };
    let host = if host.is_empty() { text(e, "/reportingInstance") } else { host };
    if host.is_empty() { component.into() } else { format!("{component}, {host}") }
}

fn seen(e: &Value, now: Timestamp, keys: &[&str]) -> String {
    let at = keys.iter().map(|k| text(e, k)).find(|t| !t.is_empty());
    time::age(now, at)
}

fn last_seen(e: &Value, now: Timestamp) -> String {
    seen(
        e,
        now,
        &[
            "/series/lastObservedTime",
            "/lastTimestamp",
            "/firstTimestamp",
            "/eventTime",
            "/metadata/creationTimestamp",
        ],
    )
}

fn first_seen(e: &Value, now: Timestamp) -> String {
    seen(e, now, &["/firstTimestamp", "/eventTime", "/metadata/creationTimestamp"])
}

fn validate(obj: &Spot) {
    let (own, about) = (obj.text("metadata.namespace"), obj.text("involvedObject.namespace"));
    // Events of cluster-scoped objects live in `default` (or kube-system).
    let fits = if about.is_empty() { matches!(own, "default" | "kube-system") } else { about == own };
    if !fits {
        obj.invalid("involvedObject.namespace", about, "does not match event.namespace");
    }
    if !obj.has("eventTime") {
        return;
    }
    for (key, max) in
        [("reportingComponent", 253), ("reportingInstance", 128), ("action", 128), ("reason", 128)]
    {
        let shown = if key == "reportingComponent" { "reportingController" } else { key };
        match obj.text(key).len() {
            0 => obj.required(shown, ""),
            n if n > max => obj.invalid(shown, "", &format!("can have at most {max} characters")),
            _ => {}
        }
    }
    if obj.text("message").len() > 1024 {
        obj.invalid("message", "", "can have at most 1024 characters");
    }
}
