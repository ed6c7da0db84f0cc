//! The scheduler's picture of the cluster, fed by cache events: what runs where, who waits, what is being bound.
//!
//! Invariants: a pod stands in at most one of `waiting` and `assumed`; an assumed pod holds its place in the snapshot
//! until the cache shows it bound, or its binding failed.

use super::extend::Asking;
use super::groups::Groups;
use super::hints::{Change, node_changes};
use super::waiting::{Effort, Entry, Waiting};
use client::Object;
use k8s_openapi::api::core::v1 as core;
use k8s_schema::{Gates, gates};
use sched::config::Configuration;
use sched::dra::{ClaimId, Inventory, Wanted};
use sched::extend::Question;
use sched::volumes::{Catalog, Step};
use sched::{
    Budget, DEFAULT_NAME, Diagnosis, Group, GroupVerdict, NodeSpec, PodId, PodInfo, Profiles, Rescue,
    Snapshot, schedule,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stdx::backoff::Backoff;
use tokio::time::Instant;

/// What became of one pod.
#[derive(Debug)]
pub enum Decision {
    /// It goes to this node, when these steps are made; it took so much.
    Bind(Arc<PodInfo>, String, Vec<Step>, Effort),
    /// It fits nowhere, because; and who is to make room.
    Refuse(Arc<PodInfo>, Diagnosis),
    /// Extenders must be asked.
    Consult(Arc<PodInfo>, Question),
    /// What came of a group of pods.
    Group(PodId, GroupVerdict),
}

/// What a cache's change is about.
#[derive(Clone, Copy, Debug)]
pub enum About {
    /// A pod.
    Pod,
    /// A node.
    Node,
    /// A disruption budget.
    Budget,
    /// A PodGroup.
    Group,
    /// A namespace.
    Namespace,
}

/// A change of a cache: what was, what is.
pub type News = (About, Option<Arc<Object>>, Option<Arc<Object>>);

/// The picture.
#[derive(Default)]
pub struct State {
    pub(super) snapshot: Snapshot,
    /// Who waits.
    pub waiting: Waiting,
    assumed: BTreeMap<PodId, Entry>,
    /// Extenders are being asked about these.
    pub(super) asking: Asking,
    /// Pods that somebody else must let go first.
    gated: BTreeSet<PodId>,
    /// Which features are on.
    pub(super) gates: Gates,
    groups: Groups,
    /// What happened since the last decision.
    pub(super) changes: BTreeSet<Change>,
}

fn id_of(object: &Object) -> PodId {
    (object.key.namespace.clone(), object.key.name.clone())
}

fn node_of(pod: &core::Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
}

fn is_finished(pod: &core::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Does one of these profiles place the pod?
fn is_ours(pod: &core::Pod, profiles: &Profiles) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let name = spec.scheduler_name.as_deref().filter(|n| !n.is_empty());
    profiles.named(name.unwrap_or(DEFAULT_NAME)).is_some() && pod.metadata.deletion_timestamp.is_none()
}

/// Must somebody else let it go first: who set a gate, or who makes its claims of devices?
fn is_gated(pod: &core::Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty())
        || (spec.resource_claims.is_some() && Wanted::read(pod).waits())
}

/// The names of claims that were made for it.
fn made_claims(pod: &core::Pod) -> Option<&Vec<core::PodResourceClaimStatus>> {
    pod.status.as_ref()?.resource_claim_statuses.as_ref()
}

/// The node that the pod's status says it was promised.
fn promised(pod: &core::Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|n| !n.is_empty())
}

/// Who runs for longer is spared.
fn started(pod: &core::Pod) -> Option<jiff::Timestamp> {
    Some(pod.status.as_ref()?.start_time.as_ref()?.0)
}

/// Did anything change that decides where a pod may be?
fn differs(old: Option<&Arc<Object>>, new: &core::Pod) -> bool {
    let Some(old) = old.and_then(|o| o.view::<core::Pod>().ok()) else { return true };
    old.spec != new.spec
        || made_claims(&old) != made_claims(new)
        || old.metadata.labels != new.metadata.labels
        || old.metadata.deletion_timestamp.is_some() != new.metadata.deletion_timestamp.is_some()
}

