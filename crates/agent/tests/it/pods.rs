//! The scenarios.

use crate::node::{Bench, condition, wait};
use k8s_schema::gvr::{CONFIG_MAPS, NODES};
use runtime::api::{ContainerState, PodInfo};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

fn sh(script: &str) -> Value {
    json!(["/bin/sh", "-c", script])
}

/// Sleeps and ends at once on SIGTERM.
const SLEEP: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 1000 & wait; done";

/// Waits until these pods' containers hear SIGTERM.
async fn hear(bench: &Bench, containers: &[(&str, &str, &str)]) {
    let up = || containers.iter().all(|(pod, uid, name)| bench.log(pod, uid, name, 0).contains("up"));
    wait("the traps are set", up).await;
}

async fn config_map(bench: &Bench, name: &str, text: &str) {
    let client: client::ApiClient = bench.api.clone();
    let body = json!({"metadata": {"namespace": "n", "name": name}, "data": {"k": text}});
    client.create(&CONFIG_MAPS, body).await.unwrap();
}

pub async fn runs_with_everything_it_asked_for(bench: &mut Bench) {
    assert_eq!(
        bench.api.value(&NODES, "", "node-1")["status"]["nodeInfo"]["kubeletVersion"],
        "v1.36.0+gantry"
    );
    config_map(bench, "cm", "one").await;
    let script = format!(
        "echo $WHO $K; cat /cm/k; echo; id -u; cat /etc/hostname; grep nameserver /etc/resolv.conf; \
         echo x > /shared/f; echo y > /mem/g; df /mem | tail -1 | cut -d' ' -f1; {SLEEP}"
    );
    let uid = bench
        .create("full", json!({
            "containers": [{"name": "a", "command": sh(&script), "securityContext": {"runAsUser": 65534},
                "env": [{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}],
                "volumeMounts": [{"name": "cm", "mountPath": "/cm"}, {"name": "e", "mountPath": "/shared"},
                    {"name": "m", "mountPath": "/mem"}]}],
            "volumes": [{"name": "cm", "configMap": {"name": "cm"}}, {"name": "e", "emptyDir": {}},
                {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        }))
        .await;
    let pod = bench.running("full").await;
    assert_eq!(pod["status"]["phase"], "Running");
    let ip = pod["status"]["podIP"].as_str().unwrap();
    assert!(ip.starts_with("10.99.0."), "{ip}");
    let container = &pod["status"]["containerStatuses"][0];
    assert_eq!(container["image"], "docker.io/library/box:1");
    assert_eq!(container["user"]["linux"]["uid"], 65534);
    hear(bench, &[("full", &uid, "a")]).await;
    assert_eq!(
        bench.log("full", &uid, "a", 0),
        "full one\none\n65534\nfull\nnameserver 10.98.0.10\ntmpfs\nup\n"
    );
    assert!(bench.volume(&uid, "e").join("f").exists());
    for wanted in [
        "Pulled Container image \"box:1\" already present on machine and can be accessed by the pod",
        "Created Container created",
        "Started Container started",
    ] {
        wait(wanted, || bench.events().iter().any(|e| e == wanted)).await;
    }
    // A changed ConfigMap is written anew.
    let client: client::ApiClient = bench.api.clone();
    let key = client::ObjectKey::new("n", "cm");
    client.merge_patch(&CONFIG_MAPS, &key, json!({"data": {"k": "two"}})).await.unwrap();
    let file = bench.volume(&uid, "cm").join("k");
    wait("the volume follows", || std::fs::read_to_string(&file).unwrap() == "two").await;
}

pub async fn init_containers_and_the_end_of_a_job(bench: &mut Bench) {
    let spec = json!({"restartPolicy": "Never",
        "initContainers": [{"name": "i", "command": sh("echo made > /v/f"), "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "containers": [{"name": "a", "command": sh("cat /v/f; echo bye > /dev/termination-log; exit 3"),
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "emptyDir": {}}]});
    let uid = bench.create("job", spec).await;
    let pod = bench.pod_is("job", "the job failed", |p| p["status"]["phase"] == "Failed").await;
    let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&end["exitCode"], &end["reason"], &end["message"]),
        (&json!(3), &json!("Error"), &json!("bye\n"))
    );
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"], "Completed");
    assert_eq!(bench.log("job", &uid, "a", 0), "made\n");
    wait("its sandbox is gone", || bench.live().is_empty()).await;
    // Its log stays as long as the pod does.
    assert_eq!(bench.log("job", &uid, "a", 0), "made\n");
    bench.delete("job", None).await;
    wait("it is gone", || bench.pod("job").is_null()).await;
    wait("its log is gone", || bench.log("job", &uid, "a", 0).is_empty()).await;
}

