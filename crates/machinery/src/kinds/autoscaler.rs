//! HorizontalPodAutoscaler: defaults, validation, columns. Deliberately not here: scaling.

use super::get::{at, child, default, int, list, set, text};
use super::spot::Spot;
use super::{Behaviour, CHECKED};
use crate::name;
use crate::quantity::Quantity;
use crate::table::{Cell, Column, none_if_empty};
use serde_json::{Value, json};

const STABILIZATION_SECONDS_MAX: i64 = 3600;
const PERIOD_SECONDS_MAX: i64 = 1800;
const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];
/// Fields of a metric, in the order in which upstream looks at them.
const SOURCES: [&str; 5] = ["object", "external", "pods", "resource", "containerResource"];

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[Behaviour {
    group: "autoscaling",
    resource: "horizontalpodautoscalers",
    defaults,
    prepare_create: |obj| set(obj, "status", json!({"desiredReplicas": 0})),
    validate: |s| autoscaler(s, 1),
    validate_update: Some(|s, old| autoscaler(s, i64::from(int(old, "/spec/minReplicas") != Some(0)))),
    validate_status: |s, _| s.key("status").non_negative(&["currentReplicas", "desiredReplicas"]),
    columns: &[
        Column::NAME,
        Column::new("Reference", Cell::Fn(|h| reference_text(h).into())),
        Column::new("Targets", Cell::Fn(|h| targets(h).into())),
        Column::new(
            "MinPods",
            Cell::Fn(|h| int(h, "/spec/minReplicas").map_or("<unset>".into(), |n| n.to_string().into())),
        ),
        Column::new("MaxPods", Cell::Int("/spec/maxReplicas")),
        Column::new("Replicas", Cell::Int("/status/currentReplicas")),
        Column::AGE,
    ],
    ..CHECKED
}];

fn reference_text(h: &Value) -> String {
    format!("{}/{}", text(h, "/spec/scaleTargetRef/kind"), text(h, "/spec/scaleTargetRef/name"))
}

/// Metrics that the column shows; of more it tells the number.
const TARGETS_MAX: usize = 2;

/// Current and wanted value of each metric. A status stands at the place of its metric.
fn targets(h: &Value) -> String {
    let (metrics, statuses) = (list(h, "/spec/metrics"), list(h, "/status/currentMetrics"));
    let shown = metrics.iter().enumerate().take(TARGETS_MAX);
    let shown: Vec<String> =
        shown.map(|(i, m)| metric_target(m, statuses.get(i).unwrap_or(&Value::Null))).collect();
    let shown = shown.join(", ");
    match metrics.len().saturating_sub(TARGETS_MAX) {
        0 => none_if_empty(&shown).into(),
        more => format!("{shown} + {more} more..."),
    }
}

fn metric_target(metric: &Value, status: &Value) -> String {
    let (source, is_resource) = match text(metric, "/type") {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".into(),
    };
    let (target, current) = (&metric[source]["target"], &status[source]["current"]);
    let amount = |of: &Value, field: &str| match of[field].as_i64() {
        Some(percent) if field == "averageUtilization" => Some(format!("{percent}%")),
        _ => Quantity::from_json(&of[field]).and_then(Result::ok).map(|q| q.to_string()),
    };
    let average = !target["averageValue"].is_null();
    let (field, unset) = match (average, is_resource) {
        (true, _) => ("averageValue", ""),
        (false, true) => ("averageUtilization", "<auto>"),
        (false, false) => ("value", ""),
    };
    let now = amount(current, field).unwrap_or("<unknown>".into());
    let values = format!("{now}/{}", amount(target, field).unwrap_or(unset.into()));
    match source {
        "resource" | "containerResource" => format!("{}: {values}", text(&metric[source], "/name")),
        "object" | "external" if average => format!("{values} (avg)"),
        _ => values,
    }
}

