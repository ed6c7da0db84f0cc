//! The node's own objects: its registration, its status, its lease.
//!
//! The lease every 10 s says "alive" cheaply; the status is written on change and every 5 minutes.

use crate::config::resources::HUGE;
use crate::devices::{Amounts, Devices};
use crate::events::Recorder;
use crate::eviction::Pressure;
use crate::facts::NodeFacts;
use client::cache::Cache;
use client::{ApiClient, ListOptions, Object, ObjectKey, WatchOptions};
use futures_util::StreamExt;
use image::Images;
use jiff::Timestamp;
use k8s_schema::gvr::{LEASES, NODES};
use machinery::quantity::Quantity;
use machinery::status::ApiError;
use machinery::time::{format, format_micro};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::sync::watch;

const LEASE_EVERY: Duration = Duration::from_secs(10);
const LEASE_SECONDS: u32 = 40;
const STATUS_EVERY: Duration = Duration::from_secs(300);
/// What upstream's newer nodes have and older ones have not, sorted; pods that need it go to such nodes only.
const DECLARED: [&str; 2] = ["GuaranteedQoSPodCPUResize", "RestartAllContainersOnContainerExits"];
/// Images listed in the status, the largest first (upstream's figure).
const IMAGES_MAX: usize = 50;
const RETRY: Backoff = Backoff { base: Duration::from_millis(50), factor: 2, max: Duration::from_secs(5) };
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// A condition of pressure: reason, message and event when it is there, and when it is not.
struct Condition {
    pressure: Pressure,
    there: [&'static str; 3],
    gone: [&'static str; 3],
}

const CONDITIONS: [Condition; 3] = [
    Condition {
        pressure: Pressure::Memory,
        there: [
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
            "NodeHasInsufficientMemory",
        ],
        gone: [
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
            "NodeHasSufficientMemory",
        ],
    },
    Condition {
        pressure: Pressure::Disk,
        there: ["KubeletHasDiskPressure", "kubelet has disk pressure", "NodeHasDiskPressure"],
        gone: ["KubeletHasNoDiskPressure", "kubelet has no disk pressure", "NodeHasNoDiskPressure"],
    },
    Condition {
        pressure: Pressure::Pid,
        there: [
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
            "NodeHasInsufficientPID",
        ],
        gone: ["KubeletHasSufficientPID", "kubelet has sufficient PID available", "NodeHasSufficientPID"],
    },
];
/// The amounts that the agent itself tells.
const OWN_AMOUNTS: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pods"];
const READY: [&str; 2] = ["KubeletReady", "kubelet is posting ready status"];
const GOING: [&str; 2] = ["KubeletNotReady", "node is shutting down"];

/// What keeps the node's objects fresh.
pub struct NodeTask {
    /// The API.
    pub client: ApiClient,
    /// The node.
    pub facts: Arc<NodeFacts>,
    /// Labels beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// Pod range, where the API does not give one.
    pub pod_cidr: String,
    /// Port of the node API.
    pub port: u16,
    /// `status.runtimeHandlers`.
    pub handlers: Value,
    /// Images, for the status.
    pub images: Arc<Images>,
    /// What the node is short of.
    pub pressure: watch::Receiver<BTreeSet<Pressure>>,
    /// Is it going down?
    pub shutting_down: watch::Receiver<bool>,
    /// Events.
    pub recorder: Recorder,
    /// This node as the API has it.
    pub this: Arc<Cache>,
    /// Devices of plug-ins.
    pub devices: Arc<Devices>,
}

/// What makes `allocatable` agree with the capacities that others wrote, such as an administrator; `own` are those of
/// plug-ins. `None`: it does.
fn others_amounts(status: &Value, own: &Amounts) -> Option<serde_json::Map<String, Value>> {
    let foreign = |list: &str| {
        let all = status[list].as_object().cloned().unwrap_or_default();
        let foreign = |name: &String| {
            !OWN_AMOUNTS.contains(&name.as_str()) && !name.starts_with(HUGE) && !own.contains_key(name)
        };
        all.into_iter().filter(|(name, _)| foreign(name)).collect()
    };
    let (capacity, allocatable): (serde_json::Map<_, _>, serde_json::Map<_, _>) =
        (foreign("capacity"), foreign("allocatable"));
    let gone = allocatable.keys().filter(|k| !capacity.contains_key(*k)).map(|k| (k.clone(), Value::Null));
    let mut change: serde_json::Map<String, Value> = gone.collect();
    change.extend(capacity.into_iter().filter(|(name, amount)| allocatable.get(name) != Some(amount)));
    (!change.is_empty()).then_some(change)
}

/// Huge pages of the machine: resources with bytes; `folder` has a folder for each size (`hugepages-2048kB`).
fn huge_pages(folder: &Path) -> BTreeMap<String, i64> {
    let size = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let bytes = name.strip_prefix(HUGE)?.strip_suffix("kB")?.parse::<i64>().ok()?.checked_mul(1024)?;
        let count: i64 = read(entry.path().join("nr_hugepages").to_str()?).trim().parse().ok()?;
        Some((format!("{HUGE}{}", Quantity::from_bytes(bytes)), bytes.checked_mul(count)?))
    };
    std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(size).collect()
}

/// Was the node written off, as it is when its server was away for a while? It is here, and says so at once.
fn is_given_up(status: &Value) -> bool {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.any(|c| c["type"] == "Ready" && c["status"] == "Unknown")
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|t| t.trim().to_string()).unwrap_or_default()
}

