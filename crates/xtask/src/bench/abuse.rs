//! `cargo xtask bench abuse [BINARY]`: what hostile clients cost others (attack 16 of the targets), at full size.
//!
//! One user after another kind of attack; beside it, a node does what nodes do (reads itself, renews its lease) and its
//! waiting times are taken, with the server's memory. Runs inside the instance's namespace. Invariant: whatever is
//! opened here ends with this process. Deliberately not here: pass or fail; the small versions are tests
//! (`apiserver::heavy`, `apiserver/tests/it/{fairness,bad_input}.rs`).

use super::load::percentile;
use super::{cpu_seconds, kib, row};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long an attack is held once it stands.
const HOLD: Duration = Duration::from_secs(10);
/// How often the node calls.
const CALL_EVERY: Duration = Duration::from_millis(20);
/// Handshakes at once: what the attacker's half of this machine can do.
const HANDSHAKES: usize = 64;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const JSON: &str = "application/json";

/// How big an attack is.
#[derive(Clone, Copy)]
struct Size {
    slow: usize,
    /// Connections, watches on each.
    watches: (usize, usize),
    objects: usize,
    bodies: usize,
}

const FULL: Size = Size { slow: 5_000, watches: (100, 1_000), objects: 30_000, bodies: 200 };

/// Somebody who can reach the server.
#[derive(Clone)]
struct Caller {
    tls: TlsConnector,
}

type Answers = BTreeMap<String, usize>;

impl Caller {
    fn of(ca: &auth::Ca, user: &str, group: Option<&str>) -> Result<Caller> {
        let issued = ca.issue_client(user, group, SystemTime::now())?;
        Ok(Caller { tls: TlsConnector::from(auth::client_config(&issued, ca.cert_pem())?) })
    }

    async fn stream(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", 6443)).await?;
        stream.set_nodelay(true)?;
        Ok(self.tls.connect("127.0.0.1".try_into()?, stream).await?)
    }

    async fn http1(&self) -> Result<http1::SendRequest<Full<Bytes>>> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.stream().await?)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn http2(&self) -> Result<http2::SendRequest<Full<Bytes>>> {
        let io = TokioIo::new(self.stream().await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// One request on a connection of its own: the status, and how long the answer was.
    async fn once(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(u16, usize)> {
        let mut sender = self.http1().await?;
        let response = sender.send_request(request(method, path, headers, body)?).await?;
        let (code, mut length) = (response.status().as_u16(), 0);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok((code, length))
    }
}

fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> Result<http::Request<Full<Bytes>>> {
    let mut request = http::Request::builder().method(method).uri(path).header("host", "127.0.0.1");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(request.body(Full::new(body))?)
}

/// Counts what came of many.
async fn count(mut tasks: JoinSet<Result<(u16, usize)>>) -> Answers {
    let mut answers = Answers::new();
    while let Some(done) = tasks.join_next().await {
        let what = match done {
            Ok(Ok((code, _))) => code.to_string(),
            _ => "cut".to_string(),
        };
        *answers.entry(what).or_default() += 1;
    }
    answers
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<Answers>> + Send + 'a>>;
type Attack = for<'a> fn(&'a Caller, Size) -> Running<'a>;

const ATTACKS: &[(&str, Attack)] = &[
    ("nothing", |_, _| {
        Box::pin(async {
            tokio::time::sleep(HOLD).await;
            Ok(Answers::new())
        })
    }),
    ("slow clients, half a request each", |c, s| Box::pin(slow(c, s))),
    ("bodies of 3 MB", |c, s| Box::pin(bodies(c, s, JSON, big))),
    ("bodies 10,000 deep", |c, s| Box::pin(bodies(c, s, JSON, deep))),
    ("YAML alias bombs", |c, s| Box::pin(bodies(c, s, "application/yaml", yaml))),
    ("JSON patches of 10,000 operations", |c, s| Box::pin(patches(c, s))),
    ("16 lists of everything, JSON", |c, _| Box::pin(lists(c, "*/*", "identity"))),
    ("16 lists of everything, gzip", |c, _| Box::pin(lists(c, "*/*", "gzip"))),
    ("16 lists of everything, Table", |c, _| {
        Box::pin(lists(c, "application/json;as=Table;v=v1;g=meta.k8s.io", "gzip"))
    }),
    ("16 lists of everything, protobuf", |c, _| {
        Box::pin(lists(c, "application/vnd.kubernetes.protobuf", "gzip"))
    }),
    ("watches, and 20 writes they all see", |c, s| Box::pin(watches(c, s))),
];

/// Makes a client's connections a few at a time.
async fn opened<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
    how_many: usize,
    open: impl Fn(usize) -> F,
) -> (Vec<T>, usize) {
    let (mut open_now, mut failed, mut tasks) = (Vec::new(), 0, JoinSet::new());
    for n in 0..how_many {
        tasks.spawn(open(n));
        if tasks.len() >= HANDSHAKES {
            match tasks.join_next().await {
                Some(Ok(Ok(one))) => open_now.push(one),
                _ => failed += 1,
            }
        }
    }
    while let Some(done) = tasks.join_next().await {
        match done {
            Ok(Ok(one)) => open_now.push(one),
            _ => failed += 1,
        }
    }
    (open_now, failed)
}

async fn slow(caller: &Caller, size: Size) -> Result<Answers> {
    let caller = caller.clone();
    let half = |n: usize| {
        let caller = caller.clone();
        async move {
            let mut stream = caller.stream().await?;
            // Every second one never ends its headers, the others never send the body that they promise.
            let text = match n % 2 {
                0 => format!("GET {MAPS} HTTP/1.1\r\nhost: x\r\nx-slow: "),
                _ => format!(
                    "POST {MAPS} HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ncontent-length: 1000\r\n\r\n{{"
                ),
            };
            stream.write_all(text.as_bytes()).await?;
            stream.flush().await?;
            anyhow::Ok(stream)
        }
    };
    let (held, failed) = opened(size.slow, half).await;
    tokio::time::sleep(HOLD).await;
    Ok(Answers::from([("held".into(), held.len()), ("not connected".into(), failed)]))
}

fn big(n: usize) -> String {
    json!({"metadata": {"name": format!("big-{n}")}, "data": {"x": "y".repeat(3 << 20)}}).to_string()
}

fn deep(n: usize) -> String {
    format!(
        "{{\"metadata\":{{\"name\":\"deep-{n}\"}},\"data\":{}1{}}}",
        "{\"a\":".repeat(10_000),
        "}".repeat(10_000)
    )
}

fn yaml(_: usize) -> String {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 9].join(","));
    }
    bomb
}

