//! EventBridge: event buses, rules with patterns and schedules, targets, and the events that ECS makes.
//!
//! A rule is a `Rule` object in namespace `aws` (its targets in its `spec`). [`Engine`] matches events against them and
//! delivers to log groups, webhooks (API destinations), ECS (`RunTask`) and other buses. What ECS does is watched for
//! in the store ([`source`]), schedules are kept by [`clock`]: both run in one server of several.
//! Deliberately not here: archives, replays, partners, pipes, the Scheduler, policies of buses, other kinds of target.

mod buses;
pub mod clock;
mod deliver;
pub mod ecs_events;
mod engine;
mod pattern;
mod put;
mod rules;
mod schedule;
pub mod source;
mod tags;
mod targets;
#[cfg(test)]
mod tests;
mod transform;
mod webhooks;

pub use engine::{Engine, Event};
pub use pattern::{Pattern, PatternError};
pub use schedule::Schedule;

use super::kept::{Kept, Reach};
use super::logs::Sink;
use crate::operation;
use crate::service::{AwsError, Operation, Service, Shared, Table};
use k8s_schema::Gvr;
use k8s_schema::gvr::EVENT_RULES;
use std::sync::Arc;

const BUSES: Gvr = Gvr::new("events.gantry.dev", "v1", "eventbuses");
const CONNECTIONS: Gvr = Gvr::new("events.gantry.dev", "v1", "connections");
const DESTINATIONS: Gvr = Gvr::new("events.gantry.dev", "v1", "apidestinations");

/// What the operations share.
pub struct State {
    rules: Kept,
    buses: Kept,
    connections: Kept,
    destinations: Kept,
    engine: Arc<Engine>,
}

impl State {
    /// Over the API; events for log groups go to `sink`.
    pub fn new(shared: &Shared, sink: Option<Sink>) -> Arc<State> {
        let kept = |gvr, kind| Kept::new(shared, gvr, kind, Reach::Regional);
        Arc::new(State {
            rules: kept(EVENT_RULES, "Rule"),
            buses: kept(BUSES, "EventBus"),
            connections: kept(CONNECTIONS, "Connection"),
            destinations: kept(DESTINATIONS, "ApiDestination"),
            engine: Engine::new(shared, sink),
        })
    }

    /// What matches and delivers.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }
}

const OPERATIONS: &[Operation<State>] = &[
    operation!("PutRule", rules::put),
    operation!("DeleteRule", rules::delete),
    operation!("DescribeRule", rules::describe),
    operation!("EnableRule", rules::switch, "ENABLED"),
    operation!("DisableRule", rules::switch, "DISABLED"),
    operation!("ListRules", rules::list),
    operation!("ListRuleNamesByTarget", rules::names_by_target),
    operation!("PutTargets", targets::put),
    operation!("RemoveTargets", targets::remove),
    operation!("ListTargetsByRule", targets::list),
    operation!("PutEvents", put::put),
    operation!("TestEventPattern", put::test),
    operation!("CreateEventBus", buses::create),
    operation!("DeleteEventBus", buses::delete),
    operation!("DescribeEventBus", buses::describe),
    operation!("ListEventBuses", buses::list),
    operation!("CreateConnection", webhooks::create_connection),
    operation!("DeleteConnection", webhooks::delete_connection),
    operation!("DescribeConnection", webhooks::describe_connection),
    operation!("ListConnections", webhooks::list_connections),
    operation!("CreateApiDestination", webhooks::create_destination),
    operation!("DeleteApiDestination", webhooks::delete_destination),
    operation!("DescribeApiDestination", webhooks::describe_destination),
    operation!("UpdateApiDestination", webhooks::update_destination),
    operation!("ListApiDestinations", webhooks::list_destinations),
    operation!("TagResource", tags::tag),
    operation!("UntagResource", tags::tag),
    operation!("ListTagsForResource", tags::list),
];

/// The service.
pub fn service(state: Arc<State>) -> Arc<dyn Service> {
    Arc::new(Table { name: "events", state, operations: OPERATIONS })
}

fn invalid(words: impl Into<String>) -> AwsError {
    AwsError::client("ValidationException", words)
}

fn not_found(words: impl Into<String>) -> AwsError {
    AwsError::client("ResourceNotFoundException", words)
}

fn limit(words: impl Into<String>) -> AwsError {
    AwsError::client("LimitExceededException", words)
}

fn exists(words: impl Into<String>) -> AwsError {
    AwsError::client("ResourceAlreadyExistsException", words)
}
