//! Placements and diagnoses on small clusters, and a dumb twin on random ones.

use super::*;
use crate::model::NodeSpec;
use crate::profile::Profiles;
use k8s_openapi::api::core::v1 as core;
use proptest::prelude::*;
use serde_json::{Value, json};

fn node(name: &str, cpu: &str, more: Value) -> NodeSpec {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": &name[..1]}},
        "spec": {}, "status": {"allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "10"}},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        node["spec"][key] = value.clone();
    }
    NodeSpec::read(&serde_json::from_value::<core::Node>(node).unwrap())
}

fn pod(name: &str, cpu: &str, more: Value) -> Arc<PodInfo> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    Arc::new(PodInfo::read(&serde_json::from_value::<core::Pod>(pod).unwrap()))
}

fn cluster(nodes: &[NodeSpec]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node(node.clone());
    }
    snapshot
}

/// "pod→node" for placed pods, the message for the others.
fn run(snapshot: &mut Snapshot, pods: &[Arc<PodInfo>]) -> Vec<String> {
    let plan = schedule(snapshot, pods);
    let name = |p: &PodInfo| p.id.as_ref().unwrap().1.to_string();
    let mut lines: Vec<String> = plan.bindings.iter().map(|(p, n)| format!("{}→{n}", name(p))).collect();
    lines.extend(plan.unschedulable.iter().map(|(p, d)| format!("{}: {}", name(p), d.message())));
    lines
}

#[test]
fn replicas_spread_and_the_full_node_is_named() {
    let mut snapshot = cluster(&[node("a", "1", json!({})), node("b", "1", json!({}))]);
    let pods: Vec<_> = (0..3).map(|i| pod(&format!("p{i}"), "800m", json!({}))).collect();
    let lines = run(&mut snapshot, &pods);
    assert!(
        lines[..2].iter().any(|l| l.ends_with("→a")) && lines[..2].iter().any(|l| l.ends_with("→b")),
        "{lines:?}"
    );
    assert_eq!(
        lines[2],
        "p2: 0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: 2 No preemption \
         victims found for incoming pod."
    );
}

#[test]
fn every_filter_speaks_upstreams_words() {
    let taint = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
    let mut snapshot = cluster(&[
        node("a", "1", taint),
        node("b", "1", json!({"unschedulable": true})),
        node("c", "1", json!({})),
    ]);
    let lines = run(&mut snapshot, &[pod("p", "1", json!({"nodeSelector": {"disk": "ssd"}}))]);
    assert!(
        lines[0].starts_with(
            "p: 0/3 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had \
             untolerated taint(s), 1 node(s) were unschedulable."
        ),
        "{lines:?}"
    );
    assert_eq!(
        run(&mut cluster(&[]), &[pod("p", "1", json!({}))]),
        ["p: no nodes available to schedule pods"]
    );
    let port = json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
    let mut snapshot = cluster(&[node("a", "1", json!({}))]);
    let lines = run(&mut snapshot, &[pod("p", "0", port.clone()), pod("q", "0", port)]);
    assert_eq!(lines[0], "p→a");
    assert!(lines[1].contains("1 node(s) didn't have free ports for the requested pod ports"), "{lines:?}");
}

#[test]
fn tolerations_and_affinity_open_nodes() {
    let taint = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
    let mut snapshot = cluster(&[node("a", "1", taint), node("b", "1", json!({}))]);
    let wants_a = json!({
        "tolerations": [{"key": "k", "operator": "Equal", "value": "v"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}]}}},
    });
    assert_eq!(run(&mut snapshot, &[pod("p", "1", wants_a)]), ["p→a"]);
}

#[test]
fn pods_keep_apart_and_together() {
    let term =
        json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let apart =
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let together =
        json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}});
    let mut snapshot = cluster(&[node("a", "4", json!({})), node("b", "4", json!({}))]);
    let lines = run(
        &mut snapshot,
        &[pod("p", "0", apart.clone()), pod("q", "0", apart.clone()), pod("r", "0", apart)],
    );
    assert_ne!(lines[0].chars().last(), lines[1].chars().last());
    assert!(lines[2].contains("2 node(s) didn't match pod anti-affinity rules"), "{lines:?}");
    let mut snapshot = cluster(&[node("a", "4", json!({})), node("b", "4", json!({}))]);
    let lines = run(&mut snapshot, &[pod("p", "0", together.clone()), pod("q", "0", together)]);
    assert_eq!(lines[0].chars().last(), lines[1].chars().last());
}

#[test]
fn nodes_declare_what_a_pod_needs() {
    let all =
        json!({"containers": [{"name": "c", "restartPolicyRules": [{"action": "RestartAllContainers"}]}]});
    let mut able = node("b", "1", json!({}));
    able.features = ["RestartAllContainersOnContainerExits".to_string()].into();
    let mut snapshot = cluster(&[node("a", "1", json!({}))]);
    let lines = run(&mut snapshot, &[pod("p", "0", all.clone())]);
    assert!(
        lines[0].starts_with("p: 0/1 nodes are available: 1 node(s) didn't match Pod's required features."),
        "{lines:?}"
    );
    snapshot.set_node(able);
    assert_eq!(run(&mut snapshot, &[pod("p", "0", all)]), ["p→b"]);
}

