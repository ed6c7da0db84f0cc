//! An important pod gets its place over the real API: the scheduler asks others to go, the test plays the agents.

use crate::extender::extender;
use crate::harness::{Cluster, cluster, key};
use k8s_schema::{Gvr, gvr};
use serde_json::{Value, json};

const CLASSES: Gvr = Gvr::new("scheduling.k8s.io", "v1", "priorityclasses");
const BUDGETS: Gvr = Gvr::new("policy", "v1", "poddisruptionbudgets");

impl Cluster {
    async fn ranked(&self, name: &str, class: &str, cpu: &str) {
        let mut spec = json!({"terminationGracePeriodSeconds": 30,
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]});
        if !class.is_empty() {
            spec["priorityClassName"] = json!(class);
        }
        let metadata = json!({"name": name, "namespace": "default", "labels": {"app": name}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        self.create(&gvr::PODS, pod).await;
    }

    async fn bound(&self, name: &str) -> Value {
        self.until_object(&gvr::PODS, &key(name), |p| p["spec"]["nodeName"].is_string()).await
    }

    async fn class(&self, name: &str, value: i32, policy: &str) {
        let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "preemptionPolicy": policy});
        self.create(&CLASSES, class).await;
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_important_pod_takes_the_place_of_the_least_important() {
    let cluster = cluster().await;
    for (name, value, policy) in
        [("low", 1, "Never"), ("high", 100, "PreemptLowerPriority"), ("meek", 100, "Never")]
    {
        cluster.class(name, value, policy).await;
    }
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "b", "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}}});
    cluster.create(&BUDGETS, budget).await;
    cluster.node("one", "1").await;
    let _scheduler = cluster.scheduler();
    cluster.ranked("guarded", "", "600m").await;
    cluster.bound("guarded").await;
    cluster.node("two", "1").await;
    cluster.ranked("victim", "low", "600m").await;
    assert_eq!(cluster.bound("victim").await["spec"]["nodeName"], "two");
    cluster.play_agents().await;

    cluster.ranked("meek", "meek", "600m").await;
    let waits = |p: &Value| condition(p, "PodScheduled").is_some_and(|c| c["reason"] == "Unschedulable");
    let meek = cluster.until_object(&gvr::PODS, &key("meek"), waits).await;
    assert_eq!(
        condition(&meek, "PodScheduled").unwrap()["message"],
        "0/2 nodes are available: 2 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
    );
    cluster.client.delete(&gvr::PODS, &key("meek"), client::DeleteOptions::default()).await.unwrap();

    // The guarded pod has the lower priority, but its budget would break.
    cluster.ranked("vip", "high", "600m").await;
    let going = |p: &Value| p["metadata"]["deletionTimestamp"].is_string();
    let victim = cluster.until_object(&gvr::PODS, &key("victim"), going).await;
    let target = condition(&victim, "DisruptionTarget").unwrap();
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("PreemptionByScheduler")));
    assert_eq!(target["message"], "default-scheduler: preempting to accommodate a higher priority pod");
    assert_eq!(victim["metadata"]["deletionGracePeriodSeconds"], 30);
    let vip =
        cluster.until_object(&gvr::PODS, &key("vip"), |p| p["status"]["nominatedNodeName"] == "two").await;
    assert!(vip["spec"]["nodeName"].is_null(), "its place is not free yet");
    let uid = vip["metadata"]["uid"].as_str().unwrap().to_string();
    let told = format!("Preempted by pod {uid} on node two");
    let said = |all: &[Value]| all.iter().any(|e| e["reason"] == "Preempted" && e["message"] == told);
    cluster.until(&gvr::EVENTS, "the victim's event", said).await;
    cluster.ranked("late", "", "600m").await;
    cluster.until_object(&gvr::PODS, &key("late"), waits).await;

    cluster.play_agents().await;
    let vip = cluster.bound("vip").await;
    assert_eq!(vip["spec"]["nodeName"], "two");
    assert!(vip["status"]["nominatedNodeName"].is_null(), "it has what it was promised");
    let late = cluster.client.get(&gvr::PODS, &key("late")).await.unwrap().value().unwrap();
    assert!(late["spec"]["nodeName"].is_null(), "a promised place is nobody else's");
    let guarded = cluster.client.get(&gvr::PODS, &key("guarded")).await.unwrap().value().unwrap();
    assert!(!going(&guarded));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extender_may_drop_a_node_of_victims() {
    let cluster = cluster().await;
    let config = extender("preemptVerb: preempt", |path, asked| {
        assert_eq!((path, &asked["Pod"]["metadata"]["name"]), ("/preempt", &json!("vip")));
        let left = |node: &str| {
            let pods = asked["NodeNameToVictims"][node]["Pods"].as_array().unwrap();
            let pods: Vec<Value> = pods.iter().map(|p| json!({"UID": p["metadata"]["uid"]})).collect();
            json!({"Pods": pods, "NumPDBViolations": 0})
        };
        assert_ne!(left("one")["Pods"], json!([]), "it is among those to choose from");
        json!({"NodeNameToMetaVictims": {"two": left("two")}})
    });
    let _scheduler = cluster.scheduler_with(config.await);
    for (name, value) in [("least", 1), ("less", 5), ("high", 100)] {
        cluster.class(name, value, "PreemptLowerPriority").await;
    }
    for (node, class) in [("one", "least"), ("two", "less")] {
        cluster.node(node, "1").await;
        let victim = format!("victim-{node}");
        cluster.ranked(&victim, class, "600m").await;
        assert_eq!(cluster.bound(&victim).await["spec"]["nodeName"], node);
    }
    cluster.play_agents().await;
    cluster.ranked("vip", "high", "600m").await;
    let going = |p: &Value| p["metadata"]["deletionTimestamp"].is_string();
    cluster.until_object(&gvr::PODS, &key("victim-two"), going).await;
    cluster.play_agents().await;
    assert_eq!(cluster.bound("vip").await["spec"]["nodeName"], "two");
    let spared = cluster.client.get(&gvr::PODS, &key("victim-one")).await.unwrap().value().unwrap();
    assert!(!going(&spared), "the less important one, but the extender keeps its node");
}
