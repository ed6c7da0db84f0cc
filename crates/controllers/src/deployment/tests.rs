//! Rollouts on hand-made sets: single steps as transcripts, whole rollouts as properties.

use super::model::{DESIRED, Deployment, MAX, REVISION, Set, hash, split};
use super::rollout::{Plan, decide};
use super::status;
use crate::testing::{at, object, stamp};
use proptest::prelude::*;
use serde_json::{Value, json};

fn template(version: i64) -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": format!("i:{version}")}]}})
}

fn deployment(spec: Value, status: Value) -> Deployment {
    let mut all = json!({"replicas": 3, "selector": {"matchLabels": {"app": "a"}}, "template": template(1)});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    let body = json!({"metadata": {"name": "d", "namespace": "n", "uid": "d", "generation": 1}, "spec": all,
        "status": status});
    Deployment::read(&object(body)).unwrap()
}

/// A set of a version with (replicas, available) pods, made for a Deployment of that size.
fn set(version: i64, replicas: i64, available: i64, desired: i64, most: i64) -> Set {
    Set::read(&object(json!({
        "metadata": {"name": format!("d-{version}"), "namespace": "n", "uid": format!("uid-{version}"), "generation": 1,
            "creationTimestamp": stamp(version), "annotations": {REVISION: version.to_string(),
                DESIRED: desired.to_string(), MAX: most.to_string()}},
        "spec": {"replicas": replicas, "template": template(version)},
        "status": {"replicas": replicas, "readyReplicas": available, "availableReplicas": available,
            "observedGeneration": 1},
    })))
    .unwrap()
}