#[test]
fn namespaces_are_chosen_by_their_labels() {
    let term = |selector: Value| {
        json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
            "topologyKey": "kubernetes.io/hostname", "labelSelector": {}, "namespaceSelector": selector}]}}})
    };
    let team = |t: &str| [("team".to_string(), t.to_string())].into();
    let fits = |snapshot: &mut Snapshot, selector: Value| {
        let asks = pod("p", "0", term(selector));
        let fits = run(snapshot, &[asks])[0] == "p→a";
        snapshot.remove_pod(&("default".into(), "p".into()));
        fits
    };
    let mut snapshot = cluster(&[node("a", "4", json!({}))]);
    snapshot.place("a", pod("there", "0", json!({})));
    for (selector, expected) in [
        (json!({}), [false, false, false]),
        (json!({"matchLabels": {"team": "x"}}), [true, false, true]),
        (json!({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}), [false, true, false]),
    ] {
        assert_eq!(fits(&mut snapshot, selector.clone()), expected[0], "nothing is known of it");
        snapshot.set_namespace("default", Some(team("x")));
        assert_eq!(fits(&mut snapshot, selector.clone()), expected[1]);
        snapshot.set_namespace("default", None);
        assert_eq!(fits(&mut snapshot, selector), expected[2]);
    }
}

#[test]
fn spread_counts_domains() {
    let even = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
    let mut snapshot = cluster(&[node("a", "100m", json!({})), node("b", "4", json!({}))]);
    let pods: Vec<_> = (0..4).map(|i| pod(&format!("p{i}"), "50m", even.clone())).collect();
    assert_eq!(run(&mut snapshot, &pods).iter().filter(|l| l.ends_with("→a")).count(), 2);
    let lines = run(&mut snapshot, &[pod("p5", "50m", even.clone()), pod("p6", "50m", even)]);
    assert_eq!(lines[0], "p5→b");
    assert!(lines[1].contains("1 Insufficient cpu, 1 node(s) didn't match pod topology spread"), "{lines:?}");
}

#[test]
fn init_containers_count_by_their_peak() {
    let spec: core::PodSpec = serde_json::from_value(json!({
        "initContainers": [
            {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
            {"name": "big", "resources": {"requests": {"cpu": "2"}}}],
        "containers": [{"name": "a", "resources": {"requests": {"cpu": "300m", "memory": "1Gi"}}}],
        "overhead": {"cpu": "10m"},
    }))
    .unwrap();
    let requests = crate::resources::of_pod(&spec, crate::resources::Basis::Asked);
    assert_eq!((requests.milli_cpu, requests.memory_bytes), (2_110, 1 << 30));
}

proptest! {
    /// Whatever comes: no node is overcommitted, every pod is decided, and a pod is refused only if no node had
    /// room for it at the end (later placements only take room away).
    #[test]
    fn never_overcommits_and_never_refuses_what_fits(
        nodes in proptest::collection::vec(100i64..2000, 1..6),
        pods in proptest::collection::vec(0i64..1500, 1..30),
    ) {
        let names: Vec<String> = (0..nodes.len()).map(|i| format!("n{i}")).collect();
        let specs: Vec<NodeSpec> = names.iter().zip(&nodes).map(|(n, c)| node(n, &format!("{c}m"), json!({}))).collect();
        let mut snapshot = cluster(&specs);
        let waiting: Vec<_> = pods.iter().enumerate().map(|(i, c)| pod(&format!("p{i}"), &format!("{c}m"), json!({}))).collect();
        let plan = schedule(&mut snapshot, &waiting);
        prop_assert_eq!(plan.bindings.len() + plan.unschedulable.len(), pods.len());
        let mut free: BTreeMap<String, (i64, i64)> = names.iter().cloned().zip(nodes.iter().map(|c| (*c, 10))).collect();
        for (pod, node) in &plan.bindings {
            let left = free.get_mut(node).unwrap();
            left.0 -= pod.requests.milli_cpu;
            left.1 -= 1;
            prop_assert!(left.0 >= 0 && left.1 >= 0);
        }
        let replay: Vec<_> = {
            let mut snapshot = cluster(&specs);
            schedule(&mut snapshot, &waiting).bindings.into_iter().map(|(p, n)| (p.id.clone(), n)).collect()
        };
        let first: Vec<_> = plan.bindings.iter().map(|(p, n)| (p.id.clone(), n.clone())).collect();
        prop_assert_eq!(replay, first);
        for (pod, _) in &plan.unschedulable {
            let fits = free.values().any(|(cpu, slots)| *cpu >= pod.requests.milli_cpu.max(0) && *slots > 0);
            prop_assert!(!fits || pod.requests.milli_cpu == 0);
        }
    }
}

#[test]
fn density_fills_nodes_one_after_the_other() {
    let nodes: Vec<NodeSpec> = ["a", "b", "c"].iter().map(|n| node(n, "1", json!({}))).collect();
    let pods: Vec<_> = (0..6).map(|i| pod(&format!("p{i}"), "300m", json!({}))).collect();
    let used = |profiles| {
        let mut snapshot = cluster(&nodes);
        snapshot.profiles = profiles;
        let plan = schedule(&mut snapshot, &pods);
        plan.bindings.iter().map(|(_, n)| n.clone()).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!((used(Profiles::default()), used(Profiles::density())), (3, 2));
}

#[test]
fn an_explanation_agrees_with_the_decision() {
    let taint = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
    let mut snapshot =
        cluster(&[node("a", "1", json!({})), node("b", "2", json!({})), node("c", "100m", taint)]);
    let pod = pod("p", "500m", json!({}));
    let told = crate::explain(&snapshot, &pod);
    let best = &told.nodes[0];
    assert_eq!(best.points.len(), told.scores.len());
    assert!(best.points.iter().sum::<i64>() >= told.nodes[1].points.iter().sum());
    let reasons = |name: &str| told.nodes.iter().find(|v| v.node == name).unwrap().objections.clone();
    let words = vec![
        ("TaintToleration", vec!["node(s) had untolerated taint(s)".to_string()]),
        ("NodeResourcesFit", vec!["Insufficient cpu".to_string()]),
    ];
    assert_eq!((reasons("a"), reasons("c")), (vec![], words));
    assert_eq!(run(&mut snapshot, &[pod]), [format!("p→{}", best.node)]);
}

/// Rules of one of several kinds of pods.
fn ruled(kind: usize) -> Value {
    let term = |key: &str| json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}});
    let (required, preferred) =
        ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution");
    let soft = json!([{"weight": 7, "podAffinityTerm": term("zone")}]);
    match kind {
        0 => json!({}),
        1 => json!({"affinity": {"podAntiAffinity": {required: [term("kubernetes.io/hostname")]}}}),
        2 => json!({"affinity": {"podAffinity": {required: [term("zone")]}}}),
        3 => json!({"affinity": {"podAntiAffinity": {preferred: soft}}}),
        4 => json!({"affinity": {"podAffinity": {preferred: soft}}}),
        _ => json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": if kind == 5 { "DoNotSchedule" } else { "ScheduleAnyway" },
            "labelSelector": {"matchLabels": {"app": "web"}}}]}),
    }
}

