//! Volumes of a task as volumes of a Pod; names become DNS labels by the order in which they are met.

use super::{Input, LowerError, items, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The volume with a log router's socket (`fluent.sock`), for the log drivers.
pub const ROUTER_VOLUME: &str = "router";

/// The Pod's volumes so far.
pub(super) struct Volumes {
    /// As the Pod has them.
    pub list: Vec<Value>,
    /// ECS name → (name in the Pod, sub path).
    by_name: BTreeMap<String, String>,
}

impl Volumes {
    fn add(&mut self, mut volume: Value) -> String {
        let name = format!("v{}", self.list.len());
        volume["name"] = json!(name);
        self.list.push(volume);
        name
    }

    /// A volume that no `mountPoints` name.
    pub fn other(&mut self, volume: Value) -> String {
        self.add(volume)
    }

    /// The same under a name that others know, once.
    pub fn named(&mut self, name: &str, mut volume: Value) -> String {
        if !self.list.iter().any(|v| v["name"] == name) {
            volume["name"] = json!(name);
            self.list.push(volume);
        }
        name.to_string()
    }

    /// The Pod's mounts for `mountPoints` of a container.
    pub fn mounts(&self, points: &[Value], read_only: bool) -> Result<Vec<Value>, LowerError> {
        let one = |point: &Value| {
            let source = text(&point["sourceVolume"]);
            let unknown = || LowerError::Invalid(format!("Unknown volume '{source}'."));
            let name = self.by_name.get(source).ok_or_else(unknown)?;
            let read_only = read_only || point["readOnly"] == true;
            Ok(json!({"name": name, "mountPath": text(&point["containerPath"]), "readOnly": read_only}))
        };
        points.iter().map(one).collect()
    }
}

fn folder(path: String) -> Value {
    json!({"hostPath": {"path": path, "type": "DirectoryOrCreate"}})
}

/// A name that is one step of a path.
fn plain<'a>(name: &'a str, what: &str) -> Result<&'a str, LowerError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if name.is_empty() || name.starts_with('.') || !name.bytes().all(fine) {
        return Err(LowerError::Invalid(format!("invalid {what}: {name:?}")));
    }
    Ok(name)
}

fn source(input: &Input, volume: &Value) -> Result<Value, LowerError> {
    let settings = input.settings;
    let unsupported = |what: &str| Err(LowerError::Unsupported(what.to_string()));
    if volume["configuredAtLaunch"] == true {
        return unsupported("volumes configured at launch are");
    }
    if !volume["fsxWindowsFileServerVolumeConfiguration"].is_null()
        || !volume["s3filesVolumeConfiguration"].is_null()
    {
        return unsupported("this kind of volume is");
    }
    let efs = &volume["efsVolumeConfiguration"];
    if !efs.is_null() {
        if settings.efs_root.is_empty() {
            return unsupported("EFS volumes without a folder for them (--efs-root) are");
        }
        let system = plain(text(&efs["fileSystemId"]), "file system id")?;
        let below = text(&efs["rootDirectory"]).trim_matches('/');
        if below.split('/').any(|part| part == "..") {
            return Err(LowerError::Invalid(format!("invalid root directory: {below:?}")));
        }
        return Ok(folder(
            format!("{}/{system}/{below}", settings.efs_root).trim_end_matches('/').to_string(),
        ));
    }
    let docker = &volume["dockerVolumeConfiguration"];
    if !docker.is_null() {
        if !matches!(text(&docker["driver"]), "" | "local") {
            return unsupported("Docker volume drivers other than local are");
        }
        if docker["driverOpts"].as_object().is_some_and(|o| !o.is_empty()) {
            return unsupported("options of Docker's volume drivers are");
        }
        if text(&docker["scope"]) == "shared" {
            let name = plain(text(&volume["name"]), "volume name")?;
            // Docker makes the volume that a container names, whatever `autoprovision` says.
            return Ok(folder(format!("{}/{name}", settings.volumes_root)));
        }
        return Ok(json!({"emptyDir": {}}));
    }
    match text(&volume["host"]["sourcePath"]) {
        "" => Ok(json!({"emptyDir": {}})),
        path => Ok(folder(path.to_string())),
    }
}

/// The volumes of the task definition.
pub(super) fn volumes(input: &Input) -> Result<Volumes, LowerError> {
    let mut volumes = Volumes { list: Vec::new(), by_name: BTreeMap::new() };
    for volume in items(&input.definition["volumes"]) {
        let name = volumes.add(source(input, volume)?);
        volumes.by_name.insert(text(&volume["name"]).to_string(), name);
    }
    Ok(volumes)
}
