//! API priority and fairness: FlowSchema and PriorityLevelConfiguration.
//!
//! Deliberately not here: queueing by them.

use super::get::{at, child, default, default_nonzero, has, int, list, same, set, text};
use super::spot::Spot;
use super::webhooks::alone;
use super::{Behaviour, COUNTED};
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
        defaults: |obj| at(obj, "/spec", |spec| default_nonzero(spec, "matchingPrecedence", 1000)),
        validate: flow_schema,

        validate_status: |s, _| conditions(s),
        columns: &[
            Column::NAME,
            Column::new("PriorityLevel", Cell::Text("/spec/priorityLevelConfiguration/name")),
            Column::new("MatchingPrecedence", Cell::Int("/spec/matchingPrecedence")),
            Column::new("DistinguisherMethod", Cell::TextOrNone("/spec/distinguisherMethod/type")),
            Column::AGE,
            Column::new("MissingPL", Cell::Fn(|f| missing(f).into())),
        ],
        ..COUNTED
    },
    Behaviour {
        group: GROUP,
        resource: "prioritylevelconfigurations",
        defaults: level_defaults,
        validate: level,

        validate_status: |s, _| conditions(s),
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
        ..COUNTED
    },
];

fn number(l: &Value, at: &str) -> Value {
    int(l, at).map_or("<none>".into(), |n| n.to_string().into())
}

fn missing(f: &Value) -> &str {
    let found = list(f, "/status/conditions").iter().find(|c| text(c, "/type") == "Dangling");
    found.map_or("?", |c| text(c, "/status"))
}

fn conditions(obj: &Spot) {
    let mut seen = BTreeSet::new();
    for c in obj.each("status.conditions") {
        c.unique("type", c.text("type"), &mut seen);
        if c.text("type").is_empty() {
            c.required("type", "must not be empty");
        }
    }
}

