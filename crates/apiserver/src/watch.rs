//! One watch: initial objects, changes seen through a selection, progress. No transport, no encoding.

use crate::cache::{Cache, Change, Subscription, at_revision};
use crate::select::Selection;
use auth::{Identity, SYSTEM_MASTERS};
use client::{EventKind, Object};
use machinery::status::ApiError;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Watches of ordinary callers at once. Each takes some 8 KiB, and one event may go to all of them: connections and
/// their streams alone would allow fifty times as many.
const WATCHES_MAX: usize = 150_000;

/// The watches that stand for ordinary callers.
#[derive(Default)]
pub struct Places(Arc<AtomicUsize>);

/// One of them; free again when it goes.
pub struct Place(Option<Arc<AtomicUsize>>);

impl Places {
    /// A place for a caller's watch; 429 when there are too many. Components and nodes always get one.
    pub fn take(&self, identity: &Identity) -> Result<Place, ApiError> {
        if identity.user.starts_with("system:") && !identity.user.starts_with("system:serviceaccount:")
            || identity.in_group(SYSTEM_MASTERS)
        {
            return Ok(Place(None));
        }
        let place = Place(Some(self.0.clone()));
        if self.0.fetch_add(1, Ordering::Relaxed) >= WATCHES_MAX {
            let message = "too many watches stand already, please try again later";
            let mut error = ApiError::new(429, "TooManyRequests", message);
            error.retry_after_seconds = 1;
            return Err(error);
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(places) = &self.0 {
            places.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One event as a watcher sees it.
pub struct Seen {
    /// What happened, from inside the selection.
    pub kind: EventKind,
    /// The object to show.
    pub object: Arc<Object>,
    /// The shared change, when it is shown as it is (so its encoded frame can be shared).
    pub change: Option<Arc<Change>>,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The present objects as `Added`, then changes.
    Current,
    /// Changes after this revision, which may be still to come.
    After(u64),
}

/// A running watch.
pub struct Watcher {
    cache: Arc<Cache>,
    selection: Selection,
    /// The whole selection, where only a part can be applied before a conversion.
    late: Option<Arc<Selection>>,
    initial: VecDeque<Arc<Object>>,
    initial_revision: u64,
    /// Nothing up to here is shown: a watch may begin in the future.
    after: u64,
    subscription: Subscription,
}

impl Watcher {
    /// Starts a watch. A start that is too old is an error in Kubernetes' words.
    pub async fn start(cache: &Arc<Cache>, selection: Selection, start: Start) -> Result<Watcher, ApiError> {
        let (selection, late) = match selection.early() {
            Some(early) => (early, Some(Arc::new(selection))),
            None => (selection, None),
        };
        let prefix = selection.resource.prefix.clone();
        let interest = selection.interest();
        let after = if let Start::After(revision) = start { revision } else { 0 };
        let (initial, initial_revision, subscription) = match start {
            Start::Current => {
                let (snapshot, subscription) = cache.subscribe_now(&prefix, interest);
                let initial = selection.filter(&snapshot.objects, "").cloned().collect();
                (initial, snapshot.revision, subscription)
            }
            Start::After(revision) => {
                let subscription = cache.subscribe(&prefix, interest, revision).map_err(|floor| {
                    ApiError::expired(format!("too old resource version: {revision} ({floor})"))
                })?;
                (VecDeque::new(), revision, subscription)
            }
        };
        let cache = cache.clone();
        Ok(Watcher { cache, selection, late, initial, initial_revision, after, subscription })
    }

    /// The revision of the initial objects (or the start).
    pub fn initial_revision(&self) -> u64 {
        self.initial_revision
    }

    /// Brings the initial objects into the served version where a webhook has to.
    pub async fn convert_initial(&mut self, api: &crate::Api) -> Result<(), ApiError> {
        let initial = std::mem::take(&mut self.initial).into();
        self.initial = api.in_served(&self.selection.resource, initial).await?.into();
        if let Some(late) = &self.late {
            self.initial.retain(|object| late.matches(object));
        }
        Ok(())
    }

    /// The selection that is left to apply to what this watch sees, after its conversion.
    pub fn late(&self) -> Option<Arc<Selection>> {
        self.late.clone()
    }

    /// Initial objects that are still to come.
    pub fn initial_left(&self) -> usize {
        self.initial.len()
    }

    /// The next event. `None`: the server closes. An error ends the watch. Safe to cancel.
    pub async fn next(&mut self) -> Result<Option<Seen>, ApiError> {
        if let Some(object) = self.initial.pop_front() {
            return Ok(Some(Seen { kind: EventKind::Added, object, change: None }));
        }
        loop {
            let change = match self.subscription.backlog.pop_front() {
                Some(change) => change,
                None => match self.subscription.changes.recv().await {
                    Some(change) => change,
                    None if self.subscription.lagged.load(Ordering::Acquire) => {
                        return Err(ApiError::expired("The watch fell too far behind; list again"));
                    }
                    None => return Ok(None),
                },
            };
            if change.revision > self.after
                && let Some(seen) = self.see(change)
            {
                return Ok(Some(seen));
            }
        }
    }

    fn see(&self, change: Arc<Change>) -> Option<Seen> {
        let kind = self.selection.transition(&change)?;
        if kind == change.kind {
            return Some(Seen { kind, object: change.object.clone(), change: Some(change) });
        }
        let object = match (kind, &change.previous) {
            // It left the selection: shown as it was, at the revision of the change.
            (EventKind::Deleted, Some(previous)) => Arc::new(at_revision(previous, change.revision)),
            _ => change.object.clone(),
        };
        Some(Seen { kind, object, change: None })
    }

    /// The revision up to which this watcher has seen everything; `None` while something waits for it.
    pub fn progress(&self) -> Option<u64> {
        // Read first: whatever is queued later belongs to later revisions.
        let revision = self.cache.revision();
        let idle = self.initial.is_empty()
            && self.subscription.backlog.is_empty()
            && self.subscription.changes.is_empty();
        (idle && revision >= self.after).then_some(revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_end_but_not_for_components() {
        let places = Places::default();
        let (user, node) = (Identity::new("eve", ["g"]), Identity::new("system:node:n", ["system:nodes"]));
        let taken: Vec<Place> = (0..WATCHES_MAX).map(|_| places.take(&user).ok().unwrap()).collect();
        assert_eq!(places.take(&user).err().unwrap().code, 429);
        assert!(places.take(&node).is_ok());
        drop(taken);
        assert!(places.take(&user).is_ok());
    }
}