fn defaults(obj: &mut Value) {
    let Some(spec) = child(obj, "spec") else { return };
    default(spec, "minReplicas", 1);
    if list(spec, "/metrics").is_empty() {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        set(spec, "metrics", json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
    }
    at(spec, "/behavior", |behavior| {
        let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
        let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
        for (side, policies) in [("scaleUp", json!([pods, percent])), ("scaleDown", json!([percent]))] {
            let Some(rules) = child(behavior, side) else { continue };
            default(rules, "selectPolicy", "Max");
            if list(rules, "/policies").is_empty() {
                set(rules, "policies", policies);
            }
            if side == "scaleUp" {
                default(rules, "stabilizationWindowSeconds", 0);
            }
        }
    });
}

fn autoscaler(obj: &Spot, lowest: i64) {
    let spec = obj.key("spec");
    let min = spec.int("minReplicas").unwrap_or(1);
    let max = spec.int("maxReplicas").unwrap_or(0);
    if min < lowest {
        spec.invalid("minReplicas", min, &format!("must be greater than or equal to {lowest}"));
    }
    if max < 1 {
        spec.invalid("maxReplicas", max, "must be greater than 0");
    }
    if max < min {
        spec.invalid("maxReplicas", max, "must be greater than or equal to `minReplicas`");
    }
    reference(&spec.key("scaleTargetRef"));
    spec.each("metrics").for_each(|m| metric(&m));
    let from_outside = |m: &Value| matches!(text(m, "/type"), "Object" | "External");
    if min == 0 && !spec.list("metrics").iter().any(from_outside) {
        let words = "must specify at least one Object or External metric to support scaling to zero replicas";
        spec.forbidden("metrics", words);
    }
    for side in ["behavior.scaleUp", "behavior.scaleDown"] {
        spec.opt(side).iter().for_each(scaling);
    }
}

fn reference(r: &Spot) {
    let version = r.text("apiVersion");
    if version.matches('/').count() > 1 {
        r.wrong("apiVersion", &format!("unexpected GroupVersion string: {version}"));
    }
    r.need_like("kind", name::path_segment);
    r.need_like("name", name::path_segment);
}

fn scaling(rules: &Spot) {
    let key = "stabilizationWindowSeconds";
    rules.within(key, 0..=i64::MAX, "must be greater than or equal to zero");
    let words = format!("must be less than or equal to {STABILIZATION_SECONDS_MAX}");
    rules.within(key, i64::MIN..=STABILIZATION_SECONDS_MAX, &words);
    rules.one_of_opt("selectPolicy", &["Disabled", "Max", "Min"]);
    if let Some(Ok(tolerance)) = rules.v.get("tolerance").and_then(Quantity::from_json)
        && tolerance.sign() < 0
    {
        rules.invalid("tolerance", tolerance.to_string(), "must be greater than or equal to 0");
    }
    if rules.list("policies").is_empty() {
        rules.required("policies", "must specify at least one Policy");
    }
    for p in rules.each("policies") {
        p.known("type", &["Percent", "Pods"]);
        p.within_or_zero("value", 1..=i64::MAX, "must be greater than zero");
        p.within_or_zero("periodSeconds", 1..=i64::MAX, "must be greater than zero");
        let words = format!("must be less than or equal to {PERIOD_SECONDS_MAX}");
        p.within("periodSeconds", i64::MIN..=PERIOD_SECONDS_MAX, &words);
    }
}

fn metric(m: &Spot) {
    let kind = m.text("type");
    if kind.is_empty() {
        m.required("type", "must specify a metric source type");
    }
    m.known("type", &TYPES);
    let given = m.given(&SOURCES);
    if let Some(first) = given.first() {
        source(&m.key(first), first);
    }
    let mut letters = kind.chars();
    let wanted: String = letters.next().map(|c| c.to_ascii_lowercase()).into_iter().chain(letters).collect();
    if TYPES.contains(&kind) && !given.contains(&wanted.as_str()) {
        m.required(&wanted, "must populate information for the given metric source");
    }
    if given.len() != 1 {
        for other in given.iter().filter(|s| **s != wanted) {
            m.forbidden(other, "must populate the given metric source only");
        }
    }
}

fn source(s: &Spot, kind: &str) {
    let needed = |key: &str, words: &str| {
        if s.text(key).is_empty() {
            s.required(key, words);
        }
    };
    if kind == "object" {
        reference(&s.key("describedObject"));
    }
    if matches!(kind, "object" | "external" | "pods") {
        needed("metric.name", "must specify a metric name");
        s.like_opt("metric.name", name::path_segment);
        s.selector("metric.selector");
    }
    if matches!(kind, "resource" | "containerResource") {
        needed("name", "must specify a resource name");
    }
    if kind == "containerResource" {
        needed("container", "must specify a container");
    }
    let t = s.key("target");
    target(&t);
    let (value, average, utilization) = (t.has("value"), t.has("averageValue"), t.has("averageUtilization"));
    match kind {
        "object" | "external" if !value && !average => {
            t.required("averageValue", "must set either a target value for metric or a per-pod target");
        }
        "external" if value && average => {
            t.forbidden("value", "may not set both a target value for metric and a per-pod target");
        }
        "pods" if !average => t.required("averageValue", "must specify a positive target averageValue"),
        "resource" | "containerResource" if !utilization && !average => {
            t.required("averageUtilization", "must set either a target raw value or a target utilization");
        }
        "resource" | "containerResource" if utilization && average => {
            t.forbidden("averageValue", "may not set both a target raw value and a target utilization");
        }
        _ => {}
    }
}

fn target(t: &Spot) {
    match t.text("type") {
        "" => t.required("type", "must specify a metric target type"),
        "Utilization" | "Value" | "AverageValue" => {}
        _ => t.wrong("type", "must be either Utilization, Value, or AverageValue"),
    }
    for key in ["value", "averageValue"] {
        if let Some(Ok(q)) = t.v.get(key).and_then(Quantity::from_json)
            && q.sign() <= 0
        {
            t.invalid(key, q.to_string(), "must be positive");
        }
    }
    t.within("averageUtilization", 1..=i64::MAX, "must be greater than 0");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;

    fn found(spec: Value) -> Vec<String> {
        let mut obj =
            json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "x"}}});
        for (k, v) in spec.as_object().unwrap() {
            obj["spec"][k] = v.clone();
        }
        defaults(&mut obj);
        let mut errors = FieldErrors::new();
        autoscaler(&Spot::new(&obj, "", &mut errors), 1);
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn targets_stand_beside_what_is() {
        let mut h = json!({"spec": {"metrics": [
            {"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "20"}}},
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
        ]}, "status": {"currentMetrics": [{"type": ""}, {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7, "averageValue": "7m"}}}]}});
        assert_eq!(targets(&h), "<unknown>/20, cpu: 7%/50%");
        h["status"]["currentMetrics"][0] =
            json!({"type": "Pods", "pods": {"current": {"averageValue": "40500m"}}});
        h["spec"]["metrics"][1]["resource"]["target"] =
            json!({"type": "AverageValue", "averageValue": "100m"});
        assert_eq!(targets(&h), "40500m/20, cpu: 7m/100m");
        let external = |target: Value| json!({"type": "External", "external": {"metric": {"name": "q"}, "target": target}});
        h["spec"]["metrics"] =
            json!([external(json!({"value": "30"})), external(json!({"averageValue": "3"})), {"type": "x"}]);
        h["status"]["currentMetrics"] =
            json!([{"type": "External", "external": {"current": {"value": "160"}}}]);
        assert_eq!(targets(&h), "160/30, <unknown>/3 (avg) + 1 more...");
    }

    #[test]
    fn behavior_is_filled_in() {
        let mut obj = json!({"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}}});
        defaults(&mut obj);
        assert_eq!(
            obj["spec"]["behavior"],
            json!({
                "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
                    {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]},
                "scaleDown": {"stabilizationWindowSeconds": 5, "selectPolicy": "Max",
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}})
        );
    }

    #[test]
    fn metrics_and_rules() {
        assert_eq!(found(json!({})), Vec::<String>::new());
        for (spec, expected) in [
            (
                json!({"minReplicas": 5}),
                "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`",
            ),
            (
                json!({"behavior": {"scaleUp": {"stabilizationWindowSeconds": 4000}}}),
                "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 4000: must be less than or equal to 3600",
            ),
            (
                json!({"behavior": {"scaleUp": {"policies": [{"type": "X", "value": 1, "periodSeconds": 1}]}}}),
                "spec.behavior.scaleUp.policies[0].type: Unsupported value: \"X\": supported values: \"Percent\", \"Pods\"",
            ),
            (
                json!({"metrics": [{"type": "Pods"}]}),
                "spec.metrics[0].pods: Required value: must populate information for the given metric source",
            ),
            (
                json!({"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}]}),
                "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
            ),
            (
                json!({"metrics": [{"type": "ContainerResource", "containerResource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 0}}}]}),
                "spec.metrics[0].containerResource.container: Required value: must specify a container",
            ),
        ] {
            assert_eq!(found(spec.clone()).first().map(String::as_str), Some(expected), "{spec}");
        }
    }
}
