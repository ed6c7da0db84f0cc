//! What the worker keeps of one pod, and its clock.

use crate::admit::Claim;
use crate::config::RefKind;
use crate::decide::seed;
use crate::ops::{self, Mounted, Node};
use crate::pod::PodView;
use crate::state::{ContainerRecord, Phase, PodState, Why};
use crate::stats::own;
use crate::volumes::references;
use client::Object;
use jiff::Timestamp;
use runtime::api::PodInfo;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Starts as the wall clock and never jumps: an hour set forward must not end grace periods and deadlines.
pub(super) struct Clock {
    wall: Timestamp,
    at: Instant,
}

impl Clock {
    pub(super) fn start() -> Clock {
        Clock { wall: Timestamp::now(), at: Instant::now() }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.wall.saturating_add(self.at.elapsed()).unwrap_or(self.wall)
    }
}

/// One pod.
pub(super) struct Entry {
    pub(super) view: PodView,
    pub(super) state: PodState,
    /// The API still has it.
    pub(super) present: bool,
    pub(super) wake: Option<Timestamp>,
    pub(super) mounted: Mounted,
    /// The status as the API has it, as far as known.
    pub(super) written: Value,
    pub(super) writing: Option<Value>,
    /// Since when there is something to be told.
    pub(super) unsaid: Option<Instant>,
    pub(super) write_failures: u32,
    pub(super) write_at: Option<Timestamp>,
    /// Newest revision that this agent wrote.
    pub(super) own_revision: u64,
    pub(super) references: BTreeSet<(RefKind, String)>,
    /// What it takes of the node.
    pub(super) claim: Claim,
    /// The generation that the claim is of: a resize that is refused claims nothing.
    pub(super) claimed: i64,
    /// The node was asked whether it fits; its answer is in the state.
    pub(super) admitted: bool,
    /// It is being given its devices.
    pub(super) waits_for_devices: bool,
}

/// Does the status say no more than "creating"?
pub(super) fn plain(status: &Value) -> bool {
    let lists = [&status["containerStatuses"], &status["initContainerStatuses"]];
    let mut containers = lists.into_iter().filter_map(Value::as_array).flatten();
    let creating = |c: &Value| {
        matches!(c["state"]["waiting"]["reason"].as_str(), Some("ContainerCreating" | "PodInitializing"))
    };
    status["phase"] == "Pending" && containers.all(creating)
}

/// Is the change of a running pod's spec what is new?
pub(super) fn edited(written: &Value, wanted: &Value) -> bool {
    let generation = |status: &Value| status["observedGeneration"].as_i64();
    let running = |status: &Value| status["phase"] == "Running";
    running(written) && running(wanted) && generation(written).is_some_and(|g| Some(g) != generation(wanted))
}

impl Entry {
    /// The server has this status: the figures of it.
    pub(super) fn told(&mut self, sent: Value, now: Timestamp, node: &Node) {
        self.unsaid.take().into_iter().for_each(|since| own::told(since.elapsed()));
        if sent["phase"] == "Running" && self.written["phase"] != "Running" {
            let seen = Duration::try_from(now.duration_since(self.state.begun)).unwrap_or_default();
            let pulling = node.pulling.lock().remove(self.view.uid()).unwrap_or_default();
            own::runs(&self.view, &sent, seen, pulling);
        }
        self.written = sent;
    }

    pub(super) fn new(view: PodView, live: Option<&PodInfo>, node: &Node, now: Timestamp) -> Entry {
        let mut state = seed::seed(&view, live, now, Timestamp::now());
        for (name, record) in &mut state.containers {
            if let Phase::Exited(end) = &mut record.phase
                && live.is_some()
                && end.message.is_empty()
            {
                end.message = ops::message(&node.facts, &view, name, record.attempt, end.exit_code != 0);
            }
        }
        let written = view.object.value().map(|v| v["status"].clone()).unwrap_or_default();
        let references = references(&view);
        if !(state.ending.as_ref().is_some_and(|e| e.why == Why::Finished)) {
            node.objects.uses(view.uid(), view.namespace(), &references);
        }
        if let Some(live) = live {
            hold_images(node, &view, live);
        }
        // What was begun, here or by an agent before, was let in then.
        let admitted = live.is_some() || view.started() || state.ending.is_some();
        let claim = Claim::had(&view);
        let granted = claim.requests == Claim::of(&view).requests;
        Entry {
            present: true,
            claim,
            claimed: if granted { view.object.meta().generation } else { 0 },
            admitted,
            waits_for_devices: false,
            wake: None,
            mounted: Mounted::default(),
            written,
            writing: None,
            unsaid: None,
            write_failures: 0,
            write_at: None,
            own_revision: 0,
            references,
            view,
            state,
        }
    }

    pub(super) fn update(&mut self, object: Arc<Object>, node: &Node) {
        let foreign = object.revision != self.own_revision;
        let Ok(view) = PodView::new(object) else { return };
        let (old, new) = (self.view.object.meta(), view.object.meta());
        if old.labels != new.labels || old.annotations != new.annotations {
            self.state.volumes.dirty = true;
        }
        if foreign && self.writing.is_none() {
            self.written = view.object.value().map(|v| v["status"].clone()).unwrap_or_default();
        }
        let references = references(&view);
        if references != self.references {
            node.objects.uses(view.uid(), view.namespace(), &references);
            self.references = references;
        }
        self.view = view;
    }

    /// Does it take its part of the node? Not when it is over, or was never let in.
    pub(super) fn holds(&self) -> bool {
        let up = |c: &ContainerRecord| matches!(c.phase, Phase::Running { .. } | Phase::Starting { .. });
        self.state.ending.is_none() && self.state.verdict.is_none() || self.state.containers.values().any(up)
    }
}

/// Images of re-adopted containers must stay on disk.
fn hold_images(node: &Node, view: &PodView, live: &PodInfo) {
    let mut leases = node.leases.lock();
    let held = leases.entry(view.uid().to_string()).or_default();
    for container in &live.containers {
        let image = view.container(&container.spec.name).map(|c| c.image().to_string()).unwrap_or_default();
        if let Some(lease) = node.images.lease(&image) {
            held.insert(container.spec.name.clone(), lease);
        }
    }
    for volume in view.spec().volumes.iter().flatten() {
        let reference = volume.image.as_ref().and_then(|i| i.reference.as_deref());
        if let Some(lease) = reference.and_then(|r| node.images.lease(r)) {
            held.insert(crate::images::volume_key(&volume.name), lease);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_running_pod_with_a_new_spec_may_wait() {
        let status = |phase: &str, generation: i64| json!({"phase": phase, "observedGeneration": generation});
        assert!(edited(&status("Running", 1), &status("Running", 2)));
        assert!(!edited(&status("Running", 2), &status("Running", 2)), "a crash is told at once");
        assert!(!edited(&status("Running", 1), &status("Succeeded", 2)), "and so is an end");
        assert!(!edited(&status("Pending", 1), &status("Running", 2)), "and a start");
        assert!(!edited(&json!({"phase": "Running"}), &status("Running", 1)), "and what was never told");
    }
}
