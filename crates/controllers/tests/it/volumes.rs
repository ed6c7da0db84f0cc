//! Claims and volumes, with a test that plays the node's agent.

use crate::harness::{Cluster, cluster, key};
use crate::sets::play;
use client::ObjectKey;
use k8s_schema::gvr::{NODES, PERSISTENT_VOLUME_CLAIMS as CLAIMS, PERSISTENT_VOLUMES as VOLUMES, PODS};
use k8s_schema::{Gvr, gvr};
use serde_json::{Value, json};

const CLASSES: Gvr = Gvr::new("storage.k8s.io", "v1", "storageclasses");

async fn claim(c: &Cluster, name: &str, class: &str) {
    let body = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "resources": {"requests": {"storage": "1Gi"}}}});
    c.create(&CLAIMS, body).await;
}

async fn pod(c: &Cluster, name: &str, volume: Value) {
    let mut volume = volume;
    volume["name"] = json!("v");
    let body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": [volume]}});
    c.create(&PODS, body).await;
}

fn of_claim(name: &str) -> Value {
    json!({"persistentVolumeClaim": {"claimName": name}})
}

async fn volume(c: &Cluster, name: &str, policy: &str) {
    let body = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": policy, "hostPath": {"path": "/x"}}});
    c.create(&VOLUMES, body).await;
}

async fn phase(c: &Cluster, gvr: &Gvr, key: &ObjectKey, wanted: &str) -> Value {
    c.until_object(gvr, key, |v| v["status"]["phase"] == wanted).await
}

