//! A container's first process, from its birth as a copy of the shim to `execve`; and a program that joins later.
//!
//! It is a list of named steps ([`STEPS`]): the first that fails ends it, and its name and reason travel to the
//! shim. Everything that allocates much happens here, in the child, so the shim's own memory stays small.
//!
//! Invariants: no descriptor but stdin, stdout and stderr survives `execve` (CVE-2024-21626); the process cannot
//! be traced until then; its `/proc/self/exe` is the shim's read-only one (CVE-2019-5736).

mod cgroupfs;
mod identity;
pub(crate) mod mounts;
mod options;
mod paths;
mod program;
pub(crate) mod rootfs;
mod seccomp;
pub(crate) mod terminal;
pub(crate) mod users;

use crate::oci;
use crate::proto::ContainerFile;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt::Display;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::rustix::fs::Mode;
use sys::rustix::process::{chdir, getcwd, ioctl_tiocsctty, setsid, umask};
use sys::rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use terminal::Pty;

/// Why a step failed, for people.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl Failure {
    pub(crate) fn new(what: &str, why: impl Display) -> Self {
        let why = why.to_string();
        // Rust's "(os error 2)" says nothing to a user.
        Self(format!("{what}: {}", why.split(" (os error").next().unwrap_or_default()))
    }

    fn at(path: &Path, why: impl Display) -> Self {
        Self::new(&path.display().to_string(), why)
    }

    fn about(self, what: impl Display) -> Self {
        Self(format!("{what}: {}", self.0))
    }
}

/// What the child says to the shim over their socket. After `Ready`, the end of the socket means that the
/// program runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum ChildMessage {
    /// All is made; a terminal's master comes with it. A container now waits for a byte.
    Ready,
    /// A step failed; the child ends.
    Failed {
        /// Its name.
        step: String,
        /// Why.
        error: String,
    },
}

/// The mount attribute "read-only", for `mount_setattr`.
pub(crate) const READ_ONLY_ATTR: u64 = options::attr::RDONLY;

/// A bind that passes mounts on to the node as well: its copy has to come from the node's mount namespace.
pub(crate) fn is_shared(mount: &oci::Mount) -> bool {
    let options = options::parse(&mount.options);
    options.propagation == sys::mount::MS_SHARED
        && options.subpath.is_none()
        && (options.bind || mount.kind == "bind")
}

/// Room for a [`ChildMessage`].
pub(crate) const CHILD_MESSAGE_MAX: usize = 8 * 1024;

/// What the shim hands to the child.
#[derive(Debug)]
pub(crate) struct Birth<'a> {
    /// The container's state folder.
    pub dir: &'a Path,
    /// The pod's shared memory.
    pub shm: Option<&'a Path>,
    /// Detached copies of mounts shared with the node, for [`is_shared`] mounts in order.
    pub shared: &'a [OwnedFd],
    /// The pod's user namespace.
    pub users: Option<BorrowedFd<'a>>,
    /// To the shim.
    pub sync: BorrowedFd<'a>,
    /// stdin, stdout, stderr; `None`: `/dev/null`. Not used with a terminal.
    pub stdio: [Option<BorrowedFd<'a>>; 3],
}

/// State between the steps.
struct Init {
    dir: PathBuf,
    file: ContainerFile,
    shm: Option<PathBuf>,
    own_dev: bool,
    shared: VecDeque<OwnedFd>,
    users: Option<users::Users>,
    root: Option<OwnedFd>,
    pty: Option<Pty>,
}

impl Init {
    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_ref().expect("steps that use the root come after the one that mounts it").as_fd()
    }
}

impl Init {
    /// The node's id of one of the container's.
    fn host_id(&self, id: u32) -> u32 {
        self.users.as_ref().map_or(id, |users| users.host(id))
    }
}

