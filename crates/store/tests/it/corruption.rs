//! Damaged files are refused, or the damage touches nothing: wrong data is never served.

use crate::tools::{Dice, all, delete, done, open, put, refusal};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use store::{Embedded, EmbeddedOptions, Expect, RangeOptions, Record, Revision, Store, StoreError};

type State = (Revision, BTreeMap<String, Record>);

async fn state(store: &dyn Store) -> State {
    (store.revision().await.unwrap(), all(store, "").await)
}

async fn fill(store: &dyn Store) {
    for n in 0..150 {
        let value = format!("value of {n}, {}", "0123456789".repeat(n * 7 % 700));
        done(store, put(&format!("/k/{n}"), Expect::Any, value)).await;
    }
    // Some free pages and reused ones too.
    for n in (0..150).step_by(4) {
        done(store, delete(&format!("/k/{n}"), Expect::Any)).await;
    }
}

/// A closed store and what it holds.
async fn closed(dir: &Path) -> (PathBuf, State) {
    let path = dir.join("store.db");
    let store = open(&path);
    fill(&store).await;
    let state = state(&store).await;
    (path, state)
}

/// What opening gives: the state, or a refusal that says damaged.
async fn try_open(path: &Path) -> Option<State> {
    match Embedded::open(path, EmbeddedOptions::default()) {
        Ok(store) => Some(state(&store).await),
        Err(StoreError::Engine(text)) if text.contains("damaged") || text.contains("format") => None,
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_damaged_value_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = closed(dir.path()).await;
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"value of 7,";
    // SQLite may have left a stale copy in unused space.
    let places: Vec<usize> = bytes
        .windows(needle.len())
        .enumerate()
        .filter(|(_, window)| window == needle)
        .map(|(at, _)| at)
        .collect();
    places.iter().for_each(|at| bytes[*at] ^= 1);
    std::fs::write(&path, &bytes).unwrap();
    let text = refusal(&path);
    assert!(text.contains("\"/k/7\"") && text.contains("checksum") && text.contains("backup"), "{text}");
    assert!(std::fs::read(&path).unwrap() == bytes, "left as it was");
}

#[tokio::test]
async fn flipped_bits_zeroed_blocks_and_cut_files() {
    let dir = tempfile::tempdir().unwrap();
    let (path, expected) = closed(dir.path()).await;
    let whole = std::fs::read(&path).unwrap();
    let mut dice = Dice(1);
    let (mut refused, mut tried) = (0, 0);
    for case in 0..400 {
        let mut bytes = whole.clone();
        let at = dice.below(whole.len() as u64) as usize;
        match case % 8 {
            0 => bytes[at / 4096 * 4096..].iter_mut().take(4096).for_each(|byte| *byte = 0),
            1 => bytes.truncate(at),
            2 => bytes[at / 512 * 512..].iter_mut().take(512).for_each(|byte| *byte = 0xff),
            3 => bytes.copy_within(0..4096, at / 4096 * 4096),
            _ => bytes[at] ^= 1 << dice.below(8),
        }
        if bytes == whole {
            continue;
        }
        let damaged = dir.path().join("damaged.db");
        std::fs::write(&damaged, &bytes).unwrap();
        tried += 1;
        match try_open(&damaged).await {
            None => refused += 1,
            Some(found) => assert_eq!(found, expected, "case {case} at byte {at}"),
        }
    }
    assert!(refused * 2 > tried, "{refused} of {tried} refused");
}

/// Lists of free pages hold no record, but a wrong one would have live pages written over later.
#[tokio::test]
async fn a_damaged_free_list_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = closed(dir.path()).await;
    let mut bytes = std::fs::read(&path).unwrap();
    // The header's first free-list page; its first entry, made to name the page of a table.
    let trunk = u32::from_be_bytes(bytes[32..36].try_into().unwrap()) as usize;
    assert!(trunk > 0, "there are free pages");
    let entry = (trunk - 1) * 4096 + 8;
    bytes[entry..entry + 4].copy_from_slice(&3u32.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    assert!(refusal(&path).contains("damaged"));
}

/// A row that is gone without a trace, or brought back from the past, passes every checksum of its own.
#[tokio::test]
async fn lost_and_stale_rows_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = closed(dir.path()).await;
    let tamper = |name: &str, sql: &str| {
        let copy = dir.path().join(name);
        std::fs::copy(&path, &copy).unwrap();
        let connection = rusqlite::Connection::open(&copy).unwrap();
        assert!(connection.execute(sql, []).unwrap() > 0);
        drop(connection);
        refusal(&copy)
    };
    assert!(tamper("lost", "DELETE FROM records WHERE key = '/k/9'").contains("records were found"));
    assert!(tamper("moved", "UPDATE records SET created = 9999 WHERE key = '/k/9'").contains("/k/9"));
    assert!(tamper("renamed", "UPDATE records SET key = '/k/10' WHERE key = '/k/9'").contains("/k/10"));
    assert!(tamper("back in time", "UPDATE meta SET revision = revision - 1").contains("meta"));
    let copies = "INSERT INTO records SELECT created + 500, modified + 500, crc, key, value FROM records";
    assert!(tamper("doubled", copies).contains("damaged"));
}

