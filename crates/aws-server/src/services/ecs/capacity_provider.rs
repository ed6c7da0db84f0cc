//! Capacity providers: the two of Fargate are always there; those of Auto Scaling groups are objects in namespace `ecs`.

use super::context::{Context, doc, failure, parameter};
use super::paging::Page;
use crate::service::{AwsError, Outcome};
use client::{DeleteOptions, ObjectKey};
use ecs_model::capacity::{FARGATE, FARGATE_SPOT, is_fargate};
use ecs_model::doc::Doc;
use ecs_model::names::{ECS_NAMESPACE, Resource};
use ecs_model::taskdef::is_name;
use k8s_schema::gvr;
use machinery::kinds::get::{int, list, text, texts};
use machinery::patch::merge;
use serde_json::{Value, json};
use std::sync::Arc;

/// Most that one DescribeCapacityProviders shows.
const PAGE_MAX: usize = 10;
/// Most of an account and region.
const PROVIDERS_MAX: usize = 500;

/// The name in a name or ARN.
pub fn name_of(cx: &Context<'_>, given: &str) -> String {
    match cx.scope.parse(given) {
        Ok(Resource::CapacityProvider(name)) => name,
        _ => given.to_string(),
    }
}

fn arn(cx: &Context<'_>, name: &str) -> String {
    cx.scope.arn(&Resource::CapacityProvider(name.to_string()))
}

fn key(cx: &Context<'_>, name: &str) -> ObjectKey {
    ObjectKey::new(ECS_NAMESPACE, cx.scope.object_name(name))
}

/// A provider of the user's own.
pub fn find(cx: &Context<'_>, name: &str) -> Result<Option<Arc<Doc>>, AwsError> {
    let Some(object) = cx.views.providers.get(&key(cx, name)) else { return Ok(None) };
    let doc = doc(&object)?;
    Ok((text(doc.spec(), "/capacityProviderArn") == arn(cx, name)).then_some(doc))
}

fn not_found() -> AwsError {
    parameter("The specified capacity provider does not exist. Specify a valid name or ARN and try again.")
}

fn fargate(cx: &Context<'_>, name: &str) -> Value {
    json!({"capacityProviderArn": arn(cx, name), "name": name, "status": "ACTIVE", "type": name, "tags": []})
}

/// CreateCapacityProvider.
pub async fn create(cx: &Context<'_>) -> Outcome {
    let name = cx.text("name");
    let reserved = ["aws", "ecs", "fargate"].iter().any(|p| name.to_ascii_lowercase().starts_with(p));
    if !is_name(name) || reserved {
        return Err(parameter(
            "The specified capacity provider name is invalid. Up to 255 characters are allowed, including letters \
             (upper and lowercase), numbers, underscores, and hyphens. The name cannot be prefixed with \"aws\", \
             \"ecs\", or \"fargate\". Specify a valid name and try again.",
        ));
    }
    let given = &cx.call.input["autoScalingGroupProvider"];
    if text(given, "/autoScalingGroupArn").is_empty() {
        let words = "Managed Instances capacity providers are not implemented by Gantry: give an \
                     autoScalingGroupProvider.";
        return Err(AwsError::client("UnsupportedFeatureException", words));
    }
    super::tag::check(list(&cx.call.input, "/tags"))?;
    let mut provider = json!({
        "managedScaling": {"status": "DISABLED", "targetCapacity": 100, "minimumScalingStepSize": 1,
            "maximumScalingStepSize": 10_000, "instanceWarmupPeriod": 300},
        "managedTerminationProtection": "DISABLED", "managedDraining": "ENABLED",
    });
    merge(&mut provider, given);
    check(&provider)?;
    if find(cx, name)?.is_some() {
        return Err(parameter(
            "The specified capacity provider already exists. To change the configuration of an \
            existing capacity provider, update the capacity provider.",
        ));
    }
    if cx.views.providers.len() >= PROVIDERS_MAX {
        let words = "The maximum number of capacity providers has been reached.";
        return Err(AwsError::client("LimitExceededException", words));
    }
    let spec = json!({
        "capacityProviderArn": arn(cx, name), "name": name, "status": "ACTIVE", "type": "EC2_AUTOSCALING",
        "autoScalingGroupProvider": provider, "tags": cx.call.input.get("tags").cloned().unwrap_or(json!([])),
        "updateStatus": "CREATE_COMPLETE",
    });
    let key = key(cx, name);
    let put = cx.put(&cx.views.providers, ("CapacityProvider", &key), &spec, |_| Ok(spec.clone()));
    let object = put.await?;
    Ok(json!({"capacityProvider": doc(&object)?.spec()}))
}

