//! The end of volumes of Gantry's own driver: when one on this node is released and is to be deleted, its folder is
//! removed, then its PersistentVolume. And the emptying of others' folders, where the controllers ask for it.
//!
//! Level-triggered over a cache of this node's volumes; idle costs nothing. Where somebody deletes a released volume by
//! hand, the controllers keep its object until the agent has removed the folder ([`serve`]); one whose object is gone
//! otherwise keeps its folder, unless it was released for deletion when last seen.

use crate::events::Recorder;
use crate::facts::NodeFacts;
use crate::ops::blocking;
use crate::volumes::{DRIVER, claim_folder};
use client::cache::Cache;
use client::{ApiClient, DeleteOptions, ListOptions, Object};
use k8s_schema::gvr::PERSISTENT_VOLUMES;
use parking_lot::Mutex;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The label that says on which node a volume is.
const NODE_LABEL: &str = "gantry.dev/node";
/// After a removal failed.
const RETRY: Duration = Duration::from_secs(30);

/// The driver by which the controllers call the agent itself ([`DRIVER`] is no part of a path).
pub const AGENT: &str = "local.gantry.dev";

/// What the controllers ask for: to empty a folder (`Recycle`), or to remove that of a volume of Gantry's driver, which
/// may be gone (`Delete`).
pub fn serve(facts: &NodeFacts, method: &str, request: &Value) -> Result<(), String> {
    let text = |key: &str| request[key].as_str().unwrap_or_default();
    match method {
        "Recycle" => recycle(Path::new(text("path"))),
        "Delete" => {
            let folder = claim_folder(facts, text("volume"));
            remove(&folder.ok_or_else(|| format!("{:?} is no volume", text("volume")))?)
        }
        _ => Err(format!("{method} is not known here")),
    }
}

/// Removes all that is in a folder of the node which a volume with the policy `Recycle` names, but not itself; links in
/// it are removed, not followed.
fn recycle(folder: &Path) -> Result<(), String> {
    let told = |e: std::io::Error| format!("{}: {e}", folder.display());
    if !folder.is_absolute() || folder.canonicalize().map_err(told)?.parent().is_none() {
        return Err(format!("{}: is not recycled", folder.display()));
    }
    for entry in std::fs::read_dir(folder).map_err(told)? {
        let entry = entry.map_err(told)?;
        let is_folder = entry.file_type().map_err(told)?.is_dir();
        let path = entry.path();
        if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.map_err(told)?;
    }
    Ok(())
}

/// The folder to be removed with the volume; `None`: it stays.
fn doomed(facts: &NodeFacts, object: &Object) -> Option<PathBuf> {
    let value: Value = object.value().ok()?;
    let ours = value["spec"]["csi"]["driver"] == DRIVER
        && value["metadata"]["labels"][NODE_LABEL] == facts.node_name.as_str();
    let over =
        value["status"]["phase"] == "Released" && value["spec"]["persistentVolumeReclaimPolicy"] == "Delete";
    (ours && over).then(|| claim_folder(facts, value["spec"]["csi"]["volumeHandle"].as_str()?))?
}

fn remove(folder: &Path) -> Result<(), String> {
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
    fn recycling_empties_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let (own, others) = (folder.path().join("own"), folder.path().join("others"));
        std::fs::create_dir_all(own.join("deep/er")).unwrap();
        std::fs::create_dir(&others).unwrap();
        for file in [own.join(".hidden"), own.join("deep/file"), others.join("stays")] {
            std::fs::write(file, "x").unwrap();
        }
        std::os::unix::fs::symlink(&others, own.join("link")).unwrap();
        recycle(&own).unwrap();
        assert_eq!(std::fs::read_dir(&own).unwrap().count(), 0);
        assert!(others.join("stays").exists());
        for bad in ["/", "relative", "/proc/..", "/no/such/folder"] {
            assert!(recycle(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_controllers_have_folders_removed() {
        let root = tempfile::tempdir().unwrap();
        let facts = facts(root.path());
        let folder = facts.data_dir.join("claims/v");
        std::fs::create_dir_all(folder.join("deep")).unwrap();
        for volume in ["", "..", "v/deep", "../claims/v"] {
            assert!(serve(&facts, "Delete", &json!({"volume": volume})).is_err(), "{volume}");
        }
        assert!(serve(&facts, "Other", &json!({"volume": "v"})).is_err());
        for _ in 0..2 {
            serve(&facts, "Delete", &json!({"volume": "v"})).unwrap();
        }
        assert!(!folder.exists() && folder.parent().unwrap().exists());
    }

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
