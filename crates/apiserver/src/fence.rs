//! Freshness over a store that other servers write to as well: how far must this server's cache be?
//!
//! A read that must be current asks the store for its newest revision first; readers that wait at the same time share
//! one answer. The cache reaches that revision by its watch, or, where the newest write was no object of this realm
//! and so sends it nothing, by a write of our own behind it: the fence.
//! Deliberately not here: waiting (`cache`); anything for a store that is this process's own.

use crate::storage::store_error;
use bytes::Bytes;
use machinery::status::ApiError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use store::{Expect, Store, Txn, TxnOp, TxnOutcome};
use tokio::sync::{Mutex, MutexGuard};

/// What the store said last, and how many had arrived when it was asked: they share that, errors as well.
struct Last {
    arrived: u64,
    said: Result<u64, ApiError>,
}

/// Asks a shared store how far it is.
pub struct Fence {
    store: Arc<dyn Store>,
    key: Arc<str>,
    arrivals: AtomicU64,
    last: Mutex<Last>,
    turn: Mutex<()>,
}

impl Fence {
    /// `None` for a store of this process's own.
    pub fn of(store: &Arc<dyn Store>, realm_prefix: &str) -> Option<Fence> {
        let key = format!("{realm_prefix}~fence").into();
        let last = Mutex::new(Last { arrived: 0, said: Ok(0) });
        let (arrivals, turn) = Default::default();
        store.is_shared().then(|| Fence { store: store.clone(), key, arrivals, last, turn })
    }

    /// The store's newest revision, asked for after this call began.
    pub async fn newest(&self) -> Result<u64, ApiError> {
        let ticket = self.arrivals.fetch_add(1, Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.arrived <= ticket {
            let arrived = self.arrivals.load(Ordering::SeqCst);
            let said = self.store.revision().await;
            *last = Last { arrived, said: said.map(|r| r.0).map_err(|error| store_error(&error)) };
        }
        last.said.clone()
    }

    /// Waits for the right to write a fence: one for all who need it.
    pub async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Writes behind everything so far; the revision of that.
    pub async fn write(&self) -> Result<u64, ApiError> {
        let op = TxnOp::Put(Bytes::new());
        let written = self.store.txn(Txn { key: self.key.clone(), expect: Expect::Any, op }).await;
        match written.map_err(|error| store_error(&error))? {
            TxnOutcome::Done { revision, .. } => Ok(revision.0),
            TxnOutcome::Conflict(_) => Ok(0),
        }
    }
}
