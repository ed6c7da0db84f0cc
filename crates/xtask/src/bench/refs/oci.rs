//! `/bin/true` in a container: our runtime driven as the agent drives it, and crun and runc by their command line.
//!
//! All get the same `config.json` (default mounts, capabilities, seccomp profile, limits). Differences that stay:
//! ours mounts an overlay and keeps a CRI log, theirs use a plain folder and no log; our pod's network, IPC and UTS
//! namespaces are made with the pod. CPU is everything: the driving process and all its descendants, for which it is
//! the subreaper.

use super::worker::{Round, Work, Worker, installed};
use crate::bench::cpu_seconds_with_descendants;
use anyhow::{Context, Result, ensure};
use runtime::Runtime;
use runtime::api::{ContainerSpec, ContainerState, LogSpec, PodSpec, Rootfs, RuntimeConfig, RuntimeEvent};
use runtime::oci::{self, default_spec};
use rustix::process::{Pid, WaitOptions, set_child_subreaper, waitpid};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Cycles a round.
const CYCLES: usize = 20;
const DEADLINE: Duration = Duration::from_secs(30);
/// A limit that `true` does not meet.
const MEMORY_BYTES: i64 = 64 << 20;
const CONTAINER: &str = "c";
const POD: &str = "p";

/// A folder on a memory file system with an image in it.
fn folder() -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let image = folder.path().join("rootfs");
    for dir in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(image.join(dir))?;
    }
    fs::copy(installed("/bin/busybox", "busybox-static")?, image.join("bin/true"))?;
    Ok(folder)
}

/// The name of this worker's cgroups.
fn cgroup() -> String {
    format!("gantry-bench-{}", std::process::id())
}

fn config() -> oci::Spec {
    let mut config = default_spec();
    config.process.args = vec!["/bin/true".into()];
    config.process.no_new_privileges = true;
    config.linux.seccomp = Some(oci::seccomp::runtime_default(oci::DEFAULT_CAPABILITIES));
    config.linux.resources.memory.limit = Some(MEMORY_BYTES);
    config.linux.resources.cpu.shares = Some(512);
    config.linux.resources.pids = Some(oci::Pids { limit: 100 });
    config
}

/// CPU time of this process and of what it has waited for.
fn cpu() -> Result<f64> {
    cpu_seconds_with_descendants(std::process::id())
}

/// Our runtime.
struct Ours {
    tokio: tokio::runtime::Runtime,
    runtime: Runtime,
    events: mpsc::Receiver<RuntimeEvent>,
    /// A pod for each container, or one for all.
    whole_pods: bool,
    folder: tempfile::TempDir,
}

/// A pod with one container, made and removed. Arguments: the gantry binary, used as the shim.
pub fn pod(args: &[&str]) -> Result<Box<dyn Work>> {
    Ok(Box::new(Ours::open(args, true)?))
}

/// A container made and removed in a pod that stays. Arguments as [`pod`].
pub fn container(args: &[&str]) -> Result<Box<dyn Work>> {
    let ours = Ours::open(args, false)?;
    ours.tokio.block_on(ours.make_pod())?;
    Ok(Box::new(ours))
}

impl Ours {
    fn open(args: &[&str], whole_pods: bool) -> Result<Ours> {
        let folder = folder()?;
        let config = RuntimeConfig {
            state_dir: folder.path().join("state"),
            cgroup_root: cgroup(),
            shim_exe: fs::canonicalize(args.first().context("a binary")?)?,
            handlers: BTreeMap::new(),
        };
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (runtime, events) = {
            let _inside = tokio.enter();
            Runtime::open(config)?
        };
        Ok(Ours { tokio, runtime, events, whole_pods, folder })
    }

    async fn make_pod(&self) -> Result<()> {
        let uid = POD.to_string();
        let spec = PodSpec { cgroup: format!("pod{uid}"), hostname: uid.clone(), uid, ..PodSpec::default() };
        self.runtime.create_pod(spec).await?;
        Ok(())
    }

    fn spec(&self) -> ContainerSpec {
        let root = self.folder.path();
        ContainerSpec {
            id: CONTAINER.into(),
            name: CONTAINER.into(),
            config: config(),
            rootfs: Rootfs { lowers: vec![root.join("rootfs")], scratch: root.join("scratch") },
            log: LogSpec { path: root.join("logs/0.log"), max_bytes: 0, max_files: 0 },
            ..ContainerSpec::default()
        }
    }

    async fn cycle(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        if self.whole_pods {
            self.make_pod().await?;
        }
        self.runtime.create_container(POD, self.spec()).await?;
        self.runtime.start_container(POD, CONTAINER).await?;
        let code = tokio::time::timeout(DEADLINE, self.exit()).await??;
        ensure!(code == 0, "exit code {code}");
        match self.whole_pods {
            true => self.runtime.remove_pod(POD).await?,
            false => self.runtime.remove_container(POD, CONTAINER).await?,
        }
        Ok(begin.elapsed())
    }

