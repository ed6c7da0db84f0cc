//! Services: what was asked for, as an object. The service scheduler (`ecs`) makes and replaces the tasks.
//!
//! A deleted service is DRAINING while it has tasks, INACTIVE then, and can be made again.

use super::context::{Cluster, Context, client_error, doc, failure, internal, parameter};
use super::paging::{PAGE_MAX, Page};
use super::run::{Launch, launch, network, platform};
use super::service_checks;
use crate::service::{AwsError, Outcome};
use client::{Object, ObjectKey};
use ecs_model::doc::{Doc, copy, object};
use ecs_model::names::Resource;
use ecs_model::placement;
use ecs_model::refusal::refuse_if;
use ecs_model::service::{DEPLOYMENT, MEMBERS, check, describe as shown, renews};
use ecs_model::task::is_stopped;
use ecs_model::taskdef::is_name;
use k8s_schema::gvr;
use machinery::kinds::get::{has, list as items, text, texts};
use serde_json::{Value, json};
use std::sync::Arc;

/// Most services in one DescribeServices.
const DESCRIBE_MAX: usize = 10;
/// Services of a page when nothing is said.
const PAGE: i64 = 10;

pub fn not_found() -> AwsError {
    AwsError::client("ServiceNotFoundException", "Service not found.")
}

pub fn not_active() -> AwsError {
    AwsError::client("ServiceNotActiveException", "Service was not ACTIVE.")
}

pub fn key(cx: &Context<'_>, cluster: &Cluster, name: &str) -> ObjectKey {
    ObjectKey::new(&*cluster.namespace, cx.scope.object_name(name))
}

fn arn(cx: &Context<'_>, cluster: &Cluster, name: &str) -> String {
    cx.scope.arn(&Resource::Service(cluster.name.clone(), name.to_string()))
}

pub fn find(cx: &Context<'_>, cluster: &Cluster, name: &str) -> Result<Option<Arc<Doc>>, AwsError> {
    let Some(object) = cx.views.services.get(&key(cx, cluster, name)) else { return Ok(None) };
    let doc = doc(&object)?;
    Ok((text(doc.spec(), "/serviceArn") == arn(cx, cluster, name)).then_some(doc))
}

/// A new deployment's name and time.
fn deployment(cx: &Context<'_>) -> Value {
    let number = uuid::Uuid::new_v4().as_u128() % 10_000_000_000_000_000_000;
    json!({"id": format!("ecs-svc/{number:019}"), "createdAt": cx.now()})
}

/// The members that the request gives.
fn given(input: &Value) -> Value {
    let mut spec = json!({});
    copy(&mut spec, input, MEMBERS);
    spec
}

/// Checks a spec as a whole against its task definition, and settles where its tasks go.
fn settle(cx: &Context<'_>, cluster: &Cluster, spec: &mut Value) -> Result<(), AwsError> {
    check(spec)?;
    let definition = cx.definition(text(spec, "/taskDefinition"))?;
    let definition = doc(&*definition.ok_or_else(|| client_error("TaskDefinition not found."))?)?;
    // A service goes on with the one it has.
    if text(definition.spec(), "/status") != "ACTIVE" && has(&cx.call.input, "/taskDefinition") {
        return Err(client_error("TaskDefinition is inactive"));
    }
    spec["taskDefinition"] = definition.spec()["taskDefinitionArn"].clone();
    let fresh = !has(spec, "/launchType") && !has(spec, "/capacityProviderStrategy");
    let asked =
        ["launchType", "capacityProviderStrategy"].iter().any(|m| has(&cx.call.input, &format!("/{m}")));
    let on_fargate = if fresh || asked {
        let launch = launch(cx, cluster)?;
        match &launch {
            Launch::Type(kind) => spec["launchType"] = json!(kind),
            Launch::Providers(strategy) => {
                spec["capacityProviderStrategy"] = strategy.document();
                spec.as_object_mut().map(|members| members.remove("launchType"));
            }
        }
        launch.on_fargate()
    } else {
        has(spec, "/platformVersion")
    };
    let needed = if on_fargate { "FARGATE" } else { "EC2" };
    if !texts(definition.spec(), "/compatibilities").any(|c| c == needed) {
        return Err(parameter(format!("Task definition does not support launch_type {needed}.")));
    }
    network(spec, definition.spec())?;
    placement::constraints(items(spec, "/placementConstraints"))?;
    placement::strategies(items(spec, "/placementStrategy"))?;
    if fresh || asked || has(&cx.call.input, "/platformVersion") {
        platform(cx, spec, definition.spec(), on_fargate)?;
    }
    spec.as_object_mut().map(|members| members.remove("ephemeralStorage"));
    containers(spec, definition.spec())
}

/// Load balancers name containers and ports that there are.
fn containers(spec: &Value, definition: &Value) -> Result<(), AwsError> {
    for balancer in items(spec, "/loadBalancers") {
        let (name, port) = (text(balancer, "/containerName"), &balancer["containerPort"]);
        container_port(definition, name, port)?;
    }
    Ok(())
}

