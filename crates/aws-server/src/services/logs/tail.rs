//! StartLiveTail: what is put from now on, once a second, as an event stream.

use super::homes;
use super::names;
use super::{State, invalid};
use crate::service::{AwsError, Call, StreamEvent, Streaming};
use futures_util::StreamExt;
use futures_util::stream;
use logs::{Appended, Pattern};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::{Instant, timeout_at};

/// Sessions at a time (AWS's limit).
pub(super) const SESSIONS_MAX: usize = 15;
/// Events in one update; when there are more, the rest is left out and `sampled` says so.
const UPDATE_MAX: usize = 500;
const UPDATE_EVERY: Duration = Duration::from_secs(1);
/// AWS's.
const SESSION_MAX: Duration = Duration::from_secs(3 * 3600);
const GROUPS_MAX: usize = 10;

/// One session.
struct Session {
    live: Receiver<Arc<Appended>>,
    /// ARNs by key.
    groups: BTreeMap<String, String>,
    names: Vec<String>,
    prefixes: Vec<String>,
    pattern: Pattern,
    ends: Instant,
    first: Option<Value>,
    over: bool,
    _place: OwnedSemaphorePermit,
}

fn texts(call: &Call, member: &str) -> Vec<String> {
    let list = call.input[member].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|v| v.as_str().map(String::from)).collect()
}

/// Starts a session.
pub(super) async fn start(state: Arc<State>, call: &Call) -> Streaming {
    let identifiers = texts(call, "logGroupIdentifiers");
    if identifiers.len() > GROUPS_MAX {
        return Err(invalid("No more than 10 log groups can be tailed in one session."));
    }
    let (names, prefixes) = (texts(call, "logStreamNames"), texts(call, "logStreamNamePrefixes"));
    let of_streams = !names.is_empty() || !prefixes.is_empty();
    if (!names.is_empty() && !prefixes.is_empty()) || (of_streams && identifiers.len() > 1) {
        return Err(invalid("Log streams can be given by names or by prefixes, and for one log group only."));
    }
    let pattern = Pattern::parse(call.text("logEventFilterPattern")).map_err(|e| invalid(e.to_string()))?;
    let mut groups = BTreeMap::new();
    for identifier in &identifiers {
        let group = names::find(&state, call, names::name_of(identifier)?).await?;
        homes::must_be_here(&state, &group)?;
        groups.insert(group.key.clone(), group.arn());
    }
    let place =
        state.tails.clone().try_acquire_owned().map_err(|_| {
            AwsError::client("LimitExceededException", "Too many Live Tail sessions are open.")
        })?;
    let start = json!({
        "requestId": call.request_id, "sessionId": uuid::Uuid::new_v4().to_string(),
        "logGroupIdentifiers": identifiers, "logStreamNames": names, "logStreamNamePrefixes": prefixes,
        "logEventFilterPattern": call.text("logEventFilterPattern"),
    });
    let session = Session {
        live: state.store.subscribe(),
        groups,
        names,
        prefixes,
        pattern,
        ends: Instant::now() + SESSION_MAX,
        first: Some(start),
        over: false,
        _place: place,
    };
    Ok(stream::unfold(session, next).boxed())
}

async fn next(mut session: Session) -> Option<(Result<StreamEvent, AwsError>, Session)> {
    if let Some(start) = session.first.take() {
        return Some((Ok(("sessionStart", start)), session));
    }
    if session.over {
        return None;
    }
    if Instant::now() >= session.ends {
        session.over = true;
        let error = AwsError::client("SessionTimeoutException", "The Live Tail session has timed out.");
        return Some((Err(error), session));
    }
    let (results, sampled) = session.collect().await?;
    let update = json!({"sessionMetadata": {"sampled": sampled}, "sessionResults": results});
    Some((Ok(("sessionUpdate", update)), session))
}

impl Session {
    /// A second's events; `None` when the store is closed.
    async fn collect(&mut self) -> Option<(Vec<Value>, bool)> {
        let until = Instant::now() + UPDATE_EVERY;
        let (mut results, mut sampled) = (Vec::new(), false);
        while let Ok(received) = timeout_at(until, self.live.recv()).await {
            match received {
                Ok(appended) => self.take(&appended, &mut results),
                Err(RecvError::Lagged(_)) => sampled = true,
                Err(RecvError::Closed) => return None,
            }
        }
        sampled |= results.len() > UPDATE_MAX;
        results.truncate(UPDATE_MAX);
        Some((results, sampled))
    }

    fn take(&self, appended: &Appended, results: &mut Vec<Value>) {
        let Some(arn) = self.groups.get(&*appended.group) else { return };
        let by_name = self.names.is_empty() || self.names.contains(&appended.stream);
        let by_prefix =
            self.prefixes.is_empty() || self.prefixes.iter().any(|p| appended.stream.starts_with(p.as_str()));
        if !(by_name && by_prefix) || results.len() > UPDATE_MAX {
            return;
        }
        results.extend(appended.events.iter().filter(|e| self.pattern.matches(&e.message)).map(|e| {
            json!({
                "logStreamName": appended.stream, "logGroupIdentifier": arn, "message": e.message,
                "timestamp": e.timestamp_ms, "ingestionTime": e.ingested_ms,
            })
        }));
    }
}
