//! The store over an etcd cluster (3.4 or newer), spoken to by hand: see `docs/decisions/2026-11-20-etcd-by-hand.md`.
//!
//! A key stands under a prefix, a value has the mark of its write behind it (`mark`). Revisions are etcd's own:
//! others who write to the same cluster make gaps in them.
//! Invariants: reads are linearizable; a write is [`TxnOutcome::Done`] or [`TxnOutcome::Conflict`] only if etcd said
//! so or reading back proves it, else the error says that the outcome is unknown; every call ends within
//! `2 × call_max`. One timer: every [`EtcdOptions::compact_every`] one of the servers over a cluster, whichever
//! wins a compare-and-swap on a key beside the prefix, forgets what is older than that.
//! Deliberately not here: alarms and defragmentation (etcd's administrator), etcd's users and roles (certificates
//! only), leases.

mod channel;
mod compactor;
mod mark;
mod messages;
mod watch;
mod wire;

pub use channel::Endpoint;

use crate::queue::{Queue, QueueLimits};
use crate::stats::CommitTimes;
use crate::{
    KEY_BYTES_MAX, Range, RangeOptions, Record, Revision, Store, StoreError, Txn, TxnOp, TxnOutcome,
    VALUE_BYTES_MAX, WATCH_BATCHES_MAX, WATCH_BYTES_MAX, Watch, WatchError,
};
use async_trait::async_trait;
use bytes::Bytes;
use channel::{CallError, Channel};
use mark::{Mark, Verdict, judge, value_of};
use messages::{KeyValue, Method, RangeReply, RangeRequest, StatusReply, TxnReply, WatchReply};
use parking_lot::Mutex;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::sync::{oneshot, watch as flag};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use watch::Follower;
use wire::Malformed;

/// Default of [`EtcdOptions::dial_max`].
const DIAL_MAX: Duration = Duration::from_secs(3);
/// Default of [`EtcdOptions::call_max`]: with reading back, a call ends before clients lose patience at 10 s.
const CALL_MAX: Duration = Duration::from_secs(4);
/// Default of [`EtcdOptions::compact_every`], as under Kubernetes.
const COMPACT_EVERY: Duration = Duration::from_secs(300);
/// How long finding out the oldest revision may take: etcd looks at late watches every 100 ms.
const OLDEST_MAX: Duration = Duration::from_secs(1);
/// Records in one answer: bounds its size, while a cluster's listing takes few.
const PAGE: usize = 10_000;
/// Between two tries of a call that may be repeated.
const RETRY: Backoff =
    Backoff { base: Duration::from_millis(10), factor: 3, max: Duration::from_millis(500) };
/// Progress reports and fragments of watches came with it.
const VERSION_MIN: (u32, u32) = (3, 4);

/// How to reach and use a cluster.
#[derive(Clone)]
pub struct EtcdOptions {
    /// Members, in order of preference.
    pub endpoints: Vec<Endpoint>,
    /// How to trust the members and what to show them; plain TCP when `None`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Prefix of all keys, not empty. Clusters of Gantry over one etcd have a prefix each.
    pub prefix: String,
    /// How long a call waits for a connection.
    pub dial_max: Duration,
    /// How long a call waits for its answer, connecting included; then a write is read back for as long again.
    pub call_max: Duration,
    /// How often history is compacted, and the age that it then keeps. `None`: never, somebody else does.
    pub compact_every: Option<Duration>,
    /// Larger values are refused with "request is too large". etcd itself has a limit, 1.5 MiB unless it is told
    /// `--max-request-bytes`, and refuses in the same words.
    pub value_bytes_max: usize,
    /// Batches of events waiting for one watcher.
    pub watch_batches_max: usize,
    /// Bytes of events waiting for one watcher.
    pub watch_bytes_max: usize,
}

impl EtcdOptions {
    /// The defaults over some members: plain TCP, prefix `/gantry`.
    pub fn new(endpoints: Vec<Endpoint>) -> Self {
        EtcdOptions {
            endpoints,
            tls: None,
            prefix: "/gantry".into(),
            dial_max: DIAL_MAX,
            call_max: CALL_MAX,
            compact_every: Some(COMPACT_EVERY),
            value_bytes_max: VALUE_BYTES_MAX,
            watch_batches_max: WATCH_BATCHES_MAX,
            watch_bytes_max: WATCH_BYTES_MAX,
        }
    }
}

