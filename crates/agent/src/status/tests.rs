//! Units of the status that the transcripts of `decide` do not reach.

use super::*;
use crate::decide::seed::seed;
use crate::pod::tests::{pod, pod_from};

fn t(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

#[test]
fn ids_are_stable_and_differ_by_attempt() {
    assert_eq!(container_id("u", "a", 0), container_id("u", "a", 0));
    assert_ne!(container_id("u", "a", 0), container_id("u", "a", 1));
    assert_eq!(container_id("u", "a", 0).len(), "gantry://".len() + 64);
}

#[test]
fn ends_in_the_apis_words() {
    let exit = |code, oom_killed, start_error: &str| Exit {
        code,
        signal: 0,
        oom_killed,
        finished_at_ns: 5_000_000_000,
        start_error: start_error.into(),
    };
    let of = |exit: Exit| {
        let end = terminated(1_000_000_000, &exit, String::new());
        (end.exit_code, end.reason)
    };
    assert_eq!(of(exit(0, false, "")), (0, "Completed".into()));
    assert_eq!(of(exit(137, true, "")), (137, "OOMKilled".into()));
    assert_eq!(of(exit(2, false, "")), (2, "Error".into()));
    assert_eq!(of(exit(1, false, "exec: no")), (128, "StartError".into()));
}

#[test]
fn foreign_conditions_and_old_transition_times_stay() {
    let view = pod_from(json!({
        "metadata": {"namespace": "n", "name": "p", "uid": "u"},
        "spec": {"containers": [{"name": "a", "image": "i"}], "readinessGates": [{"conditionType": "x/y"}]},
        "status": {"conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:07Z"},
            {"type": "x/y", "status": "False"}]},
    }));
    let state = seed(&view, None, t(100), t(100));
    let status = status(&state, &view, &[], t(100));
    let of = |kind: &str| {
        status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == kind).unwrap().clone()
    };
    assert_eq!(of("PodScheduled")["lastTransitionTime"], "1970-01-01T00:00:07Z");
    assert_eq!(of("x/y")["status"], "False");
    assert_eq!(of("Ready")["reason"], "ContainersNotReady");
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["startTime"], "1970-01-01T00:01:40Z");
    assert!(status.get("podIP").is_none());
}

/// Whose processes they were is told of containers that have ended too, and after a reboot.
#[test]
fn users_outlast_their_processes() {
    let user = json!({"linux": {"uid": 7, "gid": 8, "supplementalGroups": [8, 9]}});
    let end = json!({"exitCode": 1, "reason": "Error", "startedAt": "1970-01-01T00:00:07Z",
        "finishedAt": "1970-01-01T00:00:08Z", "containerID": "gantry://1"});
    let view = pod_from(json!({
        "metadata": {"namespace": "n", "name": "p", "uid": "u"},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]},
        "status": {"containerStatuses": [{"name": "a", "image": "i:1", "imageID": "sha256:1", "ready": false,
            "restartCount": 1, "user": user, "state": {"terminated": end}}]},
    }));
    let state = seed(&view, None, t(100), t(100));
    let told = status(&state, &view, &[], t(100))["containerStatuses"].clone();
    assert_eq!((&told[0]["user"], &told[0]["imageID"]), (&user, &json!("sha256:1")));
    assert!(told[1].get("user").is_none(), "{told}");
}

#[test]
fn a_fresh_pod_waits_for_its_containers() {
    let view = pod(json!({"containers": [{"name": "a", "image": "i"}]}));
    let status = status(&seed(&view, None, t(1), t(1)), &view, &["192.0.2.1".parse().unwrap()], t(1));
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "ContainerCreating");
    assert_eq!(status["containerStatuses"][0]["lastState"], json!({}));
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["qosClass"], "BestEffort");
}

#[test]
fn in_a_pod_with_init_containers_all_wait_for_initialising() {
    let view = pod(
        json!({"initContainers": [{"name": "i", "image": "i"}], "containers": [{"name": "a", "image": "i"}]}),
    );
    let mut state = seed(&view, None, t(1), t(1));
    state.containers.get_mut("i").unwrap().phase = Phase::Starting { before: None };
    let status = status(&state, &view, &[], t(1));
    for list in ["initContainerStatuses", "containerStatuses"] {
        assert_eq!(status[list][0]["state"], json!({"waiting": {"reason": "PodInitializing"}}), "{list}");
    }
}
