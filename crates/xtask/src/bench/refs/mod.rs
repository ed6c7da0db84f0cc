//! `cargo xtask bench refs [SUITE [BINARY]]`: ours beside references, measured in the same run on the same machine.
//!
//! A suite is a row of data: contenders (ours first) and measures. Every contender is a worker process (see
//! `worker`); rounds go around over all of them, so a noisy minute hits all alike. Printed are medians over the rounds
//! and the least wall time, CPU time before wall time, because CPU says more on a shared machine.
//! Invariant: whatever a run makes (processes, folders, namespaces, cgroups) belongs to a worker, and the worker
//! removes it when its stdin closes. Deliberately not here: pass or fail, and what the figures mean
//! (`docs/performance.md`).

mod dns;
mod etcd;
mod kv;
mod oci;
mod registry;
mod worker;

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::cluster::run as run_command;
use worker::{Round, Worker};

pub use worker::work;

/// Rounds of each measure.
const ROUNDS: usize = 5;

/// One table: who is compared, in what.
struct Suite {
    name: &'static str,
    title: &'static str,
    /// Name in the table, kind of worker. The first is ours; ratios are to it.
    contenders: &'static [(&'static str, &'static str)],
    /// Name in the table, what a worker is asked for.
    measures: &'static [(&'static str, &'static str)],
}

const SUITES: &[Suite] = &[
    Suite {
        name: "store",
        title: "durable writes of 1 KiB, below any API",
        contenders: &[
            ("our store, in process", "store"),
            ("fdatasync of a plain file", "append"),
            ("etcd 3.4, gRPC, no TLS", "etcd"),
        ],
        measures: &[("put, 1 client", "put 1"), ("put, 64 clients", "put 64")],
    },
    Suite {
        name: "api",
        title: "ConfigMaps of 1 KiB through gantry's whole API (TLS, identity, RBAC); etcd alone is the floor of any \
                API server on it",
        contenders: &[("gantry up", "gantry"), ("etcd 3.4, gRPC, no TLS", "etcd")],
        measures: &[
            ("create, 1 client", "put 1"),
            ("create, 64 clients", "put 64"),
            ("get, 1 client", "get 1"),
            ("get, 64 clients", "get 64"),
        ],
    },
    Suite {
        name: "runtime",
        title: "/bin/true in namespaces, cgroups and seccomp of its own: create, start, wait, delete",
        contenders: &[
            ("ours, pod and container", "pod"),
            ("ours, one more in a pod", "container"),
            ("crun", "crun"),
            ("runc", "runc"),
        ],
        measures: &[("one cycle", "cycle")],
    },
    Suite {
        name: "registry",
        title: "one blob of 256 MiB over loopback",
        contenders: &[("our registry", "registry"), ("distribution (docker-registry)", "docker-registry")],
        measures: &[("push", "push"), ("pull", "pull")],
    },
    Suite {
        name: "dns",
        title: "A queries for 1,000 service names over UDP; wall time is a batch's",
        contenders: &[("our DNS", "dns"), ("dnsmasq", "dnsmasq")],
        measures: &[("1 at a time", "query 1"), ("batches of 32", "query 32")],
    },
];

/// Builds what is measured and runs the suites in an optimized process.
pub fn refs(root: &Path, suite: Option<&str>, binary: Option<&str>) -> Result<()> {
    let built = |package: &str| -> Result<PathBuf> {
        let build = ["build", "--release", "--quiet", "--package", package];
        run_command(Command::new("cargo").args(build).current_dir(root))?;
        Ok(root.join("target/x86_64-unknown-linux-gnu/release").join(package))
    };
    let gantry = binary.map_or_else(|| built("gantry"), |path| Ok(path.into()))?;
    let suite = suite.unwrap_or("all");
    let status = Command::new(built("xtask")?).args(["bench-refs", suite]).arg(gantry).status()?;
    ensure!(status.success(), "the measuring process: {status}");
    Ok(())
}

