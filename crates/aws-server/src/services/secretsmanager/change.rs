//! Making, changing and deleting secrets. What becomes of versions and stages is pure.

use super::{CURRENT, PREVIOUS, State, deleted, find, invalid, not_found, refused};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{copy, items, now};
use crate::services::tags;
use ecs_model::refusal::refuse_if;
use serde_json::{Map, Value, json};

/// Versions kept: those without a stage go first.
const VERSIONS_MAX: usize = 100;
/// Stages of one version.
const STAGES_MAX: usize = 20;
const DAY_MS: u64 = 86_400_000;
/// Days between deletion and the end, unless said otherwise.
const WINDOW_DAYS: u64 = 30;

/// Gives each of these stages to `version`; it leaves the version that had it. The old current one becomes previous.
fn stage(versions: &mut Map<String, Value>, version: &str, stages: &[String]) {
    let holder = |versions: &Map<String, Value>, stage: &str| {
        let holds = |v: &Value| items(&v["Stages"]).iter().any(|s| s == stage);
        versions.iter().find(|(_, v)| holds(v)).map(|(id, _)| id.clone())
    };
    let before = holder(versions, CURRENT).filter(|id| id != version && stages.iter().any(|s| s == CURRENT));
    let mut moves: Vec<(&str, String)> = stages.iter().map(|s| (s.as_str(), version.to_string())).collect();
    moves.extend(before.map(|id| (PREVIOUS, id)));
    for (stage, to) in moves {
        for (id, one) in versions.iter_mut() {
            let mut have: Vec<Value> =
                items(&one["Stages"]).iter().filter(|s| *s != stage).cloned().collect();
            if *id == to {
                have.push(stage.into());
            }
            one["Stages"] = have.into();
        }
    }
}

/// Adds a version with a value. False: it is there already with the same value.
fn add(spec: &mut Value, call: &Call, id: &str, stages: &[String]) -> Result<bool, AwsError> {
    let value = |member: &str| call.input.get(member).cloned().unwrap_or_default();
    let (string, binary) = (value("SecretString"), value("SecretBinary"));
    if spec["Versions"].is_null() {
        spec["Versions"] = json!({});
    }
    let Some(versions) = spec["Versions"].as_object_mut() else { return Err(not_found()) };
    if let Some(there) = versions.get(id) {
        if there["SecretString"] == string && there["SecretBinary"] == binary {
            return Ok(false);
        }
        let text = "A resource with the ID you requested already exists.";
        return Err(AwsError::client("ResourceExistsException", text));
    }
    versions.insert(
        id.into(),
        json!({"CreatedDate": now(call), "SecretString": string, "SecretBinary": binary, "Stages": []}),
    );
    stage(versions, id, stages);
    let bare = |v: &Value| items(&v["Stages"]).is_empty();
    while versions.len() > VERSIONS_MAX {
        let oldest = versions.iter().filter(|(_, v)| bare(v));
        let oldest = oldest.min_by(|a, b| date(a.1).total_cmp(&date(b.1))).map(|(id, _)| id.clone());
        let Some(oldest) = oldest else {
            return Err(AwsError::client(
                "LimitExceededException",
                "The secret has too many versions with stages.",
            ));
        };
        versions.remove(&oldest);
    }
    spec["LastChangedDate"] = now(call);
    Ok(true)
}

fn date(version: &Value) -> f64 {
    version["CreatedDate"].as_f64().unwrap_or_default()
}

fn has_value(call: &Call) -> bool {
    ["SecretString", "SecretBinary"].iter().any(|m| call.input.get(*m).is_some())
}

fn one_value(call: &Call) -> Result<(), AwsError> {
    match ["SecretString", "SecretBinary"].iter().all(|m| call.input.get(*m).is_some()) {
        true => Err(invalid(
            "You can't specify both a binary secret value and a string secret value in the same secret.",
        )),
        false => Ok(()),
    }
}

/// The version's id: the client's token, or a new one.
fn version_id(call: &Call) -> String {
    call.input["ClientRequestToken"].as_str().map_or_else(|| call.request_id.clone(), String::from)
}

fn named(spec: &Value) -> Value {
    json!({"ARN": spec["ARN"], "Name": spec["Name"]})
}