/// Does it take another amount by what its node says of it?
fn resized(old: Option<&Arc<Object>>, new: &core::Pod) -> bool {
    let old = old.and_then(|o| o.view::<core::Pod>().ok());
    let has = |c: &core::ContainerStatus| (c.resources.clone(), c.allocated_resources.clone());
    let told = |pod: &core::Pod| -> Vec<_> {
        let status = pod.status.iter();
        status
            .flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses).flatten())
            .map(has)
            .collect()
    };
    let resizing = |pod: &core::Pod| {
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.filter(|c| c.type_ == "PodResizePending").map(|c| c.reason.clone()).next()
    };
    old.is_some_and(|old| {
        (told(&old) != told(new) || resizing(&old) != resizing(new))
            && sched::of_placed(&old) != sched::of_placed(new)
    })
}

impl State {
    /// Nothing yet.
    pub fn new(configuration: Configuration, gates: Gates) -> State {
        let mut state = State { gates, ..State::default() };
        state.snapshot.profiles = configuration.profiles;
        state.snapshot.extenders = configuration.extenders;
        let (base, max) = configuration.pause;
        state.waiting.pause = Backoff { base, factor: 2, max };
        state
    }

    /// Takes up a change of a cache.
    pub fn hear(&mut self, (about, old, new): News, now: Instant) {
        match about {
            About::Pod => self.pod_changed(old.as_ref(), new.as_ref(), now),
            About::Node => self.node_changed(old.as_ref(), new.as_ref()),
            About::Budget => self.budget_changed(old.as_ref(), new.as_ref()),
            About::Namespace => self.namespace_changed(old.as_ref(), new.as_ref()),
            About::Group => self.group_changed(old.as_ref(), new.as_ref(), now),
        }
    }

    /// A pod came, changed or went.
    pub fn pod_changed(&mut self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>, now: Instant) {
        // Decoded already, where the metadata alone is not.
        let read = |o: &Arc<Object>| o.view::<core::Pod>().ok();
        let pod = new.and_then(read);
        let of = |pod: &Option<Arc<core::Pod>>| pod.as_ref().and_then(|p| p.metadata.uid.clone());
        let replaced = new.is_some() && old.is_some_and(|o| of(&read(o)) != of(&pod));
        if let Some(old) = old.filter(|_| replaced || new.is_none()) {
            self.pod_gone(&id_of(old), now);
        }
        let (Some(new), Some(pod)) = (new, pod) else { return };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let (id, old) = (id_of(new), old.filter(|_| !replaced));
        let ours = is_ours(&pod, &self.snapshot.profiles);
        if is_finished(&pod) {
            self.pod_gone(&id, now);
        } else if let Some(node) = node_of(&pod) {
            self.pod_bound((&id, node), &pod, old, now);
        } else if self.assumed.get(&id).is_some_and(|e| e.info.uid == uid) {
            // Its binding is under way; the answer decides.
        } else if !ours || is_gated(&pod) {
            self.pod_gone(&id, now);
            if ours {
                self.gated.insert(id);
            }
        } else {
            self.gated.remove(&id);
            let asked = self.asking.contains(&id, uid);
            let known = asked || self.waiting.contains(&id, uid);
            self.promise_changed(&id, &pod, old.filter(|_| known));
            if differs(old, &pod) || !known {
                let info = self.read(&pod);
                self.enter(id, info, now);
            }
        }
    }

    fn read(&self, pod: &core::Pod) -> PodInfo {
        let mut info = PodInfo::read(pod).with_defaults(&self.snapshot.profiles);
        info.group = info.group.filter(|_| self.gates.on(gates::GANG_SCHEDULING));
        info
    }

    /// A pod may be tried from now on, or with its group.
    fn enter(&mut self, id: PodId, info: PodInfo, now: Instant) {
        self.stop_asking(&id, now);
        let (social, info) = (info.wants_company(), Arc::new(info));
        let Some(group) = info.group.clone() else { return self.waiting.put(id, info, social, now) };
        self.groups.join(&id, &group);
        self.groups.hold(info);
        self.release(&group, now);
    }

    /// No answer about the pod is awaited any more; who waited with it is tried anew.
    fn stop_asking(&mut self, id: &PodId, now: Instant) {
        for entry in self.asking.stop(id) {
            self.waiting.again(entry, now);
        }
    }

    /// Lets the pods of a group be tried, when it is there and enough of them are.
    fn release(&mut self, group: &PodId, now: Instant) {
        let there = self.groups.members(group).count();
        if self.snapshot.groups.get(group).is_none_or(|g| there < g.min) {
            return;
        }
        for (id, info) in self.groups.release(group) {
            let social = info.wants_company();
            self.waiting.put(id, info, social, now);
        }
    }

