//! Create, start, logs, exit, kill, remove, limits.

use crate::node::Node;
use runtime::RuntimeError;
use runtime::api::ContainerState;
use runtime::oci::{Pids, Resources};
use std::fs;
use std::path::Path;

pub async fn run_log_exit_remove(node: &mut Node) {
    node.pod("p").await;
    let info = node.runtime.pod("p").unwrap();
    assert!(fs::metadata(format!("/proc/{}/ns/net", info.shim_pid)).is_ok());
    let spec = node.sh("c", "echo out; echo err >&2; hostname; printf rest");
    let (exit, log) = node.run_to_end("p", spec).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.start_error.as_str()), (0, 0, false, ""));
    for line in ["out\n", "err\n", "host-p\n", "rest\n"] {
        assert!(log.contains(line), "{log:?}");
    }
    let raw = fs::read_to_string(node.log_path("c")).unwrap();
    assert!(raw.lines().any(|l| l.ends_with(" stderr F err")), "{raw}");
    assert!(raw.lines().any(|l| l.ends_with(" stdout P rest")), "{raw}");
    assert!(raw.lines().all(|l| l.len() > 30 && l.as_bytes()[29] == b'Z'), "{raw}");
    node.runtime.remove_container("p", "c").await.unwrap();
    assert!(node.runtime.pod("p").unwrap().containers.is_empty());
    assert!(!node.root.join("scratch/c").exists());
    node.runtime.remove_pod("p").await.unwrap();
    node.runtime.remove_pod("p").await.unwrap();
}

pub async fn exit_codes_and_signals(node: &mut Node) {
    node.pod("p").await;
    let spec = node.sh("a", "exit 7");
    let (exit, _) = node.run_to_end("p", spec).await;
    assert_eq!((exit.code, exit.signal), (7, 0));

    let script = "trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    let spec = node.sh("b", script);
    node.start("p", spec).await;
    node.wait_log("b", "ready").await;
    node.runtime.signal("p", "b", 15).await.unwrap();
    let exit = node.exit("p", "b").await;
    assert_eq!((exit.code, node.log("b").contains("term")), (3, true));
    node.runtime.signal("p", "b", 15).await.unwrap();

    node.start("p", node.container("k", &["sleep", "1000"])).await;
    node.runtime.signal("p", "k", 9).await.unwrap();
    let exit = node.exit("p", "k").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, 9, false));
}

pub async fn start_errors(node: &mut Node) {
    node.pod("p").await;
    fs::write(node.image.join("work/text"), "no program").unwrap();
    fs::write(node.image.join("work/script"), "no interpreter line").unwrap();
    fs::write(node.image.join("work/lost"), "#!/no/such/interpreter\n").unwrap();
    for script in ["script", "lost"] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(node.image.join("work").join(script), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (id, program, message) in [
        ("a", "foo", "exec: \"foo\": executable file not found in $PATH: unknown"),
        ("b", "/no/foo", "exec: \"/no/foo\": stat /no/foo: no such file or directory: unknown"),
        ("c", "/work/text", "exec: \"/work/text\": permission denied: unknown"),
        ("d", "/work", "exec: \"/work\": is a directory: unknown"),
        ("e", "/work/script", "exec /work/script: exec format error: unknown"),
        ("f", "/work/lost", "exec /work/lost: no such file or directory: unknown"),
    ] {
        node.runtime.create_container("p", node.container(id, &[program])).await.unwrap();
        let error = node.runtime.start_container("p", id).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Start(_)), "{error:?}");
        assert_eq!(error.to_string(), message);
        let exit = node.exit("p", id).await;
        assert_eq!((exit.code, exit.start_error.as_str()), (128, message));
    }
}

pub async fn create_errors(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh("c", "true");
    spec.config.mounts.push(runtime::oci::Mount {
        destination: "/data".into(),
        kind: "bind".into(),
        source: "/no/such/volume".into(),
        options: vec!["rbind".into()],
        ..Default::default()
    });
    let error = node.runtime.create_container("p", spec).await.unwrap_err().to_string();
    assert!(error.contains("mount /data") && error.contains("/no/such/volume"), "{error}");
    assert!(node.runtime.pod("p").unwrap().containers.is_empty());
    assert!(!node.root.join("scratch/c").exists());
    // The name is free again.
    let spec = node.sh("c", "exit 0");
    assert_eq!(node.run_to_end("p", spec).await.0.code, 0);
    let again = node.runtime.create_container("p", node.sh("c", "true")).await;
    assert!(matches!(again, Err(RuntimeError::Exists(_))));
    for bad in ["../x", "a/b", "", ".x", "_shim"] {
        let error = node.runtime.create_container("p", node.sh(bad, "true")).await.unwrap_err();
        assert!(matches!(error, RuntimeError::BadName(_)), "{bad}: {error}");
    }
    // A pod that cannot be made leaves nothing (checked at the end).
    let mut pod = node.pod_spec("q");
    pod.sysctls.insert("no.such.sysctl".into(), "1".into());
    let error = node.runtime.create_pod(pod).await.unwrap_err().to_string();
    assert!(error.starts_with("set sysctls"), "{error}");
}

