//! The scheduler's loop: cache events in, bindings out. The decision is the `sched` crate's.
//!
//! One task: it decides for the pods that are due, sends bindings and refusals at the same time, and sleeps until an
//! event, an answer or the next due pod. Idle: no timer.
//! Deliberately not here: filters and scores (`sched`), preemption, other scheduler names.

mod state;
mod volumes;
mod waiting;

use crate::context::spawn;
use client::cache::Cache;
use client::events::{EventType, Recorder, Subject};
use client::{ApiClient, ListOptions, ObjectKey, PatchKind, Verb, Write};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr;
use machinery::status::ApiError;
use parking_lot::Mutex;
use sched::PodInfo;
use serde_json::json;
use state::{Decision, State};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use volumes::Volumes;

/// Pods decided for in one go: bounds how long cache events wait.
const BATCH_MAX: usize = 64;
/// Writes under way at the same time.
const WRITES_MAX: usize = 256;

/// The running scheduler; it stops when this is dropped.
pub struct Scheduler {
    task: JoinHandle<()>,
}

impl Scheduler {
    /// Starts it as `client`'s identity (`system:kube-scheduler`).
    pub fn start(client: ApiClient, clock: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Scheduler {
        let recorder = Recorder::start(client.clone(), "default-scheduler", "", clock.clone());
        Scheduler { task: spawn(Shell { client, clock, recorder }.run()) }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shell {
    client: ApiClient,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    recorder: Recorder,
}

/// Keeps the state up to date by handlers of both caches.
fn follow(state: &Arc<Mutex<State>>, wake: &Arc<Notify>, pods: &Cache, nodes: &Cache) {
    let (kept, woken) = (state.clone(), wake.clone());
    pods.on_change(Box::new(move |old, new| {
        kept.lock().pod_changed(old, new, Instant::now());
        woken.notify_one();
    }));
    let (kept, woken) = (state.clone(), wake.clone());
    nodes.on_change(Box::new(move |old, new| {
        kept.lock().node_changed(old, new);
        woken.notify_one();
    }));
}

impl Shell {
    async fn run(self) {
        let start = |gvr| Cache::start(self.client.clone(), gvr, ListOptions::default());
        let (pods, nodes) = (start(gvr::PODS), start(gvr::NODES));
        let (state, wake) = (Arc::new(Mutex::new(State::default())), Arc::new(Notify::new()));
        follow(&state, &wake, &pods, &nodes);
        let volumes = Volumes::start(&self.client, &state, &wake);
        pods.wait_synced().await;
        nodes.wait_synced().await;
        volumes.wait_synced().await;
        let mut writes = FuturesUnordered::new();
        loop {
            let room = WRITES_MAX.saturating_sub(writes.len());
            let (decisions, due) = {
                let mut state = state.lock();
                let decisions = state.decide(Instant::now(), BATCH_MAX.min(room));
                (decisions, state.waiting.next_due())
            };
            writes.extend(decisions.into_iter().map(|d| self.carry_out(d, &pods, &volumes)));
            // Without room, an answer is what there is to wait for.
            let due = due.filter(|_| writes.len() < WRITES_MAX);
            let answer = tokio::select! {
                answer = writes.next(), if !writes.is_empty() => answer,
                () = wake.notified() => None,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
            };
            let more = std::iter::from_fn(|| writes.next().now_or_never().flatten());
            let failed: Vec<Arc<PodInfo>> = answer.into_iter().chain(more).flatten().collect();
            let mut state = state.lock();
            failed.iter().for_each(|info| state.bind_failed(info, Instant::now()));
        }
    }

    /// Sends a decision; the pod, when it could not be bound.
    async fn carry_out(&self, decision: Decision, pods: &Cache, volumes: &Volumes) -> Option<Arc<PodInfo>> {
        match decision {
            Decision::Bind(info, node) => match self.bind(&info, &node, pods, volumes).await {
                Ok(()) => None,
                Err(error) => {
                    tracing::debug!(pod = %key(&info), %node, %error, "binding refused");
                    Some(info)
                }
            },
            Decision::Refuse(info, why) => {
                if let Err(error) = self.refuse(&info, why, pods).await {
                    tracing::debug!(pod = %key(&info), %error, "condition not written");
                }
                None
            }
        }
    }

    async fn bind(
        &self,
        info: &PodInfo,
        node: &str,
        pods: &Cache,
        volumes: &Volumes,
    ) -> Result<(), ApiError> {
        volumes.prepare(info, pods).await?;
        let key = key(info);
        let body = json!({"apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": &*key.name, "namespace": &*key.namespace, "uid": info.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        let verb = Verb::Create(body);
        let write = Write { gvr: gvr::PODS, key: key.clone(), subresource: "binding", verb };
        self.client.write(write).await?;
        let message = format!("Successfully assigned {key} to {node}");
        self.recorder.record(subject(info), EventType::Normal, "Scheduled", message);
        Ok(())
    }

    /// Tells why a pod stays without a node: an event each time, the condition when it says something else.
    async fn refuse(&self, info: &PodInfo, why: String, pods: &Cache) -> Result<(), ApiError> {
        self.recorder.record(subject(info), EventType::Warning, "FailedScheduling", why.clone());
        let key = key(info);
        let Some(object) = pods.get(&key).filter(|o| o.uid() == info.uid) else { return Ok(()) };
        let pod = object.view::<core::Pod>().map_err(ApiError::internal)?;
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let present = conditions.into_iter().find(|c| c.type_ == "PodScheduled");
        let known = present.is_some_and(|c| {
            c.status == "False"
                && c.reason.as_deref() == Some("Unschedulable")
                && c.message.as_deref() == Some(&why)
        });
        if known {
            return Ok(());
        }
        let mut condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": why, "lastProbeTime": null});
        if present.is_none_or(|c| c.status != "False") {
            condition["lastTransitionTime"] = json!(machinery::time::format((self.clock)()));
        }
        let patch = json!({"metadata": {"uid": info.uid}, "status": {"conditions": [condition]}});
        let verb = Verb::Patch(PatchKind::Strategic, patch);
        let write = Write { gvr: gvr::PODS, key, subresource: "status", verb };
        match self.client.write(write).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }
}

fn key(info: &PodInfo) -> ObjectKey {
    let (namespace, name) = info.id.clone().unwrap_or_default();
    ObjectKey::new(namespace, name)
}

fn subject(info: &PodInfo) -> Subject {
    let key = key(info);
    Subject {
        api_version: "v1".into(),
        kind: "Pod".into(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        uid: info.uid.clone(),
        field_path: String::new(),
    }
}
