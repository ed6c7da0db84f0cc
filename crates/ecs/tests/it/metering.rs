//! What is metered is in the journal once, whatever was missed meanwhile.

use crate::harness::{NAMESPACE, world};
use client::{ApiClient, DeleteOptions, ObjectKey};
use ecs::metering::{Metering, Reader, Record};
use jiff::Timestamp;
use k8s_schema::gvr::{ECS_TASKS, PODS};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(180);

async fn task(client: &ApiClient, id: &str, status: Value) -> ObjectKey {
    let body = json!({"apiVersion": "ecs.gantry.dev/v1", "kind": "Task", "metadata": {"namespace": NAMESPACE, "name": id},
        "spec": {"taskArn": format!("arn:aws:ecs:us-east-1:123456789012:task/prod/{id}"), "launchType": "FARGATE",
            "clusterArn": "arn:aws:ecs:us-east-1:123456789012:cluster/prod", "cpu": "256", "memory": "512"}});
    client.create(&ECS_TASKS, body).await.unwrap();
    let key = ObjectKey::new(NAMESPACE, id);
    client.merge_patch_status(&ECS_TASKS, &key, json!({"status": status})).await.unwrap();
    key
}

async fn pod(client: &ApiClient, name: &str, labels: Value) -> ObjectKey {
    let container =
        json!({"name": "c", "image": "x", "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}}});
    let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": NAMESPACE, "name": name, "labels": labels},
        "spec": {"containers": [container]}});
    client.create(&PODS, body).await.unwrap();
    let key = ObjectKey::new(NAMESPACE, name);
    let status = json!({"status": {"phase": "Running", "startTime": "2026-11-20T10:00:00Z"}});
    client.merge_patch_status(&PODS, &key, status).await.unwrap();
    key
}

/// The records once there are so many, and so many of them ended.
async fn until(folder: &Path, count: usize, ended: usize) -> Vec<Record> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut reader = Reader::default();
        let _ = reader.add(folder);
        let records: Vec<Record> = reader.records().cloned().collect();
        let over = records.iter().filter(|r| r.stop_ms.is_some()).count();
        if (records.len(), over) == (count, ended) {
            return records;
        }
        assert!(Instant::now() < deadline, "{count} {ended}: {records:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lives_are_recorded_whether_they_were_seen_or_not() {
    let mut world = world(Duration::from_secs(3600)).await;
    // Nobody but this test writes statuses.
    world.stop();
    let client = world.client.clone();
    let folder = tempfile::tempdir().unwrap();
    let start = || Metering::start(client.clone(), folder.path().join("usage"), Arc::new(Timestamp::now));
    let usage = folder.path().join("usage");
    let meter = start();
    let running = json!({"lastStatus": "RUNNING", "pullStartedAt": 1_000.0});
    let first = task(&client, "0a", running.clone()).await;
    let (shop, gone) =
        (pod(&client, "shop", json!({"app": "shop"})).await, pod(&client, "gone", json!({})).await);
    // A task's own pod is the task's.
    pod(&client, "0a", json!({"ecs.gantry.dev/task": "0a"})).await;
    let records = until(&usage, 3, 0).await;
    assert!(
        records.iter().any(|r| r.service == "shop" && r.vcpu_milli == 500 && r.memory_mib == 64),
        "{records:?}"
    );
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    client.delete(&PODS, &gone, now.clone()).await.unwrap();
    until(&usage, 3, 1).await;
    drop(meter);

    // Unseen: one stops, one comes and stops, one is deleted.
    let stopped = json!({"lastStatus": "STOPPED", "pullStartedAt": 1_000.0, "stoppedAt": 1_090.0});
    client.merge_patch_status(&ECS_TASKS, &first, json!({"status": stopped})).await.unwrap();
    task(&client, "0b", stopped).await;
    client.delete(&PODS, &shop, now).await.unwrap();
    let meter = start();
    let records = until(&usage, 4, 4).await;
    let lives: Vec<_> =
        records.iter().filter(|r| r.cluster == "prod").map(|r| (r.start_ms, r.stop_ms)).collect();
    assert_eq!(lives, [(1_000_000, Some(1_090_000)); 2]);
    drop(meter);
    let lines = || -> usize {
        let files = std::fs::read_dir(&usage).unwrap().flatten();
        files.map(|f| std::fs::read_to_string(f.path()).unwrap().lines().count()).sum()
    };
    // Another start writes nothing anew but for what begins now.
    let before = lines();
    let _meter = start();
    task(&client, "0c", running).await;
    until(&usage, 5, 4).await;
    assert_eq!(lines(), before + 1);
}
