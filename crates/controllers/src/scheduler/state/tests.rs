//! What waits, is promised and holds a place, on events and times of the test.

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
        Decision::Bind(info, node, ..) => format!("{}→{node}", info.uid),
        Decision::Refuse(info, diagnosis) => format!("{}: {}", info.uid, diagnosis.message()),
        Decision::Group(id, verdict) => format!("{}? {verdict:?}", id.1),
        Decision::Consult(info, question) => format!("{}? {question:?}", info.uid),
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

#[test]
fn pods_of_a_gang_wait_for_each_other_and_for_the_group() {
    let mut play = Play::new();
    play.state.gates = Gates::all();
    play.state.node_changed(None, Some(&node("one", "2")));
    let member = |name: &str| {
        let mut pod = pod(name, name, "", "1").value().unwrap();
        pod["spec"]["schedulingGroup"] = json!({"podGroupName": "g"});
        object(pod)
    };
    let group = object(json!({"metadata": {"name": "g", "namespace": "n", "uid": "g"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}}}));
    play.pod(None, Some(&member("a")));
    let now = play.start;
    play.state.group_changed(None, Some(&group), now);
    assert!(play.decide(0).is_empty());
    assert_eq!(play.state.pending(now)[3], ("gated", 1));
    play.pod(None, Some(&member("b")));
    assert_eq!(play.decide(0), ["a→one", "b→one", "g? Scheduled"]);

    // Without its group a pod goes nowhere; a third one comes by itself.
    play.state.group_changed(Some(&group), None, now);
    play.state.node_changed(None, Some(&node("two", "1")));
    play.pod(None, Some(&member("c")));
    assert!(play.decide(0).is_empty());
    play.state.group_changed(None, Some(&group), now);
    assert_eq!(play.decide(0), ["c→two", "g? Scheduled"]);
    play.pod(Some(&member("c")), None);
    assert_eq!(play.state.groups.members(&id_of(&group)).count(), 2);
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

#[test]
fn a_gang_waits_for_answers_together() {
    let text = "{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, extenders: [\
        {urlPrefix: x, filterVerb: f}]}";
    let mut play = Play::new();
    play.state = State::new(sched::config::read(text.as_bytes()).unwrap(), Gates::all());
    for name in ["one", "two"] {
        play.state.node_changed(None, Some(&node(name, "1")));
    }
    let member = |name: &str, uid: &str| {
        let mut pod = pod(name, uid, "", "1").value().unwrap();
        pod["spec"]["schedulingGroup"] = json!({"podGroupName": "g"});
        object(pod)
    };
    let group = object(json!({"metadata": {"name": "g", "namespace": "n", "uid": "g"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}}}));
    let now = play.start;
    play.state.group_changed(None, Some(&group), now);
    play.pod(None, Some(&member("a", "a")));
    play.pod(None, Some(&member("b", "b")));
    let asked = |play: &mut Play| match &play.state.decide(now, 10)[..] {
        [Decision::Consult(info, Question::Nodes(nodes))] => (info.clone(), nodes.clone()),
        other => panic!("{other:?}"),
    };
    let (first, nodes) = asked(&mut play);
    assert_eq!((first.uid.as_str(), nodes.len()), ("a", 2));
    assert!(play.decide(0).is_empty(), "both wait for the answer");
    // The other one is replaced meanwhile: the answer is about another group by then.
    play.pod(Some(&member("b", "b")), Some(&member("b", "c")));
    assert!(play.state.advised(&first, Ok(sched::extend::Advice::begin(nodes.clone())), now).is_empty());
    let (again, nodes) = asked(&mut play);
    assert_eq!(again.uid, "a");
    let decisions = play.state.advised(&again, Ok(sched::extend::Advice::begin(nodes)), now);
    let [Decision::Consult(second, Question::Nodes(nodes))] = &decisions[..] else { panic!("{decisions:?}") };
    assert_eq!((second.uid.as_str(), nodes.len()), ("c", 1));
    let why = "failed to schedule other pod from a pod group: down";
    let failed = told(&play.state.advised(second, Err("down".into()), now));
    assert_eq!(failed, [format!("a: {why}"), "c: down".into(), format!("g? Wrong({why:?})")]);
    assert!(play.decide(0).is_empty(), "first a pause");
    assert!(play.decide(1)[0].starts_with("a? Nodes("));
    // Without its group nobody is asked about.
    play.state.group_changed(Some(&group), None, now);
    assert_eq!(play.state.pending(now)[3], ("gated", 2));
}
