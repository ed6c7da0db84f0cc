//! Files and answers of extenders, and decisions by them.

use super::*;
use crate::config::read;
use crate::{Group, NodeSpec, Plan, Rescue, Snapshot, schedule};
use k8s_openapi::api::core::v1 as core;
use std::sync::Arc;

fn file(extenders: &str) -> Result<crate::config::Configuration, String> {
    let head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nextenders:\n";
    read(format!("{head}{extenders}").as_bytes())
}

fn one(text: &str) -> Extender {
    file(text).unwrap().extenders[0].clone()
}

fn pod(name: &str, priority: i32, resource: &str) -> Arc<PodInfo> {
    let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": {"priority": priority,
        "containers": [{"name": "c", "resources": {"requests": {resource: "1"}}}]}});
    Arc::new(PodInfo::read(&serde_json::from_value::<core::Pod>(pod).unwrap()))
}

fn cluster(extender: &str) -> Snapshot {
    let configuration = file(extender).unwrap();
    let mut snapshot = Snapshot::default();
    snapshot.profiles = configuration.profiles;
    snapshot.extenders = configuration.extenders;
    for name in ["a", "b", "c"] {
        let node = json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "1", "pods": "9"}}});
        snapshot.set_node(NodeSpec::read(&serde_json::from_value::<core::Node>(node).unwrap()));
    }
    snapshot
}

fn advised(snapshot: &mut Snapshot, pod: &Arc<PodInfo>, advice: Advice) -> Plan {
    snapshot.advice = pod.id.clone().map(|id| (id, advice)).into_iter().collect();
    let plan = schedule(snapshot, std::slice::from_ref(pod));
    snapshot.advice.clear();
    plan
}

/// The pod that extenders must be asked about, and the nodes.
fn asks(plan: &Plan) -> (String, Vec<String>) {
    let [(pod, diagnosis)] = &plan.unschedulable[..] else { panic!("{plan:?}") };
    let Rescue::Consult(Question::Nodes(nodes)) = &diagnosis.rescue else { panic!("{plan:?}") };
    assert!(plan.bindings.is_empty() && plan.groups.is_empty());
    (pod.uid.clone(), nodes.clone())
}

#[test]
fn files_are_checked() {
    let good = one("- {urlPrefix: 'https://x/', filterVerb: f, httpTimeout: 1m30s, enableHTTPS: true}");
    assert_eq!((good.url("f").as_str(), good.timeout.as_secs()), ("https://x/f", 90));
    assert!(good.tls().insecure, "no authority, no check");
    assert!(!one("- {urlPrefix: 'https://x', enableHTTPS: true, tlsConfig: {caData: eA==}}").tls().insecure);
    for (text, why) in [
        ("- {filterVerb: f}", "extenders[0].urlPrefix: Required value"),
        (
            "- {urlPrefix: x, prioritizeVerb: p}",
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
        ),
        (
            "- {urlPrefix: x, bindVerb: b}\n- {urlPrefix: z, bindVerb: b}",
            "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
        ),
        (
            "- {urlPrefix: x, managedResources: [{name: cpu}]}",
            "extenders[0].managedResources: Invalid value: \"cpu\": name is an invalid extended resource name",
        ),
        (
            "- {urlPrefix: x, httpTimeout: soon}",
            "extenders[0].httpTimeout: Invalid value: \"soon\": no duration",
        ),
        ("- {urlPrefix: x, verb: z}", "unknown field `verb`"),
    ] {
        let error = file(text).unwrap_err();
        assert!(error.starts_with(why), "{error}");
    }
}

