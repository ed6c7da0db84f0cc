//! The driver: one loop, one closed event enum. Events mark pods for a look; a look steps the decider, starts the
//! operations that it asks for and writes the status when it changed.
//!
//! Invariants: only this loop changes pod states; every operation reports back by exactly one event; a pod of the
//! same name waits until the one before is gone from the node.

mod admission;
mod entry;

use crate::admit::{Claim, resize_refusal};
use crate::decide::outcome::{Outcome, StartFailure, StartStep, apply};
use crate::decide::{Action, Input, seed, step};
use crate::inbox::Inbox;
use crate::ops::{self, Instance, Making, Mounted, Node, Which};
use crate::pod::PodView;
use crate::state::{Phase, Refusal, Verdict};
use crate::status::{container_id, status, terminated};
use client::{Object, ObjectKey};
use entry::{Clock, Entry, edited, plain};
use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use machinery::status::ApiError;
use runtime::api::{ContainerState, PodInfo, RuntimeEvent};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stdx::backoff::Backoff;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

/// A pod that starts faster than this is spared the "creating" status.
const FIRST_STATUS_AFTER: SignedDuration = SignedDuration::from_millis(60);
/// A changed pod is told of when what follows at once, such as a container's restart, is over, or has lasted this long:
/// one write instead of several, and none under the hands of a client that still edits. Well below the second that
/// clients know from other agents.
const EDIT_SETTLES: SignedDuration = SignedDuration::from_millis(150);
/// A resize that must wait for other pods to leave is looked at again then.
const RESIZE_RETRY: SignedDuration = SignedDuration::from_secs(3);
/// Why a container waits for an image.
const IMAGE_REASONS: [&str; 3] = ["ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"];
/// Between attempts to write a status.
const STATUS_RETRY: Backoff =
    Backoff { base: Duration::from_millis(200), factor: 2, max: Duration::from_secs(30) };

/// Everything that can happen to the worker.
pub enum Event {
    /// An operation is over.
    Done(String, Outcome),
    /// Volumes are mounted: where.
    Mounted(String, Mounted),
    /// A status was written, or not.
    Status(String, Result<Arc<Object>, ApiError>),
    /// A pod has its devices, or cannot have them.
    Given(String, Result<(), String>),
    /// The node judges that a pod must go.
    Judged(String, Verdict),
    /// Stop all pods, then answer.
    StopAll(oneshot::Sender<()>),
    /// End the loop; pods run on.
    Shutdown,
}

/// The loop's own state.
pub struct Worker {
    node: Arc<Node>,
    inbox: Arc<Inbox>,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    runtime_events: mpsc::Receiver<RuntimeEvent>,
    entries: BTreeMap<String, Entry>,
    /// What the runtime re-adopted, until its pod is seen.
    adopted: BTreeMap<String, PodInfo>,
    /// What happened to those meanwhile.
    early: Vec<RuntimeEvent>,
    dirty: BTreeSet<String>,
    /// Critical pods that wait for others to go.
    crowded_out: BTreeSet<String>,
    tasks: JoinSet<()>,
    host_ports: watch::Sender<Vec<net::HostPort>>,
    node_down: Option<oneshot::Sender<()>>,
    stopping: bool,
    clock: Clock,
}

/// What the worker is made from.
pub struct Parts {
    /// Shared by all operations.
    pub node: Arc<Node>,
    /// Changes of objects.
    pub inbox: Arc<Inbox>,
    /// The runtime's events.
    pub runtime_events: mpsc::Receiver<RuntimeEvent>,
    /// Pods that run already.
    pub adopted: Vec<PodInfo>,
    /// Where host ports are published.
    pub host_ports: watch::Sender<Vec<net::HostPort>>,
}

