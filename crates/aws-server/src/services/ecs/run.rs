//! RunTask and StartTask: everything is decided here and written as one object a task; the task controller does the
//! rest. On EC2 the instance is chosen now, on Fargate the node is left to the scheduler.
//!
//! With a client token a task's id follows from the token, so that a repeated request finds the tasks of the first.

use super::context::{Cluster, Context, client_error, doc, failure, internal, parameter};
use super::instance::{Row, tasks_by_node};
use super::{capacity_provider, instance_ops, service_checks, tag};
use crate::service::{AwsError, Outcome};
use client::{Object, ObjectKey};
use ecs_model::capacity::{Strategy, is_fargate};
use ecs_model::doc::{Doc, copy, object};
use ecs_model::ledger::Usage;
use ecs_model::names::{Resource, derived_id};
use ecs_model::overrides::{self, Demand};
use ecs_model::placement::{self, Request};
use ecs_model::refusal::refuse_if;
use ecs_model::task::{NO_CAPACITY, REQUEST_ANNOTATION, describe, initial_status};
use futures_util::future::try_join_all;
use k8s_schema::gvr;
use machinery::kinds::get::{has, list, text, texts};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most tasks of one call.
const COUNT_MAX: i64 = 10;
/// Longest `startedBy`.
const STARTED_BY_MAX: usize = 128;
/// Longest `clientToken`.
const TOKEN_MAX: usize = 64;
/// Ephemeral storage of a Fargate task that asks for none, GiB.
const STORAGE_GIB: i64 = 20;
/// The platform version that `LATEST` is.
const PLATFORM: &str = "1.4.0";
const PLATFORMS: [&str; 3] = ["LATEST", "1.4.0", "1.3.0"];
const MIB: i64 = 1024 * 1024;

/// What all tasks of a call have in common.
pub struct Plan {
    pub cluster: Cluster,
    pub definition: Arc<Doc>,
    /// The spec but for what each task has of its own.
    pub spec: Value,
    demand: Demand,
    /// A fingerprint of the request, where it has a client token.
    print: Option<String>,
}

/// One task to be.
#[derive(Default)]
pub struct Draft {
    pub id: String,
    /// Provider, where a strategy chose one.
    pub provider: Option<String>,
    /// The instance: ARN, node, zone.
    pub instance: Option<(String, String, String)>,
    /// The subnet and its zone, where they were chosen.
    pub subnet: Option<(String, String)>,
}

/// Where the tasks go.
pub enum Launch {
    Type(String),
    Providers(Strategy),
}

impl Launch {
    pub fn on_fargate(&self) -> bool {
        match self {
            Launch::Type(kind) => kind == "FARGATE",
            Launch::Providers(strategy) => strategy.items().iter().any(|i| is_fargate(&i.provider)),
        }
    }
}

/// RunTask.
pub async fn run_task(cx: &Context<'_>) -> Outcome {
    let count = cx.call.input["count"].as_i64().unwrap_or(1);
    if !(1..=COUNT_MAX).contains(&count) {
        return Err(parameter(format!("count must be between 1 and {COUNT_MAX}.")));
    }
    let count = usize::try_from(count).unwrap_or(1);
    let cluster = cx.cluster().await?;
    let launch = launch(cx, &cluster)?;
    let plan = plan(cx, cluster, launch.on_fargate())?;
    service_checks::network(cx, &cx.call.input["networkConfiguration"]).await?;
    let ids: Vec<String> = (0..count).map(|i| task_id(cx, &plan, i)).collect();
    if let Some(answer) = repeated(cx, &plan, &ids)? {
        return Ok(answer);
    }
    let providers = match &launch {
        Launch::Type(_) => Vec::new(),
        Launch::Providers(strategy) => strategy.split(&BTreeMap::new(), count),
    };
    let mut drafts: Vec<Draft> = ids
        .into_iter()
        .enumerate()
        .map(|(i, id)| Draft { id, provider: providers.get(i).cloned(), ..Draft::default() })
        .collect();
    let failures = match launch.on_fargate() {
        true if !somewhere(cx, &plan)? => {
            let failed = |_: Draft| failure(&plan.cluster.arn, NO_CAPACITY);
            drafts.drain(..).map(failed).collect()
        }
        true => Vec::new(),
        false => choose_instances(cx, &plan, &mut drafts, matches!(launch, Launch::Providers(_))).await?,
    };
    write(cx, &plan, drafts, failures).await
}

