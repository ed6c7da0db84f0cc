//! Small helpers that the tests share.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use store::{
    Embedded, EmbeddedOptions, Event, Expect, RangeOptions, Record, Revision, Store, StoreError, Txn, TxnOp,
    TxnOutcome, Watch, WatchError,
};

/// Nothing here takes longer than this unless it hangs.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Opens a store. Other tests of this binary start processes: one between its fork and its exec still has the lock
/// of a store that was closed a moment ago, so that is waited for.
pub fn open(path: &Path) -> Embedded {
    let own = format!("is locked: process {} ", std::process::id());
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        match Embedded::open(path, EmbeddedOptions::default()) {
            Err(StoreError::Engine(text)) if text.contains(&own) && std::time::Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            result => return result.unwrap(),
        }
    }
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + DEADLINE;
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn put(key: &str, expect: Expect, value: impl Into<Bytes>) -> Txn {
    Txn { key: key.into(), expect, op: TxnOp::Put(value.into()) }
}

pub fn delete(key: &str, expect: Expect) -> Txn {
    Txn { key: key.into(), expect, op: TxnOp::Delete }
}

/// Applies a transaction that must succeed; its revision.
pub async fn done(store: &dyn Store, txn: Txn) -> Revision {
    match store.txn(txn).await.unwrap() {
        TxnOutcome::Done { revision, .. } => revision,
        TxnOutcome::Conflict(found) => panic!("conflict with {found:?}"),
    }
}

pub async fn set(store: &dyn Store, key: &str, value: &str) -> Revision {
    done(store, put(key, Expect::Any, value.to_owned())).await
}

/// Every record under a prefix, by key.
pub async fn all(store: &dyn Store, prefix: &str) -> BTreeMap<String, Record> {
    let range = store.range(prefix, RangeOptions::default()).await.unwrap();
    range.records.into_iter().map(|record| (record.key.to_string(), record)).collect()
}

pub async fn next(watch: &mut Watch) -> Option<Result<Vec<Event>, WatchError>> {
    tokio::time::timeout(DEADLINE, watch.events.recv()).await.expect("a watch that should have news has none")
}

/// Reads a watch up to and including a revision.
pub async fn events_until(watch: &mut Watch, last: Revision) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while events.last().is_none_or(|event| event.revision < last) {
        events.extend(next(watch).await.expect("the watch goes on").unwrap());
    }
    events
}

/// Why opening the store at this path is refused.
pub fn refusal(path: &Path) -> String {
    match Embedded::open(path, EmbeddedOptions::default()) {
        Err(StoreError::Engine(text)) => text,
        Err(other) => panic!("unexpected error {other:?}"),
        Ok(_) => panic!("{} opened", path.display()),
    }
}

/// This test binary again, running one test of it alone.
pub fn child(test: &str) -> [String; 4] {
    let program = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    [program, test.into(), "--exact".into(), "--nocapture".into()]
}

/// Runs a shell script with `child` as its arguments (`exec "$@"` in it starts the child).
pub fn run_in_shell(mut wrapper: Command, script: &str, test: &str, env: (&str, &Path)) {
    let output =
        wrapper.args(["sh", "-c", script, "sh"]).args(child(test)).env(env.0, env.1).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{}\n{text}", output.status);
}

/// A little generator of numbers that look random: the same ones for the same seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
