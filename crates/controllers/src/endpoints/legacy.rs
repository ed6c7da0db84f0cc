//! The Endpoints object of a Service with a selector. Pure.

use super::Action;
use super::members::{Member, Port};
use client::Object;
use k8s_openapi::api::core::v1 as core;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Addresses in one Endpoints object, as upstream; the rest is left out and an annotation says so.
const ADDRESSES_MAX: usize = 1_000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Did this controller make the object?
pub fn is_ours(endpoints: &Object) -> bool {
    endpoints.meta().labels.get(MANAGED_BY).is_some_and(|m| m == MANAGER)
}

/// The write, if any, that brings the object to `members`.
pub fn decide(
    service: &Object,
    view: &core::Service,
    members: &[Member],
    present: Option<&Object>,
) -> Vec<Action> {
    let mut labels: Map<String, Value> =
        service.meta().labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    labels.insert(MANAGED_BY.into(), json!(MANAGER));
    if view.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), json!(""));
    }
    let staying: Vec<&Member> = members.iter().filter(|m| !m.over).collect();
    let subsets = subsets(service, &staying[..staying.len().min(ADDRESSES_MAX)]);
    let over = staying.len() > ADDRESSES_MAX;
    let name = &*service.key.name;
    let Some(present) = present else {
        let mut metadata = json!({"name": name, "namespace": &*service.key.namespace, "labels": labels});
        if over {
            metadata["annotations"] = json!({OVER_CAPACITY: "truncated"});
        }
        let body = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": subsets});
        return vec![Action::Create(body)];
    };
    let value = present.value().unwrap_or_default();
    let now = value.get("subsets").cloned().unwrap_or(json!([]));
    let now_labels: Map<String, Value> =
        present.meta().labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    if now == json!(subsets)
        && now_labels == labels
        && present.meta().annotations.contains_key(OVER_CAPACITY) == over
    {
        return Vec::new();
    }
    let mut patch_labels = labels;
    for key in now_labels.keys() {
        patch_labels.entry(key.clone()).or_insert(Value::Null);
    }
    let mark = if over { json!("truncated") } else { Value::Null };
    let metadata = json!({"labels": patch_labels, "annotations": {OVER_CAPACITY: mark}});
    vec![Action::Patch(name.to_string(), json!({"metadata": metadata, "subsets": subsets}))]
}

fn subsets(service: &Object, members: &[&Member]) -> Vec<Value> {
    let mut groups: BTreeMap<&[Port], [BTreeMap<&str, Value>; 2]> = BTreeMap::new();
    for member in members {
        let mut address = json!({
            "ip": member.ip,
            "targetRef": {"kind": "Pod", "namespace": &*service.key.namespace, "name": member.name, "uid": member.uid},
        });
        for (key, text) in [("nodeName", &member.node), ("hostname", &member.hostname)] {
            if !text.is_empty() {
                address[key] = json!(text);
            }
        }
        groups.entry(&member.ports).or_default()[usize::from(!member.ready)].insert(&member.ip, address);
    }
    let mut subsets = Vec::new();
    for (ports, [ready, waiting]) in groups {
        let mut subset = Map::new();
        for (key, addresses) in [("addresses", ready), ("notReadyAddresses", waiting)] {
            if !addresses.is_empty() {
                subset.insert(key.into(), addresses.into_values().collect());
            }
        }
        if !ports.is_empty() {
            subset.insert("ports".into(), ports.iter().map(port_json).collect());
        }
        subsets.push(Value::Object(subset));
    }
    subsets
}

fn port_json(port: &Port) -> Value {
    let mut value = json!({"port": port.port, "protocol": port.protocol});
    if !port.name.is_empty() {
        value["name"] = json!(port.name);
    }
    if let Some(protocol) = &port.app_protocol {
        value["appProtocol"] = json!(protocol);
    }
    value
}
