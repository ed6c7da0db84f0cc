//! Tags of rules and buses, by ARN.

use super::rules::unknown;
use super::{State, buses, invalid};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::Kept;
use crate::services::tags;
use ecs_model::names::Arn;
use serde_json::json;

/// Which objects, and the name there.
fn of_call<'a>(state: &'a State, call: &'a Call) -> Result<(&'a Kept, &'a str), AwsError> {
    let parsed = Arn::parse(call.text("ResourceARN")).and_then(|a| a.resource.split_once('/'));
    match parsed {
        Some(("rule", name)) => Ok((&state.rules, name)),
        Some(("event-bus", name)) => Ok((&state.buses, name)),
        _ => {
            Err(invalid("Parameter ResourceARN is not valid. Reason: Provided Arn is not in correct format."))
        }
    }
}

/// TagResource, UntagResource.
pub(super) async fn tag(state: &State, call: &Call) -> Outcome {
    let (kept, name) = of_call(state, call)?;
    let changed = kept.change(call, name, |spec| tags::change(spec, call, tags::MEMBERS)).await;
    changed?.ok_or_else(|| unknown(buses::DEFAULT, name))
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let (kept, name) = of_call(state, call)?;
    let spec = kept.get(call, name).await?.ok_or_else(|| unknown(buses::DEFAULT, name))?;
    Ok(json!({"Tags": spec["Tags"].as_array().cloned().unwrap_or_default()}))
}
