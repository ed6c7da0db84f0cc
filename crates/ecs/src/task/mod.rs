//! The task controller: Task → Pod, Pod status → Task status, stops, retention.
//!
//! A Task and its Pod have the same key. Invariants: what a pod showed last is in the task before the pod goes (a
//! finalizer holds it); a dynamic host port is given to one task of a node at a time.
//! Deliberately not here: placement (operations choose a node for EC2 tasks, the scheduler for the others).

mod decide;
mod index;

use crate::secrets::{self, SecretSource, SecretsError};
use crate::{EcsConfig, gone_is_fine, task::decide::Snapshot};
use async_trait::async_trait;
use client::cache::Cache;
use client::queue::Queue;
use client::work::{Outcome, Reconcile, enqueue_self, run};
use client::{ApiClient, DeleteOptions, ListOptions, Object, ObjectKey};
use decide::{Act, decide, is_held, release_patch, was_made};
use ecs_model::doc::Doc;
use ecs_model::lower::{self, Input, NetworkMode, Subject, TASK_LABEL, items, text};
use ecs_model::names::{Arn, ECS_NAMESPACE, Place, Resource, Scope};
use ecs_model::raise::fail;
use index::Index;
use jiff::Timestamp;
use k8s_schema::gvr::{ECS_TASK_DEFINITIONS, ECS_TASKS, NODES, PODS, SECRETS};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::task::JoinHandle;

pub use decide::INTERRUPT;

/// Tasks that are worked on at the same time: each waits for the disk a few times.
const WORKERS: usize = 16;

struct Controller {
    client: ApiClient,
    secrets: Arc<dyn SecretSource>,
    config: EcsConfig,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    tasks: Arc<Cache>,
    pods: Arc<Cache>,
    nodes: Arc<Cache>,
    index: Arc<Index>,
}

/// Starts it.
pub fn start(
    client: ApiClient,
    secrets: Arc<dyn SecretSource>,
    config: EcsConfig,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
) -> Vec<JoinHandle<()>> {
    let cache = |gvr: k8s_schema::Gvr, options| Cache::start(client.clone(), gvr, options);
    let of_tasks = ListOptions { label_selector: TASK_LABEL.into(), ..ListOptions::default() };
    let tasks = cache(ECS_TASKS, ListOptions::default());
    let pods = cache(PODS, of_tasks);
    let nodes = cache(NODES, ListOptions::default());
    let queue = Arc::new(Queue::default());
    let index = Arc::new(Index::default());
    let seen = index.clone();
    pods.on_change(Box::new(move |old, new| match (old, new) {
        (_, Some(pod)) => seen.put(pod),
        (Some(pod), None) => seen.remove(&pod.key),
        (None, None) => {}
    }));
    enqueue_self(&tasks, &queue);
    enqueue_self(&pods, &queue);
    let (late, places) = (queue.clone(), index.clone());
    nodes.on_change(Box::new(move |old, new| {
        if old.is_some_and(|o| answers(o)) != new.is_some_and(|n| answers(n)) {
            let name = new.or(old).map(|n| n.key.name.to_string()).unwrap_or_default();
            places.on_node(&name).into_iter().for_each(|key| late.add(key));
        }
    }));
    let caches = vec![tasks.clone(), pods.clone(), nodes.clone()];
    let controller = Controller { client, secrets, config, clock, tasks, pods, nodes, index };
    run("ecs-task", caches, queue, WORKERS, Arc::new(controller))
}

/// Does the node's Ready condition say more than "unknown"?
fn answers(node: &Object) -> bool {
    let Ok(node) = node.value() else { return false };
    let conditions = items(&node["status"]["conditions"]);
    !conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "Unknown")
}

/// How the making of a pod can end, besides well.
enum Failure {
    /// The task comes to nothing.
    Task(String),
    /// Try again.
    Api(ApiError),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure::Api(error)
    }
}

/// What of a task's own document is needed all the time.
struct Known {
    scope: Scope,
    cluster: String,
    definition: Arc<Object>,
}

