//! Capabilities by name, as 64-bit masks.

use std::io;

/// All names; the index is the kernel's number.
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The mask of these names; unknown ones are left out.
pub fn mask<S: AsRef<str>>(names: &[S]) -> u64 {
    let bit = |name: &S| NAMES.iter().position(|n| *n == name.as_ref()).map_or(0, |i| 1 << i);
    names.iter().map(bit).fold(0, |all, one| all | one)
}

/// The sets of one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// In force.
    pub effective: u64,
    /// May be made effective.
    pub permitted: u64,
    /// Kept over exec when the file allows.
    pub inheritable: u64,
}

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

fn half(mask: u64, index: u32) -> u32 {
    u32::try_from((mask >> (32 * index)) & 0xFFFF_FFFF).expect("masked to 32 bits")
}

/// The calling thread's sets.
///
/// # Errors
/// As `capget(2)`.
pub fn get() -> io::Result<Sets> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [[0_u32; 3]; 2];
    // SAFETY: version 3 wants a header and two triples of u32, which live for the call.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let join = |i: usize| u64::from(data[0][i]) | (u64::from(data[1][i]) << 32);
    Ok(Sets { effective: join(0), permitted: join(1), inheritable: join(2) })
}

/// Sets the calling thread's sets.
///
/// # Errors
/// As `capset(2)`.
pub fn set(sets: Sets) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let triple = |i| [half(sets.effective, i), half(sets.permitted, i), half(sets.inheritable, i)];
    let data = [triple(0), triple(1)];
    // SAFETY: as in `get`.
    match unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn prctl(option: libc::c_int, a: u64, b: u64) -> io::Result<()> {
    // SAFETY: the options used here take plain numbers.
    match unsafe { libc::prctl(option, a, b, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Drops every capability that is not in `keep` from the bounding set.
///
/// # Errors
/// As `PR_CAPBSET_DROP`; numbers that the kernel does not know are skipped.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    for number in (0..64).filter(|n| keep & (1 << n) == 0) {
        match prctl(libc::PR_CAPBSET_DROP, number, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `mask`; they must be permitted and inheritable.
///
/// # Errors
/// As `PR_CAP_AMBIENT`.
pub fn set_ambient(mask: u64) -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    for number in (0..64).filter(|n| mask & (1 << n) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, number)?;
    }
    Ok(())
}

/// Keep permitted capabilities when the user id changes.
///
/// # Errors
/// As `PR_SET_KEEPCAPS`.
pub fn keep_on_setuid(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, u64::from(keep), 0)
}

/// No program that is executed from here on can gain privileges.
///
/// # Errors
/// As `PR_SET_NO_NEW_PRIVS`.
pub fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
}

/// Whether others may attach to this process and look at its descriptors.
///
/// # Errors
/// As `PR_SET_DUMPABLE`.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, u64::from(dumpable), 0)
}

/// Killed when the process that forked this one ends.
///
/// # Errors
/// As `PR_SET_PDEATHSIG`.
pub fn die_with_parent() -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0)
}

/// Orphans below this process become its children.
///
/// # Errors
/// As `PR_SET_CHILD_SUBREAPER`.
pub fn become_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_follow_the_kernels_numbers() {
        assert_eq!(mask(&["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NONSENSE"]), 1 | (1 << 21));
        assert_eq!(NAMES.iter().position(|n| *n == "CAP_CHECKPOINT_RESTORE"), Some(40));
    }

    #[test]
    fn own_sets_agree_with_proc() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap();
        assert_eq!(get().unwrap().effective, u64::from_str_radix(line.trim(), 16).unwrap());
    }
}
