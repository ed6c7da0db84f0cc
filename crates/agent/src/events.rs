//! Events about pods and the node: recorded in the background, repeated ones counted, noisy ones dropped.
//!
//! Invariants: recording never blocks and never fails a caller; memory is bounded; one event object per
//! (object, container, reason, message).

use crate::decide::Note;
use crate::pod::{PodView, Role};
use client::{ApiClient, ObjectKey};
use jiff::Timestamp;
use k8s_schema::gvr::EVENTS;
use machinery::time::format;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// Waiting events; further ones are dropped, since an event is a hint.
const QUEUE_MAX: usize = 1024;
/// Remembered events, for counting.
const SEEN_MAX: usize = 4096;
/// Per object: so many at once, then one every [`REFILL_SECONDS`] (upstream's figures).
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
/// Kubernetes cuts longer messages.
const MESSAGE_MAX: usize = 1024;

struct Record {
    about: Value,
    namespace: String,
    note: Note,
    at: Timestamp,
}

/// Where events are sent.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Record>,
}

struct Seen {
    name: String,
    count: u64,
}

struct Bucket {
    tokens: f64,
    at: Timestamp,
}

impl Recorder {
    /// A recorder and the task that writes its events; the task ends with the last recorder.
    pub fn new(client: ApiClient, node_name: String) -> (Recorder, impl Future<Output = ()> + Send) {
        let (queue, records) = mpsc::channel(QUEUE_MAX);
        (Recorder { queue }, write_all(client, node_name, records))
    }

    /// An event about a pod or one of its containers.
    pub fn pod(&self, pod: &PodView, note: Note) {
        let field = pod.container(&note.container).map(|c| match c.role {
            Role::Main => format!("spec.containers{{{}}}", note.container),
            Role::Init | Role::Sidecar => format!("spec.initContainers{{{}}}", note.container),
            Role::Ephemeral => format!("spec.ephemeralContainers{{{}}}", note.container),
        });
        let mut about = json!({
            "kind": "Pod", "apiVersion": "v1", "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid(),
            "resourceVersion": pod.object.revision.to_string(),
        });
        if let Some(field) = field {
            about["fieldPath"] = json!(field);
        }
        self.send(Record { about, namespace: pod.namespace().into(), note, at: Timestamp::now() });
    }

    /// An event about the node.
    pub fn node(&self, name: &str, reason: &'static str, message: String) {
        let about = json!({"kind": "Node", "apiVersion": "v1", "name": name, "uid": name});
        let note = Note { warning: false, reason, message, container: String::new() };
        self.send(Record { about, namespace: "default".into(), note, at: Timestamp::now() });
    }

    fn send(&self, record: Record) {
        if self.queue.try_send(record).is_err() {
            tracing::debug!("event dropped: the queue is full");
        }
    }
}

/// May one more event about this object be written?
fn admit(buckets: &mut BTreeMap<String, Bucket>, object: String, at: Timestamp) -> bool {
    if buckets.len() >= SEEN_MAX {
        buckets.retain(|_, b| at.duration_since(b.at).as_secs_f64() < BURST * REFILL_SECONDS);
    }
    let bucket = buckets.entry(object).or_insert(Bucket { tokens: BURST, at });
    let waited = at.duration_since(bucket.at).as_secs_f64().max(0.0);
    bucket.tokens = (bucket.tokens + waited / REFILL_SECONDS).min(BURST);
    bucket.at = at;
    if bucket.tokens < 1.0 {
        return false;
    }
    bucket.tokens -= 1.0;
    true
}

async fn write_all(client: ApiClient, node_name: String, mut records: mpsc::Receiver<Record>) {
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let mut buckets = BTreeMap::new();
    while let Some(record) = records.recv().await {
        let object = format!("{}/{}", record.namespace, record.about["uid"]);
        if !admit(&mut buckets, object, record.at) {
            continue;
        }
        let key =
            format!("{}\n{}\n{}", record.about["uid"], record.about["fieldPath"], identity(&record.note));
        if seen.len() >= SEEN_MAX {
            seen.pop_first();
        }
        if let Some(seen) = seen.get_mut(&key) {
            seen.count += 1;
            let patch = json!({"count": seen.count, "lastTimestamp": format(record.at)});
            let name = ObjectKey::new(record.namespace.as_str(), seen.name.as_str());
            match client.merge_patch(&EVENTS, &name, patch).await {
                Ok(_) => continue,
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::debug!(%error, "event not counted");
                    continue;
                }
            }
        }
        let body = event(&record, &node_name);
        let name = body["metadata"]["name"].as_str().unwrap_or_default().to_string();
        match client.create(&EVENTS, body).await {
            Ok(_) => {
                seen.insert(key, Seen { name, count: 1 });
            }
            Err(error) => tracing::debug!(%error, "event not written"),
        }
    }
}

fn identity(note: &Note) -> String {
    format!("{}\n{}\n{}", note.warning, note.reason, note.message)
}

fn event(record: &Record, node_name: &str) -> Value {
    let name = record.about["name"].as_str().unwrap_or_default();
    let at = format(record.at);
    let mut message = record.note.message.clone();
    if message.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
        message.truncate(end);
    }
    json!({
        "kind": "Event", "apiVersion": "v1",
        "metadata": {"namespace": record.namespace, "name": format!("{name}.{:x}", record.at.as_nanosecond())},
        "involvedObject": record.about,
        "reason": record.note.reason, "message": message,
        "type": if record.note.warning { "Warning" } else { "Normal" },
        "source": {"component": "kubelet", "host": node_name},
        "reportingComponent": "kubelet", "reportingInstance": node_name,
        "firstTimestamp": at, "lastTimestamp": at, "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_noisy_object_is_slowed_down() {
        let mut buckets = BTreeMap::new();
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let admitted = (0..100).filter(|_| admit(&mut buckets, "a".into(), at(0))).count();
        assert_eq!(admitted, 25);
        assert!(admit(&mut buckets, "b".into(), at(0)));
        assert!(!admit(&mut buckets, "a".into(), at(299)));
        assert!(admit(&mut buckets, "a".into(), at(301)));
    }
}
