//! DescribeContainerInstances, ListContainerInstances, UpdateContainerInstancesState, DeregisterContainerInstance.

use super::context::{Cluster, Context, failure, parameter};
use super::instance::{Row, tasks_by_node};
use super::paging::{PAGE_MAX, Page};
use crate::service::{AwsError, Outcome};
use ecs_model::names::Resource;
use ecs_model::query;
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};

/// Most instances in one DescribeContainerInstances.
const DESCRIBE_MAX: usize = 100;
/// Most instances in one UpdateContainerInstancesState.
const UPDATE_MAX: usize = 10;

/// The instances that were asked for, and a failure for each that is not there.
pub fn named(
    cx: &Context<'_>,
    cluster: &Cluster,
    asked: &[&str],
) -> Result<(Vec<Row>, Vec<Value>), AwsError> {
    let mut rows = cx.instances(cluster)?;
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for given in asked {
        let id = cx.named(cluster, "container instance", given)?;
        match rows.iter().position(|r| r.id == id) {
            Some(at) => found.push(rows.swap_remove(at)),
            None if found.iter().any(|r: &Row| r.id == id) => {}
            None => {
                let arn = cx.scope.arn(&Resource::ContainerInstance(cluster.name.clone(), id));
                failures.push(failure(&arn, "MISSING"));
            }
        }
    }
    Ok((found, failures))
}

fn shown(cx: &Context<'_>, cluster: &Cluster, rows: &[Row]) -> Result<Vec<Value>, AwsError> {
    let tasks = tasks_by_node(cx, cluster)?;
    let with_tags = cx.includes("TAGS");
    let on = |row: &Row| tasks.get(&row.node_name).map_or(&[][..], Vec::as_slice).to_vec();
    Ok(rows.iter().map(|row| row.describe(cx, &on(row), with_tags)).collect())
}

/// DescribeContainerInstances.
pub async fn describe(cx: &Context<'_>) -> Outcome {
    let asked = cx.texts("containerInstances");
    refuse_if(asked.is_empty(), || parameter("Container instance cannot be empty."))?;
    if asked.len() > DESCRIBE_MAX {
        return Err(parameter(format!("containerInstances can have at most {DESCRIBE_MAX} entries.")));
    }
    let cluster = cx.cluster().await?;
    let (rows, failures) = named(cx, &cluster, &asked)?;
    Ok(json!({"containerInstances": shown(cx, &cluster, &rows)?, "failures": failures}))
}

/// ListContainerInstances.
pub async fn list(cx: &Context<'_>) -> Outcome {
    let page = Page::of(cx.call, PAGE_MAX)?;
    let filter = match cx.text("filter") {
        "" => None,
        text => Some(query::parse(text).map_err(|e| parameter(format!("Invalid filter: {e}")))?),
    };
    let cluster = cx.cluster().await?;
    let tasks = tasks_by_node(cx, &cluster)?;
    let status = cx.text("status");
    let mut out = Vec::new();
    for row in cx.instances(&cluster)? {
        let on = tasks.get(&row.node_name).map_or(&[][..], Vec::as_slice);
        let selected = filter.as_ref().is_none_or(|q| q.selects(&row.candidate(cx, on).facts));
        if selected && (status.is_empty() || status == row.status()) {
            out.push((row.id.clone(), json!(row.arn)));
        }
    }
    Ok(page.answer("containerInstanceArns", out))
}

/// UpdateContainerInstancesState.
pub async fn update_state(cx: &Context<'_>) -> Outcome {
    let (asked, status) = (cx.texts("containerInstances"), cx.text("status"));
    if !matches!(status, "ACTIVE" | "DRAINING") {
        return Err(parameter("Container instance status should be one of [ACTIVE,DRAINING]"));
    }
    if asked.is_empty() || asked.len() > UPDATE_MAX {
        return Err(parameter(format!("containerInstances must have between 1 and {UPDATE_MAX} entries.")));
    }
    let cluster = cx.cluster().await?;
    let (rows, failures) = named(cx, &cluster, &asked)?;
    for row in &rows {
        row.write(cx, &cluster, |_| Ok(json!({"status": status}))).await?;
    }
    let (rows, _) = named(cx, &cluster, &asked)?;
    Ok(json!({"containerInstances": shown(cx, &cluster, &rows)?, "failures": failures}))
}

/// DeregisterContainerInstance: the node is none of this cluster's any more.
pub async fn deregister(cx: &Context<'_>) -> Outcome {
    let cluster = cx.cluster().await?;
    let (rows, _) = named(cx, &cluster, &[cx.text("containerInstance")])?;
    let row = rows.first().ok_or_else(|| parameter("Referenced container instance was not found."))?;
    let tasks = tasks_by_node(cx, &cluster)?;
    if tasks.contains_key(&row.node_name) && cx.call.input["force"] != true {
        return Err(parameter("Found running tasks on the instance."));
    }
    let mut out = shown(cx, &cluster, &rows)?;
    row.write(cx, &cluster, |_| Ok(json!({"registered": false}))).await?;
    let mut shown = out.swap_remove(0);
    shown["status"] = json!("INACTIVE");
    Ok(json!({"containerInstance": shown}))
}