    /// A PodGroup came, changed or went.
    fn group_changed(&mut self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>, now: Instant) {
        let Some(id) = new.or(old).map(|o| id_of(o)) else { return };
        let topology = self.gates.on(gates::TOPOLOGY_AWARE_WORKLOADS);
        let group = new.and_then(|o| o.value().ok()).map(|g| Group::read(&g, topology));
        let gone = group.is_none();
        for entry in self.asking.stop_group(&id) {
            self.waiting.again(entry, now);
        }
        self.snapshot.groups.set(id.clone(), group);
        let members: Vec<PodId> = self.groups.members(&id).filter(|_| gone).cloned().collect();
        for entry in self.waiting.take_these(members.iter()) {
            self.groups.hold(entry.info);
        }
        self.release(&id, now);
    }

    /// What a pod was promised: the API's word, where it changes; else our own.
    fn promise_changed(&mut self, id: &PodId, pod: &core::Pod, old: Option<&Arc<Object>>) {
        let before = old.and_then(|o| o.view::<core::Pod>().ok());
        match (before.as_deref().and_then(promised), promised(pod)) {
            (before, Some(node)) if before != Some(node) || differs(old, pod) => {
                self.snapshot.nominate(node, Arc::new(PodInfo::read(pod)));
            }
            (Some(_), None) => {
                self.snapshot.clear_nomination(id);
                self.changes.insert(Change::Left);
            }
            _ => {}
        }
    }

    fn pod_gone(&mut self, id: &PodId, now: Instant) {
        self.waiting.remove(id);
        self.assumed.remove(id);
        self.stop_asking(id, now);
        self.gated.remove(id);
        self.groups.leave(id);
        self.snapshot.volumes.forget(id);
        let held = self.snapshot.place_of(id).is_some() || self.snapshot.nominated_node(id).is_some();
        if held {
            self.snapshot.remove_pod(id);
            self.snapshot.clear_nomination(id);
            self.changes.insert(Change::Left);
        }
    }

    fn pod_bound(
        &mut self,
        (id, node): (&PodId, &str),
        pod: &core::Pod,
        old: Option<&Arc<Object>>,
        now: Instant,
    ) {
        self.waiting.remove(id);
        self.assumed.remove(id);
        self.stop_asking(id, now);
        self.snapshot.volumes.forget(id);
        let known = self.snapshot.place_of(id) == Some(node) && !differs(old, pod) && !resized(old, pod);
        if known && old.and_then(|o| started(&*o.view::<core::Pod>().ok()?)) == started(pod) {
            return;
        }
        if self.snapshot.nominated_node(id).is_some_and(|n| n != node) {
            self.changes.insert(Change::Left);
        }
        let info = self.read(pod).placed();
        if let Some(group) = info.group.clone() {
            self.groups.join(id, &group);
            self.groups.let_go(id, &group);
            self.release(&group, now);
        }
        self.snapshot.place(node, Arc::new(info));
        // That it was started helps nobody.
        if !known {
            self.changes.insert(Change::Placed);
        }
    }

    /// A disruption budget came, changed or went.
    pub fn budget_changed(&mut self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        let Some(id) = new.or(old).map(|o| id_of(o)) else { return };
        match new.and_then(|o| o.value().ok()).and_then(|b| Budget::read(&b)) {
            Some(budget) => drop(self.snapshot.budgets.insert(id, budget)),
            None => drop(self.snapshot.budgets.remove(&id)),
        }
    }

    /// A namespace came, or its labels changed.
    fn namespace_changed(&mut self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        let labels = |o: &Arc<Object>| o.meta().labels.clone();
        let (before, now) = (old.map(labels), new.map(labels));
        if let Some(object) = new.or(old).filter(|_| before != now) {
            self.snapshot.set_namespace(&object.key.name, now);
            self.changes.insert(Change::Namespaces);
        }
    }

    /// Claims, volumes or classes changed.
    pub fn volumes_changed(&mut self, apply: impl FnOnce(&mut Catalog)) {
        apply(&mut self.snapshot.volumes);
        self.changes.insert(Change::Volumes);
    }

    /// Claims, classes or slices of devices changed.
    pub fn devices_changed(&mut self, apply: impl FnOnce(&mut Inventory)) {
        apply(&mut self.snapshot.volumes.devices);
        self.changes.insert(Change::Devices);
    }

    /// Claims with devices that only this pod may use.
    pub fn idle_claims(&self, info: &PodInfo) -> Vec<ClaimId> {
        self.snapshot.volumes.devices.needs(info).map(|needs| needs.idle()).unwrap_or_default()
    }

