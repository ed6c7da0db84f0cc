//! Devices of resource claims on this node: drivers make them ready before a pod starts, and undo that after it ended.
//!
//! What may be ready stands in a file before a driver is asked, so that an agent that was killed undoes what it must;
//! every call to a driver may be repeated. A driver that is gone for a while loses its ResourceSlices.
//! While a driver is registered, `watch` listens to how its devices are; pods' statuses tell it.
//! Deliberately not here: finding drivers (`csi::register`), choosing devices (`sched::dra`), CDI (`devices::cdi`).

mod health;
mod state;
mod watch;

use crate::csi::Place;
use crate::ops::{Node, blocking};
use crate::pod::{ContainerView, PodView};
use client::{DeleteOptions, ListOptions, ObjectKey};
use grpc::{Call, DRA, DRA_BETA, Schema};
use k8s_schema::Gvr;
use parking_lot::Mutex;
use serde_json::{Value, json};
use state::{Claims, Device, Held, claims_of, drivers_of, key};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio::time::Instant;
use watch::Watched;

const CLAIMS: Gvr = Gvr::new("resource.k8s.io", "v1", "resourceclaims");
const SLICES: Gvr = Gvr::new("resource.k8s.io", "v1", "resourceslices");
/// The file of what is ready.
const CHECKPOINT: &str = "gantry_dra.json";
/// How long a driver may take for a call (the kubelet's figure).
const CALL_MAX: Duration = Duration::from_secs(45);
/// A driver that is gone for so long loses its slices (the kubelet's figure).
pub const WIPE_AFTER: Duration = Duration::from_secs(30);
/// Versions of the service, the better first, and their messages.
static VERSIONS: [(&str, &LazyLock<Schema>); 2] = [("v1.DRAPlugin", &DRA), ("v1beta1.DRAPlugin", &DRA_BETA)];

/// A registered driver.
struct Driver {
    schema: &'static Schema,
    socket: PathBuf,
    /// Its number among those whose health is watched.
    instance: u64,
    /// Listens to it for as long as it is here.
    _watch: JoinSet<()>,
}

/// The node's drivers and the claims that they made ready.
pub struct Dra {
    checkpoint: PathBuf,
    /// By name; of several instances the last one serves.
    drivers: Mutex<BTreeMap<String, Vec<Driver>>>,
    claims: Mutex<Claims>,
    watched: Arc<Watched>,
}

impl Dra {
    /// What an agent before left; drivers register anew.
    pub fn new(place: &Place) -> Dra {
        let checkpoint = place.root.join(CHECKPOINT);
        let kept = std::fs::read(&checkpoint).ok().and_then(|bytes| {
            let read = serde_json::from_slice::<Claims>(&bytes);
            read.inspect_err(|error| tracing::error!(%error, "which claims are ready is lost")).ok()
        });
        let claims = Mutex::new(kept.unwrap_or_default());
        Dra { checkpoint, drivers: Mutex::default(), claims, watched: Arc::default() }
    }

    /// A driver registers.
    ///
    /// # Errors
    /// None of its versions is known here.
    pub fn register(&self, name: &str, versions: &[&str], socket: &Path) -> Result<(), String> {
        let known = VERSIONS.iter().find(|(version, _)| versions.contains(version));
        let (_, schema) = known.ok_or_else(|| {
            format!(
                "none of the DRA gRPC services {versions:?} is supported (v1.DRAPlugin, v1beta1.DRAPlugin)"
            )
        })?;
        let instance = self.watched.health.lock().enter(name);
        let (watched, at) = (self.watched.clone(), socket.to_path_buf());
        let mut watch = JoinSet::new();
        watch.spawn(async move { watched.follow(instance, &at).await });
        let mut drivers = self.drivers.lock();
        let all = drivers.entry(name.into()).or_default();
        self.forget(all, socket);
        all.push(Driver { schema, socket: socket.into(), instance, _watch: watch });
        Ok(())
    }

    fn forget(&self, all: &mut Vec<Driver>, socket: &Path) {
        for gone in all.extract_if(.., |d| d.socket == socket) {
            self.watched.change(|health| health.leave(gone.instance));
        }
    }

    /// A driver's instance is gone.
    pub fn deregister(&self, name: &str, socket: &Path) {
        let mut drivers = self.drivers.lock();
        let Some(all) = drivers.get_mut(name) else { return };
        self.forget(all, socket);
        if all.is_empty() {
            drivers.remove(name);
        }
    }

