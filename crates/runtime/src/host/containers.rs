//! The runtime's methods for one container.

use super::pod::Pod;
use super::session::{AttachSession, ExecSession};
use super::{KILL_DEADLINE, Runtime, async_fd, blocking, checked, detached, write_json};
use crate::api::{ContainerInfo, ContainerSpec, ContainerState, ExecSpec, Usage};
use crate::cgroup::CgroupError;
use crate::error::{RuntimeError, io_error};
use crate::oci::Resources;
use crate::proto::{Answer, ContainerFile, Op, VERSION};
use parking_lot::Mutex;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use sys::rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use sys::rustix::mount::{OpenTreeFlags, open_tree};
use tokio::io::Interest;

/// Most that is kept of the output of a probe or hook.
pub const EXEC_SYNC_MAX: usize = 16 * 1024;

const SIGKILL: i32 = 9;

impl Runtime {
    fn find(&self, uid: &str) -> Result<Arc<Pod>, RuntimeError> {
        self.inner.pods.lock().get(uid).cloned().ok_or_else(|| RuntimeError::NoPod(uid.to_owned()))
    }

    fn find_container(&self, uid: &str, id: &str) -> Result<(Arc<Pod>, ContainerState), RuntimeError> {
        let pod = self.find(uid)?;
        let state = pod.state(id).ok_or_else(|| RuntimeError::NoContainer(id.to_owned()))?;
        Ok((pod, state))
    }

    /// Makes a container up to the point where only its program is missing. On failure nothing is left.
    ///
    /// # Errors
    /// [`RuntimeError::Shim`] names the step that failed, for `CreateContainerError`.
    pub async fn create_container(&self, uid: &str, spec: ContainerSpec) -> Result<(), RuntimeError> {
        checked(&spec.id)?;
        let (runtime, pod) = (self.clone(), self.find(uid)?);
        detached(async move { runtime.create_now(&pod, spec).await }).await
    }

    async fn create_now(&self, pod: &Arc<Pod>, mut spec: ContainerSpec) -> Result<(), RuntimeError> {
        let handler = match &pod.spec.handler {
            None => None,
            Some(name) => {
                let binary = self.inner.config.handlers.get(name);
                Some(binary.cloned().ok_or_else(|| RuntimeError::NoHandler(name.clone()))?)
            }
        };
        let id = spec.id.clone();
        let busy = pod.busy(&id);
        let _guard = busy.lock().await;
        let cgroup = format!("{}/{id}", pod.spec.cgroup);
        spec.config.linux.cgroups_path = format!("/{}/{cgroup}", self.inner.config.cgroup_root);
        let dir = pod.dir.join("c").join(&id);
        if !spec.rootfs.lowers.is_empty() {
            spec.config.root.path = dir.join("rootfs");
        }
        if self.inner.cgroups.is_v2() {
            // Out of memory, a container dies as a whole, unless its configuration says otherwise.
            let unified = &mut spec.config.linux.resources.unified;
            unified.entry("memory.oom.group".to_owned()).or_insert_with(|| "1".to_owned());
        }
        {
            let mut mirror = pod.mirror.lock();
            if mirror.contains_key(&id) {
                return Err(RuntimeError::Exists(id));
            }
            // Listed before it is made: what the shim says of it must find it.
            let info = ContainerInfo { spec: spec.clone(), state: ContainerState::Created };
            mirror.insert(id.clone(), info);
        }
        let inner = self.inner.clone();
        let (record, file) =
            (dir.join("container.json"), ContainerFile { v: VERSION, spec, handler, ..Default::default() });
        let prepared = blocking(move || {
            std::fs::create_dir_all(&dir).map_err(io_error("make", &dir))?;
            let resources = &file.spec.config.linux.resources;
            inner.cgroups.create(&cgroup)?;
            inner.cgroups.apply(&cgroup, resources)?;
            inner.cgroups.apply_devices(&cgroup, &resources.devices)?;
            write_json(&record, &ContainerFile { join: inner.cgroups.join(&cgroup)?, ..file.clone() })?;
            shared_mounts(&file)
        })
        .await;
        let made = match prepared {
            Ok(shared) => pod.link().call_with(Op::Create { container: id.clone() }, &shared).await.map(drop),
            Err(error) => Err(error),
        };
        if made.is_err() {
            self.discard(pod, &id).await;
        }
        made
    }

