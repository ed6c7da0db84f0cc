//! The shell of binding: one worker over the keys of claims and of volumes (those without a namespace), so that no two
//! claims choose the same volume.

use super::decide::{ForClaim, ForVolume, Note, for_claim, for_volume};
use super::{
    BY_CONTROLLER, LOCAL, NODE_LABEL, PROVISIONED_BY, PROVISIONERS, STANDARD, STORAGE_CLASSES, feed, is_held,
    kept_for, put_claim, put_class, put_volume, with, without,
};
use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{DeleteOptions, ListOptions, Object, ObjectKey};
use grpc::code;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr::{NODES, PERSISTENT_VOLUME_CLAIMS as CLAIMS, PERSISTENT_VOLUMES as VOLUMES, PODS};
use machinery::quantity::Quantity;
use machinery::status::ApiError;
use parking_lot::Mutex;
use sched::NodeSpec;
use sched::volumes::{BIND_COMPLETED, Catalog, Claim, SELECTED_NODE, Volume, claims_of};
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Holds a claim while a pod uses it.
const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
/// Holds a volume while it is bound.
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
/// The driver and the call by which a node's agent empties a folder.
/// Whom a node's agent knows as calls to itself: to empty a folder, and to remove that of a volume of its own driver.
const AGENT: &str = "local.gantry.dev";
/// Mark the default class.
const DEFAULT_CLASS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// Stands for the default class.
const CLASS_KEY: &str = "";
const HOSTNAME: &str = "kubernetes.io/hostname";

struct Controller {
    context: Context,
    queue: Arc<Queue<ObjectKey>>,
    catalog: Arc<Mutex<Catalog>>,
    claims: Arc<Cache>,
    volumes: Arc<Cache>,
    classes: Arc<Cache>,
    nodes: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Starts it.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let of = |gvr| context.informers.of(gvr);
    let queue = Arc::new(Queue::default());
    let controller = Controller {
        context: context.clone(),
        queue: queue.clone(),
        catalog: Arc::default(),
        claims: of(&CLAIMS),
        volumes: of(&VOLUMES),
        classes: of(&STORAGE_CLASSES),
        nodes: of(&NODES),
        pods: of(&PODS),
    };
    let caches = [
        (&controller.claims, put_claim as super::Put),
        (&controller.volumes, put_volume),
        (&controller.classes, put_class),
    ];
    for (cache, put) in caches {
        let catalog = controller.catalog.clone();
        feed(cache, put, move |change| change(&mut catalog.lock()));
    }
    controller.follow();
    queue.add(ObjectKey::cluster(CLASS_KEY));
    let Controller { claims, volumes, classes, nodes, pods, .. } = &controller;
    let caches = [claims, volumes, classes, nodes, pods].into_iter().cloned().collect();
    run("persistentvolume-binder", caches, queue, 1, Arc::new(controller))
}

/// The claims that a pod uses.
fn of_pod(pod: &Object) -> Vec<ObjectKey> {
    let Ok(view) = pod.view::<core::Pod>() else { return Vec::new() };
    let Some(spec) = &view.spec else { return Vec::new() };
    let namespace = &pod.key.namespace;
    claims_of(&pod.key.name, spec).into_iter().map(|c| ObjectKey::new(namespace.clone(), c.name)).collect()
}

/// The claim that a volume names.
fn of_volume(volume: &Object) -> Vec<ObjectKey> {
    let of = volume.value().ok().map(|v| Volume::read(&v)).and_then(|v| v.claim);
    let claim = of.map(|((namespace, name), _)| ObjectKey::new(namespace, name));
    claim.into_iter().chain([volume.key.clone()]).collect()
}

fn of_claim(claim: &Object) -> Vec<ObjectKey> {
    let value = claim.value().unwrap_or_default();
    let volume = value["spec"]["volumeName"].as_str().filter(|v| !v.is_empty());
    volume.map(ObjectKey::cluster).into_iter().chain([claim.key.clone()]).collect()
}

/// Does a pod of a node use the claim? One that only waits for a node does not.
fn uses(pod: &Object, claim: &ObjectKey) -> bool {
    let placed = pod
        .view::<core::Pod>()
        .is_ok_and(|p| p.spec.as_ref().is_some_and(|s| s.node_name.as_ref().is_some_and(|n| !n.is_empty())));
    placed && of_pod(pod).contains(claim)
}

