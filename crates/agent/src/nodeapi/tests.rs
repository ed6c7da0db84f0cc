//! The whole server over real TLS, with real processes behind it: what kubectl's SPDY and WebSocket clients do.

mod kubectl;

use super::spdy::client::Client as Spdy;
use super::ws::frame::encode_masked;
use super::*;
use async_trait::async_trait;
use machinery::status::ApiError;
use machinery::zpages;
use parking_lot::Mutex;
use runtime::api::ExecSpec;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Stdio;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio_rustls::client::TlsStream;

/// Runs commands on this machine; everything that a real backend can say, it can say.
#[derive(Default)]
struct Fake {
    sizes: Arc<Mutex<Vec<(u16, u16)>>>,
    ended: Arc<Mutex<Vec<String>>>,
    log: PathBuf,
}

struct Told(Arc<Mutex<Vec<String>>>, String);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.lock().push(self.1.clone());
    }
}

#[async_trait]
impl NodeBackend for Fake {
    async fn check(&self, target: &Target) -> Result<(), ApiError> {
        match target.pod.as_str() {
            "gone" => Err(ApiError::new(404, "NotFound", "pod does not exist")),
            _ => Ok(()),
        }
    }

    async fn exec(&self, target: &Target, spec: ExecSpec) -> Result<Session, ApiError> {
        let told = Told(self.ended.clone(), target.container.clone());
        let mut child = Command::new(&spec.args[0])
            .args(&spec.args[1..])
            .stdin(if spec.stdin { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|_| {
                ApiError::bad_request(format!("exec: \"{}\": executable file not found", spec.args[0]))
            })?;
        let sizes = self.sizes.clone();
        Ok(Session {
            stdin: child.stdin.take().map(|io| Box::new(io) as Input),
            stdout: child.stdout.take().filter(|_| spec.stdout).map(|io| Box::new(io) as Output),
            stderr: child.stderr.take().filter(|_| spec.stderr).map(|io| Box::new(io) as Output),
            resize: spec.tty.then(|| {
                Box::new(move |width, height| sizes.lock().push((width, height)))
                    as Box<dyn Fn(u16, u16) + Send + Sync>
            }),
            ends_with_input: false,
            done: Box::pin(async move {
                let _told = told;
                Ok(child.wait().await.unwrap().code().unwrap())
            }),
        })
    }

    async fn attach(&self, target: &Target, spec: AttachSpec) -> Result<Session, ApiError> {
        let AttachSpec { stdin, stdout, stderr, tty } = spec;
        let open = target.container == "open";
        let script = if open { "echo attached; cat; sleep 600" } else { "echo attached; cat" };
        let args = ["sh", "-c", script].map(String::from).to_vec();
        let session = self.exec(target, ExecSpec { args, tty, stdin, stdout, stderr }).await?;
        Ok(Session { ends_with_input: open, ..session })
    }

    async fn logs(&self, _: &Target, previous: bool) -> Result<LogSource, ApiError> {
        if previous {
            return Err(ApiError::bad_request("previous terminated container \"c\" in pod \"p\" not found"));
        }
        Ok(LogSource { path: self.log.clone(), running: watch::channel(false).1 })
    }

    async fn port_forward(&self, _: &Target, port: u16) -> Result<Box<dyn Duplex>, ApiError> {
        match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(socket) => Ok(Box::new(socket)),
            Err(error) => Err(ApiError::internal(error)),
        }
    }

    async fn pods(&self) -> Value {
        json!({"kind": "PodList", "items": []})
    }

    fn running_pods(&self) -> Value {
        Value::Null
    }
    fn config(&self) -> Value {
        Value::Null
    }
    fn page(&self, path: &str) -> Option<zpages::Page> {
        (path == "flagz").then(|| zpages::flags("kubelet", &Default::default()))
    }
    async fn stats_summary(&self) -> Value {
        json!({"node": {"nodeName": "n"}})
    }

    async fn metrics(&self, _: Metrics) -> String {
        "up 1\n".into()
    }
}

struct Bench {
    address: std::net::SocketAddr,
    connector: tokio_rustls::TlsConnector,
    anonymous: tokio_rustls::TlsConnector,
    fake: Arc<Fake>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

fn key(pair: &rcgen::KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()))
}

