//! What a DaemonSet does and reports, on hand-made nodes and pods.

use super::decide::{Daemon, Failures, Fit, Plan, Scene, Set, decide, fit, status};
use super::{model_pod, pod_body};
use crate::revision::HASH_LABEL;
use crate::testing::{at, object, stamp};
use sched::{NodeSpec, Taint};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn set(spec: Value) -> Set {
    let mut spec = spec;
    spec["selector"] = json!({"matchLabels": {"app": "a"}});
    Set::read(&object(json!({"metadata": {"name": "d", "namespace": "n"}, "spec": spec}))).unwrap()
}

/// `node state revision`, state one of ready, starting, going, failed, waiting (for its node).
fn daemon((i, text): (usize, &&str)) -> Daemon {
    let words: Vec<&str> = text.split(' ').collect();
    let ready = matches!(words[1], "ready" | "going");
    let name = format!("p{i}");
    let mut pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "labels": {HASH_LABEL: words[2]},
            "creationTimestamp": stamp(i.try_into().unwrap())},
        "spec": {"nodeName": words[0], "containers": []},
        "status": {"phase": if words[1] == "failed" { "Failed" } else { "Running" }, "conditions": [
            {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": stamp(0)}]}});
    if words[1] == "going" {
        pod["metadata"]["deletionTimestamp"] = json!(stamp(0));
    }
    if words[1] == "waiting" {
        let owner = object(json!({"metadata": {"name": "d", "namespace": "n", "uid": "u"}}));
        pod["spec"] = pod_body(&set(json!({})), &owner, "x", words[0])["spec"].clone();
        pod["spec"]["containers"] = json!([]);
    }
    Daemon::read(&object(pod))
}

fn with<T>(set: &Set, nodes: &str, pods: &[&str], now: i64, then: impl Fn(&Scene<'_>) -> T) -> T {
    after(set, nodes, pods, &Failures::default(), |scene| then(&Scene { now: at(now), ..*scene }))
}

fn after<T>(set: &Set, nodes: &str, pods: &[&str], failures: &Failures, then: impl Fn(&Scene<'_>) -> T) -> T {
    let nodes: BTreeMap<String, Fit> = nodes
        .split(' ')
        .map(|n| match n.split_at(1) {
            (name, "") => (name.to_string(), Fit::Run),
            (name, "~") => (name.to_string(), Fit::Stay),
            (name, _) => (name.to_string(), Fit::No),
        })
        .collect();
    let daemons: Vec<Daemon> = pods.iter().enumerate().map(daemon).collect();
    then(&Scene { set, nodes: &nodes, daemons: &daemons, hash: "new", failures, now: at(0) })
}

/// What is done, as `+a` (created on node a) and `-1` (pod number 1 deleted).
fn steps(set: &Set, nodes: &str, pods: &[&str]) -> String {
    let Plan { create, delete, .. } = with(set, nodes, pods, 100, decide);
    let created = create.into_iter().map(|node| format!("+{node}"));
    created.chain(delete.into_iter().map(|i| format!("-{i}"))).collect::<Vec<_>>().join(" ")
}

#[test]
fn every_fitting_node_has_one_pod() {
    let set = set(json!({}));
    assert_eq!(steps(&set, "a b~ c!", &[]), "+a");
    assert_eq!(steps(&set, "a b~ c!", &["a ready new", "b ready new", "c ready new"]), "-2");
    assert_eq!(
        steps(&set, "a b", &["a ready new", "a starting new", "b going new"]),
        "-1",
        "one going holds its node"
    );
    assert_eq!(steps(&set, "a b", &["a waiting new", "b waiting new", "z waiting new", "y ready new"]), "-2");
}

#[test]
fn failed_pods_are_replaced_later_each_time() {
    let set = set(json!({}));
    let mut failures = Failures::default();
    let look = |failures: &Failures, now: i64, pods: &[&str]| {
        let plan = after(&set, "a b", pods, failures, |scene| decide(&Scene { now: at(now), ..*scene }));
        (plan.ended, plan.again.map(|d| d.as_secs()))
    };
    let pods = ["a failed new", "b failed new"];
    assert_eq!(look(&failures, 0, &pods), (vec![0, 1], None), "the first one at once");
    failures.note("a", at(0));
    assert_eq!(look(&failures, 0, &pods), (vec![1], Some(1)));
    failures.note("a", at(1));
    assert_eq!(look(&failures, 1, &pods), (vec![1], Some(2)));
    (0..20).for_each(|_| failures.note("a", at(3)));
    assert_eq!(look(&failures, 3, &pods).1, Some(900), "a quarter of an hour at most");
    failures.note("b", at(4_000));
    assert_eq!(look(&failures, 4_000, &pods), (vec![0], Some(1)), "long ago is forgotten");
}

#[test]
fn updates_keep_their_bound() {
    let one = set(json!({}));
    let all_old = ["a ready old", "b ready old", "c ready old"];
    assert_eq!(steps(&one, "a b c", &all_old), "-0");
    assert_eq!(steps(&one, "a b c", &["a going old", "b ready old", "c ready old"]), "");
    assert_eq!(steps(&one, "a b c", &["b ready old", "c ready old"]), "+a");
    assert_eq!(steps(&one, "a b c", &["a starting new", "b ready old", "c ready old"]), "");
    assert_eq!(steps(&one, "a b c", &["a ready new", "b ready old", "c ready old"]), "-1");
    assert_eq!(
        steps(&one, "a b c", &["a starting old", "b ready old", "c ready old"]),
        "-0",
        "a broken one goes first"
    );
    let half = set(json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "50%"}}}));
    assert_eq!(steps(&half, "a b c", &all_old), "-0 -1", "rounded up");
    let manual = set(json!({"updateStrategy": {"type": "OnDelete"}}));
    assert_eq!(steps(&manual, "a b c", &all_old), "");
    let slow = set(json!({"minReadySeconds": 200}));
    assert_eq!(
        steps(&slow, "a b", &["a ready new", "b ready old"]),
        "-1",
        "not available: replacing costs nothing"
    );
}