impl Controller {
    fn follow(&self) {
        enqueue(&self.claims, &self.queue, of_claim);
        enqueue(&self.volumes, &self.queue, of_volume);
        enqueue(&self.pods, &self.queue, of_pod);
        for (cache, whole) in [(&self.classes, true), (&self.nodes, false)] {
            let (queue, catalog) = (self.queue.clone(), self.catalog.clone());
            cache.on_change(Box::new(move |old, new| {
                // A node's heartbeat is no news for a claim; a class may have become the default.
                if whole || old.is_none() || new.is_none() {
                    let catalog = catalog.lock();
                    let open = catalog.claims.values().filter(|c| !c.bound);
                    open.for_each(|c| queue.add(ObjectKey::new(c.id.0.as_str(), c.id.1.as_str())));
                    catalog.volumes.keys().for_each(|v| queue.add(ObjectKey::cluster(v.as_str())));
                }
            }));
        }
    }

    fn tell(&self, kind: &str, object: &Object, (level, reason, message): Note) {
        self.context.recorder.record(Subject::of("v1", kind, object), level, reason, message);
    }

    async fn patch_claim(&self, claim: &Object, patch: Value) -> Result<Arc<Object>, ApiError> {
        let stored = self.context.client.merge_patch(&CLAIMS, &claim.key, patch).await?;
        self.claims.observe(stored.clone());
        Ok(stored)
    }

    async fn patch_volume(&self, volume: &Object, patch: Value) -> Result<Arc<Object>, ApiError> {
        let stored = self.context.client.merge_patch(&VOLUMES, &volume.key, patch).await?;
        self.volumes.observe(stored.clone());
        Ok(stored)
    }

    async fn claim_status(&self, claim: &Object, status: Value) -> Result<(), ApiError> {
        let patch = json!({"metadata": {"uid": claim.uid()}, "status": status});
        let stored = self.context.client.merge_patch_status(&CLAIMS, &claim.key, patch).await?;
        self.claims.observe(stored);
        Ok(())
    }

    async fn phase(&self, volume: &Object, phase: &str, message: &str) -> Result<bool, ApiError> {
        let value = volume.value().map_err(ApiError::internal)?;
        if value["status"]["phase"] == phase {
            return Ok(false);
        }
        let now = machinery::time::format(self.context.now());
        let message = if message.is_empty() { Value::Null } else { json!(message) };
        let status = json!({"phase": phase, "message": message, "lastPhaseTransitionTime": now});
        let patch = json!({"metadata": {"uid": volume.uid()}, "status": status});
        let stored = self.context.client.merge_patch_status(&VOLUMES, &volume.key, patch).await?;
        self.volumes.observe(stored);
        Ok(true)
    }

    /// The first class: who wants another default takes the annotation away.
    async fn standard_class(&self) -> Result<(), ApiError> {
        if self.classes.get(&ObjectKey::cluster(STANDARD)).is_some() {
            return Ok(());
        }
        let body = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": STANDARD,
                "annotations": {DEFAULT_CLASS[0]: "true"}},
            "provisioner": LOCAL, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": true});
        match self.context.client.create(&STORAGE_CLASSES, body).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    async fn look_at_claim(&self, object: Arc<Object>) -> Result<(), ApiError> {
        let protected = is_held(&object, CLAIM_FINALIZER);
        if object.meta().deletion_timestamp.is_some() {
            if protected && !self.in_use(&object.key).await? {
                self.patch_claim(&object, without(&object, CLAIM_FINALIZER)).await?;
                return Ok(());
            }
        } else if !protected {
            self.patch_claim(&object, with(&object, CLAIM_FINALIZER)).await?;
            return Ok(());
        }
        let value = object.value().map_err(ApiError::internal)?;
        let claim = Claim::read(&value);
        let plan = for_claim(&claim, &self.catalog.lock());
        match plan {
            ForClaim::Wait(_)
                if value["spec"]["storageClassName"].is_null() && self.adopt(&object, &claim).await? => {}
            ForClaim::Wait(Some((_, "WaitForFirstConsumer", text))) => self.tell_waiting(&object, text),
            ForClaim::Wait(note) => {
                note.into_iter().for_each(|n| self.tell("PersistentVolumeClaim", &object, n))
            }
            ForClaim::Bind(name) => {
                if let Some(volume) = self.volumes.get(&ObjectKey::cluster(name)) {
                    self.bind(object, volume).await?;
                }
            }
            ForClaim::Provision => self.provision(&object, &value, &claim).await?,
            ForClaim::Ask(provisioner) => self.ask(&object, &provisioner).await?,
            ForClaim::Lose(note) if value["status"]["phase"] != "Lost" => {
                self.tell("PersistentVolumeClaim", &object, note);
                self.claim_status(&object, json!({"phase": "Lost"})).await?;
            }
            ForClaim::Lose(_) => {}
        }
        Ok(())
    }

