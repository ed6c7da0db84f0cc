//! Access and policy kinds: RBAC, PodDisruptionBudget, PriorityClass, RuntimeClass, Lease, quota.

use super::get::{
    child, default, each, entries, enumerated_opt, has, int, list, required, same, set, text, texts,
};
use super::pod::scheduling::label_selector;
use super::{Behaviour, GENERIC, NameRule};
use crate::field_errors::FieldErrors;
use crate::intstr::IntOrString;
use crate::name;
use crate::table::{Cell, Column};
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";
const CREATED: Column = Column {
    name: "Created At",
    ty: "date",
    format: "",
    priority: 0,
    cell: Cell::Text("/metadata/creationTimestamp"),
};
/// User-defined priorities end here; the rest is the system's.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;
const SYSTEM_PRIORITIES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

const ROLE: Behaviour = Behaviour {
    group: RBAC,
    validated: true,
    name: NameRule::PathSegment,
    create_on_update: true,
    columns: &[Column::NAME, CREATED],
    ..GENERIC
};
const BINDING: Behaviour = Behaviour {
    group: RBAC,
    validated: true,
    name: NameRule::PathSegment,
    create_on_update: true,
    defaults: binding_defaults,
    validate_create: |obj, errors| binding(obj, errors),
    validate_update: |new, old, errors| {
        binding(new, errors);
        if !same(&new["roleRef"], &old["roleRef"]) {
            errors.invalid("roleRef", new["roleRef"].clone(), "cannot change roleRef");
        }
    },
    columns: &[
        Column::NAME,
        Column::new(
            "Role",
            Cell::Fn(|b| format!("{}/{}", text(b, "/roleRef/kind"), text(b, "/roleRef/name")).into()),
        ),
        Column::AGE,
        Column::wide("Users", Cell::Fn(|b| subjects(b, "User").into())),
        Column::wide("Groups", Cell::Fn(|b| subjects(b, "Group").into())),
        Column::wide("ServiceAccounts", Cell::Fn(|b| subjects(b, "ServiceAccount").into())),
    ],
    ..GENERIC
};
/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "roles",
        validate_create: |obj, errors| rules(obj, true, errors),
        validate_update: |new, _, errors| rules(new, true, errors),
        ..ROLE
    },
    Behaviour {
        resource: "clusterroles",
        validate_create: |obj, errors| rules(obj, false, errors),
        validate_update: |new, _, errors| rules(new, false, errors),
        ..ROLE
    },
    Behaviour { resource: "rolebindings", ..BINDING },
    Behaviour { resource: "clusterrolebindings", ..BINDING },
    Behaviour {
        group: "policy",
        resource: "poddisruptionbudgets",
        validated: true,
        generation: true,
        unconditional_update: false,
        prepare_create: |obj| {
            let zeros = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
            set(obj, "status", zeros.iter().map(|k| ((*k).to_string(), json!(0))).collect::<Value>());
        },
        validate_create: budget,
        validate_update: |new, _, errors| budget(new, errors),
        validate_status: |new, _, errors| {
            for key in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
                super::get::non_negative(&new["status"], "status", key, errors);
            }
        },
        columns: &[
            Column::NAME,
            Column::new("Min Available", Cell::Fn(|b| not_applicable(b.pointer("/spec/minAvailable")))),
            Column::new("Max Unavailable", Cell::Fn(|b| not_applicable(b.pointer("/spec/maxUnavailable")))),
            Column::new("Allowed Disruptions", Cell::Int("/status/disruptionsAllowed")),
            Column::AGE,
        ],
        ..GENERIC
    },
    Behaviour {
        group: "scheduling.k8s.io",
        resource: "priorityclasses",
        validated: true,
        generation: true,
        defaults: |obj| default(obj, "preemptionPolicy", "PreemptLowerPriority"),
        validate_create: priority_class,
        validate_update: |new, old, errors| {
            priority_class(new, errors);
            if new["value"] != old["value"] {
                errors.forbidden("value", "may not be changed in an update.");
            }
            errors.immutable("preemptionPolicy", &new["preemptionPolicy"], &old["preemptionPolicy"]);
        },
        columns: &[
            Column::NAME,
            Column::new("Value", Cell::Int("/value")),
            Column::new("Global-Default", Cell::Bool("/globalDefault")),
            Column::AGE,
            Column::new("PreemptionPolicy", Cell::Text("/preemptionPolicy")),
        ],
        ..GENERIC
    },
    Behaviour {
        group: "node.k8s.io",
        resource: "runtimeclasses",
        validated: true,
        validate_create: runtime_class,
        validate_update: |new, old, errors| {
            runtime_class(new, errors);
            errors.immutable("handler", &new["handler"], &old["handler"]);
        },
        columns: &[Column::NAME, Column::new("Handler", Cell::Text("/handler")), Column::AGE],
        ..GENERIC
    },
    Behaviour {
        group: "coordination.k8s.io",
        resource: "leases",
        validated: true,
        create_on_update: true,
        unconditional_update: false,
        validate_create: lease,
        validate_update: |new, _, errors| lease(new, errors),
        columns: &[Column::NAME, Column::new("Holder", Cell::Text("/spec/holderIdentity")), Column::AGE],
        ..GENERIC
    },
    Behaviour {
        resource: "resourcequotas",
        validated: true,
        validate_create: quota,
        validate_update: |new, _, errors| quota(new, errors),
        columns: &[
            Column::NAME,
            Column::new("Request", Cell::Fn(|q| quota_text(q, false).into())),
            Column::new("Limit", Cell::Fn(|q| quota_text(q, true).into())),
            Column::AGE,
        ],
        ..GENERIC
    },
];

