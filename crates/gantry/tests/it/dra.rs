//! Devices by claims end to end, with a driver in the test's own process: a claim from a template gets the only device, a
//! second pod waits for it, what the driver says reaches the container, its health the pod's status, and all is undone
//! in order, also by an agent that was killed in between.

use crate::{busy, has, logged, pod};
use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use grpc::{Answer, Call, DRA, Handler, POD_RESOURCES, REGISTRATION, serve};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use testkit::cluster::Cluster;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

const DRIVER: &str = "dra.test.gantry.dev";
const CDI: &str = "/var/run/cdi";
/// `HealthStatus`.
const HEALTHY: u32 = 1;
const UNHEALTHY: u32 = 2;
/// How long a report counts, in seconds: longer than the test takes.
const COUNTS_FOR: u32 = 3600;

#[derive(Default)]
struct Driver {
    calls: Mutex<Vec<String>>,
    /// Who listens to its device's health.
    listener: Mutex<Option<mpsc::Sender<Value>>>,
}

fn report(health: u32, message: &str) -> Value {
    json!({"devices": [{"device": {"pool_name": "node-1", "device_name": "d0"}, "health": health,
        "health_check_timeout_seconds": COUNTS_FOR, "message": message}]})
}

#[async_trait]
impl Handler for Driver {
    async fn call(&self, method: &str, request: Value) -> Answer {
        if method == "GetInfo" {
            return Ok(json!({"type": "DRAPlugin", "name": DRIVER, "supported_versions": ["v1.DRAPlugin"],
                "endpoint": format!("/var/lib/kubelet/plugins/{DRIVER}/dra.sock")}));
        }
        let claims = request["claims"].as_array().cloned().unwrap_or_default();
        for claim in &claims {
            self.calls.lock().push(format!("{method} {}", claim["name"].as_str().unwrap_or_default()));
        }
        let device = json!({"pool_name": "node-1", "device_name": "d0",
            "cdi_device_ids": [format!("{DRIVER}/thing=d0")]});
        let value = if method == "NodePrepareResources" { json!({"devices": [device]}) } else { json!({}) };
        let entry = |claim: &Value| json!({"key": claim["uid"], "value": value});
        Ok(json!({"claims": claims.iter().map(entry).collect::<Vec<_>>()}))
    }

    fn stream(&self, method: &str, _: &Value) -> Option<mpsc::Receiver<Value>> {
        if method != "NodeWatchResources" {
            return None;
        }
        let (send, receive) = mpsc::channel(4);
        let _ = send.try_send(report(HEALTHY, ""));
        *self.listener.lock() = Some(send);
        Some(receive)
    }
}

/// The driver's sockets and its CDI file.
struct Peer {
    runtime: Runtime,
    driver: Arc<Driver>,
    folder: PathBuf,
    cdi: PathBuf,
}

impl Peer {
    fn start(cluster: &Cluster) -> Result<Peer> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let cdi = PathBuf::from(format!("{CDI}/{DRIVER}-{}.json", std::process::id()));
        std::fs::create_dir_all(CDI)?;
        let edits =
            json!({"env": ["THING=d0"], "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/zero"}]});
        let spec = json!({"cdiVersion": "0.6.0", "kind": format!("{DRIVER}/thing"),
            "devices": [{"name": "d0", "containerEdits": edits}]});
        std::fs::write(&cdi, spec.to_string())?;
        let peer = Peer { runtime, driver: Arc::default(), folder: cluster.folder().join("kubelet"), cdi };
        let folder = peer.folder.join(format!("plugins/{DRIVER}"));
        std::fs::create_dir_all(&folder)?;
        let _in = peer.runtime.enter();
        let own = UnixListener::bind(folder.join("dra.sock"))?;
        tokio::spawn(serve(own, &DRA, peer.driver.clone()));
        peer.register()?;
        Ok(peer)
    }

    fn registry(&self) -> PathBuf {
        self.folder.join(format!("plugins_registry/{DRIVER}-reg.sock"))
    }

    fn register(&self) -> Result<()> {
        let _in = self.runtime.enter();
        let registry = UnixListener::bind(self.registry())?;
        tokio::spawn(serve(registry, &REGISTRATION, self.driver.clone()));
        Ok(())
    }

    fn tells(&self, health: u32, message: &str) -> Result<()> {
        let listener = self.driver.listener.lock().clone();
        Ok(listener.context("nobody listens")?.try_send(report(health, message))?)
    }

    fn told(&self, pod: &str) -> Result<Value> {
        let socket = self.folder.join("pod-resources/kubelet.sock");
        let call = Call { schema: &POD_RESOURCES, socket: &socket, within: Duration::from_secs(60) };
        let request = json!({"pod_name": pod, "pod_namespace": "default"});
        Ok(self.runtime.block_on(call.call("Get", &request))?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.cdi);
    }
}

const OBJECTS: &str = "apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: thing}
spec:
  selectors: [{cel: {expression: 'device.driver == \"dra.test.gantry.dev\"'}}]
  extendedResourceName: test.gantry.dev/claimed
---
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: node-1-things}
spec:
  driver: dra.test.gantry.dev
  nodeName: node-1
  pool: {name: node-1, generation: 1, resourceSliceCount: 1}
  devices: [{name: d0, attributes: {size: {int: 3}}}]
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: large}
spec:
  spec:
    devices:
      requests:
      - name: req
        exactly:
          deviceClassName: thing
          selectors: [{cel: {expression: 'device.attributes[\"dra.test.gantry.dev\"].size > 2'}}]