#[test]
fn surging_updates_start_the_new_pod_first() {
    let one = set(json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}}));
    assert_eq!(steps(&one, "a b", &["a ready old", "b ready old"]), "+a");
    assert_eq!(steps(&one, "a b", &["a ready old", "b ready old", "a starting new"]), "");
    assert_eq!(steps(&one, "a b", &["a ready old", "b ready old", "a ready new"]), "+b -0");
    assert_eq!(steps(&one, "a b", &["b ready old", "a ready new"]), "+b");
    assert_eq!(steps(&one, "a b", &["a starting old", "b ready old"]), "+a +b");
}

#[test]
fn the_status_counts_nodes() {
    let set = set(json!({"minReadySeconds": 50}));
    let pods = ["a ready new", "b starting old", "c ready new", "e going new"];
    let report = with(&set, "a b c~ d e", &pods, 100, |scene| status(scene, 2));
    assert_eq!(
        report,
        json!({"desiredNumberScheduled": 4, "currentNumberScheduled": 3, "numberMisscheduled": 1, "numberReady": 1,
            "updatedNumberScheduled": 1, "numberAvailable": 1, "numberUnavailable": 3, "observedGeneration": 2})
    );
}

#[test]
fn nodes_are_judged_by_selector_affinity_and_taints() {
    let owner = object(json!({"metadata": {"name": "d", "namespace": "n", "uid": "u"}}));
    let disk =
        |value: &str| json!({"template": {"spec": {"containers": [], "nodeSelector": {"disk": value}}}});
    let node = |taints: &[(&str, &str)]| NodeSpec {
        name: "a".into(),
        labels: [("disk".to_string(), "ssd".to_string())].into(),
        unschedulable: true,
        taints: taints
            .iter()
            .map(|(key, effect)| Taint { key: (*key).into(), value: String::new(), effect: (*effect).into() })
            .collect(),
        ..NodeSpec::default()
    };
    let judge = |spec: Value, wanted: Option<&str>, taints: &[(&str, &str)]| {
        fit(&model_pod(&set(spec), &owner).unwrap(), wanted, &node(taints))
    };
    assert_eq!(judge(disk("ssd"), None, &[]), Fit::Run);
    assert_eq!(judge(disk("hdd"), None, &[]), Fit::No);
    assert_eq!(judge(disk("ssd"), Some("b"), &[]), Fit::No);
    assert_eq!(judge(disk("ssd"), None, &[("mine", "NoSchedule")]), Fit::Stay);
    assert_eq!(judge(disk("ssd"), None, &[("mine", "NoSchedule"), ("mine", "NoExecute")]), Fit::No);
    let borne =
        [("node.kubernetes.io/unschedulable", "NoSchedule"), ("node.kubernetes.io/not-ready", "NoExecute")];
    assert_eq!(judge(disk("ssd"), None, &borne), Fit::Run);
    let network = [("node.kubernetes.io/network-unavailable", "NoSchedule")];
    assert_eq!(judge(disk("ssd"), None, &network), Fit::Stay);
    let host = json!({"template": {"spec": {"containers": [], "hostNetwork": true}}});
    assert_eq!(judge(host, None, &network), Fit::Run);
}
