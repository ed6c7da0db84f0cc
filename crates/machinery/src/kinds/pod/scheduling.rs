//! Validation of what steers scheduling: tolerations, affinity, spread constraints, gates.

use super::label_keys;
use crate::kinds::get::{entries, list};
use crate::kinds::meta;
use crate::kinds::spot::Spot;
use crate::name;
use serde_json::Value;
use std::collections::BTreeSet;

/// Effects of a taint.
pub const TAINT_EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const WEIGHT: &str = "must be in the range 1-100";

/// All of a pod spec's scheduling fields.
pub fn validate(spec: &Spot) {
    spec.each("tolerations").for_each(|t| tolerate(&t));
    if let Some(affinity) = spec.opt("affinity") {
        node_affinity(&affinity.key("nodeAffinity"));
        pod_affinity(&affinity.key("podAffinity"));
        pod_affinity(&affinity.key("podAntiAffinity"));
    }
    let mut spreads = BTreeSet::new();
    for constraint in spec.each("topologySpreadConstraints") {
        spread(&constraint);
        let pair = (constraint.text("topologyKey"), constraint.text("whenUnsatisfiable"));
        if !spreads.insert(pair) {
            let shown = format!("{{{}, {}}}", pair.0, pair.1);
            constraint.duplicate("{topologyKey, whenUnsatisfiable}", shown);
        }
    }
    crate::kinds::pod_groups::scheduling_group(spec);
    let mut gates = BTreeSet::new();
    for gate in spec.each("schedulingGates") {
        let own = gate.text("name");
        gate.invalid_all("", own, name::qualified_name(own));
        gate.unique("", own, &mut gates);
    }
}

fn tolerate(t: &Spot) {
    let (op, value) = (t.text("operator"), t.text("value"));
    t.like_opt("key", name::qualified_name);
    if t.text("key").is_empty() && op != "Exists" {
        let words =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        t.invalid("operator", op, words);
    }
    if t.has("tolerationSeconds") && t.text("effect") != "NoExecute" {
        let words = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        t.invalid("effect", t.text("effect"), words);
    }
    match op {
        "" | "Equal" => t.invalid_all("operator", value, name::label_value(value)),
        "Exists" if !value.is_empty() => {
            t.invalid("operator", value, "value must be empty when `operator` is 'Exists'");
        }
        "Exists" => {}
        "Gt" | "Lt" if value.parse::<i64>().is_ok() => {}
        "Gt" | "Lt" => t.invalid("value", value, "value must be an integer"),
        _ => t.not_supported("operator", op, &["Equal", "Exists"]),
    }
    t.one_of_opt("effect", &TAINT_EFFECTS);
}

fn node_affinity(affinity: &Spot) {
    affinity.opt(REQUIRED).iter().for_each(node_selector);
    for row in affinity.each(PREFERRED) {
        row.within_or_zero("weight", 1..=100, WEIGHT);
        term(&row.key("preference"));
    }
}

/// A `NodeSelector` (also of a PersistentVolume): at least one term.
pub fn node_selector(selector: &Spot) {
    if selector.list("nodeSelectorTerms").is_empty() {
        selector.required("nodeSelectorTerms", "must have at least one node selector term");
    }
    selector.each("nodeSelectorTerms").for_each(|t| term(&t));
}

fn term(t: &Spot) {
    for row in t.each("matchExpressions") {
        row.like("key", name::qualified_name);
        if matches!(row.text("operator"), "Gt" | "Lt") {
            if row.list("values").len() != 1 {
                let words = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                row.required("values", words);
            }
        } else {
            values_fit(&row);
        }
    }
    for row in t.each("matchFields") {
        if row.text("key") != "metadata.name" {
            row.invalid("key", row.text("key"), "not a valid field selector key");
        }
        match row.text("operator") {
            "In" | "NotIn" if row.list("values").len() != 1 => {
                let words =
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                row.required("values", words);
            }
            "In" | "NotIn" => {}
            other => row.invalid("operator", other, "not a valid selector operator"),
        }
    }
}

