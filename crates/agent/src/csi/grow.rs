//! Growing volumes on the node: after a volume's capacity went up, its driver is told here, and the claim's status says
//! when it is done.

use super::publish::{Wanted, of_claim, secrets};
use super::{ability, place::Record};
use crate::ops::Node;
use crate::volumes::Bound;
use client::cache::Cache;
use client::{ListOptions, Object, ObjectKey};
use k8s_schema::gvr::{PERSISTENT_VOLUME_CLAIMS as CLAIMS, PERSISTENT_VOLUMES as VOLUMES};
use machinery::quantity::Quantity;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Conditions of a claim that end with it.
const OVER: [&str; 2] = ["FileSystemResizePending", "Resizing"];

/// Until what failed is tried again.
const RETRY: Duration = Duration::from_secs(30);

fn bytes(value: &Value) -> i64 {
    Quantity::from_json(value).and_then(Result::ok).map_or(0, |q| q.units())
}

fn capacity(object: &Object) -> i64 {
    object.value().map_or(0, |v| bytes(&v["spec"]["capacity"]["storage"]))
}

/// Follows the capacities of volumes from the first driver on, for ever.
pub(super) async fn run(node: Arc<Node>) {
    let mut registered = node.csi.registered.subscribe();
    if registered.wait_for(|count| *count > 0).await.is_err() {
        return;
    }
    let volumes = Cache::start(node.client.clone(), VOLUMES, ListOptions::default());
    let (tell, mut grown) = mpsc::unbounded_channel();
    volumes.on_change(Box::new(move |old, new| {
        if let (Some(old), Some(new)) = (old, new)
            && capacity(new) > capacity(old)
        {
            let _ = tell.send(new.clone());
        }
    }));
    let mut failed = Vec::new();
    loop {
        tokio::select! {
            object = grown.recv() => match object {
                Some(object) => failed.extend(look(&node, object).await),
                None => return,
            },
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => {
                for object in std::mem::take(&mut failed) {
                    failed.extend(look(&node, object).await);
                }
            }
        }
    }
}

/// Grows the volume if it is published here; the object comes back if that failed.
async fn look(node: &Node, object: Arc<Object>) -> Option<Arc<Object>> {
    let spec = serde_json::from_value(object.value().ok()?["spec"].take()).ok()?;
    let bound = Bound { name: object.key.name.to_string(), spec };
    let wanted = of_claim(&bound, false, &node.facts.node_name)?;
    let same = |r: &Record| r.spec_vol_id == bound.name && r.volume_lifecycle_mode == "Persistent";
    let path =
        node.csi.published.lock().values().find(|p| same(&p.record)).map(|p| p.mounted.path.clone())?;
    let _lock = node.csi.lock(&wanted.record.driver_name, &wanted.record.volume_handle).await;
    (!grow(node, &wanted, &bound, &path).await).then_some(object)
}

/// When a volume is mounted: it may have grown meanwhile.
pub(super) async fn at_mount(node: &Node, wanted: &Wanted, path: &Path) {
    let key = ObjectKey::cluster(wanted.record.spec_vol_id.as_str());
    let Ok(object) = node.client.get(&VOLUMES, &key).await else { return };
    let Ok(mut value) = object.value() else { return };
    let Ok(spec) = serde_json::from_value(value["spec"].take()) else { return };
    let bound = Bound { name: wanted.record.spec_vol_id.clone(), spec };
    if !grow(node, wanted, &bound, path).await {
        tracing::debug!(volume = bound.name, "the volume stays as large as it was until it changes");
    }
}

/// Tells the driver, then the claim; false: to be tried again.
async fn grow(node: &Node, wanted: &Wanted, bound: &Bound, path: &Path) -> bool {
    let Some(of) = &bound.spec.claim_ref else { return true };
    let key = ObjectKey::new(of.namespace.clone().unwrap_or_default(), of.name.clone().unwrap_or_default());
    let Ok(claim) = node.client.get(&CLAIMS, &key).await else { return false };
    let Ok(value) = claim.value() else { return true };
    let amount = bound.spec.capacity.as_ref().and_then(|c| c.get("storage")).map(|q| json!(q.0));
    let amount = amount.unwrap_or_default();
    if bytes(&amount) <= bytes(&value["status"]["capacity"]["storage"]) || value["status"]["phase"] != "Bound"
    {
        return true;
    }
    let done = async {
        tell_driver(node, wanted, path, bytes(&amount)).await?;
        let conditions: Vec<&Value> =
            value["status"]["conditions"].as_array().into_iter().flatten().collect();
        let rest: Vec<&&Value> =
            conditions.iter().filter(|c| !OVER.iter().any(|over| c["type"] == *over)).collect();
        let patch = json!({"metadata": {"uid": claim.uid()}, "status": {"capacity": {"storage": amount},
            "conditions": rest, "allocatedResourceStatuses": null, "allocatedResources": {"storage": amount}}});
        let stored = node.client.merge_patch_status(&CLAIMS, &key, patch).await;
        stored.map(drop).map_err(|e| e.to_string())
    };
    let done = done.await;
    let grown = done.is_ok();
    match done {
        Ok(()) => {
            let text = format!("MountVolume.NodeExpandVolume succeeded for volume \"{}\"", bound.name);
            node.recorder.claim(&claim, false, "FileSystemResizeSuccessful", text);
        }
        Err(error) => node.recorder.claim(&claim, true, "VolumeResizeFailed", error),
    }
    grown
}

async fn tell_driver(node: &Node, wanted: &Wanted, path: &Path, size: i64) -> Result<(), String> {
    let record = &wanted.record;
    let abilities = node.csi.abilities(&record.driver_name).await.map_err(|e| e.to_string())?;
    if !abilities.contains(&ability::EXPAND) {
        return Ok(());
    }
    let finely = abilities.contains(&ability::MULTI_WRITER);
    let mut request = json!({"volume_id": record.volume_handle, "volume_path": node.csi.place.shown(path),
        "capacity_range": {"required_bytes": size}, "volume_capability": wanted.capability.message(finely, None),
        "secrets": secrets(node, wanted.source.node_expand_secret_ref.as_ref()).await?});
    if abilities.contains(&ability::STAGE) {
        request["staging_target_path"] = json!(node.csi.place.shown(&node.csi.place.staging(record)));
    }
    let done = node.csi.call(&record.driver_name, "NodeExpandVolume", &request).await;
    done.map(drop).map_err(|e| format!("NodeExpandVolume failed: {e}"))
}
