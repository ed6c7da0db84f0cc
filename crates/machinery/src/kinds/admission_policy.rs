//! Validating and mutating admission policies and their bindings.
//!
//! Deliberately not here: compiling and running CEL.

use super::get::{at, default, text};
use super::spot::Spot;
use super::webhooks::{failure_policy, match_conditions, match_defaults, match_resources};
use super::{Behaviour, COUNTED};
use crate::name;
use crate::table::{Cell, Column};
use serde_json::Value;
use std::collections::BTreeSet;

const GROUP: &str = "admissionregistration.k8s.io";
const AUDIT_ANNOTATIONS_MAX: usize = 20;
/// A value expression's size; upstream's limit.
const VALUE_EXPRESSION_BYTES_MAX: usize = 5 * 1024;
const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];

const PARAM_KIND: Column = Column::new("ParamKind", Cell::Fn(|p| param_kind_text(p).into()));
const POLICY: Behaviour =
    Behaviour { group: GROUP, unconditional_update: false, defaults: policy_defaults, ..COUNTED };
const BINDING: Behaviour = Behaviour {
    group: GROUP,
    unconditional_update: false,
    defaults: |obj| at(obj, "/spec/matchResources", constraint_defaults),
    columns: &[
        Column::NAME,
        Column::new("PolicyName", Cell::Text("/spec/policyName")),
        Column::new("ParamRef", Cell::Fn(|b| param_ref_text(b).into())),
        Column::AGE,
    ],
    ..COUNTED
};

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "validatingadmissionpolicies",
        validate: validating,

        columns: &[
            Column::NAME,
            Column::new("Validations", Cell::Count("/spec/validations")),
            PARAM_KIND,
            Column::AGE,
        ],
        ..POLICY
    },
    Behaviour {
        resource: "mutatingadmissionpolicies",
        validate: mutating,

        columns: &[
            Column::NAME,
            Column::new("Mutations", Cell::Count("/spec/mutations")),
            PARAM_KIND,
            Column::AGE,
        ],
        ..POLICY
    },
    Behaviour { resource: "validatingadmissionpolicybindings", validate: validating_binding, ..BINDING },
    Behaviour { resource: "mutatingadmissionpolicybindings", validate: binding, ..BINDING },
];

fn param_kind_text(p: &Value) -> String {
    match p.pointer("/spec/paramKind").filter(|k| !k.is_null()) {
        Some(kind) => format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")),
        None => "<unset>".into(),
    }
}

fn param_ref_text(b: &Value) -> String {
    match b.pointer("/spec/paramRef").filter(|r| !r.is_null()) {
        Some(r) if !text(r, "/namespace").is_empty() => {
            format!("{}/{}", text(r, "/namespace"), text(r, "/name"))
        }
        Some(r) if !text(r, "/name").is_empty() => text(r, "/name").into(),
        Some(_) => "<selector>".into(),
        None => "<unset>".into(),
    }
}

fn constraint_defaults(v: &mut Value) {
    match_defaults(v, "/resourceRules");
    match_defaults(v, "/excludeResourceRules");
}

fn policy_defaults(obj: &mut Value) {
    at(obj, "/spec", |spec| {
        default(spec, "failurePolicy", "Fail");
        at(spec, "/matchConstraints", constraint_defaults);
    });
}

/// What both kinds of policies have: matching, parameters, variables.
fn common(spec: &Spot) {
    failure_policy(spec);
    spec.opt("paramKind").iter().for_each(param_kind);
    if let Some(constraints) = spec.opt("matchConstraints") {
        match_resources(&constraints);
        if constraints.list("resourceRules").is_empty() {
            constraints.required("resourceRules", "");
        }
    } else {
        spec.required("matchConstraints", "");
    }
    match_conditions(spec);
    let mut names = BTreeSet::new();
    for variable in spec.each("variables") {
        let own = variable.text("name");
        if own.trim().is_empty() {
            variable.required("name", "name is not specified");
        } else if !is_identifier(own) {
            variable.wrong("name", "name is not a valid CEL identifier");
        } else {
            variable.unique("name", own, &mut names);
        }
        expression(&variable, "expression");
    }
}

