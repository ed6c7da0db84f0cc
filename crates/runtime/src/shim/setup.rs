//! The shim's first life: namespaces, mounts and the socket of a pod, as a list of named steps.

use super::{Outcome, SERVE};
use crate::api::{PodSpec, UserRange};
use crate::init::{self, Failure};
use crate::proto::{Message, PodFile};
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use sys::mount::{MS_SLAVE, MountAttr, set_attr};
use sys::process::ns;
use sys::rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, openat};
use sys::rustix::io::{FdFlags, fcntl_setfd};
use sys::rustix::mount::{MountFlags, OpenTreeFlags, mount, open_tree};
use sys::rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use sys::rustix::process::{Signal, chdir, setsid, umask};
use sys::rustix::system::sethostname;

struct Setup {
    dir: PathBuf,
    pod: PodFile,
    listener: Option<OwnedFd>,
    exe: Option<OwnedFd>,
    /// The pod's user namespace.
    users: Option<OwnedFd>,
}

type Step = (&'static str, fn(&mut Setup) -> Result<(), Failure>);

const STEPS: &[Step] = &[
    ("detach from the caller", detach),
    ("join the cgroup", join),
    // Before there is another mount namespace: mounts of the old one cannot be cloned from the new one.
    ("protect the program file", protect),
    ("make namespaces", namespaces),
    ("isolate mounts", isolate),
    ("set the host name", host_name),
    ("raise the loopback device", loopback),
    ("set sysctls", sysctls),
    ("mount memory file systems", memory),
    ("open the socket", open_socket),
];

/// Name of the socket in the pod's state folder.
pub(crate) const SOCKET: &str = "shim.sock";
/// Name of the shared memory folder in the pod's state folder.
pub(super) const SHM: &str = "shm";
/// Runtimes that connect at once; there is one, and its successor.
const BACKLOG: i32 = 4;
/// Best before everything else in the pod when memory runs out.
const OOM_SCORE: &str = "-999";

pub(super) fn run(dir: &Path) -> Outcome<()> {
    let pod = read(dir).map_err(|f| ("read the configuration", f))?;
    let mut setup = Setup { dir: dir.to_owned(), pod, listener: None, exe: None, users: None };
    for (name, step) in STEPS {
        step(&mut setup).map_err(|f| (*name, f))?;
    }
    match again(&setup) {
        Ok(never) => match never {},
        Err(f) => Err(("execute itself again", f)),
    }
}

pub(super) fn read(dir: &Path) -> Result<PodFile, Failure> {
    let path = dir.join("pod.json");
    let text = std::fs::read(&path).map_err(|e| Failure::new("pod.json", e))?;
    serde_json::from_slice(&text).map_err(|e| Failure::new("pod.json", e))
}

/// Tells the runtime, if it still listens on descriptor 0, that there will be no pod.
pub(super) fn tell_failure(step: &str, error: &str) {
    let message = Message::SetupFailed { step: step.to_owned(), error: error.to_owned() };
    if let Ok(bytes) = serde_json::to_vec(&message) {
        let _ = sys::fdpass::send(sys::rustix::stdio::stdin(), &bytes, &[]);
    }
}

fn detach(_: &mut Setup) -> Result<(), Failure> {
    // Fails for a group leader, which is just as detached.
    let _ = setsid();
    umask(Mode::from_raw_mode(0o022));
    for signal in [Signal::HUP, Signal::INT, Signal::TERM, Signal::PIPE] {
        sys::process::ignore_signal(signal.as_raw());
    }
    sys::caps::become_subreaper().map_err(|e| Failure::new("subreaper", e))?;
    // Root may lack the right to lower it; the shim is small and seldom the victim.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    chdir("/").map_err(|e| Failure::new("chdir", e))
}

/// Enters the cgroups, by a helper: the first such write after a pause waits for an RCU grace period (4 to 20 ms),
/// and nothing needs to wait for it. Containers enter theirs by themselves, and whoever kills the pod kills the
/// shim by name as well.
fn join(setup: &mut Setup) -> Result<(), Failure> {
    let join = &setup.pod.join;
    let unified = join.unified.as_ref().map(|folder| folder.join("cgroup.procs"));
    let pid = std::process::id().to_string();
    let body = || {
        let _ = sys::caps::die_with_parent();
        for file in join.procs.iter().chain(unified.as_ref()) {
            if let Err(error) = std::fs::write(file, &pid) {
                eprintln!("shim: join {}: {error}", file.display());
            }
        }
        0
    };
    sys::process::fork_into(0, None, body).map(drop).map_err(|e| Failure::new("clone3", e))
}

fn namespaces(setup: &mut Setup) -> Result<(), Failure> {
    let spec = &setup.pod.spec;
    if let Some(range) = spec.users {
        setup.users = Some(user_namespace(spec, range)?);
        return sys::process::unshare(ns::MOUNT).map_err(|e| Failure::new("unshare", e));
    }
    let unless = |host: bool, flag: u64| if host { 0 } else { flag };
    let own_name = unless(spec.host_network, ns::UTS);
    let flags = ns::MOUNT | own_name | unless(spec.host_network, ns::NET) | unless(spec.host_ipc, ns::IPC);
    sys::process::unshare(flags).map_err(|e| Failure::new("unshare", e))
}

/// Makes the pod's user namespace and those that belong to it, and joins the latter: a child makes them, because who makes
/// a user namespace is in it, and the shim stays out. The mounts stay the shim's.
fn user_namespace(spec: &PodSpec, range: UserRange) -> Result<OwnedFd, Failure> {
    let theirs = ns::NET | ns::UTS | ns::IPC;
    let (ours, far) = super::container::sync_pair()?;
    let body = || {
        // Nothing of the shim's stays open here, above all not the other end of the socket.
        let _ = sys::process::close_others(&[far.as_fd()]);
        let made = (|| {
            let mut byte = [0];
            // Its ids are there.
            sys::fdpass::receive(far.as_fd(), &mut byte).map_err(|e| Failure::new("receive", e))?;
            init::users::become_root()?;
            sys::process::unshare(theirs).map_err(|e| Failure::new("unshare", e))?;
            // These belong to the namespace's root; those of the network to whoever may configure it.
            let own = |name: &String| !name.starts_with("net.");
            init::sysctls(
                &spec.sysctls.iter().filter(|(n, _)| own(n)).map(|(n, v)| (n.clone(), v.clone())).collect(),
            )
        })();
        let text = made.err().map_or_else(|| "-".to_string(), |Failure(text)| text);
        let _ = sys::fdpass::send(far.as_fd(), text.as_bytes(), &[]);
        // Until the shim has joined.
        let _ = sys::fdpass::receive(far.as_fd(), &mut [0]);
        0
    };
    let child = sys::process::fork_into(ns::USER, None, body).map_err(|e| Failure::new("clone3", e))?;
    let map = format!("0 {} {}", range.first, range.size);
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{file}", child.pid);
        std::fs::write(&path, &map).map_err(|e| Failure::new(&path, e))?;
    }
    let users = std::fs::File::open(format!("/proc/{}/ns/user", child.pid));
    let users = users.map_err(|e| Failure::new("user namespace", e))?;
    let fail = |e| Failure::new("user namespace", e);
    sys::fdpass::send(ours.as_fd(), &[1], &[]).map_err(fail)?;
    let mut answer = [0; 512];
    let (length, _) = sys::fdpass::receive(ours.as_fd(), &mut answer).map_err(fail)?;
    match &answer[..length] {
        b"-" => {}
        said => return Err(Failure(String::from_utf8_lossy(said).into_owned())),
    }
    sys::process::set_ns(child.pidfd.as_fd(), theirs).map_err(|e| Failure::new("setns", e))?;
    Ok(users.into())
}

