//! The scheduler's loop: cache events in, bindings out. The decision is the `sched` crate's.
//!
//! One task takes up what the caches told of, decides for the pods that are due and sleeps until an event, an answer or
//! the next due pod; bindings and refusals are sent by tasks of their own meanwhile. Idle: no timer. Invariant: nobody
//! but this task keeps the state for long, so that a cache never waits for a decision.
//! Deliberately not here: filters, scores and the choice of victims, what a file sets (`sched`).

pub mod devices;
mod extend;
mod groups;
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
pub use extend::Call;
use futures_util::FutureExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::{Gates, Gvr, gates, gvr};
use machinery::status::ApiError;
use metrics::Attempt;
pub use metrics::SchedulerMetrics;
use parking_lot::Mutex;
use sched::PodInfo;
use sched::config::Configuration;
use sched::extend::{Advice, Extender};
use sched::volumes::Step;
use serde_json::json;
use state::{About, Decision, News, State};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
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
    /// The way to extenders; `None`: there is none.
    pub calls: Option<Arc<dyn Call>>,
    /// Profiles and pauses.
    pub configuration: Configuration,
    /// Where its figures go.
    pub metrics: Arc<SchedulerMetrics>,
    /// Which features are on.
    pub gates: Gates,
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
        let extenders = config.configuration.extenders.clone();
        let shell =
            Shell { client, clock, recorder, metrics: config.metrics, extenders, calls: config.calls };
        Scheduler { task: spawn(Arc::new(shell).run(config.configuration, config.gates)) }
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
    extenders: Arc<Vec<Extender>>,
    calls: Option<Arc<dyn Call>>,
}

/// What became of a decision.
enum Answer {
    /// It was carried out, or there is nothing more to do.
    Done,
    /// The pod could not be bound.
    Unbound(Arc<PodInfo>),
    /// These victims could not be asked to go.
    Spared(Vec<Arc<PodInfo>>),
    /// Extenders said this.
    Advised(Arc<PodInfo>, Result<Advice, String>),
}

/// What the caches told of and nobody has taken up yet: no more than was read of their watches meanwhile.
#[derive(Default)]
struct Inbox {
    news: Mutex<Vec<News>>,
    woken: Notify,
}

impl Inbox {
    fn follow(self: &Arc<Self>, cache: &Cache, about: About) {
        let inbox = self.clone();
        cache.on_change(Box::new(move |old, new| {
            if let (About::Pod, Some(new)) = (about, new) {
                // Decoded here, beside the loop, which will want it.
                let _ = new.view::<core::Pod>();
            }
            inbox.news.lock().push((about, old.cloned(), new.cloned()));
            inbox.woken.notify_one();
        }));
    }
}

/// What the writes look at.
struct Caches {
    pods: Arc<Cache>,
    nodes: Arc<Cache>,
    volumes: Volumes,
    groups: Option<Arc<Cache>>,
}

impl Shell {
    async fn run(self: Arc<Self>, configuration: Configuration, gates: Gates) {
        let start = |gvr| Cache::start(self.client.clone(), gvr, ListOptions::default());
        let (pods, nodes, budgets) = (start(gvr::PODS), start(gvr::NODES), start(BUDGETS));
        let namespaces = start(gvr::NAMESPACES);
        let groups = gates.on(gates::GANG_SCHEDULING).then(|| start(gvr::POD_GROUPS));
        let (state, inbox) =
            (Arc::new(Mutex::new(State::new(configuration, gates))), Arc::<Inbox>::default());
        self.metrics.follow(state.clone());
        for (cache, about) in [(&namespaces, About::Namespace), (&budgets, About::Budget)] {
            inbox.follow(cache, about);
        }
        inbox.follow(&pods, About::Pod);
        inbox.follow(&nodes, About::Node);
        groups.iter().for_each(|cache| inbox.follow(cache, About::Group));
        let woken = inbox.clone();
        let volumes = Volumes::start(&self.client, &state, move || woken.woken.notify_one());
        for cache in [&pods, &nodes, &budgets, &namespaces].into_iter().chain(&groups) {
            cache.wait_synced().await;
        }
        volumes.wait_synced().await;
        let caches = Arc::new(Caches { pods, nodes, volumes, groups });
        let mut writes = JoinSet::new();
        loop {
            let news = std::mem::take(&mut *inbox.news.lock());
            // A batch at a time, and only with room for its writes; without, an answer is what there is to wait for.
            let room = writes.len() + BATCH_MAX <= WRITES_MAX;
            let (decisions, due) = self.turn(&mut state.lock(), news, room);
            for decision in decisions {
                writes.spawn(self.clone().carry_out(decision, caches.clone()));
            }
            let due = due.filter(|_| writes.len() + BATCH_MAX <= WRITES_MAX);
            let answer = tokio::select! {
                Some(answer) = writes.join_next() => Some(answer),
                () = inbox.woken.notified() => None,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
            };
            let more = std::iter::from_fn(|| writes.try_join_next());
            let answers: Vec<Answer> = answer.into_iter().chain(more).flatten().collect();
            for answer in answers {
                match answer {
                    Answer::Advised(info, said) => {
                        let decisions = state.lock().advised(&info, said, Instant::now());
                        for decision in decisions {
                            writes.spawn(self.clone().carry_out(decision, caches.clone()));
                        }
                    }
                    Answer::Done => {}
                    Answer::Unbound(info) => state.lock().bind_failed(&info, Instant::now()),
                    Answer::Spared(pods) => pods.iter().for_each(|info| state.lock().spared(info)),
                }
            }
        }
    }

