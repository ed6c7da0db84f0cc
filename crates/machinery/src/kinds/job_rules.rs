//! The policies of a Job: what its pods' failures and successes mean, limits of indexed Jobs, who runs it; and what
//! may change later.

use super::get::{each, enumerated, field, flag, has, int, list, remove, set, text};
use crate::field_errors::FieldErrors;
use crate::name;
use serde_json::Value;
use std::collections::BTreeSet;

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const INDEXED_PARALLELISM_MAX: i64 = 100_000;
const MANAGER_MAX: usize = 63;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

/// Everything of a Job's spec at `path` that is a policy.
pub fn validate(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let indexed = text(spec, "/completionMode") == "Indexed";
    indexes(spec, path, indexed, errors);
    if has(spec, "/podFailurePolicy") {
        failure_policy(spec, path, errors);
    }
    if has(spec, "/successPolicy") {
        let at = field(path, "successPolicy");
        if !indexed {
            errors.invalid(&at, spec["successPolicy"].clone(), "requires indexed completion mode");
        }
        success_policy(&spec["successPolicy"], &at, errors);
    }
    if let Some(manager) = spec.get("managedBy").and_then(Value::as_str) {
        let at = field(path, "managedBy");
        let (domain, rest) = manager.split_once('/').unwrap_or((manager, ""));
        if rest.is_empty() || !name::dns1123_subdomain(domain).is_empty() {
            errors.invalid(&at, manager, "must be a domain-prefixed path (such as \"acme.io/foo\")");
        }
        if manager.len() > MANAGER_MAX {
            errors.too_long(&at, MANAGER_MAX);
        }
    }
}

