//! What roles, policies and profiles have in common. Pure.

use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{Pages, text};
use serde_json::{Value, json};
use sha2::Digest;

pub(super) fn exists(kind: &str, name: &str) -> AwsError {
    let text = format!("{kind} with name {name} already exists.");
    AwsError { status: 409, ..AwsError::client("EntityAlreadyExists", text) }
}

pub(super) fn not_found(text: impl Into<String>) -> AwsError {
    AwsError { status: 404, ..AwsError::client("NoSuchEntity", text) }
}

pub(super) fn conflict(text: impl Into<String>) -> AwsError {
    AwsError { status: 409, ..AwsError::client("DeleteConflict", text) }
}

/// A policy document must be a JSON object.
pub(super) fn document(text: &str) -> Result<&str, AwsError> {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(_)) => Ok(text),
        _ => Err(AwsError::client("MalformedPolicyDocument", "Syntax errors in policy.")),
    }
}

/// Documents are percent-encoded in answers.
pub(super) fn encoded(document: &Value) -> Value {
    stdx::percent(document.as_str().unwrap_or_default(), stdx::UNRESERVED).into()
}

/// The path of a new thing: `/` or `/a/b/`.
pub(super) fn path(call: &Call) -> &str {
    call.input["Path"].as_str().unwrap_or("/")
}

/// An id such as `AROA…`: a prefix and 17 letters, made of a unique text.
pub(super) fn id(prefix: &str, unique: &str) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = sha2::Sha256::digest(unique.as_bytes());
    let letters = hash.iter().take(17).map(|b| char::from(LETTERS[usize::from(*b) % LETTERS.len()]));
    prefix.chars().chain(letters).collect()
}

const PAGES: Pages = Pages {
    asks: ("MaxItems", "Marker"),
    next: "Marker",
    rows: 100,
    refusal: ("ValidationError", "Invalid Marker."),
};

/// A page of a list, in IAM's form: `member` is the list's name, rows are sorted by their member `by` (none: they are
/// texts).
pub(super) fn listing(call: &Call, member: &str, mut list: Vec<Value>, by: &str) -> Outcome {
    let name = |row: &Value| {
        if by.is_empty() { row.as_str().unwrap_or_default().into() } else { text(row, by).to_string() }
    };
    list.sort_by_cached_key(name);
    let (found, marker) = PAGES.cut(call, &list, name)?;
    Ok(json!({member: found, "IsTruncated": marker.is_some(), "Marker": marker}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_ids() {
        assert!(document("{}").is_ok() && document("[]").is_err() && document("{").is_err());
        assert_eq!(encoded(&json!("{\"a\": 1}")), "%7B%22a%22%3A%201%7D");
        let made = id("AROA", "x");
        assert!(made.len() == 21 && made.starts_with("AROA") && made != id("AROA", "y"));
    }
}
