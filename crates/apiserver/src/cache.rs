//! The watch cache: every object of one realm as shared bytes, and the recent changes of each resource.
//!
//! It stands above the store's seam and is fed by [`store::Store::watch`] alone, so that it runs alike over
//! every store. One lock guards everything that must be seen together: the objects, the revision they are
//! consistent at, and the watchers; nobody waits under it, and readers leave with a persistent map.
//! Invariants: a snapshot holds exactly the writes up to its revision (C1); a watcher gets every change after
//! its start revision once, in order, or is cut and told so (C2); a write acknowledged by this server is seen
//! by every read that begins later (C3: reads wait for [`Cache::acked`]), and where several servers share a store, a
//! write acknowledged by any of them (`fence`).
//! Deliberately not here: selectors, encodings (`watch`), keys' meaning beyond prefix and suffix.

use crate::fence::Fence;
use crate::resources::{split_key, split_suffix};
use crate::scan;
use bytes::Bytes;
use client::{EventKind, Object, ObjectKey};
use imbl::OrdMap;
use machinery::status::ApiError;
use parking_lot::RwLock;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use store::{RangeOptions, Record, Revision, Store, WatchError};
use tokio::sync::{mpsc, watch};

/// Changes kept for each resource: enough for a client that reconnects after some seconds of heavy churn.
const RING_EVENTS_MAX: usize = 4_096;
/// Bytes kept alive by the changes of one resource, each counted twice: the object and its encoded frame.
const RING_BYTES_MAX: usize = 32 << 20;
/// Changes are kept at least this long, unless the rings are full, and at most twice as long (upstream keeps 75 s): what
/// churned once is not held for good. Objects that were looked into weigh several times their bytes.
const FORGET_EVERY: Duration = Duration::from_secs(150);
/// Changes that may wait for one watcher; one that lags further is cut and lists anew.
const WATCHER_QUEUE: usize = 1_024;
/// How long a read waits for the cache to catch up before it gives up (as upstream's 3 s).
const FRESH_WAIT: Duration = Duration::from_secs(3);
/// How long a write of another server may take to arrive by the watch before a fence is written.
const FENCE_AFTER: Duration = Duration::from_millis(10);
/// Pause before the store is asked again after it ended the feed.
const REFEED_PAUSE: Duration = Duration::from_millis(50);

/// Objects of one resource, by key suffix.
pub type Objects = OrdMap<Arc<str>, Arc<Object>>;

/// One change of one object.
pub struct Change {
    /// Its revision.
    pub revision: u64,
    /// Added, modified or deleted.
    pub kind: EventKind,
    /// The object after the change; of a deletion the last state at the deletion's revision.
    pub object: Arc<Object>,
    /// The object before, if there was one.
    pub previous: Option<Arc<Object>>,
    frame: OnceLock<Bytes>,
}

impl Change {
    fn size(&self) -> usize {
        self.object.raw.len() * 2
    }

    /// The JSON watch frame of this change under its own kind, encoded once for all watchers.
    pub fn frame(&self, encode: impl FnOnce(EventKind, &Object) -> Bytes) -> Bytes {
        self.frame.get_or_init(|| encode(self.kind, &self.object)).clone()
    }
}

/// Which changes a watcher may care about; a cheap first sieve before selectors.
#[derive(Clone, Debug, Default)]
pub struct Interest {
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Only this name.
    pub name: Option<String>,
}

impl Interest {
    fn covers(&self, key: &ObjectKey) -> bool {
        self.namespace.as_deref().is_none_or(|n| *n == *key.namespace)
            && self.name.as_deref().is_none_or(|n| *n == *key.name)
    }
}

struct Subscriber {
    interest: Interest,
    queue: mpsc::Sender<Arc<Change>>,
    lagged: Arc<AtomicBool>,
}

/// A watcher's end of the cache.
pub struct Subscription {
    /// Changes in order; ends when the watcher is cut.
    pub changes: mpsc::Receiver<Arc<Change>>,
    /// Changes between the asked revision and the subscription.
    pub backlog: VecDeque<Arc<Change>>,
    /// Set when the watcher was cut because it was too slow or the history broke.
    pub lagged: Arc<AtomicBool>,
}

#[derive(Default)]
struct ResourceState {
    objects: Objects,
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    /// A watch may start after this revision or a later one.
    floor: u64,
    subscribers: Vec<Subscriber>,
}

#[derive(Default)]
struct State {
    revision: u64,
    /// Resources without state yet have this floor.
    floor: u64,
    resources: BTreeMap<Arc<str>, ResourceState>,
}

