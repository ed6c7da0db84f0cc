//! The agent's side of the runtime: makes pods and containers, re-adopts them, kills and removes them.
//!
//! All methods are safe to call concurrently; for one container the caller keeps the order. File and cgroup work
//! runs on blocking threads. Everything is recorded on disk before it is made, so whatever a crash leaves behind
//! is found by [`Runtime::recover`].

mod containers;
mod link;
mod pod;
mod session;

pub use session::{AttachSession, ExecSession};

use crate::api::{ContainerInfo, ContainerState, PodInfo, PodSpec, RuntimeConfig, RuntimeEvent};
use crate::cgroup::Cgroups;
use crate::error::{RuntimeError, io_error};
use crate::oci::Resources;
use crate::proto::{ContainerFile, Message, PodFile, VERSION};
use link::Link;
use parking_lot::Mutex;
use pod::Pod;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use sys::rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// Events that wait for the agent; a slow agent slows the reading of shims, nothing is lost.
const EVENTS_MAX: usize = 1024;
/// How long a shim may take to come up or to answer on recovery. Half a second is usual on a loaded machine.
const SHIM_DEADLINE: Duration = Duration::from_secs(15);
/// How often a shim that takes connections and says nothing is tried before it counts as dead: its containers may
/// be well, and their disk slow.
const RECOVER_TRIES: u32 = 4;
/// How long a kill may take before it is reported as stuck.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// The shim's own cgroup below the pod's (on v2 only leaves hold processes).
const SHIM_CGROUP: &str = "_shim";

/// A handle to the runtime; clones are cheap and mean the same.
#[derive(Clone, Debug)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: RuntimeConfig,
    cgroups: Cgroups,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    events: mpsc::Sender<RuntimeEvent>,
}

/// Starts a task that ends with its pod.
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// Registers a non-blocking descriptor with the event loop.
#[expect(deprecated, reason = "unsound only for types that give up their descriptor; an OwnedFd does not")]
fn async_fd(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(RuntimeError::Gone))
}

/// Runs an operation to its end even when its caller stops waiting, so that nothing stays half made.
async fn detached<T: Send + 'static>(
    task: impl Future<Output = Result<T, RuntimeError>> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::spawn(task).await.unwrap_or(Err(RuntimeError::Gone))
}

/// Names become folders and cgroups: one plain component, not one of ours.
fn checked(name: &str) -> Result<(), RuntimeError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 200 || name.starts_with(['.', '_']) || !name.chars().all(plain) {
        return Err(RuntimeError::BadName(name.to_owned()));
    }
    Ok(())
}

/// Removes a folder; that there is none is fine.
fn remove_folder(path: &Path) -> Result<(), RuntimeError> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io_error("remove", path)),
    }
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), RuntimeError> {
    let bytes = serde_json::to_vec(value).expect("files of the state folder have a JSON form");
    std::fs::write(path, bytes).map_err(io_error("write", path))
}

impl Runtime {
    /// Opens the runtime on its state folder (made when missing). Pods of an earlier run are not looked at until
    /// [`Runtime::recover`]. The receiver must be read.
    ///
    /// # Errors
    /// When the state folder cannot be made or no cgroup hierarchy is there.
    pub fn open(config: RuntimeConfig) -> Result<(Self, mpsc::Receiver<RuntimeEvent>), RuntimeError> {
        let cgroups = Cgroups::detect(&config.cgroup_root)?;
        Self::open_with(config, cgroups)
    }

    /// The same with cgroups found by the caller.
    ///
    /// # Errors
    /// When the state folder cannot be made.
    pub fn open_with(
        config: RuntimeConfig,
        cgroups: Cgroups,
    ) -> Result<(Self, mpsc::Receiver<RuntimeEvent>), RuntimeError> {
        let dir = &config.state_dir;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(io_error("make", dir))?;
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        Ok((Self { inner: Arc::new(Inner { config, cgroups, pods: Mutex::default(), events }) }, receiver))
    }

    /// The cgroup path below which all pods are.
    pub fn cgroup_root(&self) -> &str {
        &self.inner.config.cgroup_root
    }

    /// All pods, as last heard from their shims. Cheap.
    pub fn pods(&self) -> Vec<PodInfo> {
        self.inner.pods.lock().values().map(|pod| pod.info()).collect()
    }

    /// One pod. Cheap.
    pub fn pod(&self, uid: &str) -> Option<PodInfo> {
        self.inner.pods.lock().get(uid).map(|pod| pod.info())
    }

