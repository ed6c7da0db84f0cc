//! ValidatingAdmissionPolicy: refuses, warns about or notes what its expressions do not hold for.

use super::{Applicable, Body, Expression, applicable};
use crate::audit;
use crate::webhooks::Request;
use crate::webhooks::conditions::Facts;
use machinery::cel::{Env, Value};
use machinery::kinds::get::{list, text};
use machinery::status::{ApiError, Cause};
use serde_json::{Value as Json, json};
use tokio::time::Instant;

/// The longest message that an expression may make; upstream's limit.
const MESSAGE_BYTES_MAX: usize = 5 * 1024;
/// Reasons and their codes.
const REASONS: [(&str, u16); 4] =
    [("Invalid", 422), ("Forbidden", 403), ("Unauthorized", 401), ("RequestEntityTooLarge", 413)];

/// One validation.
pub struct Validation {
    expression: Expression,
    message: String,
    message_expression: Option<Expression>,
    reason: String,
}

impl Validation {
    /// Those of a policy's spec.
    pub fn read_all(spec: &Json, env: &Env) -> Vec<Validation> {
        let read = |v: &Json| Validation {
            expression: Expression::read(text(v, "/expression"), env),
            message: text(v, "/message").trim().to_string(),
            message_expression: match text(v, "/messageExpression") {
                "" => None,
                given => Some(Expression::read(given, env)),
            },
            reason: text(v, "/reason").to_string(),
        };
        list(spec, "/validations").iter().map(read).collect()
    }

    /// What does not hold, if something does not: the message and the reason; an error where nobody can tell.
    fn judge(&self, facts: &Facts) -> Result<Option<(String, String)>, String> {
        if self.expression.eval(facts)?.as_bool() == Some(true) {
            return Ok(None);
        }
        let made = self.message_expression.as_ref().and_then(|e| e.eval(facts).ok());
        let made = made.as_ref().and_then(Value::as_str).map(str::trim);
        let made = made.filter(|m| !m.is_empty() && m.len() <= MESSAGE_BYTES_MAX && !m.contains('\n'));
        let message = match (made, self.message.as_str()) {
            (Some(made), _) => made.to_string(),
            (None, "") => format!("failed expression: {}", self.expression.text.trim()),
            (None, fixed) => fixed.to_string(),
        };
        Ok(Some((message, self.reason.clone())))
    }
}

/// A note for the audit log.
pub struct Note {
    key: String,
    value: Expression,
}

impl Note {
    /// Those of a policy.
    pub fn read_all(policy: &str, spec: &Json, env: &Env) -> Vec<Note> {
        let read = |note: &Json| Note {
            key: format!("{policy}/{}", text(note, "/key")),
            value: Expression::read(text(note, "/valueExpression"), env),
        };
        list(spec, "/auditAnnotations").iter().map(read).collect()
    }
}

/// Something that does not hold, or that could not be told where that counts.
struct Complaint {
    /// Which validation; `None`: the whole policy.
    nth: Option<usize>,
    message: String,
    reason: String,
}

/// Judges a request. `object` is null where there is none.
pub async fn judge(request: &Request<'_>, object: &Json, warnings: &mut Vec<String>) -> Result<(), ApiError> {
    let object = Some(object).filter(|o| !o.is_null());
    let mut denial = None;
    let mut noted = Vec::new();
    for one in applicable(request, "validating", object).await? {
        for Complaint { nth, message, reason } in complaints(&one, request, object) {
            let (policy, binding) = (&one.policy.name, &one.binding.name);
            let with = format!("ValidatingAdmissionPolicy '{policy}' with binding '{binding}'");
            for action in &one.binding.actions {
                match action.as_str() {
                    "Deny" => {
                        denial.get_or_insert((format!("{with} denied request: {message}"), reason.clone()));
                    }
                    "Warn" => warnings.push(format!("Validation failed for {with}: {message}")),
                    _ => noted.push(json!({"message": message, "policy": **policy, "binding": **binding,
                        "expressionIndex": nth, "validationActions": one.binding.actions})),
                }
            }
        }
    }
    if !noted.is_empty() {
        audit::annotate("validation.policy.admission.k8s.io/validation_failure", &json!(noted).to_string());
    }
    denial.map_or(Ok(()), |(message, reason)| Err(denied(request, &message, &reason)))
}

fn complaints(one: &Applicable, request: &Request<'_>, object: Option<&Json>) -> Vec<Complaint> {
    let Body::Validations(validations, notes) = &one.policy.body else { return Vec::new() };
    let mut found = Vec::new();
    let failed = |nth, message| one.policy.fails.then(|| Complaint { nth, message, reason: String::new() });
    let all = match one.facts(request, object) {
        Ok(all) => all,
        Err(why) => return failed(None, why).into_iter().collect(),
    };
    for facts in &all {
        for (nth, validation) in validations.iter().enumerate() {
            let started = Instant::now();
            let judged = validation.judge(facts);
            let action = match &judged {
                Ok(None) => ("allow", "no_error"),
                Ok(Some(_)) => (one.binding.enforces(), "no_error"),
                Err(_) if one.policy.fails => (one.binding.enforces(), "compile_or_invalid_error"),
                Err(_) => ("allow", "compile_or_invalid_error"),
            };
            let (policy, binding) = (&one.policy.name, &one.binding.name);
            request.api.metrics.checked(policy, binding, action, started.elapsed());
            match judged {
                Ok(None) => {}
                Ok(Some((message, reason))) => found.push(Complaint { nth: Some(nth), message, reason }),
                Err(why) => found.extend(failed(Some(nth), why)),
            }
        }
        for note in notes {
            match note.value.eval(facts) {
                Ok(value) => {
                    if let Some(text) = value.as_str().map(str::trim).filter(|t| !t.is_empty()) {
                        audit::annotate(&note.key, text);
                    }
                }
                Err(why) => found.extend(failed(None, why)),
            }
        }
    }
    found
}

fn denied(request: &Request<'_>, message: &str, reason: &str) -> ApiError {
    let mut error = ApiError::forbidden(request.call.resource.gvr(), &request.key.name, message);
    let (reason, code) = REASONS.into_iter().find(|(r, _)| *r == reason).unwrap_or(REASONS[0]);
    error.reason = reason;
    error.code = code;
    error.causes.push(Cause { reason: String::new(), message: message.to_string(), field: String::new() });
    error
}