/// A consistent view of one resource.
pub struct Snapshot {
    /// The objects.
    pub objects: Objects,
    /// The revision they are consistent at.
    pub revision: u64,
}

/// Figures for /metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceFigures {
    /// Objects held.
    pub objects: usize,
    /// Changes kept.
    pub changes: usize,
    /// Running watches.
    pub watchers: usize,
}

/// The cache of one realm.
pub struct Cache {
    realm_prefix: String,
    state: RwLock<State>,
    revision: watch::Sender<u64>,
    acked: AtomicU64,
    /// Where other servers write too.
    fence: Option<Fence>,
}

impl Cache {
    /// Fills a cache from the store. [`Cache::feed`] keeps it fresh.
    pub async fn open(store: &Arc<dyn Store>, realm: &str) -> Result<Arc<Cache>, store::StoreError> {
        let realm_prefix = format!("/{realm}/");
        let cache = Arc::new(Cache {
            fence: Fence::of(store, &realm_prefix),
            realm_prefix,
            state: RwLock::default(),
            revision: watch::Sender::new(0),
            acked: AtomicU64::new(0),
        });
        cache.fill(&**store).await?;
        Ok(cache)
    }

    /// Follows the store until it closes or `closing` turns true; heals by listing again.
    pub async fn feed(self: Arc<Self>, store: Arc<dyn Store>, mut closing: watch::Receiver<bool>) {
        let follow = async {
            loop {
                let ended = self.follow(&*store).await;
                tracing::warn!(reason = %ended, "the store ended the feed; listing again");
                tokio::time::sleep(REFEED_PAUSE).await;
                match self.fill(&*store).await {
                    Ok(()) | Err(store::StoreError::Engine(_) | store::StoreError::Unavailable(_)) => {}
                    Err(error) => {
                        tracing::debug!(%error, "feed ends");
                        return;
                    }
                }
            }
        };
        let forget = async {
            loop {
                let before = self.revision();
                tokio::time::sleep(FORGET_EVERY).await;
                self.forget(before);
            }
        };
        tokio::select! {
            () = follow => {}
            () = forget => {}
            _ = closing.wait_for(|c| *c) => {}
        }
    }

    /// Drops the changes up to a revision; a watch can no longer start before them.
    fn forget(&self, until: u64) {
        let mut gone = Vec::new();
        for resource in self.state.write().resources.values_mut() {
            while resource.ring.front().is_some_and(|c| c.revision <= until) {
                gone.extend(resource.drop_oldest());
            }
        }
        // Freed here, after the lock.
        drop(gone);
    }

    async fn follow(&self, store: &dyn Store) -> String {
        let after = Revision(self.revision());
        let mut watch = match store.watch(&self.realm_prefix, after).await {
            Ok(watch) => watch,
            Err(error) => return error.to_string(),
        };
        while let Some(batch) = watch.events.recv().await {
            match batch {
                Ok(events) => self.apply(events),
                Err(error @ (WatchError::Compacted { .. } | WatchError::TooSlow)) => {
                    return error.to_string();
                }
            }
        }
        "closed".into()
    }

    /// Lists everything anew. Running watches are cut: what they missed is not known.
    async fn fill(&self, store: &dyn Store) -> Result<(), store::StoreError> {
        let range = store.range(&self.realm_prefix, RangeOptions::default()).await?;
        let revision = range.revision.0;
        let mut resources: BTreeMap<Arc<str>, ResourceState> = BTreeMap::new();
        for record in &range.records {
            let Some((prefix, suffix)) = split_key(&self.realm_prefix, &record.key) else { continue };
            let Some(object) = object_of(record, suffix) else { continue };
            let state = resources.entry(prefix.into()).or_default();
            state.objects.insert(suffix.into(), object);
            state.floor = revision;
        }
        let mut state = self.state.write();
        for old in state.resources.values() {
            old.subscribers.iter().for_each(|s| s.lagged.store(true, Ordering::Release));
        }
        *state = State { revision, floor: revision, resources };
        drop(state);
        self.revision.send_replace(revision);
        Ok(())
    }

    fn apply(&self, events: Vec<store::Event>) {
        let mut state = self.state.write();
        for event in events {
            if event.revision.0 <= state.revision {
                continue;
            }
            state.revision = event.revision.0;
            let Some((prefix, suffix)) = split_key(&self.realm_prefix, &event.key) else { continue };
            let floor = state.floor;
            let resource = match state.resources.get_mut(prefix) {
                Some(resource) => resource,
                None => state
                    .resources
                    .entry(prefix.into())
                    .or_insert_with(|| ResourceState { floor, ..ResourceState::default() }),
            };
            if let Some(change) = resource.change_of(suffix, &event) {
                resource.push(Arc::new(change));
            }
        }
        let revision = state.revision;
        drop(state);
        self.revision.send_replace(revision);
    }

