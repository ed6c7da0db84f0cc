//! The seam both store implementations stand behind, mirroring etcd's Range, Txn, Watch and Compact.

use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;

stdx::newtype_num! {
    /// A store-wide, strictly increasing write count. 0 is "before the first write".
    pub struct Revision(u64)
}

/// One stored value with its history numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Full key, realm included.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// Revision of the write that created the key (since its last deletion).
    pub created: Revision,
    /// Revision of the write that made this value.
    pub modified: Revision,
}

/// What a transaction expects of its key before it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key must not exist.
    Absent,
    /// The key must exist, last modified at this revision.
    Modified(Revision),
    /// The key must exist.
    Present,
    /// Anything.
    Any,
}

/// What a transaction does to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOp {
    /// Write this value.
    Put(Bytes),
    /// Remove the key.
    Delete,
}

/// One compare-and-swap on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    /// Full key.
    pub key: Arc<str>,
    /// Precondition.
    pub expect: Expect,
    /// Effect when it holds.
    pub op: TxnOp,
}

/// What came of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Durable, at this revision; the value that stood there before, if any.
    Done {
        /// Revision of this write.
        revision: Revision,
        /// The replaced or removed record.
        previous: Option<Record>,
    },
    /// The precondition did not hold; nothing was written. What stands there now, if anything.
    Conflict(Option<Record>),
}

/// How to list.
#[derive(Clone, Debug, Default)]
pub struct RangeOptions {
    /// At this revision; the newest when `None`.
    pub at: Option<Revision>,
    /// At most so many records; all when 0.
    pub limit: usize,
    /// Only keys strictly greater than this one (continuation).
    pub after: Option<Arc<str>>,
}

/// A listing, sorted by key.
#[derive(Clone, Debug)]
pub struct Range {
    /// The records.
    pub records: Vec<Record>,
    /// The revision the listing is consistent at.
    pub revision: Revision,
    /// How many more keys lie behind the limit (0: this is the end).
    pub remaining: usize,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The key that changed.
    pub key: Arc<str>,
    /// Revision of the change.
    pub revision: Revision,
    /// The new record; `None` when the key was deleted.
    pub record: Option<Record>,
    /// The record before the change, if there was one.
    pub previous: Option<Record>,
}

/// A running watch. Dropping it ends it.
pub struct Watch {
    /// Batches of events, in revision order; ends with an error or when the store closes.
    pub events: tokio::sync::mpsc::Receiver<Result<Vec<Event>, WatchError>>,
}

/// Why a store operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The asked revision is older than the history that is kept.
    #[error("revision {asked} has been compacted; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        asked: Revision,
        /// The oldest revision that can still be read.
        oldest: Revision,
    },
    /// The asked revision lies in the future.
    #[error("revision {asked} is newer than the newest, {newest}")]
    Future {
        /// What was asked for.
        asked: Revision,
        /// The newest revision.
        newest: Revision,
    },
    /// The disk is full: reads go on, writes are refused until there is room.
    #[error("no space left for the store: {0}")]
    Full(String),
    /// The store cannot be reached. A write was not made.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// The connection to the store broke before it answered, and whether the write was (or will yet be) made cannot
    /// be found out.
    #[error("unknown outcome: the store did not answer whether it made the write: {0}")]
    UnknownOutcome(String),
    /// The engine failed; the write is not acknowledged.
    #[error("store: {0}")]
    Engine(String),
    /// The store is closing.
    #[error("the store is closed")]
    Closed,
}

/// Why a watch ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The start revision is older than the history that is kept.
    #[error("revision {asked} has been compacted; the oldest kept is {oldest}")]
    Compacted {
        /// Where the watch wanted to start.
        asked: Revision,
        /// The oldest revision a watch can start from.
        oldest: Revision,
    },
    /// The watcher did not read fast enough and its queue filled.
    #[error("the watcher is too slow")]
    TooSlow,
}

/// A revisioned key-value store with watch.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The record of a key now (`at` = `None`) or as of a revision.
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Record>, StoreError>;
    /// All records whose key starts with `prefix`, and the revision they are consistent at.
    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Range, StoreError>;
    /// Applies one compare-and-swap. `Done` means durable. Deleting an absent key, where the expectation
    /// allows it, is `Done` at the newest revision and makes no new one and no event.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;
    /// Every event on keys that start with `prefix`, from the first one after `after`. While the store cannot be
    /// reached a watch waits.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError>;
    /// Forgets history before `revision` (current values stay): it becomes the oldest revision that can be
    /// read or watched from. What is forgotten already stays forgotten, without error.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
    /// The newest revision: at least that of every write acknowledged, to whomever, before the call.
    async fn revision(&self) -> Result<Revision, StoreError>;
    /// May other processes write here too?
    fn is_shared(&self) -> bool {
        false
    }
}
