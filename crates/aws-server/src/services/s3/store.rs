//! Buckets and objects on disk: `<root>/<bucket>/bucket.json`, and a file an object, named by its key's hash.
//!
//! Invariants: an object's file holds what is known of it (one line of JSON), then its body; it appears by a rename
//! after both are on disk, so that a reader sees all of the old one or all of the new. What is known of all objects is
//! in memory too, read when the store is opened. Blocking: callers run it off the async threads.

use ecs_model::refusal::refuse_if;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Objects of all buckets: what is known of each is kept in memory, about half a kilobyte.
pub const OBJECTS_MAX: usize = 100_000;
/// Buckets of all accounts, as an AWS account's highest old quota.
pub const BUCKETS_MAX: usize = 1_000;
/// Names the file of a bucket itself.
const BUCKET_FILE: &str = "bucket.json";
/// Longest first line: 8 KiB of headers come in at most.
const HEAD_MAX: u64 = 64 << 10;

/// A bucket, but for what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Account.
    pub owner: String,
    /// Where it was made.
    pub region: String,
    /// Milliseconds since 1970.
    pub created_ms: u64,
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Its key.
    pub key: String,
    /// Bytes of its body.
    pub size: u64,
    /// 32 hex digits.
    pub etag: String,
    /// Milliseconds since 1970.
    pub modified_ms: u64,
    /// Headers that come back with it, names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such bucket.
    #[error("no such bucket")]
    Bucket,
    /// It still holds something.
    #[error("the bucket is not empty")]
    NotEmpty,
    /// A limit is reached.
    #[error("the store is full")]
    Full,
    /// The disk.
    #[error(transparent)]
    Disk(#[from] io::Error),
}

#[derive(Debug)]
struct Held {
    bucket: Bucket,
    objects: BTreeMap<String, Meta>,
}

/// All buckets.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    buckets: RwLock<BTreeMap<String, Held>>,
}

fn file_name(key: &str) -> String {
    Sha256::digest(key).iter().map(|b| format!("{b:02x}")).collect()
}

/// Replaces a file by these parts, durably.
fn write(folder: &Path, name: &str, parts: &[&[u8]]) -> io::Result<()> {
    let draft = folder.join(format!(".{}", uuid::Uuid::new_v4().simple()));
    let written = File::create(&draft).and_then(|mut file| {
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        fs::rename(&draft, folder.join(name))?;
        File::open(folder)?.sync_all()
    });
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

fn head(path: &Path) -> io::Result<(Meta, BufReader<File>)> {
    let mut file = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    file.by_ref().take(HEAD_MAX).read_until(b'\n', &mut line)?;
    Ok((serde_json::from_slice(&line)?, file))
}

fn held(folder: &Path) -> io::Result<Held> {
    let bucket = serde_json::from_slice(&fs::read(folder.join(BUCKET_FILE))?)?;
    let mut objects = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            // The draft of a write that was cut off.
            fs::remove_file(&path)?;
        } else if name != BUCKET_FILE {
            match head(&path) {
                Ok((meta, _)) => drop(objects.insert(meta.key.clone(), meta)),
                Err(error) => tracing::warn!(path = %path.display(), %error, "no object of S3"),
            }
        }
    }
    Ok(Held { bucket, objects })
}

