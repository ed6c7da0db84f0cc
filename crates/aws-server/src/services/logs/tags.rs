//! Tags of log groups, by name or by ARN.

use super::groups::change;
use super::names::{self, Group, text};
use super::{State, invalid};
use crate::service::{AwsError, Call, Outcome};
use serde_json::{Map, Value, json};

/// Tags of a group (AWS's limit).
const TAGS_MAX: usize = 50;

async fn by_arn(state: &State, call: &Call) -> Result<Group, AwsError> {
    let arn = text(call, "resourceArn");
    if !arn.starts_with("arn:") {
        return Err(invalid("The specified resource ARN is invalid."));
    }
    names::find(state, call, names::name_of(arn)?).await
}

async fn set(state: &State, call: &Call, group: &Group) -> Outcome {
    let new = call.input["tags"].as_object().cloned().unwrap_or_default();
    let mut all = group.spec["tags"].as_object().cloned().unwrap_or_default();
    all.extend(new.clone());
    if all.len() > TAGS_MAX {
        let text = format!("A resource can have no more than {TAGS_MAX} tags.");
        return Err(AwsError::client("TooManyTagsException", text));
    }
    change(state, group, json!({"tags": new})).await
}

async fn unset(state: &State, call: &Call, member: &str, group: &Group) -> Outcome {
    let names = call.input[member].as_array().map(Vec::as_slice).unwrap_or_default();
    let gone: Map<String, Value> =
        names.iter().filter_map(|name| Some((name.as_str()?.to_string(), Value::Null))).collect();
    change(state, group, json!({"tags": gone})).await
}

fn document(group: &Group) -> Value {
    json!({"tags": group.spec["tags"].as_object().cloned().unwrap_or_default()})
}

pub(super) async fn tag_group(state: &State, call: &Call) -> Outcome {
    set(state, call, &names::find(state, call, text(call, "logGroupName")).await?).await
}

pub(super) async fn untag_group(state: &State, call: &Call) -> Outcome {
    unset(state, call, "tags", &names::find(state, call, text(call, "logGroupName")).await?).await
}

pub(super) async fn list_group(state: &State, call: &Call) -> Outcome {
    Ok(document(&names::find(state, call, text(call, "logGroupName")).await?))
}

pub(super) async fn tag(state: &State, call: &Call) -> Outcome {
    set(state, call, &by_arn(state, call).await?).await
}

pub(super) async fn untag(state: &State, call: &Call) -> Outcome {
    unset(state, call, "tagKeys", &by_arn(state, call).await?).await
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    Ok(document(&by_arn(state, call).await?))
}
