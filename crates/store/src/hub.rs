//! Who watches, and the one place where a new state becomes visible.
//!
//! Invariants (S2): a state and its events are published under one lock, and a watcher registers under the
//! same lock; so what it replays from the history and what it then gets live meet without gap or repeat.
//! A watcher's queue is bounded in batches and in bytes; one that does not keep up gets
//! [`WatchError::TooSlow`] behind what is queued, through a place that was reserved for that.
//! Deliberately not here: indexing watchers by namespace or node: few watch the store itself; the caches
//! above it fan out.

use crate::index::Index;
use crate::{Event, Revision, Watch, WatchError};
use parking_lot::{Mutex, RwLock};
use std::collections::VecDeque;
use tokio::sync::mpsc;

/// What an event costs in a queue beside its values.
const EVENT_BYTES: usize = size_of::<Event>();

type Batch = Result<Vec<Event>, WatchError>;

/// Bounds of one watcher's queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    pub batches: usize,
    pub bytes: usize,
}

struct Watcher {
    prefix: Box<str>,
    after: Revision,
    sender: mpsc::Sender<Batch>,
    /// The place kept free for the error that ends this watch.
    last_place: mpsc::OwnedPermit<Batch>,
    /// Bytes of each batch that may still be queued, oldest first, and their sum.
    queued: VecDeque<usize>,
    queued_bytes: usize,
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        event.revision > self.after && event.key.starts_with(&*self.prefix)
    }

    /// Queues what this watcher wants of the events; the watcher again, unless it has ended.
    fn offer(mut self, events: &[Event], bytes_max: usize) -> Option<Self> {
        if self.sender.is_closed() {
            return None;
        }
        let wanted: Vec<Event> = events.iter().filter(|event| self.wants(event)).cloned().collect();
        if wanted.is_empty() || self.send(wanted, bytes_max) {
            return Some(self);
        }
        self.last_place.send(Err(WatchError::TooSlow));
        None
    }

    /// Queues a batch; false when there is no place for it.
    fn send(&mut self, events: Vec<Event>, bytes_max: usize) -> bool {
        let waiting = self.sender.max_capacity() - self.sender.capacity() - 1;
        while self.queued.len() > waiting {
            self.queued_bytes -= self.queued.pop_front().unwrap_or(0);
        }
        let bytes = events.iter().map(event_bytes).sum();
        // A first batch is always taken, however big: it may be a replay, or one large value.
        if (waiting > 0 && self.queued_bytes + bytes > bytes_max) || self.sender.try_send(Ok(events)).is_err()
        {
            return false;
        }
        self.queued.push_back(bytes);
        self.queued_bytes += bytes;
        true
    }
}

fn event_bytes(event: &Event) -> usize {
    let values = [&event.record, &event.previous];
    EVENT_BYTES + values.into_iter().flatten().map(|record| record.value.len()).sum::<usize>()
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
            let offer = |watcher: Watcher| watcher.offer(events, self.limits.bytes);
            *list = std::mem::take(list).into_iter().filter_map(offer).collect();
        }
        drop(watchers);
        // Freeing what only the old state held takes time that nobody should wait for.
        drop(old);
    }

    /// Starts a watch: what the history holds after `after`, then what is published from here on.
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, WatchError> {
        let (sender, events) = mpsc::channel(self.limits.batches + 1);
        let last_place = sender.clone().try_reserve_owned().expect("a new channel has room");
        let mut watcher = Watcher {
            prefix: prefix.into(),
            after,
            sender,
            last_place,
            queued: VecDeque::new(),
            queued_bytes: 0,
        };
        let mut watchers = self.watchers.lock();
        let index = self.snapshot();
        let Some(past) = index.since(after) else {
            return Err(WatchError::Compacted { asked: after, oldest: index.floor() });
        };
        let replay: Vec<Event> = past.filter(|event| watcher.wants(event)).cloned().collect();
        if !replay.is_empty() {
            watcher.send(replay, self.limits.bytes);
        }
        if let Some(list) = watchers.as_mut() {
            list.retain(|watcher| !watcher.sender.is_closed());
            list.push(watcher);
        }
        Ok(Watch { events })
    }

    /// Ends every watch, now and later; reads go on.
    pub fn close(&self) {
        *self.watchers.lock() = None;
    }

    /// How many watches run.
    pub fn watchers(&self) -> usize {
        self.watchers.lock().iter().flatten().filter(|watcher| !watcher.sender.is_closed()).count()
    }
}