    /// A driver's messages and where it serves.
    fn driver(&self, name: &str) -> Result<(&'static Schema, PathBuf), String> {
        let drivers = self.drivers.lock();
        let found = drivers.get(name).and_then(|all| all.last()).map(|d| (d.schema, d.socket.clone()));
        found.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    /// Has a claim devices ready for the pod, or may it?
    pub fn holds(&self, uid: &str) -> bool {
        self.claims.lock().values().any(|held| held.pods.contains(uid))
    }

    /// Pods with claims.
    pub fn users(&self) -> BTreeSet<String> {
        self.claims.lock().values().flat_map(|held| held.pods.clone()).collect()
    }

    /// The CDI names of a container's devices.
    pub fn cdi_names(&self, pod: &PodView, container: &ContainerView) -> Vec<String> {
        state::cdi_names(&self.claims.lock(), &pod.pod, &container.spec)
    }

    /// `DynamicResource`s of a container.
    pub fn told(&self, pod: &PodView, container: &ContainerView) -> Vec<Value> {
        state::told(&self.claims.lock(), &pod.pod, &container.spec)
    }

    /// For whoever wants to know when devices break, or drivers tell no more.
    pub fn changed(&self) -> Receiver<u64> {
        self.watched.changed.subscribe()
    }

    /// Adds the health of its claims' devices to each container's status.
    pub fn tell_health(&self, pod: &PodView, status: &mut Value) {
        if !self.holds(pod.uid()) {
            return;
        }
        let (claims, health, now) = (self.claims.lock(), self.watched.health.lock(), Instant::now());
        let containers = status.get_mut("containerStatuses").and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let spec = pod.spec().containers.iter().find(|c| container["name"] == c.name.as_str());
            let told = spec.map(|c| health::told(&health, &claims, (&pod.pod, c), now)).unwrap_or_default();
            match container.get_mut("allocatedResourcesStatus").and_then(Value::as_array_mut) {
                Some(all) => all.extend(told),
                None if told.is_empty() => {}
                None => container["allocatedResourcesStatus"] = told.into(),
            }
        }
    }

    async fn save(&self) -> Result<(), String> {
        let (path, kept) = (self.checkpoint.clone(), self.claims.lock().clone());
        let write = move || crate::devices::write_checkpoint(&path, &kept);
        blocking(write).await?.map_err(|e| format!("checkpoint ResourceClaim state: {e}"))
    }

    /// Calls a driver for claims (by UID: name); yields its answers by UID.
    async fn call(
        &self,
        driver: &str,
        method: &str,
        (namespace, claims): (&str, &BTreeMap<String, String>),
    ) -> Result<BTreeMap<String, Value>, String> {
        let (schema, socket) = self.driver(driver)?;
        let one = |(uid, name): (&String, &String)| json!({"namespace": namespace, "uid": uid, "name": name});
        let request = json!({"claims": claims.iter().map(one).collect::<Vec<_>>()});
        let call = Call { schema, socket: &socket, within: CALL_MAX };
        let answer = call.call(method, &request).await.map_err(|e| format!("{method}: {e}"))?;
        let mut answers = BTreeMap::new();
        for entry in answer["claims"].as_array().into_iter().flatten() {
            let uid = entry["key"].as_str().unwrap_or_default();
            let name = claims
                .get(uid)
                .ok_or_else(|| format!("{method} returned result for unknown claim UID {uid}"))?;
            if let Some(error) = entry["value"]["error"].as_str().filter(|e| !e.is_empty()) {
                return Err(format!("{method} failed for ResourceClaim {name}: {error}"));
            }
            answers.insert(uid.to_string(), entry["value"].clone());
        }
        match claims.len() - answers.len() {
            0 => Ok(answers),
            left => Err(format!("{method} skipped {left} ResourceClaims")),
        }
    }

    /// What of the pod's claims is not ready for it.
    fn open(&self, pod: &PodView) -> Result<Vec<(String, String)>, String> {
        let wanted = claims_of(&pod.pod).ok_or_else(|| {
            format!("pod \"{}/{}\": ResourceClaim not created yet", pod.namespace(), pod.name())
        })?;
        let claims = self.claims.lock();
        let ready = |name: &str| {
            let held = claims.get(&key(pod.namespace(), name));
            held.is_some_and(|h| h.ready && h.pods.contains(pod.uid()))
        };
        Ok(wanted.into_iter().filter(|(_, name)| !ready(name)).collect())
    }
}

/// Whether the pod's claim is one that was made for it.
fn is_own(pod: &PodView, name: &str) -> bool {
    let claims = pod.spec().resource_claims.iter().flatten();
    !claims.filter(|c| c.name == name).any(|c| c.resource_claim_name.is_some())
}