    /// A claim that was made before there was a default class gets the one of now, as upstream.
    async fn adopt(&self, object: &Object, claim: &Claim) -> Result<bool, ApiError> {
        if !claim.shape.class.is_empty() || !claim.volume.is_empty() || claim.deleting {
            return Ok(false);
        }
        let is_default = |c: &Arc<Object>| {
            DEFAULT_CLASS.iter().any(|a| c.meta().annotations.get(*a).is_some_and(|v| v == "true"))
        };
        let marked = self.classes.list().into_iter().filter(is_default);
        // Of several the youngest, of equals the first by name.
        let youngest =
            marked.max_by_key(|c| (c.meta().creation_timestamp.clone(), Reverse(c.key.name.clone())));
        let Some(class) = youngest else { return Ok(false) };
        let patch =
            json!({"metadata": {"uid": object.uid()}, "spec": {"storageClassName": &*class.key.name}});
        self.patch_claim(object, patch).await?;
        Ok(true)
    }

    /// A claim whose pod is there waits for that one.
    fn tell_waiting(&self, claim: &Object, text: String) {
        let pods = self.pods.list_in(&claim.key.namespace);
        let user = pods.iter().find(|p| of_pod(p).contains(&claim.key) && !uses(p, &claim.key));
        let (reason, text) = match user {
            Some(pod) => ("WaitForPodScheduled", format!("waiting for pod {} to be scheduled", pod.key.name)),
            None => ("WaitForFirstConsumer", text),
        };
        self.tell("PersistentVolumeClaim", claim, (EventType::Normal, reason, text));
    }

    /// The cache may not know yet of a pod that was just placed: so it is asked first, the API last.
    async fn in_use(&self, claim: &ObjectKey) -> Result<bool, ApiError> {
        if self.pods.list_in(&claim.namespace).iter().any(|p| uses(p, claim)) {
            return Ok(true);
        }
        let options = ListOptions { namespace: Some(claim.namespace.to_string()), ..ListOptions::default() };
        let pods = self.context.client.list(&PODS, &options).await?;
        Ok(pods.items.iter().any(|p| uses(p, claim)))
    }

    /// Both sides, in the order that survives a crash at any point.
    async fn bind(&self, claim: Arc<Object>, volume: Arc<Object>) -> Result<(), ApiError> {
        let kept = volume.value().map_err(ApiError::internal)?["spec"]["claimRef"]["uid"] == claim.uid();
        let volume =
            if kept { volume } else { self.patch_volume(&volume, kept_for(&volume, &claim)).await? };
        self.phase(&volume, "Bound", "").await?;
        let value = claim.value().map_err(ApiError::internal)?;
        let chosen = value["spec"]["volumeName"].as_str().is_none_or(str::is_empty);
        let claim = if chosen || !claim.meta().annotations.contains_key(BIND_COMPLETED) {
            let mut annotations = json!({BIND_COMPLETED: "yes"});
            if chosen {
                annotations[BY_CONTROLLER] = json!("yes");
            }
            let patch = json!({"metadata": {"uid": claim.uid(), "resourceVersion": claim.revision.to_string(),
                "annotations": annotations}, "spec": {"volumeName": &*volume.key.name}});
            self.patch_claim(&claim, patch).await?
        } else {
            claim
        };
        self.grow(&claim, &volume).await
    }

