//! Log groups: create, delete, list, retention.

use super::homes;
use super::names::{self, Group, group_error};
use super::{State, blocking, exists, invalid, token, unavailable};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::copy;
use client::{DeleteOptions, ListOptions};
use ecs_model::names::AWS_NAMESPACE;
use ecs_model::refusal::refuse_if;
use k8s_schema::gvr::LOG_GROUPS;
use serde_json::{Value, json};

/// Groups in a page of DescribeLogGroups and ListLogGroups when the caller does not say.
const PAGE: usize = 50;
/// Days that a retention may have.
const RETENTION_DAYS: [u64; 22] =
    [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653];

pub(super) async fn create(state: &State, call: &Call) -> Outcome {
    let name = call.text("logGroupName");
    let place = (call.caller.account.as_str(), call.region.as_str());
    let mut facts = call.input.clone();
    facts["creationTime"] = json!(call.now_ms);
    make(state, place, name, facts).await?;
    Ok(json!({}))
}

/// Makes a group with these facts.
pub(super) async fn make(state: &State, place: (&str, &str), name: &str, mut facts: Value) -> Outcome {
    refuse_if(name.starts_with("aws/"), || invalid("Log groups starting with AWS/ are reserved for AWS."))?;
    let key = names::key_of(state, place, name);
    let found = names::find_in(state, place, name).await;
    refuse_if(found.is_ok(), || exists("group"))?;
    // Events of a former group of that name whose deletion was interrupted.
    let (store, old) = (state.store.clone(), key.clone());
    blocking(move || store.delete_group(&old)).await?;
    if facts["logGroupClass"].is_null() {
        facts["logGroupClass"] = json!("STANDARD");
    }
    (facts["account"], facts["region"]) = (json!(place.0), json!(place.1));
    if let Some(peers) = &state.peers {
        facts["home"] = json!(peers.own());
    }
    let body = json!({
        "apiVersion": "logs.gantry.dev/v1", "kind": "LogGroup",
        "metadata": {"namespace": AWS_NAMESPACE, "name": key}, "spec": facts,
    });
    match state.shared.client.create(&LOG_GROUPS, body).await {
        Ok(_) => Ok(json!({})),
        Err(error) if error.code == 409 => Err(exists("group")),
        Err(error) => Err(unavailable(&error)),
    }
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let group = names::find(state, call, call.text("logGroupName")).await?;
    if group.spec["deletionProtectionEnabled"] == true {
        let text = "The log group cannot be deleted because deletion protection is enabled.";
        return Err(AwsError::client("ValidationException", text));
    }
    let object = names::object_key(&group.key);
    state
        .shared
        .client
        .delete(&LOG_GROUPS, &object, DeleteOptions::default())
        .await
        .map_err(|e| group_error(&e))?;
    let store = state.store.clone();
    blocking(move || store.delete_group(&group.key)).await?;
    Ok(json!({}))
}

/// All groups of the caller's account and region, by name.
async fn all(state: &State, call: &Call) -> Result<Vec<Group>, AwsError> {
    let mut groups = everywhere(state).await?;
    groups.retain(|g| {
        g.spec["account"] == call.caller.account.as_str() && g.spec["region"] == call.region.as_str()
    });
    groups.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(groups)
}

async fn everywhere(state: &State) -> Result<Vec<Group>, AwsError> {
    let options = ListOptions { namespace: Some(AWS_NAMESPACE.into()), ..ListOptions::default() };
    let found = state.shared.client.list(&LOG_GROUPS, &options).await.map_err(|e| unavailable(&e))?;
    let group = |object: &std::sync::Arc<client::Object>| {
        object.value().ok().map(|value| names::from_value(&object.key.name, value))
    };
    Ok(found.items.iter().filter_map(group).collect())
}

