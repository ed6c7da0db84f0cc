//! Customer-managed policies and their versions. A policy's `spec` is AWS's document plus `Versions`.

use super::State;
use super::common::{conflict, document, encoded, exists, id, listing, not_found, path};
use super::managed;
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, now, text};
use crate::services::tags;
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// Versions of one policy.
const VERSIONS_MAX: usize = 5;

fn no_policy(arn: &str) -> AwsError {
    not_found(format!("Policy {arn} does not exist or is not attachable."))
}

/// The name in an ARN of this account.
fn name_of<'a>(call: &Call, arn: &'a str) -> Option<&'a str> {
    let rest = arn.strip_prefix("arn:aws:iam::")?.strip_prefix(call.caller.account.as_str())?;
    rest.strip_prefix(":policy/")?.rsplit('/').next()
}

/// The policy of an ARN.
pub(super) async fn find(state: &State, call: &Call, arn: &str) -> Result<Value, AwsError> {
    let Some(name) = name_of(call, arn) else { return Err(no_policy(arn)) };
    let found = state.policies.get(call, name).await?;
    found.filter(|policy| text(policy, "Arn") == arn).ok_or_else(|| no_policy(arn))
}

/// Changes the policy that the call names.
async fn change(
    state: &State,
    call: &Call,
    edit: impl FnMut(&mut Value) -> Result<Value, AwsError>,
) -> Outcome {
    let arn = call.text("PolicyArn");
    let Some(name) = name_of(call, arn) else { return Err(no_policy(arn)) };
    state.policies.change(call, name, edit).await?.ok_or_else(|| no_policy(arn))
}

fn has(holder: &Value, arn: &str) -> bool {
    items(&holder["Attached"]).iter().any(|attached| attached == arn)
}

/// How many roles and users have each policy.
async fn shown(state: &State, call: &Call, policies: Vec<Value>) -> Result<Vec<Value>, AwsError> {
    let holders = [state.roles.list(call).await?, state.users.list(call).await?].concat();
    let count = |arn: &str| holders.iter().filter(|holder| has(holder, arn)).count();
    let with_count = |mut policy: Value| {
        policy["AttachmentCount"] = count(text(&policy, "Arn")).into();
        policy["PermissionsBoundaryUsageCount"] = 0.into();
        policy
    };
    Ok(policies.into_iter().map(with_count).collect())
}

pub(super) async fn create(state: &State, call: &Call) -> Outcome {
    let (name, path) = (call.text("PolicyName"), path(call));
    let body = document(call.text("PolicyDocument"))?;
    let policy = json!({
        "PolicyName": name,
        "PolicyId": id("ANPA", &call.request_id),
        "Arn": format!("arn:aws:iam::{}:policy{path}{name}", call.caller.account),
        "Path": path,
        "DefaultVersionId": "v1",
        "IsAttachable": true,
        "AttachmentCount": 0,
        "PermissionsBoundaryUsageCount": 0,
        "Description": call.input["Description"],
        "CreateDate": now(call),
        "UpdateDate": now(call),
        "Tags": call.input["Tags"],
        "Versions": [{"VersionId": "v1", "Document": body, "CreateDate": now(call)}],
    });
    match state.policies.create(call, name, policy.clone()).await? {
        true => Ok(json!({"Policy": policy})),
        false => Err(exists("A policy called", name)),
    }
}

pub(super) async fn get(state: &State, call: &Call) -> Outcome {
    let arn = call.text("PolicyArn");
    let policy = match managed::policy(arn) {
        Some(policy) => policy,
        None => find(state, call, arn).await?,
    };
    let policy = shown(state, call, vec![policy]).await?.pop();
    Ok(json!({"Policy": policy}))
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let scope = call.input["Scope"].as_str().unwrap_or("All");
    let prefix = call.input["PathPrefix"].as_str().unwrap_or("/");
    let mut all = Vec::new();
    if scope != "AWS" {
        all.extend(state.policies.list(call).await?);
    }
    if scope != "Local" {
        all.extend(managed::all());
    }
    all.retain(|policy| text(policy, "Path").starts_with(prefix));
    let mut all = shown(state, call, all).await?;
    all.retain(|policy| call.input["OnlyAttached"] != true || policy["AttachmentCount"] != 0);
    listing(call, "Policies", all, "Arn")
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let policy = find(state, call, call.text("PolicyArn")).await?;
    let policy = shown(state, call, vec![policy]).await?.pop().unwrap_or_default();
    refuse_if(policy["AttachmentCount"] != 0, || conflict("Cannot delete a policy attached to entities."))?;
    if items(&policy["Versions"]).len() > 1 {
        return Err(conflict(
            "This policy has more than one version. Before you delete a policy, you must delete the policy's versions. The \
             default version is deleted with the policy.",
        ));
    }
    state.policies.remove(call, text(&policy, "PolicyName")).await?;
    Ok(json!({}))
}

