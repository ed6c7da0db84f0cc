//! What roles and users have alike: inline policies, attached ARNs, tags. The operation's name says whose.

use super::State;
use super::common::{conflict, document, encoded, listing, not_found};
use super::roles::no_role;
use super::users::no_user;
use super::{managed, policies};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{Kept, items, text};
use crate::services::tags;
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// Policies attached to one role (AWS's limit once raised).
const ATTACHED_MAX: usize = 20;

/// The member that names the holder.
fn member(call: &Call) -> &'static str {
    if call.operation.contains("User") { "UserName" } else { "RoleName" }
}

fn absent(call: &Call) -> AwsError {
    let name = text(&call.input, member(call));
    if member(call) == "UserName" { no_user(name) } else { no_role(name) }
}

fn kept<'a>(state: &'a State, call: &Call) -> &'a Kept {
    if member(call) == "UserName" { &state.users } else { &state.roles }
}

/// The role or user that the call names.
pub(super) async fn holder(state: &State, call: &Call) -> Result<Value, AwsError> {
    let found = kept(state, call).get(call, text(&call.input, member(call))).await?;
    found.ok_or_else(|| absent(call))
}

/// Changes it.
pub(super) async fn change(
    state: &State,
    call: &Call,
    edit: impl FnMut(&mut Value) -> Result<Value, AwsError>,
) -> Outcome {
    let changed = kept(state, call).change(call, text(&call.input, member(call)), edit);
    changed.await?.ok_or_else(|| absent(call))
}

/// Refuses to delete one that has policies.
pub(super) fn has_none(holder: &Value) -> Result<(), AwsError> {
    let attached = !items(&holder["Attached"]).is_empty();
    let inline = holder["Inline"].as_object().is_some_and(|inline| !inline.is_empty());
    refuse_if(attached, || conflict("Cannot delete entity, must detach all policies first."))?;
    refuse_if(inline, || conflict("Cannot delete entity, must delete policies first."))
}

/// Those under the path that the call asks for.
pub(super) fn under_path(call: &Call, mut all: Vec<Value>) -> Vec<Value> {
    let prefix = call.input["PathPrefix"].as_str().unwrap_or("/");
    all.retain(|holder| text(holder, "Path").starts_with(prefix));
    all
}

pub(super) async fn tag(state: &State, call: &Call) -> Outcome {
    change(state, call, |holder| tags::change(holder, call, tags::MEMBERS)).await
}

pub(super) async fn list_tags(state: &State, call: &Call) -> Outcome {
    let holder = holder(state, call).await?;
    listing(call, "Tags", items(&holder["Tags"]).to_vec(), "Key")
}

fn no_inline(name: &str) -> AwsError {
    not_found(format!("The role policy with name {name} cannot be found."))
}

pub(super) async fn put(state: &State, call: &Call) -> Outcome {
    let body = document(call.text("PolicyDocument"))?;
    let name = call.text("PolicyName");
    change(state, call, |role| {
        role["Inline"][name] = body.into();
        Ok(json!({}))
    })
    .await
}

pub(super) async fn get(state: &State, call: &Call) -> Outcome {
    let name = call.text("PolicyName");
    let role = holder(state, call).await?;
    let body = role["Inline"].get(name).ok_or_else(|| no_inline(name))?;
    Ok(json!({member(call): role[member(call)], "PolicyName": name, "PolicyDocument": encoded(body)}))
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let role = holder(state, call).await?;
    let names: Vec<Value> =
        role["Inline"].as_object().into_iter().flatten().map(|(n, _)| n.as_str().into()).collect();
    listing(call, "PolicyNames", names, "")
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let name = call.text("PolicyName");
    change(state, call, |role| {
        let removed = role["Inline"].as_object_mut().and_then(|inline| inline.remove(name));
        removed.map(|_| json!({})).ok_or_else(|| no_inline(name))
    })
    .await
}

pub(super) async fn attach(state: &State, call: &Call) -> Outcome {
    let arn = call.text("PolicyArn");
    if managed::policy(arn).is_none() {
        policies::find(state, call, arn).await?;
    }
    change(state, call, |role| {
        let mut attached = items(&role["Attached"]).to_vec();
        if !attached.iter().any(|a| a == arn) {
            if attached.len() >= ATTACHED_MAX {
                let text = format!(
                    "Cannot exceed quota for PoliciesPer{}: {ATTACHED_MAX}",
                    member(call).trim_end_matches("Name")
                );
                return Err(AwsError { status: 409, ..AwsError::client("LimitExceeded", text) });
            }
            attached.push(arn.into());
        }
        role["Attached"] = attached.into();
        Ok(json!({}))
    })
    .await
}

pub(super) async fn detach(state: &State, call: &Call) -> Outcome {
    let arn = call.text("PolicyArn");
    change(state, call, |role| {
        let attached = items(&role["Attached"]);
        refuse_if(!attached.iter().any(|a| a == arn), || not_found(format!("Policy {arn} was not found.")))?;
        let left: Vec<Value> = attached.iter().filter(|a| *a != arn).cloned().collect();
        role["Attached"] = left.into();
        Ok(json!({}))
    })
    .await
}

pub(super) async fn list_attached(state: &State, call: &Call) -> Outcome {
    let role = holder(state, call).await?;
    let arns = items(&role["Attached"]).iter().filter_map(Value::as_str);
    let list = arns
        .map(|arn| json!({"PolicyArn": arn, "PolicyName": arn.rsplit('/').next().unwrap_or_default()}))
        .collect();
    listing(call, "AttachedPolicies", list, "PolicyArn")
}
