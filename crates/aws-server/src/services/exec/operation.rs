//! `ExecuteCommand`: checks the task, grants a session. Stands in front of the ECS service's other operations.

use super::sessions::Sessions;
use super::{PATH_PREFIX, Target, words};
use crate::service::{AwsError, Call, Outcome, Service, Shared, Streaming};
use client::ObjectKey;
use ecs_model::lower::container_name;
use ecs_model::names::{ArnError, DEFAULT_CLUSTER, Place, Resource, Scope};
use ecs_model::refusal::refuse_if;
use futures_util::future::BoxFuture;
use k8s_schema::Gvr;
use k8s_schema::gvr::{ECS_CLUSTERS, ECS_TASKS};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

const NAME: &str = "ExecuteCommand";
/// AWS's words where a task cannot be reached by exec.
const NOT_ENABLED: &str = "The execute command failed because execute command was not enabled when the task was run or \
    the execute command agent isn’t running. Wait and try again or run a new task with execute command enabled and try \
    again.";
const NOT_CONNECTED: &str = "The execute command failed due to an internal error. Try again later.";

/// The services, with `ExecuteCommand` before the ECS one.
pub fn with_exec(
    services: Vec<Arc<dyn Service>>,
    shared: &Shared,
    sessions: &Arc<Sessions>,
) -> Vec<Arc<dyn Service>> {
    let wrap = |inner: Arc<dyn Service>| -> Arc<dyn Service> {
        match inner.name() {
            "ecs" => Arc::new(WithExec { inner, shared: shared.clone(), sessions: sessions.clone() }),
            _ => inner,
        }
    };
    services.into_iter().map(wrap).collect()
}

struct WithExec {
    inner: Arc<dyn Service>,
    shared: Shared,
    sessions: Arc<Sessions>,
}

impl Service for WithExec {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn served(&self) -> Vec<&'static str> {
        let mut names = self.inner.served();
        names.retain(|name| *name != NAME);
        names.push(NAME);
        names
    }

    fn call<'a>(&'a self, call: &'a Call) -> BoxFuture<'a, Outcome> {
        match call.operation {
            NAME => Box::pin(execute(&self.shared, &self.sessions, call)),
            _ => self.inner.call(call),
        }
    }

    fn stream<'a>(&'a self, call: &'a Call) -> Option<BoxFuture<'a, Streaming>> {
        self.inner.stream(call)
    }
}

fn invalid(message: impl Into<String>) -> AwsError {
    AwsError::client("InvalidParameterException", message)
}

fn text<'a>(value: &'a Value, member: &str) -> &'a str {
    value[member].as_str().unwrap_or_default()
}

async fn object(
    shared: &Shared,
    gvr: &Gvr,
    (namespace, name): (&str, &str),
) -> Result<Option<Value>, AwsError> {
    match shared.client.get(gvr, &ObjectKey::new(namespace, name)).await {
        Ok(object) => Ok(object.value().ok()),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => {
            tracing::warn!(%error, "ExecuteCommand");
            Err(AwsError::server("ServerException", "Service Unavailable. Please try again later."))
        }
    }
}

/// The short name in a cluster's or task's name or ARN.
fn short(scope: &Scope, given: &str) -> Result<String, AwsError> {
    if !given.starts_with("arn:") {
        return Ok(given.into());
    }
    match scope.parse(given) {
        Ok(Resource::Cluster(name) | Resource::Task(_, name)) => Ok(name),
        Ok(_) | Err(ArnError::Malformed) => {
            Err(invalid("Invalid identifier: Identifier is of the wrong kind."))
        }
        Err(ArnError::Account | ArnError::Region) => {
            Err(invalid("Invalid identifier: Unexpected account or region."))
        }
    }
}

/// The container that is meant: the one named, or the only one.
fn container<'a>(containers: &'a [Value], wanted: &str) -> Result<&'a Value, AwsError> {
    match (wanted, containers) {
        ("", [only]) => Ok(only),
        ("", _) => {
            Err(invalid("A container name must be specified, since the task has more than one container."))
        }
        (wanted, list) => list
            .iter()
            .find(|c| text(c, "name") == wanted)
            .ok_or_else(|| invalid(format!("The container name {wanted} does not belong to the task."))),
    }
}

async fn execute(shared: &Shared, sessions: &Sessions, call: &Call) -> Outcome {
    let input = &call.input;
    refuse_if(input["interactive"] != true, || invalid("Interactive is the only mode supported currently."))?;
    let defaults = Place::new(shared.account.as_str(), shared.region.as_str());
    let scope = Scope { place: Place::new(call.caller.account.as_str(), call.region.as_str()), defaults };
    let cluster = match text(input, "cluster") {
        "" => DEFAULT_CLUSTER.to_string(),
        given => short(&scope, given)?,
    };
    let namespace = scope.cluster_namespace(&cluster);
    let task_id = short(&scope, text(input, "task"))?;
    let Some(task) = object(shared, &ECS_TASKS, (&namespace, &task_id)).await? else {
        let name = scope.object_name(&cluster);
        let known = object(shared, &ECS_CLUSTERS, (&namespace, &name)).await?.is_some();
        return Err(match known {
            true => invalid("The referenced task was not found."),
            false => AwsError::client("ClusterNotFoundException", "Cluster not found."),
        });
    };
    let (spec, status) = (&task["spec"], &task["status"]);
    refuse_if(spec["enableExecuteCommand"] != true, || invalid(NOT_ENABLED))?;
    let containers = status["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let container = container(containers, text(input, "container"))?;
    if text(status, "lastStatus") != "RUNNING" || text(container, "lastStatus") != "RUNNING" {
        return Err(AwsError::client("TargetNotConnectedException", NOT_CONNECTED));
    }
    let command = words::split(text(input, "command")).filter(|words| !words.is_empty());
    let command =
        command.ok_or_else(|| invalid("The command cannot be read: a quotation mark is not closed."))?;
    let name = text(container, "name");
    let target = Target { namespace, pod: task_id, container: container_name(name) };
    let (session, token) = sessions.grant(target, command, Instant::now());
    // http becomes ws, https wss.
    let endpoint = call.endpoint.replacen("http", "ws", 1);
    Ok(json!({
        "clusterArn": scope.arn(&Resource::Cluster(cluster)), "taskArn": spec["taskArn"],
        "containerArn": container["containerArn"], "containerName": name, "interactive": true,
        "session": {
            "sessionId": session, "tokenValue": token,
            "streamUrl": format!("{endpoint}{PATH_PREFIX}{session}"),
        },
    }))
}
