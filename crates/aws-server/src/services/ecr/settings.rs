//! Settings of a repository: mutability of tags, policies. Kept and given back; of these only the mutability acts.

use super::State;
use super::repositories::{change, find};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::text;
use serde_json::{Value, json};

fn name(call: &Call) -> &str {
    text(&call.input, "repositoryName")
}

fn answer(call: &Call, member: &str, value: Value) -> Value {
    json!({"registryId": call.caller.account, "repositoryName": name(call), member: value})
}

/// Copies a member of the call into the repository.
async fn copy(state: &State, call: &Call, from: &str, to: &str) -> Outcome {
    change(state, call, name(call), |spec| {
        spec[to] = call.input[from].clone();
        Ok(answer(call, from, spec[to].clone()))
    })
    .await
}

pub(super) async fn tag_mutability(state: &State, call: &Call) -> Outcome {
    copy(state, call, "imageTagMutability", "imageTagMutability").await
}

pub(super) async fn scanning(state: &State, call: &Call) -> Outcome {
    copy(state, call, "imageScanningConfiguration", "imageScanningConfiguration").await
}

/// A policy text must be JSON.
fn policy(text: &str) -> Result<(), AwsError> {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(_)) => Ok(()),
        _ => {
            let text = "Invalid parameter at 'PolicyText' failed to satisfy constraint: 'Invalid repository policy provided'";
            Err(AwsError::client("InvalidParameterException", text))
        }
    }
}

pub(super) async fn set_policy(state: &State, call: &Call) -> Outcome {
    policy(text(&call.input, "policyText"))?;
    copy(state, call, "policyText", "policyText").await
}

pub(super) async fn put_lifecycle(state: &State, call: &Call) -> Outcome {
    policy(text(&call.input, "lifecyclePolicyText"))?;
    copy(state, call, "lifecyclePolicyText", "lifecyclePolicyText").await
}

fn missing(call: &Call, member: &str) -> AwsError {
    let (code, what) = match member {
        "policyText" => ("RepositoryPolicyNotFoundException", "Repository policy"),
        _ => ("LifecyclePolicyNotFoundException", "Lifecycle policy"),
    };
    let text = format!(
        "{what} does not exist for the repository with name '{}' in the registry with id '{}'",
        name(call),
        call.caller.account
    );
    AwsError::client(code, text)
}

async fn get(state: &State, call: &Call, member: &str) -> Outcome {
    let spec = find(state, call, name(call)).await?;
    match spec[member].is_null() {
        true => Err(missing(call, member)),
        false => Ok(answer(call, member, spec[member].clone())),
    }
}

async fn delete(state: &State, call: &Call, member: &str) -> Outcome {
    change(state, call, name(call), |spec| match spec[member].take() {
        Value::Null => Err(missing(call, member)),
        old => Ok(answer(call, member, old)),
    })
    .await
}

pub(super) async fn get_policy(state: &State, call: &Call) -> Outcome {
    get(state, call, "policyText").await
}

pub(super) async fn delete_policy(state: &State, call: &Call) -> Outcome {
    delete(state, call, "policyText").await
}

pub(super) async fn get_lifecycle(state: &State, call: &Call) -> Outcome {
    get(state, call, "lifecyclePolicyText").await
}

pub(super) async fn delete_lifecycle(state: &State, call: &Call) -> Outcome {
    delete(state, call, "lifecyclePolicyText").await
}
