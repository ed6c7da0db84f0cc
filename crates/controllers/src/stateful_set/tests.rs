//! What a StatefulSet does and reports, on hand-made pods.

use super::decide::{Member, Plan, Revisions, Set, Why, decide, status};
use super::{claim_body, pod_body};
use crate::revision::{HASH_LABEL, Revision};
use crate::testing::{at, object, stamp};
use serde_json::{Value, json};

fn set(mut spec: Value) -> Set {
    spec["selector"] = json!({"matchLabels": {"app": "a"}});
    Set::read(&object(json!({"metadata": {"name": "web", "namespace": "n"}, "spec": spec}))).unwrap()
}

/// `ordinal state revision`, state one of ready, starting, going, failed.
fn member(text: &str) -> Member {
    let words: Vec<&str> = text.split(' ').collect();
    let ready = matches!(words[1], "ready" | "going");
    let mut pod = json!({"metadata": {"name": format!("web-{}", words[0]), "namespace": "n", "uid": words[0],
            "labels": {HASH_LABEL: words[2]}},
        "spec": {"nodeName": "node", "containers": []},
        "status": {"phase": if words[1] == "failed" { "Failed" } else { "Running" }, "conditions": [
            {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": stamp(0)}]}});
    if words[1] == "going" {
        pod["metadata"]["deletionTimestamp"] = json!(stamp(0));
    }
    Member::read("web", &object(pod)).unwrap()
}

fn revisions() -> Revisions {
    Revisions { current: "old".into(), update: "new".into() }
}

/// What is done, as `+0 new` (created) and `-1` (deleted; `--1` scaled away).
fn steps(set: &Set, members: &[&str]) -> String {
    let members: Vec<Member> = members.iter().map(|m| member(m)).collect();
    let Plan { create, delete } = decide(set, &members, &revisions(), at(100));
    let created = create.into_iter().map(|(ordinal, revision)| format!("+{ordinal} {revision}"));
    let deleted =
        delete.into_iter().map(|(o, why)| format!("{}{o}", if why == Why::ScaledAway { "--" } else { "-" }));
    created.chain(deleted).collect::<Vec<_>>().join(", ")
}

#[test]
fn pods_come_in_order_and_go_in_reverse() {
    let three = set(json!({"replicas": 3}));
    assert_eq!(steps(&three, &[]), "+0 new");
    assert_eq!(steps(&three, &["0 starting new"]), "");
    assert_eq!(steps(&three, &["0 ready new"]), "+1 new");
    assert_eq!(steps(&three, &["0 going new", "1 ready new", "2 ready new"]), "");
    assert_eq!(steps(&three, &["0 failed new", "1 ready new", "2 ready new"]), "-0");
    let one = set(json!({"replicas": 1}));
    assert_eq!(steps(&one, &["0 ready new", "1 ready new", "2 ready new"]), "--2");
    assert_eq!(steps(&one, &["0 ready new", "1 ready new", "2 going new"]), "");
    assert_eq!(steps(&one, &["0 ready new", "1 ready new", "2 starting new"]), "--2");
    assert_eq!(steps(&one, &["0 ready new", "1 starting new", "2 starting new"]), "");
    assert_eq!(steps(&one, &["0 starting new", "1 ready new"]), "", "the first one comes first");
    assert_eq!(steps(&set(json!({"replicas": 1, "ordinals": {"start": 5}})), &[]), "+5 new");
}

#[test]
fn parallel_sets_do_all_at_once() {
    let three = set(json!({"replicas": 3, "podManagementPolicy": "Parallel"}));
    assert_eq!(steps(&three, &["1 starting new"]), "+0 new, +2 new");
    assert_eq!(
        steps(&three, &["0 ready new", "1 ready new", "2 ready new", "3 ready new", "4 ready new"]),
        "--4, --3"
    );
}

#[test]
fn updates_roll_from_the_highest_down() {
    let three = set(json!({"replicas": 3}));
    assert_eq!(steps(&three, &["0 ready old", "1 ready old", "2 ready old"]), "-2");
    assert_eq!(steps(&three, &["0 ready old", "1 ready old", "2 going old"]), "");
    assert_eq!(steps(&three, &["0 ready old", "1 ready old"]), "+2 new");
    assert_eq!(steps(&three, &["0 ready old", "1 ready old", "2 starting new"]), "");
    assert_eq!(steps(&three, &["0 ready old", "1 ready old", "2 ready new"]), "-1");
    assert_eq!(steps(&three, &["0 ready new", "1 ready new", "2 ready new"]), "");
    let held = set(json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 2}}}));
    assert_eq!(steps(&held, &["0 ready old", "1 ready old", "2 ready new"]), "");
    assert_eq!(steps(&held, &["0 ready old", "2 ready new"]), "+1 old");
    let manual = set(json!({"replicas": 2, "updateStrategy": {"type": "OnDelete"}}));
    assert_eq!(steps(&manual, &["0 ready old", "1 ready old"]), "");
    assert_eq!(steps(&manual, &["0 ready old"]), "+1 new");
    let slow = set(json!({"replicas": 2, "minReadySeconds": 200}));
    assert_eq!(steps(&slow, &["0 ready new", "1 ready old"]), "", "ready, but not available yet");
}

#[test]
fn several_may_be_down_during_an_update() {
    let rolling = |policy: &str, most: Value| {
        set(
            json!({"replicas": 5, "podManagementPolicy": policy, "updateStrategy": {"rollingUpdate": {"maxUnavailable": most}}}),
        )
    };
    let all = ["0 ready old", "1 ready old", "2 ready old", "3 ready old", "4 ready old"];
    assert_eq!(steps(&rolling("OrderedReady", json!(2)), &all), "-4, -3");
    assert_eq!(steps(&rolling("OrderedReady", json!("50%")), &all), "-4, -3", "rounded down");
    assert_eq!(steps(&rolling("OrderedReady", json!("10%")), &all), "-4", "but one at least");
    let one_down = ["0 ready old", "1 ready old", "2 ready old", "3 ready old", "4 starting new"];
    assert_eq!(steps(&rolling("Parallel", json!(2)), &one_down), "-3");
    assert_eq!(steps(&rolling("OrderedReady", json!(2)), &one_down), "");
    let broken = ["0 ready old", "1 starting old", "2 ready old", "3 ready old", "4 ready old"];
    assert_eq!(
        steps(&rolling("Parallel", json!(1)), &broken),
        "-1",
        "what is down already is replaced first"
    );
    assert_eq!(steps(&rolling("Parallel", json!(2)), &broken), "-4, -1");
}

#[test]
fn claims_belong_to_who_they_go_with() {
    let own = json!({"kind": "StatefulSet", "name": "web", "uid": "s", "controller": true});
    let pod = |uid: &str| json!({"kind": "Pod", "name": "web-1", "uid": uid, "controller": true});
    let of = |deleted: &str, scaled: &str, wanted: bool, now: &[Value]| {
        let set = set(
            json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}}),
        );
        let owners = super::decide::claim_owners(&set, wanted, now, &own, &pod("p"))?;
        Some(owners.iter().map(|o| o["uid"].as_str().unwrap().to_string()).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(of("Retain", "Retain", true, &[]), None);
    assert_eq!(of("Delete", "Retain", true, &[]).unwrap(), "s", "also a claim that was there before");
    assert_eq!(of("Delete", "Retain", true, std::slice::from_ref(&own)), None);
    assert_eq!(of("Retain", "Retain", true, std::slice::from_ref(&own)).unwrap(), "");
    assert_eq!(of("Delete", "Delete", false, std::slice::from_ref(&own)).unwrap(), "p");
    assert_eq!(of("Retain", "Delete", true, &[pod("p")]).unwrap(), "", "it is wanted again");
    assert_eq!(of("Retain", "Delete", false, &[pod("old")]).unwrap(), "p", "the pod of before is another");
    let idle = json!({"kind": "StatefulSet", "name": "web", "uid": "s", "controller": false});
    assert_eq!(of("Delete", "Delete", true, &[idle]).unwrap(), "s", "who owns it controls it");
    let other = json!({"kind": "Thing", "name": "t", "uid": "t", "controller": true});
    assert_eq!(of("Delete", "Delete", true, &[other]), None, "somebody else's");
}