fn is_identifier(text: &str) -> bool {
    const RESERVED: &str = "as break const continue else false for function if import in let loop namespace null \
        package return true var void while";
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !RESERVED.split_whitespace().any(|word| word == text)
}

fn expression(v: &Spot, key: &str) {
    if v.text(key).trim().is_empty() {
        v.required(key, &format!("{key} is not specified"));
    }
}

fn param_kind(kind: &Spot) {
    if let Some(given) = kind.need("apiVersion") {
        let (group, version) = given.split_once('/').unwrap_or(("", given));
        if version.contains('/') {
            kind.wrong("apiVersion", &format!("unexpected GroupVersion string: {given}"));
        } else {
            let groups = if group.is_empty() { Vec::new() } else { name::dns1123_subdomain(group) };
            for (part, complaints) in [(group, groups), (version, name::dns1035_label(version))] {
                if !complaints.is_empty() {
                    kind.invalid("apiVersion", part, &complaints.join(","));
                }
            }
        }
    }
    if kind.need("kind").is_some() {
        mixed_case(kind, "kind");
    }
}

/// A kind: a DNS-1035 label but for its case.
pub fn mixed_case(v: &Spot, key: &str) {
    let complaints = name::dns1035_label(&v.text(key).to_lowercase());
    if !complaints.is_empty() {
        let words = format!("may have mixed case, but should otherwise match: {}", complaints.join(","));
        v.wrong(key, &words);
    }
}

fn validating(obj: &Spot) {
    let spec = obj.key("spec");
    common(&spec);
    let annotations = spec.list("auditAnnotations").len();
    if spec.list("validations").is_empty() && annotations == 0 {
        for key in ["validations", "auditAnnotations"] {
            spec.required(key, "validations or auditAnnotations must be configured");
        }
    }
    spec.each("validations").for_each(|v| one_validation(&v));
    if annotations > AUDIT_ANNOTATIONS_MAX {
        let words = format!("must not have more than {AUDIT_ANNOTATIONS_MAX} auditAnnotations");
        spec.invalid("auditAnnotations", annotations, &words);
    }
    let mut keys = BTreeSet::new();
    for annotation in spec.each("auditAnnotations") {
        let key = annotation.text("key");
        let full = format!("{}/{key}", obj.text("metadata.name"));
        annotation.invalid_all("key", key, name::qualified_name(&full));
        annotation.unique("key", key, &mut keys);
        expression(&annotation, "valueExpression");
        if annotation.text("valueExpression").len() > VALUE_EXPRESSION_BYTES_MAX {
            annotation.wrong("valueExpression", "must not exceed 5kb in length");
        }
    }
}

fn one_validation(v: &Spot) {
    expression(v, "expression");
    let given = v.text("messageExpression");
    if !given.is_empty() && given.trim().is_empty() {
        v.wrong("messageExpression", "must be non-empty if specified");
    }
    message(v);
    if v.text("message").is_empty() && v.text("expression").trim().contains('\n') {
        v.required("message", "message must be specified if expression contains line breaks");
    }
    v.one_of_opt("reason", &REASONS);
}

/// A message that is shown in one line.
pub fn message(v: &Spot) {
    let given = v.text("message");
    if !given.is_empty() && given.trim().is_empty() {
        v.wrong("message", "message must be non-empty if specified");
    } else if given.trim().contains(['\n', '\r']) {
        v.wrong("message", "message must not contain line breaks");
    }
}

fn mutating(obj: &Spot) {
    let spec = obj.key("spec");
    common(&spec);
    if spec.list("mutations").is_empty() {
        spec.required("mutations", "mutations must contain at least one item");
    }
    for mutation in spec.each("mutations") {
        mutation.one_of("patchType", &["ApplyConfiguration", "JSONPatch"]);
        for (kind, key) in [("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")] {
            match (mutation.text("patchType") == kind, mutation.opt(key)) {
                (true, None) => {
                    mutation.required(key, &format!("must be specified when patchType is {kind}"));
                }
                (true, Some(own)) => expression(&own, "expression"),
                (false, Some(own)) => {
                    own.forbidden("", &format!("may only be specified when patchType is {kind}"));
                }
                (false, None) => {}
            }
        }
    }
    spec.one_of("reinvocationPolicy", &["IfNeeded", "Never"]);
}

