//! The one thread that writes events: takes everything that waits, appends it, syncs each file once, answers.

use crate::record::Event;
use crate::store::{Appended, Limits, LogsError};
use crate::stream::{Active, Stream};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc, oneshot};

/// Puts in one commit: more would make the first one wait.
const COMMIT_MAX: usize = 512;
/// Open files kept for the next commit.
const FILES_MAX: usize = 256;

/// A put that waits.
pub(crate) struct Put {
    pub(crate) group: Arc<str>,
    pub(crate) stream: Arc<Stream>,
    pub(crate) events: Vec<Event>,
    pub(crate) done: oneshot::Sender<Result<(), LogsError>>,
}

/// What the thread owns.
pub(crate) struct Committer {
    pub(crate) root: std::path::PathBuf,
    pub(crate) limits: Limits,
    pub(crate) puts: mpsc::Receiver<Put>,
    pub(crate) appended: broadcast::Sender<Arc<Appended>>,
}

fn free_bytes(root: &Path) -> u64 {
    rustix::fs::statvfs(root).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize))
}

fn failed(error: &io::Error) -> LogsError {
    match error.kind() {
        io::ErrorKind::NotFound => LogsError::NoStream,
        _ => LogsError::Disk(error.to_string()),
    }
}

impl Committer {
    /// Runs until the store is dropped and everything is written.
    pub(crate) fn run(mut self) {
        let mut files: HashMap<std::path::PathBuf, Option<Active>> = HashMap::new();
        while let Some(first) = self.puts.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < COMMIT_MAX
                && let Ok(put) = self.puts.try_recv()
            {
                batch.push(put);
            }
            if files.len() > FILES_MAX {
                files.clear();
            }
            self.commit(batch, &mut files);
        }
    }

    fn commit(&self, mut batch: Vec<Put>, files: &mut HashMap<std::path::PathBuf, Option<Active>>) {
        let full = free_bytes(&self.root) < self.limits.disk_free_min;
        let mut results: Vec<Result<(), LogsError>> = Vec::with_capacity(batch.len());
        let mut dirty: HashMap<std::path::PathBuf, Result<(), LogsError>> = HashMap::new();
        for put in &mut batch {
            if full {
                results.push(Err(LogsError::Full));
                continue;
            }
            let folder = &put.stream.folder;
            let active = files.entry(folder.clone()).or_default();
            let before = active.take();
            let mut now = before;
            let done = put.stream.append(&mut put.events, &mut now, &self.limits);
            *active = now;
            if done.is_ok() {
                dirty.insert(folder.clone(), Ok(()));
            }
            results.push(done.map_err(|e| failed(&e)));
        }
        for (folder, synced) in &mut dirty {
            if let Some(Some(active)) = files.get(folder)
                && let Err(error) = active.file.sync_data()
            {
                *synced = Err(failed(&error));
            }
        }
        for (put, written) in batch.into_iter().zip(results) {
            let synced = dirty.get(&put.stream.folder).cloned().unwrap_or(Ok(()));
            let result = written.and(synced);
            if result.is_ok() && self.appended.receiver_count() > 0 {
                let appended = Appended {
                    group: put.group,
                    stream: put.stream.name.clone(),
                    stream_id: put.stream.id,
                    events: put.events,
                };
                // Nobody listens any more: nothing is lost.
                let _ = self.appended.send(Arc::new(appended));
            }
            // The caller has gone away; what he gave is written all the same.
            let _ = put.done.send(result);
        }
    }
}
