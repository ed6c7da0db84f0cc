//! What runs: the configuration in force, with counters and health of each target that outlive its changes.

use crate::balance::{self, Candidate};
use crate::config::{Config, Group, Id, Listener, Target};
use crate::headers::token;
use crate::health::{Health, State};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;
use tokio::sync::{Notify, watch};

/// A target as it runs.
pub struct Live {
    pub config: RwLock<Target>,
    pub health: Mutex<Health>,
    /// Requests or connections under way.
    pub outstanding: AtomicUsize,
    /// Set when the target left the configuration: its connections end.
    pub gone: Notify,
    pub is_gone: AtomicBool,
    healthy_since: Mutex<Option<Instant>>,
}

/// What a target's checks say, for its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetHealth {
    /// The group.
    pub group: Id,
    /// The target.
    pub target: Id,
    /// What is known.
    pub state: State,
    /// Draining, as the configuration says.
    pub draining: bool,
    /// Requests or connections under way.
    pub outstanding: usize,
}

/// A group as it runs.
pub struct LiveGroup {
    pub config: Group,
    pub targets: Vec<Arc<Live>>,
    turn: Arc<AtomicUsize>,
    pub counters: Arc<Counters>,
}

/// What happened, since the start.
#[derive(Default)]
pub struct Counters {
    /// Requests, or connections of L4 listeners.
    pub requests: AtomicU64,
    /// Answers by their status's first digit; index 0: no answer from a target.
    pub answers: [AtomicU64; 6],
    /// From clients.
    pub bytes_in: AtomicU64,
    /// To clients.
    pub bytes_out: AtomicU64,
}

/// The configuration in force.
pub struct Snapshot {
    pub listeners: BTreeMap<Id, Arc<Listener>>,
    pub groups: BTreeMap<Id, Arc<LiveGroup>>,
}

/// What all listeners and checkers share.
pub struct Shared {
    pub now: RwLock<Arc<Snapshot>>,
    /// Raised at every change of a target's state.
    pub changes: watch::Sender<u64>,
    pub connections: AtomicUsize,
    pub turn: AtomicUsize,
}

/// One request or connection at a target; it counts until it is dropped.
pub struct Held {
    pub target: Arc<Live>,
    pub group: Arc<LiveGroup>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.target.outstanding.fetch_sub(1, Relaxed);
    }
}

impl Live {
    fn new(target: Target, checked: bool) -> Self {
        let state = if checked { State::Initial } else { State::Healthy };
        Live {
            config: RwLock::new(target),
            health: Mutex::new(Health::starting(state)),
            outstanding: AtomicUsize::new(0),
            gone: Notify::new(),
            is_gone: AtomicBool::new(false),
            healthy_since: Mutex::new(None),
        }
    }

    /// Notes a change of health for slow start.
    pub fn became(&self, healthy: bool) {
        *self.healthy_since.lock() = healthy.then(Instant::now);
    }

    fn candidate(&self, group: &Group) -> Candidate {
        let ramp = group.slow_start.as_millis();
        let since = *self.healthy_since.lock();
        let share = match since {
            Some(since) if ramp > 0 => (since.elapsed().as_millis() * 256 / ramp).clamp(8, 256) as u32,
            _ => 256,
        };
        Candidate {
            open: !self.config.read().draining && !self.is_gone.load(Relaxed),
            healthy: self.health.lock().state == State::Healthy,
            outstanding: self.outstanding.load(Relaxed),
            share,
        }
    }
}

impl LiveGroup {
    /// Chooses a target, the one of the cookie `sticky` when it still serves; `skip` names those that refused.
    pub fn choose(self: &Arc<Self>, sticky: Option<&str>, skip: &[Id]) -> Option<Held> {
        let mut candidates: Vec<Candidate> = self.targets.iter().map(|t| t.candidate(&self.config)).collect();
        for (candidate, target) in candidates.iter_mut().zip(&self.targets) {
            candidate.open &= !skip.contains(&target.config.read().id);
        }
        let named = |i: &usize| sticky.is_some_and(|s| token(&self.targets[*i].config.read().id) == s);
        let kept = (0..candidates.len()).find(|i| named(i) && candidates[*i].open && candidates[*i].healthy);
        let turn = || self.turn.fetch_add(1, Relaxed);
        let index = kept.or_else(|| balance::target(self.config.algorithm, turn(), &candidates))?;
        let target = self.targets[index].clone();
        target.outstanding.fetch_add(1, Relaxed);
        Some(Held { target, group: self.clone() })
    }
}

