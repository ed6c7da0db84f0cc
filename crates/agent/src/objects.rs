//! ConfigMaps and Secrets that the node's pods use: one small cache per object, as long as a pod uses it.
//!
//! By name only, because a node may read nothing else. Deliberately not here: what is done with them.

use crate::config::{Objects, RefKind};
use client::cache::Cache;
use client::{ApiClient, ListOptions, ObjectKey};
use k8s_schema::Gvr;
use k8s_schema::gvr::{CONFIG_MAPS, SECRETS};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a first look at an object may take.
const SYNC_MAX: Duration = Duration::from_secs(10);

type Key = (RefKind, ObjectKey);

struct Slot {
    cache: Arc<Cache>,
    users: BTreeSet<String>,
    /// Somebody has read it: from now on changes are news.
    read: Arc<AtomicBool>,
}

/// The caches.
pub struct ObjectCaches {
    client: ApiClient,
    slots: Mutex<BTreeMap<Key, Slot>>,
    changed: Arc<dyn Fn(RefKind, ObjectKey) + Send + Sync>,
}

fn gvr(kind: RefKind) -> Gvr {
    match kind {
        RefKind::ConfigMap => CONFIG_MAPS,
        RefKind::Secret => SECRETS,
    }
}

impl ObjectCaches {
    /// No object is cached yet. `changed` is called for every change of a used object after it was first read.
    pub fn new(client: ApiClient, changed: impl Fn(RefKind, ObjectKey) + Send + Sync + 'static) -> Self {
        ObjectCaches { client, slots: Mutex::default(), changed: Arc::new(changed) }
    }

    /// Says what a pod uses now; what it no longer uses is let go.
    pub fn uses(&self, uid: &str, namespace: &str, references: &BTreeSet<(RefKind, String)>) {
        let wanted: BTreeSet<Key> =
            references.iter().map(|(kind, name)| (*kind, ObjectKey::new(namespace, name.as_str()))).collect();
        let mut slots = self.slots.lock();
        slots.retain(|key, slot| {
            if !wanted.contains(key) {
                slot.users.remove(uid);
            }
            !slot.users.is_empty()
        });
        for key in wanted {
            let slot = slots.entry(key.clone()).or_insert_with(|| self.open(key));
            slot.users.insert(uid.to_string());
        }
    }

    fn open(&self, (kind, key): Key) -> Slot {
        let options = ListOptions {
            namespace: Some(key.namespace.to_string()),
            field_selector: format!("metadata.name={}", key.name),
            ..ListOptions::default()
        };
        let cache = Cache::start(self.client.clone(), gvr(kind), options);
        let (changed, read) = (self.changed.clone(), Arc::new(AtomicBool::new(false)));
        let was_read = read.clone();
        cache.on_change(Box::new(move |_, _| {
            if was_read.load(Ordering::Acquire) {
                changed(kind, key.clone());
            }
        }));
        Slot { cache, users: BTreeSet::new(), read }
    }

    /// The pods that use an object.
    pub fn users(&self, kind: RefKind, key: &ObjectKey) -> Vec<String> {
        let slots = self.slots.lock();
        slots.get(&(kind, key.clone())).map(|s| s.users.iter().cloned().collect()).unwrap_or_default()
    }

    /// The objects as they are now; missing ones are left out. Waits for the first sight of each.
    pub async fn snapshot(
        &self,
        namespace: &str,
        references: &BTreeSet<(RefKind, String)>,
    ) -> Result<Objects, String> {
        let mut objects = Objects::new();
        for (kind, name) in references {
            let key = ObjectKey::new(namespace, name.as_str());
            let slot =
                self.slots.lock().get(&(*kind, key.clone())).map(|s| (s.cache.clone(), s.read.clone()));
            let Some((cache, read)) = slot else { continue };
            if tokio::time::timeout(SYNC_MAX, cache.wait_synced()).await.is_err() {
                return Err(format!(
                    "failed to sync {} cache: timed out waiting for the condition",
                    kind.singular()
                ));
            }
            read.store(true, Ordering::Release);
            if let Some(object) = cache.get(&key) {
                objects.insert((*kind, name.clone()), object);
            }
        }
        Ok(objects)
    }
}