/// The suites themselves; `all` for every one.
pub fn run_suites(name: &str, gantry: &str) -> Result<()> {
    let chosen: Vec<&Suite> = SUITES.iter().filter(|s| name == "all" || s.name == name).collect();
    let known: Vec<&str> = SUITES.iter().map(|s| s.name).collect();
    ensure!(!chosen.is_empty(), "no suite {name}; there are {}", known.join(", "));
    for suite in chosen {
        run_suite(suite, gantry).with_context(|| format!("suite {}", suite.name))?;
    }
    Ok(())
}

fn run_suite(suite: &Suite, gantry: &str) -> Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    println!("\n{}: {} ({ROUNDS} rounds in turn; load average {load})", suite.name, suite.title);
    println!(
        "{:<20} {:<31} {:>9} {:>7} {:>9} {:>7} {:>9} {:>9} {:>8}",
        "measure", "who", "CPU/op", "x ours", "p50", "x ours", "min", "p99", "ops/s"
    );
    let mut workers = Vec::new();
    for (_, kind) in suite.contenders {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench-worker", kind, gantry]);
        workers.push(Worker::start(command).with_context(|| format!("starting {kind}"))?);
    }
    for (measure, what) in suite.measures {
        let mut rounds = vec![Vec::new(); workers.len()];
        for _ in 0..ROUNDS {
            for (worker, (rounds, (who, _))) in
                workers.iter_mut().zip(rounds.iter_mut().zip(suite.contenders))
            {
                rounds.push(worker.round(what).with_context(|| format!("{who}, {what}"))?);
            }
        }
        let summaries: Vec<Summary> = rounds.iter().map(|rounds| Summary::of(rounds)).collect();
        for ((who, _), summary) in suite.contenders.iter().zip(&summaries) {
            println!("{measure:<20} {who:<31} {}", summary.beside(&summaries[0]));
        }
    }
    Ok(())
}

/// One contender's rounds in five numbers.
struct Summary {
    cpu: f64,
    p50: f64,
    min: f64,
    p99: f64,
    rate: f64,
}

impl Summary {
    fn of(rounds: &[Round]) -> Summary {
        let all = |f: fn(&Round) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(f).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |f| all(f)[rounds.len() / 2];
        Summary {
            cpu: median(|r| r.cpu / r.operations),
            p50: median(|r| r.p50),
            min: all(|r| r.min)[0],
            p99: median(|r| r.p99),
            rate: median(|r| r.operations / r.seconds),
        }
    }

    fn beside(&self, ours: &Summary) -> String {
        let times = |value: f64, ours: f64| match ours > 0.0 {
            true => format!("{:.2}", value / ours),
            false => "-".into(),
        };
        format!(
            "{:>9} {:>7} {:>9} {:>7} {:>9} {:>9} {:>8}",
            time(self.cpu),
            times(self.cpu, ours.cpu),
            time(self.p50),
            times(self.p50, ours.p50),
            time(self.min),
            time(self.p99),
            if self.rate < 100.0 { format!("{:.1}", self.rate) } else { format!("{:.0}", self.rate) },
        )
    }
}

/// Seconds in the unit that suits them, with three digits or so.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-4 => format!("{:.1} us", s * 1e6),
        s if s < 1e-3 => format!("{:.0} us", s * 1e6),
        s if s < 0.1 => format!("{:.2} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_take_medians_and_the_least_time() {
        let round = |cpu, p50, min| Round { operations: 10.0, seconds: 2.0, cpu, p50, min, p99: 2.0 };
        let ours = Summary::of(&[round(0.1, 3e-3, 2e-3), round(9.0, 1e-3, 5e-4), round(0.2, 2e-3, 1e-3)]);
        assert_eq!((ours.cpu, ours.p50, ours.min, ours.rate), (0.02, 2e-3, 5e-4, 5.0));
        let twice = Summary { cpu: 0.04, p50: 1e-3, min: 1e-6, p99: 1.5, rate: 250.0 };
        let line: Vec<String> = twice.beside(&ours).split_whitespace().map(String::from).collect();
        assert_eq!(line.join(" "), "40.00 ms 2.00 1.00 ms 0.50 1.0 us 1.50 s 250");
    }

    #[test]
    fn every_contender_has_a_worker() {
        for (_, kind) in SUITES.iter().flat_map(|s| s.contenders) {
            assert!(worker::KINDS.iter().any(|(name, _)| name == kind), "{kind}");
        }
    }
}
