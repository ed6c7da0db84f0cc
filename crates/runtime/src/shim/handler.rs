//! Containers made by another OCI runtime (crun, runc, …): its commands are run as children of the shim, which is
//! the subreaper, so the container's first process becomes the shim's child like any other.
//!
//! Each command runs in a mount namespace of its own: there the overlay is mounted, and a v2 tree beside v1 is
//! hidden, because crun 1.8 refuses to work where it sees both.

use super::container::{Container, Phase, ReplyTo};
use super::serve::Shim;
use super::streams::nonblocking;
use super::{Outcome, setup};
use crate::api::ExecSpec;
use crate::init::{self, Birth, Failure, RUN_STEP};
use crate::proto::{Answer, Message};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::process::ns;
use sys::rustix::mount::{UnmountFlags, unmount};
use sys::rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, bind, listen, socket_with};

/// What a finished command was for; by its PID.
#[derive(Debug)]
pub(super) struct Helper {
    pub pid: i32,
    pub purpose: Purpose,
    pub container: String,
    pub reply: ReplyTo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Start,
    Kill,
    Delete,
}

/// Name of the socket that hands over a terminal.
const CONSOLE: &str = "console.sock";
const LOG: &str = "oci.log";
const PID: &str = "oci.pid";

fn fail(what: &str) -> impl Fn(&dyn std::fmt::Display) -> Failure + '_ {
    move |why| Failure::new(what, why)
}

/// The socket to which the runtime sends a terminal.
pub(super) fn console_socket(dir: &Path) -> Result<OwnedFd, Failure> {
    let fail = fail(CONSOLE);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(|e| fail(&e))?;
    let folder = setup::folder(dir)?;
    bind(&socket, &setup::address_of(folder.as_fd(), CONSOLE).map_err(|e| fail(&e))?)
        .map_err(|e| fail(&e))?;
    listen(&socket, 1).map_err(|e| fail(&e))?;
    Ok(socket)
}

/// In a fresh child: becomes `<runtime> create …`.
pub(super) fn create(birth: &Birth<'_>, runtime: &Path, shared_pids: bool) -> i32 {
    let outcome = (|| {
        let mut file = init::prepare_handler(birth, &[])?;
        let spec = &mut file.spec;
        if shared_pids {
            spec.config.linux.namespaces.retain(|n| n.kind != "pid");
        }
        // The pod's UTS namespace has its name already; naming it again is an error without a new one.
        spec.config.hostname.clear();
        if !spec.rootfs.lowers.is_empty() {
            let root = spec.config.root.path.clone();
            std::fs::create_dir_all(&root).map_err(|e| fail("rootfs")(&e))?;
            init::rootfs::overlay(&spec.rootfs, &root, &spec.config.linux.mount_label)?;
        }
        init::mounts::resolve_subpaths(&mut spec.config.mounts, birth.dir)?;
        let text = serde_json::to_vec(&spec.config).map_err(|e| fail("config.json")(&e))?;
        std::fs::write(birth.dir.join("config.json"), text).map_err(|e| fail("config.json")(&e))?;
        let path = |name: &str| birth.dir.join(name).display().to_string();
        let mut args = vec!["create".into(), "--bundle".into(), path(""), "--pid-file".into(), path(PID)];
        if spec.config.process.terminal {
            args.extend(["--console-socket".into(), path(CONSOLE)]);
        }
        args.push(spec.id.clone());
        init::plain_stdio(birth)?;
        become_runtime(birth.dir, runtime, args)
    })();
    init::report(birth.sync, outcome.map_err(|f| ("create", f)))
}

/// In a fresh child: becomes `<runtime> exec …`. With a terminal, the runtime shuffles between it and its own.
pub(super) fn exec(birth: &Birth<'_>, runtime: &Path, spec: &ExecSpec) -> i32 {
    let outcome = (|| {
        let file = init::prepare_handler(birth, &[])?;
        let mut process = file.spec.config.process;
        (process.args, process.terminal) = (spec.args.clone(), spec.tty);
        let text = serde_json::to_vec(&process).map_err(|e| fail("process.json")(&e))?;
        let path = birth.dir.join(format!("process-{}.json", std::process::id()));
        std::fs::write(&path, text).map_err(|e| fail("process.json")(&e))?;
        let args = vec!["exec".into(), "--process".into(), path.display().to_string(), file.spec.id];
        if spec.tty {
            init::host_terminal(birth)?
        } else {
            init::plain_stdio(birth)?
        }
        become_runtime(birth.dir, runtime, args)
    })();
    init::report(birth.sync, outcome.map_err(|f| ("exec", f)))
}

