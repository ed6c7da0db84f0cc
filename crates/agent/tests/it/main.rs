//! The agent against the real runtime and network, as root, in a network namespace of its own; the API is in
//! memory. `cargo test -p agent --test it -- <part of a name>` runs some.
//!
//! Not a libtest binary: it is also the shim (`<exe> shim …`).

#![expect(clippy::unwrap_used, reason = "a test: a step that fails ends it")]

mod fake;
mod node;
mod pods;

use node::Bench;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::time::Instant;

type Test = for<'a> fn(&'a mut Bench) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), (|bench| Box::pin(pods::$name(bench))) as Test)),*]
    };
}

const TESTS: &[(&str, Test)] = tests![
    runs_with_everything_it_asked_for,
    init_containers_and_the_end_of_a_job,
    crash_loops_and_start_errors,
    missing_things_are_waited_for,
    graceful_deletion_leaves_nothing,
    a_new_agent_takes_over,
    static_pods_need_no_api,
    a_node_goes_down_in_order,
    same_name_again_and_force,
    probes_and_sub_paths,
    starts_fast,
    a_hundred_at_once,
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some((first, rest)) = args.split_first()
        && first == "shim"
    {
        runtime::shim_main(rest);
    }
    // Before any thread exists: everything below lives in namespaces that end with this process.
    sys::process::unshare(sys::process::ns::NET | sys::process::ns::MOUNT).expect("run as root");
    sys::process::loopback_up().expect("the loopback comes up");
    // The node's own address, from which it probes.
    let ip = ["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"];
    assert!(
        std::process::Command::new("/bin/busybox").args(ip).status().expect("busybox is installed").success()
    );
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    let mut failed = Vec::new();
    for (name, test) in TESTS.iter().filter(|(name, _)| chosen(name)) {
        let begin = Instant::now();
        let ok = catch_unwind(AssertUnwindSafe(|| Bench::run(*test))).is_ok();
        println!("{} {name} ({} ms)", if ok { "ok  " } else { "FAIL" }, begin.elapsed().as_millis());
        if !ok {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}