/// Is there a node that could hold a task of this size, if it were empty? Where all that could are full now, or there is
/// no node yet, the task controller gives up after a while.
fn somewhere(cx: &Context<'_>, plan: &Plan) -> Result<bool, AwsError> {
    let rows = cx.instances(&plan.cluster)?;
    let holds = |(cpu, memory): (i64, i64)| plan.demand.cpu <= cpu && plan.demand.memory <= memory;
    Ok(rows.is_empty() || rows.iter().any(|row| holds(row.allocatable())))
}

/// StartTask: the caller names the instances.
pub async fn start_task(cx: &Context<'_>) -> Outcome {
    let asked = cx.texts("containerInstances");
    if asked.is_empty() || asked.len() > COUNT_MAX as usize {
        return Err(parameter(format!("containerInstances must have between 1 and {COUNT_MAX} entries.")));
    }
    let cluster = cx.cluster().await?;
    let plan = plan(cx, cluster, false)?;
    service_checks::network(cx, &cx.call.input["networkConfiguration"]).await?;
    let (rows, mut failures) = instance_ops::named(cx, &plan.cluster, &asked)?;
    let mut drafts = Vec::new();
    for row in &rows {
        if row.status() != "ACTIVE" {
            failures.push(failure(&row.arn, "INACTIVE"));
            continue;
        }
        row.ensure(cx, &plan.cluster).await?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        promise(cx, &plan, &id, &row.node_name);
        drafts.push(Draft { id, instance: Some(chosen(cx, row)), ..Draft::default() });
    }
    write(cx, &plan, drafts, failures).await
}

fn chosen(cx: &Context<'_>, row: &Row) -> (String, String, String) {
    let zone = row.attributes(&cx.shared.zones).remove(placement::ZONE).unwrap_or_default();
    (row.arn.clone(), row.node_name.clone(), zone)
}

pub fn launch(cx: &Context<'_>, cluster: &Cluster) -> Result<Launch, AwsError> {
    let given = list(&cx.call.input, "/capacityProviderStrategy");
    let kind = cx.text("launchType");
    if !kind.is_empty() && !given.is_empty() {
        return Err(parameter(
            "Specifying both a launch type and capacity provider strategy is not supported. Remove one and try again.",
        ));
    }
    match kind {
        "" => {}
        "EC2" | "FARGATE" | "EXTERNAL" => return Ok(Launch::Type(kind.to_string())),
        other => {
            let words = format!("Launch type {other} is not implemented by Gantry.");
            return Err(AwsError::client("UnsupportedFeatureException", words));
        }
    }
    let own = list(cluster.doc.spec(), "/defaultCapacityProviderStrategy");
    let items = if given.is_empty() { own } else { given };
    if items.is_empty() {
        return Ok(Launch::Type("EC2".into()));
    }
    let strategy = Strategy::parse(items, |p| capacity_provider::name_of(cx, p))?;
    let associated = |name: &str| texts(cluster.doc.spec(), "/capacityProviders").any(|p| p == name);
    if !strategy.items().iter().all(|i| associated(&i.provider)) {
        return Err(parameter(
            "The specified capacity provider strategy contains a capacity provider that is not associated with the \
             cluster or is in an inactive state. Associate the capacity provider with the cluster and try again.",
        ));
    }
    Ok(Launch::Providers(strategy))
}

