//! The shim: one process a pod. It holds the pod's namespaces, is the parent of its containers, writes their
//! logs and answers the runtime. It outlives the runtime.
//!
//! Two lives of the same binary: [`setup`] makes namespaces and mounts, then executes itself again through a
//! read-only mount of its own file; [`serve`] is the loop. The second life starts with a clean heap, and its
//! `/proc/self/exe`, the only way from a container to the host's binary, cannot be written (CVE-2019-5736).
//!
//! Invariants: one thread, so [`sys::process::fork_into`] is allowed; descriptor 0 is the first connection.

mod children;
mod container;
mod exec;
mod handler;
mod log;
mod serve;
mod setup;
mod streams;

pub(crate) use setup::address;

use crate::init::Failure;
use std::path::Path;

/// Entry point of `gantry shim …`: call it first thing in `main`, before any thread exists, with what follows
/// `shim` on the command line.
pub fn shim_main(args: &[String]) -> ! {
    let outcome = match args {
        [dir] => setup::run(Path::new(dir)),
        [dir, word, listener] if word == SERVE => serve::run(Path::new(dir), listener),
        _ => Err(("parse arguments", Failure::new("shim", "usage: shim <folder>"))),
    };
    let Err((step, Failure(error))) = outcome else { std::process::exit(0) };
    eprintln!("shim: {step}: {error}");
    setup::tell_failure(step, &error);
    std::process::exit(1)
}

/// Second word of the second life.
const SERVE: &str = "serve";

/// A failed step's name and reason.
type Outcome<T> = Result<T, (&'static str, Failure)>;

/// Nanoseconds since the epoch.
fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}
