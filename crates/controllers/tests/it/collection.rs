//! Garbage collection, the end of namespaces and of token Secrets.

use crate::harness::{cluster, cluster_through, key, owned_by};
use client::{
    ApiClient, Client, EventStream, ListOptions, Object, ObjectKey, ObjectList, Propagation, WatchOptions,
    Write,
};
use k8s_schema::{Gates, Gvr, gvr};
use machinery::status::ApiError;
use serde_json::json;
use std::sync::Arc;

#[tokio::test]
async fn dependents_follow_their_owner_down_to_the_leaves() {
    let c = cluster().await;
    let root = c.map("root", vec![]).await;
    let branch = c.map("branch", vec![owned_by("v1", "ConfigMap", &root)]).await;
    c.map("leaf", vec![owned_by("v1", "ConfigMap", &branch)]).await;
    let other = c.map("other", vec![]).await;
    let shared = vec![owned_by("v1", "ConfigMap", &root), owned_by("v1", "ConfigMap", &other)];
    c.map("shared", shared).await;
    c.delete(&gvr::CONFIG_MAPS, &key("root"), None).await.unwrap();
    c.until_gone(&gvr::CONFIG_MAPS, &key("branch")).await;
    c.until_gone(&gvr::CONFIG_MAPS, &key("leaf")).await;
    let one =
        |v: &serde_json::Value| v["metadata"]["ownerReferences"].as_array().is_some_and(|o| o.len() == 1);
    let shared = c.until_object(&gvr::CONFIG_MAPS, &key("shared"), one).await;
    assert_eq!(shared["metadata"]["ownerReferences"][0]["name"], "other");
}

#[tokio::test]
async fn a_dependent_made_too_late_goes_too_and_one_of_an_unknown_kind_stays() {
    let c = cluster().await;
    let root = c.map("root", vec![]).await;
    c.delete(&gvr::CONFIG_MAPS, &key("root"), None).await.unwrap();
    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "name": "w", "uid": "u"});
    c.map("kept", vec![widget]).await;
    // Recreated under the same name, it is another object.
    c.map("root", vec![]).await;
    c.map("late", vec![owned_by("v1", "ConfigMap", &root)]).await;
    c.until_gone(&gvr::CONFIG_MAPS, &key("late")).await;
    assert!(c.client.get(&gvr::CONFIG_MAPS, &key("kept")).await.is_ok());
    assert!(c.client.get(&gvr::CONFIG_MAPS, &key("root")).await.is_ok());
}

#[tokio::test]
async fn a_foreground_deletion_ends_with_the_owner() {
    let c = cluster().await;
    let root = c.map("root", vec![]).await;
    let branch = c.map("branch", vec![owned_by("v1", "ConfigMap", &root)]).await;
    let held = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "leaf",
        "namespace": "default", "finalizers": ["example.com/hold"],
        "ownerReferences": [owned_by("v1", "ConfigMap", &branch)]}});
    c.create(&gvr::CONFIG_MAPS, held).await;
    c.delete(&gvr::CONFIG_MAPS, &key("root"), Some(Propagation::Foreground)).await.unwrap();
    let going = |v: &serde_json::Value| v["metadata"]["deletionTimestamp"].is_string();
    c.until_object(&gvr::CONFIG_MAPS, &key("leaf"), going).await;
    for waiting in ["root", "branch"] {
        let value = c.until_object(&gvr::CONFIG_MAPS, &key(waiting), going).await;
        assert_eq!(value["metadata"]["finalizers"], json!(["foregroundDeletion"]), "{waiting}");
    }
    let patch = json!({"metadata": {"finalizers": []}});
    c.client.merge_patch(&gvr::CONFIG_MAPS, &key("leaf"), patch).await.unwrap();
    c.until_gone(&gvr::CONFIG_MAPS, &key("root")).await;
    c.until_gone(&gvr::CONFIG_MAPS, &key("branch")).await;
}

