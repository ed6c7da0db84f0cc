//! What every [`Store`] must do, whichever engine is under it: each case takes a store that may hold other
//! keys already and works under a prefix of its own, with revisions relative to where it starts.

use crate::tools::{all, delete, done, events_until, next, open, put, set};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{Event, Expect, RangeOptions, Record, Revision, Store, StoreError, TxnOutcome, WatchError};

/// Runs every case.
pub async fn conforms(store: Arc<dyn Store>) {
    compare_and_swap(&*store).await;
    one_winner(store.clone()).await;
    reads_of_the_past(&*store).await;
    pages_under_writes(store.clone()).await;
    watch_from_now_and_then(&*store).await;
    watches_are_exact(store.clone()).await;
    compaction(&*store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(Arc::new(open(&dir.path().join("store.db")))).await;
}

async fn compare_and_swap(store: &dyn Store) {
    let key = "/cas/a";
    let conflict = |outcome| match outcome {
        TxnOutcome::Conflict(found) => found,
        TxnOutcome::Done { .. } => panic!("went through"),
    };
    // A key that sorts behind, and one that this one is a prefix of: neither is it.
    set(store, "/cas/aa", "not this one").await;
    set(store, "/cas/b", "not this one").await;
    let start = store.revision().await.unwrap();
    for expect in [Expect::Present, Expect::Modified(Revision(1)), Expect::Modified(Revision(0))] {
        assert_eq!(conflict(store.txn(put(key, expect, "x")).await.unwrap()), None);
        assert_eq!(conflict(store.txn(delete(key, expect)).await.unwrap()), None);
    }
    let nothing = TxnOutcome::Done { revision: start, previous: None };
    assert_eq!(store.txn(delete(key, Expect::Any)).await.unwrap(), nothing);
    assert_eq!(store.revision().await.unwrap(), start, "nothing was written");

    let created = done(store, put(key, Expect::Absent, "1")).await;
    assert!(created > start);
    let first = Record { key: key.into(), value: Bytes::from_static(b"1"), created, modified: created };
    assert_eq!(conflict(store.txn(put(key, Expect::Absent, "x")).await.unwrap()), Some(first.clone()));
    let modified = done(store, put(key, Expect::Modified(created), "2")).await;
    let second = Record { value: Bytes::from_static(b"2"), modified, ..first.clone() };
    assert_eq!(
        conflict(store.txn(put(key, Expect::Modified(created), "x")).await.unwrap()),
        Some(second.clone())
    );
    assert_eq!(store.get(key, None).await.unwrap(), Some(second.clone()));
    let gone = store.txn(delete(key, Expect::Modified(modified))).await.unwrap();
    let TxnOutcome::Done { revision, previous } = gone else { panic!("{gone:?}") };
    assert!(revision > modified);
    assert_eq!(previous, Some(second));
    assert_eq!(store.get(key, None).await.unwrap(), None);
    let again = done(store, put(key, Expect::Absent, "3")).await;
    assert_eq!(store.get(key, None).await.unwrap().unwrap().created, again, "a new life");
    assert!(done(store, put(key, Expect::Present, "")).await > again, "an empty value is a value");
    assert_eq!(store.get(key, None).await.unwrap().unwrap().value, Bytes::new());
}

/// Of many that swap from the same revision exactly one wins, every time.
async fn one_winner(store: Arc<dyn Store>) {
    let mut revision = done(&*store, put("/winner/k", Expect::Absent, "0")).await;
    for round in 0..20 {
        let tries: Vec<_> = (0..16)
            .map(|n| {
                let (store, value) = (store.clone(), format!("{round} {n}"));
                tokio::spawn(async move {
                    store.txn(put("/winner/k", Expect::Modified(revision), value)).await.unwrap()
                })
            })
            .collect();
        let mut winners = Vec::new();
        for one in tries {
            if let TxnOutcome::Done { revision, .. } = one.await.unwrap() {
                winners.push(revision);
            }
        }
        assert_eq!(winners.len(), 1);
        revision = winners[0];
        assert_eq!(store.get("/winner/k", None).await.unwrap().unwrap().modified, revision);
    }
}

async fn reads_of_the_past(store: &dyn Store) {
    let mut states: Vec<(Revision, BTreeMap<String, Record>)> = Vec::new();
    for n in 0..30 {
        let key = format!("/past/{}", n % 4);
        let revision = match n % 5 {
            4 => done(store, delete(&key, Expect::Present)).await,
            _ => set(store, &key, &n.to_string()).await,
        };
        set(store, "/elsewhere", "x").await;
        states.push((revision, all(store, "/past/").await));
    }
    for (revision, state) in &states {
        let options = RangeOptions { at: Some(*revision), ..RangeOptions::default() };
        let range = store.range("/past/", options).await.unwrap();
        assert_eq!(range.revision, *revision);
        let found: BTreeMap<_, _> = range.records.into_iter().map(|r| (r.key.to_string(), r)).collect();
        assert_eq!(&found, state);
        for key in ["/past/0", "/past/1", "/past/2", "/past/3", "/past/4"] {
            assert_eq!(store.get(key, Some(*revision)).await.unwrap().as_ref(), state.get(key));
        }
    }
    let newest = store.revision().await.unwrap();
    let future = Revision(newest.0 + 1000);
    let expected = StoreError::Future { asked: future, newest };
    assert_eq!(store.get("/past/0", Some(future)).await.unwrap_err(), expected);
    let options = RangeOptions { at: Some(future), ..RangeOptions::default() };
    assert_eq!(store.range("/past/", options).await.unwrap_err(), expected);
}

/// A listing in pages shows one moment, whatever is written meanwhile.
async fn pages_under_writes(store: Arc<dyn Store>) {
    for n in 0..100 {
        set(&*store, &format!("/pages/{n:03}"), "old").await;
    }
    set(&*store, "/pages", "before the prefix").await;
    set(&*store, "/pages0", "behind the prefix").await;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..100 {
                set(&*store, &format!("/pages/{n:03}"), "new").await;
                set(&*store, &format!("/pages/{n:03}/more"), "new").await;
                done(&*store, delete(&format!("/pages/{:03}", (n * 37) % 100), Expect::Any)).await;
            }
        })
    };
    let options = |at, limit, after| RangeOptions { at, limit, after };
    while !writer.is_finished() {
        let first = store.range("/pages/", options(None, 7, None)).await.unwrap();
        let at = Some(first.revision);
        let whole = store.range("/pages/", options(at, 0, None)).await.unwrap();
        assert_eq!(whole.remaining, 0);
        let (mut paged, mut remaining) = (first.records, first.remaining);
        while remaining > 0 {
            let after = paged.last().map(|record| record.key.clone());
            let page = store.range("/pages/", options(at, 7, after)).await.unwrap();
            assert_eq!(page.revision, first.revision);
            assert_eq!(page.records.len() + page.remaining, remaining);
            remaining = page.remaining;
            paged.extend(page.records);
        }
        assert_eq!(paged, whole.records);
        assert!(paged.iter().all(|record| record.modified <= first.revision));
    }
    writer.await.unwrap();
    assert_eq!(store.range("", options(None, 1, None)).await.unwrap().records.len(), 1);
}

