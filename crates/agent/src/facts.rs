//! What is true of this node: names, addresses, capacity, folders. Fixed at start, so deciders may read it.

use crate::csi::Place;
use jiff::Timestamp;
use machinery::zpages::{self, Page};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

/// Facts of the node.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    /// The node's name.
    pub node_name: String,
    /// Its addresses, the main one first.
    pub host_ips: Vec<IpAddr>,
    /// The cluster's DNS service address; `None`: pods resolve as the node does.
    pub cluster_dns: Option<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// CPU in thousandths that pods may use.
    pub cpu_milli: i64,
    /// Memory in bytes that pods may use.
    pub memory_bytes: i64,
    /// Disk in bytes that pods may use.
    pub storage_bytes: i64,
    /// How many pods.
    pub max_pods: u32,
    /// Processes per pod; 0: no limit.
    pub pids_max: i64,
    /// Do containers that ask for whole CPUs get such alone?
    pub exclusive_cpus: bool,
    /// Pods' folders are `<data_dir>/pods/<uid>`.
    pub data_dir: PathBuf,
    /// Logs are `<log_dir>/<ns>_<pod>_<uid>/<container>/<attempt>.log`.
    pub log_dir: PathBuf,
    /// The kubelet's folder, where drivers of volumes and devices are.
    pub kubelet: Place,
    /// The node's own `resolv.conf`.
    pub resolv_conf: String,
    /// The node's own `/etc/hosts`.
    pub hosts: String,
    /// The node's host name.
    pub hostname: String,
    /// When the agent started.
    pub started: Timestamp,
    /// What it was told, for `/flagz`.
    pub flags: Option<BTreeMap<String, String>>,
    /// Is there a `/statusz`?
    pub statusz: bool,
}

impl NodeFacts {
    /// The folder of a pod.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid)
    }

    /// The folder of a volume (not of a hostPath one).
    pub fn volume_dir(&self, uid: &str, volume: &str) -> PathBuf {
        self.pod_dir(uid).join("volumes").join(volume)
    }

    /// Where the shim of a pod has the memory file system of its secrets; an empty folder to everybody else.
    pub fn memory_dir(&self, uid: &str) -> PathBuf {
        self.pod_dir(uid).join("memory")
    }

    /// Where a container's termination message is.
    pub fn termination_log(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod_dir(uid).join("containers").join(container).join(format!("termination-{attempt}"))
    }

    /// The folder of a pod's logs.
    pub fn log_folder(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_dir.join(format!("{namespace}_{name}_{uid}"))
    }
}

/// Paths of the node API that `/statusz` names: those that tell of the agent itself.
const PATHS: [&str; 4] = ["/configz", "/flagz", "/healthz", "/metrics"];

impl NodeFacts {
    /// What `/statusz` or `/flagz` tells, if there is such.
    pub fn page(&self, path: &str, now: Timestamp) -> Option<Page> {
        let (component, flags) = ("kubelet", self.flags.as_ref());
        let known = |p: &&str| *p != "/flagz" || flags.is_some();
        let paths: Vec<String> = PATHS.into_iter().filter(known).map(String::from).collect();
        match path {
            "flagz" => flags.map(|f| zpages::flags(component, f)),
            _ => self.statusz.then(|| zpages::status(component, self.started, now, &paths)),
        }
    }

    /// The node's settings in the words of `/configz`; what has no counterpart here is left out.
    pub fn as_configuration(&self) -> Value {
        json!({
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "enableServer": true, "readOnlyPort": 0, "tlsMinVersion": "VersionTLS12",
            "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true, "cacheTTL": "2m0s"}},
            "authorization": {"mode": "Webhook",
                "webhook": {"cacheAuthorizedTTL": "5m0s", "cacheUnauthorizedTTL": "30s"}},
            "clusterDomain": self.cluster_domain, "clusterDNS": self.cluster_dns.iter().collect::<Vec<_>>(),
            "nodeStatusUpdateFrequency": "10s", "nodeStatusReportFrequency": "5m0s",
            "nodeLeaseDurationSeconds": 40, "cgroupDriver": "cgroupfs", "cgroupsPerQOS": true,
            "maxPods": self.max_pods, "podPidsLimit": if self.pids_max > 0 { self.pids_max } else { -1 },
            "cpuManagerPolicy": if self.exclusive_cpus { "static" } else { "none" },
            "enableControllerAttachDetach": true, "enableDebuggingHandlers": true,
            "enableSystemLogHandler": true, "enableSystemLogQuery": false,
            "imageMinimumGCAge": "2m0s", "imageGCHighThresholdPercent": 85, "imageGCLowThresholdPercent": 80,
            "podLogsDir": self.log_dir, "failSwapOn": false, "memorySwap": {"swapBehavior": "NoSwap"},
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small node with its folders below `root`.
    pub fn facts(root: &std::path::Path) -> NodeFacts {
        NodeFacts {
            node_name: "node-1".into(),
            host_ips: vec!["192.0.2.1".parse().unwrap()],
            cluster_dns: Some("10.96.0.10".parse().unwrap()),
            cluster_domain: "cluster.local".into(),
            cpu_milli: 2000,
            memory_bytes: 4 << 30,
            storage_bytes: 10 << 30,
            max_pods: 110,
            pids_max: 0,
            exclusive_cpus: false,
            data_dir: root.join("data"),
            log_dir: root.join("logs"),
            kubelet: Place::new(root.join("kubelet"), None),
            resolv_conf: "nameserver 192.0.2.53\nsearch example.org\noptions timeout:1\n".into(),
            hosts: "127.0.0.1 localhost\n".into(),
            hostname: "host-1".into(),
            started: Timestamp::UNIX_EPOCH,
            flags: None,
            statusz: true,
        }
    }

    #[test]
    fn pages_are_there_when_they_shall_be() {
        let mut facts = facts(std::path::Path::new("/"));
        let text = |facts: &NodeFacts, path| match facts.page(path, Timestamp::UNIX_EPOCH)?.answer("") {
            Some(zpages::Answer::Text(text)) => Some(text),
            _ => panic!(),
        };
        assert_eq!(text(&facts, "flagz"), None);
        assert!(text(&facts, "statusz").unwrap().ends_with("\nPaths: /configz /healthz /metrics\n"));
        facts.flags = Some([("port".to_string(), "6443".to_string())].into());
        assert!(text(&facts, "flagz").unwrap().ends_with("\n\nport=6443\n"));
        assert!(text(&facts, "statusz").unwrap().contains("/flagz"));
        facts.statusz = false;
        assert_eq!(text(&facts, "statusz"), None);
    }
}
