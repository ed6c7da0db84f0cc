//! The SQLite file: creation, checked loading, the one committing connection, and its housekeeping.
//!
//! Rows are keyed by the revision that *created* the record: unique, appended at the tree's end, and no
//! second index is needed, because keys are looked up in memory only. Every row carries a CRC-32 over all
//! of its columns; the single `meta` row carries the revision, the number of records and the sum of their
//! CRCs, so that a lost, stale or doubled row is noticed too, not only a changed one.
//!
//! Invariants: [`Disk::commit`] returns `Ok` only behind one fsync of the write-ahead log (S1); on `Err`
//! the file holds what it held before. An existing file is never initialised, a damaged one never opened.
//! The connection is exclusive: no other process can change rows under the index or pin the log.
//! Deliberately not here: reads. They come from the index; SQL is read once, at open.

use crate::index::Index;
use crate::reserve::{RESERVE_BYTES, Reserve, folder};
use crate::{Event, Record, Revision, StoreError, wal};
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Transaction, params};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// "Gtry": marks a SQLite file as a Gantry store.
const APPLICATION_ID: u32 = 0x4774_7279;
/// The version of the tables below. A change needs a migration and a golden file of the old one.
const FORMAT: i64 = 1;

const PAGE_BYTES: u64 = 4096;
/// Checkpoint once so much was written to the log: few fsyncs of the main file, a short pause each.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// SQLite's own checkpoint, within a commit: only reached when the estimate for ours was far off.
const BACKSTOP_CHECKPOINT_PAGES: u64 = 4 * CHECKPOINT_BYTES / PAGE_BYTES;
/// The log is cut down to this when it is next reused; one batch above the checkpoint fits.
const WAL_BYTES_MAX: u64 = 16 << 20;
/// The page cache serves B-tree upkeep only; a hot working set of interior and last pages is enough.
const PAGE_CACHE_KIB: i64 = 4096;
/// Look for free pages after so much was replaced or removed.
const FREED_BYTES_BEFORE_VACUUM: u64 = 1 << 20;
/// Free pages (16 MiB) that are kept for reuse rather than handed back to the file system.
const FREE_PAGES_KEPT: i64 = 4096;
/// Pages handed back in one step: about 5 ms in which a writer may have to wait.
const VACUUM_STEP_PAGES: i64 = 512;

const SCHEMA: &str = "
CREATE TABLE records(created INTEGER PRIMARY KEY, modified INTEGER NOT NULL, crc INTEGER NOT NULL,
    key TEXT NOT NULL, value BLOB NOT NULL);
CREATE TABLE meta(id INTEGER PRIMARY KEY CHECK(id = 1), revision INTEGER NOT NULL,
    records INTEGER NOT NULL, sum INTEGER NOT NULL, crc INTEGER NOT NULL);";
const SELECT: &str = "SELECT created, modified, crc, key, value FROM records ORDER BY created";
const PUT: &str = "REPLACE INTO records(created, modified, crc, key, value) VALUES(?, ?, ?, ?, ?)";
const DELETE: &str = "DELETE FROM records WHERE created = ?";
const SELECT_META: &str = "SELECT revision, records, sum, crc FROM meta WHERE id = 1";
const PUT_META: &str = "REPLACE INTO meta(id, revision, records, sum, crc) VALUES(1, ?, ?, ?, ?)";

/// What must be true of all rows together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Meta {
    revision: u64,
    records: u64,
    /// Wrapping sum of the records' CRCs.
    sum: u64,
}

impl Meta {
    fn add(&mut self, record: &Record) {
        self.records += 1;
        self.sum = self.sum.wrapping_add(u64::from(crc(record)));
    }

    fn remove(&mut self, record: &Record) {
        self.records -= 1;
        self.sum = self.sum.wrapping_sub(u64::from(crc(record)));
    }

    fn crc(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        for number in [self.revision, self.records, self.sum] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.finalize()
    }

    fn read(connection: &Connection) -> rusqlite::Result<(Meta, u32)> {
        connection.query_row(SELECT_META, [], |row| {
            let meta = Meta { revision: number(row, 0)?, records: number(row, 1)?, sum: number(row, 2)? };
            Ok((meta, row.get(3)?))
        })
    }

    fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let row = params![
            self.revision.cast_signed(),
            self.records.cast_signed(),
            self.sum.cast_signed(),
            self.crc()
        ];
        connection.prepare_cached(PUT_META)?.execute(row).map(drop)
    }
}

/// SQLite's integers are signed; only `sum` ever uses the upper half.
fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

