//! Where a driver's controller service is, who has which role for it, and calling it.
//!
//! A role is ours when a node's agent says that the driver offers its controller service there, unless
//! - the CSIDriver's annotation [`ROLES`] says `external` (with `built-in` nothing below is asked),
//! - a pod with upstream's helper for the role mounts the folder of the driver's socket,
//! - or a helper elsewhere holds the role's Lease.

use super::{CSI_DRIVERS, CSI_NODES};
use crate::context::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::cache::Cache;
use client::{ListOptions, Object, ObjectKey};
use grpc::Answer;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr::{
    LEASES, NODES, PERSISTENT_VOLUME_CLAIMS as CLAIMS, PERSISTENT_VOLUMES as VOLUMES, PODS, SECRETS,
};
use machinery::status::ApiError;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// On a CSIDriver: whose the roles are.
const ROLES: &str = "gantry.dev/csi-roles";
/// On a CSINode: the drivers with a controller service there, and their sockets' folders.
const CONTROLLERS: &str = "gantry.dev/csi-controllers";

/// `PluginCapability.Service`: volumes are not everywhere.
const TOPOLOGY: i64 = 2;

/// Types of `ControllerServiceCapability.RPC`.
pub mod ability {
    pub const CREATE: i64 = 1;
    pub const PUBLISH: i64 = 2;
    pub const ROOM: i64 = 4;
    pub const CLONE: i64 = 7;
    pub const READ_ONLY: i64 = 8;
    pub const EXPAND: i64 = 9;
    pub const MULTI_WRITER: i64 = 13;
    pub const MODIFY: i64 = 14;
}

/// What is done for a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Provisioner,
    Attacher,
    Resizer,
    Snapshotter,
}

impl Role {
    /// The image of upstream's helper, and its Lease's name but for the driver's.
    fn helper(self) -> (&'static str, &'static str) {
        match self {
            Role::Provisioner => ("csi-provisioner", ""),
            Role::Attacher => ("csi-attacher", "external-attacher-leader-"),
            Role::Resizer => ("csi-resizer", "external-resizer-"),
            Role::Snapshotter => ("csi-snapshotter", "external-snapshotter-leader-"),
        }
    }
}

/// As upstream makes a Lease's name of a driver's.
fn plain(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    if plain.ends_with('-') { plain + "X" } else { plain }
}

/// What all roles share.
pub struct Csi {
    pub context: Context,
    pub claims: Arc<Cache>,
    pub volumes: Arc<Cache>,
    pub nodes: Arc<Cache>,
    pub csi_nodes: Arc<Cache>,
    pub drivers: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Drivers with a controller service on a node, by their names; values are folders.
pub fn controllers(csi_node: &Object) -> Map<String, Value> {
    let text = csi_node.meta().annotations.get(CONTROLLERS);
    text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default()
}

/// Does the pod run that helper next to the driver's socket?
fn helps(pod: &core::Pod, helper: &str, folder: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let over = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    let named = |image: &str| {
        let last = image.rsplit('/').next().unwrap_or_default();
        last.split([':', '@']).next() == Some(helper)
    };
    let mounts = spec.volumes.iter().flatten().filter_map(|v| v.host_path.as_ref());
    !matches!(over, Some("Succeeded" | "Failed"))
        && spec.containers.iter().any(|c| c.image.as_deref().is_some_and(named))
        && mounts.into_iter().any(|h| h.path.trim_end_matches('/') == folder.trim_end_matches('/'))
}

impl Csi {
    pub fn new(context: &Context) -> Arc<Csi> {
        let of = |gvr| context.informers.of(gvr);
        Arc::new(Csi {
            context: context.clone(),
            claims: of(&CLAIMS),
            volumes: of(&VOLUMES),
            nodes: of(&NODES),
            csi_nodes: of(&CSI_NODES),
            drivers: of(&CSI_DRIVERS),
            pods: of(&PODS),
        })
    }

    /// The caches that must be there before anything is decided.
    pub fn caches(&self) -> Vec<Arc<Cache>> {
        let Csi { claims, volumes, nodes, csi_nodes, drivers, pods, .. } = self;
        [claims, volumes, nodes, csi_nodes, drivers, pods].into_iter().cloned().collect()
    }

    /// The CSIDriver object's specification; null without one.
    pub fn driver(&self, name: &str) -> Value {
        let found = self.drivers.get(&ObjectKey::cluster(name)).and_then(|o| o.value().ok());
        found.map_or(Value::Null, |mut v| v["spec"].take())
    }

    /// Must volumes of the driver be attached?
    pub fn attaches(&self, driver: &str) -> bool {
        self.driver(driver)["attachRequired"].as_bool().unwrap_or(true)
    }

