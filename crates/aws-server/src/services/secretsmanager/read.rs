//! Reading secrets.

use super::{CURRENT, State, deleted, find, invalid};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{Pages, copy, items, text};
use ecs_model::refusal::refuse_if;
use serde_json::{Map, Value, json};

const PAGES: Pages = Pages {
    asks: ("MaxResults", "NextToken"),
    next: "NextToken",
    rows: 100,
    refusal: ("InvalidNextTokenException", "The NextToken value is invalid."),
};

/// The version that a version id or a stage means.
fn select<'a>(spec: &'a Value, id: &str, stage: &str) -> Result<(&'a str, &'a Value), AwsError> {
    let missing = |text: String| AwsError::client("ResourceNotFoundException", text);
    let holds = |v: &Value, stage: &str| items(&v["Stages"]).iter().any(|s| s == stage);
    let mut versions = spec["Versions"].as_object().into_iter().flatten();
    let (found, what) = match (id, stage) {
        ("", "") => (versions.find(|(_, v)| holds(v, CURRENT)), format!("staging label: {CURRENT}")),
        ("", stage) => (versions.find(|(_, v)| holds(v, stage)), format!("staging label: {stage}")),
        (id, stage) => {
            let found = versions.find(|(i, _)| *i == id);
            if found.is_some_and(|(_, v)| !stage.is_empty() && !holds(v, stage)) {
                let text = "You provided a VersionStage that is not associated to the provided VersionId.";
                return Err(AwsError::client("InvalidRequestException", text));
            }
            (found, format!("VersionId: {id}"))
        }
    };
    let text = format!("Secrets Manager can't find the specified secret value for {what}");
    found.map(|(id, version)| (id.as_str(), version)).ok_or_else(|| missing(text))
}

async fn value_of(state: &State, call: &Call, id: &str, version: &str, stage: &str) -> Outcome {
    let (_, spec) = find::secret(state, call, id).await?;
    refuse_if(!spec["DeletionDate"].is_null(), deleted)?;
    let (id, version) = select(&spec, version, stage)?;
    Ok(json!({
        "ARN": spec["ARN"],
        "Name": spec["Name"],
        "VersionId": id,
        "SecretString": version["SecretString"],
        "SecretBinary": version["SecretBinary"],
        "VersionStages": version["Stages"],
        "CreatedDate": version["CreatedDate"],
    }))
}

pub(super) async fn value(state: &State, call: &Call) -> Outcome {
    let input = &call.input;
    let (id, version, stage) =
        (text(input, "SecretId"), text(input, "VersionId"), text(input, "VersionStage"));
    value_of(state, call, id, version, stage).await
}

pub(super) async fn values(state: &State, call: &Call) -> Outcome {
    let by_id: Vec<String> =
        call.items("SecretIdList").iter().filter_map(|v| v.as_str().map(String::from)).collect();
    let filters = call.items("Filters");
    if by_id.is_empty() == filters.is_empty() {
        return Err(invalid("Either 'SecretIdList' or 'Filters' must be provided, but not both."));
    }
    let (ids, token) = match by_id.is_empty() {
        false => (by_id, None),
        true => {
            let (found, token) = listed(state, call).await?;
            (found.iter().map(|s| text(s, "Name").to_string()).collect(), token)
        }
    };
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for id in ids {
        match value_of(state, call, &id, "", "").await {
            Ok(value) => found.push(value),
            Err(error) => {
                errors.push(json!({"SecretId": id, "ErrorCode": error.code, "Message": error.message}))
            }
        }
    }
    Ok(json!({"SecretValues": found, "Errors": errors, "NextToken": token}))
}

/// Stages by version, of versions that have any.
fn stages(spec: &Value) -> Value {
    let versions = spec["Versions"].as_object().into_iter().flatten();
    let staged = versions.filter(|(_, v)| !items(&v["Stages"]).is_empty());
    Value::Object(staged.map(|(id, v)| (id.clone(), v["Stages"].clone())).collect::<Map<_, _>>())
}

fn described(spec: &Value, stages_member: &str) -> Value {
    let mut out = json!({stages_member: stages(spec)});
    let members = "ARN Name Description KmsKeyId CreatedDate LastChangedDate DeletedDate Tags Type";
    copy(&mut out, spec, members);
    out
}

pub(super) async fn describe(state: &State, call: &Call) -> Outcome {
    let (_, spec) = find::secret(state, call, call.text("SecretId")).await?;
    Ok(described(&spec, "VersionIdsToStages"))
}

