//! The scheduler's picture of the cluster, fed by cache events: what runs where, who waits, what is being bound.
//!
//! Invariants: a pod stands in at most one of `waiting` and `assumed`; an assumed pod holds its place in the snapshot
//! until the cache shows it bound, or its binding failed.

use super::hints::{Change, node_changes};
use super::waiting::{Entry, Waiting};
use client::Object;
use k8s_openapi::api::core::v1 as core;
use sched::config::Configuration;
use sched::volumes::{Catalog, Step};
use sched::{Budget, DEFAULT_NAME, Diagnosis, NodeSpec, PodId, PodInfo, Profiles, Snapshot, schedule};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use stdx::backoff::Backoff;
use tokio::time::Instant;

/// What became of one pod.
#[derive(Debug)]
pub enum Decision {
    /// It goes to this node; it was first seen then.
    Bind(Arc<PodInfo>, String, Instant),
    /// It fits nowhere, because; and who is to make room.
    Refuse(Arc<PodInfo>, Diagnosis),
}

/// The picture.
#[derive(Default)]
pub struct State {
    snapshot: Snapshot,
    /// Who waits.
    pub waiting: Waiting,
    assumed: BTreeMap<PodId, Entry>,
    /// Pods that somebody else must let go first.
    gated: BTreeSet<PodId>,
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

fn is_gated(pod: &core::Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.scheduling_gates.as_ref()).is_some_and(|g| !g.is_empty())
}

/// The node that the pod's status says it was promised.
fn promised(pod: &core::Pod) -> Option<&str> {
    pod.status.as_ref()?.nominated_node_name.as_deref().filter(|n| !n.is_empty())
}

/// Did anything change that decides where a pod may be?
fn differs(old: Option<&Arc<Object>>, new: &core::Pod) -> bool {
    let Some(old) = old.and_then(|o| o.view::<core::Pod>().ok()) else { return true };
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || old.metadata.deletion_timestamp.is_some() != new.metadata.deletion_timestamp.is_some()
}

impl State {
    /// Nothing yet.
    pub fn new(configuration: Configuration) -> State {
        let mut state = State::default();
        state.snapshot.profiles = configuration.profiles;
        let (base, max) = configuration.pause;
        state.waiting.pause = Backoff { base, factor: 2, max };
        state
    }

