//! The keyed work queue every controller runs on.
//!
//! Invariants: a key is worked on by one worker at a time; a key that is added while it is worked on is worked on
//! once more afterwards; an empty queue costs nothing, a waiting one has a single timer.
//! A queue with a name ([`Queue::tell`]) tells of itself under upstream's `workqueue_` names.

use crate::metrics::{Family, Figure, labels, shared};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Retries of a failing key, as upstream's rate limiter spaces them.
const RETRY: Backoff = Backoff { base: Duration::from_millis(5), factor: 2, max: Duration::from_secs(1_000) };

/// Upper bounds in seconds, as upstream's.
const BOUNDS: [f64; 10] = [1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0];
const ADDS: Family = Family::counter("workqueue_adds_total");
const DEPTH: Family = Family::gauge("workqueue_depth");
const WAITED: Family = Family::histogram("workqueue_queue_duration_seconds", &BOUNDS);
const WORKED: Family = Family::histogram("workqueue_work_duration_seconds", &BOUNDS);
const RETRIES: Family = Family::counter("workqueue_retries_total");
const UNFINISHED: Family = Family::gauge("workqueue_unfinished_work_seconds");
const LONGEST: Family = Family::gauge("workqueue_longest_running_processor_seconds");

/// What is told of a queue.
struct Told {
    adds: Arc<Figure>,
    depth: Arc<Figure>,
    waited: Arc<Figure>,
    worked: Arc<Figure>,
    retries: Arc<Figure>,
    unfinished: Arc<Figure>,
    longest: Arc<Figure>,
}

impl Told {
    fn new(name: &str) -> Told {
        let labels = labels(&[("name", name)]);
        let of = |family: &Family| shared().of(family, &labels);
        Told {
            adds: of(&ADDS),
            depth: of(&DEPTH),
            waited: of(&WAITED),
            worked: of(&WORKED),
            retries: of(&RETRIES),
            unfinished: of(&UNFINISHED),
            longest: of(&LONGEST),
        }
    }
}

struct State<K> {
    /// Since when each waits.
    ready: VecDeque<(Instant, K)>,
    /// Waiting or to be done again.
    dirty: BTreeSet<K>,
    /// Since when.
    working: BTreeMap<K, Instant>,
    due: BTreeSet<(Instant, K)>,
    /// When each key is due: once, at the earliest time asked for since it was last worked on.
    due_at: BTreeMap<K, Instant>,
    failures: BTreeMap<K, u32>,
    closed: bool,
    told: Option<Told>,
}

impl<K: Ord + Clone> State<K> {
    /// Wants the key worked on; says whether it waits now.
    fn want(&mut self, key: K) -> bool {
        if !self.dirty.insert(key.clone()) {
            return false;
        }
        if let Some(told) = &self.told {
            told.adds.add(1.0);
        }
        let waits = !self.working.contains_key(&key);
        if waits {
            self.line_up(key);
        }
        waits
    }

    fn line_up(&mut self, key: K) {
        self.ready.push_back((Instant::now(), key));
        if let Some(told) = &self.told {
            told.depth.set(self.ready.len() as f64);
        }
    }
}

/// A queue of distinct keys.
pub struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

impl<K: Ord + Clone> Default for Queue<K> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: BTreeSet::new(),
            working: BTreeMap::new(),
            due: BTreeSet::new(),
            due_at: BTreeMap::new(),
            failures: BTreeMap::new(),
            closed: false,
            told: None,
        };
        Queue { state: Mutex::new(state), wake: Notify::new() }
    }
}

impl<K: Ord + Clone> Queue<K> {
    /// Asks for a key to be looked at.
    pub fn add(&self, key: K) {
        let mut state = self.state.lock();
        if state.want(key) {
            drop(state);
            self.wake.notify_one();
        }
    }

    /// From now on, tells of itself under this name.
    pub fn tell(&self, name: &str) {
        self.state.lock().told = Some(Told::new(name));
    }

    /// Brings the figures up to date that grow with time alone.
    pub fn tell_time(&self) {
        let state = self.state.lock();
        if let Some(told) = &state.told {
            let ages = || state.working.values().map(|since| since.elapsed().as_secs_f64());
            told.unfinished.set(ages().sum());
            told.longest.set(ages().fold(0.0, f64::max));
        }
    }

    /// Asks for a key to be looked at later.
    pub fn add_after(&self, key: K, delay: Duration) {
        let (mut state, at) = (self.state.lock(), Instant::now() + delay);
        match state.due_at.get(&key).copied() {
            Some(present) if present <= at => return,
            Some(present) => state.due.remove(&(present, key.clone())),
            None => false,
        };
        state.due_at.insert(key.clone(), at);
        state.due.insert((at, key));
        drop(state);
        self.wake.notify_one();
    }

