//! One container as its shim sees it.
//!
//! ```text
//! create → Making → Created → start → Starting → Running → Exited
//!             └ failed: forgotten        └ failed: Exited with start_error
//! ```

use super::log::Log;
use super::streams::{Follower, Got, Stream, pipe};
use super::{Outcome, now_ns};
use crate::api::{ContainerState, Exit, LogSpec};
use crate::cgroup::Join;
use crate::init::{self, Birth, Failure};
use serde::Deserialize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::process::ns;
use sys::rustix::fs::{CWD, Mode, OFlags, openat};
use sys::rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Where the answer to a request goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReplyTo {
    pub conn: u64,
    pub request: u64,
}

/// What the shim needs of `container.json`; the child reads all of it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Head {
    pub spec: HeadSpec,
    pub join: Join,
    #[serde(default)]
    pub handler: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct HeadSpec {
    pub id: String,
    pub log: LogSpec,
    pub stdin: bool,
    pub stdin_once: bool,
    pub config: HeadConfig,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct HeadConfig {
    pub process: HeadProcess,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct HeadProcess {
    #[serde(default)]
    pub terminal: bool,
}

/// Which PID namespace containers get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PidMode {
    /// Each its own.
    Own,
    /// The pod's, or the node's: whatever the shim's children are born in.
    Shared,
}

/// What happens to a container between requests.
#[derive(Debug)]
pub(super) enum Phase {
    /// Its steps run; the answer to `create` is owed.
    Making(ReplyTo),
    /// Waits for `start`.
    Created,
    /// Was told to run; the answer to `start` is owed.
    Starting(ReplyTo),
    Running,
    Exited,
}

#[derive(Debug)]
pub(super) struct Container {
    pub head: Head,
    pub phase: Phase,
    pub state: ContainerState,
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// To the first process until its program runs.
    pub sync: Option<OwnedFd>,
    pub streams: Vec<Stream>,
    /// Terminal's master, for stdin and size.
    pub master: Option<OwnedFd>,
    pub stdin: Option<OwnedFd>,
    pub followers: Vec<Follower>,
    pub start_error: String,
    /// Where another OCI runtime will send the terminal.
    pub console: Option<OwnedFd>,
    started_at_ns: i64,
    log: Log,
}

/// Most that is read after the end: what a pipe can hold, so that a leftover writer cannot keep us busy.
const DRAIN_MAX: usize = 1 << 20;

/// The container's v2 cgroup, to be born in.
pub(super) fn cgroup_fd(join: &Join) -> Result<Option<OwnedFd>, Failure> {
    let open = |path: &PathBuf| {
        openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Failure::new(&path.display().to_string(), e))
    };
    join.unified.as_ref().map(open).transpose()
}

/// A socket pair between shim and child.
pub(super) fn sync_pair() -> Result<(OwnedFd, OwnedFd), Failure> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|e| Failure::new("socketpair", e))
}