async fn bodies(
    caller: &Caller,
    size: Size,
    kind: &'static str,
    make: fn(usize) -> String,
) -> Result<Answers> {
    let mut tasks = JoinSet::new();
    for n in 0..size.bodies {
        let caller = caller.clone();
        tasks
            .spawn(async move { caller.once("POST", MAPS, &[("content-type", kind)], make(n).into()).await });
    }
    Ok(count(tasks).await)
}

async fn patches(caller: &Caller, size: Size) -> Result<Answers> {
    let base = json!({"metadata": {"name": "patched"}, "data": {"a": "x".repeat(1_000)}}).to_string();
    caller.once("POST", MAPS, &[("content-type", JSON)], base.into()).await?;
    // Each copies all that the ones before made.
    let copies: Vec<Value> = (0..10_000)
        .map(|n| json!({"op": "copy", "from": "/data", "path": format!("/metadata/annotations/a{n}")}))
        .collect();
    let copies = Bytes::from(Value::from(copies).to_string());
    let adds: Vec<Value> =
        (0..10_000).map(|n| json!({"op": "add", "path": format!("/data/k{n}"), "value": "v"})).collect();
    let adds = Bytes::from(Value::from(adds).to_string());
    let mut tasks = JoinSet::new();
    for n in 0..size.bodies {
        let (caller, body) = (caller.clone(), if n % 2 == 0 { copies.clone() } else { adds.clone() });
        tasks.spawn(async move {
            let kind = [("content-type", "application/json-patch+json")];
            caller.once("PATCH", &format!("{MAPS}/patched"), &kind, body).await
        });
    }
    Ok(count(tasks).await)
}

async fn lists(caller: &Caller, accept: &'static str, encoding: &'static str) -> Result<Answers> {
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let caller = caller.clone();
        tasks.spawn(async move {
            let headers = [("accept", accept), ("accept-encoding", encoding)];
            caller.once("GET", "/api/v1/configmaps", &headers, Bytes::new()).await
        });
    }
    Ok(count(tasks).await)
}

async fn watches(caller: &Caller, size: Size) -> Result<Answers> {
    let (connections, each) = size.watches;
    let path = format!("{MAPS}?watch=1&resourceVersion={}&timeoutSeconds=600", newest(caller).await?);
    let mut answers = Answers::new();
    let mut standing = Vec::new();
    for _ in 0..connections {
        let mut sender = caller.http2().await?;
        let mut tasks = JoinSet::new();
        for _ in 0..each {
            sender.ready().await?;
            let answer = sender.send_request(request("GET", &path, &[], Bytes::new())?);
            tasks.spawn(async move { anyhow::Ok(answer.await?) });
        }
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok(Ok(response)) if response.status() == 200 => standing.push(response.into_body()),
                Ok(Ok(response)) => *answers.entry(response.status().as_str().to_string()).or_default() += 1,
                _ => *answers.entry("cut".into()).or_default() += 1,
            }
        }
    }
    answers.insert("standing".into(), standing.len());
    for n in 0..20 {
        let body = json!({"metadata": {"name": format!("seen-{n}")}, "data": {"a": "b"}}).to_string();
        caller.once("POST", MAPS, &[("content-type", JSON)], body.into()).await?;
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for mut body in standing {
        tasks.spawn(async move {
            let mut seen = 0;
            while seen < 20 {
                let Some(Ok(frame)) = body.frame().await else { break };
                seen += frame.data_ref().map_or(0, |d| d.iter().filter(|b| **b == b'\n').count());
            }
            (seen, body)
        });
    }
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        let (seen, body) = done?;
        *answers.entry(if seen >= 20 { "saw all" } else { "cut" }.into()).or_default() += 1;
        all.push(body);
    }
    answers.insert("ms until all had seen all".into(), started.elapsed().as_millis() as usize);
    tokio::time::sleep(HOLD).await;
    Ok(answers)
}

