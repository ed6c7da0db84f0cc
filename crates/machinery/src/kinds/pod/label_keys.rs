//! `matchLabelKeys` and `mismatchLabelKeys`: a new pod's own values of these labels become part of the selectors beside
//! them, as upstream does it when the pod is made (templates stay as they are).

use crate::kinds::get::{at, each, entries, text, texts};
use crate::kinds::spot::Spot;
use crate::name;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Puts the pod's own values into its selectors.
pub fn merge(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].clone();
    let Some(spec) = pod.get_mut("spec") else { return };
    each(spec, "/topologySpreadConstraints", |c| own_values(c, &labels));
    for kind in ["podAffinity", "podAntiAffinity"] {
        let rules = format!("/affinity/{kind}");
        each(spec, &format!("{rules}/requiredDuringSchedulingIgnoredDuringExecution"), |t| {
            own_values(t, &labels)
        });
        each(spec, &format!("{rules}/preferredDuringSchedulingIgnoredDuringExecution"), |t| {
            at(t, "/podAffinityTerm", |t| own_values(t, &labels));
        });
    }
}

fn own_values(rule: &mut Value, labels: &Value) {
    let mut more = Vec::new();
    for (keys, operator) in [("/matchLabelKeys", "In"), ("/mismatchLabelKeys", "NotIn")] {
        let own = texts(rule, keys).filter_map(|key| Some((key, labels.get(key)?)));
        more.extend(own.map(|(key, value)| json!({"key": key, "operator": operator, "values": [value]})));
    }
    // No selector selects nothing, whatever is added.
    let Some(selector) = rule.get_mut("labelSelector").and_then(Value::as_object_mut) else { return };
    if more.is_empty() {
        return;
    }
    let expressions = selector.entry("matchExpressions").or_insert_with(|| json!([]));
    if expressions.is_null() {
        *expressions = json!([]);
    }
    expressions.as_array_mut().into_iter().for_each(|all| all.append(&mut more));
}

/// The names of the keys. They need a selector.
pub fn validate(rule: &Spot, field: &str) {
    if !rule.list(field).is_empty() && !rule.v["labelSelector"].is_object() {
        return rule.forbidden(field, "must not be specified when labelSelector is not set");
    }
    rule.each(field).for_each(|key| key.like("", name::qualified_name));
}

/// Keys that the selector has twice: one is the pod's own value, so the other was written.
pub fn not_twice(rule: &Spot, path: &str) {
    let keys = rule.texts("matchLabelKeys");
    let mut seen: BTreeSet<&str> = entries(rule.v, "/labelSelector/matchLabels").map(|(k, _)| k).collect();
    for key in rule.list("labelSelector.matchExpressions").iter().map(|e| text(e, "/key")) {
        if !seen.insert(key)
            && let Some(i) = keys.iter().rposition(|k| *k == key)
        {
            let at = rule.named(format!("{}[{i}]", rule.at(path)));
            at.invalid("", key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}

/// Keys of both lists.
pub fn apart(rule: &Spot) {
    let others = rule.texts("mismatchLabelKeys");
    for key in rule.each("matchLabelKeys").filter(|key| others.contains(&key.text(""))) {
        key.wrong("", "exists in both matchLabelKeys and mismatchLabelKeys");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;

    #[test]
    fn own_values_join_the_selectors() {
        let term = json!({"labelSelector": {"matchLabels": {"app": "web"}}, "matchLabelKeys": ["hash", "none"],
            "mismatchLabelKeys": ["tenant"], "topologyKey": "zone"});
        let mut pod = json!({"metadata": {"labels": {"hash": "h", "tenant": "t"}}, "spec": {
            "topologySpreadConstraints": [{"matchLabelKeys": ["hash"], "labelSelector": {"matchExpressions": null}},
                {"matchLabelKeys": ["hash"]}],
            "affinity": {"podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [term.clone()],
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]}}}});
        merge(&mut pod);
        let own = json!([{"key": "hash", "operator": "In", "values": ["h"]},
            {"key": "tenant", "operator": "NotIn", "values": ["t"]}]);
        let rules = &pod["spec"]["affinity"]["podAntiAffinity"];
        let required = &rules["requiredDuringSchedulingIgnoredDuringExecution"][0];
        let preferred = &rules["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
        assert_eq!(required["labelSelector"]["matchExpressions"], own);
        assert_eq!(preferred["labelSelector"]["matchExpressions"], own);
        let spread = &pod["spec"]["topologySpreadConstraints"];
        assert_eq!(spread[0]["labelSelector"]["matchExpressions"], json!([own[0]]));
        assert!(spread[1].get("labelSelector").is_none());
    }

    #[test]
    fn what_is_there_twice_was_written_by_hand() {
        let told = |rule: Value| {
            let mut errors = FieldErrors::new();
            let spot = Spot::new(&rule, "p", &mut errors);
            validate(&spot, "matchLabelKeys");
            not_twice(&spot, "");
            apart(&spot);
            errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect::<Vec<_>>()
        };
        let merged = json!([{"key": "k", "operator": "In", "values": ["v"]}]);
        assert!(
            told(json!({"matchLabelKeys": ["k"], "labelSelector": {"matchExpressions": merged}})).is_empty()
        );
        let twice = json!({"matchLabelKeys": ["k"], "mismatchLabelKeys": ["k"],
            "labelSelector": {"matchLabels": {"k": "v"}, "matchExpressions": merged}});
        assert_eq!(
            told(twice),
            [
                "p[0]: Invalid value: \"k\": exists in both matchLabelKeys and labelSelector",
                "p.matchLabelKeys[0]: Invalid value: \"k\": exists in both matchLabelKeys and mismatchLabelKeys",
            ]
        );
        assert_eq!(
            told(json!({"matchLabelKeys": ["k"]})),
            ["p.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set"]
        );
    }
}
