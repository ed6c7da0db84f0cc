//! Each verb by its main road: create, get, update, patch, delete, subresources.

use crate::harness::*;
use serde_json::json;

#[tokio::test]
async fn create_get_update_delete() {
    let s = server().await;
    let made = s.post(MAPS, &config_map("a")).await.expect(201);
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(made["metadata"]["uid"].as_str().unwrap().len() == 36);
    assert!(made["metadata"]["creationTimestamp"].as_str().unwrap().ends_with('Z'));
    let got = s.get(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(got, made);
    let mut changed = got.clone();
    changed["data"]["a"] = json!("2");
    let updated = s.put(&format!("{MAPS}/a"), &changed).await.expect(200);
    assert_ne!(updated["metadata"]["resourceVersion"], got["metadata"]["resourceVersion"]);
    assert_eq!(updated["metadata"]["uid"], got["metadata"]["uid"]);
    let message = s.put(&format!("{MAPS}/a"), &changed).await.fails(409, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let message = s.post(MAPS, &config_map("a")).await.fails(409, "AlreadyExists");
    assert_eq!(message, "configmaps \"a\" already exists");
    let gone = s.delete(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(gone["status"], "Success");
    assert_eq!(gone["details"]["name"], "a");
    assert_eq!(gone["details"]["uid"], got["metadata"]["uid"]);
    let message = s.get(&format!("{MAPS}/a")).await.fails(404, "NotFound");
    assert_eq!(message, "configmaps \"a\" not found");
    s.delete(&format!("{MAPS}/a")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn writes_that_change_nothing_keep_the_revision() {
    let s = server().await;
    let made = s.post(MAPS, &config_map("a")).await.expect(201);
    let same = s.put(&format!("{MAPS}/a"), &made).await.expect(200);
    assert_eq!(same, made);
    let same = s.patch(&format!("{MAPS}/a"), "merge-patch", &json!({"data": {"a": "1"}})).await.expect(200);
    assert_eq!(same, made);
}

#[tokio::test]
async fn unconditional_updates_win() {
    let s = server().await;
    s.post(MAPS, &config_map("a")).await.expect(201);
    let mut body = config_map("a");
    body["data"]["a"] = json!("3");
    assert_eq!(s.put(&format!("{MAPS}/a"), &body).await.expect(200)["data"]["a"], "3");
    s.put(&format!("{MAPS}/b"), &config_map("b")).await.fails(404, "NotFound");
}

#[tokio::test]
async fn patches_of_each_kind() {
    let s = server().await;
    s.post(PODS, &pod("p")).await.expect(201);
    let path = format!("{PODS}/p");
    let merged =
        s.patch(&path, "merge-patch", &json!({"metadata": {"labels": {"x": "y"}}})).await.expect(200);
    assert_eq!(merged["metadata"]["labels"], json!({"app": "p", "x": "y"}));
    let strategic = json!({"spec": {"containers": [{"name": "c", "image": "j"}]}});
    let patched = s.patch(&path, "strategic-merge-patch", &strategic).await.expect(200);
    assert_eq!(patched["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(patched["spec"]["containers"][0]["image"], "j");
    let ops = json!([{"op": "test", "path": "/metadata/labels/x", "value": "y"}, {"op": "remove", "path": "/metadata/labels/x"}]);
    let patched = s.patch(&path, "json-patch", &ops).await.expect(200);
    assert_eq!(patched["metadata"]["labels"], json!({"app": "p"}));
    s.patch(&path, "json-patch", &ops).await.fails(422, "Invalid");
    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"z": "z"}}});
    s.patch(&path, "merge-patch", &stale).await.fails(409, "Conflict");
    s.patch(&format!("{PODS}/none"), "merge-patch", &json!({})).await.fails(404, "NotFound");
}

#[tokio::test]
async fn patches_without_a_revision_all_land_under_contention() {
    let s = std::sync::Arc::new(server().await);
    s.post(MAPS, &config_map("a")).await.expect(201);
    let writers = (0..8).map(|w| {
        let s = s.clone();
        tokio::spawn(async move {
            for i in 0..10 {
                let patch = json!({"data": {format!("w{w}-{i}"): "x"}});
                s.patch(&format!("{MAPS}/a"), "merge-patch", &patch).await.expect(200);
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let data = s.get(&format!("{MAPS}/a")).await.expect(200)["data"].as_object().unwrap().len();
    assert_eq!(data, 81);
}

#[tokio::test]
async fn generated_names() {
    let s = server().await;
    let body = json!({"metadata": {"generateName": "web-"}});
    let one = s.post(MAPS, &body).await.expect(201)["metadata"]["name"].as_str().unwrap().to_string();
    let two = s.post(MAPS, &body).await.expect(201)["metadata"]["name"].as_str().unwrap().to_string();
    assert!(one.starts_with("web-") && one.len() == 9 && one != two);
}

#[tokio::test]
async fn dry_runs_answer_and_store_nothing() {
    let s = server().await;
    let made = s.post(&format!("{MAPS}?dryRun=All"), &config_map("a")).await.expect(201);
    assert_eq!(made["data"]["a"], "1");
    s.get(&format!("{MAPS}/a")).await.fails(404, "NotFound");
    let real = s.post(MAPS, &config_map("a")).await.expect(201);
    s.post(&format!("{MAPS}?dryRun=All"), &config_map("a")).await.fails(409, "AlreadyExists");
    let patch = json!({"data": {"a": "9"}});
    let dry = s.patch(&format!("{MAPS}/a?dryRun=All"), "merge-patch", &patch).await.expect(200);
    assert_eq!(dry["data"]["a"], "9");
    s.delete(&format!("{MAPS}/a?dryRun=All")).await.expect(200);
    assert_eq!(s.get(&format!("{MAPS}/a")).await.expect(200), real);
    let message = s.post(&format!("{MAPS}?dryRun=Some"), &config_map("b")).await.fails(422, "Invalid");
    assert!(message.contains("dryRun: Unsupported value: \"Some\""), "{message}");
}

#[tokio::test]
async fn finalizers_hold_a_deleted_object() {
    let s = server().await;
    let mut body = config_map("a");
    body["metadata"]["finalizers"] = json!(["x.io/y"]);
    s.post(MAPS, &body).await.expect(201);
    let waiting = s.delete(&format!("{MAPS}/a")).await.expect(200);
    assert_eq!(waiting["kind"], "ConfigMap");
    assert!(waiting["metadata"]["deletionTimestamp"].is_string());
    let patch = json!({"metadata": {"finalizers": null}});
    s.patch(&format!("{MAPS}/a"), "merge-patch", &patch).await.expect(200);
    s.get(&format!("{MAPS}/a")).await.fails(404, "NotFound");
    s.post(MAPS, &config_map("b")).await.expect(201);
    let foreground = json!({"propagationPolicy": "Foreground"});
    let reply = s
        .call("DELETE", &format!("{MAPS}/b"), &[("content-type", "application/json")], foreground.to_string())
        .await;
    assert_eq!(reply.expect(200)["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn delete_preconditions_and_collections() {
    let s = server().await;
    for name in ["a", "b", "c"] {
        let mut body = config_map(name);
        body["metadata"]["labels"] = json!({"half": if name == "c" { "no" } else { "yes" }});
        s.post(MAPS, &body).await.expect(201);
    }
    let wrong = json!({"preconditions": {"uid": "nope"}}).to_string();
    let reply = s.call("DELETE", &format!("{MAPS}/a"), &[("content-type", "application/json")], wrong).await;
    assert!(reply.fails(409, "Conflict").contains("the UID in the precondition (nope) does not match"));
    let gone = s.delete(&format!("{MAPS}?labelSelector=half%3Dyes")).await.expect(200);
    assert_eq!(gone["items"].as_array().unwrap().len(), 2);
    let left = s.get(MAPS).await.expect(200);
    assert_eq!(left["items"].as_array().unwrap().len(), 1);
    assert_eq!(left["items"][0]["metadata"]["name"], "c");
}

#[tokio::test]
async fn status_is_written_by_its_own_path() {
    let s = server().await;
    let made = s.post(PODS, &pod("p")).await.expect(201);
    let mut body = made.clone();
    body["status"]["phase"] = json!("Running");
    body["spec"]["containers"][0]["image"] = json!("other");
    let after = s.put(&format!("{PODS}/p/status"), &body).await.expect(200);
    assert_eq!(after["status"]["phase"], "Running");
    assert_eq!(after["spec"]["containers"][0]["image"], "i");
    let patch = json!({"status": {"phase": "Failed"}, "metadata": {"labels": {"n": "v"}}});
    let after = s.patch(&format!("{PODS}/p"), "merge-patch", &patch).await.expect(200);
    assert_eq!(after["status"]["phase"], "Running");
    assert_eq!(after["metadata"]["labels"]["n"], "v");
    let by_field = s.get(&format!("{PODS}?fieldSelector=status.phase%3DRunning")).await.expect(200);
    assert_eq!(by_field["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn scale_reads_and_writes_replicas() {
    let s = server().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let body = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    s.post(path, &body).await.expect(201);
    let mut scale = s.get(&format!("{path}/d/scale")).await.expect(200);
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    assert_eq!(scale["status"]["selector"], "a=b");
    scale["spec"]["replicas"] = json!(5);
    assert_eq!(s.put(&format!("{path}/d/scale"), &scale).await.expect(200)["spec"]["replicas"], 5);
    s.put(&format!("{path}/d/scale"), &scale).await.fails(409, "Conflict");
    let patched = s
        .patch(&format!("{path}/d/scale"), "merge-patch", &json!({"spec": {"replicas": 1}}))
        .await
        .expect(200);
    assert_eq!(patched["spec"]["replicas"], 1);
    let bad = s.patch(&format!("{path}/d/scale"), "merge-patch", &json!({"spec": {"replicas": -1}})).await;
    assert!(
        bad.fails(422, "Invalid")
            .contains("spec.replicas: Invalid value: -1: must be greater than or equal to 0")
    );
    assert_eq!(s.get(&format!("{path}/d")).await.expect(200)["spec"]["replicas"], 1);
}

#[tokio::test]
async fn legacy_deployments_are_todays() {
    let s = server().await;
    let body = json!({"apiVersion": "extensions/v1beta1", "kind": "Deployment", "metadata": {"name": "old"},
        "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let old = "/apis/extensions/v1beta1/namespaces/default/deployments";
    let made = s.post(old, &body).await.expect(201);
    assert_eq!(made["apiVersion"], "extensions/v1beta1");
    let mut watched = s.watch(&format!("{old}?watch=1")).await;
    assert_eq!(watched.next().await.unwrap()["object"]["apiVersion"], "extensions/v1beta1");
    assert_eq!(s.get(old).await.expect(200)["apiVersion"], "extensions/v1beta1");
    let today = s.get("/apis/apps/v1/namespaces/default/deployments/old").await.expect(200);
    assert_eq!(today["apiVersion"], "apps/v1");
    assert_eq!(today["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(today["spec"]["selector"]["matchLabels"], json!({"a": "b"}));
    let patch = json!({"spec": {"replicas": 4}});
    let patched = s.patch(&format!("{old}/old"), "strategic-merge-patch", &patch).await.expect(200);
    assert_eq!(
        (&patched["spec"]["replicas"], &patched["apiVersion"]),
        (&json!(4), &json!("extensions/v1beta1"))
    );
}

#[tokio::test]
async fn versions_of_one_resource_show_the_same_objects() {
    let s = server().await;
    let body = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "R",
        "action": "A", "type": "Normal", "note": "hello", "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "x/y", "reportingInstance": "z",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}});
    s.post("/apis/events.k8s.io/v1/namespaces/default/events", &body).await.expect(201);
    let core = s.get("/api/v1/namespaces/default/events/e").await.expect(200);
    assert_eq!((&core["message"], &core["involvedObject"]["name"]), (&json!("hello"), &json!("p")));
    let by_field =
        s.get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp").await.expect(200);
    assert_eq!(by_field["items"].as_array().unwrap().len(), 1);
}
