//! Uploads: bytes that come in pieces until a digest ends them.
//!
//! An upload lives in memory (its hash) and in `uploads/` (its bytes); a restart ends it. Invariant: hash, offset and
//! file agree after every append; an append that fails ends the upload.

use super::{Depot, DepotError};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::spool::Writing;
use parking_lot::Mutex;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::OwnedMutexGuard;

/// Open uploads; each holds a file open. The one longest untouched gives way to a new one.
const UPLOADS_MAX: usize = 128;
/// An upload that nobody touches for so long is given up.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// An unfinished upload.
pub struct Upload {
    /// Names it within its repository.
    pub id: String,
    repository: String,
    path: PathBuf,
    touched: Mutex<Instant>,
    writing: Arc<tokio::sync::Mutex<Writing>>,
}

/// A blob that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Upload {
    /// Waits for whoever writes, then has the upload alone.
    pub async fn lock(&self) -> OwnedMutexGuard<Writing> {
        *self.touched.lock() = Instant::now();
        self.writing.clone().lock_owned().await
    }
}

impl Depot {
    /// Begins an upload to a repository, which need not exist.
    ///
    /// # Errors
    /// The name; the disk.
    pub fn begin(&self, name: &str) -> Result<Arc<Upload>, DepotError> {
        if !crate::reference::is_repository(name) {
            return Err(DepotError::NameInvalid(name.into()));
        }
        self.expire_uploads();
        let id = uuid::Uuid::new_v4().to_string();
        let path = self.inner.folder.join("uploads").join(&id);
        let file = File::options().write(true).create_new(true).open(&path);
        let file = file.map_err(ImageError::io("make", &path))?;
        let limits = &self.inner.limits;
        let writing = Writing::new(file, limits.layer_bytes, limits.free_floor_bytes);
        let upload = Arc::new(Upload {
            id: id.clone(),
            repository: name.into(),
            path,
            touched: Mutex::new(Instant::now()),
            writing: Arc::new(tokio::sync::Mutex::new(writing)),
        });
        self.inner.uploads.lock().insert(id, upload.clone());
        Ok(upload)
    }

    /// An upload that is under way.
    ///
    /// # Errors
    /// There is none such.
    pub fn upload(&self, name: &str, id: &str) -> Result<Arc<Upload>, DepotError> {
        let upload = self.inner.uploads.lock().get(id).filter(|u| u.repository == name).cloned();
        upload.ok_or_else(|| DepotError::UploadUnknown(id.into()))
    }

    /// Gives an upload up.
    pub fn abort(&self, upload: &Upload) {
        self.inner.uploads.lock().remove(&upload.id);
    }

    /// Ends an upload: it becomes a blob of its repository when its bytes have that digest, and nothing when not.
    ///
    /// # Errors
    /// Another digest; the disk.
    pub fn commit(
        &self,
        upload: &Upload,
        writing: &mut Writing,
        digest: &Digest,
    ) -> Result<Committed, DepotError> {
        let ended = self.inner.uploads.lock().remove(&upload.id).is_some();
        if !ended || writing.failed() {
            return Err(DepotError::UploadUnknown(upload.id.clone()));
        }
        let found = writing.digest();
        if found != *digest {
            return Err(DepotError::DigestInvalid(format!("the content has digest {found}, not {digest}")));
        }
        let (path, size) = (self.blob_path(digest), writing.offset());
        writing.file().sync_data().map_err(ImageError::io("sync", &upload.path))?;
        let _writer = self.inner.writer.lock();
        // By name again over an equal blob: the date becomes new, and readers keep what they have open.
        let _ = writing.file().set_modified(SystemTime::now());
        std::fs::rename(&upload.path, &path).map_err(ImageError::io("name", &path))?;
        crate::fs::sync_folder(&self.inner.folder.join("blobs/sha256"))?;
        self.change(&upload.repository, |repository| repository.add_blob(digest, size))?;
        Ok(Committed { digest: digest.clone(), size })
    }

    /// Gives up uploads that nobody touched for long, and the oldest when there are too many.
    pub(super) fn expire_uploads(&self) {
        let mut uploads = self.inner.uploads.lock();
        let idle = |u: &Upload| u.writing.try_lock().is_ok();
        uploads.retain(|_, u| u.touched.lock().elapsed() < IDLE_MAX || !idle(u));
        while uploads.len() >= UPLOADS_MAX {
            let oldest = uploads.values().min_by_key(|u| *u.touched.lock()).map(|u| u.id.clone());
            let Some(oldest) = oldest else { break };
            uploads.remove(&oldest);
        }
    }
}
