//! Files that are good and what they do; files that are not.

use super::*;
use crate::{NodeSpec, PodInfo, Snapshot, schedule};
use k8s_openapi::api::core::v1 as core;
use serde_json::json;
use std::sync::Arc;

fn file(rest: &str) -> String {
    format!("apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n{rest}")
}

fn node(name: &str, labels: Value) -> NodeSpec {
    let node = json!({"metadata": {"name": name, "labels": labels},
        "status": {"allocatable": {"cpu": "1", "memory": "4Gi", "pods": "10", "x.io/d": "4"}}});
    NodeSpec::read(&serde_json::from_value::<core::Node>(node).unwrap())
}

fn pod(name: &str, scheduler: &str, resource: &str) -> core::Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "n", "ownerReferences": [
            {"apiVersion": "v1", "kind": "K", "name": "o", "uid": "o", "controller": true}]},
        "spec": {"schedulerName": scheduler, "priority": 5,
            "containers": [{"name": "c", "resources": {"requests": {resource: if resource == "cpu" { "300m" } else { "1" }}}}]},
    }))
    .unwrap()
}

/// How many pods each node gets, by name; what is said of the last one that fits nowhere.
fn spread_of(text: &str, scheduler: &str, resource: &str, pods: usize) -> (Vec<usize>, String) {
    let mut snapshot = Snapshot::default();
    snapshot.profiles = read(text.as_bytes()).unwrap().profiles;
    for name in ["a", "b", "c"] {
        snapshot.set_node(node(name, json!({"zone": if name == "c" { "z" } else { "y" }})));
    }
    let infos: Vec<_> = (0..pods)
        .map(|i| {
            Arc::new(
                PodInfo::read(&pod(&format!("p{i}"), scheduler, resource)).with_defaults(&snapshot.profiles),
            )
        })
        .collect();
    let plan = schedule(&mut snapshot, &infos);
    let of = |name: &str| plan.bindings.iter().filter(|(_, n)| n == name).count();
    (
        ["a", "b", "c"].map(of).to_vec(),
        plan.unschedulable.last().map(|(_, d)| d.message()).unwrap_or_default(),
    )
}

fn sorted(mut counts: Vec<usize>) -> Vec<usize> {
    counts.sort_unstable();
    counts
}

#[test]
fn profiles_by_scheduler_name() {
    let text = file(
        "parallelism: 9\npodMaxBackoffSeconds: 60\nprofiles:\n- {}\n- schedulerName: full\n  plugins:\n    score:\n      \
         disabled: [{name: '*'}]\n      enabled: [{name: NodeResourcesFit, weight: 3}]\n  pluginConfig:\n  - name: \
         NodeResourcesFit\n    args: {scoringStrategy: {type: MostAllocated}}\n",
    );
    let read = read(text.as_bytes()).unwrap();
    assert_eq!((read.ignored.as_slice(), read.pause.1.as_secs()), (&["parallelism"][..], 60));
    assert!(
        ["default-scheduler", "full", "density-scheduler"].iter().all(|n| read.profiles.named(n).is_some())
    );
    assert!(read.profiles.named("other").is_none());
    for (scheduler, counts) in [("", [1, 1, 1]), ("full", [0, 0, 3]), ("density-scheduler", [0, 0, 3])] {
        assert_eq!(sorted(spread_of(&text, scheduler, "cpu", 3).0), counts, "{scheduler}");
    }
}

#[test]
fn arguments_take_effect() {
    let with = |name: &str, args: Value| {
        json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "profiles": [{"plugins": {}, "pluginConfig": [{"name": name, "args": args}]}]})
        .to_string()
    };
    let ratio = json!({"scoringStrategy": {"type": "RequestedToCapacityRatio", "resources": [{"name": "x.io/d", "weight": 5}],
        "requestedToCapacityRatio": {"shape": [{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]}}});
    let mut text = with("NodeResourcesFit", ratio);
    assert_eq!(sorted(spread_of(&text, "", "x.io/d", 3).0), [1, 1, 1], "replicas keep apart all the same");
    text =
        text.replace("\"plugins\":{}", r#""plugins":{"score":{"disabled":[{"name":"PodTopologySpread"}]}}"#);
    assert_eq!(sorted(spread_of(&text, "", "x.io/d", 3).0), [0, 0, 3]);
    let ignored = with("NodeResourcesFit", json!({"ignoredResourceGroups": ["y.io"]}));
    assert_eq!(spread_of(&ignored, "", "y.io/k", 3).1, "");
    let added = json!({"addedAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["z"]}]}]}}});
    let (counts, message) = spread_of(&with("NodeAffinity", added), "", "cpu", 4);
    assert_eq!(counts, [0, 0, 3]);
    assert!(message.contains("2 node(s) didn't match scheduler-enforced node affinity"), "{message}");
    let constraints = json!({"defaultingType": "List", "defaultConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]});
    let (counts, message) = spread_of(&with("PodTopologySpread", constraints), "", "cpu", 8);
    assert_eq!((counts[2], counts[0] + counts[1]), (3, 4));
    assert!(message.contains("2 node(s) didn't match pod topology spread constraints"), "{message}");
}

#[test]
fn plugins_are_switched() {
    let off = file(
        "profiles: [{plugins: {multiPoint: {disabled: [{name: NodeResourcesFit}, {name: DefaultPreemption}]}}}]",
    );
    assert_eq!(spread_of(&off, "", "cpu", 20).0.iter().sum::<usize>(), 20, "nothing is full then");
    let off = file("profiles: [{plugins: {postFilter: {disabled: [{name: '*'}]}}}]");
    assert_eq!(spread_of(&off, "", "cpu", 10).1, "0/3 nodes are available: 3 Insufficient cpu.");
}

#[test]
fn bad_files_are_refused() {
    for (rest, words) in [
        ("profiles: [{}, {}]", "profiles[1].schedulerName: Duplicate value: \"default-scheduler\""),
        (
            "percentageOfNodesToScore: 101",
            "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
        ),
        ("podInitialBackoffSeconds: 0", "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0"),
        ("podMaxBackoffSeconds: 1\npodInitialBackoffSeconds: 2", "podMaxBackoffSeconds: Invalid value: 1"),
        (
            "profiles: [{plugins: {score: {enabled: [{name: Nope}]}}}]",
            "plugins.score: \"Nope\" does not exist",
        ),
        ("profiles: [{plugins: {nope: {}}}]", "plugins: unknown field \"nope\""),
        (
            "profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: Odd}}}]}]",
            "scoringStrategy.type: Unsupported value: \"Odd\"",
        ),
        (
            "profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {scoringStrategy: {type: RequestedToCapacityRatio}}}]}]",
            "shape: Required value",
        ),
        (
            "profiles: [{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 101}}]}]",
            "hardPodAffinityWeight: Invalid value: 101",
        ),
        ("nonsense: 1", "unknown field `nonsense`"),
    ] {
        let error = read(file(rest).as_bytes()).unwrap_err();
        assert!(error.contains(words), "{rest}: {error}");
    }
    assert!(
        read(b"kind: Pod\napiVersion: v1").unwrap_err().contains("v1/Pod is no KubeSchedulerConfiguration")
    );
}
