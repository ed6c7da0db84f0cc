//! Writes and reads of 1 KiB: our store in process, a plain file, etcd, and gantry's API.
//!
//! CPU is the serving process's; in process (store, file) it is everything, the load loop included.

use super::etcd::Etcd;
use super::worker::{Round, Server, Work, Worker, free_port, installed};
use crate::bench::cpu_seconds;
use crate::bench::load::connect;
use anyhow::{Context, Result, ensure};
use client::ObjectKey;
use futures_util::future::BoxFuture;
use k8s_schema::gvr;
use serde_json::json;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;
use store::{Embedded, EmbeddedOptions, Expect, Store, Txn, TxnOp, TxnOutcome};
use testkit::cluster::Cluster;

const VALUE_BYTES: usize = 1024;
/// Most clients at a time, and keys that are there to be read.
const CLIENTS: usize = 64;
/// Operations a round, with one client and with many.
const ALONE: usize = 2_000;
const TOGETHER: usize = 10_000;
/// Connections to etcd for 64 clients: an API server shares few, and that is cheaper for etcd.
const ETCD_CONNECTIONS: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Put,
    Get,
}

/// One client's operation on the key of that number.
type Operation = Arc<dyn Fn(usize) -> BoxFuture<'static, Result<()>> + Send + Sync>;

fn operation<F>(f: impl Fn(usize) -> F + Send + Sync + 'static) -> Operation
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    Arc::new(move |n| Box::pin(f(n)))
}

/// Clients in closed loops against one server.
struct Loaded {
    tokio: tokio::runtime::Runtime,
    /// One for each client.
    puts: Vec<Operation>,
    gets: Vec<Operation>,
    /// The serving process.
    pid: u32,
    /// The next key that was not written yet.
    next: usize,
    /// Ends with the worker.
    _server: Option<Server>,
}

impl Loaded {
    /// Writes the keys that are read later.
    fn seeded(mut self) -> Result<Loaded> {
        self.drive(Verb::Put, 1, CLIENTS)?;
        Ok(self)
    }

    fn drive(&mut self, verb: Verb, clients: usize, operations: usize) -> Result<Round> {
        let (from, all) = match verb {
            Verb::Put => (self.next, &self.puts),
            Verb::Get => (0, &self.gets),
        };
        let (start, before) = (Instant::now(), cpu_seconds(self.pid)?);
        let latencies = self.tokio.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for (first, work) in all.iter().take(clients).enumerate() {
                let work = work.clone();
                tasks.spawn(async move {
                    let mut latencies = Vec::new();
                    for n in (from + first..from + operations).step_by(clients) {
                        let begin = Instant::now();
                        work(if verb == Verb::Put { n } else { n % CLIENTS }).await?;
                        latencies.push(begin.elapsed().as_secs_f64());
                    }
                    anyhow::Ok(latencies)
                });
            }
            let mut latencies = Vec::new();
            while let Some(done) = tasks.join_next().await {
                latencies.extend(done??);
            }
            anyhow::Ok(latencies)
        })?;
        if verb == Verb::Put {
            self.next += operations;
        }
        Ok(Round::new(latencies, 1, start.elapsed().as_secs_f64(), cpu_seconds(self.pid)? - before))
    }
}

/// `put 64` → put, 64 clients, operations.
fn asked(what: &str) -> Result<(Verb, usize, usize)> {
    let (verb, clients) = what.split_once(' ').context("VERB CLIENTS")?;
    let clients: usize = clients.parse()?;
    let verb = if verb == "put" { Verb::Put } else { Verb::Get };
    Ok((verb, clients, if clients == 1 { ALONE } else { TOGETHER }))
}

impl Work for Loaded {
    fn round(&mut self, what: &str) -> Result<Round> {
        let (verb, clients, operations) = asked(what)?;
        self.drive(verb, clients, operations)
    }
}

fn tokio() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// The embedded store in this process, each put waited for until it is on disk.
pub fn store(_args: &[&str]) -> Result<Box<dyn Work>> {
    struct InProcess {
        load: Loaded,
        _folder: tempfile::TempDir,
    }
    impl Work for InProcess {
        fn round(&mut self, what: &str) -> Result<Round> {
            self.load.round(what)
        }
    }
    let folder = tempfile::tempdir()?;
    let store = Arc::new(Embedded::open(&folder.path().join("store"), EmbeddedOptions::default())?);
    let put = operation(move |n| {
        let store = store.clone();
        async move {
            let key = format!("/bench/configmaps/default/{n}").into();
            let op = TxnOp::Put(vec![b'x'; VALUE_BYTES].into());
            let outcome = store.txn(Txn { key, expect: Expect::Absent, op }).await?;
            ensure!(matches!(outcome, TxnOutcome::Done { .. }), "{outcome:?}");
            Ok(())
        }
    });
    let pid = std::process::id();
    let load =
        Loaded { tokio: tokio()?, puts: vec![put; CLIENTS], gets: vec![], pid, next: 0, _server: None };
    Ok(Box::new(InProcess { load, _folder: folder }))
}

