//! Processes: `clone3` as a typed fork, `execve`, signals, descriptors, the loopback device.
//!
//! [`fork_into`] is for single-threaded programs only (the shim); it refuses to run in any other.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// New namespaces for the child of [`fork_into`]; also the flags of `setns` on a pidfd.
pub mod ns {
    /// A mount namespace.
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    /// A PID namespace.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// A cgroup namespace.
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// A UTS (host name) namespace.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    /// A System V IPC namespace.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    /// A network namespace.
    pub const NET: u64 = libc::CLONE_NEWNET as u64;
    /// A user namespace.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
}

/// `libc`'s constant of this name has too narrow a type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child made by [`fork_into`].
#[derive(Debug)]
pub struct Child {
    /// Its PID in the caller's namespace.
    pub pid: i32,
    /// A handle that never means another process.
    pub pidfd: OwnedFd,
}

/// Forks a child with new namespaces `flags` ([`ns`]), born in the v2 cgroup `cgroup`; the child runs `body`
/// and exits with its result. Memory is copied on write, descriptors are shared as after `fork`.
///
/// # Errors
/// `EDEADLK` when the process has more than one thread (their locks would stay held in the child); else as
/// `clone3(2)`.
pub fn fork_into(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce() -> i32,
) -> io::Result<Child> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::from_raw_os_error(libc::EDEADLK));
    }
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is a valid value of this plain C struct.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and CLONE_THREAD this is fork(): the child owns a copy of the address space and
    // of the only thread (checked above), so no lock is held by a thread that does not exist. The pointers are
    // to live locals and the size is the struct's.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            // SAFETY: _exit never returns and runs no destructors or atexit handlers of the parent.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(Child {
            pid: i32::try_from(pid).expect("a PID fits in an int"),
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Replaces this process by the program at `path`.
///
/// # Errors
/// As `execve(2)`; on success it does not return.
pub fn exec(path: &CStr, args: &[CString], env: &[CString]) -> io::Result<Infallible> {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Err(io::Error::last_os_error())
}

/// Replaces this process by the program that `file` refers to (an `O_PATH` descriptor will do).
///
/// # Errors
/// As `execveat(2)`; on success it does not return.
pub fn exec_fd(file: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Result<Infallible> {
    let (args, env) = (pointers(args), pointers(env));
    let empty = c"";
    // SAFETY: as in `exec`; the path is an empty C string, which AT_EMPTY_PATH asks for.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            empty.as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error())
}

fn close_range(first: RawFd, last: libc::c_uint, flags: libc::c_uint) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).unwrap_or(0);
    if first > last {
        return Ok(());
    }
    // SAFETY: no memory is involved. Closing descriptors that another value owns is this module's documented
    // contract: only a child that is about to exec or exit calls it.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor above 2 but `keep`. For a fresh child of [`fork_into`]: it must not use (nor drop)
/// any other descriptor it inherited afterwards.
///
/// # Errors
/// As `close_range(2)`.
pub fn close_others(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<RawFd> = keep.iter().map(|fd| fd.as_raw_fd()).filter(|&fd| fd > 2).collect();
    keep.sort_unstable();
    let mut next = 3;
    for fd in keep {
        if fd > next {
            close_range(next, libc::c_uint::try_from(fd - 1).unwrap_or(0), 0)?;
        }
        next = fd + 1;
    }
    close_range(next, libc::c_uint::MAX, 0)
}

/// Marks every descriptor above 2 close-on-exec: nothing leaks into a container (CVE-2024-21626).
///
/// # Errors
/// As `close_range(2)`.
pub fn cloexec_all() -> io::Result<()> {
    close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

/// Takes over the descriptor that whoever exec'd us left at number `fd`. Call once per number.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn inherit_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only looks.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (checked) and, by the contract, owned by nobody else in this program.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Blocks `signals` and returns a non-blocking descriptor that becomes readable when one is pending.
///
/// # Errors
/// As `signalfd(2)`.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; all pointers are to live locals; the new
    // descriptor is owned by nobody else.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Throws away what a [`signal_fd`] has to say.
pub fn drain_signal_fd(fd: BorrowedFd<'_>) {
    let mut buffer = [0_u8; 1024];
    while rustix::io::read(fd, &mut buffer).is_ok_and(|n| n > 0) {}
}

/// Gives every signal its default action and unblocks all: what a new program expects.
pub fn reset_signals() {
    // SAFETY: SIG_DFL is a valid handler for every signal; numbers without one fail harmlessly; the empty set is
    // initialised before use.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
    }
}

/// Ignores a signal.
pub fn ignore_signal(signal: i32) {
    // SAFETY: SIG_IGN is a valid handler.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Sends a signal through a pidfd.
///
/// # Errors
/// As `pidfd_send_signal(2)`; `ESRCH` when the process has been reaped.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Moves this single-threaded process into namespaces `flags` ([`ns`]) of the process behind `fd` (a pidfd), or
/// into the one namespace that `fd` is. The PID namespace changes for children only.
///
/// # Errors
/// As `setns(2)`.
pub fn set_ns(fd: BorrowedFd<'_>, flags: u64) -> io::Result<()> {
    let flags = libc::c_int::try_from(flags).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: no memory is involved.
    match unsafe { libc::setns(fd.as_raw_fd(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Moves this single-threaded process into new namespaces `flags` ([`ns`]).
///
/// # Errors
/// As `unshare(2)`.
pub fn unshare(flags: u64) -> io::Result<()> {
    let flags = libc::c_int::try_from(flags).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the flags of `ns` do not include CLONE_FILES or CLONE_VM; no memory is involved.
    match unsafe { libc::unshare(flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the owner of what this thread makes on file systems. Effective rights about files are gone afterwards.
pub fn set_fs_ids(uid: u32, gid: u32) {
    // SAFETY: no memory is involved. Both calls always succeed for a process with the rights, and say nothing else.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// Gives this process a session keyring of its own, so that it does not share ours. Best effort: a kernel without
/// keys has none to share.
pub fn new_session_keyring() {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring.
    unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
}

/// Raises the loopback device of the current network namespace.
///
/// # Errors
/// As the ioctls of `netdevice(7)`.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid; the name "lo" fits; both ioctls read and write that struct only.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(*b"lo") {
            *to = from as libc::c_char;
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) != 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threaded_process_may_not_fork() {
        // The test harness itself has at least two threads.
        let error = std::thread::spawn(|| fork_into(0, None, || 0).unwrap_err()).join().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EDEADLK));
    }

    #[test]
    fn inherit_refuses_a_closed_number() {
        assert!(inherit_fd(19_999).is_err());
    }
}