pub async fn crash_loops_and_start_errors(bench: &mut Bench) {
    bench.create("crash", json!({"containers": [{"name": "a", "command": sh("exit 1")}]})).await;
    bench.create("none", json!({"containers": [{"name": "a", "command": ["/no/such"]}]})).await;
    let looping =
        |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = bench.pod_is("crash", "it loops", looping).await;
    let container = &pod["status"]["containerStatuses"][0];
    assert_eq!(container["restartCount"], 1);
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert!(
        container["state"]["waiting"]["message"]
            .as_str()
            .unwrap()
            .starts_with("back-off 10s restarting failed container=a pod=crash_n(")
    );
    let pod = bench.pod_is("none", "it loops", looping).await;
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(128), &json!("StartError")));
    assert!(last["message"].as_str().unwrap().contains("no such file or directory"), "{last}");
}

pub async fn missing_things_are_waited_for(bench: &mut Bench) {
    let spec = |volumes: Value, image: &str| json!({"containers": [{"name": "a", "image": image, "command": sh(SLEEP)}], "volumes": volumes});
    bench.create("volume", spec(json!([{"name": "v", "configMap": {"name": "late"}}]), "box:1")).await;
    bench.create("image", spec(json!([]), "late:1")).await;
    let env = json!([{"name": "E", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}}]);
    bench.create("env", json!({"containers": [{"name": "a", "command": sh(SLEEP), "env": env}]})).await;
    bench
        .create("pvc", spec(json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]), "box:1"))
        .await;
    let waits = |reason: &'static str| {
        move |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    };
    bench.pod_is("image", "the image is missed", waits("ImagePullBackOff")).await;
    bench.pod_is("env", "the key is missed", waits("CreateContainerConfigError")).await;
    wait("the volumes are missed", || {
        let events = bench.events();
        let has = |text: &str| events.iter().any(|e| e.contains(text));
        has("FailedMount MountVolume.SetUp failed for volume \"v\" : configmap \"late\" not found")
            && has("failed to fetch PVC from API server: persistentvolumeclaims \"c\" not found")
    })
    .await;
    assert!(waits("ContainerCreating")(&bench.pod("volume")));
    config_map(bench, "late", "x").await;
    let archive = testkit::image::ImageBuilder::busybox("late:1")
        .write_docker_archive(&bench.dir.path().join("late.tar"));
    bench.images.load(&archive, &|_| {}).unwrap();
    for name in ["volume", "image", "env"] {
        bench.running(name).await;
    }
    assert!(waits("ContainerCreating")(&bench.pod("pvc")));
}

