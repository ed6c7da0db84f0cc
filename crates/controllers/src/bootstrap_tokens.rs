//! Bootstrap tokens (Secrets in `kube-system`): those whose time is over go, and the public `cluster-info` carries a
//! signature by each that may sign, so that who holds one can tell the real `cluster-info` from another.
//!
//! Decisions ([`ends_in`], [`signatures`]) are pure. Deliberately not here: who may join (`apiserver`), making tokens.

use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";
/// Namespace and name of what is signed, and the field in it.
const INFO: (&str, &str, &str) = ("kube-public", "cluster-info", "kubeconfig");
/// Before a token's id: the field that holds its signature.
const SIGNATURE: &str = "jws-kubeconfig-";

struct Controller {
    context: Context,
    secrets: Arc<Cache>,
    config_maps: Arc<Cache>,
}

/// Starts it. A key is a token's Secret, or the ConfigMap.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let (secrets, config_maps) =
        (context.informers.of(&gvr::SECRETS), context.informers.of(&gvr::CONFIG_MAPS));
    enqueue(&secrets, &queue, |secret| {
        if &*secret.key.namespace != NAMESPACE || !secret.key.name.starts_with(NAME_PREFIX) {
            return Vec::new();
        }
        vec![secret.key.clone(), ObjectKey::new(INFO.0, INFO.1)]
    });
    enqueue(&config_maps, &queue, |map| {
        let ours = (&*map.key.namespace, &*map.key.name) == (INFO.0, INFO.1);
        ours.then(|| map.key.clone()).into_iter().collect()
    });
    let caches = vec![secrets.clone(), config_maps.clone()];
    run(
        "bootstrap-tokens",
        caches,
        queue,
        1,
        Arc::new(Controller { context: context.clone(), secrets, config_maps }),
    )
}

/// A field of a token's Secret, "" when it is not there.
fn field(secret: &Secret, name: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|d| d.get(name)).map(|b| b.0.clone()).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

/// The token of a Secret, when it is one.
fn token(object: &Object) -> Option<Arc<Secret>> {
    let secret = object.view::<Secret>().ok()?;
    let named = *object.key.name == *format!("{NAME_PREFIX}{}", field(&secret, "token-id"));
    (secret.type_.as_deref() == Some(TYPE) && named).then_some(secret)
}

/// How long until a token's time is over, zero when it is; `None`: never. A time that nobody can read is over.
fn ends_in(secret: &Secret, now: Timestamp) -> Option<Duration> {
    let text = field(secret, "expiration");
    if text.is_empty() {
        return None;
    }
    Some(machinery::time::parse(&text).map_or(Duration::ZERO, |end| machinery::time::since(end, now)))
}

/// The signatures of `content`, by their fields.
fn signatures<'a>(
    content: &str,
    tokens: impl Iterator<Item = &'a Secret>,
    now: Timestamp,
) -> BTreeMap<String, String> {
    let may_sign = |t: &&Secret| {
        let well_formed = !field(t, "token-id").is_empty() && !field(t, "token-secret").is_empty();
        let lives = ends_in(t, now).is_none_or(|left| !left.is_zero());
        well_formed && lives && field(t, "usage-bootstrap-signing") == "true"
    };
    let sign = |t: &Secret| {
        let (id, secret) = (field(t, "token-id"), field(t, "token-secret"));
        let signature = auth::tokens::bootstrap_signature(content, &id, &secret);
        (format!("{SIGNATURE}{id}"), signature)
    };
    tokens.filter(may_sign).map(sign).collect()
}

impl Controller {
    async fn sign(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.config_maps.get(key) else { return Ok(None) };
        let Ok(map) = object.view::<ConfigMap>() else { return Ok(None) };
        let data = map.data.clone().unwrap_or_default();
        let Some(content) = data.get(INFO.2) else { return Ok(None) };
        let tokens: Vec<Arc<Secret>> =
            self.secrets.list_in(NAMESPACE).iter().filter_map(|s| token(s)).collect();
        let wanted = signatures(content, tokens.iter().map(|t| &**t), self.context.now());
        let present: BTreeMap<String, String> =
            data.into_iter().filter(|(name, _)| name.starts_with(SIGNATURE)).collect();
        if present == wanted {
            return Ok(None);
        }
        let gone = present.keys().filter(|k| !wanted.contains_key(*k)).map(|k| (k.clone(), Value::Null));
        let data: serde_json::Map<String, Value> =
            gone.chain(wanted.iter().map(|(k, v)| (k.clone(), json!(v)))).collect();
        let patch = json!({"metadata": {"resourceVersion": object.revision.to_string()}, "data": data});
        let written = self.context.client.merge_patch(&gvr::CONFIG_MAPS, key, patch).await?;
        self.config_maps.observe(written);
        Ok(None)
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        if &*key.namespace == INFO.0 {
            return self.sign(key).await;
        }
        let Some(object) = self.secrets.get(key) else { return Ok(None) };
        let Some(secret) = token(&object) else { return Ok(None) };
        match ends_in(&secret, self.context.now()) {
            Some(Duration::ZERO) => {
                let options = DeleteOptions { uid: Some(object.uid().into()), ..DeleteOptions::default() };
                match self.context.client.delete(&gvr::SECRETS, key, options).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
                    _ => Ok(None),
                }
            }
            left => Ok(left),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, object, stamp};
    use k8s_openapi::ByteString;

    fn secret(id: &str, change: Value) -> Arc<Secret> {
        let mut fields =
            json!({"token-id": id, "token-secret": "tsecret", "usage-bootstrap-signing": "true"});
        machinery::patch::merge(&mut fields, &change);
        let data: serde_json::Map<String, Value> = fields
            .as_object()
            .unwrap()
            .iter()
            .map(|(k, v)| (k.clone(), json!(ByteString(v.as_str().unwrap().as_bytes().to_vec()))))
            .collect();
        let body = json!({"metadata": {"name": format!("{NAME_PREFIX}{id}"), "namespace": NAMESPACE},
            "type": TYPE, "data": data});
        token(&object(body)).unwrap()
    }

    #[test]
    fn tokens_end() {
        let with = |end: &str| ends_in(&secret("a", json!({"expiration": end})), at(10));
        assert_eq!(with(""), None);
        assert_eq!(with(&stamp(70)), Some(Duration::from_secs(60)));
        assert_eq!(with(&stamp(10)), Some(Duration::ZERO));
        assert_eq!(with("soon"), Some(Duration::ZERO));
    }

    #[test]
    fn those_that_may_sign_do() {
        let all = [
            secret("a", json!({})),
            secret("b", json!({"usage-bootstrap-signing": "false"})),
            secret("c", json!({"expiration": stamp(5)})),
        ];
        let signed = signatures("content", all.iter().map(|s| &**s), at(10));
        assert_eq!(signed.keys().collect::<Vec<_>>(), ["jws-kubeconfig-a"]);
        let (header, tag) = signed["jws-kubeconfig-a"].split_once("..").unwrap();
        assert_eq!(header, "eyJhbGciOiJIUzI1NiIsImtpZCI6ImEifQ", "as kubeadm's library writes it");
        // Computed with Python's hmac over header.base64url("content") with the key "tsecret".
        assert_eq!(tag, "wuMqslo5E9bRTi0CN6-A6ehPkPVyzNhyVBNl-BN_iSg");
    }
}
