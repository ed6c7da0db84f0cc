//! The service scheduler: keeps the wanted tasks of every ECS service running, rolls deployments, feeds load balancers.
//!
//! A decision is made from the service, its tasks, its target groups and the cluster's instances (`decide`, `moves`,
//! `rollout`, `targets`, `view`: all pure); this shell carries it out and writes what it did into the service's status.
//! Tasks are started by the ECS operations in process ([`Launcher`]), on the same ledger as RunTask. One worker looks at
//! a service at a time; its own writes are seen at once, and a task that was started is waited for before anything else
//! is decided. Deliberately not here: what runs a task (`task`), what balances (`loadbalancer`).

pub(crate) mod act;
mod decide;
mod members;
mod moves;
mod rollout;
mod targets;
mod view;

use crate::EcsConfig;
use crate::gone_is_fine;
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::work::{Outcome, Reconcile, enqueue_self, run};
use client::{ApiClient, ListOptions, Object, ObjectKey};
use decide::{Memory, Snapshot, decide};
use ecs_model::doc::{Doc, copy};
use ecs_model::names::{Arn, Place, Resource};
use ecs_model::task::is_stopped;
use jiff::Timestamp;
use k8s_schema::gvr;
use machinery::kinds::get::{has, int, list, text};
use machinery::status::ApiError;
use members::Members;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use targets::Member;
use tokio::task::JoinHandle;
use view::{Rules, Seen, Traffic};

/// Services that are worked on at the same time.
const WORKERS: usize = 4;
/// Definitions that are remembered; more, and all are asked for anew.
const DEFINITIONS_MAX: usize = 10_000;
/// Patience with a target that drains: the longest delay there is, and a minute.
const DRAIN_MAX_MS: f64 = 3_660_000.0;

/// Starts tasks of services, and tells where they could be: the ECS operations, asked in process.
#[async_trait]
pub trait Launcher: Send + Sync + 'static {
    /// Asks for an operation in an account and region: `gantry:StartServiceTasks` answers as RunTask does,
    /// `gantry:DescribeServicePlaces` with `places` and `zones`. An error comes as its message.
    async fn ask(&self, place: &Place, operation: &'static str, input: Value) -> Result<Value, String>;
}

/// What is known of a service between two looks.
#[derive(Clone, Debug, Default)]
struct Kept {
    memory: Memory,
    /// Tasks that were started and not seen yet.
    expected: BTreeSet<String>,
}

struct Controller {
    client: ApiClient,
    launcher: Arc<dyn Launcher>,
    config: EcsConfig,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    services: Arc<Cache>,
    tasks: Arc<Cache>,
    groups: Arc<Cache>,
    containers: Arc<Cache>,
    nodes: Arc<Cache>,
    registry: Arc<Cache>,
    members: Arc<Members>,
    kept: Mutex<BTreeMap<ObjectKey, Kept>>,
    checked: Mutex<BTreeMap<String, bool>>,
}

/// Starts it.
pub fn start(
    client: ApiClient,
    launcher: Arc<dyn Launcher>,
    config: EcsConfig,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
) -> Vec<JoinHandle<()>> {
    let cache = |gvr| Cache::start(client.clone(), gvr, ListOptions::default());
    let queue = Arc::new(Queue::default());
    let members = Arc::new(Members::new(config.defaults.clone()));
    let controller = Controller {
        services: cache(gvr::ECS_SERVICES),
        tasks: cache(gvr::ECS_TASKS),
        groups: cache(gvr::ELB_TARGET_GROUPS),
        containers: cache(gvr::ECS_CONTAINER_INSTANCES),
        nodes: cache(gvr::NODES),
        registry: cache(gvr::DISCOVERY_INSTANCES),
        members: members.clone(),
        kept: Mutex::default(),
        checked: Mutex::default(),
        client,
        launcher,
        config,
        clock,
    };
    enqueue_self(&controller.services, &queue);
    let of_task = queue.clone();
    controller.tasks.on_change(Box::new(move |old, new| {
        members.change(old, new).into_iter().for_each(|key| of_task.add(key));
    }));
    follow_groups(&controller, &queue);
    follow_instances(&controller, &queue);
    let caches = [
        &controller.services,
        &controller.tasks,
        &controller.groups,
        &controller.containers,
        &controller.nodes,
        &controller.registry,
    ];
    let caches = caches.map(Arc::clone).to_vec();
    run("ecs-service", caches, queue, WORKERS, Arc::new(controller))
}

