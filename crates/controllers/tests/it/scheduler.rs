//! What the scheduler does over the real API beyond single pods: groups of pods, extenders.

use crate::extender::extender;
use crate::harness::{Cluster, cluster, cluster_with, key};
use client::{Verb, Write};
use controllers::{Call, SchedulerConfig};
use k8s_schema::{Gates, gvr};
use parking_lot::Mutex;
use sched::extend::Extender;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Cluster {
    async fn asks(&self, name: &str, cpu: &str, group: &str) {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}});
        if !group.is_empty() {
            pod["spec"]["schedulingGroup"] = json!({"podGroupName": group});
        }
        self.create(&gvr::PODS, pod).await;
    }

    async fn node_of(&self, name: &str) -> String {
        let bound = |p: &Value| p["spec"]["nodeName"].is_string();
        let pod = self.until_object(&gvr::PODS, &key(name), bound).await;
        pod["spec"]["nodeName"].as_str().unwrap().to_string()
    }

    async fn told(&self, name: &str, message: &str) {
        let told = |p: &Value| {
            let all = p["status"]["conditions"].as_array().cloned().unwrap_or_default();
            all.iter()
                .any(|c| c["type"] == "PodScheduled" && c["message"].as_str().unwrap_or("").contains(message))
        };
        self.until_object(&gvr::PODS, &key(name), told).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_is_placed_when_all_of_it_fits() {
    let gates = Gates::parse("GenericWorkload=true,GangScheduling=true").unwrap();
    let cluster = cluster_with(gates.clone()).await;
    let _scheduler = cluster.scheduler_with(SchedulerConfig { gates, ..SchedulerConfig::default() });
    let meta = json!({"name": "g", "namespace": "default"});
    let group = json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup", "metadata": meta,
        "spec": {"schedulingPolicy": {"gang": {"minCount": 2}},
            "podGroupTemplateRef": {"workload": {"workloadName": "w", "podGroupTemplateName": "t"}}}});
    let refused = cluster.client.create(&gvr::POD_GROUPS, group.clone()).await.unwrap_err();
    assert!(refused.message.contains("PodGroup rejected: Workload \"w\" not found"), "{}", refused.message);
    let workload = json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "Workload",
        "metadata": {"name": "w", "namespace": "default"}, "spec": {"podGroupTemplates": [
            {"name": "t", "priority": 7, "schedulingPolicy": {"gang": {"minCount": 2}}}]}});
    let workload = cluster.create(&gvr::WORKLOADS, workload).await.value().unwrap();
    assert!(workload["spec"]["podGroupTemplates"][0].get("priority").is_none(), "a field of another gate");
    let group = cluster.create(&gvr::POD_GROUPS, group).await.value().unwrap();
    assert_eq!(group["metadata"]["finalizers"], json!(["scheduling.k8s.io/podgroup-protection"]));

    cluster.node("one", "1").await;
    cluster.asks("a", "1", "g").await;
    cluster.asks("b", "1", "g").await;
    cluster
        .told("a", "pod group is unschedulable, waiting for minCount pods from a gang to be scheduled")
        .await;
    cluster.told("b", "0/1 nodes are available: 1 Insufficient cpu.").await;
    let says = |status: &'static str, reason: &'static str| {
        move |g: &Value| {
            let c = &g["status"]["conditions"][0];
            c["type"] == "PodGroupScheduled" && c["status"] == status && c["reason"] == reason
        }
    };
    cluster.until_object(&gvr::POD_GROUPS, &key("g"), says("False", "Unschedulable")).await;
    cluster.node("two", "1").await;
    assert_ne!(cluster.node_of("a").await, cluster.node_of("b").await);
    cluster.until_object(&gvr::POD_GROUPS, &key("g"), says("True", "Scheduled")).await;

    // The group stays until its pods are gone.
    cluster.delete(&gvr::POD_GROUPS, &key("g"), None).await.unwrap();
    for name in ["a", "b"] {
        assert!(cluster.client.get(&gvr::POD_GROUPS, &key("g")).await.is_ok());
        cluster.delete(&gvr::PODS, &key(name), None).await.unwrap();
        cluster.play_agents().await;
    }
    cluster.until(&gvr::POD_GROUPS, "the group goes", |all| all.is_empty()).await;
}