/// Refuses a container or a port that the definition has not.
pub fn container_port(definition: &Value, name: &str, port: &Value) -> Result<(), AwsError> {
    let found = items(definition, "/containerDefinitions").iter().find(|c| text(c, "/name") == name);
    let Some(container) = found else {
        return Err(parameter(format!("The container {name} does not exist in the task definition.")));
    };
    match items(container, "/portMappings").iter().any(|m| m["containerPort"] == *port) {
        true => Ok(()),
        false => {
            Err(parameter(format!("The container {name} did not have a container port {port} defined.")))
        }
    }
}

/// What the call newly refers to must be there; what the service had before is not asked for again.
async fn refers(cx: &Context<'_>, spec: &Value) -> Result<(), AwsError> {
    let definition = cx.definition(text(spec, "/taskDefinition"))?;
    let definition = doc(&*definition.ok_or_else(|| client_error("TaskDefinition not found."))?)?;
    let (input, definition) = (&cx.call.input, definition.spec());
    service_checks::rules(cx, spec, definition)?;
    service_checks::network(cx, &input["networkConfiguration"]).await?;
    let asks = |member: &str| has(input, member) || has(input, "/taskDefinition");
    if asks("/loadBalancers") {
        service_checks::load_balancers(cx, spec, definition).await?;
    }
    if asks("/serviceRegistries") {
        service_checks::registries(cx, spec, definition).await?;
    }
    Ok(())
}

/// CreateService.
pub async fn create(cx: &Context<'_>) -> Outcome {
    let cluster = cx.cluster().await?;
    let name = cx.text("serviceName");
    if !is_name(name) {
        return Err(parameter(
            "Invalid service name. Up to 255 letters (uppercase and lowercase), numbers, underscores, and hyphens are \
             allowed.",
        ));
    }
    if let Some(old) = find(cx, &cluster, name)? {
        match text(old.spec(), "/status") {
            "INACTIVE" => {}
            "DRAINING" => return Err(parameter("Unable to Start a service that is still Draining.")),
            _ => return Err(parameter("Creation of service was not idempotent.")),
        }
    }
    super::tag::check(items(&cx.call.input, "/tags"))?;
    let mut spec = given(&cx.call.input);
    let daemon = text(&spec, "/schedulingStrategy") == "DAEMON";
    if !has(&spec, "/desiredCount") && !daemon {
        return Err(parameter("The desired count must be specified with the REPLICA scheduling strategy."));
    }
    spec["taskDefinition"] = cx.call.input["taskDefinition"].clone();
    settle(cx, &cluster, &mut spec)?;
    refers(cx, &spec).await?;
    machinery::patch::merge(
        &mut spec,
        &json!({
            "serviceArn": arn(cx, &cluster, name), "serviceName": name, "clusterArn": cluster.arn,
            "status": "ACTIVE", "createdAt": cx.now(), "createdBy": cx.call.caller.arn, DEPLOYMENT: deployment(cx),
        }),
    );
    let written = write(cx, &key(cx, &cluster, name), spec).await?;
    answer(&written)
}

/// Writes a service that is not there or inactive.
async fn write(cx: &Context<'_>, key: &ObjectKey, spec: Value) -> Result<Arc<Object>, AwsError> {
    let body = object("Service", &key.namespace, &key.name, spec.clone());
    if let Some(written) = cx.create(&cx.views.services, body).await? {
        return Ok(written);
    }
    cx.made_by_another(&cx.views.services, key).await?;
    let revived = cx
        .modify(&cx.views.services, key, |old| {
            if text(old.spec(), "/status") != "INACTIVE" {
                return Err(parameter("Creation of service was not idempotent."));
            }
            Ok(Some(json!({"spec": replaced(old.spec(), &spec)})))
        })
        .await?
        .ok_or_else(not_found)?;
    // What the last life of the service left behind.
    let gone = cx.shared.client.merge_patch_status(&gvr::ECS_SERVICES, key, json!({"status": null})).await;
    let written = gone.map_err(internal)?;
    cx.views.services.observe(written.clone());
    Ok(if written.revision > revived.revision { written } else { revived })
}

/// A merge patch that makes one document of another.
fn replaced(old: &Value, new: &Value) -> Value {
    let mut patch = new.clone();
    for member in old.as_object().into_iter().flatten().map(|(k, _)| k) {
        if patch.get(member).is_none() {
            patch[member] = Value::Null;
        }
    }
    patch
}

fn answer(object: &Object) -> Outcome {
    let service = doc(object)?;
    Ok(json!({"service": shown(service.spec(), service.status())}))
}