    /// Asks again for a key that failed, later with each failure in a row.
    pub fn retry(&self, key: K) {
        let delay = {
            let mut state = self.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures += 1;
            let delay = RETRY.delay(*failures - 1);
            if let Some(told) = &state.told {
                told.retries.add(1.0);
            }
            delay
        };
        self.add_after(key, delay);
    }

    /// Forgets a key's failures.
    pub fn succeeded(&self, key: &K) {
        self.state.lock().failures.remove(key);
    }

    /// The next key; `None` once the queue is closed. Call [`Queue::done`] with it afterwards.
    pub async fn next(&self) -> Option<K> {
        loop {
            let notified = self.wake.notified();
            let wait = match self.poll() {
                Next::Key(key) => return Some(key),
                Next::Closed => return None,
                Next::Wait(until) => until,
            };
            match wait {
                Some(until) => drop(tokio::time::timeout_at(until, notified).await),
                None => notified.await,
            }
        }
    }

    fn poll(&self) -> Next<K> {
        let mut state = self.state.lock();
        if state.closed {
            self.wake.notify_one();
            return Next::Closed;
        }
        let now = Instant::now();
        while state.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = state.due.pop_first() else { break };
            state.due_at.remove(&key);
            state.want(key);
        }
        let Some((since, key)) = state.ready.pop_front() else {
            return Next::Wait(state.due.first().map(|(at, _)| *at));
        };
        // Whoever works on the key now says anew when to look again.
        if let Some(at) = state.due_at.remove(&key) {
            state.due.remove(&(at, key.clone()));
        }
        state.dirty.remove(&key);
        state.working.insert(key.clone(), now);
        if let Some(told) = &state.told {
            told.depth.set(state.ready.len() as f64);
            told.waited.observe(now.duration_since(since).as_secs_f64());
        }
        if !state.ready.is_empty() {
            self.wake.notify_one();
        }
        Next::Key(key)
    }

    /// Says that the work on a key that [`Queue::next`] gave is over.
    pub fn done(&self, key: &K) {
        let mut state = self.state.lock();
        let since = state.working.remove(key);
        if let (Some(told), Some(since)) = (&state.told, since) {
            told.worked.observe(since.elapsed().as_secs_f64());
        }
        if state.dirty.contains(key) {
            state.line_up(key.clone());
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Ends all workers.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }
}

enum Next<K> {
    Key(K),
    Wait(Option<Instant>),
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_worked_on_once_at_a_time_and_again_when_added_meanwhile() {
        let queue = Arc::new(Queue::default());
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        let none = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(none.is_err(), "the key is being worked on");
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        queue.close();
        assert_eq!(queue.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_due_once_at_the_earliest_time() {
        let queue = Queue::default();
        let (start, second) = (Instant::now(), Duration::from_secs);
        for seconds in [9, 3, 5] {
            queue.add_after("a", second(seconds));
        }
        assert_eq!(queue.next().await, Some("a"));
        assert_eq!(start.elapsed().as_secs(), 3);
        queue.done(&"a");
        queue.add_after("a", second(100));
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        let none = tokio::time::timeout(second(1_000), queue.next()).await;
        assert!(none.is_err(), "looking at the key forgot when it was due");
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_tells_of_itself() {
        let queue = Queue::default();
        queue.tell("telling");
        queue.add("a");
        queue.add("b");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(queue.next().await, Some("a"));
        tokio::time::advance(Duration::from_secs(3)).await;
        queue.tell_time();
        let text = shared().text();
        let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        has("workqueue_adds_total{name=\"telling\"} 2");
        has("workqueue_depth{name=\"telling\"} 1");
        has("workqueue_queue_duration_seconds_sum{name=\"telling\"} 2");
        has("workqueue_unfinished_work_seconds{name=\"telling\"} 3");
        has("workqueue_longest_running_processor_seconds{name=\"telling\"} 3");
        queue.done(&"a");
        queue.retry("a");
        let text = shared().text();
        assert!(text.contains("workqueue_work_duration_seconds_count{name=\"telling\"} 1\n"));
        assert!(text.contains("workqueue_retries_total{name=\"telling\"} 1\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time() {
        let queue = Queue::default();
        let start = Instant::now();
        for _ in 0..4 {
            queue.retry(1);
            assert_eq!(queue.next().await, Some(1));
            queue.done(&1);
        }
        assert!(start.elapsed() >= Duration::from_millis(5 + 10 + 20 + 40));
        queue.succeeded(&1);
        queue.retry(1);
        let again = Instant::now();
        assert_eq!(queue.next().await, Some(1));
        assert!(again.elapsed() < Duration::from_millis(10));
    }
}
