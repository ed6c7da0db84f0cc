//! Tags of namespaces and services.

use super::State;
use super::find::{id_of, invalid};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{Kept, items};
use crate::services::tags;
use serde_json::json;

fn located<'a>(state: &'a State, call: &'a Call) -> Result<(&'a Kept, &'a str), AwsError> {
    let arn = call.text("ResourceARN");
    match id_of(arn) {
        id if id.starts_with("ns-") => Ok((&state.namespaces, id)),
        id if id.starts_with("srv-") => Ok((&state.services, id)),
        _ => Err(invalid(format!("Invalid resource ARN: {arn}"))),
    }
}

fn missing(call: &Call) -> AwsError {
    let words = format!("Resource not found: {}", call.text("ResourceARN"));
    AwsError::client("ResourceNotFoundException", words)
}

/// TagResource, UntagResource.
pub(super) async fn tag(state: &State, call: &Call) -> Outcome {
    let (kept, id) = located(state, call)?;
    let changed = kept.change(call, id, |spec| tags::change(spec, call, tags::MEMBERS)).await;
    changed?.ok_or_else(|| missing(call))
}

/// ListTagsForResource.
pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let (kept, id) = located(state, call)?;
    let spec = kept.get(call, id).await?.ok_or_else(|| missing(call))?;
    Ok(json!({"Tags": items(&spec["Tags"])}))
}