/// UpdateService.
pub async fn update(cx: &Context<'_>) -> Outcome {
    let cluster = cx.cluster().await?;
    let name = cx.named(&cluster, "service", cx.text("service"))?;
    let old = find(cx, &cluster, &name)?.ok_or_else(not_found)?;
    let mut change = given(&cx.call.input);
    let fixed = ["launchType", "schedulingStrategy", "tags"];
    if let Some(members) = change.as_object_mut() {
        members.retain(|member, _| !fixed.contains(&member.as_str()));
        if let Some(definition) = cx.call.input.get("taskDefinition").filter(|d| !d.is_null()) {
            members.insert("taskDefinition".into(), definition.clone());
        }
    }
    if text(old.spec(), "/status") == "ACTIVE" {
        let mut spec = old.spec().clone();
        machinery::patch::merge(&mut spec, &change);
        settle(cx, &cluster, &mut spec)?;
        refers(cx, &spec).await?;
    }
    let fresh = deployment(cx);
    let force = cx.call.input["forceNewDeployment"] == true;
    let written = cx
        .modify(&cx.views.services, &key(cx, &cluster, &name), |old| {
            refuse_if(text(old.spec(), "/status") != "ACTIVE", not_active)?;
            let mut spec = old.spec().clone();
            machinery::patch::merge(&mut spec, &change);
            settle(cx, &cluster, &mut spec)?;
            if force || renews(old.spec(), &spec) {
                spec[DEPLOYMENT] = fresh.clone();
            }
            Ok((spec != *old.spec()).then(|| json!({"spec": replaced(old.spec(), &spec)})))
        })
        .await?
        .ok_or_else(not_found)?;
    answer(&written)
}

/// DeleteService.
pub async fn delete(cx: &Context<'_>) -> Outcome {
    let cluster = cx.cluster().await?;
    let name = cx.named(&cluster, "service", cx.text("service"))?;
    find(cx, &cluster, &name)?.ok_or_else(not_found)?;
    let group = format!("service:{name}");
    let mut busy = false;
    for object in cx.views.tasks.list_in(&cluster.namespace) {
        let task = doc(&object)?;
        busy |= text(task.spec(), "/group") == group && !is_stopped(task.status());
    }
    let force = cx.call.input["force"] == true;
    let written = cx
        .modify(&cx.views.services, &key(cx, &cluster, &name), |old| {
            refuse_if(text(old.spec(), "/status") != "ACTIVE", not_active)?;
            let replica = text(old.spec(), "/schedulingStrategy") != "DAEMON";
            if replica && !force && old.spec()["desiredCount"].as_i64().unwrap_or(0) > 0 {
                return Err(parameter("The service cannot be stopped while it is scaled above 0."));
            }
            let status = if busy { "DRAINING" } else { "INACTIVE" };
            Ok(Some(json!({"spec": {"status": status, "desiredCount": 0}})))
        })
        .await?
        .ok_or_else(not_found)?;
    answer(&written)
}

/// DescribeServices.
pub async fn describe(cx: &Context<'_>) -> Outcome {
    let asked = cx.texts("services");
    refuse_if(asked.is_empty(), || parameter("Services cannot be empty."))?;
    if asked.len() > DESCRIBE_MAX {
        return Err(parameter(format!("services can have at most {DESCRIBE_MAX} items.")));
    }
    let cluster = cx.cluster().await?;
    let with_tags = cx.includes("TAGS");
    let (mut services, mut failures) = (Vec::new(), Vec::new());
    for given in asked {
        let name = cx.named(&cluster, "service", given)?;
        let Some(service) = find(cx, &cluster, &name)? else {
            failures.push(failure(&arn(cx, &cluster, &name), "MISSING"));
            continue;
        };
        let mut out = shown(service.spec(), service.status());
        if !with_tags {
            out["tags"] = json!([]);
        }
        services.push(out);
    }
    Ok(json!({"services": services, "failures": failures}))
}

/// ListServices.
pub async fn list(cx: &Context<'_>) -> Outcome {
    let mut asked = cx.call.clone();
    if asked.input["maxResults"].is_null() && asked.input.is_object() {
        asked.input["maxResults"] = json!(PAGE);
    }
    let page = Page::of(&asked, PAGE_MAX)?;
    let cluster = cx.cluster().await?;
    let is = |member: &str, spec: &Value| {
        let wanted = cx.text(member);
        wanted.is_empty() || text(spec, &format!("/{member}")) == wanted
    };
    let mut out = Vec::new();
    for object in cx.views.services.list_in(&cluster.namespace) {
        let service = doc(&object)?;
        let spec = service.spec();
        if text(spec, "/status") != "INACTIVE" && is("launchType", spec) && is("schedulingStrategy", spec) {
            out.push((object.key.name.to_string(), spec["serviceArn"].clone()));
        }
    }
    Ok(page.answer("serviceArns", out))
}

/// ListServicesByNamespace: the services whose Service Connect names that Cloud Map namespace.
pub async fn list_by_namespace(cx: &Context<'_>) -> Outcome {
    let page = Page::of(cx.call, PAGE_MAX)?;
    let prefix = cx.cluster_arn("");
    let mut out = Vec::new();
    for object in cx.views.services.list() {
        let service = doc(&object)?;
        let spec = service.spec();
        let named = text(spec, "/serviceConnectConfiguration/namespace") == cx.text("namespace");
        if named && text(spec, "/status") == "ACTIVE" && text(spec, "/clusterArn").starts_with(&prefix) {
            out.push((object.key.to_string(), spec["serviceArn"].clone()));
        }
    }
    out.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(page.answer("serviceArns", out))
}