async fn event(c: &Cluster, reason: &str) -> String {
    let all = c.until(&gvr::EVENTS, reason, |all| all.iter().any(|e| e["reason"] == reason)).await;
    let found = all.iter().find(|e| e["reason"] == reason).unwrap();
    found["message"].as_str().unwrap_or_default().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_from_before_the_default_class_gets_it() {
    let c = cluster().await;
    let standard = ObjectKey::cluster("standard");
    let mark =
        |on: &str| json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": on}}});
    c.until_object(&CLASSES, &standard, |_| true).await;
    c.client.merge_patch(&CLASSES, &standard, mark("false")).await.unwrap();
    claim(&c, "none", "").await;
    let body = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "any", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    // The API server's own view of the classes may be a moment behind.
    c.create(&CLAIMS, body).await;
    event(&c, "FailedBinding").await;
    c.client.merge_patch(&CLASSES, &standard, mark("true")).await.unwrap();
    c.until_object(&CLAIMS, &key("any"), |v| v["spec"]["storageClassName"] == "standard").await;
    let none = c.client.get(&CLAIMS, &key("none")).await.unwrap().value().unwrap();
    assert_eq!(none["spec"]["storageClassName"], "", "no class is a wish too");
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_made_by_hand() {
    let c = cluster().await;
    claim(&c, "c", "").await;
    let waits = "no persistent volumes available for this claim and no storage class is set";
    assert_eq!(event(&c, "FailedBinding").await, waits);
    volume(&c, "v", "Retain").await;
    let bound = phase(&c, &CLAIMS, &key("c"), "Bound").await;
    assert_eq!(
        (&bound["spec"]["volumeName"], &bound["status"]["capacity"]["storage"]),
        (&json!("v"), &json!("2Gi"))
    );
    let at = ObjectKey::cluster("v");
    let volume_now = phase(&c, &VOLUMES, &at, "Bound").await;
    assert_eq!(volume_now["spec"]["claimRef"]["uid"], bound["metadata"]["uid"]);
    // A bound volume stays until its claim is gone; then it is kept, and free again by hand.
    c.delete(&VOLUMES, &at, None).await.unwrap();
    assert!(c.client.get(&VOLUMES, &at).await.unwrap().meta().deletion_timestamp.is_some());
    c.delete(&CLAIMS, &key("c"), None).await.unwrap();
    c.until_gone(&CLAIMS, &key("c")).await;
    c.until_gone(&VOLUMES, &at).await;
    volume(&c, "w", "Retain").await;
    claim(&c, "d", "").await;
    phase(&c, &CLAIMS, &key("d"), "Bound").await;
    c.delete(&CLAIMS, &key("d"), None).await.unwrap();
    let at = ObjectKey::cluster("w");
    phase(&c, &VOLUMES, &at, "Released").await;
    c.client.merge_patch(&VOLUMES, &at, json!({"spec": {"claimRef": null}})).await.unwrap();
    phase(&c, &VOLUMES, &at, "Available").await;
    volume(&c, "x", "Delete").await;
    let lost = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "l", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": "x",
            "resources": {"requests": {"storage": "1Gi"}}}});
    c.create(&CLAIMS, lost).await;
    phase(&c, &CLAIMS, &key("l"), "Bound").await;
    c.delete(&CLAIMS, &key("l"), None).await.unwrap();
    let failed = phase(&c, &VOLUMES, &ObjectKey::cluster("x"), "Failed").await;
    assert!(failed["status"]["message"].as_str().unwrap().contains("no volume plugin matched"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standard_class_makes_a_volume_where_the_pod_goes() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("a", "4").await;
    let classes = c.until(&CLASSES, "the class", |all| all.len() == 1).await;
    assert_eq!(classes[0]["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"], "true");
    claim(&c, "c", "standard").await;
    assert_eq!(
        event(&c, "WaitForFirstConsumer").await,
        "waiting for first consumer to be created before binding"
    );
    pod(&c, "p", of_claim("c")).await;
    c.until_object(&PODS, &key("p"), |p| p["spec"]["nodeName"] == "a").await;
    let claim_now = phase(&c, &CLAIMS, &key("c"), "Bound").await;
    let at = ObjectKey::cluster(claim_now["spec"]["volumeName"].as_str().unwrap());
    let made = phase(&c, &VOLUMES, &at, "Bound").await;
    assert_eq!(made["metadata"]["labels"]["gantry.dev/node"], "a");
    assert_eq!(made["spec"]["csi"]["driver"], "gantry.dev/local");
    // Larger: the volume and the claim say so.
    let more = json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}});
    c.client.merge_patch(&CLAIMS, &key("c"), more).await.unwrap();
    c.until_object(&CLAIMS, &key("c"), |v| v["status"]["capacity"]["storage"] == "3Gi").await;
    // In use, the claim stays; without the pod it goes, and its volume waits for the node's agent.
    c.delete(&CLAIMS, &key("c"), None).await.unwrap();
    pod(&c, "q", of_claim("c")).await;
    let refused = event(&c, "FailedScheduling").await;
    assert!(refused.contains("persistentvolumeclaim \"c\" is being deleted"), "{refused}");
    c.client.get(&CLAIMS, &key("c")).await.unwrap();
    c.delete(&PODS, &key("p"), None).await.unwrap();
    play(&c, |_| "Running").await;
    c.until_gone(&CLAIMS, &key("c")).await;
    phase(&c, &VOLUMES, &at, "Released").await;
    // Deleted by hand it is there until the node has removed the folder, and no node answers here.
    c.delete(&VOLUMES, &at, None).await.unwrap();
    let stays = event(&c, "VolumeFailedDelete").await;
    assert!(stays.starts_with("the folder of the volume stays: "), "{stays}");
    assert!(c.client.get(&VOLUMES, &at).await.unwrap().meta().deletion_timestamp.is_some());
    // A node that is gone took the folder with it.
    c.delete(&NODES, &ObjectKey::cluster("a"), None).await.unwrap();
    c.until_gone(&VOLUMES, &at).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ephemeral_volumes_have_claims_of_their_own() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("a", "4").await;
    let template = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "standard",
        "resources": {"requests": {"storage": "1Gi"}}}});
    pod(&c, "p", json!({"ephemeral": {"volumeClaimTemplate": template}})).await;
    c.until_object(&PODS, &key("p"), |p| p["spec"]["nodeName"] == "a").await;
    phase(&c, &CLAIMS, &key("p-v"), "Bound").await;
    c.delete(&PODS, &key("p"), None).await.unwrap();
    play(&c, |_| "Running").await;
    c.until_gone(&CLAIMS, &key("p-v")).await;
}