async fn newest(caller: &Caller) -> Result<String> {
    let mut sender = caller.http1().await?;
    let response =
        sender.send_request(request("GET", &format!("{MAPS}?limit=1"), &[], Bytes::new())?).await?;
    let list: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
    Ok(list["metadata"]["resourceVersion"].as_str().context("a list has a revision")?.to_string())
}

/// What a node does while others misbehave: its waiting times in milliseconds, and the most memory seen (MiB).
async fn node_life(node: Caller, pid: u32, stop: Arc<AtomicBool>) -> Result<(Vec<f64>, f64)> {
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1";
    let mut sender = node.http1().await?;
    let (mut took, mut most) = (Vec::new(), 0.0_f64);
    while !stop.load(Ordering::Relaxed) {
        for (method, path) in [("GET", "/api/v1/nodes/node-1"), ("PATCH", lease)] {
            let renewed = json!({"metadata": {"annotations": {"n": took.len().to_string()}}}).to_string();
            let body = if method == "GET" { Bytes::new() } else { renewed.into() };
            let started = Instant::now();
            let kind = [("content-type", "application/merge-patch+json")];
            let response = sender.send_request(request(method, path, &kind, body)?).await?;
            let code = response.status();
            response.into_body().collect().await?;
            ensure!(code.is_success(), "{method} {path}: {code}");
            took.push(started.elapsed().as_secs_f64() * 1e3);
        }
        most = most.max(rss(pid));
        tokio::time::sleep(CALL_EVERY).await;
    }
    Ok((took, most))
}

fn rss(pid: u32) -> f64 {
    kib(&format!("/proc/{pid}/status"), "VmRSS") as f64 / 1024.0
}

/// All attacks in turn, or those with this in their names.
pub async fn run(pid: u32, only: &str) -> Result<()> {
    let kubeconfig = std::env::var("KUBECONFIG")?;
    let folder = Path::new(&kubeconfig).parent().context("a kubeconfig lies in a folder")?.join("pki");
    let ca = auth::Ca::load_or_create(&folder, SystemTime::now())?;
    let admin = Caller::of(&ca, "admin", Some("system:masters"))?;
    let node = Caller::of(&ca, "system:node:node-1", Some("system:nodes"))?;
    let attacker = Caller::of(&ca, "mallory", None)?;
    let size = FULL;
    let may = json!({"metadata": {"name": "mallory"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "mallory"}]});
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    admin.once("POST", bindings, &[("content-type", JSON)], may.to_string().into()).await?;
    filled(&admin, size.objects).await?;
    println!(
        "{:<38} {:>8} {:>8} {:>9} {:>9} {:>8}  came of it",
        "attack", "p50 ms", "p99 ms", "max ms", "RSS MiB", "CPU s"
    );
    for (name, attack) in ATTACKS.iter().filter(|(name, _)| name.contains(only)) {
        let stop = Arc::new(AtomicBool::new(false));
        let life = tokio::spawn(node_life(node.clone(), pid, stop.clone()));
        let cpu = cpu_seconds(pid)?;
        let outcome = attack(&attacker, size).await;
        stop.store(true, Ordering::Relaxed);
        let cpu = cpu_seconds(pid)? - cpu;
        let (mut took, most) = life.await??;
        took.sort_by(f64::total_cmp);
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|p| percentile(&took, p));
        let outcome = outcome.map_or_else(|e| e.to_string(), |o| format!("{o:?}"));
        println!("{name:<38} {p50:>8.1} {p99:>8.1} {max:>9.1} {most:>9.0} {cpu:>8.1}  {outcome}");
    }
    tokio::time::sleep(HOLD).await;
    row("afterwards", &format!("{:.0} MiB RSS", rss(pid)), "-");
    Ok(())
}

/// ConfigMaps of 1 KiB.
async fn filled(admin: &Caller, objects: usize) -> Result<()> {
    let payload = "x".repeat(1_024);
    let mut workers = JoinSet::new();
    for worker in 0..32 {
        let (admin, payload) = (admin.clone(), payload.clone());
        workers.spawn(async move {
            let mut sender = admin.http1().await?;
            for n in (worker..objects).step_by(32) {
                let body = json!({"metadata": {"name": format!("m{n}")}, "data": {"x": payload}}).to_string();
                let response = sender
                    .send_request(request("POST", MAPS, &[("content-type", JSON)], body.into())?)
                    .await?;
                ensure!(response.status() == 201, "create: {}", response.status());
                response.into_body().collect().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done??;
    }
    Ok(())
}
