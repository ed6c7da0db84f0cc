//! The in-memory MVCC index: what every read is answered from. Pure: no I/O, no clock, no lock.
//!
//! An [`Index`] is a persistent value: cloning costs a few reference counts, so a reader holds a
//! consistent snapshot while the committer builds the next one beside it, and a commit that fails is
//! undone by dropping that one. Old revisions are not kept as maps: the history holds the events, each
//! with the record before it, and reading the past *undoes* the newer events on a snapshot. Per object
//! this costs two pointers in the tree and one shared [`Record`] over the object's own size.
//!
//! Invariants: `history` holds exactly the events of revisions `floor+1 ..= revision`, in order, one a
//! revision; `floor` is the oldest revision that can be read or watched from.
//! Deliberately not here: durability (`disk`), watchers (`hub`).

use crate::{Event, Expect, Range, RangeOptions, Record, Revision, StoreError, Txn, TxnOp, TxnOutcome};
use imbl::{OrdMap, Vector};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What an event costs in memory beside the value it alone keeps alive: the event, its list slot, counts.
const EVENT_OVERHEAD_BYTES: u64 = 256;
/// An update that adds no more than this hardly grows: a deletion mark, a condition.
const SMALL_GROWTH_BYTES: u64 = 1024;

/// How much history is kept; whichever bound is reached first trims.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HistoryLimits {
    pub count: usize,
    pub bytes: u64,
    pub age: Duration,
}

struct Past {
    event: Event,
    when: Instant,
}

type Records = OrdMap<Arc<str>, Arc<Record>>;

/// One state of the store, with the history that leads to it.
#[derive(Clone, Default)]
pub(crate) struct Index {
    current: Records,
    history: Vector<Arc<Past>>,
    revision: Revision,
    floor: Revision,
    value_bytes: u64,
    history_bytes: u64,
}

impl Index {
    /// The state found on disk: no history, so its own revision is the oldest.
    pub fn at_start(revision: Revision) -> Self {
        Index { revision, floor: revision, ..Index::default() }
    }

