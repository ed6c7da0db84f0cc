//! The kubelet's `PodResourcesLister`: monitoring asks here which pod has which device.

use crate::ops::Node;
use crate::pod::{ContainerView, PodView, Role};
use async_trait::async_trait;
use client::{Object, ObjectKey};
use grpc::{Answer, Handler, Status, code};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers.
pub(super) struct Lister(pub Arc<Node>);

impl Lister {
    /// A pod's part; `None`: it is over, or none.
    fn of_pod(&self, object: Arc<Object>) -> Option<Value> {
        let pod = PodView::new(object).ok().filter(|p| !p.stored_phase_is_terminal())?;
        let state = self.0.devices.state.lock();
        let lasting = pod.containers.iter().filter(|c| matches!(c.role, Role::Main | Role::Sidecar));
        let one = |c: &ContainerView| {
            json!({"name": c.name(), "devices": state.container_devices(pod.uid(), c.name()),
                "dynamic_resources": self.0.dra.told(&pod, c), "cpu_ids": self.0.cpus.told(pod.uid(), c.name())})
        };
        let containers: Vec<Value> = lasting.map(one).collect();
        Some(json!({"name": pod.name(), "namespace": pod.namespace(), "containers": containers}))
    }
}

#[async_trait]
impl Handler for Lister {
    async fn call(&self, method: &str, request: Value) -> Answer {
        let text = |key: &str| request[key].as_str().unwrap_or_default().to_string();
        match method {
            "List" => {
                let pods = self.0.all_pods().into_iter().filter_map(|o| self.of_pod(o));
                Ok(json!({"pod_resources": pods.collect::<Vec<_>>()}))
            }
            "Get" => {
                let (namespace, name) = (text("pod_namespace"), text("pod_name"));
                let found = self.0.pod(&ObjectKey::new(namespace.clone(), name.clone()));
                let found = found.and_then(|object| self.of_pod(object));
                let missing = || format!("pod {name} in namespace {namespace} not found");
                let found = found.ok_or_else(|| Status::new(code::UNKNOWN, missing()))?;
                Ok(json!({"pod_resources": found}))
            }
            "GetAllocatableResources" => {
                let devices = self.0.devices.state.lock().allocatable();
                Ok(json!({"devices": devices, "cpu_ids": self.0.cpus.allocatable()}))
            }
            _ => Err(Status::new(code::UNIMPLEMENTED, format!("unknown method {method}"))),
        }
    }
}
