//! Priority and fairness: requests of one kind of caller cannot crowd out others.
//!
//! A request is classified by the FlowSchemas, takes seats at its priority level, waits in its flow's queue while
//! there are none, and is refused with 429 where the queue is full or the wait too long. Levels lend seats that they
//! do not use. Superusers are exempt and cost one look at the rules. Components of this process do not come by here:
//! they are few and known.
//! Invariant: a seat is given back when its guard goes, however the request ends.

pub mod bootstrap;
mod controller;
mod queues;
mod rules;

pub use controller::run;

use crate::authz::Attributes;
use auth::Identity;
use client::metrics::{Family, Figure, Figures, Raised, labels};
use machinery::status::ApiError;
use parking_lot::Mutex;
use queues::{Arrival, QueueSet, Slot};
use rules::{LevelSpec, Rules};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Requests at once over all levels, as upstream's two flags together.
const SEATS: u32 = 600;
/// Longest wait in a queue: a quarter of upstream's request timeout.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// Objects of a list that cost one seat, and the widest list (upstream's).
const OBJECTS_PER_SEAT: usize = 100;
const SEATS_MAX: u32 = 10;

/// Seats of a list of so many objects.
pub fn list_seats(objects: usize) -> u32 {
    u32::try_from(objects.div_ceil(OBJECTS_PER_SEAT)).unwrap_or(SEATS_MAX).clamp(1, SEATS_MAX)
}

struct Level {
    spec: LevelSpec,
    nominal: u32,
    set: QueueSet<oneshot::Sender<Slot>>,
}

