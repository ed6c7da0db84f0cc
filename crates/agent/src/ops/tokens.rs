//! Service account tokens for volumes: minted by the API server, bound to the pod, kept until they grow old.

use super::Node;
use crate::pod::PodView;
use crate::volumes::{Token, TokenNeed, token_needs};
use client::{ObjectKey, Verb, Write};
use jiff::{SignedDuration, Timestamp};
use k8s_schema::gvr::SERVICE_ACCOUNTS;
use serde_json::json;
use std::collections::BTreeMap;

/// All tokens that the pod's volumes need, or why there is none.
pub(super) async fn tokens(node: &Node, pod: &PodView) -> BTreeMap<TokenNeed, Result<Token, String>> {
    let mut all = BTreeMap::new();
    for need in token_needs(pod) {
        let token = token(node, pod, &need).await;
        all.insert(need, token);
    }
    all
}

/// One token: the last that is still young, or a new one.
pub(crate) async fn token(node: &Node, pod: &PodView, need: &TokenNeed) -> Result<Token, String> {
    let known = node.tokens.lock().get(pod.uid()).and_then(|t| t.get(need)).cloned();
    if let Some(token) = known.filter(|t| t.refresh_at > Timestamp::now()) {
        return Ok(token);
    }
    let token = mint(node, pod, need).await?;
    node.tokens.lock().entry(pod.uid().to_string()).or_default().insert(need.clone(), token.clone());
    Ok(token)
}

async fn mint(node: &Node, pod: &PodView, need: &TokenNeed) -> Result<Token, String> {
    let account = pod.service_account();
    let audiences: Vec<&str> = Some(need.audience.as_str()).filter(|a| !a.is_empty()).into_iter().collect();
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "metadata": {"name": account, "namespace": pod.namespace()},
        "spec": {"audiences": audiences, "expirationSeconds": need.seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name(), "uid": pod.uid()}},
    });
    let key = ObjectKey::new(pod.namespace(), account);
    let write = Write { gvr: SERVICE_ACCOUNTS, key, subresource: "token", verb: Verb::Create(body) };
    let answer = node.client.write(write).await.map_err(|e| e.to_string())?;
    let value = answer.value().map_err(|e| e.to_string())?;
    let text = value["status"]["token"].as_str().ok_or("the API server minted no token")?.to_string();
    let now = Timestamp::now();
    let expires =
        value["status"]["expirationTimestamp"].as_str().and_then(|t| machinery::time::parse(t).ok());
    let lasts = expires.map_or(need.seconds, |at| at.duration_since(now).as_secs());
    // Upstream's rule: at 80 % of its life.
    let refresh_at = now.saturating_add(SignedDuration::from_secs(lasts * 4 / 5)).unwrap_or(now);
    Ok(Token { text, refresh_at, expires_at: expires.unwrap_or(refresh_at) })
}
