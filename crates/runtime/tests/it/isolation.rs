//! What a container sees, and what it cannot reach.

use crate::node::Node;
use runtime::oci::{self, Capabilities, Mount, Rlimit};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

fn bind(source: &Path, destination: &str, options: &str) -> Mount {
    Mount {
        destination: destination.into(),
        kind: "bind".into(),
        source: source.into(),
        options: options.split(',').map(str::to_owned).collect(),
        ..Mount::default()
    }
}

pub async fn identity(node: &mut Node) {
    node.pod("p").await;
    let mut spec = node.sh(
        "c",
        "id -u; id -g; id -G; pwd; echo $A; echo $HOME; umask; ulimit -n; grep -E 'Cap|NoNew|Seccomp:' /proc/self/status; \
         cat /proc/self/oom_score_adj",
    );
    let process = &mut spec.config.process;
    process.user.uid = 1000;
    process.user.gid = 1001;
    process.user.additional_gids = vec![1001, 2000];
    process.user.umask = Some(0o027);
    process.cwd = "/made/here".into();
    process.env.push("A=b c".into());
    process.rlimits = vec![Rlimit { kind: "RLIMIT_NOFILE".into(), hard: 512, soft: 256 }];
    process.oom_score_adj = Some(500);
    let caps = vec!["CAP_CHOWN".to_owned(), "CAP_NET_BIND_SERVICE".to_owned()];
    process.capabilities = Some(Capabilities {
        bounding: caps.clone(),
        effective: caps.clone(),
        permitted: caps.clone(),
        inheritable: caps.clone(),
        ambient: vec!["CAP_NET_BIND_SERVICE".into()],
    });
    let (_, log) = node.run_to_end("p", spec).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..8], ["1000", "1001", "1001 2000", "/made/here", "b c", "/home/alice", "0027", "256"]);
    let field = |name: &str| lines.iter().find_map(|l| l.strip_prefix(name)).unwrap().trim().to_owned();
    // The program's own sets after execve as an ordinary user: the ambient one, within the bounding ones.
    assert_eq!(field("CapEff:"), "0000000000000400");
    assert_eq!(field("CapBnd:"), "0000000000000401");
    assert_eq!(field("CapAmb:"), "0000000000000400");
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));
    assert_eq!(*lines.last().unwrap(), "500");
}

pub async fn processes(node: &mut Node) {
    node.pod("p").await;
    let spec = node
        .sh("c", "echo $$; ls /proc | grep -c '^[0-9]'; ls /proc/self/fd | wc -l; cat /proc/1/comm; true");
    let (_, log) = node.run_to_end("p", spec).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "1");
    // The shell, ls, grep: nobody else is visible.
    assert!(lines[1].parse::<u32>().unwrap() <= 3, "{log}");
    // stdin, stdout, stderr and ls's own: no descriptor leaks in.
    assert_eq!(lines[2], "4", "{log}");
    assert_eq!(lines[3], "sh");
}

pub async fn shared_pids(node: &mut Node) {
    let mut pod = node.pod_spec("p");
    pod.share_pid = true;
    node.runtime.create_pod(pod).await.unwrap();
    node.start("p", node.sh("a", "sleep 4321")).await;
    let spec = node.sh("b", "echo $$; cat /proc/1/comm; ps; (sleep 1234 &) ; true");
    let (exit, log) = node.run_to_end("p", spec).await;
    assert_eq!(exit.code, 0);
    assert_ne!(log.lines().next(), Some("1"));
    assert!(log.contains("gantry-pause") && log.contains("sleep 4321"), "{log}");
    // What `b` left behind died with it; `a` lives.
    let args = [
        "sh",
        "-c",
        "i=0; while ps | grep -v grep | grep -q 'sleep 1234'; do i=$((i+1)); [ $i = 300 ] && exit 1; sleep 0.01; done; ps",
    ];
    let args = args.map(str::to_owned).to_vec();
    let (code, output) = node.runtime.exec_sync("p", "a", args, crate::node::DEADLINE).await.unwrap();
    let output = String::from_utf8_lossy(&output);
    assert!(code == 0 && output.contains("sleep 4321"), "{output}");
}

