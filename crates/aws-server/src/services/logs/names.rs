//! A log group by name or ARN: its object, its key in the store, its ARNs.

use super::{State, invalid, not_found, unavailable};
use crate::service::{AwsError, Call};
use client::ObjectKey;
use ecs_model::names::{AWS_NAMESPACE, Arn, Place, Scope};
use k8s_schema::gvr::LOG_GROUPS;
use machinery::status::ApiError;
use serde_json::Value;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// A group that is there.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Its name.
    pub name: String,
    /// Its object's name, and its key in the store.
    pub key: String,
    /// Its facts.
    pub spec: Value,
}

impl Group {
    /// How long events are kept.
    pub fn retention_ms(&self) -> Option<u64> {
        self.spec["retentionInDays"].as_u64().map(|days| days * DAY_MS)
    }

    /// The earliest time that is still kept.
    pub fn oldest_ms(&self, now_ms: u64) -> u64 {
        self.retention_ms().map_or(0, |kept| now_ms.saturating_sub(kept))
    }

    /// The group's ARN, without the `:*` that some members have.
    pub fn arn(&self) -> String {
        let part = |member: &str| self.spec[member].as_str().unwrap_or_default();
        format!("arn:aws:logs:{}:{}:log-group:{}", part("region"), part("account"), self.name)
    }
}

fn scope(state: &State, account: &str, region: &str) -> Scope {
    let defaults = Place::new(state.shared.account.as_str(), state.shared.region.as_str());
    Scope { place: Place::new(account, region), defaults }
}

/// The object's name of a group in an account and region.
pub(super) fn key_of(state: &State, (account, region): (&str, &str), name: &str) -> String {
    scope(state, account, region).object_name(name)
}

/// The object's key.
pub(super) fn object_key(key: &str) -> ObjectKey {
    ObjectKey::new(AWS_NAMESPACE, key)
}

/// The group's name in a name or an ARN.
pub(super) fn name_of(identifier: &str) -> Result<&str, AwsError> {
    if !identifier.starts_with("arn:") {
        return Ok(identifier);
    }
    let name = Arn::parse(identifier)
        .filter(|arn| arn.service == "logs")
        .and_then(|arn| arn.resource.strip_prefix("log-group:"))
        .map(|name| name.strip_suffix(":*").unwrap_or(name));
    name.ok_or_else(|| invalid("The specified resource ARN is invalid."))
}

/// What the call's `logGroupName` or `logGroupIdentifier` names.
pub(super) async fn of_call(state: &State, call: &Call) -> Result<Group, AwsError> {
    let (name, identifier) = (call.text("logGroupName"), call.text("logGroupIdentifier"));
    match (name, identifier) {
        ("", "") => Err(invalid("Either logGroupName or logGroupIdentifier must be specified.")),
        (name, "") => find(state, call, name).await,
        ("", identifier) => find(state, call, name_of(identifier)?).await,
        _ => Err(invalid("LogGroup name and LogGroup ARN are mutually exclusive parameters.")),
    }
}

/// A group by its name.
pub(super) async fn find(state: &State, call: &Call, name: &str) -> Result<Group, AwsError> {
    find_in(state, (&call.caller.account, &call.region), name).await
}

/// The same in an account and region.
pub(super) async fn find_in(state: &State, place: (&str, &str), name: &str) -> Result<Group, AwsError> {
    let key = key_of(state, place, name);
    let object =
        state.shared.client.get(&LOG_GROUPS, &object_key(&key)).await.map_err(|e| group_error(&e))?;
    let group = from_value(&key, object.value().map_err(|e| unavailable(&e))?);
    if group.name == name { Ok(group) } else { Err(not_found("group")) }
}

/// A group from its object.
pub(super) fn from_value(key: &str, mut object: Value) -> Group {
    let spec = object["spec"].take();
    Group { name: spec["logGroupName"].as_str().unwrap_or_default().into(), key: key.into(), spec }
}

/// An error of the API about a group's object.
pub(super) fn group_error(error: &ApiError) -> AwsError {
    if error.is_not_found() { not_found("group") } else { unavailable(error) }
}
