//! The attacher's role: a VolumeAttachment becomes a call of the driver's controller service, its answer the status.

use super::ATTACHMENTS;
use super::drivers::{Csi, Role, ability, capability_of};
use crate::context::{Outcome, Reconcile, enqueue_self, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::{Object, ObjectKey};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Attachments worked on at the same time.
const WORKERS: usize = 4;
/// Until an attachment that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Kept on an attachment: the driver's name for the node, and for the volume, both needed when their objects are gone.
const NODE_ID: &str = "csi.alpha.kubernetes.io/node-id";
const HANDLE: &str = "gantry.dev/volume-handle";

struct Attacher {
    csi: Arc<Csi>,
    attachments: Arc<Cache>,
}

/// Starts it.
pub fn start(csi: &Arc<Csi>) -> Vec<JoinHandle<()>> {
    let attachments = csi.context.informers.of(&ATTACHMENTS);
    let queue = Arc::new(Queue::default());
    enqueue_self(&attachments, &queue);
    let mut caches = csi.caches();
    caches.push(attachments.clone());
    // A driver that comes finds what waits for it.
    let (waker, all) = (queue.clone(), attachments.clone());
    csi.csi_nodes.on_change(Box::new(move |_, _| all.list().iter().for_each(|a| waker.add(a.key.clone()))));
    run("csi-attacher", caches, queue, WORKERS, Arc::new(Attacher { csi: csi.clone(), attachments }))
}

/// As upstream's helper names it: the driver's name with dashes for what a finalizer may not have.
fn finalizer(driver: &str) -> String {
    format!("external-attacher/{}", driver.replace('.', "-"))
}

/// What is told of a failure.
struct Failure {
    text: String,
    /// The driver's.
    code: Option<u32>,
}

impl From<String> for Failure {
    fn from(text: String) -> Failure {
        Failure { text, code: None }
    }
}

impl From<grpc::Status> for Failure {
    fn from(status: grpc::Status) -> Failure {
        Failure { text: status.to_string(), code: Some(status.code) }
    }
}

impl Attacher {
    fn node_id(&self, node: &str, driver: &str) -> Option<String> {
        let value = self.csi.csi_nodes.get(&ObjectKey::cluster(node))?.value().ok()?;
        let mut drivers = value["spec"]["drivers"].as_array()?.iter();
        drivers.find(|d| d["name"] == driver)?["nodeID"].as_str().map(str::to_string)
    }

    async fn status(&self, object: &Object, status: Value) -> Result<(), ApiError> {
        let patch = json!({"metadata": {"uid": object.uid()}, "status": status});
        let stored = self.csi.context.client.merge_patch_status(&ATTACHMENTS, &object.key, patch).await?;
        self.attachments.observe(stored);
        Ok(())
    }

    async fn metadata(&self, object: &Object, metadata: Value) -> Result<(), ApiError> {
        let mut metadata = metadata;
        metadata["uid"] = json!(object.uid());
        metadata["resourceVersion"] = json!(object.revision.to_string());
        let patch = json!({"metadata": metadata});
        let stored = self.csi.context.client.merge_patch(&ATTACHMENTS, &object.key, patch).await?;
        self.attachments.observe(stored);
        Ok(())
    }

    async fn failed(&self, object: &Object, field: &str, error: impl Into<Failure>) -> Outcome {
        let now = machinery::time::format(self.csi.context.now());
        let Failure { text, code } = error.into();
        let told = object.value().is_ok_and(|v| v["status"][field]["message"] == text);
        if !told {
            let mut status =
                json!({"attached": object.value().is_ok_and(|v| v["status"]["attached"] == true)});
            status[field] = json!({"time": now, "message": text});
            if let Some(code) = code {
                status[field]["errorCode"] = json!(code);
            }
            self.status(object, status).await?;
        }
        Ok(Some(RETRY))
    }

    async fn attach(&self, object: Arc<Object>, spec: &Value) -> Outcome {
        let text = |key: &str| spec[key].as_str().unwrap_or_default().to_string();
        let (driver, node) = (text("attacher"), text("nodeName"));
        let Some(place) = self.csi.place(&driver, Role::Attacher).await? else { return Ok(None) };
        let abilities = match self.csi.abilities(&place, &driver).await {
            Ok(abilities) => abilities,
            Err(error) => return self.failed(&object, "attachError", error).await,
        };
        if !abilities.contains(&ability::PUBLISH) {
            self.status(&object, json!({"attached": true, "attachError": null})).await?;
            return Ok(None);
        }
        let volume = spec["source"]["persistentVolumeName"].as_str().unwrap_or_default();
        let Some(volume) = self.csi.volumes.get(&ObjectKey::cluster(volume)) else {
            let text = format!("could not get PV \"{volume}\": not found");
            return self.failed(&object, "attachError", text).await;
        };
        let Some(id) = self.node_id(&node, &driver) else {
            let text = format!("node \"{node}\" has no NodeID annotation");
            return self.failed(&object, "attachError", text).await;
        };
        let volume = volume.value().map_err(ApiError::internal)?;
        let source = &volume["spec"]["csi"];
        let name = finalizer(&driver);
        if !object.meta().finalizers.contains(&name) {
            let mut finalizers = object.meta().finalizers.clone();
            finalizers.push(name);
            let annotations = json!({NODE_ID: id, HANDLE: source["volumeHandle"]});
            // The change itself brings it back here.
            self.metadata(&object, json!({"finalizers": finalizers, "annotations": annotations})).await?;
            return Ok(Some(Duration::ZERO));
        }
        let finely = abilities.contains(&ability::MULTI_WRITER);
        let read_only = source["readOnly"] == true && abilities.contains(&ability::READ_ONLY);
        let request = json!({"volume_id": source["volumeHandle"], "node_id": id,
            "volume_capability": capability_of(&volume, finely), "readonly": read_only,
            "secrets": self.csi.secrets(&source["controllerPublishSecretRef"]).await?,
            "volume_context": source["volumeAttributes"]});
        match self.csi.call(&place, &driver, "ControllerPublishVolume", &request).await {
            Ok(answer) => {
                let context = answer["publish_context"].clone();
                let status = json!({"attached": true, "attachmentMetadata": context, "attachError": null});
                self.status(&object, status).await?;
                Ok(None)
            }
            Err(error) => self.failed(&object, "attachError", error).await,
        }
    }

    async fn detach(&self, object: Arc<Object>, spec: &Value) -> Outcome {
        let driver = spec["attacher"].as_str().unwrap_or_default();
        let name = finalizer(driver);
        let annotations = &object.meta().annotations;
        let (Some(id), Some(handle)) = (annotations.get(NODE_ID), annotations.get(HANDLE)) else {
            return Ok(None);
        };
        if !object.meta().finalizers.contains(&name) {
            return Ok(None);
        }
        let Some(place) = self.csi.place(driver, Role::Attacher).await? else { return Ok(None) };
        let volume = spec["source"]["persistentVolumeName"].as_str().unwrap_or_default();
        let volume = self.csi.volumes.get(&ObjectKey::cluster(volume)).and_then(|v| v.value().ok());
        let secrets =
            volume.map(|v| v["spec"]["csi"]["controllerPublishSecretRef"].clone()).unwrap_or_default();
        let request =
            json!({"volume_id": handle, "node_id": id, "secrets": self.csi.secrets(&secrets).await?});
        match self.csi.call(&place, driver, "ControllerUnpublishVolume", &request).await {
            Err(error) if error.code != grpc::code::NOT_FOUND => {
                self.failed(&object, "detachError", error).await
            }
            _ => {
                let rest: Vec<&String> = object.meta().finalizers.iter().filter(|f| **f != name).collect();
                self.metadata(&object, json!({"finalizers": rest})).await?;
                Ok(None)
            }
        }
    }
}

#[async_trait]
impl Reconcile for Attacher {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(object) = self.attachments.get(key) else { return Ok(None) };
        let value = object.value().map_err(ApiError::internal)?;
        let done = if object.meta().deletion_timestamp.is_some() {
            self.detach(object, &value["spec"]).await
        } else if value["status"]["attached"] == true {
            return Ok(None);
        } else {
            self.attach(object, &value["spec"]).await
        };
        match done {
            Err(error) if error.is_not_found() => Ok(None),
            done => done,
        }
    }
}
