//! Reads a container's log files from its checkpoint on, through rotations and restarts of the container, and gives
//! what it reads to a delivery. Wakes by inotify.

use super::assemble::{Assembler, Place};
use super::deliver::{BATCH_BYTES, BATCH_EVENTS, Delivery, EVENT_OVERHEAD};
use super::{Folder, LogEvent};
use crate::nodeapi::FolderWatch;
use regex::Regex;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;

/// Beside the log files.
const CHECKPOINT: &str = ".shipped";
/// Bytes read at a time.
const PIECE: usize = 128 << 10;
/// A line that is longer is none (the shim cuts at 16 KiB).
const LINE_MAX: usize = 1 << 20;
/// Lines that come within this go together.
const LINGER: Duration = Duration::from_millis(100);
/// An event of several lines that nothing was added to for so long is whole.
const GROUP_OPEN_MAX: Duration = Duration::from_secs(5);
/// Between attempts to read.
const RETRY: Duration = Duration::from_secs(1);

/// One file of a container's log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    attempt: u32,
    inode: u64,
    path: PathBuf,
}

/// All files, oldest first: by instance, rotated ones before the current one.
fn parts(folder: &Path) -> io::Result<Vec<Part>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        let Some((number, rest)) = name.to_str().and_then(|n| n.split_once(".log")) else { continue };
        let (Ok(attempt), Ok(meta)) = (number.parse::<u32>(), entry.metadata()) else { continue };
        // The current file has no suffix and is the youngest.
        found.push(((attempt, rest.is_empty(), rest.to_string()), meta.ino(), entry.path()));
    }
    found.sort();
    found.dedup_by_key(|(_, inode, _)| *inode);
    Ok(found.into_iter().map(|((attempt, ..), inode, path)| Part { attempt, inode, path }).collect())
}

/// Follows one container.
pub(super) struct Tail {
    folder: Folder,
    delivery: Delivery,
    finish: watch::Receiver<bool>,
    assembler: Assembler,
    /// What was read last, up to where.
    at: Place,
    /// The checkpoint on disk.
    saved: Place,
    file: Option<std::fs::File>,
    rest: Vec<u8>,
    batch: Vec<LogEvent>,
    bytes: usize,
}

impl Tail {
    pub(super) fn new(
        folder: Folder,
        begins: Option<Regex>,
        delivery: Delivery,
        finish: watch::Receiver<bool>,
    ) -> Tail {
        Tail {
            folder,
            delivery,
            finish,
            assembler: Assembler::new(begins),
            at: Place::default(),
            saved: Place::default(),
            file: None,
            rest: Vec::new(),
            batch: Vec::new(),
            bytes: 0,
        }
    }

