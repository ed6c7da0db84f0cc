//! ReplicaSets, Deployments and the scheduler, with a test that plays the node agent by hand.

use crate::harness::{Cluster, PATIENCE, cluster, key};
use client::{ObjectKey, Propagation};
use k8s_schema::gvr;
use serde_json::{Value, json};

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image,
        "resources": {"requests": {"cpu": "100m"}}}]}})
}

fn deployment(spec: Value) -> Value {
    let mut body = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template("i:1")}});
    for (field, value) in spec.as_object().unwrap() {
        body["spec"][field] = value.clone();
    }
    body
}

impl Cluster {
    pub async fn node(&self, name: &str, cpu: &str) {
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        self.create(&gvr::NODES, node).await;
        let list = json!({"cpu": cpu, "memory": "4Gi", "pods": "110"});
        let now = machinery::time::format(jiff::Timestamp::now());
        let ready = json!({"type": "Ready", "status": "True", "reason": "x", "message": "y",
            "lastHeartbeatTime": now, "lastTransitionTime": now});
        let conditions = [ready.clone()];
        let status = json!({"status": {"capacity": list, "allocatable": list, "conditions": conditions}});
        self.client.merge_patch_status(&gvr::NODES, &ObjectKey::cluster(name), status).await.unwrap();
        // On a busy machine a test may take longer than a silent node counts as alive.
        let (client, key) = (self.client.clone(), ObjectKey::cluster(name));
        tokio::spawn(async move {
            let mut ready = ready;
            loop {
                tokio::time::sleep(std::time::Duration::from_secs(5)).await;
                ready["lastHeartbeatTime"] = json!(machinery::time::format(jiff::Timestamp::now()));
                let beat = json!({"status": {"conditions": [ready]}});
                if client.merge_patch_status(&gvr::NODES, &key, beat).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Plays the agents once: bound pods run and are ready, those that are going are gone.
    pub async fn play_agents(&self) {
        for pod in self.list(&gvr::PODS).await {
            let value = pod.value().unwrap();
            if !value["spec"]["nodeName"].is_string() {
                continue;
            }
            if value["metadata"]["deletionTimestamp"].is_string() {
                let options = client::DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
                let _ = self.client.delete(&gvr::PODS, &pod.key, options).await;
            } else if value["status"]["phase"] != "Running" {
                let status = json!({"status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
                let _ = self.client.merge_patch_status(&gvr::PODS, &pod.key, status).await;
            }
        }
    }

    /// Plays the agents until the Deployment is as wanted.
    async fn deployed(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < deadline {
            self.play_agents().await;
            let value = self.client.get(&gvr::DEPLOYMENTS, &key("web")).await.unwrap().value().unwrap();
            if wanted(&value) {
                return value;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let value = self.client.get(&gvr::DEPLOYMENTS, &key("web")).await.unwrap().value().unwrap();
        let sets = self.list(&gvr::REPLICA_SETS).await;
        let sets: Vec<Value> = sets.iter().map(|s| s.value().unwrap()).collect();
        panic!("{what}: {value:#}\n{}", json!(sets));
    }

    async fn patch(&self, patch: Value) {
        self.client.merge_patch(&gvr::DEPLOYMENTS, &key("web"), patch).await.unwrap();
    }

    /// The images of pods, with or without those on their way out.
    async fn images(&self, counted: fn(&Value) -> bool) -> Vec<String> {
        let pods = self.list(&gvr::PODS).await;
        let values = pods.iter().map(|p| p.value().unwrap()).filter(counted);
        values.map(|v| v["spec"]["containers"][0]["image"].as_str().unwrap().to_string()).collect()
    }

    async fn events(&self, reason: &str) -> Vec<String> {
        let all = self.until(&gvr::EVENTS, reason, |all| all.iter().any(|e| e["reason"] == reason)).await;
        let texts = all.iter().filter(|e| e["reason"] == reason);
        texts.map(|e| e["message"].as_str().unwrap().to_string()).collect()
    }
}

/// What `kubectl rollout status` waits for.
fn is_rolled_out(d: &Value) -> bool {
    let count = |field: &str| d["status"][field].as_i64().unwrap_or(0);
    let wanted = d["spec"]["replicas"].as_i64().unwrap();
    count("observedGeneration") >= d["metadata"]["generation"].as_i64().unwrap()
        && count("updatedReplicas") == wanted
        && count("replicas") == wanted
        && count("availableReplicas") == wanted
}

fn stays(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
}

fn revision(d: &Value) -> &str {
    d["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str().unwrap_or_default()
}

fn condition_of<'a>(d: &'a Value, kind: &str) -> Option<&'a Value> {
    d["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

fn condition<'a>(d: &'a Value, kind: &str) -> &'a str {
    condition_of(d, kind).map_or("", |c| c["reason"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_out_forth_and_back() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("one", "4").await;
    c.create(&gvr::DEPLOYMENTS, deployment(json!({}))).await;
    let first = c
        .deployed("first", |d| is_rolled_out(d) && condition(d, "Progressing") == "NewReplicaSetAvailable")
        .await;
    assert_eq!((revision(&first), condition(&first, "Available")), ("1", "MinimumReplicasAvailable"));
    assert_eq!(first["metadata"]["generation"], 1, "the revision is no new wish");
    let set = c.list(&gvr::REPLICA_SETS).await.remove(0).value().unwrap();
    let hash = set["metadata"]["labels"]["pod-template-hash"].as_str().unwrap();
    assert_eq!(set["metadata"]["name"], format!("web-{hash}"));
    assert!(
        c.events("ScalingReplicaSet")
            .await
            .contains(&format!("Scaled up replica set web-{hash} from 0 to 3"))
    );
    assert!(c.events("Scheduled").await[0].starts_with("Successfully assigned default/web-"));
    assert!(c.events("SuccessfulCreate").await[0].starts_with(&format!("Created pod: web-{hash}-")));

    c.patch(json!({"spec": {"template": template("i:2")}})).await;
    let second = c.deployed("second", |d| is_rolled_out(d) && revision(d) == "2").await;
    assert_eq!(condition(&second, "Available"), "MinimumReplicasAvailable");
    assert_eq!(c.images(stays).await, ["i:2"; 3]);

    c.patch(json!({"spec": {"template": template("i:1")}})).await;
    c.deployed("undone", |d| is_rolled_out(d) && revision(d) == "3").await;
    let sets = c.list(&gvr::REPLICA_SETS).await;
    assert_eq!(sets.len(), 2, "the old set came back");
    let back = sets.iter().find(|s| *s.key.name == *format!("web-{hash}")).unwrap();
    assert_eq!(back.meta().annotations["deployment.kubernetes.io/revision-history"], "1");
    assert_eq!(c.images(stays).await, ["i:1"; 3]);

    c.patch(json!({"spec": {"replicas": 5}})).await;
    c.deployed("scaled", |d| is_rolled_out(d) && d["status"]["replicas"] == 5).await;
    c.patch(json!({"spec": {"replicas": 0}})).await;
    c.deployed("emptied", |d| is_rolled_out(d) && d["status"]["replicas"].is_null()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreate_never_mixes_versions_and_a_pause_holds() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("one", "4").await;
    c.create(&gvr::DEPLOYMENTS, deployment(json!({"strategy": {"type": "Recreate"}}))).await;
    c.deployed("first", is_rolled_out).await;
    c.patch(json!({"spec": {"paused": true, "template": template("i:2")}})).await;
    c.deployed("paused", |d| condition(d, "Progressing") == "DeploymentPaused").await;
    assert_eq!(c.images(|_| true).await, ["i:1"; 3]);
    c.patch(json!({"spec": {"paused": false}})).await;
    for _ in 0..2_000 {
        let images = c.images(|_| true).await;
        assert!(images.windows(2).all(|w| w[0] == w[1]), "{images:?}");
        if images == ["i:2"; 3] {
            break;
        }
        c.play_agents().await;
    }
    c.deployed("second", |d| is_rolled_out(d) && revision(d) == "2").await;
    c.delete(&gvr::DEPLOYMENTS, &key("web"), Some(Propagation::Foreground)).await.unwrap();
    let mut left = vec![c.client.get(&gvr::DEPLOYMENTS, &key("web")).await.unwrap()];
    let began = std::time::Instant::now();
    while !left.is_empty() && began.elapsed() < PATIENCE {
        c.play_agents().await;
        left.clear();
        for gvr in [gvr::DEPLOYMENTS, gvr::REPLICA_SETS, gvr::PODS] {
            left.extend(c.list(&gvr).await);
        }
    }
    let left: Vec<Value> = left.iter().map(|o| o.value().unwrap()).collect();
    assert!(left.is_empty(), "{}", json!(left));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_adopts_releases_and_replaces_pods() {
    let c = cluster().await;
    c.node("one", "4").await;
    // News of the set may come before that of the pod. Among one too many, who has a node stays.
    let mut spec = template("i:0")["spec"].clone();
    spec["nodeName"] = json!("one");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare", "namespace": "default",
        "labels": {"app": "web"}}, "spec": spec});
    c.create(&gvr::PODS, pod).await;
    let set = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template("i:1")}});
    c.create(&gvr::REPLICA_SETS, set).await;
    let full = |v: &Value| v["status"]["replicas"] == 2;
    c.until_object(&gvr::REPLICA_SETS, &key("web"), full).await;
    let adopted = |v: &Value| v["metadata"]["ownerReferences"][0]["name"] == "web";
    c.until_object(&gvr::PODS, &key("bare"), adopted).await;
    c.until(&gvr::PODS, "two", |all| all.len() == 2).await;

    let label = json!({"metadata": {"labels": {"app": "other"}}});
    c.client.merge_patch(&gvr::PODS, &key("bare"), label).await.unwrap();
    let free = |v: &Value| v["metadata"].get("ownerReferences").is_none_or(|o| o == &json!([]));
    c.until_object(&gvr::PODS, &key("bare"), free).await;
    c.until(&gvr::PODS, "a replacement", |all| all.len() == 3).await;

    c.client.merge_patch(&gvr::REPLICA_SETS, &key("web"), json!({"spec": {"replicas": 50}})).await.unwrap();
    c.until(&gvr::PODS, "fifty", |all| all.len() == 51).await;
    c.client.merge_patch(&gvr::REPLICA_SETS, &key("web"), json!({"spec": {"replicas": 1}})).await.unwrap();
    c.until(&gvr::PODS, "one", |all| all.len() == 2).await;
    let one = |v: &Value| v["status"]["replicas"] == 1 && v["status"]["observedGeneration"] == 3;
    c.until_object(&gvr::REPLICA_SETS, &key("web"), one).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_fit_nowhere_say_why_and_go_where_room_appears() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("small", "150m").await;
    c.create(&gvr::DEPLOYMENTS, deployment(json!({"replicas": 2}))).await;
    let bound = |all: &[Value]| all.iter().filter(|p| p["spec"]["nodeName"].is_string()).count();
    let waits = |p: &Value| {
        let conditions = p["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "Unschedulable")
    };
    c.until(&gvr::PODS, "one fits", |all| bound(all) == 1 && all.iter().filter(|p| waits(p)).count() == 1)
        .await;
    let told = c.events("FailedScheduling").await;
    assert!(told[0].starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{told:?}");
    c.node("big", "2").await;
    let pods = c.until(&gvr::PODS, "both fit", |all| bound(all) == 2).await;
    assert!(pods.iter().any(|p| p["spec"]["nodeName"] == "big"));
    assert!(!pods.iter().any(waits), "bound pods have PodScheduled=True");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_that_cannot_go_on_is_told_and_heals() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.create(&gvr::DEPLOYMENTS, deployment(json!({"progressDeadlineSeconds": 2, "minReadySeconds": 1})))
        .await;
    let late = c.deployed("deadline", |d| condition(d, "Progressing") == "ProgressDeadlineExceeded").await;
    assert_eq!(condition(&late, "Available"), "MinimumReplicasUnavailable");
    assert_eq!(late["status"]["unavailableReplicas"], 3);
    c.node("one", "4").await;
    c.deployed("healed", |d| is_rolled_out(d) && condition(d, "Progressing") == "NewReplicaSetAvailable")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_cannot_be_made_show_up_to_the_deployment() {
    let c = cluster().await;
    let mut bad = template("i:1");
    bad["spec"]["priorityClassName"] = json!("nobody-made-it");
    c.create(&gvr::DEPLOYMENTS, deployment(json!({"template": bad}))).await;
    let failed = c.deployed("failure", |d| condition_of(d, "ReplicaFailure").is_some()).await;
    let failure = condition_of(&failed, "ReplicaFailure").unwrap();
    assert_eq!(
        (failure["status"].as_str(), failure["reason"].as_str()),
        (Some("True"), Some("FailedCreate"))
    );
    assert!(failure["message"].as_str().unwrap().contains("nobody-made-it"), "{failure}");
    assert!(c.events("FailedCreate").await[0].starts_with("Error creating: "));
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1,
        "metadata": {"name": "nobody-made-it"}});
    c.create(&gvr::PRIORITY_CLASSES, class).await;
    c.deployed("healed", |d| condition_of(d, "ReplicaFailure").is_none() && d["status"]["replicas"] == 3)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_set_name_is_counted_and_another_is_found() {
    let c = cluster().await;
    c.create(&gvr::DEPLOYMENTS, deployment(json!({"replicas": 0}))).await;
    let made = c.until(&gvr::REPLICA_SETS, "a set", |all| all.len() == 1).await.remove(0);
    c.delete(&gvr::DEPLOYMENTS, &key("web"), None).await.unwrap();
    c.until(&gvr::REPLICA_SETS, "gone", <[Value]>::is_empty).await;
    // Somebody else's set has the name that the same template leads to.
    let name = made["metadata"]["name"].as_str().unwrap();
    let foreign = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"x": "y"}},
            "template": {"metadata": {"labels": {"x": "y"}}, "spec": template("i:9")["spec"]}}});
    c.create(&gvr::REPLICA_SETS, foreign).await;
    c.create(&gvr::DEPLOYMENTS, deployment(json!({"replicas": 1}))).await;
    let sets = c.until(&gvr::REPLICA_SETS, "another name", |all| all.len() == 2).await;
    let ours = sets.iter().find(|s| s["metadata"]["name"] != name).unwrap();
    assert_eq!(ours["metadata"]["ownerReferences"][0]["name"], "web");
    let counted = c.deployed("counted", |d| d["status"]["collisionCount"] == 1).await;
    assert_eq!(counted["metadata"]["name"], "web");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_controller_keeps_its_pods() {
    let c = cluster().await;
    let controllers = k8s_schema::Gvr::new("", "v1", "replicationcontrollers");
    let body = json!({"apiVersion": "v1", "kind": "ReplicationController",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": 2, "selector": {"app": "web"}, "template": template("i:1")}});
    c.create(&controllers, body).await;
    let pods = c.until(&gvr::PODS, "two", |all| all.len() == 2).await;
    assert_eq!(pods[0]["metadata"]["ownerReferences"][0]["kind"], "ReplicationController");
    let lost = ObjectKey::new("default", pods[0]["metadata"]["name"].as_str().unwrap());
    c.delete(&gvr::PODS, &lost, None).await.unwrap();
    let replaced = |all: &[Value]| all.len() == 2 && all.iter().all(|p| p["metadata"]["name"] != *lost.name);
    c.until(&gvr::PODS, "a replacement", replaced).await;
    c.until_object(&controllers, &key("web"), |v| v["status"]["replicas"] == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rival_schedulers_bind_each_pod_once() {
    let c = cluster().await;
    let _rivals = [c.scheduler(), c.scheduler(), c.scheduler()];
    for node in ["one", "two"] {
        c.node(node, "100").await;
    }
    c.create(&gvr::DEPLOYMENTS, deployment(json!({"replicas": 100}))).await;
    let bound = |all: &[Value]| all.iter().filter(|p| p["spec"]["nodeName"].is_string()).count() == 100;
    c.until(&gvr::PODS, "all bound", bound).await;
    c.deployed("all run", is_rolled_out).await;
}

/// Whatever users do to it, in whatever order: once they stop, a Deployment gets to where it was told to be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_harried_deployment_converges() {
    let c = cluster().await;
    let _scheduler = c.scheduler();
    c.node("one", "100").await;
    c.create(&gvr::DEPLOYMENTS, deployment(json!({}))).await;
    let mut dice: u64 = 7;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    for _ in 0..150 {
        let pods = c.list(&gvr::PODS).await;
        let sets = c.list(&gvr::REPLICA_SETS).await;
        match roll(8) {
            0 => c.patch(json!({"spec": {"replicas": roll(9)}})).await,
            1 => c.patch(json!({"spec": {"template": template(&format!("i:{}", roll(4)))}})).await,
            2 => c.patch(json!({"spec": {"paused": roll(2) == 0}})).await,
            3 if !pods.is_empty() => {
                let pod = &pods[usize::try_from(roll(pods.len() as u64)).unwrap()];
                let _ = c.delete(&gvr::PODS, &pod.key, None).await;
            }
            4 if !sets.is_empty() => {
                let set = &sets[usize::try_from(roll(sets.len() as u64)).unwrap()];
                let patch = json!({"spec": {"replicas": roll(6)}});
                let _ = c.client.merge_patch(&gvr::REPLICA_SETS, &set.key, patch).await;
            }
            5 if !sets.is_empty() && roll(4) == 0 => {
                let set = &sets[usize::try_from(roll(sets.len() as u64)).unwrap()];
                let _ = c.delete(&gvr::REPLICA_SETS, &set.key, None).await;
            }
            _ => c.play_agents().await,
        }
    }
    c.patch(json!({"spec": {"replicas": 4, "paused": false, "template": template("i:9")}})).await;
    let done = |d: &Value| is_rolled_out(d) && condition(d, "Progressing") == "NewReplicaSetAvailable";
    c.deployed("settled", done).await;
    let clean =
        |all: &[Value]| all.len() == 4 && all.iter().all(|p| p["spec"]["containers"][0]["image"] == "i:9");
    for _ in 0..500 {
        c.play_agents().await;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    c.until(&gvr::PODS, "no pod too many", clean).await;
    assert!(c.list(&gvr::REPLICA_SETS).await.len() <= 11, "ten old sets are kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_told_when_the_taint_that_would_have_driven_it_away_goes() {
    let cluster = cluster().await;
    cluster.node("one", "4").await;
    let taint = |taints: Value| json!({"spec": {"taints": taints}});
    let patch = client::PatchKind::Merge;
    for (name, seconds) in [("stays", Some(600)), ("goes", None)] {
        let tolerations: Vec<Value> = seconds
            .map(|n| json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": n}))
            .into_iter()
            .collect();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"nodeName": "one", "tolerations": tolerations, "containers": [{"name": "c", "image": "i"}]}});
        cluster.create(&gvr::PODS, pod).await;
    }
    let change = |taints: Value| {
        let verb = client::Verb::Patch(patch, taint(taints));
        client::Write { gvr: gvr::NODES, key: ObjectKey::cluster("one"), subresource: "", verb }
    };
    cluster.client.write(change(json!([{"key": "k", "effect": "NoExecute"}]))).await.unwrap();
    // One look at the node drives the one away and starts the other's time; the next one comes after it.
    let going = |p: &Value| p["metadata"]["deletionTimestamp"].is_string();
    let goes = |all: &[Value]| all.iter().all(|p| p["metadata"]["name"] != "goes" || going(p));
    cluster.until(&gvr::PODS, "the other one goes", goes).await;
    cluster.client.write(change(Value::Null)).await.unwrap();
    let told = |all: &[Value]| {
        all.iter().any(|e| {
            e["reason"] == "TaintManagerEviction"
                && e["message"] == "Cancelling deletion of Pod default/stays"
        })
    };
    cluster.until(&gvr::EVENTS, "it is told", told).await;
    assert!(!going(&cluster.client.get(&gvr::PODS, &key("stays")).await.unwrap().value().unwrap()));
}
