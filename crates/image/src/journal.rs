//! `images.json`: which images there are. Small, replaced atomically and durably at each change.
//!
//! The stored form is version 1; a file of another version is an error, never overwritten. Locks: whoever changes
//! the journal holds `journal.lock`; who fills the store holds `store.lock` shared, who sweeps it holds it alone.

use crate::error::ImageError;
use crate::fs::write_durably;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

pub(crate) const FILE: &str = "images.json";
const VERSION: u32 = 1;

/// The stored form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Journal {
    version: u32,
    /// By id.
    pub(crate) images: BTreeMap<String, Record>,
}

/// One image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) names: BTreeSet<String>,
    /// Digests of manifests that mean this image.
    pub(crate) manifests: BTreeSet<String>,
    /// `repository@digest`.
    pub(crate) digests: BTreeSet<String>,
    /// Those names that a registry was asked for: policy `Always` asks it again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) pulled: BTreeSet<String>,
    /// Whose credentials brought it from a repository, as [`Credentials::mark`] tells them apart; from one without an
    /// entry anybody may have it.
    ///
    /// [`Credentials::mark`]: crate::net::keyring::Credentials::mark
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) marks: BTreeMap<String, BTreeSet<String>>,
    /// Lowest first.
    pub(crate) layers: Vec<LayerRecord>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: String,
    /// Bytes unpacked.
    pub(crate) bytes: u64,
}

/// Which writing of the file was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp(u64, i64, i64, u64);

impl Journal {
    /// The file in `folder` and its stamp; an empty journal when there is none.
    pub(crate) fn read(folder: &Path) -> Result<(Journal, Stamp), ImageError> {
        let path = folder.join(FILE);
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok((Journal { version: VERSION, ..Default::default() }, Stamp::default()));
            }
            other => other.map_err(ImageError::io("open", &path))?,
        };
        let stamp = file.metadata().map(|m| Stamp::of(&m)).map_err(ImageError::io("read", &path))?;
        let mut text = String::new();
        io::Read::read_to_string(&mut file, &mut text).map_err(ImageError::io("read", &path))?;
        let journal: Journal = serde_json::from_str(&text).map_err(|e| ImageError::document(FILE, e))?;
        if journal.version != VERSION {
            return Err(ImageError::document(FILE, format!("version {} is not ours", journal.version)));
        }
        Ok((journal, stamp))
    }

    /// The stamp of the file as it is now.
    pub(crate) fn stamp(folder: &Path) -> Stamp {
        std::fs::metadata(folder.join(FILE)).map(|m| Stamp::of(&m)).unwrap_or_default()
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<(), ImageError> {
        let text = serde_json::to_vec_pretty(self).expect("strings and numbers always serialize");
        write_durably(folder, FILE, &text).map_err(ImageError::io("write", &folder.join(FILE)))
    }

    /// A name means one image: it is taken from whoever had it.
    pub(crate) fn give_name(&mut self, id: &str, name: &str) {
        for (other, record) in &mut self.images {
            record.pulled.remove(name);
            match other == id {
                true => record.names.insert(name.into()),
                false => record.names.remove(name),
            };
        }
    }
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Stamp {
        Stamp(metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size())
    }
}

/// A held file lock.
pub(crate) struct Lock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

/// Takes the lock `name` in `folder`; `None` when it was asked not to wait and another has it.
pub(crate) fn lock(folder: &Path, name: &str, how: FlockOperation) -> Result<Option<Lock>, ImageError> {
    let path = folder.join(name);
    let file =
        File::options().create(true).append(true).open(&path).map_err(ImageError::io("open", &path))?;
    loop {
        match rustix::fs::flock(&file, how) {
            Ok(()) => return Ok(Some(Lock(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(ImageError::io("lock", &path)(e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_form_is_stable() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::read(folder.path()).unwrap().0;
        let layers = vec![LayerRecord { diff_id: "sha256:aa".into(), bytes: 5 }];
        journal.images.insert("sha256:01".into(), Record { layers, ..Default::default() });
        journal.images.insert("sha256:02".into(), Record::default());
        journal.give_name("sha256:01", "n");
        journal.give_name("sha256:02", "n");
        journal.write(folder.path()).unwrap();
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        let compact: String = text.split_whitespace().collect();
        let golden = concat!(
            r#"{"version":1,"images":{"sha256:01":{"names":[],"manifests":[],"digests":[],"layers":"#,
            r#"[{"diff_id":"sha256:aa","bytes":5}]},"#,
            r#""sha256:02":{"names":["n"],"manifests":[],"digests":[],"layers":[]}}}"#
        );
        assert_eq!(compact, golden);
        assert_eq!(Journal::read(folder.path()).unwrap().0, journal);
    }

    #[test]
    fn another_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), r#"{"version":2,"images":{}}"#).unwrap();
        assert!(Journal::read(folder.path()).unwrap_err().to_string().contains("version 2"));
    }

    #[test]
    fn locks_exclude() {
        let folder = tempfile::tempdir().unwrap();
        let take = |how| lock(folder.path(), "l", how).unwrap();
        let shared = take(FlockOperation::NonBlockingLockShared);
        assert!(shared.is_some() && take(FlockOperation::NonBlockingLockShared).is_some());
        assert!(take(FlockOperation::NonBlockingLockExclusive).is_none());
        drop(shared);
        assert!(take(FlockOperation::NonBlockingLockExclusive).is_some());
    }
}
