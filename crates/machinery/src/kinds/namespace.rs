//! Namespace: the finalizer that empties it, its phase, its name label.

use super::get::{child, default, each, list, set, text};
use super::spot::Spot;
use super::{Behaviour, CHECKED, FieldKind, NameRule};
use crate::table::{Cell, Column};
use serde_json::{Value, json};

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[Behaviour {
    resource: "namespaces",
    name: NameRule::Label,
    defaults: name_label,
    prepare_create,
    prepare_update,
    validate_update: Some(validate_update),
    fields: &[
        ("status.phase", FieldKind::Text("/status/phase")),
        ("name", FieldKind::Text("/metadata/name")),
    ],
    columns: &[Column::NAME, Column::new("Status", Cell::Text("/status/phase")), Column::AGE],
    ..CHECKED
}];

fn name_label(obj: &mut Value) {
    let name = text(obj, "/metadata/name").to_string();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = child(obj, "metadata").and_then(|m| child(m, "labels")) {
        set(labels, "kubernetes.io/metadata.name", name);
    }
}

fn prepare_create(obj: &mut Value) {
    set(obj, "status", json!({"phase": "Active"}));
    let Some(spec) = child(obj, "spec") else { return };
    default(spec, "finalizers", json!([]));
    let mut found = false;
    each(spec, "/finalizers", |f| found |= f == "kubernetes");
    if !found && let Some(Value::Array(finalizers)) = spec.get_mut("finalizers") {
        finalizers.push("kubernetes".into());
    }
}

/// `spec.finalizers` change only through the `finalize` subresource.
fn prepare_update(new: &mut Value, old: &Value) {
    set(new, "spec", old.get("spec").cloned().unwrap_or_else(|| json!({})));
    name_label(new);
}

fn validate_update(new: &Spot, old: &Value) {
    if new.list("spec.finalizers") != list(old, "/spec/finalizers") {
        new.forbidden("spec.finalizers", "may only be changed through the finalize subresource");
    }
}