    /// Takes up what is new; decides for a batch, if there is room for it. Yields when the next pod is due, too.
    fn turn(&self, state: &mut State, news: Vec<News>, room: bool) -> (Vec<Decision>, Option<Instant>) {
        let now = Instant::now();
        news.into_iter().for_each(|news| state.hear(news, now));
        if !room {
            return (Vec::new(), None);
        }
        let begun = Instant::now();
        let decisions = state.decide(begun, BATCH_MAX);
        self.metrics.decided(decisions.len(), begun.elapsed());
        (decisions, state.waiting.next_due())
    }

    /// Sends a decision.
    async fn carry_out(self: Arc<Self>, decision: Decision, caches: Arc<Caches>) -> Answer {
        let begun = Instant::now();
        match decision {
            Decision::Bind(info, node, steps, effort) => {
                let bound = caught(self.bind(&info, &node, &steps, &caches)).await;
                match bound.map_err(ApiError::internal).flatten() {
                    Ok(()) => {
                        self.metrics.attempted(Attempt::Scheduled, begun.elapsed());
                        self.metrics.bound(effort);
                        Answer::Done
                    }
                    Err(error) => {
                        self.metrics.attempted(Attempt::Error, begun.elapsed());
                        tracing::debug!(pod = %key(&info), %node, %error, "binding refused");
                        let _told = caught(caches.volumes.devices.undo(&info)).await;
                        Answer::Unbound(info)
                    }
                }
            }
            Decision::Refuse(info, diagnosis) => {
                self.metrics.attempted(Attempt::Unschedulable, begun.elapsed());
                let refused = caught(async {
                    caches.volumes.devices.relieve(&info, &diagnosis).await;
                    self.refuse(&info, &diagnosis, &caches.pods).await
                });
                Answer::Spared(refused.await.unwrap_or_else(|_| diagnosis.rescue.victims().to_vec()))
            }
            Decision::Consult(info, question) => {
                let said = caught(self.consult(&info, question, &caches)).await;
                Answer::Advised(info, said.flatten())
            }
            Decision::Group(id, verdict) => {
                let _told = caught(self.tell_group(&id, &verdict, &caches)).await;
                Answer::Done
            }
        }
    }

    async fn bind(
        &self,
        info: &PodInfo,
        node: &str,
        steps: &[Step],
        caches: &Caches,
    ) -> Result<(), ApiError> {
        if !steps.is_empty() {
            self.announce(info, node).await;
        }
        caches.volumes.prepare(info, steps, &caches.pods).await?;
        let key = key(info);
        let message = format!("Successfully assigned {key} to {node}");
        if let Some(bound) = self.bind_by_extender(info, node).await {
            bound.map_err(ApiError::internal)?;
            self.recorder.record(subject(info), EventType::Normal, "Scheduled", message);
            return Ok(());
        }
        let body = json!({"apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": &*key.name, "namespace": &*key.namespace, "uid": info.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
        let verb = Verb::Create(body);
        let write = Write { gvr: gvr::PODS, key: key.clone(), subresource: "binding", verb };
        self.client.write(write).await?;
        self.recorder.record(subject(info), EventType::Normal, "Scheduled", message);
        Ok(())
    }
}

/// What a write comes to, or that it panicked: its pod must not be forgotten then.
async fn caught<T>(write: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(write).catch_unwind().await.map_err(|panic| {
        let words = panic.downcast_ref::<&str>().copied();
        let words = words.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
        tracing::error!(panic = words, "a decision was not carried out");
        format!("panic: {words}")
    })
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