    /// The newest revision applied.
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Notes a write that the store acknowledged to this server: later reads wait for it.
    pub fn acked(&self, revision: u64) {
        self.acked.fetch_max(revision, Ordering::AcqRel);
    }

    /// Waits until every write acknowledged before this call, by whatever server, is in the cache.
    pub async fn wait_fresh(&self) -> Result<(), ApiError> {
        let newest = match &self.fence {
            Some(fence) => fence.newest().await?,
            None => self.acked.load(Ordering::Acquire),
        };
        self.wait_for(newest).await
    }

    /// Waits until something in the cache is so.
    pub async fn wait_until(&self, so: impl Fn() -> bool) {
        let _ = self.revision.subscribe().wait_for(|_| so()).await;
    }

    /// Waits until the cache has reached a revision; 504 in Kubernetes' words when it does not in time.
    pub async fn wait_for(&self, revision: u64) -> Result<(), ApiError> {
        if self.revision() >= revision {
            return Ok(());
        }
        if let Some(fence) = &self.fence
            && !self.reaches(revision, FENCE_AFTER).await
        {
            self.fenced(fence, revision).await?;
        }
        if self.reaches(revision, FRESH_WAIT).await {
            return Ok(());
        }
        let message = format!("Too large resource version: {revision}, current: {}", self.revision());
        let mut error = ApiError::new(504, "Timeout", message);
        error.retry_after_seconds = 1;
        error.causes.push(machinery::status::Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        });
        Err(error)
    }

    async fn reaches(&self, revision: u64, within: Duration) -> bool {
        let mut current = self.revision.subscribe();
        matches!(tokio::time::timeout(within, current.wait_for(|r| *r >= revision)).await, Ok(Ok(_)))
    }

    /// Writes a fence behind a revision that the store has and the cache has not heard of.
    async fn fenced(&self, fence: &Fence, revision: u64) -> Result<(), ApiError> {
        let _turn = fence.turn().await;
        if self.revision() < revision && fence.newest().await? >= revision {
            let behind = fence.write().await?;
            self.reaches(behind, FRESH_WAIT).await;
        }
        Ok(())
    }

    /// One object, as the cache has it now.
    pub fn get(&self, prefix: &str, suffix: &str) -> Option<Arc<Object>> {
        self.state.read().resources.get(prefix)?.objects.get(suffix).cloned()
    }

    /// All objects of a resource, as the cache has them now.
    pub fn snapshot(&self, prefix: &str) -> Snapshot {
        let state = self.state.read();
        let objects = state.resources.get(prefix).map(|r| r.objects.clone()).unwrap_or_default();
        Snapshot { objects, revision: state.revision }
    }

    /// Starts a watch after a revision. `Err` holds the oldest revision that a watch can start from.
    pub fn subscribe(&self, prefix: &Arc<str>, interest: Interest, after: u64) -> Result<Subscription, u64> {
        let mut state = self.state.write();
        let resource = state.resource(prefix);
        if after < resource.floor {
            return Err(resource.floor);
        }
        let from = resource.ring.partition_point(|c| c.revision <= after);
        let backlog =
            resource.ring.range(from..).filter(|c| interest.covers(&c.object.key)).cloned().collect();
        let (queue, changes) = mpsc::channel(WATCHER_QUEUE);
        let lagged = Arc::new(AtomicBool::new(false));
        resource.subscribers.retain(|s| !s.queue.is_closed());
        resource.subscribers.push(Subscriber { interest, queue, lagged: lagged.clone() });
        Ok(Subscription { changes, backlog, lagged })
    }

    /// Starts a watch at the present state.
    pub fn subscribe_now(&self, prefix: &Arc<str>, interest: Interest) -> (Snapshot, Subscription) {
        let mut state = self.state.write();
        let revision = state.revision;
        let resource = state.resource(prefix);
        let (queue, changes) = mpsc::channel(WATCHER_QUEUE);
        let lagged = Arc::new(AtomicBool::new(false));
        resource.subscribers.retain(|s| !s.queue.is_closed());
        resource.subscribers.push(Subscriber { interest, queue, lagged: lagged.clone() });
        let objects = resource.objects.clone();
        (Snapshot { objects, revision }, Subscription { changes, backlog: VecDeque::new(), lagged })
    }

    /// Ends the watches of a resource: its version is no longer served.
    pub fn cut(&self, prefix: &str) {
        if let Some(resource) = self.state.write().resources.get_mut(prefix) {
            resource.subscribers.clear();
        }
    }

    /// Figures by key prefix.
    pub fn figures(&self) -> BTreeMap<Arc<str>, ResourceFigures> {
        let state = self.state.read();
        let figures = state.resources.iter().map(|(prefix, r)| {
            let watchers = r.subscribers.iter().filter(|s| !s.queue.is_closed()).count();
            (prefix.clone(), ResourceFigures { objects: r.objects.len(), changes: r.ring.len(), watchers })
        });
        figures.collect()
    }
}

