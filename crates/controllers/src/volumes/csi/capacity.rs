//! What drivers have room for: CSIStorageCapacity objects for the scheduler, one for each class and segment.
//!
//! Kept for drivers whose CSIDriver says `storageCapacity: true` and whose provisioner's role is ours. Drivers are asked
//! when their classes, nodes or volumes change, and every [`POLL`]; somebody else may use their room. Our objects are
//! known by upstream's labels.

use super::drivers::{Csi, Role, ability, controllers};
use super::provision::split;
use super::topology::of_nodes;
use crate::context::{Outcome, Reconcile, enqueue, enqueue_self, run};
use crate::volumes::{STORAGE_CAPACITIES as CAPACITIES, STORAGE_CLASSES};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{DeleteOptions, ListOptions, Object, ObjectKey};
use machinery::quantity::Quantity;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Where the objects are: upstream has them beside its provisioner.
const NAMESPACE: &str = "kube-system";
const DRIVER: &str = "csi.storage.k8s.io/drivername";
const MANAGED_BY: &str = "csi.storage.k8s.io/managed-by";
const US: &str = "gantry-provisioner";
/// How often a driver is asked again (upstream's figure).
const POLL: Duration = Duration::from_secs(60);
/// A volume that comes or goes changes the room; several do so together.
const SETTLE: Duration = Duration::from_secs(1);

struct Room {
    csi: Arc<Csi>,
    classes: Arc<Cache>,
}

/// Starts it.
pub fn start(csi: &Arc<Csi>) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let classes = csi.context.informers.of(&STORAGE_CLASSES);
    enqueue(&csi.csi_nodes, &queue, |o| {
        controllers(o).keys().map(|d| ObjectKey::cluster(d.as_str())).collect()
    });
    enqueue_self(&csi.drivers, &queue);
    enqueue(&classes, &queue, |o| named(o, "/provisioner").into_iter().collect());
    let waker = queue.clone();
    csi.volumes.on_change(Box::new(move |old, new| {
        if let (Some(object), true) = (new.or(old), old.is_none() || new.is_none())
            && let Some(driver) = named(object, "/spec/csi/driver")
        {
            waker.add_after(driver, SETTLE);
        }
    }));
    let mut caches = csi.caches();
    caches.push(classes.clone());
    run("csi-capacity", caches, queue, 1, Arc::new(Room { csi: csi.clone(), classes }))
}

fn named(object: &Object, at: &str) -> Option<ObjectKey> {
    Some(ObjectKey::cluster(object.value().ok()?.pointer(at)?.as_str()?))
}

/// What is to be written.
#[derive(Debug, Default, PartialEq)]
struct Plan {
    create: Vec<Value>,
    change: Vec<(ObjectKey, Value)>,
    delete: Vec<ObjectKey>,
}

/// Class and segment: what an object is about, and may not change.
fn about(object: &Value) -> (&Value, &Value) {
    (&object["storageClassName"], &object["nodeTopology"])
}

/// From what there is to what there should be.
fn plan(wanted: Vec<Value>, there: &[Arc<Object>]) -> Plan {
    let mut left: Vec<(ObjectKey, Value)> =
        there.iter().filter_map(|o| Some((o.key.clone(), o.value().ok()?))).collect();
    let mut plan = Plan::default();
    for object in wanted {
        let Some(found) = left.iter().position(|(_, old)| about(old) == about(&object)) else {
            plan.create.push(object);
            continue;
        };
        let (key, old) = left.swap_remove(found);
        if ["capacity", "maximumVolumeSize"].iter().any(|field| old[field] != object[field]) {
            plan.change.push((key, object));
        }
    }
    plan.delete.extend(left.into_iter().map(|(key, _)| key));
    plan
}

fn object(driver: &str, class: &str, topology: Value, answer: &Value) -> Value {
    let bytes = |n: &Value| n.as_i64().map(|n| json!(Quantity::from_bytes(n).to_string()));
    let mut object = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIStorageCapacity",
        "metadata": {"generateName": "csisc-", "namespace": NAMESPACE, "labels": {DRIVER: driver, MANAGED_BY: US}},
        "storageClassName": class, "nodeTopology": topology,
        "capacity": bytes(&answer["available_capacity"]).unwrap_or(json!("0"))});
    if let Some(largest) = bytes(&answer["maximum_volume_size"]["value"]) {
        object["maximumVolumeSize"] = largest;
    }
    object
}

