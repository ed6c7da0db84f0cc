//! Undoing: volumes of pods that end, and what agents before left behind.

use super::place::{Published, Record, forget};
use super::{report_in_use, shared};
use crate::ops::{Node, blocking};
use serde_json::json;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Unpublishes all volumes of a pod, and unstages those that no other pod here uses.
///
/// # Errors
/// A driver is not there or refuses: to be tried again.
pub async fn unpublish(node: &Node, uid: &str) -> Result<(), String> {
    let (place, pod) = (node.csi.place.clone(), uid.to_string());
    let all = blocking(move || place.published(&pod)).await?;
    node.csi.published.lock().retain(|(of, _), _| of != uid);
    if all.is_empty() {
        return Ok(());
    }
    for (folder, record) in &all {
        let _lock = node.csi.lock(&record.driver_name, &record.volume_handle).await;
        let target = node.csi.place.target(uid, record);
        undo(node, record, "NodeUnpublishVolume", ("target_path", &target)).await?;
        forget(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        if record.volume_lifecycle_mode != "Ephemeral" && !node.csi.place.has_users(record) {
            unstage(node, record).await?;
        }
    }
    remove_empty(&node.csi.place.pods().join(uid));
    report_in_use(node).await
}

/// Undoes staging, if the volume was staged. The volume's lock is held.
async fn unstage(node: &Node, record: &Record) -> Result<(), String> {
    let folder = node.csi.place.staged(record);
    if !folder.exists() {
        return Ok(());
    }
    let staging = node.csi.place.staging(record);
    undo(node, record, "NodeUnstageVolume", ("staging_target_path", &staging)).await?;
    forget(&folder).map_err(|e| format!("{}: {e}", folder.display()))
}

/// Has a driver undo a mount, and sees that it is gone.
async fn undo(
    node: &Node,
    record: &Record,
    method: &str,
    (field, path): (&str, &Path),
) -> Result<(), String> {
    let mut request = json!({"volume_id": record.volume_handle});
    request[field] = json!(node.csi.place.shown(path));
    match node.csi.call(&record.driver_name, method, &request).await {
        Ok(_) => {}
        Err(error) if node.csi.emptying.load(Ordering::Relaxed) => {
            tracing::info!(%error, volume = record.spec_vol_id, "volume given up with the node");
            shared::unmount_below(path).map_err(|e| format!("{}: {e}", path.display()))?;
        }
        Err(error) => return Err(format!("kubernetes.io/csi: {method} failed: {error}")),
    }
    if shared::is_mounted(path) {
        return Err(format!("kubernetes.io/csi: {} is still mounted after {method}", path.display()));
    }
    // Never with what is in it: it may be the volume.
    let removed = if path.is_dir() { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
    match removed {
        // With the node going, what somebody wrote beneath the mount must not hold its end up.
        Err(e)
            if e.kind() == std::io::ErrorKind::DirectoryNotEmpty
                && node.csi.emptying.load(Ordering::Relaxed) =>
        {
            tracing::warn!(path = %path.display(), "files beneath a volume are left");
            Ok(())
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {e}", path.display())),
        _ => Ok(()),
    }
}

/// Removes empty folders, the inner ones first; what holds anything stays.
fn remove_empty(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

/// Volumes of pods that are no longer here, and staged ones that nobody uses. True: something is left to be done.
pub(super) async fn orphans(node: &Node) -> bool {
    let mut left = false;
    let known = |uid: &String| node.pods.list().iter().any(|p| p.uid() == uid) || node.live(uid).is_some();
    for uid in node.csi.place.uids().into_iter().filter(|uid| !known(uid)) {
        if let Err(error) = unpublish(node, &uid).await {
            left = true;
            tracing::warn!(uid, error, "volume of a pod that is gone stays mounted");
        }
    }
    let staged: Vec<Published> = node.csi.place.all_staged();
    for (_, record) in staged {
        let _lock = node.csi.lock(&record.driver_name, &record.volume_handle).await;
        if node.csi.place.has_users(&record) {
            continue;
        }
        let done = async {
            unstage(node, &record).await?;
            report_in_use(node).await
        };
        if let Err(error) = done.await {
            left = true;
            tracing::warn!(volume = record.spec_vol_id, error, "volume that nobody uses stays staged");
        }
    }
    left
}
