//! Jobs, CronJobs, StatefulSets and DaemonSets, with a test that plays the node agents.

use crate::harness::{Cluster, PATIENCE, cluster, key};
use client::{DeleteOptions, ObjectKey, Propagation};
use k8s_schema::{Gvr, gvr};
use serde_json::{Value, json};
use std::time::Duration;

const CRON_JOBS: Gvr = Gvr::new("batch", "v1", "cronjobs");
const REVISIONS: Gvr = Gvr::new("apps", "v1", "controllerrevisions");

/// Plays the agents once: bound pods reach the phase that `fate` names and are ready when that is `Running`; those
/// that are going end and are gone.
pub async fn play(c: &Cluster, fate: fn(&Value) -> &'static str) {
    for pod in c.list(&gvr::PODS).await {
        let value = pod.value().unwrap();
        if !value["spec"]["nodeName"].is_string() {
            continue;
        }
        let phase = fate(&value);
        if value["metadata"]["deletionTimestamp"].is_string() {
            let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
            let _ = c.client.delete(&gvr::PODS, &pod.key, options).await;
        } else if value["status"]["phase"] == "Pending" || value["status"]["phase"] == Value::Null {
            let ready = if phase == "Running" { "True" } else { "False" };
            let status = json!({"status": {"phase": phase, "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
            let _ = c.client.merge_patch_status(&gvr::PODS, &pod.key, status).await;
        }
    }
}

/// Plays until the object is as wanted.
async fn played(
    c: &Cluster,
    gvr: &Gvr,
    name: &str,
    fate: fn(&Value) -> &'static str,
    wanted: impl Fn(&Value) -> bool,
) -> Value {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        play(c, fate).await;
        let value = c.client.get(gvr, &key(name)).await.unwrap().value().unwrap();
        if wanted(&value) {
            return value;
        }
        if tokio::time::Instant::now() > deadline {
            let pods: Vec<Value> = c.list(&gvr::PODS).await.iter().map(|p| p.value().unwrap()).collect();
            panic!("{name}: {value:#}\n{}", json!(pods));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn gone(c: &Cluster, gvr: &Gvr) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !c.list(gvr).await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", c.list(gvr).await);
        play(c, |_| "Running").await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn job(spec: Value) -> Value {
    let mut template = template("i:1");
    template["spec"]["restartPolicy"] = json!("Never");
    let mut body = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "default"},
        "spec": {"template": template}});
    for (field, value) in spec.as_object().unwrap() {
        body["spec"][field] = value.clone();
    }
    body
}

fn has_condition(value: &Value, kind: &str) -> bool {
    let all = value["status"]["conditions"].as_array();
    all.is_some_and(|all| all.iter().any(|c| c["type"] == kind && c["status"] == "True"))
}

async fn pod_names(c: &Cluster) -> Vec<String> {
    c.list(&gvr::PODS).await.iter().map(|p| p.key.name.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_runs_to_its_end_and_takes_its_pods_along() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("one", "4").await;
    c.create(&gvr::JOBS, job(json!({"completions": 5, "parallelism": 2}))).await;
    let done = played(&c, &gvr::JOBS, "j", |_| "Succeeded", |j| has_condition(j, "Complete")).await;
    assert_eq!(
        (&done["status"]["succeeded"], &done["status"]["uncountedTerminatedPods"]),
        (&json!(5), &json!({}))
    );
    assert!(done["status"]["completionTime"].is_string() && done["status"].get("failed").is_none());
    let pods = c.list(&gvr::PODS).await;
    assert_eq!(pods.len(), 5);
    assert!(pods.iter().all(|p| p.meta().finalizers.is_empty()));
    c.until(&gvr::EVENTS, "event", |all| all.iter().any(|e| e["reason"] == "Completed")).await;
    c.delete(&gvr::JOBS, &key("j"), Some(Propagation::Background)).await.unwrap();
    gone(&c, &gvr::PODS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_fails_says_so_and_goes_after_its_time() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("one", "4").await;
    c.create(&gvr::JOBS, job(json!({"backoffLimit": 0}))).await;
    let failed = played(&c, &gvr::JOBS, "j", |_| "Failed", |j| has_condition(j, "Failed")).await;
    assert_eq!(failed["status"]["failed"], 1);
    let reason = |c: &Value| c["type"] == "Failed" && c["reason"] == "BackoffLimitExceeded";
    assert!(failed["status"]["conditions"].as_array().unwrap().iter().any(reason), "{failed:#}");
    let patch = json!({"spec": {"ttlSecondsAfterFinished": 0}});
    c.client.merge_patch(&gvr::JOBS, &key("j"), patch).await.unwrap();
    gone(&c, &gvr::JOBS).await;
    gone(&c, &gvr::PODS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_indexed_job_fills_every_index_and_a_deleted_one_frees_its_pods() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("one", "4").await;
    let spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 3});
    c.create(&gvr::JOBS, job(spec)).await;
    let done = played(&c, &gvr::JOBS, "j", |_| "Succeeded", |j| has_condition(j, "Complete")).await;
    assert_eq!(
        (&done["status"]["completedIndexes"], &done["status"]["succeeded"]),
        (&json!("0-3"), &json!(4))
    );
    c.delete(&gvr::JOBS, &key("j"), Some(Propagation::Background)).await.unwrap();
    gone(&c, &gvr::PODS).await;

    c.create(&gvr::JOBS, job(json!({"parallelism": 3, "completions": 3}))).await;
    played(&c, &gvr::JOBS, "j", |_| "Running", |j| j["status"]["ready"] == 3).await;
    c.delete(&gvr::JOBS, &key("j"), Some(Propagation::Background)).await.unwrap();
    gone(&c, &gvr::PODS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_job_rests() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("one", "4").await;
    c.create(&gvr::JOBS, job(json!({"completions": 2, "parallelism": 2}))).await;
    played(&c, &gvr::JOBS, "j", |_| "Running", |j| j["status"]["ready"] == 2).await;
    let suspend = |on: bool| json!({"spec": {"suspend": on}});
    c.client.merge_patch(&gvr::JOBS, &key("j"), suspend(true)).await.unwrap();
    gone(&c, &gvr::PODS).await;
    let resting = played(&c, &gvr::JOBS, "j", |_| "Running", |j| has_condition(j, "Suspended")).await;
    assert!(resting["status"].get("failed").is_none(), "{resting:#}");
    c.client.merge_patch(&gvr::JOBS, &key("j"), suspend(false)).await.unwrap();
    let done = played(&c, &gvr::JOBS, "j", |_| "Succeeded", |j| has_condition(j, "Complete")).await;
    assert_eq!((&done["status"]["succeeded"], done["status"].get("failed")), (&json!(2), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cron_job_begins_the_run_that_is_due() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("one", "4").await;
    let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "c", "namespace": "default"},
        "spec": {"schedule": "* * * * *", "suspend": true, "jobTemplate": {"spec": job(json!({}))["spec"]}}});
    c.create(&CRON_JOBS, cron).await;
    let now = jiff::Timestamp::now().as_second();
    let before = machinery::time::format(jiff::Timestamp::from_second(now - 60).unwrap());
    let status = json!({"status": {"lastScheduleTime": before}});
    c.client.merge_patch_status(&CRON_JOBS, &key("c"), status).await.unwrap();
    c.client.merge_patch(&CRON_JOBS, &key("c"), json!({"spec": {"suspend": false}})).await.unwrap();
    let active = |v: &Value| v["status"]["active"].as_array().map_or(0, Vec::len);
    let running = c.until_object(&CRON_JOBS, &key("c"), |v| active(v) > 0).await;
    let name = running["status"]["active"][0]["name"].as_str().unwrap().to_string();
    assert!(name == format!("c-{}", now / 60) || name == format!("c-{}", now / 60 + 1), "{name}");
    c.client.merge_patch(&CRON_JOBS, &key("c"), json!({"spec": {"suspend": true}})).await.unwrap();
    let ended = |v: &Value| v["status"]["lastSuccessfulTime"].is_string() && active(v) == 0;
    played(&c, &CRON_JOBS, "c", |_| "Succeeded", ended).await;
    c.delete(&CRON_JOBS, &key("c"), None).await.unwrap();
    gone(&c, &gvr::JOBS).await;
    gone(&c, &gvr::PODS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_grows_updates_shrinks_and_goes() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("one", "4").await;
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}});
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": 3, "serviceName": "web", "selector": {"matchLabels": {"app": "a"}},
            "template": template("i:1"), "volumeClaimTemplates": [claim]}});
    c.create(&gvr::STATEFUL_SETS, set).await;
    let settled = |count: usize| {
        move |s: &Value| {
            let is = |field: &str| s["status"][field] == count;
            is("replicas")
                && is("readyReplicas")
                && is("updatedReplicas")
                && is("currentReplicas")
                && s["status"]["observedGeneration"] == s["metadata"]["generation"]
                && s["status"]["currentRevision"] == s["status"]["updateRevision"]
        }
    };
    // Pods come one after the other.
    c.until(&gvr::PODS, "the first pod", |all| all.len() == 1).await;
    let full = played(&c, &gvr::STATEFUL_SETS, "web", |_| "Running", settled(3)).await;
    assert_eq!(pod_names(&c).await, ["web-0", "web-1", "web-2"]);
    assert_eq!(c.list(&gvr::PERSISTENT_VOLUME_CLAIMS).await.len(), 3);
    let update = |image: &str| json!({"spec": {"template": template(image)}});
    c.client.merge_patch(&gvr::STATEFUL_SETS, &key("web"), update("i:2")).await.unwrap();
    let second = played(&c, &gvr::STATEFUL_SETS, "web", |_| "Running", settled(3)).await;
    assert_ne!(second["status"]["currentRevision"], full["status"]["currentRevision"]);
    for pod in c.list(&gvr::PODS).await {
        assert_eq!(pod.value().unwrap()["spec"]["containers"][0]["image"], "i:2");
    }
    c.client.merge_patch(&gvr::STATEFUL_SETS, &key("web"), update("i:1")).await.unwrap();
    let third = played(&c, &gvr::STATEFUL_SETS, "web", |_| "Running", settled(3)).await;
    assert_eq!(
        third["status"]["currentRevision"], full["status"]["currentRevision"],
        "the old one came back"
    );
    assert_eq!(c.list(&REVISIONS).await.len(), 2);
    c.client.merge_patch(&gvr::STATEFUL_SETS, &key("web"), json!({"spec": {"replicas": 1}})).await.unwrap();
    played(&c, &gvr::STATEFUL_SETS, "web", |_| "Running", settled(1)).await;
    assert_eq!(pod_names(&c).await, ["web-0"]);
    c.delete(&gvr::STATEFUL_SETS, &key("web"), None).await.unwrap();
    gone(&c, &gvr::PODS).await;
    gone(&c, &REVISIONS).await;
    assert_eq!(c.list(&gvr::PERSISTENT_VOLUME_CLAIMS).await.len(), 3, "data stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_covers_the_nodes_and_follows_them() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    for node in ["one", "two"] {
        c.node(node, "4").await;
    }
    // Tainted from the start: such a taint drives away nobody who was there before it was seen.
    let kept = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "kept"},
        "spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]}});
    c.create(&gvr::NODES, kept).await;
    let cordon = json!({"spec": {"unschedulable": true}});
    c.client.merge_patch(&gvr::NODES, &ObjectKey::cluster("two"), cordon).await.unwrap();
    let set = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template("i:1")}});
    c.create(&gvr::DAEMON_SETS, set).await;
    let settled = |count: usize| {
        move |s: &Value| {
            let is = |field: &str| s["status"][field] == count;
            is("desiredNumberScheduled")
                && is("numberReady")
                && is("updatedNumberScheduled")
                && is("numberAvailable")
                && s["status"]["observedGeneration"] == s["metadata"]["generation"]
        }
    };
    let nodes = async || {
        let pods = c.list(&gvr::PODS).await;
        let mut nodes: Vec<String> = pods
            .iter()
            .map(|p| p.value().unwrap()["spec"]["nodeName"].as_str().unwrap_or("?").into())
            .collect();
        nodes.sort();
        nodes
    };
    played(&c, &gvr::DAEMON_SETS, "d", |_| "Running", settled(2)).await;
    assert_eq!(nodes().await, ["one", "two"], "cordons do not keep daemons away, taints do");
    c.node("three", "4").await;
    played(&c, &gvr::DAEMON_SETS, "d", |_| "Running", settled(3)).await;
    let update = json!({"spec": {"template": template("i:2")}});
    c.client.merge_patch(&gvr::DAEMON_SETS, &key("d"), update).await.unwrap();
    played(&c, &gvr::DAEMON_SETS, "d", |_| "Running", settled(3)).await;
    assert_eq!(nodes().await, ["one", "three", "two"]);
    assert_eq!(c.list(&REVISIONS).await.len(), 2);
    let narrow = json!({"spec": {"template": {"spec": {"nodeSelector": {"no": "where"}}}}});
    c.client.merge_patch(&gvr::DAEMON_SETS, &key("d"), narrow).await.unwrap();
    gone(&c, &gvr::PODS).await;
    let idle =
        played(&c, &gvr::DAEMON_SETS, "d", |_| "Running", |s| s["status"]["desiredNumberScheduled"] == 0)
            .await;
    assert_eq!(idle["status"]["currentNumberScheduled"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_that_runs_in_it() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("one", "4").await;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    c.create(&gvr::NAMESPACES, space).await;
    let mut running = job(json!({"parallelism": 2, "completions": 9}));
    let spec =
        json!({"selector": {"matchLabels": {"app": "a"}}, "template": template("i:1"), "serviceName": "s"});
    let metadata = json!({"name": "s", "namespace": "shop"});
    running["metadata"]["namespace"] = json!("shop");
    c.create(&gvr::JOBS, running).await;
    for (gvr, kind) in [(&gvr::STATEFUL_SETS, "StatefulSet"), (&gvr::DAEMON_SETS, "DaemonSet")] {
        let mut spec = spec.clone();
        if kind == "DaemonSet" {
            spec.as_object_mut().unwrap().remove("serviceName");
        }
        c.create(gvr, json!({"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": spec}))
            .await;
    }
    let all_run = |pods: &[Value]| pods.len() == 4 && pods.iter().all(|p| p["spec"]["nodeName"].is_string());
    c.until(&gvr::PODS, "four pods", all_run).await;
    play(&c, |_| "Running").await;
    c.delete(&gvr::NAMESPACES, &ObjectKey::cluster("shop"), None).await.unwrap();
    gone(&c, &gvr::PODS).await;
    c.until_gone(&gvr::NAMESPACES, &ObjectKey::cluster("shop")).await;
    for gvr in [&gvr::JOBS, &gvr::STATEFUL_SETS, &gvr::DAEMON_SETS, &REVISIONS] {
        assert!(c.list(gvr).await.is_empty(), "{gvr:?}");
    }
}
