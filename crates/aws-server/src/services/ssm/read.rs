//! Reading parameters.

use super::{State, invalid, names, not_found};
use crate::service::{AwsError, Call, Outcome};
use crate::services::kept::{Pages, items, text};
use serde_json::{Value, json};

const PAGES: Pages = Pages {
    asks: ("MaxResults", "NextToken"),
    next: "NextToken",
    rows: 50,
    refusal: ("InvalidNextToken", "The specified token isn't valid."),
};
/// Of parameters by their path.
const BY_PATH: Pages = Pages { rows: 10, ..PAGES };

/// The version that a selector means.
fn select<'a>(spec: &'a Value, selector: &str) -> Result<&'a Value, AwsError> {
    let versions = items(&spec["Versions"]);
    let found = match (selector, selector.parse::<i64>()) {
        ("", _) => versions.last(),
        (_, Ok(number)) => versions.iter().find(|v| v["Version"] == number),
        (label, Err(_)) => versions.iter().find(|v| items(&v["Labels"]).iter().any(|l| l == label)),
    };
    found.ok_or_else(|| {
        let text = format!(
            "Systems Manager could not find version {selector} of {}. Verify the version and try again.",
            text(spec, "Name")
        );
        AwsError::client("ParameterVersionNotFound", text)
    })
}

impl State {
    /// The value as this caller sees it.
    fn value(&self, version: &Value, decrypt: bool) -> Value {
        match text(version, "Type") == "SecureString" && !decrypt {
            true => format!("AQICAH{}", self.keys.seal("ssm", text(version, "Value"))).into(),
            false => version["Value"].clone(),
        }
    }

    fn parameter(&self, call: &Call, spec: &Value, version: &Value, selector: &str) -> Value {
        let mut out = json!({
            "Name": spec["Name"],
            "Type": version["Type"],
            "Value": self.value(version, call.input["WithDecryption"] == true),
            "Version": version["Version"],
            "LastModifiedDate": version["LastModifiedDate"],
            "ARN": names::arn(call, text(spec, "Name")),
            "DataType": version["DataType"],
        });
        if !selector.is_empty() {
            out["Selector"] = format!(":{selector}").into();
        }
        out
    }
}

pub(super) async fn get(state: &State, call: &Call) -> Outcome {
    let asked = names::reference(call.text("Name"));
    let spec = state.parameters.get(call, &asked.name).await?.ok_or_else(not_found)?;
    let version = select(&spec, &asked.selector)?;
    Ok(json!({"Parameter": state.parameter(call, &spec, version, &asked.selector)}))
}

pub(super) async fn get_many(state: &State, call: &Call) -> Outcome {
    let (mut found, mut invalid) = (Vec::new(), Vec::new());
    for name in call.items("Names").iter().filter_map(Value::as_str) {
        let asked = names::reference(name);
        let spec = state.parameters.get(call, &asked.name).await?;
        match spec.as_ref().map(|spec| (spec, select(spec, &asked.selector))) {
            Some((spec, Ok(version))) => found.push(state.parameter(call, spec, version, &asked.selector)),
            _ => invalid.push(name),
        }
    }
    Ok(json!({"Parameters": found, "InvalidParameters": invalid}))
}

/// All that fit, by name.
async fn list(state: &State, call: &Call, fits: impl Fn(&Value) -> bool) -> Result<Vec<Value>, AwsError> {
    let mut all: Vec<Value> = state.parameters.list(call).await?.into_iter().filter(fits).collect();
    all.sort_by(|a, b| text(a, "Name").cmp(text(b, "Name")));
    Ok(all)
}

