//! What a Job's status may not say. Others may run Jobs (`spec.managedBy`), and clients rely on what a Job that has
//! ended looks like.
//!
//! A rule counts only when one of its parts changes: what is wrong already does not keep other fields from changing.

use super::get::{has, int, list, text};
use super::spot::Spot;
use crate::time;
use serde_json::{Value, json};

/// How a complaint shows the field.
enum Shown {
    Missing,
    Value,
    Nothing,
}

struct Rule {
    /// Fields of the status, and types of conditions (`=Complete`). None: the rule always counts.
    parts: &'static [&'static str],
    field: &'static str,
    shown: Shown,
    words: &'static str,
    broken: fn(&Value) -> bool,
}

const CONDITIONS: Rule =
    Rule { parts: &[], field: "conditions", shown: Shown::Nothing, words: "", broken: |_| false };

/// Rules about a status by itself, in upstream's order and words.
static RULES: [Rule; 17] = [
    Rule {
        words: "cannot set Complete=True and Failed=true conditions",
        parts: &["=Complete", "=Failed"],
        broken: |j| is(j, "Complete") && is(j, "Failed"),
        ..CONDITIONS
    },
    Rule {
        words: "cannot set Complete=True and FailureTarget=true conditions",
        parts: &["=Complete", "=FailureTarget"],
        broken: |j| is(j, "Complete") && is(j, "FailureTarget"),
        ..CONDITIONS
    },
    Rule {
        parts: &["=Complete", "completionTime"],
        field: "completionTime",
        shown: Shown::Value,
        words: "cannot set completionTime when there is no Complete=True condition",
        broken: |j| has(j, "/status/completionTime") && !is(j, "Complete"),
    },
    Rule {
        parts: &["=Complete", "completionTime"],
        field: "completionTime",
        shown: Shown::Missing,
        words: "completionTime is required for Complete jobs",
        broken: |j| !has(j, "/status/completionTime") && is(j, "Complete"),
    },
    Rule {
        parts: &["startTime", "completionTime"],
        field: "completionTime",
        shown: Shown::Value,
        words: "completionTime cannot be set before startTime",
        broken: |j| at(j, "completionTime").zip(at(j, "startTime")).is_some_and(|(end, start)| end < start),
    },
    Rule {
        words: "cannot set Failed=True condition without the FailureTarget=true condition",
        parts: &["=Failed", "=FailureTarget"],
        broken: |j| is(j, "Failed") && !is(j, "FailureTarget"),
        ..CONDITIONS
    },
    Rule {
        words: "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        parts: &["=Complete", "=SuccessCriteriaMet"],
        broken: |j| is(j, "Complete") && !is(j, "SuccessCriteriaMet"),
        ..CONDITIONS
    },
    Rule {
        parts: &["=Complete", "=Failed", "active"],
        field: "active",
        shown: Shown::Value,
        words: "active>0 is invalid for finished job",
        broken: |j| count(j, "active") > 0 && is_finished(j),
    },
    Rule {
        parts: &["=Complete", "=Failed", "startTime"],
        field: "startTime",
        shown: Shown::Missing,
        words: "startTime is required for finished job",
        broken: |j| !has(j, "/status/startTime") && is_finished(j),
    },
    Rule {
        parts: &["=Complete", "=Failed", "uncountedTerminatedPods"],
        field: "uncountedTerminatedPods",
        shown: Shown::Value,
        words: "uncountedTerminatedPods needs to be empty for finished job",
        broken: |j| {
            let uncounted = |kind: &str| list(j, &format!("/status/uncountedTerminatedPods/{kind}")).len();
            uncounted("succeeded") + uncounted("failed") > 0 && is_finished(j)
        },
    },
    Rule {
        parts: &["completedIndexes"],
        field: "completedIndexes",
        shown: Shown::Value,
        words: "cannot set non-empty completedIndexes when non-indexed completion mode",
        broken: |j| !text(j, "/status/completedIndexes").is_empty() && !is_indexed(j),
    },
    Rule {
        parts: &["failedIndexes"],
        field: "failedIndexes",
        shown: Shown::Value,
        words: "cannot set non-null failedIndexes when backoffLimitPerIndex is null",
        broken: |j| has(j, "/status/failedIndexes") && !has(j, "/spec/backoffLimitPerIndex"),
    },
    Rule {
        parts: &["=Complete", "=Failed", "terminating"],
        field: "terminating",
        shown: Shown::Value,
        words: "terminating>0 is invalid for finished job",
        broken: |j| count(j, "terminating") > 0 && is_finished(j),
    },
    Rule {
        parts: &["ready", "active"],
        field: "ready",
        shown: Shown::Value,
        words: "cannot set more ready pods than active",
        broken: |j| count(j, "ready") > count(j, "active"),
    },
    Rule {
        words: "cannot set SuccessCriteriaMet=True and Failed=true conditions",
        broken: |j| is(j, "SuccessCriteriaMet") && is(j, "Failed"),
        ..CONDITIONS
    },
    Rule {
        words: "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        broken: |j| is(j, "SuccessCriteriaMet") && is(j, "FailureTarget"),
        ..CONDITIONS
    },
    Rule {
        words: "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
        broken: |j| has(j, "/spec/successPolicy") && !is(j, "SuccessCriteriaMet") && is(j, "Complete"),
        ..CONDITIONS
    },
];

fn is(job: &Value, kind: &str) -> bool {
    list(job, "/status/conditions").iter().any(|c| text(c, "/type") == kind && text(c, "/status") == "True")
}

fn is_finished(job: &Value) -> bool {
    is(job, "Complete") || is(job, "Failed")
}