    /// Makes a pod: cgroup, shim, namespaces. On failure nothing is left.
    ///
    /// # Errors
    /// [`RuntimeError::Exists`]; else the step that failed.
    pub async fn create_pod(&self, spec: PodSpec) -> Result<PodInfo, RuntimeError> {
        checked(&spec.uid)?;
        if let Some(handler) = spec.handler.as_ref().filter(|h| !self.inner.config.handlers.contains_key(*h))
        {
            return Err(RuntimeError::NoHandler(handler.clone()));
        }
        let runtime = self.clone();
        detached(async move { runtime.create_pod_now(spec).await }).await
    }

    async fn create_pod_now(&self, spec: PodSpec) -> Result<PodInfo, RuntimeError> {
        let uid = spec.uid.clone();
        let dir = self.inner.config.state_dir.join(&uid);
        // Whoever makes the folder makes the pod.
        match std::fs::create_dir(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Err(RuntimeError::Exists(uid)),
            other => other.map_err(io_error("make", &dir))?,
        }
        let inner = self.inner.clone();
        let (made, spec_for_work) = (dir.clone(), spec.clone());
        let outcome = match blocking(move || inner.launch(&made, spec_for_work)).await {
            Ok((child, socket)) => {
                self.inner.greet(spec.clone(), dir.clone(), Some(child), Some(socket)).await
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(pod) => Ok(self.inner.adopt(pod).info()),
            Err(error) => {
                let inner = self.inner.clone();
                if let Err(e) = blocking(move || inner.sweep(&dir, Some(&spec))).await {
                    tracing::warn!(uid, error = %e, "leftovers of a pod that could not be made");
                }
                Err(error)
            }
        }
    }

    /// Kills everything in a pod and removes it. A pod that is not there is fine.
    ///
    /// # Errors
    /// [`crate::cgroup::CgroupError::Stuck`] when something cannot be killed; call again later.
    pub async fn remove_pod(&self, uid: &str) -> Result<(), RuntimeError> {
        checked(uid)?;
        let pod = self.inner.pods.lock().get(uid).cloned();
        let Some(pod) = pod else {
            // Perhaps one that could not be made, and not be cleaned up then.
            let (inner, dir) = (self.inner.clone(), self.inner.config.state_dir.join(uid));
            return blocking(move || inner.sweep(&dir, read_spec(&dir).as_ref())).await;
        };
        pod.closing.store(true, Ordering::Release);
        let (inner, work) = (self.inner.clone(), pod.clone());
        blocking(move || inner.tear_down(&work)).await?;
        self.inner.pods.lock().remove(uid);
        Ok(())
    }

    /// Re-adopts every live pod of an earlier run; kills and removes what is dead or half made. Call once, before
    /// anything else.
    ///
    /// # Errors
    /// When the state folder cannot be read. What cannot be cleaned is logged and tried again by the next run.
    pub async fn recover(&self) -> Result<Vec<PodInfo>, RuntimeError> {
        let root = self.inner.config.state_dir.clone();
        let entries = std::fs::read_dir(&root).map_err(io_error("list", &root))?;
        let dirs: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for dir in dirs {
            tasks.spawn(self.inner.clone().recover_one(dir));
        }
        while tasks.join_next().await.is_some() {}
        Ok(self.pods())
    }

    /// Makes a cgroup that groups pods (`burstable`) and sets its limits.
    ///
    /// # Errors
    /// As the kernel's answer.
    pub async fn set_group(&self, path: &str, resources: Resources) -> Result<(), RuntimeError> {
        let (inner, path) = (self.inner.clone(), path.to_owned());
        blocking(move || {
            inner.cgroups.create(&path)?;
            Ok(inner.cgroups.apply(&path, &resources)?)
        })
        .await
    }

    /// Removes the cgroup root and all groups in it, if no pod is left. For `gantry down`.
    pub async fn remove_groups(&self) {
        let inner = self.inner.clone();
        if inner.pods.lock().is_empty() {
            let done = blocking(move || Ok(inner.cgroups.kill_and_remove("", KILL_DEADLINE)?)).await;
            if let Err(error) = done {
                tracing::warn!(%error, "cgroup root stays");
            }
        }
    }
}

impl Inner {
    async fn emit(&self, event: RuntimeEvent) {
        // Without an agent there is nobody to tell.
        let _ = self.events.send(event).await;
    }

