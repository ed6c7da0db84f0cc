//! API priority and fairness: FlowSchema and PriorityLevelConfiguration.
//!
//! Deliberately not here: queueing by them.

use super::get::{
    at, child, default, default_nonzero, enumerated, flag, has, int, list, required, same, set, text, texts,
};
use super::{Behaviour, GENERIC};
use crate::field_errors::FieldErrors;
use crate::name;
use crate::table::{Cell, Column};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const EXEMPT: &str = "exempt";
const PRECEDENCE_MAX: i64 = 10_000;
const QUEUES_MAX: i64 = 10_000_000;
/// A hand of queues must be chosen by one 60-bit hash.
const HASH_BITS_MAX: f64 = 60.0;
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
const SUBJECTS: [(&str, &str); 3] =
    [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        group: GROUP,
        resource: "flowschemas",
        validated: true,
        generation: true,
        defaults: |obj| at(obj, "/spec", |spec| default_nonzero(spec, "matchingPrecedence", 1000)),
        validate_create: flow_schema,
        validate_update: |new, _, errors| flow_schema(new, errors),
        validate_status: |new, _, errors| conditions(new, errors),
        columns: &[
            Column::NAME,
            Column::new("PriorityLevel", Cell::Text("/spec/priorityLevelConfiguration/name")),
            Column::new("MatchingPrecedence", Cell::Int("/spec/matchingPrecedence")),
            Column::new("DistinguisherMethod", Cell::TextOrNone("/spec/distinguisherMethod/type")),
            Column::AGE,
            Column::new("MissingPL", Cell::Fn(|f| missing(f).into())),
        ],
        ..GENERIC
    },
    Behaviour {
        group: GROUP,
        resource: "prioritylevelconfigurations",
        validated: true,
        generation: true,
        defaults: level_defaults,
        validate_create: level,
        validate_update: |new, _, errors| level(new, errors),
        validate_status: |new, _, errors| conditions(new, errors),
        columns: &[
            Column::NAME,
            Column::new("Type", Cell::Text("/spec/type")),
            Column::new(
                "NominalConcurrencyShares",
                Cell::Fn(|l| number(l, "/spec/limited/nominalConcurrencyShares")),
            ),
            Column::new("Queues", Cell::Fn(|l| number(l, "/spec/limited/limitResponse/queuing/queues"))),
            Column::new("HandSize", Cell::Fn(|l| number(l, "/spec/limited/limitResponse/queuing/handSize"))),
            Column::new(
                "QueueLengthLimit",
                Cell::Fn(|l| number(l, "/spec/limited/limitResponse/queuing/queueLengthLimit")),
            ),
            Column::AGE,
        ],
        ..GENERIC
    },
];

fn number(l: &Value, at: &str) -> Value {
    int(l, at).map_or("<none>".into(), |n| n.to_string().into())
}

fn missing(f: &Value) -> &str {
    let found = list(f, "/status/conditions").iter().find(|c| text(c, "/type") == "Dangling");
    found.map_or("?", |c| text(c, "/status"))
}

fn conditions(obj: &Value, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, c) in list(obj, "/status/conditions").iter().enumerate() {
        let path = format!("status.conditions[{i}].type");
        let ty = text(c, "/type");
        if !seen.insert(ty) {
            errors.duplicate(&path, ty);
        }
        if ty.is_empty() {
            errors.required(&path, "must not be empty");
        }
    }
}

fn flow_schema(obj: &Value, errors: &mut FieldErrors) {
    let (own, spec) = (text(obj, "/metadata/name"), &obj["spec"]);
    let path = "spec.matchingPrecedence";
    let precedence = int(spec, "/matchingPrecedence").unwrap_or(0);
    if precedence <= 0 {
        errors.invalid(path, precedence, "must be a positive value");
    }
    if precedence > PRECEDENCE_MAX {
        errors.invalid(path, precedence, &format!("must not be greater than {PRECEDENCE_MAX}"));
    }
    if precedence == 1 && own != EXEMPT {
        errors.invalid(path, 1, "only the schema named 'exempt' may have matchingPrecedence 1");
    }
    if has(spec, "/distinguisherMethod") {
        let method = &spec["distinguisherMethod"];
        enumerated(method, "spec.distinguisherMethod", "type", &["ByNamespace", "ByUser"], errors);
    }
    let level = text(spec, "/priorityLevelConfiguration/name");
    let path = "spec.priorityLevelConfiguration.name";
    if level.is_empty() {
        errors.required(path, "must reference a priority level");
    } else {
        errors.invalid_all(path, level, name::dns1123_subdomain(level));
    }
    for (i, rule) in list(spec, "/rules").iter().enumerate() {
        policy_rule(rule, &format!("spec.rules[{i}]"), errors);
    }
    if let Some(fixed) = mandatory(own)
        && !same(spec, &fixed)
    {
        errors.invalid("spec", spec.clone(), &format!("spec of '{own}' must equal the fixed value"));
    }
    conditions(obj, errors);
}