/// What is counted.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counters {
    writes: u64,
    failed: u64,
    resolved: u64,
    unknown: u64,
    watch_resumes: u64,
    times: CommitTimes,
}

/// One look at the store's client side.
#[derive(Clone, Debug, PartialEq)]
pub struct EtcdStats {
    /// The member in use, if any.
    pub endpoint: Option<String>,
    /// Connections made since the start.
    pub connects: u64,
    /// Writes that were answered, conflicts included.
    pub writes: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Writes whose answer was lost and whose outcome was found out.
    pub resolved_writes: u64,
    /// Those (of the failed) whose outcome is unknown.
    pub unknown_writes: u64,
    /// Running watches.
    pub watchers: usize,
    /// Times that a watch went on over another stream.
    pub watch_resumes: u64,
    /// How long the answered writes took.
    pub write_times: CommitTimes,
}

/// What calls, watches and the compactor share.
struct Shared {
    channel: Channel,
    prefix: String,
    call_max: Duration,
    /// Turns true when the store closes.
    closed: flag::Sender<bool>,
    /// Makes this process's marks its own.
    writer: u64,
    writes: AtomicU64,
    watchers: AtomicUsize,
    counters: Mutex<Counters>,
}

/// A store in an etcd cluster. Dropping it ends its watches.
pub struct Etcd {
    shared: Arc<Shared>,
    options: EtcdOptions,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.shared.closed.send_replace(true);
    }
}

impl Etcd {
    /// Connects to the first member that answers, and starts the compactor.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when none answers in time; [`StoreError::Engine`] for options that cannot work
    /// and for an etcd that is too old.
    pub async fn connect(options: EtcdOptions) -> Result<Etcd, StoreError> {
        if options.endpoints.is_empty() || options.prefix.is_empty() {
            return Err(StoreError::Engine("etcd needs an endpoint and a prefix".into()));
        }
        let channel = Channel::new(options.endpoints.clone(), options.tls.clone(), options.dial_max);
        let shared = Arc::new(Shared {
            channel,
            prefix: options.prefix.clone(),
            call_max: options.call_max,
            closed: flag::Sender::new(false),
            writer: RandomState::new().hash_one(std::process::id()),
            writes: AtomicU64::new(0),
            watchers: AtomicUsize::new(0),
            counters: Mutex::default(),
        });
        let status = StatusReply::read(shared.read(messages::STATUS, &[]).await.map_err(store_error)?)?;
        if version(&status.version).is_none_or(|version| version < VERSION_MIN) {
            let (major, minor) = VERSION_MIN;
            let text = format!("etcd {:?} is too old: {major}.{minor} or newer is needed", status.version);
            return Err(StoreError::Engine(text));
        }
        tracing::info!(version = status.version, bytes = status.file_bytes, "etcd answers");
        for error in &status.errors {
            tracing::warn!(error, "etcd reports");
        }
        if let Some(every) = options.compact_every {
            tokio::spawn(shared.clone().compact_now_and_then(every));
        }
        Ok(Etcd { shared, options })
    }

    /// Ends every watch; calls from here on are refused.
    pub fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    /// Figures.
    pub fn stats(&self) -> EtcdStats {
        let counters = self.shared.counters.lock().clone();
        EtcdStats {
            endpoint: self.shared.channel.endpoint(),
            connects: self.shared.channel.connects(),
            writes: counters.writes,
            failed_writes: counters.failed,
            resolved_writes: counters.resolved,
            unknown_writes: counters.unknown,
            watchers: self.shared.watchers.load(Ordering::Relaxed),
            watch_resumes: counters.watch_resumes,
            write_times: counters.times,
        }
    }

