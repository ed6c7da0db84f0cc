//! Log drivers of ECS containers: what a container wrote to its own log file goes on to a log group or a log router.
//!
//! The file is the buffer: drivers tail it as `kubectl logs` does, so a slow sink never stops a container (both `mode`s
//! behave so; beyond the file's rotation the oldest lines are lost). Invariants: a checkpoint beside the file moves
//! only after the sink has taken a batch, so a restart of the agent loses nothing and repeats at most that batch; a
//! pod's log files stay until its drivers have read them, or [`DRAIN_MAX`] has passed.
//! Pure: [`assemble`], [`options`], [`msgpack`]. Deliberately not here: `json-file`, which is the file itself.

mod assemble;
mod deliver;
mod fluent;
mod msgpack;
mod options;
mod tail;
#[cfg(test)]
mod tests;

pub use options::Destination;

use crate::nodeapi::NodeBackend;
use crate::ops::Node;
use crate::pod::PodView;
use async_trait::async_trait;
use client::{Object, ObjectKey};
use deliver::Delivery;
use ecs_model::annotation::{KEY, TaskNote};
use ecs_model::lower::ROUTER_VOLUME;
use options::{Driver, Subject};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long the log files of a pod that is gone wait for its drivers: a server's restart of 30 s, and the longest pause
/// between attempts after it.
pub const DRAIN_MAX: Duration = Duration::from_secs(90);
/// How long a container's first start waits for a sink that is away.
const OPEN_MAX: Duration = Duration::from_secs(60);

/// A line, or several that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEvent {
    /// When it was written, milliseconds since 1970.
    pub time_ms: u64,
    /// The text, without the end of the line.
    pub message: String,
    /// Was it on the error stream?
    pub is_error: bool,
}

/// Why a sink did not take something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// It never will.
    #[error("{0}")]
    Refused(String),
    /// It may later.
    #[error("{0}")]
    Later(String),
}

/// Where log groups are.
#[async_trait]
pub trait LogSink: Send + Sync + 'static {
    /// Makes the stream, and the group where that is wanted; both may be there.
    async fn open(&self, to: &Destination) -> Result<(), SinkError>;
    /// Adds events in order of time. They are on disk when this returns.
    async fn put(&self, to: &Destination, events: Vec<LogEvent>) -> Result<(), SinkError>;
}

/// A pod's drivers.
struct Shipping {
    /// Turns true when nothing more will be written.
    finish: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Shipping {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The drivers of this node.
pub struct Logging {
    node: Weak<Node>,
    backend: Arc<dyn NodeBackend>,
    sink: Arc<dyn LogSink>,
    pods: Mutex<BTreeMap<String, Shipping>>,
}

/// What a pod's annotation says; `None` for pods that are no ECS tasks.
fn note(pod: &Object) -> Option<TaskNote> {
    let text = pod.meta().annotations.get(KEY)?;
    TaskNote::parse(text).inspect_err(|error| tracing::warn!(pod = %pod.key, %error, "no log drivers")).ok()
}

fn subject<'a>(pod: &'a Object, note: &'a TaskNote, container: &'a str) -> Subject<'a> {
    Subject { pod: &pod.key, note, container }
}

