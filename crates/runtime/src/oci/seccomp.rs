//! Seccomp profiles: the specification's form, and the profile behind `RuntimeDefault` as data.
//!
//! The allow list is what containerd and Docker allow by default. Names that a machine does not have are
//! skipped when the profile is compiled. Compilation is in `crate::init::seccomp`.

use serde::{Deserialize, Serialize};

/// A system call filter (`linux.seccomp`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Seccomp {
    /// For calls without a rule (`SCMP_ACT_ERRNO` …).
    pub default_action: String,
    /// Error number of the default action; `None`: EPERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_X86_64` …; Gantry's runtime filters the machine's own and refuses others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// Filter flags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// The rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub syscalls: Vec<Rule>,
}

/// One action for a list of calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Rule {
    /// Names of system calls.
    pub names: Vec<String>,
    /// What to do.
    pub action: String,
    /// Error number of `SCMP_ACT_ERRNO`; `None`: EPERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// All must hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Arg>,
}

/// A condition on one argument.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Arg {
    /// Which argument, from 0.
    pub index: u32,
    /// Compared with; the mask of `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// The masked value of `SCMP_CMP_MASKED_EQ`.
    #[serde(skip_serializing_if = "super::is_default")]
    pub value_two: u64,
    /// `SCMP_CMP_EQ`, `_NE`, `_LT`, `_LE`, `_GE`, `_GT`, `_MASKED_EQ`.
    pub op: String,
}

/// Allowed for everybody.
const ALLOWED: &str = "accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir \
    chmod chown clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect \
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait \
    epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat \
    faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl \
    fdatasync fgetxattr file_getattr file_setattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs \
    fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list \
    get_thread_area getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername \
    getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid \
    getsockname getsockopt gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl \
    ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown \
    lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat \
    madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock \
    mlock2 mlockall mmap modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend \
    mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at \
    nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc \
    pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 \
    ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg \
    remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir riscv_hwprobe \
    rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity \
    sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr \
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile \
    sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid \
    setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt \
    setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair \
    splice stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime \
    timerfd_settime times tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork \
    vmsplice wait4 waitid write writev process_vm_readv process_vm_writev";

/// Allowed besides with a capability.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open \
         quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Every flag of `clone` that makes a namespace.
const CLONE_NAMESPACES: u64 = 0x7E02_0000;
/// `AF_VSOCK`: reaches the hypervisor, so it stays closed.
const AF_VSOCK: u64 = 40;
/// Personalities that are harmless: Linux, 32-bit Linux, the two with UNAME26, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xFFFF_FFFF];
const ENOSYS: u32 = 38;

/// The `RuntimeDefault` profile of a container with these capabilities (`CAP_…` names).
pub fn runtime_default<S: AsRef<str>>(caps: &[S]) -> Seccomp {
    let has = |name: &str| caps.iter().any(|c| c.as_ref() == name);
    let mut syscalls = vec![allow(ALLOWED, vec![]), allow("socket", vec![arg(0, AF_VSOCK, 0, "NE")])];
    syscalls.extend(PERSONALITIES.map(|p| allow("personality", vec![arg(0, p, 0, "EQ")])));
    syscalls.extend(BY_CAPABILITY.iter().filter(|(cap, _)| has(cap)).map(|(_, names)| allow(names, vec![])));
    if !has("CAP_SYS_ADMIN") {
        syscalls.push(allow("clone", vec![arg(0, CLONE_NAMESPACES, 0, "MASKED_EQ")]));
        // Its flags lie in memory, out of a filter's reach: pretend that the kernel is older, libc falls back.
        syscalls.push(Rule {
            action: "SCMP_ACT_ERRNO".to_owned(),
            errno_ret: Some(ENOSYS),
            ..allow("clone3", vec![])
        });
    }
    Seccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        default_errno_ret: Some(1),
        architectures: vec![NATIVE_ARCH.to_owned()],
        flags: vec![],
        syscalls,
    }
}

/// The specification's word for the machine that this was built for.
pub const NATIVE_ARCH: &str =
    if cfg!(target_arch = "aarch64") { "SCMP_ARCH_AARCH64" } else { "SCMP_ARCH_X86_64" };

fn allow(names: &str, args: Vec<Arg>) -> Rule {
    let names = names.split_whitespace().map(str::to_owned).collect();
    Rule { names, action: "SCMP_ACT_ALLOW".to_owned(), errno_ret: None, args }
}

fn arg(index: u32, value: u64, value_two: u64, op: &str) -> Arg {
    Arg { index, value, value_two, op: format!("SCMP_CMP_{op}") }
}
