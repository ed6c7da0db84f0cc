//! Workers: processes that each hold one contender and measure a round of it whenever they are asked.
//!
//! Protocol: the worker says `ready`; then for each line on stdin it prints one [`Round`] as JSON; when stdin ends it
//! removes what it made and goes. So an interrupted run cleans up too: workers are in a process group of their own,
//! and see the end of their stdin.

use super::{dns, kv, oci, registry};
use crate::bench::load::percentile;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a reference server may take to listen.
const LISTEN_DEADLINE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What one round of one contender took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Round {
    /// How many operations.
    pub operations: f64,
    /// Wall time of the round.
    pub seconds: f64,
    /// CPU seconds of the serving side.
    pub cpu: f64,
    /// Median wall time of an operation in seconds.
    pub p50: f64,
    /// Least wall time of an operation in seconds.
    pub min: f64,
    /// 99th percentile in seconds.
    pub p99: f64,
}

impl Round {
    /// From every operation's (or batch of `each` operations') wall time in seconds.
    pub fn new(mut latencies: Vec<f64>, each: usize, seconds: f64, cpu: f64) -> Round {
        latencies.sort_by(f64::total_cmp);
        let operations = (latencies.len() * each) as f64;
        let [min, p50, p99] = [0.0, 0.5, 0.99].map(|p| percentile(&latencies, p));
        Round { operations, seconds, cpu, p50, min, p99 }
    }

    /// Runs something so many times, measured each time; `cpu` tells CPU seconds so far.
    pub fn repeat(
        count: usize,
        each: usize,
        cpu: impl Fn() -> Result<f64>,
        mut operation: impl FnMut() -> Result<Duration>,
    ) -> Result<Round> {
        let (start, before) = (Instant::now(), cpu()?);
        let mut latencies = Vec::with_capacity(count);
        for _ in 0..count {
            latencies.push(operation()?.as_secs_f64());
        }
        Ok(Round::new(latencies, each, start.elapsed().as_secs_f64(), cpu()? - before))
    }
}

/// What a worker process does.
pub trait Work {
    /// Measures one round.
    fn round(&mut self, what: &str) -> Result<Round>;
}

type Make = fn(&[&str]) -> Result<Box<dyn Work>>;

/// Kinds of workers: contenders, and servers and loads that contenders start.
pub const KINDS: &[(&str, Make)] = &[
    ("store", kv::store),
    ("append", kv::append),
    ("etcd", kv::etcd),
    ("gantry", kv::gantry),
    ("gantry-load", kv::gantry_load),
    ("pod", oci::pod),
    ("container", oci::container),
    ("crun", |_| oci::binary("/usr/bin/crun")),
    ("runc", |_| oci::binary("/usr/sbin/runc")),
    ("oci-load", oci::oci_load),
    ("registry", registry::ours),
    ("serve-registry", registry::serve),
    ("docker-registry", registry::distribution),
    ("dns", dns::ours),
    ("serve-dns", dns::serve),
    ("dnsmasq", dns::dnsmasq),
];

/// The worker's side.
pub fn work(kind: &str, args: &[&str]) -> Result<()> {
    let (_, make) = KINDS.iter().find(|(name, _)| *name == kind).context("no such worker")?;
    let mut worker = make(args)?;
    println!("ready");
    for what in std::io::stdin().lines() {
        println!("{}", serde_json::to_string(&worker.round(&what?)?)?);
    }
    Ok(())
}

/// The other side: a running worker. Dropping it lets it clean up and waits for its end.
pub struct Worker {
    process: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts it and waits until it is ready.
    pub fn start(mut command: Command) -> Result<Worker> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut process = command.spawn()?;
        let stdin = process.stdin.take();
        let stdout = BufReader::new(process.stdout.take().context("stdout is piped")?);
        let mut worker = Worker { process, stdin, stdout };
        ensure!(worker.line()? == "ready\n", "the worker did not start");
        Ok(worker)
    }

    /// Another kind of worker of this same program.
    pub fn of(kind: &str, args: &[&str]) -> Result<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench-worker", kind]).args(args);
        Worker::start(command)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Measures one round.
    pub fn round(&mut self, what: &str) -> Result<Round> {
        writeln!(self.stdin.as_mut().context("stdin is open until the drop")?, "{what}")?;
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("the worker said {line:?}"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.process.wait();
    }
}

/// A worker that only serves others.
pub struct Serving<T>(pub T);

impl<T> Work for Serving<T> {
    fn round(&mut self, _what: &str) -> Result<Round> {
        bail!("this worker only serves")
    }
}

/// A server program with a folder of its own; killed and removed when dropped.
pub struct Server {
    process: Child,
    folder: tempfile::TempDir,
}

impl Server {
    /// Starts the command that `command` makes for a new folder.
    pub fn start(command: impl FnOnce(&Path) -> Result<Command>) -> Result<Server> {
        let folder = tempfile::tempdir()?;
        let mut command = command(folder.path())?;
        let log = fs::File::create(folder.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Server { process, folder })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until something listens at this TCP port of the loopback.
    pub fn wait_for(&mut self, port: u16) -> Result<()> {
        let deadline = Instant::now() + LISTEN_DEADLINE;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = self.process.try_wait()?.is_some() || Instant::now() > deadline;
            let said = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            ensure!(!ended, "the server does not listen:\n{}", said());
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port of the loopback that nobody has just now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A loopback address.
pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A program that must be installed, with the Debian package that has it.
pub fn installed(path: &str, package: &str) -> Result<PathBuf> {
    ensure!(Path::new(path).exists(), "{path} is not there: apt-get install {package}");
    Ok(path.into())
}