impl Room {
    /// What the driver has room for; `None`: it does not tell, or not us.
    async fn wanted(&self, driver: &str) -> Result<Option<Vec<Value>>, ApiError> {
        let csi = &self.csi;
        if csi.driver(driver)["storageCapacity"] != true {
            return Ok(None);
        }
        let Some(place) = csi.place(driver, Role::Provisioner).await? else { return Ok(None) };
        if !csi.abilities(&place, driver).await.map_err(ApiError::internal)?.contains(&ability::ROOM) {
            return Ok(None);
        }
        let segments: Vec<(Value, Value)> =
            if csi.has_places(&place, driver).await.map_err(ApiError::internal)? {
                let mut all: Vec<Value> = Vec::new();
                for segment in of_nodes(driver, &csi.csi_nodes.list(), &csi.nodes.list()).into_values() {
                    if !all.contains(&segment) {
                        all.push(segment);
                    }
                }
                all.into_iter().map(|s| (json!({"segments": s}), json!({"matchLabels": s}))).collect()
            } else {
                // Everywhere.
                vec![(Value::Null, json!({}))]
            };
        let mut wanted = Vec::new();
        for class in self.classes.list() {
            let value = class.value().map_err(ApiError::internal)?;
            if value["provisioner"] != driver {
                continue;
            }
            let parameters = split(&value["parameters"]).0;
            for (segment, topology) in &segments {
                let request = json!({"parameters": parameters, "accessible_topology": segment});
                let answer =
                    csi.call(&place, driver, "GetCapacity", &request).await.map_err(ApiError::internal)?;
                wanted.push(object(driver, &class.key.name, topology.clone(), &answer));
            }
        }
        Ok(Some(wanted))
    }
}

#[async_trait]
impl Reconcile for Room {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let driver = &*key.name;
        let wanted = self.wanted(driver).await?;
        let client = &self.csi.context.client;
        let options = ListOptions {
            namespace: Some(NAMESPACE.into()),
            label_selector: format!("{DRIVER}={driver},{MANAGED_BY}={US}"),
            ..ListOptions::default()
        };
        let again = wanted.is_some().then_some(POLL);
        let plan = plan(wanted.unwrap_or_default(), &client.list(&CAPACITIES, &options).await?.items);
        for body in plan.create {
            client.create(&CAPACITIES, body).await?;
        }
        for (key, body) in plan.change {
            let patch = json!({"capacity": body["capacity"], "maximumVolumeSize": body["maximumVolumeSize"]});
            client.merge_patch(&CAPACITIES, &key, patch).await?;
        }
        for key in plan.delete {
            client.delete(&CAPACITIES, &key, DeleteOptions::default()).await?;
        }
        Ok(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_kept_by_class_and_segment() {
        let of = |class: &str, zone: &str, bytes: i64| {
            object("d", class, json!({"matchLabels": {"zone": zone}}), &json!({"available_capacity": bytes}))
        };
        let stored = |name: &str, mut value: Value| {
            value["metadata"]["name"] = json!(name);
            Arc::new(Object::parse(value.to_string().into()).unwrap())
        };
        let there = [
            stored("a", of("c", "z1", 1 << 30)),
            stored("b", of("c", "z2", 1 << 30)),
            stored("e", of("gone", "z1", 1)),
        ];
        let found = plan(vec![of("c", "z1", 1 << 30), of("c", "z2", 2 << 30), of("new", "z1", 5)], &there);
        assert_eq!(found.create, [of("new", "z1", 5)]);
        assert_eq!(found.change, [(ObjectKey::new(NAMESPACE, "b"), of("c", "z2", 2 << 30))]);
        assert_eq!(found.delete, [ObjectKey::new(NAMESPACE, "e")]);
        let largest = object(
            "d",
            "c",
            json!({}),
            &json!({"available_capacity": 1 << 30, "maximum_volume_size": {"value": 1 << 20}}),
        );
        assert_eq!((&largest["capacity"], &largest["maximumVolumeSize"]), (&json!("1Gi"), &json!("1Mi")));
    }
}
