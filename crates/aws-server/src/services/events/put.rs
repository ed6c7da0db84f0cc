//! PutEvents and TestEventPattern.

use super::buses::{self, DEFAULT};
use super::{Event, Pattern, State, invalid};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::text;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Bytes of all entries of a call together: AWS's limit.
const BYTES_MAX: usize = 1 << 20;

/// Why an entry is not taken.
fn refusal(entry: &Value) -> Option<(&'static str, String)> {
    for member in ["Source", "DetailType", "Detail"] {
        if text(entry, member).is_empty() {
            let words = format!("Parameter {member} is not valid. Reason: {member} is a required argument.");
            return Some(("InvalidArgument", words));
        }
    }
    if text(entry, "Source").starts_with("aws.") {
        return Some(("NotAuthorizedForSourceException", "Not authorized for the source.".into()));
    }
    match serde_json::from_str::<Value>(text(entry, "Detail")) {
        Ok(Value::Object(_)) => None,
        _ => Some(("MalformedDetail", "Detail is malformed.".into())),
    }
}

/// The event of an entry.
fn event(call: &Call, bus: &str, id: &str, entry: &Value) -> Event {
    let now = i64::try_from(call.now_ms / 1000).unwrap_or_default();
    let seconds = entry["Time"].as_f64().map_or(now, |t| t as i64);
    let detail: Value = serde_json::from_str(text(entry, "Detail")).unwrap_or_default();
    Event {
        account: call.caller.account.clone(),
        region: call.region.clone(),
        bus: bus.to_string(),
        document: json!({
            "version": "0", "id": id, "detail-type": text(entry, "DetailType"), "source": text(entry, "Source"),
            "account": call.caller.account, "region": call.region,
            "time": machinery::time::format(Timestamp::from_second(seconds).unwrap_or_default()),
            "resources": entry["Resources"].as_array().cloned().unwrap_or_default(), "detail": detail,
        }),
    }
}

pub(super) async fn put(state: &State, call: &Call) -> Outcome {
    let entries = call.input["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
    let size = |e: &Value| ["Source", "DetailType", "Detail"].iter().map(|m| text(e, m).len()).sum::<usize>();
    if entries.iter().map(size).sum::<usize>() > BYTES_MAX {
        return Err(invalid("Total size of the entries in the request is over the limit."));
    }
    let (mut rows, mut failed) = (Vec::new(), 0);
    for entry in entries {
        if let Some((code, words)) = refusal(entry) {
            failed += 1;
            rows.push(json!({"ErrorCode": code, "ErrorMessage": words}));
            continue;
        }
        let bus = buses::name_of(text(entry, "EventBusName"));
        let id = uuid::Uuid::new_v4().to_string();
        // As on AWS: an event for a bus that is not there is accepted, and gone.
        if bus == DEFAULT || state.buses.get(call, bus).await?.is_some() {
            state.engine.publish(&event(call, bus, &id, entry));
        }
        rows.push(json!({"EventId": id}));
    }
    Ok(json!({"FailedEntryCount": failed, "Entries": rows}))
}

pub(super) async fn test(_: &State, call: &Call) -> Outcome {
    let pattern = Pattern::parse(call.text("EventPattern"));
    let pattern = pattern.map_err(|e| AwsError::client("InvalidEventPatternException", e.to_string()))?;
    let event: Value = serde_json::from_str(call.text("Event"))
        .map_err(|e| invalid(format!("Parameter Event is not valid. Reason: {e}")))?;
    let needed = ["id", "account", "source", "time", "region", "resources", "detail-type"];
    if let Some(missing) = needed.iter().find(|m| event[**m].is_null()) {
        return Err(invalid(format!("Parameter Event is not valid. Reason: {missing} is missing.")));
    }
    Ok(json!({"Result": pattern.matches(&event)}))
}
