//! Tags of rules and buses, by ARN.

use super::rules::unknown;
use super::{State, buses, invalid};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{Kept, text};
use crate::services::tags::{merged, without};
use ecs_model::names::Arn;
use serde_json::{Value, json};

/// Which objects, and the name there.
fn of_call<'a>(state: &'a State, call: &'a Call) -> Result<(&'a Kept, &'a str), AwsError> {
    let parsed = Arn::parse(text(&call.input, "ResourceARN")).and_then(|a| a.resource.split_once('/'));
    match parsed {
        Some(("rule", name)) => Ok((&state.rules, name)),
        Some(("event-bus", name)) => Ok((&state.buses, name)),
        _ => {
            Err(invalid("Parameter ResourceARN is not valid. Reason: Provided Arn is not in correct format."))
        }
    }
}

async fn change(state: &State, call: &Call, new: impl Fn(&Value) -> Value) -> Outcome {
    let (kept, name) = of_call(state, call)?;
    let changed = kept.change(call, name, |spec| {
        spec["Tags"] = new(&spec["Tags"]);
        Ok(())
    });
    changed.await?.ok_or_else(|| unknown(buses::DEFAULT, name))?;
    Ok(json!({}))
}

pub(super) async fn tag(state: &State, call: &Call) -> Outcome {
    change(state, call, |old| merged(old, &call.input["Tags"])).await
}

pub(super) async fn untag(state: &State, call: &Call) -> Outcome {
    change(state, call, |old| without(old, &call.input["TagKeys"])).await
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let (kept, name) = of_call(state, call)?;
    let spec = kept.get(call, name).await?.ok_or_else(|| unknown(buses::DEFAULT, name))?;
    Ok(json!({"Tags": spec["Tags"].as_array().cloned().unwrap_or_default()}))
}
