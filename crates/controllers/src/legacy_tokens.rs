//! Old service-account tokens (Secrets that an account names among its own): since when their use is tracked, and the
//! end of those that nobody uses.
//!
//! Upstream's rules: a token that was not used for [`UNUSED`] and that no pod mounts is marked invalid first, and goes
//! when nobody took the mark away for as long again. The API server notes uses (a label with the day) and refuses marked
//! tokens. Decisions ([`fate`]) are pure. Deliberately not here: tokens in Secrets that people made (no account names
//! them).

use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey};
use jiff::Timestamp;
use jiff::civil::Date;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::text;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

const NAMESPACE: &str = "kube-system";
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";
const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// How long a token must not have been used (upstream's `--legacy-service-account-token-clean-up-period`).
const UNUSED: jiff::SignedDuration = jiff::SignedDuration::from_hours(24 * 365);
/// Between two looks at all tokens.
const LOOK_AGAIN: Duration = Duration::from_secs(24 * 3_600);

/// What becomes of an old token.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    /// It is marked from this day.
    Marked(String),
    Goes,
}

/// The day of a time.
fn day(at: Timestamp) -> Date {
    at.to_zoned(jiff::tz::TimeZone::UTC).date()
}

fn date(text: &str) -> Option<Date> {
    // Shorter and longer forms are none here.
    text.parse().ok().filter(|_| text.len() == 10)
}

/// What becomes of a token that an account names and no pod mounts; uses are known since `tracked`.
fn fate(secret: &Object, tracked: Date, now: Timestamp) -> Fate {
    let before = now - UNUSED;
    let (limit, meta) = (day(before), secret.meta());
    let made = meta.creation_timestamp.as_deref().and_then(|t| machinery::time::parse(t).ok());
    let label = |name: &str| meta.labels.get(name).map(String::as_str);
    let used = label(LAST_USED).map(date);
    let recent = made.is_none_or(|made| made >= before) || tracked >= limit;
    if recent || meta.deletion_timestamp.is_some() || used.is_some_and(|d| d.is_none_or(|d| d >= limit)) {
        return Fate::Stays;
    }
    match label(INVALID_SINCE).and_then(date) {
        None => Fate::Marked(day(now).to_string()),
        Some(since) if since >= limit => Fate::Stays,
        Some(_) => Fate::Goes,
    }
}

/// Does the pod mount or read this Secret?
fn uses(pod: &Object, secret: &str) -> bool {
    // Whatever field it is in: a name that stands nowhere is not used.
    let Ok(spec) = pod.view::<Pod>() else { return true };
    let spec = serde_json::to_value(&spec.spec).unwrap_or_default();
    fn names(value: &serde_json::Value, secret: &str) -> bool {
        match value {
            serde_json::Value::String(own) => own == secret,
            serde_json::Value::Array(all) => all.iter().any(|v| names(v, secret)),
            serde_json::Value::Object(all) => all.values().any(|v| names(v, secret)),
            _ => false,
        }
    }
    names(&spec, secret)
}

struct Controller {
    context: Context,
    maps: Arc<Cache>,
    secrets: Arc<Cache>,
    accounts: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Starts it. The one key is the ConfigMap's.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let of = |gvr: Gvr| context.informers.of(&gvr);
    let (maps, secrets) = (of(gvr::CONFIG_MAPS), of(gvr::SECRETS));
    let (accounts, pods) = (of(gvr::SERVICE_ACCOUNTS), of(gvr::PODS));
    let own = ObjectKey::new(NAMESPACE, TRACKING);
    queue.add(own.clone());
    enqueue(&maps, &queue, move |map| if map.key == own { vec![own.clone()] } else { Vec::new() });
    let caches = vec![maps.clone(), secrets.clone(), accounts.clone(), pods.clone()];
    let controller = Controller { context: context.clone(), maps, secrets, accounts, pods };
    run("legacy-service-account-token-cleaner", caches, queue, 1, Arc::new(controller))
}