impl Container {
    /// Reads the container's file and starts its first process.
    pub(super) fn create(
        (dir, shm): (&Path, Option<&Path>),
        (shared, users): (&[OwnedFd], Option<BorrowedFd<'_>>),
        pids: PidMode,
        reply: ReplyTo,
    ) -> Outcome<Self> {
        let step = |f| ("create", f);
        let path = dir.join("container.json");
        let text = std::fs::read(&path).map_err(|e| step(Failure::new("container.json", e)))?;
        let head: Head =
            serde_json::from_slice(&text).map_err(|e| step(Failure::new("container.json", e)))?;
        drop(text);
        let spec = &head.spec;
        let log = Log::open(&spec.log.path, spec.log.max_bytes, spec.log.max_files)
            .map_err(|e| ("open the log", Failure::new(&spec.log.path.display().to_string(), e)))?;

        let fail = |e: std::io::Error| ("create", Failure::new("pipe", e));
        let (mut ours, mut theirs): (Vec<Stream>, [Option<OwnedFd>; 3]) = (Vec::new(), [None, None, None]);
        let mut stdin = None;
        if !spec.config.process.terminal {
            for (index, name) in [(1, "stdout"), (2, "stderr")] {
                let (read, write) = pipe().map_err(fail)?;
                ours.push(Stream::new(name, read));
                theirs[index] = Some(write);
            }
            if spec.stdin {
                let (read, write) = pipe().map_err(fail)?;
                theirs[0] = Some(read);
                stdin = Some(write);
            }
        }
        let (sync, child_sync) = sync_pair().map_err(step)?;
        let birth = Birth {
            dir,
            shm,
            shared,
            users,
            sync: child_sync.as_fd(),
            stdio: theirs.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd)),
        };
        // Another runtime joins a v2 cgroup by itself, and kills all that is in it when it fails: it must not be
        // there. A tree beside v1 it does not see.
        let outside = head.handler.is_some() && head.join.procs.is_empty();
        let cgroup =
            if outside { None } else { cgroup_fd(&head.join).map_err(|f| ("open the cgroup", f))? };
        let mut console = None;
        if head.handler.is_some() && spec.config.process.terminal {
            console = Some(super::handler::console_socket(dir).map_err(|f| ("make the console", f))?);
        }
        let own_pids = pids == PidMode::Own && head.handler.is_none();
        let flags = ns::MOUNT | if own_pids { ns::PID } else { 0 };
        let body = || match &head.handler {
            None => init::run_container(&birth),
            Some(runtime) => super::handler::create(&birth, runtime, pids == PidMode::Shared),
        };
        let child = sys::process::fork_into(flags, cgroup.as_ref().map(AsFd::as_fd), body)
            .map_err(|e| ("clone", Failure::new("clone3", e)))?;
        Ok(Self {
            head,
            phase: Phase::Making(reply),
            state: ContainerState::Created,
            pid: child.pid,
            pidfd: child.pidfd,
            sync: Some(sync),
            streams: ours,
            master: None,
            stdin,
            followers: Vec::new(),
            start_error: String::new(),
            console,
            started_at_ns: 0,
            log,
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.phase, Phase::Exited)
    }

    /// The terminal that came with readiness.
    pub(super) fn take_terminal(&mut self, master: OwnedFd) {
        if let Ok(copy) = master.try_clone() {
            self.streams.push(Stream::new("stdout", copy));
        }
        self.master = Some(master);
    }

    /// Another runtime is about to run the program.
    pub(super) fn starting(&mut self, reply: ReplyTo) -> Outcome<()> {
        if !matches!(self.phase, Phase::Created) {
            return Err(("start", Failure::new(&self.head.spec.id, "container is not in state created")));
        }
        self.phase = Phase::Starting(reply);
        Ok(())
    }

    /// Lets the program run.
    pub(super) fn start(&mut self, reply: ReplyTo) -> Outcome<()> {
        let (Phase::Created, Some(sync)) = (&self.phase, &self.sync) else {
            return Err(("start", Failure::new(&self.head.spec.id, "container is not in state created")));
        };
        sys::fdpass::send(sync.as_fd(), &[1], &[]).map_err(|e| ("start", Failure::new("start", e)))?;
        self.phase = Phase::Starting(reply);
        Ok(())
    }

    /// The program runs.
    pub(super) fn running(&mut self) {
        self.sync = None;
        self.started_at_ns = now_ns();
        self.phase = Phase::Running;
        self.state = ContainerState::Running { pid: self.pid, started_at_ns: self.started_at_ns };
    }

    /// Output is read only while every follower keeps up.
    pub(super) fn wants_output(&self) -> bool {
        !self.followers.iter().any(Follower::is_behind)
    }

