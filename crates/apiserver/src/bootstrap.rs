//! Objects that a cluster has from the start: namespaces, roles and bindings, priority classes, the range of
//! service addresses, the `kubernetes` service.

use crate::api::{Api, OpenError};
use crate::rbac::policy;
use auth::{Identity, SYSTEM_MASTERS};
use client::{DeleteOptions, ObjectKey};
use futures_util::future::try_join_all;
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
    // Together: their commits share a disk flush.
    let policy = policy::objects().into_iter().map(|(gvr, body)| rbac(api, gvr, body));
    try_join_all(policy).await?;
    for (name, value, description) in PRIORITY_CLASSES {
        let body = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description});
        make(api, &gvr::PRIORITY_CLASSES, body).await?;
    }
    service_range(api).await?;
    if let Some((address, port)) = api.config.advertise {
        kubernetes_service(api, address, port).await?;
    }
    Ok(())
}

/// Makes a role or binding, or gives it what it lacks. One that binds another role is made anew: `roleRef` is final.
async fn rbac(api: &Arc<Api>, gvr: &Gvr, body: Value) -> Result<(), OpenError> {
    let text = |field: &str| body["metadata"][field].as_str().unwrap_or_default();
    let key = ObjectKey::new(text("namespace"), text("name"));
    let present = api.cached(gvr, &key.namespace, &key.name).and_then(|o| o.value().ok());
    let Some(present) = present else { return make(api, gvr, body).await };
    let Some(wanted) = policy::reconciled(&present, &body) else { return Ok(()) };
    let client = api.client(server());
    let done = if present["roleRef"] == body["roleRef"] {
        client.update(gvr, &key, wanted).await
    } else {
        match client.delete(gvr, &key, DeleteOptions::default()).await {
            Ok(_) => client.create(gvr, body.clone()).await,
            Err(error) => Err(error),
        }
    };
    done.map(|_| ()).map_err(|error| failed(gvr, &body, error))
}

/// Says where addresses of services come from, under upstream's name.
async fn service_range(api: &Arc<Api>) -> Result<(), OpenError> {
    let (gvr, name) = (&gvr::SERVICE_CIDRS, "kubernetes");
    if api.cached(gvr, "", name).is_some() {
        return Ok(());
    }
    let range = api.config.service_cidr;
    let body = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": [format!("{}/{}", range.network, range.prefix)]}});
    make(api, gvr, body.clone()).await?;
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "",
        "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": api.now_text()}]}});
    let done = api.client(server()).merge_patch_status(gvr, &ObjectKey::new("", name), ready).await;
    done.map(|_| ()).map_err(|error| failed(gvr, &body, error))
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

pub(crate) fn server() -> Identity {
    Identity::new("system:apiserver", [SYSTEM_MASTERS, "system:authenticated"])
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
    let key = ObjectKey::new(text("namespace"), text("name"));
    let updated = api.client(server()).update(gvr, &key, body.clone()).await;
    updated.map(|_| ()).map_err(|error| failed(gvr, &body, error))
}

fn failed(gvr: &Gvr, body: &Value, error: machinery::status::ApiError) -> OpenError {
    let name = body["metadata"]["name"].as_str().unwrap_or_default();
    OpenError::Bootstrap { what: format!("{} {name}", gvr.group_resource()), error }
}
