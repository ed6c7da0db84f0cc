//! Programs that join a running container. Their data never flows through the shim: the runtime gets the pipes.

use super::Outcome;
use super::container::{Container, PidMode, ReplyTo, cgroup_fd, sync_pair};
use super::streams::pipe;
use crate::api::ExecSpec;
use crate::init::{self, Birth, Failure};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use sys::process::ns;

/// One exec'd process.
#[derive(Debug)]
pub(super) struct Exec {
    pub reply: ReplyTo,
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// To the child until its program runs; then the answer is owed no more.
    pub sync: Option<OwnedFd>,
    /// The runtime's ends, until they are handed over.
    pub fds: Vec<OwnedFd>,
}

impl Exec {
    /// Starts a process in `container`. `own_pids` is the shim's own PID namespace.
    pub(super) fn create(
        container: &Container,
        spec: &ExecSpec,
        place: (&Path, PidMode, BorrowedFd<'_>, Option<BorrowedFd<'_>>),
        reply: ReplyTo,
    ) -> Outcome<Self> {
        let (dir, pids, own_pids, users) = place;
        let fail = |e: std::io::Error| ("exec", Failure::new("pipe", e));
        let (mut ours, mut theirs): (Vec<OwnedFd>, [Option<OwnedFd>; 3]) = (Vec::new(), [None, None, None]);
        if !spec.tty {
            if spec.stdin {
                let (read, write) = pipe().map_err(fail)?;
                theirs[0] = Some(read);
                ours.push(write);
            }
            for (index, wanted) in [(1, spec.stdout), (2, spec.stderr)] {
                if wanted {
                    let (read, write) = pipe().map_err(fail)?;
                    ours.push(read);
                    theirs[index] = Some(write);
                }
            }
        }
        let (sync, child_sync) = sync_pair().map_err(|f| ("exec", f))?;
        let birth = Birth {
            dir,
            shm: None,
            shared: &[],
            users,
            sync: child_sync.as_fd(),
            stdio: theirs.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd)),
        };
        let cgroup = cgroup_fd(&container.head.join).map_err(|f| ("open the cgroup", f))?;
        let target = container.pidfd();
        let handler = container.head.handler.as_deref();
        let pids = if handler.is_some() { PidMode::Shared } else { pids };
        let enter = |fd| sys::process::set_ns(fd, ns::PID).map_err(|e| ("exec", Failure::new("setns", e)));
        // The PID namespace is that of the children to come: go there, have one, come back.
        if pids == PidMode::Own {
            enter(target)?;
        }
        let child = match handler {
            None => sys::process::fork_into(0, cgroup.as_ref().map(AsFd::as_fd), || {
                init::run_exec(&birth, target, spec)
            }),
            Some(runtime) => {
                sys::process::fork_into(ns::MOUNT, None, || super::handler::exec(&birth, runtime, spec))
            }
        };
        if pids == PidMode::Own {
            enter(own_pids)?;
        }
        let child = child.map_err(|e| ("clone", Failure::new("clone3", e)))?;
        Ok(Self { reply, pid: child.pid, pidfd: child.pidfd, sync: Some(sync), fds: ours })
    }
}
