//! Registration: sockets in the registry's folder are asked who they are, as the kubelet does. What CSI drivers say about
//! the node goes to its CSINode and its labels; plug-ins of devices are handed on (`dra`, `devices`).
//!
//! The folder is watched; a driver whose socket goes is no longer called. CSINode tells besides, in an annotation, which
//! drivers offer their controller service here, and in which folder their sockets are.

use super::{CSI_NODES, Driver, unpublish};
use crate::devices;
use crate::dra;
use crate::nodeapi::FolderWatch;
use crate::ops::Node;
use client::ObjectKey;
use grpc::{CSI, Call, REGISTRATION, Schema};
use k8s_schema::gvr::NODES;
use machinery::status::ApiError;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// For one call while registering.
const CALL_MAX: Duration = Duration::from_secs(10);
/// Until a plug-in that failed is asked again, and orphans are looked for.
const AGAIN: Duration = Duration::from_secs(2);
/// Sockets that are looked at; more are no plug-ins.
const SOCKETS_MAX: usize = 100;
/// On CSINode: the drivers with a controller service, and the folder of their sockets as drivers know it.
const CONTROLLERS: &str = "gantry.dev/csi-controllers";
/// On the Node: each driver's name for it.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// `PluginCapability.Service`: a controller service.
const CONTROLLER_SERVICE: i64 = 1;

/// A socket, and which one: a name may be used again.
type Socket = (PathBuf, u64, i64);

fn sockets(folder: &Path, depth: usize, all: &mut Vec<Socket>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if entry.file_name().to_string_lossy().starts_with('.') || all.len() >= SOCKETS_MAX {
            continue;
        }
        if meta.is_dir() && depth > 0 {
            sockets(&entry.path(), depth - 1, all);
        } else if meta.file_type().is_socket() {
            all.push((entry.path(), meta.ino(), meta.ctime_nsec() ^ meta.ctime()));
        }
    }
}

/// What a driver said about the node.
struct Told {
    name: String,
    socket: PathBuf,
    info: Value,
    controller: bool,
}

async fn ask(schema: &Schema, socket: &Path, method: &str, request: &Value) -> Result<Value, String> {
    let call = Call { schema, socket, within: CALL_MAX };
    call.call(method, request).await.map_err(|e| format!("{method}: {e}"))
}

/// Asks a CSI driver all that is to be known.
async fn interview(versions: &[&str], name: &str, at: PathBuf) -> Result<Told, String> {
    if !versions.iter().any(|v| v.trim_start_matches('v').split('.').next() == Some("1")) {
        return Err("none of the supported versions is 1.x".into());
    }
    let node = ask(&CSI, &at, "NodeGetInfo", &json!({})).await?;
    if node["node_id"].as_str().is_none_or(str::is_empty) {
        return Err("NodeGetInfo told no node_id".into());
    }
    let abilities = ask(&CSI, &at, "GetPluginCapabilities", &json!({})).await.unwrap_or_default();
    let mut abilities = abilities["capabilities"].as_array().into_iter().flatten();
    // A driver in its node's role often claims the service, but does not answer for it.
    let controller = abilities.any(|c| c["service"]["type"] == CONTROLLER_SERVICE)
        && ask(&CSI, &at, "ControllerGetCapabilities", &json!({})).await.is_ok();
    Ok(Told { name: name.into(), socket: at, info: node, controller })
}

