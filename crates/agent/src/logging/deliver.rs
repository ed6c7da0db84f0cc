//! Giving batches to a sink, with patience.

use super::fluent::Router;
use super::{Destination, LogEvent, LogSink, Route, SinkError};
use crate::nodeapi::NodeBackend;
use std::sync::Arc;
use std::time::Duration;
use stdx::backoff::Backoff;

/// Events in a batch, and their bytes with what CloudWatch counts beside the text.
pub(super) const BATCH_EVENTS: usize = 5_000;
pub(super) const BATCH_BYTES: usize = 512 << 10;
pub(super) const EVENT_OVERHEAD: usize = 26;
/// A batch spans at most a day.
const SPAN_MS: u64 = 24 * 3600 * 1000;
/// Between attempts.
pub(super) const RETRY: Backoff =
    Backoff { base: Duration::from_millis(250), factor: 2, max: Duration::from_secs(30) };
/// A batch that is refused so often in a row is dropped: waiting for ever would lose all that follows.
const REFUSALS_MAX: u32 = 7;

/// A sink and where in it.
pub(super) enum Delivery {
    /// A stream of a group.
    Group { sink: Arc<dyn LogSink>, to: Destination, is_open: bool },
    /// A router.
    Router(Box<Router>),
}

impl Delivery {
    pub(super) fn to_group(sink: Arc<dyn LogSink>, to: Destination) -> Delivery {
        Delivery::Group { sink, to, is_open: false }
    }

    pub(super) fn to_router(backend: Arc<dyn NodeBackend>, route: Route) -> Delivery {
        Delivery::Router(Box::new(Router::new(backend, route)))
    }

    /// Delivers a batch: when this returns it was taken, or can never be.
    pub(super) async fn deliver(&mut self, mut events: Vec<LogEvent>) {
        // The streams of a container are read in order; their times may differ by a little.
        events.sort_by_key(|e| e.time_ms);
        while !events.is_empty() {
            let first = events[0].time_ms;
            let end = events.partition_point(|e| e.time_ms <= first + SPAN_MS);
            let rest = events.split_off(end);
            self.persist(&events).await;
            events = rest;
        }
    }

    async fn persist(&mut self, events: &[LogEvent]) {
        let (mut failures, mut refusals) = (0, 0);
        loop {
            match self.put(events).await {
                Ok(()) => return,
                Err(SinkError::Refused(why)) => {
                    refusals += 1;
                    tracing::warn!(why, "log lines were refused");
                    if refusals >= REFUSALS_MAX {
                        return tracing::error!(lines = events.len(), "log lines are dropped");
                    }
                }
                Err(SinkError::Later(why)) => tracing::debug!(why, "log lines wait"),
            }
            tokio::time::sleep(RETRY.delay(failures)).await;
            failures += 1;
        }
    }

    async fn put(&mut self, events: &[LogEvent]) -> Result<(), SinkError> {
        match self {
            Delivery::Router(router) => router.put(events).await,
            Delivery::Group { sink, to, is_open } => {
                if !*is_open {
                    sink.open(to).await?;
                    *is_open = true;
                }
                let done = sink.put(to, events.to_vec()).await;
                // Somebody may have deleted the stream.
                *is_open = done.is_ok();
                done
            }
        }
    }
}
