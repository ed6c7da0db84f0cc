//! Tags of ECS resources: a list in `spec.tags` of whatever carries them.

use super::Ecs;
use super::context::{Context, doc, internal, parameter};
use crate::service::{AwsError, Call, Outcome};
use client::ObjectKey;
use client::cache::Cache;
use ecs_model::names::{ECS_NAMESPACE, Resource};
use k8s_schema::{Gvr, gvr};
use machinery::kinds::get::{list as items, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Most tags of a resource.
const TAGS_MAX: usize = 50;
const KEY_MAX: usize = 128;
const VALUE_MAX: usize = 256;

/// Refuses tags that AWS refuses.
pub fn check(tags: &[Value]) -> Result<(), AwsError> {
    if tags.len() > TAGS_MAX {
        return Err(parameter(format!("The number of tags cannot exceed {TAGS_MAX}.")));
    }
    let mut seen = std::collections::BTreeSet::new();
    for tag in tags {
        let (key, value) = (text(tag, "/key"), text(tag, "/value"));
        if key.is_empty() || key.chars().count() > KEY_MAX || value.chars().count() > VALUE_MAX {
            return Err(parameter("Invalid tag: keys have 1 to 128 characters and values at most 256."));
        }
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(parameter("Tag keys that start with 'aws:' are reserved."));
        }
        if !seen.insert(key) {
            return Err(parameter(format!("Duplicate tag key found: {key}")));
        }
    }
    Ok(())
}

/// Where a resource is kept.
struct Carrier<'a> {
    gvr: Gvr,
    cache: &'a Cache,
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
    if short {
        return Err(parameter("Long arn format must be used for tagging operations"));
    }
    let views = cx.views;
    let within = |cluster: &str, name: String| ObjectKey::new(cx.scope.cluster_namespace(cluster), name);
    Ok(match cx.parse_arn(arn)? {
        Resource::Cluster(name) => {
            Carrier { gvr: gvr::ECS_CLUSTERS, cache: &views.clusters, key: cx.cluster_key(&name) }
        }
        Resource::TaskDefinition(family, revision) => {
            let key = ObjectKey::new(ECS_NAMESPACE, cx.scope.task_definition(&family, revision));
            Carrier { gvr: gvr::ECS_TASK_DEFINITIONS, cache: &views.definitions, key }
        }
        Resource::CapacityProvider(name) => {
            let key = ObjectKey::new(ECS_NAMESPACE, cx.scope.object_name(&name));
            Carrier { gvr: gvr::ECS_CAPACITY_PROVIDERS, cache: &views.providers, key }
        }
        Resource::Task(cluster, id) => {
            Carrier { gvr: gvr::ECS_TASKS, cache: &views.tasks, key: within(&cluster, id) }
        }
        Resource::Service(cluster, name) => {
            let key = within(&cluster, cx.scope.object_name(&name));
            Carrier { gvr: gvr::ECS_SERVICES, cache: &views.services, key }
        }
        Resource::ContainerInstance(cluster, id) => {
            let found = cx.find_cluster(&cluster)?.ok_or_else(not_found)?;
            let rows = cx.instances(&found)?;
            let row = rows.iter().find(|r| r.id == id).ok_or_else(not_found)?;
            row.ensure(cx, &found).await?;
            Carrier { gvr: gvr::ECS_CONTAINER_INSTANCES, cache: &views.instances, key: within(&cluster, id) }
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
        .modify(&carrier.gvr, carrier.cache, &carrier.key, |doc| {
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
pub async fn tag(ecs: &Ecs, call: &Call) -> Outcome {
    let cx = ecs.enter(call).await;
    let given = items(&call.input, "/tags");
    check(given)?;
    change(&cx, |tags| {
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
pub async fn untag(ecs: &Ecs, call: &Call) -> Outcome {
    let cx = ecs.enter(call).await;
    let keys = cx.texts("tagKeys");
    change(&cx, |tags| {
        tags.retain(|key, _| !keys.contains(&key.as_str()));
        Ok(())
    })
    .await?;
    Ok(json!({}))
}

/// ListTagsForResource.
pub async fn list(ecs: &Ecs, call: &Call) -> Outcome {
    let cx = ecs.enter(call).await;
    let carrier = carrier(&cx).await?;
    let object = match carrier.cache.get(&carrier.key) {
        Some(object) => object,
        None => match cx.shared.client.get(&carrier.gvr, &carrier.key).await {
            Ok(object) => object,
            Err(error) if error.is_not_found() => return Err(not_found()),
            Err(error) => return Err(internal(error)),
        },
    };
    Ok(json!({"tags": items(doc(&object)?.spec(), "/tags")}))
}