    /// Until everything is delivered and nothing more will be written.
    pub(super) async fn run(mut self) {
        // The container's folder is made at its first start.
        if let Err(error) = std::fs::create_dir_all(&self.folder) {
            return tracing::warn!(folder = %self.folder.display(), %error, "no log driver");
        }
        if let Ok(text) = std::fs::read(self.folder.join(CHECKPOINT))
            && let Ok(place) = serde_json::from_slice(&text)
        {
            (self.at, self.saved) = (place, place);
        }
        let mut watch = FolderWatch::new(&self.folder.join(CHECKPOINT));
        loop {
            // Seen before reading: what is read after it is everything.
            let last = *self.finish.borrow_and_update();
            let mut more = match self.read() {
                Ok(more) => more,
                Err(error) => {
                    tracing::debug!(folder = %self.folder.display(), %error, "log not readable");
                    if last {
                        return;
                    }
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            if !more && !last && !self.batch.is_empty() && self.bytes < BATCH_BYTES {
                tokio::time::sleep(LINGER).await;
                more = self.read().unwrap_or(false);
            }
            if last && !more {
                self.flush();
            }
            self.send().await;
            if more {
                continue;
            }
            if last {
                return;
            }
            self.wait(&mut watch).await;
        }
    }

    async fn wait(&mut self, watch: &mut FolderWatch) {
        let quiet = async {
            match self.assembler.is_open() {
                true => tokio::time::sleep(GROUP_OPEN_MAX).await,
                false => std::future::pending().await,
            }
        };
        let is_quiet = tokio::select! {
            () = watch.changed() => false,
            changed = self.finish.changed() => {
                if changed.is_err() {
                    // The agent ends: the next one goes on from the checkpoint.
                    std::future::pending::<()>().await;
                }
                false
            }
            () = quiet => true,
        };
        if is_quiet {
            self.flush();
            self.send().await;
        }
    }

    fn flush(&mut self) {
        self.assembler.flush(&mut self.batch);
    }

    /// Reads until a batch is full (true) or there is no more.
    fn read(&mut self) -> io::Result<bool> {
        loop {
            if self.file.is_none() && !self.open()? {
                return Ok(false);
            }
            while self.piece()? {
                if self.bytes >= BATCH_BYTES || self.batch.len() >= BATCH_EVENTS {
                    return Ok(true);
                }
            }
            // The end of this file: is there a younger one?
            if !self.has_next()? {
                return Ok(false);
            }
            // Between the end that was read and the rotation more may have been written.
            while self.piece()? {}
            self.advance()?;
        }
    }

    /// Opens the file of the checkpoint, or the oldest one that is no older.
    fn open(&mut self) -> io::Result<bool> {
        let all = parts(&self.folder)?;
        let same = all.iter().find(|p| (p.attempt, p.inode) == (self.at.attempt, self.at.inode));
        let Some(part) = same.or_else(|| all.iter().find(|p| p.attempt >= self.at.attempt)) else {
            return Ok(false);
        };
        let offset = if same.is_some() { self.at.offset } else { 0 };
        self.begin(part, offset)
    }

    fn begin(&mut self, part: &Part, offset: u64) -> io::Result<bool> {
        let file = match std::fs::File::open(&part.path) {
            // Rotated since it was listed: the next look finds it under its new name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        let inode = file.metadata()?.ino();
        let offset = if inode == part.inode { offset } else { 0 };
        self.at = Place { attempt: part.attempt, inode, offset };
        (self.file, self.rest) = (Some(file), Vec::new());
        Ok(true)
    }

    fn next_part(&self) -> io::Result<Option<Part>> {
        let all = parts(&self.folder)?;
        let own = all.iter().position(|p| p.inode == self.at.inode && p.attempt == self.at.attempt);
        // A file that is gone was older than all that are there.
        let next =
            own.map_or_else(|| all.iter().position(|p| p.attempt >= self.at.attempt), |at| Some(at + 1));
        Ok(next.and_then(|at| all.get(at).cloned()))
    }

    fn has_next(&self) -> io::Result<bool> {
        Ok(self.next_part()?.is_some())
    }

    fn advance(&mut self) -> io::Result<()> {
        if let Some(next) = self.next_part()? {
            if next.attempt != self.at.attempt {
                // Another instance does not go on where its predecessor stopped.
                self.flush();
            }
            self.begin(&next, 0)?;
        }
        Ok(())
    }

    /// Reads a piece; false at the end of the file.
    fn piece(&mut self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        let before = self.rest.len();
        self.rest.resize(before + PIECE, 0);
        let n = file.read_at(&mut self.rest[before..], self.at.offset + before as u64);
        self.rest.truncate(before + *n.as_ref().unwrap_or(&0));
        if n? == 0 {
            return Ok(false);
        }
        let events = self.batch.len();
        let mut used = 0;
        while let Some(length) = self.rest[used..].iter().position(|b| *b == b'\n') {
            self.assembler.line(self.at, &self.rest[used..used + length], &mut self.batch);
            used += length + 1;
            self.at.offset += length as u64 + 1;
        }
        self.rest.drain(..used);
        if self.rest.len() > LINE_MAX {
            self.at.offset += self.rest.len() as u64;
            self.rest.clear();
        }
        self.bytes += self.batch[events..].iter().map(|e| e.message.len() + EVENT_OVERHEAD).sum::<usize>();
        Ok(true)
    }

    async fn send(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        // A flush or one long piece may have made more than a batch.
        while !batch.is_empty() {
            let (mut bytes, mut count) = (0, 0);
            for event in batch.iter().take(BATCH_EVENTS) {
                bytes += event.message.len() + EVENT_OVERHEAD;
                if count > 0 && bytes > BATCH_BYTES {
                    break;
                }
                count += 1;
            }
            let rest = batch.split_off(count);
            self.delivery.deliver(batch).await;
            batch = rest;
        }
        let safe = self.assembler.safe(self.at);
        if safe != self.saved {
            match self.save(safe) {
                Ok(()) => self.saved = safe,
                Err(error) => tracing::warn!(%error, "checkpoint of a log driver not written"),
            }
        }
    }

    fn save(&self, place: Place) -> io::Result<()> {
        let new = self.folder.join(".shipped.new");
        let file = std::fs::File::create(&new)?;
        file.write_all_at(&serde_json::to_vec(&place)?, 0)?;
        file.sync_data()?;
        std::fs::rename(new, self.folder.join(CHECKPOINT))
    }
}
