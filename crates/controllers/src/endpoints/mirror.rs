//! Hand-made Endpoints of a Service without a selector, mirrored into slices so that proxies need read slices only.
//! Pure.

use super::{Action, MANAGED_BY, SERVICE_NAME};
use client::Object;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Who keeps these slices.
pub const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Addresses of one subset that are mirrored, as upstream.
const SUBSET_MAX: usize = 1_000;
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
/// Annotations that are not the slices'.
const NOT_COPIED: [&str; 2] =
    ["kubectl.kubernetes.io/last-applied-configuration", "endpoints.kubernetes.io/last-change-trigger-time"];

/// The writes that bring `slices` (mirrored, of this Service) to the Endpoints: a slice a subset and address family.
pub fn decide(service: &Object, endpoints: Option<&Object>, slices: &[Arc<Object>]) -> Vec<Action> {
    let mut missing: Vec<Value> = Vec::new();
    if let Some(endpoints) = endpoints.filter(|e| !is_skipped(e)) {
        let value = endpoints.value().unwrap_or_default();
        for subset in value["subsets"].as_array().into_iter().flatten() {
            missing.extend(FAMILIES.iter().filter_map(|family| body(service, endpoints, subset, family)));
        }
    }
    let content = |v: &Value| {
        let meta = &v["metadata"];
        json!([v["addressType"], v["endpoints"], v["ports"], meta["labels"], meta["annotations"]])
    };
    let mut left = Vec::new();
    for slice in slices {
        let now = slice.value().unwrap_or_default();
        match missing.iter().position(|w| content(w) == content(&now)) {
            Some(place) => drop(missing.remove(place)),
            None => left.push((slice.key.name.to_string(), now)),
        }
    }
    // A changed subset reuses the slice that would go, so that its readers see a change and no gap.
    let mut actions = Vec::new();
    for body in missing {
        match left.iter().position(|(_, now)| now["addressType"] == body["addressType"]) {
            Some(place) => {
                let (name, now) = left.remove(place);
                let map = |field: &str| change(&now["metadata"][field], &body["metadata"][field]);
                let patch = json!({"endpoints": body["endpoints"], "ports": body["ports"],
                    "metadata": {"labels": map("labels"), "annotations": map("annotations")}});
                actions.push(Action::Patch(name, patch));
            }
            None => actions.push(Action::Create(body)),
        }
    }
    actions.extend(left.into_iter().map(|(name, _)| Action::Delete(name)));
    actions
}

fn is_skipped(endpoints: &Object) -> bool {
    let meta = endpoints.meta();
    meta.labels.get(SKIP).is_some_and(|v| v == "true")
        || meta.annotations.contains_key("control-plane.alpha.kubernetes.io/leader")
        || meta.deletion_timestamp.is_some()
}

/// What to tell about addresses that are left out; `None` when none is.
pub fn left_out(endpoints: &Object) -> Option<String> {
    let value = endpoints.value().ok().filter(|_| !is_skipped(endpoints))?;
    let over = |subset: &Value| {
        let count = |field: &str| subset[field].as_array().map_or(0, Vec::len);
        (count("addresses") + count("notReadyAddresses")).saturating_sub(SUBSET_MAX)
    };
    let over: usize = value["subsets"].as_array()?.iter().map(over).sum();
    (over > 0).then(|| {
        format!(
            "A max of {SUBSET_MAX} addresses can be mirrored to EndpointSlices per Endpoints subset. \
             {over} addresses were skipped"
        )
    })
}

/// The merge patch from one map of texts to another.
fn change(from: &Value, to: &Value) -> Map<String, Value> {
    let gone = from.as_object().into_iter().flatten().map(|(k, _)| (k.clone(), Value::Null));
    let kept = to.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone()));
    gone.chain(kept).collect()
}