pub async fn host_namespaces(node: &mut Node) {
    let mut pod = node.pod_spec("p");
    (pod.host_network, pod.host_pid, pod.host_ipc) = (true, true, true);
    node.runtime.create_pod(pod).await.unwrap();
    let spec =
        node.sh("c", "for n in net ipc uts pid mnt cgroup; do readlink /proc/self/ns/$n; done; sleep 0");
    let (_, log) = node.run_to_end("p", spec).await;
    let own = |n: &str| fs::read_link(format!("/proc/self/ns/{n}")).unwrap().display().to_string();
    for shared in ["net", "ipc", "uts", "pid"] {
        assert!(log.contains(&own(shared)), "{shared}: {log}");
    }
    assert!(!log.contains(&own("mnt")) && !log.contains(&own("cgroup")), "{log}");
}

pub async fn read_only(node: &mut Node) {
    node.pod("p").await;
    let script = "touch /work/x || echo root; touch /tmp/x && echo tmp; \
        echo 1 > /proc/sys/kernel/hostname || echo sys; cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; \
        touch /sys/fs/cgroup/x || echo cgroup; mount -o remount,rw / || echo remount; cat /proc/keys | wc -c; echo x > /dev/null && echo null";
    let mut spec = node.sh("c", script);
    spec.config.root.readonly = true;
    spec.config.mounts.push(Mount {
        destination: "/tmp".into(),
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options: vec!["nosuid".into(), "size=1m".into()],
        ..Mount::default()
    });
    let (_, log) = node.run_to_end("p", spec).await;
    let words: Vec<&str> = log.lines().filter(|l| !l.contains(':')).collect();
    assert_eq!(words, ["root", "tmp", "sys", "0", "0", "cgroup", "remount", "0", "null"], "{log}");
}

pub async fn volumes(node: &mut Node) {
    let volume = node.root.join("volume");
    fs::create_dir_all(volume.join("sub/deep")).unwrap();
    fs::write(volume.join("file"), "content").unwrap();
    fs::write(volume.join("sub/deep/leaf"), "leaf").unwrap();
    symlink("/etc", volume.join("escape")).unwrap();
    node.pod("p").await;
    let script = "cat /ro/file /one /sub/leaf; echo; touch /ro/new || echo denied; touch /rw/new && echo written; \
        touch /ro/inner/x || echo rro; grep -c noexec /proc/self/mountinfo > /work/n; stat -c %F /made/for/it /one";
    let mut spec = node.sh("c", script);
    spec.config.mounts.extend([
        bind(&volume, "/ro", "rbind,rprivate,ro"),
        bind(&volume, "/rw", "rbind,rprivate,rw"),
        bind(&volume.join("file"), "/one", "bind,ro"),
        bind(&volume, "/sub", "bind,x-gantry.subpath=sub/deep"),
        bind(&volume, "/made/for/it", "rbind,rro"),
    ]);
    let (_, log) = node.run_to_end("p", spec).await;
    let words: Vec<&str> = log.lines().filter(|l| !l.contains(':')).collect();
    assert_eq!(
        words,
        ["contentcontentleaf", "denied", "written", "rro", "directory", "regular file"],
        "{log}"
    );
    assert!(volume.join("new").exists());
    // A link in a volume leads nowhere out of it.
    let mut spec = node.sh("d", "true");
    spec.config.mounts.push(bind(&volume, "/sub", "bind,x-gantry.subpath=escape/passwd"));
    let error = node.runtime.create_container("p", spec).await.unwrap_err().to_string();
    assert!(error.contains("escape/passwd"), "{error}");
}