    /// Removes a container that could not be made.
    async fn discard(&self, pod: &Arc<Pod>, id: &str) {
        let info = pod.mirror.lock().get(id).cloned();
        if let Some(info) = info {
            let (inner, work) = (self.inner.clone(), pod.clone());
            let file = ContainerFile { spec: info.spec, ..Default::default() };
            if let Err(error) = blocking(move || inner.sweep_container(&work.spec, &work.dir, &file)).await {
                tracing::warn!(id, %error, "leftovers of a container that could not be made");
            }
            pod.forget(id);
        }
    }

    /// Runs a made container's program. Returns once `execve` has happened.
    ///
    /// # Errors
    /// [`RuntimeError::Start`] with the reason when it cannot be executed; the container is then `Exited` with
    /// the same text as its `start_error`.
    pub async fn start_container(&self, uid: &str, id: &str) -> Result<(), RuntimeError> {
        let (pod, _) = self.find_container(uid, id)?;
        pod.link().call(Op::Start { container: id.to_owned() }).await.map(drop)
    }

    /// Signals a container's first process. One that has ended is fine.
    ///
    /// # Errors
    /// As `pidfd_send_signal(2)`.
    pub async fn signal(&self, uid: &str, id: &str, signal: i32) -> Result<(), RuntimeError> {
        let (pod, state) = self.find_container(uid, id)?;
        if matches!(state, ContainerState::Exited { .. }) {
            return Ok(());
        }
        match pod.link().call(Op::Signal { container: id.to_owned(), signal }).await {
            Err(_) if matches!(pod.state(id), None | Some(ContainerState::Exited { .. })) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Kills a container where it runs and removes it with its layer. One that is not there is fine.
    ///
    /// # Errors
    /// [`CgroupError::Stuck`] when it cannot be killed; call again later.
    pub async fn remove_container(&self, uid: &str, id: &str) -> Result<(), RuntimeError> {
        let Ok(pod) = self.find(uid) else { return Ok(()) };
        let cgroup = format!("{}/{id}", pod.spec.cgroup);
        let stuck = || CgroupError::Stuck { path: cgroup.clone().into(), seconds: KILL_DEADLINE.as_secs() };
        if !matches!(pod.state(id), None | Some(ContainerState::Exited { .. })) {
            self.kill(&pod, id, &cgroup).await?;
        }
        // One that is being made fails by that kill, or is done soon.
        let busy = pod.busy(id);
        let _guard = tokio::time::timeout(KILL_DEADLINE, busy.lock()).await.map_err(|_| stuck())?;
        match pod.state(id) {
            None => return Ok(()),
            Some(ContainerState::Exited { .. }) => {}
            Some(_) => {
                self.kill(&pod, id, &cgroup).await?;
                if !pod.wait_exited(id, KILL_DEADLINE).await {
                    return Err(stuck().into());
                }
            }
        }
        pod.link().call(Op::Forget { container: id.to_owned() }).await?;
        let info = pod.mirror.lock().get(id).cloned();
        let Some(info) = info else { return Ok(()) };
        let (inner, work) = (self.inner.clone(), pod.clone());
        let file = ContainerFile { spec: info.spec, ..Default::default() };
        blocking(move || inner.sweep_container(&work.spec, &work.dir, &file)).await?;
        pod.forget(id);
        Ok(())
    }

    async fn kill(&self, pod: &Pod, id: &str, cgroup: &str) -> Result<(), RuntimeError> {
        // By name as well: where another runtime made it, it may be in a cgroup of that runtime's choice.
        let _ = pod.link().call(Op::Signal { container: id.to_owned(), signal: SIGKILL }).await;
        let (inner, path) = (self.inner.clone(), cgroup.to_owned());
        blocking(move || Ok(inner.cgroups.kill(&path)?)).await
    }

    /// Changes limits of a running container, or of the pod (`id` `None`). Raising both: pod first; lowering: pod
    /// last.
    ///
    /// # Errors
    /// As the kernel's answer to the write.
    pub async fn update_resources(
        &self,
        uid: &str,
        id: Option<&str>,
        resources: Resources,
    ) -> Result<(), RuntimeError> {
        let path = self.cgroup_of(uid, id)?;
        let inner = self.inner.clone();
        blocking(move || Ok(inner.cgroups.apply(&path, &resources)?)).await
    }

    fn cgroup_of(&self, uid: &str, id: Option<&str>) -> Result<String, RuntimeError> {
        match id {
            None => Ok(self.find(uid)?.spec.cgroup.clone()),
            Some(id) => Ok(format!("{}/{id}", self.find_container(uid, id)?.0.spec.cgroup)),
        }
    }

    /// What a container, or the whole pod with its shim (`id` `None`), uses now.
    ///
    /// # Errors
    /// When there is none.
    pub fn usage(&self, uid: &str, id: Option<&str>) -> Result<Usage, RuntimeError> {
        Ok(self.inner.cgroups.usage(&self.cgroup_of(uid, id)?)?)
    }

    /// What all pods use together.
    #[must_use]
    pub fn usage_of_all(&self) -> Usage {
        self.inner.cgroups.usage("").unwrap_or_default()
    }

    /// Runs one more program in a running container; returns once it runs.
    ///
    /// # Errors
    /// [`RuntimeError::Start`] when it cannot be executed.
    pub async fn exec(&self, uid: &str, id: &str, spec: ExecSpec) -> Result<ExecSession, RuntimeError> {
        let (pod, _) = self.find_container(uid, id)?;
        let op = Op::Exec { container: id.to_owned(), spec: spec.clone() };
        let reply = pod.link().call(op).await?;
        let (Answer::Exec(number), Some(exit)) = (reply.answer, reply.exit) else {
            return Err(RuntimeError::Gone);
        };
        let mut fds = reply.fds.into_iter();
        let mut session =
            ExecSession { stdin: None, stdout: None, stderr: None, master: None, exit, code: None, number };
        if spec.tty {
            let master = fds.next().ok_or(RuntimeError::Gone)?;
            let copy = |wanted: bool| wanted.then(|| master.try_clone()).transpose();
            let failed = io_error("duplicate the terminal of", &pod.dir);
            (session.stdin, session.stdout) =
                copy(spec.stdin).and_then(|i| Ok((i, copy(spec.stdout)?))).map_err(failed)?;
            session.master = Some(master);
            return Ok(session);
        }
        session.stdin = if spec.stdin { fds.next() } else { None };
        session.stdout = if spec.stdout { fds.next() } else { None };
        session.stderr = if spec.stderr { fds.next() } else { None };
        Ok(session)
    }

    /// Signals an exec'd process. One that has ended is fine.
    pub async fn signal_exec(&self, uid: &str, session: &ExecSession, signal: i32) {
        if let Ok(pod) = self.find(uid) {
            let _ = pod.link().call(Op::SignalExec { exec: session.number, signal }).await;
        }
    }

    /// Runs a program in a running container to its end: exit code and the first 16 KiB of what it wrote to
    /// stdout and stderr. For probes and hooks.
    ///
    /// # Errors
    /// [`RuntimeError::Timeout`] after `timeout`; the program is killed then. [`RuntimeError::Start`] when it
    /// cannot be executed.
    pub async fn exec_sync(
        &self,
        uid: &str,
        id: &str,
        args: Vec<String>,
        timeout: Duration,
    ) -> Result<(i32, Vec<u8>), RuntimeError> {
        let spec = ExecSpec { args, stdout: true, stderr: true, ..ExecSpec::default() };
        let end = tokio::time::Instant::now() + timeout;
        let late = || RuntimeError::Timeout { step: "command", seconds: timeout.as_secs() };
        let (runtime, at) = (self.clone(), (uid.to_owned(), id.to_owned()));
        let mut starting = tokio::spawn(async move { runtime.exec(&at.0, &at.1, spec).await });
        let Ok(started) = tokio::time::timeout_at(end, &mut starting).await else {
            // It may yet start; it must not outlive its deadline.
            let (runtime, uid) = (self.clone(), uid.to_owned());
            super::spawn(async move {
                if let Ok(Ok(session)) = starting.await {
                    runtime.signal_exec(&uid, &session, SIGKILL).await;
                }
            });
            return Err(late());
        };
        let mut session = started.map_err(|_| RuntimeError::Gone)??;
        let (out, err) = (Mutex::default(), Mutex::default());
        let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
        let readers = async { tokio::join!(collect(stdout, &out), collect(stderr, &err)) };
        tokio::pin!(readers);
        let mut read = false;
        let code = loop {
            tokio::select! {
                code = tokio::time::timeout_at(end, session.wait()) => break code,
                _ = &mut readers, if !read => read = true,
            }
        };
        let Ok(code) = code else {
            self.signal_exec(uid, &session, SIGKILL).await;
            return Err(late());
        };
        // A child that it left behind may hold the pipes open for ever; what is there by now is taken.
        if !read {
            let _ = tokio::time::timeout(LINGER, &mut readers).await;
        }
        let mut output = std::mem::take(&mut *out.lock());
        output.append(&mut err.lock());
        output.truncate(EXEC_SYNC_MAX);
        Ok((code, output))
    }

    /// A live copy of a container's output; with `stdin` also its input, where it has one.
    ///
    /// # Errors
    /// When the container has ended.
    pub async fn attach(&self, uid: &str, id: &str, stdin: bool) -> Result<AttachSession, RuntimeError> {
        let (pod, _) = self.find_container(uid, id)?;
        let reply = pod.link().call(Op::Attach { container: id.to_owned(), stdin }).await?;
        let Answer::Attach { stdin, tty } = reply.answer else { return Err(RuntimeError::Gone) };
        let mut fds = reply.fds.into_iter();
        let stdin = if stdin { fds.next() } else { None };
        let stdout = fds.next().ok_or(RuntimeError::Gone)?;
        Ok(AttachSession { stdin, stdout, stderr: fds.next(), tty })
    }

    /// Sets the size of a container's terminal in characters; without a terminal, nothing.
    ///
    /// # Errors
    /// When there is no such container.
    pub async fn resize_tty(&self, uid: &str, id: &str, width: u16, height: u16) -> Result<(), RuntimeError> {
        let (pod, _) = self.find_container(uid, id)?;
        pod.link().call(Op::Resize { container: id.to_owned(), width, height }).await.map(drop)
    }
}

/// Copies of the volumes that a container shares with the node in both directions. The shim cannot make them: its
/// mount namespace only listens to the node's.
fn shared_mounts(file: &ContainerFile) -> Result<Vec<OwnedFd>, RuntimeError> {
    if file.handler.is_some() {
        return Ok(vec![]);
    }
    let mounts = file.spec.config.mounts.iter().filter(|m| crate::init::is_shared(m));
    mounts
        .map(|mount| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let copy = open_tree(sys::rustix::fs::CWD, &mount.source, flags);
            copy.map_err(|e| io_error("clone the mount of", &mount.source)(e.into()))
        })
        .collect()
}

/// How long output is waited for after a probe's program has ended.
const LINGER: Duration = Duration::from_millis(500);

/// Reads a pipe to its end, keeping the first part.
async fn collect(fd: Option<OwnedFd>, kept: &Mutex<Vec<u8>>) {
    let Some(fd) = fd else { return };
    let nonblocking = fcntl_getfl(&fd).and_then(|flags| fcntl_setfl(&fd, flags | OFlags::NONBLOCK));
    let (Ok(()), Ok(fd)) = (nonblocking, async_fd(fd)) else { return };
    let mut buffer = [0; 4096];
    loop {
        let read = fd.async_io(Interest::READABLE, |fd| Ok(sys::rustix::io::read(fd, &mut buffer)?)).await;
        let Ok(n @ 1..) = read else { return };
        let mut kept = kept.lock();
        let room = EXEC_SYNC_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..n.min(room)]);
    }
}
