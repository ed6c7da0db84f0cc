//! The store: groups and streams on disk, puts through the committer, pages out.
//!
//! A group is a folder; it is read at its first use. Reading and managing block; [`Store::put`] does not.
//! A group's name here is the caller's key for it, which must be usable as a file name.

use crate::batch::EVENTS_MAX;
use crate::committer::{Committer, Put};
use crate::index::Chunk;
use crate::record::{Event, MESSAGE_MAX};
use crate::scan::{self, Page, Wanted};
use crate::stream::{Stream, sync_folder};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc, oneshot};

/// Puts that wait for the committer: with 1 MiB each, what may be in memory.
const QUEUE_MAX: usize = 64;
/// Batches that a slow subscriber may be behind before it misses some.
const BEHIND_MAX: usize = 256;
/// Longest name of a group's folder.
const KEY_MAX: usize = 200;

/// Sizes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A segment is complete when it has so many bytes: what is read again at open, and the grain of expiry.
    pub segment_bytes: u64,
    /// A stream's oldest segments go when it has more: no container fills the disk.
    pub stream_bytes: u64,
    /// With less free disk nothing is taken: the object store on the same disk must go on.
    pub disk_free_min: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { segment_bytes: 8 << 20, stream_bytes: 1 << 30, disk_free_min: 128 << 20 }
    }
}

/// Why something failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogsError {
    /// No such stream.
    #[error("there is no such log stream")]
    NoStream,
    /// A stream of that name is there.
    #[error("there is a log stream of that name")]
    StreamExists,
    /// The key cannot be a file name.
    #[error("{0:?} cannot be the key of a log group")]
    Key(String),
    /// An event or a batch is larger than the format allows.
    #[error("too large")]
    TooLarge,
    /// The disk is nearly full.
    #[error("the disk is nearly full")]
    Full,
    /// The disk.
    #[error("log files: {0}")]
    Disk(String),
    /// The store is being closed.
    #[error("the log store is closed")]
    Closed,
}

impl From<io::Error> for LogsError {
    fn from(error: io::Error) -> Self {
        LogsError::Disk(error.to_string())
    }
}

/// A stream, as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its number in the group.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// When it was made.
    pub created_ms: u64,
    /// Its earliest event.
    pub first_ms: Option<u64>,
    /// Its latest event.
    pub last_ms: Option<u64>,
    /// When its last event came.
    pub last_ingested_ms: Option<u64>,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Events that are on disk now.
#[derive(Debug)]
pub struct Appended {
    /// The group's key.
    pub group: Arc<str>,
    /// The stream's name.
    pub stream: String,
    /// The stream's number.
    pub stream_id: u64,
    /// The events.
    pub events: Vec<Event>,
}

/// A page of which streams.
pub struct Read<'a> {
    /// The group's key.
    pub group: &'a str,
    /// Which streams.
    pub streams: &'a dyn Fn(&str) -> bool,
    /// Which events.
    pub wanted: Wanted,
    /// Which of those.
    pub matches: &'a dyn Fn(&Event) -> bool,
}

#[derive(Default)]
struct Group {
    loaded: bool,
    next_id: u64,
    streams: BTreeMap<String, Arc<Stream>>,
}

impl Group {
    fn load(&mut self, folder: &Path) -> io::Result<()> {
        let entries = match std::fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other?),
        };
        self.next_id = 1;
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str().and_then(|n| n.parse::<u64>().ok()) else {
                // Half made or half deleted when a former process ended.
                let _ = std::fs::remove_dir_all(entry.path());
                continue;
            };
            self.next_id = self.next_id.max(id + 1);
            match Stream::open(entry.path(), id) {
                Ok(stream) => drop(self.streams.insert(stream.name.clone(), Arc::new(stream))),
                Err(error) => {
                    tracing::warn!(folder = %entry.path().display(), %error, "log stream not readable")
                }
            }
        }
        self.loaded = true;
        Ok(())
    }
}

