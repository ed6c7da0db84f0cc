//! What a repository has, for those who show it; and the end of a whole repository.

use super::{Depot, DepotError};
use crate::digest::Digest;
use std::time::SystemTime;

/// A manifest or index of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its tags, in order.
    pub tags: Vec<String>,
    /// The manifest that it is about.
    pub subject: Option<Digest>,
    /// When it was last pushed.
    pub pushed: Option<SystemTime>,
}

impl Depot {
    /// All manifests of a repository, by digest; `None`: there is no such repository.
    pub fn list(&self, name: &str) -> Option<Vec<Listed>> {
        let repository = self.repository(name)?;
        let pushed = |digest| self.stored(digest).ok()??.file.metadata().ok()?.modified().ok();
        let listed = repository.manifests.iter().map(|(digest, record)| Listed {
            digest: digest.clone(),
            media_type: record.media_type.clone(),
            tags: repository.tags.iter().filter(|(_, d)| *d == digest).map(|(t, _)| t.clone()).collect(),
            subject: record.subject.clone(),
            pushed: pushed(digest),
        });
        Some(listed.collect())
    }

    /// The length of a blob that a repository has, in bytes.
    pub fn blob_size(&self, name: &str, digest: &Digest) -> Option<u64> {
        self.repository(name)?.blobs.get(digest).copied()
    }

    /// Removes a repository with everything in it. False: there is none such.
    ///
    /// # Errors
    /// The disk.
    pub fn remove_repository(&self, name: &str) -> Result<bool, DepotError> {
        let _writer = self.inner.writer.lock();
        if self.repository(name).is_none() {
            return Ok(false);
        }
        self.change(name, |repository| {
            repository.tags.clear();
            repository.manifests.clear();
            repository.blobs.clear();
            Ok(())
        })?;
        Ok(true)
    }
}
