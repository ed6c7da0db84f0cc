//! Every namespace has a `default` ServiceAccount and a `kube-root-ca.crt` ConfigMap.

use crate::context::{Context, Outcome, Reconcile, enqueue, enqueue_self, run};
use async_trait::async_trait;
use client::ObjectKey;
use client::cache::Cache;
use client::queue::Queue;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_schema::{Gvr, gvr};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::JoinHandle;

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";

struct Controller {
    context: Context,
    namespaces: Arc<Cache>,
    accounts: Arc<Cache>,
    config_maps: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let namespaces = context.informers.of(&gvr::NAMESPACES);
    let accounts = context.informers.of(&gvr::SERVICE_ACCOUNTS);
    let config_maps = context.informers.of(&gvr::CONFIG_MAPS);
    enqueue_self(&namespaces, &queue);
    for (cache, name) in [(&accounts, ACCOUNT), (&config_maps, ROOT_CA)] {
        enqueue(cache, &queue, move |object| {
            let ours = &*object.key.name == name;
            ours.then(|| ObjectKey::cluster(object.key.namespace.clone())).into_iter().collect()
        });
    }
    let caches = vec![namespaces.clone(), accounts.clone(), config_maps.clone()];
    let controller = Controller { context: context.clone(), namespaces, accounts, config_maps };
    run("serviceaccount", caches, queue, 2, Arc::new(controller))
}

impl Controller {
    async fn ensure(&self, gvr: &Gvr, body: Value) -> Result<(), ApiError> {
        match self.context.client.create(gvr, body).await {
            Err(error) if !error.is_already_exists() && !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(None) };
        let terminating = namespace.meta().deletion_timestamp.is_some()
            || namespace
                .view::<Namespace>()
                .is_ok_and(|n| n.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Terminating"));
        if terminating {
            return Ok(None);
        }
        let name = &*key.name;
        if self.accounts.get(&ObjectKey::new(name, ACCOUNT)).is_none() {
            let body = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": ACCOUNT, "namespace": name}});
            self.ensure(&gvr::SERVICE_ACCOUNTS, body).await?;
        }
        let want = &self.context.config.root_ca_pem;
        let map_key = ObjectKey::new(name, ROOT_CA);
        match self.config_maps.view::<ConfigMap>(&map_key) {
            None => {
                let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {CA_KEY: want},
                    "metadata": {"name": ROOT_CA, "namespace": name, "annotations": {
                        "kubernetes.io/description": "Contains a CA bundle that can be used to verify the \
                         kube-apiserver when using internal endpoints such as the internal service IP or \
                         kubernetes.default.svc."}}});
                self.ensure(&gvr::CONFIG_MAPS, body).await?;
            }
            Some(map) if map.data.as_ref().and_then(|d| d.get(CA_KEY)) != Some(want) => {
                let patch = json!({"data": {CA_KEY: want}});
                self.context.client.merge_patch(&gvr::CONFIG_MAPS, &map_key, patch).await?;
            }
            Some(_) => {}
        }
        Ok(None)
    }
}
