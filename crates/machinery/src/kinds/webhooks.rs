//! Mutating and validating webhook configurations; and what every caller of webhooks shares: client
//! configurations, match rules, match conditions.
//!
//! Deliberately not here: compiling CEL expressions (who evaluates them does that) and calling anybody.

use super::get::{at, default, each, enumerated_opt, field, has, int, list, required, text, texts};
use super::pod::scheduling::label_selector;
use super::{Behaviour, GENERIC};
use crate::field_errors::FieldErrors;
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
    validated: true,
    generation: true,
    unconditional_update: false,
    columns: &[
        Column::NAME,
        Column::new("Webhooks", Cell::Fn(|w| list(w, "/webhooks").len().into())),
        Column::AGE,
    ],
    ..GENERIC
};

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "mutatingwebhookconfigurations",
        defaults: |obj| {
            defaults(obj);
            each(obj, "/webhooks", |w| default(w, "reinvocationPolicy", "Never"));
        },
        validate_create: |obj, errors| configuration(obj, errors),
        validate_update: |new, _, errors| configuration(new, errors),
        ..WEBHOOKS
    },
    Behaviour {
        resource: "validatingwebhookconfigurations",
        defaults,
        validate_create: |obj, errors| configuration(obj, errors),
        validate_update: |new, _, errors| configuration(new, errors),
        ..WEBHOOKS
    },
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

fn configuration(obj: &Value, errors: &mut FieldErrors) {
    let mut names = BTreeSet::new();
    for (i, hook) in list(obj, "/webhooks").iter().enumerate() {
        let path = format!("webhooks[{i}]");
        webhook(hook, &path, errors);
        review_versions(hook, "admissionReviewVersions", &path, errors);
        let own = text(hook, "/name");
        if !own.is_empty() && !names.insert(own) {
            errors.duplicate(&format!("{path}.name"), own);
        }
    }
}

fn webhook(hook: &Value, path: &str, errors: &mut FieldErrors) {
    fully_qualified(text(hook, "/name"), &format!("{path}.name"), errors);
    for (i, rule) in list(hook, "/rules").iter().enumerate() {
        rule_with_operations(rule, &format!("{path}.rules[{i}]"), errors);
    }
    enumerated_opt(hook, path, "failurePolicy", &FAILURE_POLICIES, errors);
    enumerated_opt(hook, path, "matchPolicy", &MATCH_POLICIES, errors);
    match text(hook, "/sideEffects") {
        "" => errors.required(&format!("{path}.sideEffects"), "must specify one of None, NoneOnDryRun"),
        given => drop(errors.one_of(&format!("{path}.sideEffects"), given, &["None", "NoneOnDryRun"])),
    }
    if let Some(seconds) = int(hook, "/timeoutSeconds").filter(|s| !(1..=30).contains(s)) {
        let words = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&format!("{path}.timeoutSeconds"), seconds, words);
    }
    for key in ["namespaceSelector", "objectSelector"] {
        label_selector(hook.get(key), &format!("{path}.{key}"), errors);
    }
    client_config(&hook["clientConfig"], &format!("{path}.clientConfig"), errors);
    match_conditions(hook, path, errors);
    enumerated_opt(hook, path, "reinvocationPolicy", &["IfNeeded", "Never"], errors);
}

fn fully_qualified(name_: &str, path: &str, errors: &mut FieldErrors) {
    if name_.is_empty() {
        return errors.required(path, "");
    }
    let complaints = name::dns1123_subdomain(name_);
    if complaints.is_empty() && name_.split('.').count() < 3 {
        let words = "should be a domain with at least three segments separated by dots";
        return errors.invalid(path, name_, words);
    }
    errors.invalid_all(path, name_, complaints);
}

/// The list of review versions that a webhook understands, at `v/key`.
pub fn review_versions(v: &Value, key: &str, path: &str, errors: &mut FieldErrors) {
    let path = field(path, key);
    let given: Vec<&str> = texts(v, &format!("/{key}")).collect();
    if given.is_empty() {
        return errors.required(&path, &format!("must specify one of {}", REVIEW_VERSIONS.join(", ")));
    }
    let mut seen = BTreeSet::new();
    for (i, version) in given.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if !seen.insert(*version) {
            errors.invalid(&path, *version, "duplicate version");
            continue;
        }
        errors.invalid_all(&path, version, name::dns1035_label(version));
    }
    if !given.iter().any(|v| REVIEW_VERSIONS.contains(v)) {
        let words = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.invalid(&path, given, &words);
    }
}

/// How a webhook is reached: by URL or by service, never both.
pub fn client_config(config: &Value, path: &str, errors: &mut FieldErrors) {
    match (has(config, "/url"), has(config, "/service")) {
        (true, false) => url(text(config, "/url"), &format!("{path}.url"), errors),
        (false, true) => service(&config["service"], &format!("{path}.service"), errors),
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

/// A webhook's URL.
fn url(given: &str, path: &str, errors: &mut FieldErrors) {
    let (scheme, rest) = given.split_once("://").unwrap_or(("", given));
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        errors.invalid(path, host, &format!("host must be specified{URL_FORM}"));
    }
    if scheme != "https" {
        errors.invalid(path, scheme, &format!("'https' is the only allowed URL scheme{URL_FORM}"));
    }
    for (part, words) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            errors.invalid(path, part, words);
        }
    }
}

