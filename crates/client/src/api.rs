//! The [`Client`] trait and the values it speaks in.

use crate::object::{Object, ObjectKey};
use async_trait::async_trait;
use futures_util::Stream;
use k8s_schema::Gvr;
use machinery::status::ApiError;
use serde_json::Value;
use std::pin::Pin;
use std::sync::Arc;

/// How to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Only in this namespace; all when `None`.
    pub namespace: Option<String>,
    /// Label selector text; "" selects everything.
    pub label_selector: String,
    /// Field selector text; "" selects everything.
    pub field_selector: String,
}

/// How to watch.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// Namespace and selectors, as for a list.
    pub list: ListOptions,
    /// Events after this revision (as a list returned it). `None`: first the current objects as `Added`,
    /// then a `Bookmark`, then changes.
    pub after: Option<u64>,
}

/// A consistent listing.
#[derive(Clone, Debug)]
pub struct ObjectList {
    /// The objects, sorted by key.
    pub items: Vec<Arc<Object>>,
    /// The revision they are consistent at.
    pub revision: u64,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// New, or newly selected.
    Added,
    /// Changed.
    Modified,
    /// Gone, or no longer selected.
    Deleted,
    /// Progress only: the object carries nothing but its revision.
    Bookmark,
}

/// One watch event.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The object after the change (its last state when deleted).
    pub object: Arc<Object>,
}

/// Events in revision order; an error (410 Expired among them) ends the stream.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<Event, ApiError>> + Send>>;

/// Patch formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' strategic merge patch.
    Strategic,
    /// Server-side apply.
    Apply,
}

/// What happens to dependents of a deleted object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They are orphaned.
    Orphan,
    /// They go afterwards.
    Background,
    /// They go first.
    Foreground,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Overrides the object's own grace period.
    pub grace_period_seconds: Option<i64>,
    /// Only if the UID is this one.
    pub uid: Option<String>,
    /// Only if the resourceVersion is this one.
    pub resource_version: Option<String>,
    /// Dependents; the kind's default when `None`.
    pub propagation: Option<Propagation>,
}

/// What to do with one object.
#[derive(Clone, Debug)]
pub enum Verb {
    /// Create from this body; the key's name may be "" with `metadata.generateName`.
    Create(Value),
    /// Replace by this body; its resourceVersion, when set, must be current.
    Update(Value),
    /// Patch.
    Patch(PatchKind, Value),
    /// Delete.
    Delete(DeleteOptions),
}

/// One write.
#[derive(Clone, Debug)]
pub struct Write {
    /// The resource.
    pub gvr: Gvr,
    /// The object.
    pub key: ObjectKey,
    /// "" for the object itself, else `status`, `scale`, `binding`, `eviction`, ….
    pub subresource: &'static str,
    /// What to do.
    pub verb: Verb,
}

/// A caller's door to the API. Implementations carry the caller's identity.
#[async_trait]
pub trait Client: Send + Sync + 'static {
    /// One object, at least as new as every write acknowledged before the call.
    async fn get(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Arc<Object>, ApiError>;
    /// The `autoscaling/v1` Scale of an object, as new as [`Client::get`]'s; 404 of what has none.
    async fn scale(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        Err(ApiError::not_found(gvr, &key.name))
    }
    /// A listing, at least as new as every write acknowledged before the call.
    async fn list(&self, gvr: &Gvr, options: &ListOptions) -> Result<ObjectList, ApiError>;
    /// Changes from a revision on.
    async fn watch(&self, gvr: &Gvr, options: &WatchOptions) -> Result<EventStream, ApiError>;
    /// One write; the object as stored (for a delete: the object as it was, or as it waits).
    async fn write(&self, write: Write) -> Result<Arc<Object>, ApiError>;
}

/// Shared handle.
pub type ApiClient = Arc<dyn Client>;

impl dyn Client {
    /// Creates from a body that holds namespace and name (or generateName) itself.
    pub async fn create(&self, gvr: &Gvr, body: Value) -> Result<Arc<Object>, ApiError> {
        let text = |field: &str| body["metadata"][field].as_str().unwrap_or_default().to_string();
        let key = ObjectKey::new(text("namespace"), text("name"));
        self.write(Write { gvr: gvr.clone(), key, subresource: "", verb: Verb::Create(body) }).await
    }

    /// Replaces the object.
    pub async fn update(&self, gvr: &Gvr, key: &ObjectKey, body: Value) -> Result<Arc<Object>, ApiError> {
        self.write(Write { gvr: gvr.clone(), key: key.clone(), subresource: "", verb: Verb::Update(body) })
            .await
    }

    /// Replaces the object's status.
    pub async fn update_status(
        &self,
        gvr: &Gvr,
        key: &ObjectKey,
        body: Value,
    ) -> Result<Arc<Object>, ApiError> {
        self.write(Write {
            gvr: gvr.clone(),
            key: key.clone(),
            subresource: "status",
            verb: Verb::Update(body),
        })
        .await
    }

    /// Merge-patches the object.
    pub async fn merge_patch(
        &self,
        gvr: &Gvr,
        key: &ObjectKey,
        patch: Value,
    ) -> Result<Arc<Object>, ApiError> {
        let verb = Verb::Patch(PatchKind::Merge, patch);
        self.write(Write { gvr: gvr.clone(), key: key.clone(), subresource: "", verb }).await
    }

    /// Merge-patches the object's status (`patch` holds the `status` key).
    pub async fn merge_patch_status(
        &self,
        gvr: &Gvr,
        key: &ObjectKey,
        patch: Value,
    ) -> Result<Arc<Object>, ApiError> {
        let verb = Verb::Patch(PatchKind::Merge, patch);
        self.write(Write { gvr: gvr.clone(), key: key.clone(), subresource: "status", verb }).await
    }

    /// Deletes the object.
    pub async fn delete(
        &self,
        gvr: &Gvr,
        key: &ObjectKey,
        options: DeleteOptions,
    ) -> Result<Arc<Object>, ApiError> {
        self.write(Write { gvr: gvr.clone(), key: key.clone(), subresource: "", verb: Verb::Delete(options) })
            .await
    }
}
