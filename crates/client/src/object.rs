//! An object as the store has it: canonical JSON bytes, with metadata and a typed view read lazily, once.

use bytes::Bytes;
use k8s_schema::View;
use serde::Deserialize;
use serde_json::Value;
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Namespace ("" for cluster-scoped) and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace, "" when the resource has none.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key in a namespace ("" for cluster-scoped objects).
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        ObjectKey { namespace: namespace.into(), name: name.into() }
    }
    /// A key of a cluster-scoped object.
    pub fn cluster(name: impl Into<Arc<str>>) -> Self {
        Self::new("", name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One `ownerReferences` entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerRef {
    /// `apps/v1`.
    pub api_version: String,
    /// `ReplicaSet`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// The managing owner?
    pub controller: bool,
    /// Blocks foreground deletion?
    pub block_owner_deletion: bool,
}

/// What every component reads of `metadata`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// UID.
    pub uid: String,
    /// Labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "null_as_default")]
    pub annotations: BTreeMap<String, String>,
    /// Owners.
    #[serde(deserialize_with = "null_as_default")]
    pub owner_references: Vec<OwnerRef>,
    /// Finalizers.
    #[serde(deserialize_with = "null_as_default")]
    pub finalizers: Vec<String>,
    /// RFC 3339; set while the object is being deleted.
    pub deletion_timestamp: Option<String>,
    /// Seconds left to the object when its deletion began.
    pub deletion_grace_period_seconds: Option<i64>,
    /// RFC 3339.
    pub creation_timestamp: Option<String>,
    /// Spec generation; 0 when the kind has none.
    pub generation: i64,
}

fn null_as_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

impl Meta {
    /// The owner with `controller: true`.
    pub fn controller(&self) -> Option<&OwnerRef> {
        self.owner_references.iter().find(|o| o.controller)
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct MetaOnly {
    metadata: Meta,
}

/// An immutable object: stored bytes plus lazily decoded readings, shared by everybody in the process.
pub struct Object {
    /// Namespace and name.
    pub key: ObjectKey,
    /// `metadata.resourceVersion` as a number.
    pub revision: u64,
    /// Canonical JSON, `resourceVersion` included.
    pub raw: Bytes,
    meta: OnceLock<Meta>,
    view: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Object {
    /// Wraps bytes whose key and revision are known.
    pub fn new(key: ObjectKey, revision: u64, raw: Bytes) -> Self {
        Object { key, revision, raw, meta: OnceLock::new(), view: OnceLock::new() }
    }

    /// Reads key and revision from the bytes themselves.
    pub fn parse(raw: Bytes) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Head {
            metadata: HeadMeta,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct HeadMeta {
            namespace: String,
            name: String,
            resource_version: String,
        }
        let head: Head = serde_json::from_slice(&raw)?;
        let revision = head.metadata.resource_version.parse().unwrap_or(0);
        Ok(Self::new(ObjectKey::new(head.metadata.namespace, head.metadata.name), revision, raw))
    }

    /// The metadata; empty where the bytes do not parse (which the API server never stores).
    pub fn meta(&self) -> &Meta {
        self.meta.get_or_init(|| serde_json::from_slice::<MetaOnly>(&self.raw).unwrap_or_default().metadata)
    }

    /// UID.
    pub fn uid(&self) -> &str {
        &self.meta().uid
    }

    /// The typed view, decoded once and shared. (A second type for the same object is decoded each time.)
    pub fn view<T: View>(&self) -> Result<Arc<T>, serde_json::Error> {
        if let Some(view) = self.view.get()
            && let Ok(view) = view.clone().downcast::<T>()
        {
            return Ok(view);
        }
        let view = Arc::new(T::decode(&self.raw)?);
        let _ = self.view.set(view.clone());
        Ok(view)
    }

    /// The whole object as a JSON value (parsed anew at each call).
    pub fn value(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_slice(&self.raw)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({}@{})", self.key, self.revision)
    }
}
