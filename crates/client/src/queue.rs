//! The keyed work queue every controller runs on.
//!
//! Invariants: a key is worked on by one worker at a time; a key that is added while it is worked on is worked on
//! once more afterwards; an empty queue costs nothing, a waiting one has a single timer.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Retries of a failing key, as upstream's rate limiter spaces them.
const RETRY: Backoff = Backoff { base: Duration::from_millis(5), factor: 2, max: Duration::from_secs(1_000) };

struct State<K> {
    ready: VecDeque<K>,
    /// Waiting or to be done again.
    dirty: BTreeSet<K>,
    working: BTreeSet<K>,
    due: BTreeSet<(Instant, K)>,
    /// When each key is due: once, at the earliest time asked for since it was last worked on.
    due_at: BTreeMap<K, Instant>,
    failures: BTreeMap<K, u32>,
    closed: bool,
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
            working: BTreeSet::new(),
            due: BTreeSet::new(),
            due_at: BTreeMap::new(),
            failures: BTreeMap::new(),
            closed: false,
        };
        Queue { state: Mutex::new(state), wake: Notify::new() }
    }
}

impl<K: Ord + Clone> Queue<K> {
    /// Asks for a key to be looked at.
    pub fn add(&self, key: K) {
        let mut state = self.state.lock();
        if state.dirty.insert(key.clone()) && !state.working.contains(&key) {
            state.ready.push_back(key);
            drop(state);
            self.wake.notify_one();
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
            RETRY.delay(*failures - 1)
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
            if state.dirty.insert(key.clone()) && !state.working.contains(&key) {
                state.ready.push_back(key);
            }
        }
        let Some(key) = state.ready.pop_front() else {
            return Next::Wait(state.due.first().map(|(at, _)| *at));
        };
        // Whoever works on the key now says anew when to look again.
        if let Some(at) = state.due_at.remove(&key) {
            state.due.remove(&(at, key.clone()));
        }
        state.dirty.remove(&key);
        state.working.insert(key.clone());
        if !state.ready.is_empty() {
            self.wake.notify_one();
        }
        Next::Key(key)
    }

    /// Says that the work on a key that [`Queue::next`] gave is over.
    pub fn done(&self, key: &K) {
        let mut state = self.state.lock();
        state.working.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
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
    use std::sync::Arc;

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
