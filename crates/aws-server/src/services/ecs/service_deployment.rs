//! Service deployments and revisions: what the scheduler wrote down, and a user's wish to stop.

use super::context::{Context, client_error, doc, failure, parameter};
use super::paging::{PAGE_MAX, Page};
use super::service::{find, key, not_found};
use crate::service::{AwsError, Outcome};
use client::ObjectKey;
use client::cache::Cache;
use ecs_model::names::Resource;
use ecs_model::service::{SERVICE_DEPLOYMENT, STOP_REQUEST};
use ecs_model::service_record::{KEPT, brief, deployment_arn, deployment_object, revision_object};
use machinery::kinds::get::{text, texts};
use serde_json::{Value, json};

/// Most ARNs of one Describe call.
const DESCRIBE_MAX: usize = 20;

fn unknown() -> AwsError {
    AwsError::client("ServiceDeploymentNotFoundException", "Service deployment not found.")
}

/// The documents of those ARNs that there are, failures for the others.
fn found(
    cx: &Context<'_>,
    member: &str,
    cache: &Cache,
    object_of: impl Fn(Resource) -> Option<([String; 3], String)>,
) -> Result<(Vec<Value>, Vec<Value>), AwsError> {
    let asked = cx.texts(member);
    if asked.is_empty() || asked.len() > DESCRIBE_MAX {
        return Err(parameter(format!("{member} must have between 1 and {DESCRIBE_MAX} entries.")));
    }
    let (mut out, mut failures) = (Vec::new(), Vec::new());
    for arn in asked {
        let Some((parts, name)) = object_of(cx.parse_arn(arn)?) else {
            return Err(parameter(format!("Invalid ARN: {arn}")));
        };
        let key = ObjectKey::new(cx.scope.cluster_namespace(&parts[0]), name);
        let Some(object) = cache.get(&key) else {
            failures.push(failure(arn, "MISSING"));
            continue;
        };
        let mut spec = doc(&object)?.spec().clone();
        spec.as_object_mut().map(|members| members.remove(KEPT));
        out.push(spec);
    }
    Ok((out, failures))
}

/// DescribeServiceDeployments.
pub async fn describe(cx: &Context<'_>) -> Outcome {
    let (deployments, failures) =
        found(cx, "serviceDeploymentArns", &cx.views.service_deployments, |r| match r {
            Resource::ServiceDeployment(parts) => Some((parts.clone(), deployment_object(&parts[2]))),
            _ => None,
        })?;
    Ok(json!({"serviceDeployments": deployments, "failures": failures}))
}

/// DescribeServiceRevisions.
pub async fn describe_revisions(cx: &Context<'_>) -> Outcome {
    let (revisions, failures) = found(cx, "serviceRevisionArns", &cx.views.service_revisions, |r| match r {
        Resource::ServiceRevision(parts) => Some((parts.clone(), revision_object(&parts[2]))),
        _ => None,
    })?;
    Ok(json!({"serviceRevisions": revisions, "failures": failures}))
}

/// ListServiceDeployments: the newest first.
pub async fn list(cx: &Context<'_>) -> Outcome {
    let page = Page::of(cx.call, PAGE_MAX)?;
    let cluster = cx.cluster().await?;
    let name = cx.named(&cluster, "service", cx.text("service"))?;
    let service = find(cx, &cluster, &name)?.ok_or_else(not_found)?;
    let states: Vec<&str> = texts(&cx.call.input, "/status").collect();
    let time = |at: &str| cx.call.input["createdAt"][at].as_f64();
    let (after, before) = (time("after").unwrap_or(f64::MIN), time("before").unwrap_or(f64::MAX));
    let mut rows = Vec::new();
    for object in cx.views.service_deployments.list_in(&cluster.namespace) {
        let found = doc(&object)?;
        let spec = found.spec();
        let created = spec["createdAt"].as_f64().unwrap_or(0.0);
        let asked = states.is_empty() || states.contains(&text(spec, "/status"));
        if spec["serviceArn"] == service.spec()["serviceArn"] && asked && (after..=before).contains(&created)
        {
            // Keys rise as times fall.
            rows.push((format!("{:020}", u64::MAX - (created * 1000.0) as u64), brief(spec)));
        }
    }
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(page.answer("serviceDeployments", rows))
}

/// StopServiceDeployment: the scheduler hears it.
pub async fn stop(cx: &Context<'_>) -> Outcome {
    let arn = cx.text("serviceDeploymentArn");
    let Resource::ServiceDeployment([cluster, name, _]) = cx.parse_arn(arn)? else {
        return Err(parameter(format!("Invalid ARN: {arn}")));
    };
    let cluster = cx.find_cluster(&cluster)?.ok_or_else(unknown)?;
    let kind = if cx.text("stopType") == "ABORT" { "ABORT" } else { "ROLLBACK" };
    let written = cx
        .modify(&cx.views.services, &key(cx, &cluster, &name), |service| {
            let record = &service.status()[SERVICE_DEPLOYMENT];
            let id = text(record, "/id");
            if id.is_empty() || deployment_arn(text(service.spec(), "/serviceArn"), id) != arn {
                return Err(unknown());
            }
            if text(record, "/status") != "IN_PROGRESS" {
                return Err(AwsError::client(
                    "ConflictException",
                    "The service deployment is not in a state in which it can be stopped.",
                ));
            }
            Ok(Some(json!({"spec": {STOP_REQUEST: {"id": id, "type": kind}}})))
        })
        .await?;
    written.ok_or_else(|| client_error("Service not found."))?;
    Ok(json!({"serviceDeploymentArn": arn}))
}