type Step = (&'static str, fn(&mut Init) -> Result<(), Failure>);

/// From birth to readiness, in order. The first ones still see the host's `/proc`: nothing that an image brings
/// can stand in its way (CVE-2025-52881).
const STEPS: &[Step] = &[
    ("join the cgroups", |init| join(&init.file.join)),
    ("check the configuration", check),
    ("make a cgroup namespace", cgroup_namespace),
    ("set the OOM score", |init| identity::oom_score(init.file.spec.config.process.oom_score_adj)),
    ("set sysctls", |init| sysctls(&init.file.spec.config.linux.sysctl)),
    ("set profile and label", |init| confine(&init.file.spec.config.process)),
    ("isolate mounts", rootfs::isolate),
    ("mount the root file system", rootfs::mount_root),
    ("act for the container's root", users::act_for),
    ("mount", mounts::mount_all),
    ("make devices", rootfs::devices),
    ("make the console", rootfs::console),
    ("make the working folder", rootfs::working_folder),
    ("mask paths", rootfs::mask),
    ("make paths read-only", rootfs::read_only_paths),
    ("enter the root file system", rootfs::enter),
    ("set resource limits", |init| identity::limits(&init.file.spec.config.process)),
    ("enter the user namespace", users::enter),
];

/// Runs a container's first process in a fresh child; the result is its exit code if it never ran.
pub(crate) fn run_container(birth: &Birth<'_>) -> i32 {
    let outcome = prepare(birth).and_then(|init| {
        let master: Vec<BorrowedFd<'_>> = init.pty.iter().map(|pty| pty.master.as_fd()).collect();
        say(birth.sync, &ChildMessage::Ready, &master);
        let mut byte = [0];
        match sys::fdpass::receive(birth.sync, &mut byte) {
            Ok((1, _)) => {}
            _ => return Ok(()), // The shim changed its mind.
        }
        let config = &init.file.spec.config;
        finish(birth, &config.process, config.linux.seccomp.as_ref(), init.pty.as_ref())
    });
    report(birth.sync, outcome)
}

/// Runs one more program in the container behind `target` (a pidfd); its PID namespace is set already.
pub(crate) fn run_exec(birth: &Birth<'_>, target: BorrowedFd<'_>, spec: &crate::api::ExecSpec) -> i32 {
    let outcome = enter_running(birth, target).and_then(|(mut process, profile)| {
        let wrap = |step: &'static str| move |f: Failure| (step, f);
        process.args.clone_from(&spec.args);
        process.terminal = spec.tty;
        let mut pty = None;
        if spec.tty {
            let root = sys::rustix::fs::openat(
                sys::rustix::fs::CWD,
                "/",
                sys::rustix::fs::OFlags::PATH | sys::rustix::fs::OFlags::CLOEXEC,
                Mode::empty(),
            );
            let root = root.map_err(|e| ("open the root", Failure::new("/", e)))?;
            pty = Some(terminal::open(root.as_fd()).map_err(wrap("open a terminal"))?);
            let user = sys::rustix::fs::Uid::from_raw(process.user.uid);
            let slave = &pty.as_ref().expect("just made").slave;
            sys::rustix::fs::fchown(slave, Some(user), None)
                .map_err(|e| ("open a terminal", Failure::new("chown", e)))?;
        }
        let master: Vec<BorrowedFd<'_>> = pty.iter().map(|pty| pty.master.as_fd()).collect();
        say(birth.sync, &ChildMessage::Ready, &master);
        finish(birth, &process, profile.as_ref(), pty.as_ref())
    });
    report(birth.sync, outcome)
}

type Outcome<T> = Result<T, (&'static str, Failure)>;

/// Exit code of a first process that never ran, as runc and Docker have it.
const NEVER_RAN: i32 = 128;

pub(crate) fn report(sync: BorrowedFd<'_>, outcome: Outcome<()>) -> i32 {
    if let Err((step, Failure(error))) = outcome {
        let error: String = error.chars().take(CHILD_MESSAGE_MAX / 8).collect();
        say(sync, &ChildMessage::Failed { step: step.to_owned(), error }, &[]);
    }
    NEVER_RAN
}

fn say(sync: BorrowedFd<'_>, message: &ChildMessage, fds: &[BorrowedFd<'_>]) {
    let bytes = serde_json::to_vec(message).expect("a plain enum has a JSON form");
    // Without a shim there is nobody to tell.
    let _ = sys::fdpass::send(sync, &bytes, fds);
}

/// A fresh child sheds what it got from the shim.
fn shed(birth: &Birth<'_>, more: &[BorrowedFd<'_>]) -> Result<(), Failure> {
    let mut keep: Vec<BorrowedFd<'_>> = birth.stdio.iter().flatten().copied().collect();
    keep.push(birth.sync);
    keep.extend(birth.users);
    keep.extend(birth.shared.iter().map(AsFd::as_fd));
    keep.extend_from_slice(more);
    sys::process::close_others(&keep).map_err(|e| Failure::new("close descriptors", e))?;
    sys::caps::set_dumpable(false).map_err(|e| Failure::new("dumpable", e))
}

