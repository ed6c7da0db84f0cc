//! Gangs on small clusters, in upstream's words; a try that fails leaves no trace.

use super::*;
use crate::schedule;
use k8s_openapi::api::core::v1 as core;
use proptest::prelude::*;
use serde_json::json;

fn cluster(cpus: &[i64]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (i, cpu) in cpus.iter().enumerate() {
        let node = json!({"metadata": {"name": format!("n{i}"), "labels": {"rack": format!("r{}", i / 2)}},
            "status": {"allocatable": {"cpu": cpu.to_string(), "memory": "64Gi", "pods": "99"}}});
        snapshot.set_node(NodeSpec::read(&serde_json::from_value::<core::Node>(node).unwrap()));
    }
    snapshot
}

fn pod(name: &str, cpu: i64, group: &str, priority: i32) -> Arc<PodInfo> {
    let mut pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": {"priority": priority,
        "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu.to_string()}}}]}});
    if !group.is_empty() {
        pod["spec"]["schedulingGroup"] = json!({"podGroupName": group});
    }
    Arc::new(PodInfo::read(&serde_json::from_value::<core::Pod>(pod).unwrap()))
}

fn gang(snapshot: &mut Snapshot, name: &str, min: i64, key: Option<&str>) {
    let mut group = json!({"spec": {"schedulingPolicy": {"gang": {"minCount": min}}}});
    if let Some(key) = key {
        group["spec"]["schedulingConstraints"] = json!({"topology": [{"key": key}]});
    }
    snapshot.groups.set(("n".into(), name.into()), Some(Group::read(&group, true)));
}

/// "pod→node", "pod: message" and "group? verdict", in the plan's order.
fn run(snapshot: &mut Snapshot, pods: &[Arc<PodInfo>]) -> Vec<String> {
    let plan = schedule(snapshot, pods);
    let mut lines: Vec<String> = plan.bindings.iter().map(|(p, n)| format!("{}→{n}", p.uid)).collect();
    lines.extend(plan.unschedulable.iter().map(|(p, d)| format!("{}: {}", p.uid, d.message())));
    lines.extend(plan.groups.iter().map(|((_, name), v)| format!("{name}? {v:?}")));
    lines
}

#[test]
fn all_or_none() {
    let mut snapshot = cluster(&[2, 1]);
    gang(&mut snapshot, "g", 3, None);
    let pods: Vec<_> = (0..4).map(|i| pod(&format!("g{i}"), 1, "g", 0)).collect();
    let lines = run(&mut snapshot, &pods);
    assert_eq!(
        lines.iter().filter(|l| l.contains('→')).count(),
        3,
        "as many as fit, when three do: {lines:?}"
    );
    assert!(lines[3].starts_with("g3: 0/2 nodes are available: 2 Insufficient cpu."), "{lines:?}");
    assert_eq!(lines[4], "g? Scheduled");
    assert!(
        run(&mut snapshot, &[pod("g4", 1, "g", 0)])[1].contains("Scheduled"),
        "later ones come by themselves"
    );

    let mut snapshot = cluster(&[1, 1]);
    gang(&mut snapshot, "g", 3, None);
    let lines = run(&mut snapshot, &[pods[..3].to_vec(), vec![pod("single", 1, "", -1)]].concat());
    assert!(lines[0].starts_with("single→"), "what the gang cannot use is free for others: {lines:?}");
    let waits = "pod group is unschedulable, waiting for minCount pods from a gang to be scheduled";
    assert_eq!(lines[1..3], [format!("g0: {waits}"), format!("g1: {waits}")]);
    assert!(lines[3].starts_with("g2: 0/2 nodes are available: 2 Insufficient cpu."), "{lines:?}");
    assert_eq!(lines[4], "g? Unschedulable(\"pod group is unschedulable\")");
}