fn os_image() -> String {
    let text = read("/etc/os-release");
    let line = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.map_or_else(|| "Linux".into(), |name| name.trim_matches('"').to_string())
}

/// What RuntimeClasses may name, and what each can do: ours ("" is the default), and other OCI runtimes.
pub fn handlers<'a>(others: impl Iterator<Item = &'a String>) -> Value {
    let ours = ["", "gantry"].map(
        |name| json!({"name": name, "features": {"recursiveReadOnlyMounts": true, "userNamespaces": true}}),
    );
    let other = |name: &String| json!({"name": name, "features": {"recursiveReadOnlyMounts": false, "userNamespaces": false}});
    ours.into_iter().chain(others.map(other)).collect()
}

fn swap_bytes() -> u64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|l| l.strip_prefix("SwapTotal:"));
    line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The labels that every node gives itself.
fn known_labels(node: &str) -> impl Iterator<Item = (String, String)> {
    let arch = architecture();
    let labels = [
        ("kubernetes.io/hostname", node),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ];
    labels.map(|(key, value)| (key.to_string(), value.to_string())).into_iter()
}

/// Makes the Node be there with its address, and returns its part of the pod range once it has one. What the node
/// starts with comes from these two; the rest is [`NodeTask`]'s.
///
/// # Errors
/// The API refused, or ended the watch; calling again is safe.
pub async fn register(client: &ApiClient, name: &str, ip: Ipv4Addr) -> Result<String, ApiError> {
    let key = ObjectKey::cluster(name);
    let node = match client.get(&NODES, &key).await {
        Err(error) if error.is_not_found() => {
            let labels: BTreeMap<_, _> = known_labels(name).collect();
            let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
                "spec": {}});
            client.create(&NODES, body).await?
        }
        found => found?,
    };
    let value = node.value().map_err(ApiError::internal)?;
    let addresses = json!([{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}]);
    if value["status"]["addresses"] != addresses {
        client.merge_patch_status(&NODES, &key, json!({"status": {"addresses": addresses}})).await?;
    }
    let options = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
    let mut events = client.watch(&NODES, &WatchOptions { list: options, after: None }).await?;
    while let Some(event) = events.next().await {
        let node = event?.object;
        let node = node.value().map_err(ApiError::internal)?;
        if let Some(range) = node["spec"]["podCIDR"].as_str().filter(|r| !r.is_empty()) {
            return Ok(range.to_string());
        }
    }
    Err(ApiError::new(503, "ServiceUnavailable", "the API server ended the watch of the node"))
}

