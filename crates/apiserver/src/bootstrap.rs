//! Objects that a cluster has from the start: namespaces, priority classes, the `kubernetes` service.

use crate::api::{Api, OpenError};
use auth::Identity;
use k8s_schema::{Gvr, gvr};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::Arc;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// (name, value, description)
const PRIORITY_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

/// Makes what is missing; what is there is left alone, except the `kubernetes` endpoint, which follows the server.
pub async fn ensure(api: &Arc<Api>) -> Result<(), OpenError> {
    for name in NAMESPACES {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        make(api, &gvr::NAMESPACES, body).await?;
    }
    for (name, value, description) in PRIORITY_CLASSES {
        let body = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description});
        make(api, &gvr::PRIORITY_CLASSES, body).await?;
    }
    if let Some((address, port)) = api.config.advertise {
        kubernetes_service(api, address, port).await?;
    }
    Ok(())
}

async fn kubernetes_service(api: &Arc<Api>, address: Ipv4Addr, port: u16) -> Result<(), OpenError> {
    let (first, _) = api.config.service_cidr.usable();
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {"type": "ClusterIP", "clusterIP": Ipv4Addr::from(first).to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]}});
    make(api, &gvr::SERVICES, service).await?;
    if address.is_loopback() || address.is_unspecified() {
        tracing::warn!(%address, "no other host or pod can reach this address: the kubernetes service has no endpoint");
        return Ok(());
    }
    let mirrored = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": mirrored},
        "subsets": [{"addresses": [{"ip": address.to_string()}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]});
    put(api, &gvr::ENDPOINTS, endpoints).await?;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}]});
    put(api, &gvr::ENDPOINT_SLICES, slice).await
}

fn server() -> Identity {
    Identity::new("system:apiserver", ["system:masters", "system:authenticated"])
}

async fn make(api: &Arc<Api>, gvr: &Gvr, body: Value) -> Result<(), OpenError> {
    match api.client(server()).create(gvr, body.clone()).await {
        Err(error) if !error.is_already_exists() => Err(failed(gvr, &body, error)),
        _ => Ok(()),
    }
}

async fn put(api: &Arc<Api>, gvr: &Gvr, body: Value) -> Result<(), OpenError> {
    make(api, gvr, body.clone()).await?;
    let text = |field: &str| body["metadata"][field].as_str().unwrap_or_default().to_string();
    let key = client::ObjectKey::new(text("namespace"), text("name"));
    let updated = api.client(server()).update(gvr, &key, body.clone()).await;
    updated.map(|_| ()).map_err(|error| failed(gvr, &body, error))
}

fn failed(gvr: &Gvr, body: &Value, error: machinery::status::ApiError) -> OpenError {
    let name = body["metadata"]["name"].as_str().unwrap_or_default();
    OpenError::Bootstrap { what: format!("{} {name}", gvr.group_resource()), error }
}