/// The service behind a webhook.
fn service(service: &Value, path: &str, errors: &mut FieldErrors) {
    for key in ["name", "namespace"] {
        if text(service, &format!("/{key}")).is_empty() {
            errors.required(&format!("{path}.{key}"), &format!("service {key} is required"));
        }
    }
    port(service, path, errors);
    let given = text(service, "/path");
    let path = format!("{path}.path");
    match given {
        "" | "/" => return,
        "//" => return errors.invalid(&path, given, "segment[0] may not be empty"),
        _ => {}
    }
    if !given.starts_with('/') {
        errors.invalid(&path, given, "must start with a '/'");
    }
    let inner = given.get(1..).unwrap_or_default();
    for (i, step) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
        if step.is_empty() {
            errors.invalid(&path, given, &format!("segment[{i}] may not be empty"));
            continue;
        }
        for words in name::dns1123_subdomain(step) {
            errors.invalid(&path, given, &format!("segment[{i}]: {words}"));
        }
    }
}

/// The port of a service reference.
pub fn port(service: &Value, path: &str, errors: &mut FieldErrors) {
    let port = int(service, "/port").unwrap_or(0);
    let complaints = name::port_number(port);
    if !complaints.is_empty() {
        errors.invalid(
            &format!("{path}.port"),
            port,
            &format!("port is not valid: {}", complaints.join(",")),
        );
    }
}

/// One rule: operations and what they are done to.
pub fn rule_with_operations(rule: &Value, path: &str, errors: &mut FieldErrors) {
    let operations: Vec<&str> = texts(rule, "/operations").collect();
    let at = format!("{path}.operations");
    if operations.is_empty() {
        errors.required(&at, "");
    }
    for (i, operation) in operations.iter().enumerate() {
        errors.one_of(&format!("{at}[{i}]"), operation, &OPERATIONS);
    }
    alone(&operations, &at, "operations", errors);
    for (key, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let given: Vec<&str> = texts(rule, &format!("/{key}")).collect();
        let at = format!("{path}.{key}");
        if given.is_empty() {
            errors.required(&at, "");
        }
        alone(&given, &at, what, errors);
        for (i, _) in given.iter().enumerate().filter(|(_, v)| key == "apiVersions" && v.is_empty()) {
            errors.required(&format!("{at}[{i}]"), "");
        }
    }
    resources(rule, &format!("{path}.resources"), errors);
    enumerated_opt(rule, path, "scope", &SCOPES, errors);
}

fn alone(given: &[&str], path: &str, what: &str, errors: &mut FieldErrors) {
    if given.len() > 1 && given.contains(&"*") {
        let words = format!("if '*' is present, must not specify other {what}");
        errors.invalid(path, given.to_vec(), &words);
    }
}

fn resources(rule: &Value, path: &str, errors: &mut FieldErrors) {
    let given: Vec<&str> = texts(rule, "/resources").collect();
    if given.is_empty() {
        errors.required(path, "");
    }
    let (mut whole, mut everywhere) = (BTreeSet::new(), BTreeSet::new());
    let mut plain = false;
    for (i, resource) in given.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let Some((name, sub)) = resource.split_once('/') else {
            if resource.is_empty() {
                errors.required(&path, "");
            }
            plain |= !matches!(*resource, "*" | "");
            continue;
        };
        let mut clash = |pattern: String| {
            errors.invalid(
                &path,
                *resource,
                &format!("if '{pattern}' is present, must not specify {resource}"),
            );
        };
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
        errors.invalid(path, given.clone(), "if '*/*' is present, must not specify other resources");
    }
    if given.contains(&"*") && plain {
        let words = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(path, given, words);
    }
}

/// `matchConditions` of a webhook or a policy.
pub fn match_conditions(v: &Value, path: &str, errors: &mut FieldErrors) {
    let path = field(path, "matchConditions");
    let conditions = list(v, "/matchConditions");
    if conditions.len() > MATCH_CONDITIONS_MAX {
        errors.too_many(&path, conditions.len(), MATCH_CONDITIONS_MAX);
    }
    let mut names = BTreeSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let path = format!("{path}[{i}]");
        if text(condition, "/expression").trim().is_empty() {
            errors.required(&format!("{path}.expression"), "");
        }
        if let Some(own) = required(condition, &path, "name", errors) {
            errors.invalid_all(&format!("{path}.name"), own, name::qualified_name(own));
            if !names.insert(own) {
                errors.duplicate(&format!("{path}.name"), own);
            }
        }
    }
}

/// The policies of a family, in upstream's words (they have no defaults where this is asked).
pub fn failure_policy(spec: &Value, path: &str, errors: &mut FieldErrors) {
    super::get::enumerated(spec, path, "failurePolicy", &FAILURE_POLICIES, errors);
}

/// `matchConstraints` of a policy or `matchResources` of its binding.
pub fn match_resources(v: &Value, path: &str, errors: &mut FieldErrors) {
    super::get::enumerated(v, path, "matchPolicy", &MATCH_POLICIES, errors);
    for key in ["namespaceSelector", "objectSelector"] {
        if has(v, &format!("/{key}")) {
            label_selector(v.get(key), &format!("{path}.{key}"), errors);
        } else {
            errors.required(&format!("{path}.{key}"), "");
        }
    }
    for key in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in list(v, &format!("/{key}")).iter().enumerate() {
            let path = format!("{path}.{key}[{i}]");
            let mut names = BTreeSet::new();
            for (n, own) in texts(rule, "/resourceNames").enumerate() {
                let at = format!("{path}.resourceNames[{n}]");
                errors.invalid_all(&at, own, name::path_segment(own));
                if !names.insert(own) {
                    errors.duplicate(&at, own);
                }
            }
            rule_with_operations(rule, &path, errors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(hook: &Value) -> Vec<(String, String)> {
        let mut errors = FieldErrors::new();
        let mut obj = json!({"webhooks": [hook]});
        defaults(&mut obj);
        configuration(&obj, &mut errors);
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
