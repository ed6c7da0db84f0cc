//! Loading the one kind of BPF program that is needed: a cgroup's device filter (v2 has no other way).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`.
#[derive(Default)]
#[repr(C)]
struct Load {
    kind: u32,
    instructions_len: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The same for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// # Safety
/// `attr` must be laid out as the kernel expects for `command`, with valid pointers in it.
unsafe fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<i32> {
    // SAFETY: by the contract; the size is the struct's.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(done).unwrap_or(0)) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("a borrowed descriptor is not negative")
}

/// Loads `program` (eBPF instructions in the kernel's layout) and adds it to a v2 cgroup's device filters. It
/// goes when the cgroup goes.
///
/// # Errors
/// As `bpf(2)`; `EINVAL` or `EACCES` when the verifier refuses the program.
pub fn attach_device_filter(cgroup: BorrowedFd<'_>, program: &[u64]) -> io::Result<()> {
    let licence = c"Apache-2.0";
    let load = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        instructions_len: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: Load is the beginning of the union for this command (the kernel takes the rest as zero); the
    // pointers are to live buffers, the count is that of the instructions; no log is asked for.
    let fd = unsafe { bpf(PROG_LOAD, &load) }?;
    // SAFETY: a new descriptor that nobody else owns (BPF descriptors are close-on-exec).
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = Attach {
        target: raw(cgroup),
        program: u32::try_from(fd.as_raw_fd()).expect("an owned descriptor is not negative"),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: Attach is the beginning of the union for this command; it holds no pointers.
    unsafe { bpf(PROG_ATTACH, &attach) }.map(drop)
}
