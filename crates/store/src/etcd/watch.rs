//! A watch that outlives connections: a task that follows etcd and fills one watcher's queue.
//!
//! Invariants (S2): events reach the queue in revision order, each once; after a reconnect the stream goes on behind
//! the last revision queued. etcd is asked from that revision itself on and what comes of it is dropped: so etcd
//! refuses exactly when something between may be missing, while one revision later it would let the watch start at
//! the oldest revision it keeps, whose deletions it may have forgotten.
//! Deliberately not here: several watches on one stream; there are few (the API server has one).

use super::channel::{CallError, Incoming};
use super::messages::{self, RangeReply, WatchEvent, WatchReply};
use super::wire::Malformed;
use super::{Shared, prefix_end};
use crate::queue::Queue;
use crate::{Event, Revision, WatchError};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout_at};

/// Before the stream is opened again after it broke.
const RESUME: Backoff = Backoff { base: Duration::from_millis(20), factor: 3, max: Duration::from_secs(2) };

/// Why a stream ended.
enum End {
    /// The watch ends as well.
    For(WatchError),
    /// Open another.
    Broken(String),
}

impl From<CallError> for End {
    fn from(error: CallError) -> Self {
        End::Broken(error.to_string())
    }
}

impl From<Malformed> for End {
    fn from(error: Malformed) -> Self {
        End::Broken(error.to_string())
    }
}

/// Told when a watch has queued what was there when it began; with the error if it is refused before.
pub(super) type Started = oneshot::Sender<Result<(), WatchError>>;

/// One watch.
pub(super) struct Follower {
    shared: Arc<Shared>,
    /// Prefix of the full keys.
    prefix: Vec<u8>,
    /// The last revision queued.
    after: u64,
    /// Events of a response that is not complete yet and may go on within the same revision.
    held: Vec<WatchEvent>,
    queue: Queue,
    started: Option<Started>,
}

impl Follower {
    pub fn new(
        shared: Arc<Shared>,
        prefix: Vec<u8>,
        after: Revision,
        queue: Queue,
        started: Started,
    ) -> Self {
        Follower { shared, prefix, after: after.0, held: Vec::new(), queue, started: Some(started) }
    }

    /// Follows until the watcher goes, the store closes, or the watch cannot go on.
    pub async fn run(self) {
        let shared = self.shared.clone();
        let mut closed = shared.closed.subscribe();
        let gone = self.queue.gone();
        shared.watchers.fetch_add(1, Ordering::Relaxed);
        tokio::select! {
            _ = closed.wait_for(|closed| *closed) => {}
            () = gone => {}
            () = self.follow_on() => {}
        }
        shared.watchers.fetch_sub(1, Ordering::Relaxed);
    }

    async fn follow_on(mut self) {
        let mut attempt = 0;
        let error = loop {
            let before = self.after;
            let Err(end) = self.follow().await;
            match end {
                End::For(error) => break error,
                End::Broken(reason) => {
                    tracing::info!(%reason, after = self.after, "a watch of etcd broke off; it goes on");
                    self.shared.counters.lock().watch_resumes += 1;
                    attempt = if self.after > before { 0 } else { attempt + 1 };
                    sleep(RESUME.delay(attempt)).await;
                }
            }
        };
        match self.started.take().map(|started| started.send(Err(error.clone()))) {
            Some(Ok(())) => {}
            _ => self.queue.end(error),
        }
    }

    /// One stream, from opening it to its end.
    async fn follow(&mut self) -> Result<Infallible, End> {
        self.held.clear();
        let deadline = self.shared.deadline();
        let create = messages::watch_create(&self.prefix, &prefix_end(&self.prefix), self.after.max(1));
        let mut incoming = self.shared.channel.stream(messages::WATCH, &create, deadline).await?;
        let created = timeout_at(deadline, reply(&mut incoming)).await;
        let Ok(created) = created else {
            self.shared.channel.give_up_with(&incoming);
            return Err(End::Broken("no answer in time".into()));
        };
        let revision = self.take(created?)?;
        let there = if self.started.is_some() && revision > self.after { self.newest().await } else { 0 };
        loop {
            if self.after >= there
                && let Some(started) = self.started.take()
            {
                let _ = started.send(Ok(()));
            }
            let reply = reply(&mut incoming).await?;
            self.take(reply)?;
        }
    }

    /// The revision up to which there is something to wait for before a new watch counts as started: a compaction
    /// that comes after that takes nothing from it. What was only deleted is not waited for.
    async fn newest(&self) -> u64 {
        let request = messages::newest_since(&self.prefix, &prefix_end(&self.prefix), self.after);
        let reply = self.shared.read(messages::RANGE, &request).await;
        let newest = reply.ok().and_then(|reply| RangeReply::read(reply).ok()?.kvs.pop());
        newest.map_or(0, |kv| kv.modified)
    }

    /// Queues what a response brings; the revision it was sent at.
    fn take(&mut self, reply: WatchReply) -> Result<u64, End> {
        if reply.canceled && reply.compacted > 0 {
            let oldest = Revision(reply.compacted);
            return Err(End::For(WatchError::Compacted { asked: Revision(self.after), oldest }));
        }
        if reply.canceled {
            return Err(End::Broken(reply.reason));
        }
        let progress = reply.events.is_empty() && !reply.created && !reply.fragment && self.held.is_empty();
        self.held.extend(reply.events);
        let open = self.held.last().filter(|_| reply.fragment).map(|event| event.kv.modified);
        let complete = self.held.partition_point(|event| open.is_none_or(|open| event.kv.modified < open));
        let events: Vec<WatchEvent> = self.held.drain(..complete).collect();
        let events: Vec<Event> =
            events.into_iter().filter_map(|event| self.event(event).transpose()).collect::<Result<_, _>>()?;
        if let Some(last) = events.last().map(|event| event.revision.0) {
            if !self.queue.send(events) {
                return Err(End::For(WatchError::TooSlow));
            }
            self.after = last;
        } else if progress {
            self.after = self.after.max(reply.revision);
        }
        Ok(reply.revision)
    }

    /// The event in our terms; `None` for one that was queued before or is of a key that nobody here wrote.
    fn event(&self, event: WatchEvent) -> Result<Option<Event>, End> {
        let revision = Revision(event.kv.modified);
        let Some(key) = self.shared.key_of(&event.kv.key).filter(|_| revision.0 > self.after) else {
            return Ok(None);
        };
        if event.previous.is_none() && (event.deleted || event.kv.version > 1) {
            // A compaction was faster: what stood there before is forgotten.
            let asked = Revision(revision.0 - 1);
            return Err(End::For(WatchError::Compacted { asked, oldest: revision }));
        }
        let previous = event.previous.and_then(|previous| self.shared.record(&previous));
        let record = if event.deleted { None } else { self.shared.record(&event.kv) };
        Ok(Some(Event { key, revision, record, previous }))
    }
}

async fn reply(incoming: &mut Incoming) -> Result<WatchReply, End> {
    match incoming.message().await? {
        Some(message) => Ok(WatchReply::read(message)?),
        None => Err(End::Broken("etcd ended the stream".into())),
    }
}