pub(super) async fn by_path(state: &State, call: &Call) -> Outcome {
    let path = call.text("Path");
    if !path.starts_with('/') {
        return Err(invalid(format!(
            "The parameter doesn't meet the parameter name requirements. The parameter name must begin with a forward \
             slash \"/\". It can't be prefixed with \"aws\" or \"ssm\" (case-insensitive). It must use only letters, \
             numbers, or the following symbols: . (period), - (hyphen), _ (underscore): {path}"
        )));
    }
    let folder = format!("{}/", path.trim_end_matches('/'));
    let recursive = call.input["Recursive"] == true;
    let below = |spec: &Value| {
        let rest = text(spec, "Name").strip_prefix(&folder);
        rest.is_some_and(|rest| recursive || !rest.contains('/')) && filtered(call, spec)
    };
    let all = list(state, call, below).await?;
    let name = |spec: &Value| text(spec, "Name").to_string();
    let (found, token) = BY_PATH.cut(call, &all, name)?;
    let parameters: Vec<Value> = found
        .iter()
        .filter_map(|spec| Some(state.parameter(call, spec, select(spec, "").ok()?, "")))
        .collect();
    Ok(json!({"Parameters": parameters, "NextToken": token}))
}

/// Does a parameter pass all filters of the call?
fn filtered(call: &Call, spec: &Value) -> bool {
    let newest = items(&spec["Versions"]).last().cloned().unwrap_or_default();
    call.items("ParameterFilters").iter().all(|filter| {
        let key = text(filter, "Key");
        let have: Vec<&str> = match key {
            "Name" => vec![text(spec, "Name")],
            "Path" => vec![text(spec, "Name")],
            "Label" => items(&newest["Labels"]).iter().filter_map(Value::as_str).collect(),
            _ if key.starts_with("tag:") => {
                let tags = items(&spec["Tags"]).iter().filter(|t| text(t, "Key") == &key[4..]);
                tags.map(|t| text(t, "Value")).collect()
            }
            member => vec![text(&newest, member)],
        };
        let values: Vec<&str> = items(&filter["Values"]).iter().filter_map(Value::as_str).collect();
        let option = match (filter["Option"].as_str(), key) {
            (Some(option), _) => option,
            (None, "Path") => "OneLevel",
            (None, _) => "Equals",
        };
        let fits = |have: &str, value: &str| match option {
            "BeginsWith" => have.starts_with(value),
            "Contains" => have.contains(value),
            "Recursive" | "OneLevel" => {
                let rest = have.strip_prefix(&format!("{}/", value.trim_end_matches('/')));
                rest.is_some_and(|r| option == "Recursive" || !r.contains('/'))
            }
            _ => have == value,
        };
        have.iter().any(|have| values.is_empty() || values.iter().any(|value| fits(have, value)))
    })
}

pub(super) async fn describe(state: &State, call: &Call) -> Outcome {
    let all = list(state, call, |spec| filtered(call, spec)).await?;
    let name = |spec: &Value| text(spec, "Name").to_string();
    let (found, token) = PAGES.cut(call, &all, name)?;
    let metadata = found.iter().map(|spec| {
        let mut out = items(&spec["Versions"]).last().cloned().unwrap_or_default();
        if let Some(map) = out.as_object_mut() {
            map.remove("Value");
        }
        out["Name"] = spec["Name"].clone();
        out["ARN"] = names::arn(call, text(spec, "Name")).into();
        out["Policies"] = json!([]);
        out
    });
    Ok(json!({"Parameters": metadata.collect::<Vec<_>>(), "NextToken": token}))
}

pub(super) async fn history(state: &State, call: &Call) -> Outcome {
    let name = names::reference(call.text("Name")).name;
    let spec = state.parameters.get(call, &name).await?.ok_or_else(not_found)?;
    let decrypt = call.input["WithDecryption"] == true;
    let number = |v: &Value| format!("{:020}", v["Version"].as_i64().unwrap_or_default());
    let (found, token) = PAGES.cut(call, items(&spec["Versions"]), number)?;
    let versions = found.into_iter().map(|mut version| {
        version["Value"] = state.value(&version, decrypt);
        version["Name"] = spec["Name"].clone();
        let labels = items(&version["Labels"]).to_vec();
        version["Labels"] = labels.into();
        version
    });
    Ok(json!({"Parameters": versions.collect::<Vec<_>>(), "NextToken": token}))
}
