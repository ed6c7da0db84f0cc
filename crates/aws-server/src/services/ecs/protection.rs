//! Task protection against scale-in: a member of the task's spec that the service scheduler reads.

use super::context::{Cluster, Context, doc, failure, parameter};
use crate::service::{AwsError, Outcome};
use client::Object;
use ecs_model::names::Resource;
use ecs_model::refusal::refuse_if;
use ecs_model::task::desired_status;
use machinery::kinds::get::text;
use serde_json::{Value, json};
use std::sync::Arc;

/// Most tasks of one call.
const TASKS_MAX: usize = 10;
/// How long a protection may last, and lasts when nothing is said: minutes.
const MINUTES: std::ops::RangeInclusive<i64> = 1..=2880;
const MINUTES_DEFAULT: i64 = 120;

/// The named tasks (all of the cluster's services where none is named) and a failure for each that cannot be had.
fn tasks(cx: &Context<'_>, cluster: &Cluster) -> Result<(Vec<Arc<Object>>, Vec<Value>), AwsError> {
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    let of_service = |object: &Object| -> Result<bool, AwsError> {
        let task = doc(object)?;
        let running = desired_status(task.spec(), task.status()) == "RUNNING";
        Ok(running && text(task.spec(), "/group").starts_with("service:"))
    };
    let asked = cx.texts("tasks");
    refuse_if(asked.len() > TASKS_MAX, || parameter(format!("tasks can have at most {TASKS_MAX} entries.")))?;
    for given in &asked {
        let id = cx.task_id(cluster, given)?;
        let arn = cx.scope.arn(&Resource::Task(cluster.name.clone(), id.clone()));
        match cx.task(cluster, &id) {
            None => failures.push(failure(&arn, "MISSING")),
            Some(object) if of_service(&object)? => found.push(object),
            Some(_) => failures.push(failure(&arn, "TASK_NOT_VALID")),
        }
    }
    if asked.is_empty() {
        for object in cx.views.tasks.list_in(&cluster.namespace) {
            if of_service(&object)? {
                found.push(object);
            }
        }
    }
    Ok((found, failures))
}

fn shown(spec: &Value, now: f64) -> Value {
    let until = spec["protection"]["expirationDate"].as_f64();
    let on = spec["protection"]["enabled"] == true && until.is_some_and(|u| u > now);
    let mut out = json!({"taskArn": spec["taskArn"], "protectionEnabled": on});
    if on {
        out["expirationDate"] = json!(until);
    }
    out
}

/// GetTaskProtection.
pub async fn get(cx: &Context<'_>) -> Outcome {
    let cluster = cx.cluster().await?;
    let (found, failures) = tasks(cx, &cluster)?;
    let mut out = Vec::new();
    for object in found {
        out.push(shown(doc(&object)?.spec(), cx.now()));
    }
    Ok(json!({"protectedTasks": out, "failures": failures}))
}

/// UpdateTaskProtection.
pub async fn update(cx: &Context<'_>) -> Outcome {
    let cluster = cx.cluster().await?;
    refuse_if(cx.texts("tasks").is_empty(), || parameter("Tasks cannot be empty."))?;
    let on = cx.call.input["protectionEnabled"] == true;
    let minutes = cx.call.input["expiresInMinutes"].as_i64().unwrap_or(MINUTES_DEFAULT);
    if !MINUTES.contains(&minutes) {
        let (least, most) = (MINUTES.start(), MINUTES.end());
        return Err(parameter(format!("expiresInMinutes must be between {least} and {most}.")));
    }
    let protection = match on {
        true => json!({"enabled": true, "expirationDate": cx.now() + minutes as f64 * 60.0}),
        false => Value::Null,
    };
    let (found, mut failures) = tasks(cx, &cluster)?;
    let mut out = Vec::new();
    for object in found {
        let written = cx
            .modify(&cx.views.tasks, &object.key, |_| Ok(Some(json!({"spec": {"protection": protection}}))))
            .await?;
        match written {
            Some(written) => out.push(shown(doc(&written)?.spec(), cx.now())),
            None => failures.push(failure(text(doc(&object)?.spec(), "/taskArn"), "MISSING")),
        }
    }
    Ok(json!({"protectedTasks": out, "failures": failures}))
}