pub(super) fn folder(path: &Path) -> Result<OwnedFd, Failure> {
    openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Failure::new(&path.display().to_string(), e))
}

/// Mounts of the host still arrive here (volumes), nothing made here reaches the host.
fn isolate(_: &mut Setup) -> Result<(), Failure> {
    let slave = MountAttr { propagation: MS_SLAVE, ..MountAttr::default() };
    set_attr(folder(Path::new("/"))?.as_fd(), &slave, true).map_err(|e| Failure::new("/", e))
}

fn host_name(setup: &mut Setup) -> Result<(), Failure> {
    let spec = &setup.pod.spec;
    if spec.host_network || spec.hostname.is_empty() {
        return Ok(());
    }
    sethostname(spec.hostname.as_bytes()).map_err(|e| Failure::new(&spec.hostname, e))
}

fn loopback(setup: &mut Setup) -> Result<(), Failure> {
    if setup.pod.spec.host_network {
        return Ok(());
    }
    sys::process::loopback_up().map_err(|e| Failure::new("lo", e))
}

/// In a user namespace all but the network's are set already.
fn sysctls(setup: &mut Setup) -> Result<(), Failure> {
    let spec = &setup.pod.spec;
    let left = |name: &str| spec.users.is_none() || name.starts_with("net.");
    init::sysctls(
        &spec.sysctls.iter().filter(|(n, _)| left(n)).map(|(n, v)| (n.clone(), v.clone())).collect(),
    )
}

