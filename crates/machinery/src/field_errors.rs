//! The builder of 422 causes: Kubernetes' reasons, words and field paths.
//!
//! Invariant: causes keep the order they were found in. Deliberately not here: any rule (see `kinds`).

use crate::status::{ApiError, Cause};
use serde_json::Value;

/// Causes collected while validating one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldErrors {
    causes: Vec<Cause>,
}

/// More causes than this help nobody and would let one bad object make a huge answer.
const CAUSES_MAX: usize = 256;

impl FieldErrors {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, reason: &str, field: &str, message: String) {
        if self.causes.len() < CAUSES_MAX {
            self.causes.push(Cause { reason: reason.into(), message, field: field.into() });
        }
    }

    /// `Required value: why` (or `Required value` when `why` is empty).
    pub fn required(&mut self, field: &str, why: &str) {
        self.push("FieldValueRequired", field, with_detail("Required value", why));
    }

    /// `Invalid value: <value>: why`.
    pub fn invalid(&mut self, field: &str, value: impl Into<Value>, why: &str) {
        let head = format!("Invalid value: {}", shown(&value.into()));
        self.push("FieldValueInvalid", field, with_detail(&head, why));
    }

    /// `Invalid value: why`: no value shows what is wrong.
    pub fn invalid_as_a_whole(&mut self, field: &str, why: &str) {
        self.push("FieldValueInvalid", field, with_detail("Invalid value", why));
    }

    /// `Invalid value` for each of several complaints about one value.
    pub fn invalid_all(&mut self, field: &str, value: &str, whys: Vec<String>) {
        for why in whys {
            self.invalid(field, value, &why);
        }
    }

    /// `Unsupported value: "x": supported values: "A", "B"`, in the order given.
    pub fn not_supported(&mut self, field: &str, value: impl Into<Value>, supported: &[&str]) {
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        let mut message = format!("Unsupported value: {}", shown(&value.into()));
        if !list.is_empty() {
            message = format!("{message}: supported values: {}", list.join(", "));
        }
        self.push("FieldValueNotSupported", field, message);
    }

    /// `Duplicate value: <value>`.
    pub fn duplicate(&mut self, field: &str, value: impl Into<Value>) {
        self.push("FieldValueDuplicate", field, format!("Duplicate value: {}", shown(&value.into())));
    }

    /// `Forbidden: why`.
    pub fn forbidden(&mut self, field: &str, why: &str) {
        self.push("FieldValueForbidden", field, with_detail("Forbidden", why));
    }

    /// `Not found: <value>`.
    pub fn not_found(&mut self, field: &str, value: impl Into<Value>) {
        self.push("FieldValueNotFound", field, format!("Not found: {}", shown(&value.into())));
    }

    /// `Too long: may not be more than N bytes`.
    pub fn too_long(&mut self, field: &str, max: usize) {
        self.push("FieldValueTooLong", field, format!("Too long: may not be more than {max} bytes"));
    }

    /// `Too many: N: must have at most M items`.
    pub fn too_many(&mut self, field: &str, actual: usize, max: usize) {
        let message = format!("Too many: {actual}: must have at most {max} items");
        self.push("FieldValueTooMany", field, message);
    }

    /// `Invalid value: <type>: why` where the value has the wrong JSON type.
    pub fn type_invalid(&mut self, field: &str, value: impl Into<Value>, why: &str) {
        let head = format!("Invalid value: {}", shown(&value.into()));
        self.push("FieldValueTypeInvalid", field, with_detail(&head, why));
    }

    /// Checks a string against a closed set; says so and returns false when it is not in it.
    pub fn one_of(&mut self, field: &str, value: &str, supported: &[&str]) -> bool {
        let known = supported.contains(&value);
        if !known {
            self.not_supported(field, value, supported);
        }
        known
    }

    /// An integer that must not be negative, in the usual words.
    pub fn non_negative(&mut self, field: &str, value: i64) {
        if value < 0 {
            self.invalid(field, value, "must be greater than or equal to 0");
        }
    }

    /// A value that must not change: compares as Go does (zero is absent), and complains in upstream's words.
    pub fn immutable(&mut self, field: &str, new: &Value, old: &Value) {
        if !crate::kinds::get::same(new, old) {
            self.invalid(field, new.clone(), "field is immutable");
        }
    }

    /// None so far?
    pub fn is_empty(&self) -> bool {
        self.causes.is_empty()
    }

    /// What was found.
    pub fn causes(&self) -> &[Cause] {
        &self.causes
    }

    /// Takes over another list's causes.
    pub fn append(&mut self, other: FieldErrors) {
        let room = CAUSES_MAX.saturating_sub(self.causes.len());
        self.causes.extend(other.causes.into_iter().take(room));
    }

    /// `Ok`, or the 422 for the object.
    pub fn into_result(self, group: &str, kind: &str, name: &str) -> Result<(), ApiError> {
        if self.causes.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid(group, kind, name, self.causes))
    }
}

fn with_detail(head: &str, why: &str) -> String {
    if why.is_empty() { head.to_string() } else { format!("{head}: {why}") }
}

/// A value as messages show it: strings quoted, `null` for absent, the rest as JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(s) => format!("{s:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_upstreams() {
        let mut e = FieldErrors::new();
        e.required("spec.containers[0].name", "");
        e.invalid("spec.replicas", -1, "must be greater than or equal to 0");
        e.not_supported("spec.type", "X", &["ClusterIP", "NodePort"]);
        e.duplicate("spec.containers[1].name", "a");
        e.forbidden("spec", "no");
        let words: Vec<&str> = e.causes().iter().map(|c| c.message.as_str()).collect();
        assert_eq!(
            words,
            [
                "Required value",
                "Invalid value: -1: must be greater than or equal to 0",
                "Unsupported value: \"X\": supported values: \"ClusterIP\", \"NodePort\"",
                "Duplicate value: \"a\"",
                "Forbidden: no",
            ]
        );
        let error = e.into_result("apps", "Deployment", "web").unwrap_err();
        assert_eq!(error.code, 422);
        assert!(
            error.message.starts_with("Deployment.apps \"web\" is invalid: [spec.containers[0].name: Req")
        );
    }

    #[test]
    fn bounded() {
        let mut e = FieldErrors::new();
        for _ in 0..10_000 {
            e.required("x", "");
        }
        assert_eq!(e.causes().len(), CAUSES_MAX);
    }
}
