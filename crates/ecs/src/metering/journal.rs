//! Usage records on disk: files `usage-<number>.log` of lines, each the CRC-32 of a JSON record in hex, a blank, the
//! record.
//!
//! Invariants: what [`Journal::append`] returned for is on disk; a damaged line (a torn write, a bad block) costs that
//! line only; a new file begins with all open records, so that old files can go: the newest [`FILES_MAX`] are kept.

use super::record::Record;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Bytes of a file before the next is begun.
const FILE_BYTES: u64 = 8 << 20;
/// Files that are kept: some 1.5 million tasks.
const FILES_MAX: usize = 64;

/// Why usage could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The folder.
    #[error("{path}: {source}")]
    Folder {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading a file.
    #[error("reading usage: {0}")]
    Read(io::Error),
    /// Writing a file.
    #[error("writing usage: {0}")]
    Write(io::Error),
}

/// A journal that is written.
pub struct Journal {
    folder: PathBuf,
    file: File,
    number: u64,
    bytes: u64,
    bytes_max: u64,
    open: BTreeMap<String, Record>,
    ended: Vec<Record>,
}

fn files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let number = name.strip_prefix("usage-").and_then(|n| n.strip_suffix(".log")?.parse().ok());
        out.extend(number.map(|n| (n, path)));
    }
    out.sort();
    Ok(out)
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("usage-{number:08}.log"))
}

fn line(record: &Record) -> String {
    let text = serde_json::to_string(record).expect("a record is JSON");
    format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes()))
}

fn parse(line: &str) -> Option<Record> {
    let (crc, text) = line.split_once(' ')?;
    let said = u32::from_str_radix(crc, 16).ok()?;
    (crc32fast::hash(text.as_bytes()) == said).then(|| serde_json::from_str(text).ok())?
}

/// Reads journals: all records of some folders, each `id` once.
#[derive(Debug, Default)]
pub struct Reader {
    records: BTreeMap<String, Record>,
    /// Lines that could not be read.
    pub damaged: usize,
}

