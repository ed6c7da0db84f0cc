//! The `kube-dns` Service, so that users and tools find cluster DNS where they expect it.
//!
//! Each node serves the address itself: no traffic is balanced for it, and it has no endpoints.

use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use async_trait::async_trait;
use client::ObjectKey;
use client::cache::Cache;
use client::queue::Queue;
use k8s_schema::gvr;
use serde_json::json;
use std::sync::Arc;
use tokio::task::JoinHandle;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
const PORT: u16 = 53;

struct Controller {
    context: Context,
    services: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let services = context.informers.of(&gvr::SERVICES);
    enqueue(&services, &queue, |service| {
        let ours = &*service.key.name == NAME && &*service.key.namespace == NAMESPACE;
        ours.then(|| service.key.clone()).into_iter().collect()
    });
    queue.add(ObjectKey::new(NAMESPACE, NAME));
    let controller = Controller { context: context.clone(), services: services.clone() };
    run("cluster-dns", vec![services], queue, 1, Arc::new(controller))
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        if self.services.get(key).is_some() {
            return Ok(None);
        }
        let ip = self.context.config.dns_ip;
        let labels = json!({"k8s-app": NAME, "kubernetes.io/name": "CoreDNS"});
        let port = |name: &str, protocol: &str| json!({"name": name, "port": PORT, "protocol": protocol});
        let ports = json!([port("dns", "UDP"), port("dns-tcp", "TCP")]);
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
            "spec": {"clusterIP": ip.to_string(), "ports": ports}});
        match self.context.client.create(&gvr::SERVICES, service).await {
            Err(error) if !error.is_already_exists() => return Err(error),
            _ => {}
        }
        Ok(None)
    }
}