impl NodeTask {
    /// Registers, then keeps lease and status fresh for ever. `ready` is called once the node is Ready.
    pub async fn run(self, ready: impl FnOnce() + Send) {
        let mut failures = 0;
        let (mut pressure, mut shutting_down) = (self.pressure.clone(), self.shutting_down.clone());
        let mut told = BTreeSet::new();
        while let Err(error) = self.register().await {
            tracing::debug!(%error, "node not registered yet");
            tokio::time::sleep(RETRY.delay(failures)).await;
            failures += 1;
        }
        let name = &self.facts.node_name;
        self.recorder.node(name, "Starting", "Starting kubelet.".into());
        self.recorder.node(name, "NodeReady", format!("Node {name} status is now: NodeReady"));
        ready();
        let (mut images, mut devices) = (self.images.subscribe(), self.devices.changed());
        let mut changed = self.this.changed();
        let mut lease = None;
        let mut status_at = tokio::time::Instant::now() + STATUS_EVERY;
        let mut lease_at = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(lease_at) => {
                    lease_at = tokio::time::Instant::now() + LEASE_EVERY;
                    match self.renew(lease.take()).await {
                        Ok(renewed) => lease = Some(renewed),
                        Err(error) => tracing::debug!(%error, "lease not renewed"),
                    }
                    continue;
                }
                () = tokio::time::sleep_until(status_at) => {}
                Ok(()) = pressure.changed() => {
                    let now = pressure.borrow_and_update().clone();
                    self.tell(&told, &now);
                    told = now;
                }
                Ok(()) = shutting_down.changed() => {
                    let text = format!("Node {name} status is now: NodeNotReady");
                    self.recorder.node(name, "NodeNotReady", text);
                }
                Ok(()) = devices.changed() => {}
                Ok(()) = changed.changed() => {
                    let node = self.this.get(&ObjectKey::cluster(self.facts.node_name.as_str()));
                    let node = node.and_then(|n| n.value().ok());
                    if node.is_none_or(|n| {
                        others_amounts(&n["status"], &self.devices.amounts()).is_none() && !is_given_up(&n["status"])
                    }) {
                        continue;
                    }
                }
                changed = images.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
            }
            status_at = tokio::time::Instant::now() + STATUS_EVERY;
            if let Err(error) = self.register().await {
                tracing::warn!(%error, "node status not written");
                status_at = tokio::time::Instant::now() + RETRY.max;
            }
        }
    }

    /// Events for what began and what is over.
    fn tell(&self, before: &BTreeSet<Pressure>, now: &BTreeSet<Pressure>) {
        let name = &self.facts.node_name;
        for condition in &CONDITIONS {
            let is = now.contains(&condition.pressure);
            if is != before.contains(&condition.pressure) {
                let [.., event] = if is { condition.there } else { condition.gone };
                self.recorder.node(name, event, format!("Node {name} status is now: {event}"));
            }
        }
    }

    /// Makes the Node be there with its labels and its status.
    async fn register(&self) -> Result<(), ApiError> {
        let key = ObjectKey::cluster(self.facts.node_name.as_str());
        let labels = self.all_labels();
        let node = match self.client.get(&NODES, &key).await {
            Ok(node) => node,
            Err(error) if error.is_not_found() => {
                let body = json!({
                    "apiVersion": "v1", "kind": "Node",
                    "metadata": {"name": self.facts.node_name, "labels": labels},
                    "spec": {},
                });
                self.client.create(&NODES, body).await?
            }
            Err(error) => return Err(error),
        };
        let mut patch = json!({});
        if !labels.iter().all(|(k, v)| node.meta().labels.get(k) == Some(v)) {
            patch["metadata"]["labels"] = json!(labels);
        }
        let value = node.value().map_err(ApiError::internal)?;
        if !self.pod_cidr.is_empty() && value["spec"]["podCIDR"].as_str().unwrap_or_default().is_empty() {
            patch["spec"] = json!({"podCIDR": self.pod_cidr, "podCIDRs": [self.pod_cidr]});
        }
        if patch != json!({}) {
            self.client.merge_patch(&NODES, &key, patch).await?;
        }
        let status = self.status(&value["status"]);
        self.client.merge_patch_status(&NODES, &key, json!({"status": status})).await?;
        Ok(())
    }

    fn all_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone();
        labels.extend(known_labels(&self.facts.node_name));
        labels
    }

    /// The status; conditions that others own are kept.
    fn status(&self, old: &Value) -> Value {
        let facts = &self.facts;
        let mut amounts = json!({
            "cpu": Quantity::from_milli(facts.cpu_milli).to_string(),
            "memory": format!("{}Ki", facts.memory_bytes / 1024),
            "ephemeral-storage": format!("{}Ki", facts.storage_bytes / 1024),
            "pods": facts.max_pods.to_string(),
        });
        let huge = huge_pages(Path::new("/sys/kernel/mm/hugepages"));
        for (name, bytes) in &huge {
            amounts[name] = json!(Quantity::from_bytes(*bytes).to_string());
        }
        let mut allocatable = amounts.clone();
        // They are not there for anything else.
        let memory = facts.memory_bytes.saturating_sub(huge.values().sum());
        allocatable["memory"] = json!(format!("{}Ki", memory.max(0) / 1024));
        let devices = self.devices.amounts();
        for (name, (all, healthy)) in &devices {
            amounts[name] = json!(all.to_string());
            allocatable[name] = json!(healthy.to_string());
        }
        if let (Some(change), Some(list)) = (others_amounts(old, &devices), allocatable.as_object_mut()) {
            list.extend(change);
        }
        let mut addresses: Vec<Value> =
            facts.host_ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        addresses.push(json!({"type": "Hostname", "address": facts.node_name}));
        let machine = read("/etc/machine-id");
        json!({
            "capacity": amounts, "allocatable": allocatable,
            "addresses": addresses,
            "conditions": conditions(old, &self.pressure.borrow(), *self.shutting_down.borrow(), Timestamp::now()),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
            "features": {"supplementalGroupsPolicy": true},
            // CPUs of containers that have their own cannot change: the first does not hold then.
            "declaredFeatures": DECLARED[usize::from(self.facts.exclusive_cpus)..],
            "runtimeHandlers": self.handlers,
            "nodeInfo": {
                "machineID": machine, "systemUUID": machine,
                "bootID": read("/proc/sys/kernel/random/boot_id"),
                "kernelVersion": read("/proc/sys/kernel/osrelease"),
                "osImage": os_image(),
                "containerRuntimeVersion": concat!("gantry://", env!("CARGO_PKG_VERSION")),
                "kubeletVersion": "v1.36.0+gantry", "kubeProxyVersion": "",
                "operatingSystem": "linux", "architecture": architecture(),
                "swap": {"capacity": swap_bytes()},
            },
            "images": self.image_list(),
        })
    }

    fn image_list(&self) -> Vec<Value> {
        let mut images = self.images.list();
        images.sort_by_key(|i| std::cmp::Reverse(i.size_bytes));
        let names = |i: &image::Image| i.digests.iter().chain(&i.names).cloned().collect::<Vec<_>>();
        images
            .iter()
            .take(IMAGES_MAX)
            .map(|i| json!({"names": names(i), "sizeBytes": i.size_bytes}))
            .collect()
    }

    async fn renew(&self, known: Option<Arc<Object>>) -> Result<Arc<Object>, ApiError> {
        let key = ObjectKey::new(LEASE_NAMESPACE, self.facts.node_name.as_str());
        let now = format_micro(Timestamp::now());
        let current = match known {
            Some(lease) => Ok(lease),
            None => self.client.get(&LEASES, &key).await,
        };
        match current {
            Ok(lease) => {
                let mut body = lease.value().map_err(ApiError::internal)?;
                body["spec"]["holderIdentity"] = json!(self.facts.node_name);
                body["spec"]["leaseDurationSeconds"] = json!(LEASE_SECONDS);
                body["spec"]["renewTime"] = json!(now);
                self.client.update(&LEASES, &key, body).await
            }
            Err(error) if error.is_not_found() => {
                let node =
                    self.client.get(&NODES, &ObjectKey::cluster(self.facts.node_name.as_str())).await?;
                let body = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"namespace": LEASE_NAMESPACE, "name": self.facts.node_name, "ownerReferences": [{
                        "apiVersion": "v1", "kind": "Node", "name": self.facts.node_name, "uid": node.uid()}]},
                    "spec": {"holderIdentity": self.facts.node_name, "leaseDurationSeconds": LEASE_SECONDS,
                        "renewTime": now},
                });
                self.client.create(&LEASES, body).await
            }
            Err(error) => Err(error),
        }
    }
}