    fn adopt(self: &Arc<Self>, pod: Pod) -> Arc<Pod> {
        let pod = Arc::new(pod);
        self.pods.lock().insert(pod.spec.uid.clone(), pod.clone());
        spawn(pod.clone().follow(Arc::downgrade(self)));
        pod
    }

    /// Records the pod, makes its cgroup, starts its shim; returns our end of the first connection.
    fn launch(&self, dir: &Path, spec: PodSpec) -> Result<(Child, OwnedFd), RuntimeError> {
        let folder = dir.join("c");
        std::fs::create_dir_all(&folder).map_err(io_error("make", &folder))?;
        let own = format!("{}/{SHIM_CGROUP}", spec.cgroup);
        let file = PodFile { v: VERSION, join: self.cgroups.join(&own)?, spec };
        write_json(&dir.join("pod.json"), &file)?;
        self.cgroups.create(&own)?;
        self.cgroups.apply(&file.spec.cgroup, &file.spec.resources)?;

        let socket = |e: sys::rustix::io::Errno| io_error("connect", dir)(e.into());
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(socket)?;
        let flags = sys::rustix::fs::fcntl_getfl(&ours).map_err(socket)?;
        sys::rustix::fs::fcntl_setfl(&ours, flags | sys::rustix::fs::OFlags::NONBLOCK).map_err(socket)?;
        let log = dir.join("shim.log");
        let log = std::fs::File::create(&log).map_err(io_error("make", &log))?;
        // Without pre_exec, std uses posix_spawn: nothing is forked in this threaded process.
        let child = Command::new(&self.config.shim_exe)
            .arg("shim")
            .arg(dir)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .process_group(0)
            .spawn()
            .map_err(io_error("execute", &self.config.shim_exe))?;
        Ok((child, ours))
    }

    /// Waits for a shim's first word. Without a socket, one is opened.
    async fn greet(
        &self,
        spec: PodSpec,
        dir: PathBuf,
        child: Option<Child>,
        socket: Option<OwnedFd>,
    ) -> Result<Pod, RuntimeError> {
        let link = match socket {
            Some(socket) => Link::new(socket),
            None => Link::connect(&dir),
        };
        let link = link.map_err(io_error("connect to the shim of", &dir))?;
        let hello = tokio::time::timeout(SHIM_DEADLINE, link.next()).await;
        let timeout = RuntimeError::Timeout { step: "start the shim", seconds: SHIM_DEADLINE.as_secs() };
        let outcome = match hello {
            Ok(Some(Message::Hello { v, pid })) => {
                if v != VERSION {
                    tracing::warn!(shim = v, runtime = VERSION, "a shim of another release");
                }
                Ok(pid)
            }
            Ok(Some(Message::SetupFailed { step, error })) => Err(RuntimeError::Shim { step, error }),
            Ok(_) => Err(RuntimeError::Gone),
            Err(_) => Err(timeout),
        };
        match outcome {
            Ok(pid) => Pod::new(spec, dir, pid, child, link),
            Err(error) => {
                if let Some(mut child) = child {
                    let _ = child.kill();
                    let _ = blocking(move || Ok(child.wait().is_ok())).await;
                }
                Err(error)
            }
        }
    }

    async fn recover_one(self: Arc<Self>, dir: PathBuf) {
        let spec = read_spec(&dir);
        if let Some(spec) = &spec {
            for _ in 0..RECOVER_TRIES {
                match self.clone().revive(spec.clone(), dir.clone()).await {
                    Ok(()) => return,
                    Err(error @ RuntimeError::Timeout { .. }) => {
                        tracing::warn!(uid = spec.uid, %error, "a pod is slow to answer");
                    }
                    Err(error) => {
                        tracing::warn!(uid = spec.uid, %error, "pod is not alive, removing it");
                        break;
                    }
                }
            }
        }
        let (inner, at) = (self.clone(), dir.clone());
        if let Err(error) = blocking(move || inner.sweep(&at, spec.as_ref())).await {
            tracing::warn!(dir = %dir.display(), %error, "leftovers of a pod stay");
        }
    }

