//! Objects in the store: fresh reads from the cache, compare-and-swap writes of canonical bytes.
//!
//! Invariants: stored bytes are compact JSON with sorted keys and without `metadata.resourceVersion`; a write is
//! answered only when the store acknowledged it, and noted with the cache so that later reads see it.

use crate::cache::{Cache, object_of};
use crate::metrics::SECONDS;
use crate::resources::Resource;
use crate::scan;
use bytes::Bytes;
use client::metrics::{Family, Figure, labels as labels_of, shared};
use client::{Object, ObjectKey};
use machinery::status::ApiError;
use parking_lot::RwLock;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use store::{Expect, Record, Store, StoreError, Txn, TxnOp, TxnOutcome};

/// What a store is asked to do, in upstream's words.
const OPERATIONS: [&str; 3] = ["create", "update", "delete"];
const ASKED: Family = Family::histogram("etcd_request_duration_seconds", &SECONDS);

/// Room that a document is given at first: most are smaller, and growing is copying.
const DOCUMENT_BYTES: usize = 4096;

/// A row for each of [`OPERATIONS`].
type Asked = [Arc<Figure>; 3];

/// The objects of a realm.
pub struct Storage {
    /// The store itself, for reads at old revisions.
    pub store: Arc<dyn Store>,
    /// What is current.
    pub cache: Arc<Cache>,
    /// What is asked of the store, by prefix and [`OPERATIONS`].
    asked: RwLock<BTreeMap<Arc<str>, Asked>>,
}

/// How a compare-and-swap ended.
pub enum Swap {
    /// Written; the object as stored (its last state when removed).
    Done(Arc<Object>),
    /// Somebody was faster; what stands there now, if anything.
    Lost(Option<Arc<Object>>),
}

impl Storage {
    /// Over a store.
    pub fn new(store: Arc<dyn Store>, cache: Arc<Cache>) -> Self {
        Storage { store, cache, asked: RwLock::default() }
    }

    /// One write, counted under upstream's name for what its etcd is asked.
    async fn txn(&self, resource: &Resource, txn: Txn) -> Result<TxnOutcome, ApiError> {
        let operation = match (&txn.op, &txn.expect) {
            (TxnOp::Delete, _) => 2,
            (_, Expect::Absent) => 0,
            _ => 1,
        };
        let begun = Instant::now();
        let outcome = self.store.txn(txn).await.map_err(|e| store_error(&e));
        let known = self.asked.read().get(&resource.prefix).map(|rows| rows[operation].clone());
        let row = known.unwrap_or_else(|| {
            let rows = OPERATIONS.map(|operation| {
                let labels =
                    [("group", resource.group()), ("operation", operation), ("resource", resource.name())];
                shared().of(&ASKED, &labels_of(&labels))
            });
            let row = rows[operation].clone();
            self.asked.write().insert(resource.prefix.clone(), rows);
            row
        });
        row.observe(begun.elapsed().as_secs_f64());
        outcome
    }

    /// One object, at least as new as every acknowledged write.
    pub async fn get(&self, resource: &Resource, key: &ObjectKey) -> Result<Option<Arc<Object>>, ApiError> {
        self.cache.wait_fresh().await?;
        Ok(self.cache.get(&resource.prefix, &resource.suffix(&key.namespace, &key.name)))
    }

    /// Writes a new object; `Lost` when the name is taken.
    pub async fn create(&self, resource: &Resource, key: &ObjectKey, value: Value) -> Result<Swap, ApiError> {
        self.put(resource, key, Expect::Absent, canonical(value)).await
    }

    /// Replaces what `current` is.
    pub async fn replace(
        &self,
        resource: &Resource,
        current: &Object,
        value: Value,
    ) -> Result<Swap, ApiError> {
        self.replace_text(resource, current, canonical(value)).await
    }

    /// Replaces what `current` is by a document in its stored form.
    pub async fn replace_text(
        &self,
        resource: &Resource,
        current: &Object,
        document: Vec<u8>,
    ) -> Result<Swap, ApiError> {
        let expect = Expect::Modified(store::Revision(current.revision));
        self.put(resource, &current.key, expect, document).await
    }

    /// Removes what `current` is.
    pub async fn remove(&self, resource: &Resource, current: &Arc<Object>) -> Result<Swap, ApiError> {
        let key = resource.key(&current.key.namespace, &current.key.name);
        let expect = Expect::Modified(store::Revision(current.revision));
        match self.txn(resource, Txn { key, expect, op: TxnOp::Delete }).await? {
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
        document: Vec<u8>,
    ) -> Result<Swap, ApiError> {
        let bytes = Bytes::from(document);
        let txn = Txn { key: resource.key(&key.namespace, &key.name), expect, op: TxnOp::Put(bytes.clone()) };
        match self.txn(resource, txn).await? {
            TxnOutcome::Done { revision, .. } => {
                self.cache.acked(revision.0);
                Ok(Swap::Done(revised(key, revision.0, &bytes)))
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
fn canonical(mut value: Value) -> Vec<u8> {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    let mut document = Vec::with_capacity(DOCUMENT_BYTES);
    // Into memory, by a serializer that knows all keys to be text: this cannot fail.
    let _ = serde_json::to_writer(&mut document, &value);
    document.shrink_to_fit();
    document
}

/// An object that is not stored (dry runs, subresource answers), under a revision.
pub fn unstored(key: &ObjectKey, revision: u64, value: Value) -> Arc<Object> {
    let document = canonical(value);
    match revision {
        0 => Arc::new(Object::new(key.clone(), 0, document.into())),
        _ => revised(key, revision, &document),
    }
}

/// A document in its stored form as the object of a revision.
pub fn revised(key: &ObjectKey, revision: u64, document: &[u8]) -> Arc<Object> {
    Arc::new(Object::new(key.clone(), revision, scan::with_revision(document, revision)))
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