pub async fn graceful_deletion_leaves_nothing(bench: &mut Bench) {
    let spec = json!({"terminationGracePeriodSeconds": 900, "containers": [
        {"name": "a", "command": sh("trap 'echo term; exit 0' TERM; echo up; while :; do sleep 1000 & wait; done"),
         "lifecycle": {"preStop": {"exec": {"command": sh("echo hook > /proc/1/fd/1")}}}},
        {"name": "b", "command": sh(SLEEP), "lifecycle": {"postStart": {"exec": {"command": sh("echo post > /tmp/x")}}}}]});
    let uid = bench.create("del", spec).await;
    bench.running("del").await;
    hear(bench, &[("del", &uid, "a"), ("del", &uid, "b")]).await;
    let begin = Instant::now();
    bench.delete("del", None).await;
    wait("it is gone", || bench.pod("del").is_null()).await;
    println!("     delete to gone with hook: {} ms", begin.elapsed().as_millis());
    wait("nothing is left", || bench.live().is_empty() && !bench.volume(&uid, "").exists()).await;
    wait("it is told", || bench.events().iter().any(|e| e == "Killing Stopping container a")).await;
}

pub async fn a_new_agent_takes_over(bench: &mut Bench) {
    let probe = json!({"exec": {"command": ["/bin/true"]}, "periodSeconds": 1});
    let uid = bench
        .create(
            "stays",
            json!({"containers": [{"name": "a", "command": sh(SLEEP), "readinessProbe": probe}]}),
        )
        .await;
    bench.create("goes", json!({"containers": [{"name": "a", "command": sh(SLEEP)}]})).await;
    bench.create("ends", json!({"restartPolicy": "Never", "containers": [{"name": "a", "command": sh("until [ -e /go ]; do sleep 0.1; done; exit 7")}]})).await;
    let before = bench.running("stays").await;
    bench.running("goes").await;
    bench.running("ends").await;
    let pid = |bench: &Bench| {
        let pods = bench.live();
        let pod = pods.iter().find(|p| p.spec.uid == uid).unwrap();
        format!("{:?}", pod.containers[0].state)
    };
    let old = pid(bench);
    let short = bench.live().into_iter().find(|p| p.spec.name == "ends").unwrap().containers[0].state.clone();
    bench.stop().await;
    bench.delete("goes", Some(0)).await;
    if let ContainerState::Running { pid, .. } = short {
        std::fs::write(format!("/proc/{pid}/root/go"), "").unwrap();
        wait("one ends alone", || !std::path::Path::new(&format!("/proc/{pid}")).exists()).await;
    }
    bench.start().await;
    assert_eq!(pid(bench), old, "the same process runs on");
    let pod = bench
        .pod_is("ends", "an end in the agent's absence is seen", |p| p["status"]["phase"] == "Failed")
        .await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 7);
    wait("what was deleted meanwhile is gone", || bench.live().len() == 1).await;
    let after = bench.running("stays").await;
    for field in ["podIP", "startTime", "phase"] {
        assert_eq!(after["status"][field], before["status"][field], "{field}");
    }
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(
        after["status"]["containerStatuses"][0]["containerID"],
        before["status"]["containerStatuses"][0]["containerID"]
    );
}

fn up(pod: &PodInfo) -> bool {
    matches!(pod.containers[..], [ref c] if matches!(c.state, ContainerState::Running { .. }))
}

pub async fn static_pods_need_no_api(bench: &mut Bench) {
    let uid = bench.create("old", json!({"containers": [{"name": "a", "command": sh(SLEEP)}]})).await;
    let before = bench.running("old").await;
    bench.stop().await;
    bench.api.away.store(true, Ordering::Relaxed);
    let own = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own", "namespace": "n"}, "spec": {
        "containers": [{"name": "a", "image": "box:1", "imagePullPolicy": "Never", "command": sh(SLEEP)}]}});
    let manifest = bench.dir.path().join("manifests/own.yaml");
    std::fs::write(&manifest, own.to_string()).unwrap();
    bench.start_only().await;
    let own = |p: &PodInfo| p.spec.name == "own-node-1" && up(p);
    wait("the static pod runs", || bench.live().iter().any(own)).await;
    let old = bench.live().into_iter().find(|p| p.spec.uid == uid).unwrap();
    let ContainerState::Running { pid, .. } = old.containers[0].state else { panic!("what ran runs on") };
    // It ends while nobody can be asked what is to become of it.
    std::process::Command::new("/bin/kill").args(["-9", &pid.to_string()]).status().unwrap();
    wait("the end is seen", || bench.live().iter().any(|p| p.spec.uid == uid && !up(p))).await;
    bench.api.away.store(false, Ordering::Relaxed);
    bench.running("own-node-1").await;
    let restarted = |p: &Value| p["status"]["containerStatuses"][0]["restartCount"] == 1;
    let after = bench.pod_is("old", "it is started again", restarted).await;
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    std::fs::remove_file(manifest).unwrap();
    let gone = || bench.live().len() == 1 && bench.pod("own-node-1").is_null();
    wait("without its manifest it goes", gone).await;
}

