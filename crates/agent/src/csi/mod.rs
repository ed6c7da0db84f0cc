//! CSI drivers on this node: who is registered, staging and publishing of volumes, growing them, cleaning up.
//!
//! Drivers are found by their sockets ([`register`]); what is mounted stands in records on disk ([`place`]), so that
//! an agent that was killed unmounts what it must; every call to a driver may be repeated. Calls for one volume are
//! made one after the other. Deliberately not here: creating, attaching and deleting volumes (`controllers::volumes`,
//! which reaches a driver's controller service through [`Plugins::relay`]), containers' mounts (`config`).

mod grow;
mod limits;
mod place;
mod publish;
mod register;
mod shared;
mod stats;
mod unpublish;

pub use place::{Place, SHOWN};
pub use publish::{PublishedVolume, PublishedVolumes, publish};
pub use shared::{share, unmount_below};
pub use stats::metrics;
pub use unpublish::unpublish;

use crate::facts::NodeFacts;
use crate::ops::Node;
use grpc::{Answer, CSI, Call, Status, code};
use k8s_schema::Gvr;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Drivers as the API knows them.
const DRIVERS: Gvr = Gvr::new("storage.k8s.io", "v1", "csidrivers");
/// What a node's drivers are.
const CSI_NODES: Gvr = Gvr::new("storage.k8s.io", "v1", "csinodes");
/// What is attached where.
const ATTACHMENTS: Gvr = Gvr::new("storage.k8s.io", "v1", "volumeattachments");
/// How long a driver may take for a call (the kubelet's figure).
const CALL_MAX: Duration = Duration::from_secs(120);

/// Types of `NodeServiceCapability.RPC`.
mod ability {
    pub const STAGE: i64 = 1;
    pub const STATS: i64 = 2;
    pub const EXPAND: i64 = 3;
    pub const MULTI_WRITER: i64 = 5;
    pub const MOUNT_GROUP: i64 = 6;
}

/// A registered driver.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Driver {
    /// Its socket on this node.
    socket: PathBuf,
}

type VolumeLock = Arc<tokio::sync::Mutex<()>>;

/// The node's drivers and their volumes.
pub struct Plugins {
    /// Where their files are.
    pub place: Place,
    drivers: Mutex<BTreeMap<String, Driver>>,
    /// Changes with the drivers.
    registered: watch::Sender<u64>,
    /// Drivers that have just found no room on the node.
    full: Mutex<BTreeSet<String>>,
    /// Said with each of them.
    filled: Notify,
    /// A lock a volume, by driver and handle.
    locks: Mutex<BTreeMap<(String, String), VolumeLock>>,
    /// What was published since the agent started, by the pod's UID and its name for the volume.
    published: Mutex<BTreeMap<(String, String), PublishedVolume>>,
    /// One report of volumes in use at a time.
    reporting: tokio::sync::Mutex<()>,
    /// The node is emptied: volumes of drivers that are gone already are given up.
    pub emptying: AtomicBool,
}

impl Plugins {
    /// Nobody is registered yet.
    pub fn new(facts: &NodeFacts) -> Plugins {
        Plugins {
            place: facts.kubelet.clone(),
            drivers: Mutex::default(),
            registered: watch::Sender::default(),
            full: Mutex::default(),
            filled: Notify::new(),
            locks: Mutex::default(),
            published: Mutex::default(),
            reporting: tokio::sync::Mutex::default(),
            emptying: AtomicBool::new(false),
        }
    }

    fn driver(&self, name: &str) -> Result<Driver, Status> {
        let missing = || {
            let text = format!("driver name {name} not found in the list of registered CSI drivers");
            Status::new(code::UNAVAILABLE, text)
        };
        self.drivers.lock().get(name).cloned().ok_or_else(missing)
    }

    /// Calls a registered driver.
    async fn call(&self, driver: &str, method: &str, request: &Value) -> Answer {
        let socket = self.driver(driver)?.socket;
        Call { schema: &CSI, socket: &socket, within: CALL_MAX }.call(method, request).await
    }

    /// A call of a driver's controller service on somebody's behalf.
    pub async fn relay(&self, driver: &str, method: &str, request: &Value) -> Answer {
        match CSI.method(method).map(|m| m.service) {
            Some("csi.v1.Controller" | "csi.v1.Identity") => self.call(driver, method, request).await,
            _ => Err(Status::new(code::UNIMPLEMENTED, format!("{method} is not called from elsewhere"))),
        }
    }

    /// What the driver's node service can.
    async fn abilities(&self, driver: &str) -> Result<Vec<i64>, Status> {
        let answer = self.call(driver, "NodeGetCapabilities", &json!({})).await?;
        Ok(types_of(&answer))
    }

    /// Held while something is done to a volume.
    async fn lock(&self, driver: &str, handle: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut all = self.locks.lock();
            all.retain(|_, lock| Arc::strong_count(lock) > 1);
            all.entry((driver.into(), handle.into())).or_default().clone()
        };
        lock.lock_owned().await
    }
}

/// Registers drivers, grows volumes and asks anew how many there may be, for ever.
pub async fn run(node: Arc<Node>) {
    tokio::join!(register::run(node.clone()), grow::run(node.clone()), limits::run(node));
}

/// `capabilities[].rpc.type`.
fn types_of(answer: &Value) -> Vec<i64> {
    let list = answer["capabilities"].as_array().into_iter().flatten();
    list.filter_map(|c| c["rpc"]["type"].as_i64()).collect()
}

/// Says in the Node's status which attached volumes this node has in use: nobody detaches these.
async fn report_in_use(node: &Node) -> Result<(), String> {
    let _one = node.csi.reporting.lock().await;
    let key = client::ObjectKey::cluster(node.facts.node_name.as_str());
    let mut in_use = json!(node.csi.place.in_use());
    if in_use == json!([]) {
        in_use = Value::Null;
    }
    let told = node.this.get(&key).and_then(|n| n.value().ok()).map(|n| n["status"]["volumesInUse"].clone());
    if told.as_ref() == Some(&in_use) {
        return Ok(());
    }
    let patch = json!({"status": {"volumesInUse": in_use}});
    let done = node.client.merge_patch_status(&k8s_schema::gvr::NODES, &key, patch).await;
    done.map(|stored| node.this.observe(stored)).map_err(|e| format!("volumes in use not told: {e}"))
}
