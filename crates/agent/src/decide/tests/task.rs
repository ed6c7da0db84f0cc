//! Pods of ECS tasks on the same virtual time.

use super::*;

/// A task's pod: each container with its note.
fn task(containers: &[(&str, Value)]) -> World {
    let list: Vec<Value> = containers
        .iter()
        .map(|(name, note)| {
            let mut spec = json!({"name": name, "image": "i"});
            if note["health"] == true {
                spec["readinessProbe"] =
                    json!({"exec": {"command": ["x"]}, "periodSeconds": 5, "failureThreshold": 2});
            }
            spec
        })
        .collect();
    let notes: serde_json::Map<String, Value> = containers
        .iter()
        .map(|(name, note)| {
            let mut note = note.clone();
            note.as_object_mut().unwrap().remove("health");
            (name.to_string(), note)
        })
        .collect();
    let text = json!({"version": 1, "containers": notes}).to_string();
    World::new(pod_from(json!({
        "metadata": {"namespace": "n", "name": "p", "uid": "u", "generation": 1,
            "annotations": {"ecs.gantry.dev/task": text}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 60, "containers": list},
    })))
}

fn after_other(other: &str, condition: &str) -> Value {
    json!({"dependsOn": [{"container": other, "condition": condition}]})
}

/// What happened, without the events.
fn deeds(world: &mut World, until: i64) -> Vec<String> {
    world.until(until).into_iter().filter(|line| !line.contains(" event ")).collect()
}

#[test]
fn an_essential_end_stops_the_others_in_their_own_time() {
    let slow = json!({"essential": false, "stopTimeout": 4});
    let mut world =
        task(&[("a", json!({})), ("b", slow), ("c", json!({"essential": false}))]).runs("a", &[(5, 3)]);
    world.stubborn.push("b".into());
    world.stubborn.push("c".into());
    assert_eq!(
        deeds(&mut world, 60),
        [
            "  0 sandbox",
            "  0 start a#0",
            "  0 start b#0",
            "  0 start c#0",
            "  5 a exits 3",
            "  5 Stop b",
            "  5 Stop c",
            "  9 Kill b",
            "  9 b exits 137",
            " 35 Kill c",
            " 35 c exits 137",
            " 35 teardown",
        ]
    );
    assert_eq!(world.status()["phase"], "Failed");
}

#[test]
fn the_end_of_one_that_is_not_essential_ends_nothing() {
    let mut world = task(&[("a", json!({})), ("b", json!({"essential": false}))]).runs("b", &[(2, 1)]);
    assert_eq!(deeds(&mut world, 50)[3..], ["  2 b exits 1"]);
    assert_eq!(world.status()["phase"], "Running");
}

#[test]
fn starts_wait_for_their_conditions_and_stops_go_backwards() {
    let mut web = after_other("init", "SUCCESS");
    web["dependsOn"].as_array_mut().unwrap().push(json!({"container": "db", "condition": "HEALTHY"}));
    let init = json!({"essential": false});
    let mut world =
        task(&[("web", web), ("init", init), ("db", json!({"health": true}))]).runs("init", &[(2, 0)]);
    world.quiet_probes = true;
    world.probes.insert(("db".into(), ProbeKind::Readiness), [false, true].into());
    assert_eq!(
        deeds(&mut world, 20),
        ["  0 sandbox", "  0 start init#0", "  0 start db#0", "  2 init exits 0", "  5 start web#0"]
    );
    world.stubborn.push("web".into());
    world.delete(60);
    assert_eq!(
        deeds(&mut world, 90),
        [
            " 20 Stop web",
            " 50 Kill web",
            " 50 web exits 137",
            " 50 Stop db",
            " 50 db exits 0",
            " 50 teardown",
            " 50 finalize"
        ]
    );
}

