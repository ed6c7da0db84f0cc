//! What is particular to the embedded store: its file, its bounds, its end.

use crate::tools::{DEADLINE, all, delete, done, next, open, put, refusal, set};
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{
    Embedded, EmbeddedOptions, Expect, RangeOptions, Record, Revision, Store, StoreError, TxnOutcome,
    VALUE_BYTES_MAX, WatchError,
};

#[tokio::test]
async fn what_is_closed_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a folder that is made/store.db");
    let store = open(&path);
    set(&store, "/a", "1").await;
    set(&store, "/b", "gone").await;
    set(&store, "/a", "2").await;
    let last = done(&store, delete("/b", Expect::Present)).await;
    let before = all(&store, "").await;
    drop(store);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let store = open(&path);
    assert_eq!(all(&store, "").await, before);
    assert_eq!(store.revision().await.unwrap(), last, "a deletion counts, though it left no row");
    let asked = Revision(last.0 - 1);
    assert_eq!(store.watch("/", asked).await.err(), Some(WatchError::Compacted { asked, oldest: last }));
    let expected = StoreError::Compacted { asked, oldest: last };
    assert_eq!(store.get("/a", Some(asked)).await.unwrap_err(), expected);
    store.watch("/", last).await.unwrap();
    assert_eq!(set(&store, "/b", "again").await, Revision(last.0 + 1));
}

#[test]
fn a_second_opener_is_told_who_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let _first = open(&path);
    let text = refusal(&path);
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
}

#[test]
fn foreign_and_newer_files_are_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t(x)").unwrap();
    let newer = dir.path().join("newer.db");
    drop(open(&newer));
    rusqlite::Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let empty = dir.path().join("empty.db");
    std::fs::write(&empty, "").unwrap();
    for (path, words) in [(foreign, "Gantry store"), (newer, "format 99"), (empty, "Gantry store")] {
        let before = std::fs::read(&path).unwrap();
        assert!(refusal(&path).contains(words), "{}", refusal(&path));
        assert!(std::fs::read(&path).unwrap() == before, "{} changed", path.display());
    }
}

#[tokio::test]
async fn too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store.db"));
    let error = store.txn(put("/k", Expect::Any, vec![0; VALUE_BYTES_MAX + 1])).await.unwrap_err();
    assert_eq!(error, StoreError::Engine("request is too large".into()));
    done(&store, put("/k", Expect::Any, vec![0; VALUE_BYTES_MAX])).await;
    for key in [String::new(), "k".repeat(5000)] {
        assert!(matches!(store.txn(put(&key, Expect::Any, "")).await, Err(StoreError::Engine(_))));
    }
}

#[tokio::test]
async fn a_slow_watcher_is_cut_and_the_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    for (batches, bytes, value) in [(4, usize::MAX, 1), (1000, 4000, 800)] {
        let options = EmbeddedOptions {
            watch_batches_max: batches,
            watch_bytes_max: bytes,
            ..EmbeddedOptions::default()
        };
        let store = Embedded::open(&dir.path().join(format!("{value}.db")), options).unwrap();
        let mut slow = store.watch("/", Revision(0)).await.unwrap();
        let mut quick = store.watch("/", Revision(0)).await.unwrap();
        let mut apart = store.watch("/elsewhere", Revision(0)).await.unwrap();
        for n in 1..=20 {
            let key = format!("/{n}");
            assert_eq!(done(&store, put(&key, Expect::Absent, vec![0; value])).await, Revision(n));
            assert_eq!(next(&mut quick).await.unwrap().unwrap()[0].revision, Revision(n));
        }
        let mut seen = 0;
        while let Some(Ok(events)) = next(&mut slow).await.inspect(|batch| {
            if let Err(error) = batch {
                assert_eq!(*error, WatchError::TooSlow);
            }
        }) {
            seen += 1;
            assert_eq!(events[0].revision, Revision(seen));
        }
        assert!((3..=4).contains(&seen), "{seen} batches were queued");
        assert!(next(&mut slow).await.is_none(), "nothing comes behind the error");
        assert_eq!(store.stats().watchers, 2);
        drop(quick);
        let last = set(&store, "/elsewhere", "").await;
        assert_eq!(next(&mut apart).await.unwrap().unwrap()[0].revision, last);
        assert_eq!(store.stats().watchers, 1);
    }
}

#[tokio::test]
async fn history_is_bounded_by_count_bytes_and_age() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(Mutex::new(Instant::now()));
    let clock = now.clone();
    let options = EmbeddedOptions {
        history_count_max: 50,
        history_bytes_max: 50_000,
        history_age_max: Duration::from_secs(60),
        clock: Arc::new(move || *clock.lock()),
        ..EmbeddedOptions::default()
    };
    let store = Embedded::open(&dir.path().join("store.db"), options).unwrap();
    for n in 0..100 {
        set(&store, &format!("/{}", n % 10), "small").await;
    }
    assert_eq!((store.stats().history_events, store.stats().oldest), (50, Revision(50)));
    for _ in 0..20 {
        done(&store, put("/big", Expect::Any, vec![0; 10_000])).await;
    }
    let stats = store.stats();
    assert!(stats.history_events < 10 && stats.history_bytes <= 50_000, "{stats:?}");
    *now.lock() += Duration::from_secs(61);
    let last = set(&store, "/0", "later").await;
    assert_eq!((store.stats().history_events, store.stats().oldest), (1, Revision(last.0 - 1)));
}

