//! Static pods: those of a folder of manifests on the node. They run whether or not there is an API; where there is one,
//! it is shown a mirror of each.
//!
//! Invariants: a static pod's UID is the hash of its manifest, so an edited one is another pod of the same name; what
//! becomes of a mirror changes nothing here; mirrors whose pod is not here are removed.
//! Deliberately not here: running them (`worker`, as any pod), manifests from a URL.

pub mod manifest;

use crate::inbox::Inbox;
use crate::nodeapi::FolderWatch;
use crate::ops::Node;
use client::{DeleteOptions, Object, ObjectKey};
use k8s_schema::gvr::PODS;
use machinery::status::ApiError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The folder is read again at the latest then (the kubelet's figure).
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// A mirror that could not be written is tried again then.
const RETRY: Duration = Duration::from_secs(2);
/// The mirror of a pod that is on its way out is looked at again then.
const LEAVING: Duration = Duration::from_millis(500);
/// A file that is written in several steps is read once.
const SETTLES: Duration = Duration::from_millis(100);
/// Larger manifests are not read.
const MANIFEST_MAX: u64 = 1 << 20;

/// The static pods of a node by name.
pub type Statics = BTreeMap<ObjectKey, Arc<Object>>;

/// Reads the folder. Files beginning with a dot are none, nor are folders; of two pods of one name the first file's wins.
pub fn scan(folder: &Path, node: &str) -> Statics {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    let hidden = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
    let mut found = Statics::new();
    for file in files.iter().filter(|f| !hidden(f)) {
        let fits = file.metadata().is_ok_and(|m| m.is_file() && m.len() <= MANIFEST_MAX);
        let Some(content) = fits.then(|| std::fs::read(file).ok()).flatten() else { continue };
        match manifest::read(&content, &file.display().to_string(), node) {
            Ok(pod) => {
                found.entry(pod.key.clone()).or_insert_with(|| Arc::new(pod));
            }
            Err(error) => tracing::warn!(file = %file.display(), error, "not a static pod"),
        }
    }
    found
}

/// Takes over what the folder says; tells the worker of what changed.
pub fn load(node: &Node, inbox: &Inbox, folder: &Path) {
    let found = scan(folder, &node.facts.node_name);
    let before = std::mem::replace(&mut *node.statics.lock(), found.clone());
    let uid = |all: &Statics, key: &ObjectKey| all.get(key).map(|o| o.uid().to_string());
    for key in before.keys().chain(found.keys()) {
        if uid(&before, key) != uid(&found, key) {
            inbox.pod(key);
        }
    }
}

/// Reads the folder (made when it is missing), before anything is begun; what is returned follows it and keeps the mirrors,
/// for ever. Without a folder mirrors of former times are removed.
pub fn start(node: Arc<Node>, inbox: Arc<Inbox>, folder: Option<PathBuf>) -> impl Future<Output = ()> + Send {
    if let Some(folder) = &folder {
        if let Err(error) = std::fs::create_dir_all(folder) {
            tracing::warn!(folder = %folder.display(), %error, "no folder of static pods");
        }
        load(&node, &inbox, folder);
    }
    async move {
        node.pods.wait_synced().await;
        node.this.wait_synced().await;
        match folder {
            Some(folder) => run(node, inbox, folder).await,
            None => {
                while matches!(reflect(&node).await, Ok(true)) {
                    tokio::time::sleep(LEAVING).await;
                }
            }
        }
    }
}

async fn run(node: Arc<Node>, inbox: Arc<Inbox>, folder: PathBuf) {
    let mut watch = FolderWatch::new(&folder.join("any"));
    let mut pods = node.pods.changed();
    loop {
        let again = match reflect(&node).await {
            Ok(true) => LEAVING,
            Ok(false) => LOOK_EVERY,
            Err(error) => {
                tracing::debug!(%error, "a mirror pod was not written");
                RETRY
            }
        };
        tokio::select! {
            () = watch.changed() => {}
            changed = pods.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(again) => {}
        }
        tokio::time::sleep(SETTLES).await;
        load(&node, &inbox, &folder);
    }
}

/// Makes the API's mirrors agree with the static pods; true when some stay for pods that still end.
async fn reflect(node: &Node) -> Result<bool, ApiError> {
    let statics = node.statics.lock().clone();
    let mut outcome = Ok(false);
    for object in node.pods.list() {
        let Some(hash) = manifest::mirrored(&object) else { continue };
        let current = statics.get(&object.key).is_some_and(|s| s.uid() == hash);
        if current && object.meta().deletion_timestamp.is_none() {
            continue;
        }
        if !current && node.live(hash).is_some() {
            // It is shown as long as it runs.
            outcome = Ok(true);
            continue;
        }
        let uid = Some(object.uid().to_string());
        let options = DeleteOptions { grace_period_seconds: Some(0), uid, ..DeleteOptions::default() };
        match node.client.delete(&PODS, &object.key, options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => outcome = Err(error),
            _ => {}
        }
    }
    let Some(this) = node.this.get(&ObjectKey::cluster(node.facts.node_name.as_str())) else {
        return outcome;
    };
    for (key, pod) in &statics {
        if node.pods.get(key).is_some() {
            continue;
        }
        match node.client.create(&PODS, manifest::mirror(pod, &this)).await {
            Err(error) if !error.is_already_exists() => outcome = Err(error),
            _ => {}
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = |name: &str, image: &str| {
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c, image: {image}}}]}}}}"
            )
        };
        for (file, content) in [
            ("1.yaml", manifest("a", "one")),
            ("2.json", manifest("a", "two")),
            (".3.yaml", manifest("hidden", "x")),
            ("4.txt", "nonsense".into()),
        ] {
            std::fs::write(folder.path().join(file), content).unwrap();
        }
        std::fs::create_dir(folder.path().join("5")).unwrap();
        let found = scan(folder.path(), "n");
        let names: Vec<&str> = found.keys().map(|k| &*k.name).collect();
        assert_eq!(names, ["a-n"]);
        assert_eq!(found.values().next().unwrap().value().unwrap()["spec"]["containers"][0]["image"], "one");
        assert!(scan(&folder.path().join("none"), "n").is_empty());
    }
}