#[test]
fn it_minds_its_business_and_our_filter_leaves_that_alone() {
    let text =
        "- {urlPrefix: x, filterVerb: f, managedResources: [{name: e.io/d, ignoredByScheduler: true}]}";
    let mut snapshot = cluster(text);
    let (its, other) = (pod("p", 0, "e.io/d"), pod("q", 0, "cpu"));
    let extender = snapshot.extenders[0].clone();
    assert!(extender.is_interested(&its) && !extender.is_interested(&other));
    let (_, nodes) = asks(&schedule(&mut snapshot, &[its]));
    assert_eq!(nodes, ["a", "b", "c"], "no node says that it has any");
    assert_eq!(schedule(&mut snapshot, &[other]).bindings.len(), 1);
}

#[test]
fn filters_and_ratings_decide() {
    let both = "- {urlPrefix: x, filterVerb: f, prioritizeVerb: p, weight: 2, nodeCacheCapable: true}";
    let (mut snapshot, p, by) = (cluster(both), pod("p", 0, "cpu"), one(both));
    let mut advice = Advice::begin(asks(&schedule(&mut snapshot, std::slice::from_ref(&p))).1);
    let asked = by.about_nodes(&json!({"metadata": {}}), &advice, |_| Value::Null);
    assert_eq!(asked, json!({"Pod": {"metadata": {}}, "Nodes": null, "NodeNames": ["a", "b", "c"]}));
    assert_eq!(advice.filtered(&by, &json!({"Error": "broken"})).unwrap_err(), "broken");
    let stranger = advice.filtered(&by, &json!({"NodeNames": ["z"]})).unwrap_err();
    assert_eq!(
        stranger,
        "extender \"x\" claims a filtered node \"z\" which is not found in the input node list"
    );
    advice.filtered(&by, &json!({"nodenames": ["a", "c"], "failedNodes": {"b": "too hot"}})).unwrap();
    advice.rated(
        &by,
        &json!([{"Host": "a", "Score": 1}, {"host": "c", "score": 10}, {"Host": "b", "Score": 10}]),
    );
    assert_eq!(advice.nodes, [("a".to_string(), 20), ("c".to_string(), 200)].into());
    assert_eq!(advised(&mut snapshot, &p, advice.clone()).bindings[0].1, "c");
    // Taken meanwhile: the next best; then the words of all.
    assert_eq!(advised(&mut snapshot, &pod("q", 0, "cpu"), advice.clone()).bindings[0].1, "a");
    let plan = advised(&mut snapshot, &pod("r", 0, "cpu"), advice);
    assert!(
        plan.unschedulable[0]
            .1
            .message()
            .starts_with("0/3 nodes are available: 1 too hot, 2 Insufficient cpu."),
        "{}",
        plan.unschedulable[0].1.message()
    );
    assert!(plan.unschedulable[0].1.filters.contains(NAME));
    // Whole nodes, for one without a cache.
    let whole = one("- {urlPrefix: x, filterVerb: f}");
    let mut advice = Advice::begin(vec!["a".into(), "b".into()]);
    let asked = whole.about_nodes(&Value::Null, &advice, |name| json!({"metadata": {"name": name}}));
    assert_eq!(asked["Nodes"]["items"][1]["metadata"]["name"], "b");
    let answer =
        json!({"Nodes": {"items": [{"metadata": {"name": "b"}}]}, "FailedAndUnresolvableNodes": {"a": "no"}});
    advice.filtered(&whole, &answer).unwrap();
    assert_eq!((advice.nodes.len(), &advice.refused["a"]), (1, &("no".into(), false)));
}

#[test]
fn nodes_are_asked_about_once() {
    let text = "- {urlPrefix: x, filterVerb: f, nodeCacheCapable: true}";
    let (mut snapshot, by, p) = (cluster(text), one(text), pod("p", 0, "cpu"));
    let mut advice = Advice::begin(vec!["a".into(), "b".into()]);
    advice.filtered(&by, &json!({"NodeNames": []})).unwrap();
    let (_, nodes) = asks(&advised(&mut snapshot, &p, advice.clone()));
    assert_eq!(nodes, ["c"], "the others are left out without a word");
    let mut later = Advice::begin(nodes);
    later.filtered(&by, &json!({"FailedNodes": {"c": "no"}})).unwrap();
    advice.extend(later);
    let plan = advised(&mut snapshot, &p, advice);
    assert!(plan.unschedulable[0].1.message().starts_with("0/3 nodes are available: 1 no."));
}