#[tokio::test]
async fn a_closed_store_reads_but_does_not_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = open(&path);
    let last = set(&store, "/a", "1").await;
    let mut watch = store.watch("/", last).await.unwrap();
    store.close().await;
    store.close().await;
    assert_eq!(next(&mut watch).await, None);
    assert_eq!(next(&mut store.watch("/", last).await.unwrap()).await, None);
    assert_eq!(store.txn(put("/a", Expect::Any, "2")).await.unwrap_err(), StoreError::Closed);
    assert_eq!(store.compact(last).await.unwrap_err(), StoreError::Closed);
    assert_eq!(&*store.get("/a", None).await.unwrap().unwrap().value, b"1");
    let again = open(&path);
    assert_eq!(again.revision().await.unwrap(), last, "the file and its lock are free");
}

/// Rewriting and deleting keeps the files within bounds, and what is freed goes back to the file system.
#[tokio::test(flavor = "multi_thread")]
async fn the_disk_is_bounded() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir.path().join("store.db")));
    for round in 0..4u8 {
        let writers: Vec<_> = (0..16)
            .map(|writer| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0..30 {
                        let value = vec![round; 100_000 + 1000 * writer];
                        done(&*store, put(&format!("/{writer}/{n}"), Expect::Any, value)).await;
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let stats = store.stats();
        assert!(stats.log_bytes <= 24 * MIB, "{stats:?}");
        assert!(stats.file_bytes <= 2 * stats.value_bytes, "{stats:?}");
    }
    assert!(store.stats().file_bytes > 40 * MIB);
    for key in all(&*store, "").await.into_keys() {
        done(&*store, delete(&key, Expect::Present)).await;
    }
    let deadline = Instant::now() + DEADLINE;
    while store.stats().file_bytes > 20 * MIB {
        assert!(Instant::now() < deadline, "not given back: {:?}", store.stats());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_writes_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(open(&dir.path().join("store.db")));
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    done(&*store, put(&format!("/{writer}/{n}"), Expect::Absent, vec![7; 1024])).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let stats = store.stats();
    assert_eq!((stats.writes, stats.keys, stats.revision), (1280, 1280, Revision(1280)));
    assert!(stats.commits < stats.writes / 2, "{} commits", stats.commits);
    assert_eq!(stats.commit_times.buckets.iter().sum::<u64>(), stats.commits);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The store, closed and opened again in between, against a plain map.
    #[test]
    fn agrees_with_a_map_across_restarts(
        ops in prop::collection::vec((0..6u8, 0..4u8, prop::option::weighted(0.7, 0..9000usize)), 1..60),
        reopen in prop::collection::btree_set(0..60usize, 0..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.db");
        let mut store = open(&path);
        let mut twin: BTreeMap<String, Record> = BTreeMap::new();
        let mut revision = 0;
        for (number, (key, expect, value)) in ops.into_iter().enumerate() {
            if reopen.contains(&number) {
                drop(store);
                store = open(&path);
            }
            let key = format!("/{key}");
            let found = twin.get(&key).cloned();
            let (expect, holds) = match (expect, &found) {
                (0, _) => (Expect::Any, true),
                (1, found) => (Expect::Absent, found.is_none()),
                (2, found) => (Expect::Present, found.is_some()),
                (_, Some(record)) => (Expect::Modified(record.modified), true),
                (_, None) => (Expect::Modified(Revision(revision)), false),
            };
            revision += u64::from(holds && (value.is_some() || found.is_some()));
            if let (true, Some(len)) = (holds, value) {
                let created = found.as_ref().map_or(Revision(revision), |record| record.created);
                let value = Bytes::from(vec![len as u8; len]);
                let record = Record { key: key.as_str().into(), value, created, modified: Revision(revision) };
                twin.insert(key.clone(), record);
            } else if holds {
                twin.remove(&key);
            }
            let txn = match value {
                Some(len) => put(&key, expect, vec![len as u8; len]),
                None => delete(&key, expect),
            };
            let outcome = runtime.block_on(store.txn(txn)).unwrap();
            let expected = match holds {
                true => TxnOutcome::Done { revision: Revision(revision), previous: found },
                false => TxnOutcome::Conflict(found),
            };
            prop_assert_eq!(outcome, expected);
        }
        drop(store);
        let store = open(&path);
        let range = runtime.block_on(store.range("", RangeOptions::default())).unwrap();
        prop_assert_eq!(range.revision, Revision(revision));
        prop_assert_eq!(range.records, twin.into_values().collect::<Vec<_>>());
    }
}