pub(super) async fn create(state: &State, call: &Call) -> Outcome {
    one_value(call)?;
    let name = call.text("Name");
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"/_+=.@-".contains(&b);
    if !name.bytes().all(letter) {
        return Err(AwsError::client(
            "ValidationException",
            "Invalid name. Must be a valid name containing alphanumeric characters, or any of the following: -/_+=.@!",
        ));
    }
    let arn = format!(
        "arn:aws:secretsmanager:{}:{}:secret:{name}-{}",
        call.region,
        call.caller.account,
        find::suffix(&call.request_id)
    );
    let mut spec = json!({"Name": name, "ARN": arn, "CreatedDate": now(call), "LastChangedDate": now(call)});
    for member in ["Description", "KmsKeyId", "Tags", "Type"] {
        spec[member] = call.input[member].clone();
    }
    let id = version_id(call);
    if has_value(call) {
        add(&mut spec, call, &id, &[CURRENT.to_string()])?;
    }
    let mut answer = named(&spec);
    if has_value(call) {
        answer["VersionId"] = id.as_str().into();
    }
    if state.secrets.create(call, name, spec.clone()).await? {
        return Ok(answer);
    }
    let Some(there) = state.secrets.get(call, name).await? else { return Err(not_found()) };
    if find::expired(&there, call.now_ms) {
        state.secrets.remove(call, name).await?;
        if state.secrets.create(call, name, spec).await? {
            return Ok(answer);
        }
    }
    if !there["DeletionDate"].is_null() {
        return Err(refused(
            "You can't create this secret because a secret with this name is already scheduled for deletion.",
        ));
    }
    // The same call again (its token says so) is answered as the first was.
    let same =
        |version: &Value| ["SecretString", "SecretBinary"].iter().all(|m| version[*m] == call.input[*m]);
    if call.input.get("ClientRequestToken").is_some() && there["Versions"].get(&id).is_some_and(same) {
        return Ok(json!({"ARN": there["ARN"], "Name": there["Name"], "VersionId": id}));
    }
    let text = format!("The operation failed because the secret {name} already exists.");
    Err(AwsError::client("ResourceExistsException", text))
}

/// Changes a secret that is not marked for deletion.
async fn change(
    state: &State,
    call: &Call,
    mut edit: impl FnMut(&mut Value) -> Result<Value, AwsError>,
) -> Outcome {
    let (name, _) = find::secret(state, call, call.text("SecretId")).await?;
    let changed = state.secrets.change(call, &name, |spec| match spec["DeletionDate"].is_null() {
        true => edit(spec),
        false => Err(deleted()),
    });
    changed.await?.ok_or_else(not_found)
}

pub(super) async fn put_value(state: &State, call: &Call) -> Outcome {
    one_value(call)?;
    refuse_if(!has_value(call), || refused("You must provide either SecretString or SecretBinary."))?;
    let asked: Vec<String> =
        call.items("VersionStages").iter().filter_map(|s| s.as_str().map(String::from)).collect();
    let stages = if asked.is_empty() { vec![CURRENT.to_string()] } else { asked };
    let id = version_id(call);
    change(state, call, |spec| {
        add(spec, call, &id, &stages)?;
        let mut answer = named(spec);
        answer["VersionId"] = id.as_str().into();
        answer["VersionStages"] = spec["Versions"][&id]["Stages"].clone();
        Ok(answer)
    })
    .await
}

pub(super) async fn update(state: &State, call: &Call) -> Outcome {
    one_value(call)?;
    let id = version_id(call);
    change(state, call, |spec| {
        copy(spec, &call.input, "Description KmsKeyId Type");
        spec["LastChangedDate"] = now(call);
        if has_value(call) {
            add(spec, call, &id, &[CURRENT.to_string()])?;
        }
        let mut answer = named(spec);
        if has_value(call) {
            answer["VersionId"] = id.as_str().into();
        }
        Ok(answer)
    })
    .await
}

