//! Labels of versions, and tags of parameters.

use super::{State, names, not_found};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::items;
use crate::services::tags;
use serde_json::{Value, json};

/// Labels of one version.
const LABELS_MAX: usize = 10;

fn good_label(label: &str) -> bool {
    let lower = label.to_ascii_lowercase();
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let number = label.bytes().next().is_none_or(|b| b.is_ascii_digit());
    !number && label.bytes().all(letter) && !lower.starts_with("aws") && !lower.starts_with("ssm")
}

fn texts(value: &Value) -> Vec<String> {
    items(value).iter().filter_map(|v| v.as_str().map(String::from)).collect()
}

/// Runs a change on the version that the call means (the newest, when it says none).
async fn on_version(
    state: &State,
    call: &Call,
    change: impl Fn(&mut Vec<Value>, i64) -> Result<Value, AwsError>,
) -> Outcome {
    let name = names::reference(call.text("Name")).name;
    let changed = state.parameters.change(call, &name, |spec| {
        let Some(versions) = spec["Versions"].as_array_mut() else { return Err(not_found()) };
        let newest = versions.last().and_then(|v| v["Version"].as_i64()).unwrap_or_default();
        let number = call.input["ParameterVersion"].as_i64().unwrap_or(newest);
        if !versions.iter().any(|v| v["Version"] == number) {
            let text = format!(
                "Systems Manager could not find version {number} of {name}. Verify the version and try again."
            );
            return Err(AwsError::client("ParameterVersionNotFound", text));
        }
        change(versions, number)
    });
    changed.await?.ok_or_else(not_found)
}

pub(super) async fn label(state: &State, call: &Call) -> Outcome {
    let (good, invalid): (Vec<String>, Vec<String>) =
        texts(&call.input["Labels"]).into_iter().partition(|l| good_label(l));
    on_version(state, call, |versions, number| {
        for version in versions.iter_mut() {
            // A label is on one version only.
            let mut labels: Vec<String> =
                texts(&version["Labels"]).into_iter().filter(|l| !good.contains(l)).collect();
            if version["Version"] == number {
                labels.extend(good.iter().cloned());
            }
            if labels.len() > LABELS_MAX {
                let text = format!("A parameter version can have maximum {LABELS_MAX} labels.");
                return Err(AwsError::client("ParameterVersionLabelLimitExceeded", text));
            }
            version["Labels"] = labels.into();
        }
        Ok(json!({"InvalidLabels": invalid, "ParameterVersion": number}))
    })
    .await
}

pub(super) async fn unlabel(state: &State, call: &Call) -> Outcome {
    let asked = texts(&call.input["Labels"]);
    on_version(state, call, |versions, number| {
        let version = versions.iter_mut().find(|v| v["Version"] == number);
        let have = version.as_ref().map(|v| texts(&v["Labels"])).unwrap_or_default();
        let (removed, invalid): (Vec<String>, Vec<String>) =
            asked.iter().cloned().partition(|l| have.contains(l));
        let left: Vec<String> = have.into_iter().filter(|l| !removed.contains(l)).collect();
        if let Some(version) = version {
            version["Labels"] = left.into();
        }
        Ok(json!({"RemovedLabels": removed, "InvalidLabels": invalid}))
    })
    .await
}

/// The parameter that a tagging call means.
fn resource(call: &Call) -> Result<String, AwsError> {
    match call.text("ResourceType") {
        "Parameter" => Ok(names::reference(call.text("ResourceId")).name),
        other => {
            let text = format!("Resources of type {other} are not implemented by Gantry");
            Err(AwsError::client("InvalidResourceType", text))
        }
    }
}

fn no_resource() -> AwsError {
    AwsError::client(
        "InvalidResourceId",
        "The resource ID is not valid. Verify that you entered the correct ID and try again.",
    )
}

pub(super) async fn tag(state: &State, call: &Call) -> Outcome {
    let changed =
        state.parameters.change(call, &resource(call)?, |spec| tags::change(spec, call, tags::MEMBERS)).await;
    changed?.ok_or_else(no_resource)
}

pub(super) async fn list_tags(state: &State, call: &Call) -> Outcome {
    let spec = state.parameters.get(call, &resource(call)?).await?.ok_or_else(no_resource)?;
    Ok(json!({"TagList": items(&spec["Tags"])}))
}