/// Does a secret pass a filter? Values are prefixes; `!` turns one around.
fn fits(spec: &Value, filter: &Value) -> bool {
    let mut tags = (Vec::new(), Vec::new());
    for tag in items(&spec["Tags"]) {
        tags.0.push(text(tag, "Key"));
        tags.1.push(text(tag, "Value"));
    }
    let own = |member: &'static str| vec![text(spec, member)];
    let have = match text(filter, "Key") {
        "name" => own("Name"),
        "description" => own("Description"),
        "tag-key" => tags.0,
        "tag-value" => tags.1,
        "all" => [own("Name"), own("Description"), tags.0, tags.1].concat(),
        _ => return false,
    };
    let starts = |value: &str| have.iter().any(|h| h.to_lowercase().starts_with(&value.to_lowercase()));
    items(&filter["Values"]).iter().filter_map(Value::as_str).any(|value| match value.strip_prefix('!') {
        Some(value) => !starts(value),
        None => starts(value),
    })
}

/// A page of the caller's secrets.
async fn listed(state: &State, call: &Call) -> Result<(Vec<Value>, Option<String>), AwsError> {
    let planned = call.input["IncludePlannedDeletion"] == true;
    let filters = call.items("Filters");
    let mut all = state.secrets.list(call).await?;
    all.retain(|spec| {
        let gone = find::expired(spec, call.now_ms) || (!planned && !spec["DeletionDate"].is_null());
        !gone && filters.iter().all(|f| fits(spec, f))
    });
    all.sort_by(|a, b| text(a, "Name").cmp(text(b, "Name")));
    PAGES.cut(call, &all, |spec| text(spec, "Name").to_string())
}

pub(super) async fn list(state: &State, call: &Call) -> Outcome {
    let (found, token) = listed(state, call).await?;
    let entries: Vec<Value> = found.iter().map(|spec| described(spec, "SecretVersionsToStages")).collect();
    Ok(json!({"SecretList": entries, "NextToken": token}))
}

pub(super) async fn versions(state: &State, call: &Call) -> Outcome {
    let (_, spec) = find::secret(state, call, call.text("SecretId")).await?;
    let deprecated = call.input["IncludeDeprecated"] == true;
    let all = spec["Versions"].as_object().into_iter().flatten();
    let shown = all.filter(|(_, v)| deprecated || !items(&v["Stages"]).is_empty());
    let list = shown.map(
        |(id, v)| json!({"VersionId": id, "VersionStages": v["Stages"], "CreatedDate": v["CreatedDate"]}),
    );
    Ok(json!({"ARN": spec["ARN"], "Name": spec["Name"], "Versions": list.collect::<Vec<_>>()}))
}

pub(super) async fn random_password(_: &State, call: &Call) -> Outcome {
    let input = &call.input;
    let length = call.count("PasswordLength", 32);
    let without = text(input, "ExcludeCharacters");
    let classes: Vec<Vec<char>> = [
        ("ExcludeLowercase", "abcdefghijklmnopqrstuvwxyz"),
        ("ExcludeUppercase", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        ("ExcludeNumbers", "0123456789"),
        ("ExcludePunctuation", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    ]
    .iter()
    .filter(|(member, _)| input[*member] != true)
    .map(|(_, letters)| letters.chars().filter(|c| !without.contains(*c)).collect::<Vec<_>>())
    .chain((input["IncludeSpace"] == true).then(|| vec![' ']))
    .filter(|letters| !letters.is_empty())
    .collect();
    let each = input["RequireEachIncludedType"] != false;
    if classes.is_empty() || (each && classes.len() > length) {
        return Err(invalid("The password length is too short or all characters are excluded."));
    }
    let all: Vec<char> = classes.concat();
    loop {
        let password: String = (0..length).map(|_| all[random(all.len())]).collect();
        // Long passwords have every class nearly always: drawing again keeps the choice even.
        if !each || classes.iter().all(|class| password.chars().any(|c| class.contains(&c))) {
            return Ok(json!({"RandomPassword": password}));
        }
    }
}

/// An even choice below `count` (at most 128), from the system's random numbers.
fn random(count: usize) -> usize {
    let limit = 256 - 256 % count;
    loop {
        let byte = usize::from(uuid::Uuid::new_v4().into_bytes()[0]);
        if byte < limit {
            return byte % count;
        }
    }
}