/// The log of a killed store holds acknowledged writes that are nowhere else.
#[tokio::test]
async fn a_damaged_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = open(&path);
    fill(&store).await;
    let before_last = state(&store).await;
    done(&store, put("/last", Expect::Any, "last")).await;
    let expected = state(&store).await;
    // The files of an open store at rest are what kill -9 would leave.
    let (main, log) =
        (std::fs::read(&path).unwrap(), std::fs::read(dir.path().join("store.db-wal")).unwrap());
    drop(store);
    let copy = dir.path().join("copy.db");
    let copied_log = dir.path().join("copy.db-wal");
    let mut dice = Dice(2);
    let (mut refused, mut undone) = (0, 0);
    for case in 0..200 {
        std::fs::write(&copy, &main).unwrap();
        let mut bytes = log.clone();
        // The header and the frames' headers are hit more often than their share.
        let at = match case % 4 {
            0 => dice.below(32),
            1 => 32 + dice.below(log.len() as u64 / 4120) * 4120 + dice.below(24),
            _ => dice.below(log.len() as u64),
        } as usize;
        if case > 0 {
            bytes[at] ^= 1 << dice.below(8);
        }
        std::fs::write(&copied_log, &bytes).unwrap();
        match try_open(&copy).await {
            None => refused += 1,
            // What is torn looks the same as damage within the last transaction.
            Some(found) if found == before_last => undone += 1,
            Some(found) => assert_eq!(found, expected, "case {case} at byte {at}"),
        }
    }
    assert!(refused > 190 && undone < 10, "{refused} refused, {undone} undone");
    std::fs::remove_file(&copy).unwrap();
    std::fs::write(&copied_log, &log).unwrap();
    assert!(refusal(&copy).contains("missing"));
}

/// A power cut can end the log anywhere: what comes back is one whole earlier state, never a mix.
#[tokio::test]
async fn a_cut_log_gives_an_earlier_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.db");
    let store = open(&path);
    fill(&store).await;
    let (main, log) =
        (std::fs::read(&path).unwrap(), std::fs::read(dir.path().join("store.db-wal")).unwrap());
    let copy = dir.path().join("copy.db");
    let mut dice = Dice(5);
    let mut revisions = std::collections::BTreeSet::new();
    for _ in 0..60 {
        std::fs::write(&copy, &main).unwrap();
        let length = dice.below(log.len() as u64) as usize;
        std::fs::write(dir.path().join("copy.db-wal"), &log[..length]).unwrap();
        let (revision, found) = try_open(&copy).await.expect("a cut log is no damage");
        let options = RangeOptions { at: Some(revision), ..RangeOptions::default() };
        let then = store.range("", options).await.unwrap().records;
        assert!(found.into_values().eq(then), "cut at {length}, revision {revision}");
        revisions.insert(revision);
    }
    assert!(revisions.len() > 20, "{revisions:?}");
}
