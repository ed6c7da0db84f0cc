//! Versions: from the one a client speaks to the one that is stored, and back. Pure renames and old defaults.
//!
//! A write calls [`before_decode`] on the raw body, decodes it by the row's own definition, then calls
//! [`to_storage`]; every answer passes [`from_storage`]. Rows whose version is the stored one pass unchanged.

use crate::kinds::get::{child, default, entries, has, int, list, remove, set, text};
use k8s_schema::ResourceRow;
use serde_json::{Value, json};

/// Fields of 2016–2018 that no version stores any more: dropped, so that strict validation accepts old manifests.
const RETIRED: [&str; 2] = ["/spec/rollbackTo", "/spec/templateGeneration"];

/// The one resource whose old version has another shape (see `crd::legacy`).
const DEFINITIONS: &str = "customresourcedefinitions";

/// The renames between `events.k8s.io/v1` (left) and the stored core Event (right).
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// Is the row's version another than the stored one?
pub fn differs(row: &ResourceRow) -> bool {
    row.gvr.group != *row.storage_group || row.gvr.version != *row.storage_version
}

/// Removes what the decoder would rightly not know any more.
pub fn before_decode(row: &ResourceRow, obj: &mut Value) {
    if !row.legacy {
        return;
    }
    if row.gvr.resource == DEFINITIONS {
        crate::crd::legacy::to_v1(obj);
    }
    for pointer in RETIRED {
        if let Some((parent, key)) = pointer.rsplit_once('/')
            && let Some(parent) = obj.pointer_mut(parent)
        {
            remove(parent, key);
        }
    }
}

/// Into the stored version; old versions bring their own defaults.
pub fn to_storage(row: &ResourceRow, obj: &mut Value) {
    if !differs(row) {
        return;
    }
    match (&*row.gvr.group, &*row.gvr.version, &*row.gvr.resource) {
        ("events.k8s.io", ..) => rename(obj, EVENT_FIELDS.iter().copied()),
        ("autoscaling", "v1", _) => hpa_to_v2(obj),
        (group, version, _) if row.legacy => legacy_defaults(group, version, &row.kind, obj),
        _ => {}
    }
    let group = &*row.storage_group;
    let version = &*row.storage_version;
    let stored = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    set(obj, "apiVersion", stored);
}

/// Out of the stored version into the row's.
pub fn from_storage(row: &ResourceRow, obj: &mut Value) {
    if !differs(row) {
        return;
    }
    match (&*row.gvr.group, &*row.gvr.version) {
        ("events.k8s.io", _) => rename(obj, EVENT_FIELDS.iter().map(|(new, old)| (*old, *new))),
        ("autoscaling", "v1") => hpa_to_v1(obj),
        _ if row.gvr.resource == DEFINITIONS => crate::crd::legacy::from_v1(obj),
        _ => {}
    }
    set(obj, "apiVersion", row.api_version());
}

fn rename(obj: &mut Value, names: impl Iterator<Item = (&'static str, &'static str)>) {
    for (from, to) in names {
        if let Some(value) = remove(obj, from) {
            set(obj, to, value);
        }
    }
}

/// One row of an old version's defaults, where they differ from those of `apps/v1`.
struct Old {
    group_version: (&'static str, &'static str),
    surge: Value,
    history: i64,
    deadline: i64,
    /// Are selector and labels taken from the template?
    selects: bool,
    /// DaemonSet and StatefulSet: the default update strategy.
    update: &'static str,
}

fn old_versions() -> [Old; 3] {
    const NEVER: i64 = i32::MAX as i64;
    [
        Old {
            group_version: ("extensions", "v1beta1"),
            surge: json!(1),
            history: NEVER,
            deadline: NEVER,
            selects: true,
            update: "OnDelete",
        },
        Old {
            group_version: ("apps", "v1beta1"),
            surge: json!("25%"),
            history: 2,
            deadline: 600,
            selects: true,
            update: "OnDelete",
        },
        Old {
            group_version: ("apps", "v1beta2"),
            surge: json!("25%"),
            history: 10,
            deadline: 600,
            selects: false,
            update: "RollingUpdate",
        },
    ]
}

fn legacy_defaults(group: &str, version: &str, kind: &str, obj: &mut Value) {
    let Some(old) = old_versions().into_iter().find(|o| o.group_version == (group, version)) else { return };
    if old.selects {
        selector_from_template(obj);
    }
    let Some(spec) = child(obj, "spec") else { return };
    match kind {
        "Deployment" => {
            if let Some(strategy) = child(spec, "strategy") {
                default(strategy, "type", "RollingUpdate");
                if text(strategy, "/type") == "RollingUpdate"
                    && let Some(rolling) = child(strategy, "rollingUpdate")
                {
                    default(rolling, "maxUnavailable", old.surge.clone());
                    default(rolling, "maxSurge", old.surge);
                }
            }
            default(spec, "revisionHistoryLimit", old.history);
            default(spec, "progressDeadlineSeconds", old.deadline);
        }
        "DaemonSet" | "StatefulSet" => {
            if let Some(strategy) = child(spec, "updateStrategy") {
                default(strategy, "type", old.update);
            }
        }
        _ => {}
    }
}

