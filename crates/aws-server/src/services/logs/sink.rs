//! The way in for log drivers, of this process and of nodes elsewhere: a batch for a group and stream, which are made where they are missing.

use super::{State, blocking, events, groups, homes, names};
use crate::service::AwsError;
use serde_json::json;
use std::sync::Arc;

/// Why a batch was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// It will never be.
    #[error("{0}")]
    Refused(String),
    /// It may be later.
    #[error("{0}")]
    Later(String),
}

impl From<AwsError> for SinkError {
    fn from(error: AwsError) -> Self {
        match error.status {
            500.. => SinkError::Later(error.message),
            _ => SinkError::Refused(format!("{}: {}", error.code, error.message)),
        }
    }
}

/// Log drivers' door.
#[derive(Clone)]
pub struct Sink(Arc<State>);

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0)
}

impl Sink {
    /// A door to a service's state.
    pub fn new(state: Arc<State>) -> Sink {
        Sink(state)
    }

    /// Makes the stream, and the group where that is wanted. Being there already is fine.
    ///
    /// # Errors
    /// There is no such group, or the store.
    pub async fn open(
        &self,
        region: &str,
        group: &str,
        stream: &str,
        create_group: bool,
    ) -> Result<(), SinkError> {
        let state = &self.0;
        let region = if region.is_empty() { state.shared.region.as_str() } else { region };
        let place = (state.shared.account.as_str(), region);
        if create_group {
            let facts = json!({"logGroupName": group, "creationTime": now_ms()});
            match groups::make(state, place, group, facts).await {
                Err(error) if error.code != "ResourceAlreadyExistsException" => return Err(error.into()),
                _ => {}
            }
        }
        let found = names::find_in(state, place, group).await?;
        let input = json!({"logStreamName": stream});
        let made = match homes::forwarded_put(state, &found, "CreateLogStream", input).await {
            Some(answer) => answer.map(drop),
            None => {
                let (store, name) = (state.store.clone(), stream.to_string());
                blocking(move || store.create_stream(&found.key, &name, now_ms())).await
            }
        };
        match made {
            Err(error) if error.code != "ResourceAlreadyExistsException" => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Adds events (time, message) in order of time. When this returns they are on disk.
    ///
    /// # Errors
    /// There is no such stream, a broken rule, or the store.
    pub async fn put(
        &self,
        region: &str,
        group: &str,
        stream: &str,
        events: Vec<(u64, String)>,
    ) -> Result<(), SinkError> {
        let state = &self.0;
        let region = if region.is_empty() { state.shared.region.as_str() } else { region };
        let found = names::find_in(state, (&state.shared.account, region), group).await?;
        if homes::elsewhere(state, &found).is_none() {
            return Ok(events::put_events(state, &found, stream, events, now_ms()).await.map(drop)?);
        }
        let events: Vec<_> = events
            .into_iter()
            .map(|(time, message)| json!({"timestamp": time, "message": message}))
            .collect();
        let input = json!({"logStreamName": stream, "logEvents": events});
        match homes::forwarded_put(state, &found, "PutLogEvents", input).await {
            Some(answer) => Ok(answer.map(drop)?),
            None => Ok(()),
        }
    }
}