fn subjects(b: &Value, kind: &str) -> String {
    let own = list(b, "/subjects").iter().filter(|s| text(s, "/kind") == kind);
    let names = own.map(|s| match kind {
        "ServiceAccount" => format!("{}/{}", text(s, "/namespace"), text(s, "/name")),
        _ => text(s, "/name").to_string(),
    });
    names.collect::<Vec<_>>().join(", ")
}

fn not_applicable(v: Option<&Value>) -> Value {
    match v {
        Some(Value::String(s)) => s.as_str().into(),
        Some(Value::Number(n)) => n.to_string().into(),
        _ => "N/A".into(),
    }
}

fn quota_text(q: &Value, limits: bool) -> String {
    let used = |resource: &str| {
        entries(q, "/status/used")
            .find(|(k, _)| *k == resource)
            .map_or("", |(_, v)| v.as_str().unwrap_or_default())
    };
    let rows = entries(q, "/status/hard").filter(|(k, _)| k.starts_with("limits.") == limits);
    rows.map(|(k, hard)| format!("{k}: {}/{}", used(k), hard.as_str().unwrap_or_default()))
        .collect::<Vec<_>>()
        .join(", ")
}

fn rules(obj: &Value, namespaced: bool, errors: &mut FieldErrors) {
    for (i, rule) in list(obj, "/rules").iter().enumerate() {
        let path = format!("rules[{i}]");
        if list(rule, "/verbs").is_empty() {
            errors.required(&format!("{path}.verbs"), "verbs must contain at least one value");
        }
        let urls: Vec<&str> = texts(rule, "/nonResourceURLs").collect();
        if !urls.is_empty() {
            let field = format!("{path}.nonResourceURLs");
            if namespaced {
                errors.invalid(&field, urls, "namespaced rules cannot apply to non-resource URLs");
            } else if ["apiGroups", "resources", "resourceNames"]
                .iter()
                .any(|k| !list(rule, &format!("/{k}")).is_empty())
            {
                errors.invalid(
                    &field,
                    urls,
                    "rules cannot apply to both regular resources and non-resource URLs",
                );
            }
            continue;
        }
        if list(rule, "/apiGroups").is_empty() {
            errors
                .required(&format!("{path}.apiGroups"), "resource rules must supply at least one api group");
        }
        if list(rule, "/resources").is_empty() {
            errors.required(&format!("{path}.resources"), "resource rules must supply at least one resource");
        }
    }
}

fn binding_defaults(obj: &mut Value) {
    if let Some(role) = child(obj, "roleRef") {
        default(role, "apiGroup", RBAC);
    }
    each(obj, "/subjects", |s| {
        if matches!(text(s, "/kind"), "User" | "Group") {
            default(s, "apiGroup", RBAC);
        }
    });
}