/// A version as it is shown.
fn version(policy: &Value, version: &Value) -> Value {
    let mut out = version.clone();
    out["Document"] = encoded(&version["Document"]);
    out["IsDefaultVersion"] = (version["VersionId"] == policy["DefaultVersionId"]).into();
    out
}

fn no_version(arn: &str, id: &str) -> AwsError {
    not_found(format!("Policy {arn} version {id} does not exist or is not attachable."))
}

pub(super) async fn create_version(state: &State, call: &Call) -> Outcome {
    let body = document(call.text("PolicyDocument"))?;
    change(state, call, |policy| {
        let versions = items(&policy["Versions"]);
        if versions.len() >= VERSIONS_MAX {
            let text = "A managed policy can have up to 5 versions. Before you create a new version, you must delete an \
                        existing version.";
            return Err(AwsError { status: 409, ..AwsError::client("LimitExceeded", text) });
        }
        let number = |v: &Value| text(v, "VersionId").trim_start_matches('v').parse::<u64>().unwrap_or_default();
        // Numbers are never used again.
        let last = versions.iter().map(number).max().unwrap_or_default();
        let last = policy["LastVersion"].as_u64().unwrap_or_default().max(last);
        let name = format!("v{}", last + 1);
        let made = json!({"VersionId": name, "Document": body, "CreateDate": now(call)});
        if let Some(versions) = policy["Versions"].as_array_mut() {
            versions.push(made.clone());
        }
        policy["LastVersion"] = (last + 1).into();
        policy["UpdateDate"] = now(call);
        if call.input["SetAsDefault"] == true {
            policy["DefaultVersionId"] = name.into();
        }
        Ok(json!({"PolicyVersion": version(policy, &made)}))
    })
    .await
}

pub(super) async fn get_version(state: &State, call: &Call) -> Outcome {
    let (arn, id) = (call.text("PolicyArn"), call.text("VersionId"));
    let policy = find(state, call, arn).await?;
    let found = items(&policy["Versions"]).iter().find(|v| v["VersionId"] == id);
    let found = found.ok_or_else(|| no_version(arn, id))?;
    Ok(json!({"PolicyVersion": version(&policy, found)}))
}

pub(super) async fn list_versions(state: &State, call: &Call) -> Outcome {
    let policy = find(state, call, call.text("PolicyArn")).await?;
    let mut list: Vec<Value> = items(&policy["Versions"]).iter().map(|v| version(&policy, v)).collect();
    // A list shows no documents, as AWS's does.
    list.iter_mut().for_each(|v| v["Document"] = Value::Null);
    listing(call, "Versions", list, "VersionId")
}

pub(super) async fn set_default(state: &State, call: &Call) -> Outcome {
    let id = call.text("VersionId");
    change(state, call, |policy| {
        if !items(&policy["Versions"]).iter().any(|v| v["VersionId"] == id) {
            return Err(no_version(text(policy, "Arn"), id));
        }
        policy["DefaultVersionId"] = id.into();
        Ok(json!({}))
    })
    .await
}

pub(super) async fn delete_version(state: &State, call: &Call) -> Outcome {
    let id = call.text("VersionId");
    change(state, call, |policy| {
        if policy["DefaultVersionId"] == id {
            return Err(conflict("Cannot delete the default version of a policy."));
        }
        let versions = items(&policy["Versions"]);
        let left: Vec<Value> = versions.iter().filter(|v| v["VersionId"] != id).cloned().collect();
        refuse_if(left.len() == versions.len(), || no_version(text(policy, "Arn"), id))?;
        policy["Versions"] = left.into();
        Ok(json!({}))
    })
    .await
}

pub(super) async fn entities(state: &State, call: &Call) -> Outcome {
    let arn = call.text("PolicyArn");
    let filter = call.input["EntityFilter"].as_str();
    let having = |kind: &str, all: Vec<Value>| -> Vec<Value> {
        let (name, id) = (format!("{kind}Name"), format!("{kind}Id"));
        let asked = filter.is_none_or(|filter| filter == kind);
        let having = all.iter().filter(|holder| asked && has(holder, arn));
        having.map(|holder| json!({&*name: holder[&name], &*id: holder[&id]})).collect()
    };
    let roles = having("Role", state.roles.list(call).await?);
    let users = having("User", state.users.list(call).await?);
    Ok(json!({"PolicyRoles": roles, "PolicyGroups": [], "PolicyUsers": users, "IsTruncated": false}))
}

pub(super) async fn tag(state: &State, call: &Call) -> Outcome {
    change(state, call, |policy| tags::change(policy, call, tags::MEMBERS)).await
}

pub(super) async fn list_tags(state: &State, call: &Call) -> Outcome {
    let policy = find(state, call, call.text("PolicyArn")).await?;
    listing(call, "Tags", items(&policy["Tags"]).to_vec(), "Key")
}
