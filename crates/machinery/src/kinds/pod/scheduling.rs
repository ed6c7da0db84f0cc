//! Validation of what steers scheduling: tolerations, affinity, spread constraints, gates.

use crate::field_errors::FieldErrors;
use crate::kinds::get::{enumerated_opt, has, int, list, required, text};
use crate::name;
use serde_json::Value;
use std::collections::BTreeSet;

/// Effects of a taint.
pub const TAINT_EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];

/// All of a pod spec's scheduling fields.
pub fn validate(spec: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, toleration) in list(spec, "/tolerations").iter().enumerate() {
        tolerate(toleration, &format!("{path}.tolerations[{i}]"), errors);
    }
    if let Some(affinity) = spec.get("affinity").filter(|a| !a.is_null()) {
        node_affinity(&affinity["nodeAffinity"], &format!("{path}.affinity.nodeAffinity"), errors);
        for kind in ["podAffinity", "podAntiAffinity"] {
            pod_affinity(&affinity[kind], &format!("{path}.affinity.{kind}"), errors);
        }
    }
    let mut spreads = BTreeSet::new();
    for (i, constraint) in list(spec, "/topologySpreadConstraints").iter().enumerate() {
        let path = format!("{path}.topologySpreadConstraints[{i}]");
        spread(constraint, &path, errors);
        let pair = (text(constraint, "/topologyKey"), text(constraint, "/whenUnsatisfiable"));
        if !spreads.insert(pair) {
            let shown = format!("{{{}, {}}}", pair.0, pair.1);
            errors.duplicate(&format!("{path}.{{topologyKey, whenUnsatisfiable}}"), shown);
        }
    }
    let mut gates = BTreeSet::new();
    for (i, gate) in list(spec, "/schedulingGates").iter().enumerate() {
        let path = format!("{path}.schedulingGates[{i}]");
        let own = text(gate, "/name");
        errors.invalid_all(&path, own, name::qualified_name(own));
        if !gates.insert(own) {
            errors.duplicate(&path, own);
        }
    }
}

fn tolerate(t: &Value, path: &str, errors: &mut FieldErrors) {
    let (key, op, value, effect) =
        (text(t, "/key"), text(t, "/operator"), text(t, "/value"), text(t, "/effect"));
    if !key.is_empty() {
        errors.invalid_all(&format!("{path}.key"), key, name::qualified_name(key));
    }
    if key.is_empty() && op != "Exists" {
        let words =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.invalid(&format!("{path}.operator"), op, words);
    }
    if has(t, "/tolerationSeconds") && effect != "NoExecute" {
        errors.invalid(
            &format!("{path}.effect"),
            effect,
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        );
    }
    match op {
        "" | "Equal" => errors.invalid_all(&format!("{path}.operator"), value, name::label_value(value)),
        "Exists" if !value.is_empty() => {
            errors.invalid(
                &format!("{path}.operator"),
                value,
                "value must be empty when `operator` is 'Exists'",
            );
        }
        "Exists" => {}
        "Gt" | "Lt" if value.parse::<i64>().is_ok() => {}
        "Gt" | "Lt" => errors.invalid(&format!("{path}.value"), value, "value must be an integer"),
        _ => errors.not_supported(&format!("{path}.operator"), op, &["Equal", "Exists"]),
    }
    enumerated_opt(t, path, "effect", &TAINT_EFFECTS, errors);
}

fn node_affinity(affinity: &Value, path: &str, errors: &mut FieldErrors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if has(affinity, &format!("/{REQUIRED}")) {
        node_selector(&affinity[REQUIRED], &format!("{path}.{REQUIRED}"), errors);
    }
    for (i, row) in list(affinity, &format!("/{PREFERRED}")).iter().enumerate() {
        let path = format!("{path}.{PREFERRED}[{i}]");
        weight(row, &path, errors);
        term(&row["preference"], &format!("{path}.preference"), errors);
    }
}

