//! Extended resources that device classes stand for: on nodes where no device plug-in has the resource, a claim with a
//! request a container and resource is made for the pod.
//!
//! Init containers end before the others begin, so they use the requests of later containers, and one of their own for
//! what they need beyond these.

use super::Inventory;
use super::read::Claim;
use crate::model::{NodeSpec, PodInfo};
use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A resource of this group is the class of that name, whatever the class says.
pub const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";

/// What a container asks for of an extended resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extended {
    /// The resource.
    pub resource: String,
    container: String,
    /// The container's place among all containers.
    index: usize,
    /// The resource's place among the container's requests.
    slot: usize,
    count: i64,
    /// An init container that ends.
    brief: bool,
}

/// What the containers of a pod ask for.
pub fn of_pod(spec: &core::PodSpec) -> Vec<Extended> {
    let init = spec.init_containers.iter().flatten();
    let init = init.map(|c| (c, c.restart_policy.as_deref() != Some("Always")));
    let all = init.chain(spec.containers.iter().map(|c| (c, false)));
    let mut wanted = Vec::new();
    for (index, (container, brief)) in all.enumerate() {
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        for (slot, (name, amount)) in requests.into_iter().flatten().enumerate() {
            let count = amount.0.parse::<machinery::quantity::Quantity>().map_or(0, |q| q.units());
            if name.contains('/') && count > 0 {
                let (resource, container) = (name.clone(), container.name.clone());
                wanted.push(Extended { resource, container, index, slot, count, brief });
            }
        }
    }
    wanted
}

/// The claim for a node, and which container has which request.
pub struct Made {
    pub claim: Claim,
    /// Its `spec`.
    pub spec: Value,
    pub mappings: Value,
}

/// A request of the claim.
struct Part {
    name: String,
    index: usize,
    count: i64,
}

/// The requests for one resource; `tell` is told which container (by its entry) has which request.
fn requests(entries: &[&Extended], mut tell: impl FnMut(&Extended, String)) -> Vec<Part> {
    let name = |e: &Extended| format!("container-{}-request-{}", e.index, e.slot);
    let mut all = Vec::new();
    for entry in entries.iter().filter(|e| !e.brief) {
        tell(entry, name(entry));
        all.push(Part { name: name(entry), index: entry.index, count: entry.count });
    }
    // The init container that needs most beyond the others' requests has a request of its own; the rest use it too.
    let short = |e: &Extended| {
        let later = all.iter().filter(|m| m.index >= e.index).map(|m| m.count).sum::<i64>();
        (e.count - later).max(0)
    };
    let brief: Vec<(&&Extended, i64)> = entries.iter().filter(|e| e.brief).map(|e| (e, short(e))).collect();
    let own = brief.iter().rev().filter(|(_, short)| *short > 0).max_by_key(|(_, short)| *short);
    let own = own.map(|(e, short)| Part { name: name(e), index: e.index, count: *short });
    for (entry, missing) in &brief {
        let mut had = 0;
        for made in all.iter().filter(|m| m.index >= entry.index) {
            if had < entry.count {
                tell(entry, made.name.clone());
                had += made.count;
            }
        }
        if let Some(own) = own.as_ref().filter(|_| *missing > 0) {
            tell(entry, own.name.clone());
        }
    }
    all.extend(own);
    all
}

/// The claim for the pod on a node; `None`: the node needs none.
///
/// # Errors
/// A resource that neither the node nor a class has.
pub fn claim(inventory: &Inventory, pod: &PodInfo, node: &NodeSpec) -> Result<Option<Made>, String> {
    let mut by_resource: BTreeMap<&str, Vec<&Extended>> = BTreeMap::new();
    for entry in &pod.devices.extended {
        by_resource.entry(&entry.resource).or_default().push(entry);
    }
    let (mut mappings, mut made) = (Vec::new(), Vec::new());
    for (resource, entries) in by_resource {
        let of_node = node.allocatable.extended.get(resource).copied();
        let Some(class) = inventory.class_of(resource).filter(|_| of_node.unwrap_or(0) == 0) else {
            match of_node {
                Some(_) => continue,
                None => return Err("cannot fit resource".into()),
            }
        };
        let tell = |e: &Extended, name: String| {
            mappings
                .push(json!({"containerName": e.container, "resourceName": e.resource, "requestName": name}));
        };
        for one in requests(&entries, tell) {
            made.push(json!({"name": one.name, "exactly": {"deviceClassName": class.name,
                "allocationMode": "ExactCount", "count": one.count}}));
        }
    }
    if made.is_empty() {
        return Ok(None);
    }
    made.sort_by_key(|r| r["name"].as_str().unwrap_or_default().to_string());
    let spec = json!({"devices": {"requests": made}});
    let claim =
        Claim::read(&json!({"metadata": {"namespace": pod.namespace(), "name": "extended"}, "spec": spec}));
    Ok(Some(Made { claim, spec, mappings: Value::Array(mappings) }))
}
