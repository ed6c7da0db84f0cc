//! LimitRange: bounds and defaults for the resources of a namespace's containers, pods and claims.
//!
//! Deliberately not here: applying them (admission).

use super::get::{child, default, each, entries, text};
use super::pod::containers::resource_name;
use super::spot::Spot;
use super::{Behaviour, CHECKED};
use crate::name;
use crate::quantity::Quantity;
use crate::table::Column;
use serde_json::Value;
use std::collections::BTreeSet;

const TYPES: [&str; 3] = ["Pod", "Container", "PersistentVolumeClaim"];
const LISTS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
/// Resources that quotas and limits know without a domain.
const STANDARD: [&str; 22] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
    "storage",
    "hugepages-",
    "requests.hugepages-",
];

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[Behaviour {
    resource: "limitranges",
    create_on_update: true,
    defaults,
    validate,

    columns: &[Column::NAME, Column::CREATED],
    ..CHECKED
}];

fn defaults(obj: &mut Value) {
    each(obj, "/spec/limits", |limit| {
        if text(limit, "/type") != "Container" {
            return;
        }
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let source: Vec<(String, Value)> =
                entries(limit, &format!("/{from}")).map(|(k, v)| (k.into(), v.clone())).collect();
            if let Some(target) = child(limit, to) {
                source.into_iter().for_each(|(k, v)| default(target, &k, v));
            }
        }
    });
}

fn validate(obj: &Spot) {
    let mut types = BTreeSet::new();
    for limit in obj.each("spec.limits") {
        let kind = limit.text("type");
        limit.like("type", name::qualified_name);
        if !kind.contains('/') && !TYPES.contains(&kind) {
            limit.invalid("type", kind, "must be a standard limit type or fully qualified");
        }
        limit.unique("type", kind, &mut types);
        names(&limit, kind);
        if kind == "PersistentVolumeClaim" && limit.given(&["min.storage", "max.storage"]).is_empty() {
            let words = "either minimum or maximum storage value is required, but neither was provided";
            limit.required("limits", words);
        }
        let keys: BTreeSet<&str> =
            LISTS.iter().flat_map(|l| entries(&limit.v[*l], "")).map(|(k, _)| k).collect();
        keys.into_iter().for_each(|key| amounts(&limit, key));
    }
}

fn names(limit: &Spot, kind: &str) {
    for key in LISTS {
        if kind == "Pod" && key.starts_with("default") {
            if limit.entries(key).next().is_some() {
                limit.forbidden(key, "may not be specified when `type` is 'Pod'");
            }
            continue;
        }
        for (resource, s) in limit.entries(key) {
            if matches!(kind, "Pod" | "Container") {
                resource_name(resource, &s);
                continue;
            }
            s.invalid_all("", resource, name::qualified_name(resource));
            let known =
                STANDARD.iter().any(|s| resource == *s || (s.ends_with('-') && resource.starts_with(s)));
            if !resource.contains('/') && !known {
                s.invalid("", resource, "must be a standard resource type or fully qualified");
            }
        }
    }
}

/// The amounts of one resource must be in order: min ≤ default request ≤ default ≤ max.
fn amounts(limit: &Spot, resource: &str) {
    let of = |list: &str| {
        let mut all = entries(&limit.v[list], "");
        all.find(|(k, _)| *k == resource).and_then(|(_, v)| Quantity::from_json(v)?.ok())
    };
    let wrong = |field: &str, shown: Quantity, words: &str| {
        limit.invalid(&format!("{field}[{resource}]"), shown.to_string(), words);
    };
    let (min, max, ratio) = (of("min"), of("max"), of("maxLimitRequestRatio"));
    let (limit_default, request) = (of("default"), of("defaultRequest"));
    let ordered = |low: (Option<Quantity>, &str), high: (Option<Quantity>, &str), field: &str| {
        if let (Some(a), Some(b)) = (low.0, high.0)
            && a > b
        {
            let upper = matches!((field, low.1), ("defaultRequest", "min") | ("default", "default"));
            let words = format!("{} value {a} is greater than {} value {b}", low.1, high.1);
            wrong(field, if upper { b } else { a }, &words);
        }
    };
    ordered((min, "min"), (max, "max"), "min");
    ordered((min, "min"), (request, "default request"), "defaultRequest");
    ordered((request, "default request"), (max, "max"), "defaultRequest");
    ordered((request, "default request"), (limit_default, "default limit"), "defaultRequest");
    ordered((min, "min"), (limit_default, "default"), "default");
    ordered((limit_default, "default"), (max, "max"), "default");
    if let Some(ratio) = ratio {
        if ratio < Quantity::from_units(1) {
            wrong("maxLimitRequestRatio", ratio, &format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (min, max)
            && let Some(widest) = too_wide(ratio, min, max)
        {
            let words = format!("ratio {ratio} is greater than max/min = {widest:.6}");
            wrong("maxLimitRequestRatio", ratio, &words);
        }
    }
    let overcommits = !resource.contains('/') && !resource.starts_with("hugepages-");
    if let (Some(a), Some(b), false) = (limit_default, request, overcommits)
        && a != b
    {
        let words = format!("default value {a} must equal to defaultRequest value {b} in {resource}");
        wrong("defaultRequest", b, &words);
    }
}

/// The ratio that there is, where it is less than what is asked for.
#[expect(clippy::cast_precision_loss, reason = "upstream compares floating-point ratios, and shows them")]
fn too_wide(ratio: Quantity, min: Quantity, max: Quantity) -> Option<f64> {
    let whole = ratio.is_whole() && min.is_whole() && max.is_whole();
    let value = |q: Quantity| if whole { q.units() as f64 } else { q.milli() as f64 };
    let widest = value(max) / value(min);
    // A ratio has no unit: both of its sides are in thousandths, or neither.
    let asked = if whole { ratio.units() as f64 } else { ratio.milli() as f64 / 1000.0 };
    (asked > widest).then_some(widest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::json;

    fn found(limit: Value) -> Vec<String> {
        let mut obj = json!({"spec": {"limits": [limit]}});
        defaults(&mut obj);
        let mut errors = FieldErrors::new();
        validate(&Spot::new(&obj, "", &mut errors));
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn amounts_are_in_order() {
        assert_eq!(
            found(
                json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "2"}, "default": {"cpu": "500m"},
                "defaultRequest": {"cpu": "200m"}, "maxLimitRequestRatio": {"cpu": "4"}})
            ),
            Vec::<String>::new()
        );
        for (limit, expected) in [
            (
                json!({"type": "Pod", "min": {"cpu": "2"}, "max": {"cpu": "1"}}),
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            ),
            (
                json!({"type": "Pod", "default": {"cpu": "2"}}),
                "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
            ),
            (
                json!({"type": "Container", "defaultRequest": {"cpu": "2"}, "default": {"cpu": "1"}}),
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"memory": "0"}}),
                "spec.limits[0].maxLimitRequestRatio[memory]: Invalid value: \"0\": ratio 0 is less than 1",
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "1"}, "max": {"cpu": "2"}, "maxLimitRequestRatio": {"cpu": "4"}}),
                "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"4\": ratio 4 is greater than max/min = 2.000000",
            ),
            (
                json!({"type": "PersistentVolumeClaim"}),
                "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
            ),
            (
                json!({"type": "Nonsense"}),
                "spec.limits[0].type: Invalid value: \"Nonsense\": must be a standard limit type or fully qualified",
            ),
        ] {
            assert_eq!(found(limit.clone()).first().map(String::as_str), Some(expected), "{limit}");
        }
    }
}