pub async fn a_node_goes_down_in_order(bench: &mut Bench) {
    let deaf = sh("trap '' TERM; while :; do sleep 1000 & wait; done");
    for (name, priority, command, grace) in [
        ("low", 7, sh(SLEEP), 30),
        // Killed when its own grace is over, well after a critical pod would have ended if it did not wait.
        ("deaf", 7, deaf, 8),
        ("top", 2_000_001_000, sh(SLEEP), 30),
    ] {
        let containers = json!([{"name": "a", "command": command}]);
        let spec =
            json!({"containers": containers, "priority": priority, "terminationGracePeriodSeconds": grace});
        let uid = bench.create(name, spec).await;
        bench.running(name).await;
        if name != "deaf" {
            hear(bench, &[(name, &uid, "a")]).await;
        }
    }
    let begin = Instant::now();
    assert!(bench.agent().shut_down().await);
    assert!(begin.elapsed() < Duration::from_secs(50), "nobody used up all of the time");
    assert!(bench.live().is_empty());
    let [low, deaf, top] = ["low", "deaf", "top"].map(|name| {
        let status = bench.pod(name)["status"].take();
        assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("Terminated")));
        assert_eq!(status["message"], "Pod was terminated in response to imminent node shutdown.");
        assert_eq!(condition(&json!({"status": status}), "DisruptionTarget"), "True");
        status["containerStatuses"][0]["state"]["terminated"]["finishedAt"].as_str().unwrap().to_string()
    });
    assert!(low < deaf && deaf <= top, "{low} {deaf} {top}");
    let node = bench.api.value(&NODES, "", "node-1");
    assert_eq!(condition(&node, "Ready"), "False");
    assert!(node.to_string().contains("node is shutting down"));
    bench.create("late", json!({"containers": [{"name": "a", "command": sh(SLEEP)}]})).await;
    let refused = |p: &Value| p["status"]["reason"] == "NodeShutdown";
    let late = bench.pod_is("late", "it is refused", refused).await;
    let words = "Pod was rejected: Pod was rejected as the node is shutting down.";
    assert_eq!(late["status"]["message"], words);
    let event = "NodeShutdown Shutdown manager detected shutdown event";
    wait("it is told", || bench.events().iter().any(|e| e == event)).await;
}

pub async fn same_name_again_and_force(bench: &mut Bench) {
    let stubborn = json!({"containers": [{"name": "a", "command": sh("trap '' TERM; while :; do sleep 1000 & wait; done")}]});
    let first = bench.create("again", stubborn.clone()).await;
    bench.running("again").await;
    bench.delete("again", Some(0)).await;
    let second = bench.create("again", stubborn).await;
    let pod = bench.running("again").await;
    assert_eq!(pod["metadata"]["uid"], json!(second));
    assert!(!bench.live().iter().any(|p| p.spec.uid == first), "the first was gone before the second came");
    bench.delete("again", Some(1)).await;
    wait("it is killed", || bench.pod("again").is_null()).await;
}