fn crc(record: &Record) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(record.key.len() as u64).to_le_bytes());
    hasher.update(record.key.as_bytes());
    hasher.update(&record.created.0.to_le_bytes());
    hasher.update(&record.modified.0.to_le_bytes());
    hasher.update(&record.value);
    hasher.finalize()
}

/// The open file.
pub(crate) struct Disk {
    connection: Connection,
    path: PathBuf,
    meta: Meta,
    /// Estimated bytes in the log since the last checkpoint.
    logged: u64,
    /// Bytes replaced or removed since free pages were last counted.
    freed: u64,
    reserve: Reserve,
    /// The state of the file is not known: no write may be acknowledged any more.
    broken: bool,
}

impl Disk {
    /// Opens the file, or creates it when there is none, and loads and checks every record.
    pub fn open(path: &Path) -> Result<(Disk, Index), StoreError> {
        let context = |e: rusqlite::Error| match e.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, &e.to_string()),
            _ => StoreError::Engine(format!("{}: {e}", path.display())),
        };
        let exists = path.try_exists().map_err(|e| io_error(path, &e))?;
        if exists {
            check_owner(path)?;
            check_log(path)?;
        } else {
            create(path)?;
        }
        let connection = connect(path).and_then(configure).map_err(context)?;
        check_format(&connection, path)?;
        let index = load(&connection, path, context)?;
        let (meta, _) = Meta::read(&connection).map_err(context)?;
        let reserve = Reserve::open(beside(path, ".reserve"));
        Ok((Disk { connection, path: path.into(), meta, logged: 0, freed: 0, reserve, broken: false }, index))
    }

    /// Makes a batch durable: one transaction, one fsync. On `Err` nothing of it is.
    pub fn commit(&mut self, events: &[Event]) -> Result<(), StoreError> {
        if self.broken {
            return Err(StoreError::Engine("an earlier failure left the file in doubt; restart".into()));
        }
        let next = meta_after(self.meta, events);
        let changes = last_changes(events);
        let written = self.connection.transaction().and_then(|transaction| {
            write(&transaction, &changes)?;
            next.write(&transaction)?;
            transaction.commit()
        });
        if let Err(e) = written {
            return Err(self.failed(&e));
        }
        self.meta = next;
        self.logged += changes.values().map(|change| logged_bytes(*change)).sum::<u64>() + 2 * PAGE_BYTES;
        self.freed +=
            events.iter().filter_map(|event| event.previous.as_ref()).map(record_bytes).sum::<u64>();
        Ok(())
    }

    /// Sorts out a failed commit. The transaction has rolled back; that is checked, not believed.
    fn failed(&mut self, error: &rusqlite::Error) -> StoreError {
        let full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        self.broken = !self.connection.is_autocommit()
            || Meta::read(&self.connection).ok() != Some((self.meta, self.meta.crc()));
        if self.broken {
            tracing::error!(path = %self.path.display(), %error, "commit failed, the file is in doubt");
        } else if full {
            // What moves out of the log makes its blocks writable again, for deletions first of all.
            self.reserve.release();
            self.checkpoint();
        }
        let text = format!("{}: {error}", self.path.display());
        if full { StoreError::Full(text) } else { StoreError::Engine(text) }
    }

    /// Why writes that need room are refused now, if they are.
    pub fn shortage(&mut self) -> Option<StoreError> {
        if self.reserve.is_low() {
            self.reserve.retake();
        }
        self.reserve.is_low().then(|| {
            StoreError::Full(format!(
                "{}: less than {} MiB are free; until there is more, only deletions and small updates are taken",
                self.path.display(),
                RESERVE_BYTES >> 20
            ))
        })
    }

    /// Moves the log into the main file when it has grown enough. To be called after each
    /// acknowledged batch; costs nothing mostly.
    pub fn bound_log(&mut self) {
        if self.logged >= CHECKPOINT_BYTES {
            self.checkpoint();
        }
    }

    fn checkpoint(&mut self) {
        self.logged = 0;
        if let Err(error) = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            // Nothing is lost: the log stays until the next try succeeds.
            tracing::warn!(path = %self.path.display(), %error, "checkpoint failed");
        }
    }

    /// Hands a few free pages back to the file system when there are many; whether there may be more.
    pub fn vacuum_step(&mut self) -> bool {
        let low = self.reserve.is_low();
        let (freed_min, kept) = if low { (1, 0) } else { (FREED_BYTES_BEFORE_VACUUM, FREE_PAGES_KEPT) };
        if self.freed < freed_min {
            return false;
        }
        let more = vacuum_step(&self.connection, kept).unwrap_or_else(|error| {
            tracing::warn!(path = %self.path.display(), %error, "vacuum step failed");
            false
        });
        if more {
            // Only a checkpoint cuts the file.
            self.checkpoint();
        } else {
            self.freed = 0;
        }
        more
    }
}