fn limited(memory: Option<i64>, pids: Option<i64>) -> Resources {
    let mut resources = Resources::default();
    resources.memory.limit = memory;
    resources.memory.swap = memory;
    resources.pids = pids.map(|limit| Pids { limit });
    resources
}

/// Whether the machine has cgroup v2 only.
fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

pub async fn out_of_memory(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh("c", "dd if=/dev/zero of=/dev/shm/big bs=1M count=200; tail /dev/zero");
    spec.config.linux.resources = limited(Some(32 << 20), None);
    spec.config.process.args = ["tail", "/dev/zero"].map(str::to_owned).to_vec();
    let (exit, _) = node.run_to_end("p", spec).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, 9, true));
    // A child's end by memory is told as well; on v2 the whole container ends, unless it asks not to.
    for (id, group, code) in [("d", None, if is_v2() { 137 } else { 4 }), ("e", Some("0"), 4)] {
        let mut spec = node.sh(id, "tail /dev/zero; exit 4");
        spec.config.linux.resources = limited(Some(32 << 20), None);
        let unified = &mut spec.config.linux.resources.unified;
        unified.extend(group.map(|value| ("memory.oom.group".to_owned(), value.to_owned())));
        let (exit, _) = node.run_to_end("p", spec).await;
        assert_eq!((exit.code, exit.oom_killed), (code, true), "{id}");
    }
}

pub async fn fork_bomb(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh("c", "echo go; f() { f | f & }; f; sleep 1000");
    spec.config.linux.resources = limited(None, Some(50));
    node.start("p", spec).await;
    node.wait_log("c", "an't fork").await;
    assert!(node.runtime.usage("p", Some("c")).unwrap().pids <= 50);
    node.runtime.remove_container("p", "c").await.unwrap();
}

pub async fn two_containers(node: &mut Node) {
    node.pod("p").await;
    node.start("p", node.sh("a", "echo shared > /dev/shm/x; hostname; sleep 1000")).await;
    node.wait_log("a", "host-p").await;
    // The same IPC, UTS and network; processes and files of their own.
    let spec = node.sh("b", "cat /dev/shm/x; hostname; test -e /work/a || echo own; ps | grep -c sleep");
    let (_, log) = node.run_to_end("p", spec).await;
    assert!(log.starts_with("shared\nhost-p\nown\n"), "{log}");
    let usage = node.runtime.usage("p", None).unwrap();
    assert!(usage.pids >= 2 && usage.memory_bytes > 0 && usage.cpu_ns > 0, "{usage:?}");
}

pub async fn kill_stubborn(node: &mut Node) {
    node.pod("p").await;
    node.start(
        "p",
        node.sh("c", "trap '' TERM INT; (trap '' TERM; sleep 1000) & echo up; sleep 1000; sleep 1000"),
    )
    .await;
    node.wait_log("c", "up").await;
    node.runtime.signal("p", "c", 15).await.unwrap();
    node.runtime.remove_container("p", "c").await.unwrap();
    assert!(node.runtime.pod("p").unwrap().containers.is_empty());
}

/// A frozen task cannot be killed: the stand-in for one that hangs in the kernel.
pub async fn stuck_is_reported(node: &mut Node) {
    node.pod("p").await;
    node.start("p", node.container("c", &["sleep", "1000"])).await;
    let freezer = Path::new("/sys/fs/cgroup/freezer").join(&node.cgroup_root);
    if !freezer.parent().unwrap().exists() {
        return;
    }
    fs::create_dir(&freezer).unwrap();
    let ContainerState::Running { pid, .. } = node.runtime.pod("p").unwrap().containers[0].state else {
        panic!()
    };
    fs::write(freezer.join("cgroup.procs"), pid.to_string()).unwrap();
    fs::write(freezer.join("freezer.state"), "FROZEN").unwrap();
    let error = node.runtime.remove_container("p", "c").await.unwrap_err();
    assert!(error.to_string().contains("still has processes"), "{error}");
    fs::write(freezer.join("freezer.state"), "THAWED").unwrap();
    node.runtime.remove_container("p", "c").await.unwrap();
}

