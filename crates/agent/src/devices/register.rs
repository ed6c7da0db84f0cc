//! Registration: plug-ins call, and are then listened to for as long as they live.
//!
//! Sockets that an agent before left in the folder are removed, as the kubelet does: plug-ins see that and register
//! again. A plug-in that ends leaves its devices broken, and after a while uncounted.

use super::Devices;
use super::resources;
use super::state::Device;
use crate::ops::Node;
use async_trait::async_trait;
use grpc::{Answer, Call, DEVICES, Handler, POD_RESOURCES, Status, code, serve};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

/// The version of the protocol.
const VERSION: &str = "v1beta1";
/// The kubelet's socket in its folders.
const SOCKET: &str = "kubelet.sock";
/// Until a plug-in that registered must be reached.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Devices of a plug-in that ended are counted so long (the kubelet's figure).
const GRACE: Duration = Duration::from_secs(300);
/// Registrations that wait.
const WAITING_MAX: usize = 16;
/// Most resources and devices that are kept: more is a plug-in gone mad.
const RESOURCES_MAX: usize = 100;
const DEVICES_MAX: usize = 4096;

/// Takes registrations.
struct Door {
    node: Arc<Node>,
    enter: mpsc::Sender<Value>,
}

#[async_trait]
impl Handler for Door {
    async fn call(&self, method: &str, request: Value) -> Answer {
        if method != "Register" {
            return Err(Status::new(code::UNIMPLEMENTED, format!("unknown method {method}")));
        }
        let known = self.node.devices.amounts();
        objection(&request, known.len(), |name| known.contains_key(name))
            .map_or(Ok(()), |why| Err(Status::new(code::UNKNOWN, why)))?;
        let closed = |_| Status::new(code::UNAVAILABLE, "the agent ends");
        self.enter.send(request).await.map_err(closed)?;
        Ok(json!({}))
    }
}

/// A plug-in whose socket is in the folder of all kinds of plug-ins.
///
/// # Errors
/// Why it is refused.
pub async fn register(devices: &Devices, name: &str, versions: &[&str], socket: &Path) -> Result<(), String> {
    let version = versions.iter().find(|v| **v == VERSION).copied().unwrap_or_default();
    let known = devices.amounts();
    let asked = json!({"version": version, "resource_name": name, "endpoint": "plugin"});
    objection(&asked, known.len(), |name| known.contains_key(name)).map_or(Ok(()), Err)?;
    let call = Call { schema: &DEVICES, socket, within: CONNECT_MAX };
    let options = call.call("GetDevicePluginOptions", &json!({})).await.map_err(|e| e.to_string())?;
    let request = json!({"resource_name": name, "endpoint": socket, "options": options});
    let door = devices.door.get().ok_or("device plug-ins are not served")?;
    door.send(request).await.map_err(|_| "the agent ends".to_string())
}

/// Why a plug-in is refused.
fn objection(request: &Value, count: usize, known: impl Fn(&str) -> bool) -> Option<String> {
    let text = |key: &str| request[key].as_str().unwrap_or_default();
    let (version, name, endpoint) = (text("version"), text("resource_name"), text("endpoint"));
    if version != VERSION {
        return Some(format!(
            "requested API version {version:?} is not supported by kubelet. Supported version is {VERSION:?}"
        ));
    }
    let (domain, own) = name.split_once('/').unwrap_or_default();
    let plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    let native =
        domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") || domain.starts_with("requests.");
    if !plain(domain) || !plain(own) || native || name.len() > 253 {
        return Some(format!("the ResourceName {name:?} is invalid"));
    }
    if endpoint.is_empty() || endpoint.contains('/') || endpoint == SOCKET {
        return Some(format!("the endpoint {endpoint:?} is no socket in the folder of device plug-ins"));
    }
    (!known(name) && count >= RESOURCES_MAX).then(|| format!("more than {RESOURCES_MAX} resources"))
}

fn listen(folder: &Path) -> std::io::Result<UnixListener> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_socket()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    UnixListener::bind(folder.join(SOCKET))
}