fn binding(obj: &Spot) {
    let spec = obj.key("spec");
    spec.need_like("policyName", name::dns1123_subdomain);
    spec.opt("paramRef").iter().for_each(param_ref);
    if let Some(resources) = spec.opt("matchResources") {
        // The misspelt path is upstream's.
        match_resources(&resources.named("spec.matchResouces".into()));
    }
}

fn param_ref(r: &Spot) {
    let (own, selector) = (r.text("name"), r.has("selector"));
    let exclusive = "name and selector are mutually exclusive";
    r.like_opt("name", name::path_segment);
    if !own.is_empty() && selector {
        r.forbidden("name", exclusive);
    }
    r.selector("selector");
    if !own.is_empty() && selector {
        r.forbidden("selector", exclusive);
    }
    if own.is_empty() && !selector {
        r.required("", "one of name or selector must be specified");
    }
    r.one_of("parameterNotFoundAction", &["Allow", "Deny"]);
}

fn validating_binding(obj: &Spot) {
    binding(obj);
    let (key, mut seen) = ("spec.validationActions", BTreeSet::new());
    for action in obj.each(key) {
        action.known("", &ACTIONS);
        action.unique("", action.text(""), &mut seen);
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let words = "must not contain both Deny and Warn (repeating the same validation failure information in \
            the API response and headers serves no purpose)";
        obj.wrong(key, words);
    }
    if seen.is_empty() {
        obj.required(key, "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field_errors::FieldErrors;
    use serde_json::json;

    type Check = fn(&Spot);

    fn found(check: Check, obj: &Value) -> Vec<String> {
        let mut obj = obj.clone();
        policy_defaults(&mut obj);
        let mut errors = FieldErrors::new();
        check(&Spot::new(&obj, "", &mut errors));
        errors.causes().iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn policies() {
        let rule = json!({"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]});
        let mut p = json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": "object.spec.replicas <= 5"}]}});
        assert_eq!(found(validating, &p), Vec::<String>::new());
        p["spec"]["variables"] = json!([{"name": "1a", "expression": ""}]);
        p["spec"]["validations"][0] = json!({"expression": "a\n&& b", "reason": "Nope"});
        assert_eq!(
            found(validating, &p),
            [
                "spec.variables[0].name: Invalid value: \"1a\": name is not a valid CEL identifier",
                "spec.variables[0].expression: Required value: expression is not specified",
                "spec.validations[0].message: Required value: message must be specified if expression contains line breaks",
                "spec.validations[0].reason: Unsupported value: \"Nope\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\", \"Unauthorized\"",
            ]
        );
        let empty = found(validating, &json!({"metadata": {"name": "p"}, "spec": {}}));
        assert_eq!(empty[0], "spec.matchConstraints: Required value");
        assert_eq!(empty.len(), 3);
        let m = found(
            mutating,
            &json!({"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [rule]},
            "mutations": [{"patchType": "JSONPatch"}], "reinvocationPolicy": "Never"}}),
        );
        assert_eq!(
            m,
            ["spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch"]
        );
    }

    #[test]
    fn bindings() {
        let good = json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}});
        assert_eq!(found(validating_binding, &good), Vec::<String>::new());
        let bad =
            json!({"spec": {"policyName": "p", "validationActions": ["Deny", "Warn", "X"], "paramRef": {}}});
        let fields: Vec<String> = found(validating_binding, &bad)
            .iter()
            .map(|l| l.split(':').next().unwrap().to_string())
            .collect();
        assert_eq!(
            fields,
            [
                "spec.paramRef",
                "spec.paramRef.parameterNotFoundAction",
                "spec.validationActions[2]",
                "spec.validationActions"
            ]
        );
    }
}
