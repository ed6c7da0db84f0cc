//! The store as a whole: what it keeps over closing and killing, pages in both directions, expiry, subscription.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use logs::scan::Wanted;
use logs::{Event, Limits, LogsError, Page, Read, Store};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

const WRITER: &str = "LOGS_TEST_WRITER";

fn wanted(forward: bool, count_max: usize) -> Wanted {
    Wanted { times_ms: 0..u64::MAX, beyond: None, forward, count_max, bytes_max: 1 << 20, scan_max: u64::MAX }
}

fn page(store: &Store, group: &str, wanted: Wanted) -> Page {
    store.read(&Read { group, streams: &|_| true, wanted, matches: &|_| true }).unwrap()
}

fn messages(page: &Page) -> Vec<&str> {
    page.events.iter().map(|f| f.event.message.as_str()).collect()
}

fn small() -> Limits {
    Limits { segment_bytes: 4_000, stream_bytes: 40_000, disk_free_min: 0 }
}

#[tokio::test]
async fn what_is_put_is_read_in_both_directions_also_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let store = Store::open(folder.path(), small()).unwrap();
        if round == 0 {
            store.create_stream("g", "a/b", 5).unwrap();
            assert_eq!(store.create_stream("g", "a/b", 5), Err(LogsError::StreamExists));
            store.create_stream("g", "c", 6).unwrap();
            // Out of order between the puts and over several segments.
            for n in 0..100u64 {
                let time = if n % 10 == 9 { n - 9 } else { n } * 10;
                store
                    .put("g", "a/b", vec![(time, format!("{time:04} {}", "x".repeat(100)))], n)
                    .await
                    .unwrap();
            }
            store.put("g", "c", vec![(55, "0055 c".into())], 1).await.unwrap();
        }
        let all = page(&store, "g", wanted(true, 1000));
        let texts = messages(&all);
        assert!(texts.len() == 101 && texts.is_sorted(), "{texts:?}");
        let last = page(&store, "g", wanted(false, 2));
        assert_eq!(messages(&last).iter().map(|m| &m[..4]).collect::<Vec<_>>(), ["0980", "0970"]);
        let streams = store.streams("g").unwrap();
        let first = &streams[0];
        assert_eq!((first.name.as_str(), first.created_ms), ("a/b", 5));
        assert_eq!((first.first_ms, first.last_ms, first.last_ingested_ms), (Some(0), Some(980), Some(99)));
    }
    let store = Store::open(folder.path(), small()).unwrap();
    store.put("g", "c", vec![(1, "more".into())], 2).await.unwrap();
    store.delete_stream("g", "a/b").unwrap();
    assert_eq!(messages(&page(&store, "g", wanted(true, 9))), ["more", "0055 c"]);
    assert_eq!(store.put("g", "a/b", vec![(1, String::new())], 2).await, Err(LogsError::NoStream));
    store.delete_group("g").unwrap();
    assert!(store.streams("g").unwrap().is_empty());
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[tokio::test]
async fn old_segments_go_by_age_and_by_size() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), small()).unwrap();
    store.create_stream("g", "s", 0).unwrap();
    for n in 0..100u64 {
        store.put("g", "s", vec![(n, "y".repeat(1_000))], n).await.unwrap();
    }
    let bytes = store.streams("g").unwrap()[0].bytes;
    assert!((30_000..=44_200).contains(&bytes), "{bytes}");
    assert!(store.expire("g", 95).unwrap() > 5);
    let left = page(&store, "g", wanted(true, 1000)).events;
    assert!(left.len() < 12 && left.last().unwrap().event.timestamp_ms == 99);
}

#[tokio::test]
async fn damage_costs_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    {
        let store = Store::open(folder.path(), Limits::default()).unwrap();
        store.create_stream("g", "s", 0).unwrap();
        store.put("g", "s", (0..10).map(|n| (n, format!("m{n}"))).collect(), 0).await.unwrap();
    }
    let segment = folder.path().join("g/000000000001/00000000000000000000.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes.truncate(bytes.len() - 3);
    std::fs::write(&segment, bytes).unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    store.put("g", "s", vec![(20, "after".into())], 0).await.unwrap();
    let all = page(&store, "g", wanted(true, 100));
    assert_eq!(messages(&all)[8..], ["m8", "after"]);
    assert_eq!(all.events.last().unwrap().event.number, 9);
}

#[tokio::test]
async fn subscribers_see_what_is_put() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    store.create_stream("g", "s", 0).unwrap();
    let mut live = store.subscribe();
    store.put("g", "s", vec![(1, "x".into())], 7).await.unwrap();
    let appended = live.recv().await.unwrap();
    let event = Event { timestamp_ms: 1, ingested_ms: 7, number: 0, message: "x".into() };
    assert_eq!((&*appended.group, appended.stream.as_str(), &appended.events), ("g", "s", &vec![event]));
}

/// Not a test by itself: the process that is killed below.
#[test]
fn writer() {
    let Ok(folder) = std::env::var(WRITER) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(folder, small_but_roomy()).unwrap();
        let known =
            page(&store, "g", wanted(false, 1)).events.first().map_or(0, |f| f.event.timestamp_ms + 1);
        let _ = store.create_stream("g", "s", 0);
        for n in known.. {
            store.put("g", "s", vec![(n, format!("event {n}"))], n).await.unwrap();
            println!("acknowledged {n}");
        }
    });
}

fn small_but_roomy() -> Limits {
    Limits { stream_bytes: 1 << 30, ..small() }
}

fn kill_a_writer(folder: &Path, after: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["writer", "--exact", "--nocapture"])
        .env(WRITER, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut last, mut seen) = (0, 0);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.by_ref() {
        let line = line.unwrap();
        let Some((_, n)) = line.split_once("acknowledged ") else { continue };
        (last, seen) = (n.parse().unwrap(), seen + 1);
        if seen == after {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    last
}

#[test]
fn what_was_acknowledged_is_there_after_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    for after in [1, 40, 133] {
        let last = kill_a_writer(folder.path(), after);
        let store = Store::open(folder.path(), small_but_roomy()).unwrap();
        let found: Vec<u64> =
            page(&store, "g", wanted(true, 10_000)).events.iter().map(|f| f.event.timestamp_ms).collect();
        assert!(found.len() as u64 > last, "{} events, {last} acknowledged", found.len());
        assert!(found.iter().copied().eq(0..found.len() as u64));
    }
}

/// Millions of events must not slow a put: with 50 times as many behind it, a put takes the same work.
#[tokio::test]
async fn a_long_stream_is_as_fast_as_a_short_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits::default()).unwrap();
    store.create_stream("g", "s", 0).unwrap();
    let mut time = 0;
    for _ in 0..30 {
        let batch = (0..10_000).map(|n| (time + n, "z".repeat(60))).collect();
        store.put("g", "s", batch, 0).await.unwrap();
        time += 10_000;
    }
    let streams = store.streams("g").unwrap();
    assert!(streams[0].bytes > 25_000_000);
    let first = page(&store, "g", Wanted { times_ms: 150_000..u64::MAX, ..wanted(true, 1) });
    assert_eq!(first.events[0].event.timestamp_ms, 150_000);
}
