//! The Container Device Interface: what a qualified device name (`vendor/class=name`) means for a container. Pure, but
//! for reading the specifications.
//!
//! Specifications are JSON or YAML files below `/etc/cdi` and `/var/run/cdi`; the latter wins. Hooks are refused, not
//! skipped: programs of the host beside a container are not run here.

use crate::config::edits::Edits;
use machinery::body::yaml;
use runtime::oci;
use serde_json::Value;
use std::path::Path;

/// Where specifications are, the weaker first.
pub const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// A larger file is no specification.
const SPEC_MAX: u64 = 1 << 20;
/// More files are not read.
const SPECS_MAX: usize = 200;

/// Reads all specifications; what is none is left out.
pub fn load(folders: &[&str]) -> Vec<Value> {
    let mut all = Vec::new();
    for folder in folders {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut files: Vec<_> = entries.map(|e| e.path()).collect();
        files.sort();
        for file in files.iter().take(SPECS_MAX) {
            let known = matches!(file.extension().and_then(|e| e.to_str()), Some("json" | "yaml" | "yml"));
            if !known || std::fs::metadata(file).map_or(true, |m| !m.is_file() || m.len() > SPEC_MAX) {
                continue;
            }
            match std::fs::read(file)
                .map_err(|e| e.to_string())
                .and_then(|t| yaml(&t).map(|b| b.value).map_err(|e| e.message))
            {
                Ok(spec) if spec["kind"].is_string() => all.push(spec),
                Ok(_) => tracing::warn!(file = %file.display(), "a CDI specification without a kind"),
                Err(error) => tracing::warn!(file = %file.display(), error, "not a CDI specification"),
            }
        }
    }
    all
}

/// The device of that name, and what it is part of.
fn find<'a>(specs: &'a [Value], name: &str) -> Option<(usize, &'a Value)> {
    let (kind, device) = name.split_once('=')?;
    let of = |(at, spec): (usize, &'a Value)| {
        let mut devices = spec["devices"].as_array().into_iter().flatten();
        devices.find(|d| spec["kind"] == kind && d["name"] == device).map(|d| (at, d))
    };
    specs.iter().enumerate().rev().find_map(of)
}

/// Finds a device node of the host.
pub type Stat<'a> = &'a dyn Fn(&Path) -> Result<oci::Device, String>;

/// Adds what these devices mean.
///
/// # Errors
/// A name that nobody knows, a device that is not there, or what is not done here.
pub fn inject(specs: &[Value], names: &[&str], stat: Stat, edits: &mut Edits) -> Result<(), String> {
    let unknown: Vec<&str> = names.iter().copied().filter(|n| find(specs, n).is_none()).collect();
    if !unknown.is_empty() {
        return Err(format!("CDI device injection failed: unresolvable CDI devices {}", unknown.join(", ")));
    }
    let mut seen = Vec::new();
    for (at, device) in names.iter().filter_map(|n| find(specs, n)) {
        if !seen.contains(&at) {
            seen.push(at);
            add(&specs[at]["containerEdits"], stat, edits)?;
        }
        add(&device["containerEdits"], stat, edits)?;
    }
    Ok(())
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn add(from: &Value, stat: Stat, edits: &mut Edits) -> Result<(), String> {
    if list(from, "hooks").next().is_some() {
        return Err("CDI device injection failed: hooks are not supported".into());
    }
    let pairs = list(from, "env").filter_map(|e| e.as_str()?.split_once('='));
    edits.strong_env.extend(pairs.map(|(k, v)| (k.to_string(), v.to_string())));
    for node in list(from, "deviceNodes") {
        let path =
            node["path"].as_str().ok_or("CDI device injection failed: a device node without a path")?;
        let kind = node["type"].as_str().filter(|t| !t.is_empty());
        let mut device = match (kind, node["major"].as_i64(), node["minor"].as_i64()) {
            (Some(kind), Some(major), Some(minor)) => {
                oci::Device { kind: kind.into(), major, minor, ..oci::Device::default() }
            }
            _ => stat(Path::new(node["hostPath"].as_str().unwrap_or(path)))?,
        };
        device.path = path.into();
        let number = |key: &str| node[key].as_u64().and_then(|n| u32::try_from(n).ok());
        device.file_mode = number("fileMode").or(device.file_mode);
        device.uid = number("uid").or(device.uid);
        device.gid = number("gid").or(device.gid);
        let access = node["permissions"].as_str().filter(|p| !p.is_empty()).unwrap_or("rwm");
        edits.devices.push((device, access.into()));
    }
    for mount in list(from, "mounts") {
        let text = |key: &str| mount[key].as_str().filter(|t| !t.is_empty());
        let (Some(source), Some(target)) = (text("hostPath"), text("containerPath")) else {
            return Err("CDI device injection failed: a mount without its paths".into());
        };
        let options: Vec<String> =
            list(mount, "options").filter_map(|o| o.as_str().map(Into::into)).collect();
        edits.mounts.push(oci::Mount {
            destination: target.into(),
            kind: text("type").unwrap_or("bind").into(),
            source: source.into(),
            options: if options.is_empty() { vec!["rbind".into()] } else { options },
            ..oci::Mount::default()
        });
    }
    let groups = list(from, "additionalGids").filter_map(|g| g.as_u64().and_then(|g| u32::try_from(g).ok()));
    edits.groups.extend(groups);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_become_edits() {
        let folder = tempfile::tempdir().unwrap();
        let spec = "cdiVersion: 0.6.0\nkind: x.io/gpu\ncontainerEdits: {env: [ALL=1]}\ndevices:\n\
            - {name: a, containerEdits: {env: [ONE=a=b], deviceNodes: [{path: /dev/a, hostPath: /dev/h, permissions: rw}],\n\
                mounts: [{hostPath: /lib/x, containerPath: /y, options: [ro, bind]}], additionalGids: [7]}}\n\
            - {name: hooked, containerEdits: {hooks: [{hookName: createContainer, path: /bin/true}]}}\n";
        std::fs::write(folder.path().join("s.yaml"), spec).unwrap();
        std::fs::write(folder.path().join("t.json"), "{").unwrap();
        let specs = load(&[&folder.path().display().to_string()]);
        assert_eq!(specs.len(), 1);
        let stat = |path: &Path| {
            Ok(oci::Device { kind: "c".into(), path: path.into(), major: 5, minor: 6, ..Default::default() })
        };
        let of = |names: &[&str]| {
            let mut edits = Edits::default();
            inject(&specs, names, &stat, &mut edits).map(|()| edits)
        };
        let edits = of(&["x.io/gpu=a"]).unwrap();
        let env: Vec<_> = edits.strong_env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["ALL=1", "ONE=a=b"]);
        let (device, access) = &edits.devices[0];
        assert_eq!((device.path.as_path(), device.major, access.as_str()), (Path::new("/dev/a"), 5, "rw"));
        assert_eq!(json!(edits.mounts[0].options), json!(["ro", "bind"]));
        assert_eq!(edits.groups, [7]);
        let said = of(&["x.io/gpu=a", "x.io/gpu=z", "odd"]).unwrap_err();
        assert_eq!(said, "CDI device injection failed: unresolvable CDI devices x.io/gpu=z, odd");
        assert!(of(&["x.io/gpu=hooked"]).unwrap_err().contains("hooks"));
    }
}
