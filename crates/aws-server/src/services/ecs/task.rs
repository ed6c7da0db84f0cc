//! StopTask, DescribeTasks, ListTasks.

use super::context::{Cluster, Context, doc, failure, parameter};
use super::paging::{PAGE_MAX, Page};
use crate::service::Outcome;
use ecs_model::doc::Doc;
use ecs_model::names::{Arn, Resource};
use ecs_model::refusal::refuse_if;
use ecs_model::task::{describe as shown, desired_status};
use machinery::kinds::get::{has, text};
use serde_json::{Value, json};

/// Most tasks in one DescribeTasks.
const DESCRIBE_MAX: usize = 100;
/// Longest reason of a StopTask.
const REASON_MAX: usize = 1024;

/// StopTask.
pub async fn stop(cx: &Context<'_>) -> Outcome {
    let cluster = cx.cluster().await?;
    let id = cx.task_id(&cluster, cx.text("task"))?;
    let missing = || parameter("The referenced task was not found.");
    let object = cx.task(&cluster, &id).ok_or_else(missing)?;
    let reason = match cx.text("reason") {
        "" => "Task stopped by user",
        reason if reason.len() > REASON_MAX => {
            return Err(parameter(format!("reason can have at most {REASON_MAX} characters.")));
        }
        reason => reason,
    };
    let written = cx
        .modify(&cx.views.tasks, &object.key, |task| {
            let mut patch =
                json!({"spec": {"desiredStatus": "STOPPED", "stopCode": "UserInitiated", "stoppedReason": reason}});
            if leaves(cx, &cluster, task) {
                patch["spec"]["deactivating"] = json!(cx.now());
            }
            Ok((desired_status(task.spec(), task.status()) == "RUNNING").then_some(patch))
        })
        .await?
        .ok_or_else(missing)?;
    let task = doc(&written)?;
    Ok(json!({"task": shown(task.spec(), task.status())}))
}

/// Does a task leave load balancers before it stops? Its service's scheduler says when it has.
fn leaves(cx: &Context<'_>, cluster: &Cluster, task: &Doc) -> bool {
    let service = text(task.spec(), "/group").strip_prefix("service:");
    let service = service.and_then(|name| super::service::find(cx, cluster, name).ok().flatten());
    text(task.status(), "/lastStatus") == "RUNNING"
        && service.is_some_and(|s| has(s.spec(), "/loadBalancers/0"))
}

/// DescribeTasks.
pub async fn describe(cx: &Context<'_>) -> Outcome {
    let asked = cx.texts("tasks");
    refuse_if(asked.is_empty(), || parameter("Tasks cannot be empty."))?;
    if asked.len() > DESCRIBE_MAX {
        return Err(parameter(format!("tasks can have at most {DESCRIBE_MAX} entries.")));
    }
    let cluster = cx.cluster().await?;
    let with_tags = cx.includes("TAGS");
    let (mut tasks, mut failures) = (Vec::<Value>::new(), Vec::new());
    for given in asked {
        let id = cx.task_id(&cluster, given)?;
        let Some(object) = cx.task(&cluster, &id) else {
            let arn = cx.scope.arn(&Resource::Task(cluster.name.clone(), id));
            failures.push(failure(&arn, "MISSING"));
            continue;
        };
        let task = doc(&object)?;
        let mut out = shown(task.spec(), task.status());
        if !with_tags {
            out["tags"] = json!([]);
        }
        if !tasks.iter().any(|t| t["taskArn"] == out["taskArn"]) {
            tasks.push(out);
        }
    }
    Ok(json!({"tasks": tasks, "failures": failures}))
}

/// ListTasks.
pub async fn list(cx: &Context<'_>) -> Outcome {
    let page = Page::of(cx.call, PAGE_MAX)?;
    let cluster = cx.cluster().await?;
    let desired = if cx.text("desiredStatus").is_empty() { "RUNNING" } else { cx.text("desiredStatus") };
    let instance = match cx.text("containerInstance") {
        "" => String::new(),
        given => cx.named(&cluster, "container instance", given)?,
    };
    let service = cx.text("serviceName");
    let group = match service.rsplit('/').next() {
        Some(name) if !service.is_empty() => format!("service:{name}"),
        _ => String::new(),
    };
    let is = |wanted: &str, own: &str| wanted.is_empty() || wanted == own;
    let mut out = Vec::new();
    for object in cx.views.tasks.list_in(&cluster.namespace) {
        let task = doc(&object)?;
        let spec = task.spec();
        let selected = desired == desired_status(spec, task.status())
            && is(&group, text(spec, "/group"))
            && is(cx.text("startedBy"), text(spec, "/startedBy"))
            && is(cx.text("launchType"), text(spec, "/launchType"))
            && is(cx.text("family"), &family(spec))
            && is(&instance, text(spec, "/containerInstanceArn").rsplit('/').next().unwrap_or_default());
        if selected {
            out.push((object.key.name.to_string(), spec["taskArn"].clone()));
        }
    }
    Ok(page.answer("taskArns", out))
}

fn family(spec: &Value) -> String {
    let resource = Arn::parse(text(spec, "/taskDefinitionArn")).and_then(|a| Resource::parse(a.resource));
    match resource {
        Some(Resource::TaskDefinition(family, _)) => family,
        _ => String::new(),
    }
}
