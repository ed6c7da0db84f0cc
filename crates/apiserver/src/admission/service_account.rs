//! ServiceAccount: pods run as an account that exists, `default` unless they say another, with its pull secrets and,
//! unless pod or account decline, a volume with its token in every container.
//!
//! Where the server issues no tokens (`ApiConfig::service_tokens`) pods only get the account's name.

use super::Attempt;
use crate::Api;
use crate::tokens::VOLUME_LIFE_SECONDS;
use crate::verbs::Call;
use client::Object;
use k8s_schema::gvr;
use machinery::kinds::get::{list, text};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

const DEFAULT: &str = "default";
/// Where programs look for their token.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Marks accounts whose pods name no secrets but theirs.
const ENFORCED: &str = "kubernetes.io/enforce-mountable-secrets";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// How long a pod waits for the `default` account of a namespace that was made a moment ago (upstream: 1 to 2 s).
const WAIT_MAX: Duration = Duration::from_secs(5);

fn account_name(pod: &Value) -> &str {
    pod["spec"]["serviceAccountName"].as_str().filter(|n| !n.is_empty()).unwrap_or(DEFAULT)
}

/// Waits a moment when the pod's account is the one that every namespace is about to have.
pub async fn settle(api: &Api, call: &Call, pod: &Value) {
    let concerned =
        api.config.service_tokens.is_some() && call.resource.is("", "pods") && call.subresource.is_empty();
    let namespace = &*call.key.namespace;
    if !concerned || account_name(pod) != DEFAULT || api.cached(&gvr::NAMESPACES, "", namespace).is_none() {
        return;
    }
    let there = || api.cached(&gvr::SERVICE_ACCOUNTS, namespace, DEFAULT).is_some();
    let _ = tokio::time::timeout(WAIT_MAX, api.storage.cache.wait_until(there)).await;
}

pub(super) fn admit(attempt: &Attempt<'_>, pod: &mut Value) -> Result<(), ApiError> {
    if !attempt.creates_pod() || !pod["spec"].is_object() {
        return Ok(());
    }
    let refused = |why: String| Err(ApiError::forbidden(&gvr::PODS, &attempt.key.name, &why));
    if pod["metadata"]["annotations"][MIRROR].is_string() {
        return lone(pod).or_else(|why| refused(why.into()));
    }
    let name = account_name(pod).to_string();
    pod["spec"]["serviceAccountName"] = json!(name);
    // The old name of the field follows the new one.
    pod["spec"]["serviceAccount"] = json!(name);
    if attempt.api.config.service_tokens.is_none() {
        return Ok(());
    }
    let namespace = &*attempt.key.namespace;
    let Some(account) = attempt.api.cached(&gvr::SERVICE_ACCOUNTS, namespace, &name) else {
        let why =
            format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        return Err(ApiError::forbidden(&gvr::PODS, &attempt.key.name, &why));
    };
    if account.meta().annotations.get(ENFORCED).is_some_and(|v| v == "true") {
        let account = account.value().map_err(ApiError::internal)?;
        if let Some(why) = foreign_secret(pod, &account) {
            return refused(why);
        }
    }
    apply(pod, &account, (attempt.api.config.random)())
}

/// A mirror of what a node runs by itself speaks for nobody.
fn lone(pod: &Value) -> Result<(), &'static str> {
    let projected = list(pod, "/spec/volumes").iter().flat_map(|v| list(v, "/projected/sources"));
    if !text(pod, "/spec/serviceAccountName").is_empty() {
        return Err("a mirror pod may not reference service accounts");
    }
    if secrets(pod).next().is_some() || !list(pod, "/spec/imagePullSecrets").is_empty() {
        return Err("a mirror pod may not reference secrets");
    }
    if projected.into_iter().any(|source| source["serviceAccountToken"].is_object()) {
        return Err("a mirror pod may not use ServiceAccountToken volume projections");
    }
    Ok(())
}

/// The secrets that a pod's volumes and containers name, with where.
fn secrets(pod: &Value) -> impl Iterator<Item = (String, &str)> {
    let volumes = list(pod, "/spec/volumes").iter().filter_map(|volume| {
        let name = volume["secret"]["secretName"].as_str()?;
        Some((format!("volume with secret.secretName={name:?}"), name))
    });
    let kinds = [
        ("init container", "initContainers"),
        ("container", "containers"),
        ("ephemeral container", "ephemeralContainers"),
    ];
    let containers = kinds.into_iter().flat_map(move |(word, kind)| {
        list(pod, &format!("/spec/{kind}")).iter().flat_map(move |container| {
            let own = text(container, "/name");
            let single = list(container, "/env").iter().filter_map(move |env| {
                let name = env.pointer("/valueFrom/secretKeyRef/name")?.as_str()?;
                let at = text(env, "/name");
                Some((format!("{word} {own} with envVar {at} referencing secret.secretName={name:?}"), name))
            });
            let whole = list(container, "/envFrom").iter().filter_map(move |from| {
                let name = from.pointer("/secretRef/name")?.as_str()?;
                Some((format!("{word} {own} with envFrom referencing secret.secretName={name:?}"), name))
            });
            single.chain(whole)
        })
    });
    volumes.chain(containers)
}

