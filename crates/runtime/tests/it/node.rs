//! The fixture: a node with a root file system of busybox, and the check that nothing stays behind.

use runtime::Runtime;
use runtime::api::{
    ContainerSpec, ContainerState, Exit, LogSpec, PodSpec, Rootfs, RuntimeConfig, RuntimeEvent,
};
use runtime::cgroup::Cgroups;
use runtime::oci::{self, default_spec};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Nothing here takes longer on a healthy machine, however busy.
pub const DEADLINE: Duration = Duration::from_secs(180);

static NEXT: AtomicU32 = AtomicU32::new(0);

const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "id", "env", "ls", "pwd", "sleep", "true", "false", "kill", "mount", "umount",
    "touch", "head", "tail", "dd", "grep", "stty", "tty", "unshare", "hostname", "readlink", "seq", "wc",
    "ps", "yes", "stat", "mkdir", "ln", "rm", "test", "printf", "ulimit", "trap", "sort", "mknod", "chmod",
    "tr", "awk",
];

pub struct Node {
    pub runtime: Runtime,
    pub events: mpsc::Receiver<RuntimeEvent>,
    pub root: PathBuf,
    pub image: PathBuf,
    pub cgroup_root: String,
    _folder: Option<tempfile::TempDir>,
}

impl Node {
    pub fn run(test: super::Test) {
        let tokio =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        tokio.block_on(async {
            let mut node = Self::new(false);
            test(&mut node).await;
            node.finish().await;
        });
    }

    pub fn config(root: &Path, cgroup_root: &str) -> RuntimeConfig {
        RuntimeConfig {
            state_dir: root.join("state"),
            cgroup_root: cgroup_root.to_owned(),
            // The measurements can be taken of the real binary.
            shim_exe: std::env::var_os("SHIM_EXE")
                .map_or_else(|| std::env::current_exe().unwrap(), PathBuf::from),
            handlers: BTreeMap::from([("crun".to_owned(), PathBuf::from("/usr/bin/crun"))]),
        }
    }

    pub fn new(without_unified: bool) -> Self {
        // As in production, state is on a memory file system.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let root = folder.path().to_owned();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup_root = format!("gantry-it-{}-{number}", std::process::id());
        let image = root.join("image");
        for dir in ["bin", "etc", "tmp", "proc", "sys", "dev", "work"] {
            fs::create_dir_all(image.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", image.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", image.join("bin").join(applet)).unwrap();
        }
        fs::write(
            image.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
        )
        .unwrap();
        let mut node = Self::at(&root, &cgroup_root);
        if without_unified {
            let cgroups = Cgroups::detect(&cgroup_root).unwrap().without_unified();
            let config = Self::config(&root, &cgroup_root);
            (node.runtime, node.events) = Runtime::open_with(config, cgroups).unwrap();
        }
        node._folder = Some(folder);
        node
    }

    /// A node on folders that are there already.
    pub fn at(root: &Path, cgroup_root: &str) -> Self {
        let (runtime, events) = Runtime::open(Self::config(root, cgroup_root)).unwrap();
        let image = root.join("image");
        Self {
            runtime,
            events,
            root: root.to_owned(),
            image,
            cgroup_root: cgroup_root.to_owned(),
            _folder: None,
        }
    }

    pub fn pod_spec(&self, uid: &str) -> PodSpec {
        PodSpec {
            uid: uid.to_owned(),
            namespace: "default".to_owned(),
            name: uid.to_owned(),
            hostname: format!("host-{uid}"),
            cgroup: format!("burstable/pod{uid}"),
            ..PodSpec::default()
        }
    }

    pub async fn pod(&self, uid: &str) {
        self.runtime.create_pod(self.pod_spec(uid)).await.unwrap();
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.root.join("logs").join(id).join("0.log")
    }

    /// A container of the busybox image.
    pub fn container(&self, id: &str, args: &[&str]) -> ContainerSpec {
        let mut config = default_spec();
        config.process.args = args.iter().map(|&a| a.to_owned()).collect();
        config.process.no_new_privileges = true;
        config.linux.seccomp = Some(oci::seccomp::runtime_default(oci::DEFAULT_CAPABILITIES));
        ContainerSpec {
            id: id.to_owned(),
            name: id.to_owned(),
            config,
            rootfs: Rootfs { lowers: vec![self.image.clone()], scratch: self.root.join("scratch").join(id) },
            log: LogSpec { path: self.log_path(id), max_bytes: 0, max_files: 0 },
            ..ContainerSpec::default()
        }
    }

