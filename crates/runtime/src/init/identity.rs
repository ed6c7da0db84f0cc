//! From root with all rights to the container's user with its own: limits, user, groups, capabilities, seccomp.
//!
//! Order matters: limits while rights are there; the bounding set before the user changes; with
//! `no_new_privileges` the filter comes last, without it before the rights to load one are gone.

use super::{Failure, seccomp};
use crate::oci::{Process, seccomp::Seccomp};
use std::io;
use sys::caps;
use sys::rustix::process::{Gid, Resource, Rlimit, Uid, getrlimit, setrlimit};
use sys::rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Names of the specification.
const RLIMITS: &[(&str, Resource)] = &[
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_STACK", Resource::Stack),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
];

/// Sets resource limits. Where root may not raise a ceiling (no CAP_SYS_RESOURCE), it stays as it is.
pub(super) fn limits(process: &Process) -> Result<(), Failure> {
    for wanted in &process.rlimits {
        let Some((_, resource)) = RLIMITS.iter().find(|(name, _)| *name == wanted.kind) else {
            return Err(Failure::new(&wanted.kind, "unknown resource limit"));
        };
        let value = |v: u64| Some(v).filter(|&v| v != u64::MAX);
        let limit = Rlimit { current: value(wanted.soft), maximum: value(wanted.hard) };
        if setrlimit(*resource, limit).is_ok() {
            continue;
        }
        let ceiling = getrlimit(*resource).maximum;
        let current = [value(wanted.soft), ceiling].into_iter().flatten().min();
        eprintln!("{}: ceiling stays at {ceiling:?}", wanted.kind);
        setrlimit(*resource, Rlimit { current, maximum: ceiling })
            .map_err(|e| Failure::new(&wanted.kind, e))?;
    }
    Ok(())
}

/// Sets `oom_score_adj` of this process (`None`: 0, the shim's own is not for its children); must still see the
/// host's `/proc`. Where root may not lower it, the inherited value stays.
pub(super) fn oom_score(value: Option<i32>) -> Result<(), Failure> {
    let value = value.unwrap_or(0);
    match std::fs::write("/proc/self/oom_score_adj", value.to_string()) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("oom_score_adj {value}: not permitted, left as it is");
            Ok(())
        }
        other => other.map_err(|e| Failure::new("oom_score_adj", e)),
    }
}

/// Becomes the process's user with its capabilities and filter. Nothing but `execve` should follow.
pub(super) fn become_user(process: &Process, profile: Option<&Seccomp>) -> Result<(), Failure> {
    let step = |what: &'static str| move |e: io::Error| Failure::new(what, e);
    let filter = profile.map(seccomp::compile).transpose()?.flatten();
    let load = |when: bool| match &filter {
        Some(filter) if when => sys::seccomp::load(filter).map_err(step("load the seccomp filter")),
        _ => Ok(()),
    };
    let wanted = process.capabilities.clone().unwrap_or_default();
    caps::limit_bounding(caps::mask(&wanted.bounding)).map_err(step("limit the bounding set"))?;
    if process.no_new_privileges {
        caps::no_new_privileges().map_err(step("no_new_privs"))?;
    }
    load(!process.no_new_privileges)?;

    caps::keep_on_setuid(true).map_err(step("keep capabilities"))?;
    let user = &process.user;
    let groups: Vec<Gid> = user.additional_gids.iter().map(|&g| Gid::from_raw(g)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_groups(&groups).map_err(|e| Failure::new("setgroups", e))?;
    set_thread_res_gid(gid, gid, gid).map_err(|e| Failure::new("setgid", e))?;
    set_thread_res_uid(uid, uid, uid).map_err(|e| Failure::new("setuid", e))?;
    caps::keep_on_setuid(false).map_err(step("keep capabilities"))?;

    // Asking for more than there is would fail as a whole: a node that lacks a right gives what it has.
    let have = caps::get().map_err(step("read capabilities"))?.permitted;
    let sets = caps::Sets {
        effective: caps::mask(&wanted.effective) & have,
        permitted: caps::mask(&wanted.permitted) & have,
        inheritable: caps::mask(&wanted.inheritable) & have,
    };
    caps::set(sets).map_err(step("set capabilities"))?;
    let ambient = caps::mask(&wanted.ambient) & sets.permitted & sets.inheritable;
    caps::set_ambient(ambient).map_err(step("set ambient capabilities"))?;
    load(process.no_new_privileges)
}
