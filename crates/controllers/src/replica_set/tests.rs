//! What a set does and reports, on hand-made pods.

use super::*;
use crate::testing::{at, object, stamp};

fn pod(name: &str) -> PodFacts {
    PodFacts {
        key: Some(ObjectKey::new("n", name)),
        uid: name.into(),
        node: "node".into(),
        phase: "Running".into(),
        ready_since: Some(at(0)),
        created: Some(at(0)),
        ..PodFacts::default()
    }
}

fn victims(pods: &[PodFacts], replicas: usize, crowds: &Crowds) -> Vec<String> {
    match decide(replicas, &pods.iter().collect::<Vec<_>>(), crowds, at(1_000)) {
        Step::Delete(list) => list.into_iter().map(|(_, uid)| uid).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn creates_what_is_missing_in_bounds() {
    assert_eq!(decide(3, &[&pod("a")], &Crowds::new(), at(0)), Step::Create(2));
    assert_eq!(decide(1, &[&pod("a")], &Crowds::new(), at(0)), Step::Rest);
    assert_eq!(decide(10_000, &[], &Crowds::new(), at(0)), Step::Create(BURST));
}

#[test]
fn the_cheapest_pods_go_first() {
    let young = PodFacts { created: Some(at(900)), ..pod("a-young") };
    let restarted = PodFacts { restarts: 3, ..pod("b-restarted") };
    let fresh = PodFacts { ready_since: Some(at(950)), ..pod("c-fresh") };
    let crowded = PodFacts { node: "full".into(), ..pod("d-crowded") };
    let cheap = PodFacts { deletion_cost: -1, ..pod("e-cheap") };
    let unready = PodFacts { ready_since: None, ..pod("f-unready") };
    let unknown = PodFacts { phase: "Unknown".into(), ready_since: None, ..pod("g-unknown") };
    let pending = PodFacts { phase: "Pending".into(), ready_since: None, ..pod("h-pending") };
    let unassigned =
        PodFacts { node: String::new(), phase: "Pending".into(), ready_since: None, ..pod("i-unassigned") };
    let dear = PodFacts { deletion_cost: 5, ..pod("j-dear") };
    let pods =
        [dear, pod("k"), young, restarted, fresh, crowded, cheap, unready, unknown, pending, unassigned];
    let crowds = Crowds::from([("full".to_string(), 2), ("node".to_string(), 1)]);
    let order = [
        "i-unassigned",
        "h-pending",
        "g-unknown",
        "f-unready",
        "e-cheap",
        "d-crowded",
        "c-fresh",
        "b-restarted",
        "a-young",
        "k",
        "j-dear",
    ];
    assert_eq!(victims(&pods, 0, &crowds), order);
    assert_eq!(victims(&pods, 9, &crowds), order[..2]);
}

#[test]
fn pods_of_about_the_same_age_are_chosen_by_uid() {
    let pods = [
        PodFacts { ready_since: Some(at(10)), ..pod("b") },
        PodFacts { ready_since: Some(at(20)), ..pod("a") },
    ];
    assert_eq!(victims(&pods, 1, &Crowds::new()), ["a"]);
}

fn set(value: Value) -> Set {
    Set::read(&object(json!({"metadata": {"name": "s", "namespace": "n"}, "spec": value}))).unwrap()
}

#[test]
fn reads_both_kinds_of_selector() {
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let controller = set(json!({"replicas": 2, "selector": {"app": "a"}, "template": {}}));
    assert!(controller.selector.matches(&labels(&[("app", "a")])) && controller.replicas == 2);
    let by_template = set(json!({"template": {"metadata": {"labels": {"app": "b"}}}}));
    assert!(by_template.selector.matches(&labels(&[("app", "b")])) && by_template.replicas == 1);
    assert!(!by_template.selector.matches(&labels(&[("app", "a")])));
    let modern = set(json!({"selector": {"matchLabels": {"app": "a"}}, "template": {}}));
    assert!(modern.selector.matches(&labels(&[("app", "a"), ("x", "y")])));
}

#[test]
fn counts_pods_in_the_status() {
    let set = set(json!({"replicas": 4, "minReadySeconds": 30, "selector": {"matchLabels": {"app": "a"}},
        "template": {"metadata": {"labels": {"app": "a", "v": "1"}}}}));
    let live = |name: &str, labels: Value, ready: Option<i64>, deleting: bool| {
        let conditions: Vec<Value> = ready
            .iter()
            .map(|s| json!({"type": "Ready", "status": "True", "lastTransitionTime": stamp(*s)}))
            .collect();
        let mut pod = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "labels": labels},
            "spec": {"containers": []}, "status": {"phase": "Running", "conditions": conditions}});
        if deleting {
            pod["metadata"]["deletionTimestamp"] = json!(stamp(0));
        }
        let object = object(pod);
        (object.clone(), PodFacts::read(&object))
    };
    let owned = [
        live("a", json!({"app": "a", "v": "1"}), Some(0), false),
        live("b", json!({"app": "a"}), Some(80), false),
        live("c", json!({"app": "a", "v": "1"}), None, false),
        live("d", json!({"app": "a", "v": "1"}), Some(0), true),
    ];
    assert_eq!(
        status(&set, &owned, 3, at(100)),
        json!({"replicas": 3, "fullyLabeledReplicas": 2, "readyReplicas": 2, "availableReplicas": 1,
            "terminatingReplicas": 1, "observedGeneration": 3})
    );
    let next = workload::next_available(owned.iter().map(|(_, f)| f), 30, at(100));
    assert_eq!(next, Some(std::time::Duration::from_secs(10)));
}

#[test]
fn the_first_failure_stays_until_a_success() {
    let error = ApiError::bad_request("quota");
    let first = conditions(&Value::Null, &Step::Create(1), Some(&error), at(0));
    assert_eq!(
        (first[0]["reason"].as_str(), first[0]["message"].as_str()),
        (Some("FailedCreate"), Some("quota"))
    );
    let status = json!({"conditions": first});
    let later = conditions(&status, &Step::Create(1), Some(&ApiError::bad_request("other")), at(9));
    assert_eq!(later[0]["message"], "quota");
    assert!(conditions(&status, &Step::Rest, None, at(9)).is_empty());
}