    pub fn sh(&self, id: &str, script: &str) -> ContainerSpec {
        self.container(id, &["sh", "-c", script])
    }

    pub async fn start(&self, uid: &str, spec: ContainerSpec) {
        let id = spec.id.clone();
        self.runtime.create_container(uid, spec).await.unwrap();
        self.runtime.start_container(uid, &id).await.unwrap();
    }

    /// Creates, starts, waits; returns exit and log text (stdout and stderr, without heads).
    pub async fn run_to_end(&mut self, uid: &str, spec: ContainerSpec) -> (Exit, String) {
        let id = spec.id.clone();
        self.start(uid, spec).await;
        let exit = self.exit(uid, &id).await;
        (exit, self.log(&id))
    }

    /// Waits for a container's end.
    pub async fn exit(&mut self, uid: &str, id: &str) -> Exit {
        let wait = async {
            loop {
                let pod = self.runtime.pod(uid).expect("pod");
                let info = pod.containers.into_iter().find(|c| c.spec.id == id).expect("container");
                if let ContainerState::Exited { exit, .. } = info.state {
                    return exit;
                }
                self.events.recv().await.expect("events");
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("container did not end")
    }

    pub fn log(&self, id: &str) -> String {
        let text = fs::read_to_string(self.log_path(id)).unwrap_or_default();
        let body = |line: &str| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n";
        text.lines().map(body).collect()
    }

    /// Waits until a container's log holds `text`.
    pub async fn wait_log(&self, id: &str, text: &str) {
        let end = std::time::Instant::now() + DEADLINE;
        while !self.log(id).contains(text) {
            assert!(std::time::Instant::now() < end, "no {text:?} in the log: {:?}", self.log(id));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where this node's cgroups would be.
    pub fn cgroup_folders(&self) -> Vec<PathBuf> {
        let trees = fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path());
        // On v2 there is one tree, and that is the mount itself.
        trees
            .chain(["/sys/fs/cgroup".into()])
            .map(|t| t.join(&self.cgroup_root))
            .filter(|p| p.exists())
            .collect()
    }

    /// Removes all pods and fails when anything is left.
    pub async fn finish(self) {
        for pod in self.runtime.pods() {
            self.runtime.remove_pod(&pod.spec.uid).await.unwrap();
        }
        self.runtime.remove_groups().await;
        let cgroups = self.cgroup_folders();
        assert!(cgroups.is_empty(), "cgroups stay: {cgroups:?}");
        let state: Vec<_> = fs::read_dir(self.root.join("state")).unwrap().flatten().collect();
        assert!(state.is_empty(), "state stays: {state:?}");
        let scratch: Vec<_> =
            fs::read_dir(self.root.join("scratch")).into_iter().flatten().flatten().collect();
        assert!(scratch.is_empty(), "layers stay: {scratch:?}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.root.to_str().unwrap()), "mounts stay");
        let end = std::time::Instant::now() + DEADLINE;
        // A killed process may need a moment, above all one that was on its way into a cgroup.
        while let Some(process) = process_with(self.root.to_str().unwrap()) {
            assert!(std::time::Instant::now() < end, "process stays: {}", process.display());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A test that failed leaves nothing behind either.
impl Drop for Node {
    fn drop(&mut self) {
        if let (true, Ok(cgroups)) = (std::thread::panicking(), Cgroups::detect(&self.cgroup_root)) {
            for pod in self.runtime.pods() {
                let _ = std::process::Command::new("kill").args(["-9", &pod.shim_pid.to_string()]).status();
            }
            let _ = cgroups.kill_and_remove("", DEADLINE);
        }
    }
}

/// A process that has `needle` on its command line.
fn process_with(needle: &str) -> Option<PathBuf> {
    let has = |path: &PathBuf| {
        String::from_utf8_lossy(&fs::read(path.join("cmdline")).unwrap_or_default()).contains(needle)
    };
    fs::read_dir("/proc").unwrap().flatten().map(|e| e.path()).find(has)
}
