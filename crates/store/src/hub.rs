//! Who watches, and the one place where a new state becomes visible.
//!
//! Invariants (S2): a state and its events are published under one lock, and a watcher registers under the
//! same lock; so what it replays from the history and what it then gets live meet without gap or repeat.
//! A watcher whose bounded queue is full gets [`WatchError::TooSlow`] behind what is queued.
//! Deliberately not here: indexing watchers by namespace or node: few watch the store itself; the caches
//! above it fan out.

use crate::index::Index;
use crate::queue::{Queue, QueueLimits};
use crate::{Event, Revision, Watch, WatchError};
use parking_lot::{Mutex, RwLock};

struct Watcher {
    prefix: Box<str>,
    after: Revision,
    queue: Queue,
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        event.revision > self.after && event.key.starts_with(&*self.prefix)
    }

    /// Queues what this watcher wants of the events; the watcher again, unless it has ended.
    fn offer(mut self, events: &[Event]) -> Option<Self> {
        if self.queue.is_closed() {
            return None;
        }
        let wanted: Vec<Event> = events.iter().filter(|event| self.wants(event)).cloned().collect();
        if wanted.is_empty() || self.queue.send(wanted) {
            return Some(self);
        }
        self.queue.end(WatchError::TooSlow);
        None
    }
}

/// The published state and its watchers.
pub(crate) struct Hub {
    index: RwLock<Index>,
    /// `None` once the store is closed. Taken before `index`, never after it.
    watchers: Mutex<Option<Vec<Watcher>>>,
    limits: QueueLimits,
}

impl Hub {
    pub fn new(index: Index, limits: QueueLimits) -> Self {
        Hub { index: RwLock::new(index), watchers: Mutex::new(Some(Vec::new())), limits }
    }

    /// The published state: a snapshot, cheap.
    pub fn snapshot(&self) -> Index {
        self.index.read().clone()
    }

    /// Looks at the published state without the cost of a snapshot. Only for short looks.
    pub fn with<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.index.read())
    }

    /// Makes a durable state visible and tells the watchers what changed.
    pub fn publish(&self, next: Index, events: &[Event]) {
        let mut watchers = self.watchers.lock();
        let old = std::mem::replace(&mut *self.index.write(), next);
        if let Some(list) = watchers.as_mut() {
            *list = std::mem::take(list).into_iter().filter_map(|watcher| watcher.offer(events)).collect();
        }
        drop(watchers);
        // Freeing what only the old state held takes time that nobody should wait for.
        drop(old);
    }

    /// Starts a watch: what the history holds after `after`, then what is published from here on.
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        let (queue, watch) = Queue::new(self.limits);
        let mut watcher = Watcher { prefix: prefix.into(), after, queue };
        let mut watchers = self.watchers.lock();
        let index = self.snapshot();
        let Some(past) = index.since(after) else {
            return Err(WatchError::Compacted { asked: after, oldest: index.floor() });
        };
        let replay: Vec<Event> = past.filter(|event| watcher.wants(event)).cloned().collect();
        if !replay.is_empty() {
            watcher.queue.send(replay);
        }
        if let Some(list) = watchers.as_mut() {
            list.retain(|watcher| !watcher.queue.is_closed());
            list.push(watcher);
        }
        Ok(watch)
    }

    /// Ends every watch, now and later; reads go on.
    pub fn close(&self) {
        *self.watchers.lock() = None;
    }

    /// How many watches run.
    pub fn watchers(&self) -> usize {
        self.watchers.lock().iter().flatten().filter(|watcher| !watcher.queue.is_closed()).count()
    }
}