#[tokio::test]
async fn orphans_are_let_go() {
    let c = cluster().await;
    let root = c.map("root", vec![]).await;
    c.map("child", vec![owned_by("v1", "ConfigMap", &root)]).await;
    c.delete(&gvr::CONFIG_MAPS, &key("root"), Some(Propagation::Orphan)).await.unwrap();
    c.until_gone(&gvr::CONFIG_MAPS, &key("root")).await;
    let child = c.client.get(&gvr::CONFIG_MAPS, &key("child")).await.unwrap();
    assert!(child.meta().owner_references.is_empty());
}

#[tokio::test]
async fn a_namespace_is_emptied_pods_first_and_goes() {
    let c = cluster().await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    c.create(&gvr::NAMESPACES, space).await;
    c.until_object(&gvr::SERVICE_ACCOUNTS, &ObjectKey::new("shop", "default"), |_| true).await;
    let meta = |name: &str| json!({"name": name, "namespace": "shop", "finalizers": ["example.com/hold"]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta("p"),
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    c.create(&gvr::PODS, pod).await;
    c.create(&gvr::SECRETS, json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta("s")})).await;
    let (shop, pod, secret) =
        (ObjectKey::cluster("shop"), ObjectKey::new("shop", "p"), ObjectKey::new("shop", "s"));
    c.delete(&gvr::NAMESPACES, &shop, None).await.unwrap();
    let remaining = |v: &serde_json::Value, what: &str| {
        let conditions = v["status"]["conditions"].as_array();
        conditions
            .is_some_and(|all| all.iter().any(|c| c["message"].as_str().is_some_and(|m| m.contains(what))))
    };
    let told =
        c.until_object(&gvr::NAMESPACES, &shop, |v| remaining(v, "pods. has 1 resource instances")).await;
    assert!(remaining(&told, "example.com/hold in 1 resource instances"));
    assert!(c.client.get(&gvr::SECRETS, &secret).await.unwrap().meta().deletion_timestamp.is_none());
    let release = json!({"metadata": {"finalizers": []}});
    c.client.merge_patch(&gvr::PODS, &pod, release.clone()).await.unwrap();
    c.until_object(&gvr::NAMESPACES, &shop, |v| remaining(v, "secrets. has 1 resource instances")).await;
    c.client.merge_patch(&gvr::SECRETS, &secret, release).await.unwrap();
    c.until_gone(&gvr::NAMESPACES, &shop).await;
    assert!(c.list(&gvr::SERVICE_ACCOUNTS).await.iter().all(|a| &*a.key.namespace != "shop"));
}

/// Never hears of service accounts unless it asks for one.
struct Deaf(ApiClient);

#[async_trait::async_trait]
impl Client for Deaf {
    async fn get(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        self.0.get(gvr, key).await
    }

    async fn list(&self, gvr: &Gvr, options: &ListOptions) -> Result<ObjectList, ApiError> {
        let mut list = self.0.list(gvr, options).await?;
        list.items.retain(|_| *gvr != gvr::SERVICE_ACCOUNTS);
        Ok(list)
    }

    async fn watch(&self, gvr: &Gvr, options: &WatchOptions) -> Result<EventStream, ApiError> {
        if *gvr == gvr::SERVICE_ACCOUNTS {
            return Ok(Box::pin(futures_util::stream::pending()));
        }
        self.0.watch(gvr, options).await
    }

    async fn write(&self, write: Write) -> Result<Arc<Object>, ApiError> {
        self.0.write(write).await
    }
}

#[tokio::test]
async fn a_token_secret_stays_though_no_news_of_its_account_came() {
    let c = cluster_through(Gates::default(), |client| Arc::new(Deaf(client))).await;
    let metadata = json!({"name": "there", "namespace": "default"});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata});
    c.create(&gvr::SERVICE_ACCOUNTS, account).await;
    for name in ["there", "where"] {
        let of = json!({"kubernetes.io/service-account.name": name});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": name, "namespace": "default", "annotations": of}});
        c.create(&gvr::SECRETS, secret).await;
    }
    // One worker takes them in turn: once the second is gone, the first was looked at.
    c.until_gone(&gvr::SECRETS, &key("where")).await;
    assert!(c.client.get(&gvr::SECRETS, &key("there")).await.is_ok());
}
