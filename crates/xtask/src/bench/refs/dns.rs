//! Name queries over UDP: our server and dnsmasq, each a process on loopback that knows 1,000 service names.
//!
//! CoreDNS, what clusters run, is not in Debian 12; dnsmasq is the light end of what there is.

use super::worker::{Round, Server, Serving, Work, Worker, free_port, installed, local};
use crate::bench::cpu_seconds;
use ::dns::{Metrics, ServiceKind, ServiceRecord, Zone};
use anyhow::{Context, Result, ensure};
use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

const SERVICES: usize = 1_000;
/// Queries a round.
const QUERIES: usize = 50_000;
/// Loopback loses nothing unless a queue overflows; such a round fails.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Queries sent while a server may still be starting.
const TRIES: usize = 200;

fn address(n: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + 256 + n as u32)
}

fn query(n: usize) -> Vec<u8> {
    // Recursion desired, one question.
    let mut message = vec![(n >> 8) as u8, n as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [&format!("svc-{n}"), "default", "svc", "cluster", "local"] {
        message.push(label.len() as u8);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    message
}

/// Does this answer the query of its id, with that name's address at its end?
fn answered(reply: &[u8]) -> bool {
    let [high, low, _, code, _, _, 0, 1, ..] = *reply else { return false };
    let n = usize::from(high) << 8 | usize::from(low);
    code & 15 == 0 && reply.windows(4).any(|w| w == address(n).octets())
}

struct Load<S> {
    socket: UdpSocket,
    queries: Vec<Vec<u8>>,
    pid: u32,
    _server: S,
}

impl<S> Load<S> {
    fn new(port: u16, pid: u32, server: S) -> Result<Load<S>> {
        let socket = UdpSocket::bind(local(0))?;
        socket.connect(local(port))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let load = Load { socket, queries: (0..SERVICES).map(query).collect(), pid, _server: server };
        let mut buffer = [0; 512];
        let ready = (0..TRIES).any(|_| {
            let got = load.socket.send(&load.queries[0]).and_then(|_| load.socket.recv(&mut buffer));
            // Nobody listens yet: the error comes at once.
            if got.is_err() {
                std::thread::sleep(Duration::from_millis(20));
            }
            got.is_ok_and(|len| answered(&buffer[..len]))
        });
        ensure!(ready, "the server does not answer");
        load.socket.set_read_timeout(Some(ANSWER_MAX))?;
        Ok(load)
    }
}

impl<S> Work for Load<S> {
    fn round(&mut self, what: &str) -> Result<Round> {
        let batch: usize = what.rsplit(' ').next().context("query BATCH")?.parse()?;
        let (mut n, mut buffer) = (0, [0; 512]);
        let pid = self.pid;
        Round::repeat(
            QUERIES / batch,
            batch,
            || cpu_seconds(pid),
            || {
                let begin = Instant::now();
                for _ in 0..batch {
                    self.socket.send(&self.queries[n % SERVICES])?;
                    n += 1;
                }
                for _ in 0..batch {
                    let len = self.socket.recv(&mut buffer).context("an answer did not come")?;
                    ensure!(answered(&buffer[..len]), "a wrong answer: {:x?}", &buffer[..len]);
                }
                Ok(begin.elapsed())
            },
        )
    }
}

/// Our server, in a process of its own.
pub fn ours(_args: &[&str]) -> Result<Box<dyn Work>> {
    let port = free_port()?;
    let server = Worker::of("serve-dns", &[&port.to_string()])?;
    Ok(Box::new(Load::new(port, server.pid(), server)?))
}

/// That process. Arguments: the port.
pub fn serve(args: &[&str]) -> Result<Box<dyn Work>> {
    let port: u16 = args.first().context("a port")?.parse()?;
    let service = |n| ServiceRecord {
        namespace: "default".into(),
        name: format!("svc-{n}"),
        kind: ServiceKind::ClusterIp(address(n)),
        ports: vec![],
    };
    let services: Vec<ServiceRecord> = (0..SERVICES).map(service).collect();
    let zone = Zone::new("cluster.local", Ipv4Addr::new(10, 96, 0, 10), &services);
    let (keep, zones) = watch::channel(Arc::new(zone));
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let binds = [local(port)];
    let server = tokio.block_on(::dns::Server::start(&binds, zones, vec![], Arc::new(Metrics::default())))?;
    Ok(Box::new(Serving((server, keep, tokio))))
}

/// dnsmasq with the same names from a hosts file, forwarding nothing.
pub fn dnsmasq(_args: &[&str]) -> Result<Box<dyn Work>> {
    let program = installed("/usr/sbin/dnsmasq", "dnsmasq-base")?;
    let port = free_port()?;
    let server = Server::start(|folder| {
        let hosts = folder.join("hosts");
        let mut text = String::new();
        for n in 0..SERVICES {
            writeln!(text, "{} svc-{n}.default.svc.cluster.local", address(n))?;
        }
        fs::write(&hosts, text)?;
        let mut command = Command::new(program);
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
        ]);
        command.args(["--listen-address=127.0.0.1", "--bind-interfaces", "--local=/cluster.local/"]);
        command.args([&format!("--port={port}"), &format!("--addn-hosts={}", hosts.display())]);
        command.arg(format!("--pid-file={}", folder.join("pid").display()));
        Ok(command)
    })?;
    Ok(Box::new(Load::new(port, server.pid(), server)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_must_hold_the_address_of_its_name() {
        let mut reply = query(300);
        (reply[3], reply[7]) = (0x80, 1);
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
        let other = [&reply[..], &address(301).octets()].concat();
        reply.extend_from_slice(&address(300).octets());
        assert!(answered(&reply));
        assert!(!answered(&other) && !answered(&query(300)));
    }
}
