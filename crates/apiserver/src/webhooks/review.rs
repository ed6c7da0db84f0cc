//! AdmissionReview, v1 and v1beta1: what is sent, and what an answer means. Pure.

use super::Request;
use crate::resources::Resource;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use machinery::status::{ApiError, Cause};
use serde_json::{Value, json};

/// Reasons that a webhook may give; errors carry no other.
const REASONS: [&str; 21] = [
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "AlreadyExists",
    "Conflict",
    "Gone",
    "Invalid",
    "ServerTimeout",
    "StoreReadError",
    "Timeout",
    "TooManyRequests",
    "BadRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "RequestEntityTooLarge",
    "UnsupportedMediaType",
    "InternalError",
    "Expired",
    "ServiceUnavailable",
    "NamespaceTerminating",
    "Terminating",
];
/// Warnings of one webhook that are passed on, and their length; as upstream advises webhooks to keep to.
const WARNINGS_MAX: usize = 64;
const WARNING_LEN_MAX: usize = 4096;

/// The review for a request in a form.
pub fn review(
    request: &Request<'_>,
    form: &Resource,
    version: &str,
    uid: &str,
    object: Option<&Value>,
) -> Value {
    let gvk = |r: &Resource| {
        let (group, version, kind) = request.kind(r);
        json!({"group": group, "version": version, "kind": kind})
    };
    let gvr = |r: &Resource| {
        let gvr = r.gvr();
        json!({"group": gvr.group, "version": gvr.version, "resource": gvr.resource})
    };
    let shown = |document: Option<&Value>| document.map_or(Value::Null, |d| request.shown(form, d));
    let identity = &request.call.identity;
    let mut user = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        user["uid"] = json!(identity.uid);
    }
    if !identity.extra.is_empty() {
        user["extra"] = json!(identity.extra);
    }
    let mut asked = json!({
        "uid": uid,
        "kind": gvk(form),
        "resource": gvr(form),
        "requestKind": gvk(&request.call.resource),
        "requestResource": gvr(&request.call.resource),
        "operation": request.operation,
        "userInfo": user,
        "object": shown(object),
        "oldObject": shown(request.old),
        "dryRun": request.call.options.dry_run,
        "options": request.options(),
    });
    let sub = request.call.subresource.as_str();
    let texts = [
        ("subResource", sub),
        ("requestSubResource", sub),
        ("name", &*request.key.name),
        ("namespace", request.namespace()),
    ];
    for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        asked[field] = json!(text);
    }
    json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": asked})
}

/// What a webhook said.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    /// The operations of its patch, if it wants one.
    pub patch: Option<Value>,
    /// Sentences for the caller.
    pub warnings: Vec<String>,
    /// For the audit log.
    pub notes: Vec<(String, String)>,
    /// Why it refuses.
    pub refusal: Option<ApiError>,
}

/// Reads an answer. The error says why it is none.
pub fn verdict(
    hook: &str,
    version: &str,
    uid: &str,
    mutating: bool,
    answer: &Value,
) -> Result<Verdict, String> {
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".into());
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let (patch, kind) = (text(&response["patch"]), text(&response["patchType"]));
    if version == "v1" {
        check_v1(answer, uid, mutating, !patch.is_empty())?;
    }
    let patch = match (mutating && !patch.is_empty(), version, kind.as_str()) {
        (false, ..) => None,
        (true, "v1beta1", _) | (true, _, "JSONPatch") => Some(read_patch(&patch)?),
        _ => return Err(format!("unsupported patch type {kind:?}")),
    };
    let warnings = response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let warnings = warnings.take(WARNINGS_MAX).map(|w| w.chars().take(WARNING_LEN_MAX).collect()).collect();
    let notes = response["auditAnnotations"].as_object().into_iter().flatten();
    let notes = notes.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_string()))).collect();
    let refusal = (response["allowed"] != true).then(|| refusal(hook, &response["status"]));
    Ok(Verdict { patch, warnings, notes, refusal })
}