impl Controller {
    /// Since when uses are noted; begins with it where that is not known.
    async fn tracked(&self, key: &ObjectKey) -> Result<Date, machinery::status::ApiError> {
        let present = self.maps.get(key).and_then(|map| map.value().ok());
        let since = present.as_ref().and_then(|map| date(text(map, "/data/since")));
        if let Some(since) = since {
            return Ok(since);
        }
        let today = day(self.context.now());
        let data = json!({"since": today.to_string()});
        let client = &self.context.client;
        let written = match present {
            Some(_) => client.merge_patch(&gvr::CONFIG_MAPS, key, json!({"data": data})).await,
            None => {
                let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
                    "metadata": {"name": TRACKING, "namespace": NAMESPACE}});
                client.create(&gvr::CONFIG_MAPS, body).await
            }
        };
        match written {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(today),
        }
    }

    /// Does the account that a token names know of it?
    fn is_own(&self, secret: &Object) -> bool {
        let Some(name) = secret.meta().annotations.get(ACCOUNT_NAME) else { return false };
        let account = self
            .accounts
            .view::<ServiceAccount>(&ObjectKey::new(secret.key.namespace.clone(), name.as_str()));
        let named = account.as_ref().and_then(|a| a.secrets.as_ref());
        named.is_some_and(|all| all.iter().any(|s| s.name.as_deref() == Some(&*secret.key.name)))
    }

    async fn settle(&self, secret: &Object, fate: Fate) -> Outcome {
        let (client, key) = (&self.context.client, &secret.key);
        let done = match fate {
            Fate::Stays => return Ok(None),
            Fate::Marked(since) => {
                let patch = json!({"metadata": {"uid": secret.uid(), "labels": {INVALID_SINCE: since}}});
                client.merge_patch(&gvr::SECRETS, key, patch).await
            }
            Fate::Goes => {
                let resource_version = Some(secret.revision.to_string());
                let options = DeleteOptions { resource_version, ..DeleteOptions::default() };
                client.delete(&gvr::SECRETS, key, options).await
            }
        };
        match done {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let tracked = self.tracked(key).await?;
        for secret in self.secrets.list() {
            if !self.is_own(&secret) || text(&secret.value().unwrap_or_default(), "/type") != TYPE {
                continue;
            }
            let fate = fate(&secret, tracked, self.context.now());
            let used = || self.pods.list_in(&secret.key.namespace).iter().any(|p| uses(p, &secret.key.name));
            if fate != Fate::Stays && !used() {
                self.settle(&secret, fate).await?;
            }
        }
        Ok(Some(LOOK_AGAIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    #[test]
    fn what_nobody_uses_is_marked_and_goes_a_year_later() {
        let now: Timestamp = "2028-06-01T00:00:00Z".parse().unwrap();
        let tracked = date("2026-01-01").unwrap();
        let token = |labels: serde_json::Value| {
            object(
                json!({"metadata": {"name": "t", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels}}),
            )
        };
        let fate_of = |labels| fate(&token(labels), tracked, now);
        assert_eq!(fate_of(json!({})), Fate::Marked("2028-06-01".into()));
        assert_eq!(fate_of(json!({LAST_USED: "2028-01-01"})), Fate::Stays);
        assert_eq!(fate_of(json!({LAST_USED: "2027-01-01"})), Fate::Marked("2028-06-01".into()));
        assert_eq!(fate_of(json!({LAST_USED: "yesterday"})), Fate::Stays, "nobody can tell");
        assert_eq!(fate_of(json!({INVALID_SINCE: "2028-01-01"})), Fate::Stays);
        assert_eq!(fate_of(json!({INVALID_SINCE: "2027-01-01"})), Fate::Goes);
        assert_eq!(
            fate(&token(json!({})), date("2028-01-01").unwrap(), now),
            Fate::Stays,
            "not tracked for long"
        );
    }

    #[test]
    fn pods_keep_what_they_name() {
        let pod = object(json!({"metadata": {"name": "p"}, "spec": {"containers": [],
            "volumes": [{"name": "v", "secret": {"secretName": "t"}}]}}));
        assert!(uses(&pod, "t") && !uses(&pod, "u"));
    }
}
