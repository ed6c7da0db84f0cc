//! Event buses: `default` is always there, others are objects.

use super::{State, exists, invalid, not_found};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{Pages, now, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// The one that ECS's events and schedules are on.
pub(super) const DEFAULT: &str = "default";
pub(super) const PAGES: Pages = Pages {
    asks: ("Limit", "NextToken"),
    next: "NextToken",
    rows: 100,
    refusal: ("ValidationException", "Parameter NextToken is not valid."),
};

fn arn(call: &Call, name: &str) -> String {
    format!("arn:aws:events:{}:{}:event-bus/{name}", call.region, call.caller.account)
}

/// The name in a name or ARN; `default` for neither.
pub(super) fn name_of(given: &str) -> &str {
    let name = given.split_once(":event-bus/").map_or(given, |(_, name)| name);
    if name.is_empty() { DEFAULT } else { name }
}

pub(super) fn unknown(name: &str) -> AwsError {
    not_found(format!("Event bus {name} does not exist."))
}

/// The bus that a call names, if it is there.
pub(super) async fn of_call(state: &State, call: &Call) -> Result<String, AwsError> {
    let name = name_of(call.text("EventBusName"));
    refuse_if(name != DEFAULT && state.buses.get(call, name).await?.is_none(), || unknown(name))?;
    Ok(name.to_string())
}

pub(super) async fn create(state: &State, call: &Call) -> Outcome {
    let name = call.text("Name");
    refuse_if(name == DEFAULT || name.contains('/'), || {
        invalid(format!("Parameter Name is not valid. Reason: {name} is reserved or has a slash."))
    })?;
    let arn = arn(call, name);
    let spec = json!({"Name": name, "Arn": arn, "Description": call.input["Description"], "CreationTime": now(call),
        "LastModifiedTime": now(call), "Tags": call.input["Tags"]});
    match state.buses.create(call, name, spec).await? {
        true => Ok(json!({"EventBusArn": arn, "Description": call.input["Description"]})),
        false => Err(exists(format!("Event bus {name} already exists."))),
    }
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let name = call.text("Name");
    refuse_if(name == DEFAULT, || invalid("Cannot delete event bus default."))?;
    let rules = state.rules.list(call).await?;
    if rules.iter().any(|r| text(r, "EventBusName") == name) {
        return Err(invalid(format!("Event bus {name} can't be deleted since it has rules.")));
    }
    state.buses.remove(call, name).await?;
    Ok(json!({}))
}

fn shown(bus: &Value) -> Value {
    let mut out = bus.clone();
    out.as_object_mut().map(|o| o.remove("Tags"));
    out
}

pub(super) async fn describe(state: &State, call: &Call) -> Outcome {
    match name_of(call.text("Name")) {
        DEFAULT => Ok(json!({"Name": DEFAULT, "Arn": arn(call, DEFAULT)})),
        name => Ok(shown(&state.buses.get(call, name).await?.ok_or_else(|| unknown(name))?)),
    }
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let mut all = state.buses.list(call).await?;
    all.push(json!({"Name": DEFAULT, "Arn": arn(call, DEFAULT)}));
    all.retain(|b| text(b, "Name").starts_with(call.text("NamePrefix")));
    PAGES.answer(call, "EventBuses", all.iter().map(shown).collect(), "Name")
}
