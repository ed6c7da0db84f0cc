//! Users and their access keys. A key's secret is derived from its id and the instance's master key ([`auth::access`]),
//! so it is shown once and kept nowhere.
//!
//! A user's `spec` is AWS's document plus `Inline` and `Attached`, as a role's. Keys are objects of their own, found by
//! id in the home account, because a signature names nothing else. Deliberately not here: groups, login profiles, MFA.

use super::State;
use super::common::{conflict, exists, id, listing, not_found, path};
use super::role_policies::{has_none, under_path};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{now, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// Access keys of one user (AWS's limit).
const KEYS_MAX: usize = 2;

pub(super) fn no_user(name: &str) -> AwsError {
    not_found(format!("The user with name {name} cannot be found."))
}

fn no_key(id: &str) -> AwsError {
    not_found(format!("The Access Key with id {id} cannot be found."))
}

/// The user that the call names, or the one who calls.
fn named(call: &Call) -> &str {
    match call.text("UserName") {
        "" => call
            .caller
            .arn
            .split_once(":user/")
            .map_or("", |(_, path)| path.rsplit('/').next().unwrap_or(path)),
        name => name,
    }
}

async fn user(state: &State, call: &Call) -> Result<Value, AwsError> {
    let name = named(call);
    refuse_if(name.is_empty(), || {
        AwsError::client("ValidationError", "Must specify userName when calling with non-User credentials")
    })?;
    state.users.get(call, name).await?.ok_or_else(|| no_user(name))
}

fn shown(user: &Value) -> Value {
    let mut out = user.clone();
    ["Inline", "Attached"].iter().for_each(|member| out[*member] = Value::Null);
    out
}

pub(super) async fn create(state: &State, call: &Call) -> Outcome {
    let (name, path, account) = (call.text("UserName"), path(call), &call.caller.account);
    let user = json!({
        "UserName": name, "UserId": id("AIDA", &call.request_id), "Path": path,
        "Arn": format!("arn:aws:iam::{account}:user{path}{name}"), "CreateDate": now(call),
        "Tags": call.input["Tags"], "Inline": {}, "Attached": [],
    });
    match state.users.create(call, name, user.clone()).await? {
        true => Ok(json!({"User": shown(&user)})),
        false => Err(exists("User", name)),
    }
}

pub(super) async fn get(state: &State, call: &Call) -> Outcome {
    Ok(json!({"User": shown(&user(state, call).await?)}))
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let users: Vec<Value> = under_path(call, state.users.list(call).await?).iter().map(shown).collect();
    listing(call, "Users", users, "UserName")
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let user = user(state, call).await?;
    has_none(&user)?;
    if !keys(state, &user).await?.is_empty() {
        return Err(conflict("Cannot delete entity, must delete access keys first."));
    }
    state.users.remove(call, text(&user, "UserName")).await?;
    Ok(json!({}))
}

/// A user's keys, oldest first.
async fn keys(state: &State, user: &Value) -> Result<Vec<Value>, AwsError> {
    let mut keys = state.keys.list(&state.home_call()).await?;
    keys.retain(|key| key["UserArn"] == user["Arn"]);
    keys.sort_by(|a, b| {
        a["CreateDate"].as_f64().unwrap_or(0.0).total_cmp(&b["CreateDate"].as_f64().unwrap_or(0.0))
    });
    Ok(keys)
}

pub(super) async fn create_key(state: &State, call: &Call) -> Outcome {
    let user = user(state, call).await?;
    if keys(state, &user).await?.len() >= KEYS_MAX {
        let words = format!("Cannot exceed quota for AccessKeysPerUser: {KEYS_MAX}");
        return Err(AwsError { status: 409, ..AwsError::client("LimitExceeded", words) });
    }
    let pair = state.access.user_pair().map_err(|error| {
        tracing::error!(%error, "no access key could be made");
        AwsError::server("ServiceFailure", "No access key could be made")
    })?;
    let key = json!({
        "AccessKeyId": pair.access_key, "UserName": user["UserName"], "UserArn": user["Arn"], "UserId": user["UserId"],
        "Account": call.caller.account, "Status": "Active", "CreateDate": now(call),
    });
    state.keys.create(&state.home_call(), &pair.access_key, key.clone()).await?;
    let mut out = key;
    out["SecretAccessKey"] = pair.secret.into();
    Ok(json!({"AccessKey": out}))
}

pub(super) async fn list_keys(state: &State, call: &Call) -> Outcome {
    let keys = keys(state, &user(state, call).await?).await?;
    listing(call, "AccessKeyMetadata", keys, "AccessKeyId")
}

pub(super) async fn update_key(state: &State, call: &Call) -> Outcome {
    let (user, id) = (user(state, call).await?, call.text("AccessKeyId"));
    let home = state.home_call();
    let changed = state.keys.change(&home, id, |key| {
        refuse_if(key["UserArn"] != user["Arn"], || no_key(id))?;
        key["Status"] = call.input["Status"].clone();
        Ok(json!({}))
    });
    changed.await?.ok_or_else(|| no_key(id))
}

pub(super) async fn delete_key(state: &State, call: &Call) -> Outcome {
    let (user, id) = (user(state, call).await?, call.text("AccessKeyId"));
    refuse_if(!keys(state, &user).await?.iter().any(|key| key["AccessKeyId"] == id), || no_key(id))?;
    state.keys.remove(&state.home_call(), id).await?;
    Ok(json!({}))
}
