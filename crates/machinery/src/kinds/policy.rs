//! Access and policy kinds: RBAC, PodDisruptionBudget, PriorityClass, RuntimeClass, quota.

use super::get::{child, default, each, entries, list, same, set, text};
use super::spot::Spot;
use super::{Behaviour, CHECKED, COUNTED, NameRule};
use crate::intstr::IntOrString;
use crate::name;
use crate::table::{Cell, Column};
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";
/// User-defined priorities end here; the rest is the system's.
const USER_PRIORITY_MAX: i64 = 1_000_000_000;
const SYSTEM_PRIORITIES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

const ROLE: Behaviour = Behaviour {
    group: RBAC,
    name: NameRule::PathSegment,
    create_on_update: true,
    columns: &[Column::NAME, Column::CREATED],
    ..CHECKED
};
const BINDING: Behaviour = Behaviour {
    group: RBAC,
    name: NameRule::PathSegment,
    create_on_update: true,
    defaults: binding_defaults,
    validate: binding,
    validate_update: Some(|s, old| {
        binding(s);
        if !same(&s.v["roleRef"], &old["roleRef"]) {
            s.wrong("roleRef", "cannot change roleRef");
        }
    }),
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
    ..CHECKED
};
/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour { resource: "roles", validate: |s| rules(s, true), ..ROLE },
    Behaviour { resource: "clusterroles", validate: |s| rules(s, false), ..ROLE },
    Behaviour { resource: "rolebindings", ..BINDING },
    Behaviour { resource: "clusterrolebindings", ..BINDING },
    Behaviour {
        group: "policy",
        resource: "poddisruptionbudgets",
        unconditional_update: false,
        prepare_create: |obj| {
            let zeros = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
            set(obj, "status", zeros.iter().map(|k| ((*k).to_string(), json!(0))).collect::<Value>());
        },
        validate: budget,

        validate_status: |s, _| {
            let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
            s.key("status").non_negative(&counts);
        },
        columns: &[
            Column::NAME,
            Column::new("Min Available", Cell::Fn(|b| not_applicable(b.pointer("/spec/minAvailable")))),
            Column::new("Max Unavailable", Cell::Fn(|b| not_applicable(b.pointer("/spec/maxUnavailable")))),
            Column::new("Allowed Disruptions", Cell::Int("/status/disruptionsAllowed")),
            Column::AGE,
        ],
        ..COUNTED
    },
    Behaviour {
        group: "scheduling.k8s.io",
        resource: "priorityclasses",
        defaults: |obj| default(obj, "preemptionPolicy", "PreemptLowerPriority"),
        validate: priority_class,
        validate_update: Some(|s, old| {
            priority_class(s);
            if s.v["value"] != old["value"] {
                s.forbidden("value", "may not be changed in an update.");
            }
        }),
        immutable: &["preemptionPolicy"],
        columns: &[
            Column::NAME,
            Column::new("Value", Cell::Int("/value")),
            Column::new("Global-Default", Cell::Bool("/globalDefault")),
            Column::AGE,
            Column::new("PreemptionPolicy", Cell::Text("/preemptionPolicy")),
        ],
        ..COUNTED
    },
    Behaviour {
        group: "node.k8s.io",
        resource: "runtimeclasses",
        validate: runtime_class,
        immutable: &["handler"],
        columns: &[Column::NAME, Column::new("Handler", Cell::Text("/handler")), Column::AGE],
        ..CHECKED
    },
    Behaviour {
        resource: "resourcequotas",
        validate: quota,

        columns: &[
            Column::NAME,
            Column::new("Request", Cell::Fn(|q| quota_text(q, false).into())),
            Column::new("Limit", Cell::Fn(|q| quota_text(q, true).into())),
            Column::AGE,
        ],
        ..CHECKED
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

fn rules(obj: &Spot, namespaced: bool) {
    for rule in obj.each("rules") {
        let none = |key: &str| rule.list(key).is_empty();
        if none("verbs") {
            rule.required("verbs", "verbs must contain at least one value");
        }
        if !none("nonResourceURLs") {
            if namespaced {
                rule.wrong("nonResourceURLs", "namespaced rules cannot apply to non-resource URLs");
            } else if ["apiGroups", "resources", "resourceNames"].iter().any(|k| !none(k)) {
                let words = "rules cannot apply to both regular resources and non-resource URLs";
                rule.wrong("nonResourceURLs", words);
            }
            continue;
        }
        for (key, what) in [("apiGroups", "api group"), ("resources", "resource")] {
            if none(key) {
                rule.required(key, &format!("resource rules must supply at least one {what}"));
            }
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

fn binding(obj: &Spot) {
    let role = obj.key("roleRef");
    role.known("apiGroup", &[RBAC]);
    let namespaced = obj.has("metadata.namespace");
    role.known("kind", if namespaced { &["ClusterRole", "Role"] } else { &["ClusterRole"] });
    role.need_like("name", name::path_segment);
    for subject in obj.each("subjects") {
        let own = subject.need("name");
        match subject.text("kind") {
            "ServiceAccount" => {
                if own.is_some() {
                    subject.like("name", name::dns1123_subdomain);
                }
                subject.known("apiGroup", &[""]);
                if !namespaced || subject.has("namespace") {
                    subject.need("namespace");
                }
            }
            "User" | "Group" => subject.known("apiGroup", &[RBAC]),
            other => subject.not_supported("kind", other, &["Group", "ServiceAccount", "User"]),
        }
    }
}

fn int_or_percent(s: &Spot) {
    match IntOrString::from_json(s.v) {
        Some(IntOrString::Int(_)) => s.non_negative(&[""]),
        Some(IntOrString::Str(own)) => {
            s.like("", name::percent);
            if IntOrString::Str(own).percent().is_some_and(|p| p > 100) {
                s.wrong("", "must not be greater than 100%");
            }
        }
        None => {}
    }
}

fn budget(obj: &Spot) {
    let spec = obj.key("spec");
    if spec.has("minAvailable") && spec.has("maxUnavailable") {
        spec.wrong("", "minAvailable and maxUnavailable cannot be both set");
    }
    int_or_percent(&spec.key("minAvailable"));
    int_or_percent(&spec.key("maxUnavailable"));
    spec.selector("selector");
    spec.one_of_opt("unhealthyPodEvictionPolicy", &["AlwaysAllow", "IfHealthyBudget"]);
}

fn priority_class(obj: &Spot) {
    let (own, value) = (obj.text("metadata.name"), obj.int("value").unwrap_or(0));
    if own.starts_with("system-") {
        if !SYSTEM_PRIORITIES.contains(&(own, value)) {
            let words = "priority class names with 'system-' prefix are reserved for system use only. error: only system priority classes may use it";
            obj.forbidden("metadata.name", words);
        }
    } else if value > USER_PRIORITY_MAX {
        let words = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
        obj.forbidden("value", &words);
    }
    obj.one_of_opt("preemptionPolicy", &["Never", "PreemptLowerPriority"]);
}

fn runtime_class(obj: &Spot) {
    obj.like("handler", name::dns1123_label);
    for (resource, amount) in obj.entries("overhead.podFixed") {
        super::pod::containers::resource_amount(resource, &amount);
    }
}

fn quota(obj: &Spot) {
    for (resource, amount) in obj.entries("spec.hard") {
        amount.invalid_all("", resource, name::qualified_name(resource));
        super::pod::containers::amount_of(resource, &amount);
    }
}