/// Upper bounds of waits in seconds, as upstream's.
const WAITS: [f64; 13] = [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
const DISPATCHED: Family = Family::counter("apiserver_flowcontrol_dispatched_requests_total");
const REJECTED: Family = Family::counter("apiserver_flowcontrol_rejected_requests_total");
const EXECUTING: Family = Family::gauge("apiserver_flowcontrol_current_executing_requests");
const SEATS_TAKEN: Family = Family::gauge("apiserver_flowcontrol_current_executing_seats");
const WAITED: Family = Family::histogram("apiserver_flowcontrol_request_wait_duration_seconds", &WAITS);
const QUEUED: Family = Family::gauge("apiserver_flowcontrol_current_inqueue_requests");

/// The figures of one schema's requests at its level.
struct Told {
    labels: [(&'static str, Arc<str>); 2],
    dispatched: Arc<Figure>,
    executing: Arc<Figure>,
    seats: Arc<Figure>,
    queued: Arc<Figure>,
    waited: Arc<Figure>,
}

impl Told {
    fn new(figures: &Figures, schema: &Arc<str>, level: &Arc<str>) -> Told {
        let pairs = [("flow_schema", schema.clone()), ("priority_level", level.clone())];
        let named = labels(&[("flow_schema", schema), ("priority_level", level)]);
        Told {
            dispatched: figures.of(&DISPATCHED, &named),
            executing: figures.of(&EXECUTING, &named),
            seats: figures.of(&SEATS_TAKEN, &named),
            queued: figures.of(&QUEUED, &named),
            waited: figures.of(&WAITED, &format!("execute=\"true\",{named}")),
            labels: pairs,
        }
    }
}

/// What is told of a request while it runs.
struct Running {
    _executing: Raised,
    seats: (Arc<Figure>, f64),
}

impl Running {
    fn begin(told: &Told, seats: u32, waited: Duration) -> Running {
        told.dispatched.add(1.0);
        told.waited.observe(waited.as_secs_f64());
        told.seats.add(seats.into());
        Running { _executing: Figure::raise(&told.executing), seats: (told.seats.clone(), seats.into()) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.seats.0.add(-self.seats.1);
    }
}

#[derive(Default)]
struct State {
    rules: Arc<Rules>,
    /// By schema.
    told: BTreeMap<Arc<str>, Arc<Told>>,
    levels: BTreeMap<Arc<str>, Level>,
}

impl Level {
    fn lendable(&self) -> u32 {
        self.nominal * self.spec.lendable / 100
    }
}

impl State {
    /// Seats that a level may use now: its own, and what others lend and nobody has borrowed.
    fn limit(&self, name: &Arc<str>) -> u32 {
        let Some(level) = self.levels.get(name) else { return 0 };
        let (mut idle, mut borrowed) = (0u32, 0u32);
        for (_, other) in self.levels.iter().filter(|(n, l)| *n != name && !l.spec.exempt) {
            let in_use = other.set.in_use();
            idle += other.nominal.saturating_sub(in_use).min(other.lendable());
            borrowed += in_use.saturating_sub(other.nominal);
        }
        let most = level.spec.borrowing_max.map_or(u32::MAX, |p| level.nominal.saturating_mul(p) / 100);
        // What is lent out from a level that has become busy again comes back as requests end.
        level.nominal + idle.saturating_sub(borrowed).min(most)
    }

    /// Starts who may run: in the level where a seat was freed, then where it may be borrowed.
    fn dispatch(&mut self, first: &Arc<str>) {
        let others = self.levels.iter().filter(|(n, l)| *n != first && l.set.waiting() > 0);
        let names: Vec<Arc<str>> =
            std::iter::once(first.clone()).chain(others.map(|(n, _)| n.clone())).collect();
        for name in names {
            let limit = self.limit(&name);
            let Some(level) = self.levels.get_mut(&name) else { continue };
            for (ticket, slot) in level.set.dispatch(limit) {
                // A waiter that has just given up finds its slot when its guard goes.
                let _ = ticket.send(slot);
            }
        }
    }
}

/// Every level's queues.
pub struct Fairness {
    state: Mutex<State>,
    wait_max: Duration,
    figures: Figures,
}

impl Default for Fairness {
    fn default() -> Self {
        Fairness { state: Mutex::default(), wait_max: WAIT_MAX, figures: Figures::default() }
    }
}

/// What a request was sorted into.
#[derive(Clone, Debug, Default)]
pub struct Class {
    /// UID of the FlowSchema.
    pub schema_uid: String,
    /// UID of the priority level.
    pub level_uid: String,
}

/// Seats of a running request; given back when it goes.
pub struct Seat {
    /// `None` for who is exempt.
    _taken: Option<Taken>,
    _running: Running,
}

struct Taken {
    fairness: Arc<Fairness>,
    level: Arc<str>,
    slot: Slot,
    since: Instant,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.fairness.finish(&self.level, &self.slot, self.since.elapsed().as_secs_f64());
    }
}

/// A place in a queue.
struct Place {
    fairness: Arc<Fairness>,
    level: Arc<str>,
    id: u64,
    receiver: oneshot::Receiver<Slot>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.fairness.state.lock();
            state.levels.get_mut(&self.level).is_some_and(|level| level.set.cancel(self.id))
        };
        if !waiting && let Ok(slot) = self.receiver.try_recv() {
            self.fairness.finish(&self.level, &slot, 0.0);
        }
    }
}

fn refused() -> ApiError {
    let text = "too many requests, please try again later";
    let mut error = ApiError::new(429, "TooManyRequests", text);
    error.retry_after_seconds = 1;
    error
}

impl Fairness {
    /// New rules: levels that are as they were keep their queues.
    fn set(&self, rules: Rules) {
        let mut state = self.state.lock();
        let total: u32 = rules.levels.iter().filter(|l| !l.exempt).map(|l| l.shares).sum::<u32>().max(1);
        let mut levels = BTreeMap::new();
        for spec in &rules.levels {
            let nominal = (SEATS * spec.shares).div_ceil(total);
            let kept = state.levels.remove(&spec.name).filter(|l| l.set.shape() == spec.shape);
            let level = match kept {
                Some(level) => Level { spec: spec.clone(), nominal, ..level },
                None => Level { spec: spec.clone(), nominal, set: QueueSet::new(spec.shape) },
            };
            levels.insert(spec.name.clone(), level);
        }
        // Waiters of levels that are gone lose their senders and are refused.
        state.levels = levels;
        state.rules = Arc::new(rules);
    }

    fn finish(&self, level: &Arc<str>, slot: &Slot, took: f64) {
        let mut state = self.state.lock();
        if let Some(found) = state.levels.get_mut(level) {
            found.set.finish(slot, took);
        }
        state.dispatch(level);
    }

    /// Takes seats for a request, waiting for them; also where it was sorted into. The exempt only count.
    pub async fn admit(
        self: &Arc<Self>,
        identity: &Identity,
        attributes: &Attributes,
        seats: impl FnOnce() -> u32,
    ) -> (Class, Result<Option<Seat>, ApiError>) {
        let rules = self.state.lock().rules.clone();
        let Some(schema) = rules.classify(identity, attributes) else { return (Class::default(), Ok(None)) };
        let Some(spec) = rules.levels.iter().find(|l| l.name == schema.level) else {
            return (Class::default(), Ok(None));
        };
        let class = Class { schema_uid: schema.uid.clone(), level_uid: spec.uid.clone() };
        let told = self.told(&schema.name, &schema.level);
        if spec.exempt {
            let running = Running::begin(&told, 1, Duration::ZERO);
            return (class, Ok(Some(Seat { _taken: None, _running: running })));
        }
        let (name, flow) = (&schema.level, schema.flow(identity, attributes));
        let (sender, receiver) = oneshot::channel();
        let (arrival, seats) = {
            let mut state = self.state.lock();
            let limit = state.limit(name);
            let Some(level) = state.levels.get_mut(name) else { return (class, Ok(None)) };
            let seats = seats().min(level.nominal.max(1));
            (level.set.arrive(flow, seats, limit, sender), seats)
        };
        let began = Instant::now();
        let seat = |slot| Seat {
            _taken: Some(Taken { fairness: self.clone(), level: name.clone(), slot, since: Instant::now() }),
            _running: Running::begin(&told, seats, began.elapsed()),
        };
        match arrival {
            Arrival::Run(slot) => (class, Ok(Some(seat(slot)))),
            Arrival::Refuse => (class, Err(self.refuse(&told, "queue-full", Duration::ZERO))),
            Arrival::Wait(id) => {
                let mut place = Place { fairness: self.clone(), level: name.clone(), id, receiver };
                let _queued = Figure::raise(&told.queued);
                match tokio::time::timeout(self.wait_max, &mut place.receiver).await {
                    Ok(Ok(slot)) => (class, Ok(Some(seat(slot)))),
                    Ok(Err(_)) | Err(_) => (class, Err(self.refuse(&told, "time-out", began.elapsed()))),
                }
            }
        }
    }

    fn told(&self, schema: &Arc<str>, level: &Arc<str>) -> Arc<Told> {
        let mut state = self.state.lock();
        if let Some(told) = state.told.get(schema).filter(|t| t.labels[1].1 == *level) {
            return told.clone();
        }
        let told = Arc::new(Told::new(&self.figures, schema, level));
        state.told.insert(schema.clone(), told.clone());
        told
    }

    fn refuse(&self, told: &Told, why: &str, waited: Duration) -> ApiError {
        let [(_, schema), (_, level)] = &told.labels;
        let named = [("flow_schema", &**schema), ("priority_level", &**level)];
        let with = |more| labels(&[&named[..], &[more]].concat());
        self.figures.count(&REJECTED, &with(("reason", why)));
        let waits = format!("execute=\"false\",{}", labels(&named));
        self.figures.observe(&WAITED, &waits, waited.as_secs_f64());
        refused()
    }

    /// Lines for `/metrics`, by upstream's names.
    pub fn metrics(&self) -> String {
        let mut out = self.figures.text();
        // Writing to a String does not fail.
        out.push_str("# TYPE apiserver_flowcontrol_nominal_limit_seats gauge\n");
        for (level, l) in &self.state.lock().levels {
            let name = "apiserver_flowcontrol_nominal_limit_seats";
            let _ = writeln!(out, "{name}{{priority_level=\"{level}\"}} {}", l.nominal);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fairness(wait_max: Duration) -> Arc<Fairness> {
        let (schemas, levels) = bootstrap::objects();
        let fairness = Arc::new(Fairness { wait_max, ..Fairness::default() });
        fairness.set(Rules::read(schemas.iter(), levels.iter()));
        fairness
    }

    fn pods() -> Attributes {
        Attributes {
            verb: "get".into(),
            resource: "pods".into(),
            namespace: "x".into(),
            ..Attributes::default()
        }
    }

    fn caller(name: &str) -> Identity {
        Identity::new(name, ["system:authenticated"])
    }

    /// A flood by one user fills its level, borrowed seats too; others' levels stay usable, and all seats come back.
    #[tokio::test]
    async fn a_flood_is_bounded_and_others_are_served() {
        let fairness = fairness(Duration::from_millis(200));
        let mut held = Vec::new();
        let mut waiting = Vec::new();
        for _ in 0..2_000 {
            let fairness = fairness.clone();
            waiting
                .push(tokio::spawn(async move { fairness.admit(&caller("flood"), &pods(), || 1).await.1 }));
        }
        let node = Identity::new("system:node:n", ["system:nodes", "system:authenticated"]);
        tokio::task::yield_now().await;
        let at_once = tokio::time::timeout(Duration::ZERO, fairness.admit(&node, &pods(), || 1)).await;
        let seat = at_once.expect("it did not wait").1.unwrap();
        assert!(seat.is_some());
        let admin = Identity::new("admin", [auth::SYSTEM_MASTERS]);
        let exempt = fairness.admit(&admin, &pods(), || 1).await.1.unwrap();
        assert!(exempt.is_some_and(|seat| seat._taken.is_none()));
        let mut refusals = 0;
        for task in waiting {
            match task.await.unwrap() {
                Ok(seat) => held.push(seat),
                Err(error) => {
                    assert_eq!((error.code, error.retry_after_seconds), (429, 1));
                    refusals += 1;
                }
            }
        }
        assert!(held.len() < SEATS as usize && refusals > 1_000, "{} run", held.len());
        drop(held);
        drop(seat);
        let state = fairness.state.lock();
        assert!(state.levels.values().all(|l| l.set.in_use() == 0 && l.set.waiting() == 0));
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_leaves_nothing_behind() {
        let fairness = fairness(Duration::from_secs(60));
        let mut held = Vec::new();
        loop {
            let (who, what) = (caller("a"), pods());
            let admitted = tokio::time::timeout(Duration::from_millis(50), fairness.admit(&who, &what, || 1));
            match admitted.await {
                Ok((_, seat)) => held.push(seat.unwrap()),
                Err(_) => break,
            }
        }
        let one = fairness.clone();
        let next = tokio::spawn(async move { one.admit(&caller("b"), &pods(), || 1).await.1.is_ok() });
        tokio::task::yield_now().await;
        held.pop();
        assert!(next.await.unwrap());
        drop(held);
        let text = fairness.metrics();
        let of = |figure: &str| {
            format!("{figure}{{flow_schema=\"global-default\",priority_level=\"global-default\"}} 0")
        };
        assert!(
            text.contains(&of("current_inqueue_requests")) && text.contains(&of("current_executing_seats")),
            "{text}"
        );
    }

    #[test]
    fn long_lists_cost_more() {
        assert_eq!([0, 1, 100, 101, 5_000].map(list_seats), [1, 1, 1, 2, 10]);
    }
}