impl Bench {
    async fn new(log: PathBuf) -> Bench {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pair = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["localhost".into()])
            .unwrap()
            .self_signed(&pair)
            .unwrap()
            .der()
            .clone();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let roots = Arc::new(roots);
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
                .allow_unauthenticated()
                .build()
                .unwrap();
        let server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.clone()], key(&pair))
            .unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let anonymous = client.clone().with_no_client_auth();
        let known = client.with_client_auth_cert(vec![certificate.clone()], key(&pair)).unwrap();
        let fake = Arc::new(Fake { log, ..Default::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let authorize: Authorize = Arc::new(move |seen| *seen == certificate);
        let api = NodeApi { tls: Arc::new(server), authorize, reviews: None, backend: fake.clone() };
        tokio::spawn(api.serve(listener, async move { drop(stopped.await) }));
        let (connector, anonymous) = (Arc::new(known).into(), Arc::new(anonymous).into());
        Bench { address, connector, anonymous, fake, _stop: stop }
    }

    async fn plain() -> Bench {
        Bench::new(PathBuf::new()).await
    }

    async fn send(&self, connector: &tokio_rustls::TlsConnector, head: &str) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = connector.connect(name, socket).await.unwrap();
        tls.write_all(format!("{head}Host: localhost\r\n\r\n").as_bytes()).await.unwrap();
        tls
    }

    /// Status line, headers and body of a request that is not upgraded.
    async fn get(&self, path: &str) -> String {
        let head = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
        let mut tls = self.send(&self.connector, &head).await;
        let mut text = Vec::new();
        let _ = tls.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    }

    async fn upgrade(&self, path: &str, headers: &str) -> (String, TlsStream<TcpStream>) {
        // Logs are only got; all else takes both methods, and kubectl posts.
        let method = if path.starts_with("/containerLogs") { "GET" } else { "POST" };
        let head = format!("{method} {path} HTTP/1.1\r\nConnection: Upgrade\r\n{headers}");
        let mut tls = self.send(&self.connector, &head).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(tls.read_u8().await.unwrap());
        }
        (String::from_utf8(answer).unwrap(), tls)
    }

    async fn spdy(&self, path: &str, version: &str) -> Spdy<TlsStream<TcpStream>> {
        let headers = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {version}\r\n");
        let (answer, tls) = self.upgrade(path, &headers).await;
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        assert!(answer.to_lowercase().contains(&format!("x-stream-protocol-version: {version}")), "{answer}");
        Spdy::new(tls)
    }

    async fn websocket(&self, path: &str, protocol: &str) -> WebSocket {
        let headers = format!(
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n"
        );
        let (answer, io) = self.upgrade(path, &headers).await;
        assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        WebSocket { io }
    }
}

struct WebSocket {
    io: TlsStream<TcpStream>,
}

impl WebSocket {
    async fn send(&mut self, payload: &[u8]) {
        let mut out = Vec::new();
        encode_masked(2, true, payload, &mut out);
        self.io.write_all(&out).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// Opcode and payload of the next frame.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        let head = self.io.read_u16().await.unwrap().to_be_bytes();
        let length = match head[1] {
            126 => u64::from(self.io.read_u16().await.unwrap()),
            127 => self.io.read_u64().await.unwrap(),
            short => u64::from(short),
        };
        let mut payload = vec![0; length as usize];
        self.io.read_exact(&mut payload).await.unwrap();
        (head[0] & 0x0f, payload)
    }

