//! Devices of a plug-in end to end: counted, chosen as it prefers, there in the container, told of, broken, waited for,
//! and still a pod's own after the agent was killed.

use crate::{busy, has, logged, pod};
use anyhow::{Result, ensure};
use async_trait::async_trait;
use grpc::{Answer, Call, DEVICES, Handler, POD_RESOURCES, REGISTRATION, serve};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use testkit::cluster::Cluster;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const RESOURCE: &str = "test.gantry.dev/thing";
/// Every device is this one.
const NODE: &str = "/dev/zero";

/// A plug-in in the test's own process.
#[derive(Default)]
struct Plugin {
    listener: Mutex<Option<mpsc::Sender<Value>>>,
    calls: Mutex<Vec<String>>,
}

fn list(broken: &[&str]) -> Value {
    let health = |id: &str| if broken.contains(&id) { "Unhealthy" } else { "Healthy" };
    let one = |id: &str| json!({"ID": id, "health": health(id), "topology": {"nodes": [{"ID": 1}]}});
    let all = ["a", "b", "c"].map(one);
    json!({"devices": all})
}

#[async_trait]
impl Handler for Plugin {
    async fn call(&self, method: &str, request: Value) -> Answer {
        self.calls.lock().push(format!("{method} {request}"));
        Ok(match method {
            "GetInfo" => json!({"type": "DevicePlugin", "name": RESOURCE, "supported_versions": ["v1beta1"],
                "endpoint": "/var/lib/kubelet/device-plugins/thing.sock"}),
            "GetDevicePluginOptions" => json!({"get_preferred_allocation_available": true}),
            "GetPreferredAllocation" => json!({"container_responses": [{"deviceIDs": ["c", "b"]}]}),
            "Allocate" => {
                let ids = &request["container_requests"][0]["devices_ids"];
                json!({"container_responses": [{"envs": {"THINGS": ids.to_string(), "OWN": "lost"},
                    "mounts": [{"container_path": "/things", "host_path": "/etc/os-release", "read_only": true}],
                    "devices": [{"container_path": "/dev/thing", "host_path": NODE, "permissions": "r"}]}]})
            }
            _ => json!({}),
        })
    }

    fn stream(&self, method: &str, _: &Value) -> Option<mpsc::Receiver<Value>> {
        if method != "ListAndWatch" {
            return None;
        }
        let (send, receive) = mpsc::channel(4);
        let _ = send.try_send(list(&[]));
        *self.listener.lock() = Some(send);
        Some(receive)
    }
}

