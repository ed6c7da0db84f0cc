//! The embedded store: one committer thread with group commit between SQLite and the in-memory index.
//!
//! The committer drains its queue into a batch, evaluates each transaction in order on a private copy of
//! the index, makes the result durable with one fsync, publishes it (index, then watchers), and only then
//! answers. A batch that cannot be made durable is forgotten as a whole: nobody has seen any of it, and
//! every caller in it gets the error, conflicts included, for they may rest on a write that failed.
//!
//! Invariants: S1 and S2 of the crate. Reads never wait for a commit. With no calls the committer sleeps
//! in its queue: no timers; housekeeping is triggered by writes, bounded, and done after they are answered.
//! Deliberately not here: retries (the caller's), leases (Kubernetes Lease objects are plain records).

use crate::disk::{Disk, log_path};
use crate::hub::Hub;
use crate::index::{HistoryLimits, Index};
use crate::lock::Lock;
use crate::queue::QueueLimits;
use crate::stats::Counters;
use crate::{
    Event, Range, RangeOptions, Record, Revision, Stats, Store, StoreError, Txn, TxnOp, TxnOutcome, Watch,
    WatchError,
};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Default of [`EmbeddedOptions::value_bytes_max`]: what the API server takes as a request body.
pub const VALUE_BYTES_MAX: usize = 3 << 20;
/// A key is a realm, a group, a resource and two names of at most 253 bytes: this is ample.
pub const KEY_BYTES_MAX: usize = 2048;
/// Default of [`EmbeddedOptions::history_count_max`]: minutes of a busy cluster.
pub const HISTORY_COUNT_MAX: usize = 100_000;
/// Default of [`EmbeddedOptions::history_bytes_max`]: the part of the memory goal that history may take.
pub const HISTORY_BYTES_MAX: u64 = 32 << 20;
/// Default of [`EmbeddedOptions::history_age_max`]: etcd under Kubernetes keeps 5 to 10 minutes, and conformance waits
/// 10 for a continue token to expire.
pub const HISTORY_AGE_MAX: Duration = Duration::from_secs(300);
/// Default of [`EmbeddedOptions::watch_batches_max`]: a second of the fastest single writer.
pub const WATCH_BATCHES_MAX: usize = 16_384;
/// Default of [`EmbeddedOptions::watch_bytes_max`]: twice the history, so that a replay leaves room.
pub const WATCH_BYTES_MAX: usize = 64 << 20;

/// Calls waiting for the committer; further ones wait for a place.
const QUEUE_MAX: usize = 1024;
/// Transactions in one commit: bounds how long the first of them waits for its answer.
const BATCH_COUNT_MAX: usize = 1024;
/// Bytes in one commit: bounds the log and SQLite's memory. One value more may come on top.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Where the store takes the time from that history ages by.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Bounds of an embedded store. The defaults suit one cluster on one machine.
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// Larger values are refused with "request is too large".
    pub value_bytes_max: usize,
    /// Events kept in the history.
    pub history_count_max: usize,
    /// Bytes that the history may hold beyond the current values.
    pub history_bytes_max: u64,
    /// How long an event is kept. Looked at on writes only.
    pub history_age_max: Duration,
    /// Batches of events waiting for one watcher.
    pub watch_batches_max: usize,
    /// Bytes of events waiting for one watcher.
    pub watch_bytes_max: usize,
    /// The clock.
    pub clock: Clock,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        EmbeddedOptions {
            value_bytes_max: VALUE_BYTES_MAX,
            history_count_max: HISTORY_COUNT_MAX,
            history_bytes_max: HISTORY_BYTES_MAX,
            history_age_max: HISTORY_AGE_MAX,
            watch_batches_max: WATCH_BATCHES_MAX,
            watch_bytes_max: WATCH_BYTES_MAX,
            clock: Arc::new(Instant::now),
        }
    }
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

enum Job {
    Txn(Txn, Answer<TxnOutcome>),
    Compact(Revision, Answer<()>),
    Close(Answer<()>),
}

struct Shared {
    hub: Hub,
    counters: Mutex<Counters>,
}