#[test]
fn each_pod_of_a_gang_is_asked_about_with_those_before_it_in_their_places() {
    let text = "- {urlPrefix: x, filterVerb: f, nodeCacheCapable: true}";
    let (mut snapshot, by) = (cluster(text), one(text));
    let gang = ("n".into(), "g".into());
    snapshot.groups.set(gang, Some(Group { min: 2, topology: None }));
    let member = |name: &str| {
        let pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": {
            "schedulingGroup": {"podGroupName": "g"},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}});
        Arc::new(PodInfo::read(&serde_json::from_value::<core::Pod>(pod).unwrap()))
    };
    let pods = [member("p"), member("q")];
    let told = |snapshot: &mut Snapshot, pod: usize, asked: &[&str], left: &[&str]| {
        let mut advice = Advice::begin(asked.iter().map(ToString::to_string).collect());
        advice.filtered(&by, &json!({"NodeNames": left})).unwrap();
        snapshot.advice.entry(pods[pod].id.clone().unwrap()).or_default().extend(advice);
        schedule(snapshot, &pods)
    };
    assert_eq!(asks(&schedule(&mut snapshot, &pods)), ("p".into(), vec!["a".into(), "b".into(), "c".into()]));
    let plan = told(&mut snapshot, 0, &["a", "b", "c"], &["a"]);
    assert_eq!(asks(&plan), ("q".into(), vec!["b".into(), "c".into()]));
    assert!(pods.iter().all(|p| snapshot.place_of(p.id.as_ref().unwrap()).is_none()), "nothing is decided");
    let plan = told(&mut snapshot, 1, &["b", "c"], &["c"]);
    let placed: Vec<_> = plan.bindings.iter().map(|(p, node)| (p.uid.as_str(), node.as_str())).collect();
    assert_eq!(placed, [("p", "a"), ("q", "c")]);
}

#[test]
fn extenders_have_a_say_about_victims() {
    let text = "- {urlPrefix: x, preemptVerb: p, nodeCacheCapable: true}";
    let (mut snapshot, by) = (cluster(text), one(text));
    for name in ["a", "b", "c"] {
        snapshot.place(name, pod(&format!("v{name}"), 0, "cpu"));
    }
    let vip = pod("vip", 9, "cpu");
    let plan = schedule(&mut snapshot, std::slice::from_ref(&vip));
    let Rescue::Consult(Question::Victims(place, victims)) = &plan.unschedulable[0].1.rescue else {
        panic!()
    };
    assert_eq!(place, "", "there is no group");
    let asked = by.about_victims(&Value::Null, victims, |_| Value::Null);
    assert_eq!(asked["NodeNameToMetaVictims"]["b"], json!({"Pods": [{"UID": "vb"}], "NumPDBViolations": 0}));
    let answer = json!({"NodeNameToMetaVictims": {"c": {"Pods": [{"UID": "vc"}]}}});
    let left = Advice::spared(&by, victims, &answer).unwrap();
    let stranger = json!({"NodeNameToMetaVictims": {"c": {"Pods": [{"UID": "va"}]}}});
    assert!(Advice::spared(&by, victims, &stranger).unwrap_err().contains("is not found on that node"));
    let plan = advised(&mut snapshot, &vip, Advice::of_victims(String::new(), left));
    let Rescue::Found(found) = &plan.unschedulable[0].1.rescue else { panic!() };
    assert_eq!((found.node.as_str(), found.victims[0].uid.as_str()), ("c", "vc"));
    let other = pod("other", 9, "cpu");
    let plan = advised(&mut snapshot, &other, Advice::of_victims(String::new(), Candidates::new()));
    assert!(plan.unschedulable[0].1.message().ends_with("preemption: no candidate node for preemption"));
}