/// Serves plug-ins and those who ask which pod has what, for ever.
pub async fn run(node: Arc<Node>) {
    let devices = node.devices.clone();
    let failed = |folder: &Path, error: std::io::Error| {
        tracing::warn!(%error, folder = %folder.display(), "no device plug-ins: no socket can be made");
    };
    let (registry, told) = match (listen(&devices.folder), listen(&devices.told)) {
        (Ok(registry), Ok(told)) => (registry, told),
        (Err(error), _) => return failed(&devices.folder, error),
        (_, Err(error)) => return failed(&devices.told, error),
    };
    let (enter, mut registered) = mpsc::channel(WAITING_MAX);
    let _ = devices.door.set(enter.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(registry, &DEVICES, Arc::new(Door { node: node.clone(), enter })));
    tasks.spawn(serve(told, &POD_RESOURCES, Arc::new(resources::Lister(node))));
    let mut followed: BTreeMap<String, AbortHandle> = BTreeMap::new();
    loop {
        tokio::select! {
            Some(request) = registered.recv() => {
                let name = request["resource_name"].as_str().unwrap_or_default().to_string();
                let follower = tasks.spawn(follow(devices.clone(), request));
                if let Some(before) = followed.insert(name, follower) {
                    before.abort();
                }
            }
            Some(_) = tasks.join_next() => {}
            else => return,
        }
    }
}

/// Listens to a plug-in until it ends, and gives its devices up a while later.
async fn follow(devices: Arc<Devices>, request: Value) {
    let name = request["resource_name"].as_str().unwrap_or_default();
    let socket = devices.folder.join(request["endpoint"].as_str().unwrap_or_default());
    {
        let mut state = devices.state.lock();
        let pool = state.pools.entry(name.into()).or_default();
        pool.socket.clone_from(&socket);
        pool.options = request["options"].clone();
    }
    tracing::info!(resource = name, "device plug-in registered");
    if let Err(error) = devices.save().await {
        tracing::warn!(resource = name, error, "device plug-in not written down");
    }
    let call = Call { schema: &DEVICES, socket: &socket, within: CONNECT_MAX };
    match call.stream("ListAndWatch", &json!({})).await {
        Ok(mut stream) => loop {
            match stream.next().await {
                Ok(Some(list)) => devices.take_list(name, &list),
                Ok(None) => break tracing::info!(resource = name, "device plug-in ended"),
                Err(error) => break tracing::warn!(resource = name, %error, "device plug-in ended"),
            }
        },
        Err(error) => tracing::warn!(resource = name, %error, "device plug-in cannot be listened to"),
    }
    devices.change(name, |all| all.values_mut().for_each(|d| d.healthy = false));
    tokio::time::sleep(GRACE).await;
    devices.change(name, BTreeMap::clear);
}

impl Devices {
    fn take_list(self: &Arc<Self>, name: &str, list: &Value) {
        let one = |d: &Value| {
            let device = Device { healthy: d["health"] == "Healthy", topology: d["topology"].clone() };
            Some((d["ID"].as_str()?.to_string(), device))
        };
        let new =
            list["devices"].as_array().into_iter().flatten().filter_map(one).take(DEVICES_MAX).collect();
        self.change(name, |all| *all = new);
    }

    fn change(self: &Arc<Self>, name: &str, change: impl FnOnce(&mut BTreeMap<String, Device>)) {
        if let Some(pool) = self.state.lock().pools.get_mut(name) {
            change(&mut pool.devices);
        }
        self.has_changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_register() {
        let said = |version: &str, name: &str, endpoint: &str, count: usize| {
            let request = json!({"version": version, "resource_name": name, "endpoint": endpoint});
            objection(&request, count, |known| known == "x.io/known").unwrap_or_default()
        };
        assert_eq!(said("v1beta1", "x.io/gpu", "x.sock", 0), "");
        assert!(said("v1alpha", "x.io/gpu", "x.sock", 0).contains("Supported version is \"v1beta1\""));
        for name in ["gpu", "kubernetes.io/gpu", "requests.x.io/gpu", "x.io/", "x.io/a b"] {
            assert_eq!(said("v1beta1", name, "x.sock", 0), format!("the ResourceName {name:?} is invalid"));
        }
        assert!(said("v1beta1", "x.io/gpu", "../x.sock", 0).contains("no socket in the folder"));
        assert!(said("v1beta1", "x.io/gpu", "x.sock", RESOURCES_MAX).contains("more than"));
        assert_eq!(said("v1beta1", "x.io/known", "x.sock", RESOURCES_MAX), "");
    }
}
