//! Which tasks to start and to stop now. Pure.
//!
//! REPLICA: never more than `maximumPercent` of the wanted count are there, never fewer than `minimumHealthyPercent`
//! serve because of us. DAEMON: one on every instance that takes it. What is replaced is stopped when its replacement is
//! healthy; earlier only where the upper bound, or a lack of capacity, leaves no other way.

use super::view::{Health, Seen};
use std::collections::{BTreeMap, BTreeSet};

/// An instance of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its ARN.
    pub arn: String,
    /// Where it is.
    pub zone: String,
    /// It is active, and the service's constraints hold there.
    pub takes: bool,
    /// It is active.
    pub active: bool,
}

/// The bounds, in tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Wanted.
    pub want: usize,
    /// Never more.
    pub most: usize,
    /// Never fewer that serve.
    pub least: usize,
}

impl Bounds {
    /// AWS's rounding: the upper bound down, the lower one up.
    pub fn new(want: usize, maximum_percent: usize, minimum_percent: usize) -> Bounds {
        Bounds { want, most: want * maximum_percent / 100, least: (want * minimum_percent).div_ceil(100) }
    }
}

/// What moves are decided from.
#[derive(Clone, Copy, Debug)]
pub struct Board<'a> {
    /// Tasks that are wanted.
    pub tasks: &'a [&'a Seen],
    /// The wanted deployment.
    pub primary: &'a str,
    /// How many.
    pub bounds: Bounds,
    /// Tasks that were healthy once.
    pub proven: &'a BTreeSet<String>,
    /// The last attempt found no room.
    pub blocked: bool,
    /// No new tasks: the deployment has failed.
    pub failed: bool,
    /// One more than wanted, for balance.
    pub extra: bool,
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// How many to start (REPLICA).
    pub start: usize,
    /// Where to start one each (DAEMON).
    pub start_on: Vec<String>,
    /// Tasks to stop: id and reason.
    pub stop: Vec<(String, String)>,
}

fn healthy(task: &Seen) -> bool {
    task.health == Health::Healthy
}

fn scaling(primary: &str) -> String {
    format!("Scaling activity initiated by (deployment {primary})")
}

/// The primary's own tasks that stay, after those that never got healthy and never will are taken out.
fn take_hopeless<'a>(board: &Board<'a>, moves: &mut Moves) -> (Vec<&'a Seen>, Vec<&'a Seen>) {
    let (mut own, mut old) = (Vec::new(), Vec::new());
    for task in board.tasks {
        match &task.health {
            Health::Unhealthy(why) if !board.proven.contains(&task.id) => {
                moves.stop.push((task.id.clone(), why.clone()));
            }
            _ if task.deployment == board.primary && !task.leaving => own.push(*task),
            _ => old.push(*task),
        }
    }
    (own, old)
}

/// The moves of a REPLICA service.
pub fn replica(board: &Board) -> Moves {
    let mut moves = Moves::default();
    let Bounds { want, most, least } = board.bounds;
    let (own, old) = take_hopeless(board, &mut moves);
    let (sick, sound): (Vec<&Seen>, Vec<&Seen>) =
        own.iter().partition(|t| matches!(t.health, Health::Unhealthy(_)));
    let well = sound.iter().filter(|t| healthy(t)).count();
    let goal = want + usize::from(board.extra);
    let need = if board.failed { 0 } else { goal.saturating_sub(sound.len()) };
    let room = most.saturating_sub(own.len() + old.len());
    moves.start = need.min(room);
    let reason = scaling(board.primary);
    let stop = |moves: &mut Moves, tasks: Vec<&Seen>| {
        for task in tasks {
            let why = match &task.health {
                Health::Unhealthy(why) => why.clone(),
                _ => reason.clone(),
            };
            moves.stop.push((task.id.clone(), why));
        }
    };
    stop(&mut moves, victims(&sound, sound.len().saturating_sub(goal)));
    if well >= want {
        stop(&mut moves, sick.clone());
    } else if need > 0 && room == 0 && old.is_empty() {
        stop(&mut moves, victims(&sick, 1));
    }
    if board.failed {
        return moves;
    }
    let (serving, idle): (Vec<&Seen>, Vec<&Seen>) = old.iter().partition(|t| t.serves());
    stop(&mut moves, victims(&idle, idle.len()));
    let replaced = serving.len().saturating_sub(want.saturating_sub(well));
    let stuck = need > 0 && (moves.start < need || board.blocked) && idle.is_empty();
    let early = if stuck { (well + serving.len()).saturating_sub(least).min(need) } else { 0 };
    stop(&mut moves, victims(&serving, replaced.max(early)));
    moves
}

