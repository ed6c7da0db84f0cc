//! Two servers over one etcd: what one acknowledged, the other one shows at once.
//!
//! Where etcd is not installed the test says so and passes.

use crate::harness::PATIENCE;
use apiserver::{Api, ApiConfig};
use auth::{Identity, SYSTEM_MASTERS};
use client::{ApiClient, DeleteOptions, ListOptions, ObjectKey, WatchOptions};
use futures_util::StreamExt;
use k8s_schema::gvr::CONFIG_MAPS;
use serde_json::json;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use store::{Endpoint, Etcd, EtcdOptions, Expect, Store, StoreError, Txn, TxnOp};

const ROUNDS: u64 = 150;

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).unwrap();
    }
}

fn start(folder: &std::path::Path) -> Option<(Running, Endpoint)> {
    // Below the ports that the kernel gives to connections.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 12_010 + u16::try_from(std::process::id() % 997).unwrap() * 20;
    let ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed) % 800);
    let mut ports = ports.filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let (client, peer) = (ports.next()?, format!("http://127.0.0.1:{}", ports.next()?));
    let url = format!("http://127.0.0.1:{client}");
    let mut command = Command::new("etcd");
    command.arg("--data-dir").arg(folder).args(["--name", "t", "--logger", "zap"]);
    command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--initial-cluster", &format!("t={peer}")]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    Some((Running(child), Endpoint { host: "127.0.0.1".into(), port: client }))
}

async fn connect(options: EtcdOptions) -> Arc<Etcd> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Etcd::connect(options.clone()).await {
            Ok(etcd) => return Arc::new(etcd),
            Err(StoreError::Unavailable(_)) if Instant::now() < deadline => {}
            Err(other) => panic!("{other}"),
        }
    }
}

async fn server(endpoint: &Endpoint) -> ApiClient {
    let store = connect(EtcdOptions::new(vec![endpoint.clone()])).await;
    let api = Api::open(ApiConfig::new("main", store)).await.unwrap();
    api.client(Identity::new("admin", [SYSTEM_MASTERS]))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_server_acknowledged_the_other_shows() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_etcd, endpoint)) = start(folder.path()) else {
        eprintln!("SKIPPED: etcd is not installed (Debian: apt-get install etcd-server)");
        return;
    };
    let servers = [server(&endpoint).await, server(&endpoint).await];
    // Somebody else's writes raise etcd's revision and say nothing to our watches.
    let other =
        connect(EtcdOptions { prefix: "/other".into(), ..EtcdOptions::new(vec![endpoint.clone()]) }).await;
    let everything = ListOptions { namespace: Some("default".into()), ..ListOptions::default() };
    for round in 0..ROUNDS {
        let (writer, reader) = (&servers[round as usize % 2], &servers[1 - round as usize % 2]);
        let key = ObjectKey::new("default", format!("c{round}"));
        let body = json!({"metadata": {"name": key.name, "namespace": "default"}, "data": {"n": "1"}});
        writer.create(&CONFIG_MAPS, body).await.unwrap();
        let seen = reader.get(&CONFIG_MAPS, &key).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
        if round % 3 == 0 {
            let op = TxnOp::Put(format!("{round}").into());
            other.txn(Txn { key: "/x".into(), expect: Expect::Any, op }).await.unwrap();
        }
        // From what the reader saw, the writer goes on.
        let patched = reader.merge_patch(&CONFIG_MAPS, &key, json!({"data": {"n": "2"}})).await.unwrap();
        assert!(patched.revision > seen.revision);
        let list = writer.list(&CONFIG_MAPS, &everything).await.unwrap();
        let found = list.items.iter().find(|object| object.key == key).unwrap();
        assert_eq!(found.revision, patched.revision);
        writer.delete(&CONFIG_MAPS, &key, DeleteOptions::default()).await.unwrap();
        let gone = reader.get(&CONFIG_MAPS, &key).await.unwrap_err();
        assert_eq!(gone.code, 404, "round {round}: {gone}");
        // A revision from one server is good at the other, also where it is not of an object.
        let options = WatchOptions { list: everything.clone(), after: Some(list.revision) };
        let mut watch = reader.watch(&CONFIG_MAPS, &options).await.unwrap();
        let event = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        assert_eq!((event.kind, &event.object.key), (client::EventKind::Deleted, &key));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_etcd_fails_reads_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let Some((etcd, endpoint)) = start(folder.path()) else { return };
    let server = server(&endpoint).await;
    drop(etcd);
    let start = Instant::now();
    let reads = (0..20).map(|_| async {
        let key = ObjectKey::new("", "default");
        server.get(&k8s_schema::gvr::NAMESPACES, &key).await.unwrap_err()
    });
    for error in futures_util::future::join_all(reads).await {
        assert_eq!((error.code, error.reason), (503, "ServiceUnavailable"), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(40), "they waited for one another: {:?}", start.elapsed());
}