impl Logging {
    /// The drivers of all tasks' pods of this node, those there are and those that come. The handle's task ends when
    /// it is aborted.
    pub(crate) fn start(
        node: &Arc<Node>,
        backend: Arc<dyn NodeBackend>,
        sink: Arc<dyn LogSink>,
    ) -> (Arc<Logging>, JoinHandle<()>) {
        let pods = Mutex::default();
        let logging = Arc::new(Logging { node: Arc::downgrade(node), backend, sink, pods });
        let (shared, cache) = (logging.clone(), node.pods.clone());
        let follow = async move {
            cache.wait_synced().await;
            let mut changed = cache.changed();
            loop {
                cache.list().iter().for_each(|pod| shared.take(pod));
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let task = tokio::spawn(follow);
        (logging, task)
    }

    /// Starts a pod's drivers once.
    fn take(self: &Arc<Self>, pod: &Arc<Object>) {
        let mut pods = self.pods.lock();
        if pods.contains_key(pod.uid()) {
            return;
        }
        let Some(note) = note(pod) else { return };
        let (finish, finished) = watch::channel(false);
        let tasks: Vec<JoinHandle<()>> =
            note.containers.keys().filter_map(|name| self.driver(pod, &note, name, &finished)).collect();
        pods.insert(pod.uid().to_string(), Shipping { finish, tasks });
    }

    fn driver(
        &self,
        pod: &Arc<Object>,
        note: &TaskNote,
        name: &str,
        finished: &watch::Receiver<bool>,
    ) -> Option<JoinHandle<()>> {
        let driver = options::driver(&subject(pod, note, name));
        let driver =
            driver.inspect_err(|why| tracing::warn!(pod = %pod.key, why, "no log driver")).ok()??;
        let node = self.node.upgrade()?;
        let folder = node.facts.log_folder(&pod.key.namespace, &pod.key.name, pod.uid()).join(name);
        let grouping = match &driver {
            Driver::Group(_, grouping) => grouping.clone(),
            Driver::Router(_) => None,
        };
        let delivery = match driver {
            Driver::Group(destination, _) => Delivery::to_group(self.sink.clone(), destination),
            Driver::Router(mut route) => {
                let folder = node.facts.volume_dir(pod.uid(), ROUTER_VOLUME);
                route.socket = route.by_socket.then(|| folder.join("fluent.sock"));
                Delivery::to_router(self.backend.clone(), route)
            }
        };
        let tail = tail::Tail::new(folder, grouping, delivery, finished.clone());
        Some(tokio::spawn(tail.run()))
    }

    /// Before a container's first start: makes sure of its stream, as ECS does. What went wrong, in ECS's words.
    pub(crate) async fn prepare(&self, pod: &PodView, container: &str) -> Result<(), String> {
        let Some(note) = note(&pod.object) else { return Ok(()) };
        let driver = options::driver(&subject(&pod.object, &note, container))
            .map_err(|why| format!("failed to validate logger args: {why}"))?;
        match driver {
            Some(Driver::Group(destination, _)) => self.opened(&destination).await.map_err(|error| {
                format!(
                    "failed to validate logger args: create stream has been retried 1 times: failed to create \
                     Cloudwatch log stream: {error}"
                )
            }),
            Some(Driver::Router(_)) | None => Ok(()),
        }
    }

    async fn opened(&self, destination: &Destination) -> Result<(), SinkError> {
        let until = tokio::time::Instant::now() + OPEN_MAX;
        let mut failures = 0;
        loop {
            match self.sink.open(destination).await {
                Err(SinkError::Later(why)) if tokio::time::Instant::now() < until => {
                    tracing::debug!(why, "a log stream waits");
                }
                done => return done,
            }
            tokio::time::sleep(deliver::RETRY.delay(failures)).await;
            failures += 1;
        }
    }

    /// Waits until everything that the pod wrote was delivered. Its containers have ended.
    pub(crate) async fn drain(&self, uid: &str) {
        let Some(mut shipping) = self.pods.lock().remove(uid) else { return };
        shipping.finish.send_replace(true);
        let all = async {
            for task in &mut shipping.tasks {
                let _ = task.await;
            }
        };
        if tokio::time::timeout(DRAIN_MAX, all).await.is_err() {
            tracing::warn!(uid, "the last log lines of a pod were not delivered");
        }
    }
}

/// Where a router listens: the pod and the container that runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub pod: ObjectKey,
    pub router: String,
    pub tag: String,
    /// Members of every record.
    pub facts: Vec<(String, String)>,
    /// Its port is the node's own: it listens on its socket only.
    pub by_socket: bool,
    /// Does it say that it has a batch?
    pub acknowledged: bool,
    /// The socket, where that is the way.
    pub socket: Option<PathBuf>,
}

#[cfg(test)]
impl Route {
    fn to(pod: ObjectKey, tag: &str) -> Route {
        let (router, facts) = ("r".into(), Vec::new());
        Route { pod, router, tag: tag.into(), facts, by_socket: false, acknowledged: true, socket: None }
    }
}

/// A container's log folder.
pub(crate) type Folder = PathBuf;
