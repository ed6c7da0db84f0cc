//! Fair queues of one priority level: who runs, who waits, who is refused. Pure: time comes as durations.
//!
//! Start-time fair queuing over shuffle-sharded queues: a flow is dealt a hand of queues and joins the shortest; of
//! the queues with waiters the one that has had the least service goes next. A queue that was idle starts at the
//! current virtual time, so that nobody saves service up. Invariant: seats in use stay within the limit, but for
//! one request that is wider than the limit and runs alone.

use std::collections::VecDeque;

/// What a request is taken to need before it is known, in seconds (upstream's guess).
const GUESS: f64 = 0.003;

/// The queues of a level; no queues: what does not fit is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// How many.
    pub queues: usize,
    /// Of how many a flow may use one.
    pub hand: usize,
    /// How many requests wait in one.
    pub length: usize,
}

struct Waiter<T> {
    id: u64,
    seats: u32,
    ticket: T,
}

struct Queue<T> {
    waiting: VecDeque<Waiter<T>>,
    running: u32,
    start: f64,
}

/// Seats that a request holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot {
    queue: Option<usize>,
    seats: u32,
}

/// What becomes of a request.
#[derive(Debug, PartialEq)]
pub enum Arrival {
    /// It runs.
    Run(Slot),
    /// It waits, under this number.
    Wait(u64),
    /// There is no room.
    Refuse,
}

/// A level's queues with its seats.
pub struct QueueSet<T> {
    shape: Shape,
    queues: Vec<Queue<T>>,
    clock: f64,
    in_use: u32,
    waiting: usize,
    next: u64,
}

/// A hand of distinct numbers below `n`, by a hash.
fn deal(mut hash: u64, n: usize, hand: usize) -> Vec<usize> {
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    for i in 0..hand.min(n) {
        let left = (n - i) as u64;
        let mut card = usize::try_from(hash % left).unwrap_or(0);
        hash /= left;
        let mut sorted = dealt.clone();
        sorted.sort_unstable();
        for taken in sorted {
            card += usize::from(card >= taken);
        }
        dealt.push(card);
    }
    dealt
}

