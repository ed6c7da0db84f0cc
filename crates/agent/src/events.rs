//! The kubelet's events: what the decider notes, about pods, their containers and the node.

use crate::decide::Note;
use crate::pod::{PodView, Role};
use client::events::{EventType, Recorder as Writer, Subject};
use client::{ApiClient, Object};
use jiff::Timestamp;
use std::sync::Arc;

/// Where events are sent; recording never blocks.
#[derive(Clone)]
pub struct Recorder(Writer);

impl Recorder {
    /// Writes as this node's kubelet. Must be called in the asynchronous runtime.
    pub fn start(client: ApiClient, node_name: &str) -> Recorder {
        Recorder(Writer::start(client, "kubelet", node_name, Arc::new(Timestamp::now)))
    }

    /// An event about a pod or one of its containers.
    pub fn pod(&self, pod: &PodView, note: Note) {
        let list = pod.container(&note.container).map(|c| match c.role {
            Role::Main => "containers",
            Role::Init | Role::Sidecar => "initContainers",
            Role::Ephemeral => "ephemeralContainers",
        });
        let field_path = list.map(|list| format!("spec.{list}{{{}}}", note.container)).unwrap_or_default();
        let subject = Subject { field_path, ..Subject::of("v1", "Pod", &pod.object) };
        let kind = if note.warning { EventType::Warning } else { EventType::Normal };
        self.0.record(subject, kind, note.reason, note.message);
    }

    /// A pod was not let in.
    pub fn rejected(&self, pod: &PodView, reason: &str, message: String) {
        self.0.record(Subject::of("v1", "Pod", &pod.object), EventType::Warning, reason, message);
    }

    /// Something about a claim.
    pub fn claim(&self, claim: &Object, warning: bool, reason: &str, message: String) {
        let kind = if warning { EventType::Warning } else { EventType::Normal };
        self.0.record(Subject::of("v1", "PersistentVolumeClaim", claim), kind, reason, message);
    }

    /// Something is wrong with a PersistentVolume.
    pub fn volume_warning(&self, volume: &Object, reason: &str, message: String) {
        self.0.record(Subject::of("v1", "PersistentVolume", volume), EventType::Warning, reason, message);
    }

    /// An event about the node.
    pub fn node(&self, name: &str, reason: &str, message: String) {
        self.about_node(name, EventType::Normal, reason, message);
    }

    /// The same, for what somebody should look at.
    pub fn node_warning(&self, name: &str, reason: &str, message: String) {
        self.about_node(name, EventType::Warning, reason, message);
    }

    fn about_node(&self, name: &str, kind: EventType, reason: &str, message: String) {
        let subject = Subject {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.into(),
            uid: name.into(),
            ..Subject::default()
        };
        self.0.record(subject, kind, reason, message);
    }
}