impl Controller {
    /// The scope and definition that a task's ARNs name.
    async fn known(&self, spec: &Value) -> Result<Known, Failure> {
        let arn = text(&spec["taskDefinitionArn"]);
        let broken = |what: &str| Failure::Task(format!("the task's {what} is not readable"));
        let place = Arn::parse(arn).map(|a| Place::new(a.account, a.region));
        let place = place.ok_or_else(|| broken("taskDefinitionArn"))?;
        let scope = Scope { place, defaults: self.config.defaults.clone() };
        let Ok(Resource::TaskDefinition(family, revision)) = scope.parse(arn) else {
            return Err(broken("taskDefinitionArn"));
        };
        let Ok(Resource::Task(cluster, _)) = scope.parse(text(&spec["taskArn"])) else {
            return Err(broken("taskArn"));
        };
        let key = ObjectKey::new(ECS_NAMESPACE, scope.task_definition(&family, revision));
        match self.client.get(&ECS_TASK_DEFINITIONS, &key).await {
            Ok(definition) => Ok(Known { scope, cluster, definition }),
            Err(error) if error.is_not_found() => {
                Err(Failure::Task(format!("the task definition {family}:{revision} is gone")))
            }
            Err(error) => Err(Failure::Api(error)),
        }
    }

    /// The node that a pod ran on, when nobody will hear from it any more.
    fn lost_node(&self, pod: &Value) -> Option<String> {
        let name = Some(text(&pod["spec"]["nodeName"])).filter(|n| !n.is_empty())?;
        let deleting = !pod["metadata"]["deletionTimestamp"].is_null();
        let lost = match self.nodes.get(&ObjectKey::cluster(name)) {
            None => true,
            Some(node) => deleting && !answers(&node),
        };
        lost.then(|| name.to_string())
    }

    async fn make(
        &self,
        key: &ObjectKey,
        task: &Object,
        spec: &Value,
        known: &Known,
    ) -> Result<Arc<Object>, Failure> {
        let subject = Subject { namespace: &key.namespace, id: &key.name, uid: task.uid(), spec };
        let definition = known.definition.view::<Doc>().map_err(|e| Failure::Task(e.to_string()))?;
        let node = Some(text(&spec["nodeName"])).filter(|n| !n.is_empty());
        let lowered = self.index.reserve(key, node, |used| {
            lower::lower(&Input {
                task: subject,
                definition: definition.spec(),
                node,
                used_ports: used,
                settings: &self.config.settings,
            })
        });
        let lowered = lowered.map_err(|e| Failure::Task(format!("ResourceInitializationError: {e}")))?;
        let provided = secrets::provide(&self.client, &*self.secrets, &subject, &lowered).await;
        provided.map_err(|error| match error {
            SecretsError::Refused(why) => Failure::Task(why),
            SecretsError::Api(error) => Failure::Api(error),
        })?;
        match self.client.create(&PODS, lowered.pod).await {
            Ok(pod) => Ok(pod),
            Err(error) if error.is_already_exists() => Ok(self.client.get(&PODS, key).await?),
            // What the API refuses now it will refuse for ever.
            Err(error) if error.code == 422 => {
                Err(Failure::Task(format!("ResourceInitializationError: {error}")))
            }
            Err(error) => Err(Failure::Api(error)),
        }
    }

    async fn write_status(&self, key: &ObjectKey, status: Value) -> Result<(), ApiError> {
        let written = self.client.merge_patch_status(&ECS_TASKS, key, json!({"status": status})).await?;
        self.tasks.observe(written);
        Ok(())
    }

    async fn made(
        &self,
        key: &ObjectKey,
        task: &Object,
        body: &Value,
        status: &Value,
    ) -> Result<(), ApiError> {
        let made = match self.known(&body["spec"]).await {
            Ok(known) => self.make(key, task, &body["spec"], &known).await,
            Err(failure) => Err(failure),
        };
        match made {
            Ok(pod) => {
                self.pods.observe(pod);
                let mut status = status.clone();
                status["version"] = json!(status["version"].as_u64().unwrap_or(1) + 1);
                self.write_status(key, status).await
            }
            Err(Failure::Task(reason)) => {
                self.index.remove(key);
                self.write_status(key, fail(status, &reason, self.now_ms() as f64 / 1000.0)).await
            }
            Err(Failure::Api(error)) => {
                self.index.remove(key);
                Err(error)
            }
        }
    }

    fn now_ms(&self) -> i64 {
        (self.clock)().as_millisecond()
    }

    /// What only the pod needed goes with it; the task stays for its record.
    async fn drop_secrets(&self, key: &ObjectKey, pod: &Value) -> Result<(), ApiError> {
        let spec = pod["spec"].to_string();
        let containers = 0..items(&pod["spec"]["containers"]).len();
        let env = containers.map(|index| lower::env_secret_name(&key.name, index));
        let own = [lower::secret_name(&key.name), lower::registry_secret_name(&key.name)];
        for name in own.into_iter().chain(env) {
            if spec.contains(&name) {
                let secret = ObjectKey::new(key.namespace.clone(), name);
                gone_is_fine(self.client.delete(&SECRETS, &secret, DeleteOptions::default()).await)?;
            }
        }
        Ok(())
    }