    /// All messages until the close, joined by channel.
    async fn all(&mut self) -> [Vec<u8>; 4] {
        let mut channels: [Vec<u8>; 4] = Default::default();
        loop {
            match self.next().await {
                (2, payload) => channels[usize::from(payload[0])].extend(&payload[1..]),
                (8, payload) => {
                    assert_eq!(payload, 1000u16.to_be_bytes());
                    return channels;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), work).await.expect("in time")
}

async fn wait_for(condition: impl Fn() -> bool) {
    in_time(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

const KIND: &str = "streamType";

#[tokio::test]
async fn kubectl_exec_by_spdy() {
    let bench = Bench::plain().await;
    let command = "command=sh&command=-c&command=cat%3Becho+err+%3E%262%3Bexit+3";
    let mut client =
        bench.spdy(&format!("/exec/ns/p/c?{command}&input=1&output=1&error=1"), "v4.channel.k8s.io").await;
    in_time(async {
        let error = client.open(&[(KIND, "error")]).await;
        let stdin = client.open(&[(KIND, "stdin")]).await;
        let stdout = client.open(&[(KIND, "stdout")]).await;
        let stderr = client.open(&[(KIND, "stderr")]).await;
        client.ping(7).await;
        let big: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        // A reader beside the writer, as kubectl has: output flows while input does.
        for piece in big.chunks(100_000) {
            client.send(stdin, piece, false).await;
            let had = client.data.get(&stdout).map_or(0, Vec::len);
            client.until(|c| c.data.get(&stdout).map_or(0, Vec::len) > had).await;
        }
        client.send(stdin, b"", true).await;
        client.until(|c| c.has(&format!("end {error}"))).await;
        assert!(client.has("pong 7"));
        assert!(client.data[&stdout] == big, "stdout is what went in");
        assert_eq!(client.text(stderr), "err\n");
        let status: Value = serde_json::from_str(&client.text(error)).unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0]["message"], "3");
        let end = |id: u32| client.events.iter().position(|e| *e == format!("end {id}")).unwrap();
        assert!(end(stdout) < end(error) && end(stderr) < end(error), "the status comes last");
        client.until(|c| c.has("goaway")).await;
        client.until(|c| c.has("eof")).await;
    })
    .await;
}

#[tokio::test]
async fn terminals_and_other_dialects() {
    let bench = Bench::plain().await;
    in_time(async {
        let path = "/attach/ns/p/uid-1/c?input=1&output=1&tty=1";
        let mut client = bench.spdy(path, "v3.channel.k8s.io").await;
        let error = client.open(&[(KIND, "error")]).await;
        let stdin = client.open(&[(KIND, "stdin")]).await;
        let stdout = client.open(&[(KIND, "stdout")]).await;
        let odd = client.open(&[(KIND, "sideways")]).await;
        assert!(client.has(&format!("reset {odd}")));
        let resize = client.open(&[(KIND, "resize")]).await;
        client.send(resize, br#"{"Width":80,"Height":24}{"Width":1"#, false).await;
        client.send(resize, br#"00,"Height":50}"#, false).await;
        wait_for(|| *bench.fake.sizes.lock() == [(80, 24), (100, 50)]).await;
        client.send(stdin, b"typed", true).await;
        client.until(|c| c.has(&format!("end {error}"))).await;
        assert_eq!((client.text(stdout).as_str(), client.text(error).as_str()), ("attached\ntyped", ""));

        let mut client = bench.spdy("/exec/ns/p/c?command=no-such-thing&output=1", "v2.channel.k8s.io").await;
        let error = client.open(&[(KIND, "error")]).await;
        client.open(&[(KIND, "stdout")]).await;
        client.until(|c| c.has(&format!("end {error}"))).await;
        assert!(client.text(error).contains("executable file not found"), "{}", client.text(error));
    })
    .await;
}

#[tokio::test]
async fn exec_by_websocket() {
    let bench = Bench::plain().await;
    let path = "/exec/ns/p/c?command=cat&stdin=true&stdout=true&stderr=true";
    in_time(async {
        let mut v5 = bench.websocket(path, "v5.channel.k8s.io").await;
        assert_eq!(v5.next().await, (2, vec![1]), "the first message says that the connection stands");
        v5.send(b"\0hello ").await;
        v5.send(b"\0world").await;
        v5.send(&[255, 0]).await;
        let [_, stdout, stderr, error] = v5.all().await;
        assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"hello world"[..], &b""[..]));
        assert_eq!(error, br#"{"metadata":{},"status":"Success"}"#);

        let path = "/exec/ns/p/c?command=head&command=-c5&stdin=true&stdout=true";
        let mut old = bench.websocket(path, "base64.channel.k8s.io").await;
        assert_eq!(old.next().await, (1, b"1".to_vec()));
        let mut out = Vec::new();
        encode_masked(1, true, b"0aGVsbG8gd29ybGQ=", &mut out);
        old.io.write_all(&out).await.unwrap();
        assert_eq!(old.next().await, (1, b"1aGVsbG8=".to_vec()));
        assert_eq!(old.next().await.0, 8);
    })
    .await;
}

#[tokio::test]
async fn logs_by_websocket() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("0.log");
    std::fs::write(&log, "2026-01-01T00:00:00.000000000Z stdout F hello\n").unwrap();
    let bench = Bench::new(log).await;
    in_time(async {
        let path = "/containerLogs/ns/p/c";
        for (protocol, message) in
            [("binary.k8s.io", (2, &b"hello\n"[..])), ("base64.binary.k8s.io", (1, b"aGVsbG8K"))]
        {
            let mut client = bench.websocket(path, protocol).await;
            let (opcode, payload) = client.next().await;
            assert_eq!((opcode, payload.as_slice()), message);
            assert_eq!(client.next().await.0, 8, "and the end is told");
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_session() {
    let bench = Bench::plain().await;
    for (name, command) in [("silent", "sleep&command=1000"), ("loud", "yes"), ("deaf", "sleep&command=1001")]
    {
        let path = format!("/exec/ns/p/{name}?command={command}&input=1&output=1");
        let mut client = bench.spdy(&path, "v4.channel.k8s.io").await;
        client.open(&[(KIND, "error")]).await;
        let stdin = client.open(&[(KIND, "stdin")]).await;
        client.open(&[(KIND, "stdout")]).await;
        if name == "deaf" {
            client.send(stdin, &vec![0; 200_000], false).await;
        }
        drop(client);
        wait_for(|| bench.fake.ended.lock().iter().any(|ended| ended == name)).await;
    }
}

#[tokio::test]
async fn output_held_open_by_a_child_does_not_hang() {
    let bench = Bench::plain().await;
    let path = "/exec/ns/p/c?command=sh&command=-c&command=sleep+1003+%26+echo+$!&output=1";
    let mut client = bench.spdy(path, "v4.channel.k8s.io").await;
    let error = client.open(&[(KIND, "error")]).await;
    let stdout = client.open(&[(KIND, "stdout")]).await;
    in_time(client.until(|c| c.has(&format!("end {error}")))).await;
    let child = client.text(stdout).trim().parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
}

/// A server that answers each connection with what it got, in capitals, once the client is done.
async fn shouting() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut text = String::new();
                socket.read_to_string(&mut text).await.unwrap();
                socket.write_all(text.to_uppercase().as_bytes()).await.unwrap();
            });
        }
    });
    port
}