";

#[test]
fn devices_by_claims() {
    let mut cluster = busy();
    let peer = Peer::start(&cluster).unwrap();
    scenario(&mut cluster, &peer).unwrap();
}

fn user(name: &str, script: &str) -> String {
    let claims = "resourceClaims: [{name: own, resourceClaimTemplateName: large}]";
    let script = format!("echo thing $THING; head -c 2 /dev/thing | wc -c; {script}");
    pod(name, &script, "resources: {claims: [{name: own}]}", claims)
}

fn claim_of(cluster: &Cluster, pod: &str) -> Result<String> {
    cluster.field(&["pod", pod], "/status/resourceClaimStatuses/0/resourceClaimName")
}

/// Waits until the first pod's status says so of its device.
fn health(cluster: &Cluster, told: &Value) -> Result<()> {
    let mut resource = json!({"resourceID": format!("{DRIVER}/thing=d0")});
    resource.as_object_mut().context("an object")?.extend(told.as_object().cloned().unwrap_or_default());
    let want = json!([{"name": "claim:own", "resources": [resource]}]);
    cluster.eventually("the pod tells of its device", || {
        let pod = cluster.get(&["pod", "one"])?;
        let told = &pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"];
        ensure!(*told == want, "{told}");
        Ok(())
    })
}

/// A device breaks; its driver starts anew, and ends its stream once.
fn breaks(cluster: &Cluster, peer: &Peer) -> Result<()> {
    health(cluster, &json!({"health": "Healthy"}))?;
    peer.tells(UNHEALTHY, "too hot")?;
    health(cluster, &json!({"health": "Unhealthy", "message": "too hot"}))?;
    std::fs::remove_file(peer.registry())?;
    peer.register()?;
    health(cluster, &json!({"health": "Healthy"}))?;
    peer.tells(UNHEALTHY, "")?;
    health(cluster, &json!({"health": "Unhealthy"}))?;
    *peer.driver.listener.lock() = None;
    health(cluster, &json!({"health": "Healthy"}))
}

fn scenario(cluster: &mut Cluster, peer: &Peer) -> Result<()> {
    cluster.apply(OBJECTS)?;
    cluster.apply(&user("one", "exec sleep 1000"))?;
    logged(cluster, "one", &["thing d0\n2\n"])?;
    let claim = claim_of(cluster, "one")?;
    let stored = cluster.get(&["resourceclaim", &claim])?;
    has(&stored.to_string(), &["resource.kubernetes.io/delete-protection", "pod-claim-name"])?;
    ensure!(stored["status"]["reservedFor"][0]["name"] == "one", "{stored}");
    let told = peer.told("one")?.to_string();
    has(&told, &[&claim, &format!("{DRIVER}/thing=d0"), "\"device_name\":\"d0\""])?;
    breaks(cluster, peer)?;

    cluster.apply(&user("two", "exit 0").replace("spec:\n", "spec:\n  restartPolicy: Never\n"))?;
    cluster.eventually("the second pod waits", || {
        has(
            &cluster.get(&["pod", "two"])?["status"].to_string(),
            &["0/1 nodes are available: 1 cannot allocate all claims. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."],
        )
    })?;
    cluster.kill9()?;
    cluster.up()?;
    health(cluster, &json!({"health": "Healthy"}))?;
    cluster.kubectl(&["delete", "pod", "one"])?;
    logged(cluster, "two", &["thing d0\n2\n"])?;
    cluster.wait_field(&["pod", "two"], "/status/phase", "Succeeded")?;
    cluster.eventually("no claim is left", || {
        let claims = cluster.get(&["resourceclaims"])?;
        ensure!(claims["items"] == json!([]), "{claims}");
        Ok(())
    })?;

    // A device as an amount, where no plug-in of devices has it.
    let amount = "resources: {limits: {test.gantry.dev/claimed: 1}}";
    cluster.apply(&pod("three", "echo thing $THING; exec sleep 1000", amount, ""))?;
    logged(cluster, "three", &["thing d0\n"])?;
    let pod = cluster.get(&["pod", "three"])?;
    let status = &pod["status"]["extendedResourceClaimStatus"];
    ensure!(status["requestMappings"][0]["requestName"] == "container-0-request-0", "{status}");
    cluster.kubectl(&["delete", "pod", "three"])?;

    let calls = peer.driver.calls.lock().clone();
    let at = |method: &str, claim: &str| {
        let found = calls.iter().position(|c| c.starts_with(method) && c.contains(claim));
        found.with_context(|| format!("no {method} of {claim}: {calls:?}"))
    };
    ensure!(at("NodePrepareResources", &claim)? < at("NodeUnprepareResources", &claim)?);
    ensure!(at("NodeUnprepareResources", &claim)? < at("NodePrepareResources", "two-own-")?, "{calls:?}");
    ensure!(at("NodePrepareResources", "three-")? > at("NodeUnprepareResources", "two-own-")?, "{calls:?}");
    at("NodeUnprepareResources", "three-extended-resources-")?;

    std::fs::remove_file(peer.registry())?;
    cluster.eventually("nobody listens to a driver that is gone", || {
        ensure!(peer.driver.listener.lock().as_ref().is_some_and(mpsc::Sender::is_closed));
        Ok(())
    })
}
