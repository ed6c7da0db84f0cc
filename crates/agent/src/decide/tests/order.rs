//! Orders that upstream's node tests (`container_lifecycle_test.go`) ask for.

use super::{World, pod, pod_from, t};
use crate::state::{Phase, ProbeKind};
use serde_json::json;

/// What happened, without events.
fn done(world: &mut World, seconds: i64) -> Vec<String> {
    let happened = world.until(seconds);
    happened.into_iter().filter(|line| !line.contains("event")).collect()
}

fn sidecar(name: &str) -> serde_json::Value {
    json!({"name": name, "image": "i", "restartPolicy": "Always"})
}

#[test]
fn the_next_container_waits_for_the_hook_of_the_one_before() {
    let spec = json!({"containers": [
        {"name": "a", "image": "i", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}},
        {"name": "b", "image": "i"}]});
    let mut world = World::new(pod(spec.clone()));
    assert_eq!(done(&mut world, 5), ["  0 sandbox", "  0 start a#0", "  0 PostStart a", "  1 start b#0"]);
    // One that waits for its restart holds nobody up.
    let mut world = World::new(pod(spec)).runs("a", &[(0, 1), (0, 1)]);
    world.until(1);
    assert!(matches!(world.state.containers["a"].phase, Phase::Exited(_)));
    assert!(world.state.containers["b"].running());
}

#[test]
fn a_sidecar_without_a_probe_has_to_stand_a_moment() {
    let mut world = World::new(pod(json!({"initContainers": [sidecar("s")], "containers": [
        {"name": "a", "image": "i"}]})));
    assert_eq!(done(&mut world, 0), ["  0 sandbox", "  0 start s#0"]);
    assert_eq!(world.until(1), ["  0 start a#0"]);
}

#[test]
fn hooks_run_at_once_and_who_waited_in_vain_has_a_window() {
    let mut spec = json!({"terminationGracePeriodSeconds": 5, "restartPolicy": "Never",
        "initContainers": [sidecar("s"), sidecar("t")], "containers": [{"name": "a", "image": "i"}]});
    for at in ["/initContainers/0", "/initContainers/1"] {
        spec.pointer_mut(at).unwrap()["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 1}}});
    }
    let mut world = World::new(pod(spec.clone()));
    world.until(10);
    world.delete(5);
    assert_eq!(
        done(&mut world, 60),
        [
            " 10 Stop a",
            " 10 PreStop t",
            " 10 PreStop s",
            " 10 a exits 0",
            " 11 Stop t",
            " 11 t exits 0",
            " 11 Stop s",
            " 11 s exits 0",
            " 11 teardown",
            " 11 finalize"
        ]
    );
    let mut world = World::new(pod(spec));
    world.stubborn.extend(["a".into(), "t".into()]);
    world.until(10);
    world.delete(5);
    assert_eq!(
        done(&mut world, 60),
        [
            " 10 Stop a",
            " 10 PreStop t",
            " 10 PreStop s",
            " 15 Kill a",
            " 15 Stop t",
            " 15 Stop s",
            " 15 a exits 137",
            " 15 s exits 0",
            " 17 Kill t",
            " 17 t exits 137",
            " 17 teardown",
            " 17 finalize"
        ]
    );
}

fn failing(policy: &str) -> World {
    let spec = json!({"terminationGracePeriodSeconds": 5, "restartPolicy": policy, "initContainers": [sidecar("s")],
        "containers": [{"name": "a", "image": "i", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
            "readinessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": 1},
            "livenessProbe": {"tcpSocket": {"port": 1}, "initialDelaySeconds": 3, "failureThreshold": 1}}]});
    let mut world = World::new(pod(spec));
    world.probes.insert(("a".into(), ProbeKind::Liveness), [false, true].into());
    world
}

#[test]
fn a_failed_probe_restarts_whatever_the_exit_code_unless_the_policy_says_never() {
    let mut world = failing("OnFailure");
    let happened = world.until(5);
    assert!(happened.iter().any(|l| l.ends_with("failed liveness probe, will be restarted")), "{happened:?}");
    assert!(happened.iter().any(|l| l.ends_with("start a#1")), "{happened:?}");
    assert!(!happened.iter().any(|l| l.contains("Stop s")), "{happened:?}");

    let mut world = failing("Never");
    let happened = world.until(9);
    let from = happened.iter().position(|l| l.ends_with("Container a failed liveness probe")).unwrap();
    let hook = happened.iter().position(|l| l.ends_with("PreStop a")).unwrap();
    let tail: Vec<&str> = happened[hook..].iter().map(|l| l[4..].trim()).collect();
    assert!(from < hook, "{happened:?}");
    let count = |text: &str| tail.iter().filter(|l| **l == text).count();
    // Who is being stopped is still asked whether it serves.
    assert_eq!((count("readiness a true"), count("liveness a true")), (1, 0), "{tail:?}");
    assert_eq!((count("start a#1"), count("Stop s"), count("teardown")), (0, 1, 1), "{tail:?}");
    assert_eq!((world.now, world.status()["phase"].as_str()), (t(9), Some("Succeeded")));
}

#[test]
fn another_image_begins_its_back_offs_anew() {
    let mut world = World::new(pod(json!({"containers": [{"name": "a", "image": "i"}]})))
        .runs("a", &[(0, 1), (0, 1), (0, 1), (0, 1)]);
    world.until(25);
    assert_eq!(world.state.containers["a"].crash.level, 2, "waits for 20 s");
    let mut body = world.pod.object.value().unwrap();
    body["spec"]["containers"][0]["image"] = json!("j");
    world.pod = pod_from(body);
    let starts: Vec<String> = world.until(38).into_iter().filter(|l| l.contains("start a")).collect();
    assert_eq!(starts, [" 25 start a#3", " 35 start a#4"]);
}