pub(super) async fn describe(state: &State, call: &Call) -> Outcome {
    let (prefix, pattern) = (call.text("logGroupNamePrefix"), call.text("logGroupNamePattern"));
    refuse_if(!prefix.is_empty() && !pattern.is_empty(), || {
        invalid("LogGroup name prefix and LogGroup name pattern are mutually exclusive parameters.")
    })?;
    let mut groups = all(state, call).await?;
    let pattern = pattern.to_lowercase();
    groups.retain(|g| g.name.starts_with(prefix) && g.name.to_lowercase().contains(&pattern));
    if let Some(class) = call.input["logGroupClass"].as_str() {
        groups.retain(|g| g.spec["logGroupClass"] == class);
    }
    if let Some(list) = call.input["logGroupIdentifiers"].as_array() {
        let wanted: Vec<&str> = list.iter().filter_map(|i| names::name_of(i.as_str()?).ok()).collect();
        groups.retain(|g| wanted.contains(&g.name.as_str()));
    }
    let (page, next) =
        token::page("groups", call.text("nextToken"), call.count("limit", PAGE), groups, |g| g.name.clone())?;
    let store = state.store.clone();
    let elsewhere = homes::bytes(state, call, &page).await;
    let described = blocking(move || {
        page.iter()
            .map(|group| {
                let bytes = store.streams(&group.key)?.iter().map(|s| s.bytes).sum();
                let bytes = elsewhere.get(&group.name).and_then(Value::as_u64).unwrap_or(bytes);
                Ok(document(group, bytes))
            })
            .collect::<Result<Vec<Value>, logs::LogsError>>()
    });
    Ok(json!({"logGroups": described.await?, "nextToken": next}))
}

fn document(group: &Group, bytes: u64) -> Value {
    let arn = group.arn();
    let mut out = json!({
        "logGroupName": group.name, "arn": format!("{arn}:*"), "logGroupArn": arn,
        "metricFilterCount": 0, "storedBytes": bytes,
    });
    let members = "creationTime retentionInDays kmsKeyId logGroupClass deletionProtectionEnabled";
    copy(&mut out, &group.spec, members);
    out
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let mut groups = all(state, call).await?;
    let pattern = call.text("logGroupNamePattern");
    let fits = |name: &str, part: &str| match part.strip_prefix('^') {
        Some(start) => name.starts_with(start),
        None => name.contains(part),
    };
    groups.retain(|g| pattern.is_empty() || pattern.split('|').any(|part| fits(&g.name, part)));
    if let Some(class) = call.input["logGroupClass"].as_str() {
        groups.retain(|g| g.spec["logGroupClass"] == class);
    }
    let (page, next) =
        token::page("groups", call.text("nextToken"), call.count("limit", PAGE), groups, |g| g.name.clone())?;
    let row = |g: &Group| json!({"logGroupName": g.name, "logGroupArn": g.arn(), "logGroupClass": g.spec["logGroupClass"]});
    Ok(json!({"logGroups": page.iter().map(row).collect::<Vec<_>>(), "nextToken": next}))
}

/// Changes a group's facts by a merge patch.
pub(super) async fn change(state: &State, group: &Group, spec: Value) -> Outcome {
    let key = names::object_key(&group.key);
    let patched = state.shared.client.merge_patch(&LOG_GROUPS, &key, json!({"spec": spec})).await;
    patched.map(|_| json!({})).map_err(|e| group_error(&e))
}

pub(super) async fn put_retention(state: &State, call: &Call) -> Outcome {
    let days = call.input["retentionInDays"].as_u64().unwrap_or(0);
    if !RETENTION_DAYS.contains(&days) {
        let known = RETENTION_DAYS.map(|d| d.to_string()).join(", ");
        return Err(invalid(format!(
            "1 validation error detected: Value '{}' at 'retentionInDays' failed to satisfy constraint: Member must \
             satisfy enum value set: [{known}]",
            call.input["retentionInDays"]
        )));
    }
    let group = names::find(state, call, call.text("logGroupName")).await?;
    change(state, &group, json!({"retentionInDays": days})).await
}

pub(super) async fn delete_retention(state: &State, call: &Call) -> Outcome {
    let group = names::find(state, call, call.text("logGroupName")).await?;
    change(state, &group, json!({"retentionInDays": null})).await
}

/// Drops what the retention of any group has passed.
pub(super) async fn expire_all(state: &State, now_ms: u64) -> Result<usize, AwsError> {
    let mut dropped = 0;
    for group in everywhere(state).await? {
        let oldest = group.oldest_ms(now_ms);
        if oldest > 0 {
            let store = state.store.clone();
            dropped += blocking(move || store.expire(&group.key, oldest)).await?;
        }
    }
    Ok(dropped)
}