impl Worker {
    /// A worker and the way to send it events. (Unbounded: every sender is an operation that the worker started.)
    pub fn new(parts: Parts) -> (Worker, mpsc::UnboundedSender<Event>) {
        let (sender, events) = mpsc::unbounded_channel();
        let adopted = parts.adopted.into_iter().map(|p| (p.spec.uid.clone(), p)).collect();
        let worker = Worker {
            node: parts.node,
            inbox: parts.inbox,
            events,
            sender: sender.clone(),
            runtime_events: parts.runtime_events,
            entries: BTreeMap::new(),
            adopted,
            early: Vec::new(),
            dirty: BTreeSet::new(),
            crowded_out: BTreeSet::new(),
            tasks: JoinSet::new(),
            host_ports: parts.host_ports,
            node_down: None,
            stopping: false,
            clock: Clock::start(),
        };
        (worker, sender)
    }

    /// Runs until told to end. `seen`: the API's pods can be seen; until then there are static ones only, and nothing
    /// that runs is touched.
    pub async fn run(mut self, seen: impl Future<Output = ()>) {
        let (mut seen, mut blind) = (std::pin::pin!(seen), true);
        for key in self.node.static_pods() {
            self.see(&key);
        }
        let (mut images, mut devices) = (self.node.images.subscribe(), self.node.devices.changed());
        let mut claimed = self.node.dra.changed();
        loop {
            while let Some(uid) = self.dirty.pop_first() {
                self.look(&uid);
            }
            self.finish_node_down();
            let wake = self.entries.values().filter_map(|e| e.wake).min();
            let sleep =
                wake.map(|at| Duration::try_from(at.duration_since(self.clock.now())).unwrap_or_default());
            tokio::select! {
                biased;
                Some(event) = self.events.recv() => match event {
                    Event::Shutdown => return,
                    event => self.handle(event),
                },
                Some(event) = self.runtime_events.recv() => self.runtime_event(event),
                () = &mut seen, if blind => {
                    blind = false;
                    self.adopt();
                }
                () = self.inbox.changed() => self.take_inbox(),
                Some(_) = self.tasks.join_next() => {}
                Ok(()) = images.changed() => self.images_changed(),
                Ok(()) = devices.changed() => self.dirty.extend(self.node.devices.users()),
                Ok(()) = claimed.changed() => self.dirty.extend(self.node.dra.users()),
                () = tokio::time::sleep(sleep.unwrap_or(Duration::MAX)), if sleep.is_some() => {
                    let now = self.clock.now();
                    let due = self.entries.iter().filter(|(_, e)| e.wake.is_some_and(|at| at <= now));
                    self.dirty.extend(due.map(|(uid, _)| uid.clone()));
                }
            }
        }
    }

    /// First look: what runs here and is no longer wanted goes; folders that nobody owns go.
    fn adopt(&mut self) {
        for object in self.node.all_pods() {
            self.see(&object.key);
        }
        let known: BTreeSet<String> = self.entries.keys().cloned().collect();
        for (uid, _) in std::mem::take(&mut self.adopted) {
            self.task(ops::remove_orphan(self.node.clone(), uid));
        }
        let leftovers = ops::leftovers(&self.node, &known);
        self.tasks.spawn_blocking(move || ops::sweep(&leftovers));
        for event in std::mem::take(&mut self.early) {
            self.runtime_event(event);
        }
    }

