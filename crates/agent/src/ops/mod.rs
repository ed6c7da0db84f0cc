//! The shell's operations: each carries out one action of `decide` and reports one outcome.
//!
//! They may be cancelled at any point (the agent may be killed): all are safe to run again.

mod claims;
mod finish;
mod prepare;
mod resize;
mod sandbox;
mod start;
mod termination;
mod tokens;
mod volumes;

pub use finish::{finalize, leftovers, remove_logs, remove_orphan, sweep, teardown, write_status};
pub use prepare::{apparmor_enabled, selinux_enabled};
pub use resize::resize;
pub use sandbox::{Making, sandbox};
pub use start::{Instance, Which, hook, probe, signal, start};
pub use termination::message;
pub(crate) use tokens::token;
pub use volumes::volumes;

use crate::config::mounts::MountedVolume;
use crate::cpus::Cpus;
use crate::csi::Plugins;
use crate::decide::Note;
use crate::devices::Devices;
use crate::dra::Dra;
use crate::events::Recorder;
use crate::eviction::Pressure;
use crate::facts::NodeFacts;
use crate::logging::Logging;
use crate::objects::ObjectCaches;
use crate::pod::PodView;
use crate::state::ProbeKind;
use crate::statics::{Statics, manifest};
use crate::volumes::{Token, TokenNeed};
use client::cache::Cache;
use client::{ApiClient, Object, ObjectKey};
use image::{Images, Lease};
use net::Network;
use parking_lot::Mutex;
use runtime::Runtime;
use runtime::api::PodInfo;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Sandboxes and containers made at the same time: more would only queue in the kernel.
pub const MAKING_MAX: usize = 8;

/// Mounted volumes by name.
pub type Mounted = Arc<BTreeMap<String, MountedVolume>>;

/// A pod's probes so far, by container, kind and whether they succeeded.
pub type Probed = BTreeMap<(String, ProbeKind, bool), u64>;

/// What all operations share.
pub struct Node {
    /// The API.
    pub client: ApiClient,
    /// The node.
    pub facts: Arc<NodeFacts>,
    /// Runs containers.
    pub runtime: Runtime,
    /// Images on disk.
    pub images: Arc<Images>,
    /// Brings images that are not there.
    pub puller: image::Puller,
    /// The pod network.
    pub network: Arc<Network>,
    /// ConfigMaps and Secrets in use.
    pub objects: ObjectCaches,
    /// All services.
    pub services: Arc<Cache>,
    /// This node's pods.
    pub pods: Arc<Cache>,
    /// This node as the API has it.
    pub this: Arc<Cache>,
    /// What the node is short of.
    pub pressure: watch::Sender<BTreeSet<Pressure>>,
    /// Is it going down?
    pub shutting_down: watch::Sender<bool>,
    /// Pods whose sandbox is being made now.
    pub sandboxes: watch::Sender<BTreeSet<String>>,
    /// Events.
    pub recorder: Recorder,
    /// Minted tokens by pod UID.
    pub tokens: Mutex<BTreeMap<String, BTreeMap<TokenNeed, Token>>>,
    /// Images in use by pod UID and container.
    pub leases: Mutex<BTreeMap<String, BTreeMap<String, Lease>>>,
    /// How long pods that do not run yet waited for images, by UID.
    pub pulling: Mutex<BTreeMap<String, Duration>>,
    /// Static pods.
    pub statics: Mutex<Statics>,
    /// First ids of pods with user namespaces, by pod UID, from when they are asked for until their pod is gone.
    pub user_ranges: Mutex<BTreeMap<String, u32>>,
    /// How often probes succeeded and failed, by pod UID.
    pub probed: Mutex<BTreeMap<String, Probed>>,
    /// Bounds what is made at once.
    pub making: Semaphore,
    /// Changes whenever a container ended.
    pub exits: watch::Sender<u64>,
    /// Drivers of volumes.
    pub csi: Plugins,
    /// Devices of plug-ins.
    pub devices: Arc<Devices>,
    /// Devices of claims.
    pub dra: Dra,
    /// CPUs of containers.
    pub cpus: Cpus,
    /// Log drivers, where there are any.
    pub logging: OnceLock<Weak<Logging>>,
}

impl Node {
    /// The log drivers.
    pub(crate) fn logging(&self) -> Option<Arc<Logging>> {
        self.logging.get().and_then(Weak::upgrade)
    }

    pub(crate) fn note(&self, pod: &PodView, reason: &'static str, container: &str, message: String) {
        let note = Note { warning: false, reason, message, container: container.into() };
        self.recorder.pod(pod, note);
    }

    /// The pod that this node shall run under a name: a static one, or the API's, but never a mirror.
    pub fn pod(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        let own = self.statics.lock().get(key).cloned();
        own.or_else(|| self.pods.get(key).filter(|o| manifest::mirrored(o).is_none()))
    }

    /// The names of all static pods.
    pub fn static_pods(&self) -> Vec<ObjectKey> {
        self.statics.lock().keys().cloned().collect()
    }

    /// Is that what a manifest on this node says?
    pub fn is_static(&self, object: &Object) -> bool {
        self.statics.lock().get(&object.key).is_some_and(|s| s.uid() == object.uid())
    }

    /// What the API shows of a static pod; `None` for other pods, and as long as it shows nothing.
    pub fn mirror_of(&self, object: &Object) -> Option<Arc<Object>> {
        let mirror = self.pods.get(&object.key).filter(|_| self.is_static(object))?;
        (manifest::mirrored(&mirror) == Some(object.uid())).then_some(mirror)
    }

    /// All that this node shall run, static pods first.
    pub fn all_pods(&self) -> Vec<Arc<Object>> {
        let mut all: Vec<Arc<Object>> = self.statics.lock().values().cloned().collect();
        all.extend(self.pods.list().into_iter().filter(|o| manifest::mirrored(o).is_none()));
        all
    }

    /// Adds the health of its devices to each container's status.
    pub fn tell_health(&self, pod: &PodView, status: &mut Value) {
        self.devices.tell_health(pod.uid(), status);
        self.dra.tell_health(pod, status);
    }

    /// The pod as the runtime has it.
    pub fn live(&self, uid: &str) -> Option<PodInfo> {
        self.runtime.pod(uid)
    }
}

/// Runs blocking work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| format!("internal error: {e}"))
}

/// The id of a container's instance in the runtime.
pub fn instance_id(container: &str, attempt: u32) -> String {
    format!("{container}-{attempt}")
}

/// The address under which the node reaches the pod.
fn pod_ip(node: &Node, pod: &PodView, ips: &[IpAddr]) -> String {
    let ip = if pod.host_network() { node.facts.host_ips.first() } else { ips.first() };
    ip.map(IpAddr::to_string).unwrap_or_default()
}
