//! An endpoint on the loopback with all services over a real API server, a clock of its own, and a small signing client.

use apiserver::{Api, ApiConfig};
use auth::sigv4::{compact, hex};
use auth::{AccessKeys, Identity, ServiceTokens};
use aws_server::service::Shared;
use aws_server::{Aws, AwsConfig, services};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use k8s_schema::gvr::NAMESPACES;
use ring::{digest, hmac};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// 2026-11-20T12:00:00Z.
pub const NOW: i64 = 1_795_176_000;
pub const ACCOUNT: &str = "123456789012";

pub struct World {
    pub address: SocketAddr,
    pub client: client::ApiClient,
    pub tokens: Arc<ServiceTokens>,
    pub now: Arc<AtomicU64>,
    pub aws: Arc<Aws>,
    connection: tokio::sync::Mutex<SendRequest<Full<Bytes>>>,
    api: Arc<Api>,
    _stop: watch::Sender<bool>,
    _folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.api.close();
    }
}

/// Whose key signs, when, for what.
#[derive(Clone, Debug)]
pub struct Signing {
    pub key: String,
    pub secret: String,
    pub token: Option<String>,
    pub service: &'static str,
    /// Seconds since 1970.
    pub at: i64,
}

impl Signing {
    /// By the configured key, now.
    pub fn of(service: &'static str) -> Signing {
        Signing { key: "testing".into(), secret: "testing".into(), token: None, service, at: NOW }
    }
}

/// A request before it is signed.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub target: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Ask {
    pub fn json(target: &str, body: &str) -> Ask {
        let headers = vec![
            ("x-amz-target", target.to_string()),
            ("content-type", "application/x-amz-json-1.1".to_string()),
        ];
        Ask { method: "POST", target: "/".into(), headers, body: body.into() }
    }

    pub fn form(body: &str) -> Ask {
        let headers = vec![("content-type", "application/x-www-form-urlencoded".to_string())];
        Ask { method: "POST", target: "/".into(), headers, body: body.into() }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

pub async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let objects =
        store::Embedded::open(&folder.path().join("store"), store::EmbeddedOptions::default()).unwrap();
    let api = Api::open(ApiConfig::new("main", Arc::new(objects))).await.unwrap();
    let client = api.client(Identity::new("system:gantry-aws", ["system:masters", "system:authenticated"]));
    for name in ["aws", "ecs"] {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        client.create(&NAMESPACES, body).await.unwrap();
    }
    let shared = Shared {
        client: client.clone(),
        account: ACCOUNT.into(),
        region: "us-east-1".into(),
        zones: vec!["us-east-1a".into()],
    };
    let keys = Arc::new(AccessKeys::load_or_create(folder.path(), ACCOUNT, "testing:testing").unwrap());
    let tokens = Arc::new(ServiceTokens::load_or_create(folder.path(), "https://issuer").unwrap());
    let depot = image::Depot::open(folder.path().join("registry"), image::Limits::default()).unwrap();
    let parts = services::Parts {
        shared: shared.clone(),
        keys: keys.clone(),
        tokens: Some(tokens.clone()),
        registry: Some(services::Registry { depot, host: "localhost:5000".into() }),
    };
    let now = Arc::new(AtomicU64::new(NOW as u64 * 1_000));
    let clock = now.clone();
    let aws = Aws::new(AwsConfig {
        s3: None,
        services: services::all(&parts),
        keys,
        shared,
        upgrades: Vec::new(),
        clock: Arc::new(move || clock.load(Ordering::Relaxed)),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(aws.clone().serve(listener, stopped));
    let connection = tokio::sync::Mutex::new(connect(address).await);
    World { address, client, tokens, now, aws, connection, api, _stop: stop, _folder: folder }
}

async fn connect(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

impl World {
    /// Sends as it is.
    pub async fn send(&self, ask: &Ask) -> Answer {
        let mut request =
            http::Request::builder().method(ask.method).uri(&ask.target).header("host", "aws.test");
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(Bytes::from(ask.body.clone()))).unwrap();
        let mut connection = self.connection.lock().await;
        if connection.ready().await.is_err() {
            *connection = connect(self.address).await;
        }
        let (parts, body) = connection.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// Signs and sends.
    pub async fn ask(&self, signing: &Signing, ask: &Ask) -> Answer {
        self.send(&signed(signing, ask)).await
    }

    /// A query call by the configured key.
    pub async fn query(&self, service: &'static str, form: &str) -> Answer {
        self.ask(&Signing::of(service), &Ask::form(form)).await
    }
}

/// The request with its `Authorization`.
pub fn signed(signing: &Signing, ask: &Ask) -> Ask {
    let mut ask = ask.clone();
    ask.headers.push(("x-amz-date", compact(signing.at)));
    ask.headers.extend(signing.token.clone().map(|token| ("x-amz-security-token", token)));
    let payload = match ask.headers.iter().find(|(n, _)| *n == "x-amz-content-sha256") {
        Some((_, said)) => said.clone(),
        None => hash(&ask.body),
    };
    let mut headers = ask.headers.clone();
    headers.push(("host", "aws.test".into()));
    headers.sort();
    let names: Vec<&str> = headers.iter().map(|(n, _)| *n).collect();
    let names = names.join(";");
    let (path, query) = ask.target.split_once('?').unwrap_or((&ask.target, ""));
    // Paths of these tests hold nothing that encoding would change, apart from percent signs.
    let lines: String = headers.iter().map(|(n, v)| format!("{n}:{v}\n")).collect();
    let path = path.replace('%', "%25");
    let canonical = format!("{}\n{path}\n{query}\n{lines}\n{names}\n{payload}", ask.method);
    let scope = scope(signing);
    let signature = sign(signing, &canonical);
    ask.headers.push((
        "authorization",
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            signing.key
        ),
    ));
    ask
}

/// A presigned GET of a query that is sorted already.
pub fn presigned(signing: &Signing, query: &str, expires: i64) -> Ask {
    let credential = format!("{}/{}", signing.key, scope(signing)).replace('/', "%2F");
    let query = format!(
        "{query}&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date={}&X-Amz-Expires={expires}\
         &X-Amz-SignedHeaders=host",
        compact(signing.at)
    );
    let canonical = format!("GET\n/\n{query}\nhost:aws.test\n\nhost\n{}", hash(b""));
    let target = format!("/?{query}&X-Amz-Signature={}", sign(signing, &canonical));
    Ask { method: "GET", target, headers: Vec::new(), body: Vec::new() }
}

fn scope(signing: &Signing) -> String {
    format!("{}/us-east-1/{}/aws4_request", &compact(signing.at)[..8], signing.service)
}

fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn sign(signing: &Signing, canonical: &str) -> String {
    let (at, scope) = (compact(signing.at), scope(signing));
    let text = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{}", hash(canonical.as_bytes()));
    let mac = |key: &[u8], text: &str| {
        hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
    };
    let start = format!("AWS4{}", signing.secret).into_bytes();
    let key = scope.split('/').fold(start, |key, part| mac(&key, part));
    hex(&mac(&key, &text))
}
