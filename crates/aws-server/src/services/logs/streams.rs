//! Log streams: create, delete, list.

use super::names;
use super::{State, blocking, invalid, token};
use crate::service::{Call, Outcome};
use logs::StreamInfo;
use serde_json::{Value, json};

/// Streams in a page when the caller does not say, and at most.
const PAGE: usize = 50;
/// What AWS shows where sequence tokens were.
pub(super) const SEQUENCE_TOKEN: &str = "49039859596097180446312345678901234567890123456789012345";

pub(super) async fn create(state: &State, call: &Call) -> Outcome {
    let group = names::find(state, call, call.text("logGroupName")).await?;
    let (store, name, now_ms) = (state.store.clone(), call.text("logStreamName").to_string(), call.now_ms);
    blocking(move || store.create_stream(&group.key, &name, now_ms)).await?;
    Ok(json!({}))
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let group = names::find(state, call, call.text("logGroupName")).await?;
    let (store, name) = (state.store.clone(), call.text("logStreamName").to_string());
    blocking(move || store.delete_stream(&group.key, &name)).await?;
    Ok(json!({}))
}

/// What streams are ordered by: fixed width, so that texts sort as the numbers do.
fn sort_key(stream: &StreamInfo, by_time: bool) -> String {
    match by_time {
        true => format!("{:020}/{}", stream.last_ms.unwrap_or(0), stream.name),
        false => stream.name.clone(),
    }
}

pub(super) async fn describe(state: &State, call: &Call) -> Outcome {
    let prefix = call.text("logStreamNamePrefix").to_string();
    let by_time = call.text("orderBy") == "LastEventTime";
    if by_time && !prefix.is_empty() {
        return Err(invalid("Cannot order by LastEventTime with a logStreamNamePrefix."));
    }
    let descending = call.input["descending"] == true;
    let group = names::of_call(state, call).await?;
    let (store, key) = (state.store.clone(), group.key.clone());
    let mut streams = blocking(move || store.streams(&key)).await?;
    streams.retain(|s| s.name.starts_with(&prefix));
    streams.sort_by_cached_key(|s| sort_key(s, by_time));
    if descending {
        streams.reverse();
    }
    let kind = format!("streams {by_time} {descending}");
    let limit = call.count("limit", PAGE);
    let begin = match token::last(&kind, call.text("nextToken"))? {
        None => 0,
        Some(last) => {
            let is_beyond = |s: &StreamInfo| {
                let key = sort_key(s, by_time);
                if descending { key < last } else { key > last }
            };
            streams.iter().position(is_beyond).unwrap_or(streams.len())
        }
    };
    let page: Vec<&StreamInfo> = streams.iter().skip(begin).take(limit).collect();
    let arn = group.arn();
    let mut out = json!({"logStreams": page.iter().map(|s| document(&arn, s)).collect::<Vec<_>>()});
    if streams.len() > begin + limit
        && let Some(last) = page.last()
    {
        out["nextToken"] = json!(token::after(&kind, &sort_key(last, by_time)));
    }
    Ok(out)
}

fn document(group_arn: &str, stream: &StreamInfo) -> Value {
    let mut out = json!({
        "logStreamName": stream.name, "creationTime": stream.created_ms,
        "arn": format!("{group_arn}:log-stream:{}", stream.name),
        // AWS says 0 for every stream since 2019.
        "storedBytes": 0, "uploadSequenceToken": SEQUENCE_TOKEN,
    });
    let times = [
        ("firstEventTimestamp", stream.first_ms),
        ("lastEventTimestamp", stream.last_ms),
        ("lastIngestionTime", stream.last_ingested_ms),
    ];
    for (member, time) in times {
        if let Some(time) = time {
            out[member] = json!(time);
        }
    }
    out
}
