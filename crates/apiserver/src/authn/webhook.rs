//! Tokens that another server judges: `TokenReview` posted, its answer remembered for a while.

use crate::config::TokenAuthenticator;
use crate::outbound::Endpoint;
use async_trait::async_trait;
use auth::Identity;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// How long an answer is good (upstream's `--authentication-token-webhook-cache-ttl`).
const KEPT: Duration = Duration::from_secs(120);
/// Answers kept; beyond it all are forgotten.
const KEPT_MAX: usize = 4_096;
const ASK_MAX: Duration = Duration::from_secs(10);

/// Answers by a token's hash, with their time.
type Kept = HashMap<[u8; 32], (Instant, Option<Identity>)>;

/// The server that judges.
pub struct TokenWebhook {
    endpoint: Endpoint,
    audiences: Vec<String>,
    kept: Mutex<Kept>,
}

impl TokenWebhook {
    /// Asks that endpoint about tokens for these audiences.
    pub fn new(endpoint: Endpoint, audiences: Vec<String>) -> TokenWebhook {
        TokenWebhook { endpoint, audiences, kept: Mutex::default() }
    }
}

/// Whom an answered review names.
fn read(review: &Value, audiences: &[String]) -> Option<Identity> {
    let status = &review["status"];
    if status["authenticated"] != true {
        return None;
    }
    let texts = |v: &Value| -> Vec<String> {
        v.as_array().into_iter().flatten().filter_map(|t| t.as_str().map(str::to_string)).collect()
    };
    let given = texts(&status["audiences"]);
    // A reviewer that knows audiences must have found one of ours.
    if !given.is_empty() && !audiences.is_empty() && !given.iter().any(|a| audiences.contains(a)) {
        return None;
    }
    let user = &status["user"];
    let mut groups = texts(&user["groups"]);
    if !groups.iter().any(|g| g == "system:authenticated") {
        groups.push("system:authenticated".into());
    }
    Some(Identity {
        user: user["username"].as_str().filter(|u| !u.is_empty())?.to_string(),
        uid: user["uid"].as_str().unwrap_or_default().to_string(),
        groups,
        extra: user["extra"].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), texts(v))).collect(),
    })
}

#[async_trait]
impl TokenAuthenticator for TokenWebhook {
    async fn authenticate(&self, token: &str) -> Option<Identity> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some((at, known)) = self.kept.lock().get(&key)
            && at.elapsed() < KEPT
        {
            return known.clone();
        }
        let mut spec = json!({"token": token});
        if !self.audiences.is_empty() {
            spec["audiences"] = json!(self.audiences);
        }
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "metadata": {"creationTimestamp": null}, "spec": spec});
        match self.endpoint.post(&review, ASK_MAX).await {
            Ok(answer) => {
                let identity = read(&answer, &self.audiences);
                let mut kept = self.kept.lock();
                if kept.len() >= KEPT_MAX {
                    kept.clear();
                }
                kept.insert(key, (Instant::now(), identity.clone()));
                identity
            }
            Err(error) => {
                tracing::warn!(error, "a token could not be reviewed");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_with_a_name_and_a_fitting_audience_counts() {
        let yes = |status: Value| read(&json!({"status": status}), &["us".to_string()]);
        let bob = json!({"username": "bob", "groups": ["g"], "extra": {"k": ["v"]}});
        let who = yes(json!({"authenticated": true, "user": bob})).unwrap();
        assert_eq!((who.user.as_str(), who.groups.len()), ("bob", 2));
        assert!(yes(json!({"authenticated": true, "user": bob, "audiences": ["us", "x"]})).is_some());
        assert!(yes(json!({"authenticated": true, "user": bob, "audiences": ["x"]})).is_none());
        assert!(yes(json!({"authenticated": "true", "user": bob})).is_none());
        assert!(yes(json!({"authenticated": true, "user": {"username": ""}})).is_none());
    }
}