#[test]
fn a_dependency_that_cannot_be_met_ends_the_task() {
    let mut world = task(&[("web", after_other("init", "SUCCESS")), ("init", json!({"essential": false}))]);
    world = world.runs("init", &[(2, 1)]);
    assert_eq!(
        deeds(&mut world, 20),
        ["  0 sandbox", "  0 start init#0", "  2 init exits 1", "  2 teardown"]
    );
    let web = world.status()["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!(web["reason"], "DependencyError");
    assert_eq!(world.status()["phase"], "Failed");
    // And one that takes longer than its startTimeout.
    let slow = json!({"essential": false, "startTimeout": 7, "health": true});
    let mut world = task(&[("web", after_other("db", "HEALTHY")), ("db", slow)]);
    world.quiet_probes = true;
    world.probes.insert(("db".into(), ProbeKind::Readiness), [false].into());
    assert_eq!(
        deeds(&mut world, 20),
        ["  0 sandbox", "  0 start db#0", "  7 Stop db", "  7 db exits 0", "  7 teardown"]
    );
}

#[test]
fn restarts_by_its_own_policy_only() {
    let policy = json!({"restart": {"ignoredExitCodes": [4], "attemptPeriod": 60}});
    let runs = [(60, 1), (70, 2), (90, 4)];
    let mut world = task(&[("a", policy.clone())]).runs("a", &runs);
    assert_eq!(
        deeds(&mut world, 500),
        [
            "  0 sandbox",
            "  0 start a#0",
            " 60 a exits 1",
            " 60 start a#1",
            "130 a exits 2",
            "130 start a#2",
            "220 a exits 4",
            "220 teardown",
        ]
    );
    let mut world = task(&[("a", policy)]).runs("a", &[(59, 1)]);
    assert_eq!(deeds(&mut world, 500)[2..], [" 59 a exits 1", " 59 teardown"]);
}

#[test]
fn an_image_that_cannot_be_had_ends_the_task_at_once() {
    let mut world = task(&[("a", json!({})), ("b", json!({}))]);
    let failure = StartFailure { step: StartStep::Image, reason: "ErrImagePull", message: "gone".into() };
    world.start_failures.insert("a".into(), [failure].into());
    assert_eq!(
        deeds(&mut world, 20),
        ["  0 sandbox", "  0 start a#0", "  0 start b#0", "  0 Stop b", "  0 b exits 0", "  0 teardown"]
    );
    let ended = world.status()["containerStatuses"][0].clone();
    assert_eq!(ended["state"]["terminated"]["reason"], "ErrImagePull");
    assert_eq!(ended["state"]["terminated"]["message"], "gone");
    assert!(ended["containerID"].is_null(), "{ended}");
}

#[test]
fn volumes_that_cannot_be_mounted_end_the_task() {
    let mut world = task(&[("a", json!({}))]);
    let input = |world: &World| Input {
        pod: Box::leak(Box::new(world.pod.clone())),
        present: true,
        node_down: false,
        now: world.now,
        wall: world.now,
    };
    for _ in 0..3 {
        let at = input(&world);
        step(&mut world.state, &at);
        world.state.volumes.busy = true;
        apply(&mut world.state, &at, Outcome::Volumes(Err("no such folder".into())));
        world.now = after(world.now, SignedDuration::from_secs(5));
    }
    let at = input(&world);
    step(&mut world.state, &at);
    let ended = world.status()["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!(
        (&ended["reason"], &ended["message"]),
        (&json!("CreateContainerConfigError"), &json!("no such folder"))
    );
    assert_eq!(world.status()["phase"], "Failed");
}

#[test]
fn health_is_reported_and_nothing_is_killed() {
    let health = |world: &World| {
        let all = world.status()["conditions"].clone();
        all.as_array()
            .unwrap()
            .iter()
            .find(|c| c["type"] == "ecs.gantry.dev/ContainersHealthy")
            .cloned()
            .unwrap()
    };
    let mut world = task(&[("a", json!({"health": true, "startPeriod": 12}))]);
    world.quiet_probes = true;
    world.probes.insert(("a".into(), ProbeKind::Readiness), [false].into());
    // Failures at 0, 5 and 10 do not count.
    world.until(15);
    assert_eq!(health(&world)["status"], "True");
    world.until(21);
    assert_eq!(
        (health(&world)["status"].clone(), health(&world)["message"].clone()),
        (json!("False"), json!("a"))
    );
    assert_eq!(deeds(&mut world, 300), Vec::<String>::new());
    assert_eq!(world.status()["phase"], "Running");
}

#[test]
fn a_note_from_a_newer_release_is_refused() {
    let view = pod_from(json!({
        "metadata": {"namespace": "n", "name": "p", "uid": "u", "annotations": {"ecs.gantry.dev/task": "{\"version\":9}"}},
        "spec": {"containers": [{"name": "a", "image": "i"}]}}));
    assert!(view.task.is_none());
    assert!(view.task_error.unwrap().contains("version 9"));
}
