//! What survives whom: the agent's death, the shim's death, half-made pods.

use crate::node::{DEADLINE, Node};
use runtime::Runtime;
use runtime::api::{ContainerState, RuntimeEvent};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The agent's part in [`owner_killed`], in a process of its own: makes a pod and waits to be killed.
pub fn owner(args: &[String]) {
    let [root, cgroup_root] = args else { panic!("owner <folder> <cgroup root>") };
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        let node = Node::at(Path::new(root), cgroup_root);
        node.pod("p").await;
        let script = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.01; done";
        node.start("p", node.sh("run", script)).await;
        node.start("p", node.sh("end", "until test -e /dev/shm/go; do sleep 0.01; done; echo bye; exit 4"))
            .await;
        node.wait_log("run", "tick 3").await;
        fs::write(node.root.join("ready"), "").unwrap();
        std::future::pending::<()>().await;
    });
}

/// `kill -9` of the agent: containers run on and log on, one ends meanwhile, all is found again.
pub async fn owner_killed(node: &mut Node) {
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("owner")
        .arg(&node.root)
        .arg(&node.cgroup_root)
        .spawn()
        .unwrap();
    let end = std::time::Instant::now() + DEADLINE;
    while !node.root.join("ready").exists() {
        assert!(std::time::Instant::now() < end && owner.try_wait().unwrap().is_none(), "owner is not ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    let ticks = node.log("run").lines().count();
    node.wait_log("run", &format!("tick {}", ticks + 5)).await;

    let pods = node.runtime.recover().await.unwrap();
    let shm = format!("/proc/{}/root{}/state/p/shm/go", pods[0].shim_pid, node.root.display());
    fs::write(shm, "").unwrap();
    assert_eq!(node.exit("p", "end").await.code, 4);
    assert_eq!(node.log("end"), "bye\n");
    // The end came while nobody listened for another one: ask once more, with a new runtime.
    let (runtime, events) = Runtime::open(Node::config(&node.root, &node.cgroup_root)).unwrap();
    (node.runtime, node.events) = (runtime, events);
    node.runtime.recover().await.unwrap();
    assert_eq!(node.exit("p", "end").await.code, 4);
    node.runtime.remove_container("p", "run").await.unwrap();
}

/// A second runtime on the same folders, as after `kill -9` of the first: nothing is handed over.
pub async fn readopt(node: &mut Node) {
    let mut pod = node.pod_spec("p");
    pod.annotations.insert("ip".into(), "10.0.0.1".into());
    node.runtime.create_pod(pod).await.unwrap();
    node.start("p", node.sh("run", "echo up; trap 'exit 9' TERM; while :; do sleep 0.01; done")).await;
    node.start("p", node.sh("end", "until test -e /dev/shm/go; do sleep 0.01; done; exit 4")).await;
    node.runtime.create_container("p", node.sh("new", "echo later")).await.unwrap();
    node.wait_log("run", "up").await;
    let before = node.runtime.pod("p").unwrap();

    let config = Node::config(&node.root, &node.cgroup_root);
    let (runtime, events) = Runtime::open(config).unwrap();
    // The old one is forgotten with its connection; one container ends meanwhile.
    node.runtime = runtime;
    node.events = events;
    fs::write(format!("/proc/{}/root{}/state/p/shm/go", before.shim_pid, node.root.display()), "").unwrap();
    node.wait_log("run", "up").await;
    let pods = node.runtime.recover().await.unwrap();
    assert_eq!(pods.len(), 1);
    let after = &pods[0];
    assert_eq!((after.shim_pid, &after.spec.annotations), (before.shim_pid, &before.spec.annotations));
    let state = |id: &str| after.containers.iter().find(|c| c.spec.id == id).unwrap().state.clone();
    let old = before.containers.iter().find(|c| c.spec.id == "run").unwrap();
    assert_eq!(state("run"), old.state);
    assert_eq!(state("new"), ContainerState::Created);
    assert_eq!(node.exit("p", "end").await.code, 4);

    // It is in full command again.
    node.runtime.start_container("p", "new").await.unwrap();
    assert_eq!(node.exit("p", "new").await.code, 0);
    node.runtime.signal("p", "run", 15).await.unwrap();
    assert_eq!(node.exit("p", "run").await.code, 9);
    let (code, _) = {
        node.start("p", node.container("again", &["sleep", "1000"])).await;
        node.runtime.exec_sync("p", "again", vec!["true".into()], DEADLINE).await.unwrap()
    };
    assert_eq!(code, 0);
}

async fn died(node: &mut Node) -> String {
    let wait = async {
        loop {
            if let Some(RuntimeEvent::PodDied { uid }) = node.events.recv().await {
                return uid;
            }
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("no news of the death")
}

/// Nothing outlives its shim.
pub async fn shim_killed(node: &mut Node) {
    node.pod("p").await;
    node.start("p", node.container("c", &["sleep", "1000"])).await;
    let info = node.runtime.pod("p").unwrap();
    let ContainerState::Running { pid, .. } = info.containers[0].state else { panic!() };
    kill(info.shim_pid);
    assert_eq!(died(node).await, "p");
    assert!(is_dead(pid));
    assert!(node.runtime.pods().is_empty());
    node.runtime.remove_pod("p").await.unwrap();
    // The name is free again.
    node.pod("p").await;
}

/// Gone, or a corpse that is the node's init to bury.
fn is_dead(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn kill(pid: i32) {
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

/// Agent and shim both died: recovery kills and cleans.
pub async fn all_killed(node: &mut Node) {
    node.pod("p").await;
    node.start("p", node.container("c", &["sleep", "1000"])).await;
    let info = node.runtime.pod("p").unwrap();
    let ContainerState::Running { pid, .. } = info.containers[0].state else { panic!() };
    let folder = node.root.join("state/p");
    let copy = node.root.join("copy");
    // Keep the record away from the first runtime, which would clean up: it is as good as dead.
    fs::rename(&folder, &copy).unwrap();
    kill(info.shim_pid);
    assert_eq!(died(node).await, "p");
    fs::rename(&copy, &folder).unwrap();
    // Half-made: a folder without a record, and one with a record and nothing else.
    fs::create_dir_all(node.root.join("state/empty/c")).unwrap();
    let (runtime, _events) = Runtime::open(Node::config(&node.root, &node.cgroup_root)).unwrap();
    assert!(runtime.recover().await.unwrap().is_empty());
    assert!(is_dead(pid));
    assert!(!folder.exists() && !node.root.join("scratch/c").exists());
}

/// A container that was being made when the agent died is removed, the pod lives on.
pub async fn half_made_container(node: &mut Node) {
    node.pod("p").await;
    node.start("p", node.container("c", &["sleep", "1000"])).await;
    let from = node.root.join("state/p/c/c/container.json");
    let text = fs::read_to_string(from)
        .unwrap()
        .replace("scratch/c\"", "scratch/half\"")
        .replace("\"id\":\"c\"", "\"id\":\"half\"");
    fs::create_dir_all(node.root.join("state/p/c/half")).unwrap();
    fs::create_dir_all(node.root.join("scratch/half/upper")).unwrap();
    fs::write(node.root.join("state/p/c/half/container.json"), text).unwrap();
    let (runtime, events) = Runtime::open(Node::config(&node.root, &node.cgroup_root)).unwrap();
    (node.runtime, node.events) = (runtime, events);
    let pods = node.runtime.recover().await.unwrap();
    assert_eq!(pods[0].containers.len(), 1);
    assert!(!node.root.join("state/p/c/half").exists() && !node.root.join("scratch/half").exists());
}

/// Events of many containers all arrive, each in order.
pub async fn many_at_once(node: &mut Node) {
    node.pod("p").await;
    let ids: Vec<String> = (0..20).map(|i| format!("c{i}")).collect();
    let starts = ids.iter().map(|id| node.start("p", node.sh(id, "echo hi; exit 2")));
    for start in starts {
        tokio::time::timeout(Duration::from_secs(60), start).await.unwrap();
    }
    for id in &ids {
        assert_eq!(node.exit("p", id).await.code, 2);
        assert_eq!(node.log(id), "hi\n");
    }
}

/// Pods that are made and removed at the same time do not get in each other's way.
pub async fn pods_at_once(node: &mut Node) {
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..12 {
        let (runtime, uid) = (node.runtime.clone(), format!("p{i}"));
        let (pod, spec) = (node.pod_spec(&uid), {
            let mut spec = node.container("c", &["sleep", "1000"]);
            spec.rootfs.scratch = node.root.join("scratch").join(&uid);
            spec.log.path = node.root.join("logs").join(&uid);
            spec
        });
        tasks.spawn(async move {
            runtime.create_pod(pod).await.unwrap();
            runtime.create_container(&uid, spec).await.unwrap();
            runtime.start_container(&uid, "c").await.unwrap();
            let (code, _) = runtime.exec_sync(&uid, "c", vec!["true".into()], DEADLINE).await.unwrap();
            assert_eq!(code, 0);
            runtime.remove_pod(&uid).await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert!(node.runtime.pods().is_empty());
}

/// Whoever stops waiting leaves nothing half made: the operation goes on and can be undone.
pub async fn impatient_callers(node: &mut Node) {
    let short = Duration::from_micros(500);
    let spec = node.pod_spec("p");
    let _ = tokio::time::timeout(short, node.runtime.create_pod(spec)).await;
    let end = std::time::Instant::now() + DEADLINE;
    while node.runtime.pod("p").is_none() {
        assert!(std::time::Instant::now() < end, "the pod was given up");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let spec = node.container("c", &["sleep", "1000"]);
    let _ = tokio::time::timeout(short, node.runtime.create_container("p", spec)).await;
    node.runtime.remove_container("p", "c").await.unwrap();
    let again = node.runtime.create_pod(node.pod_spec("p")).await;
    assert!(matches!(again, Err(runtime::RuntimeError::Exists(_))));
}
