//! Log events: put, get, filter.

use super::names::{self, Group};
use super::streams::SEQUENCE_TOKEN;
use super::{State, blocking, invalid, not_found, store_error, token};
use crate::service::{AwsError, Call, Outcome};
use ecs_model::refusal::refuse_if;
use logs::batch;
use logs::scan::Wanted;
use logs::{Found, Page, Pattern, Position, Read};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Events in a page at most, and when the caller does not say.
const PAGE: usize = 10_000;
/// Bytes in a page.
const PAGE_BYTES: usize = 1 << 20;
/// Bytes of files that one call of FilterLogEvents reads before it answers with what it has and a token.
const SCAN_BYTES: u64 = 64 << 20;
/// Before every event.
const BEGINNING: Position = Position { timestamp_ms: 0, stream: 0, number: 0 };

pub(super) async fn put(state: &State, call: &Call) -> Outcome {
    let group = names::find(state, call, call.text("logGroupName")).await?;
    let stream = call.text("logStreamName");
    let list = call.input["logEvents"].as_array().map(Vec::as_slice).unwrap_or_default();
    let events: Vec<(u64, String)> = list
        .iter()
        .map(|e| {
            (e["timestamp"].as_u64().unwrap_or(0), e["message"].as_str().unwrap_or_default().to_string())
        })
        .collect();
    put_events(state, &group, stream, events, call.now_ms).await
}

/// Adds a batch by AWS's rules; the answer of PutLogEvents.
pub(super) async fn put_events(
    state: &State,
    group: &Group,
    stream: &str,
    mut events: Vec<(u64, String)>,
    now_ms: u64,
) -> Outcome {
    let sizes: Vec<(u64, usize)> = events.iter().map(|(time, message)| (*time, message.len())).collect();
    let checked =
        batch::check(&sizes, now_ms, group.retention_ms()).map_err(|error| invalid(error.to_string()))?;
    events.truncate(checked.taken.end);
    events.drain(..checked.taken.start);
    // An empty put still says whether there is such a stream.
    state.store.put(&group.key, stream, events, now_ms).await.map_err(store_error)?;
    let rejected = [
        ("tooNewLogEventStartIndex", checked.too_new_from),
        ("tooOldLogEventEndIndex", checked.too_old_until),
        ("expiredLogEventEndIndex", checked.expired_until),
    ];
    let rejected: serde_json::Map<String, Value> =
        rejected.into_iter().filter_map(|(member, at)| Some((member.to_string(), json!(at?)))).collect();
    let mut out = json!({"nextSequenceToken": SEQUENCE_TOKEN});
    if !rejected.is_empty() {
        out["rejectedLogEventsInfo"] = Value::Object(rejected);
    }
    Ok(out)
}

/// The times that a call asks for and the group still has. `after_end`: 1 where the end itself is meant.
fn times(call: &Call, group: &Group, after_end: u64) -> Result<Range<u64>, AwsError> {
    let number = |member: &str| call.input[member].as_u64();
    let (start, end) = (number("startTime").unwrap_or(0), number("endTime"));
    refuse_if(end.is_some_and(|end| end < start), || invalid("End time must not be before start time."))?;
    Ok(start.max(group.oldest_ms(call.now_ms))..end.map_or(u64::MAX, |end| end.saturating_add(after_end)))
}

async fn read(
    state: &State,
    group: &Group,
    streams: impl Fn(&str) -> bool + Send + 'static,
    wanted: Wanted,
    pattern: Pattern,
) -> Result<Page, AwsError> {
    let (store, key) = (state.store.clone(), group.key.clone());
    blocking(move || {
        let matches = |event: &logs::Event| pattern.matches(&event.message);
        store.read(&Read { group: &key, streams: &streams, wanted, matches: &matches })
    })
    .await
}

