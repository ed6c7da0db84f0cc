//! HorizontalPodAutoscaler: defaults, validation, columns. Deliberately not here: scaling.

use super::get::{at, child, default, has, int, list, required, set, text};
use super::{Behaviour, GENERIC};
use crate::field_errors::FieldErrors;
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
    validated: true,
    defaults,
    prepare_create: |obj| set(obj, "status", json!({"desiredReplicas": 0})),
    validate_create: |obj, errors| autoscaler(obj, 1, errors),
    validate_update: |new, old, errors| {
        autoscaler(new, i64::from(int(old, "/spec/minReplicas") != Some(0)), errors);
    },
    validate_status: |new, _, errors| {
        for key in ["currentReplicas", "desiredReplicas"] {
            super::get::non_negative(&new["status"], "status", key, errors);
        }
    },
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
    ..GENERIC
}];

fn reference_text(h: &Value) -> String {
    format!("{}/{}", text(h, "/spec/scaleTargetRef/kind"), text(h, "/spec/scaleTargetRef/name"))
}

fn targets(h: &Value) -> String {
    let current = |name: &str| {
        let mut own = list(h, "/status/currentMetrics").iter().filter(|m| text(m, "/resource/name") == name);
        own.find_map(|m| int(m, "/resource/current/averageUtilization"))
    };
    let shown = list(h, "/spec/metrics").iter().map(|m| {
        match (text(m, "/resource/name"), int(m, "/resource/target/averageUtilization")) {
            (own, Some(target)) => {
                let now = current(own).map_or("<unknown>".to_string(), |n| format!("{n}%"));
                format!("{own}: {now}/{target}%")
            }
            (own, None) if !own.is_empty() => {
                format!("{own}: <unknown>/{}", none_if_empty(text(m, "/resource/target/averageValue")))
            }
            _ => "<unknown>".to_string(),
        }
    });
    none_if_empty(&shown.collect::<Vec<_>>().join(", ")).into()
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

fn autoscaler(obj: &Value, lowest: i64, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    let min = int(spec, "/minReplicas").unwrap_or(1);
    let max = int(spec, "/maxReplicas").unwrap_or(0);
    if min < lowest {
        let words = format!("must be greater than or equal to {lowest}");
        errors.invalid("spec.minReplicas", min, &words);
    }
    if max < 1 {
        errors.invalid("spec.maxReplicas", max, "must be greater than 0");
    }
    if max < min {
        errors.invalid("spec.maxReplicas", max, "must be greater than or equal to `minReplicas`");
    }
    reference(&spec["scaleTargetRef"], "spec.scaleTargetRef", errors);
    let metrics = list(spec, "/metrics");
    for (i, m) in metrics.iter().enumerate() {
        metric(m, &format!("spec.metrics[{i}]"), errors);
    }
    if min == 0 && !metrics.iter().any(|m| matches!(text(m, "/type"), "Object" | "External")) {
        let words = "must specify at least one Object or External metric to support scaling to zero replicas";
        errors.forbidden("spec.metrics", words);
    }
    for side in ["scaleUp", "scaleDown"] {
        if let Some(rules) = spec.pointer(&format!("/behavior/{side}")).filter(|r| !r.is_null()) {
            scaling(rules, &format!("spec.behavior.{side}"), errors);
        }
    }
}

fn reference(r: &Value, path: &str, errors: &mut FieldErrors) {
    let version = text(r, "/apiVersion");
    if version.matches('/').count() > 1 {
        let words = format!("unexpected GroupVersion string: {version}");
        errors.invalid(&format!("{path}.apiVersion"), version, &words);
    }
    for key in ["kind", "name"] {
        if let Some(own) = required(r, path, key, errors) {
            errors.invalid_all(&format!("{path}.{key}"), own, name::path_segment(own));
        }
    }
}

fn scaling(rules: &Value, path: &str, errors: &mut FieldErrors) {
    let at = format!("{path}.stabilizationWindowSeconds");
    match int(rules, "/stabilizationWindowSeconds") {
        Some(n) if n < 0 => errors.invalid(&at, n, "must be greater than or equal to zero"),
        Some(n) if n > STABILIZATION_SECONDS_MAX => {
            let words = format!("must be less than or equal to {STABILIZATION_SECONDS_MAX}");
            errors.invalid(&at, n, &words);
        }
        _ => {}
    }
    super::get::enumerated_opt(rules, path, "selectPolicy", &["Disabled", "Max", "Min"], errors);
    if let Some(Ok(tolerance)) = rules.get("tolerance").and_then(Quantity::from_json)
        && tolerance.sign() < 0
    {
        let at = format!("{path}.tolerance");
        errors.invalid(&at, tolerance.to_string(), "must be greater than or equal to 0");
    }
    let policies = list(rules, "/policies");
    if policies.is_empty() {
        errors.required(&format!("{path}.policies"), "must specify at least one Policy");
    }
    for (i, p) in policies.iter().enumerate() {
        let path = format!("{path}.policies[{i}]");
        errors.one_of(&format!("{path}.type"), text(p, "/type"), &["Percent", "Pods"]);
        for key in ["value", "periodSeconds"] {
            let n = int(p, &format!("/{key}")).unwrap_or(0);
            if n <= 0 {
                errors.invalid(&format!("{path}.{key}"), n, "must be greater than zero");
            }
            if key == "periodSeconds" && n > PERIOD_SECONDS_MAX {
                let words = format!("must be less than or equal to {PERIOD_SECONDS_MAX}");
                errors.invalid(&format!("{path}.{key}"), n, &words);
            }
        }
    }
}

fn metric(m: &Value, path: &str, errors: &mut FieldErrors) {
    let kind = text(m, "/type");
    if kind.is_empty() {
        errors.required(&format!("{path}.type"), "must specify a metric source type");
    }
    errors.one_of(&format!("{path}.type"), kind, &TYPES);
    let given: Vec<&str> = SOURCES.iter().filter(|s| has(m, &format!("/{s}"))).copied().collect();
    if let Some(first) = given.first() {
        source(&m[*first], first, &format!("{path}.{first}"), errors);
    }
    let mut letters = kind.chars();
    let wanted: String = letters.next().map(|c| c.to_ascii_lowercase()).into_iter().chain(letters).collect();
    if TYPES.contains(&kind) && !given.contains(&wanted.as_str()) {
        let words = "must populate information for the given metric source";
        errors.required(&format!("{path}.{wanted}"), words);
    }
    if given.len() != 1 {
        for other in given.iter().filter(|s| **s != wanted) {
            errors.forbidden(&format!("{path}.{other}"), "must populate the given metric source only");
        }
    }
}

fn source(s: &Value, kind: &str, path: &str, errors: &mut FieldErrors) {
    if kind == "object" {
        reference(&s["describedObject"], &format!("{path}.describedObject"), errors);
    }
    if matches!(kind, "object" | "external" | "pods") {
        let own = text(s, "/metric/name");
        if own.is_empty() {
            errors.required(&format!("{path}.metric.name"), "must specify a metric name");
        } else {
            errors.invalid_all(&format!("{path}.metric.name"), own, name::path_segment(own));
        }
        let selector = s.pointer("/metric/selector");
        super::pod::scheduling::label_selector(selector, &format!("{path}.metric.selector"), errors);
    }
    if matches!(kind, "resource" | "containerResource") && text(s, "/name").is_empty() {
        errors.required(&format!("{path}.name"), "must specify a resource name");
    }
    if kind == "containerResource" && text(s, "/container").is_empty() {
        errors.required(&format!("{path}.container"), "must specify a container");
    }
    let (t, path) = (&s["target"], format!("{path}.target"));
    target(t, &path, errors);
    let (value, average, utilization) =
        (has(t, "/value"), has(t, "/averageValue"), has(t, "/averageUtilization"));
    let per_pod = "must set either a target value for metric or a per-pod target";
    match kind {
        "object" | "external" if !value && !average => {
            errors.required(&format!("{path}.averageValue"), per_pod);
        }
        "external" if value && average => errors.forbidden(
            &format!("{path}.value"),
            "may not set both a target value for metric and a per-pod target",
        ),
        "pods" if !average => {
            errors.required(&format!("{path}.averageValue"), "must specify a positive target averageValue");
        }
        "resource" | "containerResource" if !utilization && !average => errors.required(
            &format!("{path}.averageUtilization"),
            "must set either a target raw value or a target utilization",
        ),
        "resource" | "containerResource" if utilization && average => errors.forbidden(
            &format!("{path}.averageValue"),
            "may not set both a target raw value and a target utilization",
        ),
        _ => {}
    }
}

fn target(t: &Value, path: &str, errors: &mut FieldErrors) {
    match text(t, "/type") {
        "" => errors.required(&format!("{path}.type"), "must specify a metric target type"),
        "Utilization" | "Value" | "AverageValue" => {}
        other => {
            let words = "must be either Utilization, Value, or AverageValue";
            errors.invalid(&format!("{path}.type"), other, words);
        }
    }
    for key in ["value", "averageValue"] {
        if let Some(Ok(q)) = t.get(key).and_then(Quantity::from_json)
            && q.sign() <= 0
        {
            errors.invalid(&format!("{path}.{key}"), q.to_string(), "must be positive");
        }
    }
    if let Some(n) = int(t, "/averageUtilization").filter(|n| *n < 1) {
        errors.invalid(&format!("{path}.averageUtilization"), n, "must be greater than 0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(spec: Value) -> Vec<String> {
        let mut obj =
            json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "x"}}});
        for (k, v) in spec.as_object().unwrap() {
            obj["spec"][k] = v.clone();
        }
        defaults(&mut obj);
        let mut errors = FieldErrors::new();
        autoscaler(&obj, 1, &mut errors);
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
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