/// Whom to stop, if `count` must go: who does not run, who is not healthy, who is where most are, who came last.
pub fn victims<'a>(tasks: &[&'a Seen], count: usize) -> Vec<&'a Seen> {
    let mut left: Vec<&Seen> = tasks.iter().copied().filter(|t| !t.protected).collect();
    let mut out = Vec::new();
    let (mut zones, mut instances) = (BTreeMap::<&str, usize>::new(), BTreeMap::<&str, usize>::new());
    for task in tasks {
        *zones.entry(&task.zone).or_default() += 1;
        *instances.entry(&task.instance).or_default() += 1;
    }
    while out.len() < count {
        let rank = |t: &&Seen| {
            let crowd = (zones.get(&*t.zone).copied(), instances.get(&*t.instance).copied());
            (t.last != "RUNNING", !healthy(t), crowd, t.created_ms, t.id.clone())
        };
        let Some(at) = (0..left.len()).max_by_key(|i| rank(&left[*i])) else { break };
        let task = left.swap_remove(at);
        zones.entry(&task.zone).and_modify(|n| *n -= 1);
        instances.entry(&task.instance).and_modify(|n| *n -= 1);
        out.push(task);
    }
    out
}

/// The moves of a DAEMON service.
pub fn daemon(board: &Board, places: &[Place]) -> Moves {
    let mut moves = Moves::default();
    let reason = scaling(board.primary);
    let takes = |arn: &str| places.iter().any(|p| p.takes && p.arn == arn);
    let (mut total, mut serving) = (board.tasks.len(), board.tasks.iter().filter(|t| t.serves()).count());
    for task in board.tasks {
        let why = match &task.health {
            Health::Unhealthy(why) => why,
            _ if !takes(&task.instance) => &reason,
            _ => continue,
        };
        moves.stop.push((task.id.clone(), why.clone()));
    }
    for place in places.iter().filter(|p| p.takes) {
        let here = board.tasks.iter().filter(|t| t.instance == place.arn);
        let here = here.filter(|t| !matches!(t.health, Health::Unhealthy(_)));
        let (own, old): (Vec<&Seen>, Vec<&Seen>) = here.partition(|t| t.deployment == board.primary);
        let stops = victims(&old, old.len());
        if own.iter().any(|t| healthy(t)) {
            moves.stop.extend(stops.iter().map(|t| (t.id.clone(), reason.clone())));
        } else if own.is_empty() && !board.failed {
            if old.is_empty() || total < board.bounds.most {
                total += 1;
                moves.start_on.push(place.arn.clone());
            } else if stops.iter().all(|t| !t.serves()) || serving > board.bounds.least {
                serving = serving.saturating_sub(stops.iter().filter(|t| t.serves()).count());
                moves.stop.extend(stops.iter().map(|t| (t.id.clone(), reason.clone())));
            }
        }
    }
    moves
}

/// Are tasks so unevenly spread that moving one helps? The crowded and the empty zone, with counts of all.
pub fn imbalance(tasks: &[&Seen], zones: &BTreeSet<String>) -> Option<BTreeMap<String, usize>> {
    let mut counts: BTreeMap<String, usize> = zones.iter().map(|z| (z.clone(), 0)).collect();
    tasks.iter().for_each(|t| *counts.entry(t.zone.clone()).or_default() += 1);
    let least = zones.iter().filter_map(|z| counts.get(z)).min()?;
    let most = counts.values().max()?;
    (zones.len() > 1 && most - least > 1).then_some(counts)
}

#[cfg(test)]
mod tests;
