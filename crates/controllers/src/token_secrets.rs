//! Secrets of type `kubernetes.io/service-account-token` get a token of the account they name, which is valid as
//! long as the secret is there; they go with their account.
//!
//! The token is an ordinary one, bound to the secret, with the longest life there is: the key stays with the server.

use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey, Verb, Write};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde_json::json;
use std::sync::Arc;
use tokio::task::JoinHandle;

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// The longest life that a TokenRequest may ask for.
const LIFE_SECONDS: i64 = 1 << 32;

struct Controller {
    context: Context,
    secrets: Arc<Cache>,
    accounts: Arc<Cache>,
}

/// What to do about a secret.
#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    /// Its account is gone.
    Delete,
    /// It lacks a token, or something beside it.
    Fill {
        token: bool,
    },
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let secrets = context.informers.of(&gvr::SECRETS);
    let accounts = context.informers.of(&gvr::SERVICE_ACCOUNTS);
    enqueue(&secrets, &queue, |secret| account_of(secret).map(|_| secret.key.clone()).into_iter().collect());
    let all = secrets.clone();
    enqueue(&accounts, &queue, move |account| {
        let own = all.list_in(&account.key.namespace).into_iter();
        own.filter(|s| account_of(s) == Some(&*account.key.name)).map(|s| s.key.clone()).collect()
    });
    let controller =
        Controller { context: context.clone(), secrets: secrets.clone(), accounts: accounts.clone() };
    run("token-secrets", vec![secrets, accounts], queue, 1, Arc::new(controller))
}

fn account_of(secret: &Object) -> Option<&str> {
    secret.meta().annotations.get(ACCOUNT_NAME).map(String::as_str).filter(|n| !n.is_empty())
}

fn decide(secret: &Object, account: Option<&Object>, ca_pem: &str) -> Plan {
    let Ok(view) = secret.view::<Secret>() else { return Plan::Nothing };
    if view.type_.as_deref() != Some(TYPE) || secret.meta().deletion_timestamp.is_some() {
        return Plan::Nothing;
    }
    let uid = secret.meta().annotations.get(ACCOUNT_UID).map_or("", String::as_str);
    let Some(account) = account.filter(|a| uid.is_empty() || a.uid() == uid) else { return Plan::Delete };
    let held = |key: &str| view.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.as_slice());
    let token = held("token").is_none_or(<[u8]>::is_empty);
    let rest = held("ca.crt") == Some(ca_pem.as_bytes())
        && held("namespace") == Some(secret.key.namespace.as_bytes())
        && uid == account.uid();
    if token || !rest { Plan::Fill { token } } else { Plan::Nothing }
}

impl Controller {
    async fn token(&self, secret: &Object, account: &str) -> Result<String, ApiError> {
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": LIFE_SECONDS, "boundObjectRef": {"apiVersion": "v1", "kind": "Secret",
                "name": &*secret.key.name, "uid": secret.uid()}}});
        let key = ObjectKey::new(secret.key.namespace.clone(), account);
        let write = Write { gvr: gvr::SERVICE_ACCOUNTS, key, subresource: "token", verb: Verb::Create(body) };
        let answer = self.context.client.write(write).await?.value().map_err(ApiError::internal)?;
        Ok(answer["status"]["token"].as_str().unwrap_or_default().to_string())
    }

    async fn fill(&self, secret: &Object, account: &Object, token: bool) -> Result<(), ApiError> {
        let encoded = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
        let mut data = json!({"ca.crt": encoded(&self.context.config.root_ca_pem),
            "namespace": encoded(&secret.key.namespace)});
        if token {
            data["token"] = encoded(&self.token(secret, &account.key.name).await?);
        }
        let patch = json!({"data": data, "metadata": {"uid": secret.uid(), "annotations": {ACCOUNT_UID: account.uid()}}});
        self.context.client.merge_patch(&gvr::SECRETS, &secret.key, patch).await.map(|_| ())
    }

    /// What to do, and the secret's account. The cache may not have heard yet of an account that was made right before
    /// its secret, so the server is asked before a secret goes (as upstream does).
    async fn decided(&self, secret: &Object, name: &str) -> Result<(Plan, Option<Arc<Object>>), ApiError> {
        let key = ObjectKey::new(secret.key.namespace.clone(), name);
        let with = |account: Option<Arc<Object>>| {
            (decide(secret, account.as_deref(), &self.context.config.root_ca_pem), account)
        };
        match with(self.accounts.get(&key)) {
            (Plan::Delete, _) => match self.context.client.get(&gvr::SERVICE_ACCOUNTS, &key).await {
                Err(error) if !error.is_not_found() => Err(error),
                account => Ok(with(account.ok())),
            },
            decided => Ok(decided),
        }
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(secret) = self.secrets.get(key) else { return Ok(None) };
        let Some(name) = account_of(&secret) else { return Ok(None) };
        let done = match self.decided(&secret, name).await? {
            (Plan::Delete, _) => {
                let options = DeleteOptions { uid: Some(secret.uid().into()), ..DeleteOptions::default() };
                self.context.client.delete(&gvr::SECRETS, key, options).await.map(|_| ())
            }
            (Plan::Fill { token }, Some(account)) => self.fill(&secret, &account, token).await,
            _ => Ok(()),
        };
        match done {
            // A server that issues no tokens leaves nothing to do here.
            Err(error) if error.is_not_found() || error.code == 501 => Ok(None),
            done => done.map(|()| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::Value;

    fn secret(uid: Option<&str>, data: Value) -> Arc<Object> {
        let mut annotations = json!({ACCOUNT_NAME: "a"});
        if let Some(uid) = uid {
            annotations[ACCOUNT_UID] = json!(uid);
        }
        object(
            json!({"metadata": {"name": "s", "namespace": "n", "annotations": annotations}, "type": TYPE, "data": data}),
        )
    }

    #[test]
    fn what_a_secret_lacks() {
        let account = object(json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}}));
        let of = |s: &Object, a: Option<&Object>| decide(s, a, "pem");
        let full = json!({"token": "dA==", "ca.crt": "cGVt", "namespace": "bg=="});
        assert_eq!(of(&secret(None, json!({})), Some(&account)), Plan::Fill { token: true });
        assert_eq!(of(&secret(Some("u"), full.clone()), Some(&account)), Plan::Nothing);
        assert_eq!(of(&secret(None, full.clone()), Some(&account)), Plan::Fill { token: false });
        assert_eq!(of(&secret(Some("old"), full.clone()), Some(&account)), Plan::Delete);
        assert_eq!(of(&secret(Some("u"), full), None), Plan::Delete);
        let other = object(
            json!({"metadata": {"name": "s", "namespace": "n", "annotations": {ACCOUNT_NAME: "a"}}, "type": "Opaque"}),
        );
        assert_eq!(of(&other, None), Plan::Nothing);
    }
}
