//! One stream's folder: segments of events, and its index in memory.
//!
//! `meta` holds name and creation; `<number of the first event>.seg` events; `….idx` the index of a segment that is
//! complete. The last segment is read whole at open, and cut after its last whole record.

use crate::index::{self, Chunk, book};
use crate::record::{self, Event};
use crate::store::Limits;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes read at a time when a segment is scanned.
const SCAN_BYTES: usize = 4 << 20;

#[derive(Serialize, Deserialize)]
struct Meta {
    name: String,
    created_ms: u64,
}

/// A stream.
pub(crate) struct Stream {
    /// Its number in the group: from 1, never used again while the group lives.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) created_ms: u64,
    pub(crate) folder: PathBuf,
    pub(crate) log: Mutex<Log>,
}

/// What is known of a stream's events.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) deleted: bool,
    pub(crate) chunks: Vec<Chunk>,
    next_number: u64,
    pub(crate) last_ingested_ms: Option<u64>,
}

/// The file that a stream is being appended to.
pub(crate) struct Active {
    segment: u64,
    pub(crate) file: File,
}

fn segment_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:020}.seg"))
}

fn index_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:020}.idx"))
}

/// Makes a folder's entries durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

impl Stream {
    /// Makes its folder, durably.
    pub(crate) fn create(folder: PathBuf, id: u64, name: &str, created_ms: u64) -> io::Result<Stream> {
        let new = folder.with_extension("new");
        let _ = std::fs::remove_dir_all(&new);
        std::fs::create_dir_all(&new)?;
        let mut file = File::create(new.join("meta"))?;
        file.write_all(&serde_json::to_vec(&Meta { name: name.into(), created_ms })?)?;
        file.sync_all()?;
        std::fs::rename(&new, &folder)?;
        if let Some(parent) = folder.parent() {
            sync_folder(parent)?;
        }
        Ok(Stream { id, name: name.into(), created_ms, folder, log: Mutex::new(Log::default()) })
    }

    /// Reads what is there.
    pub(crate) fn open(folder: PathBuf, id: u64) -> io::Result<Stream> {
        let meta: Meta = serde_json::from_slice(&std::fs::read(folder.join("meta"))?)?;
        let mut numbers: Vec<u64> = std::fs::read_dir(&folder)?
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.strip_suffix(".seg")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let mut log = Log::default();
        for (at, number) in numbers.iter().enumerate() {
            let is_last = at + 1 == numbers.len();
            if is_last || !log.take_index(&folder, *number) {
                log.read_segment(&folder, *number, is_last)?;
            }
        }
        Ok(Stream { id, name: meta.name, created_ms: meta.created_ms, folder, log: Mutex::new(log) })
    }

    /// Appends events, whose numbers it gives, to the stream's file. Durable once the file is synced.
    pub(crate) fn append(
        &self,
        events: &mut [Event],
        active: &mut Option<Active>,
        limits: &Limits,
    ) -> io::Result<()> {
        let mut log = self.log.lock();
        if log.deleted {
            return Err(io::ErrorKind::NotFound.into());
        }
        let first = log.next_number;
        let current = log.chunks.last().map(|c| c.segment);
        let length = current.map_or(0, |segment| index::segment_length(&log.chunks, segment));
        let segment = match current {
            Some(segment) if length < limits.segment_bytes => segment,
            _ => first,
        };
        let mut bytes = Vec::new();
        for (number, event) in (first..).zip(events.iter_mut()) {
            event.number = number;
            event.encode(&mut bytes);
        }
        if active.as_ref().is_none_or(|a| a.segment != segment) {
            let path = segment_path(&self.folder, segment);
            let file = OpenOptions::new().create(true).read(true).write(true).truncate(false).open(path)?;
            let complete = active.replace(Active { segment, file });
            if Some(segment) != current {
                sync_folder(&self.folder)?;
                // What this commit wrote to it would not be synced otherwise.
                complete.map_or(Ok(()), |c| c.file.sync_data())?;
                current.into_iter().for_each(|full| self.write_index(&log, full));
                self.drop_over(&mut log, limits.stream_bytes);
            }
        }
        let at = if Some(segment) == current { length } else { 0 };
        let file = &active.as_ref().expect("it was opened just now").file;
        if let Err(error) = file.write_all_at(&bytes, at) {
            let _ = file.set_len(at);
            return Err(error);
        }
        for event in events.iter() {
            book(&mut log.chunks, segment, event.encoded_len() as u64, event.timestamp_ms);
            log.last_ingested_ms = log.last_ingested_ms.max(Some(event.ingested_ms));
        }
        log.next_number = first + events.len() as u64;
        Ok(())
    }

