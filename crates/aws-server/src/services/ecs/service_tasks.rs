//! What the service scheduler asks for in process: tasks of services, and where they could be.
//!
//! As RunTask and StartTask, on the same ledger of promises, but for what only services may: their group, any count,
//! an inactive definition, and a subnet or provider by what is there already.

use super::Ecs;
use super::context::Context;
use super::instance::tasks_by_node;
use super::run::{Draft, Launch, choose_instances, launch, plan, request, write, zone_of};
use crate::service::{AwsError, Operation, Outcome};
use ecs_model::placement::{self, ZONE};
use machinery::kinds::get::list;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Not in the model of ECS.
pub static OPERATIONS: &[Operation<Ecs>] =
    &[super::row!("gantry:StartServiceTasks", start), super::row!("gantry:DescribeServicePlaces", places)];

/// Numbers by name.
fn counts(value: &Value) -> BTreeMap<String, u64> {
    let members = value.as_object().into_iter().flatten();
    members.filter_map(|(name, n)| Some((name.clone(), n.as_u64()?))).collect()
}

/// Starts `count` tasks, or one on each of `containerInstances`. `running` counts what there is by provider, `zones` by
/// zone; with `activates` they count as running only when the scheduler says so.
async fn start(cx: &Context<'_>) -> Outcome {
    let cluster = cx.cluster().await?;
    let launch = launch(cx, &cluster)?;
    let mut plan = plan(cx, cluster, launch.on_fargate())?;
    if cx.call.input["activates"] == true {
        plan.spec["activating"] = json!(true);
    }
    let count = usize::try_from(cx.call.input["count"].as_u64().unwrap_or(1)).unwrap_or(1);
    let providers = match &launch {
        Launch::Type(_) => Vec::new(),
        Launch::Providers(strategy) => strategy.split(&counts(&cx.call.input["running"]), count),
    };
    let id = || uuid::Uuid::new_v4().simple().to_string();
    let draft = |i: usize| Draft { id: id(), provider: providers.get(i).cloned(), ..Draft::default() };
    let mut drafts: Vec<Draft> = (0..count).map(draft).collect();
    if launch.on_fargate() {
        spread(cx, &mut drafts).await?;
        return write(cx, &plan, drafts, Vec::new()).await;
    }
    let by_provider = matches!(launch, Launch::Providers(_));
    let instances = cx.texts("containerInstances");
    if instances.is_empty() {
        let failures = choose_instances(cx, &plan, &mut drafts, by_provider).await?;
        return write(cx, &plan, drafts, failures).await;
    }
    let (mut placed, mut failures) = (Vec::new(), Vec::new());
    for instance in instances {
        let mut one = cx.call.clone();
        one.input["onlyInstances"] = json!([instance]);
        let cx = cx.again(&one);
        let mut here = vec![draft(0)];
        failures.extend(choose_instances(&cx, &plan, &mut here, by_provider).await?);
        placed.extend(here);
    }
    write(cx, &plan, placed, failures).await
}

/// The subnets that a task can be in, with their zones.
async fn subnets(cx: &Context<'_>) -> Result<Vec<(String, String)>, AwsError> {
    let mut out = Vec::new();
    for subnet in list(&cx.call.input, "/networkConfiguration/awsvpcConfiguration/subnets") {
        let subnet = subnet.as_str().unwrap_or_default();
        out.push((subnet.to_string(), zone_of(cx, subnet).await?));
    }
    Ok(out)
}

/// Gives each task the subnet whose zone has the fewest.
async fn spread(cx: &Context<'_>, drafts: &mut [Draft]) -> Result<(), AwsError> {
    let subnets = subnets(cx).await?;
    let mut zones = counts(&cx.call.input["zones"]);
    for draft in drafts {
        let fewest = subnets.iter().min_by_key(|(_, zone)| zones.get(zone).copied().unwrap_or(0));
        let Some((subnet, zone)) = fewest else { return Ok(()) };
        *zones.entry(zone.clone()).or_default() += 1;
        draft.subnet = Some((subnet.clone(), zone.clone()));
    }
    Ok(())
}

/// The instances of the cluster, whether they take the service's tasks (whatever is free), and the zones it can be in.
async fn places(cx: &Context<'_>) -> Outcome {
    let cluster = cx.cluster().await?;
    let on_fargate = launch(cx, &cluster)?.on_fargate();
    let plan = plan(cx, cluster, on_fargate)?;
    if on_fargate {
        let zones: BTreeSet<String> = subnets(cx).await?.into_iter().map(|(_, zone)| zone).collect();
        return Ok(json!({"places": [], "zones": zones}));
    }
    let request = request(cx, &plan)?;
    let tasks = tasks_by_node(cx, &plan.cluster)?;
    let (mut places, mut zones) = (Vec::new(), BTreeSet::new());
    for row in cx.instances(&plan.cluster)? {
        let here = tasks.get(&row.node_name).map_or(&[][..], Vec::as_slice);
        let candidate = row.candidate(cx, here);
        let zone = candidate.facts.attributes.get(ZONE).cloned().unwrap_or_default();
        let active = row.status() == "ACTIVE";
        let takes = active && placement::suits(&candidate, &request);
        if takes {
            zones.insert(zone.clone());
        }
        places.push(json!({"arn": row.arn, "zone": zone, "active": active, "takes": takes}));
    }
    Ok(json!({"places": places, "zones": zones}))
}