pub fn plan(cx: &Context<'_>, cluster: Cluster, on_fargate: bool) -> Result<Plan, AwsError> {
    let input = &cx.call.input;
    let found = cx.definition(cx.text("taskDefinition"))?;
    let definition = doc(&*found.ok_or_else(|| client_error("TaskDefinition not found."))?)?;
    // Services go on with what they began with.
    if text(definition.spec(), "/status") != "ACTIVE" && !cx.is_of_service() {
        return Err(client_error("TaskDefinition is inactive"));
    }
    let needed = if on_fargate { "FARGATE" } else { "EC2" };
    if !texts(definition.spec(), "/compatibilities").any(|c| c == needed) {
        return Err(parameter(format!("Task definition does not support launch_type {needed}.")));
    }
    network(input, definition.spec())?;
    if let Some(volume) = list(input, "/volumeConfigurations").first() {
        let words =
            format!("Volume '{}': managed EBS volumes are not implemented by Gantry.", text(volume, "/name"));
        return Err(AwsError::client("UnsupportedFeatureException", words));
    }
    if let Some(volume) = list(definition.spec(), "/volumes").iter().find(|v| v["configuredAtLaunch"] == true)
    {
        let words = format!(
            "Volume '{}' is configured at launch: managed EBS volumes are not implemented by Gantry.",
            text(volume, "/name")
        );
        return Err(AwsError::client("UnsupportedFeatureException", words));
    }
    let group = match cx.text("group") {
        "" => format!("family:{}", text(definition.spec(), "/family")),
        group if group.starts_with("service:") && !cx.is_of_service() => {
            return Err(parameter("Invalid namespace for group"));
        }
        group => group.to_string(),
    };
    if cx.text("startedBy").len() > STARTED_BY_MAX {
        return Err(parameter(format!("startedBy can have at most {STARTED_BY_MAX} characters.")));
    }
    let overrides = overrides::check(&input["overrides"], definition.spec(), on_fargate)?;
    let demand = overrides::demand(&overrides, definition.spec());
    let architecture = match text(definition.spec(), "/runtimePlatform/cpuArchitecture") {
        "ARM64" => "arm64",
        _ => "x86_64",
    };
    let mut spec = json!({
        "clusterArn": cluster.arn, "taskDefinitionArn": definition.spec()["taskDefinitionArn"],
        "launchType": needed, "group": group, "overrides": overrides, "desiredStatus": "RUNNING",
        "createdAt": cx.now(), "enableExecuteCommand": input["enableExecuteCommand"] == true,
        "tags": tags(cx, &cluster, definition.spec())?,
        "attributes": [{"name": "ecs.cpu-architecture", "value": architecture}],
    });
    copy(&mut spec, input, "startedBy networkConfiguration");
    for member in ["cpu", "memory"] {
        if let Some(level) = overrides::level(&spec["overrides"], definition.spec(), member) {
            spec[member] = json!(level.to_string());
        }
    }
    platform(cx, &mut spec, definition.spec(), on_fargate)?;
    Ok(Plan { cluster, definition, spec, demand, print: print(cx)? })
}

pub fn network(input: &Value, definition: &Value) -> Result<(), AwsError> {
    let awsvpc = text(definition, "/networkMode") == "awsvpc";
    let given = has(input, "/networkConfiguration/awsvpcConfiguration");
    refuse_if(awsvpc && !given, || {
        parameter("Network Configuration must be provided when networkMode 'awsvpc' is specified.")
    })?;
    refuse_if(!awsvpc && given, || {
        parameter("Network Configuration is not valid for the given networkMode of this task definition.")
    })?;
    let subnets = list(input, "/networkConfiguration/awsvpcConfiguration/subnets");
    refuse_if(awsvpc && subnets.is_empty(), || parameter("subnets can not be empty."))?;
    refuse_if(subnets.len() > 16, || parameter("subnets can have at most 16 items."))?;
    if list(input, "/networkConfiguration/awsvpcConfiguration/securityGroups").len() > 5 {
        return Err(parameter("securityGroups can have at most 5 items."));
    }
    Ok(())
}

