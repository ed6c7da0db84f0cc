//! Shared caches: one list+watch for a resource, held as a sorted map of shared objects.
//!
//! Level-triggered use: [`Cache::changed`] says "look again". Keyed use: a handler sees (old, new) pairs in
//! revision order and enqueues keys. A cache heals by itself: any watch error leads to a fresh list, and the
//! handlers see the difference only.

use crate::api::{ApiClient, EventKind, ListOptions, WatchOptions};
use crate::object::{Object, ObjectKey};
use futures_util::StreamExt;
use k8s_schema::{Gvr, View};
use machinery::status::ApiError;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::sync::watch;
use tokio::task::unconstrained;

/// Pause between attempts to list again after a failure.
const RELIST: Backoff = Backoff { base: Duration::from_millis(100), factor: 2, max: Duration::from_secs(10) };

/// Called with (old, new) for every change, in order: (None, Some) added, (Some, Some) changed, (Some, None) gone.
pub type Handler = Box<dyn Fn(Option<&Arc<Object>>, Option<&Arc<Object>>) + Send + Sync>;

/// The current objects of one resource, kept fresh by a background task that ends with the cache.
pub struct Cache {
    gvr: Gvr,
    objects: RwLock<BTreeMap<ObjectKey, Arc<Object>>>,
    handlers: Mutex<Vec<Handler>>,
    /// Revision up to which every event has been applied.
    seen: AtomicU64,
    synced: watch::Sender<bool>,
    changed: watch::Sender<u64>,
}

impl Cache {
    /// Starts a cache; the task stops when the last `Arc` is dropped.
    pub fn start(client: ApiClient, gvr: Gvr, options: ListOptions) -> Arc<Cache> {
        let cache = Arc::new(Cache {
            gvr,
            objects: RwLock::default(),
            handlers: Mutex::default(),
            seen: AtomicU64::new(0),
            synced: watch::Sender::new(false),
            changed: watch::Sender::new(0),
        });
        let weak = Arc::downgrade(&cache);
        let gvr = cache.gvr.clone();
        tokio::spawn(async move {
            let mut failures = 0;
            loop {
                let Some(cache) = weak.upgrade() else { return };
                let begun = tokio::time::Instant::now();
                let listed = cache.relist(&client, &options).await;
                drop(cache);
                let ended = match listed {
                    Ok(revision) => {
                        failures = 0;
                        follow(
                            &weak,
                            &client,
                            &gvr,
                            WatchOptions { list: options.clone(), after: Some(revision) },
                        )
                        .await
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = ended {
                    tracing::debug!(resource = %gvr.group_resource(), %error, "watch ended; listing again");
                    tokio::time::sleep(RELIST.delay(failures)).await;
                    failures += 1;
                } else if begun.elapsed() < RELIST.base {
                    // A server that is going ends every watch at once, and must get to its end.
                    tokio::time::sleep(RELIST.base).await;
                }
            }
        });
        cache
    }

    /// Adds a handler; it first sees every present object as added.
    pub fn on_change(&self, handler: Handler) {
        let mut handlers = self.handlers.lock();
        for object in self.objects.read().values() {
            handler(None, Some(object));
        }
        handlers.push(handler);
    }

    /// Waits for the first complete list.
    pub async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        let _ = synced.wait_for(|s| *s).await;
    }

    /// A receiver that changes after every applied event.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The object of that key.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.objects.read().get(key).cloned()
    }

    /// Typed view of the object of that key.
    pub fn view<T: View>(&self, key: &ObjectKey) -> Option<Arc<T>> {
        self.get(key)?.view::<T>().ok()
    }

    /// All objects, sorted by key.
    pub fn list(&self) -> Vec<Arc<Object>> {
        self.objects.read().values().cloned().collect()
    }

    /// The objects of one namespace, sorted by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<Object>> {
        let from = ObjectKey::new(namespace, "");
        let objects = self.objects.read();
        objects
            .range(from..)
            .take_while(|(k, _)| &*k.namespace == namespace)
            .map(|(_, o)| o.clone())
            .collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.read().len()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Applies a write's answer at once, so that the writer need not wait for its own event.
    /// Ignored when the cache has seen that revision already (the object may be gone again by now).
    pub fn observe(&self, object: Arc<Object>) {
        let handlers = self.handlers.lock();
        if object.revision > self.seen.load(Ordering::Acquire) {
            self.apply(&handlers, EventKind::Modified, object);
        }
    }

    /// Applies a watch event. Under the same lock as [`Cache::observe`], so that no older object comes back.
    fn receive(&self, kind: EventKind, object: Arc<Object>) {
        let handlers = self.handlers.lock();
        let revision = object.revision;
        self.apply(&handlers, kind, object);
        self.seen.store(revision, Ordering::Release);
    }

    async fn relist(&self, client: &ApiClient, options: &ListOptions) -> Result<u64, ApiError> {
        let list = client.list(&self.gvr, options).await?;
        let listed: std::collections::BTreeSet<ObjectKey> =
            list.items.iter().map(|o| o.key.clone()).collect();
        let handlers = self.handlers.lock();
        let gone = |o: &&Arc<Object>| o.revision <= list.revision && !listed.contains(&o.key);
        let gone: Vec<Arc<Object>> = self.objects.read().values().filter(gone).cloned().collect();
        for object in gone {
            self.apply(&handlers, EventKind::Deleted, object);
        }
        for object in list.items {
            self.apply(&handlers, EventKind::Modified, object);
        }
        self.seen.store(list.revision, Ordering::Release);
        self.synced.send_replace(true);
        Ok(list.revision)
    }

    fn apply(&self, handlers: &[Handler], kind: EventKind, object: Arc<Object>) {
        let old = match (self.objects.write().entry(object.key.clone()), kind) {
            (_, EventKind::Bookmark) => return,
            (Entry::Occupied(entry), EventKind::Deleted) if entry.get().revision > object.revision => return,
            (Entry::Occupied(entry), EventKind::Deleted) => Some(entry.remove()),
            (Entry::Vacant(_), EventKind::Deleted) => None,
            (Entry::Occupied(entry), _) if entry.get().revision >= object.revision => return,
            (Entry::Occupied(mut entry), _) => Some(entry.insert(object.clone())),
            (Entry::Vacant(entry), _) => {
                entry.insert(object.clone());
                None
            }
        };
        let new = (kind != EventKind::Deleted).then_some(&object);
        if old.is_some() || new.is_some() {
            for handler in handlers {
                handler(old.as_ref(), new);
            }
        }
        self.changed.send_modify(|n| *n += 1);
    }
}

async fn follow(
    cache: &std::sync::Weak<Cache>,
    client: &ApiClient,
    gvr: &Gvr,
    options: WatchOptions,
) -> Result<(), ApiError> {
    let Some(mut alive) = cache.upgrade().map(|c| c.synced.subscribe()) else { return Ok(()) };
    let mut events = client.watch(gvr, &options).await?;
    // The watch ends with the cache, not only with the first event after it.
    let gone = async move { while alive.changed().await.is_ok() {} };
    tokio::pin!(gone);
    // What has come is taken at one go: yielding in between lets a busy server cut the watch.
    unconstrained(async move {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = &mut gone => None,
            };
            let Some(event) = event.transpose()? else { return Ok(()) };
            let Some(cache) = cache.upgrade() else { return Ok(()) };
            cache.receive(event.kind, event.object);
        }
    })
    .await
}
