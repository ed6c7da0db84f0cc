//! The resizer's role: claims that ask for more grow, in the driver's controller first, then on the node where the
//! driver says so; and volumes get the attributes of another VolumeAttributesClass.

use super::ATTRIBUTES_CLASSES;
use super::drivers::{Csi, Role, ability, capability_of};
use crate::context::{Outcome, Reconcile, enqueue, run};
use crate::volumes::LOCAL;
use async_trait::async_trait;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{Object, ObjectKey};
use grpc::code;
use k8s_schema::gvr::{PERSISTENT_VOLUME_CLAIMS as CLAIMS, PERSISTENT_VOLUMES as VOLUMES};
use machinery::quantity::Quantity;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Claims worked on at the same time.
const WORKERS: usize = 2;
const PENDING: &str = "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";

struct Resizer {
    csi: Arc<Csi>,
}

/// A bound claim and its volume.
struct Pair {
    claim: Arc<Object>,
    value: Value,
    volume: Arc<Object>,
    spec: Value,
}

fn bytes(value: &Value) -> i64 {
    Quantity::from_json(value).and_then(Result::ok).map_or(0, |q| q.units())
}

/// Starts it.
pub fn start(csi: &Arc<Csi>) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    enqueue(&csi.claims, &queue, |claim| vec![claim.key.clone()]);
    let (waker, claims) = (queue.clone(), csi.claims.clone());
    csi.csi_nodes
        .on_change(Box::new(move |_, _| claims.list().iter().for_each(|c| waker.add(c.key.clone()))));
    run("csi-resizer", csi.caches(), queue, WORKERS, Arc::new(Resizer { csi: csi.clone() }))
}