async fn watch_from_now_and_then(store: &dyn Store) {
    let start = store.revision().await.unwrap();
    let mut live = store.watch("/watch/", start).await.unwrap();
    let created = set(store, "/watch/a", "1").await;
    set(store, "/watching", "not under the prefix").await;
    let modified = set(store, "/watch/a", "2").await;
    let deleted = done(store, delete("/watch/a", Expect::Any)).await;
    let record = |value: &'static str, modified| {
        let (key, value) = ("/watch/a".into(), Bytes::from_static(value.as_bytes()));
        Some(Record { key, value, created, modified })
    };
    let event = |revision, record, previous| Event { key: "/watch/a".into(), revision, record, previous };
    let expected = [
        event(created, record("1", created), None),
        event(modified, record("2", modified), record("1", created)),
        event(deleted, None, record("2", modified)),
    ];
    assert_eq!(events_until(&mut live, deleted).await, expected);
    for (after, skipped) in [(start, 0), (created, 1), (modified, 2)] {
        let mut replay = store.watch("/watch/", after).await.unwrap();
        assert_eq!(events_until(&mut replay, deleted).await, expected[skipped..]);
    }
    // Starting ahead of the store means: only what comes after that.
    let newest = store.revision().await.unwrap();
    let mut ahead = store.watch("/watch/", Revision(newest.0 + 1)).await.unwrap();
    set(store, "/watch/b", "skipped").await;
    let seen = set(store, "/watch/b", "seen").await;
    let events = events_until(&mut ahead, seen).await;
    assert_eq!(events.iter().map(|event| event.revision).collect::<Vec<_>>(), [seen]);
}

