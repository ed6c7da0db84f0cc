//! Files of the volumes that are made from API objects: names to bytes and modes. Pure.

use crate::config::{Objects, RefKind, env::byte_data};
use k8s_openapi::api::core::v1::KeyToPath;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Mode of files when nobody says otherwise.
pub const DEFAULT_MODE: i32 = 0o644;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub data: Vec<u8>,
    /// Its mode.
    pub mode: u32,
    /// User that it belongs to.
    pub owner: u32,
}

/// Files by their path below the volume.
pub type Payload = BTreeMap<PathBuf, File>;

/// The mode's permission bits.
pub fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o777
}

/// A path below the volume that leads nowhere else.
pub fn safe_path(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    if text.is_empty() || !plain || text.starts_with("..") {
        return Err(format!("invalid path {text:?}: must be relative, without '..'"));
    }
    Ok(path.to_path_buf())
}

/// What is taken from one ConfigMap or Secret.
pub struct Selection<'a> {
    /// Kind.
    pub kind: RefKind,
    /// Name.
    pub name: &'a str,
    /// Keys; all when `None`.
    pub items: Option<&'a [KeyToPath]>,
    /// May be missing.
    pub optional: bool,
    /// Mode of files without one of their own.
    pub default_mode: Option<i32>,
}

/// Adds the selected entries to the payload.
pub fn add_object(payload: &mut Payload, objects: &Objects, what: &Selection) -> Result<(), String> {
    let Some(object) = objects.get(&(what.kind, what.name.to_string())) else {
        if what.optional {
            return Ok(());
        }
        return Err(format!("{} \"{}\" not found", what.kind.singular(), what.name));
    };
    let data = byte_data(what.kind, object);
    let Some(items) = what.items.filter(|items| !items.is_empty()) else {
        for (key, data) in data {
            payload.insert(safe_path(&key)?, File { data, mode: mode(None, what.default_mode), owner: 0 });
        }
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(data) => {
                let mode = mode(item.mode, what.default_mode);
                let file = File { data: data.clone(), mode, owner: 0 };
                payload.insert(safe_path(&item.path)?, file);
            }
            None if what.optional => {}
            None => {
                return Err(match what.kind {
                    RefKind::ConfigMap => {
                        format!("configmap references non-existent config key: {}", item.key)
                    }
                    RefKind::Secret => format!("references non-existent secret key: {}", item.key),
                });
            }
        }
    }
    Ok(())
}