    /// The claim's status follows its volume; a volume of ours follows what the claim asks for now.
    async fn grow(&self, claim: &Object, volume: &Arc<Object>) -> Result<(), ApiError> {
        let (value, mut of_volume) =
            (claim.value().map_err(ApiError::internal)?, volume.value().map_err(ApiError::internal)?);
        let amount = |v: &Value| Quantity::from_json(v).and_then(Result::ok).map_or(0, |q| q.units());
        let wanted = &value["spec"]["resources"]["requests"]["storage"];
        let ours = of_volume["spec"]["csi"]["driver"] == LOCAL;
        if ours && amount(wanted) > amount(&of_volume["spec"]["capacity"]["storage"]) {
            let patch = json!({"metadata": {"uid": volume.uid()}, "spec": {"capacity": {"storage": wanted}}});
            of_volume = self.patch_volume(volume, patch).await?.value().map_err(ApiError::internal)?;
        }
        let mut status = json!({"phase": "Bound", "accessModes": of_volume["spec"]["accessModes"],
            "capacity": {"storage": of_volume["spec"]["capacity"]["storage"]}});
        if value["status"]["phase"] == "Bound" && value["status"]["capacity"]["storage"].is_string() && !ours
        {
            // A claim on a volume that grows has grown when its driver says so.
            status["capacity"] = value["status"]["capacity"].clone();
        }
        let same = status.as_object().into_iter().flatten().all(|(k, v)| value["status"][k] == *v);
        if same { Ok(()) } else { self.claim_status(claim, status).await }
    }

    async fn ask(&self, claim: &Object, provisioner: &str) -> Result<(), ApiError> {
        if claim.meta().annotations.get(PROVISIONERS[0]).is_none_or(|p| p != provisioner) {
            let annotations: Value =
                PROVISIONERS.iter().map(|k| (k.to_string(), json!(provisioner))).collect();
            self.patch_claim(claim, json!({"metadata": {"uid": claim.uid(), "annotations": annotations}}))
                .await?;
        }
        let text = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.tell("PersistentVolumeClaim", claim, (EventType::Normal, "ExternalProvisioning", text));
        Ok(())
    }