fn binding(obj: &Value, errors: &mut FieldErrors) {
    let role = &obj["roleRef"];
    if text(role, "/apiGroup") != RBAC {
        errors.not_supported("roleRef.apiGroup", text(role, "/apiGroup"), &[RBAC]);
    }
    let namespaced = has(obj, "/metadata/namespace");
    let kinds: &[&str] = if namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] };
    errors.one_of("roleRef.kind", text(role, "/kind"), kinds);
    if let Some(own) = required(role, "roleRef", "name", errors) {
        errors.invalid_all("roleRef.name", own, name::path_segment(own));
    }
    for (i, subject) in list(obj, "/subjects").iter().enumerate() {
        let path = format!("subjects[{i}]");
        let own = required(subject, &path, "name", errors);
        let group = text(subject, "/apiGroup");
        match text(subject, "/kind") {
            "ServiceAccount" => {
                if let Some(own) = own {
                    errors.invalid_all(&format!("{path}.name"), own, name::dns1123_subdomain(own));
                }
                if !group.is_empty() {
                    errors.not_supported(&format!("{path}.apiGroup"), group, &[""]);
                }
                if !namespaced || has(subject, "/namespace") {
                    required(subject, &path, "namespace", errors);
                }
            }
            "User" | "Group" if group == RBAC => {}
            "User" | "Group" => errors.not_supported(&format!("{path}.apiGroup"), group, &[RBAC]),
            other => {
                errors.not_supported(&format!("{path}.kind"), other, &["Group", "ServiceAccount", "User"])
            }
        }
    }
}

fn int_or_percent(v: Option<&Value>, path: &str, errors: &mut FieldErrors) {
    match v.and_then(IntOrString::from_json) {
        Some(IntOrString::Int(n)) => errors.non_negative(path, n.into()),
        Some(IntOrString::Str(s)) => {
            errors.invalid_all(path, &s, name::percent(&s));
            if IntOrString::Str(s.clone()).percent().is_some_and(|p| p > 100) {
                errors.invalid(path, s, "must not be greater than 100%");
            }
        }
        None => {}
    }
}

fn budget(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    if has(spec, "/minAvailable") && has(spec, "/maxUnavailable") {
        errors.invalid("spec", spec.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for key in ["minAvailable", "maxUnavailable"] {
        int_or_percent(spec.get(key), &format!("spec.{key}"), errors);
    }
    label_selector(spec.get("selector"), "spec.selector", errors);
    enumerated_opt(spec, "spec", "unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"], errors);
}

fn priority_class(obj: &Value, errors: &mut FieldErrors) {
    let (own, value) = (text(obj, "/metadata/name"), int(obj, "/value").unwrap_or(0));
    if own.starts_with("system-") {
        if !SYSTEM_PRIORITIES.contains(&(own, value)) {
            let words = "priority class names with 'system-' prefix are reserved for system use only. error: only system priority classes may use it";
            errors.forbidden("metadata.name", words);
        }
    } else if value > USER_PRIORITY_MAX {
        errors.forbidden(
            "value",
            &format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}"),
        );
    }
    enumerated_opt(obj, "", "preemptionPolicy", &["Never", "PreemptLowerPriority"], errors);
}

fn runtime_class(obj: &Value, errors: &mut FieldErrors) {
    let handler = text(obj, "/handler");
    errors.invalid_all("handler", handler, name::dns1123_label(handler));
    for (resource, amount) in entries(obj, "/overhead/podFixed") {
        let path = format!("overhead.podFixed[{resource}]");
        super::pod::containers::resource_name(resource, &path, errors);
        super::pod::containers::amount_of(resource, amount, &path, errors);
    }
}

fn lease(obj: &Value, errors: &mut FieldErrors) {
    if let Some(seconds) = int(obj, "/spec/leaseDurationSeconds").filter(|s| *s <= 0) {
        errors.invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0");
    }
    if let Some(n) = int(obj, "/spec/leaseTransitions") {
        errors.non_negative("spec.leaseTransitions", n);
    }
}

fn quota(obj: &Value, errors: &mut FieldErrors) {
    for (resource, amount) in entries(obj, "/spec/hard") {
        let path = format!("spec.hard[{resource}]");
        errors.invalid_all(&path, resource, name::qualified_name(resource));
        super::pod::containers::amount_of(resource, amount, &path, errors);
    }
}