/// Watches started at any moment, under concurrent writes, each see the same whole sequence from there on.
async fn watches_are_exact(store: Arc<dyn Store>) {
    const WRITERS: usize = 8;
    const WRITES: usize = 150;
    let start = store.revision().await.unwrap();
    let mut first = store.watch("/exact/", start).await.unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..WRITES {
                    let key = format!("/exact/{}/{}", writer % 3, n % 10);
                    let op = if n % 6 == 5 {
                        delete(&key, Expect::Any)
                    } else {
                        put(&key, Expect::Any, format!("{writer} {n}"))
                    };
                    done(&*store, op).await;
                }
            })
        })
        .collect();
    let mut others = Vec::new();
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        let now = store.revision().await.unwrap();
        let after = Revision(start.0 + (now.0 - start.0) * (others.len() as u64 % 3) / 2);
        let prefix = ["/exact/", "/exact/1/", "/exact/2/7"][others.len() % 3];
        others.push((prefix, after, store.watch(prefix, after).await.unwrap()));
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    for end in ["/exact/0/end", "/exact/1/end", "/exact/2/7end"] {
        set(&*store, end, "").await;
    }
    let last = store.revision().await.unwrap();
    let whole = events_until(&mut first, last).await;
    let mut state = BTreeMap::new();
    for (number, event) in whole.iter().enumerate() {
        assert_eq!(event.revision.0, start.0 + 1 + number as u64, "no gap, no repeat");
        let before = match &event.record {
            Some(record) => state.insert(event.key.to_string(), record.clone()),
            None => state.remove(&*event.key),
        };
        assert_eq!(event.previous, before);
    }
    assert_eq!(state, all(&*store, "/exact/").await, "the events lead to the state");
    for (prefix, after, mut watch) in others {
        let expected: Vec<Event> =
            whole.iter().filter(|e| e.revision > after && e.key.starts_with(prefix)).cloned().collect();
        let end = expected.last().unwrap().revision;
        assert_eq!(events_until(&mut watch, end).await, expected, "{prefix} after {after}");
    }
}

async fn compaction(store: &dyn Store) {
    let first = set(store, "/compact/a", "1").await;
    let second = set(store, "/compact/a", "2").await;
    let third = set(store, "/compact/b", "3").await;
    let mut running = store.watch("/compact/", first).await.unwrap();
    store.compact(second).await.unwrap();
    store.compact(first).await.unwrap();
    assert_eq!(
        store.get("/compact/a", Some(first)).await.unwrap_err(),
        StoreError::Compacted { asked: first, oldest: second }
    );
    let options = RangeOptions { at: Some(first), ..RangeOptions::default() };
    assert!(matches!(store.range("/", options).await, Err(StoreError::Compacted { .. })));
    let refused = store.watch("/compact/", first).await.err();
    assert_eq!(refused, Some(WatchError::Compacted { asked: first, oldest: second }));
    assert_eq!(store.get("/compact/a", Some(second)).await.unwrap().unwrap().modified, second);
    let mut kept = store.watch("/compact/", second).await.unwrap();
    assert_eq!(events_until(&mut kept, third).await.len(), 1);
    assert_eq!(events_until(&mut running, third).await.len(), 2, "who watches already misses nothing");
    let newest = store.revision().await.unwrap();
    let asked = Revision(newest.0 + 1);
    assert_eq!(store.compact(asked).await.unwrap_err(), StoreError::Future { asked, newest });
    store.compact(newest).await.unwrap();
    assert_eq!(store.get("/compact/b", None).await.unwrap().unwrap().modified, third);
    let mut live = store.watch("/compact/", newest).await.unwrap();
    let fourth = set(store, "/compact/b", "4").await;
    assert_eq!(next(&mut live).await.unwrap().unwrap()[0].revision, fourth);
}