fn is_indexed(job: &Value) -> bool {
    text(job, "/spec/completionMode") == "Indexed"
}

fn count(job: &Value, field: &str) -> i64 {
    int(job, &format!("/status/{field}")).unwrap_or(0)
}

fn at(job: &Value, field: &str) -> Option<jiff::Timestamp> {
    time::parse(text(job, &format!("/status/{field}"))).ok()
}

fn part(job: &Value, name: &str) -> Value {
    match name.strip_prefix('=') {
        Some(kind) => json!(is(job, kind)),
        None => job["status"][name].clone(),
    }
}

/// Checks a change of a Job's status.
pub fn validate(new: &Spot, old: &Value) {
    for rule in &RULES {
        let counts = rule.parts.is_empty() || rule.parts.iter().any(|p| part(new.v, p) != part(old, p));
        if counts && (rule.broken)(new.v) {
            let status = new.key("status");
            match rule.shown {
                Shown::Missing => status.required(rule.field, rule.words),
                Shown::Value => status.wrong(rule.field, rule.words),
                Shown::Nothing => as_a_whole(new, rule.words),
            }
        }
    }
    transition(new, old);
}

fn as_a_whole(new: &Spot, words: &str) {
    new.with(|_, _, errors| errors.invalid_as_a_whole("status.conditions", words));
}

/// What may not go back.
fn transition(spot: &Spot, old: &Value) {
    let new = spot.v;
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if is(old, kind) && !is(new, kind) {
            as_a_whole(spot, &format!("cannot disable the terminal {kind}=True condition"));
        }
    }
    // Indexed Jobs of which all run at once may shrink.
    let shrinks = is_indexed(new) && new["spec"]["completions"] == new["spec"]["parallelism"];
    for (field, may) in [("failed", false), ("succeeded", shrinks)] {
        if count(new, field) < count(old, field) && !may {
            let words = format!("cannot decrease the {field} counter");
            spot.key("status").invalid(field, count(new, field), &words);
        }
    }
    let changed = |field: &str| has(old, &format!("/status/{field}")) && part(old, field) != part(new, field);
    if changed("completionTime") && spot.has("status.completionTime") {
        spot.wrong("status.completionTime", "completionTime cannot be mutated");
    }
    if changed("startTime") && new["spec"]["suspend"] != true {
        spot.required("status.startTime", "startTime cannot be removed for unsuspended job");
    }
    if is(old, "SuccessCriteriaMet") && !is(new, "SuccessCriteriaMet") {
        as_a_whole(spot, "cannot disable the SuccessCriteriaMet=True condition");
    }
    if is(old, "Complete") && !is(old, "SuccessCriteriaMet") && is(new, "SuccessCriteriaMet") {
        let words = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        as_a_whole(spot, words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;

    fn job(conditions: &str, mut status: Value) -> Value {
        let kinds = conditions.split_whitespace();
        status["conditions"] = kinds.map(|k| json!({"type": k, "status": "True"})).collect();
        json!({"spec": {"completions": 2}, "status": status})
    }

    fn said(new: &Value, old: &Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        validate(&Spot::new(new, "", &mut errors), old);
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn an_end_looks_like_one() {
        let (one, two) = ("2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z");
        let running = job("", json!({"startTime": one, "active": 1, "ready": 1}));
        assert!(said(&running, &job("", json!({}))).is_empty());
        let done = job("SuccessCriteriaMet Complete", json!({"startTime": one, "completionTime": two}));
        assert!(said(&done, &running).is_empty());
        let failed = job("FailureTarget Failed", json!({"startTime": one, "failed": 1}));
        assert!(said(&failed, &running).is_empty());
        let odd = job(
            "Complete",
            json!({"active": 1, "ready": 2, "terminating": 1, "completedIndexes": "0",
            "uncountedTerminatedPods": {"failed": ["u"]}}),
        );
        assert_eq!(
            said(&odd, &job("", json!({}))),
            [
                "status.completionTime: Required value: completionTime is required for Complete jobs",
                "status.conditions: Invalid value: cannot set Complete=True condition without the \
                 SuccessCriteriaMet=true condition",
                "status.active: Invalid value: 1: active>0 is invalid for finished job",
                "status.startTime: Required value: startTime is required for finished job",
                "status.uncountedTerminatedPods: Invalid value: {\"failed\":[\"u\"]}: uncountedTerminatedPods needs \
                 to be empty for finished job",
                "status.completedIndexes: Invalid value: \"0\": cannot set non-empty completedIndexes when \
                 non-indexed completion mode",
                "status.terminating: Invalid value: 1: terminating>0 is invalid for finished job",
                "status.ready: Invalid value: 2: cannot set more ready pods than active",
            ]
        );
        let mut other = odd.clone();
        other["status"]["failed"] = json!(3);
        assert!(said(&other, &odd).is_empty(), "what was wrong before keeps nothing else back");
    }

    #[test]
    fn an_end_is_final() {
        let start = "2026-01-01T00:00:01Z";
        let failed = job("FailureTarget Failed", json!({"startTime": start, "failed": 2}));
        let back = said(&job("FailureTarget", json!({"startTime": start, "failed": 1})), &failed);
        assert_eq!(
            back,
            [
                "status.conditions: Invalid value: cannot disable the terminal Failed=True condition",
                "status.failed: Invalid value: 1: cannot decrease the failed counter",
            ]
        );
        let mut resting = job("", json!({}));
        let running = job("", json!({"startTime": start}));
        assert_eq!(said(&resting, &running).len(), 1, "it has begun");
        resting["spec"]["suspend"] = json!(true);
        assert!(said(&resting, &running).is_empty());
    }
}
