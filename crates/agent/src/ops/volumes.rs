//! Mounting a pod's volumes: gather objects and tokens, then write on a blocking thread. Before that the devices of its
//! claims are made ready.

use super::{Mounted, Node, blocking, claims::claims, tokens::tokens};
use crate::csi;
use crate::decide::outcome::{Outcome, StartFailure};
use crate::dra;
use crate::images;
use crate::pod::PodView;
use crate::volumes::memory_sources;
use crate::volumes::{Context, ImageLayers, mount_all, references};
use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;

/// What became of waiting for a pod's shim.
enum Shim {
    /// Its root, when it has a memory file system for us (shims of older agents have none).
    There(Option<PathBuf>),
    /// It could not be made.
    Failed,
}

/// Waits until the pod's shim is there, or its making is over.
async fn shim(node: &Node, pod: &PodView) -> Shim {
    let mut making = node.sandboxes.subscribe();
    loop {
        let busy = making.borrow_and_update().contains(pod.uid());
        if let Some(live) = node.live(pod.uid()) {
            let memory = node.facts.memory_dir(pod.uid());
            let has = live.spec.tmpfs.iter().any(|t| t.path == memory);
            return Shim::There(has.then(|| format!("/proc/{}/root", live.shim_pid).into()));
        }
        if !busy || making.changed().await.is_err() {
            return Shim::Failed;
        }
    }
}

/// The layers of the pod's image volumes, or the volume whose image is not to be had. An image stays the same as long
/// as the pod lives.
async fn image_layers(node: &Node, pod: &PodView) -> Result<ImageLayers, (String, StartFailure)> {
    let mut all = ImageLayers::new();
    for volume in pod.spec().volumes.iter().flatten() {
        let Some(source) = &volume.image else { continue };
        let key = images::volume_key(&volume.name);
        let held =
            node.leases.lock().get(pod.uid()).and_then(|l| l.get(&key).map(|l| l.image().layers.clone()));
        let layers = match held {
            Some(layers) => layers,
            None => {
                let reference = source.reference.as_deref().unwrap_or_default();
                let policy = source.pull_policy.as_deref();
                let found = images::ensure_named(node, pod, "", (reference, policy)).await;
                let found = found.map_err(|failure| (volume.name.clone(), failure))?;
                let layers = found.lease.image().layers.clone();
                node.leases.lock().entry(pod.uid().into()).or_default().insert(key, found.lease);
                layers
            }
        };
        all.insert(volume.name.clone(), layers);
    }
    Ok(all)
}

/// Mounts (or refreshes) all volumes.
pub async fn volumes(node: Arc<Node>, pod: PodView) -> (Outcome, Option<Mounted>) {
    if let Err(why) = dra::prepare(&node, &pod).await {
        return (Outcome::Claims(format!("prepare dynamic resources: {why}")), None);
    }
    if pod.spec().volumes.as_ref().is_none_or(Vec::is_empty) {
        return (Outcome::Volumes(Ok(None)), Some(Mounted::default()));
    }
    let tokens = tokens(&node, &pod).await;
    let refresh_at = tokens.values().flatten().map(|t| t.refresh_at).min();
    let mut refresh = refresh_at.map(|at| at.duration_since(Timestamp::now()));
    let objects = match node.objects.snapshot(pod.namespace(), &references(&pod)).await {
        Ok(objects) => objects,
        Err(error) => return (Outcome::Volumes(Err(error)), None),
    };
    let claims = claims(&node, &pod).await;
    let (drivers, again) = csi::publish(&node, &pod, &claims).await;
    refresh = refresh.into_iter().chain(again).min();
    let images = match image_layers(&node, &pod).await {
        Ok(images) => images,
        Err((volume, failure)) => return (Outcome::VolumeImage(volume, failure), None),
    };
    let root = match memory_sources(&pod) {
        0 => None,
        _ => match shim(&node, &pod).await {
            Shim::There(root) => root,
            Shim::Failed => return (Outcome::VolumesWait, None),
        },
    };
    let facts = node.facts.clone();
    let done = blocking(move || {
        let context = Context {
            pod: &pod,
            facts: &facts,
            objects: &objects,
            tokens: &tokens,
            claims: &claims,
            drivers: &drivers,
            images: &images,
            pod_ips: &[],
            shim_root: root.as_deref(),
        };
        mount_all(&context)
    });
    match done.await.and_then(|mounted| mounted) {
        Ok(mounted) => (Outcome::Volumes(Ok(refresh)), Some(Arc::new(mounted))),
        Err(error) => (Outcome::Volumes(Err(error)), None),
    }
}
