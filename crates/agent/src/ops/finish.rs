//! The end of a pod: status, tear-down, deletion; and sweeping what former agents left.

use super::{Node, blocking};
use crate::cpus;
use crate::csi;
use crate::decide::outcome::Outcome;
use crate::dra;
use crate::pod::PodView;
use crate::statics::manifest;
use crate::status::RESIZING;
use client::{DeleteOptions, Object, ObjectKey};
use k8s_schema::gvr::PODS;
use machinery::status::ApiError;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Attempts to write a status over somebody else's writes.
const CONFLICTS_MAX: u32 = 5;
/// What others write into a pod's status.
const FOREIGN: [&str; 2] = ["resourceClaimStatuses", "extendedResourceClaimStatus"];

/// Writes a pod's status; conditions that others set meanwhile are kept.
pub async fn write_status(node: Arc<Node>, pod: PodView, status: Value) -> Result<Arc<Object>, ApiError> {
    let key = pod.key().clone();
    let mirror = node.mirror_of(&pod.object);
    if node.is_static(&pod.object) && mirror.is_none() {
        // Not "not found": it will be there.
        return Err(ApiError::new(503, "ServiceUnavailable", "the static pod has no mirror yet"));
    }
    let cached = || node.pods.get(&key).unwrap_or_else(|| pod.object.clone());
    let mut current = mirror.unwrap_or_else(cached);
    for _ in 0..CONFLICTS_MAX {
        if current.uid() != pod.uid() && manifest::mirrored(&current) != Some(pod.uid()) {
            return Err(ApiError::not_found(&PODS, &key.name));
        }
        let mut body = current.value().map_err(ApiError::internal)?;
        body["status"] = with_foreign(status.clone(), &body["status"]);
        match node.client.update_status(&PODS, &key, body).await {
            Ok(object) => {
                node.pods.observe(object.clone());
                return Ok(object);
            }
            Err(error) if error.is_conflict() => current = node.client.get(&PODS, &key).await?,
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::conflict(&PODS, &key.name, ApiError::MODIFIED))
}

/// With the fields and conditions that are others'.
fn with_foreign(mut status: Value, stored: &Value) -> Value {
    for field in FOREIGN.iter().filter(|f| !stored[**f].is_null()) {
        status[*field] = stored[*field].clone();
    }
    let own = status["conditions"].as_array().cloned().unwrap_or_default();
    let known = |c: &Value| {
        own.iter().any(|o| o["type"] == c["type"]) || RESIZING.iter().any(|kind| c["type"] == *kind)
    };
    let foreign: Vec<Value> =
        stored["conditions"].as_array().into_iter().flatten().filter(|c| !known(c)).cloned().collect();
    if let Some(list) = status["conditions"].as_array_mut() {
        list.extend(foreign);
    }
    status
}

/// Removes everything of the pod from the node but its logs.
pub async fn teardown(node: Arc<Node>, uid: String) -> Outcome {
    Outcome::TornDown(remove(&node, &uid).await)
}

async fn remove(node: &Arc<Node>, uid: &str) -> Result<(), String> {
    if node.live(uid).is_some() {
        node.runtime.remove_pod(uid).await.map_err(|e| e.to_string())?;
    }
    let (shared, name) = (node.clone(), uid.to_string());
    // The link's removal takes some 30 ms in the kernel; nobody need wait for it.
    tokio::task::spawn_blocking(move || {
        if let Err(error) = shared.network.detach(&name) {
            tracing::warn!(uid = name, %error, "pod network not removed");
        }
    });
    node.tokens.lock().remove(uid);
    node.probed.lock().remove(uid);
    node.user_ranges.lock().remove(uid);
    node.leases.lock().remove(uid);
    node.devices.release(uid).await;
    cpus::release(node, uid).await;
    match dra::unprepare(node, uid).await {
        // A node that is emptied does not wait for drivers that are gone already.
        Err(error) if node.csi.emptying.load(Ordering::Relaxed) => {
            tracing::warn!(uid, error, "devices stay ready");
        }
        done => done?,
    }
    csi::unpublish(node, uid).await?;
    let folder = node.facts.pod_dir(uid);
    blocking(move || remove_folder(&folder)).await?
}

fn remove_folder(folder: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("removing {}: {e}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Writes the final status, then deletes the pod for good.
pub async fn finalize(node: Arc<Node>, pod: PodView, status: Value) -> Outcome {
    let (key, uid) = (pod.key().clone(), pod.uid().to_string());
    match write_status(node.clone(), pod, status).await {
        Err(error) if !error.is_not_found() => return Outcome::Finalized(Err(error.to_string())),
        _ => {}
    }
    let options = DeleteOptions { grace_period_seconds: Some(0), uid: Some(uid), ..DeleteOptions::default() };
    match node.client.delete(&PODS, &key, options).await {
        // Conflict: the name belongs to another pod by now.
        Err(error) if !error.is_not_found() && !error.is_conflict() => {
            Outcome::Finalized(Err(error.to_string()))
        }
        _ => Outcome::Finalized(Ok(())),
    }
}

/// A pod that runs here and that the API no longer knows.
pub async fn remove_orphan(node: Arc<Node>, uid: String) {
    if let Err(error) = remove(&node, &uid).await {
        tracing::warn!(uid, error, "pod without an API object not removed");
    }
}

/// Folders of pods that the API no longer knows. To be listed before any new pod is begun.
pub fn leftovers(node: &Node, known: &BTreeSet<String>) -> Vec<PathBuf> {
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    };
    let pods = node.facts.data_dir.join("pods");
    let folders = names(&pods).into_iter().filter(|uid| !known.contains(uid)).map(|uid| pods.join(uid));
    let unknown = |name: &String| {
        // Only what is named like a pod's logs: somebody may keep other things there.
        name.split('_').count() == 3 && !known.contains(name.rsplit('_').next().unwrap_or_default())
    };
    let logs =
        names(&node.facts.log_dir).into_iter().filter(unknown).map(|name| node.facts.log_dir.join(name));
    folders.chain(logs).collect()
}

/// Removes folders; blocking.
pub fn sweep(folders: &[PathBuf]) {
    for folder in folders {
        if let Err(error) = remove_folder(folder) {
            tracing::warn!(error, "leftover of a pod stays");
        }
    }
}

/// Removes a pod's logs once its log drivers have read them.
pub async fn remove_logs(node: Arc<Node>, key: ObjectKey, uid: String) {
    if let Some(logging) = node.logging() {
        logging.drain(&uid).await;
    }
    let folder = node.facts.log_folder(&key.namespace, &key.name, &uid);
    let _ = blocking(move || remove_folder(&folder)).await;
}
