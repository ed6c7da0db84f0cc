//! Snapshots, where a cluster has their definitions (`snapshot.storage.k8s.io/v1`): VolumeSnapshots get contents, and
//! contents are made and deleted by drivers. Both of upstream's roles, its controller's and its helper's.
//!
//! Keys: snapshots, and contents (those without a namespace). Deliberately not here: groups of snapshots.

use super::drivers::{Csi, Role};
use crate::context::{Outcome, Reconcile, enqueue, enqueue_self, run, spawn};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey};
use k8s_schema::Gvr;
use k8s_schema::gvr::CUSTOM_RESOURCE_DEFINITIONS as DEFINITIONS;
use machinery::quantity::Quantity;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

pub const SNAPSHOTS: Gvr = Gvr::new("snapshot.storage.k8s.io", "v1", "volumesnapshots");
pub const CONTENTS: Gvr = Gvr::new("snapshot.storage.k8s.io", "v1", "volumesnapshotcontents");
const CLASSES: Gvr = Gvr::new("snapshot.storage.k8s.io", "v1", "volumesnapshotclasses");
const API: &str = "snapshot.storage.k8s.io/v1";
/// The definitions that must be there.
const NEEDED: [&str; 3] = [
    "volumesnapshots.snapshot.storage.k8s.io",
    "volumesnapshotcontents.snapshot.storage.k8s.io",
    "volumesnapshotclasses.snapshot.storage.k8s.io",
];
/// On both, while one is bound to the other.
const SNAPSHOT_FINALIZER: &str = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection";
const CONTENT_FINALIZER: &str = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection";
const DEFAULT: &str = "snapshot.storage.kubernetes.io/is-default-class";
/// Parameters of a class with this prefix are not the driver's.
const OWN: &str = "csi.storage.k8s.io/";
/// On a content: the secret to delete it with.
const SECRET: [&str; 2] = [
    "snapshot.storage.kubernetes.io/deletion-secret-name",
    "snapshot.storage.kubernetes.io/deletion-secret-namespace",
];
/// Until a snapshot that is being taken is looked at again.
const NOT_READY: Duration = Duration::from_secs(1);

struct Snapshotter {
    csi: Arc<Csi>,
    snapshots: Arc<Cache>,
    contents: Arc<Cache>,
    classes: Arc<Cache>,
}

/// Starts it: nothing is done until the definitions are there.
pub fn start(csi: &Arc<Csi>) -> Vec<JoinHandle<()>> {
    let csi = csi.clone();
    let definitions = csi.context.informers.of(&DEFINITIONS);
    vec![spawn(async move {
        definitions.wait_synced().await;
        let mut changed = definitions.changed();
        let established = |name: &&str| {
            let found = definitions.get(&ObjectKey::cluster(*name)).and_then(|d| d.value().ok());
            let conditions =
                found.and_then(|v| v["status"]["conditions"].as_array().cloned()).unwrap_or_default();
            conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True")
        };
        while !NEEDED.iter().all(&established) {
            if changed.changed().await.is_err() {
                return;
            }
        }
        for task in begin(&csi) {
            let _ = task.await;
        }
    })]
}

fn begin(csi: &Arc<Csi>) -> Vec<JoinHandle<()>> {
    let of = |gvr: &Gvr| csi.context.informers.of(gvr);
    let (snapshots, contents, classes) = (of(&SNAPSHOTS), of(&CONTENTS), of(&CLASSES));
    let queue = Arc::new(Queue::default());
    enqueue_self(&snapshots, &queue);
    enqueue(&contents, &queue, |content| {
        let of = content.value().map(|mut v| v["spec"]["volumeSnapshotRef"].take()).unwrap_or_default();
        let text = |key: &str| of[key].as_str().unwrap_or_default().to_string();
        vec![content.key.clone(), ObjectKey::new(text("namespace"), text("name"))]
    });
    let mut caches = csi.caches();
    caches.extend([snapshots.clone(), contents.clone(), classes.clone()]);
    run(
        "snapshots",
        caches,
        queue,
        1,
        Arc::new(Snapshotter { csi: csi.clone(), snapshots, contents, classes }),
    )
}

fn failed(text: impl Into<String>) -> ApiError {
    ApiError::internal(text.into())
}

impl Snapshotter {
    async fn finalize(
        &self,
        gvr: &Gvr,
        object: &Object,
        finalizer: &str,
        keep: bool,
    ) -> Result<(), ApiError> {
        let mut all: Vec<String> =
            object.meta().finalizers.iter().filter(|f| *f != finalizer).cloned().collect();
        all.extend(keep.then(|| finalizer.to_string()));
        if all != object.meta().finalizers {
            let patch = json!({"metadata": {"uid": object.uid(), "finalizers": all,
                "resourceVersion": object.revision.to_string()}});
            self.csi.context.client.merge_patch(gvr, &object.key, patch).await?;
        }
        Ok(())
    }

