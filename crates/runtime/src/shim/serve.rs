//! The shim's second life: one poll loop over connections, children and their output.

use super::Outcome;
use super::container::{Container, Phase, PidMode, ReplyTo};
use super::exec::Exec;
use super::handler::{Helper, Purpose};
use super::setup::{SHM, read};
use crate::api::ContainerState;
use crate::cgroup::Join;
use crate::init::Failure;
use crate::proto::{Answer, MESSAGE_MAX, Message, Op, Request, VERSION};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::process::ns;
use sys::rustix::event::{PollFd, PollFlags, Timespec, poll};
use sys::rustix::io::Errno;
use sys::rustix::net::{SocketFlags, accept_with};

/// Output is moved in pieces of this size at most; a message fits as well. Twice that and more is allocated: from
/// 128 KiB on, malloc maps zero pages, and those of a quiet pod are never touched; below, it clears them.
const BUFFER: usize = MESSAGE_MAX;
const BUFFER_ALLOCATED: usize = 132 * 1024;
/// Messages that wait for a runtime which does not read; beyond, it has to connect again and ask for the state.
const OUT_MAX: usize = 1024;
/// How often a stalled client is looked at.
const STALL_TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

#[derive(Debug)]
struct Conn {
    fd: OwnedFd,
    out: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

#[derive(Debug)]
pub(super) struct Shim {
    pub dir: PathBuf,
    shm: Option<PathBuf>,
    pids: PidMode,
    /// Containers see each other's processes.
    pub shared_pids: bool,
    own_pids: OwnedFd,
    users: Option<OwnedFd>,
    listener: OwnedFd,
    signals: OwnedFd,
    conns: BTreeMap<u64, Conn>,
    next: u64,
    pub containers: BTreeMap<String, Container>,
    pub execs: BTreeMap<u64, Exec>,
    /// Commands of other OCI runtimes on their way.
    pub helpers: Vec<Helper>,
    buffer: Vec<u8>,
}

/// What a descriptor in the poll set stands for.
#[derive(Clone, Debug)]
enum Token {
    Listener,
    Signals,
    Conn(u64),
    Child(String),
    ExecChild(u64),
    Output(String, &'static str),
    Follower(String),
}

pub(super) fn run(dir: &Path, listener: &str) -> Outcome<()> {
    let mut shim = start(dir, listener).map_err(|f| ("start to serve", f))?;
    loop {
        shim.turn();
    }
}

fn start(dir: &Path, listener: &str) -> Result<Shim, Failure> {
    let inherit = |number: &str| {
        let number = number.parse().map_err(|e| Failure::new("listener", e))?;
        sys::process::inherit_fd(number).map_err(|e| Failure::new("listener", e))
    };
    let (listener, users) = listener.split_once(',').unwrap_or((listener, ""));
    let listener = inherit(listener)?;
    let users = (!users.is_empty()).then(|| inherit(users)).transpose()?;
    let first = sys::rustix::io::dup(sys::rustix::stdio::stdin()).map_err(|e| Failure::new("dup", e))?;
    sys::rustix::io::fcntl_setfd(&first, sys::rustix::io::FdFlags::CLOEXEC)
        .map_err(|e| Failure::new("fcntl", e))?;
    let null = std::fs::File::open("/dev/null").map_err(|e| Failure::new("/dev/null", e))?;
    sys::rustix::stdio::dup2_stdin(&null).map_err(|e| Failure::new("dup2", e))?;
    let _ = sys::rustix::thread::set_name(c"gantry-shim");

    let file = read(dir)?;
    let pod = file.spec;
    let own_pids =
        std::fs::File::open("/proc/self/ns/pid").map_err(|e| Failure::new("own PID namespace", e))?;
    let signals = sys::process::signal_fd(&[SIGCHLD]).map_err(|e| Failure::new("signalfd", e))?;
    if pod.share_pid && !pod.host_pid {
        pause(&file.join)?;
    }
    let shm = if pod.host_ipc { PathBuf::from("/dev/shm") } else { dir.join(SHM) };
    let shared_pids = pod.host_pid || pod.share_pid;
    let mut shim = Shim {
        dir: dir.to_owned(),
        shm: Some(shm),
        pids: if shared_pids { PidMode::Shared } else { PidMode::Own },
        shared_pids,
        own_pids: own_pids.into(),
        users,
        listener,
        signals,
        conns: BTreeMap::new(),
        next: 1,
        containers: BTreeMap::new(),
        execs: BTreeMap::new(),
        helpers: Vec::new(),
        buffer: vec![0; BUFFER_ALLOCATED],
    };
    shim.connect(first);
    // Children of the first life may have ended before their signal was listened to.
    shim.reap();
    Ok(shim)
}

const SIGCHLD: i32 = 17;

/// The first process of a PID namespace that all containers share. It does nothing, for ever; its own children
/// (orphans) need no burial because it ignores SIGCHLD. It enters the shim's cgroup by itself: the shim may not be
/// there yet.
fn pause(join: &Join) -> Result<(), Failure> {
    sys::process::unshare(ns::PID).map_err(|e| Failure::new("unshare", e))?;
    let body = || {
        let _ = sys::process::close_others(&[]);
        let _ = sys::caps::die_with_parent();
        let unified = join.unified.as_ref().map(|folder| folder.join("cgroup.procs"));
        for file in join.procs.iter().chain(unified.as_ref()) {
            if let Err(error) = std::fs::write(file, "0") {
                eprintln!("pause: join {}: {error}", file.display());
            }
        }
        sys::process::reset_signals();
        sys::process::ignore_signal(SIGCHLD);
        let _ = sys::rustix::thread::set_name(c"gantry-pause");
        loop {
            sys::rustix::event::pause();
        }
    };
    sys::process::fork_into(0, None, body).map(drop).map_err(|e| Failure::new("pause", e))
}

impl Shim {
    fn connect(&mut self, fd: OwnedFd) {
        super::streams::nonblocking(fd.as_fd());
        let key = self.next();
        self.conns.insert(key, Conn { fd, out: VecDeque::new() });
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        self.send(key, &Message::Hello { v: VERSION, pid }, vec![]);
    }

    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn poll_set(&self) -> (Vec<Token>, Vec<PollFd<'_>>) {
        let (mut tokens, mut fds) = (Vec::new(), Vec::new());
        let mut add = |token, fd, flags| {
            tokens.push(token);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        for (key, conn) in &self.conns {
            let out = if conn.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            add(Token::Conn(*key), conn.fd.as_fd(), PollFlags::IN | out);
        }
        for (id, container) in &self.containers {
            if let Some(sync) = &container.sync {
                add(Token::Child(id.clone()), sync.as_fd(), PollFlags::IN);
            }
            if container.wants_output() {
                for stream in &container.streams {
                    add(Token::Output(id.clone(), stream.name), stream.fd.as_fd(), PollFlags::IN);
                }
            }
            for follower in &container.followers {
                let flags = if follower.is_behind() { PollFlags::OUT } else { PollFlags::empty() };
                add(Token::Follower(id.clone()), follower.fd.as_fd(), flags);
            }
        }
        for (number, exec) in &self.execs {
            if let Some(sync) = &exec.sync {
                add(Token::ExecChild(*number), sync.as_fd(), PollFlags::IN);
            }
        }
        add(Token::Listener, self.listener.as_fd(), PollFlags::IN);
        // Last: what a child said is heard before its end.
        add(Token::Signals, self.signals.as_fd(), PollFlags::IN);
        (tokens, fds)
    }

    /// A container's first process has ended: its last output, its state.
    pub(super) fn settle(&mut self, id: &str, code: i32, signal: i32) -> Option<ContainerState> {
        let container = self.containers.get_mut(id)?;
        container.exited(code, signal, &mut self.buffer[..BUFFER]);
        Some(container.state.clone())
    }

    /// Waits for something to happen and handles all that did.
    fn turn(&mut self) {
        let behind = self.containers.values().any(|c| !c.wants_output());
        let (tokens, mut fds) = self.poll_set();
        match poll(&mut fds, behind.then_some(&STALL_TICK)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                eprintln!("shim: poll: {error}");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
        let ready: Vec<Token> = tokens
            .into_iter()
            .zip(&fds)
            // A follower that is behind is looked at in every turn: it may have stalled for too long.
            .filter(|(token, fd)| !fd.revents().is_empty() || (behind && matches!(token, Token::Follower(_))))
            .map(|(token, _)| token)
            .collect();
        drop(fds);
        for token in ready {
            self.handle(token);
        }
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Listener => {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                if let Ok(fd) = accept_with(&self.listener, flags) {
                    self.connect(fd);
                }
            }
            Token::Signals => {
                sys::process::drain_signal_fd(self.signals.as_fd());
                self.reap();
            }
            Token::Conn(key) => self.hear(key),
            Token::Child(id) => self.hear_container(&id),
            Token::ExecChild(number) => self.hear_exec(number),
            Token::Output(id, name) => {
                let Some(container) = self.containers.get_mut(&id) else { return };
                if let Some(index) = container.streams.iter().position(|s| s.name == name) {
                    container.pump(index, &mut self.buffer[..BUFFER]);
                }
            }
            Token::Follower(id) => {
                let Some(container) = self.containers.get_mut(&id) else { return };
                let exited = !container.is_alive();
                container.followers.retain_mut(|f| f.tend() && (f.is_behind() || !exited));
            }
        }
    }

    /// Reads all requests of a connection; one that has ended is dropped.
    fn hear(&mut self, key: u64) {
        if self.conns.get_mut(&key).is_some_and(|conn| !flush(conn)) {
            self.conns.remove(&key);
        }
        loop {
            let Some(conn) = self.conns.get(&key) else { return };
            let (n, fds) = match sys::fdpass::receive(conn.fd.as_fd(), &mut self.buffer[..BUFFER]) {
                Ok((n, fds)) if n > 0 => (n, fds),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                _ => {
                    self.conns.remove(&key);
                    return;
                }
            };
            match serde_json::from_slice::<Request>(&self.buffer[..n]) {
                Ok(Request { id, op }) => {
                    let reply = ReplyTo { conn: key, request: id };
                    if let Err((step, Failure(error))) = self.obey(op, fds, reply) {
                        self.refuse(reply, step, &error);
                    }
                }
                // A newer runtime may ask for what this shim does not know; it must hear that.
                Err(error) => {
                    let id = serde_json::from_slice::<serde_json::Value>(&self.buffer[..n])
                        .ok()
                        .and_then(|v| v["id"].as_u64())
                        .unwrap_or(0);
                    let reply = ReplyTo { conn: key, request: id };
                    self.refuse(reply, "parse the request", &error.to_string());
                }
            }
        }
    }

    fn obey(&mut self, op: Op, fds: Vec<OwnedFd>, reply: ReplyTo) -> Outcome<()> {
        match op {
            Op::Create { container: id } => {
                if self.containers.contains_key(&id) {
                    return Err(("create", Failure::new(&id, "container exists")));
                }
                let dir = self.container_dir(&id);
                let users = self.users.as_ref().map(AsFd::as_fd);
                let container =
                    Container::create((&dir, self.shm.as_deref()), (&fds, users), self.pids, reply)?;
                self.containers.insert(id, container);
                return Ok(());
            }
            Op::Start { container: id } => {
                let container = self.find(&id)?;
                if container.head.handler.is_none() {
                    return container.start(reply);
                }
                container.starting(reply)?;
                return self.help(&id, Purpose::Start, &[], reply);
            }
            Op::Signal { container: id, signal } => {
                let container = self.find(&id)?;
                if container.head.handler.is_some() {
                    return self.help(&id, Purpose::Kill, &[&signal.to_string()], reply);
                }
                container.signal(signal)?;
            }
            Op::Forget { container: id } => {
                if self.containers.get(&id).is_some_and(Container::is_alive) {
                    return Err(("forget", Failure::new(&id, "container is running")));
                }
                if self.containers.get(&id).is_some_and(|c| c.head.handler.is_some()) {
                    return self.help(&id, Purpose::Delete, &[], reply);
                }
                self.containers.remove(&id);
            }
            Op::List {} => {
                let settled = |c: &Container| !matches!(c.phase, Phase::Making(_));
                let states: BTreeMap<String, ContainerState> = self
                    .containers
                    .iter()
                    .filter(|(_, c)| settled(c))
                    .map(|(id, c)| (id.clone(), c.state.clone()))
                    .collect();
                self.answer(reply, Answer::States(states), vec![]);
                return Ok(());
            }
            Op::Exec { container: id, spec } => {
                let dir = self.container_dir(&id);
                let container = self.containers.get(&id).filter(|c| matches!(c.phase, Phase::Running));
                let container =
                    container.ok_or_else(|| ("exec", Failure::new(&id, "container is not running")))?;
                let users = self.users.as_ref().map(AsFd::as_fd);
                let place = (dir.as_path(), self.pids, self.own_pids.as_fd(), users);
                let exec = Exec::create(container, &spec, place, reply)?;
                let number = self.next();
                self.execs.insert(number, exec);
                return Ok(());
            }
            Op::SignalExec { exec, signal } => {
                let found =
                    self.execs.get(&exec).ok_or_else(|| ("signal", Failure::new("exec", "has ended")))?;
                sys::process::pidfd_signal(found.pidfd.as_fd(), signal)
                    .map_err(|e| ("signal", Failure::new("signal", e)))?;
            }
            Op::Attach { container, stdin } => {
                let container = self.find(&container)?;
                let (stdin, fds) = container.attach(stdin)?;
                let tty = container.head.spec.config.process.terminal;
                self.answer(reply, Answer::Attach { stdin, tty }, fds);
                return Ok(());
            }
            Op::Resize { container, width, height } => self.find(&container)?.resize(width, height),
        }
        self.answer(reply, Answer::Ok, vec![]);
        Ok(())
    }

    pub(super) fn find(&mut self, id: &str) -> Outcome<&mut Container> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| ("find the container", Failure::new(id, "no such container")))
    }

