//! Clusters: a cluster is an object in a namespace of its own, which holds all that is in it.
//!
//! A deleted cluster stays INACTIVE for [`INACTIVE_KEPT_MS`] and can be made again; then the namespace goes, at the next
//! create or delete.

use super::capacity_provider;
use super::context::{Cluster, Context, client_error, doc, failure, parameter};
use super::paging::{PAGE_MAX, Page};
use crate::service::{AwsError, Outcome};
use client::{DeleteOptions, ObjectKey};
use ecs_model::capacity::{Strategy, is_fargate};
use ecs_model::doc::{copy, object};
use ecs_model::names::DEFAULT_CLUSTER;
use ecs_model::refusal::refuse_if;
use ecs_model::task::desired_status;
use ecs_model::taskdef::is_name;
use k8s_schema::gvr;
use machinery::kinds::get::{list as items, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// How long an inactive cluster can be seen.
const INACTIVE_KEPT_MS: u64 = 3_600_000;
/// Most clusters in one DescribeClusters.
const DESCRIBE_MAX: usize = 100;
/// When it became inactive, milliseconds since 1970: our own member of `spec`.
const INACTIVE_SINCE: &str = "inactiveSinceMs";

/// CreateCluster.
pub async fn create(cx: &Context<'_>) -> Outcome {
    let name = match cx.text("clusterName") {
        "" => DEFAULT_CLUSTER,
        name => name,
    };
    if !is_name(name) {
        return Err(parameter(
            "Invalid cluster name. Up to 255 letters (uppercase and lowercase), numbers, underscores, and hyphens are \
             allowed.",
        ));
    }
    let spec = wanted(cx, name)?;
    if let Some(cluster) = cx.find_cluster(name)?
        && text(cluster.doc.spec(), "/status") == "ACTIVE"
    {
        let members =
            ["settings", "configuration", "capacityProviders", "defaultCapacityProviderStrategy", "tags"];
        let differs = |m: &str| cx.call.input.get(m).is_some() && cluster.doc.spec()[m] != spec[m];
        if members.into_iter().any(differs) {
            return Err(parameter(
                "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
            ));
        }
        return Ok(json!({"cluster": shown(cx, &cluster, &["SETTINGS", "TAGS", "CONFIGURATIONS"])?}));
    }
    sweep(cx).await;
    let cluster = make(cx, name, spec).await?;
    Ok(json!({"cluster": shown(cx, &cluster, &["SETTINGS", "TAGS", "CONFIGURATIONS"])?}))
}

/// Makes the default cluster.
pub async fn make_default(cx: &Context<'_>) -> Result<(), AwsError> {
    let spec = base(cx, DEFAULT_CLUSTER);
    make(cx, DEFAULT_CLUSTER, spec).await.map(drop)
}

fn base(cx: &Context<'_>, name: &str) -> Value {
    json!({
        "clusterArn": cx.cluster_arn(name), "clusterName": name, "status": "ACTIVE", "tags": [],
        "settings": [{"name": "containerInsights", "value": super::account_setting::value(cx, "containerInsights")}],
        "capacityProviders": [], "defaultCapacityProviderStrategy": [],
    })
}

/// The spec that a create asks for.
fn wanted(cx: &Context<'_>, name: &str) -> Result<Value, AwsError> {
    let input = &cx.call.input;
    let mut spec = base(cx, name);
    check_settings(items(input, "/settings"))?;
    copy(&mut spec, input, "settings configuration serviceConnectDefaults tags");
    super::tag::check(items(input, "/tags"))?;
    let (providers, strategy) = providers(cx)?;
    spec["capacityProviders"] = providers;
    spec["defaultCapacityProviderStrategy"] = strategy;
    Ok(spec)
}

/// `capacityProviders` and `defaultCapacityProviderStrategy` of the input: known, and the one within the other.
fn providers(cx: &Context<'_>) -> Result<(Value, Value), AwsError> {
    let names: Vec<String> =
        cx.texts("capacityProviders").iter().map(|p| capacity_provider::name_of(cx, p)).collect();
    for name in &names {
        if !is_fargate(name) && capacity_provider::find(cx, name)?.is_none() {
            return Err(parameter(format!("The specified capacity provider '{name}' was not found.")));
        }
    }
    let given = items(&cx.call.input, "/defaultCapacityProviderStrategy");
    let strategy = Strategy::parse(given, |p| capacity_provider::name_of(cx, p))?;
    if let Some(item) = strategy.items().iter().find(|i| !names.contains(&i.provider)) {
        return Err(parameter(format!(
            "The specified capacity provider '{}' is not associated with the cluster.",
            item.provider
        )));
    }
    Ok((json!(names), strategy.document()))
}

fn check_settings(settings: &[Value]) -> Result<(), AwsError> {
    for setting in settings {
        refuse_if(text(setting, "/name") != "containerInsights", || parameter("Invalid setting 'name'"))?;
        if !matches!(text(setting, "/value"), "enabled" | "disabled" | "enhanced") {
            return Err(parameter("Invalid setting 'value'"));
        }
    }
    Ok(())
}

/// Writes a cluster that is not there or inactive.
async fn make(cx: &Context<'_>, name: &str, spec: Value) -> Result<Cluster, AwsError> {
    let key = cx.cluster_key(name);
    cx.ensure_namespace(&key.namespace).await?;
    let body = object("Cluster", &key.namespace, &key.name, spec.clone());
    if cx.create(&cx.views.clusters, body).await?.is_none() {
        let revived = cx
            .modify(&cx.views.clusters, &key, |doc| {
                let mut spec = spec.clone();
                // Members that the new one has not are removed.
                for member in doc.spec().as_object().into_iter().flatten().map(|(k, _)| k) {
                    if spec.get(member).is_none() {
                        spec[member] = Value::Null;
                    }
                }
                Ok((text(doc.spec(), "/status") != "ACTIVE").then(|| json!({"spec": spec})))
            })
            .await?;
        if revived.is_none() {
            // This server's cache has not seen it.
            cx.made_by_another(&cx.views.clusters, &key).await?;
        }
    }
    cx.find_cluster(name)?.ok_or_else(|| AwsError::client("ClusterNotFoundException", "Cluster not found."))
}

/// Removes the namespaces of clusters that have been inactive for long.
async fn sweep(cx: &Context<'_>) {
    for object in cx.views.clusters.list() {
        let since = doc(&object).ok().and_then(|d| d.spec()[INACTIVE_SINCE].as_u64());
        if since.is_some_and(|since| since + INACTIVE_KEPT_MS < cx.call.now_ms) {
            let key = ObjectKey::cluster(object.key.namespace.clone());
            let gone = cx.shared.client.delete(&gvr::NAMESPACES, &key, DeleteOptions::default()).await;
            if let Err(error) = gone.map(drop).or_else(|e| if e.is_not_found() { Ok(()) } else { Err(e) }) {
                tracing::warn!(%error, namespace = %object.key.namespace, "an inactive cluster was not removed");
            }
        }
    }
}

/// DeleteCluster.
pub async fn delete(cx: &Context<'_>) -> Outcome {
    let name = cx.cluster_name(cx.text("cluster"))?;
    let missing = || AwsError::client("ClusterNotFoundException", "Cluster not found.");
    let cluster = cx.find_cluster(&name)?.ok_or_else(missing)?;
    refuse_if_used(cx, &cluster)?;
    let now = cx.call.now_ms;
    cx.modify(&cx.views.clusters, &cx.cluster_key(&name), |doc| {
        let patch = json!({"spec": {"status": "INACTIVE", INACTIVE_SINCE: now}});
        Ok((text(doc.spec(), "/status") == "ACTIVE").then_some(patch))
    })
    .await?
    .ok_or_else(missing)?;
    sweep(cx).await;
    let cluster = cx.find_cluster(&name)?.ok_or_else(missing)?;
    Ok(json!({"cluster": shown(cx, &cluster, &["SETTINGS", "CONFIGURATIONS"])?}))
}

fn refuse_if_used(cx: &Context<'_>, cluster: &Cluster) -> Result<(), AwsError> {
    for object in cx.views.services.list_in(&cluster.namespace) {
        if text(doc(&object)?.spec(), "/status") != "INACTIVE" {
            let words = "The Cluster cannot be deleted while Services are active.";
            return Err(AwsError::client("ClusterContainsServicesException", words));
        }
    }
    for object in cx.views.tasks.list_in(&cluster.namespace) {
        if !ecs_model::task::is_stopped(doc(&object)?.status()) {
            let words = "The Cluster cannot be deleted while Tasks are active.";
            return Err(AwsError::client("ClusterContainsTasksException", words));
        }
    }
    Ok(())
}

/// DescribeClusters.
pub async fn describe(cx: &Context<'_>) -> Outcome {
    let mut asked = cx.texts("clusters");
    if asked.is_empty() {
        asked.push(DEFAULT_CLUSTER);
    }
    if asked.len() > DESCRIBE_MAX {
        return Err(parameter(format!("clusters can have at most {DESCRIBE_MAX} entries.")));
    }
    let (mut clusters, mut failures) = (Vec::new(), Vec::new());
    for given in asked {
        let name = cx.cluster_name(given)?;
        if name == DEFAULT_CLUSTER && cx.find_cluster(&name)?.is_none() {
            make_default(cx).await?;
        }
        match cx.find_cluster(&name)? {
            Some(cluster) => clusters.push(shown(cx, &cluster, &cx.texts("include"))?),
            None => failures.push(failure(&cx.cluster_arn(&name), "MISSING")),
        }
    }
    Ok(json!({"clusters": clusters, "failures": failures}))
}

/// ListClusters.
pub async fn list(cx: &Context<'_>) -> Outcome {
    let page = Page::of(cx.call, PAGE_MAX)?;
    let prefix = cx.cluster_arn("");
    let mut arns = BTreeMap::new();
    for object in cx.views.clusters.list() {
        let doc = doc(&object)?;
        let arn = text(doc.spec(), "/clusterArn").to_string();
        if text(doc.spec(), "/status") == "ACTIVE" && arn.starts_with(&prefix) {
            arns.insert(arn.clone(), json!(arn));
        }
    }
    Ok(page.answer("clusterArns", arns))
}

/// UpdateCluster.
pub async fn update(cx: &Context<'_>) -> Outcome {
    check_settings(items(&cx.call.input, "/settings"))?;
    let mut patch = json!({});
    copy(&mut patch, &cx.call.input, "settings configuration serviceConnectDefaults");
    change(cx, patch).await
}

/// UpdateClusterSettings.
pub async fn update_settings(cx: &Context<'_>) -> Outcome {
    check_settings(items(&cx.call.input, "/settings"))?;
    if items(&cx.call.input, "/settings").is_empty() {
        return Err(parameter("settings should not be null or empty."));
    }
    change(cx, json!({"settings": cx.call.input["settings"]})).await
}

/// PutClusterCapacityProviders.
pub async fn put_capacity_providers(cx: &Context<'_>) -> Outcome {
    let (providers, strategy) = providers(cx)?;
    let cluster = cx.cluster().await?;
    let kept = |name: &str| providers.as_array().is_some_and(|all| all.iter().any(|p| p == name));
    let removed = items(cluster.doc.spec(), "/capacityProviders").iter().filter_map(Value::as_str);
    for name in removed.filter(|n| !kept(n)) {
        for object in cx.views.tasks.list_in(&cluster.namespace) {
            let task = doc(&object)?;
            let active = desired_status(task.spec(), task.status()) == "RUNNING";
            if active && text(task.spec(), "/capacityProviderName") == name {
                let words = "The specified capacity provider is in use and cannot be removed.";
                return Err(AwsError::client("ResourceInUseException", words));
            }
        }
    }
    change(cx, json!({"capacityProviders": providers, "defaultCapacityProviderStrategy": strategy})).await
}

async fn change(cx: &Context<'_>, patch: Value) -> Outcome {
    let cluster = cx.cluster().await?;
    let key = cx.cluster_key(&cluster.name);
    let changed = cx
        .modify(&cx.views.clusters, &key, |doc| match text(doc.spec(), "/status") {
            "ACTIVE" => Ok(Some(json!({"spec": patch}))),
            _ => Err(client_error("The referenced cluster was inactive.")),
        })
        .await?;
    changed.ok_or_else(|| AwsError::client("ClusterNotFoundException", "Cluster not found."))?;
    let cluster = cx.cluster().await?;
    Ok(json!({"cluster": shown(cx, &cluster, &["SETTINGS", "CONFIGURATIONS", "TAGS"])?}))
}

/// What DescribeClusters answers for one.
fn shown(cx: &Context<'_>, cluster: &Cluster, include: &[&str]) -> Outcome {
    let mut out = cluster.doc.spec().clone();
    if let Some(members) = out.as_object_mut() {
        members.remove(INACTIVE_SINCE);
        if !include.contains(&"CONFIGURATIONS") {
            members.remove("configuration");
        }
    }
    for (member, field) in [("settings", "SETTINGS"), ("tags", "TAGS")] {
        if !include.contains(&field) {
            out[member] = json!([]);
        }
    }
    let counts = counts(cx, cluster)?;
    for (member, count) in [("runningTasksCount", "running"), ("pendingTasksCount", "pending")] {
        let sum: u64 = counts.iter().filter(|(k, _)| k.starts_with(count)).map(|(_, n)| n).sum();
        out[member] = json!(sum);
    }
    let services = counts.iter().filter(|(k, _)| k.starts_with("active")).map(|(_, n)| n).sum::<u64>();
    out["activeServicesCount"] = json!(services);
    out["registeredContainerInstancesCount"] = json!(cx.instances(cluster)?.len());
    let statistic = |(name, n): (&String, &u64)| json!({"name": name, "value": n.to_string()});
    out["statistics"] = match include.contains(&"STATISTICS") {
        true => counts.iter().map(statistic).collect(),
        false => json!([]),
    };
    if include.contains(&"ATTACHMENTS") {
        out["attachments"] = json!([]);
    }
    Ok(out)
}

/// `runningEC2TasksCount` and the like.
fn counts(cx: &Context<'_>, cluster: &Cluster) -> Result<BTreeMap<String, u64>, AwsError> {
    let mut counts = BTreeMap::new();
    for (kind, whats) in [("TasksCount", ["running", "pending"]), ("ServiceCount", ["active", "draining"])] {
        for launch in ["EC2", "Fargate", "External"] {
            counts.extend(whats.map(|what| (format!("{what}{launch}{kind}"), 0)));
        }
    }
    let launch = |spec: &Value| match text(spec, "/launchType") {
        "FARGATE" => "Fargate",
        "EXTERNAL" => "External",
        _ => "EC2",
    };
    for object in cx.views.tasks.list_in(&cluster.namespace) {
        let task = doc(&object)?;
        let what = match text(task.status(), "/lastStatus") {
            "RUNNING" => "running",
            "PROVISIONING" | "PENDING" | "ACTIVATING" => "pending",
            _ => continue,
        };
        *counts.entry(format!("{what}{}TasksCount", launch(task.spec()))).or_default() += 1;
    }
    for object in cx.views.services.list_in(&cluster.namespace) {
        let service = doc(&object)?;
        let what = match text(service.spec(), "/status") {
            "ACTIVE" => "active",
            "DRAINING" => "draining",
            _ => continue,
        };
        *counts.entry(format!("{what}{}ServiceCount", launch(service.spec()))).or_default() += 1;
    }
    Ok(counts)
}