impl State {
    fn resource(&mut self, prefix: &Arc<str>) -> &mut ResourceState {
        let floor = self.floor;
        self.resources
            .entry(prefix.clone())
            .or_insert_with(|| ResourceState { floor, ..ResourceState::default() })
    }
}

impl ResourceState {
    /// Applies an event to the objects and says what changed.
    fn change_of(&mut self, suffix: &str, event: &store::Event) -> Option<Change> {
        let revision = event.revision.0;
        let (kind, object, previous) = match &event.record {
            Some(record) => {
                let object = object_of(record, suffix)?;
                let previous = self.objects.insert(suffix.into(), object.clone());
                let kind = if previous.is_some() { EventKind::Modified } else { EventKind::Added };
                (kind, object, previous)
            }
            None => {
                let previous = self.objects.remove(suffix)?;
                (EventKind::Deleted, Arc::new(at_revision(&previous, revision)), Some(previous))
            }
        };
        Some(Change { revision, kind, object, previous, frame: OnceLock::new() })
    }

    /// Keeps a change and hands it to the watchers it may concern.
    fn push(&mut self, change: Arc<Change>) {
        self.subscribers.retain(|s| {
            if !s.interest.covers(&change.object.key) {
                return true;
            }
            match s.queue.try_send(change.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    s.lagged.store(true, Ordering::Release);
                    false
                }
            }
        });
        self.ring_bytes += change.size();
        self.ring.push_back(change);
        while self.ring.len() > RING_EVENTS_MAX || (self.ring_bytes > RING_BYTES_MAX && self.ring.len() > 1) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) -> Option<Arc<Change>> {
        let gone = self.ring.pop_front()?;
        self.ring_bytes -= gone.size();
        self.floor = gone.revision;
        Some(gone)
    }
}

/// The object of a stored record.
pub fn object_of(record: &Record, suffix: &str) -> Option<Arc<Object>> {
    let (namespace, name) = split_suffix(suffix)?;
    let revision = record.modified.0;
    let raw = scan::with_revision(&record.value, revision);
    Some(Arc::new(Object::new(ObjectKey::new(namespace, name), revision, raw)))
}

/// The same object under another revision (deletions carry their own).
pub fn at_revision(object: &Object, revision: u64) -> Object {
    Object::new(object.key.clone(), revision, scan::with_revision(&object.raw, revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64, name: &str, there: bool) -> store::Event {
        let record = |key: &str| Record {
            key: key.into(),
            value: Bytes::from_static(br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}"#),
            created: Revision(revision),
            modified: Revision(revision),
        };
        let key = format!("/r/core/configmaps/ns/{name}");
        let record = there.then(|| record(&key));
        store::Event { revision: Revision(revision), record, key: key.into(), previous: None }
    }

    #[test]
    fn changes_are_forgotten_and_watches_of_before_refused() {
        let cache = Cache {
            realm_prefix: "/r/".into(),
            state: RwLock::default(),
            revision: watch::Sender::new(0),
            acked: AtomicU64::new(0),
            fence: None,
        };
        cache.apply(vec![event(1, "a", true), event(2, "a", false), event(3, "b", true)]);
        let prefix = cache.state.read().resources.keys().next().unwrap().clone();
        let weak = Arc::downgrade(&cache.state.read().resources[&prefix].ring[0]);
        cache.forget(2);
        assert!(weak.upgrade().is_none(), "a deleted object's bytes are held");
        assert!(matches!(cache.subscribe(&prefix, Interest::default(), 1), Err(2)));
        let later = cache.subscribe(&prefix, Interest::default(), 2).ok().unwrap();
        assert_eq!(later.backlog.iter().map(|c| c.revision).collect::<Vec<_>>(), [3]);
        cache.forget(3);
        let resource = &cache.state.read().resources[&prefix];
        assert_eq!((resource.ring.len(), resource.ring_bytes, resource.objects.len()), (0, 0, 1));
    }
}
