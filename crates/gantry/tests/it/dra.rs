//! Devices by claims end to end, with a driver in the test's own process: a claim from a template gets the only device, a
//! second pod waits for it, what the driver says reaches the container, and all is undone in order, also by an agent
//! that was killed in between.

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

const DRIVER: &str = "dra.test.gantry.dev";
const CDI: &str = "/var/run/cdi";

#[derive(Default)]
struct Driver {
    calls: Mutex<Vec<String>>,
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
        let registry = UnixListener::bind(peer.folder.join(format!("plugins_registry/{DRIVER}-reg.sock")))?;
        tokio::spawn(serve(own, &DRA, peer.driver.clone()));
        tokio::spawn(serve(registry, &REGISTRATION, peer.driver.clone()));
        Ok(peer)
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

    cluster.apply(&user("two", "exit 0").replace("spec:\n", "spec:\n  restartPolicy: Never\n"))?;
    cluster.eventually("the second pod waits", || {
        has(
            &cluster.get(&["pod", "two"])?["status"].to_string(),
            &["0/1 nodes are available: 1 cannot allocate all claims. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."],
        )
    })?;
    cluster.kill9()?;
    cluster.up()?;
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
    at("NodeUnprepareResources", "three-extended-resources-").map(drop)
}
