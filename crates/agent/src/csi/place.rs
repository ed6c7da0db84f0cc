//! Where plug-ins' files are, and what is written down about volumes: pure, but for reading and writing records.
//!
//! Drivers' manifests know the kubelet's folder as [`SHOWN`]. A node's folder may be another ([`Place::root`]), so that
//! several instances share a machine: then hostPath volumes at or below [`SHOWN`] are served from it, and paths in
//! calls are those that drivers see. The layout below is the kubelet's; so are the records' names and keys.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

/// The kubelet's folder, as the field's manifests have it.
pub const SHOWN: &str = "/var/lib/kubelet";
/// The record beside a volume.
const RECORD: &str = "vol_data.json";
/// The plug-in's name in paths.
const ESCAPED: &str = "kubernetes.io~csi";
/// Below the folder: where drivers' shared mounts are.
const GLOBAL: &str = "plugins/kubernetes.io/csi";

/// The kubelet's folder on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it is.
    pub root: PathBuf,
    /// How drivers name it.
    pub shown: PathBuf,
}

/// What is known of a volume that was published for a pod, or staged on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// The driver.
    pub driver_name: String,
    /// Its name for the volume.
    pub volume_handle: String,
    /// The PersistentVolume's name; an inline volume's in its pod.
    #[serde(rename = "specVolID")]
    pub spec_vol_id: String,
    /// The VolumeAttachment's name; "" where nothing is attached.
    #[serde(rename = "attachmentID")]
    pub attachment_id: String,
    /// `Persistent` or `Ephemeral`.
    pub volume_lifecycle_mode: String,
    /// A device?
    pub block: bool,
}

/// A volume published for a pod: its record, and the folder that this is in.
pub type Published = (PathBuf, Record);

pub fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().fold(String::new(), |mut all, byte| {
        let _ = write!(all, "{byte:02x}");
        all
    })
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

impl Place {
    /// A folder of the instance's own, or one that drivers know by that name.
    pub fn new(own: PathBuf, named: Option<PathBuf>) -> Place {
        match named {
            Some(root) => Place { shown: root.clone(), root },
            None => Place { root: own, shown: SHOWN.into() },
        }
    }

    /// The file on this node behind a path as drivers have it.
    pub fn real(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.shown).map_or_else(|_| path.to_path_buf(), |below| self.root.join(below))
    }

    /// The reverse.
    pub fn shown(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).map_or_else(|_| path.to_path_buf(), |below| self.shown.join(below))
    }

    /// Where drivers' registration sockets are.
    pub fn registry(&self) -> PathBuf {
        self.root.join("plugins_registry")
    }

    /// Where pods' volumes of all drivers are.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// The folder of a volume's record.
    pub fn volume(&self, uid: &str, record: &Record) -> PathBuf {
        let kind = if record.block { "volumeDevices" } else { "volumes" };
        self.pods().join(uid).join(kind).join(ESCAPED).join(&record.spec_vol_id)
    }

    /// Where a volume is published for a pod.
    pub fn target(&self, uid: &str, record: &Record) -> PathBuf {
        match record.block {
            true => self.root.join(GLOBAL).join("volumeDevices/publish").join(&record.spec_vol_id).join(uid),
            false => self.volume(uid, record).join("mount"),
        }
    }

    /// The folder of a staged volume's record.
    pub fn staged(&self, record: &Record) -> PathBuf {
        self.root.join(GLOBAL).join(&record.driver_name).join(hash(&record.volume_handle))
    }

    /// Where a volume is staged.
    pub fn staging(&self, record: &Record) -> PathBuf {
        match record.block {
            true => self.root.join(GLOBAL).join("volumeDevices/staging").join(&record.spec_vol_id),
            false => self.staged(record).join("globalmount"),
        }
    }

    /// UIDs of pods that have volumes here.
    pub fn uids(&self) -> Vec<String> {
        names(&self.pods())
    }

    /// The volumes published for a pod, or begun to be.
    pub fn published(&self, uid: &str) -> Vec<Published> {
        let kinds = ["volumes", "volumeDevices"].map(|k| self.pods().join(uid).join(k).join(ESCAPED));
        let folders = kinds.iter().flat_map(|k| names(k).into_iter().map(|n| k.join(n)));
        folders.filter_map(|folder| Some((folder.clone(), read(&folder)?))).collect()
    }

    /// All volumes staged on the node, or begun to be.
    pub fn all_staged(&self) -> Vec<Published> {
        let global = self.root.join(GLOBAL);
        let drivers = names(&global).into_iter().filter(|n| n != "volumeDevices").map(|n| global.join(n));
        let folders = drivers.flat_map(|d| names(&d).into_iter().map(move |n| d.join(n)));
        folders.filter_map(|folder| Some((folder.clone(), read(&folder)?))).collect()
    }

    /// Is the volume published for a pod?
    pub fn has_users(&self, record: &Record) -> bool {
        let same = |r: &Record| {
            r.driver_name == record.driver_name
                && r.volume_handle == record.volume_handle
                && r.volume_lifecycle_mode != "Ephemeral"
        };
        self.uids().iter().any(|uid| self.published(uid).iter().any(|(_, r)| same(r)))
    }

    /// What the node says it has in use: volumes that must not be detached.
    pub fn in_use(&self) -> Vec<String> {
        let staged = self.all_staged().into_iter();
        let published = self.uids().into_iter().flat_map(|uid| self.published(&uid));
        let attached = staged.chain(published).filter(|(_, r)| !r.attachment_id.is_empty());
        let mut all: Vec<String> = attached
            .map(|(_, r)| format!("kubernetes.io/csi/{}^{}", r.driver_name, r.volume_handle))
            .collect();
        all.sort();
        all.dedup();
        all
    }
}

