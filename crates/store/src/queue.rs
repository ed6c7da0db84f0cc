//! One watcher's queue, bounded in batches and in bytes.
//!
//! Invariant: a place is kept free from the start for the error that ends the watch, so that a watcher that does
//! not keep up is told so behind what is queued.
//! Deliberately not here: who is given which events (`hub`, `etcd::watch`).

use crate::{Event, Watch, WatchError};
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

/// The filling end.
pub(crate) struct Queue {
    sender: mpsc::Sender<Batch>,
    last_place: mpsc::OwnedPermit<Batch>,
    /// Bytes of each batch that may still be queued, oldest first, and their sum.
    queued: VecDeque<usize>,
    queued_bytes: usize,
    bytes_max: usize,
}

impl Queue {
    pub fn new(limits: QueueLimits) -> (Self, Watch) {
        let (sender, events) = mpsc::channel(limits.batches + 1);
        let last_place = sender.clone().try_reserve_owned().expect("a new channel has room");
        let bytes_max = limits.bytes;
        (Queue { sender, last_place, queued: VecDeque::new(), queued_bytes: 0, bytes_max }, Watch { events })
    }

    /// Has the watcher gone?
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Ends when the watcher has gone.
    pub fn gone(&self) -> impl Future<Output = ()> + use<> {
        let sender = self.sender.clone();
        async move { sender.closed().await }
    }

    /// Queues a batch; false when there is no place for it.
    pub fn send(&mut self, events: Vec<Event>) -> bool {
        let waiting = self.sender.max_capacity() - self.sender.capacity() - 1;
        while self.queued.len() > waiting {
            self.queued_bytes -= self.queued.pop_front().unwrap_or(0);
        }
        let bytes = events.iter().map(event_bytes).sum();
        // A first batch is always taken, however big: it may be a replay, or one large value.
        let full = waiting > 0 && self.queued_bytes + bytes > self.bytes_max;
        if full || self.sender.try_send(Ok(events)).is_err() {
            return false;
        }
        self.queued.push_back(bytes);
        self.queued_bytes += bytes;
        true
    }

    /// Ends the watch.
    pub fn end(self, error: WatchError) {
        self.last_place.send(Err(error));
    }
}

fn event_bytes(event: &Event) -> usize {
    let values = [&event.record, &event.previous];
    EVENT_BYTES + values.into_iter().flatten().map(|record| record.value.len()).sum::<usize>()
}
