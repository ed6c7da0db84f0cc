//! Objects in the store: fresh reads from the cache, compare-and-swap writes of canonical bytes.
//!
//! Invariants: stored bytes are compact JSON with sorted keys and without `metadata.resourceVersion`; a write is
//! answered only when the store acknowledged it, and noted with the cache so that later reads see it.

use crate::cache::{Cache, object_of};
use crate::resources::Resource;
use crate::scan;
use bytes::Bytes;
use client::{Object, ObjectKey};
use machinery::status::ApiError;
use serde_json::Value;
use std::sync::Arc;
use store::{Expect, Record, Store, StoreError, Txn, TxnOp, TxnOutcome};

/// The objects of a realm.
pub struct Storage {
    /// The store itself, for reads at old revisions.
    pub store: Arc<dyn Store>,
    /// What is current.
    pub cache: Arc<Cache>,
}

/// How a compare-and-swap ended.
pub enum Swap {
    /// Written; the object as stored (its last state when removed).
    Done(Arc<Object>),
    /// Somebody was faster; what stands there now, if anything.
    Lost(Option<Arc<Object>>),
}

impl Storage {
    /// One object, at least as new as every acknowledged write.
    pub async fn get(&self, resource: &Resource, key: &ObjectKey) -> Result<Option<Arc<Object>>, ApiError> {
        self.cache.wait_fresh().await?;
        Ok(self.cache.get(&resource.prefix, &resource.suffix(&key.namespace, &key.name)))
    }

    /// Writes a new object; `Lost` when the name is taken.
    pub async fn create(&self, resource: &Resource, key: &ObjectKey, value: Value) -> Result<Swap, ApiError> {
        self.put(resource, key, Expect::Absent, value).await
    }

    /// Replaces what `current` is.
    pub async fn replace(
        &self,
        resource: &Resource,
        current: &Object,
        value: Value,
    ) -> Result<Swap, ApiError> {
        let expect = Expect::Modified(store::Revision(current.revision));
        self.put(resource, &current.key, expect, value).await
    }

    /// Removes what `current` is.
    pub async fn remove(&self, resource: &Resource, current: &Arc<Object>) -> Result<Swap, ApiError> {
        let key = resource.key(&current.key.namespace, &current.key.name);
        let expect = Expect::Modified(store::Revision(current.revision));
        match self.store.txn(Txn { key, expect, op: TxnOp::Delete }).await.map_err(|e| store_error(&e))? {
            TxnOutcome::Done { revision, .. } => {
                self.cache.acked(revision.0);
                Ok(Swap::Done(Arc::new(crate::cache::at_revision(current, revision.0))))
            }
            TxnOutcome::Conflict(now) => Ok(Swap::Lost(now.and_then(|r| self.object(resource, &r)))),
        }
    }

    async fn put(
        &self,
        resource: &Resource,
        key: &ObjectKey,
        expect: Expect,
        value: Value,
    ) -> Result<Swap, ApiError> {
        let bytes = canonical(value);
        let txn = Txn { key: resource.key(&key.namespace, &key.name), expect, op: TxnOp::Put(bytes.clone()) };
        match self.store.txn(txn).await.map_err(|e| store_error(&e))? {
            TxnOutcome::Done { revision, .. } => {
                self.cache.acked(revision.0);
                let raw = scan::with_revision(&bytes, revision.0);
                Ok(Swap::Done(Arc::new(Object::new(key.clone(), revision.0, raw))))
            }
            TxnOutcome::Conflict(now) => Ok(Swap::Lost(now.and_then(|r| self.object(resource, &r)))),
        }
    }

    /// The object of a record of this resource.
    pub fn object(&self, resource: &Resource, record: &Record) -> Option<Arc<Object>> {
        object_of(record, record.key.strip_prefix(&*resource.prefix)?)
    }
}

/// The stored form.
fn canonical(mut value: Value) -> Bytes {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    serde_json::to_vec(&value).unwrap_or_default().into()
}

/// An object that is not stored (dry runs, subresource answers), under a revision.
pub fn unstored(key: &ObjectKey, revision: u64, value: Value) -> Arc<Object> {
    let bytes = canonical(value);
    let raw = if revision == 0 { bytes } else { scan::with_revision(&bytes, revision) };
    Arc::new(Object::new(key.clone(), revision, raw))
}

/// A store's failure in the API's words.
pub fn store_error(error: &StoreError) -> ApiError {
    match error {
        StoreError::Compacted { .. } => {
            ApiError::expired("The resourceVersion for the provided list is too old.")
        }
        StoreError::Future { asked, newest } => {
            let mut error = ApiError::new(
                504,
                "Timeout",
                format!("Too large resource version: {asked}, current: {newest}"),
            );
            error.retry_after_seconds = 1;
            error
        }
        StoreError::Closed => ApiError::new(503, "ServiceUnavailable", "the server is shutting down"),
        // Both without a wish to be tried again: clients that heed it would seem to hang.
        StoreError::Unavailable(_) => ApiError::new(503, "ServiceUnavailable", error.to_string()),
        StoreError::UnknownOutcome(_) => ApiError::new(504, "Timeout", error.to_string()),
        StoreError::Engine(text) if text.contains("request is too large") => ApiError::new(
            413,
            "RequestEntityTooLarge",
            "Request entity too large: the object is larger than the store takes",
        ),
        StoreError::Full(_) | StoreError::Engine(_) => {
            tracing::error!(%error, "the store refused a write");
            ApiError::internal(error)
        }
    }
}
