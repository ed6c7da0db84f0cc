//! One repository: its stored form (version 1) and pure operations on it.

use super::DepotError;
use crate::digest::Digest;
use crate::error::ImageError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

const VERSION: u32 = 1;
/// Tags of a repository. The file is written anew at each change, so its size is what a push costs.
const TAGS_MAX: usize = 10_000;
/// Manifests of a repository.
const MANIFESTS_MAX: usize = 20_000;
/// Blobs of a repository.
const BLOBS_MAX: usize = 100_000;

/// The stored form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Repository {
    version: u32,
    pub(super) name: String,
    pub(super) tags: BTreeMap<String, Digest>,
    pub(super) manifests: BTreeMap<Digest, Record>,
    /// Sizes in bytes.
    pub(super) blobs: BTreeMap<Digest, u64>,
}

/// A manifest or index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) media_type: String,
    /// In bytes.
    pub(super) size: u64,
    /// The manifest that this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Digest>,
}

impl Repository {
    pub(super) fn new(name: &str) -> Repository {
        Repository { version: VERSION, name: name.into(), ..Repository::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.manifests.is_empty() && self.blobs.is_empty()
    }

    pub(super) fn add_blob(&mut self, digest: &Digest, size: u64) -> Result<(), DepotError> {
        within("blobs", self.blobs.len(), BLOBS_MAX)?;
        self.blobs.insert(digest.clone(), size);
        Ok(())
    }

    pub(super) fn add_manifest(&mut self, digest: &Digest, record: Record) -> Result<(), DepotError> {
        within("manifests", self.manifests.len(), MANIFESTS_MAX)?;
        self.manifests.insert(digest.clone(), record);
        Ok(())
    }

    pub(super) fn add_tag(&mut self, tag: &str, digest: &Digest) -> Result<(), DepotError> {
        within("tags", self.tags.len(), TAGS_MAX)?;
        self.tags.insert(tag.into(), digest.clone());
        Ok(())
    }

    /// Removes a manifest and the tags that mean it.
    pub(super) fn remove_manifest(&mut self, digest: &Digest) -> bool {
        self.tags.retain(|_, meant| meant != digest);
        self.manifests.remove(digest).is_some()
    }
}

fn within(what: &str, count: usize, max: usize) -> Result<(), DepotError> {
    if count < max { Ok(()) } else { Err(DepotError::TooMany(format!("the repository has {count} {what}"))) }
}

/// A repository's name may have any length; its file's may not.
pub(super) fn file_name(name: &str) -> String {
    format!("{}.json", Digest::of(name.as_bytes()).hex())
}

/// Keys after `last`, at most `count`; and whether there are more.
pub(super) fn page<T>(map: &BTreeMap<String, T>, last: &str, count: usize) -> (Vec<String>, bool) {
    let after = (Bound::Excluded(last), Bound::<&str>::Unbounded);
    let mut rest = map.range::<str, _>(after).map(|(key, _)| key.clone());
    let page: Vec<String> = rest.by_ref().take(count).collect();
    (page, rest.next().is_some())
}

/// All repositories of a folder.
pub(super) fn read_all(folder: &Path) -> Result<BTreeMap<String, Arc<Repository>>, ImageError> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(ImageError::io("list", folder))? {
        let path = entry.map_err(ImageError::io("list", folder))?.path();
        if path.extension().is_none_or(|e| e != "json") || path.file_name().is_some_and(is_temporary) {
            // A write that a crash cut off.
            super::remove_file(&path)?;
            continue;
        }
        let text = std::fs::read(&path).map_err(ImageError::io("read", &path))?;
        let what = path.display().to_string();
        let repository: Repository = crate::oci::from_json(&text, &what)?;
        if repository.version != VERSION {
            return Err(ImageError::document(&what, format!("version {} is not ours", repository.version)));
        }
        all.insert(repository.name.clone(), Arc::new(repository));
    }
    Ok(all)
}

fn is_temporary(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().first() == Some(&b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_form_is_stable() {
        let mut repository = Repository::new("a/b");
        let digest = Digest::of(b"");
        repository.add_tag("1", &digest).unwrap();
        repository.add_blob(&digest, 0).unwrap();
        repository.add_manifest(&digest, Record { media_type: "m".into(), size: 2, subject: None }).unwrap();
        let golden = format!(
            r#"{{"version":1,"name":"a/b","tags":{{"1":"{digest}"}},"manifests":{{"{digest}":{{"media_type":"m","size":2}}}},"blobs":{{"{digest}":0}}}}"#
        );
        assert_eq!(serde_json::to_string(&repository).unwrap(), golden);
        assert_eq!(serde_json::from_str::<Repository>(&golden).unwrap(), repository);
        assert!(repository.remove_manifest(&digest) && repository.tags.is_empty());
    }

    #[test]
    fn pages() {
        let map: BTreeMap<String, ()> = ["a", "b", "c"].map(|k| (k.to_string(), ())).into();
        assert_eq!(page(&map, "", 2), (vec!["a".into(), "b".into()], true));
        assert_eq!(page(&map, "b", 2), (vec!["c".into()], false));
        assert_eq!(page(&map, "bb", 0), (vec![], true));
        assert_eq!(page(&map, "z", 9), (vec![], false));
    }
}
