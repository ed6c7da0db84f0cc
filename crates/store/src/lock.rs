//! The lock file: one process owns a store.
//!
//! Invariant: the lock is the kernel's (`flock`), so a killed owner leaves none behind; the text in the
//! file only names the owner for the message that a second one gets.

use crate::StoreError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// How much of a lock file is read to name its holder.
const HOLDER_BYTES_MAX: u64 = 256;

/// Held as long as the store is open.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock, or says who has it.
    pub fn take(path: &Path) -> Result<Lock, StoreError> {
        let failed = |e: std::io::Error| StoreError::Engine(format!("lock file {}: {e}", path.display()));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(e)) => return Err(failed(e)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let read = (&file).take(HOLDER_BYTES_MAX).read_to_string(&mut holder);
                let holder =
                    if read.is_ok() && !holder.trim().is_empty() { holder.trim() } else { "another process" };
                return Err(StoreError::Engine(format!(
                    "{} is locked: {holder} has this store open; stop it or use another folder",
                    path.display()
                )));
            }
        }
        file.set_len(0).map_err(failed)?;
        // The name helps the reader of the message; a full disk must not keep the store from opening.
        let _ = write!(file, "process {} ({})", std::process::id(), program());
        Ok(Lock { _file: file })
    }
}

fn program() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    Path::new(&path).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "process 1 (an old owner that was killed)").unwrap();
        let first = Lock::take(&path).unwrap();
        let refused = Lock::take(&path).err().unwrap().to_string();
        assert!(refused.contains(&format!("process {} (", std::process::id())), "{refused}");
        assert!(!refused.contains("old owner"), "{refused}");
        drop(first);
        Lock::take(&path).unwrap();
    }
}
