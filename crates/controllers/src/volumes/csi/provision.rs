//! The provisioner's role: claims of a driver's class get volumes, and released ones are deleted.
//!
//! Keys: claims, and volumes (those without a namespace).

use super::drivers::{Csi, Role, ability, capability};
use super::snapshot::{CONTENTS, SNAPSHOTS};
use super::topology::{affinity, of_nodes, requirement};
use super::{ATTACHMENTS, ATTRIBUTES_CLASSES};
use crate::context::{Outcome, Reconcile, enqueue_self, run};
use crate::volumes::{LOCAL, PROVISIONED_BY, PROVISIONERS, STORAGE_CLASSES, is_held, with, without};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{DeleteOptions, Object, ObjectKey};
use grpc::{Status, code};
use k8s_schema::gvr::{PERSISTENT_VOLUME_CLAIMS as CLAIMS, PERSISTENT_VOLUMES as VOLUMES};
use machinery::quantity::Quantity;
use machinery::status::ApiError;
use sched::volumes::SELECTED_NODE;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Claims and volumes worked on at the same time.
const WORKERS: usize = 4;
/// Parameters of a class with this prefix are ours, not the driver's.
const OWN: &str = "csi.storage.k8s.io/";
/// Secrets that a class may name, and the field of the PersistentVolume that keeps the name.
const SECRETS: [(&str, &str); 5] = [
    ("controller-publish", "controllerPublishSecretRef"),
    ("node-stage", "nodeStageSecretRef"),
    ("node-publish", "nodePublishSecretRef"),
    ("controller-expand", "controllerExpandSecretRef"),
    ("node-expand", "nodeExpandSecretRef"),
];
/// On a volume: the secret to delete it with.
const DELETION_SECRET: [&str; 2] = [
    "volume.kubernetes.io/provisioner-deletion-secret-name",
    "volume.kubernetes.io/provisioner-deletion-secret-namespace",
];
/// Holds a volume whose class wants it deleted until the driver has deleted it, in whatever order claim and volume go.
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

struct Provisioner {
    csi: Arc<Csi>,
    classes: Arc<Cache>,
    attachments: Arc<Cache>,
}

/// Starts it.
pub fn start(csi: &Arc<Csi>) -> Vec<JoinHandle<()>> {
    let of = |gvr: &k8s_schema::Gvr| csi.context.informers.of(gvr);
    let (classes, attachments) = (of(&STORAGE_CLASSES), of(&ATTACHMENTS));
    let queue = Arc::new(Queue::default());
    enqueue_self(&csi.claims, &queue);
    enqueue_self(&csi.volumes, &queue);
    let (waker, claims, volumes) = (queue.clone(), csi.claims.clone(), csi.volumes.clone());
    csi.csi_nodes.on_change(Box::new(move |_, _| {
        claims.list().iter().chain(&volumes.list()).for_each(|o| waker.add(o.key.clone()));
    }));
    let mut caches = csi.caches();
    caches.extend([classes.clone(), attachments.clone()]);
    let provisioner = Provisioner { csi: csi.clone(), classes, attachments };
    run("csi-provisioner", caches, queue, WORKERS, Arc::new(provisioner))
}

/// Why a volume was not made.
enum Failure {
    /// The API's.
    Api(ApiError),
    /// The driver's.
    Driver(Status),
    /// What was asked for cannot be.
    Wish(String),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure::Api(error)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Failure::Driver(status)
    }
}

fn bytes(value: &Value) -> i64 {
    Quantity::from_json(value).and_then(Result::ok).map_or(0, |q| q.units())
}

/// A class's parameters: the driver's, and ours without their prefix.
pub fn split(parameters: &Value) -> (Map<String, Value>, Map<String, Value>) {
    let (mut theirs, mut ours) = (Map::new(), Map::new());
    for (key, value) in parameters.as_object().into_iter().flatten() {
        match key.strip_prefix(OWN) {
            Some(key) => drop(ours.insert(key.into(), value.clone())),
            None => drop(theirs.insert(key.clone(), value.clone())),
        }
    }
    (theirs, ours)
}