#[test]
fn a_gang_waits_for_its_victims_and_others_are_spared() {
    let mut snapshot = cluster(&[1, 1]);
    snapshot.place("n0", pod("old", 1, "", 0));
    gang(&mut snapshot, "g", 2, None);
    let pods = [pod("a", 1, "g", 5), pod("b", 1, "g", 5)];
    let plan = schedule(&mut snapshot, &pods);
    assert!(plan.bindings.is_empty());
    let found: Vec<_> = plan
        .unschedulable
        .iter()
        .map(|(p, d)| match &d.rescue {
            Rescue::Found(f) => (p.uid.as_str(), f.node.as_str(), f.victims.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(found, [("a", "n1", 0), ("b", "n0", 1)]);
    assert_eq!(plan.unschedulable[0].1.message(), WAITS);
    // While the victim leaves, the promises stay; then the gang goes where it was promised.
    let lines = run(&mut snapshot, &pods);
    assert!(lines[1].ends_with("not eligible due to a terminating pod on the nominated node."), "{lines:?}");
    assert_eq!(snapshot.nominated_node(&("n".into(), "a".into())), Some("n1"));
    snapshot.remove_pod(&("n".into(), "old".into()));
    assert_eq!(run(&mut snapshot, &pods), ["a→n1", "b→n0", "g? Scheduled"]);

    // Nobody is pushed out for a gang that fits all the same nowhere.
    let mut snapshot = cluster(&[1, 1]);
    snapshot.place("n0", pod("old", 1, "", 0));
    gang(&mut snapshot, "g", 3, None);
    let plan = schedule(&mut snapshot, &[pods.to_vec(), vec![pod("c", 1, "g", 5)]].concat());
    assert!(plan.unschedulable.iter().all(|(_, d)| !matches!(d.rescue, Rescue::Found(_))));
    assert_eq!(snapshot.place_of(&("n".into(), "old".into())), Some("n0"));
}

#[test]
fn a_group_stays_in_one_domain() {
    let mut snapshot = cluster(&[3, 1, 2, 2, 1, 1]);
    gang(&mut snapshot, "g", 4, Some("rack"));
    snapshot.place("n0", pod("big", 2, "", 9));
    let pods: Vec<_> = (0..4).map(|i| pod(&format!("g{i}"), 1, "g", 0)).collect();
    let lines = run(&mut snapshot, &pods);
    assert!(lines[..4].iter().all(|l| l.ends_with("n2") || l.ends_with("n3")), "{lines:?}");
    // A fifth one belongs there too, where there is no room.
    let lines = run(&mut snapshot, &[pod("g4", 1, "g", 0)]);
    assert!(lines[0].starts_with("g4: 0/2 nodes are available: 2 Insufficient cpu."), "{lines:?}");
    let mut snapshot = cluster(&[1, 1, 1]);
    gang(&mut snapshot, "g", 3, Some("rack"));
    let lines = run(&mut snapshot, &pods);
    assert_eq!(
        lines.last().unwrap(),
        "g? Unschedulable(\"0/2 placements are available, first placement status: pod group is unschedulable\")"
    );
    let mut other = json!({"metadata": {"name": "x", "namespace": "n"}, "spec": {"schedulerName": "density-scheduler",
        "schedulingGroup": {"podGroupName": "g"}, "containers": []}});
    other["metadata"]["uid"] = json!("x");
    let other = Arc::new(PodInfo::read(&serde_json::from_value::<core::Pod>(other).unwrap()));
    let lines = run(&mut snapshot, &[pods[0].clone(), other]);
    assert!(lines[2].contains("should have the same .spec.schedulerName set"), "{lines:?}");
}

/// What can be seen of a snapshot.
fn seen(snapshot: &Snapshot) -> String {
    let nodes: Vec<_> =
        snapshot.nodes().map(|(s, n)| (&s.name, n.pods.keys().collect::<Vec<_>>(), &n.requested)).collect();
    format!("{nodes:?} {:?} {:?} {:?}", snapshot.nominations, snapshot.groups, snapshot.next)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A try is all there or not there at all; the gang's fate is that of a dumb twin that counts free places.
    #[test]
    fn a_try_leaves_no_trace(
        cpus in proptest::collection::vec(0i64..4, 1..5),
        there in proptest::collection::vec((0usize..4, 0i32..3), 0..6),
        (members, min) in (1i64..6).prop_flat_map(|n| (Just(n), 1..=n)),
    ) {
        let mut snapshot = cluster(&cpus);
        for (i, (node, priority)) in there.iter().enumerate() {
            let node = node % cpus.len();
            let used = there[..i].iter().filter(|(n, _)| n % cpus.len() == node).count() as i64;
            if used < cpus[node] {
                snapshot.place(&format!("n{node}"), pod(&format!("t{i}"), 1, "", *priority));
            }
        }
        gang(&mut snapshot, "g", min, None);
        let pods: Vec<_> = (0..members).map(|i| pod(&format!("g{i}"), 1, "g", 1)).collect();
        let placed = |s: &Snapshot, less: i32| s.nodes().flat_map(|(_, n)| n.pods.values().map(|p| p.priority).collect::<Vec<_>>()).filter(|p| *p >= less).count() as i64;
        let (free, with_victims) = (cpus.iter().sum::<i64>() - placed(&snapshot, 0), cpus.iter().sum::<i64>() - placed(&snapshot, 1));
        let refs: Vec<&Arc<PodInfo>> = pods.iter().collect();
        let before = seen(&snapshot);
        let Ok(tried) = attempt(&mut snapshot, &("n".into(), "g".into()), &refs) else { panic!("nobody is to be asked") };
        take_back(&mut snapshot, tried);
        prop_assert_eq!(&seen(&snapshot), &before);
        let plan = schedule(&mut snapshot, &pods);
        let expected = match () {
            () if free >= members || (free >= min && with_victims == free) => Verdict::Scheduled,
            () if with_victims >= min => Verdict::Unschedulable(WAITS.into()),
            () => Verdict::Unschedulable(UNSCHEDULABLE.into()),
        };
        prop_assert_eq!(&plan.groups[0].1, &expected);
        prop_assert_eq!(plan.bindings.is_empty(), expected != Verdict::Scheduled);
    }
}