/// The kill without the v2 tree: freeze, signal, thaw.
pub async fn v1_freezer_kill(_: &mut Node) {
    let node = Node::new(true);
    node.pod("p").await;
    node.start("p", node.sh("c", "trap '' TERM; echo up; while :; do sleep 0.01 & done")).await;
    node.wait_log("c", "up").await;
    node.runtime.remove_pod("p").await.unwrap();
    node.finish().await;
}

pub async fn limits_and_updates(node: &mut Node) {
    let mut pod = node.pod_spec("p");
    pod.resources = limited(Some(128 << 20), Some(200));
    node.runtime.create_pod(pod).await.unwrap();
    let look = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes || cat memory.max; echo up; sleep 1000";
    let mut spec = node.sh("c", look);
    spec.config.linux.resources = limited(Some(64 << 20), Some(20));
    spec.config.linux.resources.cpu.shares = Some(512);
    spec.config.linux.resources.cpu.quota = Some(50_000);
    spec.config.linux.resources.cpu.cpus = Some("0".into());
    node.start("p", spec).await;
    node.wait_log("c", "up").await;
    assert!(node.log("c").contains("67108864\n"), "{}", node.log("c"));
    // v1: file and tree; v2: file and value, where it differs.
    let both: &[(&str, &str, &str, &str)] = &[
        ("cpu", "cpu.shares", "512", "cpu.weight=59"),
        ("cpu", "cpu.cfs_quota_us", "50000", "cpu.max=50000 100000"),
        ("cpuset", "cpuset.cpus", "0", "cpuset.cpus=0"),
        ("pids", "pids.max", "20", "pids.max=20"),
        ("memory", "memory.memsw.limit_in_bytes", "67108864", "memory.swap.max=0"),
    ];
    let read = |tree: &str, file: &str| {
        let tree = if is_v2() { "" } else { tree };
        let path = Path::new("/sys/fs/cgroup").join(tree).join(&node.cgroup_root).join("burstable/podp/c");
        // Swap may not be counted on this machine.
        fs::read_to_string(path.join(file)).ok().map(|text| text.trim().to_owned())
    };
    for (tree, file, value, unified) in both {
        let (file, value) = if is_v2() { unified.split_once('=').unwrap() } else { (*file, *value) };
        let found = read(tree, file);
        assert!(
            found.as_deref() == Some(value) || found.is_none() && file.contains("sw"),
            "{file}: {found:?}"
        );
    }
    // Up, then down again: memory and memory+swap depend on each other's order.
    let file = if is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
    for bytes in [100 << 20, 40 << 20] {
        node.runtime.update_resources("p", Some("c"), limited(Some(bytes), Some(30))).await.unwrap();
        assert_eq!(read("memory", file).unwrap(), bytes.to_string());
    }
    assert_eq!(read("pids", "pids.max").unwrap(), "30");
}

/// A v2 tree whose root is not the real one, as in a container: it cannot both hold processes and pass controllers on.
pub async fn nested_v2(node: &mut Node) {
    if !is_v2() {
        return;
    }
    let outer = runtime::cgroup::Cgroups::at_v2(Path::new("/sys/fs/cgroup"), &node.cgroup_root).unwrap();
    outer.create("container/x").unwrap();
    let tree = Path::new("/sys/fs/cgroup").join(&node.cgroup_root).join("container");
    fs::remove_dir(tree.join("x")).unwrap();
    for controller in fs::read_to_string(tree.join("cgroup.subtree_control")).unwrap().split_whitespace() {
        fs::write(tree.join("cgroup.subtree_control"), format!("-{controller}")).unwrap();
    }
    let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(tree.join("cgroup.procs"), sleeper.id().to_string()).unwrap();
    let inner = runtime::cgroup::Cgroups::at_v2(&tree, "gantry").unwrap();
    inner.create("pod").unwrap();
    let error = inner.apply("pod", &limited(None, Some(7))).unwrap_err().to_string();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let want = format!("cgroup controller pids cannot be enabled in {}: ", tree.display());
    assert!(error.starts_with(&want) && error.contains("processes sit in it"), "{error}");
    inner.create("pod").unwrap();
    inner.apply("pod", &limited(None, Some(7))).unwrap();
    assert_eq!(fs::read_to_string(tree.join("gantry/pod/pids.max")).unwrap(), "7\n");
}