/// Default size of the pod's shared memory, as containerd's.
const SHM_BYTES: u64 = 64 << 20;

fn memory(setup: &mut Setup) -> Result<(), Failure> {
    let spec = &setup.pod.spec;
    for tmpfs in &spec.tmpfs {
        let (kind, options) = match tmpfs.page_size.as_str() {
            "" => ("tmpfs", "mode=1777".to_owned()),
            size => ("hugetlbfs", format!("mode=1777,pagesize={size}")),
        };
        mount_memory(kind, &tmpfs.path, tmpfs.size_bytes, &options)?;
    }
    if !spec.host_ipc {
        let shm = setup.dir.join(SHM);
        std::fs::create_dir_all(&shm).map_err(|e| Failure::new(SHM, e))?;
        let owner = spec.users.map_or(0, |range| range.first);
        mount_memory("tmpfs", &shm, SHM_BYTES, &format!("mode=1777,uid={owner},gid={owner}"))?;
    }
    Ok(())
}

fn mount_memory(kind: &str, at: &Path, size_bytes: u64, options: &str) -> Result<(), Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::new(&at.display().to_string(), e);
    let size = if size_bytes > 0 { format!(",size={size_bytes}") } else { String::new() };
    let data = CString::new(format!("{options}{size}")).map_err(|e| fail(&e))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount(kind, at, kind, flags, Some(data.as_c_str())).map_err(|e| fail(&e))
}

fn open_socket(setup: &mut Setup) -> Result<(), Failure> {
    let fail = |e| Failure::new(SOCKET, e);
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(fail)?;
    let _ = std::fs::remove_file(setup.dir.join(SOCKET));
    let dir = folder(&setup.dir)?;
    bind(&socket, &address(dir.as_fd()).map_err(fail)?).map_err(fail)?;
    listen(&socket, BACKLOG).map_err(fail)?;
    setup.listener = Some(socket);
    Ok(())
}

/// The socket's address by way of a descriptor of its folder: paths in an address end at 107 bytes.
pub(crate) fn address(dir: BorrowedFd<'_>) -> sys::rustix::io::Result<SocketAddrUnix> {
    address_of(dir, SOCKET)
}

/// The same for another name.
pub(super) fn address_of(dir: BorrowedFd<'_>, name: &str) -> sys::rustix::io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// Executes this program again from [`protect`]'s file.
fn again(setup: &Setup) -> Result<Infallible, Failure> {
    let listener = setup.listener.as_ref().ok_or_else(|| Failure::new("listener", "missing"))?;
    let kept = [sys::rustix::stdio::stdin(), listener.as_fd()];
    for fd in kept.into_iter().chain(setup.users.as_ref().map(AsFd::as_fd)) {
        fcntl_setfd(fd, FdFlags::empty()).map_err(|e| Failure::new("fcntl", e))?;
    }
    let text = |s: &str| CString::new(s).map_err(|e| Failure::new("argument", e));
    let mut number = listener.as_raw_fd().to_string();
    if let Some(users) = &setup.users {
        number += &format!(",{}", users.as_raw_fd());
    }
    let args =
        [text("gantry")?, text("shim")?, text(&setup.dir.to_string_lossy())?, text(SERVE)?, text(&number)?];
    let file = setup.exe.as_ref().ok_or_else(|| Failure::new("program file", "missing"))?;
    sys::process::exec_fd(file.as_fd(), &args, &[]).map_err(|e| Failure::new("execveat", e))
}

/// The program file through a read-only mount that has no place in any tree; where that cannot be had, a sealed
/// copy in memory.
fn protect(setup: &mut Setup) -> Result<(), Failure> {
    setup.exe = Some(read_only_self().or_else(|_| sealed_copy())?);
    Ok(())
}

fn read_only_self() -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let file =
        open_tree(CWD, "/proc/self/exe", flags).map_err(|e| Failure::new("clone /proc/self/exe", e))?;
    let read_only = MountAttr { set: init::READ_ONLY_ATTR, ..MountAttr::default() };
    set_attr(file.as_fd(), &read_only, false).map_err(|e| Failure::new("make it read-only", e))?;
    Ok(file)
}

fn sealed_copy() -> Result<OwnedFd, Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::new("copy /proc/self/exe", e);
    let memory =
        memfd_create("gantry", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(|e| fail(&e))?;
    let mut from = std::fs::File::open("/proc/self/exe").map_err(|e| fail(&e))?;
    let mut to = std::fs::File::from(memory);
    std::io::copy(&mut from, &mut to).map_err(|e| fail(&e))?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&to, seals).map_err(|e| fail(&e))?;
    Ok(to.into())
}