    /// A pod came, changed or went.
    pub fn pod_changed(&mut self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>, now: Instant) {
        let replaced = old.zip(new).is_some_and(|(o, n)| o.uid() != n.uid());
        if let Some(old) = old.filter(|_| replaced || new.is_none()) {
            self.pod_gone(&id_of(old));
        }
        let Some(new) = new else { return };
        let Ok(pod) = new.view::<core::Pod>() else { return };
        let (id, old) = (id_of(new), old.filter(|_| !replaced));
        let ours = is_ours(&pod, &self.snapshot.profiles);
        if is_finished(&pod) {
            self.pod_gone(&id);
        } else if let Some(node) = node_of(&pod) {
            self.pod_bound(&id, node, &pod, old);
        } else if self.assumed.get(&id).is_some_and(|e| e.info.uid == new.uid()) {
            // Its binding is under way; the answer decides.
        } else if !ours || is_gated(&pod) {
            self.pod_gone(&id);
            if ours {
                self.gated.insert(id);
            }
        } else {
            self.gated.remove(&id);
            let known = self.waiting.contains(&id, new.uid());
            self.promise_changed(&id, &pod, old.filter(|_| known));
            if differs(old, &pod) || !known {
                let info = PodInfo::read(&pod).with_defaults(&self.snapshot.profiles);
                let social = info.wants_company();
                self.waiting.put(id, Arc::new(info), social, now);
            }
        }
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
                self.waiting.wake(&[Change::Left]);
            }
            _ => {}
        }
    }

    fn pod_gone(&mut self, id: &PodId) {
        self.waiting.remove(id);
        self.assumed.remove(id);
        self.gated.remove(id);
        self.snapshot.volumes.forget(id);
        let held = self.snapshot.place_of(id).is_some() || self.snapshot.nominated_node(id).is_some();
        if held {
            self.snapshot.remove_pod(id);
            self.snapshot.clear_nomination(id);
            self.waiting.wake(&[Change::Left]);
        }
    }

    fn pod_bound(&mut self, id: &PodId, node: &str, pod: &core::Pod, old: Option<&Arc<Object>>) {
        self.waiting.remove(id);
        self.assumed.remove(id);
        self.snapshot.volumes.forget(id);
        if self.snapshot.place_of(id) == Some(node) && !differs(old, pod) {
            return;
        }
        let elsewhere = self.snapshot.nominated_node(id).is_some_and(|n| n != node);
        self.snapshot.place(node, Arc::new(PodInfo::read(pod)));
        self.waiting.wake(if elsewhere { &[Change::Placed, Change::Left] } else { &[Change::Placed] });
    }

    /// A disruption budget came, changed or went.
    pub fn budget_changed(&mut self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        let Some(id) = new.or(old).map(|o| id_of(o)) else { return };
        match new.and_then(|o| o.value().ok()).and_then(|b| Budget::read(&b)) {
            Some(budget) => drop(self.snapshot.budgets.insert(id, budget)),
            None => drop(self.snapshot.budgets.remove(&id)),
        }
    }

    /// Claims, volumes or classes changed.
    pub fn volumes_changed(&mut self, apply: impl FnOnce(&mut Catalog)) {
        apply(&mut self.snapshot.volumes);
        self.waiting.wake(&[Change::Volumes]);
    }

    /// What must be written before an assumed pod is bound.
    pub fn steps(&self, info: &PodInfo) -> Vec<Step> {
        info.id.as_ref().map(|id| self.snapshot.volumes.steps(id)).unwrap_or_default()
    }

    /// A node came, changed or went.
    pub fn node_changed(&mut self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
        let read = |o: &Arc<Object>| o.view::<core::Node>().ok().map(|n| NodeSpec::read(&n));
        match (old.and_then(read), new.and_then(read)) {
            (old, Some(new)) if old.as_ref() != Some(&new) => {
                let changes = node_changes(old.as_ref(), &new);
                self.snapshot.set_node(new);
                self.waiting.wake(&changes);
            }
            (Some(old), None) => {
                self.snapshot.remove_node(&old.name);
                // One domain less: spread is counted anew.
                self.waiting.wake(&[Change::Labels]);
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
            ("gated", self.gated.len()),
        ]
    }

    /// Decides for at most `max` pods that are due. Placed ones are assumed, the others parked.
    pub fn decide(&mut self, now: Instant, max: usize) -> Vec<Decision> {
        let due = self.waiting.take_due(now, max);
        let infos: Vec<Arc<PodInfo>> = due.iter().map(|e| e.info.clone()).collect();
        let mut entries: BTreeMap<PodId, Entry> =
            due.into_iter().filter_map(|e| Some((e.info.id.clone()?, e))).collect();
        let mut take = |info: &PodInfo| entries.remove_entry(info.id.as_ref()?);
        let plan = schedule(&mut self.snapshot, &infos);
        let mut decisions = Vec::with_capacity(infos.len());
        for (info, node) in plan.bindings {
            let entry = take(&info);
            let seen = entry.as_ref().map_or(now, |(_, e)| e.seen);
            self.assumed.extend(entry);
            decisions.push(Decision::Bind(info, node, seen));
        }
        for (info, diagnosis) in plan.unschedulable {
            if let Some((_, entry)) = take(&info) {
                self.waiting.park(entry, diagnosis.filters.clone(), now);
            }
            decisions.push(Decision::Refuse(info, diagnosis));
        }
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
        self.waiting.wake(&[Change::Left]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::object;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn pod(name: &str, uid: &str, node: &str, cpu: &str) -> Arc<Object> {
        let mut spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        if !node.is_empty() {
            spec["nodeName"] = json!(node);
        }
        object(json!({"metadata": {"name": name, "namespace": "n", "uid": uid}, "spec": spec}))
    }

    fn with(pod: &Arc<Object>, at: &str, value: Value) -> Arc<Object> {
        let mut changed = pod.value().unwrap();
        *changed.pointer_mut(at).unwrap() = value;
        object(changed)
    }

    fn node(name: &str, cpu: &str) -> Arc<Object> {
        object(json!({"metadata": {"name": name, "uid": name}, "spec": {},
            "status": {"allocatable": {"cpu": cpu, "memory": "1Gi", "pods": "10"}}}))
    }

    fn told(decisions: &[Decision]) -> Vec<String> {
        let tell = |d: &Decision| match d {
            Decision::Bind(info, node, _) => format!("{}→{node}", info.uid),
            Decision::Refuse(info, diagnosis) => format!("{}: {}", info.uid, diagnosis.message()),
        };
        decisions.iter().map(tell).collect()
    }

    struct Play {
        state: State,
        start: Instant,
    }

    impl Play {
        fn new() -> Play {
            Play { state: State::default(), start: Instant::now() }
        }

        fn pod(&mut self, old: Option<&Arc<Object>>, new: Option<&Arc<Object>>) {
            let now = self.start;
            self.state.pod_changed(old, new, now);
        }

        fn decide(&mut self, second: u64) -> Vec<String> {
            let now = self.start + Duration::from_secs(second);
            told(&self.state.decide(now, 10))
        }
    }

    #[test]
    fn a_freed_place_is_given_on() {
        let mut play = Play::new();
        play.state.node_changed(None, Some(&node("one", "1")));
        let (first, second) = (pod("a", "a", "", "1"), pod("b", "b", "", "1"));
        play.pod(None, Some(&first));
        assert_eq!(play.decide(0), ["a→one"]);
        play.pod(None, Some(&second));
        let refused = play.decide(0);
        assert!(refused[0].starts_with("b: 0/1 nodes are available: 1 Insufficient cpu."), "{refused:?}");
        let bound = pod("a", "a", "one", "1");
        play.pod(Some(&first), Some(&bound));
        assert!(play.decide(10).is_empty(), "nothing that helps has changed");
        play.pod(Some(&bound), None);
        assert_eq!(play.decide(10), ["b→one"]);
    }

    #[test]
    fn a_new_node_helps_and_a_heartbeat_does_not() {
        let mut play = Play::new();
        play.pod(None, Some(&pod("a", "a", "", "1")));
        assert_eq!(play.decide(0), ["a: no nodes available to schedule pods"]);
        let (small, beat) =
            (node("small", "500m"), with(&node("small", "500m"), "/spec", json!({"podCIDR": "x"})));
        play.state.node_changed(None, Some(&small));
        assert_eq!(play.decide(2).len(), 1);
        play.state.node_changed(Some(&small), Some(&beat));
        assert!(play.decide(20).is_empty());
        play.state.node_changed(None, Some(&node("big", "2")));
        assert_eq!(play.decide(20), ["a→big"]);
    }

    #[test]
    fn a_failed_binding_gives_the_place_back() {
        let mut play = Play::new();
        play.state.node_changed(None, Some(&node("one", "1")));
        let a = pod("a", "a", "", "1");
        play.pod(None, Some(&a));
        let now = play.start;
        let decisions = play.state.decide(now, 10);
        let Decision::Bind(info, ..) = &decisions[0] else { panic!() };
        let noted = with(&a, "/metadata/uid", json!("a"));
        play.pod(Some(&a), Some(&noted));
        assert!(play.decide(0).is_empty(), "it is being bound");
        play.state.bind_failed(info, now);
        assert!(play.decide(0).is_empty(), "first a pause");
        assert_eq!(play.decide(1), ["a→one"]);
        play.pod(Some(&a), Some(&pod("a", "a", "one", "1")));
        play.state.bind_failed(info, now);
        assert_eq!(play.state.snapshot.place_of(&id_of(&a)), Some("one"), "the cache knew better");
    }

    #[test]
    fn only_our_pods_wait() {
        let mut play = Play::new();
        play.state.node_changed(None, Some(&node("one", "10")));
        let change = |field: &str, value: Value| {
            let mut all = pod("p", field, "", "1").value().unwrap();
            *all.pointer_mut(if field == "deletionTimestamp" { "/metadata" } else { "/spec" })
                .unwrap()
                .as_object_mut()
                .unwrap()
                .entry(field)
                .or_insert(Value::Null) = value;
            object(all)
        };
        let gated = change("schedulingGates", json!([{"name": "x"}]));
        let going = change("deletionTimestamp", json!("2026-01-01T00:00:00Z"));
        let others = change("schedulerName", json!("mine"));
        for pod in [&gated, &going, &others] {
            play.pod(None, Some(pod));
            assert!(play.decide(0).is_empty());
            play.pod(Some(pod), None);
        }
        play.pod(None, Some(&gated));
        let opened = with(&gated, "/spec/schedulingGates", json!([]));
        play.pod(Some(&gated), Some(&opened));
        assert_eq!(play.decide(0), ["schedulingGates→one"]);
    }

    #[test]
    fn finished_pods_and_replaced_ones_hold_no_place() {
        let mut play = Play::new();
        play.state.node_changed(None, Some(&node("one", "1")));
        let running = pod("a", "a", "one", "1");
        play.pod(None, Some(&running));
        let mut done = running.value().unwrap();
        done["status"] = json!({"phase": "Succeeded"});
        play.pod(Some(&running), Some(&object(done)));
        play.pod(None, Some(&pod("b", "b", "", "1")));
        assert_eq!(play.decide(0), ["b→one"]);
        play.pod(Some(&pod("b", "b", "", "1")), Some(&pod("b", "b2", "", "1")));
        assert_eq!(play.decide(0), ["b2→one"], "another pod of the same name");
    }

    fn important(name: &str, node: &str, priority: i32, promised: &str) -> Arc<Object> {
        let mut pod = pod(name, name, node, "1").value().unwrap();
        pod["spec"]["priority"] = json!(priority);
        if !promised.is_empty() {
            pod["status"] = json!({"nominatedNodeName": promised});
        }
        object(pod)
    }

    #[test]
    fn an_important_pod_gets_the_place_it_made() {
        let mut play = Play::new();
        play.state.node_changed(None, Some(&node("one", "1")));
        let (victim, vip) = (important("v", "one", 1, ""), important("vip", "", 9, ""));
        play.pod(None, Some(&victim));
        play.pod(None, Some(&vip));
        let now = play.start;
        let decisions = play.state.decide(now, 10);
        let Decision::Refuse(_, diagnosis) = &decisions[0] else { panic!() };
        let sched::Rescue::Found(found) = &diagnosis.rescue else { panic!("{diagnosis:?}") };
        assert_eq!((found.node.as_str(), &*found.victims[0].uid), ("one", "v"));
        // Its own status comes back, and somebody less important wants the place.
        play.pod(Some(&vip), Some(&important("vip", "", 9, "one")));
        play.pod(Some(&victim), None);
        play.pod(None, Some(&important("late", "", 2, "")));
        assert!(play.decide(0)[0].starts_with("late: 0/1 nodes are available: 1 Insufficient cpu."));
        assert_eq!(play.decide(1)[0], "vip→one");
    }

    #[test]
    fn a_promise_survives_a_restart_and_ends_with_its_pod() {
        let mut play = Play::new();
        play.state.node_changed(None, Some(&node("one", "1")));
        let vip = important("vip", "", 9, "one");
        let gated = {
            let mut value = vip.value().unwrap();
            value["spec"]["schedulingGates"] = json!([{"name": "x"}]);
            object(value)
        };
        play.pod(None, Some(&vip));
        play.state.waiting.remove(&id_of(&vip));
        play.pod(None, Some(&important("late", "", 2, "")));
        assert!(play.decide(0)[0].starts_with("late: 0/1 nodes are available: 1 Insufficient cpu."));
        play.pod(Some(&vip), Some(&gated));
        assert_eq!(play.state.pending(play.start)[3], ("gated", 1));
        assert_eq!(play.decide(1), ["late→one"]);
    }
}