/// Mount points, devices, console and working folder behind links: all stay in the container.
pub async fn links_in_the_image(node: &mut Node) {
    let outside = node.root.join("outside");
    fs::create_dir_all(&outside).unwrap();
    let up = format!("../../../../../../../../../..{}", outside.display());
    symlink(&outside, node.image.join("abs")).unwrap();
    symlink(&up, node.image.join("up")).unwrap();
    symlink("/proc/self/cwd", node.image.join("magic")).unwrap();
    let volume = node.root.join("volume");
    fs::create_dir_all(&volume).unwrap();
    fs::write(volume.join("mark"), "mark").unwrap();
    node.pod("p").await;
    for (id, at) in [("a", "/abs/x"), ("b", "/up/y"), ("c", "/abs/../abs/z")] {
        let mut spec = node.sh(id, &format!("cat {at}/mark"));
        spec.config.mounts.push(bind(&volume, at, "rbind"));
        spec.config.process.cwd = "/up/cwd".into();
        let (exit, log) = node.run_to_end("p", spec).await;
        assert_eq!((exit.code, log.as_str()), (0, "mark\n"));
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made outside");
    let mut spec = node.sh("m", "true");
    spec.config.mounts.push(bind(&volume, "/magic/x", "rbind"));
    assert!(node.runtime.create_container("p", spec).await.is_err());
    // An image must not choose where /proc appears.
    fs::remove_dir(node.image.join("proc")).unwrap();
    symlink("/tmp", node.image.join("proc")).unwrap();
    let error = node.runtime.create_container("p", node.sh("l", "true")).await.unwrap_err().to_string();
    assert!(error.contains("mount /proc"), "{error}");
}

pub async fn seccomp_and_devices(node: &mut Node) {
    node.pod("p").await;
    let script = "unshare -m true || echo unshare; mknod /tmp/sda b 8 0 && head -c 1 /tmp/sda || echo disk; \
        mknod /tmp/vda b 254 0; head -c 1 /tmp/vda || echo vda; echo ok";
    let mut spec = node.sh("c", script);
    // Everything but the filter and the device cgroup would let it pass.
    let all: Vec<String> =
        oci::DEFAULT_CAPABILITIES.iter().map(|c| (*c).to_owned()).chain(["CAP_SYS_ADMIN".into()]).collect();
    spec.config.process.capabilities = Some(Capabilities {
        bounding: all.clone(),
        effective: all.clone(),
        permitted: all,
        ..Capabilities::default()
    });
    let (_, log) = node.run_to_end("p", spec).await;
    let words: Vec<&str> = log.lines().filter(|l| !l.contains(':')).collect();
    assert_eq!(words, ["unshare", "disk", "vda", "ok"], "{log}");
    // The control: without a filter, unshare works.
    let mut spec = node.sh("d", "unshare -m true && echo free");
    spec.config.linux.seccomp = None;
    spec.config.process.capabilities.as_mut().unwrap().effective.push("CAP_SYS_ADMIN".into());
    spec.config.process.capabilities.as_mut().unwrap().permitted.push("CAP_SYS_ADMIN".into());
    spec.config.process.capabilities.as_mut().unwrap().bounding.push("CAP_SYS_ADMIN".into());
    let (_, log) = node.run_to_end("p", spec).await;
    assert_eq!(log, "free\n");
}

/// CVE-2019-5736: the way from a container to the host's binary is read-only.
pub async fn host_binary(node: &mut Node) {
    let mut pod = node.pod_spec("p");
    pod.host_pid = true;
    node.runtime.create_pod(pod).await.unwrap();
    let shim = node.runtime.pod("p").unwrap().shim_pid;
    let mut spec = node.sh("c", &format!("chmod 755 /proc/{shim}/exe || echo refused"));
    // As privileged as can be.
    let all: Vec<String> = sys::caps::NAMES.iter().map(|c| (*c).to_owned()).collect();
    spec.config.process.capabilities = Some(Capabilities {
        bounding: all.clone(),
        effective: all.clone(),
        permitted: all,
        ..Default::default()
    });
    spec.config.linux.seccomp = None;
    spec.config.process.no_new_privileges = false;
    let (_, log) = node.run_to_end("p", spec).await;
    assert!(log.contains("Read-only file system") && log.contains("refused\n"), "{log}");
}

pub async fn pod_memory_volume(node: &mut Node) {
    let path = node.root.join("mem");
    fs::create_dir_all(&path).unwrap();
    let mut pod = node.pod_spec("p");
    pod.tmpfs.push(runtime::api::Tmpfs { path: path.clone(), size_bytes: 1 << 20, ..Default::default() });
    pod.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "7".into());
    node.runtime.create_pod(pod).await.unwrap();
    let mut spec = node.sh("c", "dd if=/dev/zero of=/mem/big bs=64k count=32; stat -c %s /mem/big; cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    spec.config.mounts.push(bind(&path, "/mem", "rbind"));
    let (_, log) = node.run_to_end("p", spec).await;
    assert!(log.ends_with("1048576\n7\n"), "{log}");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "the mount is the pod's alone");
}