impl<T> QueueSet<T> {
    /// Empty queues.
    pub fn new(shape: Shape) -> Self {
        let queue = |_| Queue { waiting: VecDeque::new(), running: 0, start: 0.0 };
        let queues = (0..shape.queues).map(queue).collect();
        QueueSet { shape, queues, clock: 0.0, in_use: 0, waiting: 0, next: 0 }
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Seats in use.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    fn fits(&self, seats: u32, limit: u32) -> bool {
        self.in_use == 0 || self.in_use + seats <= limit
    }

    /// A request of a flow comes. `ticket` is given back when it may run.
    pub fn arrive(&mut self, flow: u64, seats: u32, limit: u32, ticket: T) -> Arrival {
        let free = limit > 0 && self.waiting == 0 && self.fits(seats, limit);
        if self.queues.is_empty() {
            if !free {
                return Arrival::Refuse;
            }
            self.in_use += seats;
            return Arrival::Run(Slot { queue: None, seats });
        }
        let load = |q: &Queue<T>| (q.waiting.len(), q.running);
        let hand = deal(flow, self.queues.len(), self.shape.hand.max(1));
        let Some(at) = hand.into_iter().min_by_key(|i| load(&self.queues[*i])) else {
            return Arrival::Refuse;
        };
        let (clock, queue) = (self.clock, &mut self.queues[at]);
        if queue.waiting.is_empty() && queue.running == 0 {
            queue.start = queue.start.max(clock);
        }
        if free {
            return Arrival::Run(self.run(at, seats));
        }
        if self.queues[at].waiting.len() >= self.shape.length {
            return Arrival::Refuse;
        }
        self.next += 1;
        self.waiting += 1;
        self.queues[at].waiting.push_back(Waiter { id: self.next, seats, ticket });
        Arrival::Wait(self.next)
    }

    fn run(&mut self, at: usize, seats: u32) -> Slot {
        let queue = &mut self.queues[at];
        self.clock = self.clock.max(queue.start);
        queue.start += GUESS * f64::from(seats);
        queue.running += seats;
        self.in_use += seats;
        Slot { queue: Some(at), seats }
    }

    /// Starts those who may run now.
    pub fn dispatch(&mut self, limit: u32) -> Vec<(T, Slot)> {
        let mut started = Vec::new();
        while self.waiting > 0 && limit > 0 {
            let next = self.queues.iter().enumerate().filter(|(_, q)| !q.waiting.is_empty());
            let Some((at, _)) = next.min_by(|a, b| a.1.start.total_cmp(&b.1.start)) else { break };
            let seats = self.queues[at].waiting.front().map_or(0, |w| w.seats);
            if !self.fits(seats, limit) {
                break;
            }
            let Some(waiter) = self.queues[at].waiting.pop_front() else { break };
            self.waiting -= 1;
            started.push((waiter.ticket, self.run(at, seats)));
        }
        started
    }

    /// A request ends after that many seconds.
    pub fn finish(&mut self, slot: &Slot, took: f64) {
        self.in_use -= slot.seats;
        // Queues may have become fewer since.
        if let Some(queue) = slot.queue.and_then(|at| self.queues.get_mut(at)) {
            queue.running = queue.running.saturating_sub(slot.seats);
            queue.start += (took - GUESS) * f64::from(slot.seats);
        }
    }

    /// A waiting request gives up; false when it runs already.
    pub fn cancel(&mut self, id: u64) -> bool {
        for queue in &mut self.queues {
            if let Some(at) = queue.waiting.iter().position(|w| w.id == id) {
                queue.waiting.remove(at);
                self.waiting -= 1;
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SHAPE: Shape = Shape { queues: 16, hand: 4, length: 50 };

    #[test]
    fn a_hand_has_distinct_cards() {
        for hash in [0, 1, 77, u64::MAX] {
            let mut hand = deal(hash, 8, 8);
            hand.sort_unstable();
            assert_eq!(hand, [0, 1, 2, 3, 4, 5, 6, 7]);
        }
        assert_ne!(deal(12_345, 64, 6), deal(54_321, 64, 6));
    }

    /// A flood of one flow and a trickle of another: the trickle is served as soon as a seat is free.
    #[test]
    fn a_flood_does_not_starve_a_trickle() {
        let mut set = QueueSet::new(SHAPE);
        let mut running = Vec::new();
        for n in 0..200 {
            if let Arrival::Run(slot) = set.arrive(0, 1, 4, ("flood", n)) {
                running.push(slot);
            }
        }
        assert_eq!((running.len(), set.in_use()), (4, 4));
        assert!(set.waiting() <= 4 * 50);
        // Another hand that shares no queue with the first.
        let other =
            (1..u64::MAX).find(|h| deal(*h, 16, 4).iter().all(|q| !deal(0, 16, 4).contains(q))).unwrap();
        assert!(matches!(set.arrive(other, 1, 4, ("trickle", 0)), Arrival::Wait(_)));
        let mut before = 0;
        'served: loop {
            let slot = running.remove(0);
            set.finish(&slot, 1.0);
            for ((name, _), slot) in set.dispatch(4) {
                running.push(slot);
                if name == "trickle" {
                    break 'served;
                }
                before += 1;
            }
        }
        assert!(before <= 4, "{before} of the flood went before");
    }

    #[test]
    fn without_queues_what_does_not_fit_is_refused() {
        let mut set = QueueSet::new(Shape::default());
        assert!(matches!(set.arrive(1, 1, 1, ()), Arrival::Run(_)));
        assert_eq!(set.arrive(1, 1, 1, ()), Arrival::Refuse);
    }

    #[test]
    fn a_wide_request_runs_alone() {
        let mut set = QueueSet::new(SHAPE);
        let Arrival::Run(wide) = set.arrive(1, 10, 3, ()) else { panic!("it runs") };
        assert!(matches!(set.arrive(1, 1, 3, ()), Arrival::Wait(_)));
        assert!(set.dispatch(3).is_empty());
        set.finish(&wide, 0.1);
        assert_eq!(set.dispatch(3).len(), 1);
    }

    proptest! {
        /// Whatever comes, gives up and ends: the limit holds, nothing is lost, all that waited is served.
        #[test]
        fn seats_are_kept(steps in prop::collection::vec((0u8..4, any::<u64>(), 1u32..3), 1..300)) {
            let (limit, mut set) = (5, QueueSet::new(Shape { queues: 4, hand: 2, length: 8 }));
            let mut running: Vec<Slot> = Vec::new();
            let mut waiting: BTreeMap<u64, ()> = BTreeMap::new();
            let mut served = 0usize;
            for (what, flow, seats) in steps {
                match what {
                    0 | 1 => match set.arrive(flow, seats, limit, ()) {
                        Arrival::Run(slot) => running.push(slot),
                        Arrival::Wait(id) => { waiting.insert(id, ()); }
                        Arrival::Refuse => {}
                    },
                    2 if !running.is_empty() => {
                        let at = usize::try_from(flow % running.len() as u64).unwrap();
                        set.finish(&running.swap_remove(at), 0.01);
                        let started = set.dispatch(limit);
                        served += started.len();
                        running.extend(started.into_iter().map(|(_, slot)| slot));
                    }
                    _ => if let Some((id, ())) = waiting.pop_first() {
                        served -= usize::from(!set.cancel(id) && served > 0);
                    },
                }
                prop_assert!(set.in_use() <= limit);
                prop_assert_eq!(set.in_use(), running.iter().map(|s| s.seats).sum::<u32>());
            }
            while let Some(slot) = running.pop() {
                set.finish(&slot, 0.01);
                running.extend(set.dispatch(limit).into_iter().map(|(_, slot)| slot));
            }
            prop_assert_eq!((set.in_use(), set.waiting()), (0, 0));
        }
    }
}
