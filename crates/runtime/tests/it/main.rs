//! The runtime against the real kernel, as root: each test has its own cgroup root, state folder and pods, and
//! fails when anything is left behind. `cargo test -p runtime --test it -- <part of a name>` runs some.
//!
//! Not a libtest binary: it is also the shim (`<exe> shim …`).

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod bench;
mod isolation;
mod lifecycle;
mod node;
mod oracle;
mod recovery;
mod streams;
mod users;

use node::Node;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::time::Instant;

type Test = for<'a> fn(&'a mut Node) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Turns `module: name, name;` into a table of tests.
macro_rules! tests {
    ($($module:ident: $($name:ident),* ;)*) => {
        &[$($((concat!(stringify!($module), "::", stringify!($name)),
            (|node| Box::pin($module::$name(node))) as Test)),*),*]
    };
}

const TESTS: &[(&str, Test)] = tests! {
    lifecycle: run_log_exit_remove, exit_codes_and_signals, start_errors, create_errors, out_of_memory,
        fork_bomb, two_containers, kill_stubborn, stuck_is_reported, v1_freezer_kill, limits_and_updates, nested_v2;
    streams: log_rotation, log_volume, exec_output_and_code, exec_sync, exec_terminal, exec_client_leaves,
        terminal_container, attach_several, attach_again, attach_slow;
    recovery: owner_killed, readopt, shim_killed, all_killed, half_made_container, many_at_once, pods_at_once, impatient_callers;
    isolation: identity, processes, shared_pids, host_namespaces, read_only, volumes, links_in_the_image, links_that_change,
        seccomp_and_devices, devices_on_v2, host_binary, working_folder, pod_memory_volume, propagation,
        many_layers;
    users: ids_are_mapped, users_and_terminals, output_by_name;
    oracle: crun_lifecycle, crun_subpath, crun_agrees;
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((first, rest)) if first == "shim" => runtime::shim_main(rest),
        Some((first, rest)) if first == "owner" => return recovery::owner(rest),
        _ => {}
    }
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(f.as_str()));
    let mut failed = Vec::new();
    for (name, test) in TESTS.iter().filter(|(name, _)| chosen(name)) {
        let begin = Instant::now();
        let ok = catch_unwind(AssertUnwindSafe(|| Node::run(*test))).is_ok();
        println!("{} {name} ({} ms)", if ok { "ok  " } else { "FAIL" }, begin.elapsed().as_millis());
        if !ok {
            failed.push(*name);
        }
    }
    if chosen("measure") && filters.iter().any(|f| f.as_str() == "measure") {
        bench::measure();
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}
