//! CloudWatch Logs over [`logs::Store`]: a group's facts are a `LogGroup` object in namespace `aws`, its streams and
//! events are in the store under the object's name.
//!
//! Deliberately not here: delivery of subscription filters, metric filters, transformers, anomaly detection: refused
//! by the front end as not implemented.

mod events;
mod groups;
mod homes;
mod names;
mod sink;
mod streams;
mod subscriptions;
mod tags;
pub mod tail;
#[cfg(test)]
mod tests;
mod token;

pub use homes::Peers;
pub use sink::{Sink, SinkError};

use crate::operation;
use crate::service::{AwsError, Call, Operation, Outcome, Service, Shared, Streaming, Table};
use futures_util::future::BoxFuture;
use logs::{LogsError, Store};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// What the operations share.
pub struct State {
    /// The API and where we are.
    pub shared: Shared,
    /// The events.
    pub store: Store,
    tails: Arc<Semaphore>,
    peers: Option<Arc<dyn Peers>>,
}

impl State {
    /// Over a store. `peers`: servers over the same objects, which have stores of their own.
    pub fn new(shared: Shared, store: Store, peers: Option<Arc<dyn Peers>>) -> Arc<State> {
        Arc::new(State { shared, store, tails: Arc::new(Semaphore::new(tail::SESSIONS_MAX)), peers })
    }
}

const OPERATIONS: &[Operation<State>] = &[
    operation!("CreateLogGroup", groups::create),
    operation!("DeleteLogGroup", groups::delete),
    operation!("DescribeLogGroups", groups::describe),
    operation!("ListLogGroups", groups::list),
    operation!("PutRetentionPolicy", groups::put_retention),
    operation!("DeleteRetentionPolicy", groups::delete_retention),
    operation!("CreateLogStream", streams::create),
    operation!("DeleteLogStream", streams::delete),
    operation!("DescribeLogStreams", streams::describe),
    operation!("PutLogEvents", events::put),
    operation!("GetLogEvents", events::get),
    operation!("FilterLogEvents", events::filter),
    operation!("TestMetricFilter", events::test_filter),
    operation!("TagLogGroup", tags::tag),
    operation!("UntagLogGroup", tags::untag),
    operation!("ListTagsLogGroup", tags::list),
    operation!("TagResource", tags::tag),
    operation!("UntagResource", tags::untag),
    operation!("ListTagsForResource", tags::list),
    operation!("PutSubscriptionFilter", subscriptions::put),
    operation!("DescribeSubscriptionFilters", subscriptions::describe),
    operation!("DeleteSubscriptionFilter", subscriptions::delete),
];

/// The service.
pub fn service(state: Arc<State>) -> Arc<dyn Service> {
    Arc::new(Logs(Table { name: "logs", state, operations: OPERATIONS }))
}

/// The table, and the one operation that answers with a stream.
struct Logs(Table<State>);

impl Service for Logs {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn served(&self) -> Vec<&'static str> {
        let mut names = self.0.served();
        names.push("StartLiveTail");
        names
    }

    fn call<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Outcome> {
        if self.0.state.peers.is_none() {
            return self.0.call(call);
        }
        Box::pin(async move {
            match homes::forwarded(&self.0.state, call).await {
                Some(answer) => answer,
                None => self.0.call(call).await,
            }
        })
    }

    fn stream<'a>(&'a self, call: &'a Call) -> Option<BoxFuture<'a, Streaming>> {
        (call.operation == "StartLiveTail").then(|| Box::pin(tail::start(self.0.state.clone(), call)) as _)
    }
}

/// Drops, for ever, what the groups' retention has passed. Wakes once an hour: expiry is counted in days, and reads
/// hide what is expired by themselves.
pub async fn expire(state: Arc<State>) {
    loop {
        tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
        let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
        if let Err(error) = groups::expire_all(&state, now_ms).await {
            tracing::warn!(%error, "expired log events not removed");
        }
    }
}

fn invalid(message: impl Into<String>) -> AwsError {
    AwsError::client("InvalidParameterException", message)
}

fn not_found(what: &str) -> AwsError {
    AwsError::client("ResourceNotFoundException", format!("The specified log {what} does not exist."))
}

fn exists(what: &str) -> AwsError {
    AwsError::client("ResourceAlreadyExistsException", format!("The specified log {what} already exists"))
}

fn unavailable(error: &dyn std::fmt::Display) -> AwsError {
    tracing::warn!(%error, "a logs operation failed");
    AwsError::server("ServiceUnavailableException", "The service cannot complete the request.")
}

fn store_error(error: LogsError) -> AwsError {
    match error {
        LogsError::NoStream => not_found("stream"),
        LogsError::StreamExists => exists("stream"),
        other => unavailable(&other),
    }
}

/// Runs blocking work of the store.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogsError> + Send + 'static,
) -> Result<T, AwsError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| unavailable(&e))?.map_err(store_error)
}
