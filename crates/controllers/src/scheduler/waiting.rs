//! Pods that wait for a node: in order, with pauses that grow, and parked while nothing has changed that could help.
//!
//! Pure: the caller brings the time.

use super::hints::{Change, Filters, may_help};
use sched::{PodId, PodInfo};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::time::Instant;

/// Pauses between attempts, as upstream's queue has them.
const PAUSE: Backoff = Backoff { base: Duration::from_secs(1), factor: 2, max: Duration::from_secs(10) };
/// A pod that nothing could help is tried again after this long all the same.
const PARKED: Duration = Duration::from_secs(300);

/// One waiting pod.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The pod.
    pub info: Arc<PodInfo>,
    /// Could another pod's arrival help it (affinity, spread)?
    pub social: bool,
    /// Which filters refused it at the last attempt.
    refused: Filters,
    /// When it was first seen.
    pub seen: Instant,
    /// Order of arrival.
    arrival: u64,
    attempts: u32,
    /// Not before this, whatever happens.
    pause_until: Instant,
    /// Tried at this time.
    due: Instant,
}

/// All waiting pods.
#[derive(Debug)]
pub struct Waiting {
    /// Pauses between attempts.
    pub pause: Backoff,
    pods: BTreeMap<PodId, Entry>,
    arrivals: u64,
}

impl Default for Waiting {
    fn default() -> Self {
        Waiting { pause: PAUSE, pods: BTreeMap::new(), arrivals: 0 }
    }
}

impl Waiting {
    /// A new or changed pod: tried at once, unless its last attempt was just now.
    pub fn put(&mut self, id: PodId, info: Arc<PodInfo>, social: bool, now: Instant) {
        if let Some(entry) = self.pods.get_mut(&id)
            && entry.info.uid == info.uid
        {
            *entry = Entry { info, social, due: entry.pause_until.max(now), ..entry.clone() };
            return;
        }
        self.arrivals += 1;
        let entry = Entry {
            info,
            social,
            refused: Filters::new(),
            seen: now,
            arrival: self.arrivals,
            attempts: 0,
            pause_until: now,
            due: now,
        };
        self.pods.insert(id, entry);
    }

    /// The pod of that name no longer waits.
    pub fn remove(&mut self, id: &PodId) {
        self.pods.remove(id);
    }

    /// Does this very pod wait?
    pub fn contains(&self, id: &PodId, uid: &str) -> bool {
        self.pods.get(id).is_some_and(|e| e.info.uid == uid)
    }

    /// Takes out at most `max` pods that are due: the important ones first, then who came first.
    pub fn take_due(&mut self, now: Instant, max: usize) -> Vec<Entry> {
        let due = self.pods.iter().filter(|(_, e)| e.due <= now);
        let mut order: Vec<_> = due.map(|(id, e)| (Reverse(e.info.priority), e.arrival, id)).collect();
        if order.len() > max {
            order.select_nth_unstable(max);
            order.truncate(max);
        }
        order.sort_unstable();
        let order: Vec<PodId> = order.into_iter().map(|(_, _, id)| id.clone()).collect();
        order.iter().filter_map(|id| self.pods.remove(id)).collect()
    }

    /// Puts a pod back that fitted nowhere: it waits for a change.
    pub fn park(&mut self, mut entry: Entry, refused: Filters, now: Instant) {
        entry.refused = refused;
        self.put_back(entry, now, Some(PARKED));
    }

    /// Puts a pod back whose binding failed: it is tried again after its pause.
    pub fn retry(&mut self, entry: Entry, now: Instant) {
        self.put_back(entry, now, None);
    }

    fn put_back(&mut self, mut entry: Entry, now: Instant, stay: Option<Duration>) {
        let Some(id) = entry.info.id.clone() else { return };
        entry.pause_until = now + self.pause.delay(entry.attempts);
        entry.attempts += 1;
        entry.due = stay.map_or(entry.pause_until, |stay| now + stay);
        self.pods.insert(id, entry);
    }