/// Replaces this child by the runtime. `dir` is the container's state folder.
fn become_runtime(dir: &Path, runtime: &Path, args: Vec<String>) -> Result<(), Failure> {
    let pod = dir.ancestors().nth(2).unwrap_or(dir);
    // Not there without a hybrid layout.
    let _ = unmount("/sys/fs/cgroup/unified", UnmountFlags::DETACH);
    let _ = std::fs::remove_file(dir.join(LOG));
    let text = |s: String| CString::new(s).map_err(|e| fail("argument")(&e));
    let name = runtime.display().to_string();
    let head = [
        name.clone(),
        "--root".into(),
        pod.join("oci").display().to_string(),
        "--log".into(),
        dir.join(LOG).display().to_string(),
    ];
    let args: Vec<CString> = head.into_iter().chain(args).map(text).collect::<Result<_, _>>()?;
    let env = [c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    sys::process::reset_signals();
    match sys::process::exec(&text(name.clone())?, &args, &env) {
        Ok(never) => match never {},
        Err(error) => Err(fail(&name)(&error)),
    }
}

/// What the runtime said when it failed.
fn complaint(dir: &Path) -> String {
    let text = std::fs::read_to_string(dir.join(LOG)).unwrap_or_default();
    let line = text.lines().last().unwrap_or("the OCI runtime failed");
    // runc: `time=… level=error msg="…"`; crun: `<time>: …`.
    let message = line.split_once("msg=").map_or(line, |(_, m)| m.trim_matches('"'));
    message.to_owned()
}

impl Shim {
    /// Runs a command of a container's runtime; its end is handled in [`Shim::helper_ended`].
    pub(super) fn help(&mut self, id: &str, purpose: Purpose, more: &[&str], reply: ReplyTo) -> Outcome<()> {
        let dir = self.container_dir(id);
        let Some(runtime) = self.find(id)?.head.handler.clone() else {
            return Err(("find the runtime", Failure::new(id, "has no handler")));
        };
        let words: &[&str] = match purpose {
            Purpose::Start => &["start"],
            Purpose::Kill => &["kill"],
            Purpose::Delete => &["delete", "--force"],
        };
        let args: Vec<String> = words.iter().chain(&[id]).chain(more).map(|&w| w.to_owned()).collect();
        let body = || {
            let outcome = sys::process::close_others(&[])
                .map_err(|e| fail("close descriptors")(&e))
                .and_then(|()| init::isolate_mounts())
                .and_then(|()| become_runtime(&dir, &runtime, args));
            let Err(Failure(error)) = outcome else { return 0 };
            eprintln!("handler: {error}");
            127
        };
        let child = sys::process::fork_into(ns::MOUNT, None, body)
            .map_err(|e| ("clone", Failure::new("clone3", e)))?;
        self.helpers.push(Helper { pid: child.pid, purpose, container: id.to_owned(), reply });
        Ok(())
    }

    /// A command has ended.
    pub(super) fn helper_ended(&mut self, helper: Helper, code: i32) {
        let Helper { purpose, container: id, reply, .. } = helper;
        let dir = self.container_dir(&id);
        match purpose {
            Purpose::Delete => {
                self.containers.remove(&id);
                self.answer(reply, Answer::Ok, vec![]);
            }
            Purpose::Start if code == 0 => self.started(&id),
            _ if code == 0 => self.answer(reply, Answer::Ok, vec![]),
            Purpose::Start => {
                let error = complaint(&dir);
                if let Some(container) = self.containers.get_mut(&id) {
                    container.start_error.clone_from(&error);
                    let _ = container.signal(9);
                }
                self.refuse(reply, RUN_STEP, &error);
            }
            Purpose::Kill => self.refuse(reply, "kill", &complaint(&dir)),
        }
    }

    /// The program runs: said once, also when its end came first.
    pub(super) fn started(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Starting(reply) = container.phase else { return };
        container.running();
        let state = container.state.clone();
        // The state first: who has the answer may rely on having seen the state.
        self.broadcast(&Message::State { container: id.to_owned(), state });
        self.answer(reply, Answer::Ok, vec![]);
    }

    /// `create` has ended well: from here on, the container is the process that it left.
    pub(super) fn adopt(&mut self, id: &str) {
        let dir = self.container_dir(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Making(reply) = container.phase else { return };
        match take_over(container, &dir) {
            Ok(()) => {
                container.phase = Phase::Created;
                self.answer(reply, Answer::Ok, vec![]);
            }
            Err(Failure(error)) => {
                self.containers.remove(id);
                self.refuse(reply, "adopt the container", &error);
            }
        }
    }

    /// `create` has failed.
    pub(super) fn not_made(&mut self, id: &str, reply: ReplyTo) {
        let error = complaint(&self.container_dir(id));
        self.refuse(reply, "create", &error);
    }

    pub(super) fn container_dir(&self, id: &str) -> PathBuf {
        self.dir.join("c").join(id)
    }
}

fn take_over(container: &mut Container, dir: &Path) -> Result<(), Failure> {
    let text = std::fs::read_to_string(dir.join(PID)).map_err(|e| fail("pid file")(&e))?;
    let pid: i32 = text.trim().parse().map_err(|e| fail("pid file")(&e))?;
    let known = sys::rustix::process::Pid::from_raw(pid).ok_or_else(|| fail("pid file")(&text))?;
    container.pidfd = sys::rustix::process::pidfd_open(known, sys::rustix::process::PidfdFlags::empty())
        .map_err(|e| fail("pidfd_open")(&e))?;
    container.pid = pid;
    if let Some(socket) = container.console.take() {
        let connection = accept_with(&socket, SocketFlags::CLOEXEC).map_err(|e| fail(CONSOLE)(&e))?;
        nonblocking(connection.as_fd());
        let mut name = [0; 256];
        let (_, mut fds) =
            sys::fdpass::receive(connection.as_fd(), &mut name).map_err(|e| fail(CONSOLE)(&e))?;
        container.take_terminal(fds.pop().ok_or_else(|| fail(CONSOLE)(&"no terminal came"))?);
    }
    Ok(())
}
