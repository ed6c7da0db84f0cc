//! What the node, its pods and their containers use: read from the kernel when somebody asks, never by itself.
//!
//! [`gather`] reads (blocking); the rest makes texts of it: [`resource`] (`/metrics/resource`), [`cadvisor`]
//! (`/metrics/cadvisor`), [`summary`] (`/stats/summary`), [`own`] (`/metrics`, `/metrics/probes`). Names of series and
//! fields are the kubelet's.
//! Deliberately not here: rates over time for others (`apiserver::node_metrics`), limits (`eviction`).

pub mod cadvisor;
mod disk;
pub mod kernel;
pub mod own;
pub mod resource;
pub mod summary;
pub(crate) mod text;

pub use disk::DiskCache;

use crate::decide::seed::FACTS;
use crate::ops::Node;
use crate::state::Facts;
use kernel::{Device, Machine};
use runtime::api::{ContainerInfo, ContainerState, PodInfo, Usage};
use runtime::oci::Resources;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Everything, at about one moment.
#[derive(Default)]
pub struct Stats {
    /// The node's name.
    pub node: String,
    /// The machine.
    pub machine: Machine,
    /// All pods together.
    pub all: Usage,
    /// The running pods.
    pub pods: Vec<PodStats>,
}

/// A pod.
pub struct PodStats {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// Start of its first container, nanoseconds since the epoch.
    pub started_ns: i64,
    /// Its cgroup, below the instance's root.
    pub cgroup: String,
    /// Its cgroup's.
    pub usage: Usage,
    /// Its network devices; none on the node's network.
    pub devices: Vec<Device>,
    /// Its running containers.
    pub containers: Vec<ContainerStats>,
}

/// A running container.
pub struct ContainerStats {
    /// Name.
    pub name: String,
    /// Id of this instance, without its scheme.
    pub id: String,
    /// The image as the status names it.
    pub image: String,
    /// Cgroup, below the instance's root.
    pub cgroup: String,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// Nanoseconds since the epoch.
    pub started_ns: i64,
    /// Its cgroup's.
    pub usage: Usage,
    /// Its limits.
    pub limits: Resources,
    /// What is mounted where: by the place in the container.
    pub mounts: BTreeMap<PathBuf, PathBuf>,
}

pub(crate) fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Reads everything.
pub fn gather(node: &Node) -> Stats {
    let mut pods: Vec<PodStats> = node.runtime.pods().iter().map(|pod| pod_stats(node, pod)).collect();
    pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    Stats {
        node: node.facts.node_name.clone(),
        machine: Machine::read(&node.facts.data_dir),
        all: node.runtime.usage_of_all(),
        pods,
    }
}

/// The image of a container as its status names it.
pub fn image(info: &ContainerInfo) -> String {
    let facts = info.spec.annotations.get(FACTS).and_then(|text| serde_json::from_str::<Facts>(text).ok());
    facts.map(|f| f.image).unwrap_or_default()
}

fn pod_stats(node: &Node, pod: &PodInfo) -> PodStats {
    let spec = &pod.spec;
    let usage = |id: Option<&str>| node.runtime.usage(&spec.uid, id).unwrap_or_default();
    let containers: Vec<ContainerStats> = pod
        .containers
        .iter()
        .filter_map(|info| {
            let ContainerState::Running { started_at_ns, .. } = info.state else { return None };
            let own = &info.spec;
            let id = crate::status::container_id(&spec.uid, &own.name, own.attempt);
            Some(ContainerStats {
                name: own.name.clone(),
                id: id.split_once("://").map_or(id.as_str(), |(_, id)| id).to_string(),
                image: image(info),
                cgroup: format!("{}/{}", spec.cgroup, own.id),
                at_ms: now_ms(),
                started_ns: started_at_ns,
                usage: usage(Some(&own.id)),
                limits: own.config.linux.resources.clone(),
                mounts: own.config.mounts.iter().map(|m| (m.destination.clone(), m.source.clone())).collect(),
            })
        })
        .collect();
    PodStats {
        uid: spec.uid.clone(),
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        at_ms: now_ms(),
        started_ns: containers.iter().map(|c| c.started_ns).min().unwrap_or_default(),
        cgroup: spec.cgroup.clone(),
        usage: usage(None),
        devices: if spec.host_network { Vec::new() } else { kernel::devices(Some(pod.shim_pid)) },
        containers,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use runtime::api::Pressure;
    use runtime::oci::{Cpu, Memory};

    /// One pod with one container on a small machine.
    pub fn stats() -> Stats {
        let memory = |name: &str, bytes: u64| (name.to_string(), bytes);
        let usage = |cpu_ns: u64, working_set_bytes: u64, pids: u64| Usage {
            cpu_ns,
            working_set_bytes,
            pids,
            ..Usage::default()
        };
        Stats {
            node: "node-1".into(),
            machine: Machine {
                at_ms: 1_700_000_000_000,
                cpu_ns: 7_000_000_000,
                memory: [memory("MemTotal", 10_240), memory("MemFree", 5_120)].into(),
                tasks: [12, 100],
                ..Machine::default()
            },
            all: usage(3_000_000_000, 9_000, 3),
            pods: vec![PodStats {
                uid: "u".into(),
                namespace: "n".into(),
                name: "p".into(),
                at_ms: 1_700_000_000_600,
                started_ns: 1_699_999_990_250_000_000,
                cgroup: "burstable/podu".into(),
                usage: usage(2_000_000_000, 8_000, 3),
                devices: vec![Device { name: "eth0".into(), received: [10, 1, 0, 0], sent: [20, 2, 0, 0] }],
                containers: vec![ContainerStats {
                    name: "c".into(),
                    id: "abc".into(),
                    image: "img:1".into(),
                    cgroup: "burstable/podu/c-0".into(),
                    at_ms: 1_700_000_000_500,
                    started_ns: 1_699_999_990_250_000_000,
                    usage: Usage {
                        pressure: [
                            Pressure::parse("some avg10=1.77 avg60=0.00 avg300=0.00 total=7"),
                            None,
                            None,
                        ],
                        ..usage(1_500_000_000, 4_096, 2)
                    },
                    limits: Resources {
                        cpu: Cpu { quota: Some(50_000), ..Cpu::default() },
                        memory: Memory { limit: Some(8_192), ..Memory::default() },
                        ..Resources::default()
                    },
                    mounts: BTreeMap::new(),
                }],
            }],
        }
    }
}
