//! A CSI driver of our own as a peer: volumes are folders (or files behind loop devices), bound where they are asked for.
//!
//! It is this test binary once more, run in a privileged pod with busybox around it; every call is a line of its log.

use async_trait::async_trait;
use grpc::{Answer, CSI, Handler, REGISTRATION, Status, code, serve};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use tokio::net::UnixListener;

/// Its name.
pub const NAME: &str = "folders.test.gantry.dev";
/// Set in its pod.
const SWITCH: &str = "CSI_DRIVER";
const DATA: &str = "/data";

/// No test: the driver's own process, where the switch is set.
#[test]
fn driver() {
    if std::env::var(SWITCH).is_err() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listen = |path: &str| {
            let _ = std::fs::remove_file(path);
            UnixListener::bind(path).unwrap()
        };
        let own = listen("/csi/csi.sock");
        let registry = listen(&format!("/registration/{NAME}-reg.sock"));
        let driver = Arc::new(Driver);
        tokio::join!(serve(own, &CSI, driver.clone()), serve(registry, &REGISTRATION, driver));
    });
}

struct Driver;

fn run(script: &str) -> Result<String, Status> {
    let done = Command::new("sh").args(["-euc", script]).output();
    let done = done.map_err(|e| Status::new(code::INTERNAL, e))?;
    match done.status.success() {
        true => Ok(String::from_utf8_lossy(&done.stdout).trim().to_string()),
        false => Err(Status::new(code::INTERNAL, String::from_utf8_lossy(&done.stderr))),
    }
}

fn text<'a>(request: &'a Value, key: &str) -> &'a str {
    request[key].as_str().unwrap_or_default()
}

fn place(id: &str) -> String {
    format!("{DATA}/{id}")
}

fn abilities(types: &[i64]) -> Value {
    json!({"capabilities": types.iter().map(|t| json!({"rpc": {"type": t}})).collect::<Vec<_>>()})
}

fn create(request: &Value) -> Answer {
    let name = text(request, "name");
    let size = request["capacity_range"]["required_bytes"].as_i64().unwrap_or(1 << 20);
    if text(&request["parameters"], "fail") == "full" {
        return Err(Status::new(code::RESOURCE_EXHAUSTED, "no room"));
    }
    let block = request["volume_capabilities"][0]["block"].is_object();
    let source = &request["volume_content_source"];
    let from = source["volume"]["volume_id"].as_str().or(source["snapshot"]["snapshot_id"].as_str());
    let at = place(name);
    run(&match (block, from) {
        (true, _) => format!("truncate -s {size} {at}"),
        (_, Some(from)) => format!("rm -rf {at}; cp -a {} {at}", place(from)),
        _ => format!("mkdir -p {at}; chmod 777 {at}"),
    })?;
    let mode = request["mutable_parameters"]["mode"].as_str().unwrap_or("plain");
    Ok(json!({"volume": {"volume_id": name, "capacity_bytes": size,
        "volume_context": {"kind": text(&request["parameters"], "kind"), "mode": mode},
        "content_source": source, "accessible_topology": request["accessibility_requirements"]["requisite"]}}))
}

fn publish(request: &Value) -> Answer {
    let context = &request["volume_context"];
    let (target, id) = (text(request, "target_path"), text(request, "volume_id"));
    let staged = text(request, "staging_target_path");
    if context["csi.storage.k8s.io/ephemeral"] == "true" {
        let pod = text(context, "csi.storage.k8s.io/pod.name");
        let word = text(&request["secrets"], "word");
        let at = place(id);
        run(&format!("mkdir -p {at} {target}; echo {pod} {word} > {at}/pod; mount --bind {at} {target}"))?;
        return Ok(json!({}));
    }
    if request["publish_context"]["attached"] != "yes" {
        return Err(Status::new(code::FAILED_PRECONDITION, "not attached"));
    }
    let ro = if request["readonly"] == true {
        format!("; mount -o remount,bind,ro {target}")
    } else {
        String::new()
    };
    let is = format!("grep -q ' {target} ' /proc/self/mountinfo");
    run(&match request["volume_capability"]["block"].is_object() {
        true => format!("touch {target}; {is} || mount --bind $(cat {}.loop) {target}", place(id)),
        false => format!("mkdir -p {target}; {is} || mount --bind {staged} {target}{ro}"),
    })?;
    Ok(json!({}))
}

fn stage(request: &Value) -> Answer {
    let (target, id) = (text(request, "staging_target_path"), text(request, "volume_id"));
    let at = place(id);
    run(&match request["volume_capability"]["block"].is_object() {
        true => format!("[ -s {at}.loop ] || {{ l=$(losetup -f); losetup $l {at}; echo $l > {at}.loop; }}"),
        false => format!("grep -q ' {target} ' /proc/self/mountinfo || mount --bind {at} {target}"),
    })?;
    Ok(json!({}))
}

fn unmount(request: &Value, key: &str) -> Answer {
    let (target, id) = (text(request, key), text(request, "volume_id"));
    run(&format!("umount {target} || true; if [ -f {target} ]; then rm {target}; fi"))?;
    let at = place(id);
    match key {
        "staging_target_path" => {
            run(&format!("if [ -s {at}.loop ]; then losetup -d $(cat {at}.loop); rm {at}.loop; fi"))?
        }
        // An ephemeral one ends with its pod.
        _ if id.starts_with("csi-") => run(&format!("rm -rf {at}"))?,
        _ => String::new(),
    };
    Ok(json!({}))
}

