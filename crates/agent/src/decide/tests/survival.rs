//! What pods keep over restarts of the agent, changed clocks and the words of others.

use super::*;

#[test]
fn a_restarted_agent_takes_over_what_runs() {
    use runtime::api::{ContainerInfo, ContainerSpec, ContainerState, PodInfo, PodSpec};
    let mut body = simple("Always").object.value().unwrap();
    body["status"] = json!({"containerStatuses": [{"name": "a", "image": "i", "imageID": "", "ready": true,
        "restartCount": 2, "started": true, "state": {"running": {}}}]});
    let view = pod_from(body.clone());
    let facts = serde_json::to_string(&Facts { spec_image: "i".into(), ..Facts::default() }).unwrap();
    let container = ContainerInfo {
        spec: ContainerSpec {
            name: "a".into(),
            attempt: 2,
            annotations: [(seed::FACTS.to_string(), facts)].into(),
            ..ContainerSpec::default()
        },
        state: ContainerState::Running { pid: 1, started_at_ns: 1_000_000_000 },
    };
    let spec = PodSpec {
        annotations: [(seed::IPS.to_string(), "10.0.0.7".to_string())].into(),
        ..PodSpec::default()
    };
    let live = PodInfo { spec, shim_pid: 1, containers: vec![container] };
    let mut world = World::new(view.clone());
    world.state = seed::seed(&view, Some(&live), t(0), t(0));
    assert_eq!(world.until(5), Vec::<String>::new());
    assert_eq!(world.status()["containerStatuses"][0]["restartCount"], 2);
    assert_eq!(world.status()["podIP"], "10.0.0.7");
    assert_eq!(world.status()["conditions"][2]["status"], "True");
    // The same pod after a reboot: a new sandbox, one more restart.
    let mut world = World::new(view);
    assert_eq!(world.until(1), ["  0 sandbox", "  0 start a#3"]);
    // A pod that was done stays done.
    body["status"]["phase"] = json!("Succeeded");
    let mut world = World::new(pod_from(body));
    assert_eq!(world.until(1), Vec::<String>::new());
    assert_eq!(world.status()["phase"], "Succeeded");
}

#[test]
fn a_clock_set_forward_or_back_changes_nothing() {
    for set_forward in [3600, -3600] {
        let spec = json!({"activeDeadlineSeconds": 100, "terminationGracePeriodSeconds": 20,
            "containers": [{"name": "a", "image": "i"}]});
        let mut world = World::new(pod(spec)).runs("a", &[(1, 1), (1, 1), (1, 1)]);
        world.stubborn.push("a".into());
        world.until(2);
        world.set_forward = set_forward;
        let starts: Vec<String> = world.until(50).into_iter().filter(|l| l.contains("start a")).collect();
        assert_eq!(starts, [" 12 start a#2", " 33 start a#3"]);
        world.delete(20);
        assert_eq!(world.until(90)[1..3], [" 50 Stop a", " 70 Kill a"]);
    }
}

#[test]
fn what_others_call_done_stays_done() {
    let mut world = World::new(simple("Always"));
    world.until(2);
    let mut body = world.pod.object.value().unwrap();
    body["status"] = json!({"phase": "Failed", "reason": "Evicted"});
    world.pod = pod_from(body);
    assert_eq!(
        world.until(9),
        ["  2 event Killing: Stopping container a", "  2 Stop a", "  2 a exits 0", "  2 teardown"]
    );
    assert_eq!((&world.status()["phase"], &world.status()["reason"]), (&json!("Failed"), &json!("Evicted")));
    world.delete(5);
    assert_eq!(world.until(9), ["  9 finalize"]);
    assert_eq!(world.status()["phase"], "Failed");
}

#[test]
fn ephemeral_containers_neither_restart_nor_count() {
    let view = pod(
        json!({"containers": [{"name": "a", "image": "i"}], "ephemeralContainers": [{"name": "d", "image": "i"}]}),
    );
    assert_eq!(view.containers[1].role, Role::Ephemeral);
    let mut world = World::new(view).runs("d", &[(1, 1)]);
    assert_eq!(world.until(9), ["  0 sandbox", "  0 start a#0", "  0 start d#0", "  1 d exits 1"]);
    assert_eq!(world.status()["phase"], "Running");
}
