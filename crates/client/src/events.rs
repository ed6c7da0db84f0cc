//! Event recording: `core/v1` Events about objects, with counts, as `kubectl describe` shows them.
//!
//! Invariants: recording never blocks and never fails its caller; at most [`QUEUE_MAX`] wait; one object gets
//! [`BURST`] events of a component at once and one more every [`REFILL`]; the same event again raises the count of the first.

use crate::api::ApiClient;
use crate::object::{Object, ObjectKey};
use jiff::Timestamp;
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Events that wait to be written; more are dropped.
const QUEUE_MAX: usize = 1_024;
/// Events that are remembered for counting.
const REMEMBERED_MAX: usize = 4_096;
/// Events about one object in a row, as upstream's spam filter has it.
const BURST: f64 = 25.0;
/// One more event about the same object after this time.
const REFILL: Duration = Duration::from_secs(300);
/// Longest message, as the API allows.
const MESSAGE_MAX_BYTES: usize = 1_024;

/// `Normal` or `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventType {
    /// Things go as they should.
    Normal,
    /// Somebody should look.
    Warning,
}

/// What an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Namespace, "" for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// `spec.containers{web}` for a container's events.
    pub field_path: String,
}

impl Subject {
    /// An object of that kind.
    pub fn of(api_version: &str, kind: &str, object: &Object) -> Subject {
        Subject {
            api_version: api_version.into(),
            kind: kind.into(),
            namespace: object.key.namespace.to_string(),
            name: object.key.name.to_string(),
            uid: object.uid().to_string(),
            field_path: String::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// Who tells it.
    component: Arc<str>,
    subject: Subject,
    kind: EventType,
    reason: String,
    message: String,
}

/// A handle for recording; cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    component: Arc<str>,
    queue: mpsc::Sender<(Entry, Timestamp)>,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Recorder {
    /// Starts the writer, which ends with the last handle. `component` (and `host`, "" for none) is the source.
    pub fn start(
        client: ApiClient,
        component: &str,
        host: &str,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Recorder {
        let (queue, mut waiting) = mpsc::channel::<(Entry, Timestamp)>(QUEUE_MAX);
        let mut writer = Writer {
            host: host.into(),
            known: BTreeMap::new(),
            order: VecDeque::new(),
            budgets: BTreeMap::new(),
        };
        tokio::spawn(async move {
            while let Some((entry, at)) = waiting.recv().await {
                writer.write(&client, entry, at).await;
            }
        });
        Recorder { component: component.into(), queue, clock }
    }

    /// The same writer under another component's name.
    #[must_use]
    pub fn named(&self, component: &str) -> Recorder {
        Recorder { component: component.into(), ..self.clone() }
    }

    /// Records an event. Dropped (and logged) when too many wait.
    pub fn record(&self, subject: Subject, kind: EventType, reason: &str, message: impl Into<String>) {
        let mut message = message.into();
        if message.len() > MESSAGE_MAX_BYTES {
            let end = (0..=MESSAGE_MAX_BYTES - 3).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(end);
            message += "...";
        }
        let component = self.component.clone();
        let entry = Entry { component, subject, kind, reason: reason.into(), message };
        if let Err(error) = self.queue.try_send((entry, (self.clock)())) {
            tracing::debug!(%error, "event dropped");
        }
    }
}

struct Seen {
    key: ObjectKey,
    count: u64,
}

struct Budget {
    left: f64,
    at: Timestamp,
}

struct Writer {
    host: String,
    known: BTreeMap<Entry, Seen>,
    order: VecDeque<Entry>,
    budgets: BTreeMap<(Arc<str>, Subject), Budget>,
}

/// RFC 3339 in seconds, and the nanoseconds that make an event's name unique.
fn stamps(at: Timestamp) -> (String, i128) {
    (machinery::time::format(at), at.as_nanosecond())
}

impl Writer {
    fn admits(&mut self, entry: &Entry, at: Timestamp) -> bool {
        if self.budgets.len() > REMEMBERED_MAX {
            self.budgets.clear();
        }
        let teller = (entry.component.clone(), entry.subject.clone());
        let budget = self.budgets.entry(teller).or_insert(Budget { left: BURST, at });
        let passed = machinery::time::since(at, budget.at);
        budget.left = (budget.left + passed.as_secs_f64() / REFILL.as_secs_f64()).min(BURST);
        budget.at = at;
        let admitted = budget.left >= 1.0;
        if admitted {
            budget.left -= 1.0;
        }
        admitted
    }

    async fn write(&mut self, client: &ApiClient, entry: Entry, at: Timestamp) {
        if !self.admits(&entry, at) {
            return;
        }
        let (stamp, nanos) = stamps(at);
        if let Some(seen) = self.known.get_mut(&entry) {
            seen.count += 1;
            let patch = json!({"count": seen.count, "lastTimestamp": stamp});
            if client.merge_patch(&gvr::EVENTS, &seen.key, patch).await.is_ok() {
                return;
            }
            self.known.remove(&entry);
        }
        let body = self.body(&entry, &stamp, nanos);
        match client.create(&gvr::EVENTS, body).await {
            Ok(object) => self.remember(entry, object.key.clone()),
            Err(error) => tracing::debug!(%error, "event not written"),
        }
    }

    fn remember(&mut self, entry: Entry, key: ObjectKey) {
        self.known.insert(entry.clone(), Seen { key, count: 1 });
        self.order.push_back(entry);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn body(&self, entry: &Entry, stamp: &str, nanos: i128) -> Value {
        let subject = &entry.subject;
        let namespace = if subject.namespace.is_empty() { "default" } else { &subject.namespace };
        let mut involved = json!({
            "apiVersion": subject.api_version, "kind": subject.kind, "name": subject.name, "uid": subject.uid,
        });
        for (key, text) in [("namespace", &subject.namespace), ("fieldPath", &subject.field_path)] {
            if !text.is_empty() {
                involved[key] = json!(text);
            }
        }
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": format!("{}.{nanos:x}", subject.name), "namespace": namespace},
            "involvedObject": involved, "reason": entry.reason, "message": entry.message,
            "type": format!("{:?}", entry.kind), "count": 1,
            "source": {"component": &*entry.component, "host": self.host},
            "firstTimestamp": stamp, "lastTimestamp": stamp,
            "reportingComponent": &*entry.component, "reportingInstance": self.host,
        })
    }
}