fn io_error(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Engine(format!("{}: {error}", path.display()))
}

fn damaged(path: &Path, what: &str) -> StoreError {
    StoreError::Engine(format!(
        "{path} is damaged: {what}. Nothing was changed. Restore the file from a backup; \
         to look at what is left, copy it and use `sqlite3 <copy> .recover`",
        path = path.display()
    ))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The path of the write-ahead log.
pub(crate) fn log_path(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

/// Looks at the mark in the file's header before SQLite, which would switch a foreign file's mode, does.
fn check_owner(path: &Path) -> Result<(), StoreError> {
    let mut header = [0; 72];
    match File::open(path).and_then(|mut file| file.read_exact(&mut header)) {
        Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => return Err(io_error(path, &e)),
        _ => {}
    }
    let marked = header.starts_with(b"SQLite format 3\0") && header[68..] == APPLICATION_ID.to_be_bytes();
    if marked { Ok(()) } else { Err(damaged(path, "it does not begin as a Gantry store does")) }
}

fn check_log(path: &Path) -> Result<(), StoreError> {
    let log = match std::fs::read(log_path(path)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|e| io_error(&log_path(path), &e))?,
    };
    wal::check(&log).map_err(|damage| {
        damaged(
            path,
            &format!("in its log, {}, {damage}, with committed writes behind it", log_path(path).display()),
        )
    })
}

/// Builds the file beside its place and renames it: a file in place is always a whole store.
fn create(path: &Path) -> Result<(), StoreError> {
    if log_path(path).exists() {
        return Err(damaged(path, "it is missing, but its log is there"));
    }
    let draft = beside(path, ".new");
    for leftover in [draft.clone(), log_path(&draft), beside(&draft, "-journal")] {
        match std::fs::remove_file(&leftover) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io_error(&leftover, &e)),
            _ => {}
        }
    }
    // Secrets are stored here: nobody else may read. SQLite gives its log the same mode.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)
        .map_err(|e| io_error(&draft, &e))?;
    initialise(&draft).map_err(|e| match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(format!("{}: {e}", path.display())),
        _ => StoreError::Engine(format!("{}: {e}", path.display())),
    })?;
    let sync =
        |path: &Path| File::open(path).and_then(|file| file.sync_all()).map_err(|e| io_error(path, &e));
    sync(&draft)?;
    std::fs::rename(&draft, path).map_err(|e| io_error(path, &e))?;
    sync(folder(path))
}

fn initialise(path: &Path) -> rusqlite::Result<()> {
    let connection = connect(path)?;
    // Before the first page is written: afterwards it would need a full VACUUM.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    let mut connection = configure(connection)?;
    let transaction = connection.transaction()?;
    transaction.execute_batch(SCHEMA)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    Meta::default().write(&transaction)?;
    transaction.commit()?;
    connection.close().map_err(|(_, e)| e)
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags)
}

fn configure(connection: Connection) -> rusqlite::Result<Connection> {
    let settings: [(&str, &dyn rusqlite::ToSql); 8] = [
        // Before the first access: then the log's index lives in memory, with no -shm file.
        ("locking_mode", &"EXCLUSIVE"),
        ("journal_mode", &"WAL"),
        ("synchronous", &"FULL"),
        ("cell_size_check", &true),
        ("cache_size", &-PAGE_CACHE_KIB),
        // A batch fits in memory; pages of an unfinished one have no business in the log.
        ("cache_spill", &false),
        ("wal_autocheckpoint", &BACKSTOP_CHECKPOINT_PAGES.cast_signed()),
        ("journal_size_limit", &WAL_BYTES_MAX.cast_signed()),
    ];
    for (name, value) in settings {
        connection.pragma_update_and_check(None, name, value, |_| Ok(())).or_else(no_answer)?;
    }
    Ok(connection)
}

/// Some pragmas answer with their new value and some do not; both are fine.
fn no_answer(error: rusqlite::Error) -> rusqlite::Result<()> {
    if error == rusqlite::Error::QueryReturnedNoRows { Ok(()) } else { Err(error) }
}

