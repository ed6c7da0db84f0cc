//! Pods that wait for a node: in order, with pauses that grow, and parked while nothing has changed that could help.
//!
//! Pure: the caller brings the time.

use super::hints::{Change, Filters, may_help};
use sched::{PodId, PodInfo};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::time::Instant;

/// Pauses between attempts, as upstream's queue has them.
const PAUSE: Backoff = Backoff { base: Duration::from_secs(1), factor: 2, max: Duration::from_secs(10) };
/// A pod that nothing could help is tried again after this long all the same.
const PARKED: Duration = Duration::from_secs(300);

/// What it took to place a pod.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// When it was first seen.
    pub seen: Instant,
    /// Attempts, this one among them.
    pub attempts: u32,
}

/// Event and queue, in upstream's words.
pub type Incoming = (&'static str, &'static str);

/// One waiting pod.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The pod.
    pub info: Arc<PodInfo>,
    /// Could another pod's arrival help it (affinity, spread)?
    pub social: bool,
    /// Which filters refused it at the last attempt.
    refused: Filters,
    seen: Instant,
    /// Order of arrival.
    arrival: u64,
    attempts: u32,
    /// Not before this, whatever happens.
    pause_until: Instant,
    /// Tried at this time.
    due: Instant,
}

/// All waiting pods.
///
/// Invariant: each stands in `ready` or in `later`; those in `later` have their time in `times`.
#[derive(Debug)]
pub struct Waiting {
    /// Pauses between attempts.
    pub pause: Backoff,
    slots: BTreeMap<PodId, Slot>,
    /// Those whose time has come, in the order of their turns.
    ready: BTreeMap<Slot, Entry>,
    /// The others, by arrival.
    later: BTreeMap<u64, Entry>,
    times: BTreeSet<(Instant, u64)>,
    arrivals: u64,
    /// How many came into upstream's queues, and why.
    pub incoming: BTreeMap<Incoming, u64>,
}

/// The important ones first, then who came first.
type Slot = (Reverse<i32>, u64);

impl Default for Waiting {
    fn default() -> Self {
        Waiting {
            pause: PAUSE,
            slots: BTreeMap::new(),
            ready: BTreeMap::new(),
            later: BTreeMap::new(),
            times: BTreeSet::new(),
            arrivals: 0,
            incoming: BTreeMap::new(),
        }
    }
}

impl Entry {
    /// What was needed, if it is placed now.
    pub fn effort(&self) -> Effort {
        Effort { seen: self.seen, attempts: self.attempts + 1 }
    }
}

impl Waiting {
    /// A new or changed pod: tried at once, unless its last attempt was just now.
    pub fn put(&mut self, id: PodId, info: Arc<PodInfo>, social: bool, now: Instant) {
        let known = self.take(&id).filter(|e| e.info.uid == info.uid);
        let entry = match known {
            Some(entry) => Entry { info, social, due: entry.pause_until.max(now), ..entry },
            None => {
                self.count("UnschedulablePodAdd", "active");
                self.arrivals += 1;
                Entry {
                    info,
                    social,
                    refused: Filters::new(),
                    seen: now,
                    arrival: self.arrivals,
                    attempts: 0,
                    pause_until: now,
                    due: now,
                }
            }
        };
        self.insert(id, entry);
    }

    fn count(&mut self, event: &'static str, queue: &'static str) {
        *self.incoming.entry((event, queue)).or_default() += 1;
    }

    fn insert(&mut self, id: PodId, entry: Entry) {
        self.slots.insert(id, (Reverse(entry.info.priority), entry.arrival));
        self.times.insert((entry.due, entry.arrival));
        self.later.insert(entry.arrival, entry);
    }

    fn take(&mut self, id: &PodId) -> Option<Entry> {
        let slot = self.slots.remove(id)?;
        if let Some(entry) = self.later.remove(&slot.1) {
            self.times.remove(&(entry.due, entry.arrival));
            return Some(entry);
        }
        self.ready.remove(&slot)
    }

    fn entry(&self, id: &PodId) -> Option<&Entry> {
        let slot = self.slots.get(id)?;
        self.later.get(&slot.1).or_else(|| self.ready.get(slot))
    }

    /// The pod of that name no longer waits.
    pub fn remove(&mut self, id: &PodId) {
        self.take(id);
    }

    /// Does this very pod wait?
    pub fn contains(&self, id: &PodId, uid: &str) -> bool {
        self.entry(id).is_some_and(|e| e.info.uid == uid)
    }

