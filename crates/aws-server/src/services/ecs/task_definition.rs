//! Task definitions: one object a revision in namespace `ecs`.
//!
//! Invariant: a revision is never used again. The highest revision of a family is therefore kept, even when it is
//! DELETE_IN_PROGRESS; lower ones that are, and that no task uses, go at the family's next write.

use super::context::{Context, client_error, doc, failure, parameter};
use super::paging::{PAGE_MAX, Page};
use crate::service::{AwsError, Outcome};
use client::{DeleteOptions, Object};
use ecs_model::doc::object;
use ecs_model::names::{ECS_NAMESPACE, Resource};
use ecs_model::refusal::refuse_if;
use ecs_model::task::is_stopped;
use ecs_model::taskdef::{self, Registration};
use k8s_schema::gvr;
use machinery::kinds::get::{list as items, text};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Attempts to get the next revision before the caller is told that others are faster.
const ATTEMPTS: usize = 10;
/// Most definitions in one DeleteTaskDefinitions.
const DELETE_MAX: usize = 10;

/// RegisterTaskDefinition.
pub async fn register(cx: &Context<'_>) -> Outcome {
    let checked = taskdef::check(&cx.call.input, &cx.call.caller.account)?;
    super::tag::check(items(&cx.call.input, "/tags"))?;
    let tags = cx.call.input.get("tags").cloned().unwrap_or(json!([]));
    let family = text(&checked, "/family").to_string();
    let place = &cx.scope.place;
    let known = cx.views.families.lock().revisions(&place.account, &place.region, &family);
    let mut revision = known.keys().next_back().copied().unwrap_or(0);
    cx.ensure_namespace(ECS_NAMESPACE).await?;
    for _ in 0..ATTEMPTS {
        revision += 1;
        let registration = Registration {
            arn: cx.scope.arn(&Resource::TaskDefinition(family.clone(), revision)),
            revision,
            registered_at: cx.now(),
            registered_by: &cx.call.caller.arn,
        };
        let mut spec = taskdef::identify(checked.clone(), &registration);
        spec["tags"] = tags.clone();
        let name = cx.scope.task_definition(&family, revision);
        let body = object("TaskDefinition", ECS_NAMESPACE, &name, spec);
        if let Some(written) = cx.create(&cx.views.definitions, body).await? {
            collect(cx, &family).await?;
            return answer(&written, true);
        }
    }
    Err(client_error("Too many concurrent attempts to create a new revision of the specified family."))
}

/// The definition and, beside it, its tags.
fn answer(object: &Object, with_tags: bool) -> Outcome {
    let mut spec = doc(object)?.spec().clone();
    let tags = spec.as_object_mut().and_then(|members| members.remove("tags"));
    let mut out = json!({"taskDefinition": spec});
    if with_tags {
        out["tags"] = tags.unwrap_or(json!([]));
    }
    Ok(out)
}

/// Removes deleted revisions below the highest that no task uses.
async fn collect(cx: &Context<'_>, family: &str) -> Result<(), AwsError> {
    let place = &cx.scope.place;
    let mut revisions = cx.views.families.lock().revisions(&place.account, &place.region, family);
    revisions.pop_last();
    let mut deleted = Vec::new();
    for object in revisions.into_values() {
        if text(doc(&object)?.spec(), "/status") == "DELETE_IN_PROGRESS" {
            deleted.push(object);
        }
    }
    if deleted.is_empty() {
        return Ok(());
    }
    let mut used = BTreeSet::new();
    for object in cx.views.tasks.list() {
        let task = doc(&object)?;
        if !is_stopped(task.status()) {
            used.insert(text(task.spec(), "/taskDefinitionArn").to_string());
        }
    }
    for object in deleted {
        if used.contains(text(doc(&object)?.spec(), "/taskDefinitionArn")) {
            continue;
        }
        let options = DeleteOptions { uid: Some(object.uid().to_string()), ..DeleteOptions::default() };
        cx.delete(&gvr::ECS_TASK_DEFINITIONS, &object.key, options).await?;
    }
    Ok(())
}

/// DescribeTaskDefinition.
pub async fn describe(cx: &Context<'_>) -> Outcome {
    let found = cx.definition(cx.text("taskDefinition"))?;
    let object = found.ok_or_else(|| client_error("Unable to describe task definition."))?;
    answer(&object, cx.includes("TAGS"))
}

