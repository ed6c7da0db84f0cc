//! Validating and mutating admission policies and their bindings.
//!
//! Deliberately not here: compiling and running CEL.

use super::get::{at, default, enumerated, enumerated_opt, has, list, required, text, texts};
use super::pod::scheduling::label_selector;
use super::webhooks::{failure_policy, match_conditions, match_defaults, match_resources};
use super::{Behaviour, GENERIC};
use crate::field_errors::FieldErrors;
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
const POLICY: Behaviour = Behaviour {
    group: GROUP,
    validated: true,
    generation: true,
    unconditional_update: false,
    defaults: policy_defaults,
    ..GENERIC
};
const BINDING: Behaviour = Behaviour {
    group: GROUP,
    validated: true,
    generation: true,
    unconditional_update: false,
    defaults: |obj| at(obj, "/spec/matchResources", constraint_defaults),
    columns: &[
        Column::NAME,
        Column::new("PolicyName", Cell::Text("/spec/policyName")),
        Column::new("ParamRef", Cell::Fn(|b| param_ref_text(b).into())),
        Column::AGE,
    ],
    ..GENERIC
};

/// Rows of this family.
pub static ROWS: &[Behaviour] = &[
    Behaviour {
        resource: "validatingadmissionpolicies",
        validate_create: validating,
        validate_update: |new, _, errors| validating(new, errors),
        columns: &[
            Column::NAME,
            Column::new("Validations", Cell::Fn(|p| list(p, "/spec/validations").len().into())),
            PARAM_KIND,
            Column::AGE,
        ],
        ..POLICY
    },
    Behaviour {
        resource: "mutatingadmissionpolicies",
        validate_create: mutating,
        validate_update: |new, _, errors| mutating(new, errors),
        columns: &[
            Column::NAME,
            Column::new("Mutations", Cell::Fn(|p| list(p, "/spec/mutations").len().into())),
            PARAM_KIND,
            Column::AGE,
        ],
        ..POLICY
    },
    Behaviour {
        resource: "validatingadmissionpolicybindings",
        validate_create: validating_binding,
        validate_update: |new, _, errors| validating_binding(new, errors),
        ..BINDING
    },
    Behaviour {
        resource: "mutatingadmissionpolicybindings",
        validate_create: binding,
        validate_update: |new, _, errors| binding(new, errors),
        ..BINDING
    },
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
fn common(spec: &Value, errors: &mut FieldErrors) {
    failure_policy(spec, "spec", errors);
    if has(spec, "/paramKind") {
        param_kind(&spec["paramKind"], "spec.paramKind", errors);
    }
    if has(spec, "/matchConstraints") {
        let constraints = &spec["matchConstraints"];
        match_resources(constraints, "spec.matchConstraints", errors);
        if list(constraints, "/resourceRules").is_empty() {
            errors.required("spec.matchConstraints.resourceRules", "");
        }
    } else {
        errors.required("spec.matchConstraints", "");
    }
    match_conditions(spec, "spec", errors);
    let mut names = BTreeSet::new();
    for (i, variable) in list(spec, "/variables").iter().enumerate() {
        let path = format!("spec.variables[{i}]");
        let own = text(variable, "/name");
        if own.trim().is_empty() {
            errors.required(&format!("{path}.name"), "name is not specified");
        } else if !is_identifier(own) {
            errors.invalid(&format!("{path}.name"), own, "name is not a valid CEL identifier");
        } else if !names.insert(own) {
            errors.duplicate(&format!("{path}.name"), own);
        }
        expression(variable, "expression", &path, errors);
    }
}

fn is_identifier(text: &str) -> bool {
    const RESERVED: &[&str] = &[
        "as",
        "break",
        "const",
        "continue",
        "else",
        "false",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "namespace",
        "null",
        "package",
        "return",
        "true",
        "var",
        "void",
        "while",
    ];
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') && !RESERVED.contains(&text)
}

fn expression(v: &Value, key: &str, path: &str, errors: &mut FieldErrors) {
    if text(v, &format!("/{key}")).trim().is_empty() {
        errors.required(&format!("{path}.{key}"), &format!("{key} is not specified"));
    }
}

fn param_kind(kind: &Value, path: &str, errors: &mut FieldErrors) {
    if let Some(given) = required(kind, path, "apiVersion", errors) {
        let at = format!("{path}.apiVersion");
        let (group, version) = given.split_once('/').unwrap_or(("", given));
        if version.contains('/') {
            errors.invalid(&at, given, &format!("unexpected GroupVersion string: {given}"));
        } else {
            let join = |complaints: Vec<String>| complaints.join(",");
            if !group.is_empty() && !name::dns1123_subdomain(group).is_empty() {
                errors.invalid(&at, group, &join(name::dns1123_subdomain(group)));
            }
            if !name::dns1035_label(version).is_empty() {
                errors.invalid(&at, version, &join(name::dns1035_label(version)));
            }
        }
    }
    if let Some(given) = required(kind, path, "kind", errors) {
        mixed_case(given, &format!("{path}.kind"), errors);
    }
}

/// A kind: a DNS-1035 label but for its case.
pub fn mixed_case(given: &str, path: &str, errors: &mut FieldErrors) {
    let complaints = name::dns1035_label(&given.to_lowercase());
    if !complaints.is_empty() {
        let words = format!("may have mixed case, but should otherwise match: {}", complaints.join(","));
        errors.invalid(path, given, &words);
    }
}

fn validating(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    common(spec, errors);
    let (validations, annotations) = (list(spec, "/validations"), list(spec, "/auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        for key in ["validations", "auditAnnotations"] {
            let words = "validations or auditAnnotations must be configured";
            errors.required(&format!("spec.{key}"), words);
        }
    }
    for (i, validation) in validations.iter().enumerate() {
        one_validation(validation, &format!("spec.validations[{i}]"), errors);
    }
    if annotations.len() > AUDIT_ANNOTATIONS_MAX {
        let words = format!("must not have more than {AUDIT_ANNOTATIONS_MAX} auditAnnotations");
        errors.invalid("spec.auditAnnotations", annotations.len(), &words);
    }
    let mut keys = BTreeSet::new();
    for (i, annotation) in annotations.iter().enumerate() {
        let path = format!("spec.auditAnnotations[{i}]");
        let key = text(annotation, "/key");
        let full = format!("{}/{key}", text(obj, "/metadata/name"));
        for words in name::qualified_name(&full) {
            errors.invalid(&format!("{path}.key"), key, &words);
        }
        if !keys.insert(key) {
            errors.duplicate(&format!("{path}.key"), key);
        }
        expression(annotation, "valueExpression", &path, errors);
        if text(annotation, "/valueExpression").len() > VALUE_EXPRESSION_BYTES_MAX {
            let given = text(annotation, "/valueExpression");
            errors.invalid(&format!("{path}.valueExpression"), given, "must not exceed 5kb in length");
        }
    }
}

fn one_validation(v: &Value, path: &str, errors: &mut FieldErrors) {
    expression(v, "expression", path, errors);
    let given = text(v, "/messageExpression");
    if !given.is_empty() && given.trim().is_empty() {
        errors.invalid(&format!("{path}.messageExpression"), given, "must be non-empty if specified");
    }
    message(v, path, errors);
    if text(v, "/message").is_empty() && text(v, "/expression").trim().contains('\n') {
        let words = "message must be specified if expression contains line breaks";
        errors.required(&format!("{path}.message"), words);
    }
    enumerated_opt(v, path, "reason", &REASONS, errors);
}

/// A message that is shown in one line.
pub fn message(v: &Value, path: &str, errors: &mut FieldErrors) {
    let given = text(v, "/message");
    if !given.is_empty() && given.trim().is_empty() {
        errors.invalid(&format!("{path}.message"), given, "message must be non-empty if specified");
    } else if given.trim().contains(['\n', '\r']) {
        errors.invalid(&format!("{path}.message"), given, "message must not contain line breaks");
    }
}

fn mutating(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    common(spec, errors);
    let mutations = list(spec, "/mutations");
    if mutations.is_empty() {
        errors.required("spec.mutations", "mutations must contain at least one item");
    }
    for (i, mutation) in mutations.iter().enumerate() {
        let path = format!("spec.mutations[{i}]");
        enumerated(mutation, &path, "patchType", &["ApplyConfiguration", "JSONPatch"], errors);
        let kinds = [("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")];
        for (kind, key) in kinds {
            let at = format!("{path}.{key}");
            let given = has(mutation, &format!("/{key}"));
            match (text(mutation, "/patchType") == kind, given) {
                (true, false) => {
                    errors.required(&at, &format!("must be specified when patchType is {kind}"));
                }
                (true, true) => expression(&mutation[key], "expression", &at, errors),
                (false, true) => {
                    errors.forbidden(&at, &format!("may only be specified when patchType is {kind}"));
                }
                (false, false) => {}
            }
        }
    }
    enumerated(spec, "spec", "reinvocationPolicy", &["IfNeeded", "Never"], errors);
}

fn binding(obj: &Value, errors: &mut FieldErrors) {
    let spec = &obj["spec"];
    if let Some(own) = required(spec, "spec", "policyName", errors) {
        errors.invalid_all("spec.policyName", own, name::dns1123_subdomain(own));
    }
    if has(spec, "/paramRef") {
        param_ref(&spec["paramRef"], "spec.paramRef", errors);
    }
    if has(spec, "/matchResources") {
        // The misspelt path is upstream's.
        match_resources(&spec["matchResources"], "spec.matchResouces", errors);
    }
}

fn param_ref(r: &Value, path: &str, errors: &mut FieldErrors) {
    let (own, selector) = (text(r, "/name"), has(r, "/selector"));
    let exclusive = "name and selector are mutually exclusive";
    if !own.is_empty() {
        errors.invalid_all(&format!("{path}.name"), own, name::path_segment(own));
        if selector {
            errors.forbidden(&format!("{path}.name"), exclusive);
        }
    }
    if selector {
        label_selector(r.get("selector"), &format!("{path}.selector"), errors);
        if !own.is_empty() {
            errors.forbidden(&format!("{path}.selector"), exclusive);
        }
    }
    if own.is_empty() && !selector {
        errors.required(path, "one of name or selector must be specified");
    }
    enumerated(r, path, "parameterNotFoundAction", &["Allow", "Deny"], errors);
}

fn validating_binding(obj: &Value, errors: &mut FieldErrors) {
    binding(obj, errors);
    let actions: Vec<&str> = texts(obj, "/spec/validationActions").collect();
    let path = "spec.validationActions";
    let mut seen = BTreeSet::new();
    for (i, action) in actions.iter().enumerate() {
        errors.one_of(&format!("{path}[{i}]"), action, &ACTIONS);
        if !seen.insert(*action) {
            errors.duplicate(&format!("{path}[{i}]"), *action);
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let words = "must not contain both Deny and Warn (repeating the same validation failure information in \
            the API response and headers serves no purpose)";
        errors.invalid(path, actions.clone(), words);
    }
    if actions.is_empty() {
        errors.required(path, "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    type Check = fn(&Value, &mut FieldErrors);

    fn found(check: Check, obj: &Value) -> Vec<String> {
        let mut obj = obj.clone();
        policy_defaults(&mut obj);
        let mut errors = FieldErrors::new();
        check(&obj, &mut errors);
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