    /// The one place where the loop starts operations.
    fn task(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Starts an operation. If it panics, `lost` is reported in its place: no pod waits for ever.
    fn operation(
        &mut self,
        uid: &str,
        lost: impl FnOnce(String) -> Outcome + Send + 'static,
        operation: impl Future<Output = Outcome> + Send + 'static,
    ) {
        let (sender, uid) = (self.sender.clone(), uid.to_string());
        self.task(async move {
            let outcome = AssertUnwindSafe(operation).catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!(uid, "an operation of the agent panicked");
                lost("internal error in the node agent".into())
            });
            let _ = sender.send(Event::Done(uid, outcome));
        });
    }

    fn take_inbox(&mut self) {
        let pending = self.inbox.take();
        for key in pending.pods {
            self.see(&key);
        }
        for (kind, key) in pending.objects {
            for uid in self.node.objects.users(kind, &key) {
                self.book(&uid, Outcome::ObjectsChanged);
            }
        }
    }

    /// Looks at what the cache has under a name.
    fn see(&mut self, key: &ObjectKey) {
        let object = self.node.pod(key);
        let current = object.as_ref().map(|o| o.uid().to_string());
        for (uid, entry) in &mut self.entries {
            if entry.view.key() == key && Some(uid) != current.as_ref() && entry.present {
                entry.present = false;
                self.dirty.insert(uid.clone());
            }
        }
        let (Some(object), Some(uid)) = (object, current) else { return };
        match self.entries.get_mut(&uid) {
            Some(entry) => {
                if let Some(mirror) = self.node.mirror_of(&object)
                    && entry.writing.is_none()
                {
                    entry.written = mirror.value().map(|v| v["status"].clone()).unwrap_or_default();
                    entry.write_at = None;
                } else if object.revision <= entry.view.object.revision {
                    return;
                } else {
                    entry.update(object, &self.node);
                }
            }
            None => {
                let view = match PodView::new(object) {
                    Ok(view) => view,
                    Err(error) => {
                        tracing::error!(pod = %key, %error, "not a pod");
                        return;
                    }
                };
                let mut live = self.adopted.remove(&uid);
                if let (Some(live), Some(place)) = (&mut live, self.node.network.pod(&uid)) {
                    live.spec.annotations.insert(seed::IPS.into(), place.ip.to_string());
                }
                let entry = Entry::new(view, live.as_ref(), &self.node, self.clock.now());
                self.entries.insert(uid.clone(), entry);
            }
        }
        self.dirty.insert(uid);
    }

    /// Images changed: whatever waits for one tries again.
    fn images_changed(&mut self) {
        // Only for what came: another pod's pull is no reason to ask a failing registry again.
        let puller = &self.node.puller;
        let came = |e: &Entry, name: &str| e.view.container(name).is_some_and(|c| puller.is_here(c.image()));
        let lacks = |phase: &Phase| match phase {
            Phase::Waiting { why, .. } => IMAGE_REASONS.contains(&&*why.reason),
            _ => false,
        };
        let waits = |e: &Entry| e.state.containers.iter().any(|(name, c)| lacks(&c.phase) && came(e, name));
        let waiting: Vec<String> =
            self.entries.iter().filter(|(_, e)| waits(e)).map(|(uid, _)| uid.clone()).collect();
        for uid in waiting {
            self.book(&uid, Outcome::ImagesChanged);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Done(uid, outcome) => {
                if matches!(outcome, Outcome::Exited { .. }) {
                    self.node.exits.send_modify(|n| *n += 1);
                }
                self.book(&uid, outcome);
            }
            Event::Mounted(uid, mounted) => {
                if let Some(entry) = self.entries.get_mut(&uid) {
                    entry.mounted = mounted;
                }
            }
            Event::Status(uid, result) => self.status_written(uid, result),
            Event::Given(uid, result) => self.given(&uid, result),
            Event::Judged(uid, verdict) => {
                if let Some(entry) = self.entries.get_mut(&uid) {
                    entry.state.verdict.get_or_insert(verdict);
                    self.dirty.insert(uid);
                }
            }
            Event::StopAll(answer) => {
                self.stopping = true;
                self.node_down = Some(answer);
                self.dirty.extend(self.entries.keys().cloned());
            }
            Event::Shutdown => {}
        }
    }

    fn book(&mut self, uid: &str, outcome: Outcome) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let input = Input {
            pod: &entry.view,
            present: entry.present,
            node_down: self.stopping,
            now: self.clock.now(),
            wall: Timestamp::now(),
        };
        for note in apply(&mut entry.state, &input, outcome) {
            self.node.recorder.pod(&entry.view, note);
        }
        self.dirty.insert(uid.to_string());
    }

    fn runtime_event(&mut self, event: RuntimeEvent) {
        let (RuntimeEvent::PodDied { uid } | RuntimeEvent::Container { uid, .. }) = &event;
        if self.adopted.contains_key(uid) {
            self.early.push(event);
            return;
        }
        match event {
            RuntimeEvent::PodDied { uid } => {
                self.node.exits.send_modify(|n| *n += 1);
                self.book(&uid, Outcome::SandboxDied);
            }
            RuntimeEvent::Container { uid, id, state: ContainerState::Exited { started_at_ns, exit } } => {
                let Some(entry) = self.entries.get(&uid) else { return };
                let Some((name, attempt)) = id.rsplit_once('-') else { return };
                let Ok(attempt) = attempt.parse::<u32>() else { return };
                if !exit.start_error.is_empty() || started_at_ns == 0 {
                    // The start itself reports it; or what a dead agent had created and not started was removed.
                    return;
                }
                let container = name.to_string();
                let mut end = terminated(started_at_ns, &exit, container_id(&uid, &container, attempt));
                let (node, view) = (self.node.clone(), entry.view.clone());
                let (unread, at) = (end.clone(), container.clone());
                let lost = move |_| Outcome::Exited { container: at, attempt, end: unread };
                self.operation(&uid, lost, async move {
                    let (name, failed) = (container.clone(), end.exit_code != 0);
                    let read = move || ops::message(&node.facts, &view, &name, attempt, failed);
                    end.message = ops::blocking(read).await.unwrap_or_default();
                    Outcome::Exited { container, attempt, end }
                });
            }
            RuntimeEvent::Container { .. } => {}
        }
    }

    /// Steps one pod and does what comes out.
    fn look(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        let key = entry.view.key().clone();
        let older = self.entries.iter().any(|(other, e)| other != uid && *e.view.key() == key && !e.present);
        if older && !entry.state.sandbox.exists {
            // Looked at again when the older one goes.
            return;
        }
        if !self.admit(uid) {
            return;
        }
        let deferred = self.judge_resize(uid);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let (now, wall) = (self.clock.now(), Timestamp::now());
        let input = Input { pod: &entry.view, present: entry.present, node_down: self.stopping, now, wall };
        let plan = step(&mut entry.state, &input);
        entry.wake = plan.wake;
        if deferred {
            let at = crate::decide::after(now, RESIZE_RETRY);
            entry.wake = Some(entry.wake.map_or(at, |w| w.min(at)));
        }
        let gone = !entry.present && entry.state.teardown.ready;
        for action in plan.actions {
            self.carry_out(uid, action);
        }
        self.publish_host_ports(uid);
        if gone {
            self.forget(uid);
        } else {
            self.sync_status(uid, now);
        }
        // This one may just have made the room that others wait for.
        self.dirty.append(&mut self.crowded_out);
    }

    /// Asks whether a pending resize fits beside the other pods. True: not now, but perhaps when others are gone.
    fn judge_resize(&mut self, uid: &str) -> bool {
        let Some(entry) = self.entries.get(uid).filter(|e| e.admitted) else { return false };
        let refusal = if crate::decide::resize::pending(&entry.state, &entry.view) {
            let beside = self.entries.iter().filter(|(id, e)| *id != uid && e.admitted && e.holds());
            let others: Vec<&Claim> = beside.map(|(_, e)| &e.claim).collect();
            let (asked, own) = (Claim::of(&entry.view), self.node.cpus.holds(uid));
            // Its CPUs are its own by number.
            match own && asked.requests.milli_cpu != entry.claim.requests.milli_cpu {
                true => Some(Refusal::of_cpus()),
                false => resize_refusal(&asked, &self.node.facts, &others),
            }
        } else {
            None
        };
        let deferred = refusal.as_ref().is_some_and(|r| r.reason == "Deferred");
        let Some(entry) = self.entries.get_mut(uid) else { return false };
        if refusal.is_none() && entry.claimed != entry.view.object.meta().generation {
            entry.claimed = entry.view.object.meta().generation;
            entry.claim = Claim::of(&entry.view);
        }
        entry.state.resize.refusal = refusal;
        deferred
    }

    fn forget(&mut self, uid: &str) {
        let Some(entry) = self.entries.remove(uid) else { return };
        let key = entry.view.key().clone();
        self.node.pulling.lock().remove(uid);
        self.node.objects.uses(uid, &key.namespace, &BTreeSet::new());
        let (node, uid, at) = (self.node.clone(), uid.to_string(), key.clone());
        self.tasks.spawn(ops::remove_logs(node, at, uid));
        let next = self.entries.iter().filter(|(_, e)| *e.view.key() == key).map(|(uid, _)| uid.clone());
        self.dirty.extend(next.collect::<Vec<_>>());
    }

    fn carry_out(&mut self, uid: &str, action: Action) {
        let Some(entry) = self.entries.get(uid) else { return };
        let (node, pod) = (self.node.clone(), entry.view.clone());
        let ips: Vec<IpAddr> = entry.state.sandbox.ips.clone();
        match action {
            Action::Note(note) => node.recorder.pod(&pod, note),
            Action::MountVolumes => {
                let (sender, id) = (self.sender.clone(), uid.to_string());
                let lost = |e| Outcome::Volumes(Err(e));
                self.operation(uid, lost, async move {
                    let (outcome, mounted) = ops::volumes(node, pod).await;
                    if let Some(mounted) = mounted {
                        let _ = sender.send(Event::Mounted(id, mounted));
                    }
                    outcome
                });
            }
            Action::MakeSandbox => {
                let making = Making::begin(&node, uid);
                self.operation(uid, |e| Outcome::Sandbox(Err(e)), ops::sandbox(making, pod));
            }
            Action::Start { container, attempt, last, round } => {
                let (mounted, name) = (entry.mounted.clone(), container.clone());
                let lost = move |message| Outcome::Started {
                    container: name,
                    attempt,
                    result: Err(StartFailure {
                        step: StartStep::Config,
                        reason: "CreateContainerError",
                        message,
                    }),
                };
                let instance = Instance { pod, container, attempt, last, round, mounted, ips };
                self.operation(uid, lost, ops::start(node, instance));
            }
            Action::Hook { container, kind, within } => {
                let attempt = entry.state.containers.get(&container).map_or(0, |c| c.attempt);
                let name = container.clone();
                let lost = move |e| Outcome::Hook { container: name, kind, result: Err(e) };
                self.operation(
                    uid,
                    lost,
                    ops::hook(node, Which { pod, ips, container, attempt }, kind, within),
                );
            }
            Action::Probe { container, attempt, kind } => {
                let name = container.clone();
                let lost = move |e| Outcome::Probe { container: name, attempt, kind, result: Err(e) };
                self.operation(uid, lost, ops::probe(node, Which { pod, ips, container, attempt }, kind));
            }
            Action::Signal { container, attempt, signal } => {
                let facts = entry.state.containers.get(&container).and_then(|c| c.facts.as_ref());
                let name = facts.map_or_else(|| "SIGTERM".to_string(), |f| f.stop_signal.clone());
                self.task(ops::signal(node, Which { pod, ips, container, attempt }, signal, name));
            }
            Action::Resize { containers, generation, part } => {
                let lost = move |e| Outcome::Resized { generation, result: Err(e) };
                self.operation(uid, lost, ops::resize(node, pod, containers, part));
            }
            Action::Teardown => {
                self.operation(uid, |e| Outcome::TornDown(Err(e)), ops::teardown(node, uid.to_string()));
            }
            Action::Finalize => {
                let mut status = status(&entry.state, &pod, &node.facts.host_ips, Timestamp::now());
                node.tell_health(&pod, &mut status);
                self.operation(uid, |e| Outcome::Finalized(Err(e)), ops::finalize(node, pod, status));
            }
        }
    }

    /// Writes the status when it differs from what the API has.
    fn sync_status(&mut self, uid: &str, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let leaving = entry.state.finalize.busy || entry.state.finalize.ready;
        // What `gantry down` stops shall come back: its end is not told.
        if entry.writing.is_some() || leaving || !entry.present || self.stopping {
            return;
        }
        let mut wanted = status(&entry.state, &entry.view, &self.node.facts.host_ips, Timestamp::now());
        self.node.tell_health(&entry.view, &mut wanted);
        let over = matches!(wanted["phase"].as_str(), Some("Succeeded" | "Failed"));
        if over && !entry.state.teardown.ready && self.node.dra.holds(uid) {
            // Whoever reads that it is over gives its devices to others: not before their drivers know.
            wanted["phase"] = "Running".into();
        }
        if wanted == entry.written {
            (entry.write_at, entry.unsaid) = (None, None);
            return;
        }
        entry.unsaid.get_or_insert_with(Instant::now);
        let first = entry.written.get("startTime").is_none() && plain(&wanted);
        let edited = entry.state.ending.is_none() && edited(&entry.written, &wanted);
        let not_before = match entry.write_at {
            Some(at) => Some(at),
            None if first => {
                let at = crate::decide::after(entry.state.begun, FIRST_STATUS_AFTER);
                entry.write_at = Some(at);
                Some(at)
            }
            None if edited => {
                let at = crate::decide::after(now, EDIT_SETTLES);
                entry.write_at = Some(at);
                Some(at)
            }
            None => None,
        };
        if let Some(at) = not_before.filter(|at| *at > now && (first || edited || entry.write_failures > 0)) {
            entry.wake = Some(entry.wake.map_or(at, |w| w.min(at)));
            return;
        }
        entry.write_at = None;
        entry.writing = Some(wanted.clone());
        let (node, view, id, sender) =
            (self.node.clone(), entry.view.clone(), uid.to_string(), self.sender.clone());
        self.task(async move {
            let result = ops::write_status(node, view, wanted).await;
            let _ = sender.send(Event::Status(id, result));
        });
    }

    fn status_written(&mut self, uid: String, result: Result<Arc<Object>, ApiError>) {
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        let sent = entry.writing.take();
        match result {
            Ok(object) => {
                entry.write_failures = 0;
                entry.told(sent.unwrap_or_default(), self.clock.now(), &self.node);
                entry.own_revision = entry.own_revision.max(object.revision);
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                tracing::warn!(pod = %entry.view.key(), %error, "status not written");
                let wait = crate::decide::delay(STATUS_RETRY, entry.write_failures);
                entry.write_failures = entry.write_failures.saturating_add(1);
                entry.write_at = Some(crate::decide::after(self.clock.now(), wait));
            }
        }
        self.dirty.insert(uid);
    }

    fn publish_host_ports(&self, uid: &str) {
        let asks = |e: &Entry| {
            let mut ports = e.view.containers.iter().flat_map(|c| c.spec.ports.iter().flatten());
            ports.any(|p| p.host_port.is_some())
        };
        if !self.entries.get(uid).is_some_and(asks) {
            return;
        }
        let running = self.entries.values().filter(|e| e.state.sandbox.setup.ready && !e.view.host_network());
        let ports: Vec<net::HostPort> =
            running.flat_map(|e| crate::config::host_ports(&e.view, &e.state.sandbox.ips)).collect();
        self.host_ports.send_if_modified(|old| {
            let changed = *old != ports;
            if changed {
                *old = ports;
            }
            changed
        });
    }

    fn finish_node_down(&mut self) {
        let quiet = |e: &Entry| e.state.teardown.ready && e.writing.is_none();
        if self.stopping
            && self.entries.values().all(quiet)
            && let Some(answer) = self.node_down.take()
        {
            let _ = answer.send(());
        }
    }
}