fn read(folder: &Path) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(folder.join(RECORD)).ok()?).ok()
}

/// Writes a record, before anything is mounted.
pub fn write(folder: &Path, record: &Record) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let new = folder.join(format!("{RECORD}.new"));
    std::fs::write(&new, serde_json::to_vec(record)?)?;
    std::fs::rename(new, folder.join(RECORD))
}

/// Forgets it, after all is unmounted: what is left in the folder is no file of ours.
pub fn forget(folder: &Path) -> io::Result<()> {
    std::fs::remove_file(folder.join(RECORD))?;
    std::fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_see_the_kubelets_folder() {
        let own = Place::new("/data/kubelet".into(), None);
        assert_eq!(own.real(Path::new("/var/lib/kubelet/plugins/x")), Path::new("/data/kubelet/plugins/x"));
        assert_eq!(own.real(Path::new("/var/lib/kubelets")), Path::new("/var/lib/kubelets"));
        assert_eq!(own.shown(Path::new("/data/kubelet/pods")), Path::new("/var/lib/kubelet/pods"));
        let named = Place::new("/data/kubelet".into(), Some("/k".into()));
        assert_eq!(named.real(Path::new("/var/lib/kubelet/x")), Path::new("/var/lib/kubelet/x"));
        assert_eq!(named.shown(Path::new("/k/pods")), Path::new("/k/pods"));
    }

    #[test]
    fn records_come_back_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path().into(), None);
        let record = Record {
            driver_name: "d".into(),
            volume_handle: "h/../1".into(),
            spec_vol_id: "pv".into(),
            attachment_id: "a".into(),
            ..Record::default()
        };
        write(&place.volume("u", &record), &record).unwrap();
        write(&place.staged(&record), &record).unwrap();
        assert_eq!(place.uids(), ["u"]);
        assert!(place.has_users(&record));
        assert_eq!(place.in_use(), ["kubernetes.io/csi/d^h/../1"]);
        assert_eq!(place.all_staged(), [(place.staged(&record), record.clone())]);
        let [(folder, read)] = &place.published("u")[..] else { panic!() };
        assert_eq!((folder, read), (&place.volume("u", &record), &record));
        forget(folder).unwrap();
        assert!(!place.has_users(&record));
    }
}
