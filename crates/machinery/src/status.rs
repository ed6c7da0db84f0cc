//! API errors: `metav1.Status` failures with Kubernetes' codes, reasons and words.
//!
//! Every layer above the store reports failures to API callers as [`ApiError`]; the HTTP mapping
//! (headers, body) is `apiserver`'s.

use serde_json::{Value, json};

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, …
    pub reason: String,
    /// What is wrong.
    pub message: String,
    /// Dotted path of the field.
    pub field: String,
}

/// A failed API call: what becomes a `Status` object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason (`NotFound`, `Conflict`, …); "" when unknown.
    pub reason: &'static str,
    /// The sentence a user reads.
    pub message: String,
    /// `details.name`.
    pub name: String,
    /// `details.group`.
    pub group: String,
    /// `details.kind`: the plural resource, or the kind for invalid objects.
    pub kind: String,
    /// `details.uid`.
    pub uid: String,
    /// `details.causes`.
    pub causes: Vec<Cause>,
    /// `details.retryAfterSeconds`; 0 when none.
    pub retry_after_seconds: u32,
    /// `metadata.continue`: how an expired list can go on; "" when it cannot.
    pub continue_token: Box<str>,
}

impl ApiError {
    /// An error with code, reason and message and no details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        ApiError {
            code,
            reason,
            message: message.into(),
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
            continue_token: Box::default(),
        }
    }

    fn about(mut self, gr: &k8s_schema::Gvr, name: &str) -> Self {
        self.group = gr.group.to_string();
        self.kind = gr.resource.to_string();
        self.name = name.to_string();
        self
    }

    /// 404 for an object.
    pub fn not_found(gvr: &k8s_schema::Gvr, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", gvr.group_resource());
        Self::new(404, "NotFound", message).about(gvr, name)
    }

    /// 409: an object of that name is there already.
    pub fn already_exists(gvr: &k8s_schema::Gvr, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", gvr.group_resource());
        Self::new(409, "AlreadyExists", message).about(gvr, name)
    }

    /// 409: the write was made against an older object.
    pub fn conflict(gvr: &k8s_schema::Gvr, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", gvr.group_resource());
        Self::new(409, "Conflict", message).about(gvr, name)
    }

    /// The words of a stale resourceVersion.
    pub const MODIFIED: &'static str =
        "the object has been modified; please apply your changes to the latest version and try again";

    /// 403 with the reason given by the authorizer or admission.
    pub fn forbidden(gvr: &k8s_schema::Gvr, name: &str, why: &str) -> Self {
        let what = gvr.group_resource();
        let message = if name.is_empty() {
            format!("{what} is forbidden: {why}")
        } else {
            format!("{what} \"{name}\" is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).about(gvr, name)
    }

    /// 422 with causes; `kind` is the object's kind.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let list: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let text = match list.len() {
            1 => list[0].clone(),
            _ => format!("[{}]", list.join(", ")),
        };
        let what = if group.is_empty() { kind.to_string() } else { format!("{kind}.{group}") };
        let mut error = Self::new(422, "Invalid", format!("{what} \"{name}\" is invalid: {text}"));
        error.group = group.to_string();
        error.kind = kind.to_string();
        error.name = name.to_string();
        error.causes = causes;
        error
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 410: the resourceVersion or continue token is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// Is this "not found"?
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// Is this a lost compare-and-swap (not an "already exists")?
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    /// Is this "already exists"?
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    /// The `Status` object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.continue_token.is_empty() {
            status["metadata"]["continue"] = json!(self.continue_token);
        }
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        let mut details = serde_json::Map::new();
        for (key, text) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !text.is_empty() {
                details.insert(key.into(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            let causes = self
                .causes
                .iter()
                .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}));
            details.insert("causes".into(), causes.collect());
        }
        if self.retry_after_seconds > 0 {
            details.insert("retryAfterSeconds".into(), json!(self.retry_after_seconds));
        }
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }
}