    fn open(&self) -> Result<(), StoreError> {
        if *self.shared.closed.borrow() { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// What a write came to, and whether it took reading back to know.
    async fn write(&self, txn: &Txn) -> (Result<TxnOutcome, StoreError>, bool) {
        let key = self.shared.full(&txn.key);
        let mark = Mark::new(self.shared.writer, self.shared.writes.fetch_add(1, Ordering::Relaxed));
        let stored = if let TxnOp::Put(value) = &txn.op { mark.behind(value) } else { Vec::new() };
        let message = messages::txn(&key, txn.expect, &txn.op, &stored);
        match self.shared.send_txn(&message, self.shared.deadline()).await {
            Ok(reply) => (Ok(self.shared.outcome(reply)), false),
            Err(CallError::Lost(reason)) => {
                let lost = Lost { shared: &self.shared, txn, key, mark, message };
                let resolved = timeout(self.options.call_max, lost.resolve()).await;
                let unknown = || StoreError::UnknownOutcome(reason);
                (resolved.unwrap_or(None).ok_or_else(unknown), true)
            }
            Err(error) => (Err(store_error(error)), false),
        }
    }
}

/// A write whose answer was lost.
struct Lost<'a> {
    shared: &'a Shared,
    txn: &'a Txn,
    key: Vec<u8>,
    mark: Mark,
    message: Vec<u8>,
}

impl Lost<'_> {
    /// What became of it, if that can be told.
    async fn resolve(&self) -> Option<TxnOutcome> {
        loop {
            let now = self.shared.look(&self.key, 0).await.ok()?;
            let base = match self.txn.expect {
                crate::Expect::Modified(revision) => {
                    self.shared.look(&self.key, revision.0).await.ok().flatten()
                }
                _ => None,
            };
            let write = (self.txn.expect, &self.txn.op);
            match judge(write, &self.mark, now.as_ref(), base.as_ref()) {
                Verdict::Applied => {
                    let revision = now?.modified;
                    let before = self.shared.look(&self.key, revision - 1).await.ok()?;
                    let previous = before.and_then(|before| self.shared.record(&before));
                    return Some(TxnOutcome::Done { revision: Revision(revision), previous });
                }
                Verdict::Conflict => {
                    return Some(TxnOutcome::Conflict(now.and_then(|now| self.shared.record(&now))));
                }
                Verdict::Unknown => return None,
                Verdict::NotYet => {}
            }
            match self.shared.send_txn(&self.message, self.shared.deadline()).await {
                Ok(reply) if reply.succeeded => return Some(self.shared.outcome(reply)),
                // The first try may have arrived meanwhile: look again.
                Ok(_) | Err(CallError::Lost(_)) => {}
                Err(_) => return None,
            }
        }
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Record>, StoreError> {
        self.open()?;
        let found = self.shared.look(&self.shared.full(key), etcd_revision(at)).await;
        let found = self.shared.explained(found, at.unwrap_or(Revision(0))).await?;
        Ok(found.and_then(|kv| self.shared.record(&kv)))
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Range, StoreError> {
        self.open()?;
        let full = self.shared.under(prefix);
        let end = prefix_end(&full);
        let behind = options.after.as_ref().map(|after| [&*self.shared.full(after), b"\0"].concat());
        let mut from = behind.map_or(full.clone(), |behind| behind.max(full));
        let mut revision = etcd_revision(options.at);
        let mut records = Vec::new();
        loop {
            let left = if options.limit == 0 { PAGE } else { options.limit - records.len() };
            let request =
                RangeRequest { key: &from, end: &end, limit: left.min(PAGE), revision, count_only: false };
            let reply = self.shared.range(&request).await;
            let reply = self.shared.explained(reply, Revision(revision)).await?;
            revision = if revision == 0 { reply.revision } else { revision };
            let remaining =
                usize::try_from(reply.count).unwrap_or(usize::MAX).saturating_sub(reply.kvs.len());
            if let Some(last) = reply.kvs.last() {
                from = [&*last.key, b"\0"].concat();
            }
            records.extend(reply.kvs.iter().filter_map(|kv| self.shared.record(kv)));
            if remaining == 0 || reply.kvs.is_empty() || (options.limit > 0 && records.len() >= options.limit)
            {
                let revision = options.at.unwrap_or(Revision(revision));
                return Ok(Range { records, revision, remaining });
            }
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.open()?;
        if matches!(&txn.op, TxnOp::Put(value) if value.len() > self.options.value_bytes_max) {
            return Err(StoreError::Engine("request is too large".into()));
        }
        if !txn.key.starts_with('/') || txn.key.len() > KEY_BYTES_MAX {
            return Err(StoreError::Engine(format!(
                "a key starts with / and has 1 to {KEY_BYTES_MAX} bytes"
            )));
        }
        let start = Instant::now();
        let (outcome, lost) = self.write(&txn).await;
        let mut counters = self.shared.counters.lock();
        match &outcome {
            Ok(_) => {
                counters.writes += 1;
                counters.resolved += u64::from(lost);
                counters.times.record(start.elapsed());
            }
            Err(_) => {
                counters.failed += 1;
                counters.unknown += u64::from(lost);
            }
        }
        outcome
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        let limits = QueueLimits {
            batches: self.options.watch_batches_max.max(1),
            bytes: self.options.watch_bytes_max,
        };
        let (queue, watch) = Queue::new(limits);
        let (started, wait) = oneshot::channel();
        let follower = Follower::new(self.shared.clone(), self.shared.under(prefix), after, queue, started);
        tokio::spawn(follower.run());
        match timeout(self.options.call_max, wait).await {
            Ok(Ok(Err(refused))) => Err(refused),
            // Started, or closed, or etcd is away and it will start when that is back.
            _ => Ok(watch),
        }
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.open()?;
        match self.shared.compact(revision.0).await {
            Err(CallError::Refused(text)) if text.contains(COMPACTED) => Ok(()),
            result => self.shared.explained(result, revision).await,
        }
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.open()?;
        self.shared.revision().await.map(Revision).map_err(store_error)
    }

    fn is_shared(&self) -> bool {
        true
    }
}

impl Shared {
    fn deadline(&self) -> Instant {
        Instant::now() + self.call_max
    }

    fn full(&self, key: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), key.as_bytes()].concat()
    }

    /// The prefix of the full keys that start with this one. Keys start with a slash, and other clusters' prefixes may
    /// start with ours.
    fn under(&self, prefix: &str) -> Vec<u8> {
        self.full(if prefix.is_empty() { "/" } else { prefix })
    }

    /// The key without the prefix; `None` for bytes that no key of ours has.
    fn key_of(&self, full: &[u8]) -> Option<Arc<str>> {
        Some(std::str::from_utf8(full.strip_prefix(self.prefix.as_bytes())?).ok()?.into())
    }

    fn record(&self, kv: &KeyValue) -> Option<Record> {
        let (created, modified) = (Revision(kv.created), Revision(kv.modified));
        Some(Record { key: self.key_of(&kv.key)?, value: value_of(&kv.value), created, modified })
    }

    fn outcome(&self, reply: TxnReply) -> TxnOutcome {
        let record = reply.kv.and_then(|kv| self.record(&kv));
        match reply.succeeded {
            true => TxnOutcome::Done { revision: Revision(reply.revision), previous: record },
            false => TxnOutcome::Conflict(record),
        }
    }

    /// A call that may be repeated: until it is answered, or its time is over.
    async fn read(&self, method: Method, message: &[u8]) -> Result<Bytes, CallError> {
        self.repeat(method, message, self.deadline(), true).await
    }

    /// A call that is repeated while it was not sent, and when `twice`, also while its answer was lost.
    async fn repeat(
        &self,
        method: Method,
        message: &[u8],
        deadline: Instant,
        twice: bool,
    ) -> Result<Bytes, CallError> {
        let mut attempt = 0;
        loop {
            let result = self.channel.unary(method, message, deadline).await;
            let again = match &result {
                Err(CallError::Unreachable(_)) => true,
                Err(CallError::Lost(_)) => twice,
                _ => false,
            };
            let pause = RETRY.delay(attempt);
            if !again || Instant::now() + pause >= deadline {
                return result;
            }
            sleep(pause).await;
            attempt += 1;
        }
    }

    async fn range(&self, request: &RangeRequest<'_>) -> Result<RangeReply, CallError> {
        Ok(RangeReply::read(self.read(messages::RANGE, &request.encode()).await?)?)
    }

    /// What stands under a full key, now (0) or as of a revision.
    async fn look(&self, key: &[u8], revision: u64) -> Result<Option<KeyValue>, CallError> {
        let request = RangeRequest { key, revision, ..RangeRequest::default() };
        Ok(self.range(&request).await?.kvs.pop())
    }

    async fn revision(&self) -> Result<u64, CallError> {
        let key = self.compaction_key();
        let request = RangeRequest { key: &key, count_only: true, ..RangeRequest::default() };
        Ok(self.range(&request).await?.revision)
    }

    async fn send_txn(&self, message: &[u8], deadline: Instant) -> Result<TxnReply, CallError> {
        Ok(TxnReply::read(self.repeat(messages::TXN, message, deadline, false).await?)?)
    }

    async fn compact(&self, revision: u64) -> Result<(), CallError> {
        self.read(messages::COMPACT, &messages::compact(revision)).await.map(drop)
    }

    /// Turns a refusal into the seam's terms, asking etcd for the number that it left out.
    async fn explained<T>(&self, result: Result<T, CallError>, asked: Revision) -> Result<T, StoreError> {
        match result {
            Err(CallError::Refused(text)) if text.contains(COMPACTED) => {
                let oldest = self.oldest().await.map_or(Revision(asked.0 + 1), Revision);
                Err(StoreError::Compacted { asked, oldest })
            }
            Err(CallError::Refused(text)) if text.contains(FUTURE) => {
                let newest = self.revision().await.map(Revision).map_err(store_error)?;
                Err(StoreError::Future { asked, newest })
            }
            result => result.map_err(store_error),
        }
    }

    /// The oldest revision kept. etcd tells it to those who want to watch from an older one, and nobody else.
    async fn oldest(&self) -> Option<u64> {
        let deadline = Instant::now() + OLDEST_MAX;
        let create = messages::watch_create(&self.compaction_key(), &[], 1);
        let mut incoming = self.channel.stream(messages::WATCH, &create, deadline).await.ok()?;
        loop {
            let message = timeout_at(deadline, incoming.message()).await.ok()?.ok()??;
            let reply = WatchReply::read(message).ok()?;
            if reply.compacted > 0 {
                return Some(reply.compacted);
            }
        }
    }
}

/// In etcd's answers to a request for a revision that is gone.
const COMPACTED: &str = "required revision has been compacted";
/// In its answers to one for a revision that is yet to come.
const FUTURE: &str = "required revision is a future revision";

/// etcd's first revision, that of an empty store, is 1, and 0 means now.
fn etcd_revision(at: Option<Revision>) -> u64 {
    at.map_or(0, |at| at.0.max(1))
}

/// The first key behind all that start with the prefix; etcd's "no end" when there is none.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let kept = prefix.iter().rposition(|byte| *byte < 0xff).map_or(0, |last| last + 1);
    match prefix[..kept].split_last() {
        Some((last, front)) => [front, &[last + 1]].concat(),
        None => vec![0],
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn store_error(error: CallError) -> StoreError {
    match error {
        CallError::Unreachable(text) | CallError::Lost(text) => StoreError::Unavailable(text),
        CallError::Refused(text) if text.contains("database space exceeded") => StoreError::Full(text),
        CallError::Refused(text)
            if text.contains("request is too large") || text.contains("message larger than max") =>
        {
            StoreError::Engine("request is too large".into())
        }
        error @ CallError::Refused(_) => StoreError::Engine(error.to_string()),
    }
}

impl From<Malformed> for CallError {
    fn from(error: Malformed) -> Self {
        CallError::Lost(error.to_string())
    }
}

impl From<Malformed> for StoreError {
    fn from(error: Malformed) -> Self {
        StoreError::Engine(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_prefixes() {
        assert_eq!(prefix_end(b"/a"), b"/b");
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
        assert_eq!(prefix_end(b""), b"\0");
    }

    #[test]
    fn versions() {
        assert_eq!(version("3.4.23"), Some((3, 4)));
        assert_eq!(version("3.10.0-rc.1"), Some((3, 10)));
        assert!(version("3").is_none() && version("").is_none() && version("a.b").is_none());
    }

    #[test]
    fn refusals_in_the_seams_words() {
        let refused = |text: &str| store_error(CallError::Refused(text.into()));
        assert!(matches!(refused("etcdserver: mvcc: database space exceeded"), StoreError::Full(_)));
        for text in ["etcdserver: request is too large", "grpc: received message larger than max (9 vs. 8)"] {
            assert_eq!(refused(text), StoreError::Engine("request is too large".into()));
        }
    }
}
