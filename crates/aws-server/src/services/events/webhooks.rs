//! API destinations (where a webhook is) and connections (how we say who we are there).
//!
//! A connection's `spec` holds its secrets as they are (the store's folder is root's); no answer shows them. Other than
//! AWS, an endpoint may be `http://`. Deliberately not here: OAuth, which is refused.

use super::buses::PAGES;
use super::{State, exists, invalid, not_found};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{copy, items, now, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

pub(super) fn no_destination(name: &str) -> AwsError {
    not_found(format!("An API destination '{name}' does not exist."))
}

fn no_connection(name: &str) -> AwsError {
    not_found(format!("Failed to describe the connection(s). Connection '{name}' does not exist."))
}

fn arn(call: &Call, kind: &str, name: &str) -> String {
    let id = uuid::Uuid::new_v4();
    format!("arn:aws:events:{}:{}:{kind}/{name}/{id}", call.region, call.caller.account)
}

/// The members that an answer shows.
fn only(document: &Value, members: &str) -> Value {
    let mut out = json!({});
    copy(&mut out, document, members);
    out
}

const CONNECTION: &str = "Name ConnectionArn ConnectionState AuthorizationType CreationTime LastModifiedTime";

pub(super) async fn create_connection(state: &State, call: &Call) -> Outcome {
    let (name, kind) = (call.text("Name"), call.text("AuthorizationType"));
    let needed = match kind {
        "BASIC" => "BasicAuthParameters",
        "API_KEY" => "ApiKeyAuthParameters",
        _ => return Err(invalid("Gantry knows the authorization types BASIC and API_KEY.")),
    };
    let parameters = &call.input["AuthParameters"];
    if parameters[needed].is_null() {
        return Err(invalid(format!("{needed} must be specified for authorization type {kind}.")));
    }
    let spec = json!({"Name": name, "ConnectionArn": arn(call, "connection", name), "ConnectionState": "AUTHORIZED",
        "AuthorizationType": kind, "AuthParameters": parameters, "Description": call.input["Description"],
        "CreationTime": now(call), "LastModifiedTime": now(call), "LastAuthorizedTime": now(call)});
    match state.connections.create(call, name, spec.clone()).await? {
        true => Ok(only(&spec, "ConnectionArn ConnectionState CreationTime LastModifiedTime")),
        false => Err(exists(format!("Connection '{name}' already exists."))),
    }
}

pub(super) async fn delete_connection(state: &State, call: &Call) -> Outcome {
    let name = call.text("Name");
    let spec = state.connections.get(call, name).await?.ok_or_else(|| no_connection(name))?;
    state.connections.remove(call, name).await?;
    let mut out = only(&spec, "ConnectionArn CreationTime LastModifiedTime LastAuthorizedTime");
    out["ConnectionState"] = json!("DELETING");
    Ok(out)
}

pub(super) async fn describe_connection(state: &State, call: &Call) -> Outcome {
    let name = call.text("Name");
    let spec = state.connections.get(call, name).await?.ok_or_else(|| no_connection(name))?;
    let mut out = only(&spec, CONNECTION);
    let given = &spec["AuthParameters"];
    out["AuthParameters"] = match text(&spec, "AuthorizationType") {
        "BASIC" => {
            json!({"BasicAuthParameters": {"Username": given["BasicAuthParameters"]["Username"]}})
        }
        _ => json!({"ApiKeyAuthParameters": {"ApiKeyName": given["ApiKeyAuthParameters"]["ApiKeyName"]}}),
    };
    out["Description"] = spec["Description"].clone();
    Ok(out)
}

pub(super) async fn list_connections(state: &State, call: &Call) -> Outcome {
    let mut all = state.connections.list(call).await?;
    all.retain(|c| text(c, "Name").starts_with(call.text("NamePrefix")));
    let wanted = call.text("ConnectionState");
    all.retain(|c| wanted.is_empty() || text(c, "ConnectionState") == wanted);
    PAGES.answer(call, "Connections", all.iter().map(|c| only(c, CONNECTION)).collect(), "Name")
}

/// What may be said about a destination.
const SAID: &str = "ConnectionArn InvocationEndpoint HttpMethod InvocationRateLimitPerSecond Description";

fn endpoint(call: &Call) -> Result<(), AwsError> {
    let url = call.text("InvocationEndpoint");
    if url.is_empty() || url.starts_with("https://") || url.starts_with("http://") {
        return Ok(());
    }
    Err(invalid("Parameter InvocationEndpoint is not valid. Reason: it is no http or https URL."))
}

/// The name of the connection with that ARN, if it is there.
async fn connection(state: &State, call: &Call) -> Result<(), AwsError> {
    let arn = call.text("ConnectionArn");
    let name = arn.split('/').nth(1).unwrap_or_default();
    match state.connections.get(call, name).await? {
        Some(spec) if text(&spec, "ConnectionArn") == arn => Ok(()),
        _ => Err(no_connection(name)),
    }
}

const ANSWER: &str = "ApiDestinationArn ApiDestinationState CreationTime LastModifiedTime";

pub(super) async fn create_destination(state: &State, call: &Call) -> Outcome {
    endpoint(call)?;
    connection(state, call).await?;
    let name = call.text("Name");
    let mut spec = only(&call.input, SAID);
    spec["Name"] = json!(name);
    spec["ApiDestinationArn"] = json!(arn(call, "api-destination", name));
    spec["ApiDestinationState"] = json!("ACTIVE");
    spec["CreationTime"] = now(call);
    spec["LastModifiedTime"] = now(call);
    match state.destinations.create(call, name, spec.clone()).await? {
        true => Ok(only(&spec, ANSWER)),
        false => Err(exists(format!("An API destination '{name}' already exists."))),
    }
}

pub(super) async fn update_destination(state: &State, call: &Call) -> Outcome {
    endpoint(call)?;
    if !call.input["ConnectionArn"].is_null() {
        connection(state, call).await?;
    }
    let name = call.text("Name");
    let changed = state.destinations.change(call, name, |spec| {
        copy(spec, &call.input, SAID);
        spec["LastModifiedTime"] = now(call);
        Ok(only(spec, ANSWER))
    });
    changed.await?.ok_or_else(|| no_destination(name))
}

pub(super) async fn delete_destination(state: &State, call: &Call) -> Outcome {
    let name = call.text("Name");
    let rules = state.rules.list(call).await?;
    let spec = state.destinations.get(call, name).await?.ok_or_else(|| no_destination(name))?;
    let used = |r: &Value| items(&r["Targets"]).iter().any(|t| t["Arn"] == spec["ApiDestinationArn"]);
    refuse_if(rules.iter().any(used), || {
        invalid(format!("API destination '{name}' can't be deleted since it is a rule's target."))
    })?;
    state.destinations.remove(call, name).await?;
    Ok(json!({}))
}

pub(super) async fn describe_destination(state: &State, call: &Call) -> Outcome {
    let name = call.text("Name");
    state.destinations.get(call, name).await?.ok_or_else(|| no_destination(name))
}

pub(super) async fn list_destinations(state: &State, call: &Call) -> Outcome {
    let mut all = state.destinations.list(call).await?;
    all.retain(|d| text(d, "Name").starts_with(call.text("NamePrefix")));
    let connection = call.text("ConnectionArn");
    all.retain(|d| connection.is_empty() || text(d, "ConnectionArn") == connection);
    all.iter_mut().for_each(|d| drop(d.as_object_mut().map(|o| o.remove("Description"))));
    PAGES.answer(call, "ApiDestinations", all, "Name")
}
