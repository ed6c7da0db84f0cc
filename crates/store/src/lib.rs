//! The store: revisions, compare-and-swap, watch. Bytes in, bytes out: no kind is known here.
//!
//! Keys are `/<realm>/…` text; every write makes one new [`Revision`], counted over the whole store.
//! Two real implementations stand behind [`Store`]: [`Embedded`] (SQLite under an in-memory MVCC index)
//! and [`Etcd`] (a cluster somewhere else). Everything above, caches included, is fed by [`Store::watch`] and so
//! runs the same code on both.
//!
//! Invariants: an acknowledged write is on disk (S1); a watch delivers every event after its start
//! revision once, in revision order, or ends with [`WatchError::Compacted`] or [`WatchError::TooSlow`] (S2);
//! `range` at a revision is a consistent snapshot (S3).
//! Deliberately not here: JSON, kinds, authorization.

mod disk;
mod embedded;
mod etcd;
mod hub;
mod index;
mod lock;
mod queue;
mod reserve;
mod sealed;
mod seam;
mod stats;
mod wal;

pub use embedded::{
    Clock, Embedded, EmbeddedOptions, HISTORY_AGE_MAX, HISTORY_BYTES_MAX, HISTORY_COUNT_MAX, KEY_BYTES_MAX,
    VALUE_BYTES_MAX, WATCH_BATCHES_MAX, WATCH_BYTES_MAX,
};
pub use etcd::{Endpoint, Etcd, EtcdOptions, EtcdStats};
pub use sealed::{SealKey, SealRule, Sealed};
pub use stats::{COMMIT_SECONDS_BOUNDS, CommitTimes, Stats};

pub use seam::{
    Event, Expect, Range, RangeOptions, Record, Revision, Store, StoreError, Txn, TxnOp, TxnOutcome, Watch,
    WatchError,
};
