//! kill -9 under load loses no acknowledged write and invents none.

use crate::tools::{Dice, all, child, delete, open, put};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use store::{Expect, Record, Revision, Store, Txn, TxnOutcome};

const FILE: &str = "STORE_TEST_CRASH_FILE";
const ROUND: &str = "STORE_TEST_CRASH_ROUND";
const ROUNDS: u64 = 12;
const WRITERS: u64 = 8;

fn prefix(round: u64, writer: u64) -> String {
    format!("/{round}/{writer}/")
}

/// Write number `n` of a writer: over few keys, of all sizes, every seventh a deletion.
fn nth(prefix: &str, n: u64) -> Txn {
    let key = format!("{prefix}{}", n % 16);
    let size = usize::try_from(n * 397 % 6000).unwrap();
    let value = format!("{n} {}", "x".repeat(size));
    if n % 7 == 6 { delete(&key, Expect::Any) } else { put(&key, Expect::Any, value) }
}

/// Runs until it is killed, printing what was acknowledged.
#[test]
fn writer() {
    let (Ok(file), Ok(round)) = (std::env::var(FILE), std::env::var(ROUND)) else { return };
    let round = round.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(open(Path::new(&file)));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0.. {
                        let outcome = store.txn(nth(&prefix(round, writer), n)).await.unwrap();
                        let TxnOutcome::Done { revision, .. } = outcome else { panic!("{outcome:?}") };
                        writeln!(std::io::stdout().lock(), "acked {writer} {n} {revision}").unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

/// What each writer was told: the revision of every write, in order.
type Acked = Vec<Vec<u64>>;

fn run_and_kill(file: &Path, round: u64, run: Duration) -> Acked {
    let [program, args @ ..] = child("crash::writer");
    let mut child = Command::new(program)
        .args(args)
        .env(FILE, file)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = lines.by_ref().find(|line| line.as_ref().unwrap().starts_with("acked")).expect("it writes");
    let killer = std::thread::spawn(move || {
        // Not waiting for anything: the moment is meant to be arbitrary.
        std::thread::sleep(run);
        child.kill().unwrap();
        child.wait().unwrap();
    });
    let mut acked = vec![Vec::new(); WRITERS as usize];
    for line in std::iter::once(first).chain(lines).map(Result::unwrap) {
        let Some(rest) = line.strip_prefix("acked ") else { continue };
        let numbers: Vec<u64> = rest.split(' ').map(|word| word.parse().unwrap()).collect();
        // The kill can cut the last line short: then that write counts as not acknowledged.
        let &[writer, n, revision] = &numbers[..] else { continue };
        let told = &mut acked[writer as usize];
        assert_eq!(told.len() as u64, n);
        told.push(revision);
    }
    killer.join().unwrap();
    acked
}

/// What a writer's first `writes` writes leave behind.
fn model(prefix: &str, writes: u64) -> BTreeMap<String, Txn> {
    let mut state = BTreeMap::new();
    for n in 0..writes {
        let txn = nth(prefix, n);
        match txn.op {
            store::TxnOp::Put(_) => state.insert(txn.key.to_string(), txn),
            store::TxnOp::Delete => state.remove(&*txn.key),
        };
    }
    state
}

fn is(found: &BTreeMap<String, Record>, model: &BTreeMap<String, Txn>) -> bool {
    found.len() == model.len()
        && found.iter().zip(model).all(|((key, record), (expected, txn))| {
            key == expected && matches!(&txn.op, store::TxnOp::Put(value) if *value == record.value)
        })
}

#[tokio::test]
async fn kill_9_loses_no_acknowledged_write() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store.db");
    let mut dice = Dice(u64::from(std::process::id()));
    let mut before: BTreeMap<String, Record> = BTreeMap::new();
    let mut total = 0;
    for round in 0..ROUNDS {
        let acked = run_and_kill(&file, round, Duration::from_millis(5 + dice.below(200)));
        let store = open(&file);
        for (writer, told) in acked.iter().enumerate() {
            let prefix = prefix(round, writer as u64);
            let found = all(&store, &prefix).await;
            // The write under way when it was killed may have been made or not.
            let told_count = told.len() as u64;
            let exact = is(&found, &model(&prefix, told_count));
            assert!(
                exact || is(&found, &model(&prefix, told_count + 1)),
                "round {round}, writer {writer}: after {told_count} acknowledged writes: {:?}",
                found.keys()
            );
            for record in found.values() {
                let n: u64 =
                    std::str::from_utf8(&record.value).unwrap().split(' ').next().unwrap().parse().unwrap();
                if let Some(revision) = told.get(n as usize) {
                    assert_eq!(record.modified, Revision(*revision));
                }
            }
            assert!(told.last().is_none_or(|last| store.stats().revision.0 >= *last));
            total += told_count;
        }
        let now = all(&store, "").await;
        for (key, record) in &before {
            assert_eq!(now.get(key), Some(record), "from an earlier round");
        }
        before = now;
    }
    assert!(total > ROUNDS * WRITERS, "only {total} writes in {ROUNDS} rounds");
}