    /// The index of a complete segment; without it the segment is read again at the next open.
    fn write_index(&self, log: &Log, segment: u64) {
        let chunks: Vec<&Chunk> = log.chunks.iter().filter(|c| c.segment == segment).collect();
        let done = serde_json::to_vec(&(chunks, log.last_ingested_ms))
            .map_err(io::Error::other)
            .and_then(|text| std::fs::write(index_path(&self.folder, segment), text));
        if let Err(error) = done {
            tracing::warn!(stream = self.name, %error, "index of a log segment not written");
        }
    }

    /// Drops the oldest segments while the stream has more than `bytes_max`.
    fn drop_over(&self, log: &mut Log, bytes_max: u64) {
        let mut total: u64 = log.chunks.iter().map(|c| c.length).sum();
        for (number, _, bytes) in index::segments(&log.chunks) {
            if total <= bytes_max {
                return;
            }
            total -= bytes;
            self.drop_segment(log, number);
        }
    }

    /// Drops complete segments whose every event is older than `before_ms`; how many.
    pub(crate) fn expire(&self, before_ms: u64) -> usize {
        let mut log = self.log.lock();
        let mut list = index::segments(&log.chunks);
        // The last one is being written to.
        list.pop();
        let old: Vec<u64> =
            list.into_iter().filter(|(_, max_ms, _)| *max_ms < before_ms).map(|s| s.0).collect();
        old.iter().for_each(|number| self.drop_segment(&mut log, *number));
        old.len()
    }

    fn drop_segment(&self, log: &mut Log, number: u64) {
        log.chunks.retain(|c| c.segment != number);
        for path in [index_path(&self.folder, number), segment_path(&self.folder, number)] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Reads a chunk; empty when its segment was dropped meanwhile.
    pub(crate) fn load(&self, chunk: &Chunk) -> io::Result<Vec<Event>> {
        let file = match File::open(segment_path(&self.folder, chunk.segment)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut bytes = vec![0; usize::try_from(chunk.length).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, chunk.offset)?;
        Ok(record::decode_all(&bytes))
    }
}

impl Log {
    fn take_index(&mut self, folder: &Path, number: u64) -> bool {
        let Ok(text) = std::fs::read(index_path(folder, number)) else { return false };
        let Ok((chunks, ingested)) = serde_json::from_slice::<(Vec<Chunk>, Option<u64>)>(&text) else {
            return false;
        };
        let length = std::fs::metadata(segment_path(folder, number)).map_or(0, |m| m.len());
        if chunks.is_empty() || index::segment_length(&chunks, number) != length {
            return false;
        }
        self.chunks.extend(chunks);
        self.last_ingested_ms = self.last_ingested_ms.max(ingested);
        true
    }

    fn read_segment(&mut self, folder: &Path, number: u64, is_last: bool) -> io::Result<()> {
        let path = segment_path(folder, number);
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let (mut rest, mut good) = (Vec::new(), 0);
        self.next_number = self.next_number.max(number);
        loop {
            let before = rest.len();
            rest.resize(before + SCAN_BYTES, 0);
            let n = file.read(&mut rest[before..])?;
            rest.truncate(before + n);
            let mut used = 0;
            while let Some((event, length)) = record::decode(&rest[used..]) {
                book(&mut self.chunks, number, length as u64, event.timestamp_ms);
                self.next_number = event.number + 1;
                self.last_ingested_ms = self.last_ingested_ms.max(Some(event.ingested_ms));
                used += length;
            }
            rest.drain(..used);
            good += used as u64;
            // More than a record's worth that gives no record is damage.
            if n == 0 || rest.len() > SCAN_BYTES {
                break;
            }
        }
        if !rest.is_empty() && is_last {
            file.set_len(good)?;
            file.sync_all()?;
        }
        Ok(())
    }
}