/// A store in one SQLite file. Dropping it waits for the writes under way, then closes the file.
pub struct Embedded {
    // Order matters: the queue closes first, and that ends the committer that is then waited for.
    queue: mpsc::Sender<Job>,
    _committer: Joined,
    shared: Arc<Shared>,
    path: PathBuf,
    value_bytes_max: usize,
}

struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        if self.0.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's committer panicked");
        }
    }
}

impl Embedded {
    /// Opens the store in the file at `path`, creating it and its folder when missing. Beside it stand
    /// `<path>-wal`, `<path>.lock` and `<path>.reserve` (8 MiB that let a full disk be emptied).
    ///
    /// # Errors
    /// [`StoreError::Engine`] in words for the user: another process has it open (which), it is damaged
    /// (where, and what to do), of another format, or cannot be read; [`StoreError::Full`].
    pub fn open(path: &Path, options: EmbeddedOptions) -> Result<Embedded, StoreError> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)
                .map_err(|e| StoreError::Engine(format!("folder {}: {e}", folder.display())))?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = Lock::take(Path::new(&lock_path))?;
        let (disk, index) = Disk::open(path)?;
        let limits =
            QueueLimits { batches: options.watch_batches_max.max(1), bytes: options.watch_bytes_max };
        let hub = Hub::new(index.clone(), limits);
        let shared = Arc::new(Shared { hub, counters: Mutex::default() });
        let (queue, jobs) = mpsc::channel(QUEUE_MAX);
        let history = HistoryLimits {
            count: options.history_count_max,
            bytes: options.history_bytes_max,
            age: options.history_age_max,
        };
        let clock = options.clock;
        let committer = Committer { jobs, index, shared: shared.clone(), history, clock, disk, _lock: lock };
        let thread = std::thread::Builder::new()
            .name("store-commit".into())
            .spawn(move || committer.run())
            .map_err(|e| StoreError::Engine(format!("starting the committer thread: {e}")))?;
        Ok(Embedded {
            queue,
            _committer: Joined(Some(thread)),
            shared,
            path: path.into(),
            value_bytes_max: options.value_bytes_max,
        })
    }

    /// Finishes the writes that were queued before, closes the file and ends all watches. Later writes
    /// get [`StoreError::Closed`]; reads go on.
    pub async fn close(&self) {
        // An error means that it is closed already.
        let _ = self.ask(Job::Close).await;
    }

    /// Numbers about the store now.
    pub fn stats(&self) -> Stats {
        let index = self.shared.hub.snapshot();
        let counters = self.shared.counters.lock().clone();
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        Stats {
            revision: index.revision(),
            oldest: index.floor(),
            keys: index.keys(),
            value_bytes: index.value_bytes(),
            history_events: index.history_len(),
            history_bytes: index.history_bytes(),
            watchers: self.shared.hub.watchers(),
            file_bytes: size(&self.path),
            log_bytes: size(&log_path(&self.path)),
            commits: counters.commits,
            writes: counters.writes,
            failed_commits: counters.failed,
            commit_times: counters.times,
        }
    }

    async fn ask<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(job(answer)).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

#[async_trait]
impl Store for Embedded {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Record>, StoreError> {
        match at {
            None => self.shared.hub.with(|index| index.get(key, None)),
            Some(_) => self.shared.hub.snapshot().get(key, at),
        }
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Range, StoreError> {
        self.shared.hub.snapshot().range(prefix, &options)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        if matches!(&txn.op, TxnOp::Put(value) if value.len() > self.value_bytes_max) {
            return Err(StoreError::Engine("request is too large".into()));
        }
        if txn.key.is_empty() || txn.key.len() > KEY_BYTES_MAX {
            return Err(StoreError::Engine(format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
        }
        self.ask(|answer| Job::Txn(txn, answer)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        self.shared.hub.watch(prefix, after)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.ask(|answer| Job::Compact(revision, answer)).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.shared.hub.with(Index::revision))
    }
}

struct Committer {
    jobs: mpsc::Receiver<Job>,
    /// What is published.
    index: Index,
    shared: Arc<Shared>,
    history: HistoryLimits,
    clock: Clock,
    // The file closes before the lock goes.
    disk: Disk,
    _lock: Lock,
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.shared.hub.close();
    }
}

/// Jobs that are answered together, by kind; each in the order they came.
#[derive(Default)]
struct Batch {
    txns: Vec<(Txn, Answer<TxnOutcome>)>,
    compact: Vec<(Revision, Answer<()>)>,
    close: Vec<Answer<()>>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, job: Job) {
        match job {
            Job::Txn(txn, answer) => {
                self.bytes += if let TxnOp::Put(value) = &txn.op { value.len() } else { 0 };
                self.txns.push((txn, answer));
            }
            Job::Compact(revision, answer) => self.compact.push((revision, answer)),
            Job::Close(answer) => self.close.push(answer),
        }
    }