impl Store {
    /// Opens the store in a folder that is there.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn open(root: PathBuf) -> io::Result<Store> {
        let mut buckets = BTreeMap::new();
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match held(&entry.path()) {
                Ok(held) => drop(buckets.insert(name, held)),
                Err(error) => tracing::warn!(bucket = name, %error, "no bucket of S3"),
            }
        }
        Ok(Store { root, buckets: RwLock::new(buckets) })
    }

    /// A bucket by name.
    pub fn bucket(&self, name: &str) -> Option<Bucket> {
        self.buckets.read().get(name).map(|h| h.bucket.clone())
    }

    /// All buckets with their names.
    pub fn buckets(&self) -> Vec<(String, Bucket)> {
        self.buckets.read().iter().map(|(n, h)| (n.clone(), h.bucket.clone())).collect()
    }

    /// Makes a bucket, unless there is one of that name.
    ///
    /// # Errors
    /// There are too many, or the disk failed.
    pub fn make(&self, name: &str, bucket: Bucket) -> Result<(), StoreError> {
        let mut buckets = self.buckets.write();
        if buckets.contains_key(name) {
            return Ok(());
        }
        refuse_if(buckets.len() >= BUCKETS_MAX, || StoreError::Full)?;
        let folder = self.root.join(name);
        fs::create_dir_all(&folder)?;
        let text = serde_json::to_vec(&bucket).map_err(io::Error::from)?;
        write(&folder, BUCKET_FILE, &[&text])?;
        buckets.insert(name.to_string(), Held { bucket, objects: BTreeMap::new() });
        Ok(())
    }

    /// Removes an empty bucket.
    ///
    /// # Errors
    /// It is not there or not empty, or the disk failed.
    pub fn unmake(&self, name: &str) -> Result<(), StoreError> {
        let mut buckets = self.buckets.write();
        refuse_if(!buckets.get(name).ok_or(StoreError::Bucket)?.objects.is_empty(), || StoreError::NotEmpty)?;
        fs::remove_dir_all(self.root.join(name))?;
        buckets.remove(name);
        Ok(())
    }

    /// What is known of the objects whose keys begin so and come after `after`, at most `max`, in order.
    pub fn list(&self, bucket: &str, prefix: &str, after: &str, max: usize) -> Vec<Meta> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let buckets = self.buckets.read();
        let Some(held) = buckets.get(bucket) else { return Vec::new() };
        let from = if after >= prefix && !after.is_empty() { Excluded(after) } else { Included(prefix) };
        let own = held.objects.range::<str, _>((from, Unbounded)).map(|(_, m)| m);
        own.take_while(|m| m.key.starts_with(prefix)).take(max).cloned().collect()
    }

    /// What is known of an object.
    pub fn meta(&self, bucket: &str, key: &str) -> Option<Meta> {
        self.buckets.read().get(bucket)?.objects.get(key).cloned()
    }

    /// An object's head and the named part of its body (all of it, without a range).
    ///
    /// # Errors
    /// The disk failed; not found is one of the disk's.
    pub fn read(&self, bucket: &str, key: &str, part: Option<Range<u64>>) -> io::Result<(Meta, Vec<u8>)> {
        // Only names that were made reach the disk.
        refuse_if(self.meta(bucket, key).is_none(), || io::Error::from(io::ErrorKind::NotFound))?;
        let (meta, mut file) = head(&self.root.join(bucket).join(file_name(key)))?;
        let part = part.unwrap_or(0..meta.size);
        file.seek(SeekFrom::Current(i64::try_from(part.start).map_err(io::Error::other)?))?;
        let mut body = Vec::new();
        file.take(part.end.saturating_sub(part.start)).read_to_end(&mut body)?;
        Ok((meta, body))
    }

    /// Writes an object; it is on disk when this returns.
    ///
    /// # Errors
    /// There is no such bucket, there are too many objects, or the disk failed.
    pub fn put(&self, bucket: &str, meta: Meta, body: &[u8]) -> Result<(), StoreError> {
        let mut line = serde_json::to_vec(&meta).map_err(io::Error::from)?;
        line.push(b'\n');
        let mut buckets = self.buckets.write();
        let count: usize = buckets.values().map(|h| h.objects.len()).sum();
        let held = buckets.get_mut(bucket).ok_or(StoreError::Bucket)?;
        refuse_if(count >= OBJECTS_MAX && !held.objects.contains_key(&meta.key), || StoreError::Full)?;
        write(&self.root.join(bucket), &file_name(&meta.key), &[&line, body])?;
        held.objects.insert(meta.key.clone(), meta);
        Ok(())
    }

    /// Removes an object; one that is not there is removed too.
    ///
    /// # Errors
    /// There is no such bucket, or the disk failed.
    pub fn remove(&self, bucket: &str, key: &str) -> Result<(), StoreError> {
        let mut buckets = self.buckets.write();
        let held = buckets.get_mut(bucket).ok_or(StoreError::Bucket)?;
        if held.objects.contains_key(key) {
            fs::remove_file(self.root.join(bucket).join(file_name(key)))?;
            held.objects.remove(key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Store::open(folder.path().to_path_buf()).unwrap();
        let meta = |key: &str| Meta {
            key: key.into(),
            size: 5,
            etag: "e".into(),
            modified_ms: 7,
            headers: BTreeMap::from([("content-type".to_string(), "text/plain".to_string())]),
        };
        let store = open();
        let bucket = Bucket { owner: "1".into(), region: "r".into(), created_ms: 1 };
        store.make("b", bucket.clone()).unwrap();
        for key in ["a/../x", "a/1", "b"] {
            store.put("b", meta(key), b"h\nllo").unwrap();
        }
        assert!(matches!(store.put("c", meta("x"), b""), Err(StoreError::Bucket)));
        fs::write(folder.path().join("b/.draft"), b"half").unwrap();
        let store = open();
        assert_eq!(store.bucket("b"), Some(bucket));
        assert!(!folder.path().join("b/.draft").exists());
        let keys = |prefix: &str, after: &str| -> Vec<String> {
            store.list("b", prefix, after, 9).into_iter().map(|m| m.key).collect()
        };
        assert_eq!(keys("a/", ""), ["a/../x", "a/1"]);
        assert_eq!(keys("", "a/1"), ["b"]);
        assert_eq!(store.read("b", "a/../x", None).unwrap(), (meta("a/../x"), b"h\nllo".to_vec()));
        assert_eq!(store.read("b", "b", Some(1..3)).unwrap().1, b"\nl");
        assert!(matches!(store.unmake("b"), Err(StoreError::NotEmpty)));
        ["a/../x", "a/1", "b", "b"].iter().for_each(|key| store.remove("b", key).unwrap());
        store.unmake("b").unwrap();
        assert!(store.read("b", "b", None).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
