//! Tags of ECS resources: a list in `spec.tags` of whatever carries them.

use super::context::{Context, doc, parameter};
use super::index::Stored;
use crate::service::{AwsError, Outcome};
use client::ObjectKey;
use ecs_model::names::{ECS_NAMESPACE, Resource};
use ecs_model::refusal::refuse_if;
use machinery::kinds::get::{list as items, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Most tags of a resource.
const TAGS_MAX: usize = 50;
const KEY_MAX: usize = 128;
const VALUE_MAX: usize = 256;

/// Refuses tags that AWS refuses.
pub fn check(tags: &[Value]) -> Result<(), AwsError> {
    refuse_if(tags.len() > TAGS_MAX, || parameter(format!("The number of tags cannot exceed {TAGS_MAX}.")))?;
    let mut seen = std::collections::BTreeSet::new();
    for tag in tags {
        let (key, value) = (text(tag, "/key"), text(tag, "/value"));
        if key.is_empty() || key.chars().count() > KEY_MAX || value.chars().count() > VALUE_MAX {
            return Err(parameter("Invalid tag: keys have 1 to 128 characters and values at most 256."));
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(parameter("Tag keys that start with 'aws:' are reserved."));
        }
        refuse_if(!seen.insert(key), || parameter(format!("Duplicate tag key found: {key}")))?;
    }
    Ok(())
}

/// Where a resource is kept.
struct Carrier<'a> {
    kept: &'a Stored,
    key: ObjectKey,
}

fn not_found() -> AwsError {
    parameter("The specified resource was not found.")
}

async fn carrier<'a>(cx: &Context<'a>) -> Result<Carrier<'a>, AwsError> {
    let arn = cx.text("resourceArn");
    // The short ARNs of old: a task or service without its cluster.
    let short = ["task/", "service/", "container-instance/"].iter().any(|kind| {
        arn.rsplit_once(':').is_some_and(|(_, r)| r.starts_with(kind) && r.matches('/').count() == 1)
    });
    refuse_if(short, || parameter("Long arn format must be used for tagging operations"))?;
    let views = cx.views;
    let within = |cluster: &str, name: String| ObjectKey::new(cx.scope.cluster_namespace(cluster), name);
    Ok(match cx.parse_arn(arn)? {
        Resource::Cluster(name) => Carrier { kept: &views.clusters, key: cx.cluster_key(&name) },
        Resource::TaskDefinition(family, revision) => {
            let key = ObjectKey::new(ECS_NAMESPACE, cx.scope.task_definition(&family, revision));
            Carrier { kept: &views.definitions, key }
        }
        Resource::CapacityProvider(name) => {
            let key = ObjectKey::new(ECS_NAMESPACE, cx.scope.object_name(&name));
            Carrier { kept: &views.providers, key }
        }
        Resource::Task(cluster, id) => Carrier { kept: &views.tasks, key: within(&cluster, id) },
        Resource::Service(cluster, name) => {
            let key = within(&cluster, cx.scope.object_name(&name));
            Carrier { kept: &views.services, key }
        }
        Resource::ContainerInstance(cluster, id) => {
            let found = cx.find_cluster(&cluster)?.ok_or_else(not_found)?;
            let rows = cx.instances(&found)?;
            let row = rows.iter().find(|r| r.id == id).ok_or_else(not_found)?;
            row.ensure(cx, &found).await?;
            Carrier { kept: &views.instances, key: within(&cluster, id) }
        }
        _ => return Err(parameter("The specified resource does not support tags.")),
    })
}

/// Changes the tags of the resource that the call names.
async fn change(
    cx: &Context<'_>,
    edit: impl Fn(&mut BTreeMap<String, Value>) -> Result<(), AwsError>,
) -> Result<(), AwsError> {
    let carrier = carrier(cx).await?;
    let written = cx
        .modify(carrier.kept, &carrier.key, |doc| {
            let own = items(doc.spec(), "/tags").iter();
            let mut tags: BTreeMap<String, Value> =
                own.map(|t| (text(t, "/key").to_string(), t.clone())).collect();
            edit(&mut tags)?;
            Ok(Some(json!({"spec": {"tags": tags.into_values().collect::<Vec<_>>()}})))
        })
        .await?;
    written.map(drop).ok_or_else(not_found)
}

/// TagResource.
pub async fn tag(cx: &Context<'_>) -> Outcome {
    let given = items(&cx.call.input, "/tags");
    check(given)?;
    change(cx, |tags| {
        tags.extend(given.iter().map(|t| (text(t, "/key").to_string(), t.clone())));
        match tags.keys().filter(|k| !k.starts_with("aws:")).count() > TAGS_MAX {
            true => Err(parameter(format!("The number of tags cannot exceed {TAGS_MAX}."))),
            false => Ok(()),
        }
    })
    .await?;
    Ok(json!({}))
}

/// UntagResource.
pub async fn untag(cx: &Context<'_>) -> Outcome {
    let keys = cx.texts("tagKeys");
    change(cx, |tags| {
        tags.retain(|key, _| !keys.contains(&key.as_str()));
        Ok(())
    })
    .await?;
    Ok(json!({}))
}

/// ListTagsForResource.
pub async fn list(cx: &Context<'_>) -> Outcome {
    let carrier = carrier(cx).await?;
    let object = match carrier.kept.get(&carrier.key) {
        Some(object) => object,
        None => cx.read(&carrier.kept.gvr, &carrier.key).await?.ok_or_else(not_found)?,
    };
    Ok(json!({"tags": items(doc(&object)?.spec(), "/tags")}))
}