/// DeregisterTaskDefinition.
pub async fn deregister(cx: &Context<'_>) -> Outcome {
    let given = cx.text("taskDefinition");
    if !given.starts_with("arn:") && !given.contains(':') {
        return Err(client_error(format!("Invalid revision number. Number: {given}")));
    }
    let missing = || client_error("The specified task definition does not exist.");
    let object = cx.definition(given)?.ok_or_else(missing)?;
    let now = cx.now();
    let written = cx
        .modify(&cx.views.definitions, &object.key, |doc| {
            let patch = json!({"spec": {"status": "INACTIVE", "deregisteredAt": now}});
            match text(doc.spec(), "/status") {
                "ACTIVE" => Ok(Some(patch)),
                _ => Err(client_error("The specified task definition is inactive.")),
            }
        })
        .await?
        .ok_or_else(missing)?;
    answer(&written, false)
}

/// DeleteTaskDefinitions.
pub async fn delete(cx: &Context<'_>) -> Outcome {
    let asked = cx.texts("taskDefinitions");
    refuse_if(asked.is_empty(), || parameter("taskDefinitions cannot be empty."))?;
    if asked.len() > DELETE_MAX {
        return Err(parameter(format!("taskDefinitions can have at most {DELETE_MAX} entries.")));
    }
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    let mut families = BTreeSet::new();
    for given in asked {
        let exact = given.starts_with("arn:") || given.contains(':');
        let found = if exact { cx.definition(given)? } else { None };
        let Some(object) = found else {
            failures.push(failure(
                given,
                "The specified task definition does not exist. Specify a valid account, family, \
                revision and try again.",
            ));
            continue;
        };
        let spec = doc(&object)?;
        let arn = text(spec.spec(), "/taskDefinitionArn").to_string();
        if text(spec.spec(), "/status") == "ACTIVE" {
            failures.push(failure(
                &arn,
                "The specified task definition is still in ACTIVE status. Please deregister the \
                target and try again.",
            ));
            continue;
        }
        let now = cx.now();
        let written = cx
            .modify(&cx.views.definitions, &object.key, |doc| {
                let patch = json!({"spec": {"status": "DELETE_IN_PROGRESS", "deleteRequestedAt": now}});
                Ok((text(doc.spec(), "/status") == "INACTIVE").then_some(patch))
            })
            .await?;
        if let Some(written) = written {
            done.push(answer(&written, false)?["taskDefinition"].take());
            families.insert(text(spec.spec(), "/family").to_string());
        }
    }
    for family in families {
        collect(cx, &family).await?;
    }
    Ok(json!({"taskDefinitions": done, "failures": failures}))
}

/// ListTaskDefinitions: by family, then revision.
pub async fn list(cx: &Context<'_>) -> Outcome {
    let page = Page::of(cx.call, PAGE_MAX)?;
    let status = if cx.text("status").is_empty() { "ACTIVE" } else { cx.text("status") };
    let descending = cx.text("sort") == "DESC";
    let mut rows: Vec<(String, u64, Value)> = Vec::new();
    for (family, revisions) in families(cx, cx.text("familyPrefix")) {
        for (revision, object) in revisions {
            let doc = doc(&object)?;
            if text(doc.spec(), "/status") == status {
                rows.push((family.clone(), revision, doc.spec()["taskDefinitionArn"].clone()));
            }
        }
    }
    rows.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    if descending {
        rows.reverse();
    }
    // The key counts: a page goes on where the last one ended, in either order.
    let keyed = rows.into_iter().enumerate().map(|(i, (_, _, arn))| (format!("{i:012}"), arn));
    Ok(page.answer("taskDefinitionArns", keyed))
}

/// The families that begin with a prefix.
fn families(cx: &Context<'_>, prefix: &str) -> Vec<(String, BTreeMap<u64, Arc<Object>>)> {
    let place = &cx.scope.place;
    cx.views.families.lock().with_prefix(&place.account, &place.region, prefix)
}

/// ListTaskDefinitionFamilies.
pub async fn list_families(cx: &Context<'_>) -> Outcome {
    let page = Page::of(cx.call, PAGE_MAX)?;
    let status = cx.text("status");
    let mut rows = Vec::new();
    for (family, revisions) in families(cx, cx.text("familyPrefix")) {
        let mut statuses = BTreeSet::new();
        for object in revisions.values() {
            statuses.insert(text(doc(object)?.spec(), "/status").to_string());
        }
        let active = statuses.contains("ACTIVE");
        let shown = match status {
            "ACTIVE" => active,
            "INACTIVE" => !active && statuses.contains("INACTIVE"),
            _ => active || statuses.contains("INACTIVE"),
        };
        if shown {
            rows.push((family.clone(), json!(family)));
        }
    }
    Ok(page.answer("families", rows))
}
