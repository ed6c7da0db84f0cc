//! Node: taints, capacity, the columns of `kubectl get nodes`.

use super::get::{entries, enumerated, flag, has, list, required, set, text};
use super::pod::condition;
use super::{Behaviour, FieldKind, GENERIC};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::table::{Cell, Column, none_if_empty};
use serde_json::Value;
use std::collections::BTreeSet;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[Behaviour {
    resource: "nodes",
    validated: true,
    drops_status: false,
    defaults: allocatable,
    prepare_update: |new, old| {
        if let Some(status) = old.get("status") {
            set(new, "status", status.clone());
        }
    },
    validate_create: validate,
    validate_update: |new, old, errors| {
        validate(new, errors);
        let (id, before) = (text(new, "/spec/providerID"), text(old, "/spec/providerID"));
        if !before.is_empty() && id != before {
            errors.forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            );
        }
    },
    fields: &[("spec.unschedulable", FieldKind::Bool("/spec/unschedulable"))],
    columns: &[
        Column::NAME,
        Column::new("Status", Cell::Fn(|n| status(n).into())),
        Column::new("Roles", Cell::Fn(|n| roles(n).into())),
        Column::AGE,
        Column::new("Version", Cell::Text("/status/nodeInfo/kubeletVersion")),
        Column::wide("Internal-IP", Cell::Fn(|n| none_if_empty(address(n, "InternalIP")).into())),
        Column::wide("External-IP", Cell::Fn(|n| none_if_empty(address(n, "ExternalIP")).into())),
        Column::wide("OS-Image", Cell::Fn(|n| unknown_if_empty(text(n, "/status/nodeInfo/osImage")))),
        Column::wide(
            "Kernel-Version",
            Cell::Fn(|n| unknown_if_empty(text(n, "/status/nodeInfo/kernelVersion"))),
        ),
        Column::wide(
            "Container-Runtime",
            Cell::Fn(|n| unknown_if_empty(text(n, "/status/nodeInfo/containerRuntimeVersion"))),
        ),
    ],
    ..GENERIC
}];

fn unknown_if_empty(text: &str) -> Value {
    if text.is_empty() { "<unknown>".into() } else { text.into() }
}

fn address<'a>(n: &'a Value, ty: &str) -> &'a str {
    list(n, "/status/addresses").iter().find(|a| text(a, "/type") == ty).map_or("", |a| text(a, "/address"))
}

fn status(n: &Value) -> String {
    let mut words = vec![match condition(n, "Ready") {
        "True" => "Ready",
        "" => "Unknown",
        _ => "NotReady",
    }];
    if flag(n, "/spec/unschedulable") {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(n: &Value) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in entries(n, "/metadata/labels") {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty()) {
            roles.insert(role);
        } else if key == "kubernetes.io/role" {
            roles.extend(value.as_str().filter(|v| !v.is_empty()));
        }
    }
    none_if_empty(&roles.into_iter().collect::<Vec<_>>().join(",")).into()
}

fn allocatable(obj: &mut Value) {
    let Some(status) = obj.get_mut("status") else { return };
    if !has(status, "/allocatable")
        && let Some(capacity) = status.get("capacity").cloned()
    {
        set(status, "allocatable", capacity);
    }
}

fn validate(obj: &Value, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, taint) in list(obj, "/spec/taints").iter().enumerate() {
        let path = format!("spec.taints[{i}]");
        if let Some(key) = required(taint, &path, "key", errors) {
            errors.invalid_all(&format!("{path}.key"), key, name::qualified_name(key));
        }
        let value = text(taint, "/value");
        errors.invalid_all(&format!("{path}.value"), value, name::label_value(value));
        enumerated(taint, &path, "effect", &super::pod::scheduling::TAINT_EFFECTS, errors);
        if !seen.insert((text(taint, "/key"), text(taint, "/effect"))) {
            errors.duplicate(&path, taint.clone());
        }
    }
    for side in ["capacity", "allocatable"] {
        for (resource, amount) in entries(obj, &format!("/status/{side}")) {
            let path = format!("status.{side}[{resource}]");
            super::pod::containers::amount_of(resource, amount, &path, errors);
        }
    }
}