/// The store. Clones share it.
#[derive(Clone)]
pub struct Store {
    root: Arc<PathBuf>,
    groups: Arc<Mutex<HashMap<String, Arc<Mutex<Group>>>>>,
    puts: mpsc::Sender<Put>,
    appended: broadcast::Sender<Arc<Appended>>,
}

fn info(stream: &Stream) -> StreamInfo {
    let log = stream.log.lock();
    StreamInfo {
        id: stream.id,
        name: stream.name.clone(),
        created_ms: stream.created_ms,
        first_ms: log.chunks.iter().map(|c| c.min_ms).min(),
        last_ms: log.chunks.iter().map(|c| c.max_ms).max(),
        last_ingested_ms: log.last_ingested_ms,
        bytes: log.chunks.iter().map(|c| c.length).sum(),
    }
}

impl Store {
    /// Opens (or makes) a store in a folder that nobody else uses.
    ///
    /// # Errors
    /// The folder or the thread cannot be had.
    pub fn open(root: impl Into<PathBuf>, limits: Limits) -> Result<Store, LogsError> {
        let root = root.into();
        std::fs::create_dir_all(&root)?;
        let (puts, waiting) = mpsc::channel(QUEUE_MAX);
        let (appended, _) = broadcast::channel(BEHIND_MAX);
        let committer = Committer { root: root.clone(), limits, puts: waiting, appended: appended.clone() };
        std::thread::Builder::new().name("logs".into()).spawn(move || committer.run())?;
        Ok(Store { root: Arc::new(root), groups: Arc::default(), puts, appended })
    }

    fn folder(&self, group: &str) -> PathBuf {
        self.root.join(group)
    }

    fn group(&self, group: &str) -> Result<Arc<Mutex<Group>>, LogsError> {
        let is_good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if group.is_empty() || group.len() > KEY_MAX || group.starts_with('.') || !group.bytes().all(is_good)
        {
            return Err(LogsError::Key(group.into()));
        }
        let shared = self.groups.lock().entry(group.into()).or_default().clone();
        let mut locked = shared.lock();
        if !locked.loaded {
            locked.load(&self.folder(group))?;
        }
        drop(locked);
        Ok(shared)
    }

    fn stream(&self, group: &str, name: &str) -> Result<Arc<Stream>, LogsError> {
        let group = self.group(group)?;
        let found = group.lock().streams.get(name).cloned();
        found.ok_or(LogsError::NoStream)
    }

    /// Makes a stream, durably.
    ///
    /// # Errors
    /// It is there, or the disk.
    pub fn create_stream(&self, group: &str, name: &str, now_ms: u64) -> Result<(), LogsError> {
        let shared = self.group(group)?;
        let mut locked = shared.lock();
        if locked.streams.contains_key(name) {
            return Err(LogsError::StreamExists);
        }
        let folder = self.folder(group);
        if !folder.exists() {
            std::fs::create_dir_all(&folder)?;
            sync_folder(&self.root)?;
        }
        let id = locked.next_id;
        let stream = Stream::create(folder.join(format!("{id:012}")), id, name, now_ms)?;
        locked.next_id += 1;
        locked.streams.insert(name.into(), Arc::new(stream));
        Ok(())
    }

    /// Deletes a stream and its events.
    ///
    /// # Errors
    /// It is not there, or the disk.
    pub fn delete_stream(&self, group: &str, name: &str) -> Result<(), LogsError> {
        let shared = self.group(group)?;
        let mut locked = shared.lock();
        let stream = locked.streams.get(name).cloned().ok_or(LogsError::NoStream)?;
        stream.log.lock().deleted = true;
        let gone = stream.folder.with_extension("gone");
        std::fs::rename(&stream.folder, &gone)?;
        locked.streams.remove(name);
        drop(locked);
        std::fs::remove_dir_all(gone)?;
        Ok(())
    }

