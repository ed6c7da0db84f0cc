//! Roles. A role's `spec` is AWS's document plus `Inline` (documents by name) and `Attached` (policy ARNs).

use super::State;
use super::common::{conflict, document, encoded, exists, id, listing, not_found, path};
use super::role_policies::{change, has_none, holder, under_path};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{copy, items, now};
use serde_json::{Value, json};

/// AWS's default life of a role's session, in seconds.
const SESSION_SECONDS: u64 = 3_600;

pub(super) fn no_role(name: &str) -> AwsError {
    not_found(format!("The role with name {name} cannot be found."))
}

/// A role as it is shown.
fn shown(role: &Value) -> Value {
    let mut out = role.clone();
    out["AssumeRolePolicyDocument"] = encoded(&role["AssumeRolePolicyDocument"]);
    out["RoleLastUsed"] = json!({});
    out
}

fn new_role(call: &Call, name: &str, path: &str, trust: &str) -> Value {
    let account = &call.caller.account;
    json!({
        "RoleName": name,
        "RoleId": id("AROA", &call.request_id),
        "Arn": format!("arn:aws:iam::{account}:role{path}{name}"),
        "Path": path,
        "CreateDate": now(call),
        "AssumeRolePolicyDocument": trust,
        "MaxSessionDuration": call.input["MaxSessionDuration"].as_u64().unwrap_or(SESSION_SECONDS),
        "Description": call.input["Description"],
        "Tags": call.input["Tags"],
        "Inline": {},
        "Attached": [],
    })
}

pub(super) async fn create(state: &State, call: &Call) -> Outcome {
    let name = call.text("RoleName");
    let trust = document(call.text("AssumeRolePolicyDocument"))?;
    let role = new_role(call, name, path(call), trust);
    match state.roles.create(call, name, role.clone()).await? {
        true => Ok(json!({"Role": shown(&role)})),
        false => Err(exists("Role", name)),
    }
}

pub(super) async fn create_service_linked(state: &State, call: &Call) -> Outcome {
    let service = call.text("AWSServiceName");
    let Some(short) = service.strip_suffix(".amazonaws.com").filter(|s| !s.is_empty()) else {
        return Err(AwsError::client("InvalidInput", format!("Invalid service name {service}")));
    };
    // `ecs` → `AWSServiceRoleForECS`, `ecs.application-autoscaling` → `…ForApplicationAutoScaling_ECSService`.
    let known = [
        ("ecs", "ECS"),
        ("eks", "AmazonEKS"),
        ("eks-nodegroup", "AmazonEKSNodegroup"),
        ("elasticloadbalancing", "ElasticLoadBalancing"),
        ("autoscaling", "AutoScaling"),
        ("ecs.application-autoscaling", "ApplicationAutoScaling_ECSService"),
    ];
    let role = known.iter().find(|(s, _)| *s == short).map_or(short, |(_, role)| role);
    let name = match call.text("CustomSuffix") {
        "" => format!("AWSServiceRoleFor{role}"),
        suffix => format!("AWSServiceRoleFor{role}_{suffix}"),
    };
    let trust = json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}]});
    let role = new_role(call, &name, &format!("/aws-service-role/{service}/"), &trust.to_string());
    match state.roles.create(call, &name, role.clone()).await? {
        true => Ok(json!({"Role": shown(&role)})),
        false => {
            let text = format!(
                "Service role name {name} has been taken in this account, please try a different suffix."
            );
            Err(AwsError::client("InvalidInput", text))
        }
    }
}

pub(super) async fn get(state: &State, call: &Call) -> Outcome {
    Ok(json!({"Role": shown(&holder(state, call).await?)}))
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let roles = under_path(call, state.roles.list(call).await?);
    let bare = |role: &Value| {
        let mut out = shown(role);
        // A list leaves these out, as AWS's does.
        ["Tags", "RoleLastUsed"].iter().for_each(|member| out[*member] = Value::Null);
        out
    };
    let roles: Vec<Value> = roles.iter().map(bare).collect();
    listing(call, "Roles", roles, "RoleName")
}

pub(super) async fn update(state: &State, call: &Call) -> Outcome {
    change(state, call, |role| {
        copy(role, &call.input, "Description MaxSessionDuration");
        Ok(json!({}))
    })
    .await
}

pub(super) async fn update_description(state: &State, call: &Call) -> Outcome {
    change(state, call, |role| {
        role["Description"] = call.input["Description"].clone();
        Ok(json!({"Role": shown(role)}))
    })
    .await
}

pub(super) async fn update_trust(state: &State, call: &Call) -> Outcome {
    let trust = document(call.text("PolicyDocument"))?;
    change(state, call, |role| {
        role["AssumeRolePolicyDocument"] = trust.into();
        Ok(json!({}))
    })
    .await
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let name = call.text("RoleName");
    has_none(&holder(state, call).await?)?;
    let within = |p: &Value| items(&p["RoleNames"]).iter().any(|n| n == name);
    if state.profiles.list(call).await?.iter().any(within) {
        return Err(conflict("Cannot delete entity, must remove roles from instance profile first."));
    }
    state.roles.remove(call, name).await?;
    Ok(json!({}))
}