/// What a pod names that its account, which is strict, does not.
fn foreign_secret(pod: &Value, account: &Value) -> Option<String> {
    let named = |field: &str, name: &str| list(account, field).iter().any(|s| s["name"] == name);
    let who = text(account, "/metadata/name");
    let secret = secrets(pod).find(|(_, name)| !named("/secrets", name));
    let secret = secret.map(|(place, _)| {
        format!("{place} is not allowed because service account {who} does not reference that secret")
    });
    let pulls = list(pod, "/spec/imagePullSecrets").iter().enumerate();
    let mut foreign = pulls.filter(|(_, s)| !named("/imagePullSecrets", text(s, "/name")));
    secret.or_else(|| {
        let (i, pull) = foreign.next()?;
        let name = text(pull, "/name");
        Some(format!(
            "imagePullSecrets[{i}].name={name:?} is not allowed because service account {who} does not reference that imagePullSecret"
        ))
    })
}

fn apply(pod: &mut Value, account: &Arc<Object>, random: u128) -> Result<(), ApiError> {
    let account = account.value().map_err(ApiError::internal)?;
    let wanted = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or(account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if wanted {
        mount_token(&mut pod["spec"], random);
    }
    let own = pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty);
    if own && account["imagePullSecrets"].as_array().is_some_and(|l| !l.is_empty()) {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

/// Mounts the token in every container that has nothing at its place; adds the volume when one does.
fn mount_token(spec: &mut Value, random: u128) {
    let volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    let taken = |name: &str| volumes.iter().any(|v| v["name"] == name);
    // A pod that is looked at again, because a webhook changed it, has its volume already.
    let own = volumes.iter().filter_map(|v| v["name"].as_str()).find(|n| n.starts_with(VOLUME_PREFIX));
    let mut drawn =
        (0..u128::MAX).map(|n| crate::verbs::create::generated_name(VOLUME_PREFIX, random.wrapping_add(n)));
    let drawn = own.map(str::to_string).or_else(|| drawn.find(|n| !taken(n)));
    let Some(name) = drawn else { return };
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in
            spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten().filter(|c| c.is_object())
        {
            let mut mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            if mounts.iter().any(|m| m["mountPath"] == MOUNT_PATH) {
                continue;
            }
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            container["volumeMounts"] = Value::Array(mounts);
            mounted = true;
        }
    }
    if mounted && own.is_none() {
        let mut volumes = volumes;
        volumes.push(volume(&name));
        spec["volumes"] = Value::Array(volumes);
    }
}

fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": VOLUME_LIFE_SECONDS}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace",
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(mut pod: Value, mut account: Value) -> Value {
        account["metadata"] = json!({"name": "a", "namespace": "n"});
        let account = Arc::new(Object::parse(account.to_string().into()).unwrap());
        apply(&mut pod, &account, 7).unwrap();
        pod["spec"].clone()
    }

    #[test]
    fn every_container_gets_the_token_once() {
        let own = json!({"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]});
        let pod = json!({"spec": {"containers": [{"name": "a"}, own], "initContainers": [{"name": "i"}]}});
        let spec = applied(pod, json!({"imagePullSecrets": [{"name": "p"}]}));
        let name = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(name.starts_with("kube-api-access-") && name.len() == "kube-api-access-".len() + 5);
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], name);
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(spec["initContainers"][0]["volumeMounts"][0]["readOnly"], true);
        assert_eq!(spec["imagePullSecrets"][0]["name"], "p");
    }

    #[test]
    fn strict_accounts_and_mirrors_name_no_secrets_of_others() {
        let account = json!({"metadata": {"name": "a"}, "secrets": [{"name": "mine"}], "imagePullSecrets": [{"name": "pull"}]});
        let env =
            |name: &str| json!([{"name": "E", "valueFrom": {"secretKeyRef": {"name": name, "key": "k"}}}]);
        let not = "is not allowed because service account a does not reference that";
        for (spec, why) in [
            (
                json!({"volumes": [{"name": "v", "secret": {"secretName": "mine"}}], "imagePullSecrets": [{"name": "pull"}]}),
                None,
            ),
            (
                json!({"volumes": [{"name": "v", "secret": {"secretName": "x"}}]}),
                Some(format!("volume with secret.secretName=\"x\" {not} secret")),
            ),
            (
                json!({"containers": [{"name": "c", "env": env("x")}]}),
                Some(format!("container c with envVar E referencing secret.secretName=\"x\" {not} secret")),
            ),
            (
                json!({"imagePullSecrets": [{"name": "x"}]}),
                Some(format!("imagePullSecrets[0].name=\"x\" {not} imagePullSecret")),
            ),
        ] {
            let pod = json!({"spec": spec});
            assert_eq!(foreign_secret(&pod, &account), why);
            assert_eq!(lone(&pod), Err("a mirror pod may not reference secrets"));
        }
        assert_eq!(lone(&json!({"spec": {"containers": [{"name": "c"}]}})), Ok(()));
    }

    #[test]
    fn pods_and_accounts_can_decline() {
        let pod = |wish: Value| json!({"spec": {"automountServiceAccountToken": wish, "containers": [{"name": "a"}]}});
        let account = |wish: Value| json!({"automountServiceAccountToken": wish});
        for (pod_says, account_says, mounts) in [
            (Value::Null, Value::Null, true),
            (json!(false), json!(true), false),
            (Value::Null, json!(false), false),
            (json!(true), json!(false), true),
        ] {
            let spec = applied(pod(pod_says), account(account_says));
            assert_eq!(spec["volumes"].is_array(), mounts);
        }
    }
}
