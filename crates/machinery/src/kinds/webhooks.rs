//! Mutating and validating webhook configurations; and what every caller of webhooks shares: client
//! configurations, match rules, match conditions.
//!
//! Deliberately not here: compiling CEL expressions (who evaluates them does that) and calling anybody.

use super::get::{at, default, each};
use super::spot::Spot;
use super::{Behaviour, COUNTED};
use crate::name;
use crate::table::{Cell, Column};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Review versions that this server can send.
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];
const MATCH_CONDITIONS_MAX: usize = 64;
const FAILURE_POLICIES: [&str; 2] = ["Fail", "Ignore"];
const MATCH_POLICIES: [&str; 2] = ["Equivalent", "Exact"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
const URL_FORM: &str = "; desired format: https://host[/path]";

const WEBHOOKS: Behaviour = Behaviour {
    group: "admissionregistration.k8s.io",
    unconditional_update: false,
    columns: &[Column::NAME, Column::new("Webhooks", Cell::Count("/webhooks")), Column::AGE],
    ..COUNTED
};

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "mutatingwebhookconfigurations",
        defaults: |obj| {
            defaults(obj);
            each(obj, "/webhooks", |w| default(w, "reinvocationPolicy", "Never"));
        },
        validate: configuration,

        ..WEBHOOKS
    },
    Behaviour { resource: "validatingwebhookconfigurations", defaults, validate: configuration, ..WEBHOOKS },
];

fn defaults(obj: &mut Value) {
    each(obj, "/webhooks", |w| {
        default(w, "failurePolicy", "Fail");
        default(w, "timeoutSeconds", 10);
        match_defaults(w, "/rules");
        at(w, "/clientConfig/service", |s| default(s, "port", 443));
    });
}

/// What a webhook or the constraints of a policy leave out: match everything, in every scope.
pub fn match_defaults(v: &mut Value, rules: &str) {
    default(v, "matchPolicy", "Equivalent");
    for key in ["namespaceSelector", "objectSelector"] {
        default(v, key, json!({}));
    }
    each(v, rules, |rule| default(rule, "scope", "*"));
}

fn configuration(obj: &Spot) {
    let mut names = BTreeSet::new();
    for hook in obj.each("webhooks") {
        webhook(&hook);
        review_versions(&hook, "admissionReviewVersions");
        if !hook.text("name").is_empty() {
            hook.unique("name", hook.text("name"), &mut names);
        }
    }
}

fn webhook(hook: &Spot) {
    fully_qualified(&hook.key("name"));
    hook.each("rules").for_each(|rule| rule_with_operations(&rule));
    hook.one_of_opt("failurePolicy", &FAILURE_POLICIES);
    hook.one_of_opt("matchPolicy", &MATCH_POLICIES);
    match hook.text("sideEffects") {
        "" => hook.required("sideEffects", "must specify one of None, NoneOnDryRun"),
        _ => hook.known("sideEffects", &["None", "NoneOnDryRun"]),
    }
    hook.within("timeoutSeconds", 1..=30, "the timeout value must be between 1 and 30 seconds");
    hook.selector("namespaceSelector");
    hook.selector("objectSelector");
    client_config(&hook.key("clientConfig"));
    match_conditions(hook);
    hook.one_of_opt("reinvocationPolicy", &["IfNeeded", "Never"]);
}

fn fully_qualified(s: &Spot) {
    let Some(own) = s.need("") else { return };
    let complaints = name::dns1123_subdomain(own);
    if complaints.is_empty() && own.split('.').count() < 3 {
        return s.wrong("", "should be a domain with at least three segments separated by dots");
    }
    s.invalid_all("", own, complaints);
}

/// The list of review versions that a webhook understands.
pub fn review_versions(v: &Spot, key: &str) {
    let given = v.texts(key);
    if given.is_empty() {
        return v.required(key, &format!("must specify one of {}", REVIEW_VERSIONS.join(", ")));
    }
    let mut seen = BTreeSet::new();
    for version in v.each(key) {
        if seen.insert(version.text("")) {
            version.like("", name::dns1035_label);
        } else {
            version.wrong("", "duplicate version");
        }
    }
    if !given.iter().any(|v| REVIEW_VERSIONS.contains(v)) {
        v.invalid(key, given, &format!("must include at least one of {}", REVIEW_VERSIONS.join(", ")));
    }
}