/// What Fargate adds, and what it does not take.
pub fn platform(
    cx: &Context<'_>,
    spec: &mut Value,
    definition: &Value,
    on_fargate: bool,
) -> Result<(), AwsError> {
    let version = cx.text("platformVersion");
    if !on_fargate {
        return match version {
            "" => Ok(()),
            _ => Err(parameter("The platform version must be null when specifying an EC2 launch type.")),
        };
    }
    for (member, what) in [("placementConstraints", "constraints"), ("placementStrategy", "strategies")] {
        if !list(&cx.call.input, &format!("/{member}")).is_empty() {
            return Err(parameter(format!("Placement {what} are not supported with FARGATE launch type.")));
        }
    }
    refuse_if(!version.is_empty() && !PLATFORMS.contains(&version), || {
        AwsError::client("PlatformUnknownException", "The specified platform version does not exist.")
    })?;
    let latest = matches!(version, "" | "LATEST");
    spec["platformVersion"] = json!(if latest { PLATFORM } else { version });
    spec["platformFamily"] = json!("Linux");
    let asked = [&spec["overrides"]["ephemeralStorage"], &definition["ephemeralStorage"]];
    let storage = asked.into_iter().find(|s| s.is_object()).cloned();
    spec["ephemeralStorage"] = storage.unwrap_or_else(|| json!({"sizeInGiB": STORAGE_GIB}));
    Ok(())
}

/// The request's tags, the definition's where they are to be handed on, and ECS's own.
fn tags(cx: &Context<'_>, cluster: &Cluster, definition: &Value) -> Result<Value, AwsError> {
    let input = &cx.call.input;
    let given = list(input, "/tags");
    if !cx.is_of_service() {
        tag::check(given)?;
    }
    let mut all: BTreeMap<String, Value> = BTreeMap::new();
    let mut add = |t: &Value| drop(all.insert(text(t, "/key").to_string(), t.clone()));
    match cx.text("propagateTags") {
        "TASK_DEFINITION" => list(definition, "/tags").iter().for_each(&mut add),
        "SERVICE" if !cx.is_of_service() => {
            return Err(parameter("The SERVICE value for propagateTags is not supported for tasks."));
        }
        _ => {}
    }
    given.iter().for_each(&mut add);
    if input["enableECSManagedTags"] == true {
        add(&json!({"key": "aws:ecs:clusterName", "value": cluster.name}));
        if let Some(service) = cx.text("group").strip_prefix("service:") {
            add(&json!({"key": "aws:ecs:serviceName", "value": service}));
        }
    }
    Ok(all.into_values().collect())
}

fn print(cx: &Context<'_>) -> Result<Option<String>, AwsError> {
    match cx.text("clientToken") {
        "" => Ok(None),
        token if token.len() > TOKEN_MAX => {
            Err(parameter(format!("clientToken can have at most {TOKEN_MAX} characters.")))
        }
        _ => Ok(Some(derived_id(&cx.call.input.to_string()))),
    }
}

fn task_id(cx: &Context<'_>, plan: &Plan, index: usize) -> String {
    match cx.text("clientToken") {
        "" => uuid::Uuid::new_v4().simple().to_string(),
        token => derived_id(&format!("task/{}/{token}/{index}", plan.cluster.arn)),
    }
}

/// The answer to a request that was made before; a conflict where the token was another request's.
fn repeated(cx: &Context<'_>, plan: &Plan, ids: &[String]) -> Result<Option<Value>, AwsError> {
    let Some(print) = &plan.print else { return Ok(None) };
    let found: Vec<Arc<Object>> = ids.iter().filter_map(|id| cx.task(&plan.cluster, id)).collect();
    if found.is_empty() {
        return Ok(None);
    }
    let mut tasks = Vec::new();
    for object in &found {
        let task = doc(object)?;
        tasks.push(describe(task.spec(), task.status()));
    }
    if found.iter().any(|o| o.meta().annotations.get(REQUEST_ANNOTATION) != Some(print)) {
        let mut error = AwsError::client(
            "ConflictException",
            "The RunTask request could not be processed due to conflicts. The provided clientToken is already in use with \
             a different RunTask request.",
        );
        let arns: Vec<&Value> = tasks.iter().map(|t| &t["taskArn"]).collect();
        error.more.insert("resourceIds".into(), json!(arns));
        return Err(error);
    }
    Ok(Some(json!({"tasks": tasks, "failures": []})))
}