    /// The node where the driver is called in this role; `None`: somebody else has the role, or nobody.
    pub async fn place(&self, driver: &str, role: Role) -> Result<Option<String>, ApiError> {
        let offers = |o: Arc<Object>| {
            let folder = controllers(&o).get(driver)?.as_str()?.to_string();
            Some((o.key.name.to_string(), folder))
        };
        let all: Vec<(String, String)> = self.csi_nodes.list().into_iter().filter_map(offers).collect();
        let Some((node, _)) = all.first() else { return Ok(None) };
        let object = self.drivers.get(&ObjectKey::cluster(driver));
        match object.as_ref().and_then(|o| o.meta().annotations.get(ROLES)).map(String::as_str) {
            Some("built-in") => return Ok(Some(node.clone())),
            Some("external") => return Ok(None),
            _ => {}
        }
        let (helper, lease) = role.helper();
        let helped = |pod: Arc<Object>| {
            pod.view::<core::Pod>().is_ok_and(|p| all.iter().any(|(_, folder)| helps(&p, helper, folder)))
        };
        if self.pods.list().into_iter().any(helped) {
            return Ok(None);
        }
        let field_selector = format!("metadata.name={lease}{}", plain(driver));
        let options = ListOptions { field_selector, ..ListOptions::default() };
        let leases = self.context.client.list(&LEASES, &options).await?;
        let held = |o: &Arc<Object>| {
            o.value().is_ok_and(|v| v["spec"]["holderIdentity"].as_str().is_some_and(|h| !h.is_empty()))
        };
        Ok((!leases.items.iter().any(held)).then(|| node.clone()))
    }

    /// Calls a driver at a place.
    pub async fn call(&self, node: &str, driver: &str, method: &str, request: &Value) -> Answer {
        self.context.config.drivers.0.call(node, driver, method, request).await
    }

    /// What its controller service can.
    pub async fn abilities(&self, node: &str, driver: &str) -> Result<Vec<i64>, grpc::Status> {
        let answer = self.call(node, driver, "ControllerGetCapabilities", &json!({})).await?;
        let list = answer["capabilities"].as_array().into_iter().flatten();
        Ok(list.filter_map(|c| c["rpc"]["type"].as_i64()).collect())
    }

    /// Are its volumes not everywhere?
    pub async fn has_places(&self, node: &str, driver: &str) -> Result<bool, grpc::Status> {
        let traits = self.call(node, driver, "GetPluginCapabilities", &json!({})).await?;
        let mut all = traits["capabilities"].as_array().into_iter().flatten();
        Ok(all.any(|c| c["service"]["type"] == TOPOLOGY))
    }

    /// A secret's texts; null for none.
    pub async fn secrets(&self, reference: &Value) -> Result<Value, ApiError> {
        let part = |key: &str| reference[key].as_str().filter(|text| !text.is_empty());
        let (Some(namespace), Some(name)) = (part("namespace"), part("name")) else {
            return Ok(Value::Null);
        };
        let secret = self.context.client.get(&SECRETS, &ObjectKey::new(namespace, name)).await?;
        let value = secret.value().map_err(ApiError::internal)?;
        let mut texts = Map::new();
        for (key, data) in value["data"].as_object().into_iter().flatten() {
            let bytes = STANDARD.decode(data.as_str().unwrap_or_default()).map_err(ApiError::internal)?;
            texts.insert(key.clone(), json!(String::from_utf8_lossy(&bytes)));
        }
        Ok(Value::Object(texts))
    }
}

/// `VolumeCapability` of a volume or claim; `finely`: the driver tells one writer from one node's writers.
pub fn capability(spec: &Value, fs_type: &str, options: &Value, finely: bool) -> Vec<Value> {
    let mode = |mode: &str| match mode {
        "ReadOnlyMany" => 3,
        "ReadWriteMany" => 5,
        "ReadWriteOncePod" if finely => 6,
        _ if finely => 7,
        _ => 1,
    };
    let one = |name: &str| {
        let mut message = json!({"access_mode": {"mode": mode(name)}});
        if spec["volumeMode"] == "Block" {
            message["block"] = json!({});
        } else {
            message["mount"] = json!({"fs_type": fs_type, "mount_flags": options});
        }
        message
    };
    let modes = spec["accessModes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    modes.map(one).collect()
}

/// The same of a PersistentVolume, for calls that take one.
pub fn capability_of(volume: &Value, finely: bool) -> Value {
    let spec = &volume["spec"];
    let fs_type = spec["csi"]["fsType"].as_str().unwrap_or_default();
    capability(spec, fs_type, &spec["mountOptions"], finely).into_iter().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_are_known_by_image_and_folder() {
        let pod = |image: &str, path: &str| -> core::Pod {
            let value = json!({"spec": {"containers": [{"name": "c", "image": image}],
                "volumes": [{"name": "v", "hostPath": {"path": path}}]}});
            serde_json::from_value(value).unwrap()
        };
        let is = |image: &str, path: &str| helps(&pod(image, path), "csi-provisioner", "/p/x");
        assert!(is("registry.k8s.io/sig-storage/csi-provisioner:v5.0.1", "/p/x/"));
        assert!(is("csi-provisioner@sha256:00", "/p/x"));
        assert!(!is("csi-attacher:v1", "/p/x"));
        assert!(!is("csi-provisioner:v1", "/p/y"));
        assert_eq!(plain("hostpath.csi.k8s.io"), "hostpath-csi-k8s-io");
    }

    #[test]
    fn capabilities() {
        let block = json!({"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "volumeMode": "Block"});
        assert_eq!(
            capability(&block, "", &Value::Null, true),
            [
                json!({"access_mode": {"mode": 7}, "block": {}}),
                json!({"access_mode": {"mode": 3}, "block": {}})
            ]
        );
    }
}