    async fn exit(&mut self) -> Result<i32> {
        loop {
            let pod = self.runtime.pod(POD).context("the pod is there")?;
            let found = pod.containers.into_iter().find(|c| c.spec.id == CONTAINER);
            if let ContainerState::Exited { exit, .. } = found.context("the container is there")?.state {
                return Ok(exit.code);
            }
            self.events.recv().await.context("events go on")?;
        }
    }
}

impl Work for Ours {
    fn round(&mut self, _what: &str) -> Result<Round> {
        // The shim of a pod that stays is not waited for, so it is counted by itself.
        let shim = self.runtime.pod(POD).map(|pod| pod.shim_pid.unsigned_abs());
        let cpu = || Ok(cpu()? + shim.map_or(Ok(0.0), cpu_seconds_with_descendants)?);
        let tokio = self.tokio.handle().clone();
        Round::repeat(CYCLES, 1, cpu, || tokio.block_on(self.cycle()))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.tokio.block_on(async {
            if let Err(error) = self.runtime.remove_pod(POD).await {
                eprintln!("removing the pod: {error}");
            }
            self.runtime.remove_groups().await;
        });
    }
}

/// Another runtime's binary, in a mount namespace where a v2 tree beside v1 is not seen if it is crun (which refuses
/// to work otherwise).
pub fn binary(program: &str) -> Result<Box<dyn Work>> {
    struct Inside(Worker);
    impl Work for Inside {
        fn round(&mut self, what: &str) -> Result<Round> {
            self.0.round(what)
        }
    }
    let hide = match program.ends_with("crun") && Path::new("/sys/fs/cgroup/unified").exists() {
        true => "umount -l /sys/fs/cgroup/unified && ",
        false => "",
    };
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &format!("{hide} exec \"$@\""), "sh"]);
    command.arg(std::env::current_exe()?).args(["bench-worker", "oci-load", program]);
    Ok(Box::new(Inside(Worker::start(command)?)))
}

/// Drives such a binary. Arguments: its path.
pub fn oci_load(args: &[&str]) -> Result<Box<dyn Work>> {
    let path = *args.first().context("a program")?;
    let name = path.rsplit('/').next().unwrap_or(path);
    let program = installed(path, name)?;
    set_child_subreaper(Some(rustix::process::getpid()))?;
    let folder = folder()?;
    let mut config = config();
    config.root.path = "rootfs".into();
    config.hostname = POD.into();
    config.linux.cgroups_path = format!("/{}/{CONTAINER}", cgroup());
    let pods = ["network", "ipc", "uts"].map(|kind| oci::Namespace { kind: kind.into(), path: None });
    config.linux.namespaces.extend(pods);
    fs::write(folder.path().join("config.json"), serde_json::to_vec(&config)?)?;
    Ok(Box::new(Theirs { program, folder }))
}

struct Theirs {
    program: PathBuf,
    folder: tempfile::TempDir,
}

impl Theirs {
    fn run(&self, words: &[&str]) -> Result<()> {
        let root = self.folder.path();
        let log = root.join("log");
        // No pipe: the container inherits it, and whoever reads it to its end would wait for the container.
        let status = Command::new(&self.program)
            .arg("--root")
            .arg(root.join("state"))
            .args(words)
            .current_dir(root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .status()?;
        ensure!(status.success(), "{words:?}: {}", fs::read_to_string(&log).unwrap_or_default());
        Ok(())
    }

    fn cycle(&self) -> Result<Duration> {
        let begin = Instant::now();
        self.run(&["create", "--pid-file", "pid", CONTAINER])?;
        self.run(&["start", CONTAINER])?;
        let pid: i32 = fs::read_to_string(self.folder.path().join("pid"))?.trim().parse()?;
        let (_, status) =
            waitpid(Pid::from_raw(pid), WaitOptions::empty())?.context("the container ended")?;
        ensure!(status.exit_status() == Some(0), "{status:?}");
        self.run(&["delete", CONTAINER])?;
        let took = begin.elapsed();
        // What else the runtime left to its subreaper.
        while let Ok(Some(_)) = waitpid(None, WaitOptions::NOHANG) {}
        Ok(took)
    }
}

impl Work for Theirs {
    fn round(&mut self, _what: &str) -> Result<Round> {
        Round::repeat(CYCLES, 1, cpu, || self.cycle())
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // Only there after a failure; and the folder above it stays in any case.
        let _ = self.run(&["delete", "--force", CONTAINER]);
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(cgroup()));
        }
        let _ = fs::remove_dir(Path::new("/sys/fs/cgroup").join(cgroup()));
    }
}
