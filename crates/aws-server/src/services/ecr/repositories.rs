//! Repositories and their tags.

use super::{State, invalid, new_repository};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{Pages, copy, items, text};
use crate::services::tags;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(super) const PAGES: Pages = Pages {
    asks: ("maxResults", "nextToken"),
    next: "nextToken",
    rows: 100,
    refusal: (
        "InvalidParameterException",
        "Invalid parameter at 'nextToken' failed to satisfy constraint: 'not a valid token'",
    ),
};
/// What is read of the registry's list at a time.
const CATALOG: usize = 1_000;

pub(super) fn no_repository(call: &Call, name: &str) -> AwsError {
    let text = format!(
        "The repository with name '{name}' does not exist in the registry with id '{}'",
        call.caller.account
    );
    AwsError::client("RepositoryNotFoundException", text)
}

/// The caller's repository of that name: created, or only pushed to.
pub(super) async fn find(state: &State, call: &Call, name: &str) -> Outcome {
    state.own_registry(call)?;
    if let Some(spec) = state.repositories.get(call, name).await? {
        return Ok(spec);
    }
    if state.registry()?.depot.list(&state.place(call, name)).is_none() {
        return Err(no_repository(call, name));
    }
    let spec = new_repository(state, call, name)?;
    state.repositories.create(call, name, spec.clone()).await?;
    Ok(spec)
}

/// Changes the caller's repository.
pub(super) async fn change(
    state: &State,
    call: &Call,
    name: &str,
    edit: impl FnMut(&mut Value) -> Result<Value, AwsError>,
) -> Outcome {
    find(state, call, name).await?;
    state.repositories.change(call, name, edit).await?.ok_or_else(|| no_repository(call, name))
}

pub(super) async fn create(state: &State, call: &Call) -> Outcome {
    state.own_registry(call)?;
    let name = call.text("repositoryName");
    if !image::is_repository(name) {
        return Err(invalid(format!(
            "Invalid parameter at 'repositoryName' failed to satisfy constraint: 'must satisfy regular expression \
             '(?:[a-z0-9]+(?:[._-][a-z0-9]+)*/)*[a-z0-9]+(?:[._-][a-z0-9]+)*'' ({name})"
        )));
    }
    let mut spec = new_repository(state, call, name)?;
    let members = "imageTagMutability imageTagMutabilityExclusionFilters imageScanningConfiguration \
                   encryptionConfiguration tags";
    copy(&mut spec, &call.input, members);
    match state.repositories.create(call, name, spec.clone()).await? {
        true => Ok(json!({"repository": spec})),
        false => {
            let text = format!(
                "The repository with name '{name}' already exists in the registry with id '{}'",
                call.caller.account
            );
            Err(AwsError::client("RepositoryAlreadyExistsException", text))
        }
    }
}

/// All of the caller's, by name.
async fn all(state: &State, call: &Call) -> Result<BTreeMap<String, Value>, AwsError> {
    let kept = state.repositories.list(call).await?;
    let mut all: BTreeMap<String, Value> =
        kept.into_iter().map(|spec| (text(&spec, "repositoryName").to_string(), spec)).collect();
    let depot = &state.registry()?.depot;
    let mut last = String::new();
    loop {
        let (places, more) = depot.repositories(&last, CATALOG);
        for name in places.iter().filter_map(|place| state.name_of(call, place)) {
            if !all.contains_key(&name) {
                all.insert(name.clone(), find(state, call, &name).await?);
            }
        }
        match places.last() {
            Some(place) if more => last = place.clone(),
            _ => return Ok(all),
        }
    }
}

pub(super) async fn describe(state: &State, call: &Call) -> Outcome {
    state.own_registry(call)?;
    let names: Vec<&str> = call.items("repositoryNames").iter().filter_map(Value::as_str).collect();
    if !names.is_empty() {
        let mut found = Vec::new();
        for name in names {
            found.push(find(state, call, name).await?);
        }
        return Ok(json!({"repositories": found}));
    }
    let all = all(state, call).await?.into_values().collect();
    PAGES.answer(call, "repositories", all, "repositoryName")
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let name = call.text("repositoryName");
    let spec = find(state, call, name).await?;
    let place = state.place(call, name);
    let images = state.registry()?.depot.list(&place).unwrap_or_default();
    if !images.is_empty() && call.input["force"] != true {
        let text = format!(
            "The repository with name '{name}' in registry with id '{}' cannot be deleted because it still contains images",
            call.caller.account
        );
        return Err(AwsError::client("RepositoryNotEmptyException", text));
    }
    state.on_disk(move |depot| depot.remove_repository(&place)).await?;
    state.repositories.remove(call, name).await?;
    Ok(json!({"repository": spec}))
}

/// The repository of an ARN.
fn name_in<'a>(call: &Call, arn: &'a str) -> Result<&'a str, AwsError> {
    let prefix = format!("arn:aws:ecr:{}:{}:repository/", call.region, call.caller.account);
    let text = || {
        invalid(format!(
            "Invalid parameter at 'resourceArn' failed to satisfy constraint: 'Invalid ARN' ({arn})"
        ))
    };
    arn.strip_prefix(&prefix).ok_or_else(text)
}

pub(super) async fn tag(state: &State, call: &Call) -> Outcome {
    let name = name_in(call, call.text("resourceArn"))?;
    change(state, call, name, |spec| tags::change(spec, call, ("tags", "tagKeys"))).await
}

pub(super) async fn list_tags(state: &State, call: &Call) -> Outcome {
    let spec = find(state, call, name_in(call, call.text("resourceArn"))?).await?;
    Ok(json!({"tags": items(&spec["tags"])}))
}