    /// A node came, changed or went.
    pub fn node_changed(&mut self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        let read = |o: &Arc<Object>| o.view::<core::Node>().ok().map(|n| NodeSpec::read(&n));
        match (old.and_then(read), new.and_then(read)) {
            (old, Some(new)) if old.as_ref() != Some(&new) => {
                let changes = node_changes(old.as_ref(), &new);
                self.snapshot.set_node(new);
                self.changes.extend(changes);
            }
            (Some(old), None) => {
                self.snapshot.remove_node(&old.name);
                // One domain less: spread is counted anew.
                self.changes.insert(Change::Labels);
            }
            _ => {}
        }
    }

    /// How many pods wait, by upstream's names of queues.
    pub fn pending(&self, now: Instant) -> [(&'static str, usize); 4] {
        let [active, backoff, unschedulable] = self.waiting.counts(now);
        [
            ("active", active),
            ("backoff", backoff),
            ("unschedulable", unschedulable),
            ("gated", self.gated.len() + self.groups.held()),
        ]
    }

    /// Decides for at most `max` pods that are due. Placed ones are assumed, the others parked.
    pub fn decide(&mut self, now: Instant, max: usize) -> Vec<Decision> {
        self.waiting.wake(&std::mem::take(&mut self.changes));
        let mut due = self.waiting.take_due(now, max);
        let groups: BTreeSet<PodId> = due.iter().filter_map(|e| e.info.group.clone()).collect();
        for group in &groups {
            due.extend(self.asking.stop_group(group));
        }
        due.extend(self.waiting.take_these(groups.iter().flat_map(|g| self.groups.members(g))));
        self.plan(due, now)
    }

    /// Decides for these.
    pub(super) fn plan(&mut self, due: Vec<Entry>, now: Instant) -> Vec<Decision> {
        let infos: Vec<Arc<PodInfo>> = due.iter().map(|e| e.info.clone()).collect();
        let mut entries: BTreeMap<PodId, Entry> =
            due.into_iter().filter_map(|e| Some((e.info.id.clone()?, e))).collect();
        let mut take = |info: &PodInfo| entries.remove_entry(info.id.as_ref()?);
        let plan = schedule(&mut self.snapshot, &infos);
        let mut decisions = Vec::with_capacity(infos.len());
        for (info, node) in plan.bindings {
            let entry = take(&info);
            let effort = entry.as_ref().map_or(Effort { seen: now, attempts: 1 }, |(_, e)| e.effort());
            let steps = info.id.as_ref().map(|id| self.snapshot.volumes.steps(id)).unwrap_or_default();
            self.assumed.extend(entry);
            decisions.push(Decision::Bind(info, node, steps, effort));
        }
        for (info, diagnosis) in plan.unschedulable {
            if let Rescue::Consult(question) = &diagnosis.rescue {
                let question = question.clone();
                let group = info.group.as_ref().filter(|g| self.snapshot.groups.get(g).is_some());
                let with = |other: &&Arc<PodInfo>| {
                    Arc::ptr_eq(other, &info) || (group.is_some() && other.group.as_ref() == group)
                };
                let together = infos.iter().filter(with).filter_map(|i| Some(take(i)?.1)).collect();
                self.ask(info.clone(), together);
                decisions.push(Decision::Consult(info, question));
                continue;
            }
            let entry = take(&info);
            if let Some((_, entry)) = entry {
                self.waiting.park(entry, diagnosis.filters.clone(), now);
            }
            decisions.push(Decision::Refuse(info, diagnosis));
        }
        decisions.extend(plan.groups.into_iter().map(|(id, verdict)| Decision::Group(id, verdict)));
        decisions
    }

    /// A victim could not be asked to go: it may be chosen again.
    pub fn spared(&mut self, info: &PodInfo) {
        info.id.iter().for_each(|id| self.snapshot.spare(id));
    }

    /// A binding failed: the place is free again and the pod waits again, unless the cache knew better meanwhile.
    pub fn bind_failed(&mut self, info: &PodInfo, now: Instant) {
        let Some(id) = &info.id else { return };
        if self.assumed.get(id).is_none_or(|e| e.info.uid != info.uid) {
            return;
        }
        self.snapshot.remove_pod(id);
        self.snapshot.volumes.forget(id);
        if let Some(entry) = self.assumed.remove(id) {
            self.waiting.retry(entry, now);
        }
        self.changes.insert(Change::Left);
    }
}

#[cfg(test)]
mod tests;