/// A `NodeSelector` (also of a PersistentVolume): at least one term.
pub fn node_selector(selector: &Value, path: &str, errors: &mut FieldErrors) {
    let terms = list(selector, "/nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&format!("{path}.nodeSelectorTerms"), "must have at least one node selector term");
    }
    for (i, t) in terms.iter().enumerate() {
        term(t, &format!("{path}.nodeSelectorTerms[{i}]"), errors);
    }
}

fn term(t: &Value, path: &str, errors: &mut FieldErrors) {
    for (i, row) in list(t, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let (key, values) = (text(row, "/key"), list(row, "/values"));
        errors.invalid_all(&format!("{path}.key"), key, name::qualified_name(key));
        match text(row, "/operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(
                    &format!("{path}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let words = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&format!("{path}.values"), words);
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let words = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.required(&format!("{path}.values"), words);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.invalid(&format!("{path}.operator"), other, "not a valid selector operator"),
        }
    }
    for (i, row) in list(t, "/matchFields").iter().enumerate() {
        let path = format!("{path}.matchFields[{i}]");
        if text(row, "/key") != "metadata.name" {
            errors.invalid(&format!("{path}.key"), text(row, "/key"), "not a valid field selector key");
        }
        match text(row, "/operator") {
            "In" | "NotIn" if list(row, "/values").len() != 1 => {
                let words =
                    "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                errors.required(&format!("{path}.values"), words);
            }
            "In" | "NotIn" => {}
            other => errors.invalid(&format!("{path}.operator"), other, "not a valid selector operator"),
        }
    }
}

fn weight(row: &Value, path: &str, errors: &mut FieldErrors) {
    let n = int(row, "/weight").unwrap_or(0);
    if !(1..=100).contains(&n) {
        errors.invalid(&format!("{path}.weight"), n, "must be in the range 1-100");
    }
}

fn pod_affinity(affinity: &Value, path: &str, errors: &mut FieldErrors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    for (i, t) in list(affinity, &format!("/{REQUIRED}")).iter().enumerate() {
        affinity_term(t, &format!("{path}.{REQUIRED}[{i}]"), errors);
    }
    for (i, row) in list(affinity, &format!("/{PREFERRED}")).iter().enumerate() {
        let path = format!("{path}.{PREFERRED}[{i}]");
        weight(row, &path, errors);
        affinity_term(&row["podAffinityTerm"], &format!("{path}.podAffinityTerm"), errors);
    }
}

fn affinity_term(t: &Value, path: &str, errors: &mut FieldErrors) {
    for key in ["labelSelector", "namespaceSelector"] {
        label_selector(t.get(key), &format!("{path}.{key}"), errors);
    }
    for namespace in crate::kinds::get::texts(t, "/namespaces") {
        errors.invalid_all(&format!("{path}.namespace"), namespace, name::dns1123_label(namespace));
    }
    topology_key(t, path, errors);
}

fn topology_key(t: &Value, path: &str, errors: &mut FieldErrors) {
    let key = text(t, "/topologyKey");
    if key.is_empty() {
        errors.required(&format!("{path}.topologyKey"), "can not be empty");
    } else {
        errors.invalid_all(&format!("{path}.topologyKey"), key, name::qualified_name(key));
    }
}

fn spread(c: &Value, path: &str, errors: &mut FieldErrors) {
    let skew = int(c, "/maxSkew").unwrap_or(0);
    if skew <= 0 {
        errors.invalid(&format!("{path}.maxSkew"), skew, "must be greater than zero");
    }
    topology_key(c, path, errors);
    let unsatisfiable = text(c, "/whenUnsatisfiable");
    errors.one_of(&format!("{path}.whenUnsatisfiable"), unsatisfiable, &["DoNotSchedule", "ScheduleAnyway"]);
    if let Some(domains) = int(c, "/minDomains") {
        if domains <= 0 {
            errors.invalid(&format!("{path}.minDomains"), domains, "must be greater than zero");
        }
        if unsatisfiable != "DoNotSchedule" {
            let words = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
            errors.invalid(&format!("{path}.minDomains"), domains, words);
        }
    }
    for key in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        enumerated_opt(c, path, key, &["Honor", "Ignore"], errors);
    }
    label_selector(c.get("labelSelector"), &format!("{path}.labelSelector"), errors);
    let path = format!("{path}.matchLabelKeys");
    for (i, key) in crate::kinds::get::texts(c, "/matchLabelKeys").enumerate() {
        let at = format!("{path}[{i}]");
        errors.invalid_all(&at, key, name::qualified_name(key));
        if !has(c, "/labelSelector") {
            errors.forbidden(&path, "must not be specified when labelSelector is not set");
            break;
        }
        let mut selected = list(c, "/labelSelector/matchExpressions").iter().map(|e| text(e, "/key"));
        let labelled = crate::kinds::get::entries(c, "/labelSelector/matchLabels").any(|(k, _)| k == key);
        if labelled || selected.any(|k| k == key) {
            errors.invalid(&at, key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}

/// Where a gated pod may go can only be narrowed.
pub fn tightened(new: &Value, old: &Value, errors: &mut FieldErrors) {
    const TERMS: &str =
        "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let entries = crate::kinds::get::entries;
    let kept = |(k, v): (&str, &Value)| entries(new, "/nodeSelector").any(|(n, w)| n == k && w == v);
    if !entries(old, "/nodeSelector").all(kept) {
        let words = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        errors.invalid("spec.nodeSelector", new["nodeSelector"].clone(), words);
    }
    let pointer = format!("/{}", TERMS.replace('.', "/"));
    let (now, before) = (list(new, &pointer), list(old, &pointer));
    if before.is_empty() {
        return;
    }
    let path = format!("spec.{TERMS}");
    if now.len() != before.len() {
        let words = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return errors.invalid(&path, now.to_vec(), words);
    }
    for (i, (now, before)) in now.iter().zip(before).enumerate() {
        // A term without requirements selects nothing: one more would widen it.
        let empty =
            ["matchExpressions", "matchFields"].iter().all(|k| list(before, &format!("/{k}")).is_empty());
        let narrower = |key: &str| {
            let (now, before) = (list(now, &format!("/{key}")), list(before, &format!("/{key}")));
            now.starts_with(before) && (!empty || now.is_empty())
        };
        if !(narrower("matchExpressions") && narrower("matchFields")) {
            let words = "only additions are allowed (no mutations or deletions)";
            errors.invalid(&format!("{path}[{i}]"), now.clone(), words);
        }
    }
}

/// A `metav1.LabelSelector`, in upstream's words; absent is fine.
pub fn label_selector(selector: Option<&Value>, path: &str, errors: &mut FieldErrors) {
    let Some(selector) = selector.filter(|s| !s.is_null()) else { return };
    for (key, value) in crate::kinds::get::entries(selector, "/matchLabels") {
        errors.invalid_all(&format!("{path}.matchLabels"), key, name::qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.invalid_all(&format!("{path}.matchLabels"), value, name::label_value(value));
    }
    for (i, row) in list(selector, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = list(row, "/values");
        match text(row, "/operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(
                    &format!("{path}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let words = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&format!("{path}.values"), words);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&format!("{path}.operator"), other, "not a valid selector operator"),
        }
        if let Some(key) = required(row, &path, "key", errors) {
            errors.invalid_all(&format!("{path}.key"), key, name::qualified_name(key));
        }
        for (j, value) in values.iter().filter_map(Value::as_str).enumerate() {
            errors.invalid_all(&format!("{path}.values[{j}]"), value, name::label_value(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            tightened(&new, &old, &mut errors);
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
        validate(&json!({"topologySpreadConstraints": [spread, spread]}), "spec", &mut errors);
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