struct Peer {
    runtime: Runtime,
    plugin: Arc<Plugin>,
    folder: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Peer {
    /// Serves and registers, as plug-ins do whenever the agent's socket is made.
    fn register(&mut self) -> Result<()> {
        if let Some(server) = self.server.take() {
            server.abort();
        }
        let socket = self.folder.join("device-plugins/thing.sock");
        let _ = std::fs::remove_file(&socket);
        let (folder, plugin) = (&self.folder, self.plugin.clone());
        let server = self.runtime.block_on(async {
            let server = tokio::spawn(serve(UnixListener::bind(&socket)?, &DEVICES, plugin));
            let request = json!({"version": "v1beta1", "endpoint": "thing.sock", "resource_name": RESOURCE,
                "options": {"pre_start_required": true, "get_preferred_allocation_available": true}});
            let within = Duration::from_secs(60);
            let socket = folder.join("device-plugins/kubelet.sock");
            Call { schema: &DEVICES, socket: &socket, within }.call("Register", &request).await?;
            anyhow::Ok(server)
        })?;
        self.server = Some(server);
        Ok(())
    }

    /// The same by the folder of all kinds of plug-ins: the agent asks.
    fn register_by_folder(&self) -> Result<()> {
        let socket = self.folder.join("plugins_registry/thing-reg.sock");
        let _in = self.runtime.enter();
        tokio::spawn(serve(UnixListener::bind(socket)?, &REGISTRATION, self.plugin.clone()));
        Ok(())
    }

    fn ask(&self, method: &str, request: Value) -> Result<Value> {
        let socket = self.folder.join("pod-resources/kubelet.sock");
        let call = Call { schema: &POD_RESOURCES, socket: &socket, within: Duration::from_secs(60) };
        Ok(self.runtime.block_on(call.call(method, &request))?)
    }

    fn breaks(&self, broken: &[&str]) -> Result<()> {
        let listener = self.plugin.listener.lock().clone();
        let listener = listener.ok_or_else(|| anyhow::anyhow!("nobody listens"))?;
        Ok(listener.try_send(list(broken))?)
    }
}

#[test]
fn devices_of_plugins() {
    let mut cluster = busy();
    let peer = Peer {
        runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap(),
        plugin: Arc::default(),
        folder: cluster.folder().join("kubelet"),
        server: None,
    };
    scenario(&mut cluster, peer).unwrap();
}

fn amounts(cluster: &Cluster, capacity: &str, allocatable: &str) -> Result<()> {
    cluster.eventually("the node tells of its devices", || {
        let status = cluster.get(&["node", "node-1"])?["status"].clone();
        let of = |list: &str| status[list][RESOURCE].as_str().unwrap_or_default().to_string();
        ensure!((of("capacity").as_str(), of("allocatable").as_str()) == (capacity, allocatable), "{status}");
        Ok(())
    })
}

fn user(name: &str, count: u32) -> String {
    let script = "echo things $THINGS own $OWN; test -c /dev/thing && head -c 2 /dev/thing | wc -c; \
        grep -c ID /things; exec sleep 1000";
    let container =
        format!("env: [{{name: OWN, value: kept}}]\nresources: {{limits: {{{RESOURCE}: {count}}}}}");
    pod(name, script, &container, "")
}

fn health(cluster: &Cluster, ids: &[(&str, &str)]) -> Result<()> {
    let resources: Vec<Value> = ids.iter().map(|(id, h)| json!({"resourceID": id, "health": h})).collect();
    let want = json!([{"name": RESOURCE, "resources": resources}]);
    cluster.eventually("the pod tells of its devices", || {
        let pod = cluster.get(&["pod", "one"])?;
        let told = &pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"];
        ensure!(*told == want, "{told}");
        Ok(())
    })
}

fn scenario(cluster: &mut Cluster, mut peer: Peer) -> Result<()> {
    cluster.eventually("plug-ins may register", || peer.register())?;
    amounts(cluster, "3", "3")?;
    cluster.apply(&user("one", 2))?;
    logged(cluster, "one", &["things [\"b\",\"c\"] own kept", "\n2\n"])?;
    health(cluster, &[("b", "Healthy"), ("c", "Healthy")])?;
    let told = peer.ask("Get", json!({"pod_name": "one", "pod_namespace": "default"}))?;
    let device =
        |id: &str| json!({"resource_name": RESOURCE, "device_ids": [id], "topology": {"nodes": [{"ID": 1}]}});
    ensure!(told["pod_resources"]["containers"][0]["devices"] == json!([device("b"), device("c")]), "{told}");
    let all = peer.ask("List", json!({}))?["pod_resources"].to_string();
    has(&all, &["\"one\"", RESOURCE])?;
    ensure!(peer.plugin.calls.lock().iter().any(|c| c.contains("PreStartContainer") && c.contains("\"c\"")));

    cluster.apply(&user("two", 2))?;
    cluster.eventually("there are not enough", || {
        let pod = cluster.get(&["pod", "two"])?["status"].to_string();
        has(&pod, &[&format!("Insufficient {RESOURCE}")])
    })?;
    peer.breaks(&["b"])?;
    amounts(cluster, "3", "2")?;
    health(cluster, &[("b", "Unhealthy"), ("c", "Healthy")])?;

    cluster.kill9()?;
    cluster.up()?;
    health(cluster, &[("b", "Unknown"), ("c", "Unknown")])?;
    // Its own socket, which was in the agent's folder, is made again by that.
    cluster.eventually("the plug-in registers again", || peer.register())?;
    peer.register_by_folder()?;
    cluster.eventually("it was asked for its options", || {
        ensure!(peer.plugin.calls.lock().iter().any(|c| c.starts_with("NotifyRegistrationStatus")));
        Ok(())
    })?;
    amounts(cluster, "3", "3")?;
    health(cluster, &[("b", "Healthy"), ("c", "Healthy")])?;
    let forced = user("three", 2).replace("spec:\n", "spec:\n  nodeName: node-1\n");
    cluster.apply(&forced)?;
    cluster.wait_field(&["pod", "three"], "/status/reason", &format!("OutOf{RESOURCE}"))?;
    cluster.kubectl(&["delete", "pod", "one"])?;
    logged(cluster, "two", &["things [\"b\",\"c\"] own kept"])
}