/// The floor: appending to a file and waiting for the disk. For 64 clients, one append of what all 64 wrote.
pub fn append(_args: &[&str]) -> Result<Box<dyn Work>> {
    struct Append(File);
    impl Work for Append {
        fn round(&mut self, what: &str) -> Result<Round> {
            let (_, clients, operations) = asked(what)?;
            let bytes = vec![b'x'; VALUE_BYTES * clients];
            let cpu = || cpu_seconds(std::process::id());
            Round::repeat(operations.div_ceil(clients), clients, cpu, || {
                let begin = Instant::now();
                self.0.write_all(&bytes)?;
                self.0.sync_data()?;
                Ok(begin.elapsed())
            })
        }
    }
    Ok(Box::new(Append(tempfile::tempfile()?)))
}

/// etcd, one member on loopback: no TLS, no users, so the least it can cost.
pub fn etcd(_args: &[&str]) -> Result<Box<dyn Work>> {
    let [clients, peers] = [free_port()?, free_port()?];
    let program = installed("/usr/bin/etcd", "etcd-server")?;
    let mut server = Server::start(|folder| {
        let mut command = std::process::Command::new(program);
        let [client, peer] = [clients, peers].map(|port| format!("http://127.0.0.1:{port}"));
        command.args(["--name", "bench", "--log-level", "error", "--data-dir"]).arg(folder.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("bench={peer}")]);
        Ok(command)
    })?;
    server.wait_for(clients)?;
    let tokio = tokio()?;
    let mut connections = Vec::new();
    for _ in 0..ETCD_CONNECTIONS {
        connections.push(tokio.block_on(Etcd::connect(clients))?);
    }
    let of = |make: fn(Etcd, usize) -> BoxFuture<'static, Result<()>>| -> Vec<Operation> {
        let one = |connection: &Etcd| {
            let connection = connection.clone();
            operation(move |n| make(connection.clone(), n))
        };
        connections.iter().cycle().take(CLIENTS).map(one).collect()
    };
    let puts = of(|etcd, n| Box::pin(async move { etcd.put(&key(n), &[b'x'; VALUE_BYTES]).await }));
    let gets = of(|etcd, n| Box::pin(async move { etcd.get(&key(n)).await }));
    let pid = server.pid();
    Ok(Box::new(Loaded { tokio, puts, gets, pid, next: 0, _server: Some(server) }.seeded()?))
}

fn key(n: usize) -> String {
    format!("/registry/configmaps/default/{n}")
}

/// `gantry up` in a namespace of its own. Arguments: the binary.
pub fn gantry(args: &[&str]) -> Result<Box<dyn Work>> {
    /// Fields end in this order: first the load, then the instance.
    struct Instance {
        load: Worker,
        _cluster: Cluster,
    }
    impl Work for Instance {
        fn round(&mut self, what: &str) -> Result<Round> {
            self.load.round(what)
        }
    }
    let cluster = Cluster::start(*args.first().context("a binary")?, &[])?;
    let mut command = cluster.inside(std::env::current_exe()?);
    command.args(["bench-worker", "gantry-load", &cluster.pid().to_string()]);
    Ok(Box::new(Instance { load: Worker::start(command)?, _cluster: cluster }))
}

/// Clients of the API, inside the instance's namespace. Arguments: the server's process id.
pub fn gantry_load(args: &[&str]) -> Result<Box<dyn Work>> {
    let pid = args.first().context("a process id")?.parse()?;
    let tokio = tokio()?;
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    for _ in 0..CLIENTS {
        let client = tokio.block_on(connect())?;
        let reader = client.clone();
        puts.push(operation(move |n| {
            let client = client.clone();
            async move {
                let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"x": "x".repeat(VALUE_BYTES)},
                    "metadata": {"name": format!("c{n}"), "namespace": "default"}});
                client.create(&gvr::CONFIG_MAPS, body).await?;
                Ok(())
            }
        }));
        gets.push(operation(move |n| {
            let client = reader.clone();
            async move {
                client.get(&gvr::CONFIG_MAPS, &ObjectKey::new("default", format!("c{n}").as_str())).await?;
                Ok(())
            }
        }));
    }
    Ok(Box::new(Loaded { tokio, puts, gets, pid, next: 0, _server: None }.seeded()?))
}