/// The secret that a class names for a purpose; null for none.
fn secret(ours: &Map<String, Value>, purpose: &str, volume: &str, claim: &ObjectKey) -> Value {
    let filled = |what: &str| {
        let text = ours.get(&format!("{purpose}-secret-{what}"))?.as_str()?;
        Some(
            text.replace("${pv.name}", volume)
                .replace("${pvc.namespace}", &claim.namespace)
                .replace("${pvc.name}", &claim.name),
        )
    };
    match (filled("name"), filled("namespace")) {
        (Some(name), Some(namespace)) => json!({"name": name, "namespace": namespace}),
        _ => Value::Null,
    }
}

/// What a PersistentVolume is made from.
struct Made<'a> {
    name: &'a str,
    claim: &'a Object,
    value: &'a Value,
    class: &'a Value,
    ours: &'a Map<String, Value>,
    driver: &'a str,
    fs_type: &'a str,
    /// `CreateVolumeResponse.volume`.
    volume: &'a Value,
}

/// The PersistentVolume of a volume that was made.
fn persistent_volume(made: &Made) -> Value {
    let Made { name, claim, value, class, ours, driver, fs_type, volume } = made;
    let spec = &value["spec"];
    let mut source = json!({"driver": driver, "volumeHandle": volume["volume_id"],
        "volumeAttributes": volume["volume_context"]});
    if spec["volumeMode"] != "Block" && !fs_type.is_empty() {
        source["fsType"] = json!(fs_type);
    }
    for (purpose, field) in SECRETS {
        source[field] = secret(ours, purpose, name, &claim.key);
    }
    let modes = spec["accessModes"].as_array().cloned().unwrap_or_default();
    if !modes.is_empty() && modes.iter().all(|m| m == "ReadOnlyMany") {
        source["readOnly"] = json!(true);
    }
    let got = volume["capacity_bytes"].as_i64().unwrap_or_default();
    let asked = &spec["resources"]["requests"]["storage"];
    let capacity = if got == 0 || got == bytes(asked) {
        asked.clone()
    } else {
        json!(Quantity::from_bytes(got).to_string())
    };
    let policy = class["reclaimPolicy"].as_str().unwrap_or("Delete");
    let finalizers: &[&str] = if policy == "Delete" { &[FINALIZER] } else { &[] };
    let mut annotations = json!({PROVISIONED_BY: driver});
    let deletion = secret(ours, "provisioner", name, &claim.key);
    for (key, field) in DELETION_SECRET.iter().zip(["name", "namespace"]) {
        annotations[key] = json!(deletion[field].as_str().unwrap_or_default());
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": annotations, "finalizers": finalizers},
        "spec": {"capacity": {"storage": capacity}, "accessModes": spec["accessModes"],
            "volumeMode": spec["volumeMode"], "mountOptions": class["mountOptions"], "csi": source,
            "persistentVolumeReclaimPolicy": policy, "storageClassName": spec["storageClassName"],
            "volumeAttributesClassName": spec["volumeAttributesClassName"],
            "nodeAffinity": affinity(&volume["accessible_topology"]),
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "uid": claim.uid(),
                "namespace": &*claim.key.namespace, "name": &*claim.key.name,
                "resourceVersion": claim.revision.to_string()}}})
}

impl Provisioner {
    fn tell(&self, kind: &str, object: &Object, (level, reason, text): (EventType, &str, String)) {
        self.csi.context.recorder.record(Subject::of("v1", kind, object), level, reason, text);
    }

