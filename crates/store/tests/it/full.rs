//! When the disk refuses: nothing is acknowledged, nothing changes, reads go on, and it heals by itself.
//!
//! Each case runs in a child process on a disk of its own: a small tmpfs in a private mount namespace, or
//! a limit on file sizes.

use crate::tools::{DEADLINE, Dice, all, delete, done, events_until, open, put, run_in_shell};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use store::{Embedded, Expect, Store, StoreError, TxnOutcome};

const FULL: &str = "STORE_TEST_FULL_DIR";
const LIMITED: &str = "STORE_TEST_LIMITED_DIR";

fn folder(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

#[test]
fn a_full_disk_refuses_writes_and_heals() {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("skipped: mounting a small disk needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size=64m tmpfs ${FULL} && exec \"$@\"");
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]);
    run_in_shell(unshare, &script, "full::full_child", (FULL, dir.path()));
}

#[test]
fn another_write_error_is_never_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    // 2 MiB a file, and the signal that would kill is ignored: write(2) fails with EFBIG.
    run_in_shell(
        Command::new("env"),
        "trap '' 25; ulimit -f 4096; exec \"$@\"",
        "full::limited_child",
        (LIMITED, dir.path()),
    );
}

/// Writes values of mixed sizes until that fails; the error.
async fn fill(store: &Embedded, dice: &mut Dice) -> StoreError {
    for n in 0..10_000 {
        let size = 1000 + usize::try_from(dice.below(60_000)).unwrap();
        let outcome = store.txn(put(&format!("/{n}"), Expect::Any, vec![n as u8; size])).await;
        match outcome {
            Ok(TxnOutcome::Done { .. }) => {}
            Ok(TxnOutcome::Conflict(found)) => panic!("{found:?}"),
            Err(error) => return error,
        }
    }
    panic!("the disk never fills");
}

/// After a refused write: memory, watchers and file all show the acknowledged writes and no other.
async fn nothing_changed(store: &Embedded, path: &Path) {
    let revision = store.revision().await.unwrap();
    let before = all(store, "").await;
    let mut watch = store.watch("/", store.stats().oldest).await.unwrap();
    let seen = events_until(&mut watch, revision).await;
    assert!(watch.events.try_recv().is_err(), "no event of a write that failed");
    assert_eq!(seen.last().unwrap().revision, revision);
    assert!(store.txn(put("/more", Expect::Any, vec![1; 3 << 20])).await.is_err());
    assert_eq!((store.revision().await.unwrap(), all(store, "").await), (revision, before));
    assert!(path.exists() && store.stats().failed_commits >= 1);
}

#[tokio::test]
async fn full_child() {
    let Some(dir) = folder(FULL) else { return };
    let path = dir.join("store.db");
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![0; 24 << 20]).unwrap();
    let mut dice = Dice(3);
    let store = open(&path);
    let error = fill(&store, &mut dice).await;
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    nothing_changed(&store, &path).await;
    // Room made from outside: writing goes on without a restart.
    std::fs::remove_file(&ballast).unwrap();
    done(&store, put("/healed", Expect::Absent, vec![1; 50_000])).await;
    let error = fill(&store, &mut dice).await;
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    nothing_changed(&store, &path).await;
    let expected = all(&store, "").await;
    drop(store);
    let store = open(&path);
    assert_eq!(all(&store, "").await, expected, "opens on a full disk, with everything acknowledged");
    // Heartbeats and deletion marks go on when it is full again; then room is made from inside.
    let error = fill(&store, &mut dice).await;
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    nothing_changed(&store, &path).await;
    let expected = all(&store, "").await;
    for (key, record) in &expected {
        done(&store, put(key, Expect::Present, record.value.clone())).await;
        done(&store, delete(key, Expect::Present)).await;
    }
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = store.txn(put("/again", Expect::Absent, vec![1; 2_000_000])).await {
        assert!(matches!(error, StoreError::Full(_)) && Instant::now() < deadline, "{error:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn limited_child() {
    let Some(dir) = folder(LIMITED) else { return };
    let path = dir.join("store.db");
    let mut dice = Dice(4);
    let store = open(&path);
    let error = fill(&store, &mut dice).await;
    assert!(matches!(error, StoreError::Engine(_)), "{error:?}");
    nothing_changed(&store, &path).await;
    let expected = all(&store, "").await;
    drop(store);
    assert_eq!(all(&open(&path), "").await, expected);
}