#[tokio::test]
async fn without_the_feature_there_are_no_groups() {
    let cluster = cluster().await;
    cluster.asks("p", "1", "g").await;
    let pod = cluster.client.get(&gvr::PODS, &key("p")).await.unwrap().value().unwrap();
    assert!(pod["spec"].get("schedulingGroup").is_none());
    assert!(cluster.client.list(&gvr::POD_GROUPS, &Default::default()).await.unwrap_err().is_not_found());
}

/// Nodes whose names it likes, points by name; remembers what it was asked.
struct Peer(Mutex<Vec<String>>);

#[async_trait::async_trait]
impl Call for Peer {
    async fn call(&self, extender: &Extender, verb: &str, asked: &Value) -> Result<Value, String> {
        self.0.lock().push(format!("{verb} {}", asked["PodName"].as_str().unwrap_or("")).trim().to_string());
        assert_eq!(extender.url(verb), format!("http://peer/{verb}"));
        match verb {
            "filter" if asked["Pod"]["metadata"]["name"] == "cursed" => Err("down".into()),
            "filter" => {
                let items = asked["Nodes"]["items"].as_array().unwrap();
                let left: Vec<&Value> = items.iter().filter(|n| n["metadata"]["name"] != "bad").collect();
                Ok(json!({"Nodes": {"items": left}, "FailedNodes": {"bad": "out of luck"}}))
            }
            "prioritize" => Ok(json!([{"Host": "good", "Score": 1}, {"Host": "best", "Score": 10}])),
            "bind" => Ok(json!({"Error": "not today"})),
            _ => Err(format!("no such verb: {verb}")),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extenders_filter_rate_and_bind() {
    let cluster = cluster().await;
    for name in ["bad", "best", "good"] {
        cluster.node(name, "2").await;
    }
    let text = "{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, extenders: [\
        {urlPrefix: 'http://peer/', filterVerb: filter, prioritizeVerb: prioritize, weight: 5}, \
        {urlPrefix: 'http://peer', bindVerb: bind, managedResources: [{name: x.io/d, ignoredByScheduler: true}]}]}";
    let peer = Arc::new(Peer(Mutex::default()));
    let configuration = sched::config::read(text.as_bytes()).unwrap();
    let calls = Some(peer.clone() as Arc<dyn Call>);
    let _scheduler = cluster.scheduler_with(SchedulerConfig { calls, configuration, ..Default::default() });
    cluster.asks("p", "2", "").await;
    assert_eq!(cluster.node_of("p").await, "best");
    cluster.asks("q", "2", "").await;
    assert_eq!(cluster.node_of("q").await, "good");
    cluster.asks("r", "2", "").await;
    cluster.told("r", "0/3 nodes are available: 1 out of luck, 2 Insufficient cpu.").await;
    cluster.asks("cursed", "1m", "").await;
    let wrong = |p: &Value| p["status"]["conditions"][0]["reason"] == "SchedulerError";
    let cursed = cluster.until_object(&gvr::PODS, &key("cursed"), wrong).await;
    assert_eq!(cursed["status"]["conditions"][0]["message"], "down");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "d", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"x.io/d": "1"}}}]}});
    cluster.delete(&gvr::PODS, &key("p"), None).await.unwrap();
    cluster.create(&gvr::PODS, pod).await;
    let deadline = tokio::time::Instant::now() + crate::harness::PATIENCE;
    while !peer.0.lock().contains(&"bind d".to_string()) {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", peer.0.lock());
        tokio::task::yield_now().await;
    }
}

/// Panics at the first call of each verb; after that it lets every node be and binds.
struct Clumsy(client::ApiClient, Mutex<BTreeSet<String>>);