fn indexes(spec: &Value, path: &str, indexed: bool, errors: &mut FieldErrors) {
    let (per_index, failed) = (int(spec, "/backoffLimitPerIndex"), int(spec, "/maxFailedIndexes"));
    if indexed {
        if let Some(n) = int(spec, "/parallelism").filter(|n| *n > INDEXED_PARALLELISM_MAX) {
            let words = format!(
                "must be less than or equal to {INDEXED_PARALLELISM_MAX} when completion mode is Indexed"
            );
            errors.invalid(&field(path, "parallelism"), n, &words);
        }
        if let (Some(n), Some(all)) = (failed, int(spec, "/completions"))
            && n > all
        {
            let words = "must be less than or equal to completions";
            errors.invalid(&field(path, "maxFailedIndexes"), n, words);
        }
    } else {
        for (key, given) in [("backoffLimitPerIndex", per_index), ("maxFailedIndexes", failed)] {
            if let Some(n) = given {
                errors.invalid(&field(path, key), n, "requires indexed completion mode");
            }
        }
    }
    if per_index.is_none() && failed.is_some() {
        errors.required(&field(path, "backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
}

fn failure_policy(spec: &Value, path: &str, errors: &mut FieldErrors) {
    let restart = text(spec, "/template/spec/restartPolicy");
    if restart != "Never" {
        let at = field(path, "template.spec.restartPolicy");
        errors.invalid(&at, restart, "only \"Never\" is supported when podFailurePolicy is specified");
    }
    let replacement = text(spec, "/podReplacementPolicy");
    if !matches!(replacement, "" | "Failed") {
        errors.not_supported(&field(path, "podReplacementPolicy"), replacement, &["Failed"]);
    }
    let at = field(path, "podFailurePolicy.rules");
    let rules = list(spec, "/podFailurePolicy/rules");
    if rules.len() > RULES_MAX {
        errors.too_many(&at, rules.len(), RULES_MAX);
    }
    let per_index = has(spec, "/backoffLimitPerIndex");
    let names: BTreeSet<&str> = ["/containers", "/initContainers"]
        .iter()
        .flat_map(|l| list(&spec["template"]["spec"], l))
        .map(|c| text(c, "/name"))
        .collect();
    for (i, rule) in rules.iter().enumerate() {
        failure_rule(rule, &format!("{at}[{i}]"), (per_index, &names), errors);
    }
}

fn failure_rule(
    rule: &Value,
    path: &str,
    (per_index, names): (bool, &BTreeSet<&str>),
    errors: &mut FieldErrors,
) {
    let at = format!("{path}.action");
    match text(rule, "/action") {
        "" => errors.required(&at, &format!("valid values: {ACTIONS:?}")),
        "FailIndex" if !per_index => {
            errors.invalid(&at, "FailIndex", "requires the backoffLimitPerIndex to be set");
        }
        given => drop(errors.one_of(&at, given, &ACTIONS)),
    }
    let (codes, conditions) = (has(rule, "/onExitCodes"), list(rule, "/onPodConditions"));
    match (codes, conditions.is_empty()) {
        (true, false) => errors.invalid(
            path,
            Value::Null,
            "specifying both OnExitCodes and OnPodConditions is not supported",
        ),
        (false, true) => {
            errors.invalid(path, Value::Null, "specifying one of OnExitCodes and OnPodConditions is required")
        }
        _ => {}
    }
    if codes {
        exit_codes(&rule["onExitCodes"], names, &format!("{path}.onExitCodes"), errors);
    }
    let at = format!("{path}.onPodConditions");
    if conditions.len() > RULES_MAX {
        errors.too_many(&at, conditions.len(), RULES_MAX);
    }
    for (i, c) in conditions.iter().enumerate() {
        let path = format!("{at}[{i}]");
        let ty = text(c, "/type");
        errors.invalid_all(&format!("{path}.type"), ty, name::qualified_name(ty));
        enumerated(c, &path, "status", &["False", "True", "Unknown"], errors);
    }
}

fn exit_codes(codes: &Value, names: &BTreeSet<&str>, path: &str, errors: &mut FieldErrors) {
    enumerated(codes, path, "operator", &["In", "NotIn"], errors);
    if let Some(own) = codes.get("containerName").and_then(Value::as_str).filter(|c| !names.contains(c)) {
        let words = "must be one of the container or initContainer names in the pod template";
        errors.invalid(&format!("{path}.containerName"), own, words);
    }
    let at = format!("{path}.values");
    let values: Vec<i64> = list(codes, "/values").iter().filter_map(Value::as_i64).collect();
    if values.is_empty() {
        errors.invalid(&at, Vec::<i64>::new(), "at least one value is required");
    } else if values.len() > EXIT_CODES_MAX {
        errors.too_many(&at, values.len(), EXIT_CODES_MAX);
    }
    let mut seen = BTreeSet::new();
    for (i, code) in values.iter().enumerate() {
        let at = format!("{at}[{i}]");
        if *code == 0 && text(codes, "/operator") == "In" {
            errors.invalid(&at, 0, "must not be 0 for the In operator");
        }
        if !seen.insert(*code) {
            errors.duplicate(&at, *code);
        }
    }
    if !values.is_sorted() {
        errors.invalid(&at, values, "must be ordered");
    }
}

fn success_policy(policy: &Value, path: &str, errors: &mut FieldErrors) {
    let rules = list(policy, "/rules");
    let at = format!("{path}.rules");
    if rules.is_empty() {
        errors.required(&at, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > RULES_MAX {
        errors.too_many(&at, rules.len(), RULES_MAX);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = format!("{at}[{i}]");
        let (count, indexes) = (int(rule, "/succeededCount"), text(rule, "/succeededIndexes"));
        if count.is_none() && !has(rule, "/succeededIndexes") {
            let words = "at least one of succeededCount or succeededIndexes must be specified";
            errors.required(&path, words);
        }
        if let Some(count) = count {
            errors.non_negative(&format!("{path}.succeededCount"), count);
        }
        let range = |part: &str| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            matches!((from.parse::<u32>(), to.parse::<u32>()), (Ok(a), Ok(b)) if a <= b)
        };
        if !indexes.is_empty() && !indexes.split(',').all(range) {
            let words = format!("error parsing succeededIndexes: {indexes:?}");
            errors.invalid(&format!("{path}.succeededIndexes"), indexes, &words);
        }
    }
}

/// The template with what a Job that was suspended before it ran may still change blotted out.
pub fn fixed_template(obj: &Value, old: &Value) -> Value {
    let mut template = obj["spec"]["template"].clone();
    if !flag(old, "/spec/suspend") || has(old, "/status/startTime") {
        return template;
    }
    if let Some(metadata) = template.get_mut("metadata") {
        ["labels", "annotations"].iter().for_each(|key| drop(remove(metadata, key)));
    }
    if let Some(spec) = template.get_mut("spec") {
        ["nodeSelector", "tolerations", "schedulingGates"].iter().for_each(|key| drop(remove(spec, key)));
        if let Some(affinity) = spec.get_mut("affinity") {
            remove(affinity, "nodeAffinity");
        }
        for key in ["/containers", "/initContainers"] {
            each(spec, key, |c| set(c, "resources", Value::Null));
        }
    }
    template
}

/// The completions of an indexed Job change only together with its parallelism.
pub fn completions(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let (now, was) = (&new["spec"]["completions"], &old["spec"]["completions"]);
    if text(new, "/spec/completionMode") != "Indexed" {
        return errors.immutable("spec.completions", now, was);
    }
    if now != was && now.is_i64() && was.is_i64() && *now != new["spec"]["parallelism"] {
        let words = "can only be modified in tandem with spec.parallelism";
        errors.invalid("spec.completions", now.clone(), words);
    }
}

/// A time zone as CronJobs name it. Whether the zone exists only its user can tell.
pub fn time_zone(zone: &str, path: &str, errors: &mut FieldErrors) {
    if zone.is_empty() {
        return errors.invalid(path, zone, "timeZone must be nil or non-empty string");
    }
    if zone.eq_ignore_ascii_case("local") {
        let words = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        return errors.invalid(path, zone, words);
    }
    let part = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-".contains(&b));
    if !zone.split('/').all(part) || zone.starts_with(['-', '+']) {
        errors.invalid(path, zone, &format!("unknown time zone {zone}"));
    }
}

/// Is the zone hidden in the schedule?
pub fn zone_in_schedule(schedule: &str, errors: &mut FieldErrors) {
    if schedule.contains("TZ") {
        let words = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.invalid("spec.schedule", schedule, words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        validate(&spec, "spec", &mut errors);
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn policies() {
        let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}});
        let rule = json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1, 2], "containerName": "c"}});
        assert_eq!(
            found(json!({"template": template, "podFailurePolicy": {"rules": [rule]}})),
            Vec::<String>::new()
        );
        let bad = json!({"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [3, 0], "containerName": "x"}});
        assert_eq!(
            found(json!({"template": template, "podFailurePolicy": {"rules": [bad, {"action": "Ignore"}]}})),
            [
                "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
                "spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"x\": must be one of the container or initContainer names in the pod template",
                "spec.podFailurePolicy.rules[0].onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator",
                "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [3,0]: must be ordered",
                "spec.podFailurePolicy.rules[1]: Invalid value: null: specifying one of OnExitCodes and OnPodConditions is required",
            ]
        );
        assert_eq!(found(json!({"maxFailedIndexes": 1})).len(), 2);
        assert_eq!(
            found(
                json!({"completionMode": "Indexed", "completions": 3, "successPolicy": {"rules": [{"succeededIndexes": "0-x"}, {}]}})
            ),
            [
                "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0-x\": error parsing succeededIndexes: \"0-x\"",
                "spec.successPolicy.rules[1]: Required value: at least one of succeededCount or succeededIndexes must be specified",
            ]
        );
    }

    #[test]
    fn what_may_change() {
        let of = |suspend: bool, started: bool, zone: &str| {
            let status = if started { json!({"startTime": "2026-01-01T00:00:00Z"}) } else { json!({}) };
            json!({"spec": {"suspend": suspend, "template": {"spec": {"nodeSelector": {"zone": zone}}}}, "status": status})
        };
        let same = |old: Value| fixed_template(&of(true, false, "b"), &old) == fixed_template(&old, &old);
        assert!(same(of(true, false, "a")));
        assert!(!same(of(false, false, "a")) && !same(of(true, true, "a")));
        let indexed = |n: i64, p: i64| json!({"spec": {"completionMode": "Indexed", "completions": n, "parallelism": p}});
        let mut errors = FieldErrors::new();
        completions(&indexed(4, 4), &indexed(3, 3), &mut errors);
        assert!(errors.is_empty());
        completions(&indexed(4, 3), &indexed(3, 3), &mut errors);
        assert_eq!(
            errors.causes()[0].message,
            "Invalid value: 4: can only be modified in tandem with spec.parallelism"
        );
    }

    #[test]
    fn zones() {
        for (zone, ok) in [
            ("Europe/Berlin", true),
            ("Etc/GMT+3", true),
            ("", false),
            ("Local", false),
            ("a b", false),
            ("../x", false),
        ] {
            let mut errors = FieldErrors::new();
            time_zone(zone, "spec.timeZone", &mut errors);
            assert_eq!(errors.is_empty(), ok, "{zone}");
        }
    }
}
