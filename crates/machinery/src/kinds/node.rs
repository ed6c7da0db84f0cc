//! Node: taints, capacity, the columns of `kubectl get nodes`.

use super::get::{entries, flag, has, list, set, text};
use super::pod::condition;
use super::spot::Spot;
use super::{Behaviour, CHECKED, FieldKind};
use crate::name;
use crate::table::{Cell, Column, none_if_empty};
use serde_json::Value;
use std::collections::BTreeSet;

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[Behaviour {
    resource: "nodes",
    drops_status: false,
    defaults: allocatable,
    prepare_update: |new, old| {
        if let Some(status) = old.get("status") {
            set(new, "status", status.clone());
        }
    },
    validate,
    validate_update: Some(|s, old| {
        validate(s);
        let before = text(old, "/spec/providerID");
        if !before.is_empty() && s.text("spec.providerID") != before {
            let words = "node updates may not change providerID except from \"\" to valid";
            s.forbidden("spec.providerID", words);
        }
    }),
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
    ..CHECKED
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

fn validate(obj: &Spot) {
    let mut seen = BTreeSet::new();
    for taint in obj.each("spec.taints") {
        taint.need_like("key", name::qualified_name);
        taint.like("value", name::label_value);
        taint.one_of("effect", &super::pod::scheduling::TAINT_EFFECTS);
        if !seen.insert((taint.text("key"), taint.text("effect"))) {
            taint.duplicate("", taint.v.clone());
        }
    }
    let status = obj.key("status");
    for (resource, amount) in status.entries("capacity").chain(status.entries("allocatable")) {
        super::pod::containers::amount_of(resource, &amount);
    }
}