    fn has_room(&self) -> bool {
        self.close.is_empty() && self.txns.len() < BATCH_COUNT_MAX && self.bytes < BATCH_BYTES_MAX
    }
}

impl Committer {
    fn run(mut self) {
        let mut closing = Vec::new();
        while let Some(first) = self.next_job() {
            let mut batch = Batch::default();
            batch.add(first);
            while batch.has_room() {
                let Ok(job) = self.jobs.try_recv() else { break };
                batch.add(job);
            }
            self.commit(batch.txns);
            self.compact(batch.compact);
            self.disk.bound_log();
            if !batch.close.is_empty() {
                self.jobs.close();
                closing.append(&mut batch.close);
            }
        }
        drop(self);
        for answer in closing {
            let _ = answer.send(Ok(()));
        }
    }

    /// The next job; waits for one, and keeps house before it does.
    fn next_job(&mut self) -> Option<Job> {
        loop {
            match self.jobs.try_recv() {
                Ok(job) => return Some(job),
                Err(mpsc::error::TryRecvError::Disconnected) => return None,
                Err(mpsc::error::TryRecvError::Empty) if self.disk.vacuum_step() => {}
                Err(mpsc::error::TryRecvError::Empty) => return self.jobs.blocking_recv(),
            }
        }
    }

    fn commit(&mut self, txns: Vec<(Txn, Answer<TxnOutcome>)>) {
        let now = (self.clock)();
        let mut next = self.index.clone();
        let shortage = self.disk.shortage();
        let mut answers = Vec::with_capacity(txns.len());
        for (txn, answer) in txns {
            if let Some(full) = shortage.as_ref().filter(|_| next.grows(&txn)) {
                let _ = answer.send(Err(full.clone()));
                continue;
            }
            answers.push((answer, next.apply(&txn, now)));
        }
        let events: Vec<Event> = next.since(self.index.revision()).into_iter().flatten().cloned().collect();
        let done = if events.is_empty() { Ok(()) } else { self.make_durable(&events, next, now) };
        for (answer, outcome) in answers {
            // Who asked may have gone away meanwhile.
            let _ = answer.send(done.clone().map(|()| outcome));
        }
    }

    fn make_durable(&mut self, events: &[Event], mut next: Index, now: Instant) -> Result<(), StoreError> {
        let start = Instant::now();
        let committed = self.disk.commit(events);
        let mut counters = self.shared.counters.lock();
        if let Err(error) = committed {
            counters.failed += 1;
            return Err(error);
        }
        counters.commits += 1;
        counters.writes += events.len() as u64;
        counters.times.record(start.elapsed());
        drop(counters);
        next.trim(&self.history, now);
        self.index = next.clone();
        self.shared.hub.publish(next, events);
        Ok(())
    }

    fn compact(&mut self, jobs: Vec<(Revision, Answer<()>)>) {
        for (revision, answer) in jobs {
            let newest = self.index.revision();
            if revision > newest {
                let _ = answer.send(Err(StoreError::Future { asked: revision, newest }));
                continue;
            }
            self.index.compact(revision);
            self.shared.hub.publish(self.index.clone(), &[]);
            let _ = answer.send(Ok(()));
        }
    }
}
