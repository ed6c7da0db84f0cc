//! [`Depot`]: what a registry holds. Blobs by digest, manifests byte for byte, and which repository has which.
//!
//! Below one folder: `blobs/sha256/<hex>` (layers as pushed, configs, manifests), `repositories/<hex>.json` (one
//! file a repository, replaced durably), `uploads/<id>` (unfinished; swept at start).
//!
//! Invariants: a blob has its name only when all its bytes are on disk and have that digest; a repository's file
//! names only what is there; a manifest's blobs are there when it is taken. One process has the folder (a lock).
//! Blobs are kept as they were pushed, because a registry must give them back; the unpacked tree that a container
//! needs is made from them when one first does, once (by [`crate::Puller`]). What is garbage: see [`gc`].
//! All methods may block on the disk. Deliberately not here: HTTP, who may push.

mod error;
mod gc;
mod listing;
mod manifest;
mod repository;
mod upload;

pub use error::DepotError;
pub use gc::{GcHow, Swept};
pub use listing::Listed;
pub use manifest::{Manifest, ManifestRef, Put, Referrer};
pub use upload::{Committed, Upload};

use crate::digest::Digest;
use crate::error::ImageError;
use crate::fs::write_durably;
use crate::journal::{Lock, lock};
use crate::limits::Limits;
use crate::reference::is_repository;
use parking_lot::Mutex;
use repository::Repository;
use rustix::fs::FlockOperation;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

const LOCK: &str = "depot.lock";
/// Repositories: each costs memory for its names and digests.
const REPOSITORIES_MAX: usize = 10_000;
/// What no manifest refers to stays at least so long: a push takes its time between blobs and manifest.
pub(crate) const UNREFERENCED_MIN: Duration = Duration::from_secs(3600);

/// A blob, open for reading: it stays readable whatever is swept.
pub struct Stored {
    /// Its bytes.
    pub file: File,
    /// Its length in bytes.
    pub size: u64,
}

/// A registry's content. A cheap handle.
#[derive(Clone)]
pub struct Depot {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    limits: Limits,
    /// Held over every change of what is stored, disk writes included; `view` only while it is swapped.
    writer: Mutex<()>,
    view: Mutex<BTreeMap<String, Arc<Repository>>>,
    uploads: Mutex<BTreeMap<String, Arc<Upload>>>,
    changes: watch::Sender<u64>,
    _lock: Lock,
}

impl Depot {
    /// Opens (or makes) the content in `folder`; unfinished uploads go.
    ///
    /// # Errors
    /// The disk, a repository file that is damaged, or another process that has the folder.
    pub fn open(folder: impl Into<PathBuf>, limits: Limits) -> Result<Depot, ImageError> {
        let folder = folder.into();
        for part in ["blobs/sha256", "repositories", "uploads"] {
            let path = folder.join(part);
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(ImageError::io("make", &path))?;
        }
        let held = lock(&folder, LOCK, FlockOperation::NonBlockingLockExclusive)?;
        let held =
            held.ok_or_else(|| ImageError::document(LOCK, "another process has this registry's folder"))?;
        crate::fs::empty(&folder.join("uploads"))?;
        let view = Mutex::new(repository::read_all(&folder.join("repositories"))?);
        let inner = Inner {
            folder,
            limits,
            writer: Mutex::default(),
            view,
            uploads: Mutex::default(),
            changes: watch::Sender::new(0),
            _lock: held,
        };
        let depot = Depot { inner: Arc::new(inner) };
        depot.gc(GcHow::Unreferenced)?;
        Ok(depot)
    }

    /// Names of repositories after `last`, in order, at most `count`; and whether there are more.
    pub fn repositories(&self, last: &str, count: usize) -> (Vec<String>, bool) {
        repository::page(&*self.inner.view.lock(), last, count)
    }

    /// The repository's tags after `last`, in order, at most `count`; and whether there are more.
    ///
    /// # Errors
    /// There is no such repository.
    pub fn tags(&self, name: &str, last: &str, count: usize) -> Result<(Vec<String>, bool), DepotError> {
        let repository = self.repository(name).ok_or_else(|| DepotError::NameUnknown(name.into()))?;
        Ok(repository::page(&repository.tags, last, count))
    }