/// How a webhook is reached: by URL or by service, never both.
pub fn client_config(config: &Spot) {
    match (config.has("url"), config.has("service")) {
        (true, false) => url(&config.key("url")),
        (false, true) => service(&config.key("service")),
        _ => config.required("", "exactly one of url or service is required"),
    }
}

/// A webhook's URL.
fn url(s: &Spot) {
    let (scheme, rest) = s.text("").split_once("://").unwrap_or(("", s.text("")));
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        s.invalid("", host, &format!("host must be specified{URL_FORM}"));
    }
    if scheme != "https" {
        s.invalid("", scheme, &format!("'https' is the only allowed URL scheme{URL_FORM}"));
    }
    for (part, words) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            s.invalid("", part, words);
        }
    }
}

/// The service behind a webhook.
fn service(service: &Spot) {
    for key in ["name", "namespace"] {
        if service.text(key).is_empty() {
            service.required(key, &format!("service {key} is required"));
        }
    }
    port(service);
    let given = service.text("path");
    match given {
        "" | "/" => return,
        "//" => return service.wrong("path", "segment[0] may not be empty"),
        _ => {}
    }
    if !given.starts_with('/') {
        service.wrong("path", "must start with a '/'");
    }
    let inner = given.get(1..).unwrap_or_default();
    for (i, step) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
        if step.is_empty() {
            service.wrong("path", &format!("segment[{i}] may not be empty"));
            continue;
        }
        for words in name::dns1123_subdomain(step) {
            service.wrong("path", &format!("segment[{i}]: {words}"));
        }
    }
}

/// The port of a service reference.
pub fn port(service: &Spot) {
    let port = service.int("port").unwrap_or(0);
    let complaints = name::port_number(port);
    if !complaints.is_empty() {
        service.invalid("port", port, &format!("port is not valid: {}", complaints.join(",")));
    }
}

/// One rule: operations and what they are done to.
pub fn rule_with_operations(rule: &Spot) {
    let some = |key: &str| {
        if rule.list(key).is_empty() {
            rule.required(key, "");
        }
    };
    some("operations");
    rule.each("operations").for_each(|o| o.known("", &OPERATIONS));
    alone(rule, "operations", "operations");
    for (key, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        some(key);
        alone(rule, key, what);
    }
    for version in rule.each("apiVersions") {
        version.need("");
    }
    some("resources");
    resources(rule);
    rule.one_of_opt("scope", &SCOPES);
}

/// Is there a wildcard? Then it must stand alone.
pub fn alone(rule: &Spot, key: &str, what: &str) -> bool {
    let given = rule.texts(key);
    let wild = given.contains(&"*");
    if wild && given.len() > 1 {
        rule.invalid(key, given, &format!("if '*' is present, must not specify other {what}"));
    }
    wild
}

fn resources(rule: &Spot) {
    let given = rule.texts("resources");
    let (mut whole, mut everywhere) = (BTreeSet::new(), BTreeSet::new());
    let mut plain = false;
    for s in rule.each("resources") {
        let resource = s.text("");
        let Some((name, sub)) = resource.split_once('/') else {
            s.need("");
            plain |= !matches!(resource, "*" | "");
            continue;
        };
        let clash = |p: String| s.wrong("", &format!("if '{p}' is present, must not specify {resource}"));
        if whole.contains(name) {
            clash(format!("{name}/*"));
        }
        if everywhere.contains(sub) {
            clash(format!("*/{sub}"));
        }
        if sub == "*" {
            whole.insert(name);
        }
        if name == "*" {
            everywhere.insert(sub);
        }
    }
    if given.len() > 1 && given.contains(&"*/*") {
        rule.wrong("resources", "if '*/*' is present, must not specify other resources");
    }
    if given.contains(&"*") && plain {
        let words = "if '*' is present, must not specify other resources without subresources";
        rule.wrong("resources", words);
    }
}

