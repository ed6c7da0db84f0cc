//! `cargo xtask bench quick`: the headline figures of one machine, beside the goals of the design.
//!
//! Starts the release binary in a namespace of its own; the load runs in a second process inside it. Figures are
//! medians and CPU time an operation, because machines are noisy. References stand in `refs`. Deliberately not here:
//! any pass or fail: a figure is read, not tested.

mod abuse;
mod ecs;
mod load;
mod refs;
mod sched;

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testkit::cluster::{Cluster, run};
use testkit::image::ImageBuilder;

pub use load::run as run_load;
pub use refs::{refs, run_suites, work};
pub use sched::run as sched;

/// The image of the measured pods.
const IMAGE: &str = "bench:1";
/// Idle figures are taken over this time, after a pause of the same length.
const IDLE: Duration = Duration::from_secs(10);

/// The given binary, or this tree's release build.
fn built(root: &Path, binary: Option<&str>) -> Result<PathBuf> {
    if binary.is_none() {
        let build = ["build", "--release", "--quiet", "--package", "gantry"];
        run(Command::new("cargo").args(build).current_dir(root))?;
    }
    let built = root.join("target/x86_64-unknown-linux-gnu/release/gantry");
    Ok(binary.map_or(built, PathBuf::from))
}

/// Hostile clients at full size, or those with this in their names; what a node feels of them.
pub fn abuse(root: &Path, only: &str, binary: Option<&str>) -> Result<()> {
    let cluster = Cluster::start(built(root, binary)?, &["--max-pods", "10"])?;
    let mut command = cluster.inside(std::env::current_exe()?);
    command.args(["bench-load", "abuse", &cluster.pid().to_string(), only]);
    anyhow::ensure!(command.status()?.success(), "the attackers failed");
    Ok(())
}

/// ECS by signed calls, for a given binary or for this tree's release build.
pub fn ecs(root: &Path, binary: Option<&str>) -> Result<()> {
    let cluster = Cluster::start(built(root, binary)?, &[])?;
    let folder = tempfile::tempdir()?;
    cluster
        .load_image(&ImageBuilder::busybox(IMAGE).write_docker_archive(&folder.path().join("bench.tar")))?;
    row("measure", "value", "goal");
    let mut command = cluster.inside(std::env::current_exe()?);
    command.args(["bench-load", "ecs", &cluster.pid().to_string(), IMAGE]);
    anyhow::ensure!(command.status()?.success(), "the load failed:\n{}", cluster.output());
    Ok(())
}

/// Prints the table, for a given binary or for this tree's release build.
pub fn quick(root: &Path, binary: Option<&str>) -> Result<()> {
    let binary = built(root, binary)?;
    row("measure", "value", "goal");
    row("binary size", &format!("{:.1} MiB", fs::metadata(&binary)?.len() as f64 / 1048576.0), "-");
    let cluster = Cluster::start(&binary, &["--max-pods", "300"])?;
    let said = cluster.output();
    let milliseconds = |line: &str| -> String {
        let found =
            said.lines().find_map(|l| l.strip_prefix(line)?.split_whitespace().next().map(str::to_string));
        found.unwrap_or_default() + " ms"
    };
    row("gantry up -> API answering", &milliseconds("API answering in "), "<= 300 ms");
    row("gantry up -> node Ready", &milliseconds("ready in "), "<= 700 ms");
    std::thread::sleep(IDLE);
    idle(&cluster, "idle", "<= 60 MiB, 0.3 % of a core")?;
    let folder = tempfile::tempdir()?;
    let image = ImageBuilder::busybox(IMAGE).write_docker_archive(&folder.path().join("bench.tar"));
    cluster.load_image(&image)?;
    let loaded = |what: &str| -> Result<String> {
        let mut command = cluster.inside(std::env::current_exe()?);
        run(command.args(["bench-load", what, &cluster.pid().to_string(), IMAGE]))
    };
    print!("{}", loaded("pods")?);
    idle(&cluster, "idle with 100 pods", "<= 1 % of a core")?;
    shims(&cluster)?;
    print!("{}", loaded("gone")?);
    print!("{}", loaded("writes")?);
    print!("{}", loaded("reads")?);
    Ok(())
}

/// One line of the table.
pub fn row(measure: &str, value: &str, goal: &str) {
    println!("{measure:<34} {value:<34} {goal}");
}

/// CPU time of a process (without its children) in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    cpu_fields(pid, 11..13)
}

/// The same with all descendants that have ended and were waited for.
pub fn cpu_seconds_with_descendants(pid: u32) -> Result<f64> {
    cpu_fields(pid, 11..15)
}

/// The sum of some of the CPU times in `/proc/<pid>/stat`, counted after the name.
fn cpu_fields(pid: u32, which: std::ops::Range<usize>) -> Result<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("a stat line has a name")?.1.split_whitespace().collect();
    let ticks = fields.get(which).context("a stat line has the times")?;
    Ok(ticks.iter().filter_map(|f| f.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND)
}

/// A `Name:  12 kB` line of a `/proc` file, in KiB.
fn kib(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn idle(cluster: &Cluster, name: &str, goal: &str) -> Result<()> {
    let before = cpu_seconds(cluster.pid())?;
    std::thread::sleep(IDLE);
    let share = (cpu_seconds(cluster.pid())? - before) / IDLE.as_secs_f64() * 100.0;
    let rss = kib(&format!("/proc/{}/status", cluster.pid()), "VmRSS") as f64 / 1024.0;
    row(name, &format!("{rss:.1} MiB RSS, {share:.2} % of a core"), goal);
    Ok(())
}

fn shims(cluster: &Cluster) -> Result<()> {
    let mut private = Vec::new();
    for process in fs::read_dir("/proc")?.flatten() {
        let path = process.path();
        let command = fs::read(path.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(" shim ") && command.contains(&format!("/run/{}/", cluster.name())) {
            let rollup = path.join("smaps_rollup").display().to_string();
            private.push(kib(&rollup, "Private_Dirty") + kib(&rollup, "Private_Clean"));
        }
    }
    private.sort();
    let median = private.get(private.len() / 2).copied().unwrap_or(0);
    row(
        "memory a pod (shim, private)",
        &format!("{median} KiB median of {}", private.len()),
        "<= 300 KiB, stretch 100",
    );
    Ok(())
}
