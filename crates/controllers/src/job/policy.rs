//! What the failure of a pod means to its Job, and which successes are enough for it. Pure.
//!
//! Rules as in the Job's `podFailurePolicy` and `successPolicy`: the first that matches decides.

use super::model::{JobPod, parse_indexes};
use serde_json::Value;
use std::collections::BTreeSet;

/// What a failure policy's rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The Job has failed.
    FailJob,
    /// The pod's index has failed.
    FailIndex,
    /// The pod is replaced as if nothing had been.
    Ignore,
    /// The failure counts, as without a rule.
    Count,
}

const ACTIONS: [(&str, Action); 4] = [
    ("FailJob", Action::FailJob),
    ("FailIndex", Action::FailIndex),
    ("Ignore", Action::Ignore),
    ("Count", Action::Count),
];

#[derive(Clone, Debug)]
enum Pattern {
    /// A container ended with one of the codes, or with another one than those.
    Exit { container: Option<String>, among: bool, codes: Vec<i64> },
    /// The pod has one of these conditions, with this status.
    Conditions(Vec<(String, String)>),
}

/// A rule about failed pods.
#[derive(Clone, Debug)]
pub struct FailureRule {
    name: &'static str,
    action: Action,
    pattern: Pattern,
}

/// Reads `spec.podFailurePolicy`.
pub fn failure_rules(policy: &Value) -> Vec<FailureRule> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let read = |rule: &Value| {
        let (name, action) = *ACTIONS.iter().find(|(name, _)| rule["action"] == *name)?;
        let exit = &rule["onExitCodes"];
        let pattern = match exit.is_object() {
            true => Pattern::Exit {
                container: exit["containerName"].as_str().map(str::to_string),
                among: exit["operator"] == "In",
                codes: list(&exit["values"]).iter().filter_map(Value::as_i64).collect(),
            },
            false => {
                let wanted = list(&rule["onPodConditions"]);
                Pattern::Conditions(wanted.iter().map(|c| (text(&c["type"]), text(&c["status"]))).collect())
            }
        };
        Some(FailureRule { name, action, pattern })
    };
    list(&policy["rules"]).iter().filter_map(read).collect()
}

/// The rule that a failed pod meets: what it says, and why, in upstream's words.
pub fn of_failure(rules: &[FailureRule], pod: &JobPod) -> Option<(Action, String)> {
    let place = pod.facts.key.as_ref().map(|k| format!("{}/{}", k.namespace, k.name)).unwrap_or_default();
    rules.iter().enumerate().find_map(|(at, rule)| {
        let matching = format!("matching {} rule at index {at}", rule.name);
        let why = match &rule.pattern {
            Pattern::Exit { container, among, codes } => {
                let (name, code) = pod.exits.iter().find(|(name, code)| {
                    let meant = container.as_ref().is_none_or(|c| c == name);
                    *code != 0 && meant && codes.contains(code) == *among
                })?;
                format!("Container {name} for pod {place} failed with exit code {code} {matching}")
            }
            Pattern::Conditions(wanted) => {
                let (kind, _) = wanted.iter().find(|c| pod.conditions.contains(c))?;
                format!("Pod {place} has condition {kind} {matching}")
            }
        };
        Some((rule.action, why))
    })
}

/// A rule about successes of an indexed Job.
#[derive(Clone, Debug)]
pub struct SuccessRule {
    indexes: Option<BTreeSet<usize>>,
    count: Option<usize>,
}

/// Reads `spec.successPolicy`.
pub fn success_rules(policy: &Value) -> Vec<SuccessRule> {
    let read = |rule: &Value| SuccessRule {
        indexes: rule["succeededIndexes"].as_str().map(parse_indexes),
        count: rule["succeededCount"].as_u64().and_then(|n| usize::try_from(n).ok()),
    };
    policy["rules"].as_array().into_iter().flatten().map(read).collect()
}

/// Are these successes enough? Why, in upstream's words.
pub fn of_successes(rules: &[SuccessRule], completed: &BTreeSet<usize>) -> Option<String> {
    let met = |rule: &SuccessRule| match (&rule.indexes, rule.count) {
        (Some(indexes), None) => indexes.is_subset(completed),
        (Some(indexes), Some(count)) => indexes.intersection(completed).count() >= count,
        (None, Some(count)) => completed.len() >= count,
        (None, None) => false,
    };
    rules.iter().position(met).map(|at| format!("Matched rules at index {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::ObjectKey;
    use serde_json::json;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = failure_rules(&json!({"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42, 43]}},
            {"action": "Count", "onExitCodes": {"operator": "In", "values": [7]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1]}},
        ]}));
        let of = |exits: &[(&str, i64)], condition: &str| {
            let mut pod = JobPod {
                exits: exits.iter().map(|(n, c)| (n.to_string(), *c)).collect(),
                ..JobPod::default()
            };
            pod.facts.key = Some(ObjectKey::new("n", "p"));
            pod.conditions.push((condition.into(), "True".into()));
            of_failure(&rules, &pod)
        };
        let (action, why) = of(&[("main", 42)], "DisruptionTarget").unwrap();
        assert_eq!(action, Action::Ignore);
        assert_eq!(why, "Pod n/p has condition DisruptionTarget matching Ignore rule at index 0");
        let (action, why) = of(&[("side", 0), ("main", 42)], "Ready").unwrap();
        assert_eq!(action, Action::FailJob);
        assert_eq!(
            why,
            "Container main for pod n/p failed with exit code 42 matching FailJob rule at index 1"
        );
        assert_eq!(of(&[("side", 42)], "Ready").unwrap().0, Action::FailIndex);
        assert_eq!(of(&[("side", 7)], "Ready").unwrap().0, Action::Count);
        assert_eq!(of(&[("main", 1), ("side", 0)], "Ready"), None, "0 is no failure");
    }

    #[test]
    fn some_successes_can_be_enough() {
        let met = |rule: Value, done: &str| {
            of_successes(&success_rules(&json!({"rules": [rule]})), &parse_indexes(done)).is_some()
        };
        assert!(met(json!({"succeededIndexes": "0,2-3"}), "0-4"));
        assert!(!met(json!({"succeededIndexes": "0,2-3"}), "0,2"));
        assert!(met(json!({"succeededIndexes": "0,2-3", "succeededCount": 2}), "0,2"));
        assert!(!met(json!({"succeededIndexes": "0,2-3", "succeededCount": 2}), "0,1"));
        assert!(met(json!({"succeededCount": 2}), "0,1"));
        assert!(!met(json!({"succeededCount": 2}), "1"));
    }
}
