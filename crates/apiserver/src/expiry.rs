//! Events do not stay: an hour after they were last seen they are removed.
//!
//! (etcd leases do this upstream; our store has none.) One task sleeps until the oldest event is due, or until
//! there is one at all, so that an idle cluster wakes for nothing. What to remove is decided by [`due`], pure.

use crate::api::Api;
use crate::cache::Objects;
use crate::scan;
use client::Object;
use jiff::{SignedDuration, Timestamp};
use k8s_schema::gvr;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Upstream's `--event-ttl`.
const KEPT: SignedDuration = SignedDuration::from_hours(1);
/// Shortest sleep, so that events which expire one after the other go in batches.
const SLEEP_MIN: Duration = Duration::from_secs(60);
/// Longest sleep while there are no events.
const SLEEP_MAX: Duration = Duration::from_secs(3_600);

/// When the event was last seen.
fn last_seen(event: &Object) -> Option<Timestamp> {
    let paths: [&[&str]; 4] = [
        &["series", "lastObservedTime"],
        &["lastTimestamp"],
        &["eventTime"],
        &["metadata", "creationTimestamp"],
    ];
    paths.iter().filter_map(|p| scan::string_at(&event.raw, p)?.parse().ok()).max()
}

/// The events to remove, and how long until the next one is due.
fn due(events: &Objects, now: Timestamp) -> (Vec<Arc<Object>>, Duration) {
    let mut gone = Vec::new();
    let mut next = SLEEP_MAX;
    for event in events.values() {
        let age = now.duration_since(last_seen(event).unwrap_or(Timestamp::UNIX_EPOCH));
        match Duration::try_from(KEPT - age) {
            Ok(left) if !left.is_zero() => next = next.min(left),
            _ => gone.push(event.clone()),
        }
    }
    (gone, next.max(SLEEP_MIN))
}

/// Removes events as they come due, until the server closes.
pub async fn run(api: Weak<Api>) {
    loop {
        let Some(api_now) = api.upgrade() else { return };
        let mut closing = api_now.closing();
        let (gone, sleep) = due(&api_now.cached_all(&gvr::EVENTS), (api_now.config.clock)());
        if let Some(resource) = api_now.registry.find(&gvr::EVENTS) {
            for event in &gone {
                // A lost race means that it was seen again; the next round looks anew.
                if let Err(error) = api_now.storage.remove(&resource, event).await {
                    tracing::debug!(%error, "an old event could not be removed");
                    break;
                }
            }
        }
        drop(api_now);
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            _ = closing.wait_for(|c| *c) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::ObjectKey;
    use serde_json::{Value, json};

    fn event(body: Value) -> Arc<Object> {
        Arc::new(Object::new(ObjectKey::new("default", "e"), 1, body.to_string().into()))
    }

    #[test]
    fn events_go_an_hour_after_they_were_last_seen() {
        let old = event(json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}));
        let again = event(
            json!({"lastTimestamp": "2026-01-01T01:30:00Z", "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}),
        );
        let mut events = Objects::new();
        events.insert("default/a".into(), old.clone());
        events.insert("default/b".into(), again);
        let (gone, sleep) = due(&events, "2026-01-01T02:00:00Z".parse().unwrap());
        assert_eq!(gone.len(), 1);
        assert!(Arc::ptr_eq(&gone[0], &old));
        assert_eq!(sleep, Duration::from_secs(1_800));
        assert_eq!(due(&Objects::new(), Timestamp::UNIX_EPOCH).1, SLEEP_MAX);
    }
}