    /// Deletes a group and all in it; one that is not there is deleted already.
    ///
    /// # Errors
    /// The disk.
    pub fn delete_group(&self, group: &str) -> Result<(), LogsError> {
        let shared = self.group(group)?;
        let mut locked = shared.lock();
        locked.streams.values().for_each(|stream| stream.log.lock().deleted = true);
        locked.streams.clear();
        match std::fs::remove_dir_all(self.folder(group)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// All streams of a group by name.
    ///
    /// # Errors
    /// The disk.
    pub fn streams(&self, group: &str) -> Result<Vec<StreamInfo>, LogsError> {
        let shared = self.group(group)?;
        let streams: Vec<Arc<Stream>> = shared.lock().streams.values().cloned().collect();
        Ok(streams.iter().map(|stream| info(stream)).collect())
    }

    /// Is there such a stream?
    pub fn has_stream(&self, group: &str, name: &str) -> bool {
        self.stream(group, name).is_ok()
    }

    /// Adds events (time, message) to a stream. When this returns they are on disk.
    ///
    /// # Errors
    /// No such stream, a full disk, a message that is too large.
    pub async fn put(
        &self,
        group: &str,
        stream: &str,
        events: Vec<(u64, String)>,
        now_ms: u64,
    ) -> Result<(), LogsError> {
        let store = self.clone();
        let (key, name) = (group.to_string(), stream.to_string());
        let known = self.groups.lock().get(group).is_some_and(|g| g.try_lock().is_some_and(|g| g.loaded));
        let stream = match known {
            true => store.stream(&key, &name)?,
            false => blocking(move || store.stream(&key, &name)).await?,
        };
        if events.len() > EVENTS_MAX || events.iter().any(|(_, message)| message.len() > MESSAGE_MAX) {
            return Err(LogsError::TooLarge);
        }
        let event = |(timestamp_ms, message)| Event { timestamp_ms, ingested_ms: now_ms, number: 0, message };
        let events: Vec<Event> = events.into_iter().map(event).collect();
        let (done, result) = oneshot::channel();
        let put = Put { group: group.into(), stream, events, done };
        self.puts.send(put).await.map_err(|_| LogsError::Closed)?;
        result.await.map_err(|_| LogsError::Closed)?
    }

    /// A page of events.
    ///
    /// # Errors
    /// The disk.
    pub fn read(&self, read: &Read) -> Result<Page, LogsError> {
        let shared = self.group(read.group)?;
        let streams: HashMap<u64, Arc<Stream>> = {
            let locked = shared.lock();
            let chosen = locked.streams.values().filter(|s| (read.streams)(&s.name));
            chosen.map(|s| (s.id, s.clone())).collect()
        };
        let mut chunks: Vec<(u64, Chunk)> = Vec::new();
        let times = &read.wanted.times_ms;
        for (id, stream) in &streams {
            let log = stream.log.lock();
            let near = log.chunks.iter().filter(|c| c.max_ms >= times.start && c.min_ms < times.end);
            chunks.extend(near.map(|c| (*id, *c)));
        }
        let load = |id: u64, chunk: &Chunk| streams[&id].load(chunk);
        Ok(scan::scan(&chunks, &read.wanted, |event| (read.matches)(event), load)?)
    }

    /// Drops what a group's retention has passed, as far as whole segments go; how many.
    ///
    /// # Errors
    /// The disk.
    pub fn expire(&self, group: &str, before_ms: u64) -> Result<usize, LogsError> {
        let shared = self.group(group)?;
        let streams: Vec<Arc<Stream>> = shared.lock().streams.values().cloned().collect();
        Ok(streams.iter().map(|stream| stream.expire(before_ms)).sum())
    }

    /// Everything that is put from now on, of all groups. Who is slow misses some and is told so.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Appended>> {
        self.appended.subscribe()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogsError> + Send + 'static,
) -> Result<T, LogsError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| LogsError::Closed)?
}