/// `matchConditions` of a webhook or a policy.
pub fn match_conditions(v: &Spot) {
    v.at_most("matchConditions", MATCH_CONDITIONS_MAX);
    let mut names = BTreeSet::new();
    for condition in v.each("matchConditions") {
        if condition.text("expression").trim().is_empty() {
            condition.required("expression", "");
        }
        if let Some(own) = condition.need("name") {
            condition.like("name", name::qualified_name);
            condition.unique("name", own, &mut names);
        }
    }
}

/// The policies of a family, in upstream's words (they have no defaults where this is asked).
pub fn failure_policy(spec: &Spot) {
    spec.one_of("failurePolicy", &FAILURE_POLICIES);
}

/// `matchConstraints` of a policy or `matchResources` of its binding.
pub fn match_resources(v: &Spot) {
    v.one_of("matchPolicy", &MATCH_POLICIES);
    for key in ["namespaceSelector", "objectSelector"] {
        if v.has(key) { v.selector(key) } else { v.required(key, "") }
    }
    for rule in v.each("resourceRules").chain(v.each("excludeResourceRules")) {
        let mut names = BTreeSet::new();
        for own in rule.each("resourceNames") {
            own.like("", name::path_segment);
            own.unique("", own.text(""), &mut names);
        }
        rule_with_operations(&rule);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;

    fn fields(hook: &Value) -> Vec<(String, String)> {
        let mut errors = FieldErrors::new();
        let mut obj = json!({"webhooks": [hook]});
        defaults(&mut obj);
        configuration(&Spot::new(&obj, "", &mut errors));
        errors.causes().iter().map(|c| (c.field.clone(), c.message.clone())).collect()
    }

    fn good() -> Value {
        json!({"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": "s", "namespace": "n", "path": "/x/y"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]})
    }

    #[test]
    fn webhooks_are_checked() {
        assert_eq!(fields(&good()), []);
        type Row = (&'static str, Value, &'static str, &'static str);
        let rows: [Row; 9] = [
            (
                "/name",
                json!("a.b"),
                "webhooks[0].name",
                "Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
            ),
            (
                "/sideEffects",
                json!("Some"),
                "webhooks[0].sideEffects",
                "Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ),
            (
                "/admissionReviewVersions",
                json!(["v2"]),
                "webhooks[0].admissionReviewVersions",
                "Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
            ),
            (
                "/clientConfig",
                json!({}),
                "webhooks[0].clientConfig",
                "Required value: exactly one of url or service is required",
            ),
            (
                "/clientConfig",
                json!({"url": "http://x"}),
                "webhooks[0].clientConfig.url",
                "Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: https://host[/path]",
            ),
            (
                "/clientConfig/service/path",
                json!("/a//b"),
                "webhooks[0].clientConfig.service.path",
                "Invalid value: \"/a//b\": segment[1] may not be empty",
            ),
            (
                "/rules/0/operations",
                json!(["*", "CREATE"]),
                "webhooks[0].rules[0].operations",
                "Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
            ),
            (
                "/rules/0/resources",
                json!(["pods/*", "pods/log"]),
                "webhooks[0].rules[0].resources[1]",
                "Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log",
            ),
            (
                "/rules/0/resources",
                json!(["*", "pods"]),
                "webhooks[0].rules[0].resources",
                "Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources without subresources",
            ),
        ];
        for (pointer, value, field, message) in rows {
            let mut hook = good();
            *hook.pointer_mut(pointer).unwrap_or(&mut Value::Null) = value.clone();
            if pointer == "/clientConfig/service/path" {
                hook["clientConfig"]["service"]["path"] = value;
            }
            assert_eq!(fields(&hook), [(field.to_string(), message.to_string())], "{pointer}");
        }
        let mut hook = good();
        hook["timeoutSeconds"] = json!(31);
        hook["matchConditions"] =
            json!([{"name": "a", "expression": " "}, {"name": "a", "expression": "true"}]);
        let found: Vec<String> = fields(&hook).into_iter().map(|(f, _)| f).collect();
        assert_eq!(
            found,
            [
                "webhooks[0].timeoutSeconds",
                "webhooks[0].matchConditions[0].expression",
                "webhooks[0].matchConditions[1].name"
            ]
        );
    }
}
