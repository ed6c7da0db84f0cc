//! crun as a handler, and as the judge of our own runtime: the same configuration must look the same inside.

use crate::node::{DEADLINE, Node};
use runtime::api::{ContainerSpec, ExecSpec};
use runtime::oci::Rlimit;
use std::fs::File;
use std::io::{Read, Write};

async fn crun_pod(node: &Node, uid: &str) {
    let mut pod = node.pod_spec(uid);
    pod.handler = Some("crun".into());
    node.runtime.create_pod(pod).await.unwrap();
}

pub async fn crun_lifecycle(node: &mut Node) {
    crun_pod(node, "p").await;
    let spec = node.sh("a", "echo out; echo err >&2; hostname; exit 7");
    let (exit, log) = node.run_to_end("p", spec).await;
    assert_eq!(exit.code, 7);
    assert!(log.contains("out\n") && log.contains("err\n") && log.contains("host-p\n"), "{log}");
    node.runtime.remove_container("p", "a").await.unwrap();

    node.start("p", node.sh("b", "trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done")).await;
    node.wait_log("b", "up").await;
    let args = ["sh", "-c", "hostname; exit 5"].map(str::to_owned).to_vec();
    assert_eq!(node.runtime.exec_sync("p", "b", args, DEADLINE).await.unwrap(), (5, b"host-p\n".to_vec()));
    let spec = ExecSpec {
        // crun relays a terminal, and what it has not relayed when the program ends is lost (1.8.1): hence `read y`.
        args: ["sh", "-c", "read x; echo got $x; read y; exit 6"].map(str::to_owned).to_vec(),
        tty: true,
        stdin: true,
        stdout: true,
        ..ExecSpec::default()
    };
    let mut session = node.runtime.exec("p", "b", spec).await.unwrap();
    let mut out = File::from(session.stdout.take().unwrap());
    let mut stdin = File::from(session.stdin.take().unwrap());
    stdin.write_all(b"key\n").unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let (mut all, mut buffer) = (String::new(), [0; 1024]);
        while !all.contains("got key") {
            let n = out.read(&mut buffer).unwrap();
            all += &String::from_utf8_lossy(&buffer[..n]);
        }
    });
    tokio::time::timeout(DEADLINE, said).await.unwrap().unwrap();
    stdin.write_all(b"\n").unwrap();
    assert_eq!(tokio::time::timeout(DEADLINE, session.wait()).await.unwrap(), 6);
    drop(session);
    node.runtime.signal("p", "b", 15).await.unwrap();
    assert_eq!(node.exit("p", "b").await.code, 3);

    let mut spec = node.sh("t", "tty; echo done");
    spec.config.process.terminal = true;
    let (_, log) = node.run_to_end("p", spec).await;
    assert!(log.contains("/dev/pts/0") && log.contains("done"), "{log}");

    let error =
        node.runtime.create_container("p", node.container("x", &["nope"])).await.unwrap_err().to_string();
    assert!(error.contains("nope"), "{error}");
    // Left running: the pod's removal takes care.
    node.start("p", node.container("z", &["sleep", "1000"])).await;
}

/// What a process can see of itself and its surroundings, without what differs between two runs.
const LOOK: &str = "\
    grep -E '^(Uid|Gid|Groups|Cap|NoNew|Seccomp:|Umask|NSpid)' /proc/self/status; \
    sed 's/ *[a-z]* *$//' /proc/self/limits; \
    awk '{print $5, ($5 ~ \"^/proc/\" ? \"\" : $6)}' /proc/self/mountinfo | grep -v /sys/fs/cgroup | sed 's/,nodiratime//' | sort; \
    env | sort; pwd; hostname; ls -l /dev | awk '{print $1,$5,$6,$NF}' | grep -v ^total | grep -v core; \
    for f in /proc/kcore /proc/sys /sys/firmware /proc/sysrq-trigger; do stat -c '%n %F %a' $f; done; \
    cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l; umask; tty";

fn subject(node: &Node, id: &str) -> ContainerSpec {
    let mut spec = node.sh(id, LOOK);
    let process = &mut spec.config.process;
    process.user.uid = 1000;
    process.user.gid = 1000;
    process.user.additional_gids = vec![2000];
    process.cwd = "/work".into();
    process.env.push("X=y".into());
    process.oom_score_adj = Some(300);
    process.rlimits = vec![Rlimit { kind: "RLIMIT_NOFILE".into(), hard: 1024, soft: 512 }];
    // Two runtimes compile the same profile, but crun's file is its own business.
    spec.config.root.readonly = true;
    spec
}

pub async fn crun_agrees(node: &mut Node) {
    std::os::unix::fs::symlink("busybox", node.image.join("bin/sed")).unwrap();
    node.pod("p").await;
    crun_pod(node, "q").await;
    let spec = subject(node, "own");
    let (exit, own) = node.run_to_end("p", spec).await;
    assert_eq!(exit.code, 1, "tty says no: {own}");
    let spec = subject(node, "other");
    let (_, other) = node.run_to_end("q", spec).await;
    // Differences that stay: ours keeps nosuid, nodev, noexec on what is below /proc (as runc does), crun gives
    // /dev/null to the container's user.
    let other = other.replace("host-q", "host-p");
    let lines = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(lines(&own), lines(&other));
}

/// A path below a volume: crun knows no such thing, so it is resolved before, as safely as for our own runtime.
pub async fn crun_subpath(node: &mut Node) {
    let volume = node.root.join("volume");
    std::fs::create_dir_all(volume.join("sub/deep")).unwrap();
    std::fs::write(volume.join("sub/deep/leaf"), "leaf").unwrap();
    std::os::unix::fs::symlink("/etc", volume.join("escape")).unwrap();
    let mount = |at: &str, below: &str| runtime::oci::Mount {
        destination: at.into(),
        kind: "bind".into(),
        source: volume.clone(),
        options: vec!["rbind".into(), "rw".into(), format!("x-gantry.subpath={below}")],
        ..runtime::oci::Mount::default()
    };
    crun_pod(node, "p").await;
    let mut spec = node.sh("a", "cat /one; ls /two; touch /two/new");
    spec.config.mounts.extend([mount("/one", "sub/deep/leaf"), mount("/two", "sub/deep")]);
    let (exit, log) = node.run_to_end("p", spec).await;
    assert_eq!((exit.code, log.as_str()), (0, "leafleaf\n"));
    assert!(volume.join("sub/deep/new").exists());
    let mut spec = node.sh("b", "true");
    spec.config.mounts.push(mount("/two", "escape/passwd"));
    let error = node.runtime.create_container("p", spec).await.unwrap_err().to_string();
    assert!(error.contains("escape/passwd"), "{error}");
}