/// `d-1 3→2` and the like.
fn told(plan: &Plan) -> Vec<String> {
    let created = plan.create.iter().map(|c| format!("new {}", c.replicas));
    let scaled = plan.changes.iter().filter_map(|(key, c)| {
        let (from, to) = c.replicas?;
        Some(format!("{} {from}→{to}", key.name))
    });
    let deleted = plan.delete.iter().map(|(key, _)| format!("delete {}", key.name));
    created.chain(scaled).chain(deleted).collect()
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

#[test]
fn the_first_set_is_made_at_full_size_with_its_notes() {
    let d = deployment(json!({}), Value::Null);
    let plan = decide(&d, &[], false);
    assert_eq!(told(&plan), ["new 3"]);
    let new = plan.create.clone().unwrap();
    let note = |k: &str| new.annotations.get(k).map(String::as_str);
    assert_eq!((note(REVISION), note(DESIRED), note(MAX)), (Some("1"), Some("3"), Some("4")));
    assert_eq!(plan.revision.as_deref(), Some("1"));
    assert_eq!(plan.progress.as_ref().unwrap().1, "NewReplicaSetCreated");
    assert_eq!(new.hash, hash(&d.template, 0));
    assert_ne!(new.hash, hash(&d.template, 1));
}

#[test]
fn a_rolling_update_step_by_step() {
    let d =
        deployment(json!({"template": template(2), "strategy": rolling(json!(1), json!(0))}), Value::Null);
    let steps: [(&[Set], &[&str]); 5] = [
        (&[set(1, 3, 3, 3, 4)], &["new 1"]),
        (&[set(1, 3, 3, 3, 4), set(2, 1, 0, 3, 4)], &[]),
        (&[set(1, 3, 3, 3, 4), set(2, 1, 1, 3, 4)], &["d-1 3→2"]),
        (&[set(1, 2, 2, 3, 4), set(2, 1, 1, 3, 4)], &["d-2 1→2"]),
        (&[set(1, 0, 0, 3, 4), set(2, 3, 3, 3, 4)], &[]),
    ];
    for (sets, expected) in steps {
        assert_eq!(told(&decide(&d, sets, false)), expected);
    }
}

#[test]
fn broken_old_pods_go_first() {
    let d =
        deployment(json!({"template": template(3), "strategy": rolling(json!(1), json!(1))}), Value::Null);
    let sets = [set(1, 2, 2, 3, 4), set(2, 1, 0, 3, 4), set(3, 1, 0, 3, 4)];
    assert_eq!(told(&decide(&d, &sets, false)), ["d-2 1→0"]);
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let d = deployment(json!({"template": template(2), "strategy": {"type": "Recreate"}}), Value::Null);
    assert_eq!(told(&decide(&d, &[set(1, 3, 3, 3, 3)], true)), ["d-1 3→0"]);
    assert!(told(&decide(&d, &[set(1, 0, 0, 3, 3)], true)).is_empty());
    assert_eq!(told(&decide(&d, &[set(1, 0, 0, 3, 3)], false)), ["new 3"]);
}

#[test]
fn scaling_in_the_middle_of_a_rollout_is_in_proportion() {
    let d = deployment(
        json!({"replicas": 20, "template": template(2), "strategy": rolling(json!(5), json!(2))}),
        Value::Null,
    );
    let sets = [set(1, 8, 8, 10, 15), set(2, 7, 2, 10, 15)];
    let plan = decide(&d, &sets, false);
    assert_eq!(told(&plan), ["d-1 8→13", "d-2 7→12"]);
    assert!(!plan.judged);
    let none = deployment(json!({"replicas": 0, "template": template(2)}), Value::Null);
    assert_eq!(told(&decide(&none, &sets, false)), ["d-1 8→0", "d-2 7→0"]);
}

#[test]
fn a_paused_one_scales_and_does_not_roll() {
    let d = deployment(json!({"replicas": 5, "paused": true, "template": template(2)}), Value::Null);
    let plan = decide(&d, &[set(1, 3, 3, 3, 4)], false);
    assert_eq!(told(&plan), ["d-1 3→5"]);
    assert_eq!(plan.progress.unwrap().1, "DeploymentPaused");
    let conditions =
        json!({"conditions": [{"type": "Progressing", "status": "Unknown", "reason": "DeploymentPaused"}]});
    let resumed = decide(&deployment(json!({}), conditions), &[set(1, 3, 3, 3, 4)], false);
    assert_eq!(resumed.progress.unwrap().1, "DeploymentResumed");
}

#[test]
fn a_template_that_comes_back_gets_a_new_revision() {
    let d = deployment(json!({}), Value::Null);
    let plan = decide(&d, &[set(1, 0, 0, 3, 4), set(2, 3, 3, 3, 4)], false);
    let notes = &plan.changes.values().next().unwrap().annotations;
    assert_eq!(notes.get(REVISION).map(String::as_str), Some("3"));
    assert_eq!(notes.get("deployment.kubernetes.io/revision-history").map(String::as_str), Some("1"));
    assert_eq!(plan.revision.as_deref(), Some("3"));
}

#[test]
fn old_sets_beyond_the_limit_go_once_all_is_done() {
    let done = json!({"updatedReplicas": 3, "replicas": 3, "availableReplicas": 3, "observedGeneration": 1});
    let d = deployment(json!({"template": template(4), "revisionHistoryLimit": 1}), done);
    let sets = [set(1, 0, 0, 3, 4), set(2, 0, 0, 3, 4), set(3, 0, 0, 3, 4), set(4, 3, 3, 3, 4)];
    assert_eq!(told(&decide(&d, &sets, false)), ["delete d-1", "delete d-2"]);
    let unlimited =
        deployment(json!({"template": template(4), "revisionHistoryLimit": i32::MAX}), d.status.clone());
    assert!(told(&decide(&unlimited, &sets, false)).is_empty());
}

fn reason<'a>(status: &'a Value, kind: &str) -> &'a str {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|c| c["type"] == kind).map_or("", |c| c["reason"].as_str().unwrap())
}

#[test]
fn progress_is_judged() {
    let spec = json!({"progressDeadlineSeconds": 60});
    let report = |sets: &[Set], old: Value, second: i64| {
        let d = deployment(spec.clone(), old);
        let (new, _) = split(&d, sets);
        status::wanted(&d, sets, new, &decide(&d, sets, false), at(second))
    };
    let starting = [set(1, 3, 0, 3, 4)];
    let first = report(&starting, Value::Null, 0);
    assert_eq!(
        (reason(&first, "Progressing"), reason(&first, "Available")),
        ("ReplicaSetUpdated", "MinimumReplicasUnavailable")
    );
    assert_eq!(first["unavailableReplicas"], 3);
    let same = report(&starting, first.clone(), 60);
    assert_eq!(first["conditions"], same["conditions"], "nothing moved and there is time left");
    let d = deployment(spec.clone(), first.clone());
    assert_eq!(status::deadline_in(&d, &same, at(40)).unwrap().as_secs(), 21);
    let late = report(&starting, same, 61);
    assert_eq!(reason(&late, "Progressing"), "ProgressDeadlineExceeded");
    assert_eq!(status::deadline_in(&d, &late, at(61)), None);
    let done = report(&[set(1, 3, 3, 3, 4)], late, 70);
    assert_eq!(
        (reason(&done, "Progressing"), reason(&done, "Available")),
        ("NewReplicaSetAvailable", "MinimumReplicasAvailable")
    );
    assert_eq!(
        done["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Progressing").unwrap()["message"],
        "ReplicaSet \"d-1\" has successfully progressed."
    );
}

