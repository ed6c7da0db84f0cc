//! Claims and volumes: binding, provisioning on a node's disk, protection, what becomes of released volumes; and the
//! claims of pods' ephemeral volumes; classes of attributes stay while something has them.
//!
//! [`decide`] is pure; [`binder`] acts. Volumes of the class `standard` are folders on a node: this side makes the
//! PersistentVolume, the node's agent the folder, and the agent removes both when the claim is gone.
//! Deliberately not here: who runs where (`sched::volumes`), mounting (`agent`).

mod attributes;
mod binder;
mod csi;
mod decide;
mod ephemeral;

use crate::context::Context;
use client::cache::Cache;
use client::{Object, ObjectKey};
use k8s_schema::Gvr;
use sched::volumes::{Catalog, Claim, ClaimId, Class, Room, Volume, limits};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Storage classes.
pub const STORAGE_CLASSES: Gvr = Gvr::new("storage.k8s.io", "v1", "storageclasses");
/// CSI drivers.
pub const CSI_DRIVERS: Gvr = Gvr::new("storage.k8s.io", "v1", "csidrivers");
/// What drivers are on a node.
pub const CSI_NODES: Gvr = Gvr::new("storage.k8s.io", "v1", "csinodes");
/// What drivers have room for.
pub const STORAGE_CAPACITIES: Gvr = Gvr::new("storage.k8s.io", "v1", "csistoragecapacities");
/// Attributes that volumes may be given.
const ATTRIBUTES_CLASSES: Gvr = Gvr::new("storage.k8s.io", "v1", "volumeattributesclasses");
/// Gantry's own provisioner and driver: folders on nodes.
const LOCAL: &str = "gantry.dev/local";
/// The class that claims get when they name none.
const STANDARD: &str = "standard";
/// Label of such volumes: the node that has the folder. Its agent watches by it.
const NODE_LABEL: &str = "gantry.dev/node";
/// On either side of a binding: this controller chose the other side.
const BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: who is to make its volume; today's name and the older one.
const PROVISIONERS: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];

/// Starts all of it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let mut tasks = binder::start(context);
    tasks.extend(ephemeral::start(context));
    tasks.extend(attributes::start(context));
    tasks.extend(csi::start(context));
    tasks
}

/// A claim's key as the catalogue has it.
fn id(key: &ObjectKey) -> ClaimId {
    (key.namespace.to_string(), key.name.to_string())
}

/// Puts a claim as it is now into a catalogue.
pub fn put_claim(catalog: &mut Catalog, key: &ObjectKey, new: Option<&Value>) {
    match new {
        Some(new) => drop(catalog.claims.insert(id(key), Claim::read(new))),
        None => drop(catalog.claims.remove(&id(key))),
    }
}

/// Puts a volume as it is now into a catalogue.
pub fn put_volume(catalog: &mut Catalog, key: &ObjectKey, new: Option<&Value>) {
    match new {
        Some(new) => drop(catalog.volumes.insert(key.name.to_string(), Volume::read(new))),
        None => drop(catalog.volumes.remove(&*key.name)),
    }
}

/// Puts a class as it is now into a catalogue.
pub fn put_class(catalog: &mut Catalog, key: &ObjectKey, new: Option<&Value>) {
    match new {
        Some(new) => drop(catalog.classes.insert(key.name.to_string(), Class::read(new))),
        None => drop(catalog.classes.remove(&*key.name)),
    }
}

/// Puts a driver as it is now into a catalogue: whether it tells what it has room for.
pub fn put_driver(catalog: &mut Catalog, key: &ObjectKey, new: Option<&Value>) {
    match new.is_some_and(|new| new["spec"]["storageCapacity"] == true) {
        true => drop(catalog.telling.insert(key.name.to_string())),
        false => drop(catalog.telling.remove(&*key.name)),
    }
}

/// Puts what a driver has room for, as it is now, into a catalogue.
pub fn put_room(catalog: &mut Catalog, key: &ObjectKey, new: Option<&Value>) {
    match new {
        Some(new) => drop(catalog.rooms.insert(id(key), Room::read(new))),
        None => drop(catalog.rooms.remove(&id(key))),
    }
}

/// Puts how many volumes a node takes, as its CSINode says now, into a catalogue.
pub fn put_limits(catalog: &mut Catalog, key: &ObjectKey, new: Option<&Value>) {
    match new.map(limits).filter(|limits| !limits.is_empty()) {
        Some(limits) => drop(catalog.limits.insert(key.name.to_string(), limits)),
        None => drop(catalog.limits.remove(&*key.name)),
    }
}

/// How an object gets into a catalogue.
pub type Put = fn(&mut Catalog, &ObjectKey, Option<&Value>);

/// Keeps a catalogue up to date from a cache; `apply` gets at the catalogue.
pub fn feed(cache: &Cache, put: Put, apply: impl Fn(&dyn Fn(&mut Catalog)) + Send + Sync + 'static) {
    cache.on_change(Box::new(move |old, new| {
        let value = new.and_then(|o| o.value().ok());
        if let Some(object) = new.or(old) {
            apply(&|catalog| put(catalog, &object.key, value.as_ref()));
        }
    }));
}

/// Is the object held by this finalizer?
fn is_held(object: &Object, finalizer: &str) -> bool {
    object.meta().finalizers.iter().any(|f| f == finalizer)
}

/// The patch that lets go of an object.
fn without(object: &Object, finalizer: &str) -> Value {
    let rest: Vec<&String> = object.meta().finalizers.iter().filter(|f| *f != finalizer).collect();
    finalizers(object, json!(rest))
}

/// The patch that holds an object.
fn with(object: &Object, finalizer: &str) -> Value {
    let mut all = object.meta().finalizers.clone();
    all.push(finalizer.into());
    finalizers(object, json!(all))
}

fn finalizers(object: &Object, list: Value) -> Value {
    json!({"metadata": {"uid": object.uid(), "resourceVersion": object.revision.to_string(), "finalizers": list}})
}

/// The patch that keeps a volume for a claim. One that nobody kept before is marked as this side's choice.
pub fn kept_for(volume: &Object, claim: &Object) -> Value {
    let kept = volume.value().is_ok_and(|v| v["spec"]["claimRef"].is_object());
    let mut metadata = json!({"uid": volume.uid(), "resourceVersion": volume.revision.to_string()});
    if !kept {
        metadata["annotations"] = json!({BY_CONTROLLER: "yes"});
    }
    let reference = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "uid": claim.uid(),
        "namespace": &*claim.key.namespace, "name": &*claim.key.name,
        "resourceVersion": claim.revision.to_string()});
    json!({"metadata": metadata, "spec": {"claimRef": reference}})
}