impl Reader {
    /// Adds a folder's records.
    ///
    /// # Errors
    /// The folder or a file in it cannot be read.
    pub fn add(&mut self, folder: &Path) -> Result<(), JournalError> {
        let wrong = |source| JournalError::Folder { path: folder.to_path_buf(), source };
        for (_, path) in files(folder).map_err(wrong)? {
            self.add_file(&path)?;
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<(), JournalError> {
        let file = match File::open(path) {
            // Rotated away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file.map_err(JournalError::Read)?,
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(JournalError::Read)?;
            match std::str::from_utf8(&line).ok().and_then(parse) {
                Some(record) => self.put(record),
                None => self.damaged += 1,
            }
        }
        Ok(())
    }

    /// An end wins over none, the earlier end over the later.
    fn put(&mut self, record: Record) {
        match self.records.get_mut(&record.id) {
            None => drop(self.records.insert(record.id.clone(), record)),
            Some(old) => {
                let later = old.stop_ms.is_some_and(|o| record.stop_ms.is_none_or(|n| n >= o));
                if !later {
                    *old = record;
                }
            }
        }
    }

    /// What was read, by id.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }
}

impl Journal {
    /// Opens a folder's journal; makes it where there is none.
    ///
    /// # Errors
    /// The disk.
    pub fn open(folder: PathBuf) -> Result<Journal, JournalError> {
        Self::with_size(folder, FILE_BYTES)
    }

    fn with_size(folder: PathBuf, bytes_max: u64) -> Result<Journal, JournalError> {
        let wrong = |source| JournalError::Folder { path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(wrong)?;
        let number = files(&folder).map_err(wrong)?.last().map_or(0, |(n, _)| *n);
        let mut reader = Reader::default();
        reader.add(&folder)?;
        if reader.damaged > 0 {
            tracing::warn!(lines = reader.damaged, "damaged lines in the usage journal are left out");
        }
        let (open, ended): (Vec<Record>, Vec<Record>) =
            reader.records.into_values().partition(|r| r.stop_ms.is_none());
        let open = open.into_iter().map(|r| (r.id.clone(), r)).collect();
        let file = begin(&folder, number + 1)?;
        let mut journal = Journal { folder, file, number: number + 1, bytes: 0, bytes_max, open, ended };
        // A start begins a file: whatever tore the last one is behind us.
        journal.carry()?;
        Ok(journal)
    }

    /// Records without an end.
    pub fn open_records(&self) -> Vec<Record> {
        self.open.values().cloned().collect()
    }

    /// Records with an end that were there at the start (given once: there may be many).
    pub fn take_ended(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.ended)
    }

    /// Adds records. When this returns they are on disk.
    ///
    /// # Errors
    /// The disk.
    pub fn append(&mut self, records: &[Record]) -> Result<(), JournalError> {
        for record in records {
            match record.stop_ms {
                None => drop(self.open.insert(record.id.clone(), record.clone())),
                Some(_) => drop(self.open.remove(&record.id)),
            }
        }
        self.write(records.iter().map(line).collect())?;
        if self.bytes > self.bytes_max {
            self.file = begin(&self.folder, self.number + 1)?;
            (self.number, self.bytes) = (self.number + 1, 0);
            self.carry()?;
        }
        Ok(())
    }

    fn write(&mut self, text: String) -> Result<(), JournalError> {
        self.file.write_all(text.as_bytes()).map_err(JournalError::Write)?;
        self.bytes += text.len() as u64;
        self.file.sync_data().map_err(JournalError::Write)
    }

    /// Writes what is open to the new file, and drops the oldest files.
    fn carry(&mut self) -> Result<(), JournalError> {
        self.write(self.open.values().map(line).collect())?;
        let all = files(&self.folder).map_err(JournalError::Read)?;
        for (_, path) in all.iter().rev().skip(FILES_MAX) {
            std::fs::remove_file(path).map_err(JournalError::Write)?;
        }
        // Starts that wrote nothing leave no file behind.
        for (number, path) in &all {
            let empty = std::fs::metadata(path).is_ok_and(|m| m.len() == 0);
            if empty && *number != self.number {
                std::fs::remove_file(path).map_err(JournalError::Write)?;
            }
        }
        Ok(())
    }
}

fn begin(folder: &Path, number: u64) -> Result<File, JournalError> {
    let file = OpenOptions::new().create(true).append(true).open(path(folder, number));
    let file = file.map_err(JournalError::Write)?;
    // The name is on disk with what is in it.
    File::open(folder).and_then(|f| f.sync_all()).map_err(JournalError::Write)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, stop_ms: Option<i64>) -> Record {
        Record { id: id.into(), start_ms: 1, stop_ms, ..Record::default() }
    }

    fn read(folder: &Path) -> Vec<(String, Option<i64>)> {
        let mut reader = Reader::default();
        reader.add(folder).unwrap();
        reader.records().map(|r| (r.id.clone(), r.stop_ms)).collect()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path().join("usage")).unwrap();
        journal.append(&[record("a", None), record("b", None)]).unwrap();
        journal.append(&[record("a", Some(5))]).unwrap();
        drop(journal);
        let mut journal = Journal::open(folder.path().join("usage")).unwrap();
        assert_eq!(journal.open_records(), [record("b", None)]);
        assert_eq!(journal.take_ended(), [record("a", Some(5))]);
        assert_eq!(read(&folder.path().join("usage")), [("a".into(), Some(5)), ("b".into(), None)]);
    }

    #[test]
    fn a_torn_line_costs_itself_only() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path().into()).unwrap();
        journal.append(&[record("a", Some(5)), record("b", Some(6)), record("c", Some(7))]).unwrap();
        let path = path(folder.path(), 1);
        let text = std::fs::read_to_string(&path).unwrap();
        let damaged = text.replace("\"b\"", "\"x\"");
        std::fs::write(&path, &damaged[..damaged.len() - 10]).unwrap();
        assert_eq!(read(folder.path()), [("a".into(), Some(5))]);
        let mut journal = Journal::open(folder.path().into()).unwrap();
        journal.append(&[record("d", Some(8))]).unwrap();
        assert_eq!(read(folder.path()), [("a".into(), Some(5)), ("d".into(), Some(8))]);
    }

    #[test]
    fn files_are_bounded_and_carry_what_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::with_size(folder.path().into(), 1).unwrap();
        journal.append(&[record("long", None)]).unwrap();
        for n in 0..100 {
            journal.append(&[record(&format!("t{n:03}"), Some(n))]).unwrap();
        }
        let all = files(folder.path()).unwrap();
        assert!(all.len() <= FILES_MAX, "{}", all.len());
        let seen = read(folder.path());
        assert!(
            seen.contains(&("long".into(), None)) && seen.contains(&("t099".into(), Some(99))),
            "{seen:?}"
        );
        assert!(!seen.iter().any(|(id, _)| id == "t000"));
    }

    #[test]
    fn the_earlier_end_counts() {
        let mut reader = Reader::default();
        for stop in [None, Some(9), Some(5), None, Some(7)] {
            reader.put(record("a", stop));
        }
        assert_eq!(reader.records().next().unwrap().stop_ms, Some(5));
    }
}