/// Plays a plan on sets: new ones appear, sizes change.
fn play(plan: &Plan, sets: &mut Vec<Set>, version: i64) {
    for (key, change) in &plan.changes {
        let set = sets.iter_mut().find(|s| s.key == *key).unwrap();
        set.annotations.extend(change.annotations.clone());
        if let Some((_, to)) = change.replicas {
            set.replicas = to;
            set.actual = to;
            set.available = set.available.min(to);
        }
    }
    if let Some(new) = &plan.create {
        let mut made = set(version, new.replicas, 0, 0, 0);
        made.annotations = new.annotations.clone();
        sets.push(made);
    }
    sets.retain(|s| plan.delete.iter().all(|(_, uid)| *uid != s.uid));
}

proptest! {
    /// Whatever comes available in whatever order: a rollout keeps within its bounds and ends with all pods new.
    #[test]
    fn rollouts_keep_their_bounds_and_end(
        replicas in 0i64..12, surge in 0i64..5, unavailable in 0i64..5, dice in prop::collection::vec(any::<bool>(), 1..40),
    ) {
        let spec = json!({"replicas": replicas, "template": template(2), "strategy": rolling(json!(surge), json!(unavailable))});
        let d = deployment(spec, Value::Null);
        let most = replicas + d.surge();
        let mut sets = vec![set(1, replicas, replicas, replicas, most)];
        let mut quiet = 0;
        for turn in 0..500 {
            let plan = decide(&d, &sets, false);
            quiet = if told(&plan).is_empty() { quiet + 1 } else { 0 };
            play(&plan, &mut sets, 2);
            let pods: i64 = sets.iter().map(|s| s.replicas).sum();
            let available: i64 = sets.iter().map(|s| s.available).sum();
            prop_assert!(pods <= most, "{pods} pods, at most {most}");
            prop_assert!(available >= replicas - d.unavailable(), "{available} available of {replicas}");
            if dice[turn % dice.len()] || quiet > 3 {
                let new = sets.iter_mut().find(|s| s.key.name.as_ref() == "d-2").filter(|s| s.available < s.replicas);
                if let Some(new) = new {
                    new.available += 1;
                    new.ready = new.available;
                }
            }
            if quiet > 10 {
                break;
            }
        }
        let (new, old) = split(&d, &sets);
        prop_assert_eq!(new.map(|n| (n.replicas, n.available)), Some((replicas, replicas)));
        prop_assert!(old.iter().all(|s| s.replicas == 0));
    }

    /// Scaling in the middle reaches the new size exactly, surge included, and never below zero.
    #[test]
    fn proportional_scaling_adds_up(
        old in 1i64..30, new in 1i64..30, room in 0i64..6, replicas in 0i64..60, surge in 0i64..6,
    ) {
        let before = (old + new - surge + room).max(1);
        prop_assume!(before != replicas);
        let spec = json!({"replicas": replicas, "template": template(2), "strategy": rolling(json!(surge), json!(1))});
        let d = deployment(spec, Value::Null);
        let mut sets = vec![set(1, old, old, before, before + surge), set(2, new, 0, before, before + surge)];
        play(&decide(&d, &sets, false), &mut sets, 2);
        let wanted = if replicas == 0 { 0 } else { replicas + d.surge() };
        prop_assert_eq!(sets.iter().map(|s| s.replicas).sum::<i64>(), wanted);
        prop_assert!(sets.iter().all(|s| s.replicas >= 0));
    }
}