proptest! {
    /// What is kept from pod to pod decides as what is counted anew for each pod, whatever comes and goes meanwhile.
    #[test]
    fn kept_counts_decide_as_fresh_ones(
        nodes in proptest::collection::vec(300i64..2000, 1..6),
        steps in proptest::collection::vec((0usize..7, 0usize..5, 1i64..3), 1..30),
    ) {
        let specs: Vec<NodeSpec> = nodes.iter().enumerate()
            .map(|(i, c)| node(["a1", "a2", "b1", "b2", "c1"][i], &format!("{c}m"), json!({}))).collect();
        let (mut kept, mut fresh) = (cluster(&specs), cluster(&specs));
        let mut placed: Vec<PodId> = Vec::new();
        for (i, (kind, what, cpu)) in steps.into_iter().enumerate() {
            match what {
                0 if !placed.is_empty() => {
                    let id = placed.remove(i % placed.len());
                    kept.remove_pod(&id);
                    fresh.remove_pod(&id);
                }
                1 => {
                    let mut spec = specs[i % specs.len()].clone();
                    spec.labels.insert("zone".into(), ["a", "b"][kind % 2].into());
                    kept.set_node(spec.clone());
                    fresh.set_node(spec);
                }
                _ => {
                    let pod = pod(&format!("p{i}"), &format!("{}m", cpu * 100), ruled(kind));
                    fresh.contexts.clear();
                    fresh.kinds = crate::ratings::Kinds::default();
                    let plan = schedule(&mut kept, std::slice::from_ref(&pod));
                    let told = |p: &Plan| (p.bindings.first().map(|(_, n)| n.clone()), p.unschedulable.first().map(|(_, d)| d.message()));
                    prop_assert_eq!(told(&plan), told(&schedule(&mut fresh, std::slice::from_ref(&pod))));
                    placed.extend(plan.bindings.into_iter().filter_map(|(p, _)| p.id.clone()));
                }
            }
        }
    }
}

#[test]
fn a_large_cluster_is_looked_at_in_turns() {
    let nodes: Vec<NodeSpec> = (0..400).map(|i| node(&format!("n{i:03}"), "1", json!({}))).collect();
    let mut snapshot = cluster(&nodes);
    let pods: Vec<_> = (0..400).map(|i| pod(&format!("p{i}"), "900m", json!({}))).collect();
    let plan = schedule(&mut snapshot, &pods);
    assert_eq!(plan.bindings.len(), 400, "every node gets its turn");
    let daemon = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n007"]}]}]}}}});
    assert_eq!(run(&mut snapshot, &[pod("d", "50m", daemon.clone())]), ["d→n007"]);
    let refused = run(&mut snapshot, &[pod("e", "900m", daemon)]);
    assert!(
        refused[0].starts_with(
            "e: 0/400 nodes are available: 1 Insufficient cpu, 399 node(s) didn't match Pod's node affinity/selector."
        ),
        "{refused:?}"
    );
}