fn mount(args: &[&str]) {
    assert!(std::process::Command::new("mount").args(args).status().unwrap().success(), "mount {args:?}");
}

/// What the node mounts later arrives where the volume asks for it, and nowhere else.
pub async fn propagation(node: &mut Node) {
    let volume = node.root.join("volume");
    fs::create_dir_all(&volume).unwrap();
    let at = volume.to_str().unwrap().to_owned();
    mount(&["-t", "tmpfs", "tmpfs", &at]);
    mount(&["--make-shared", &at]);
    fs::create_dir(volume.join("late")).unwrap();
    fs::create_dir(volume.join("back")).unwrap();
    node.pod("p").await;
    let mut spec = node.container("c", &["sleep", "1000"]);
    spec.config.mounts.extend([
        bind(&volume, "/slave", "rbind,rslave"),
        bind(&volume, "/private", "rbind,rprivate"),
        bind(&volume, "/shared", "rbind,rshared"),
    ]);
    spec.config.process.capabilities.as_mut().unwrap().effective.push("CAP_SYS_ADMIN".into());
    spec.config.process.capabilities.as_mut().unwrap().permitted.push("CAP_SYS_ADMIN".into());
    spec.config.process.capabilities.as_mut().unwrap().bounding.push("CAP_SYS_ADMIN".into());
    spec.config.linux.seccomp = None;
    node.start("p", spec).await;
    let late = format!("{at}/late");
    mount(&["-t", "tmpfs", "tmpfs", &late]);
    fs::write(volume.join("late/mark"), "").unwrap();
    let look = "ls /slave/late /private/late /shared/late; mount -t tmpfs tmpfs /shared/back; touch /shared/back/here";
    let args = ["sh", "-c", look].map(str::to_owned).to_vec();
    let (_, output) = node.runtime.exec_sync("p", "c", args, crate::node::DEADLINE).await.unwrap();
    let seen = volume.join("back/here").exists();
    for path in [format!("{at}/back"), late, at] {
        let _ = std::process::Command::new("umount").arg("-l").arg(path).status();
    }
    let output = String::from_utf8_lossy(&output).into_owned();
    assert_eq!(output, "/private/late:\n\n/shared/late:\nmark\n\n/slave/late:\nmark\n");
    assert!(seen, "a mount in a shared volume did not reach the node");
}

/// The v2 filter, on the v2 tree that stands beside v1 here: it decides there as well.
pub async fn devices_on_v2(node: &mut Node) {
    let tree = Path::new("/sys/fs/cgroup/unified");
    if !tree.exists() {
        return;
    }
    node.pod("p").await;
    let script = "mknod /tmp/kmsg c 1 11; until test -e /tmp/go; do sleep 0.01; done; \
        head -c 1 /tmp/kmsg >&- 2>&- || echo closed; head -c 1 /dev/zero | wc -c; mknod /tmp/x c 9 9 && echo node";
    let mut spec = node.sh("c", script);
    // v1 leaves everything open, so what is closed is closed by the program.
    let all = oci::DeviceRule { allow: true, access: "rwm".into(), ..Default::default() };
    spec.config.linux.resources.devices = vec![all];
    node.start("p", spec).await;
    let v2 = runtime::cgroup::Cgroups::at_v2(tree, &node.cgroup_root).unwrap();
    v2.apply_devices("burstable/podp/c", &[]).unwrap();
    let args = ["touch", "/tmp/go"].map(str::to_owned).to_vec();
    node.runtime.exec_sync("p", "c", args, crate::node::DEADLINE).await.unwrap();
    assert_eq!(node.exit("p", "c").await.code, 0);
    assert_eq!(node.log("c"), "closed\n1\nnode\n");
}

