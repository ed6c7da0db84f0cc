//! Making room on the disk: images that nobody uses go, the longest unused first, until enough is free.

use crate::error::ImageError;
use crate::store::Images;
use rustix::fs::FlockOperation;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How full the store's disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskUse {
    /// All bytes that we could use.
    pub total_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
}

impl DiskUse {
    /// Used part, in percent, rounded down.
    pub fn percent(&self) -> u64 {
        let used = self.total_bytes.saturating_sub(self.free_bytes);
        used.saturating_mul(100).checked_div(self.total_bytes).unwrap_or(0)
    }

    /// Bytes to free until the disk is at most so full.
    pub fn above(&self, percent: u64) -> u64 {
        let used = self.total_bytes.saturating_sub(self.free_bytes);
        used.saturating_sub(self.total_bytes / 100 * percent)
    }
}

impl Images {
    /// Where the images are.
    pub fn folder(&self) -> &std::path::Path {
        &self.inner.folder
    }

    /// The disk that the images are on.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn disk_use(&self) -> Result<DiskUse, ImageError> {
        let folder = &self.inner.folder;
        let stat = rustix::fs::statvfs(folder).map_err(|e| ImageError::io("look at", folder)(e.into()))?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        // Reserved blocks are nobody's: neither free nor part of the whole.
        let reserved = stat.f_bfree.saturating_sub(stat.f_bavail);
        let total_bytes = stat.f_blocks.saturating_sub(reserved).saturating_mul(stat.f_frsize);
        Ok(DiskUse { total_bytes, free_bytes })
    }

    /// Drops unused images that were last used (or first seen) `min_age` ago, the longest unused first, until their
    /// layers had `bytes`; how many that were. What others do to the disk meanwhile costs no image.
    /// While an image is being loaded it does nothing.
    ///
    /// # Errors
    /// The disk.
    pub fn free(&self, bytes: u64, min_age: Duration) -> Result<u64, ImageError> {
        let mut freed = 0;
        let Some(_lock) = self.store_lock(FlockOperation::NonBlockingLockExclusive)? else { return Ok(0) };
        while freed < bytes {
            let Some(id) = self.longest_unused(min_age) else { break };
            let leases = self.inner.leases.lock();
            if leases.contains_key(&id) {
                continue;
            }
            let dropped = self.commit(|journal| {
                let Some(gone) = journal.images.remove(&id) else { return false };
                let kept: BTreeSet<&String> =
                    journal.images.values().flat_map(|r| &r.layers).map(|layer| &layer.diff_id).collect();
                let only = gone.layers.iter().filter(|layer| !kept.contains(&layer.diff_id));
                freed += only.map(|layer| layer.bytes).sum::<u64>();
                true
            })?;
            drop(leases);
            self.inner.last_used.lock().remove(&id);
            if !dropped {
                break;
            }
            tracing::info!(id, "image removed to free space");
            self.sweep_unlisted()?;
        }
        Ok(freed)
    }

    fn longest_unused(&self, min_age: Duration) -> Option<String> {
        let images = self.list();
        let leases = self.inner.leases.lock().clone();
        let mut last_used = self.inner.last_used.lock();
        last_used.retain(|id, _| images.iter().any(|image| image.id == *id));
        let now = Instant::now();
        let unused = images.into_iter().filter(|image| !leases.contains_key(&image.id));
        let aged = unused.map(|image| (*last_used.entry(image.id.clone()).or_insert(now), image.id.clone()));
        let old = aged.filter(|(at, _)| now.duration_since(*at) >= min_age);
        old.min().map(|(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages() {
        let disk = DiskUse { total_bytes: 1000, free_bytes: 100 };
        assert_eq!((disk.percent(), disk.above(80), disk.above(95)), (90, 100, 0));
        assert_eq!(DiskUse { total_bytes: 0, free_bytes: 0 }.percent(), 0);
    }
}