    async fn revive(self: Arc<Self>, spec: PodSpec, dir: PathBuf) -> Result<(), RuntimeError> {
        let pod = self.greet(spec, dir, None, None).await?;
        let files = container_files(&pod.dir);
        // Listed before the shim is listened to: an end that it tells of meanwhile must find its container.
        let listed = |(id, file): (&String, &ContainerFile)| {
            (id.clone(), ContainerInfo { spec: file.spec.clone(), state: ContainerState::Created })
        };
        *pod.mirror.lock() = files.iter().map(listed).collect();
        // The reader must run before the question is asked.
        let pod = self.adopt(pod);
        let timeout = RuntimeError::Timeout { step: "ask the shim", seconds: SHIM_DEADLINE.as_secs() };
        let link = pod.link();
        let asked = tokio::time::timeout(SHIM_DEADLINE, pod::states(&link)).await.unwrap_or(Err(timeout));
        let states = match asked {
            Ok(states) => states,
            Err(error) => {
                pod.closing.store(true, Ordering::Release);
                self.pods.lock().remove(&pod.spec.uid);
                return Err(error);
            }
        };
        let mut half_made = Vec::new();
        for (id, file) in files {
            match states.get(&id) {
                Some(state) => _ = pod.set_state(&id, state),
                None => {
                    pod.mirror.lock().remove(&id);
                    half_made.push(file);
                }
            }
        }
        let ids: Vec<String> = half_made.iter().map(|file| file.spec.id.clone()).collect();
        let inner = self.clone();
        blocking(move || {
            half_made.iter().try_for_each(|file| inner.sweep_container(&pod.spec, &pod.dir, file))
        })
        .await?;
        for id in &ids {
            pod::unlist(&link, id).await?;
        }
        Ok(())
    }

    /// The shim ended by itself: nothing may outlive it.
    async fn pod_died(self: &Arc<Self>, pod: &Arc<Pod>) {
        tracing::warn!(uid = pod.spec.uid, pid = pod.shim_pid, "shim is gone, killing its pod");
        let (inner, work) = (self.clone(), pod.clone());
        if let Err(error) = blocking(move || inner.tear_down(&work)).await {
            // It stays listed; `remove_pod` tries again.
            tracing::warn!(uid = pod.spec.uid, %error, "a dead pod's remains");
        } else {
            self.pods.lock().remove(&pod.spec.uid);
        }
        self.emit(RuntimeEvent::PodDied { uid: pod.spec.uid.clone() }).await;
    }

    /// Kills and removes a whole pod. Blocks.
    fn tear_down(&self, pod: &Pod) -> Result<(), RuntimeError> {
        pod.kill_shim();
        self.cgroups.kill(&pod.spec.cgroup)?;
        pod.bury();
        self.sweep(&pod.dir, Some(&pod.spec))
    }

    /// Removes what there is of a pod whose shim is not coming back. The record goes last. Blocks.
    fn sweep(&self, dir: &Path, spec: Option<&PodSpec>) -> Result<(), RuntimeError> {
        if let Some(spec) = spec {
            self.cgroups.kill_and_remove(&spec.cgroup, KILL_DEADLINE)?;
        }
        for (_, file) in container_files(dir) {
            self.remove_layer(&file)?;
        }
        remove_folder(&dir.join("c"))?;
        remove_folder(dir)
    }

    fn sweep_container(&self, pod: &PodSpec, dir: &Path, file: &ContainerFile) -> Result<(), RuntimeError> {
        let id = &file.spec.id;
        self.cgroups.kill_and_remove(&format!("{}/{id}", pod.cgroup), KILL_DEADLINE)?;
        self.remove_layer(file)?;
        remove_folder(&dir.join("c").join(id))
    }

    fn remove_layer(&self, file: &ContainerFile) -> Result<(), RuntimeError> {
        let scratch = &file.spec.rootfs.scratch;
        if scratch.as_os_str().is_empty() { Ok(()) } else { remove_folder(scratch) }
    }
}

/// The record of a pod, if it got that far.
fn read_spec(dir: &Path) -> Option<PodSpec> {
    let text = std::fs::read(dir.join("pod.json")).ok()?;
    serde_json::from_slice::<PodFile>(&text).ok().map(|file| file.spec)
}

/// The records of all containers in a pod's state folder.
fn container_files(dir: &Path) -> BTreeMap<String, ContainerFile> {
    let entries = std::fs::read_dir(dir.join("c")).into_iter().flatten().flatten();
    let read = |entry: std::fs::DirEntry| {
        let text = std::fs::read(entry.path().join("container.json")).ok()?;
        Some((entry.file_name().to_string_lossy().into_owned(), serde_json::from_slice(&text).ok()?))
    };
    entries.filter_map(read).collect()
}
