//! The scheduler's loop: cache events in, bindings out. The decision is the `sched` crate's.
//!
//! One task: it decides for the pods that are due, sends bindings and refusals at the same time, and sleeps until an
//! event, an answer or the next due pod. Idle: no timer.
//! Deliberately not here: filters, scores and the choice of victims, what a file sets (`sched`).

mod hints;
mod metrics;
mod refuse;
mod state;
mod volumes;
mod waiting;

use crate::context::spawn;
use client::cache::Cache;
use client::events::{EventType, Recorder, Subject};
use client::{ApiClient, ListOptions, ObjectKey, Verb, Write};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_schema::{Gvr, gvr};
use machinery::status::ApiError;
use metrics::Attempt;
pub use metrics::SchedulerMetrics;
use parking_lot::Mutex;
use sched::PodInfo;
use sched::config::Configuration;
use serde_json::json;
use state::{Decision, State};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use volumes::Volumes;

const BUDGETS: Gvr = Gvr::new("policy", "v1", "poddisruptionbudgets");
/// Pods decided for in one go: bounds how long cache events wait.
const BATCH_MAX: usize = 64;
/// Writes under way at the same time.
const WRITES_MAX: usize = 256;

/// What the scheduler must be told.
#[derive(Clone, Default)]
pub struct SchedulerConfig {
    /// Profiles and pauses.
    pub configuration: Configuration,
    /// Where its figures go.
    pub metrics: Arc<SchedulerMetrics>,
}

/// The running scheduler; it stops when this is dropped.
pub struct Scheduler {
    task: JoinHandle<()>,
}

impl Scheduler {
    /// Starts it as `client`'s identity (`system:kube-scheduler`).
    pub fn start(
        client: ApiClient,
        config: SchedulerConfig,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Scheduler {
        let recorder = Recorder::start(client.clone(), "default-scheduler", "", clock.clone());
        let shell = Shell { client, clock, recorder, metrics: config.metrics };
        Scheduler { task: spawn(shell.run(config.configuration)) }
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
    metrics: Arc<SchedulerMetrics>,
}

/// What became of a decision.
enum Answer {
    /// It was carried out, or there is nothing more to do.
    Done,
    /// The pod could not be bound.
    Unbound(Arc<PodInfo>),
    /// These victims could not be asked to go.
    Spared(Vec<Arc<PodInfo>>),
}

/// Keeps the state up to date by handlers of the caches.
fn follow(state: &Arc<Mutex<State>>, wake: &Arc<Notify>, [pods, nodes, budgets]: [&Cache; 3]) {
    let kept = state.clone();
    budgets.on_change(Box::new(move |old, new| kept.lock().budget_changed(old, new)));
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
    async fn run(self, configuration: Configuration) {
        let start = |gvr| Cache::start(self.client.clone(), gvr, ListOptions::default());
        let (pods, nodes, budgets) = (start(gvr::PODS), start(gvr::NODES), start(BUDGETS));
        let (state, wake) = (Arc::new(Mutex::new(State::new(configuration))), Arc::new(Notify::new()));
        self.metrics.follow(state.clone());
        follow(&state, &wake, [&pods, &nodes, &budgets]);
        let volumes = Volumes::start(&self.client, &state, &wake);
        pods.wait_synced().await;
        nodes.wait_synced().await;
        budgets.wait_synced().await;
        volumes.wait_synced().await;
        let mut writes = FuturesUnordered::new();
        loop {
            // A batch at a time: looking for who is due costs the same for one pod and for many. Without room, an
            // answer is what there is to wait for.
            let mut due = None;
            if writes.len() + BATCH_MAX <= WRITES_MAX {
                let mut state = state.lock();
                let begun = Instant::now();
                let decisions = state.decide(begun, BATCH_MAX);
                self.metrics.decided(decisions.len(), begun.elapsed());
                due = state.waiting.next_due();
                drop(state);
                writes.extend(decisions.into_iter().map(|d| self.carry_out(d, &pods, &volumes)));
            }
            let due = due.filter(|_| writes.len() + BATCH_MAX <= WRITES_MAX);
            let answer = tokio::select! {
                answer = writes.next(), if !writes.is_empty() => answer,
                () = wake.notified() => None,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
            };
            // Taken before the state is locked: asking for them runs the writes, which look at the state themselves.
            let more = std::iter::from_fn(|| writes.next().now_or_never().flatten());
            let answers: Vec<Answer> = answer.into_iter().chain(more).collect();
            let mut state = state.lock();
            for answer in answers {
                match answer {
                    Answer::Done => {}
                    Answer::Unbound(info) => state.bind_failed(&info, Instant::now()),
                    Answer::Spared(pods) => pods.iter().for_each(|info| state.spared(info)),
                }
            }
        }
    }

    /// Sends a decision.
    async fn carry_out(&self, decision: Decision, pods: &Cache, volumes: &Volumes) -> Answer {
        match decision {
            Decision::Bind(info, node, seen) => match self.bind(&info, &node, pods, volumes).await {
                Ok(()) => {
                    self.metrics.attempted(Attempt::Scheduled);
                    self.metrics.bound_after(seen.elapsed());
                    Answer::Done
                }
                Err(error) => {
                    self.metrics.attempted(Attempt::Error);
                    tracing::debug!(pod = %key(&info), %node, %error, "binding refused");
                    Answer::Unbound(info)
                }
            },
            Decision::Refuse(info, diagnosis) => {
                self.metrics.attempted(Attempt::Unschedulable);
                Answer::Spared(self.refuse(&info, &diagnosis, pods).await)
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