fn flow_schema(obj: &Spot) {
    let (own, spec) = (obj.text("metadata.name"), obj.key("spec"));
    let precedence = spec.int("matchingPrecedence").unwrap_or(0);
    spec.within_or_zero("matchingPrecedence", 1..=i64::MAX, "must be a positive value");
    let words = format!("must not be greater than {PRECEDENCE_MAX}");
    spec.within("matchingPrecedence", i64::MIN..=PRECEDENCE_MAX, &words);
    if precedence == 1 && own != EXEMPT {
        let words = "only the schema named 'exempt' may have matchingPrecedence 1";
        spec.invalid("matchingPrecedence", 1, words);
    }
    if let Some(method) = spec.opt("distinguisherMethod") {
        method.one_of("type", &["ByNamespace", "ByUser"]);
    }
    let level = spec.key("priorityLevelConfiguration");
    match level.text("name") {
        "" => level.required("name", "must reference a priority level"),
        _ => level.like("name", name::dns1123_subdomain),
    }
    spec.each("rules").for_each(|rule| policy_rule(&rule));
    if let Some(fixed) = mandatory(own)
        && !same(spec.v, &fixed)
    {
        spec.wrong("", &format!("spec of '{own}' must equal the fixed value"));
    }
    conditions(obj);
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

fn policy_rule(rule: &Spot) {
    if rule.list("subjects").is_empty() {
        rule.required("subjects", "subjects must contain at least one value");
    }
    rule.each("subjects").for_each(|s| subject(&s));
    if rule.list("resourceRules").is_empty() && rule.list("nonResourceRules").is_empty() {
        rule.required("", "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    rule.each("resourceRules").for_each(|rule| resource_rule(&rule));
    for rule in rule.each("nonResourceRules") {
        verbs(&rule);
        if rule.list("nonResourceURLs").is_empty() {
            rule.required("nonResourceURLs", "nonResourceURLs must contain at least one value");
        } else if !alone(&rule, "nonResourceURLs", "non-resource URLs") {
            rule.each("nonResourceURLs").for_each(|url| url_path(&url));
        }
    }
}

fn subject(s: &Spot) {
    let kind = s.text("kind");
    let Some((_, own)) = SUBJECTS.iter().find(|(k, _)| *k == kind) else {
        return s.not_supported("kind", kind, &SUBJECTS.map(|(k, _)| k));
    };
    match s.opt(own) {
        None => s.required(own, &format!("{own} is required when subject kind is '{kind}'")),
        Some(body) => {
            let given = body.need("name");
            if kind == "ServiceAccount" {
                if given.is_some_and(|n| n != "*") {
                    body.like("name", name::dns1123_subdomain);
                }
                match body.text("namespace") {
                    "" => body.required("namespace", "must specify namespace for service account"),
                    _ => body.like("namespace", name::dns1123_label),
                }
            }
        }
    }
    for (other, key) in SUBJECTS.iter().filter(|(k, key)| *k != kind && s.has(key)) {
        s.forbidden(key, &format!("{key} is forbidden when subject kind is not '{other}'"));
    }
}

fn verbs(rule: &Spot) {
    let given = rule.texts("verbs");
    if given.is_empty() {
        rule.required("verbs", "verbs must contain at least one value");
    } else if !alone(rule, "verbs", "verbs") && given.iter().any(|v| !VERBS.contains(v)) {
        rule.not_supported("verbs", given, &VERBS);
    }
}

fn resource_rule(rule: &Spot) {
    verbs(rule);
    for (key, one, many) in [("apiGroups", "api group", "api groups"), ("resources", "resource", "resources")]
    {
        if rule.list(key).is_empty() {
            rule.required(key, &format!("resource rules must supply at least one {one}"));
        }
        alone(rule, key, many);
    }
    if rule.list("namespaces").is_empty() && !rule.flag("clusterScope") {
        let words = "resource rules that are not cluster scoped must supply at least one namespace";
        rule.required("namespaces", words);
    } else if !alone(rule, "namespaces", "namespaces") {
        for ns in rule.each("namespaces") {
            for words in name::dns1123_label(ns.text("")) {
                ns.wrong("", &format!("each member of this list must be '*' or a DNS-1123 label; {words}"));
            }
        }
    }
}

fn url_path(s: &Spot) {
    let url = s.text("");
    let stars = url.matches('*').count();
    let words = match () {
        () if url.is_empty() => "must not be empty",
        () if !url.starts_with('/') => "must start with slash",
        () if url.contains(' ') => "must not contain white-space",
        () if url.contains("//") => "must not contain double slash",
        () if stars > 1 || (stars == 1 && !url.ends_with("/*")) => "wildcard can only do suffix matching",
        () => return,
    };
    s.wrong("", words);
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

fn level(obj: &Spot) {
    let spec = obj.key("spec");
    let kind = spec.text("type");
    if (obj.text("metadata.name") == EXEMPT) != (kind == "Exempt") {
        spec.invalid("type", kind, "must be 'Exempt' if and only if `name` is 'exempt'");
    }
    match kind {
        "Exempt" => {
            if spec.has("limited") {
                spec.forbidden("limited", "must be nil if the type is not Limited");
            }
            shares(&spec.key("exempt"));
        }
        "Limited" => {
            if spec.has("exempt") {
                spec.forbidden("exempt", "must be nil if the type is Limited");
            }
            match spec.opt("limited") {
                Some(own) => limited(&own),
                None => spec.required("limited", "must not be empty when type is Limited"),
            }
        }
        other => spec.not_supported("type", other, &["Exempt", "Limited"]),
    }
    conditions(obj);
}

fn shares(v: &Spot) {
    v.within("nominalConcurrencyShares", 0..=i64::MAX, "must be a non-negative integer");
    v.within("lendablePercent", 0..=100, "must be between 0 and 100, inclusive");
}

fn limited(v: &Spot) {
    shares(v);
    v.within("borrowingLimitPercent", 0..=i64::MAX, "if specified, must be a non-negative integer");
    let response = v.key("limitResponse");
    match (response.text("type"), response.opt("queuing")) {
        ("Reject", Some(own)) => {
            own.forbidden("", "must be nil if limited.limitResponse.type is not Limited");
        }
        ("Reject", None) => {}
        ("Queue", Some(own)) => queuing(&own),
        ("Queue", None) => {
            response.required("queuing", "must not be empty if limited.limitResponse.type is Limited");
        }
        (other, _) => response.not_supported("type", other, &["Queue", "Reject"]),
    }
}

#[expect(clippy::cast_precision_loss, reason = "both numbers are small; only the logarithm's size matters")]
fn queuing(v: &Spot) {
    let (queues, hand) = (v.int("queues").unwrap_or(0), v.int("handSize").unwrap_or(0));
    v.within_or_zero("queueLengthLimit", 1..=i64::MAX, "must be positive");
    v.within_or_zero("queues", 1..=i64::MAX, "must be positive");
    v.within("queues", i64::MIN..=QUEUES_MAX, &format!("must not be greater than {QUEUES_MAX}"));
    if hand <= 0 {
        v.invalid("handSize", hand, "must be positive");
    } else if hand > queues {
        v.invalid("handSize", hand, &format!("should not be greater than queues ({queues})"));
    } else if ((queues as f64).log2() * hand as f64).ceil() > HASH_BITS_MAX {
        let words = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS_MAX}"
        );
        v.invalid("handSize", hand, &words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::spot::fields;

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
