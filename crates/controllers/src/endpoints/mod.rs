//! Which pods stand behind a Service: EndpointSlices and, for older clients, Endpoints.
//!
//! One look at a Service computes its members once ([`members`]), from which both forms are decided
//! ([`slices`], [`legacy`]). Services without a selector are left to their users; their hand-made Endpoints are
//! mirrored into slices ([`mirror`]).

mod legacy;
mod members;
mod mirror;
mod slices;

use crate::context::{Context, Outcome, Reconcile, enqueue, enqueue_self, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{Object, ObjectKey};
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr;
use machinery::selector::LabelSelector;
use serde_json::Value;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// The label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that says who keeps a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// One write.
#[derive(Debug, PartialEq)]
enum Action {
    Create(Value),
    Patch(String, Value),
    Delete(String),
}

struct Controller {
    context: Context,
    services: Arc<Cache>,
    pods: Arc<Cache>,
    nodes: Arc<Cache>,
    endpoints: Arc<Cache>,
    slices: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let of = |gvr| context.informers.of(gvr);
    let controller = Controller {
        context: context.clone(),
        services: of(&gvr::SERVICES),
        pods: of(&gvr::PODS),
        nodes: of(&gvr::NODES),
        endpoints: of(&gvr::ENDPOINTS),
        slices: of(&gvr::ENDPOINT_SLICES),
    };
    enqueue_self(&controller.services, &queue);
    enqueue_self(&controller.endpoints, &queue);
    enqueue(&controller.slices, &queue, |slice| {
        let service = slice.meta().labels.get(SERVICE_NAME);
        service.map(|name| ObjectKey::new(slice.key.namespace.clone(), name.as_str())).into_iter().collect()
    });
    enqueue_services_of_pods(&controller, &queue);
    let caches = [
        &controller.services,
        &controller.pods,
        &controller.nodes,
        &controller.endpoints,
        &controller.slices,
    ];
    let caches = caches.into_iter().cloned().collect();
    run("endpoints", caches, queue, 2, Arc::new(controller))
}

/// A changed pod concerns the services that selected it or select it now.
fn enqueue_services_of_pods(controller: &Controller, queue: &Arc<Queue<ObjectKey>>) {
    let services = Arc::downgrade(&controller.services);
    enqueue(&controller.pods, queue, move |pod: &Object| {
        let Some(services) = services.upgrade() else { return Vec::new() };
        let labels = &pod.meta().labels;
        let selects = |service: &Arc<Object>| {
            let view = service.view::<core::Service>().ok();
            view.and_then(|s| selector(&s)).is_some_and(|s| s.matches(labels))
        };
        services.list_in(&pod.key.namespace).into_iter().filter(selects).map(|s| s.key.clone()).collect()
    });
}

/// The pods a Service asks for; `None` when it names none (or is an alias).
fn selector(service: &core::Service) -> Option<LabelSelector> {
    let spec = service.spec.as_ref()?;
    let labels = spec.selector.as_ref().filter(|s| !s.is_empty())?;
    let alias = spec.type_.as_deref() == Some("ExternalName");
    (!alias).then(|| LabelSelector::from_map(labels.iter().map(|(k, v)| (k.as_str(), v.as_str()))))
}

impl Controller {
    async fn act(
        &self,
        cache: &Cache,
        gvr: &k8s_schema::Gvr,
        namespace: &str,
        actions: Vec<Action>,
    ) -> Outcome {
        for action in actions {
            let client = &self.context.client;
            let deleted = matches!(action, Action::Delete(_));
            let done = match action {
                Action::Create(body) => client.create(gvr, body).await,
                Action::Patch(name, patch) => {
                    client.merge_patch(gvr, &ObjectKey::new(namespace, name), patch).await
                }
                Action::Delete(name) => {
                    client
                        .delete(gvr, &ObjectKey::new(namespace, name), client::DeleteOptions::default())
                        .await
                }
            };
            match done {
                // The next look must see this write even if its event is still on its way.
                Ok(object) if !deleted => cache.observe(object),
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) if error.code == 403 && error.message.contains("being terminated") => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn slices_of(&self, key: &ObjectKey, manager: &str) -> Vec<Arc<Object>> {
        let ours = |slice: &Arc<Object>| {
            let labels = &slice.meta().labels;
            labels.get(SERVICE_NAME).is_some_and(|n| **n == *key.name)
                && labels.get(MANAGED_BY).is_some_and(|m| m == manager)
        };
        self.slices.list_in(&key.namespace).into_iter().filter(ours).collect()
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let service = self.services.get(key).filter(|s| s.meta().deletion_timestamp.is_none());
        let view = service.as_ref().and_then(|s| s.view::<core::Service>().ok());
        let selected = view.as_ref().and_then(|v| selector(v));
        let endpoints = self.endpoints.get(key);
        let (mut for_slices, mut for_endpoints) = (Vec::new(), Vec::new());
        let kept = self.slices_of(key, slices::MANAGER);
        let mirrored = self.slices_of(key, mirror::MANAGER);
        match (&service, &view, selected) {
            (Some(service), Some(view), Some(selector)) => {
                let matching = self
                    .pods
                    .list_in(&key.namespace)
                    .into_iter()
                    .filter(|p| selector.matches(&p.meta().labels));
                let members = members::of(view, matching, |node| zone(&self.nodes, node));
                for_slices = slices::decide(service, view, &members, &kept);
                for_slices.extend(mirrored.iter().map(|s| Action::Delete(s.key.name.to_string())));
                for_endpoints = legacy::decide(service, view, &members, endpoints.as_deref());
            }
            (Some(service), Some(_), None) => {
                for_slices = kept.iter().map(|s| Action::Delete(s.key.name.to_string())).collect();
                let mirror = mirror::decide(service, endpoints.as_deref(), &mirrored);
                if let Some(endpoints) = endpoints.as_ref().filter(|_| !mirror.is_empty())
                    && let Some(message) = mirror::left_out(endpoints)
                {
                    let subject = Subject::of("v1", "Endpoints", endpoints);
                    let reason = "TooManyAddressesToMirror";
                    self.context.recorder.record(subject, EventType::Warning, reason, message);
                }
                for_slices.extend(mirror);
            }
            _ => {
                let gone = kept.iter().chain(&mirrored);
                for_slices.extend(gone.map(|s| Action::Delete(s.key.name.to_string())));
                if endpoints.is_some_and(|e| legacy::is_ours(&e)) {
                    for_endpoints.push(Action::Delete(key.name.to_string()));
                }
            }
        }
        self.act(&self.slices, &gvr::ENDPOINT_SLICES, &key.namespace, for_slices).await?;
        self.act(&self.endpoints, &gvr::ENDPOINTS, &key.namespace, for_endpoints).await
    }
}

/// The zone of a node, "" when it has none.
fn zone(nodes: &Cache, node: &str) -> String {
    let node = nodes.get(&ObjectKey::cluster(node));
    node.and_then(|n| n.meta().labels.get("topology.kubernetes.io/zone").cloned()).unwrap_or_default()
}
