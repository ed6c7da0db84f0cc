//! EventBridge behind its operations: deliveries in every server; ECS's events and schedules in one of several.

use super::Instance;
use super::leader::Candidate;
use anyhow::Result;
use auth::{Identity, SYSTEM_MASTERS};
use aws_server::services::events::source::Source;
use aws_server::services::events::{self, State, clock};
use aws_server::services::logs::Sink;
use std::time::Duration;
use tokio::task::JoinHandle;

/// The lease of what makes events, where servers share a store.
const LEASE: &str = "gantry-events";
/// For the first lists: controllers that start after that make events that are seen.
const READY_MAX: Duration = Duration::from_secs(5);

/// Leaves the service for the endpoint. Comes after the logs, which events may go to.
pub async fn open(instance: &mut Instance) -> Result<()> {
    let Some(shared) = &instance.aws.shared else { return Ok(()) };
    let state = State::new(shared, instance.aws.logs.clone().map(Sink::new));
    instance.aws.services.push(events::service(state.clone()));
    instance.aws.events = Some(state);
    Ok(())
}

struct Running(Vec<JoinHandle<()>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Starts deliveries, watches and schedules. Comes after the endpoint, whose services are targets, and before the ECS
/// controllers, whose doings are told.
pub async fn start(instance: &mut Instance) -> Result<()> {
    let (Some(state), Some(shared)) = (instance.aws.events.clone(), instance.aws.shared.clone()) else {
        return Ok(());
    };
    let engine = state.engine().clone();
    let services = instance.aws.all.clone();
    engine.prepare(services.clone()).await;
    instance.tasks.push(tokio::spawn(engine.clone().run()));
    let begin = move || {
        let source = Source::new(engine.clone(), shared.clone(), &services);
        let tasks = vec![tokio::spawn(source.clone().run()), tokio::spawn(clock::run(engine.clone()))];
        (source, Running(tasks))
    };
    if instance.control.shares_store() {
        let client = instance.control.client(Identity::new("system:gantry-events", [SYSTEM_MASTERS]))?;
        let me = format!("{}_{}", instance.facts.node_name, instance.config.name);
        let candidate = Candidate { client, lease: LEASE, me };
        instance.tasks.push(tokio::spawn(candidate.run(begin)));
        return Ok(());
    }
    let (source, running) = begin();
    if tokio::time::timeout(READY_MAX, source.ready()).await.is_err() {
        tracing::warn!("ECS's events are not watched yet");
    }
    instance.tasks.push(tokio::spawn(async move {
        let _running = running;
        std::future::pending::<()>().await;
    }));
    Ok(())
}