pub(super) async fn get(state: &State, call: &Call) -> Outcome {
    let group = names::of_call(state, call).await?;
    let stream = call.text("logStreamName").to_string();
    let (store, key, name) = (state.store.clone(), group.key.clone(), stream.clone());
    refuse_if(!blocking(move || Ok(store.has_stream(&key, &name))).await?, || not_found("stream"))?;
    let (forward, beyond) = match call.text("nextToken").split_once('/') {
        Some(("f", digits)) => (true, Some(token::position(digits)?)),
        Some(("b", digits)) => (false, Some(token::position(digits)?)),
        None if call.text("nextToken").is_empty() => (call.input["startFromHead"] == true, None),
        _ => return Err(token::bad()),
    };
    let wanted = Wanted {
        times_ms: times(call, &group, 0)?,
        beyond,
        forward,
        count_max: call.count("limit", PAGE).min(PAGE),
        bytes_max: PAGE_BYTES,
        scan_max: u64::MAX,
    };
    let everything = Pattern::parse("").map_err(|e| invalid(e.to_string()))?;
    let mut found = read(state, &group, move |s| s == stream, wanted, everything).await?.events;
    if !forward {
        found.reverse();
    }
    // At an end the token stays as it is: callers stop there.
    let here = beyond.unwrap_or(BEGINNING);
    let place = |found: Option<&Found>| token::digits(found.map_or(here, |f| f.at));
    let events: Vec<Value> = found
        .iter()
        .map(|f| {
            let e = &f.event;
            json!({"timestamp": e.timestamp_ms, "message": e.message, "ingestionTime": e.ingested_ms})
        })
        .collect();
    Ok(json!({
        "events": events, "nextForwardToken": format!("f/{}", place(found.last())),
        "nextBackwardToken": format!("b/{}", place(found.first())),
    }))
}

pub(super) async fn filter(state: &State, call: &Call) -> Outcome {
    let group = names::of_call(state, call).await?;
    let pattern = Pattern::parse(call.text("filterPattern")).map_err(|e| invalid(e.to_string()))?;
    let prefix = call.text("logStreamNamePrefix").to_string();
    let listed: Option<BTreeSet<String>> = call.input["logStreamNames"]
        .as_array()
        .map(|list| list.iter().filter_map(|name| name.as_str().map(String::from)).collect());
    if listed.is_some() && !prefix.is_empty() {
        return Err(invalid("LogStreamNames and LogStreamNamePrefix are mutually exclusive parameters."));
    }
    let (store, key) = (state.store.clone(), group.key.clone());
    let streams: BTreeMap<u64, String> =
        blocking(move || store.streams(&key)).await?.into_iter().map(|s| (s.id, s.name)).collect();
    if listed.iter().flatten().any(|name| !streams.values().any(|known| known == name)) {
        return Err(not_found("stream"));
    }
    let wanted = Wanted {
        times_ms: times(call, &group, 1)?,
        beyond: match call.text("nextToken") {
            "" => None,
            digits => Some(token::position(digits)?),
        },
        forward: call.input["startFromHead"] != false,
        count_max: call.count("limit", PAGE).min(PAGE),
        bytes_max: PAGE_BYTES,
        scan_max: SCAN_BYTES,
    };
    let chosen =
        move |name: &str| name.starts_with(&prefix) && listed.as_ref().is_none_or(|l| l.contains(name));
    let page = read(state, &group, chosen, wanted, pattern).await?;
    let event = |f: &Found| {
        let e = &f.event;
        json!({
            "logStreamName": streams.get(&f.at.stream), "timestamp": e.timestamp_ms, "message": e.message,
            "ingestionTime": e.ingested_ms, "eventId": token::digits(f.at),
        })
    };
    let mut out =
        json!({"events": page.events.iter().map(event).collect::<Vec<_>>(), "searchedLogStreams": []});
    if let Some(next) = page.more_beyond {
        out["nextToken"] = json!(token::digits(next));
    }
    Ok(out)
}

pub(super) async fn test_filter(_: &State, call: &Call) -> Outcome {
    let pattern = Pattern::parse(call.text("filterPattern")).map_err(|e| invalid(e.to_string()))?;
    let messages = call.input["logEventMessages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let matches: Vec<Value> = (1..)
        .zip(messages.iter().filter_map(Value::as_str))
        .filter(|(_, message)| pattern.matches(message))
        .map(|(number, message): (u64, &str)| {
            json!({"eventNumber": number, "eventMessage": message, "extractedValues": {}})
        })
        .collect();
    Ok(json!({"matches": matches}))
}
