//! The ECS controllers: tasks, services and their deployments. Each is a pure decision and a shell.
//!
//! They are clients of the API and meet the operations (`aws-server`) and the nodes only in the store.
//! Deliberately not here: ECS's rules as values (`ecs-model`), the wire (`aws-server`).

pub mod loadbalancer;
pub mod metering;
mod secrets;
pub mod service;
pub mod task;

pub use secrets::SecretSource;
pub use service::Launcher;

use client::ApiClient;
use ecs_model::lower::Settings;
use ecs_model::names::Place;
use jiff::Timestamp;
use machinery::status::ApiError;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// What became of an object, which somebody else may have removed.
fn gone_is_fine<T>(result: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match result {
        Err(error) if error.is_not_found() => Ok(None),
        other => other.map(Some),
    }
}

/// What the controllers must be told.
#[derive(Clone, Debug)]
pub struct EcsConfig {
    /// The account and region whose names stay short.
    pub defaults: Place,
    /// How tasks become pods.
    pub settings: Settings,
    /// How long stopped tasks stay visible.
    pub retention: Duration,
    /// After how long a task of a service counts as healthy when nothing checks it (AWS: 40 s).
    pub settled: Duration,
}

/// The running controllers; they stop when this is dropped.
pub struct Ecs {
    tasks: Vec<JoinHandle<()>>,
}

impl Ecs {
    /// Starts them as one identity.
    pub fn start(
        client: ApiClient,
        (secrets, launcher): (Arc<dyn SecretSource>, Arc<dyn Launcher>),
        config: EcsConfig,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Ecs {
        let mut tasks = task::start(client.clone(), secrets, config.clone(), clock.clone());
        tasks.extend(service::start(client, launcher, config, clock));
        Ecs { tasks }
    }
}

impl Drop for Ecs {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}