    async fn release(&self, key: &ObjectKey, pod: &Value) -> Result<(), ApiError> {
        self.drop_secrets(key, pod).await?;
        if is_held(pod) {
            gone_is_fine(self.client.merge_patch(&PODS, key, release_patch(pod)).await)?;
        }
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: Some(text(&pod["metadata"]["uid"]).to_string()),
            ..DeleteOptions::default()
        };
        gone_is_fine(self.client.delete(&PODS, key, options).await).map(drop)
    }

    async fn act(&self, key: &ObjectKey, pod: &Value, act: Act) -> Result<(), ApiError> {
        match act {
            Act::Make => Ok(()),
            Act::Stop { code, reason } => {
                let patch =
                    json!({"spec": {"desiredStatus": "STOPPED", "stopCode": code, "stoppedReason": reason}});
                gone_is_fine(self.client.merge_patch(&ECS_TASKS, key, patch).await).map(drop)
            }
            Act::Status(status) => self.write_status(key, status).await,
            Act::Delete { now } => {
                let options = DeleteOptions {
                    grace_period_seconds: now.then_some(0),
                    uid: Some(text(&pod["metadata"]["uid"]).to_string()),
                    ..DeleteOptions::default()
                };
                gone_is_fine(self.client.delete(&PODS, key, options).await).map(drop)
            }
            Act::Release => self.release(key, pod).await,
            Act::Forget => {
                gone_is_fine(self.client.delete(&ECS_TASKS, key, DeleteOptions::default()).await).map(drop)
            }
        }
    }

    /// The pod, asked for anew where the cache has none though one was made.
    async fn pod(&self, key: &ObjectKey, made: bool) -> Result<Option<Arc<Object>>, ApiError> {
        if let Some(pod) = self.pods.get(key) {
            return Ok(Some(pod));
        }
        if !made {
            return Ok(None);
        }
        gone_is_fine(self.client.get(&PODS, key).await)
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let task = self.tasks.get(key);
        let body = task.as_ref().map(|t| t.value()).transpose().map_err(ApiError::internal)?;
        let mut status = body.as_ref().map(|b| b["status"].clone()).unwrap_or_default();
        let made = was_made(&status);
        let stopped = ecs_model::task::is_stopped(&status);
        let pod = self.pod(key, made && !stopped).await?;
        let pod = pod.map(|p| p.value()).transpose().map_err(ApiError::internal)?;
        let mut mode = mode_of(pod.as_ref());
        if let Some(body) = &body
            && (status["lastStatus"].is_null() || (mode.is_none() && !stopped))
        {
            match self.known(&body["spec"]).await {
                Ok(known) => {
                    let definition = known.definition.view::<Doc>().map_err(ApiError::internal)?;
                    mode = mode.or(Some(NetworkMode::of(definition.spec())));
                    if status["lastStatus"].is_null() {
                        let (scope, cluster) = (&known.scope, &known.cluster);
                        status = ecs_model::task::initial_status(
                            scope,
                            cluster,
                            &key.name,
                            &body["spec"],
                            definition.spec(),
                        );
                    }
                }
                Err(Failure::Api(error)) => return Err(error),
                Err(Failure::Task(reason)) if pod.is_none() => {
                    let failed = fail(&status, &reason, self.now_ms() as f64 / 1000.0);
                    self.write_status(key, failed).await?;
                    return Ok(None);
                }
                Err(Failure::Task(_)) => {}
            }
        }
        let lost = pod.as_ref().and_then(|p| self.lost_node(p));
        let plan = decide(&Snapshot {
            task: body.as_ref(),
            status: &status,
            mode: mode.unwrap_or(NetworkMode::Bridge),
            pod: pod.as_ref(),
            lost_node: lost.as_deref(),
            now_ms: self.now_ms(),
            retention: self.config.retention,
        });
        for act in plan.acts {
            if act == Act::Make
                && let (Some(task), Some(body)) = (&task, &body)
            {
                self.made(key, task, body, &status).await?;
                continue;
            }
            self.act(key, pod.as_ref().unwrap_or(&Value::Null), act).await?;
        }
        Ok(plan.again)
    }
}

/// How a task is connected, by its pod's annotation.
fn mode_of(pod: Option<&Value>) -> Option<NetworkMode> {
    let note = ecs_model::raise::note(pod?)?;
    Some(NetworkMode::of(&json!({"networkMode": note.task.network_mode})))
}