fn read_file(dir: &Path) -> Result<ContainerFile, Failure> {
    let path = dir.join("container.json");
    let text = std::fs::read(&path).map_err(|e| Failure::at(&path, e))?;
    serde_json::from_slice(&text).map_err(|e| Failure::at(&path, e))
}

/// For another OCI runtime: sheds descriptors, keeps mounts private, reads the container's file.
pub(crate) fn prepare_handler(birth: &Birth<'_>, more: &[BorrowedFd<'_>]) -> Result<ContainerFile, Failure> {
    shed(birth, more)?;
    sys::caps::set_dumpable(true).map_err(|e| Failure::new("dumpable", e))?;
    isolate_mounts()?;
    identity::oom_score(None)?;
    read_file(birth.dir)
}

/// No mount made from here on reaches another namespace.
pub(crate) fn isolate_mounts() -> Result<(), Failure> {
    rootfs::isolate_all()
}

/// Connects the pipes.
pub(crate) fn plain_stdio(birth: &Birth<'_>) -> Result<(), Failure> {
    stdio(birth, None)
}

/// Connects a terminal of the node's own, and tells the shim of it.
pub(crate) fn host_terminal(birth: &Birth<'_>) -> Result<(), Failure> {
    let root = sys::rustix::fs::open(
        "/",
        sys::rustix::fs::OFlags::PATH | sys::rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    );
    let pty = terminal::open(root.map_err(|e| Failure::new("/", e))?.as_fd())?;
    say(birth.sync, &ChildMessage::Ready, &[pty.master.as_fd()]);
    setsid().map_err(|e| Failure::new("setsid", e))?;
    stdio(birth, Some(&pty))
}

fn prepare(birth: &Birth<'_>) -> Outcome<Init> {
    let first = |f| ("prepare", f);
    shed(birth, &[]).map_err(first)?;
    umask(Mode::empty());
    let file = read_file(birth.dir).map_err(first)?;
    let own_dev = rootfs::has_own_dev(&file.spec.config);
    let shm = birth.shm.map(Path::to_owned);
    let copies: Result<VecDeque<OwnedFd>, _> = birth.shared.iter().map(OwnedFd::try_clone).collect();
    let shared = copies.map_err(|e| first(Failure::new("dup", e)))?;
    let config = &file.spec.config;
    let users = users::Users::of(&config.linux, birth.users).map_err(first)?;
    let user = config.process.user.uid;
    users::hand_over(&birth.stdio, users.as_ref().map_or(user, |u| u.host(user)));
    let mut init =
        Init { dir: birth.dir.to_owned(), file, shm, own_dev, shared, users, root: None, pty: None };
    for (name, step) in STEPS {
        step(&mut init).map_err(|f| (*name, f))?;
    }
    Ok(init)
}

/// Enters a running container and returns what its process was configured with.
fn enter_running(
    birth: &Birth<'_>,
    target: BorrowedFd<'_>,
) -> Outcome<(oci::Process, Option<oci::seccomp::Seccomp>)> {
    let step = |f| ("join the container", f);
    shed(birth, &[target]).map_err(step)?;
    let file = read_file(birth.dir).map_err(step)?;
    join(&file.join).map_err(step)?;
    let config = file.spec.config;
    identity::oom_score(config.process.oom_score_adj).map_err(step)?;
    confine(&config.process).map_err(step)?;
    let users = users::Users::of(&config.linux, birth.users).map_err(step)?;
    let user = config.process.user.uid;
    users::hand_over(&birth.stdio, users.as_ref().map_or(user, |u| u.host(user)));
    identity::limits(&config.process).map_err(step)?;
    let mut namespaces = sys::process::ns::MOUNT | if users.is_some() { sys::process::ns::USER } else { 0 };
    if config.linux.namespaces.iter().any(|n| n.kind == "cgroup") {
        namespaces |= sys::process::ns::CGROUP;
    }
    sys::process::set_ns(target, namespaces).map_err(|e| step(Failure::new("setns", e)))?;
    if users.is_some() {
        users::become_root().map_err(step)?;
    }
    Ok((config.process, config.linux.seccomp))
}

fn join(join: &crate::cgroup::Join) -> Result<(), Failure> {
    // "0" is whoever writes. (The v2 cgroup was given at birth.)
    join.procs.iter().try_for_each(|file| std::fs::write(file, "0").map_err(|e| Failure::at(file, e)))
}

fn check(init: &mut Init) -> Result<(), Failure> {
    if init.file.spec.config.process.args.is_empty() {
        return Err(Failure::new("process.args", "no command specified"));
    }
    Ok(())
}