impl Snapshot {
    /// The configuration joined with what ran before: targets of the same group, name and address keep their state.
    pub fn next(config: &Config, before: &Snapshot) -> Self {
        let listeners = config.listeners.iter().map(|l| (l.id.clone(), Arc::new(l.clone()))).collect();
        let group = |group: &Group| {
            let old = before.groups.get(&group.id);
            let kept = |target: &Target| {
                let same = |live: &&Arc<Live>| {
                    let config = live.config.read();
                    config.id == target.id && config.address == target.address
                };
                let live = old.and_then(|old| old.targets.iter().find(same)).cloned();
                let live =
                    live.filter(|_| old.is_some_and(|o| o.config.check.is_some() == group.check.is_some()));
                let live = live.unwrap_or_else(|| Arc::new(Live::new(target.clone(), group.check.is_some())));
                *live.config.write() = target.clone();
                live
            };
            let live = LiveGroup {
                targets: group.targets.iter().map(kept).collect(),
                turn: old.map(|o| o.turn.clone()).unwrap_or_default(),
                counters: old.map(|o| o.counters.clone()).unwrap_or_default(),
                config: group.clone(),
            };
            (group.id.clone(), Arc::new(live))
        };
        Snapshot { listeners, groups: config.groups.iter().map(group).collect() }
    }

    /// Tells the targets that are in `before` and not here that they are gone.
    pub fn dismiss(&self, before: &Snapshot) {
        let current: Vec<&Arc<Live>> = self.groups.values().flat_map(|g| &g.targets).collect();
        for live in before.groups.values().flat_map(|g| &g.targets) {
            if !current.iter().any(|c| Arc::ptr_eq(c, live)) {
                live.is_gone.store(true, Relaxed);
                live.gone.notify_waiters();
            }
        }
    }

    /// The state of every target, by group and target.
    pub fn health(&self) -> Vec<TargetHealth> {
        let of = |group: &Arc<LiveGroup>, live: &Arc<Live>| {
            let config = live.config.read();
            TargetHealth {
                group: group.config.id.clone(),
                target: config.id.clone(),
                state: live.health.lock().state.clone(),
                draining: config.draining,
                outstanding: live.outstanding.load(Relaxed),
            }
        };
        self.groups.values().flat_map(|g| g.targets.iter().map(move |t| of(g, t))).collect()
    }

    /// Counters as Prometheus text.
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, labels: &str, value: u64| {
            writeln!(out, "{name}{{{labels}}} {value}").expect("a String takes all");
        };
        for (id, group) in &self.groups {
            let (group_label, c) = (format!("group=\"{id}\""), &group.counters);
            line("gantry_lb_requests_total", &group_label, c.requests.load(Relaxed));
            for (class, count) in c.answers.iter().enumerate() {
                let class = if class == 0 { "none".to_string() } else { format!("{class}xx") };
                line(
                    "gantry_lb_answers_total",
                    &format!("{group_label},class=\"{class}\""),
                    count.load(Relaxed),
                );
            }
            line("gantry_lb_bytes_in_total", &group_label, c.bytes_in.load(Relaxed));
            line("gantry_lb_bytes_out_total", &group_label, c.bytes_out.load(Relaxed));
            let healthy = group.targets.iter().filter(|t| t.health.lock().state == State::Healthy).count();
            line("gantry_lb_healthy_targets", &group_label, healthy as u64);
        }
        out
    }
}

impl Shared {
    pub fn new() -> Self {
        let empty = Snapshot { listeners: BTreeMap::new(), groups: BTreeMap::new() };
        Shared {
            now: RwLock::new(Arc::new(empty)),
            changes: watch::channel(0).0,
            connections: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
        }
    }

    /// The configuration in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.now.read().clone()
    }

    /// Tells those who wait for changes of health.
    pub fn changed(&self) {
        self.changes.send_modify(|n| *n += 1);
    }
}
