//! Settings of a repository: mutability of tags, policies. Kept and given back; of these only the mutability acts.

use super::State;
use super::repositories::{change, find};
use crate::service::{AwsError, Call, Outcome};
use serde_json::{Value, json};

fn name(call: &Call) -> &str {
    call.text("repositoryName")
}

fn answer(call: &Call, member: &str, value: Value) -> Value {
    json!({"registryId": call.caller.account, "repositoryName": name(call), member: value})
}

/// Copies a member of the call into the repository.
pub(super) async fn copy(state: &State, call: &Call, member: &str) -> Outcome {
    change(state, call, name(call), |spec| {
        spec[member] = call.input[member].clone();
        Ok(answer(call, member, spec[member].clone()))
    })
    .await
}

/// The same for a policy, whose text must be JSON.
pub(super) async fn put(state: &State, call: &Call, member: &str) -> Outcome {
    if !matches!(serde_json::from_str(call.text(member)), Ok(Value::Object(_))) {
        let text = "Invalid parameter at 'PolicyText' failed to satisfy constraint: 'Invalid repository policy provided'";
        return Err(AwsError::client("InvalidParameterException", text));
    }
    copy(state, call, member).await
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

pub(super) async fn get(state: &State, call: &Call, member: &str) -> Outcome {
    let spec = find(state, call, name(call)).await?;
    match spec[member].is_null() {
        true => Err(missing(call, member)),
        false => Ok(answer(call, member, spec[member].clone())),
    }
}

pub(super) async fn delete(state: &State, call: &Call, member: &str) -> Outcome {
    change(state, call, name(call), |spec| match spec[member].take() {
        Value::Null => Err(missing(call, member)),
        old => Ok(answer(call, member, old)),
    })
    .await
}