#[test]
fn the_status_moves_to_the_new_revision_when_all_have_it() {
    let report = |members: &[&str]| {
        let members: Vec<Member> = members.iter().map(|m| member(m)).collect();
        status(&set(json!({"replicas": 2})), &members, &revisions(), 4, at(100))
    };
    assert_eq!(
        report(&["0 ready old", "1 starting new"]),
        json!({"replicas": 2, "readyReplicas": 1, "availableReplicas": 1, "currentReplicas": 1, "updatedReplicas": 1,
            "currentRevision": "old", "updateRevision": "new", "collisionCount": 0, "observedGeneration": 4})
    );
    let done = report(&["0 ready new", "1 ready new"]);
    assert_eq!((&done["currentRevision"], &done["currentReplicas"]), (&json!("new"), &json!(2)));
}

#[test]
fn a_pod_has_its_name_and_its_claims() {
    let set = set(json!({"replicas": 1, "serviceName": "web", "volumeClaimTemplates": [
        {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}));
    let owner = object(json!({"metadata": {"name": "web", "namespace": "n", "uid": "u"}}));
    let template = json!({"$patch": "replace", "metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [], "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}});
    let revision = Revision {
        name: "web-x".into(),
        number: 1,
        data: json!({"spec": {"template": template}}),
        hash: "x".into(),
    };
    let body = pod_body(&set, &owner, 3, &revision);
    assert_eq!(body["metadata"]["name"], "web-3");
    assert!(body["metadata"].get("generateName").is_none());
    assert_eq!(
        body["metadata"]["labels"],
        json!({"app": "a", "statefulset.kubernetes.io/pod-name": "web-3",
        "apps.kubernetes.io/pod-index": "3", HASH_LABEL: "web-x"})
    );
    assert_eq!((&body["spec"]["hostname"], &body["spec"]["subdomain"]), (&json!("web-3"), &json!("web")));
    assert_eq!(
        body["spec"]["volumes"],
        json!([{"name": "tmp", "emptyDir": {}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-3"}}])
    );
    let claim = claim_body(&set, &owner, &set.claims[0], "web-3");
    assert_eq!(
        (&claim["metadata"]["name"], &claim["metadata"]["labels"]),
        (&json!("data-web-3"), &json!({"app": "a"}))
    );
    assert_eq!(claim["metadata"]["ownerReferences"][0]["uid"], "u");
}