/// The slice of a subset's addresses of one family; `None` when it has none.
fn body(service: &Object, endpoints: &Object, subset: &Value, family: &str) -> Option<Value> {
    let meta = endpoints.meta();
    let mut labels: Map<String, Value> = meta.labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    labels.insert(SERVICE_NAME.into(), json!(&*service.key.name));
    labels.insert(MANAGED_BY.into(), json!(MANAGER));
    let annotations = meta.annotations.iter().filter(|(k, _)| !NOT_COPIED.contains(&k.as_str()));
    let annotations: Map<String, Value> = annotations.map(|(k, v)| (k.clone(), json!(v))).collect();
    let of = |key: &'static str| subset[key].as_array().into_iter().flatten();
    let all = of("addresses").map(|a| (a, true)).chain(of("notReadyAddresses").map(|a| (a, false)));
    let mut mirrored = Vec::new();
    for (address, ready) in all.take(SUBSET_MAX) {
        if address["ip"].as_str().is_some_and(|ip| ip.contains(':')) != (family == FAMILIES[1]) {
            continue;
        }
        let mut endpoint = json!({"addresses": [address["ip"]], "conditions": {"ready": ready}});
        for field in ["hostname", "nodeName", "targetRef"] {
            if !address[field].is_null() {
                endpoint[field] = address[field].clone();
            }
        }
        mirrored.push(endpoint);
    }
    let mut ports = subset["ports"].as_array().cloned().unwrap_or_default();
    for port in &mut ports {
        if port["name"].is_null() {
            port["name"] = json!("");
        }
    }
    let mut body = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {
            "generateName": format!("{}-", service.key.name), "namespace": &*service.key.namespace, "labels": labels,
            "ownerReferences": [{"apiVersion": "v1", "kind": "Endpoints", "name": &*endpoints.key.name,
                "uid": endpoints.uid(), "controller": true, "blockOwnerDeletion": true}],
        },
        "endpoints": mirrored, "ports": ports,
    });
    if !annotations.is_empty() {
        body["metadata"]["annotations"] = json!(annotations);
    }
    (!mirrored.is_empty()).then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;

    fn run(subset: Value, slices: &[Arc<Object>]) -> (Vec<Action>, Option<String>) {
        let metadata = json!({"name": "s", "namespace": "n", "labels": {"a": "b"},
            "annotations": {NOT_COPIED[0]: "x", "note": "y"}});
        let service = object(json!({"metadata": {"name": "s", "namespace": "n"}}));
        let endpoints = object(json!({"metadata": metadata, "subsets": [subset]}));
        (decide(&service, Some(&endpoints), slices), left_out(&endpoints))
    }

    fn addresses(count: usize) -> Vec<Value> {
        (0..count).map(|n| json!({"ip": format!("10.0.{}.{}", n / 250, n % 250)})).collect()
    }

    #[test]
    fn families_have_slices_of_their_own() {
        let mut both = addresses(1);
        both.push(json!({"ip": "fd00::1"}));
        let (made, told) = run(json!({"addresses": both, "ports": [{"port": 80}]}), &[]);
        let [Action::Create(four), Action::Create(six)] = &made[..] else { panic!("{made:?}") };
        assert_eq!((&four["addressType"], &six["addressType"]), (&json!("IPv4"), &json!("IPv6")));
        assert_eq!(six["endpoints"], json!([{"addresses": ["fd00::1"], "conditions": {"ready": true}}]));
        assert_eq!((&six["metadata"]["annotations"], told), (&json!({"note": "y"}), None));
        let mut stored = four.clone();
        stored["metadata"]["name"] = json!("s-1");
        let slices = [object(stored)];
        let (settled, _) = run(json!({"addresses": addresses(1), "ports": [{"port": 80}]}), &slices);
        assert_eq!(settled, []);
        let (changed, _) = run(json!({"addresses": addresses(2), "ports": [{"port": 80}]}), &slices);
        assert!(matches!(&changed[..], [Action::Patch(name, _)] if name == "s-1"), "{changed:?}");
    }

    #[test]
    fn a_subset_is_cut_at_a_thousand_and_says_so() {
        let (made, told) =
            run(json!({"addresses": addresses(900), "notReadyAddresses": addresses(200)}), &[]);
        let [Action::Create(slice)] = &made[..] else { panic!("{made:?}") };
        let endpoints = slice["endpoints"].as_array().unwrap();
        assert_eq!((endpoints.len(), &endpoints[999]["conditions"]["ready"]), (1_000, &json!(false)));
        assert!(told.unwrap().ends_with("subset. 100 addresses were skipped"));
    }
}