fn cgroup_namespace(init: &mut Init) -> Result<(), Failure> {
    if init.file.spec.config.linux.namespaces.iter().any(|n| n.kind == "cgroup") {
        sys::process::unshare(sys::process::ns::CGROUP).map_err(|e| Failure::new("unshare", e))?;
    }
    Ok(())
}

/// Writes sysctls of the current namespaces. Names are dotted; a dot in a part is written as `/`.
pub(crate) fn sysctls(values: &std::collections::BTreeMap<String, String>) -> Result<(), Failure> {
    for (name, value) in values {
        let swap = |c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        };
        let relative: String = name.chars().map(swap).collect();
        if relative.split('/').any(|part| part == ".." || part.is_empty()) {
            return Err(Failure::new(name, "not a sysctl"));
        }
        std::fs::write(Path::new("/proc/sys").join(relative), value).map_err(|e| Failure::new(name, e))?;
    }
    Ok(())
}

/// What the next program runs under: AppArmor's profile, SELinux' label.
fn confine(process: &oci::Process) -> Result<(), Failure> {
    let label = &process.selinux_label;
    if !label.is_empty() {
        std::fs::write("/proc/self/attr/exec", label).map_err(|e| Failure::new(label, e))?;
    }
    apparmor(&process.apparmor_profile)
}

fn apparmor(profile: &str) -> Result<(), Failure> {
    if profile.is_empty() || profile == "unconfined" {
        return Ok(());
    }
    let own = Path::new("/proc/self/attr/apparmor/exec");
    let file = if own.exists() { own } else { Path::new("/proc/self/attr/exec") };
    std::fs::write(file, format!("exec {profile}")).map_err(|e| Failure::new(profile, e))
}

/// From readiness to the program: terminal, descriptors, user, `execve`.
fn finish(
    birth: &Birth<'_>,
    process: &oci::Process,
    profile: Option<&oci::seccomp::Seccomp>,
    pty: Option<&Pty>,
) -> Outcome<()> {
    setsid().map_err(|e| ("start a session", Failure::new("setsid", e)))?;
    stdio(birth, pty).map_err(|f| ("connect stdio", f))?;
    umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
    working_folder(&process.cwd).map_err(|f| ("change to the working folder", f))?;
    sys::process::new_session_keyring();
    sys::process::cloexec_all().map_err(|e| ("close descriptors", Failure::new("close_range", e)))?;
    sys::process::reset_signals();
    identity::become_user(process, profile).map_err(|f| ("become the user", f))?;
    match program::run(process) {
        Ok(never) => match never {},
        Err(message) => Err((RUN_STEP, Failure(message))),
    }
}

/// Name of the last step: its error is the message alone, in runc's words.
pub(crate) const RUN_STEP: &str = "run";

fn stdio(birth: &Birth<'_>, pty: Option<&Pty>) -> Result<(), Failure> {
    let fail = |e| Failure::new("dup2", e);
    if let Some(pty) = pty {
        ioctl_tiocsctty(&pty.slave).map_err(|e| Failure::new("TIOCSCTTY", e))?;
        dup2_stdin(&pty.slave).map_err(fail)?;
        dup2_stdout(&pty.slave).map_err(fail)?;
        return dup2_stderr(&pty.slave).map_err(fail);
    }
    let [stdin, stdout, stderr] = birth.stdio;
    let null;
    let null = if [stdin, stdout, stderr].iter().any(Option::is_none) {
        let file = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
        null = file.map_err(|e| Failure::new("/dev/null", e))?;
        Some(null.as_fd())
    } else {
        None
    };
    const INVARIANT: &str = "null stands in for what is missing";
    dup2_stdin(stdin.or(null).expect(INVARIANT)).map_err(fail)?;
    dup2_stdout(stdout.or(null).expect(INVARIANT)).map_err(fail)?;
    dup2_stderr(stderr.or(null).expect(INVARIANT)).map_err(fail)?;
    Ok(())
}

fn working_folder(cwd: &str) -> Result<(), Failure> {
    let cwd = if cwd.is_empty() { "/" } else { cwd };
    chdir(cwd).map_err(|e| Failure::new(cwd, e))?;
    // A folder outside of the root shows as "(unreachable)" (CVE-2024-21626).
    let real = getcwd(Vec::new()).map_err(|e| Failure::new(cwd, e))?;
    if real.to_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Failure::new(cwd, "is outside of the container"))
    }
}