    /// Adds a record found on disk; false when its key is there already.
    pub fn load(&mut self, record: Record) -> bool {
        self.value_bytes += record.value.len() as u64;
        self.current.insert(record.key.clone(), Arc::new(record)).is_none()
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn floor(&self) -> Revision {
        self.floor
    }

    pub fn keys(&self) -> usize {
        self.current.len()
    }

    pub fn value_bytes(&self) -> u64 {
        self.value_bytes
    }

    pub fn history_len(&self) -> usize {
        self.history.len()
    }

    pub fn history_bytes(&self) -> u64 {
        self.history_bytes
    }

    /// Applies one compare-and-swap. Deleting a key that is not there, where that is allowed, writes
    /// nothing and so makes no revision.
    pub fn apply(&mut self, txn: &Txn, now: Instant) -> TxnOutcome {
        let previous = self.current.get(&*txn.key).map(|record| Record::clone(record));
        let holds = match (txn.expect, &previous) {
            (Expect::Any, _) | (Expect::Absent, None) | (Expect::Present, Some(_)) => true,
            (Expect::Modified(revision), Some(record)) => record.modified == revision,
            (Expect::Absent, Some(_)) | (Expect::Present | Expect::Modified(_), None) => false,
        };
        if !holds {
            return TxnOutcome::Conflict(previous);
        }
        let revision = Revision(self.revision.0 + 1);
        let key = previous.as_ref().map_or(&txn.key, |record| &record.key).clone();
        let record = match (&txn.op, &previous) {
            (TxnOp::Delete, None) => return TxnOutcome::Done { revision: self.revision, previous },
            (TxnOp::Delete, Some(_)) => None,
            (TxnOp::Put(value), _) => Some(Record {
                key: key.clone(),
                value: value.clone(),
                created: previous.as_ref().map_or(revision, |record| record.created),
                modified: revision,
            }),
        };
        match &record {
            Some(record) => self.current.insert(key.clone(), Arc::new(record.clone())),
            None => self.current.remove(&*key),
        };
        self.value_bytes += record.as_ref().map_or(0, value_len);
        self.value_bytes -= previous.as_ref().map_or(0, value_len);
        self.revision = revision;
        let event = Event { key, revision, record, previous: previous.clone() };
        self.history_bytes += cost(&event);
        self.history.push_back(Arc::new(Past { event, when: now }));
        TxnOutcome::Done { revision, previous }
    }

    /// Whether a transaction needs noticeably more room on disk than what it replaces.
    pub fn grows(&self, txn: &Txn) -> bool {
        let TxnOp::Put(value) = &txn.op else { return false };
        match self.current.get(&*txn.key) {
            Some(record) => value.len() as u64 > value_len(record) + SMALL_GROWTH_BYTES,
            None => true,
        }
    }

    /// The events after a revision, oldest first; `None` when the history does not reach back so far.
    pub fn since(&self, after: Revision) -> Option<impl DoubleEndedIterator<Item = &Event>> {
        let skip = after.0.checked_sub(self.floor.0)?;
        let start = usize::try_from(skip).unwrap_or(usize::MAX).min(self.history.len());
        Some(self.history.focus().narrow(start..).into_iter().map(|past| &past.event))
    }

    /// Forgets the history up to and including `revision`; current records stay.
    pub fn compact(&mut self, revision: Revision) {
        while self.floor < revision && self.drop_oldest() {}
    }

    /// Brings the history within its limits.
    pub fn trim(&mut self, limits: &HistoryLimits, now: Instant) {
        while let Some(oldest) = self.history.front() {
            let within = self.history.len() <= limits.count
                && self.history_bytes <= limits.bytes
                && now.saturating_duration_since(oldest.when) <= limits.age;
            if within || !self.drop_oldest() {
                return;
            }
        }
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(past) = self.history.pop_front() else { return false };
        self.history_bytes -= cost(&past.event);
        self.floor = past.event.revision;
        true
    }

    fn check_kept(&self, at: Revision) -> Result<(), StoreError> {
        if at < self.floor {
            return Err(StoreError::Compacted { asked: at, oldest: self.floor });
        }
        if at > self.revision {
            return Err(StoreError::Future { asked: at, newest: self.revision });
        }
        Ok(())
    }

    /// The record of a key, now or at a kept revision.
    pub fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Record>, StoreError> {
        let at = at.unwrap_or(self.revision);
        self.check_kept(at)?;
        // The first newer event on the key holds what stood there before.
        let undone = self.since(at).and_then(|mut events| events.find(|event| &*event.key == key));
        Ok(match undone {
            Some(event) => event.previous.clone(),
            None => self.current.get(key).map(|record| Record::clone(record)),
        })
    }

    /// A listing, consistent at one revision.
    pub fn range(&self, prefix: &str, options: &RangeOptions) -> Result<Range, StoreError> {
        let at = options.at.unwrap_or(self.revision);
        self.check_kept(at)?;
        let after = options.after.as_deref().filter(|after| *after >= prefix);
        let mut view = self.current.clone();
        for event in self.since(at).into_iter().flatten().rev() {
            if event.key.starts_with(prefix) && after.is_none_or(|after| *event.key > *after) {
                match &event.previous {
                    Some(record) => view.insert(event.key.clone(), Arc::new(record.clone())),
                    None => view.remove(&*event.key),
                };
            }
        }
        let end = prefix_end(prefix);
        if after.zip(end.as_deref()).is_some_and(|(after, end)| after >= end) {
            return Ok(Range { records: Vec::new(), revision: at, remaining: 0 });
        }
        let bounds = (after.map_or(Included(prefix), Excluded), end.as_deref().map_or(Unbounded, Excluded));
        let mut found = view.range::<_, str>(bounds);
        let limit = if options.limit == 0 { usize::MAX } else { options.limit };
        let records = found.by_ref().take(limit).map(|(_, record)| Record::clone(record)).collect();
        Ok(Range { records, revision: at, remaining: found.count() })
    }
}

/// The first text behind everything that starts with `prefix`; `None` when nothing is behind it.
/// Text sorts by code point.
fn prefix_end(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        // The range skips the surrogates and is empty behind the last code point.
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

fn value_len(record: &Record) -> u64 {
    record.value.len() as u64
}

/// What dropping this event from the history frees: the replaced value. The new one is held by the
/// current map, or by the next event on the key as *its* replaced value, and counted there.
fn cost(event: &Event) -> u64 {
    EVENT_OVERHEAD_BYTES + event.key.len() as u64 + event.previous.as_ref().map_or(0, value_len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The dumb twin: a whole map for every revision, and every event ever.
    #[derive(Default)]
    struct Twin {
        states: Vec<BTreeMap<String, Record>>,
        events: Vec<Event>,
    }

    impl Twin {
        fn new() -> Self {
            Twin { states: vec![BTreeMap::new()], events: Vec::new() }
        }

        fn apply(&mut self, txn: &Txn) -> TxnOutcome {
            let mut map = self.states.last().unwrap().clone();
            let found = map.get(&*txn.key).cloned();
            let holds = match txn.expect {
                Expect::Any => true,
                Expect::Absent => found.is_none(),
                Expect::Present => found.is_some(),
                Expect::Modified(revision) => found.as_ref().is_some_and(|r| r.modified == revision),
            };
            if !holds {
                return TxnOutcome::Conflict(found);
            }
            let revision = Revision(self.states.len() as u64);
            let record = match &txn.op {
                TxnOp::Delete if found.is_none() => {
                    return TxnOutcome::Done { revision: Revision(revision.0 - 1), previous: None };
                }
                TxnOp::Delete => {
                    map.remove(&*txn.key);
                    None
                }
                TxnOp::Put(value) => {
                    let created = found.as_ref().map_or(revision, |r| r.created);
                    let record =
                        Record { key: txn.key.clone(), value: value.clone(), created, modified: revision };
                    map.insert(txn.key.to_string(), record.clone());
                    Some(record)
                }
            };
            self.states.push(map);
            self.events.push(Event { key: txn.key.clone(), revision, record, previous: found.clone() });
            TxnOutcome::Done { revision, previous: found }
        }

        fn range(&self, prefix: &str, at: u64, after: &str, limit: usize) -> (Vec<Record>, usize) {
            let all: Vec<Record> = self.states[at as usize]
                .values()
                .filter(|r| r.key.starts_with(prefix) && (after.is_empty() || *r.key > *after))
                .cloned()
                .collect();
            let limit = if limit == 0 { all.len() } else { limit.min(all.len()) };
            (all[..limit].to_vec(), all.len() - limit)
        }
    }

    const KEYS: [&str; 8] = ["/a/1", "/a/10", "/a/2", "/ab/1", "/b/1", "/b/2", "/b/2/x", "/c"];
    const PREFIXES: [&str; 6] = ["", "/a/", "/a", "/b/2", "/c", "/nothing"];

    fn txns() -> impl Strategy<Value = Vec<Txn>> {
        let one = (0..KEYS.len(), 0..4u8, 0..40u64, prop::option::weighted(0.7, 0..50usize)).prop_map(
            |(key, expect, revision, value)| Txn {
                key: KEYS[key].into(),
                expect: [Expect::Any, Expect::Absent, Expect::Present, Expect::Modified(Revision(revision))]
                    [expect as usize],
                op: value.map_or(TxnOp::Delete, |len| TxnOp::Put(Bytes::from(vec![b'v'; len]))),
            },
        );
        prop::collection::vec(one, 0..60)
    }

    fn compare(index: &Index, twin: &Twin, after: &str, limit: usize) -> Result<(), TestCaseError> {
        let newest = twin.states.len() as u64 - 1;
        prop_assert_eq!(index.revision(), Revision(newest));
        for at in 0..=newest {
            let kept = Revision(at) >= index.floor();
            for key in KEYS {
                match index.get(key, Some(Revision(at))) {
                    Ok(found) => prop_assert_eq!(found.as_ref(), twin.states[at as usize].get(key)),
                    Err(_) => prop_assert!(!kept),
                }
            }
            for prefix in PREFIXES {
                let options = RangeOptions { at: Some(Revision(at)), limit, after: Some(after.into()) };
                let Ok(range) = index.range(prefix, &options) else {
                    prop_assert!(!kept);
                    continue;
                };
                prop_assert_eq!((range.records, range.remaining), twin.range(prefix, at, after, limit));
            }
            let events = index.since(Revision(at)).map(|events| events.cloned().collect::<Vec<_>>());
            prop_assert_eq!(events, kept.then(|| twin.events[at as usize..].to_vec()));
        }
        let future = index.get("/a/1", Some(Revision(newest + 1)));
        prop_assert_eq!(
            future,
            Err(StoreError::Future { asked: Revision(newest + 1), newest: Revision(newest) })
        );
        Ok(())
    }

    proptest! {
        #[test]
        fn agrees_with_a_map_per_revision(
            txns in txns(), count in 0..80usize, bytes in 0..20_000u64, compact in 0..60u64,
            after in 0..KEYS.len() + 1, limit in 0..5usize,
        ) {
            let (mut index, mut twin, now) = (Index::default(), Twin::new(), Instant::now());
            for txn in &txns {
                prop_assert_eq!(index.apply(txn, now), twin.apply(txn));
            }
            let after = KEYS.get(after).copied().unwrap_or("");
            compare(&index, &twin, after, limit)?;
            index.compact(Revision(compact));
            prop_assert_eq!(index.floor(), Revision(compact).min(index.revision()));
            index.trim(&HistoryLimits { count, bytes, age: Duration::MAX }, now);
            prop_assert!(index.history_len() <= count && index.history_bytes() <= bytes);
            compare(&index, &twin, after, limit)?;
            let last = twin.states.last().unwrap();
            prop_assert_eq!(index.keys(), last.len());
            prop_assert_eq!(index.value_bytes(), last.values().map(value_len).sum::<u64>());
        }
    }

    #[test]
    fn ends_of_prefixes() {
        let cases = [("", None), ("/a/", Some("/a0")), ("a\u{d7ff}", Some("a\u{e000}"))];
        for (prefix, end) in cases {
            assert_eq!(prefix_end(prefix).as_deref(), end);
        }
        assert_eq!(prefix_end("a\u{10ffff}\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(prefix_end("\u{10ffff}"), None);
    }

    #[test]
    fn history_ages() {
        let start = Instant::now();
        let mut index = Index::default();
        let txn = Txn { key: "/k".into(), expect: Expect::Any, op: TxnOp::Put(Bytes::from_static(b"v")) };
        for seconds in 0..10 {
            index.apply(&txn, start + Duration::from_secs(seconds));
        }
        let limits = HistoryLimits { count: 100, bytes: 1 << 20, age: Duration::from_secs(4) };
        index.trim(&limits, start + Duration::from_secs(9));
        // Revisions 1..=5 were written at seconds 0..=4; those of second 5 on are young enough.
        assert_eq!((index.floor(), index.history_len()), (Revision(5), 5));
        index.trim(&limits, start + Duration::from_secs(100));
        assert_eq!((index.floor(), index.history_bytes()), (Revision(10), 0));
    }
}