/// Has drivers make the pod's claims ready.
///
/// # Errors
/// In the kubelet's words; what was begun is undone when the pod goes.
pub async fn prepare(node: &Node, pod: &PodView) -> Result<(), String> {
    let open = node.dra.open(pod)?;
    if open.is_empty() {
        return Ok(());
    }
    // All is looked at before anything is begun: a pod that fails here leaves nothing to undo.
    let mut wanted: Vec<(String, String, BTreeSet<String>)> = Vec::new();
    for (own_name, name) in open {
        let key = ObjectKey::new(pod.namespace(), name.as_str());
        let found = node.client.get(&CLAIMS, &key).await;
        let claim = found.map_err(|e| format!("fetch ResourceClaim {name}: {e}"))?;
        let value = claim.value().map_err(|e| e.to_string())?;
        let drivers = drivers_of(&value, &pod.pod, is_own(pod, &own_name))?;
        for driver in &drivers {
            node.dra.driver(driver)?;
        }
        wanted.push((name, claim.uid().to_string(), drivers));
    }
    let mut batches: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    {
        let mut claims = node.dra.claims.lock();
        for (name, uid, drivers) in &wanted {
            let held = claims.entry(key(pod.namespace(), name)).or_insert_with(|| Held {
                uid: uid.clone(),
                drivers: drivers.iter().map(|d| (d.clone(), Vec::new())).collect(),
                ..Held::default()
            });
            if held.uid != *uid {
                return Err(format!(
                    "old ResourceClaim with same name {name} and different UID {} still exists (previous pod force-deleted?!)",
                    held.uid
                ));
            }
            held.pods.insert(pod.uid().into());
            if !held.ready {
                for driver in drivers {
                    batches.entry(driver.clone()).or_default().insert(uid.clone(), name.clone());
                }
            }
        }
    }
    node.dra.save().await?;
    for (driver, claims) in &batches {
        let answers = node.dra.call(driver, "NodePrepareResources", (pod.namespace(), claims)).await?;
        let mut all = node.dra.claims.lock();
        for (uid, answer) in answers {
            let devices = answer["devices"].as_array().into_iter().flatten().map(Device::read).collect();
            if let Some(held) = claims.get(&uid).and_then(|name| all.get_mut(&key(pod.namespace(), name))) {
                held.drivers.insert(driver.clone(), devices);
            }
        }
    }
    {
        let mut claims = node.dra.claims.lock();
        for (name, _, _) in &wanted {
            claims.entry(key(pod.namespace(), name)).and_modify(|held| held.ready = true);
        }
    }
    node.dra.save().await
}

/// Has drivers undo it: the pod's containers are over. A claim that other pods use stays as it is.
///
/// # Errors
/// In the kubelet's words; to be tried again.
pub async fn unprepare(node: &Node, uid: &str) -> Result<(), String> {
    let held: Vec<(String, Held)> = {
        let claims = node.dra.claims.lock();
        let of_pod = claims.iter().filter(|(_, held)| held.pods.contains(uid));
        of_pod.map(|(key, held)| (key.clone(), held.clone())).collect()
    };
    if held.is_empty() {
        return Ok(());
    }
    for (key, held) in &held {
        let last = held.pods.len() == 1;
        if last {
            let (namespace, name) = key.split_once('/').unwrap_or_default();
            let claims = [(held.uid.clone(), name.to_string())].into();
            for driver in held.drivers.keys() {
                let done = node.dra.call(driver, "NodeUnprepareResources", (namespace, &claims)).await;
                done.map_err(|e| format!("unprepare dynamic resources: {e}"))?;
            }
        }
        let mut claims = node.dra.claims.lock();
        if let Some(now) = claims.get_mut(key) {
            now.pods.remove(uid);
            if now.pods.is_empty() {
                claims.remove(key);
            }
        }
    }
    node.dra.save().await
}

/// Removes the ResourceSlices of this node whose drivers are not registered.
///
/// # Errors
/// The API's; to be tried again.
pub async fn wipe(node: &Node) -> Result<(), String> {
    let options = ListOptions {
        field_selector: format!("spec.nodeName={}", node.facts.node_name),
        ..ListOptions::default()
    };
    let list = node.client.list(&SLICES, &options).await.map_err(|e| e.to_string())?;
    for slice in list.items {
        let value = slice.value().map_err(|e| e.to_string())?;
        let driver = value["spec"]["driver"].as_str().unwrap_or_default();
        if node.dra.drivers.lock().contains_key(driver) {
            continue;
        }
        let options = DeleteOptions { uid: Some(slice.uid().into()), ..DeleteOptions::default() };
        match node.client.delete(&SLICES, &slice.key, options).await {
            Err(error) if !error.is_not_found() => return Err(error.to_string()),
            _ => {
                tracing::info!(driver, slice = %slice.key.name, "the ResourceSlice of a driver that is gone is removed")
            }
        }
    }
    Ok(())
}

/// Undoes what is ready for pods that are no more. True: something is left to do.
pub async fn orphans(node: &Node) -> bool {
    let known: BTreeSet<String> = node.all_pods().iter().map(|pod| pod.uid().to_string()).collect();
    let gone = |uid: &String| !known.contains(uid) && node.live(uid).is_none();
    let mut left = false;
    for uid in node.dra.users().into_iter().filter(gone) {
        if let Err(error) = unprepare(node, &uid).await {
            tracing::debug!(uid, error, "devices of a pod that is gone stay ready");
            left = true;
        }
    }
    left
}
