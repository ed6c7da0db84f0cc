//! Expressions in webhooks and policies must compile before anybody relies on them.

use super::policy_environment;
use crate::admission::{Attempt, Operation};
use crate::metrics::expressions::compile;
use crate::webhooks::conditions::environment;
use machinery::cel::{Env, Type};
use machinery::field_errors::FieldErrors;
use machinery::kinds::get::{list, text};
use machinery::status::ApiError;
use serde_json::Value;

/// Refuses objects with expressions that do not compile. What has not changed is not looked at again.
pub fn judge(attempt: &Attempt<'_>, object: &Value, _: &mut Vec<String>) -> Result<(), ApiError> {
    let resource = &attempt.call.resource;
    let own = matches!(attempt.operation, Operation::Create | Operation::Update);
    if !own || resource.group() != super::GROUP {
        return Ok(());
    }
    let mut errors = FieldErrors::new();
    match resource.name() {
        "mutatingwebhookconfigurations" | "validatingwebhookconfigurations" => {
            for (i, hook) in list(object, "/webhooks").iter().enumerate() {
                conditions(hook, &format!("webhooks[{i}]"), &environment(), &mut errors);
            }
        }
        "mutatingadmissionpolicies" | "validatingadmissionpolicies"
            if attempt.old.is_none_or(|old| old["spec"] != object["spec"]) =>
        {
            policy(&object["spec"], &mut errors);
        }
        _ => {}
    }
    errors.into_result(super::GROUP, &resource.row.kind, &attempt.key.name)
}

fn conditions(holder: &Value, path: &str, env: &Env, errors: &mut FieldErrors) {
    for (i, condition) in list(holder, "/matchConditions").iter().enumerate() {
        let at = format!("{path}.matchConditions[{i}].expression");
        expression(env, text(condition, "/expression"), &at, &[Type::Bool], errors);
    }
}

fn expression(env: &Env, text: &str, path: &str, wanted: &[Type], errors: &mut FieldErrors) {
    match compile(env, text) {
        Err(error) => errors.invalid(path, text, &format!("compilation failed: {error}")),
        Ok(program) => {
            let output = program.output();
            if !wanted.is_empty() && *output != Type::Dyn && !wanted.contains(output) {
                let names: Vec<String> = wanted.iter().map(Type::to_string).collect();
                errors.invalid(path, text, &format!("must evaluate to {}", names.join(" or ")));
            }
        }
    }
}

fn policy(spec: &Value, errors: &mut FieldErrors) {
    let (env, variables) = policy_environment(spec);
    let mut plain = environment().var("namespaceObject", Type::Dyn);
    if !spec["paramKind"].is_null() {
        plain = plain.var("params", Type::Dyn);
    }
    conditions(spec, "spec", &plain, errors);
    for (i, (variable, (_, program))) in list(spec, "/variables").iter().zip(&variables).enumerate() {
        if let Err(why) = program {
            let at = format!("spec.variables[{i}].expression");
            errors.invalid(&at, text(variable, "/expression"), &format!("compilation failed: {why}"));
        }
    }
    for (i, validation) in list(spec, "/validations").iter().enumerate() {
        let at = format!("spec.validations[{i}]");
        expression(&env, text(validation, "/expression"), &format!("{at}.expression"), &[Type::Bool], errors);
        let message = text(validation, "/messageExpression");
        if !message.is_empty() {
            expression(&env, message, &format!("{at}.messageExpression"), &[Type::String], errors);
        }
    }
    for (i, annotation) in list(spec, "/auditAnnotations").iter().enumerate() {
        let at = format!("spec.auditAnnotations[{i}].valueExpression");
        let wanted = [Type::String, Type::Null];
        expression(&env, text(annotation, "/valueExpression"), &at, &wanted, errors);
    }
    let env = env.message("Object").message("JSONPatch");
    for (i, mutation) in list(spec, "/mutations").iter().enumerate() {
        for key in ["applyConfiguration", "jsonPatch"] {
            let given = text(mutation, &format!("/{key}/expression"));
            if !given.is_empty() {
                expression(&env, given, &format!("spec.mutations[{i}].{key}.expression"), &[], errors);
            }
        }
    }
}