/// Has a requirement values where its operator takes some?
fn values_fit(row: &Spot) {
    let none = row.list("values").is_empty();
    match row.text("operator") {
        "In" | "NotIn" if none => {
            row.required("values", "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !none => {
            let words = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            row.forbidden("values", words);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => row.invalid("operator", other, "not a valid selector operator"),
    }
}

fn pod_affinity(affinity: &Spot) {
    affinity.each(REQUIRED).for_each(|t| affinity_term(&t));
    for row in affinity.each(PREFERRED) {
        row.within_or_zero("weight", 1..=100, WEIGHT);
        affinity_term(&row.key("podAffinityTerm"));
    }
}

fn affinity_term(t: &Spot) {
    t.selector("labelSelector");
    t.selector("namespaceSelector");
    for namespace in t.texts("namespaces") {
        t.invalid_all("namespace", namespace, name::dns1123_label(namespace));
    }
    label_keys::validate(t, "matchLabelKeys");
    label_keys::validate(t, "mismatchLabelKeys");
    // The field is not named here.
    label_keys::not_twice(t, "");
    label_keys::apart(t);
    topology_key(t);
}

fn topology_key(t: &Spot) {
    match t.text("topologyKey") {
        "" => t.required("topologyKey", "can not be empty"),
        _ => t.like("topologyKey", name::qualified_name),
    }
}

fn spread(c: &Spot) {
    c.within_or_zero("maxSkew", 1..=i64::MAX, "must be greater than zero");
    topology_key(c);
    c.known("whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"]);
    if let Some(domains) = c.int("minDomains") {
        c.within("minDomains", 1..=i64::MAX, "must be greater than zero");
        if c.text("whenUnsatisfiable") != "DoNotSchedule" {
            let words = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
            c.invalid("minDomains", domains, words);
        }
    }
    c.one_of_opt("nodeAffinityPolicy", &["Honor", "Ignore"]);
    c.one_of_opt("nodeTaintsPolicy", &["Honor", "Ignore"]);
    c.selector("labelSelector");
    label_keys::validate(c, "matchLabelKeys");
    label_keys::not_twice(c, "matchLabelKeys");
}

/// Where a gated pod may go can only be narrowed.
pub fn tightened(spec: &Spot, old: &Value) {
    const TERMS: &str =
        "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let kept = |(k, v): (&str, &Value)| entries(spec.v, "/nodeSelector").any(|(n, w)| n == k && w == v);
    if !entries(old, "/nodeSelector").all(kept) {
        let words = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        spec.wrong("nodeSelector", words);
    }
    let before = list(old, &format!("/{}", TERMS.replace('.', "/")));
    if before.is_empty() {
        return;
    }
    if spec.list(TERMS).len() != before.len() {
        let words = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return spec.invalid(TERMS, spec.list(TERMS), words);
    }
    for (now, before) in spec.each(TERMS).zip(before) {
        // A term without requirements selects nothing: one more would widen it.
        let empty =
            ["matchExpressions", "matchFields"].iter().all(|k| list(before, &format!("/{k}")).is_empty());
        let narrower = |key: &str| {
            let (now, before) = (now.list(key), list(before, &format!("/{key}")));
            now.starts_with(before) && (!empty || now.is_empty())
        };
        if !(narrower("matchExpressions") && narrower("matchFields")) {
            now.wrong("", "only additions are allowed (no mutations or deletions)");
        }
    }
}

/// A `metav1.LabelSelector`, in upstream's words; absent is fine.
pub fn label_selector(selector: &Spot) {
    meta::labels(&selector.key("matchLabels"));
    for row in selector.each("matchExpressions") {
        values_fit(&row);
        row.need_like("key", name::qualified_name);
        row.each("values").for_each(|value| value.like("", name::label_value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::json;

    #[test]
    fn gated_pods_are_only_narrowed() {
        let of = |zone: &str, more: bool, terms: Value| {
            let mut spec = json!({"nodeSelector": {"zone": zone}, "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
            if more {
                spec["nodeSelector"]["disk"] = json!("ssd");
            }
            spec
        };
        let a = json!({"key": "a", "operator": "Exists"});
        let b = json!({"key": "b", "operator": "Exists"});
        let check = |new: Value, old: Value| {
            let mut errors = FieldErrors::new();
            tightened(&Spot::new(&new, "spec", &mut errors), &old);
            errors.causes().len()
        };
        let one = || of("x", false, json!([{"matchExpressions": [a]}]));
        assert_eq!(check(of("x", true, json!([{"matchExpressions": [a, b]}])), one()), 0);
        assert_eq!(check(of("y", false, json!([{"matchExpressions": [a]}])), one()), 1);
        assert_eq!(check(of("x", false, json!([{"matchExpressions": [b]}])), one()), 1);
        assert_eq!(check(of("x", false, json!([])), one()), 1);
        assert_eq!(check(one(), of("x", false, json!([]))), 0);
    }

    #[test]
    fn spreads_are_told_apart() {
        let spread = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "matchLabelKeys": ["v"]});
        let mut errors = FieldErrors::new();
        let spec = json!({"topologySpreadConstraints": [spread, spread]});
        validate(&Spot::new(&spec, "spec", &mut errors));
        let fields: Vec<&str> = errors.causes().iter().map(|c| c.field.as_str()).collect();
        let at = "spec.topologySpreadConstraints";
        assert_eq!(
            fields,
            [
                format!("{at}[0].matchLabelKeys"),
                format!("{at}[1].matchLabelKeys"),
                format!("{at}[1].{{topologyKey, whenUnsatisfiable}}"),
            ]
        );
    }
}