/// A target group's services look again.
fn follow_groups(controller: &Controller, queue: &Arc<Queue<ObjectKey>>) {
    let (late, services) = (queue.clone(), controller.services.clone());
    controller.groups.on_change(Box::new(move |old, new| {
        let Some(group) = new.or(old).and_then(|o| o.view::<Doc>().ok()) else { return };
        let arn = text(group.spec(), "/TargetGroupArn").to_string();
        for service in services.list() {
            let Ok(doc) = service.view::<Doc>() else { continue };
            let of = |d: &Value| list(d, "/loadBalancers").iter().any(|b| text(b, "/targetGroupArn") == arn);
            if of(doc.spec()) {
                late.add(service.key.clone());
            }
        }
    }));
}

/// Services look again when instances come, go, or change what counts for placement.
fn follow_instances(controller: &Controller, queue: &Arc<Queue<ObjectKey>>) {
    for cache in [&controller.nodes, &controller.containers] {
        let (late, services) = (queue.clone(), controller.services.clone());
        cache.on_change(Box::new(move |old, new| {
            if old.map(|o| standing(o)) != new.map(|n| standing(n)) {
                services.list().iter().for_each(|s| late.add(s.key.clone()));
            }
        }));
    }
}

/// What of a node or container instance counts: a digest of it.
fn standing(object: &Object) -> Value {
    let Ok(doc) = object.view::<Doc>() else { return Value::Null };
    let ready = list(doc.status(), "/conditions").iter().find(|c| c["type"] == "Ready");
    let spec = doc.spec();
    json!([
        ready.map(|c| c["status"].clone()),
        spec["unschedulable"],
        spec["status"],
        spec["registered"],
        spec["attributes"],
        doc.0["metadata"]["labels"],
        doc.status()["allocatable"]
    ])
}

/// A service under its scheduler's eyes.
struct Scene {
    key: ObjectKey,
    object: Option<Arc<Object>>,
    /// Null where the service is gone.
    spec: Value,
    status: Value,
    tasks: Vec<Arc<Doc>>,
    place: Place,
    now_ms: i64,
}

impl Scene {
    fn name(&self) -> &str {
        text(&self.spec, "/serviceName")
    }

    fn balancers(&self) -> &[Value] {
        list(&self.spec, "/loadBalancers")
    }

    fn is_current(&self, task: &Value) -> bool {
        text(task, "/startedBy") == rollout::wanted(&self.spec)
    }
}

impl Controller {
    fn scene(&self, key: &ObjectKey) -> Result<Scene, ApiError> {
        let object = self.services.get(key);
        let doc = object.as_ref().map(|o| o.view::<Doc>()).transpose().map_err(ApiError::internal)?;
        let (spec, status) = doc.map(|d| (d.spec().clone(), d.status().clone())).unwrap_or_default();
        let mut tasks = Vec::new();
        for task in self.members.of(key) {
            if let Some(object) = self.tasks.get(&task) {
                tasks.push(object.view::<Doc>().map_err(ApiError::internal)?);
            }
        }
        let arn = [&spec, tasks.first().map_or(&Value::Null, |t| t.spec())].map(|v| {
            let arn = Arn::parse(match text(v, "/serviceArn") {
                "" => text(v, "/taskArn"),
                arn => arn,
            })?;
            Some(Place::new(arn.account, arn.region))
        });
        let place = arn.into_iter().flatten().next().unwrap_or_else(|| self.config.defaults.clone());
        let now_ms = (self.clock)().as_millisecond();
        Ok(Scene { key: key.clone(), object, spec, status, tasks, place, now_ms })
    }