/// Chooses an instance for each draft and promises it; drafts that found none go, and the failures say why.
pub async fn choose_instances(
    cx: &Context<'_>,
    plan: &Plan,
    drafts: &mut Vec<Draft>,
    by_provider: bool,
) -> Result<Vec<Value>, AwsError> {
    let request = request(cx, plan)?;
    let mut rows = cx.instances(&plan.cluster)?;
    let named = cx.texts("onlyInstances");
    rows.retain(|r| r.status() == "ACTIVE" && (named.is_empty() || named.contains(&&*r.arn)));
    if rows.is_empty() || cx.text("launchType") == "EXTERNAL" {
        return match by_provider {
            true => {
                drafts.clear();
                Ok(vec![failure(&plan.cluster.arn, "EMPTY CAPACITY")])
            }
            false => Err(parameter("No Container Instances were found in your cluster.")),
        };
    }
    let (placed, failures) = placed(cx, plan, &rows, &request, drafts)?;
    drafts.truncate(placed.len());
    for at in placed {
        rows[at].ensure(cx, &plan.cluster).await?;
    }
    Ok(failures)
}

/// What placement must heed.
pub fn request(cx: &Context<'_>, plan: &Plan) -> Result<Request, AwsError> {
    let input = &cx.call.input;
    let mut constraints = placement::constraints(list(input, "/placementConstraints"))?;
    constraints.extend(placement::constraints(list(plan.definition.spec(), "/placementConstraints"))?);
    let mut strategies = placement::strategies(list(input, "/placementStrategy"))?;
    if strategies.is_empty() {
        strategies.push(placement::Strategy::Spread(format!("attribute:{}", placement::ZONE)));
    }
    let needed = list(plan.definition.spec(), "/requiresAttributes").iter();
    Ok(Request {
        demand: plan.demand.clone(),
        attributes: needed.map(|a| text(a, "/name").to_string()).collect(),
        constraints,
        strategies,
        group: text(&plan.spec, "/group").to_string(),
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
    })
}

/// The synchronous part: looks at the ledger, places and promises in one turn.
fn placed(
    cx: &Context<'_>,
    plan: &Plan,
    rows: &[Row],
    request: &Request,
    drafts: &mut [Draft],
) -> Result<(Vec<usize>, Vec<Value>), AwsError> {
    let tasks = tasks_by_node(cx, &plan.cluster)?;
    let _turn = cx.views.placing.lock();
    let on = |row: &Row| tasks.get(&row.node_name).map_or(&[][..], Vec::as_slice);
    let mut candidates: Vec<_> = rows.iter().map(|row| row.candidate(cx, on(row))).collect();
    let (placed, failures) = placement::place(&mut candidates, request, drafts.len());
    for (draft, at) in drafts.iter_mut().zip(&placed) {
        promise(cx, plan, &draft.id, &rows[*at].node_name);
        draft.instance = Some(chosen(cx, &rows[*at]));
    }
    Ok((placed, failures.iter().map(|f| failure(&f.arn, &f.reason)).collect()))
}

fn ledger_key(plan: &Plan, id: &str) -> String {
    ObjectKey::new(&*plan.cluster.namespace, id).to_string()
}

fn promise(cx: &Context<'_>, plan: &Plan, id: &str, node: &str) {
    let usage = Usage {
        milliunits: plan.demand.cpu.saturating_mul(1000),
        bytes: plan.demand.memory.saturating_mul(MIB),
        ports: plan.demand.ports.clone(),
        gpus: plan.demand.gpus,
    };
    cx.views.ledger.lock().set_task(&ledger_key(plan, id), Some((node.to_string(), usage)));
}