/// Patches the node's own object of a kind; makes it where there is none.
pub(super) async fn write(node: &Node, change: impl Fn(&mut Value) + Send) -> Result<(), ApiError> {
    let name = node.facts.node_name.as_str();
    let key = ObjectKey::cluster(name);
    match node.client.get(&CSI_NODES, &key).await {
        Ok(object) => {
            let old = object.value().map_err(ApiError::internal)?;
            let mut body = old.clone();
            change(&mut body);
            if body != old {
                node.client.update(&CSI_NODES, &key, body).await?;
            }
        }
        Err(error) if error.is_not_found() => {
            let this = node.client.get(&NODES, &key).await?;
            let owner = json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": this.uid()});
            let mut body = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode",
                "metadata": {"name": name, "ownerReferences": [owner]}, "spec": {"drivers": []}});
            change(&mut body);
            node.client.create(&CSI_NODES, body).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Puts a driver into a CSINode, or takes it out.
fn put(body: &mut Value, name: &str, told: Option<(&Told, &Path)>) {
    let mut drivers = body["spec"]["drivers"].as_array().cloned().unwrap_or_default();
    drivers.retain(|d| d["name"] != name);
    let notes = body["metadata"]["annotations"][CONTROLLERS].as_str();
    let mut controllers: Map<String, Value> =
        notes.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
    controllers.remove(name);
    if let Some((told, folder)) = told {
        let segments = told.info["accessible_topology"]["segments"].as_object();
        let keys: Vec<&String> = segments.into_iter().flat_map(Map::keys).collect();
        let mut driver = json!({"name": name, "nodeID": told.info["node_id"], "topologyKeys": keys});
        if let Some(count) = told.info["max_volumes_per_node"].as_i64().filter(|n| *n > 0) {
            driver["allocatable"] = json!({"count": count});
        }
        drivers.push(driver);
        if told.controller {
            controllers.insert(name.into(), json!(folder));
        }
    }
    drivers.sort_by_key(|d| d["name"].as_str().unwrap_or_default().to_string());
    body["spec"]["drivers"] = json!(drivers);
    if !controllers.is_empty() || body["metadata"]["annotations"][CONTROLLERS].is_string() {
        body["metadata"]["annotations"][CONTROLLERS] = json!(Value::Object(controllers).to_string());
    }
}

/// The Node's annotation and, for a driver that came, its labels.
async fn mark(node: &Node, name: &str, told: Option<&Told>) -> Result<(), ApiError> {
    let key = ObjectKey::cluster(node.facts.node_name.as_str());
    let this = node.client.get(&NODES, &key).await?;
    let ids = this.meta().annotations.get(NODE_IDS);
    let mut ids: Map<String, Value> = ids.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
    match told {
        Some(told) => drop(ids.insert(name.into(), told.info["node_id"].clone())),
        None => drop(ids.remove(name)),
    }
    let ids = if ids.is_empty() { Value::Null } else { json!(Value::Object(ids).to_string()) };
    let mut patch = json!({"metadata": {"annotations": {NODE_IDS: ids}}});
    let labels = told.and_then(|t| t.info["accessible_topology"]["segments"].as_object());
    if let Some(labels) = labels {
        patch["metadata"]["labels"] = json!(labels);
    }
    node.client.merge_patch(&NODES, &key, patch).await.map(drop)
}

/// What registered by a socket, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    Csi(String),
    /// Devices by claims; and where it serves.
    Dra(String, PathBuf),
    /// Devices by amounts.
    Devices,
    /// Nothing that is known here.
    Other,
}

