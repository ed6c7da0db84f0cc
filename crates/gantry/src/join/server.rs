//! What a joined node's tasks need from the servers: log groups, their roles' credentials, protection against scale-in.
//! Asked over the node's own connection to the API, at the door (`up::door`).
//!
//! Whatever is no refusal of what was asked (no connection, a server that starts or ends) counts as "later".

use crate::up::door::{self, ask};
use agent::logging::{Destination, LogEvent, LogSink, SinkError};
use agent::taskmeta::{Refused, TaskServices};
use async_trait::async_trait;
use client::ObjectKey;
use client::remote::Remote;
use ecs_model::annotation::TaskNote;
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// For an answer: a connection that hangs must not hold a task's log for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// The servers, as a node sees them.
pub struct Server(pub Arc<Remote>);

impl Server {
    async fn ask(&self, what: &str, input: Value) -> Result<Value, ApiError> {
        let path = format!("{}{what}", apiserver::DOOR);
        let asked = self.0.ask(&path, input);
        let late = |_| Err(ApiError::new(504, "Timeout", "the server does not answer"));
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(late)
    }

    async fn log(&self, what: &str, to: &Destination, mut input: Value) -> Result<(), SinkError> {
        input[ask::REGION] = json!(to.region);
        input[ask::GROUP] = json!(to.group);
        input[ask::STREAM] = json!(to.stream);
        let answer = self.ask(what, input).await.map_err(|e| SinkError::Later(e.message))?;
        match answer[ask::REFUSED].as_str() {
            Some(why) => Err(SinkError::Refused(why.into())),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl LogSink for Server {
    async fn open(&self, to: &Destination) -> Result<(), SinkError> {
        self.log(ask::LOG_OPEN, to, json!({ask::CREATE: to.create_group})).await
    }

    async fn put(&self, to: &Destination, events: Vec<LogEvent>) -> Result<(), SinkError> {
        let events: Vec<Value> = events.into_iter().map(|e| json!([e.time_ms, e.message])).collect();
        self.log(ask::LOG_PUT, to, json!({ask::EVENTS: events})).await
    }
}

fn of(pod: &ObjectKey) -> Value {
    json!({ask::NAMESPACE: &*pod.namespace, ask::POD: &*pod.name})
}

#[async_trait]
impl TaskServices for Server {
    async fn credentials(&self, pod: &ObjectKey, _: &TaskNote) -> Result<Value, String> {
        self.ask(ask::CREDENTIALS, of(pod)).await.map_err(|e| e.message)
    }

    async fn protection(
        &self,
        pod: &ObjectKey,
        _: &TaskNote,
        change: Option<Value>,
    ) -> Result<Value, Refused> {
        let mut input = of(pod);
        input[ask::CHANGE] = change.unwrap_or_default();
        let away = |e: ApiError| (503, "ServerException".to_string(), e.message);
        let answer = self.ask(ask::PROTECTION, input).await.map_err(away)?;
        door::refusal(&answer).map_or(Ok(answer), Err)
    }
}