/// Writes the tasks, all at once.
pub async fn write(cx: &Context<'_>, plan: &Plan, drafts: Vec<Draft>, failures: Vec<Value>) -> Outcome {
    let zone = subnet_zone(cx, plan).await?;
    let written = try_join_all(drafts.iter().map(|draft| write_one(cx, plan, draft, &zone))).await;
    let Ok(tasks) = written else {
        // What was written stays and is found by the token or by ListTasks; what was only promised is not kept.
        for draft in drafts.iter().filter(|d| cx.task(&plan.cluster, &d.id).is_none()) {
            cx.views.ledger.lock().set_task(&ledger_key(plan, &draft.id), None);
        }
        return written.map(Value::Array);
    };
    Ok(json!({"tasks": tasks, "failures": failures}))
}

async fn write_one(cx: &Context<'_>, plan: &Plan, draft: &Draft, zone: &str) -> Outcome {
    let mut spec = plan.spec.clone();
    let arn = cx.scope.arn(&Resource::Task(plan.cluster.name.clone(), draft.id.clone()));
    spec["taskArn"] = json!(arn);
    spec["availabilityZone"] = json!(zone);
    if let Some(provider) = &draft.provider {
        spec["capacityProviderName"] = json!(provider);
    }
    if let Some((subnet, zone)) = &draft.subnet {
        spec["networkConfiguration"]["awsvpcConfiguration"]["subnets"] = json!([subnet]);
        spec["availabilityZone"] = json!(zone);
    }
    if let Some((instance, node, zone)) = &draft.instance {
        spec["containerInstanceArn"] = json!(instance);
        spec["nodeName"] = json!(node);
        spec["availabilityZone"] = json!(zone);
    }
    let status = initial_status(&cx.scope, &plan.cluster.name, &draft.id, &spec, plan.definition.spec());
    let mut body = object("Task", &plan.cluster.namespace, &draft.id, spec);
    body["status"] = status;
    if let Some(print) = &plan.print {
        body["metadata"]["annotations"] = json!({ REQUEST_ANNOTATION: print });
    }
    let written = match cx.create(&cx.views.tasks, body).await? {
        Some(written) => written,
        // The same request came twice at the same time.
        None => {
            let key = ObjectKey::new(&*plan.cluster.namespace, &*draft.id);
            cx.made_by_another(&cx.views.tasks, &key).await?
        }
    };
    let task = doc(&written)?;
    Ok(describe(task.spec(), task.status()))
}

/// The zone of the first subnet; the first zone where the subnet is not known.
async fn subnet_zone(cx: &Context<'_>, plan: &Plan) -> Result<String, AwsError> {
    zone_of(cx, text(&plan.spec, "/networkConfiguration/awsvpcConfiguration/subnets/0")).await
}

/// A subnet's zone; the first zone where the subnet is not known.
pub async fn zone_of(cx: &Context<'_>, subnet: &str) -> Result<String, AwsError> {
    let first = cx.shared.zones.first().cloned().unwrap_or_default();
    if subnet.is_empty() {
        return Ok(first);
    }
    // The default subnets are made when EC2 is first asked; their zones are known before.
    let letter = subnet.strip_prefix("subnet-default-");
    if let Some(zone) = letter.and_then(|l| cx.shared.zones.iter().find(|z| z.ends_with(l))) {
        return Ok(zone.clone());
    }
    let key = ObjectKey::new(ecs_model::names::AWS_NAMESPACE, cx.scope.object_name(subnet));
    match cx.shared.client.get(&gvr::EC2_SUBNETS, &key).await {
        Ok(found) => Ok(subnet_of(doc(&found)?.spec())),
        Err(error) if error.is_not_found() => Ok(first),
        Err(error) => Err(internal(error)),
    }
}

/// The zone in a subnet's document, by either spelling of the member.
fn subnet_of(spec: &Value) -> String {
    match text(spec, "/availabilityZone") {
        "" => text(spec, "/AvailabilityZone").to_string(),
        zone => zone.to_string(),
    }
}