#[async_trait]
impl Handler for Driver {
    async fn call(&self, method: &str, request: Value) -> Answer {
        let id = text(&request, "volume_id");
        let answer = match method {
            "GetInfo" => Ok(json!({"type": "CSIPlugin", "name": NAME, "supported_versions": ["1.0.0"],
                "endpoint": "/var/lib/kubelet/plugins/folders/csi.sock"})),
            "GetPluginCapabilities" => Ok(json!({"capabilities":
                [{"service": {"type": 1}}, {"service": {"type": 2}}, {"volume_expansion": {"type": 1}}]})),
            "NodeGetInfo" => Ok(json!({"node_id": "id-of-this-node", "max_volumes_per_node": 20,
                "accessible_topology": {"segments": {"topology.test.gantry.dev/zone": "z1"}}})),
            "NodeGetCapabilities" => Ok(abilities(&[1, 2, 3])),
            "ControllerGetCapabilities" => Ok(abilities(&[1, 2, 4, 5, 7, 9, 14])),
            "CreateVolume" => create(&request),
            "DeleteVolume" => run(&format!("rm -rf {}", place(id))).map(|_| json!({})),
            "ControllerPublishVolume" => Ok(json!({"publish_context": {"attached": "yes"}})),
            "ControllerExpandVolume" => Ok(json!({"node_expansion_required": true,
                "capacity_bytes": request["capacity_range"]["required_bytes"]})),
            "GetCapacity" => Ok(json!({"available_capacity": 5_i64 << 30})),
            "CreateSnapshot" => {
                let (name, from) = (text(&request, "name"), text(&request, "source_volume_id"));
                run(&format!("rm -rf {0}; cp -a {1} {0}", place(name), place(from))).map(|_| {
                    json!({"snapshot": {"snapshot_id": name, "source_volume_id": from, "ready_to_use": true,
                        "size_bytes": 1 << 20, "creation_time": {"seconds": 1_700_000_000}}})
                })
            }
            "DeleteSnapshot" => {
                run(&format!("rm -rf {}", place(text(&request, "snapshot_id")))).map(|_| json!({}))
            }
            "NodeStageVolume" => stage(&request),
            "NodePublishVolume" => publish(&request),
            "NodeUnpublishVolume" => unmount(&request, "target_path"),
            "NodeUnstageVolume" => unmount(&request, "staging_target_path"),
            "NodeGetVolumeStats" => {
                Ok(json!({"usage": [{"unit": 1, "total": 1000, "used": 400, "available": 600}]}))
            }
            _ => Ok(json!({})),
        };
        let told =
            if method.contains("Modify") { request["mutable_parameters"].to_string() } else { String::new() };
        println!("{method} {id} {told} {}", answer.as_ref().map_or_else(|e| e.to_string(), |_| "OK".into()));
        answer
    }
}

/// The driver's pod and objects, for a cluster with the image `busybox`.
pub fn manifest(data: &std::path::Path) -> String {
    let exe: PathBuf = std::env::current_exe().expect("a running test has a file");
    format!(
        "apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {{name: {NAME}}}
spec: {{podInfoOnMount: true, fsGroupPolicy: File, volumeLifecycleModes: [Persistent, Ephemeral], storageCapacity: true}}
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {{name: folders}}
provisioner: {NAME}
allowVolumeExpansion: true
volumeBindingMode: WaitForFirstConsumer
parameters: {{kind: fast, csi.storage.k8s.io/fstype: ext4}}
---
apiVersion: v1
kind: Pod
metadata: {{name: driver, namespace: kube-system, labels: {{app: driver}}}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: driver
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [/driver, 'csi_driver::driver', --exact, --nocapture]
    env: [{{name: {SWITCH}, value: 'yes'}}]
    securityContext: {{privileged: true}}
    volumeMounts:
    - {{name: exe, mountPath: /driver}}
    - {{name: registration, mountPath: /registration}}
    - {{name: socket, mountPath: /csi}}
    - {{name: data, mountPath: {DATA}}}
    - {{name: plugins, mountPath: /var/lib/kubelet/plugins, mountPropagation: Bidirectional}}
    - {{name: pods, mountPath: /var/lib/kubelet/pods, mountPropagation: Bidirectional}}
  volumes:
  - {{name: exe, hostPath: {{path: {exe}, type: File}}}}
  - {{name: registration, hostPath: {{path: /var/lib/kubelet/plugins_registry, type: DirectoryOrCreate}}}}
  - {{name: socket, hostPath: {{path: /var/lib/kubelet/plugins/folders, type: DirectoryOrCreate}}}}
  - {{name: data, hostPath: {{path: {data}, type: DirectoryOrCreate}}}}
  - {{name: plugins, hostPath: {{path: /var/lib/kubelet/plugins, type: DirectoryOrCreate}}}}
  - {{name: pods, hostPath: {{path: /var/lib/kubelet/pods, type: DirectoryOrCreate}}}}
",
        exe = exe.display(),
        data = data.display(),
    )
}
