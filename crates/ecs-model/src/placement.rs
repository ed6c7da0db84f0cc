//! Placement on container instances: resources, then constraints, then strategies. Pure; chance comes in as a seed.

use crate::overrides::Demand;
use crate::query::{self, Facts, Query};
use crate::refusal::Refusal;
use crate::refusal::refuse_if;
use machinery::kinds::get::text;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Most constraints and strategies of a request, as in ECS.
const CONSTRAINTS_MAX: usize = 10;
const STRATEGIES_MAX: usize = 5;
/// The attribute that holds the zone.
pub const ZONE: &str = "ecs.availability-zone";

/// A container instance as placement sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    /// Its ARN.
    pub arn: String,
    /// Its id, the last part of the ARN.
    pub id: String,
    /// The node it is.
    pub node: String,
    /// Attributes and the like; groups and the count of tasks are kept up by [`place`].
    pub facts: Facts,
    /// Free CPU units.
    pub cpu: i64,
    /// Free MiB.
    pub memory: i64,
    /// Host ports in use: number and protocol.
    pub ports: BTreeSet<(u16, String)>,
    /// Free GPUs.
    pub gpus: i64,
    /// How many tasks of each group are on it.
    pub tasks: BTreeMap<String, u64>,
}

/// A placement constraint.
#[derive(Clone, Debug)]
pub enum Constraint {
    /// No two tasks of the group on one instance.
    DistinctInstance,
    /// Only where the expression holds.
    MemberOf(Query),
}

/// A placement strategy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Any.
    Random,
    /// Where the fewest tasks of the group are, by the value of a field.
    Spread(String),
    /// Where the least CPU is left.
    BinpackCpu,
    /// Where the least memory is left.
    BinpackMemory,
}

/// What is to be placed.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// What each task takes.
    pub demand: Demand,
    /// Attributes that an instance must have.
    pub attributes: Vec<String>,
    /// All must hold.
    pub constraints: Vec<Constraint>,
    /// In order; the next decides among what the one before left.
    pub strategies: Vec<Strategy>,
    /// The tasks' group.
    pub group: String,
    /// Chance.
    pub seed: u64,
}

/// Why an instance did not take a task, in ECS's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The instance.
    pub arn: String,
    /// `RESOURCE:MEMORY`, ….
    pub reason: String,
}

/// Reads constraints of a request (`placementConstraints`) or of a definition.
pub fn constraints(all: &[Value]) -> Result<Vec<Constraint>, Refusal> {
    refuse_if(all.len() > CONSTRAINTS_MAX, || {
        Refusal::parameter(format!("No more than {CONSTRAINTS_MAX} placement constraints are allowed."))
    })?;
    let read = |c: &Value| match (text(c, "/type"), text(c, "/expression")) {
        ("distinctInstance", "") => Ok(Constraint::DistinctInstance),
        ("memberOf", expression) => query::parse(expression)
            .map(Constraint::MemberOf)
            .map_err(|e| Refusal::parameter(format!("Invalid expression for constraint: {e}"))),
        _ => Err(Refusal::parameter("Invalid placement constraint.")),
    };
    all.iter().map(read).collect()
}

/// Reads strategies of a request (`placementStrategy`).
pub fn strategies(all: &[Value]) -> Result<Vec<Strategy>, Refusal> {
    refuse_if(all.len() > STRATEGIES_MAX, || {
        Refusal::parameter(format!("No more than {STRATEGIES_MAX} placement strategies are allowed."))
    })?;
    let read = |s: &Value| {
        let (kind, field) = (text(s, "/type"), text(s, "/field"));
        match (kind, field.to_ascii_lowercase().as_str()) {
            ("random", "") => Ok(Strategy::Random),
            ("binpack", "cpu") => Ok(Strategy::BinpackCpu),
            ("binpack", "memory") => Ok(Strategy::BinpackMemory),
            ("spread", "instanceid" | "host") => Ok(Strategy::Spread("instanceId".into())),
            ("spread", lower) if lower.len() > "attribute:".len() && lower.starts_with("attribute:") => {
                Ok(Strategy::Spread(field.to_string()))
            }
            _ => Err(Refusal::parameter(format!("{kind} field '{field}' is invalid"))),
        }
    };
    all.iter().map(read).collect()
}

