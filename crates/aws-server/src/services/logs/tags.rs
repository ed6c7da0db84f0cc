//! Tags of log groups, by name or by ARN.

use super::groups::change;
use super::names::{self, Group};
use super::{State, invalid};
use crate::service::{AwsError, Call, Outcome};
use ecs_model::refusal::refuse_if;
use serde_json::{Map, Value, json};

/// Tags of a group (AWS's limit).
const TAGS_MAX: usize = 50;

/// The group of a call that names it, or its ARN.
async fn meant(state: &State, call: &Call) -> Result<Group, AwsError> {
    let arn = call.text("resourceArn");
    if let Some(name) = call.input["logGroupName"].as_str() {
        return names::find(state, call, name).await;
    }
    refuse_if(!arn.starts_with("arn:"), || invalid("The specified resource ARN is invalid."))?;
    names::find(state, call, names::name_of(arn)?).await
}

/// TagResource, TagLogGroup.
pub(super) async fn tag(state: &State, call: &Call) -> Outcome {
    let group = meant(state, call).await?;
    let new = call.input["tags"].as_object().cloned().unwrap_or_default();
    let mut all = group.spec["tags"].as_object().cloned().unwrap_or_default();
    all.extend(new.clone());
    refuse_if(all.len() > TAGS_MAX, || {
        AwsError::client("TooManyTagsException", format!("A resource can have no more than {TAGS_MAX} tags."))
    })?;
    change(state, &group, json!({"tags": new})).await
}

/// UntagResource, UntagLogGroup.
pub(super) async fn untag(state: &State, call: &Call) -> Outcome {
    let group = meant(state, call).await?;
    let names = call.input["tagKeys"].as_array().or_else(|| call.input["tags"].as_array());
    let gone = |name: &Value| Some((name.as_str()?.to_string(), Value::Null));
    let gone: Map<String, Value> = names.into_iter().flatten().filter_map(gone).collect();
    change(state, &group, json!({"tags": gone})).await
}

/// ListTagsForResource, ListTagsLogGroup.
pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let tags = &meant(state, call).await?.spec["tags"];
    Ok(json!({"tags": tags.as_object().cloned().unwrap_or_default()}))
}