fn check_format(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (written, known) = (pragma("user_version").map_err(|e| damaged(path, &e.to_string()))?, FORMAT);
    if written == known {
        return Ok(());
    }
    let path = path.display();
    Err(StoreError::Engine(format!("{path} is of format {written}, this program reads format {known}")))
}

fn load(
    connection: &Connection,
    path: &Path,
    context: impl Fn(rusqlite::Error) -> StoreError,
) -> Result<Index, StoreError> {
    let (meta, meta_crc) = Meta::read(connection).map_err(&context)?;
    if meta.crc() != meta_crc {
        return Err(damaged(path, "the row of table meta fails its checksum"));
    }
    let mut index = Index::at_start(Revision(meta.revision));
    let mut found = Meta { revision: meta.revision, ..Meta::default() };
    let mut statement = connection.prepare(SELECT).map_err(&context)?;
    let mut rows = statement.query([]).map_err(&context)?;
    while let Some(row) = rows.next().map_err(&context)? {
        let (record, stored_crc) = record(row).map_err(|e| damaged(path, &format!("a record: {e}")))?;
        let (created, modified) = (record.created, record.modified);
        let what = format!("the record {:?} (row {created} of table records)", record.key);
        if crc(&record) != stored_crc {
            return Err(damaged(path, &format!("{what} fails its checksum")));
        }
        if created > modified || modified.0 > meta.revision {
            return Err(damaged(path, &format!("{what} is newer than the store")));
        }
        found.add(&record);
        if !index.load(record) {
            return Err(damaged(path, &format!("{what} is there twice")));
        }
    }
    if found != meta {
        let text = format!("{} records were found where {} were written", found.records, meta.records);
        return Err(damaged(path, &text));
    }
    check_structure(connection, path, context)?;
    Ok(index)
}

/// The lists of free pages hold no record, so loading does not see them; but a damaged one would make
/// SQLite write over pages in use.
fn check_structure(
    connection: &Connection,
    path: &Path,
    context: impl Fn(rusqlite::Error) -> StoreError,
) -> Result<(), StoreError> {
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(context)?;
    if verdict == "ok" { Ok(()) } else { Err(damaged(path, &verdict)) }
}

fn record(row: &Row<'_>) -> rusqlite::Result<(Record, u32)> {
    let key: String = row.get(3)?;
    let value: Vec<u8> = row.get(4)?;
    let record = Record {
        key: key.into(),
        value: value.into(),
        created: Revision(number(row, 0)?),
        modified: Revision(number(row, 1)?),
    };
    Ok((record, row.get(2)?))
}

fn meta_after(mut meta: Meta, events: &[Event]) -> Meta {
    for event in events {
        event.previous.iter().for_each(|record| meta.remove(record));
        event.record.iter().for_each(|record| meta.add(record));
        meta.revision = event.revision.0;
    }
    meta
}

/// What the batch leaves behind, by row: a key written ten times in it is written once.
fn last_changes(events: &[Event]) -> BTreeMap<Revision, Option<&Record>> {
    let row = |event: &Event| event.record.as_ref().or(event.previous.as_ref()).map(|record| record.created);
    events.iter().filter_map(|event| Some((row(event)?, event.record.as_ref()))).collect()
}

fn write(
    transaction: &Transaction<'_>,
    changes: &BTreeMap<Revision, Option<&Record>>,
) -> rusqlite::Result<()> {
    let mut put = transaction.prepare_cached(PUT)?;
    let mut delete = transaction.prepare_cached(DELETE)?;
    for (created, change) in changes {
        let created = created.0.cast_signed();
        match change {
            Some(record) => {
                let modified = record.modified.0.cast_signed();
                put.execute(params![created, modified, crc(record), &*record.key, &*record.value])?
            }
            None => delete.execute([created])?,
        };
    }
    Ok(())
}

fn record_bytes(record: &Record) -> u64 {
    (record.key.len() + record.value.len()) as u64
}

/// About what a change adds to the log: whole pages, one more than filled.
fn logged_bytes(change: Option<&Record>) -> u64 {
    (change.map_or(0, record_bytes) / PAGE_BYTES + 1) * PAGE_BYTES
}

fn vacuum_step(connection: &Connection, kept: i64) -> rusqlite::Result<bool> {
    let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    if free <= kept {
        return Ok(false);
    }
    // Each step of this statement frees one page, so it has to be run to its end.
    let mut statement =
        connection.prepare_cached(&format!("PRAGMA incremental_vacuum({VACUUM_STEP_PAGES})"))?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(true)
}
