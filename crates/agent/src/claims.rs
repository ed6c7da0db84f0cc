//! The end of volumes of Gantry's own driver: when one on this node is released and is to be deleted, its folder is
//! removed, then its PersistentVolume.
//!
//! Level-triggered over a cache of this node's volumes; idle costs nothing. A volume whose object somebody removed by
//! hand keeps its folder, unless it was released for deletion when last seen.

use crate::events::Recorder;
use crate::facts::NodeFacts;
use crate::ops::blocking;
use crate::volumes::{DRIVER, claim_folder};
use client::cache::Cache;
use client::{ApiClient, DeleteOptions, ListOptions, Object};
use k8s_schema::gvr::PERSISTENT_VOLUMES;
use parking_lot::Mutex;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The label that says on which node a volume is.
const NODE_LABEL: &str = "gantry.dev/node";
/// After a removal failed.
const RETRY: Duration = Duration::from_secs(30);

/// The folder to be removed with the volume; `None`: it stays.
fn doomed(facts: &NodeFacts, object: &Object) -> Option<PathBuf> {
    let value: Value = object.value().ok()?;
    let ours = value["spec"]["csi"]["driver"] == DRIVER
        && value["metadata"]["labels"][NODE_LABEL] == facts.node_name.as_str();
    let over =
        value["status"]["phase"] == "Released" && value["spec"]["persistentVolumeReclaimPolicy"] == "Delete";
    (ours && over).then(|| claim_folder(facts, value["spec"]["csi"]["volumeHandle"].as_str()?))?
}

fn remove(folder: &std::path::Path) -> Result<(), String> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {e}", folder.display())),
        _ => Ok(()),
    }
}

/// Runs for ever.
pub async fn run(client: ApiClient, facts: Arc<NodeFacts>, recorder: Recorder) {
    let options =
        ListOptions { label_selector: format!("{NODE_LABEL}={}", facts.node_name), ..ListOptions::default() };
    let volumes = Cache::start(client.clone(), PERSISTENT_VOLUMES, options);
    let gone: Arc<Mutex<Vec<PathBuf>>> = Arc::default();
    let (list, known) = (gone.clone(), facts.clone());
    volumes.on_change(Box::new(move |old, new| {
        if let (Some(old), None) = (old, new) {
            list.lock().extend(doomed(&known, old));
        }
    }));
    let mut changed = volumes.changed();
    volumes.wait_synced().await;
    loop {
        let mut failed = false;
        let orphans = std::mem::take(&mut *gone.lock());
        for folder in orphans {
            if let Err(error) = blocking(move || remove(&folder)).await.and_then(|r| r) {
                tracing::warn!(error, "folder of a volume that is gone stays");
            }
        }
        for object in volumes.list() {
            let Some(folder) = doomed(&facts, &object) else { continue };
            if let Err(error) = end(&client, &object, folder).await {
                failed = true;
                recorder.volume_warning(&object, "VolumeFailedDelete", error);
            }
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

async fn end(client: &ApiClient, object: &Object, folder: PathBuf) -> Result<(), String> {
    blocking(move || remove(&folder)).await??;
    if object.meta().deletion_timestamp.is_some() {
        return Ok(());
    }
    let options = DeleteOptions { uid: Some(object.uid().into()), ..DeleteOptions::default() };
    match client.delete(&PERSISTENT_VOLUMES, &object.key, options).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::facts;
    use serde_json::json;

    #[test]
    fn only_what_is_ours_and_released_for_deletion_goes() {
        let facts = facts(std::path::Path::new("/x"));
        let of = |phase: &str, policy: &str, node: &str, handle: &str| {
            let value = json!({"metadata": {"name": "v", "labels": {NODE_LABEL: node}}, "status": {"phase": phase},
                "spec": {"persistentVolumeReclaimPolicy": policy, "csi": {"driver": DRIVER, "volumeHandle": handle}}});
            doomed(&facts, &Object::parse(value.to_string().into()).unwrap())
        };
        assert_eq!(of("Released", "Delete", "node-1", "v"), Some("/x/data/claims/v".into()));
        for (phase, policy, node, handle) in [
            ("Bound", "Delete", "node-1", "v"),
            ("Released", "Retain", "node-1", "v"),
            ("Released", "Delete", "node-2", "v"),
            ("Released", "Delete", "node-1", "../pods"),
            ("Released", "Delete", "node-1", ".."),
            ("Released", "Delete", "node-1", ""),
        ] {
            assert_eq!(of(phase, policy, node, handle), None, "{phase} {policy} {node} {handle}");
        }
    }
}
