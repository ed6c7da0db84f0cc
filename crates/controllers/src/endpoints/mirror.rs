//! Hand-made Endpoints of a Service without a selector, mirrored into slices so that proxies need read slices only.
//! Pure.

use super::{Action, MANAGED_BY, SERVICE_NAME};
use client::Object;
use serde_json::{Value, json};
use std::sync::Arc;

/// Who keeps these slices.
pub const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Addresses of one subset that are mirrored, as upstream.
const SUBSET_MAX: usize = 1_000;

/// The writes that bring `slices` (mirrored, of this Service) to the Endpoints: a slice a subset.
pub fn decide(service: &Object, endpoints: Option<&Object>, slices: &[Arc<Object>]) -> Vec<Action> {
    let skipped = |e: &&Object| {
        let meta = e.meta();
        meta.labels.get(SKIP).is_some_and(|v| v == "true")
            || meta.annotations.contains_key("control-plane.alpha.kubernetes.io/leader")
            || meta.deletion_timestamp.is_some()
    };
    let wanted: Vec<Value> = match endpoints.filter(|e| !skipped(e)) {
        None => Vec::new(),
        Some(endpoints) => {
            let value = endpoints.value().unwrap_or_default();
            value["subsets"].as_array().into_iter().flatten().map(|s| body(service, endpoints, s)).collect()
        }
    };
    let content = |v: &Value| json!([v["endpoints"], v["ports"], v["metadata"]["labels"]]);
    let mut missing = wanted;
    let mut actions = Vec::new();
    for slice in slices {
        let now = slice.value().map(|v| content(&v)).unwrap_or_default();
        match missing.iter().position(|w| content(w) == now) {
            Some(place) => drop(missing.remove(place)),
            None => actions.push(Action::Delete(slice.key.name.to_string())),
        }
    }
    // A changed subset reuses the slice that would go, so that its readers see a change and no gap.
    for body in missing {
        match actions.iter().position(|a| matches!(a, Action::Delete(_))) {
            Some(place) => {
                let Action::Delete(name) = actions.remove(place) else { continue };
                let patch = json!({"endpoints": body["endpoints"], "ports": body["ports"],
                    "metadata": {"labels": body["metadata"]["labels"]}});
                actions.push(Action::Patch(name, patch));
            }
            None => actions.push(Action::Create(body)),
        }
    }
    actions
}

fn body(service: &Object, endpoints: &Object, subset: &Value) -> Value {
    let mut labels: serde_json::Map<String, Value> =
        endpoints.meta().labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    labels.insert(SERVICE_NAME.into(), json!(&*service.key.name));
    labels.insert(MANAGED_BY.into(), json!(MANAGER));
    let mut mirrored = Vec::new();
    for (key, ready) in [("addresses", true), ("notReadyAddresses", false)] {
        for address in subset[key].as_array().into_iter().flatten().take(SUBSET_MAX) {
            let mut endpoint = json!({"addresses": [address["ip"]], "conditions": {"ready": ready}});
            for field in ["hostname", "nodeName", "targetRef"] {
                if !address[field].is_null() {
                    endpoint[field] = address[field].clone();
                }
            }
            mirrored.push(endpoint);
        }
    }
    let mut ports = subset["ports"].as_array().cloned().unwrap_or_default();
    for port in &mut ports {
        if port["name"].is_null() {
            port["name"] = json!("");
        }
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "generateName": format!("{}-", service.key.name), "namespace": &*service.key.namespace, "labels": labels,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Endpoints", "name": &*endpoints.key.name,
                "uid": endpoints.uid(), "controller": true, "blockOwnerDeletion": true}],
        },
        "endpoints": mirrored, "ports": ports,
    })
}
