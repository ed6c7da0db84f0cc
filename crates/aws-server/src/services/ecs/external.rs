//! Operations whose subject cannot be here: task sets (only of services with an EXTERNAL controller, which are
//! refused), and what Amazon's own agent tells of instances (here nodes join by `gantry agent`). Each looks at what it
//! was asked about and refuses with the error that the model has for it.

use super::context::{Cluster, Context, client_error, failure, parameter};
use super::instance_ops::named;
use super::service::{find, not_found};
use crate::service::{AwsError, Outcome};
use machinery::kinds::get::text;
use serde_json::{Value, json};

/// The service that a call names, which must be ACTIVE.
async fn service(cx: &Context<'_>) -> Result<(), AwsError> {
    let cluster = cx.cluster().await?;
    let name = cx.named(&cluster, "service", cx.text("service"))?;
    match find(cx, &cluster, &name)? {
        None => Err(not_found()),
        Some(found) if text(found.spec(), "/status") != "ACTIVE" => Err(super::service::not_active()),
        Some(_) => Ok(()),
    }
}

/// CreateTaskSet.
pub async fn create_task_set(cx: &Context<'_>) -> Outcome {
    service(cx).await?;
    Err(parameter("Task sets can only be created for services that use the EXTERNAL deployment controller."))
}

/// DeleteTaskSet, UpdateTaskSet, UpdateServicePrimaryTaskSet: there is none.
pub async fn no_task_set(cx: &Context<'_>) -> Outcome {
    service(cx).await?;
    Err(AwsError::client("TaskSetNotFoundException", "The specified task set was not found."))
}

/// DescribeTaskSets.
pub async fn describe_task_sets(cx: &Context<'_>) -> Outcome {
    service(cx).await?;
    let failures: Vec<Value> = cx.texts("taskSets").iter().map(|set| failure(set, "MISSING")).collect();
    Ok(json!({"taskSets": [], "failures": failures}))
}

/// RegisterContainerInstance, DiscoverPollEndpoint, Submit…: what Amazon's agent does.
pub async fn agent(cx: &Context<'_>) -> Outcome {
    let _: Cluster = cx.cluster().await?;
    Err(client_error(format!(
        "{} is for the Amazon ECS container agent. Container instances here are Gantry's nodes: join one by \
         'gantry agent'.",
        cx.call.operation
    )))
}

/// UpdateContainerAgent: a node's agent is as new as its gantry.
pub async fn update_agent(cx: &Context<'_>) -> Outcome {
    let cluster = cx.cluster().await?;
    let (found, _) = named(cx, &cluster, &[cx.text("containerInstance")])?;
    match found.is_empty() {
        true => Err(client_error("The referenced container instance was not found.")),
        false => Err(AwsError::client(
            "NoUpdateAvailableException",
            "There is no update available for your container agent.",
        )),
    }
}