/// Hands a plug-in on to who uses it.
async fn admit(node: &Node, info: &Value, socket: &Path) -> Result<Known, String> {
    let versions = info["supported_versions"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let versions: Vec<&str> = versions.collect();
    let endpoint = info["endpoint"].as_str().filter(|e| !e.is_empty());
    let at = endpoint.map_or_else(|| socket.into(), |e| node.csi.place.real(Path::new(e)));
    let name = info["name"].as_str().filter(|n| !n.is_empty()).ok_or("it has no name");
    match info["type"].as_str() {
        Some("CSIPlugin") => admit_csi(node, interview(&versions, name?, at).await?).await,
        Some("DRAPlugin") => {
            node.dra.register(name?, &versions, &at)?;
            Ok(Known::Dra(name?.into(), at))
        }
        Some("DevicePlugin") => {
            devices::register(&node.devices, name?, &versions, &at).await.map(|()| Known::Devices)
        }
        _ => Ok(Known::Other),
    }
}

async fn admit_csi(node: &Node, told: Told) -> Result<Known, String> {
    let name = told.name.clone();
    let folder = told.socket.parent().map(|f| node.csi.place.shown(f)).unwrap_or_default();
    let written = async {
        mark(node, &name, Some(&told)).await?;
        write(node, |body| put(body, &name, Some((&told, &folder)))).await
    };
    written.await.map_err(|e| e.to_string())?;
    node.csi.drivers.lock().insert(name.clone(), Driver { socket: told.socket });
    node.csi.registered.send_modify(|n| *n += 1);
    Ok(Known::Csi(name))
}

async fn register(node: &Node, socket: &Path) -> Result<Known, String> {
    let info = ask(&REGISTRATION, socket, "GetInfo", &json!({})).await?;
    let known = admit(node, &info, socket).await;
    let status = match &known {
        Ok(Known::Other) => return known,
        Ok(_) => json!({"plugin_registered": true}),
        Err(error) => json!({"error": error}),
    };
    ask(&REGISTRATION, socket, "NotifyRegistrationStatus", &status).await?;
    known
}

async fn deregister(node: &Node, gone: &Known) {
    let name = match gone {
        Known::Csi(name) => name,
        Known::Dra(name, socket) => {
            tracing::info!(driver = name, "DRA driver is gone");
            return node.dra.deregister(name, socket);
        }
        Known::Devices | Known::Other => return,
    };
    node.csi.drivers.lock().remove(name);
    let done = async {
        mark(node, name, None).await?;
        write(node, |body| put(body, name, None)).await
    };
    match done.await {
        Ok(()) => tracing::info!(driver = name, "CSI driver is gone"),
        Err(error) => tracing::warn!(driver = name, %error, "CSI driver that is gone stays in CSINode"),
    }
}

/// Runs for ever.
pub(super) async fn run(node: Arc<Node>) {
    let folder = node.csi.place.registry();
    if let Err(error) = std::fs::create_dir_all(&folder) {
        tracing::warn!(%error, folder = %folder.display(), "no CSI drivers: their folder cannot be made");
        return;
    }
    node.pods.wait_synced().await;
    node.this.wait_synced().await;
    let mut known: BTreeMap<Socket, Known> = BTreeMap::new();
    // Drivers of devices have a while to come back, also after the agent did.
    let mut wipe_at = Some(Instant::now() + dra::WIPE_AFTER);
    loop {
        // Before looking: what comes meanwhile is seen next time.
        let mut watch = FolderWatch::new(&folder.join("x"));
        let mut found = Vec::new();
        sockets(&folder, 1, &mut found);
        let gone: Vec<Socket> = known.keys().filter(|s| !found.contains(s)).cloned().collect();
        let mut left: Vec<Known> = gone.iter().filter_map(|s| known.remove(s)).collect();
        let mut failed = false;
        for socket in found {
            if known.contains_key(&socket) {
                continue;
            }
            match register(&node, &socket.0).await {
                Ok(plugin) => {
                    if plugin != Known::Other {
                        tracing::info!(?plugin, "plug-in registered");
                        left.retain(|l| *l != plugin);
                    }
                    known.insert(socket, plugin);
                }
                Err(error) => {
                    failed = true;
                    tracing::warn!(error, socket = %socket.0.display(), "plug-in not registered");
                }
            }
        }
        for plugin in left {
            deregister(&node, &plugin).await;
            if matches!(plugin, Known::Dra(..)) {
                wipe_at = Some(Instant::now() + dra::WIPE_AFTER);
            }
        }
        failed |= unpublish::orphans(&node).await;
        failed |= dra::orphans(&node).await;
        if wipe_at.is_some_and(|at| at <= Instant::now()) {
            let wiped = dra::wipe(&node).await;
            failed |= wiped.is_err();
            match wiped {
                Ok(()) => wipe_at = None,
                Err(error) => tracing::warn!(error, "ResourceSlices of drivers that are gone stay"),
            }
        }
        tokio::select! {
            () = watch.changed() => {}
            () = tokio::time::sleep(AGAIN), if failed => {}
            () = tokio::time::sleep_until(wipe_at.unwrap_or_else(Instant::now)), if wipe_at.is_some() && !failed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_comes_and_goes() {
        let told = Told {
            name: "d".into(),
            socket: "/s".into(),
            info: json!({"node_id": "n", "max_volumes_per_node": 3,
                "accessible_topology": {"segments": {"zone": "a"}}}),
            controller: true,
        };
        let mut body =
            json!({"metadata": {"name": "n"}, "spec": {"drivers": [{"name": "e", "nodeID": "x"}]}});
        put(&mut body, "d", Some((&told, Path::new("/f"))));
        assert_eq!(
            body["spec"]["drivers"][0],
            json!({"name": "d", "nodeID": "n", "topologyKeys": ["zone"], "allocatable": {"count": 3}})
        );
        assert_eq!(body["metadata"]["annotations"][CONTROLLERS], r#"{"d":"/f"}"#);
        let again = body.clone();
        put(&mut body, "d", Some((&told, Path::new("/f"))));
        assert_eq!(body, again);
        put(&mut body, "d", None);
        assert_eq!(body["spec"]["drivers"], json!([{"name": "e", "nodeID": "x"}]));
        assert_eq!(body["metadata"]["annotations"][CONTROLLERS], "{}");
    }
}