/// Places up to `count` tasks and books them on the instances: the index of each one's instance, and, where some found
/// none, why each instance said no.
pub fn place(instances: &mut [Instance], request: &Request, count: usize) -> (Vec<usize>, Vec<Failure>) {
    let mut placed = Vec::with_capacity(count);
    for turn in 0..count {
        let reasons: Vec<Option<String>> = instances.iter().map(|i| refuses(i, request)).collect();
        let mut open: Vec<usize> = (0..instances.len()).filter(|i| reasons[*i].is_none()).collect();
        if open.is_empty() {
            let named = |(i, reason): (usize, Option<String>)| {
                Some(Failure { arn: instances[i].arn.clone(), reason: reason? })
            };
            return (placed, reasons.into_iter().enumerate().filter_map(named).collect());
        }
        for strategy in &request.strategies {
            narrow(&mut open, instances, strategy, &request.group);
        }
        let at = open[chance(request.seed, turn, open.len())];
        book(&mut instances[at], request);
        placed.push(at);
    }
    (placed, Vec::new())
}

/// Could the instance take a task, whatever is free there and whoever is there already?
pub fn suits(instance: &Instance, request: &Request) -> bool {
    let lacks = |name: &String| instance.facts.attribute(name).is_none();
    let of_members = |c: &&Constraint| matches!(c, Constraint::MemberOf(_));
    instance.facts.agent_connected
        && !request.attributes.iter().any(lacks)
        && request.constraints.iter().filter(of_members).all(|c| holds(c, instance, &request.group))
}

fn refuses(instance: &Instance, request: &Request) -> Option<String> {
    let demand = &request.demand;
    let lacks = |name: &&String| instance.facts.attribute(name).is_none();
    let reason = if !instance.facts.agent_connected {
        "AGENT"
    } else if request.attributes.iter().any(|name| lacks(&name)) {
        "ATTRIBUTE"
    } else if demand.cpu > instance.cpu {
        "RESOURCE:CPU"
    } else if demand.memory > instance.memory {
        "RESOURCE:MEMORY"
    } else if demand.ports.iter().any(|p| instance.ports.contains(p)) {
        "RESOURCE:PORTS"
    } else if demand.gpus > 0 && demand.gpus > instance.gpus {
        "RESOURCE:GPU"
    } else {
        let broken = request.constraints.iter().find(|c| !holds(c, instance, &request.group))?;
        match broken {
            Constraint::DistinctInstance => "DistinctInstance placement constraint unsatisfied.",
            Constraint::MemberOf(_) => "MemberOf placement constraint unsatisfied.",
        }
    };
    Some(reason.to_string())
}

fn holds(constraint: &Constraint, instance: &Instance, group: &str) -> bool {
    match constraint {
        Constraint::DistinctInstance => !instance.tasks.contains_key(group),
        Constraint::MemberOf(query) => query.selects(&instance.facts),
    }
}

fn narrow(open: &mut Vec<usize>, instances: &[Instance], strategy: &Strategy, group: &str) {
    let cost: Box<dyn Fn(usize) -> i64> = match strategy {
        Strategy::Random => return,
        Strategy::BinpackCpu => Box::new(|i| instances[i].cpu),
        Strategy::BinpackMemory => Box::new(|i| instances[i].memory),
        Strategy::Spread(field) => {
            let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
            for instance in instances {
                *counts.entry(value_of(instance, field)).or_default() +=
                    instance.tasks.get(group).copied().unwrap_or(0);
            }
            Box::new(move |i| {
                counts
                    .get(value_of(&instances[i], field))
                    .map_or(0, |n| i64::try_from(*n).unwrap_or(i64::MAX))
            })
        }
    };
    let least = open.iter().map(|i| cost(*i)).min();
    open.retain(|i| Some(cost(*i)) == least);
}

fn value_of<'a>(instance: &'a Instance, field: &str) -> &'a str {
    match field.split_once(':') {
        Some((_, name)) => instance.facts.attribute(name).unwrap_or_default(),
        None => &instance.id,
    }
}

/// A number below `below`, from a seed and a turn (splitmix64).
fn chance(seed: u64, turn: usize, below: usize) -> usize {
    let mut z = seed.wrapping_add((turn as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    usize::try_from((z ^ (z >> 31)) % below.max(1) as u64).unwrap_or(0)
}

fn book(instance: &mut Instance, request: &Request) {
    instance.cpu -= request.demand.cpu;
    instance.memory -= request.demand.memory;
    instance.gpus -= request.demand.gpus;
    instance.ports.extend(request.demand.ports.iter().cloned());
    *instance.tasks.entry(request.group.clone()).or_default() += 1;
    instance.facts.groups.insert(request.group.clone());
    instance.facts.running_tasks += 1;
}

#[cfg(test)]
mod tests;
