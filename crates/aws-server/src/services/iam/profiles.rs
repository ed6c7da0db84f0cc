//! Instance profiles: a name for at most one role. A profile's `spec` is AWS's document with `RoleNames` for `Roles`.

use super::State;
use super::common::{conflict, encoded, exists, id, listing, not_found, path};
use super::roles::no_role;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, now, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

fn no_profile(name: &str) -> AwsError {
    not_found(format!("Instance Profile {name} cannot be found."))
}

/// A profile as it is shown: with its roles.
async fn shown(state: &State, call: &Call, mut profile: Value) -> Outcome {
    let mut roles = Vec::new();
    for name in items(&profile["RoleNames"]).iter().filter_map(Value::as_str) {
        if let Some(mut role) = state.roles.get(call, name).await? {
            role["AssumeRolePolicyDocument"] = encoded(&role["AssumeRolePolicyDocument"]);
            roles.push(role);
        }
    }
    profile["Roles"] = roles.into();
    Ok(profile)
}

pub(super) async fn create(state: &State, call: &Call) -> Outcome {
    let (name, path) = (call.text("InstanceProfileName"), path(call));
    let profile = json!({
        "InstanceProfileName": name,
        "InstanceProfileId": id("AIPA", &call.request_id),
        "Arn": format!("arn:aws:iam::{}:instance-profile{path}{name}", call.caller.account),
        "Path": path,
        "CreateDate": now(call),
        "Tags": call.input["Tags"],
        "RoleNames": [],
    });
    match state.profiles.create(call, name, profile.clone()).await? {
        true => Ok(json!({"InstanceProfile": shown(state, call, profile).await?})),
        false => {
            let text = format!("Instance Profile {name} already exists.");
            Err(AwsError { message: text, ..exists("Instance Profile", name) })
        }
    }
}

async fn find(state: &State, call: &Call) -> Outcome {
    let name = call.text("InstanceProfileName");
    state.profiles.get(call, name).await?.ok_or_else(|| no_profile(name))
}

pub(super) async fn get(state: &State, call: &Call) -> Outcome {
    let profile = find(state, call).await?;
    Ok(json!({"InstanceProfile": shown(state, call, profile).await?}))
}

async fn listed(state: &State, call: &Call, fits: impl Fn(&Value) -> bool) -> Outcome {
    let mut list = Vec::new();
    for profile in state.profiles.list(call).await?.into_iter().filter(fits) {
        list.push(shown(state, call, profile).await?);
    }
    listing(call, "InstanceProfiles", list, "InstanceProfileName")
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let prefix = call.input["PathPrefix"].as_str().unwrap_or("/");
    listed(state, call, |profile| text(profile, "Path").starts_with(prefix)).await
}

pub(super) async fn list_for_role(state: &State, call: &Call) -> Outcome {
    let name = call.text("RoleName");
    state.roles.get(call, name).await?.ok_or_else(|| no_role(name))?;
    listed(state, call, |profile| items(&profile["RoleNames"]).iter().any(|n| n == name)).await
}

pub(super) async fn add_role(state: &State, call: &Call) -> Outcome {
    let (name, role) = (call.text("InstanceProfileName"), call.text("RoleName"));
    state.roles.get(call, role).await?.ok_or_else(|| no_role(role))?;
    let changed = state.profiles.change(call, name, |profile| {
        if !items(&profile["RoleNames"]).is_empty() {
            let text = "Cannot exceed quota for InstanceSessionsPerInstanceProfile: 1";
            return Err(AwsError { status: 409, ..AwsError::client("LimitExceeded", text) });
        }
        profile["RoleNames"] = json!([role]);
        Ok(json!({}))
    });
    changed.await?.ok_or_else(|| no_profile(name))
}

pub(super) async fn remove_role(state: &State, call: &Call) -> Outcome {
    let (name, role) = (call.text("InstanceProfileName"), call.text("RoleName"));
    let changed = state.profiles.change(call, name, |profile| {
        refuse_if(!items(&profile["RoleNames"]).iter().any(|n| n == role), || no_role(role))?;
        profile["RoleNames"] = json!([]);
        Ok(json!({}))
    });
    changed.await?.ok_or_else(|| no_profile(name))
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let profile = find(state, call).await?;
    if !items(&profile["RoleNames"]).is_empty() {
        return Err(conflict("Cannot delete entity, must remove roles from instance profile first."));
    }
    state.profiles.remove(call, text(&profile, "InstanceProfileName")).await?;
    Ok(json!({}))
}