async fn forward_some<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    mut client: Spdy<T>,
    port: u16,
) {
    let text = port.to_string();
    for id in ["0", "1", "2"] {
        let headers = |kind| [(KIND, kind), ("port", text.as_str()), ("requestID", id)];
        let error = client.open(&headers("error")).await;
        client.send(error, b"", true).await;
        let data = client.open(&headers("data")).await;
        client.send(data, format!("hello {id}").as_bytes(), true).await;
        client.until(|c| c.has(&format!("end {data}")) && c.has(&format!("end {error}"))).await;
        assert_eq!((client.text(data), client.text(error)), (format!("HELLO {id}"), String::new()));
    }
    // Port 1 of this machine: nobody listens.
    let headers = |kind| [(KIND, kind), ("port", "1"), ("requestID", "9")];
    let error = client.open(&headers("error")).await;
    let data = client.open(&headers("data")).await;
    client.until(|c| c.has(&format!("end {data}"))).await;
    assert!(
        client.text(error).starts_with("error forwarding port 1 to pod p, uid "),
        "{}",
        client.text(error)
    );
    let bad = client.open(&[(KIND, "data"), ("port", "0"), ("requestID", "10")]).await;
    assert!(client.has(&format!("reset {bad}")));
}

#[tokio::test]
async fn port_forward_in_three_ways() {
    let (bench, port) = (Bench::plain().await, shouting().await);
    in_time(async {
        forward_some(bench.spdy("/portForward/ns/p", "portforward.k8s.io").await, port).await;
        let WebSocket { io } = bench.websocket("/portForward/ns/p", "SPDY/3.1+portforward.k8s.io").await;
        forward_some(Spdy::new(tunnelled(io)), port).await;
        let mut plain = bench.websocket(&format!("/portForward/ns/p?port={port}"), "v4.channel.k8s.io").await;
        let greeting = port.to_le_bytes();
        assert_eq!(plain.next().await, (2, vec![0, greeting[0], greeting[1]]));
        assert_eq!(plain.next().await, (2, vec![1, greeting[0], greeting[1]]));
        plain.send(b"\0x").await;
    })
    .await;
    assert!(bench.get("/portForward/ns/p").await.contains("400"));
}

