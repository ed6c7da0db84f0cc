//! Devices of the node: plug-ins that register in the kubelet's folder, what of theirs each container has, the gRPC
//! service that tells it (`pod-resources`), and CDI.
//!
//! A pod is given its devices when it is let in, before anything of it is begun; what it has stands in a file before it
//! starts, and is its own until it is over. Only one pod at a time is given devices. [`state`] decides, the rest acts.
//! Deliberately not here: counting for the scheduler (`sched`, by the Node's amounts), alignment to NUMA nodes.

pub mod cdi;
mod give;
mod register;
mod resources;
mod state;

pub use register::{register, run};
pub use state::{Amounts, Checkpoint};

use crate::config::edits::Edits;
use crate::csi::Place;
use crate::ops::blocking;
use crate::pod::PodView;
use parking_lot::Mutex;
use runtime::oci;
use serde::Serialize;
use serde_json::Value;
use state::State;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use tokio::sync::{mpsc, watch};

/// The file of what pods have.
const CHECKPOINT: &str = "gantry_devices.json";

/// The node's devices.
pub struct Devices {
    /// `device-plugins`.
    folder: PathBuf,
    /// `pod-resources`.
    told: PathBuf,
    state: Mutex<State>,
    /// Changes with devices and their health.
    changed: watch::Sender<u64>,
    giving: tokio::sync::Mutex<()>,
    /// Where plug-ins of the other folder are told of.
    door: OnceLock<mpsc::Sender<Value>>,
}

impl Devices {
    /// What an agent before left; plug-ins come by themselves.
    pub fn new(place: &Place) -> Devices {
        let folder = place.root.join("device-plugins");
        let kept = std::fs::read(folder.join(CHECKPOINT)).ok();
        let kept = kept.and_then(|bytes| {
            let read = serde_json::from_slice::<Checkpoint>(&bytes);
            read.inspect_err(|error| tracing::error!(%error, "which pod has which devices is lost")).ok()
        });
        Devices {
            told: place.root.join("pod-resources"),
            folder,
            state: Mutex::new(State::restore(kept.unwrap_or_default())),
            changed: watch::Sender::default(),
            giving: tokio::sync::Mutex::default(),
            door: OnceLock::new(),
        }
    }

    /// For whoever wants to know when devices come, go, or break.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Capacity and allocatable amounts by resource.
    pub fn amounts(&self) -> Amounts {
        self.state.lock().amounts()
    }

    /// Does the pod ask for devices of plug-ins?
    pub fn wanted(&self, pod: &PodView) -> bool {
        !self.state.lock().wishes(pod).is_empty()
    }

    /// Pods that have devices.
    pub fn users(&self) -> Vec<String> {
        self.state.lock().grants.keys().cloned().collect()
    }

    /// The pod is gone from the node: its devices are free.
    pub async fn release(&self, uid: &str) {
        if self.state.lock().grants.remove(uid).is_some()
            && let Err(error) = self.save().await
        {
            tracing::warn!(uid, error, "devices that are free again are not written down so");
        }
    }

    /// Adds the health of its devices to each container's status.
    pub fn tell_health(&self, uid: &str, status: &mut Value) {
        let state = self.state.lock();
        if !state.grants.contains_key(uid) {
            return;
        }
        for key in ["containerStatuses", "initContainerStatuses"] {
            for container in status[key].as_array_mut().into_iter().flatten() {
                let health = container["name"].as_str().and_then(|name| state.health(uid, name));
                if let Some(health) = health {
                    container["allocatedResourcesStatus"] = health;
                }
            }
        }
    }

    /// What a container's devices add to it, and those with these CDI names; `stat` finds device nodes. Reads CDI's
    /// files where these are named.
    ///
    /// # Errors
    /// A device is not there, or not known.
    pub fn edits(
        &self,
        uid: &str,
        container: &str,
        more: Vec<String>,
        stat: cdi::Stat,
    ) -> Result<Edits, String> {
        let answers: Vec<Value> = {
            let state = self.state.lock();
            let own = state.grants.get(uid).and_then(|pod| pod.get(container));
            own.into_iter().flat_map(BTreeMap::values).map(|grant| grant.answer.clone()).collect()
        };
        let mut edits = Edits::default();
        let mut names = Vec::new();
        for answer in &answers {
            plain(answer, stat, &mut edits)?;
            let cdi = answer["cdi_devices"].as_array().into_iter().flatten();
            names.extend(cdi.filter_map(|d| d["name"].as_str()));
        }
        names.extend(more.iter().map(String::as_str));
        if !names.is_empty() {
            cdi::inject(&cdi::load(&cdi::FOLDERS), &names, stat, &mut edits)?;
        }
        Ok(edits)
    }

    /// Writes down who has what.
    async fn save(&self) -> Result<(), String> {
        let kept = self.state.lock().checkpoint();
        let path = self.folder.join(CHECKPOINT);
        blocking(move || write_checkpoint(&path, &kept))
            .await?
            .map_err(|e| format!("writing down devices: {e}"))
    }

    fn has_changed(self: &Arc<Self>) {
        self.changed.send_modify(|n| *n += 1);
    }
}

/// Writes a file whole, or not at all.
pub fn write_checkpoint(path: &Path, kept: &impl Serialize) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

/// What a plug-in answered, but for CDI.
fn plain(answer: &Value, stat: cdi::Stat, edits: &mut Edits) -> Result<(), String> {
    let list = |key: &str| answer[key].as_array().cloned().unwrap_or_default();
    let pairs = |key: &str| -> BTreeMap<String, String> {
        let all = answer[key].as_object().into_iter().flatten();
        all.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().into())).collect()
    };
    edits.weak_env.extend(pairs("envs"));
    edits.annotations.extend(pairs("annotations"));
    for mount in list("mounts") {
        let text = |key: &str| mount[key].as_str().unwrap_or_default();
        let access = if mount["read_only"] == true { "ro" } else { "rw" };
        edits.mounts.push(oci::Mount {
            destination: text("container_path").into(),
            kind: "bind".into(),
            source: text("host_path").into(),
            options: ["rbind", "rprivate", access].map(str::to_string).to_vec(),
            ..oci::Mount::default()
        });
    }
    for wanted in list("devices") {
        let text = |key: &str| wanted[key].as_str().unwrap_or_default();
        let mut device = stat(Path::new(text("host_path")))?;
        device.path = text("container_path").into();
        edits.devices.push((device, text("permissions").into()));
    }
    Ok(())
}