pub(super) async fn move_stage(state: &State, call: &Call) -> Outcome {
    let label = call.text("VersionStage");
    change(state, call, |spec| {
        let answer = named(spec);
        let Some(versions) = spec["Versions"].as_object_mut() else { return Err(not_found()) };
        let holds = |v: &Value| items(&v["Stages"]).iter().any(|s| s == label);
        let holder = versions.iter().find(|(_, v)| holds(v)).map(|(id, _)| id.clone());
        let from = call.input["RemoveFromVersionId"].as_str();
        if holder.is_some() && holder.as_deref() != from {
            return Err(invalid(format!(
                "The parameter RemoveFromVersionId can't be empty. Staging label {label} is currently attached to version \
                 {}, so you must explicitly reference that version in RemoveFromVersionId.",
                holder.unwrap_or_default()
            )));
        }
        match call.input["MoveToVersionId"].as_str() {
            Some(to) => {
                let there = versions.get(to).ok_or_else(not_found)?;
                if items(&there["Stages"]).len() >= STAGES_MAX {
                    return Err(AwsError::client("LimitExceededException", "The version has too many staging labels."));
                }
                stage(versions, to, &[label.to_string()]);
            }
            None if label == CURRENT => {
                return Err(invalid("You can only move staging label AWSCURRENT to a different secret version. It can't be completely removed."));
            }
            None => {
                for version in versions.values_mut() {
                    let left: Vec<Value> = items(&version["Stages"]).iter().filter(|s| *s != label).cloned().collect();
                    version["Stages"] = left.into();
                }
            }
        }
        Ok(answer)
    })
    .await
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let force = call.input["ForceDeleteWithoutRecovery"] == true;
    let days = call.input["RecoveryWindowInDays"].as_u64();
    refuse_if(force && days.is_some(), || {
        invalid("You can't use ForceDeleteWithoutRecovery in conjunction with RecoveryWindowInDays.")
    })?;
    if days.is_some_and(|d| !(7..=30).contains(&d)) {
        return Err(invalid("The RecoveryWindowInDays value must be between 7 and 30 days (inclusive)."));
    }
    let (name, spec) = find::secret(state, call, call.text("SecretId")).await?;
    if force {
        state.secrets.remove(call, &name).await?;
        let mut answer = named(&spec);
        answer["DeletionDate"] = now(call);
        return Ok(answer);
    }
    let at = (call.now_ms + days.unwrap_or(WINDOW_DAYS) * DAY_MS) as f64 / 1_000.0;
    change(state, call, |spec| {
        spec["DeletionDate"] = at.into();
        spec["DeletedDate"] = now(call);
        let mut answer = named(spec);
        answer["DeletionDate"] = at.into();
        Ok(answer)
    })
    .await
}

pub(super) async fn restore(state: &State, call: &Call) -> Outcome {
    let (name, _) = find::secret(state, call, call.text("SecretId")).await?;
    let changed = state.secrets.change(call, &name, |spec| {
        for member in ["DeletionDate", "DeletedDate"] {
            spec[member] = Value::Null;
        }
        Ok(named(spec))
    });
    changed.await?.ok_or_else(not_found)
}

pub(super) async fn tag(state: &State, call: &Call) -> Outcome {
    change(state, call, |spec| tags::change(spec, call, tags::MEMBERS)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_on_one_version_and_the_old_current_one_becomes_previous() {
        let version = |stages: &[&str]| json!({"Stages": stages});
        let mut versions: Map<String, Value> = [
            ("1".to_string(), version(&[CURRENT, "mine"])),
            ("0".to_string(), version(&[PREVIOUS])),
            ("2".to_string(), version(&[])),
        ]
        .into_iter()
        .collect();
        stage(&mut versions, "2", &[CURRENT.to_string()]);
        let stages = |versions: &Map<String, Value>, id: &str| versions[id]["Stages"].clone();
        assert_eq!(stages(&versions, "2"), json!([CURRENT]));
        assert_eq!(stages(&versions, "1"), json!(["mine", PREVIOUS]));
        assert_eq!(stages(&versions, "0"), json!([]));
        stage(&mut versions, "2", &["mine".to_string()]);
        assert_eq!(stages(&versions, "2"), json!([CURRENT, "mine"]));
        assert_eq!(stages(&versions, "1"), json!([PREVIOUS]));
    }
}