    pub(super) fn answer(&mut self, reply: ReplyTo, answer: Answer, fds: Vec<OwnedFd>) {
        self.send(reply.conn, &Message::Done { id: reply.request, answer }, fds);
    }

    pub(super) fn refuse(&mut self, reply: ReplyTo, step: &str, error: &str) {
        let message = Message::Failed { id: reply.request, step: step.to_owned(), error: error.to_owned() };
        self.send(reply.conn, &message, vec![]);
    }

    pub(super) fn broadcast(&mut self, message: &Message) {
        let keys: Vec<u64> = self.conns.keys().copied().collect();
        for key in keys {
            self.send(key, message, vec![]);
        }
    }

    pub(super) fn send(&mut self, key: u64, message: &Message, fds: Vec<OwnedFd>) {
        let Some(conn) = self.conns.get_mut(&key) else { return };
        let bytes = serde_json::to_vec(message).expect("messages have a JSON form");
        conn.out.push_back((bytes, fds));
        if !flush(conn) || conn.out.len() > OUT_MAX {
            self.conns.remove(&key);
        }
    }
}

/// Sends what waits; `false` when the other end is gone.
fn flush(conn: &mut Conn) -> bool {
    while let Some((bytes, fds)) = conn.out.front() {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        match sys::fdpass::send(conn.fd.as_fd(), bytes, &borrowed) {
            Ok(()) => drop(conn.out.pop_front()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
    }
    true
}