    /// A blob of a repository. Asking keeps it from being swept for a while.
    ///
    /// # Errors
    /// The repository has no such blob; the disk.
    pub fn blob(&self, name: &str, digest: &Digest) -> Result<Stored, DepotError> {
        let unknown = || DepotError::BlobUnknown(digest.clone());
        let repository = self.repository(name).ok_or_else(unknown)?;
        if !repository.blobs.contains_key(digest) {
            return Err(unknown());
        }
        let stored = self.stored(digest)?.ok_or_else(unknown)?;
        let age =
            stored.file.metadata().ok().and_then(|m| m.modified().ok()).and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age > UNREFERENCED_MIN / 2) {
            self.touch(digest)?;
        }
        Ok(stored)
    }

    /// Gives repository `name` a blob that repository `from` (any, when `None`) has. False: it has none such.
    ///
    /// # Errors
    /// The name; the disk.
    pub fn mount(&self, name: &str, digest: &Digest, from: Option<&str>) -> Result<bool, DepotError> {
        let _writer = self.inner.writer.lock();
        let size = match from {
            Some(from) => self.repository(from).and_then(|r| r.blobs.get(digest).copied()),
            None => self.inner.view.lock().values().find_map(|r| r.blobs.get(digest).copied()),
        };
        let Some(size) = size else { return Ok(false) };
        self.touch(digest)?;
        self.change(name, |repository| repository.add_blob(digest, size))?;
        Ok(true)
    }

    /// Takes a blob out of a repository.
    ///
    /// # Errors
    /// It has none such, or a manifest of it refers to the blob.
    pub fn remove_blob(&self, name: &str, digest: &Digest) -> Result<(), DepotError> {
        let _writer = self.inner.writer.lock();
        let repository = self.repository(name).ok_or_else(|| DepotError::NameUnknown(name.into()))?;
        if !repository.blobs.contains_key(digest) {
            return Err(DepotError::BlobUnknown(digest.clone()));
        }
        if self.referenced(&repository)?.contains(digest) {
            return Err(DepotError::Denied(format!("a manifest refers to blob {digest}")));
        }
        self.change(name, |repository| {
            repository.blobs.remove(digest);
            Ok(())
        })
    }

    /// Changes whenever something was stored or removed.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    fn repository(&self, name: &str) -> Option<Arc<Repository>> {
        self.inner.view.lock().get(name).cloned()
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.folder.join("blobs/sha256").join(digest.hex())
    }

    fn stored(&self, digest: &Digest) -> Result<Option<Stored>, ImageError> {
        let path = self.blob_path(digest);
        match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            opened => {
                let file = opened.map_err(ImageError::io("open", &path))?;
                let size = file.metadata().map_err(ImageError::io("read", &path))?.len();
                Ok(Some(Stored { file, size }))
            }
        }
    }

    fn touch(&self, digest: &Digest) -> Result<(), ImageError> {
        let path = self.blob_path(digest);
        let touched = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        touched.map_err(ImageError::io("touch", &path))
    }

    /// Changes one repository, on disk first. The caller holds `writer`.
    fn change<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Repository) -> Result<T, DepotError>,
    ) -> Result<T, DepotError> {
        if !is_repository(name) {
            return Err(DepotError::NameInvalid(name.into()));
        }
        let old = self.repository(name);
        if old.is_none() && self.inner.view.lock().len() >= REPOSITORIES_MAX {
            return Err(DepotError::TooMany(format!("there are {REPOSITORIES_MAX} repositories")));
        }
        let mut next = old.as_deref().cloned().unwrap_or_else(|| Repository::new(name));
        let answer = change(&mut next)?;
        if old.as_deref() == Some(&next) {
            return Ok(answer);
        }
        let folder = self.inner.folder.join("repositories");
        let file = repository::file_name(name);
        if next.is_empty() {
            remove_file(&folder.join(file))?;
            self.inner.view.lock().remove(name);
        } else {
            let text = serde_json::to_vec(&next).expect("strings and numbers always serialize");
            write_durably(&folder, &file, &text).map_err(ImageError::io("write to", &folder))?;
            self.inner.view.lock().insert(name.into(), Arc::new(next));
        }
        self.inner.changes.send_modify(|n| *n += 1);
        Ok(answer)
    }
}

fn remove_file(path: &Path) -> Result<(), ImageError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(ImageError::io("remove", path)(e)),
        _ => Ok(()),
    }
}