/// The two schemas that nobody may change.
fn mandatory(name: &str) -> Option<Value> {
    let everything = |subjects: Value| {
        json!([{"subjects": subjects,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}])
    };
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    match name {
        EXEMPT => Some(json!({"priorityLevelConfiguration": {"name": EXEMPT}, "matchingPrecedence": 1,
            "rules": everything(json!([group("system:masters")]))})),
        "catch-all" => {
            Some(json!({"priorityLevelConfiguration": {"name": "catch-all"}, "matchingPrecedence": 10_000,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": everything(json!([group("system:unauthenticated"), group("system:authenticated")]))}))
        }
        _ => None,
    }
}

fn policy_rule(rule: &Value, path: &str, errors: &mut FieldErrors) {
    let subjects = list(rule, "/subjects");
    if subjects.is_empty() {
        errors.required(&format!("{path}.subjects"), "subjects must contain at least one value");
    }
    for (i, s) in subjects.iter().enumerate() {
        subject(s, &format!("{path}.subjects[{i}]"), errors);
    }
    let (on_resources, on_paths) = (list(rule, "/resourceRules"), list(rule, "/nonResourceRules"));
    if on_resources.is_empty() && on_paths.is_empty() {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (i, rule) in on_resources.iter().enumerate() {
        resource_rule(rule, &format!("{path}.resourceRules[{i}]"), errors);
    }
    for (i, rule) in on_paths.iter().enumerate() {
        let path = format!("{path}.nonResourceRules[{i}]");
        verbs(rule, &path, errors);
        let urls: Vec<&str> = texts(rule, "/nonResourceURLs").collect();
        let at = format!("{path}.nonResourceURLs");
        if urls.is_empty() {
            errors.required(&at, "nonResourceURLs must contain at least one value");
        } else if !alone(&urls, &at, "non-resource URLs", errors) {
            for (i, url) in urls.iter().enumerate() {
                url_path(url, &format!("{at}[{i}]"), errors);
            }
        }
    }
}

fn subject(s: &Value, path: &str, errors: &mut FieldErrors) {
    let kind = text(s, "/kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(k, _)| *k == kind) else {
        let known = SUBJECTS.map(|(k, _)| k);
        return errors.not_supported(&format!("{path}.kind"), kind, &known);
    };
    let at = format!("{path}.{own}");
    match s.get(*own).filter(|v| !v.is_null()) {
        None => errors.required(&at, &format!("{own} is required when subject kind is '{kind}'")),
        Some(body) => {
            let given = required(body, &at, "name", errors).filter(|n| *n != "*");
            if kind == "ServiceAccount" {
                if let Some(given) = given {
                    errors.invalid_all(&format!("{at}.name"), given, name::dns1123_subdomain(given));
                }
                match text(body, "/namespace") {
                    "" => errors
                        .required(&format!("{at}.namespace"), "must specify namespace for service account"),
                    ns => errors.invalid_all(&format!("{at}.namespace"), ns, name::dns1123_label(ns)),
                }
            }
        }
    }
    for (other, key) in SUBJECTS.iter().filter(|(k, _)| *k != kind) {
        if has(s, &format!("/{key}")) {
            let words = format!("{key} is forbidden when subject kind is not '{other}'");
            errors.forbidden(&format!("{path}.{key}"), &words);
        }
    }
}

/// Is there a wildcard? Then it must stand alone.
fn alone(given: &[&str], path: &str, what: &str, errors: &mut FieldErrors) -> bool {
    let wild = given.contains(&"*");
    if wild && given.len() > 1 {
        let words = format!("if '*' is present, must not specify other {what}");
        errors.invalid(path, given.to_vec(), &words);
    }
    wild
}

fn verbs(rule: &Value, path: &str, errors: &mut FieldErrors) {
    let given: Vec<&str> = texts(rule, "/verbs").collect();
    let at = format!("{path}.verbs");
    if given.is_empty() {
        errors.required(&at, "verbs must contain at least one value");
    } else if !alone(&given, &at, "verbs", errors) && given.iter().any(|v| !VERBS.contains(v)) {
        errors.not_supported(&at, given, &VERBS);
    }
}

fn resource_rule(rule: &Value, path: &str, errors: &mut FieldErrors) {
    verbs(rule, path, errors);
    for (key, one, many) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        let given: Vec<&str> = texts(rule, &format!("/{key}")).collect();
        let at = format!("{path}.{key}");
        if given.is_empty() {
            errors.required(&at, &format!("resource rules must supply at least one {one}"));
        }
        alone(&given, &at, many, errors);
    }
    let namespaces: Vec<&str> = texts(rule, "/namespaces").collect();
    let at = format!("{path}.namespaces");
    if namespaces.is_empty() && !flag(rule, "/clusterScope") {
        let words = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.required(&at, words);
    } else if !alone(&namespaces, &at, "namespaces", errors) {
        for (i, ns) in namespaces.iter().enumerate() {
            for words in name::dns1123_label(ns) {
                let words = format!("each member of this list must be '*' or a DNS-1123 label; {words}");
                errors.invalid(&format!("{at}[{i}]"), *ns, &words);
            }
        }
    }
}

fn url_path(url: &str, path: &str, errors: &mut FieldErrors) {
    let stars = url.matches('*').count();
    let words = match () {
        () if url.is_empty() => "must not be empty",
        () if !url.starts_with('/') => "must start with slash",
        () if url.contains(' ') => "must not contain white-space",
        () if url.contains("//") => "must not contain double slash",
        () if stars > 1 || (stars == 1 && !url.ends_with("/*")) => "wildcard can only do suffix matching",
        () => return,
    };
    errors.invalid(path, url, words);
}

fn level_defaults(obj: &mut Value) {
    at(obj, "/spec", |spec| {
        if text(spec, "/type") == "Exempt"
            && let Some(exempt) = child(spec, "exempt")
        {
            default(exempt, "nominalConcurrencyShares", 0);
            default(exempt, "lendablePercent", 0);
        }
        at(spec, "/limited", |limited| {
            default(limited, "nominalConcurrencyShares", 30);
            default(limited, "lendablePercent", 0);
            at(limited, "/limitResponse/queuing", |q| {
                for (key, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
                    default_nonzero(q, key, value);
                }
            });
        });
        if text(spec, "/type") == "Limited" && has(spec, "/exempt") && same(&spec["exempt"], &json!({})) {
            set(spec, "exempt", Value::Null);
        }
    });
}

fn level(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    let kind = text(spec, "/type");
    if (text(obj, "/metadata/name") == EXEMPT) != (kind == "Exempt") {
        let words = "must be 'Exempt' if and only if `name` is 'exempt'";
        errors.invalid("spec.type", kind, words);
    }
    match kind {
        "Exempt" => {
            if has(spec, "/limited") {
                errors.forbidden("spec.limited", "must be nil if the type is not Limited");
            }
            shares(&spec["exempt"], "spec.exempt", errors);
        }
        "Limited" => {
            if has(spec, "/exempt") {
                errors.forbidden("spec.exempt", "must be nil if the type is Limited");
            }
            if has(spec, "/limited") {
                limited(&spec["limited"], "spec.limited", errors);
            } else {
                errors.required("spec.limited", "must not be empty when type is Limited");
            }
        }
        other => errors.not_supported("spec.type", other, &["Exempt", "Limited"]),
    }
    conditions(obj, errors);
}

fn shares(v: &Value, path: &str, errors: &mut FieldErrors) {
    if let Some(n) = int(v, "/nominalConcurrencyShares").filter(|n| *n < 0) {
        errors.invalid(&format!("{path}.nominalConcurrencyShares"), n, "must be a non-negative integer");
    }
    if let Some(n) = int(v, "/lendablePercent").filter(|n| !(0..=100).contains(n)) {
        errors.invalid(&format!("{path}.lendablePercent"), n, "must be between 0 and 100, inclusive");
    }
}

fn limited(v: &Value, path: &str, errors: &mut FieldErrors) {
    shares(v, path, errors);
    if let Some(n) = int(v, "/borrowingLimitPercent").filter(|n| *n < 0) {
        let words = "if specified, must be a non-negative integer";
        errors.invalid(&format!("{path}.borrowingLimitPercent"), n, words);
    }
    let response = &v["limitResponse"];
    let path = format!("{path}.limitResponse");
    let queues = has(response, "/queuing");
    match text(response, "/type") {
        "Reject" if queues => errors.forbidden(
            &format!("{path}.queuing"),
            "must be nil if limited.limitResponse.type is not Limited",
        ),
        "Reject" => {}
        "Queue" if queues => queuing(&response["queuing"], &format!("{path}.queuing"), errors),
        "Queue" => errors.required(
            &format!("{path}.queuing"),
            "must not be empty if limited.limitResponse.type is Limited",
        ),
        other => errors.not_supported(&format!("{path}.type"), other, &["Queue", "Reject"]),
    }
}

#[expect(clippy::cast_precision_loss, reason = "both numbers are small; only the logarithm's size matters")]
fn queuing(v: &Value, path: &str, errors: &mut FieldErrors) {
    let of = |key: &str| int(v, &format!("/{key}")).unwrap_or(0);
    let (length, queues, hand) = (of("queueLengthLimit"), of("queues"), of("handSize"));
    if length <= 0 {
        errors.invalid(&format!("{path}.queueLengthLimit"), length, "must be positive");
    }
    if queues <= 0 {
        errors.invalid(&format!("{path}.queues"), queues, "must be positive");
    } else if queues > QUEUES_MAX {
        let words = format!("must not be greater than {QUEUES_MAX}");
        errors.invalid(&format!("{path}.queues"), queues, &words);
    }
    let at = format!("{path}.handSize");
    if hand <= 0 {
        errors.invalid(&at, hand, "must be positive");
    } else if hand > queues {
        errors.invalid(&at, hand, &format!("should not be greater than queues ({queues})"));
    } else if ((queues as f64).log2() * hand as f64).ceil() > HASH_BITS_MAX {
        let words = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS_MAX}"
        );
        errors.invalid(&at, hand, &words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(check: fn(&Value, &mut FieldErrors), obj: &Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        check(obj, &mut errors);
        errors.causes().iter().map(|c| c.field.clone()).collect()
    }

    #[test]
    fn levels() {
        let mut l = json!({"metadata": {"name": "x"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}});
        level_defaults(&mut l);
        assert_eq!(fields(level, &l), Vec::<String>::new());
        assert_eq!(
            l["spec"]["limited"]["limitResponse"]["queuing"],
            json!({"queues": 64, "handSize": 8, "queueLengthLimit": 50})
        );
        l["spec"]["limited"]["limitResponse"]["queuing"]["handSize"] = json!(20);
        assert_eq!(fields(level, &l), ["spec.limited.limitResponse.queuing.handSize"]);
        l["spec"]["type"] = json!("Exempt");
        assert_eq!(fields(level, &l), ["spec.type", "spec.limited"]);
    }

    #[test]
    fn schemas() {
        let f = json!({"metadata": {"name": "x"}, "spec": {"matchingPrecedence": 1, "priorityLevelConfiguration": {"name": "l"},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": "u"}, "group": {"name": "g"}}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["/a*b"]}],
                "resourceRules": [{"verbs": ["fly"], "apiGroups": [""], "resources": ["pods"]}]}]}});
        assert_eq!(
            fields(flow_schema, &f),
            [
                "spec.matchingPrecedence",
                "spec.rules[0].subjects[0].group",
                "spec.rules[0].resourceRules[0].verbs",
                "spec.rules[0].resourceRules[0].namespaces",
                "spec.rules[0].nonResourceRules[0].nonResourceURLs[0]",
            ]
        );
        let exempt = json!({"metadata": {"name": "exempt"}, "spec": mandatory("exempt").unwrap()});
        assert_eq!(fields(flow_schema, &exempt), Vec::<String>::new());
    }
}
