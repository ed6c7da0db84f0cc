//! What is garbage in a registry, and its removal: mark, then sweep, under the writer's lock.
//!
//! A blob that no manifest of its repository refers to leaves the repository an hour after it came or was last asked
//! for. Manifests without a tag stay, since clients may know their digest, until room is needed: then those go that
//! no tag, no index and no subject holds. A blob's bytes go when no repository has it. Readers hold files open, so
//! what is being read stays readable.

use super::{Depot, DepotError, Repository, UNREFERENCED_MIN, manifest, remove_file};
use crate::digest::Digest;
use crate::error::ImageError;
use std::collections::{BTreeMap, BTreeSet};

/// How far [`Depot::gc`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcHow {
    /// Blobs that no manifest refers to.
    Unreferenced,
    /// Manifests that no tag leads to as well: room is needed.
    Untagged,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Files.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Depot {
    /// Removes garbage; uploads that nobody touches any more, too.
    ///
    /// # Errors
    /// The disk; a stored manifest that cannot be read, which stops the sweep before it removes anything.
    pub fn gc(&self, how: GcHow) -> Result<Swept, ImageError> {
        self.expire_uploads();
        let _writer = self.inner.writer.lock();
        let all: Vec<_> = self.inner.view.lock().values().cloned().collect();
        for repository in &all {
            let keep = self.keep(repository, how)?;
            let changed = self.change(&repository.name, |r| {
                r.manifests.retain(|digest, _| keep.contains(digest));
                r.blobs.retain(|digest, _| keep.contains(digest));
                Ok(())
            });
            // Other errors are about names, and this name is taken.
            if let Err(DepotError::Image(error)) = changed {
                return Err(error);
            }
        }
        self.sweep()
    }

    fn keep(&self, repository: &Repository, how: GcHow) -> Result<BTreeSet<Digest>, ImageError> {
        let mut references = BTreeMap::new();
        for digest in repository.manifests.keys() {
            references.insert(digest.clone(), manifest::references(&self.document(digest)?)?);
        }
        let mut keep: BTreeSet<Digest> = match how {
            GcHow::Unreferenced => repository.manifests.keys().cloned().collect(),
            GcHow::Untagged => {
                let young = repository.manifests.keys().filter(|digest| self.is_young(digest)).cloned();
                reachable(repository, &references, young.collect())
            }
        };
        let blobs: Vec<Digest> =
            keep.iter().filter_map(|d| references.get(d)).flat_map(|(blobs, _)| blobs.clone()).collect();
        keep.extend(blobs);
        keep.extend(repository.blobs.keys().filter(|digest| self.is_young(digest)).cloned());
        Ok(keep)
    }

    fn is_young(&self, digest: &Digest) -> bool {
        let modified = std::fs::metadata(self.blob_path(digest)).and_then(|m| m.modified());
        // A date in the future is a clock that jumped: too young to judge.
        modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age < UNREFERENCED_MIN) || at.elapsed().is_err())
    }

    /// Removes files that no repository names. The caller holds `writer`.
    fn sweep(&self) -> Result<Swept, ImageError> {
        let mut named = BTreeSet::new();
        for repository in self.inner.view.lock().values() {
            named.extend(
                repository.blobs.keys().chain(repository.manifests.keys()).map(|d| d.hex().to_string()),
            );
        }
        let folder = self.inner.folder.join("blobs/sha256");
        let mut swept = Swept::default();
        for entry in std::fs::read_dir(&folder).map_err(ImageError::io("list", &folder))? {
            let entry = entry.map_err(ImageError::io("list", &folder))?;
            if entry.file_name().to_str().is_some_and(|name| named.contains(name)) {
                continue;
            }
            swept.blobs += 1;
            swept.bytes += entry.metadata().map_or(0, |m| m.len());
            remove_file(&entry.path())?;
        }
        Ok(swept)
    }
}

type References = BTreeMap<Digest, (Vec<Digest>, Vec<Digest>)>;

/// Manifests that a tag leads to, by index or subject, and those in `also` with what they lead to.
fn reachable(repository: &Repository, references: &References, also: Vec<Digest>) -> BTreeSet<Digest> {
    let mut about: BTreeMap<&Digest, Vec<&Digest>> = BTreeMap::new();
    for (digest, record) in &repository.manifests {
        if let Some(subject) = &record.subject {
            about.entry(subject).or_default().push(digest);
        }
    }
    let mut due: Vec<Digest> = repository.tags.values().cloned().chain(also).collect();
    let mut reached = BTreeSet::new();
    while let Some(digest) = due.pop() {
        if !repository.manifests.contains_key(&digest) || !reached.insert(digest.clone()) {
            continue;
        }
        due.extend(references.get(&digest).into_iter().flat_map(|(_, children)| children.clone()));
        due.extend(about.get(&digest).into_iter().flatten().map(|d| (*d).clone()));
    }
    reached
}