/// The claim's conditions with one of them set, or with none of the two.
fn conditions(claim: &Value, now: &str, set: Option<(&str, &str)>) -> Vec<Value> {
    let own = ["Resizing", "FileSystemResizePending"];
    let stored = claim["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let mut all: Vec<Value> = stored.into_iter().filter(|c| !own.iter().any(|o| c["type"] == *o)).collect();
    all.extend(set.map(|(kind, message)| {
        json!({"type": kind, "status": "True", "lastTransitionTime": now, "message": message,
            "lastProbeTime": null})
    }));
    all
}

impl Resizer {
    fn tell(&self, claim: &Object, level: EventType, reason: &str, text: String) {
        let subject = Subject::of("v1", "PersistentVolumeClaim", claim);
        self.csi.context.recorder.record(subject, level, reason, text);
    }

    async fn status(&self, claim: &Object, status: Value) -> Result<(), ApiError> {
        let patch = json!({"metadata": {"uid": claim.uid()}, "status": status});
        let stored = self.csi.context.client.merge_patch_status(&CLAIMS, &claim.key, patch).await?;
        self.csi.claims.observe(stored);
        Ok(())
    }

    async fn patch_volume(&self, pair: &Pair, spec: Value) -> Result<(), ApiError> {
        let patch = json!({"metadata": {"uid": pair.volume.uid()}, "spec": spec});
        let stored = self.csi.context.client.merge_patch(&VOLUMES, &pair.volume.key, patch).await?;
        self.csi.volumes.observe(stored);
        Ok(())
    }

    /// The claim with the volume of a driver that it is bound to.
    fn pair(&self, key: &ObjectKey) -> Result<Option<Pair>, ApiError> {
        let Some(claim) = self.csi.claims.get(key) else { return Ok(None) };
        let value = claim.value().map_err(ApiError::internal)?;
        let name = value["spec"]["volumeName"].as_str().unwrap_or_default();
        let Some(volume) = self.csi.volumes.get(&ObjectKey::cluster(name)) else { return Ok(None) };
        let spec = volume.value().map_err(ApiError::internal)?["spec"].take();
        let bound = value["status"]["phase"] == "Bound" && spec["claimRef"]["uid"] == claim.uid();
        let theirs = spec["csi"]["driver"].as_str().is_some_and(|d| d != LOCAL);
        Ok((bound && theirs).then_some(Pair { claim, value, volume, spec }))
    }

    async fn grow(&self, pair: &Pair, driver: &str) -> Result<(), ApiError> {
        let asked = &pair.value["spec"]["resources"]["requests"]["storage"];
        let wanted = bytes(asked);
        if wanted <= bytes(&pair.spec["capacity"]["storage"]) {
            return Ok(());
        }
        let Some(place) = self.csi.place(driver, Role::Resizer).await? else { return Ok(()) };
        let name = &pair.volume.key.name;
        let now = machinery::time::format(self.csi.context.now());
        let failed = |e: grpc::Status| {
            let text = format!("resize volume \"{name}\" by resizer \"{driver}\" failed: {e}");
            self.tell(&pair.claim, EventType::Warning, "VolumeResizeFailed", text.clone());
            ApiError::internal(text)
        };
        let abilities = self.csi.abilities(&place, driver).await.map_err(failed)?;
        let state = |state: &str| json!({"storage": state});
        let (mut got, mut on_node) = (wanted, true);
        if abilities.contains(&ability::EXPAND) {
            let text = format!("External resizer is resizing volume {name}");
            self.tell(&pair.claim, EventType::Normal, "Resizing", text);
            let begun = json!({"conditions": conditions(&pair.value, &now, Some(("Resizing", ""))),
                "allocatedResources": {"storage": asked},
                "allocatedResourceStatuses": state("ControllerResizeInProgress")});
            self.status(&pair.claim, begun).await?;
            let source = &pair.spec["csi"];
            let finely = abilities.contains(&ability::MULTI_WRITER);
            let request = json!({"volume_id": source["volumeHandle"],
                "capacity_range": {"required_bytes": wanted},
                "volume_capability": capability_of(&json!({"spec": pair.spec}), finely),
                "secrets": self.csi.secrets(&source["controllerExpandSecretRef"]).await?});
            let answer =
                self.csi.call(&place, driver, "ControllerExpandVolume", &request).await.map_err(failed)?;
            got = answer["capacity_bytes"].as_i64().unwrap_or(wanted).max(wanted);
            on_node = answer["node_expansion_required"] == true;
        }
        let capacity =
            if got == wanted { asked.clone() } else { json!(Quantity::from_bytes(got).to_string()) };
        // The claim first: the node acts on the volume's capacity, and says in the claim that it is done.
        if on_node {
            let status = json!({"conditions": conditions(&pair.value, &now, Some(("FileSystemResizePending", PENDING))),
                "allocatedResources": {"storage": capacity}, "allocatedResourceStatuses": state("NodeResizePending")});
            self.status(&pair.claim, status).await?;
            let text = "Require file system resize of volume on node".to_string();
            self.tell(&pair.claim, EventType::Normal, "FileSystemResizeRequired", text);
        } else {
            let status = json!({"capacity": {"storage": capacity}, "conditions": conditions(&pair.value, &now, None),
                "allocatedResources": {"storage": capacity}, "allocatedResourceStatuses": null});
            self.status(&pair.claim, status).await?;
            let text = "Resize volume succeeded".to_string();
            self.tell(&pair.claim, EventType::Normal, "VolumeResizeSuccessful", text);
        }
        self.patch_volume(pair, json!({"capacity": {"storage": capacity}})).await
    }

    async fn modify(&self, pair: &Pair, driver: &str) -> Result<(), ApiError> {
        let wanted = pair.value["spec"]["volumeAttributesClassName"].as_str().unwrap_or_default();
        let status = &pair.value["status"];
        if wanted.is_empty() || status["currentVolumeAttributesClassName"] == wanted {
            return Ok(());
        }
        let done = json!({"currentVolumeAttributesClassName": wanted, "modifyVolumeStatus": null});
        if pair.spec["volumeAttributesClassName"] == wanted {
            // It was made so.
            return self.status(&pair.claim, done).await;
        }
        let Some(place) = self.csi.place(driver, Role::Resizer).await? else { return Ok(()) };
        let state = |state: &str| json!({"modifyVolumeStatus": {"status": state, "targetVolumeAttributesClassName": wanted}});
        let class = match self.csi.context.client.get(&ATTRIBUTES_CLASSES, &ObjectKey::cluster(wanted)).await
        {
            Err(error) if error.is_not_found() && status["modifyVolumeStatus"]["status"] != "Pending" => {
                let text = format!("VAC {wanted} does not exist.");
                self.tell(&pair.claim, EventType::Warning, "VolumeModify", text);
                return self.status(&pair.claim, state("Pending")).await;
            }
            class => class?.value().map_err(ApiError::internal)?,
        };
        if class["driverName"] != driver {
            let text = format!("VAC {wanted} is of driver {}, the volume of {driver}", class["driverName"]);
            self.tell(&pair.claim, EventType::Warning, "VolumeModifyFailed", text);
            return Ok(());
        }
        let infeasible = status["modifyVolumeStatus"]["status"] == "Infeasible"
            && status["modifyVolumeStatus"]["targetVolumeAttributesClassName"] == wanted;
        if !infeasible {
            self.status(&pair.claim, state("InProgress")).await?;
        }
        let request =
            json!({"volume_id": pair.spec["csi"]["volumeHandle"], "mutable_parameters": class["parameters"]});
        let called = match self.csi.abilities(&place, driver).await {
            Ok(abilities) if !abilities.contains(&ability::MODIFY) => {
                Err(grpc::Status::new(code::INVALID_ARGUMENT, "the driver does not modify volumes"))
            }
            Ok(_) => self.csi.call(&place, driver, "ControllerModifyVolume", &request).await,
            Err(error) => Err(error),
        };
        if let Err(error) = called {
            if error.code == code::INVALID_ARGUMENT && !infeasible {
                self.status(&pair.claim, state("Infeasible")).await?;
            }
            let text = format!("modify volume failed: {error}");
            self.tell(&pair.claim, EventType::Warning, "VolumeModifyFailed", text.clone());
            return Err(ApiError::internal(text));
        }
        self.patch_volume(pair, json!({"volumeAttributesClassName": wanted})).await?;
        let text = format!(
            "external resizer modified volume {} with vac {wanted} successfully",
            pair.volume.key.name
        );
        self.tell(&pair.claim, EventType::Normal, "VolumeModifySuccessful", text);
        self.status(&pair.claim, done).await
    }
}

#[async_trait]
impl Reconcile for Resizer {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(pair) = self.pair(key)? else { return Ok(None) };
        let driver = pair.spec["csi"]["driver"].as_str().unwrap_or_default().to_string();
        self.grow(&pair, &driver).await?;
        self.modify(&pair, &driver).await?;
        Ok(None)
    }
}