fn conditions(old: &Value, pressure: &BTreeSet<Pressure>, going: bool, now: Timestamp) -> Vec<Value> {
    let stored = old["conditions"].as_array().cloned().unwrap_or_default();
    let mut list = Vec::new();
    let mut put = |kind: &str, status: &str, [reason, message]: [&str; 2]| {
        let before = stored.iter().find(|c| c["type"] == kind && c["status"] == status);
        let since =
            before.and_then(|c| c["lastTransitionTime"].as_str()).map_or_else(|| format(now), str::to_string);
        list.push(json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": format(now), "lastTransitionTime": since}));
    };
    for condition in &CONDITIONS {
        let is = pressure.contains(&condition.pressure);
        let [reason, message, _] = if is { condition.there } else { condition.gone };
        put(condition.pressure.condition(), if is { "True" } else { "False" }, [reason, message]);
    }
    match going {
        true => put("Ready", "False", GOING),
        false => put("Ready", "True", READY),
    }
    let own: BTreeSet<String> = list.iter().map(|c| c["type"].as_str().unwrap_or_default().into()).collect();
    let foreign = stored.into_iter().filter(|c| !own.contains(c["type"].as_str().unwrap_or_default()));
    list.extend(foreign);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_written_off_says_so() {
        let ready = |status: &str| {
            json!({"conditions": [{"type": "DiskPressure", "status": "Unknown"},
            {"type": "Ready", "status": status}]})
        };
        assert!(is_given_up(&ready("Unknown")));
        assert!(!is_given_up(&ready("True")) && !is_given_up(&ready("False")) && !is_given_up(&json!({})));
    }

    #[test]
    fn amounts_of_others_become_allocatable() {
        let own: Amounts = [("own.io/x".to_string(), (2, 1))].into();
        let change = |capacity: Value, allocatable: Value| {
            others_amounts(&json!({"capacity": capacity, "allocatable": allocatable}), &own)
                .map(Value::Object)
        };
        assert_eq!(change(json!({"cpu": "2"}), json!({"cpu": "1"})), None);
        assert_eq!(change(json!({"cpu": "2", "x.io/y": "3"}), json!({})), Some(json!({"x.io/y": "3"})));
        assert_eq!(change(json!({"x.io/y": "3"}), json!({"x.io/y": "3"})), None);
        assert_eq!(change(json!({}), json!({"x.io/y": "3", "cpu": "1"})), Some(json!({"x.io/y": null})));
        assert_eq!(change(json!({"own.io/x": "2"}), json!({"own.io/x": "1"})), None, "a plug-in's");
        assert_eq!(change(Value::Null, Value::Null), None);
    }

    #[test]
    fn conditions_keep_their_transition_and_their_neighbours() {
        let now = Timestamp::from_second(100).unwrap();
        let old = json!({"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:05Z"},
            {"type": "DiskPressure", "status": "True", "lastTransitionTime": "1970-01-01T00:00:05Z"},
            {"type": "NetworkUnavailable", "status": "False"}]});
        let list = conditions(&old, &BTreeSet::new(), false, now);
        let of = |kind: &str| list.iter().find(|c| c["type"] == kind).unwrap();
        assert_eq!(of("Ready")["lastTransitionTime"], "1970-01-01T00:00:05Z");
        assert_eq!(of("DiskPressure")["lastTransitionTime"], "1970-01-01T00:01:40Z");
        assert_eq!(of("Ready")["lastHeartbeatTime"], "1970-01-01T00:01:40Z");
        assert_eq!(list.len(), 5);
        let list = conditions(&old, &[Pressure::Disk].into(), true, now);
        let ready = list.iter().find(|c| c["type"] == "Ready").unwrap();
        assert_eq!(
            (&ready["status"], &ready["reason"], &ready["message"], &ready["lastTransitionTime"]),
            (
                &json!("False"),
                &json!("KubeletNotReady"),
                &json!("node is shutting down"),
                &json!("1970-01-01T00:01:40Z")
            )
        );
        let disk = list.iter().find(|c| c["type"] == "DiskPressure").unwrap();
        assert_eq!(disk["status"], "True");
        assert_eq!(
            (&disk["reason"], &disk["lastTransitionTime"]),
            (&json!("KubeletHasDiskPressure"), &json!("1970-01-01T00:00:05Z"))
        );
    }
}
