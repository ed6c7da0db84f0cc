//! Access that another server judges: `SubjectAccessReview` posted where roles and nodes say nothing.
//!
//! A refusal by name (`denied`) and silence both end in a refusal here, for it is asked last; a server that cannot
//! be reached says nothing. Answers are remembered as long as upstream does.

use crate::authz::{Attributes, Decision};
use crate::outbound::Endpoint;
use auth::Identity;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long a yes and a no are good (upstream's defaults).
const YES_KEPT: Duration = Duration::from_secs(300);
const NO_KEPT: Duration = Duration::from_secs(30);
/// Answers kept; beyond it all are forgotten.
const KEPT_MAX: usize = 8_192;
/// Questions longer than this are not remembered (upstream: 10,000 characters).
const QUESTION_MAX: usize = 10_000;
const ASK_MAX: Duration = Duration::from_secs(10);

/// The server that judges.
pub struct AccessWebhook {
    endpoint: Endpoint,
    kept: Mutex<HashMap<String, (Instant, Decision)>>,
}

/// What is asked.
fn spec(identity: &Identity, a: &Attributes) -> Value {
    let mut spec = json!({"user": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        spec["uid"] = json!(identity.uid);
    }
    if !identity.extra.is_empty() {
        spec["extra"] = json!(identity.extra);
    }
    if !a.is_resource() {
        spec["nonResourceAttributes"] = json!({"path": a.path, "verb": a.verb});
        return spec;
    }
    let mut resource = json!({});
    for (field, text) in [
        ("namespace", &a.namespace),
        ("verb", &a.verb),
        ("group", &a.group),
        ("version", &a.version),
        ("resource", &a.resource),
        ("subresource", &a.subresource),
        ("name", &a.name),
    ] {
        if !text.is_empty() {
            resource[field] = json!(text);
        }
    }
    if !a.field_selector.is_empty() {
        resource["fieldSelector"] = json!({"rawSelector": a.field_selector});
    }
    spec["resourceAttributes"] = resource;
    spec
}

fn read(review: &Value) -> Decision {
    let status = &review["status"];
    let reason = status["reason"].as_str().unwrap_or_default().to_string();
    if status["allowed"] == true && status["denied"] != true {
        Decision::Allow
    } else {
        Decision::Deny(reason)
    }
}

impl AccessWebhook {
    /// Asks that endpoint.
    pub fn new(endpoint: Endpoint) -> AccessWebhook {
        AccessWebhook { endpoint, kept: Mutex::default() }
    }

    /// Its judgment.
    pub async fn judge(&self, identity: &Identity, attributes: &Attributes) -> Decision {
        let spec = spec(identity, attributes);
        let question = spec.to_string();
        if let Some((until, known)) = self.kept.lock().get(&question)
            && Instant::now() < *until
        {
            return known.clone();
        }
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "metadata": {"creationTimestamp": null}, "spec": spec});
        match self.endpoint.post(&review, ASK_MAX).await {
            Ok(answer) => {
                let decision = read(&answer);
                let life = if decision == Decision::Allow { YES_KEPT } else { NO_KEPT };
                if question.len() <= QUESTION_MAX {
                    let mut kept = self.kept.lock();
                    if kept.len() >= KEPT_MAX {
                        kept.clear();
                    }
                    kept.insert(question, (Instant::now() + life, decision.clone()));
                }
                decision
            }
            Err(error) => {
                tracing::warn!(error, "access could not be reviewed");
                Decision::Deny(String::new())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers() {
        let path = Attributes { verb: "get".into(), path: "/x".into(), ..Attributes::default() };
        let asked = spec(&Identity::new("bob", ["g"]), &path);
        assert_eq!(asked["nonResourceAttributes"], json!({"path": "/x", "verb": "get"}));
        let pods = Attributes { verb: "get".into(), resource: "pods".into(), ..Attributes::default() };
        assert_eq!(
            spec(&Identity::default(), &pods)["resourceAttributes"],
            json!({"verb": "get", "resource": "pods"})
        );
        assert_eq!(read(&json!({"status": {"allowed": true}})), Decision::Allow);
        assert_eq!(
            read(&json!({"status": {"allowed": true, "denied": true}})),
            Decision::Deny(String::new())
        );
        assert_eq!(read(&json!({"status": {"allowed": false, "reason": "no"}})), Decision::Deny("no".into()));
        assert_eq!(read(&Value::Null), Decision::Deny(String::new()));
    }
}