    async fn status(&self, gvr: &Gvr, object: &Object, status: Value) -> Result<(), ApiError> {
        let old = object.value().map_err(ApiError::internal)?["status"].take();
        if status.as_object().into_iter().flatten().all(|(k, v)| old[k] == *v) {
            return Ok(());
        }
        let patch = json!({"metadata": {"uid": object.uid()}, "status": status});
        self.csi.context.client.merge_patch_status(gvr, &object.key, patch).await.map(drop)
    }

    fn class(&self, named: Option<&str>, driver: &str) -> Option<Arc<Object>> {
        let of_driver = |c: &Arc<Object>| c.value().is_ok_and(|v| v["driver"] == driver);
        match named {
            Some(name) => self.classes.get(&ObjectKey::cluster(name)).filter(of_driver),
            None => {
                let default =
                    |c: &Arc<Object>| c.meta().annotations.get(DEFAULT).is_some_and(|v| v == "true");
                self.classes.list().into_iter().find(|c| default(c) && of_driver(c))
            }
        }
    }

    async fn snapshot(&self, object: Arc<Object>) -> Outcome {
        let value = object.value().map_err(ApiError::internal)?;
        let source = &value["spec"]["source"];
        let name = match source["volumeSnapshotContentName"].as_str() {
            Some(name) => name.to_string(),
            None => format!("snapcontent-{}", object.uid()),
        };
        let content = self.contents.get(&ObjectKey::cluster(name.as_str()));
        if object.meta().deletion_timestamp.is_some() {
            let of_content = content.as_ref().and_then(|c| c.value().ok()).unwrap_or_default();
            if of_content["spec"]["deletionPolicy"] == "Delete" && content.is_some() {
                let options = DeleteOptions::default();
                match self.csi.context.client.delete(&CONTENTS, &ObjectKey::cluster(name), options).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => return Ok(None),
                }
            }
            self.finalize(&SNAPSHOTS, &object, SNAPSHOT_FINALIZER, false).await?;
            return Ok(None);
        }
        let Some(content) = content else {
            if let Some(claim) = source["persistentVolumeClaimName"].as_str() {
                self.create(&object, &value, claim, &name).await?;
            }
            return Ok(None);
        };
        self.finalize(&SNAPSHOTS, &object, SNAPSHOT_FINALIZER, true).await?;
        let content = content.value().map_err(ApiError::internal)?;
        let of = &content["spec"]["volumeSnapshotRef"];
        if of["name"] != *object.key.name || of["namespace"] != *object.key.namespace {
            return Ok(None);
        }
        let of = &content["status"];
        let size = of["restoreSize"].as_i64().map(|n| Quantity::from_bytes(n).to_string());
        let time = of["creationTime"].as_i64().and_then(|n| jiff::Timestamp::from_nanosecond(n.into()).ok());
        let status = json!({"boundVolumeSnapshotContentName": name, "readyToUse": of["readyToUse"] == true,
            "restoreSize": size, "creationTime": time.map(machinery::time::format), "error": of["error"]});
        self.status(&SNAPSHOTS, &object, status).await?;
        Ok(None)
    }

    /// The content of a snapshot that is to be taken of a claim.
    async fn create(&self, object: &Object, value: &Value, claim: &str, name: &str) -> Result<(), ApiError> {
        let key = ObjectKey::new(object.key.namespace.clone(), claim);
        let spec = |o: Arc<Object>| o.value().ok().map(|mut v| v["spec"].take());
        let volume = self.csi.claims.get(&key).and_then(spec);
        let volume = volume.and_then(|c| c["volumeName"].as_str().map(ObjectKey::cluster));
        let Some(volume) = volume.and_then(|k| self.csi.volumes.get(&k)).and_then(spec) else {
            return Err(failed(format!("claim {key} has no volume")));
        };
        let source = &volume["csi"];
        let driver = source["driver"].as_str().unwrap_or_default();
        if self.csi.place(driver, Role::Snapshotter).await?.is_none() {
            return Ok(());
        }
        let Some(class) = self.class(value["spec"]["volumeSnapshotClassName"].as_str(), driver) else {
            let text = format!("cannot find a snapshot class for driver {driver}");
            let subject = Subject::of(API, "VolumeSnapshot", object);
            self.csi.context.recorder.record(
                subject,
                EventType::Warning,
                "GetSnapshotClassFailed",
                text.clone(),
            );
            return Err(failed(text));
        };
        let of_class = class.value().map_err(ApiError::internal)?;
        let parameter =
            |what: &str| of_class["parameters"][format!("{OWN}snapshotter-secret-{what}")].clone();
        let annotations = json!({SECRET[0]: parameter("name"), SECRET[1]: parameter("namespace")});
        let body = json!({"apiVersion": API, "kind": "VolumeSnapshotContent",
            "metadata": {"name": name, "finalizers": [CONTENT_FINALIZER], "annotations": annotations},
            "spec": {"deletionPolicy": of_class["deletionPolicy"], "driver": driver,
                "volumeSnapshotClassName": &*class.key.name,
                "source": {"volumeHandle": source["volumeHandle"]},
                "volumeSnapshotRef": {"apiVersion": API, "kind": "VolumeSnapshot", "uid": object.uid(),
                    "namespace": &*object.key.namespace, "name": &*object.key.name}}});
        match self.csi.context.client.create(&CONTENTS, body).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }

    async fn content(&self, object: Arc<Object>) -> Outcome {
        let value = object.value().map_err(ApiError::internal)?;
        let (spec, status) = (&value["spec"], &value["status"]);
        let driver = spec["driver"].as_str().unwrap_or_default();
        let Some(place) = self.csi.place(driver, Role::Snapshotter).await? else { return Ok(None) };
        let annotations = &object.meta().annotations;
        let secret = json!({"name": annotations.get(SECRET[0]), "namespace": annotations.get(SECRET[1])});
        let secrets = self.csi.secrets(&secret).await?;
        if object.meta().deletion_timestamp.is_some() {
            if let Some(id) = status["snapshotHandle"].as_str().filter(|_| spec["deletionPolicy"] == "Delete")
            {
                let request = json!({"snapshot_id": id, "secrets": secrets});
                let done = self.csi.call(&place, driver, "DeleteSnapshot", &request).await;
                done.map_err(|e| failed(e.to_string()))?;
            }
            self.finalize(&CONTENTS, &object, CONTENT_FINALIZER, false).await?;
            return Ok(None);
        }
        self.finalize(&CONTENTS, &object, CONTENT_FINALIZER, true).await?;
        if status["readyToUse"] == true {
            return Ok(None);
        }
        if let Some(handle) = spec["source"]["snapshotHandle"].as_str() {
            self.status(&CONTENTS, &object, json!({"snapshotHandle": handle, "readyToUse": true})).await?;
            return Ok(None);
        }
        let class = spec["volumeSnapshotClassName"].as_str().and_then(|n| self.class(Some(n), driver));
        let mut parameters =
            class.and_then(|c| c.value().ok()).map(|mut v| v["parameters"].take()).unwrap_or_default();
        if let Some(map) = parameters.as_object_mut() {
            map.retain(|key, _| !key.starts_with(OWN));
        }
        let of = spec["volumeSnapshotRef"]["uid"].as_str().unwrap_or_default();
        let request = json!({"name": format!("snapshot-{of}"), "source_volume_id": spec["source"]["volumeHandle"],
            "parameters": parameters, "secrets": secrets});
        match self.csi.call(&place, driver, "CreateSnapshot", &request).await {
            Ok(answer) => {
                let made = &answer["snapshot"];
                let ready = made["ready_to_use"] == true;
                let time = &made["creation_time"];
                let time =
                    time["seconds"].as_i64().map(|s| s * 1_000_000_000 + time["nanos"].as_i64().unwrap_or(0));
                let status = json!({"snapshotHandle": made["snapshot_id"], "readyToUse": ready,
                    "restoreSize": made["size_bytes"].as_i64().unwrap_or(0), "creationTime": time, "error": null});
                self.status(&CONTENTS, &object, status).await?;
                Ok((!ready).then_some(NOT_READY))
            }
            Err(error) => {
                let now = machinery::time::format(self.csi.context.now());
                let text = format!("Failed to check and update snapshot content: {error}");
                if status["error"]["message"] != text {
                    let told = json!({"readyToUse": false, "error": {"message": text, "time": now}});
                    self.status(&CONTENTS, &object, told).await?;
                }
                Err(failed(text))
            }
        }
    }
}

#[async_trait]
impl Reconcile for Snapshotter {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        if key.namespace.is_empty() {
            match self.contents.get(key) {
                Some(content) => self.content(content).await,
                None => Ok(None),
            }
        } else {
            match self.snapshots.get(key) {
                Some(snapshot) => self.snapshot(snapshot).await,
                None => Ok(None),
            }
        }
    }
}