    /// Something changed; those whom it may help are tried again after their pause.
    pub fn wake(&mut self, changes: &[Change]) {
        let helped = |e: &Entry| {
            may_help(&e.refused, changes) && (e.social || changes.iter().any(|c| *c != Change::Placed))
        };
        for entry in self.pods.values_mut().filter(|e| helped(e)) {
            entry.due = entry.due.min(entry.pause_until);
        }
    }

    /// How many are due, pause, and wait for a change.
    pub fn counts(&self, now: Instant) -> [usize; 3] {
        let mut counts = [0; 3];
        for entry in self.pods.values() {
            let place = if entry.due <= now { 0 } else { 1 + usize::from(entry.due > entry.pause_until) };
            counts[place] += 1;
        }
        counts
    }

    /// When the next pod is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.pods.values().map(|e| e.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> PodId {
        ("n".into(), name.into())
    }

    fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
        let mut info = PodInfo::default();
        (info.id, info.uid, info.priority) = (Some(id(name)), name.into(), priority);
        Arc::new(info)
    }

    fn full() -> Filters {
        ["NodeResourcesFit"].into()
    }

    fn taken(waiting: &mut Waiting, now: Instant, max: usize) -> Vec<String> {
        waiting.take_due(now, max).into_iter().map(|e| e.info.uid.clone()).collect()
    }

    #[test]
    fn important_pods_come_first_then_early_ones() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        for (name, priority) in [("z", 0), ("a", 0), ("vip", 9)] {
            waiting.put(id(name), pod(name, priority), false, now);
        }
        assert_eq!(taken(&mut waiting, now, 2), ["vip", "z"]);
        assert_eq!(taken(&mut waiting, now, 2), ["a"]);
    }

    #[test]
    fn a_parked_pod_waits_for_a_change_or_long() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        let second = |n: u64| now + Duration::from_secs(n);
        waiting.put(id("a"), pod("a", 0), false, now);
        let entry = waiting.take_due(now, 9).remove(0);
        waiting.park(entry, full(), now);
        assert_eq!(waiting.next_due(), Some(second(300)));
        waiting.wake(&[Change::Placed]);
        assert_eq!(waiting.next_due(), Some(second(300)), "company does not help it");
        waiting.wake(&[Change::Labels, Change::Volumes]);
        assert_eq!((waiting.next_due(), waiting.counts(now)), (Some(second(300)), [0, 0, 1]));
        waiting.wake(&[Change::Left]);
        assert_eq!(waiting.next_due(), Some(second(1)), "not before its pause is over");
        assert_eq!((waiting.counts(now), waiting.counts(second(1))), ([0, 1, 0], [1, 0, 0]));
        let entry = waiting.take_due(second(1), 9).remove(0);
        waiting.park(entry, full(), second(1));
        waiting.put(id("a"), pod("a", 0), false, second(1));
        assert_eq!(waiting.next_due(), Some(second(3)), "a changed pod keeps its longer pause");
        for _ in 0..10 {
            let entry = waiting.take_due(second(900), 9).remove(0);
            waiting.retry(entry, second(900));
            waiting.wake(&[Change::Left]);
            assert!(waiting.next_due() <= Some(second(910)), "no pause is longer than ten seconds");
            waiting.pods.values_mut().for_each(|e| e.due = second(900));
        }
    }

    #[test]
    fn a_pod_of_the_same_name_is_another_pod() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.put(id("a"), pod("a", 0), false, now);
        let entry = waiting.take_due(now, 9).remove(0);
        waiting.park(entry, full(), now);
        let mut other = PodInfo::default();
        (other.id, other.uid) = (Some(id("a")), "new".into());
        waiting.put(id("a"), Arc::new(other), false, now);
        assert!(waiting.contains(&id("a"), "new") && !waiting.contains(&id("a"), "a"));
        assert_eq!(taken(&mut waiting, now, 9), ["new"]);
    }
}
