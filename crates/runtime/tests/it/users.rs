//! Pods with a user namespace of their own: ids inside and out, volumes with mapped ids, what their root may not do.

use crate::node::{DEADLINE, Node};
use runtime::api::{ContainerSpec, UserRange};
use runtime::oci::{IdMapping, Mount, Namespace};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

const RANGE: UserRange = UserRange { first: 1_310_720, size: 65_536 };

fn inside(mut spec: ContainerSpec) -> ContainerSpec {
    let range = IdMapping { container_id: 0, host_id: RANGE.first, size: RANGE.size };
    let linux = &mut spec.config.linux;
    linux.namespaces.push(Namespace { kind: "user".into(), path: None });
    (linux.uid_mappings, linux.gid_mappings) = (vec![range], vec![range]);
    for mount in spec.config.mounts.iter_mut().filter(|m| m.kind == "bind") {
        (mount.uid_mappings, mount.gid_mappings) = (vec![range], vec![range]);
    }
    spec
}

async fn pod(node: &Node) {
    let mut pod = node.pod_spec("p");
    pod.users = Some(RANGE);
    pod.sysctls = [("kernel.shm_rmid_forced", "1"), ("net.ipv4.ping_group_range", "0 2147483647")]
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .into();
    node.runtime.create_pod(pod).await.unwrap();
}

pub async fn ids_are_mapped(node: &mut Node) {
    let volume = node.root.join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("root"), "r").unwrap();
    fs::write(volume.join("alice"), "a").unwrap();
    chown(volume.join("alice"), Some(1000), Some(1000)).unwrap();
    pod(node).await;
    let script = "cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; stat -c %u:%g / /bin/busybox /v/root /v/alice \
        /dev/null /made/here /dev/shm; touch /v/new /tmp/own /dev/shm/s && echo wrote; mknod /tmp/d c 1 3 || echo no-device; \
        mount -t tmpfs t /tmp && echo mounted; umount /proc/kcore || echo locked; cat /proc/sys/kernel/shm_rmid_forced; \
        hostname other && hostname; echo out > /dev/stdout; \
        echo 1 > /proc/sys/kernel/panic || echo no-sysctl; sleep 1000";
    let mut spec = node.sh("c", script);
    spec.config.process.cwd = "/made/here".into();
    spec.config.process.no_new_privileges = false;
    spec.config.linux.seccomp = None;
    let caps = spec.config.process.capabilities.as_mut().unwrap();
    for set in [&mut caps.bounding, &mut caps.effective, &mut caps.permitted] {
        set.extend(["CAP_SYS_ADMIN".into(), "CAP_MKNOD".into()]);
    }
    spec.config.linux.readonly_paths.clear();
    spec.config.mounts.push(Mount {
        destination: "/v".into(),
        kind: "bind".into(),
        source: volume.clone(),
        options: vec!["rbind".into()],
        ..Mount::default()
    });
    node.start("p", inside(spec)).await;
    node.wait_log("c", "no-sysctl").await;
    let log = node.log("c");
    let lines: Vec<&str> = log.lines().filter(|l| !l.contains(": ")).map(str::trim).collect();
    let map = format!("0 {} {}", RANGE.first, RANGE.size);
    assert_eq!(
        lines,
        [
            &*map,
            &map,
            "0:0",
            "0:0",
            "0:0",
            "1000:1000",
            "0:0",
            "0:0",
            "0:0",
            "wrote",
            "no-device",
            "mounted",
            "locked",
            "1",
            "other",
            "out",
            "no-sysctl"
        ],
        "{log}"
    );
    // On disk the volume is as the container sees it; the container's own layer is not.
    let owner = |path: std::path::PathBuf| fs::metadata(path).unwrap().uid();
    assert_eq!(owner(volume.join("new")), 0);
    assert_eq!(owner(node.root.join("scratch/c/upper/tmp/own")), RANGE.first);
    let exec = async |args: &[&str]| {
        let args = args.iter().map(|a| (*a).to_string()).collect();
        let (code, output) = node.runtime.exec_sync("p", "c", args, DEADLINE).await.unwrap();
        (code, String::from_utf8_lossy(&output).into_owned())
    };
    let (code, output) =
        exec(&["sh", "-c", "id -u; cat /proc/self/uid_map | tr -s ' '; touch /v/exec; stat -c %u /v/exec"])
            .await;
    assert_eq!((code, output), (0, format!("0\n {map}\n0\n")));
    let pid = node.runtime.pod("p").unwrap().containers.iter().find_map(|c| match c.state {
        runtime::api::ContainerState::Running { pid, .. } => Some(pid),
        _ => None,
    });
    let status = fs::metadata(format!("/proc/{}", pid.unwrap())).unwrap();
    assert_eq!(status.uid(), RANGE.first);
}

pub async fn users_and_terminals(node: &mut Node) {
    pod(node).await;
    let mut spec = node
        .sh("c", "id -u; id -G; tty; stat -c %u:%g $(tty); echo x > /dev/tty; touch /dev/shm/a && echo shm");
    spec.config.process.user.uid = 1000;
    spec.config.process.user.gid = 1001;
    spec.config.process.user.additional_gids = vec![1001, 2000];
    spec.config.process.terminal = true;
    let (exit, log) = node.run_to_end("p", inside(spec)).await;
    let lines: Vec<&str> = log.lines().map(str::trim).collect();
    assert_eq!(lines, ["1000", "1001 2000", "/dev/pts/0", "1000:5", "x", "shm"], "{log}");
    assert_eq!(exit.code, 0);
    // A pod without such a namespace cannot have containers in one.
    node.pod("q").await;
    let error = node.runtime.create_container("q", inside(node.sh("d", "true"))).await.unwrap_err();
    assert!(error.to_string().contains("the pod has none"), "{error}");
}

/// As runc gives a program the pipes that it has, so that it can open them by name.
pub async fn output_by_name(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh(
        "c",
        "echo one > /dev/stdout; echo two > /dev/stderr; id -u > /proc/self/fd/1; touch /x || stat -c %a /",
    );
    spec.config.process.user.uid = 1000;
    let (exit, log) = node.run_to_end("p", spec).await;
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!((exit.code, lines), (0, vec!["1000", "755", "one", "touch: /x: Permission denied", "two"]));
}
