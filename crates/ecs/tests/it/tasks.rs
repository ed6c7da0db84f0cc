//! Lives of tasks.

use crate::harness::{NAMESPACE, world};
use client::{ListOptions, ObjectKey};
use k8s_schema::gvr::{ECS_TASKS, NODES, PODS, SECRETS};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_is_stopped_and_leaves_nothing_but_its_record() {
    let world = world(HOUR).await;
    world
        .define(
            "awsvpc",
            json!([{"name": "web", "image": "nginx", "essential": true,
        "secrets": [{"name": "PASSWORD", "valueFrom": "/db/password"}]}]),
        )
        .await;
    let _node = world.node();
    let key = world.task(1, json!({})).await;
    let status = world.state(&key, "RUNNING").await;
    assert_eq!(status["containers"][0]["networkInterfaces"][0]["privateIpv4Address"], "10.0.0.9");
    let secret = ObjectKey::new(NAMESPACE, format!("{}-secrets", key.name));
    let held = world.until(&SECRETS, &secret, |s| !s.is_null()).await;
    assert_eq!(held["data"]["0.0"], "czNjcmV0");
    let patch =
        json!({"spec": {"desiredStatus": "STOPPED", "stopCode": "UserInitiated", "stoppedReason": "done"}});
    world.client.merge_patch(&ECS_TASKS, &key, patch).await.unwrap();
    let status = world.state(&key, "STOPPED").await;
    assert_eq!((&status["stopCode"], &status["stoppedReason"]), (&json!("UserInitiated"), &json!("done")));
    assert_eq!(status["containers"][0]["exitCode"], 143);
    world.until(&SECRETS, &secret, Value::is_null).await;
    world.until(&PODS, &key, Value::is_null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_nobody_saw_is_on_record_all_the_same() {
    let mut world = world(HOUR).await;
    world.define("bridge", json!([{"name": "job", "image": "i"}])).await;
    let node = world.node();
    let key = world.task(1, json!({"launchType": "EC2", "nodeName": "node-1"})).await;
    world.state(&key, "RUNNING").await;
    node.abort();
    world.stop();
    let ended = json!({"terminated": {"exitCode": 7, "reason": "Error", "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:01Z"}});
    let status = json!({"phase": "Failed", "containerStatuses": [{"name": "job", "state": ended, "ready": false, "image": "i", "imageID": "", "restartCount": 0}]});
    world.pod_status(&key, status).await;
    // Somebody deletes the pod meanwhile: it waits.
    let options = client::DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
    world.client.delete(&PODS, &key, options).await.unwrap();
    world.restart();
    let status = world.state(&key, "STOPPED").await;
    assert_eq!(status["containers"][0]["exitCode"], 7);
    assert_eq!(status["stopCode"], "EssentialContainerExited");
    world.until(&PODS, &key, Value::is_null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_is_stopped_with_its_reason() {
    let world = world(HOUR).await;
    world
        .define(
            "awsvpc",
            json!([{"name": "web", "image": "nginx",
        "secrets": [{"name": "P", "valueFrom": "/no/such"}]}]),
        )
        .await;
    let key = world.task(1, json!({})).await;
    let status = world.state(&key, "STOPPED").await;
    assert_eq!(status["stopCode"], "TaskFailedToStart");
    let reason = status["stoppedReason"].as_str().unwrap();
    assert!(
        reason.starts_with("ResourceInitializationError: ") && reason.contains("ParameterNotFound"),
        "{reason}"
    );
    assert_eq!(status["containers"][0]["lastStatus"], "STOPPED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_ends_its_tasks_and_stopped_ones_are_forgotten() {
    let mut world = world(HOUR).await;
    world
        .define("bridge", json!([{"name": "a", "image": "i", "portMappings": [{"containerPort": 80}]}]))
        .await;
    let _node = world.node();
    let more = || json!({"launchType": "EC2", "nodeName": "node-1"});
    let keys = [world.task(1, more()).await, world.task(2, more()).await];
    let mut ports = Vec::new();
    for key in &keys {
        let status = world.state(key, "RUNNING").await;
        ports.push(status["containers"][0]["networkBindings"][0]["hostPort"].as_u64().unwrap());
    }
    ports.sort_unstable();
    assert_eq!(ports, [32768, 32769]);
    world.client.delete(&NODES, &ObjectKey::cluster("node-1"), Default::default()).await.unwrap();
    for key in &keys {
        let status = world.until(&ECS_TASKS, key, |t| t["status"]["lastStatus"] == "STOPPED").await;
        assert_eq!(status["status"]["stoppedReason"], "Host EC2 (instance node-1) terminated.");
    }
    world.stop();
    world.retention = Duration::from_secs(1);
    world.restart();
    for key in &keys {
        world.until(&PODS, key, Value::is_null).await;
        world.until(&ECS_TASKS, key, Value::is_null).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_are_no_trouble() {
    const TASKS: u64 = 300;
    let world = world(HOUR).await;
    world.define("awsvpc", json!([{"name": "web", "image": "nginx"}])).await;
    let _node = world.node();
    let start = Instant::now();
    for number in 0..TASKS {
        world.task(number, json!({})).await;
    }
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        let all = world.client.list(&ECS_TASKS, &ListOptions::default()).await.unwrap().items;
        let up = all.iter().filter(|t| t.value().unwrap()["status"]["lastStatus"] == "RUNNING").count();
        if up as u64 == TASKS {
            break;
        }
        assert!(Instant::now() < deadline, "{up} of {TASKS} run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{TASKS} tasks run after {:?}", start.elapsed());
}