fn check(provider: &Value) -> Result<(), AwsError> {
    let scaling = &provider["managedScaling"];
    for (at, least, most) in [
        ("/targetCapacity", 1, 100),
        ("/minimumScalingStepSize", 1, 10_000),
        ("/maximumScalingStepSize", 1, 10_000),
        ("/instanceWarmupPeriod", 0, 10_000),
    ] {
        if int(scaling, at).is_some_and(|n| n < least || n > most) {
            let member = at.trim_start_matches('/');
            return Err(parameter(format!("The {member} value must be between {least} and {most}.")));
        }
    }
    let protected = text(provider, "/managedTerminationProtection") == "ENABLED";
    if protected && text(scaling, "/status") != "ENABLED" {
        return Err(parameter(
            "The managed termination protection setting for the capacity provider is invalid. To \
            enable managed termination protection for a capacity provider, managed scaling must be enabled.",
        ));
    }
    Ok(())
}

/// UpdateCapacityProvider.
pub async fn update(cx: &Context<'_>) -> Outcome {
    let name = name_of(cx, cx.text("name"));
    find(cx, &name)?.ok_or_else(not_found)?;
    let change = &cx.call.input["autoScalingGroupProvider"];
    let written = cx
        .modify(&cx.views.providers, &key(cx, &name), |doc| {
            let mut provider = doc.spec()["autoScalingGroupProvider"].clone();
            if change.is_object() {
                merge(&mut provider, change);
            }
            check(&provider)?;
            Ok(Some(
                json!({"spec": {"autoScalingGroupProvider": provider, "updateStatus": "UPDATE_COMPLETE"}}),
            ))
        })
        .await?
        .ok_or_else(not_found)?;
    Ok(json!({"capacityProvider": doc(&written)?.spec()}))
}

/// DeleteCapacityProvider.
pub async fn delete(cx: &Context<'_>) -> Outcome {
    let name = name_of(cx, cx.text("capacityProvider"));
    if is_fargate(&name) {
        return Err(parameter("The specified capacity provider is reserved and cannot be deleted."));
    }
    let found = find(cx, &name)?.ok_or_else(not_found)?;
    for object in cx.views.clusters.list() {
        let cluster = doc(&object)?;
        let active = text(cluster.spec(), "/status") == "ACTIVE";
        if active && texts(cluster.spec(), "/capacityProviders").any(|p| p == name) {
            return Err(parameter("The specified capacity provider is in use and cannot be removed."));
        }
    }
    cx.delete(&gvr::ECS_CAPACITY_PROVIDERS, &key(cx, &name), DeleteOptions::default()).await?;
    let mut out = found.spec().clone();
    merge(&mut out, &json!({"status": "INACTIVE", "updateStatus": "DELETE_COMPLETE"}));
    Ok(json!({"capacityProvider": out}))
}

/// DescribeCapacityProviders.
pub async fn describe(cx: &Context<'_>) -> Outcome {
    let page = Page::of(cx.call, PAGE_MAX)?;
    let asked: Vec<String> = cx.texts("capacityProviders").iter().map(|p| name_of(cx, p)).collect();
    let mut rows: Vec<(String, Value)> =
        [FARGATE, FARGATE_SPOT].iter().map(|n| (n.to_string(), fargate(cx, n))).collect();
    for object in cx.views.providers.list() {
        let spec = doc(&object)?.spec().clone();
        let name = text(&spec, "/name").to_string();
        if text(&spec, "/capacityProviderArn") == arn(cx, &name) {
            rows.push((name, spec));
        }
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    if !cx.includes("TAGS") {
        rows.iter_mut().for_each(|(_, row)| row["tags"] = json!([]));
    }
    let missing: Vec<Value> = asked
        .iter()
        .filter(|n| !rows.iter().any(|(name, _)| name == *n))
        .map(|n| failure(&arn(cx, n), "MISSING"))
        .collect();
    rows.retain(|(name, _)| asked.is_empty() || asked.contains(name));
    let mut answer = page.answer("capacityProviders", rows);
    answer["failures"] = json!(missing);
    Ok(answer)
}