#[async_trait::async_trait]
impl Call for Clumsy {
    async fn call(&self, _: &Extender, verb: &str, asked: &Value) -> Result<Value, String> {
        let first = self.1.lock().insert(verb.to_string());
        assert!(!first, "clumsy {verb}");
        if verb == "filter" {
            return Ok(json!({"Nodes": asked["Nodes"]}));
        }
        let name = asked["PodName"].as_str().unwrap();
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "namespace": "default"},
            "target": {"apiVersion": "v1", "kind": "Node", "name": asked["Node"]}});
        let write =
            Write { gvr: gvr::PODS, key: key(name), subresource: "binding", verb: Verb::Create(body) };
        self.0.write(write).await.map(|_| json!({})).map_err(|e| e.message)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_costs_a_pod_no_more_than_a_pause() {
    let cluster = cluster().await;
    cluster.node("one", "1").await;
    let text = "{apiVersion: kubescheduler.config.k8s.io/v1, kind: KubeSchedulerConfiguration, extenders: [\
        {urlPrefix: 'http://clumsy', filterVerb: filter, bindVerb: bind}]}";
    let configuration = sched::config::read(text.as_bytes()).unwrap();
    let calls = Some(Arc::new(Clumsy(cluster.client.clone(), Mutex::default())) as Arc<dyn Call>);
    let _scheduler = cluster.scheduler_with(SchedulerConfig { calls, configuration, ..Default::default() });
    cluster.asks("p", "1", "").await;
    let said = |all: &[Value]| all.iter().any(|e| e["message"] == "panic: clumsy filter");
    cluster.until(&gvr::EVENTS, "the pod is told", said).await;
    assert_eq!(cluster.node_of("p").await, "one", "neither its question nor its place is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extenders_are_asked_about_each_pod_of_a_gang() {
    let gates = Gates::parse("GenericWorkload=true,GangScheduling=true").unwrap();
    let cluster = cluster_with(gates.clone()).await;
    // A pod may be on the node that its name ends with; about one pod the extender fails.
    let config = extender("filterVerb: filter", |_, asked| {
        let name = asked["Pod"]["metadata"]["name"].as_str().unwrap();
        let liked = |node: &&Value| name.ends_with(node["metadata"]["name"].as_str().unwrap());
        let items = asked["Nodes"]["items"].as_array().unwrap();
        match name {
            "bad-one" => json!({"Error": "down"}),
            _ => json!({"Nodes": {"items": items.iter().filter(liked).collect::<Vec<_>>()}}),
        }
    });
    let _scheduler = cluster.scheduler_with(SchedulerConfig { gates, ..config.await });
    let template = |name: &str| json!({"name": name, "schedulingPolicy": {"gang": {"minCount": 2}}});
    let workload = json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "Workload",
        "metadata": {"name": "w", "namespace": "default"},
        "spec": {"podGroupTemplates": [template("good"), template("bad")]}});
    cluster.create(&gvr::WORKLOADS, workload).await;
    for name in ["good", "bad"] {
        let group = json!({"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"schedulingPolicy": {"gang": {"minCount": 2}},
                "podGroupTemplateRef": {"workload": {"workloadName": "w", "podGroupTemplateName": name}}}});
        cluster.create(&gvr::POD_GROUPS, group).await;
    }
    for node in ["one", "two", "three"] {
        cluster.node(node, "2").await;
    }
    for pod in ["good-one", "good-two", "bad-one", "bad-two"] {
        cluster.asks(pod, "1", pod.split('-').next().unwrap()).await;
    }
    assert_eq!(cluster.node_of("good-one").await, "one");
    assert_eq!(cluster.node_of("good-two").await, "two");
    cluster.told("bad-one", "down").await;
    cluster.told("bad-two", "failed to schedule other pod from a pod group: down").await;
    let wrong = |g: &Value| g["status"]["conditions"][0]["reason"] == "SchedulerError";
    cluster.until_object(&gvr::POD_GROUPS, &key("bad"), wrong).await;
}
