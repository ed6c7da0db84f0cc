//! Custom attributes of container instances.

use super::context::{Cluster, Context, parameter};
use super::instance::Row;
use super::paging::{PAGE_MAX, Page};
use crate::service::{AwsError, Outcome};
use ecs_model::refusal::refuse_if;
use ecs_model::taskdef::capabilities;
use machinery::kinds::get::{list as items, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Most custom attributes of an instance.
const ATTRIBUTES_MAX: usize = 10;
const NAME_MAX: usize = 128;

/// An attribute of the input: target, name, value.
fn read<'a>(
    cx: &Context<'_>,
    cluster: &Cluster,
    given: &'a Value,
) -> Result<(String, &'a str, &'a str), AwsError> {
    let (name, value) = (text(given, "/name"), text(given, "/value"));
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_./\\".contains(&b);
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(inner) || value.len() > NAME_MAX {
        return Err(parameter("The name or value of the attribute is not valid."));
    }
    if name.starts_with("ecs.") || name.starts_with("com.amazonaws.") {
        return Err(parameter(format!("The attribute {name} is reserved.")));
    }
    let target = text(given, "/targetId");
    refuse_if(target.is_empty(), || parameter("You must specify a targetId for the attribute."))?;
    if !matches!(text(given, "/targetType"), "" | "container-instance") {
        return Err(parameter("targetType should be one of [container-instance]"));
    }
    Ok((cx.named(cluster, "container instance", target)?, name, value))
}

fn shown(arn: &str, name: &str, value: &str) -> Value {
    let mut out = json!({"name": name, "targetId": arn, "targetType": "container-instance"});
    if !value.is_empty() {
        out["value"] = json!(value);
    }
    out
}

fn target<'a>(rows: &'a [Row], id: &str) -> Result<&'a Row, AwsError> {
    let missing = || {
        let words = "The specified target was not found. You can view your available container instances with \
                     ListContainerInstances.";
        AwsError::client("TargetNotFoundException", words)
    };
    rows.iter().find(|r| r.id == id).ok_or_else(missing)
}

/// Applies `change` to the attributes of every named instance; what was said of each.
async fn apply(cx: &Context<'_>, change: fn(&mut BTreeMap<String, String>, &str, &str)) -> Outcome {
    let given = items(&cx.call.input, "/attributes");
    if given.is_empty() || given.len() > ATTRIBUTES_MAX {
        return Err(parameter(format!("attributes must have between 1 and {ATTRIBUTES_MAX} entries.")));
    }
    let cluster = cx.cluster().await?;
    let rows = cx.instances(&cluster)?;
    let mut by_target: BTreeMap<String, Vec<(&str, &str)>> = BTreeMap::new();
    let mut out = Vec::new();
    for attribute in given {
        let (id, name, value) = read(cx, &cluster, attribute)?;
        out.push(shown(&target(&rows, &id)?.arn, name, value));
        by_target.entry(id).or_default().push((name, value));
    }
    for (id, changes) in &by_target {
        let row = target(&rows, id)?;
        row.write(cx, &cluster, |spec| {
            let stored = items(spec, "/attributes").iter();
            let mut all: BTreeMap<String, String> =
                stored.map(|a| (text(a, "/name").to_string(), text(a, "/value").to_string())).collect();
            changes.iter().for_each(|(name, value)| change(&mut all, name, value));
            if all.len() > ATTRIBUTES_MAX {
                let words =
                    format!("You can apply up to {ATTRIBUTES_MAX} custom attributes for each resource.");
                return Err(AwsError::client("AttributeLimitExceededException", words));
            }
            let all: Vec<Value> = all.iter().map(|(n, v)| json!({"name": n, "value": v})).collect();
            Ok(json!({"attributes": all}))
        })
        .await?;
    }
    Ok(json!({"attributes": out}))
}

/// PutAttributes.
pub async fn put(cx: &Context<'_>) -> Outcome {
    apply(cx, |all, name, value| drop(all.insert(name.to_string(), value.to_string()))).await
}

/// DeleteAttributes.
pub async fn delete(cx: &Context<'_>) -> Outcome {
    apply(cx, |all, name, _| drop(all.remove(name))).await
}

/// ListAttributes.
pub async fn list(cx: &Context<'_>) -> Outcome {
    let page = Page::of(cx.call, PAGE_MAX)?;
    if cx.text("targetType") != "container-instance" {
        return Err(parameter("targetType should be one of [container-instance]"));
    }
    let cluster = cx.cluster().await?;
    let (name, value) = (cx.text("attributeName"), cx.text("attributeValue"));
    let mut out = Vec::new();
    for row in cx.instances(&cluster)? {
        let mut all = row.attributes(&cx.shared.zones);
        all.extend(capabilities().iter().map(|name| (name.clone(), String::new())));
        for (own, held) in all {
            if (name.is_empty() || own == name) && (value.is_empty() || held == value) {
                out.push((format!("{}/{own}", row.id), shown(&row.arn, &own, &held)));
            }
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(page.answer("attributes", out))
}
