//! The policies of a Job: what its pods' failures and successes mean, limits of indexed Jobs, who runs it; and what
//! may change later.

use super::get::{each, flag, has, remove, set, text};
use super::spot::Spot;
use crate::name;
use serde_json::Value;
use std::collections::BTreeSet;

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const INDEXED_PARALLELISM_MAX: i64 = 100_000;
const MANAGER_MAX: usize = 63;
const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];

/// Everything of a Job's spec that is a policy.
pub fn validate(spec: &Spot) {
    let indexed = spec.text("completionMode") == "Indexed";
    indexes(spec, indexed);
    if spec.has("podFailurePolicy") {
        failure_policy(spec);
    }
    if let Some(policy) = spec.opt("successPolicy") {
        if !indexed {
            policy.wrong("", "requires indexed completion mode");
        }
        success_policy(&policy);
    }
    if let Some(manager) = spec.v["managedBy"].as_str() {
        let (domain, rest) = manager.split_once('/').unwrap_or((manager, ""));
        if rest.is_empty() || !name::dns1123_subdomain(domain).is_empty() {
            spec.wrong("managedBy", "must be a domain-prefixed path (such as \"acme.io/foo\")");
        }
        spec.no_longer("managedBy", manager.len(), MANAGER_MAX);
    }
}

fn indexes(spec: &Spot, indexed: bool) {
    if indexed {
        let words = format!(
            "must be less than or equal to {INDEXED_PARALLELISM_MAX} when completion mode is Indexed"
        );
        spec.within("parallelism", i64::MIN..=INDEXED_PARALLELISM_MAX, &words);
        if let Some(all) = spec.int("completions") {
            spec.within("maxFailedIndexes", i64::MIN..=all, "must be less than or equal to completions");
        }
    } else {
        for key in spec.given(&["backoffLimitPerIndex", "maxFailedIndexes"]) {
            spec.wrong(key, "requires indexed completion mode");
        }
    }
    if !spec.has("backoffLimitPerIndex") && spec.has("maxFailedIndexes") {
        spec.required("backoffLimitPerIndex", "when maxFailedIndexes is specified");
    }
}

fn failure_policy(spec: &Spot) {
    let restart = spec.text("template.spec.restartPolicy");
    if restart != "Never" {
        let words = "only \"Never\" is supported when podFailurePolicy is specified";
        spec.invalid("template.spec.restartPolicy", restart, words);
    }
    spec.one_of_opt("podReplacementPolicy", &["Failed"]);
    spec.at_most("podFailurePolicy.rules", RULES_MAX);
    let per_index = spec.has("backoffLimitPerIndex");
    let names: BTreeSet<&str> = ["template.spec.containers", "template.spec.initContainers"]
        .iter()
        .flat_map(|l| spec.list(l))
        .map(|c| text(c, "/name"))
        .collect();
    spec.each("podFailurePolicy.rules").for_each(|rule| failure_rule(&rule, per_index, &names));
}

fn failure_rule(rule: &Spot, per_index: bool, names: &BTreeSet<&str>) {
    match rule.text("action") {
        "" => rule.required("action", &format!("valid values: {ACTIONS:?}")),
        "FailIndex" if !per_index => {
            rule.wrong("action", "requires the backoffLimitPerIndex to be set");
        }
        _ => rule.known("action", &ACTIONS),
    }
    let codes = rule.opt("onExitCodes");
    let null = |words: &str| rule.invalid("", Value::Null, words);
    match (codes.is_some(), rule.list("onPodConditions").is_empty()) {
        (true, false) => null("specifying both OnExitCodes and OnPodConditions is not supported"),
        (false, true) => null("specifying one of OnExitCodes and OnPodConditions is required"),
        _ => {}
    }
    codes.iter().for_each(|codes| exit_codes(codes, names));
    rule.at_most("onPodConditions", RULES_MAX);
    for c in rule.each("onPodConditions") {
        c.like("type", name::qualified_name);
        c.one_of("status", &["False", "True", "Unknown"]);
    }
}

fn exit_codes(codes: &Spot, names: &BTreeSet<&str>) {
    codes.one_of("operator", &["In", "NotIn"]);
    if codes.v["containerName"].as_str().is_some_and(|c| !names.contains(c)) {
        let words = "must be one of the container or initContainer names in the pod template";
        codes.wrong("containerName", words);
    }
    let values: Vec<i64> = codes.list("values").iter().filter_map(Value::as_i64).collect();
    if values.is_empty() {
        codes.invalid("values", Vec::<i64>::new(), "at least one value is required");
    }
    codes.at_most("values", EXIT_CODES_MAX);
    let mut seen = BTreeSet::new();
    for value in codes.each("values") {
        let code = value.int("").unwrap_or(0);
        if code == 0 && codes.text("operator") == "In" {
            value.invalid("", 0, "must not be 0 for the In operator");
        }
        value.unique("", code, &mut seen);
    }
    if !values.is_sorted() {
        codes.wrong("values", "must be ordered");
    }
}

fn success_policy(policy: &Spot) {
    if policy.list("rules").is_empty() {
        let words = "at least one rules must be specified when the successPolicy is specified";
        policy.required("rules", words);
    }
    policy.at_most("rules", RULES_MAX);
    for rule in policy.each("rules") {
        if rule.given(&["succeededCount", "succeededIndexes"]).is_empty() {
            rule.required("", "at least one of succeededCount or succeededIndexes must be specified");
        }
        rule.non_negative(&["succeededCount"]);
        let range = |part: &str| {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            matches!((from.parse::<u32>(), to.parse::<u32>()), (Ok(a), Ok(b)) if a <= b)
        };
        let indexes = rule.text("succeededIndexes");
        if !indexes.is_empty() && !indexes.split(',').all(range) {
            rule.wrong("succeededIndexes", &format!("error parsing succeededIndexes: {indexes:?}"));
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
pub fn completions(new: &Spot, old: &Value) {
    let (now, was) = (&new.v["spec"]["completions"], &old["spec"]["completions"]);
    if new.text("spec.completionMode") != "Indexed" {
        return new.immutable("spec.completions", old);
    }
    if now != was && now.is_i64() && was.is_i64() && *now != new.v["spec"]["parallelism"] {
        new.wrong("spec.completions", "can only be modified in tandem with spec.parallelism");
    }
}

/// A time zone as CronJobs name it.
pub fn time_zone(s: &Spot) {
    let zone = s.text("");
    if zone.is_empty() {
        return s.wrong("", "timeZone must be nil or non-empty string");
    }
    if zone.eq_ignore_ascii_case("local") {
        let words = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        return s.wrong("", words);
    }
    // Names in another case are found, too, but are not the zone's.
    if !jiff::tz::TimeZoneDatabase::bundled().available().any(|known| known.as_str() == zone) {
        s.wrong("", &format!("unknown time zone {zone}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::json;

    fn found(spec: Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        validate(&Spot::new(&spec, "spec", &mut errors));
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
        completions(&Spot::new(&indexed(4, 4), "", &mut errors), &indexed(3, 3));
        assert!(errors.is_empty());
        completions(&Spot::new(&indexed(4, 3), "", &mut errors), &indexed(3, 3));
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
            ("bad-zone", false),
            ("europe/berlin", false),
            ("../x", false),
        ] {
            let mut errors = FieldErrors::new();
            time_zone(&Spot::new(&Value::from(zone), "spec.timeZone", &mut errors));
            assert_eq!(errors.is_empty(), ok, "{zone}");
        }
    }
}