    /// Tasks that were just started are in the cache before anything is decided.
    async fn catch_up(&self, key: &ObjectKey) -> Result<(), ApiError> {
        let expected = self.kept.lock().get(key).map(|k| k.expected.clone()).unwrap_or_default();
        for id in expected {
            let task = ObjectKey::new(key.namespace.clone(), &*id);
            if self.tasks.get(&task).is_none() {
                let found = gone_is_fine(self.client.get(&gvr::ECS_TASKS, &task).await)?;
                found.into_iter().for_each(|object| self.tasks.observe(object));
            }
            self.kept.lock().entry(key.clone()).or_default().expected.remove(&id);
        }
        Ok(())
    }

    /// Do tasks of that definition have health checks?
    async fn is_checked(&self, place: &Place, arn: &str) -> Result<bool, ApiError> {
        if let Some(known) = self.checked.lock().get(arn) {
            return Ok(*known);
        }
        let definition = self.definition(place, arn).await?;
        let found = definition.as_ref().is_some_and(|d| view::is_checked(d.spec()));
        let mut checked = self.checked.lock();
        if checked.len() >= DEFINITIONS_MAX {
            checked.clear();
        }
        checked.insert(arn.to_string(), found);
        Ok(found)
    }

    async fn definition(&self, place: &Place, arn: &str) -> Result<Option<Arc<Doc>>, ApiError> {
        let scope = ecs_model::names::Scope { place: place.clone(), defaults: self.config.defaults.clone() };
        let Ok(Resource::TaskDefinition(family, revision)) = scope.parse(arn) else { return Ok(None) };
        let key = ObjectKey::new(ecs_model::names::ECS_NAMESPACE, scope.task_definition(&family, revision));
        let found = gone_is_fine(self.client.get(&gvr::ECS_TASK_DEFINITIONS, &key).await)?;
        found.map(|object| object.view::<Doc>()).transpose().map_err(ApiError::internal)
    }

    /// The EC2 instance and the node of a task that has an instance.
    fn instance(&self, namespace: &str, spec: &Value) -> Option<Arc<Doc>> {
        let id = text(spec, "/containerInstanceArn").rsplit('/').next().filter(|id| !id.is_empty())?;
        self.containers.get(&ObjectKey::new(namespace, id))?.view::<Doc>().ok()
    }

    /// What is asked of the launcher for this service.
    fn order(&self, scene: &Scene) -> Value {
        let spec = &scene.spec;
        let mut order = json!({
            "cluster": spec["clusterArn"], "taskDefinition": spec["taskDefinition"],
            "group": format!("service:{}", scene.name()), "startedBy": rollout::wanted(spec),
            "activates": has(spec, "/loadBalancers/0") || has(spec, "/serviceRegistries/0"),
        });
        let members = "launchType capacityProviderStrategy networkConfiguration placementConstraints \
                       placementStrategy platformVersion enableExecuteCommand enableECSManagedTags propagateTags \
                       volumeConfigurations";
        copy(&mut order, spec, members);
        if text(spec, "/propagateTags") == "SERVICE" {
            order["tags"] = spec["tags"].clone();
        }
        order
    }

    /// The instances and zones that the service could use.
    async fn places(&self, scene: &Scene) -> (Vec<moves::Place>, BTreeSet<String>) {
        if text(&scene.spec, "/status") != "ACTIVE" {
            return Default::default();
        }
        let asked = self.launcher.ask(&scene.place, "gantry:DescribeServicePlaces", self.order(scene)).await;
        let answer = asked.unwrap_or_else(|error| {
            tracing::debug!(service = scene.name(), error, "where its tasks could be is not known");
            Value::Null
        });
        let place = |p: &Value| moves::Place {
            arn: text(p, "/arn").to_string(),
            zone: text(p, "/zone").to_string(),
            takes: p["takes"] == true,
            active: p["active"] == true,
        };
        let zones = list(&answer, "/zones").iter().filter_map(|z| Some(z.as_str()?.to_string()));
        (list(&answer, "/places").iter().map(place).collect(), zones.collect())
    }

