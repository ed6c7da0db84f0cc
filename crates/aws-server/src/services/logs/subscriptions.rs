//! Subscription filters: kept and shown; nothing is delivered yet.

use super::groups::change;
use super::names;
use super::{State, invalid, token};
use crate::service::{AwsError, Call, Outcome};
use ecs_model::refusal::refuse_if;
use logs::Pattern;
use serde_json::{Map, Value, json};

/// Filters of a group (AWS's limit).
const FILTERS_MAX: usize = 2;
const PAGE: usize = 50;

pub(super) async fn put(state: &State, call: &Call) -> Outcome {
    Pattern::parse(call.text("filterPattern")).map_err(|e| invalid(e.to_string()))?;
    let group = names::find(state, call, call.text("logGroupName")).await?;
    let name = call.text("filterName");
    let known = group.spec["subscriptionFilters"].as_object();
    let is_new = known.is_none_or(|filters| !filters.contains_key(name));
    if is_new && known.map_or(0, Map::len) >= FILTERS_MAX {
        return Err(AwsError::client("LimitExceededException", "Resource limit exceeded."));
    }
    let mut filter = call.input.clone();
    filter["creationTime"] = json!(call.now_ms);
    if filter["distribution"].is_null() {
        filter["distribution"] = json!("ByLogStream");
    }
    change(state, &group, json!({"subscriptionFilters": {name: filter}})).await
}

pub(super) async fn describe(state: &State, call: &Call) -> Outcome {
    let group = names::find(state, call, call.text("logGroupName")).await?;
    let prefix = call.text("filterNamePrefix");
    let filters = group.spec["subscriptionFilters"].as_object().cloned().unwrap_or_default();
    let list: Vec<Value> =
        filters.into_iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, filter)| filter).collect();
    let limit = call.count("limit", PAGE);
    let name = |filter: &Value| filter["filterName"].as_str().unwrap_or_default().to_string();
    let (page, next) = token::page("filters", call.text("nextToken"), limit, list, name)?;
    Ok(json!({"subscriptionFilters": page, "nextToken": next}))
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let group = names::find(state, call, call.text("logGroupName")).await?;
    let name = call.text("filterName");
    refuse_if(group.spec["subscriptionFilters"][name].is_null(), || {
        AwsError::client("ResourceNotFoundException", "The specified subscription filter does not exist.")
    })?;
    change(state, &group, json!({"subscriptionFilters": {name: null}})).await
}
