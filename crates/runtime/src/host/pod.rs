//! One pod on the runtime's side: its shim, the connection to it, and a mirror of its containers.

use super::Inner;
use super::link::Link;
use crate::api::{ContainerInfo, ContainerState, PodInfo, PodSpec, RuntimeEvent};
use crate::error::RuntimeError;
use crate::proto::{Answer, Message, Op};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use sys::rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::watch;

/// How often a live shim that closed its connection is tried again, and how long between.
const RECONNECTS: u32 = 20;
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// How often a shim is asked to forget a container that was swept away, and how long between.
const UNLIST_TRIES: u32 = 200;
const UNLIST_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(super) struct Pod {
    pub spec: PodSpec,
    pub dir: PathBuf,
    pub shim_pid: i32,
    pidfd: OwnedFd,
    /// To bury it, when it is our own child.
    child: Mutex<Option<std::process::Child>>,
    link: Mutex<Arc<Link>>,
    pub mirror: Mutex<BTreeMap<String, ContainerInfo>>,
    /// Counts changes of the mirror.
    changes: watch::Sender<u64>,
    /// One making or removing at a time for each container.
    busy: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// On its way out: the shim's end is no news.
    pub closing: AtomicBool,
}

impl Pod {
    pub(super) fn new(
        spec: PodSpec,
        dir: PathBuf,
        shim_pid: i32,
        child: Option<std::process::Child>,
        link: Link,
    ) -> Result<Self, RuntimeError> {
        let pid = sys::rustix::process::Pid::from_raw(shim_pid).ok_or(RuntimeError::Gone)?;
        let pidfd = sys::rustix::process::pidfd_open(pid, sys::rustix::process::PidfdFlags::empty())
            .map_err(|_| RuntimeError::Gone)?;
        Ok(Self {
            spec,
            dir,
            shim_pid,
            pidfd,
            child: Mutex::new(child),
            link: Mutex::new(Arc::new(link)),
            mirror: Mutex::default(),
            busy: Mutex::default(),
            changes: watch::Sender::new(0),
            closing: AtomicBool::new(false),
        })
    }

    pub(super) fn link(&self) -> Arc<Link> {
        self.link.lock().clone()
    }

    /// The lock of a container's making and removing.
    pub(super) fn busy(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        self.busy.lock().entry(id.to_owned()).or_default().clone()
    }

    /// The container is gone, its name is free.
    pub(super) fn forget(&self, id: &str) {
        self.mirror.lock().remove(id);
        self.busy.lock().remove(id);
    }

    pub(super) fn info(&self) -> PodInfo {
        PodInfo {
            spec: self.spec.clone(),
            shim_pid: self.shim_pid,
            containers: self.mirror.lock().values().cloned().collect(),
        }
    }

    pub(super) fn state(&self, id: &str) -> Option<ContainerState> {
        self.mirror.lock().get(id).map(|c| c.state.clone())
    }

    /// Records a state; `false` when it was known. A container never goes back: what a list says may be older than
    /// an event that came right behind it.
    pub(super) fn set_state(&self, id: &str, state: &ContainerState) -> bool {
        let mut mirror = self.mirror.lock();
        let Some(info) = mirror.get_mut(id) else { return false };
        let news = info.state != *state && age(&info.state) <= age(state);
        if !news {
            return false;
        }
        info.state = state.clone();
        drop(mirror);
        self.changes.send_modify(|n| *n += 1);
        true
    }

    /// Waits until a container has ended; `false` at the deadline.
    pub(super) async fn wait_exited(&self, id: &str, deadline: Duration) -> bool {
        let mut changes = self.changes.subscribe();
        let exited =
            |state: Option<ContainerState>| matches!(state, None | Some(ContainerState::Exited { .. }));
        let wait = changes.wait_for(|_| exited(self.state(id)));
        tokio::time::timeout(deadline, wait).await.is_ok()
    }

    fn shim_is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|n| n == 0)
    }

    /// Kills the shim itself. (Its cgroup's kill does that too, unless it never got there.)
    pub(super) fn kill_shim(&self) {
        use std::os::fd::AsFd;
        let _ = sys::process::pidfd_signal(self.pidfd.as_fd(), 9);
    }

    /// Buries a shim that was killed. Blocks until it is gone.
    pub(super) fn bury(&self) {
        if let Some(mut child) = self.child.lock().take() {
            let _ = child.wait();
        }
    }

    /// Reads what the shim says until it, or the runtime, is gone.
    pub(super) async fn follow(self: Arc<Self>, runtime: Weak<Inner>) {
        loop {
            let link = self.link();
            while let Some(message) = link.next().await {
                if let Message::State { container, state } = message {
                    self.report(&runtime, container, state).await;
                }
            }
            link.abandon();
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            if !self.reconnect(&runtime).await {
                break;
            }
        }
        let Some(runtime) = runtime.upgrade() else { return };
        runtime.pod_died(&self).await;
    }

    async fn report(&self, runtime: &Weak<Inner>, id: String, state: ContainerState) {
        if !self.set_state(&id, &state) {
            return;
        }
        if let Some(runtime) = runtime.upgrade() {
            runtime.emit(RuntimeEvent::Container { uid: self.spec.uid.clone(), id, state }).await;
        }
    }

    /// A shim drops a runtime that does not read. It is alive then; what was missed is asked for.
    async fn reconnect(self: &Arc<Self>, runtime: &Weak<Inner>) -> bool {
        for _ in 0..RECONNECTS {
            if !self.shim_is_alive() || self.closing.load(Ordering::Acquire) {
                return false;
            }
            if let Ok(link) = Link::connect(&self.dir) {
                let link = Arc::new(link);
                *self.link.lock() = link.clone();
                let (pod, runtime) = (self.clone(), runtime.clone());
                // The answer is read by the loop that calls this, so the question needs a task of its own.
                super::spawn(async move {
                    if let Ok(states) = states(&link).await {
                        for (id, state) in states {
                            pod.report(&runtime, id, state).await;
                        }
                    }
                });
                return true;
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
        false
    }
}

/// The order of a container's states.
fn age(state: &ContainerState) -> u8 {
    match state {
        ContainerState::Created => 0,
        ContainerState::Running { .. } => 1,
        ContainerState::Exited { .. } => 2,
    }
}

/// Has a shim forget a container whose making was swept away. The shim hears of its end a moment after us; it may have
/// been made meanwhile, and then stays listed as ended: nobody could make it anew.
pub(super) async fn unlist(link: &Link, id: &str) -> Result<(), RuntimeError> {
    let mut left = UNLIST_TRIES;
    loop {
        match link.call(Op::Forget { container: id.to_owned() }).await {
            Err(error) if left == 0 || matches!(error, RuntimeError::Gone) => return Err(error),
            Err(_) => left -= 1,
            Ok(_) => return Ok(()),
        }
        tokio::time::sleep(UNLIST_PAUSE).await;
    }
}

/// Asks a shim for all its containers.
pub(super) async fn states(link: &Link) -> Result<BTreeMap<String, ContainerState>, RuntimeError> {
    match link.call(Op::List {}).await?.answer {
        Answer::States(states) => Ok(states),
        _ => Err(RuntimeError::Gone),
    }
}