    /// Looks at every task.
    async fn see(&self, scene: &Scene, places: &[moves::Place]) -> Result<Vec<Seen>, ApiError> {
        let grace = int(&scene.spec, "/healthCheckGracePeriodSeconds").unwrap_or(0);
        let settled = i64::try_from(self.config.settled.as_millis()).unwrap_or(i64::MAX);
        let rules = Rules { now_ms: scene.now_ms, settled_ms: settled, grace_ms: grace.saturating_mul(1000) };
        let docs = self.group_docs();
        let groups: BTreeMap<String, &Value> =
            docs.iter().map(|d| (text(d.spec(), "/TargetGroupArn").to_string(), &d.0)).collect();
        let mut out = Vec::with_capacity(scene.tasks.len());
        for task in &scene.tasks {
            let (spec, status) = (task.spec(), task.status());
            let over = is_stopped(status);
            let checked = !over && self.is_checked(&scene.place, text(spec, "/taskDefinitionArn")).await?;
            let instance = self.instance(&scene.key.namespace, spec);
            let member = Member {
                spec,
                status,
                current: scene.is_current(spec),
                instance_id: instance.as_ref().map(|i| text(i.spec(), "/ec2InstanceId")),
            };
            let traffic = match over {
                true => Traffic::Unasked,
                false => targets::traffic(&member, scene.balancers(), &groups),
            };
            let mut seen = view::see(spec, status, &rules, checked, &traffic);
            let at = places.iter().find(|p| p.arn == seen.instance);
            seen.leaving = at.is_some_and(|p| !p.active);
            out.push(seen);
        }
        Ok(out)
    }

    fn group_docs(&self) -> Vec<Arc<Doc>> {
        self.groups.list().iter().filter_map(|o| o.view::<Doc>().ok()).collect()
    }

    /// The service is gone: nothing of it stays.
    async fn clear(&self, scene: &Scene) -> Result<(), ApiError> {
        self.kept.lock().remove(&scene.key);
        for task in scene.tasks.iter().filter(|t| !is_stopped(t.status())) {
            self.stop(scene, text(task.spec(), "/taskArn"), "The service was deleted.").await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        self.catch_up(key).await?;
        let scene = self.scene(key)?;
        if scene.object.is_none() && scene.tasks.is_empty() {
            self.kept.lock().remove(key);
            return Ok(None);
        }
        let mut told = self.register(&scene).await?;
        self.discover(&scene).await?;
        self.activate(&scene).await?;
        self.release_drained(&scene).await?;
        if scene.object.is_none() || text(&scene.spec, "/status") == "INACTIVE" {
            self.clear(&scene).await?;
            return Ok(None);
        }
        let (places, zones) = self.places(&scene).await;
        let tasks = self.see(&scene, &places).await?;
        let memory = self.kept.lock().get(key).map(|k| k.memory.clone()).unwrap_or_default();
        let plan = decide(&Snapshot {
            spec: &scene.spec,
            status: &scene.status,
            tasks: &tasks,
            places: &places,
            zones: &zones,
            memory: &memory,
            now_ms: scene.now_ms,
        });
        self.kept.lock().entry(key.clone()).or_default().memory = plan.memory;
        let mut status = plan.status;
        self.revision(&scene, &status).await?;
        for act in &plan.acts {
            told.extend(self.carry_out(&scene, &tasks, act).await?);
        }
        let now = scene.now_ms as f64 / 1000.0;
        for message in told {
            rollout::tell(&mut status, format!("(service {}) {message}", scene.name()), now);
        }
        self.write(&scene, &status).await?;
        self.afterwards(&scene, &plan.acts).await?;
        Ok(plan.again_ms.map(Duration::from_millis))
    }
}