    /// The node that a volume is made on: the pod's, or the first that takes pods.
    fn node(&self, claim: &Claim) -> Option<Arc<Object>> {
        if let Some(name) = &claim.node {
            return self.nodes.get(&ObjectKey::cluster(name.as_str()));
        }
        let open = |o: &Arc<Object>| {
            o.view::<core::Node>()
                .is_ok_and(|n| !n.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false))
        };
        self.nodes.list().into_iter().find(open)
    }

    async fn provision(&self, object: &Object, value: &Value, claim: &Claim) -> Result<(), ApiError> {
        let Some(node) = self.node(claim) else {
            let text = "failed to provision volume: no node for it".to_string();
            self.tell("PersistentVolumeClaim", object, (EventType::Warning, "ProvisioningFailed", text));
            if claim.node.is_some() {
                // The node is gone: the scheduler is to choose another.
                let patch = json!({"metadata": {"uid": object.uid(), "annotations": {SELECTED_NODE: null}}});
                self.patch_claim(object, patch).await?;
            }
            return Ok(());
        };
        let class = self.classes.get(&ObjectKey::cluster(claim.shape.class.as_str()));
        let class = class.and_then(|c| c.value().ok()).unwrap_or_default();
        let name = format!("pvc-{}", object.uid());
        let host = node.meta().labels.get(HOSTNAME).cloned().unwrap_or_else(|| node.key.name.to_string());
        let term = json!({"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [host]}]});
        let mut body = json!({"apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": name, "annotations": {PROVISIONED_BY: LOCAL},
                "labels": {NODE_LABEL: &*node.key.name}, "finalizers": [VOLUME_FINALIZER]},
            "spec": {"capacity": {"storage": value["spec"]["resources"]["requests"]["storage"]},
                "accessModes": value["spec"]["accessModes"], "volumeMode": "Filesystem",
                "persistentVolumeReclaimPolicy": class["reclaimPolicy"].as_str().unwrap_or("Delete"),
                "storageClassName": claim.shape.class,
                "csi": {"driver": LOCAL, "volumeHandle": name},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "uid": object.uid(),
                    "namespace": claim.id.0, "name": claim.id.1}}});
        if class["mountOptions"].is_array() {
            body["spec"]["mountOptions"] = class["mountOptions"].clone();
        }
        match self.context.client.create(&VOLUMES, body).await {
            Err(error) if error.is_already_exists() => return Ok(()),
            made => self.volumes.observe(made?),
        }
        let text = format!("Successfully provisioned volume {name}");
        self.tell("PersistentVolumeClaim", object, (EventType::Normal, "ProvisioningSucceeded", text));
        Ok(())
    }

    async fn look_at_volume(&self, object: Arc<Object>) -> Result<(), ApiError> {
        let value = object.value().map_err(ApiError::internal)?;
        let volume = Volume::read(&value);
        let protected = is_held(&object, VOLUME_FINALIZER);
        if volume.deleting {
            if protected && volume.phase != "Bound" {
                self.remove_folder(&object, &value).await?;
                self.patch_volume(&object, without(&object, VOLUME_FINALIZER)).await?;
                return Ok(());
            }
        } else if !protected {
            self.patch_volume(&object, with(&object, VOLUME_FINALIZER)).await?;
            return Ok(());
        }
        let provisioned = object.meta().annotations.contains_key(PROVISIONED_BY);
        let claim = self.claim_of(&volume).await?;
        match for_volume(&volume, claim.as_ref(), provisioned) {
            ForVolume::Is(phase) => {
                self.phase(&object, phase, "").await?;
                self.wake_claims(&volume, phase);
            }
            ForVolume::LookAtClaim => {
                let id = volume.claim.iter().map(|(id, _)| id);
                id.for_each(|(ns, name)| self.queue.add(ObjectKey::new(ns.as_str(), name.as_str())));
            }
            ForVolume::Free => {
                let mine = object.meta().annotations.contains_key(BY_CONTROLLER);
                let reference =
                    if mine { Value::Null } else { json!({"uid": null, "resourceVersion": null}) };
                let patch = json!({"metadata": {"uid": object.uid(), "annotations": {BY_CONTROLLER: null}},
                    "spec": {"claimRef": reference}});
                self.patch_volume(&object, patch).await?;
            }
            ForVolume::Release => self.release(&object, &value).await?,
        }
        Ok(())
    }

    /// A free volume is news for claims that wait for one.
    fn wake_claims(&self, volume: &Volume, phase: &str) {
        if phase == "Available" && volume.phase != phase {
            let catalog = self.catalog.lock();
            let open = catalog.claims.values().filter(|c| !c.bound && c.shape.class == volume.shape.class);
            open.for_each(|c| self.queue.add(ObjectKey::new(c.id.0.as_str(), c.id.1.as_str())));
        }
    }

    /// The claim that a volume names. Before one counts as gone, the API is asked: data hang on it.
    async fn claim_of(&self, volume: &Volume) -> Result<Option<Claim>, ApiError> {
        let Some((id, uid)) = &volume.claim else { return Ok(None) };
        let known = self.catalog.lock().claims.get(id).filter(|c| c.uid == *uid).cloned();
        if known.is_some() || uid.is_empty() {
            return Ok(known);
        }
        match self.context.client.get(&CLAIMS, &ObjectKey::new(id.0.as_str(), id.1.as_str())).await {
            Ok(object) => Ok(Some(Claim::read(&object.value().map_err(ApiError::internal)?))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn release(&self, object: &Arc<Object>, value: &Value) -> Result<(), ApiError> {
        if matches!(value["status"]["phase"].as_str(), Some("Failed")) {
            return Ok(());
        }
        self.phase(object, "Released", "").await?;
        let ours = value["spec"]["csi"]["driver"] == LOCAL;
        let foreign = object.meta().annotations.contains_key(PROVISIONED_BY);
        let (reason, message) = match value["spec"]["persistentVolumeReclaimPolicy"].as_str() {
            Some("Delete") if ours => return self.after_node(object).await,
            // Its driver's own provisioner deletes it.
            Some("Delete") if foreign => return Ok(()),
            Some("Delete") => (
                "VolumeFailedDelete",
                format!(
                    "error getting deleter volume plugin for volume \"{}\": no volume plugin matched",
                    object.key
                ),
            ),
            Some("Recycle") => match self.recycle(object, value).await? {
                None => return Ok(()),
                Some(failure) => ("VolumeFailedRecycle", failure),
            },
            _ => return Ok(()),
        };
        self.phase(object, "Failed", &message).await?;
        self.tell("PersistentVolume", object, (EventType::Warning, reason, message));
        Ok(())
    }

    /// Has a node empty the volume's folder (upstream: a pod somewhere), and gives it away anew; else says why not.
    async fn recycle(&self, object: &Arc<Object>, value: &Value) -> Result<Option<String>, ApiError> {
        let Some(path) = value["spec"]["hostPath"]["path"].as_str() else {
            return Ok(Some("No recycler plugin found for the volume!".into()));
        };
        let volume = Volume::read(value);
        let reaches =
            |o: &Arc<Object>| o.view::<core::Node>().is_ok_and(|n| volume.reaches(&NodeSpec::read(&n)));
        let Some(node) = self.nodes.list().into_iter().find(reaches) else {
            return Ok(Some("Recycle failed: no node reaches the volume".into()));
        };
        let drivers = &self.context.config.drivers.0;
        match drivers.call(&node.key.name, AGENT, "Recycle", &json!({"path": path})).await {
            Ok(_) => {}
            Err(lost) if lost.code == code::UNAVAILABLE => return Err(ApiError::internal(lost)),
            Err(error) => return Ok(Some(format!("Recycle failed: {error}"))),
        }
        self.tell(
            "PersistentVolume",
            object,
            (EventType::Normal, "VolumeRecycled", "Volume recycled".into()),
        );
        let patch = json!({"metadata": {"uid": object.uid(), "annotations": {BY_CONTROLLER: null}},
            "spec": {"claimRef": null}});
        self.patch_volume(object, patch).await.map(|_| None)
    }

    /// The node that a volume of the built-in driver is on, if it is still there.
    async fn node_of(&self, object: &Object) -> Result<Option<ObjectKey>, ApiError> {
        let node = object.meta().labels.get(NODE_LABEL).cloned().unwrap_or_default();
        let key = ObjectKey::cluster(node);
        if self.nodes.get(&key).is_some() {
            return Ok(Some(key));
        }
        match self.context.client.get(&NODES, &key).await {
            Err(error) if error.is_not_found() => Ok(None),
            found => found.map(|_| Some(key)),
        }
    }

    /// Somebody deletes a released volume: its object stays until its node, which may be away, has removed the folder.
    async fn remove_folder(&self, object: &Arc<Object>, value: &Value) -> Result<(), ApiError> {
        let spec = &value["spec"];
        let over =
            spec["persistentVolumeReclaimPolicy"] == "Delete" && value["status"]["phase"] == "Released";
        if spec["csi"]["driver"] != LOCAL || !over {
            return Ok(());
        }
        let Some(node) = self.node_of(object).await? else { return Ok(()) };
        let request = json!({"volume": spec["csi"]["volumeHandle"]});
        let drivers = &self.context.config.drivers.0;
        let called = drivers.call(&node.name, AGENT, "Delete", &request).await;
        called.map(drop).map_err(|why| {
            let text = format!("the folder of the volume stays: {why}");
            self.tell("PersistentVolume", object, (EventType::Warning, "VolumeFailedDelete", text));
            ApiError::internal(why)
        })
    }

    /// The node's agent removes folder and volume; where the node is gone, so is the folder.
    async fn after_node(&self, object: &Arc<Object>) -> Result<(), ApiError> {
        if self.node_of(object).await?.is_some() {
            return Ok(());
        }
        let options = DeleteOptions { uid: Some(object.uid().into()), ..DeleteOptions::default() };
        match self.context.client.delete(&VOLUMES, &object.key, options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let done = if !key.namespace.is_empty() {
            match self.claims.get(key) {
                Some(claim) => self.look_at_claim(claim).await,
                None => Ok(()),
            }
        } else if &*key.name == CLASS_KEY {
            self.standard_class().await
        } else {
            match self.volumes.get(key) {
                Some(volume) => self.look_at_volume(volume).await,
                None => Ok(()),
            }
        };
        match done {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(None),
        }
    }
}