/// CVE-2024-21626: a working folder that goes through a descriptor, or out of the root.
pub async fn working_folder(node: &mut Node) {
    symlink("/proc/self/fd/7", node.image.join("link")).unwrap();
    node.pod("p").await;
    for (i, cwd) in ["/proc/self/fd/3", "/proc/self/fd/7/../..", "/proc/1/cwd", "/link"].iter().enumerate() {
        let mut spec = node.sh(&format!("c{i}"), "pwd");
        spec.config.process.cwd = (*cwd).into();
        let error = node.runtime.create_container("p", spec).await.unwrap_err().to_string();
        assert!(error.starts_with("make the working folder") && !error.contains("os error"), "{error}");
    }
    // Behind a link of the image's own it is fine, inside the root.
    symlink("../../../work", node.image.join("up")).unwrap();
    let mut spec = node.sh("d", "pwd");
    spec.config.process.cwd = "/up/x".into();
    assert_eq!(node.run_to_end("p", spec).await.1, "/work/x\n");
}

/// CVE-2021-30465: somebody swaps a mount point for a link while the container is made.
pub async fn links_that_change(node: &mut Node) {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (volume, outside, source) =
        (node.root.join("volume"), node.root.join("outside"), node.root.join("source"));
    for folder in [&volume, &outside, &source] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(source.join("mark"), "").unwrap();
    fs::create_dir(volume.join("x")).unwrap();
    symlink(&outside, volume.join("y")).unwrap();
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let (at, done) = (volume.clone(), stop.clone());
    let swapper = std::thread::spawn(move || {
        let mut swaps = 0_u64;
        while !done.load(Ordering::Relaxed) {
            use sys::rustix::fs::{CWD, RenameFlags, renameat_with};
            renameat_with(CWD, at.join("x"), CWD, at.join("y"), RenameFlags::EXCHANGE).unwrap();
            swaps += 1;
        }
        swaps
    });
    node.pod("p").await;
    let mut made = 0;
    for i in 0..40 {
        let id = format!("c{i}");
        let mut spec = node.sh(&id, "true");
        spec.config.mounts.push(bind(&volume, "/v", "rbind"));
        spec.config.mounts.push(bind(&source, "/v/x/deep", "rbind"));
        made += u32::from(node.runtime.create_container("p", spec).await.is_ok());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something appeared outside");
        node.runtime.remove_container("p", &id).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let swaps = swapper.join().unwrap();
    assert!(made > 0 && swaps > 40, "made {made}, swapped {swaps} times");
}

/// As many layers as an image may have, on long and awkward paths; the first one is on top.
pub async fn many_layers(node: &mut Node) {
    let folder = node.root.join(format!("layers:{}", "x,".repeat(60)));
    let layers: Vec<_> = (0..127).map(|i| folder.join(format!("{i:03}"))).collect();
    for (i, layer) in layers.iter().enumerate() {
        fs::create_dir_all(layer.join("work")).unwrap();
        fs::write(layer.join("work/top"), format!("{i}\n")).unwrap();
        fs::write(layer.join(format!("work/only{i}")), "").unwrap();
    }
    node.pod("p").await;
    let mut spec = node.sh("c", "cat /work/top; ls /work | wc -l; echo own > /work/top; cat /work/top");
    spec.rootfs.lowers.splice(0..0, layers);
    let (_, log) = node.run_to_end("p", spec).await;
    assert_eq!(log, "0\n128\nown\n");
}
