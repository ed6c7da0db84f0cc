//! CloudWatch Logs' store and service, and the log drivers of this node's ECS tasks (on a joined node too).

use super::Instance;
use super::control::private_folder;
use super::door::Servers;
use agent::logging::{Destination, LogEvent, LogSink, SinkError};
use anyhow::Result;
use async_trait::async_trait;
use aws_server::services::logs::{self as service, Peers, Sink, State};
use logs::{Limits, Store};
use std::sync::Arc;

/// Below the data folder; `logs` there are the containers' own files.
const FOLDER: &str = "cloudwatch";

/// Opens the store and leaves the service for the endpoint.
pub async fn open(instance: &mut Instance) -> Result<()> {
    let Some(shared) = instance.aws.shared.clone() else { return Ok(()) };
    let folder = instance.config.data_dir.join(FOLDER);
    private_folder(&folder)?;
    let store = tokio::task::spawn_blocking(move || Store::open(folder, Limits::default())).await??;
    let peers = Servers::start(instance).await?.map(|servers| Arc::new(servers) as Arc<dyn Peers>);
    let state = State::new(shared, store, peers);
    instance.tasks.push(tokio::spawn(service::expire(state.clone())));
    instance.aws.services.push(service::service(state.clone()));
    instance.aws.logs = Some(state);
    Ok(())
}

/// Starts the log drivers, where there is a node and a store.
pub async fn drivers(instance: &mut Instance) -> Result<()> {
    let Ok(agent) = instance.node.agent() else { return Ok(()) };
    let sink: Arc<dyn LogSink> = match (&instance.control.joined, instance.aws.logs.clone()) {
        (Some(joined), _) => joined.server(),
        (None, Some(state)) => Arc::new(InProcess(Sink::new(state))),
        (None, None) => return Ok(()),
    };
    instance.tasks.push(agent.ship_logs(sink));
    Ok(())
}

/// The store of this process.
struct InProcess(Sink);

fn worded(error: service::SinkError) -> SinkError {
    match error {
        service::SinkError::Refused(why) => SinkError::Refused(why),
        service::SinkError::Later(why) => SinkError::Later(why),
    }
}

/// The driver's region option is a name in the task definition; here there is one store for all of them.
#[async_trait]
impl LogSink for InProcess {
    async fn open(&self, to: &Destination) -> Result<(), SinkError> {
        self.0.open(&to.region, &to.group, &to.stream, to.create_group).await.map_err(worded)
    }

    async fn put(&self, to: &Destination, events: Vec<LogEvent>) -> Result<(), SinkError> {
        let events = events.into_iter().map(|e| (e.time_ms, e.message)).collect();
        self.0.put(&to.region, &to.group, &to.stream, events).await.map_err(worded)
    }
}
