//! From a pod's volumes by their claims to the PersistentVolumes that are bound to these.

use super::Node;
use crate::pod::PodView;
use crate::volumes::{Bound, Claims, claim_of, is_ready};
use client::ObjectKey;
use k8s_openapi::api::core::v1::Volume;
use k8s_schema::gvr::{PERSISTENT_VOLUME_CLAIMS, PERSISTENT_VOLUMES};

/// The volumes behind the pod's claims, or why there is none, by the pod's name for them.
pub(super) async fn claims(node: &Node, pod: &PodView) -> Claims {
    let mut all = Claims::new();
    for volume in pod.spec().volumes.iter().flatten() {
        if let Some((claim, own)) = claim_of(pod.name(), volume) {
            let found = find(node, pod, volume, (&claim, own)).await;
            let told = found.map_err(|e| format!("error processing PVC {}/{claim}: {e}", pod.namespace()));
            all.insert(volume.name.clone(), told);
        }
    }
    all
}

async fn find(
    node: &Node,
    pod: &PodView,
    volume: &Volume,
    (claim, own): (&str, bool),
) -> Result<Bound, String> {
    let key = ObjectKey::new(pod.namespace(), claim);
    let found = node.client.get(&PERSISTENT_VOLUME_CLAIMS, &key).await;
    let object = found.map_err(|e| format!("failed to fetch PVC from API server: {e}"))?;
    if own && object.meta().controller().is_none_or(|o| o.uid != pod.uid()) {
        return Err("PVC was not created for the pod (pod is not owner)".into());
    }
    // A pod that runs keeps what it has.
    if object.meta().deletion_timestamp.is_some() && !is_ready(&node.facts, pod.uid(), &volume.name) {
        return Err("PVC is being deleted".into());
    }
    let value = object.value().map_err(|e| e.to_string())?;
    let name = value["spec"]["volumeName"].as_str().unwrap_or_default();
    if value["status"]["phase"] != "Bound" || name.is_empty() {
        return Err("PVC is not bound".into());
    }
    let found = node.client.get(&PERSISTENT_VOLUMES, &ObjectKey::cluster(name)).await;
    let bound = found.map_err(|e| format!("failed to fetch PV {name} from API server: {e}"))?;
    let mut bound = bound.value().map_err(|e| e.to_string())?;
    if bound["spec"]["claimRef"]["uid"] != object.uid() {
        return Err(format!("PV {name} is bound to another claim"));
    }
    let spec = serde_json::from_value(bound["spec"].take()).map_err(|e| format!("PV {name}: {e}"))?;
    Ok(Bound { name: name.into(), spec })
}