pub async fn probes_and_sub_paths(bench: &mut Bench) {
    config_map(bench, "cm", "text").await;
    let script = format!(
        "cat /one; echo; touch /ok; mkdir -p /www; echo hi > /www/index.html; httpd -p 8080 -h /www; {SLEEP}"
    );
    let uid = bench
        .create("probed", json!({
            "containers": [{"name": "a", "command": sh(&script), "ports": [{"name": "web", "containerPort": 8080}],
                "startupProbe": {"exec": {"command": ["test", "-e", "/ok"]}, "periodSeconds": 1, "failureThreshold": 120, "timeoutSeconds": 60},
                "readinessProbe": {"httpGet": {"path": "/", "port": "web"}, "periodSeconds": 1, "timeoutSeconds": 20},
                "livenessProbe": {"exec": {"command": ["test", "-e", "/ok"]}, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 60},
                "volumeMounts": [{"name": "cm", "mountPath": "/one", "subPath": "k"},
                    {"name": "e", "mountPath": "/deep", "subPath": "x/y"}]}],
            "volumes": [{"name": "cm", "configMap": {"name": "cm"}}, {"name": "e", "emptyDir": {}}],
        }))
        .await;
    bench.running("probed").await;
    hear(bench, &[("probed", &uid, "a")]).await;
    assert_eq!(bench.log("probed", &uid, "a", 0), "text\nup\n");
    assert!(bench.volume(&uid, "e").join("x/y").is_dir());
    // Break it from outside through its own file system.
    let live = bench.live();
    let pid = match live[0].containers[0].state {
        runtime::api::ContainerState::Running { pid, .. } => pid,
        ref other => panic!("{other:?}"),
    };
    std::fs::remove_file(format!("/proc/{pid}/root/ok")).unwrap();
    let restarted = |p: &Value| {
        p["status"]["containerStatuses"][0]["restartCount"] == 1 && condition(p, "Ready") == "True"
    };
    bench.pod_is("probed", "liveness restarts it", restarted).await;
    for words in
        ["Killing Container a failed liveness probe, will be restarted", "Unhealthy Liveness probe failed:"]
    {
        wait(words, || bench.events().iter().any(|e| e.starts_with(words))).await;
    }
}

pub async fn starts_fast(bench: &mut Bench) {
    let mut times = Vec::new();
    for n in 0..20 {
        let name = format!("p{n}");
        let begin = Instant::now();
        bench.create(&name, json!({"containers": [{"name": "a", "command": sh(SLEEP)}]})).await;
        bench.pod_is(&name, "running", |p| p["status"]["phase"] == "Running").await;
        times.push(begin.elapsed().as_micros());
    }
    times.sort_unstable();
    println!("     create to Running (debug build): p50 {} µs, max {} µs", times[10], times[19]);
    let begin = Instant::now();
    for n in 0..20 {
        bench.delete(&format!("p{n}"), None).await;
    }
    wait("all are gone", || (0..20).all(|n| bench.pod(&format!("p{n}")).is_null())).await;
    println!("     20 deletions: {} ms", begin.elapsed().as_millis());
}

pub async fn a_hundred_at_once(bench: &mut Bench) {
    const PODS: usize = 100;
    let begin = Instant::now();
    for n in 0..PODS {
        bench.create(&format!("h{n}"), json!({"containers": [{"name": "a", "command": sh(SLEEP)}]})).await;
    }
    let all =
        |bench: &Bench, is: &dyn Fn(&Value) -> bool| (0..PODS).all(|n| is(&bench.pod(&format!("h{n}"))));
    wait("all run", || all(bench, &|p| p["status"]["phase"] == "Running")).await;
    println!("     {PODS} pods at once, all Running (debug build): {} ms", begin.elapsed().as_millis());
    let begin = Instant::now();
    for n in 0..PODS {
        bench.delete(&format!("h{n}"), None).await;
    }
    wait("all are gone", || all(bench, &Value::is_null)).await;
    println!("     {PODS} deletions: {} ms", begin.elapsed().as_millis());
}