/// The client's end of a tunnel: bytes in, masked frames out, and the reverse.
fn tunnelled(io: TlsStream<TcpStream>) -> tokio::io::DuplexStream {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (mut read, mut write) = tokio::io::split(io);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    tokio::spawn(async move {
        let mut buffer = [0; 1000];
        while let Ok(n) = far_read.read(&mut buffer).await
            && n > 0
        {
            let mut out = Vec::new();
            encode_masked(2, true, &buffer[..n], &mut out);
            write.write_all(&out).await.unwrap();
            write.flush().await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok(head) = read.read_u16().await {
            let length = match head & 0xff {
                126 => u64::from(read.read_u16().await.unwrap()),
                127 => read.read_u64().await.unwrap(),
                short => u64::from(short),
            };
            let mut payload = vec![0; length as usize];
            read.read_exact(&mut payload).await.unwrap();
            if head >> 8 == 0x82 && far_write.write_all(&payload).await.is_err() {
                return;
            }
        }
    });
    near
}

#[tokio::test]
async fn plain_requests_and_refusals() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("0.log");
    std::fs::write(&log, "2026-01-01T00:00:00.000000000Z stdout F hello\n").unwrap();
    let bench = Bench::new(log).await;
    for (path, status, body) in [
        ("/healthz", "200", "ok"),
        ("/pods", "200", r#"{"items":[],"kind":"PodList"}"#),
        ("/stats/summary", "200", "nodeName"),
        ("/metrics", "200", "up 1"),
        ("/containerLogs/ns/p/c?timestamps=true", "200", "2026-01-01T00:00:00.000000000Z hello"),
        ("/containerLogs/ns/p/c?previous=true", "400", "previous terminated container"),
        ("/containerLogs/ns/p/c?tailLines=-3", "400", "tailLines"),
        ("/exec/ns/p/c?command=x", "400", "at least 1 of stdin, stdout, stderr"),
        ("/exec/ns/p/c?output=1", "400", "at least 1 command"),
        ("/exec/ns/p/c?output=1&command=x", "400", "missing upgrade headers"),
        ("/exec/ns/gone/c?output=1&command=x", "404", "pod does not exist"),
        ("/run/ns/p/c?cmd=x", "405", ""),
        ("/checkpoint/ns/p/c", "405", ""),
        ("/configz", "200", "kubeletconfig"),
        ("/flagz", "200", "\nkubelet flagz\n"),
        ("/statusz", "404", "404 page not found"),
        ("/logs/", "200", "<pre>"),
        ("/logs/../etc/passwd", "404", ""),
        ("/nothing", "404", "404 page not found"),
    ] {
        let answer = bench.get(path).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(body),
            "{path}: {answer}"
        );
    }
    let ask = "POST /run/ns/p/c?cmd=echo+hi HTTP/1.1\r\nConnection: close\r\n";
    let mut tls = bench.send(&bench.connector, ask).await;
    let mut text = Vec::new();
    let _ = tls.read_to_end(&mut text).await;
    assert!(String::from_utf8_lossy(&text).contains("hi\n"));
    let mut tls = bench.send(&bench.anonymous, "GET /pods HTTP/1.1\r\nConnection: close\r\n").await;
    let mut text = Vec::new();
    let _ = tls.read_to_end(&mut text).await;
    assert!(text.starts_with(b"HTTP/1.1 401"));
}

#[tokio::test]
async fn protocol_errors_end_the_connection_only() {
    let bench = Bench::plain().await;
    let path = "/exec/ns/p/c?command=sleep&command=1002&output=1";
    let headers = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        &[0x80, 3, 0, 1, 0, 0, 0, 2, 9, 9],
    ] {
        let (_, mut tls) = bench.upgrade(path, headers).await;
        tls.write_all(garbage).await.unwrap();
        if garbage[0] == b'G' {
            // Read as data for a stream that is not there, of a length that never comes: nothing to answer.
            drop(tls);
            continue;
        }
        let mut rest = Vec::new();
        let _ = in_time(tls.read_to_end(&mut rest)).await;
    }
    assert!(bench.get("/healthz").await.contains("ok"));
}