    /// Moves what a stream has to log and followers; `false` when it ended.
    pub(super) fn pump(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        let got = self.streams[index].read(buffer);
        match got {
            Got::Bytes(n) => self.output(index, &buffer[..n]),
            Got::NothingNow => {}
            Got::End => {
                let mut stream = self.streams.remove(index);
                stream.finish(&mut self.log, now_ns());
                self.followers.retain(|f| f.name != stream.name || f.is_behind());
            }
        }
        got != Got::End
    }

    fn output(&mut self, index: usize, data: &[u8]) {
        let stream = &mut self.streams[index];
        stream.log(&mut self.log, data, now_ns());
        let name = stream.name;
        self.followers.retain_mut(|follower| follower.name != name || follower.push(data));
    }

    /// Its first process has ended: empties the pipes, closes everything, settles the state.
    pub(super) fn exited(&mut self, code: i32, signal: i32, buffer: &mut [u8]) {
        let mut left = DRAIN_MAX;
        while let (Some(stream), true) = (self.streams.first(), left > 0) {
            match stream.read(buffer) {
                Got::Bytes(n) => {
                    left = left.saturating_sub(n);
                    self.output(0, &buffer[..n]);
                }
                _ => self.end_stream(),
            }
        }
        while !self.streams.is_empty() {
            self.end_stream();
        }
        self.followers.retain(Follower::is_behind);
        (self.sync, self.master, self.stdin) = (None, None, None);
        self.phase = Phase::Exited;
        let exit = Exit {
            code,
            signal,
            oom_killed: oom_kills(&self.head.join) > 0,
            finished_at_ns: now_ns(),
            start_error: std::mem::take(&mut self.start_error),
        };
        self.state = ContainerState::Exited { started_at_ns: self.started_at_ns, exit };
    }

    fn end_stream(&mut self) {
        let mut stream = self.streams.remove(0);
        stream.finish(&mut self.log, now_ns());
    }

    /// Connects a client: descriptors for it, in order stdin, stdout, stderr, and whether stdin is among them.
    pub(super) fn attach(&mut self, stdin: bool) -> Outcome<(bool, Vec<OwnedFd>)> {
        let fail = |e: std::io::Error| ("attach", Failure::new("pipe", e));
        if !matches!(self.phase, Phase::Created | Phase::Starting(_) | Phase::Running) {
            return Err(("attach", Failure::new(&self.head.spec.id, "container is not running")));
        }
        let spec = &self.head.spec;
        let mut fds = Vec::new();
        let input = if spec.config.process.terminal { &self.master } else { &self.stdin };
        if let (true, true, Some(input)) = (stdin, spec.stdin, input) {
            fds.push(input.try_clone().map_err(fail)?);
        }
        let with_stdin = !fds.is_empty();
        let names: &[&'static str] =
            if spec.config.process.terminal { &["stdout"] } else { &["stdout", "stderr"] };
        for name in names {
            let (read, write) = pipe().map_err(fail)?;
            fds.push(read);
            self.followers.push(Follower::new(name, write));
        }
        // The client now holds the only write end: when it leaves, the program sees the end of its input.
        if with_stdin && spec.stdin_once {
            self.stdin = None;
        }
        Ok((with_stdin, fds))
    }

    /// Kills what a shared PID namespace leaves behind when the first process has gone.
    pub(super) fn kill_leftovers(&self) {
        if let Some(folder) = &self.head.join.unified {
            let _ = std::fs::write(folder.join("cgroup.kill"), "1");
        }
    }

    pub(super) fn resize(&self, width: u16, height: u16) {
        if let Some(master) = &self.master {
            init::terminal::resize(master.as_fd(), width, height);
        }
    }

    pub(super) fn signal(&self, signal: i32) -> Outcome<()> {
        sys::process::pidfd_signal(self.pidfd.as_fd(), signal)
            .map_err(|e| ("signal", Failure::new("signal", e)))
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// How often the kernel killed in this cgroup for memory; both cgroup versions write the same line.
fn oom_kills(join: &Join) -> u64 {
    let text = join.oom.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}
