//! Writing and removing parameters.

use super::{State, invalid, names, not_found};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{items, now, text};
use regex::RegexBuilder;
use serde_json::{Map, Value, json};

/// Versions kept of one parameter.
const VERSIONS_MAX: usize = 100;
/// Longest value of the standard tier, in bytes.
const STANDARD_BYTES: usize = 4_096;
/// Longest value of the advanced tier.
const ADVANCED_BYTES: usize = 8_192;
/// Compiled size of an `AllowedPattern`.
const PATTERN_BYTES_MAX: usize = 256 << 10;

/// The version that a call writes, apart from its number.
fn version(call: &Call, old: Option<&Value>) -> Result<Map<String, Value>, AwsError> {
    let input = &call.input;
    let value = text(input, "Value");
    let tier = match (text(input, "Tier"), value.len()) {
        ("Advanced", _) => "Advanced",
        ("Intelligent-Tiering", length) if length > STANDARD_BYTES => "Advanced",
        _ => "Standard",
    };
    let max = if tier == "Advanced" { ADVANCED_BYTES } else { STANDARD_BYTES };
    if value.len() > max {
        return Err(invalid(format!(
            "{tier} tier parameters support a maximum parameter value of {max} characters. To create a larger parameter \
             value, upgrade the parameter to use the advanced-parameter tier. For more information, see \
             https://docs.aws.amazon.com/systems-manager/latest/userguide/parameter-store-advanced-parameters.html"
        )));
    }
    let pattern = text(input, "AllowedPattern");
    if !pattern.is_empty() {
        let compiled = RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build();
        let compiled = compiled.map_err(|_| {
            AwsError::client("InvalidAllowedPatternException", "The AllowedPattern is no regular expression")
        })?;
        if !compiled.is_match(value) {
            let text = format!("Parameter value, cannot be validated against allowedPattern: {pattern}");
            return Err(AwsError::client("ParameterPatternMismatchException", text));
        }
    }
    let kind = match (text(input, "Type"), old.map(|o| text(o, "Type"))) {
        ("", None) => return Err(invalid("A parameter type is required when you create a parameter.")),
        ("", Some(old)) => old,
        (new, _) => new,
    };
    let mut out: Map<String, Value> = Map::new();
    out.insert("Value".into(), value.into());
    out.insert("Type".into(), kind.into());
    out.insert("Tier".into(), tier.into());
    out.insert("LastModifiedDate".into(), now(call));
    out.insert("LastModifiedUser".into(), call.caller.arn.as_str().into());
    out.insert("DataType".into(), input["DataType"].as_str().unwrap_or("text").into());
    for member in ["Description", "AllowedPattern"] {
        out.extend(input.get(member).map(|v| (member.to_string(), v.clone())));
    }
    if kind == "SecureString" {
        out.insert("KeyId".into(), input["KeyId"].as_str().unwrap_or("alias/aws/ssm").into());
    }
    Ok(out)
}

pub(super) async fn put(state: &State, call: &Call) -> Outcome {
    let name = names::reference(call.text("Name")).name;
    let overwrite = call.input["Overwrite"] == true;
    if overwrite && !call.items("Tags").is_empty() {
        return Err(invalid(
            "Invalid request: tags and overwrite can't be used together. To create a parameter with tags, please remove \
             overwrite flag. To update tags for an existing parameter, please use AddTagsToResource or \
             RemoveTagsFromResource.",
        ));
    }
    if state.parameters.get(call, &name).await?.is_none() {
        names::check_new(&name)?;
        let mut first = version(call, None)?;
        first.insert("Version".into(), 1.into());
        let tier = first["Tier"].clone();
        let spec = json!({"Name": name, "Tags": call.input["Tags"], "Versions": [first]});
        if state.parameters.create(call, &name, spec).await? {
            return Ok(json!({"Version": 1, "Tier": tier}));
        }
    }
    if !overwrite {
        let text = "The parameter already exists. To overwrite this value, set the overwrite option in the request to true.";
        return Err(AwsError::client("ParameterAlreadyExists", text));
    }
    let changed = state.parameters.change(call, &name, |spec| {
        let newest = items(&spec["Versions"]).last().cloned().unwrap_or_default();
        let mut next = version(call, Some(&newest))?;
        let number = newest["Version"].as_i64().unwrap_or_default() + 1;
        next.insert("Version".into(), number.into());
        let answer = json!({"Version": number, "Tier": next["Tier"]});
        let Some(versions) = spec["Versions"].as_array_mut() else { return Err(not_found()) };
        if versions.len() >= VERSIONS_MAX {
            let oldest = versions.remove(0);
            if !items(&oldest["Labels"]).is_empty() {
                let text = format!(
                    "You attempted to create a new version of {name} by calling the PutParameter API with the overwrite \
                     flag. Version {}, the oldest version, can't be deleted because it has a label associated with it. \
                     Move the label to another version of the parameter, and try again.",
                    oldest["Version"]
                );
                return Err(AwsError::client("ParameterMaxVersionLimitExceeded", text));
            }
        }
        versions.push(Value::Object(next));
        Ok(answer)
    });
    changed.await?.ok_or_else(not_found)
}

pub(super) async fn delete(state: &State, call: &Call) -> Outcome {
    let name = names::reference(call.text("Name")).name;
    if state.parameters.remove(call, &name).await? { Ok(json!({})) } else { Err(not_found()) }
}

pub(super) async fn delete_many(state: &State, call: &Call) -> Outcome {
    let (mut deleted, mut invalid) = (Vec::new(), Vec::new());
    for name in call.items("Names").iter().filter_map(Value::as_str) {
        let reference = names::reference(name);
        match state.parameters.remove(call, &reference.name).await? {
            true => deleted.push(name),
            false => invalid.push(name),
        }
    }
    Ok(json!({"DeletedParameters": deleted, "InvalidParameters": invalid}))
}
