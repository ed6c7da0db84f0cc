//! An etcd of three members that speak TLS: the leader is killed, strangers are refused.
//!
//! Where etcd is not installed the tests say so and pass.

use crate::etcd::{CALL, Load, answers, connect, free_port};
use crate::tools::{DEADLINE, put};
use auth::Ca;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use store::{Endpoint, Etcd, EtcdOptions, Expect, Store, StoreError};

const MEMBERS: usize = 3;

/// The members, of which each may be dead.
struct Members {
    folder: tempfile::TempDir,
    ca: Ca,
    ports: Vec<u16>,
    peers: Vec<u16>,
    /// Where a member tells how it is, without TLS.
    metrics: Vec<u16>,
    children: Vec<Option<Child>>,
}

impl Members {
    /// `None`, with a message, where etcd is not installed.
    fn start() -> Option<Members> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: etcd is not installed (Debian: apt-get install etcd-server)");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(folder.path(), SystemTime::now()).unwrap();
        let server = ca.issue_server("etcd", &[], &[Ipv4Addr::LOCALHOST.into()], SystemTime::now()).unwrap();
        std::fs::write(folder.path().join("cert"), &server.cert_pem).unwrap();
        std::fs::write(folder.path().join("key"), &server.key_pem).unwrap();
        let ports = || (0..MEMBERS).map(|_| free_port()).collect();
        let children = (0..MEMBERS).map(|_| None).collect();
        let mut members = Members { folder, ca, ports: ports(), peers: ports(), metrics: ports(), children };
        (0..MEMBERS).for_each(|member| members.up(member));
        Some(members)
    }

    fn up(&mut self, member: usize) {
        let url = |scheme: &str, port: u16| format!("{scheme}://127.0.0.1:{port}");
        let (client, peer) = (url("https", self.ports[member]), url("http", self.peers[member]));
        let cluster: Vec<String> =
            self.peers.iter().enumerate().map(|(n, port)| format!("m{n}={}", url("http", *port))).collect();
        let file = |name: &str| self.folder.path().join(name);
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(file(&format!("data{member}"))).args(["--logger", "zap", "--name"]);
        command.arg(format!("m{member}")).args(["--initial-cluster", &cluster.join(",")]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--listen-metrics-urls", &url("http", self.metrics[member])]);
        command.args(["--heartbeat-interval", "50", "--election-timeout", "500", "--client-cert-auth"]);
        command.arg("--cert-file").arg(file("cert")).arg("--key-file").arg(file("key"));
        command.arg("--trusted-ca-file").arg(file("ca.crt"));
        self.children[member] = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    fn kill9(&mut self, member: usize) {
        if let Some(mut child) = self.children[member].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Options with a client certificate that the members trust.
    fn options(&self) -> EtcdOptions {
        self.options_of(&self.ca, self.ca.cert_pem())
    }

    fn options_of(&self, ca: &Ca, trusted: &str) -> EtcdOptions {
        let client = ca.issue_client("gantry", None, SystemTime::now()).unwrap();
        let endpoint = |port: &u16| Endpoint { host: "127.0.0.1".into(), port: *port };
        EtcdOptions {
            tls: Some(auth::client_config(&client, trusted).unwrap()),
            dial_max: CALL,
            call_max: CALL,
            compact_every: None,
            ..EtcdOptions::new(self.ports.iter().map(endpoint).collect())
        }
    }

    /// Waits until a living member says that it leads.
    async fn leader(&self) -> usize {
        let deadline = Instant::now() + DEADLINE;
        loop {
            for member in (0..MEMBERS).filter(|member| self.children[*member].is_some()) {
                if leads(self.metrics[member]).await {
                    return member;
                }
            }
            assert!(Instant::now() < deadline, "nobody leads");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        (0..MEMBERS).for_each(|member| self.kill9(member));
    }
}

async fn leads(port: u16) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text.contains("\netcd_server_is_leader 1"))
    };
    tokio::time::timeout(CALL, ask).await.ok().flatten().unwrap_or(false)
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_leaders_loses_nothing_that_was_acknowledged() {
    let Some(mut members) = Members::start() else { return };
    let etcd = Arc::new(connect(members.options()).await);
    let load = Load::start(&etcd).await;
    for _ in 0..3 {
        load.goes_on().await;
        let leader = members.leader().await;
        members.kill9(leader);
        // Two of three go on without it.
        let next = members.leader().await;
        assert_ne!(next, leader);
        load.goes_on().await;
        members.up(leader);
    }
    let acked = load.end().await;
    assert!(acked > 100, "{acked} writes, {:?}", etcd.stats());

    // One of three does not: an error in time, and nothing is made up.
    members.kill9(0);
    members.kill9(1);
    let start = Instant::now();
    let refused = etcd.revision().await.unwrap_err();
    assert!(matches!(refused, StoreError::Unavailable(_) | StoreError::UnknownOutcome(_)), "{refused}");
    assert!(start.elapsed() < DEADLINE);
    members.up(0);
    answers(&*etcd).await;
}

/// Writes, however often it takes.
async fn patiently(etcd: &Etcd, key: &str) {
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = etcd.txn(put(key, Expect::Any, "")).await {
        assert!(Instant::now() < deadline, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_refuse() {
    let Some(members) = Members::start() else { return };
    let etcd = connect(members.options()).await;
    patiently(&etcd, "/k").await;
    let other = tempfile::tempdir().unwrap();
    let other = Ca::load_or_create(other.path(), SystemTime::now()).unwrap();
    let refusals = [
        // Their authority does not know our certificate; ours does not know theirs; no TLS at all.
        (members.options_of(&other, members.ca.cert_pem()), ""),
        (members.options_of(&members.ca, other.cert_pem()), "certificate"),
        (EtcdOptions { tls: None, ..members.options() }, ""),
    ];
    for (options, words) in refusals {
        let start = Instant::now();
        let error = Etcd::connect(options).await.err().expect("a stranger is let in");
        assert!(matches!(&error, StoreError::Unavailable(text) if text.contains(words)), "{error}");
        assert!(start.elapsed() < DEADLINE);
    }
    assert_eq!(etcd.get("/k", None).await.unwrap().unwrap().value, "");
}