    async fn claim(&self, object: Arc<Object>) -> Outcome {
        let value = object.value().map_err(ApiError::internal)?;
        let annotations = &object.meta().annotations;
        let Some(driver) = PROVISIONERS.iter().find_map(|key| annotations.get(*key)) else { return Ok(None) };
        let open = value["spec"]["volumeName"].as_str().is_none_or(str::is_empty);
        if driver == LOCAL || !open || object.meta().deletion_timestamp.is_some() {
            return Ok(None);
        }
        let class = value["spec"]["storageClassName"].as_str().unwrap_or_default();
        let Some(class) = self.classes.get(&ObjectKey::cluster(class)) else { return Ok(None) };
        let class_value = class.value().map_err(ApiError::internal)?;
        let chosen = annotations.get(SELECTED_NODE).map(String::as_str);
        let waits = class_value["volumeBindingMode"] == "WaitForFirstConsumer";
        if class_value["provisioner"] != driver.as_str() || (waits && chosen.is_none()) {
            return Ok(None);
        }
        let Some(place) = self.csi.place(driver, Role::Provisioner).await? else { return Ok(None) };
        let begun = format!("External provisioner is provisioning volume for claim \"{}\"", object.key);
        self.tell("PersistentVolumeClaim", &object, (EventType::Normal, "Provisioning", begun));
        let failure = match self.create(&place, driver, (&object, &value), &class_value).await {
            Ok(()) => return Ok(None),
            Err(failure) => failure,
        };
        let (text, again) = match failure {
            Failure::Api(error) => return Err(error),
            Failure::Driver(status) => (status.to_string(), status.code == code::RESOURCE_EXHAUSTED),
            Failure::Wish(text) => (text, false),
        };
        let text = format!("failed to provision volume with StorageClass \"{}\": {text}", class.key.name);
        self.tell("PersistentVolumeClaim", &object, (EventType::Warning, "ProvisioningFailed", text.clone()));
        if again && waits {
            // No room there: the scheduler is to choose another node.
            let patch = json!({"metadata": {"uid": object.uid(), "annotations": {SELECTED_NODE: null}}});
            self.csi.context.client.merge_patch(&CLAIMS, &object.key, patch).await?;
        }
        Err(ApiError::internal(text))
    }