fn selector_from_template(obj: &mut Value) {
    let Some(labels) = obj.pointer("/spec/template/metadata/labels").cloned() else { return };
    if labels.as_object().is_none_or(serde_json::Map::is_empty) {
        return;
    }
    if !has(obj, "/spec/selector")
        && let Some(spec) = child(obj, "spec")
    {
        set(spec, "selector", json!({"matchLabels": labels.clone()}));
    }
    if entries(obj, "/metadata/labels").next().is_none()
        && let Some(metadata) = child(obj, "metadata")
    {
        set(metadata, "labels", labels);
    }
}

fn hpa_to_v2(obj: &mut Value) {
    if let Some(spec) = child(obj, "spec")
        && let Some(percent) = remove(spec, "targetCPUUtilizationPercentage")
    {
        let target = json!({"type": "Utilization", "averageUtilization": percent});
        set(spec, "metrics", json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
    }
    if let Some(status) = obj.get_mut("status")
        && let Some(percent) = remove(status, "currentCPUUtilizationPercentage")
    {
        let current = json!({"averageUtilization": percent, "averageValue": "0"});
        set(
            status,
            "currentMetrics",
            json!([{"type": "Resource", "resource": {"name": "cpu", "current": current}}]),
        );
    }
}

fn hpa_to_v1(obj: &mut Value) {
    let cpu = |rows: &[Value], at: &str| {
        let mut own =
            rows.iter().filter(|m| text(m, "/type") == "Resource" && text(m, "/resource/name") == "cpu");
        own.find_map(|m| int(m, at))
    };
    let target = cpu(list(obj, "/spec/metrics"), "/resource/target/averageUtilization");
    let current = cpu(list(obj, "/status/currentMetrics"), "/resource/current/averageUtilization");
    for (part, gone, key, value) in [
        ("spec", &["metrics", "behavior"][..], "targetCPUUtilizationPercentage", target),
        ("status", &["currentMetrics", "conditions"][..], "currentCPUUtilizationPercentage", current),
    ] {
        if let Some(part) = obj.get_mut(part) {
            gone.iter().for_each(|k| drop(remove(part, k)));
            if let Some(value) = value {
                set(part, key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::strategy;

    fn row(group: &str, version: &str, plural: &str) -> &'static ResourceRow {
        k8s_schema::resource(group, version, plural).expect("a served resource")
    }

    #[test]
    fn a_manifest_of_2017() {
        let old = row("extensions", "v1beta1", "deployments");
        let mut d = json!({"apiVersion": "extensions/v1beta1", "kind": "Deployment", "metadata": {"name": "nginx"},
            "spec": {"replicas": 2, "rollbackTo": {"revision": 1}, "template": {"metadata": {"labels": {"app": "nginx"}},
                "spec": {"containers": [{"name": "nginx", "image": "nginx:1.7.9", "ports": [{"containerPort": 80}]}]}}}});
        before_decode(old, &mut d);
        let warnings =
            crate::walk::decode(&mut d, old.def.get(), crate::walk::Unknown::Error, &Default::default())
                .unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        to_storage(old, &mut d);
        strategy::defaults(old, &mut d);
        assert_eq!(d["apiVersion"], "apps/v1");
        assert_eq!(d["spec"]["selector"], json!({"matchLabels": {"app": "nginx"}}));
        assert_eq!(d["metadata"]["labels"], json!({"app": "nginx"}));
        assert_eq!(d["spec"]["strategy"]["rollingUpdate"], json!({"maxSurge": 1, "maxUnavailable": 1}));
        assert_eq!(d["spec"]["revisionHistoryLimit"], i32::MAX);
        set(&mut d["metadata"], "namespace", "default");
        strategy::prepare_create(old, &mut d);
        strategy::validate_create(old, &d).unwrap();
        from_storage(old, &mut d);
        assert_eq!(d["apiVersion"], "extensions/v1beta1");
    }

    #[test]
    fn events_have_two_faces() {
        let new = row("events.k8s.io", "v1", "events");
        let face = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"name": "x"},
            "reportingController": "c", "deprecatedCount": 3});
        let mut e = face.clone();
        to_storage(new, &mut e);
        assert_eq!(
            e,
            json!({"apiVersion": "v1", "kind": "Event", "message": "n", "involvedObject": {"name": "x"},
            "reportingComponent": "c", "count": 3})
        );
        from_storage(new, &mut e);
        assert_eq!(e, face);
    }

    #[test]
    fn autoscalers_have_two_faces() {
        let v1 = row("autoscaling", "v1", "horizontalpodautoscalers");
        let face = json!({"apiVersion": "autoscaling/v1", "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}});
        let mut h = face.clone();
        to_storage(v1, &mut h);
        assert_eq!(h["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
        from_storage(v1, &mut h);
        assert_eq!(h, face);
    }
}