fn check_v1(answer: &Value, uid: &str, mutating: bool, patched: bool) -> Result<(), String> {
    let response = &answer["response"];
    let given = response["uid"].as_str().unwrap_or_default();
    if given != uid {
        return Err(format!("expected response.uid={uid:?}, got {given:?}"));
    }
    let (version, kind) = (answer["apiVersion"].as_str(), answer["kind"].as_str());
    if (version, kind) != (Some("admission.k8s.io/v1"), Some("AdmissionReview")) {
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
            version.unwrap_or_default(),
            kind.unwrap_or_default()
        ));
    }
    let typed = response["patchType"].is_string();
    let why = match (mutating, patched, typed) {
        (true, true, false) => "webhook returned response.patch but not response.patchType",
        (true, false, true) => "webhook returned response.patchType but not response.patch",
        (false, true, _) => "validating webhook may not return response.patch",
        (false, false, true) => "validating webhook may not return response.patchType",
        _ => return Ok(()),
    };
    Err(why.into())
}

fn read_patch(text: &str) -> Result<Value, String> {
    let bytes = BASE64_STANDARD.decode(text).map_err(|e| format!("response.patch is no base64: {e}"))?;
    serde_json::from_slice(&bytes).map_err(|e| format!("response.patch is no JSON: {e}"))
}

/// The refusal as the caller reads it.
fn refusal(hook: &str, status: &Value) -> ApiError {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c));
    let (message, reason) = (text(&status["message"]), text(&status["reason"]));
    let denied = format!("admission webhook {hook:?} denied the request");
    let message = match (message.as_str(), reason.as_str()) {
        ("", "") => format!("{denied} without explanation"),
        ("", why) | (why, _) => format!("{denied}: {why}"),
    };
    let known = REASONS.into_iter().find(|r| *r == reason).unwrap_or_default();
    let mut error = ApiError::new(code.unwrap_or(400), known, message);
    let details = &status["details"];
    error.name = text(&details["name"]);
    error.group = text(&details["group"]);
    error.kind = text(&details["kind"]);
    error.uid = text(&details["uid"]);
    error.retry_after_seconds =
        details["retryAfterSeconds"].as_u64().and_then(|s| u32::try_from(s).ok()).unwrap_or(0);
    let cause = |c: &Value| Cause {
        reason: text(&c["reason"]),
        message: text(&c["message"]),
        field: text(&c["field"]),
    };
    error.causes = details["causes"].as_array().into_iter().flatten().map(cause).collect();
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value) -> Value {
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
    }

    #[test]
    fn refusals_are_in_upstreams_words() {
        for (status, message, code) in [
            (json!({}), "admission webhook \"h\" denied the request without explanation", 400),
            (json!({"reason": "no"}), "admission webhook \"h\" denied the request: no", 400),
            (json!({"message": "bad", "code": 403}), "admission webhook \"h\" denied the request: bad", 403),
            (json!({"message": "bad", "code": 200}), "admission webhook \"h\" denied the request: bad", 400),
        ] {
            let answer = answer(json!({"uid": "u", "allowed": false, "status": status}));
            let refusal = verdict("h", "v1", "u", false, &answer).unwrap().refusal.unwrap();
            assert_eq!((refusal.message.as_str(), refusal.code), (message, code));
        }
    }

    #[test]
    fn answers_that_are_none() {
        let patch = BASE64_STANDARD.encode("[]");
        for (response, mutating, why) in [
            (Value::Null, true, "webhook response was absent"),
            (json!({"uid": "x"}), true, "expected response.uid=\"u\", got \"x\""),
            (
                json!({"uid": "u", "patch": patch}),
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (json!({"uid": "u", "patch": patch}), false, "validating webhook may not return response.patch"),
            (json!({"uid": "u", "patch": patch, "patchType": "x"}), true, "unsupported patch type \"x\""),
        ] {
            assert_eq!(verdict("h", "v1", "u", mutating, &answer(response)).unwrap_err(), why);
        }
        let old = json!({"response": {"allowed": true, "patch": patch}});
        assert_eq!(verdict("h", "v1beta1", "u", true, &old).unwrap().patch, Some(json!([])));
    }
}