    async fn create(
        &self,
        place: &str,
        driver: &str,
        (claim, value): (&Arc<Object>, &Value),
        class: &Value,
    ) -> Result<(), Failure> {
        let csi = &self.csi;
        let abilities = csi.abilities(place, driver).await?;
        if !abilities.contains(&ability::CREATE) {
            return Err(Failure::Wish("the driver makes no volumes".into()));
        }
        let name = format!("pvc-{}", claim.uid());
        let (theirs, ours) = split(&class["parameters"]);
        let fs_type = ours.get("fstype").and_then(Value::as_str).unwrap_or_default();
        let spec = &value["spec"];
        let finely = abilities.contains(&ability::MULTI_WRITER);
        let size = bytes(&spec["resources"]["requests"]["storage"]);
        let limit = bytes(&spec["resources"]["limits"]["storage"]);
        let mut request = json!({"name": name, "parameters": theirs,
            "capacity_range": {"required_bytes": size, "limit_bytes": limit},
            "volume_capabilities": capability(spec, fs_type, &class["mountOptions"], finely),
            "secrets": csi.secrets(&secret(&ours, "provisioner", &name, &claim.key)).await?,
            "volume_content_source": self.content(driver, &claim.key, spec, &abilities).await?});
        if csi.has_places(place, driver).await? {
            let segments = of_nodes(driver, &csi.csi_nodes.list(), &csi.nodes.list());
            let chosen = claim.meta().annotations.get(SELECTED_NODE).map(String::as_str);
            request["accessibility_requirements"] =
                requirement(&segments, class, chosen).map_err(Failure::Wish)?;
        }
        if let Some(name) = spec["volumeAttributesClassName"].as_str().filter(|n| !n.is_empty()) {
            let class = csi.context.client.get(&ATTRIBUTES_CLASSES, &ObjectKey::cluster(name)).await?;
            request["mutable_parameters"] = class.value().map_err(ApiError::internal)?["parameters"].take();
        }
        let answer = csi.call(place, driver, "CreateVolume", &request).await?;
        let volume = &answer["volume"];
        let got = volume["capacity_bytes"].as_i64().unwrap_or_default();
        if got != 0 && got < size {
            let request = json!({"volume_id": volume["volume_id"], "secrets": request["secrets"]});
            csi.call(place, driver, "DeleteVolume", &request).await?;
            return Err(Failure::Wish(format!(
                "created volume capacity {got} less than requested capacity {size}"
            )));
        }
        let made = Made { name: &name, claim, value, class, ours: &ours, driver, fs_type, volume };
        match csi.context.client.create(&VOLUMES, persistent_volume(&made)).await {
            Ok(stored) => csi.volumes.observe(stored),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error.into()),
        }
        let text = format!("Successfully provisioned volume {name}");
        self.tell("PersistentVolumeClaim", claim, (EventType::Normal, "ProvisioningSucceeded", text));
        Ok(())
    }

    /// Where the volume's content comes from: another claim, or a snapshot.
    async fn content(
        &self,
        driver: &str,
        claim: &ObjectKey,
        spec: &Value,
        abilities: &[i64],
    ) -> Result<Value, Failure> {
        let source =
            if spec["dataSource"].is_object() { &spec["dataSource"] } else { &spec["dataSourceRef"] };
        let Some(name) = source["name"].as_str() else { return Ok(Value::Null) };
        let client = &self.csi.context.client;
        let key = ObjectKey::new(claim.namespace.clone(), name);
        let value = |object: Arc<Object>| object.value().map_err(ApiError::internal);
        match source["kind"].as_str() {
            Some("PersistentVolumeClaim") => {
                let from = value(client.get(&CLAIMS, &key).await?)?;
                let volume = from["spec"]["volumeName"].as_str().unwrap_or_default();
                if from["status"]["phase"] != "Bound" {
                    return Err(Failure::Wish(format!("source claim {name} is not bound")));
                }
                let volume = value(client.get(&VOLUMES, &ObjectKey::cluster(volume)).await?)?;
                let of = &volume["spec"]["csi"];
                if of["driver"] != driver || !abilities.contains(&ability::CLONE) {
                    return Err(Failure::Wish(format!("driver {driver} cannot clone claim {name}")));
                }
                Ok(json!({"volume": {"volume_id": of["volumeHandle"]}}))
            }
            Some("VolumeSnapshot") => {
                let snapshot = value(client.get(&SNAPSHOTS, &key).await?)?;
                let content =
                    snapshot["status"]["boundVolumeSnapshotContentName"].as_str().unwrap_or_default();
                if snapshot["status"]["readyToUse"] != true {
                    return Err(Failure::Wish(format!("snapshot {name} is not Ready")));
                }
                let content = value(client.get(&CONTENTS, &ObjectKey::cluster(content)).await?)?;
                if content["spec"]["driver"] != driver {
                    return Err(Failure::Wish(format!("snapshot {name} is of another driver")));
                }
                Ok(json!({"snapshot": {"snapshot_id": content["status"]["snapshotHandle"]}}))
            }
            // Somebody fills the claim (a volume populator).
            _ => Err(Failure::Wish("claims with other data sources are for volume populators".into())),
        }
    }

    async fn patch(&self, volume: &Object, patch: Value) -> Result<(), ApiError> {
        match self.csi.context.client.merge_patch(&VOLUMES, &volume.key, patch).await {
            Ok(stored) => self.csi.volumes.observe(stored),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn volume(&self, object: Arc<Object>) -> Outcome {
        let value = object.value().map_err(ApiError::internal)?;
        let source = &value["spec"]["csi"];
        let driver = source["driver"].as_str().unwrap_or_default();
        let annotations = &object.meta().annotations;
        if annotations.get(PROVISIONED_BY).is_none_or(|by| by != driver) || driver == LOCAL {
            return Ok(None);
        }
        let delete = value["spec"]["persistentVolumeReclaimPolicy"] == "Delete";
        let (held, going) = (is_held(&object, FINALIZER), object.meta().deletion_timestamp.is_some());
        let over = delete && value["status"]["phase"] == "Released";
        // One that is going and not held has been dealt with.
        if going && !held || !over && held == delete {
            return Ok(None);
        }
        let Some(place) = self.csi.place(driver, Role::Provisioner).await? else { return Ok(None) };
        if !over {
            // Who changes the policy changes this too.
            let patch = if delete { with(&object, FINALIZER) } else { without(&object, FINALIZER) };
            return self.patch(&object, patch).await.map(|_| None);
        }
        let name = &*object.key.name;
        let attached =
            |a: &Arc<Object>| a.value().is_ok_and(|v| v["spec"]["source"]["persistentVolumeName"] == name);
        if let Some(found) = self.attachments.list().iter().find(|a| attached(a)) {
            let node = found.value().map(|v| v["spec"]["nodeName"].clone()).unwrap_or_default();
            return Err(ApiError::internal(format!(
                "persistentvolume {name} is still attached to node {node}"
            )));
        }
        let part = |key: &str| annotations.get(key).filter(|v| !v.is_empty());
        let secret = json!({"name": part(DELETION_SECRET[0]), "namespace": part(DELETION_SECRET[1])});
        let request =
            json!({"volume_id": source["volumeHandle"], "secrets": self.csi.secrets(&secret).await?});
        match self.csi.call(&place, driver, "DeleteVolume", &request).await {
            Err(error) if error.code != code::NOT_FOUND => {
                let text = error.to_string();
                self.tell(
                    "PersistentVolume",
                    &object,
                    (EventType::Warning, "VolumeFailedDelete", text.clone()),
                );
                return Err(ApiError::internal(text));
            }
            _ => {}
        }
        if held {
            self.patch(&object, without(&object, FINALIZER)).await?;
        }
        let options = DeleteOptions { uid: Some(object.uid().into()), ..DeleteOptions::default() };
        match self.csi.context.client.delete(&VOLUMES, &object.key, options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(None),
        }
    }
}

#[async_trait]
impl Reconcile for Provisioner {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        if key.namespace.is_empty() {
            match self.csi.volumes.get(key) {
                Some(volume) => self.volume(volume).await,
                None => Ok(None),
            }
        } else {
            match self.csi.claims.get(key) {
                Some(claim) => self.claim(claim).await,
                None => Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_as_upstreams_helper_makes_them() {
        let value = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u", "resourceVersion": "7"},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "storageClassName": "s",
                "resources": {"requests": {"storage": "1Gi"}}}});
        let claim = Object::parse(value.to_string().into()).unwrap();
        let class = json!({"parameters": {"csi.storage.k8s.io/fstype": "ext4", "kind": "fast",
            "csi.storage.k8s.io/node-publish-secret-name": "${pvc.name}-${pv.name}",
            "csi.storage.k8s.io/node-publish-secret-namespace": "${pvc.namespace}"}});
        let (theirs, ours) = split(&class["parameters"]);
        assert_eq!(json!(theirs), json!({"kind": "fast"}));
        let volume = json!({"volume_id": "h", "capacity_bytes": 2_i64 << 30,
            "accessible_topology": [{"segments": {"zone": "z"}}]});
        let made = persistent_volume(&Made {
            name: "pvc-u",
            claim: &claim,
            value: &value,
            class: &class,
            ours: &ours,
            driver: "d",
            fs_type: "ext4",
            volume: &volume,
        });
        let spec = &made["spec"];
        assert_eq!(spec["csi"]["nodePublishSecretRef"], json!({"name": "c-pvc-u", "namespace": "n"}));
        assert_eq!((&spec["csi"]["fsType"], &spec["capacity"]["storage"]), (&json!("ext4"), &json!("2Gi")));
        assert_eq!(spec["persistentVolumeReclaimPolicy"], "Delete");
        assert_eq!(made["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(spec["claimRef"]["uid"], "u");
        assert!(spec["nodeAffinity"]["required"].is_object());
    }
}
