//! Ids and ARNs, what they name, and pages of lists.

use super::State;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{Pages, items, text};
use ecs_model::names::Arn;
use serde_json::Value;

pub(super) const PAGES: Pages = Pages {
    asks: ("MaxResults", "NextToken"),
    next: "NextToken",
    rows: 100,
    refusal: ("InvalidInput", "Invalid next token"),
};

/// `InvalidInput`.
pub(super) fn invalid(words: impl Into<String>) -> AwsError {
    AwsError::client("InvalidInput", words)
}

pub(super) fn no_namespace(id: &str) -> AwsError {
    AwsError::client("NamespaceNotFound", format!("Namespace not found: {id}"))
}

pub(super) fn no_service(id: &str) -> AwsError {
    AwsError::client("ServiceNotFound", format!("Service not found: {id}"))
}

pub(super) fn no_instance(id: &str) -> AwsError {
    AwsError::client("InstanceNotFound", format!("Instance not found: {id}"))
}

/// A new id: a prefix and 16 digits and letters.
pub(super) fn new_id(prefix: &str) -> String {
    let digits = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}{}", digits.get(..16).unwrap_or(&digits))
}

pub(super) fn arn(call: &Call, resource: &str) -> String {
    format!("arn:aws:servicediscovery:{}:{}:{resource}", call.region, call.caller.account)
}

/// The id in an id or an ARN.
pub(super) fn id_of(given: &str) -> &str {
    Arn::parse(given).and_then(|a| a.resource.rsplit('/').next()).unwrap_or(given)
}

/// Objects are named by ids of these letters only.
fn is_id(id: &str, prefix: &str) -> bool {
    id.starts_with(prefix) && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A namespace by id or ARN.
pub(super) async fn namespace(state: &State, call: &Call, given: &str) -> Outcome {
    let id = id_of(given);
    let found = if is_id(id, "ns-") { state.namespaces.get(call, id).await? } else { None };
    found.ok_or_else(|| no_namespace(given))
}

/// A service by id or ARN.
pub(super) async fn service(state: &State, call: &Call, given: &str) -> Outcome {
    let id = id_of(given);
    let found = if is_id(id, "srv-") { state.services.get(call, id).await? } else { None };
    found.ok_or_else(|| no_service(given))
}

/// The instances of a service, by id.
pub(super) async fn instances(state: &State, call: &Call, service: &str) -> Result<Vec<Value>, AwsError> {
    let mut all = state.instances.list(call).await?;
    all.retain(|i| text(i, "ServiceId") == service);
    all.sort_by(|a, b| text(a, "Id").cmp(text(b, "Id")));
    Ok(all)
}

/// Do the call's filters fit? `value` knows a filter's own text of a row.
pub(super) fn fits<'a>(call: &Call, value: impl Fn(&str) -> &'a str) -> bool {
    call.items("Filters").iter().all(|filter| {
        let own = value(text(filter, "Name"));
        let values = items(&filter["Values"]).iter().filter_map(Value::as_str);
        match text(filter, "Condition") {
            "BEGINS_WITH" => values.into_iter().any(|v| own.starts_with(v)),
            _ => values.into_iter().any(|v| own == v),
        }
    })
}

/// A document without members that are null, as JSON answers have it.
pub(super) fn bare(mut document: Value) -> Value {
    ecs_model::doc::drop_nulls(&mut document);
    document
}