    /// Takes out at most `max` pods that are due: the important ones first, then who came first.
    pub fn take_due(&mut self, now: Instant, max: usize) -> Vec<Entry> {
        while let Some((_, arrival)) = self.times.first().filter(|(due, _)| *due <= now).copied() {
            self.times.pop_first();
            if let Some(entry) = self.later.remove(&arrival) {
                if entry.attempts > 0 {
                    let paused = entry.due <= entry.pause_until;
                    self.count(if paused { "BackoffComplete" } else { "UnschedulableTimeout" }, "active");
                }
                self.ready.insert((Reverse(entry.info.priority), arrival), entry);
            }
        }
        let due: Vec<Entry> =
            std::iter::from_fn(|| self.ready.pop_first()).take(max).map(|(_, entry)| entry).collect();
        for id in due.iter().filter_map(|e| e.info.id.as_ref()) {
            self.slots.remove(id);
        }
        due
    }

    /// Takes out those of these that wait, due or not; who came first is first.
    pub fn take_these<'a>(&mut self, ids: impl Iterator<Item = &'a PodId>) -> Vec<Entry> {
        let mut found: Vec<Entry> = ids.filter_map(|id| self.take(id)).collect();
        found.sort_by_key(|e| e.arrival);
        found
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
        self.count("ScheduleAttemptFailure", if stay.is_some() { "unschedulable" } else { "backoff" });
        entry.pause_until = now + self.pause.delay(entry.attempts);
        entry.attempts += 1;
        entry.due = stay.map_or(entry.pause_until, |stay| now + stay);
        self.insert(id, entry);
    }

    /// Puts a pod back that was not decided for: it is tried at once.
    pub fn again(&mut self, entry: Entry, now: Instant) {
        let Some(id) = entry.info.id.clone() else { return };
        self.insert(id, Entry { due: now, ..entry });
    }

    /// Something changed; those whom it may help are tried again after their pause.
    pub fn wake(&mut self, changes: &BTreeSet<Change>) {
        let Some(first) = changes.first() else { return };
        let alone: BTreeSet<Change> = changes.iter().copied().filter(|c| *c != Change::Placed).collect();
        for entry in self.later.values_mut().filter(|e| e.pause_until < e.due) {
            if may_help(&entry.refused, if entry.social { changes } else { &alone }) {
                self.times.remove(&(entry.due, entry.arrival));
                entry.due = entry.pause_until;
                self.times.insert((entry.due, entry.arrival));
                *self.incoming.entry((first.event(), "backoff")).or_default() += 1;
            }
        }
    }

    /// How many are due, pause, and wait for a change.
    pub fn counts(&self, now: Instant) -> [usize; 3] {
        let mut counts = [self.ready.len(), 0, 0];
        for entry in self.later.values() {
            let place = if entry.due <= now { 0 } else { 1 + usize::from(entry.due > entry.pause_until) };
            counts[place] += 1;
        }
        counts
    }

    /// When the next pod is due.
    pub fn next_due(&self) -> Option<Instant> {
        let ready = self.ready.first_key_value().map(|(_, e)| e.due);
        ready.or_else(|| self.times.first().map(|(due, _)| *due))
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
        waiting.wake(&[Change::Placed].into());
        assert_eq!(waiting.next_due(), Some(second(300)), "company does not help it");
        waiting.wake(&[Change::Labels, Change::Volumes].into());
        assert_eq!((waiting.next_due(), waiting.counts(now)), (Some(second(300)), [0, 0, 1]));
        waiting.wake(&[Change::Left].into());
        assert_eq!(waiting.next_due(), Some(second(1)), "not before its pause is over");
        assert_eq!((waiting.counts(now), waiting.counts(second(1))), ([0, 1, 0], [1, 0, 0]));
        let entry = waiting.take_due(second(1), 9).remove(0);
        assert_eq!(entry.effort().attempts, 2);
        waiting.park(entry, full(), second(1));
        let told = [
            (("AssignedPodDelete", "backoff"), 1),
            (("BackoffComplete", "active"), 1),
            (("ScheduleAttemptFailure", "unschedulable"), 2),
            (("UnschedulablePodAdd", "active"), 1),
        ];
        assert_eq!(waiting.incoming, told.into());
        waiting.put(id("a"), pod("a", 0), false, second(1));
        assert_eq!(waiting.next_due(), Some(second(3)), "a changed pod keeps its longer pause");
        for _ in 0..10 {
            let entry = waiting.take_due(second(900), 9).remove(0);
            waiting.retry(entry, second(900));
            waiting.wake(&[Change::Left].into());
            assert!(waiting.next_due() <= Some(second(910)), "no pause is longer than ten seconds");
            assert_eq!(waiting.counts(second(910)), [1, 0, 0]);
            let entry = waiting.take_due(second(910), 9).remove(0);
            waiting.insert(id("a"), Entry { due: second(900), ..entry });
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
