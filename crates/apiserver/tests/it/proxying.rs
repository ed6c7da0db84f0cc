//! Logs, exec and proxies against a small agent: paths, bodies, upgrades spliced, refusals passed on.

use crate::harness::*;
use apiserver::{Duplex, NodeDialer};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An agent that answers with what it was asked, and echoes what comes over an upgraded stream.
struct Agent;

#[async_trait]
impl NodeDialer for Agent {
    async fn dial(&self, node: &str) -> std::io::Result<Box<dyn Duplex>> {
        if node != "n1" {
            return Err(std::io::Error::other("no such node"));
        }
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(theirs), service_fn(agent))
                .with_upgrades();
            let _ = connection.await;
        });
        Ok(Box::new(ours))
    }
}

async fn agent(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let uri = request.uri().to_string();
    assert!(request.headers().get("authorization").is_none());
    if uri == "/page" {
        assert!(request.headers()["x-forwarded-uri"].to_str().unwrap().ends_with("/proxy/page"));
        let page = Full::new("<a href=\"/x\">".into());
        return Ok(Response::builder().header("content-type", "text/html").body(page).unwrap());
    }
    if let Some((_, port)) = uri.split_once("redirect") {
        let port: String = port.chars().take_while(char::is_ascii_digit).collect();
        let there = format!("http://127.0.0.1:{port}/");
        return Ok(Response::builder().status(302).header("location", there).body(Full::default()).unwrap());
    }
    if !uri.starts_with("/exec/") || uri.contains("refuse") {
        let code = if uri.contains("refuse") { 403 } else { 200 };
        return Ok(Response::builder().status(code).body(Full::new(uri.into())).unwrap());
    }
    let protocol = request.headers()["x-stream-protocol-version"].clone();
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgraded.await.unwrap());
        io.write_all(uri.as_bytes()).await.unwrap();
        let mut buffer = [0; 64];
        while let Ok(n) = io.read(&mut buffer).await
            && n > 0
        {
            io.write_all(&buffer[..n]).await.unwrap();
        }
    });
    let answer =
        Response::builder().status(101).header("connection", "Upgrade").header("upgrade", "SPDY/3.1");
    Ok(answer.header("x-stream-protocol-version", protocol).body(Full::default()).unwrap())
}

async fn server_with_pod() -> Server {
    let s = server_with(|c| c.nodes = Some(Arc::new(Agent))).await;
    s.post(PODS, &pod("p")).await.expect(201);
    let message = s.get(&format!("{PODS}/p/log")).await.fails(400, "BadRequest");
    assert_eq!(message, "pod p does not have a host assigned");
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    s.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    s
}

#[tokio::test]
async fn logs_and_node_paths_go_to_the_agent() {
    let s = server_with_pod().await;
    let reply = s.get(&format!("{PODS}/p/log?container=c&tailLines=5&follow=true")).await;
    assert_eq!(String::from_utf8_lossy(&reply.body), "/containerLogs/default/p/c?tailLines=5&follow=true");
    let reply = s.get("/api/v1/nodes/n1/proxy/metrics/cadvisor?x=1").await;
    assert_eq!(String::from_utf8_lossy(&reply.body), "/metrics/cadvisor?x=1");
    s.get("/api/v1/nodes/n2/proxy/").await.fails(503, "ServiceUnavailable");
    s.get(&format!("{PODS}/p/log?container=none")).await.fails(400, "BadRequest");
    s.get(&format!("{PODS}/none/log")).await.fails(404, "NotFound");
}

async fn exec(s: &Server, query: &str) -> http::Response<Incoming> {
    let request = Request::builder()
        .method("POST")
        .uri(format!("{PODS}/p/exec?{query}"))
        .header("host", "api")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", "v4.channel.k8s.io")
        .body(Full::<Bytes>::default())
        .unwrap();
    s.send(request).await
}

#[tokio::test]
async fn exec_is_spliced_both_ways() {
    let s = server_with_pod().await;
    let mut response = exec(&s, "command=sh&stdin=true&stdout=true&tty=true").await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "SPDY/3.1");
    assert_eq!(response.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
    let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let want = "/exec/default/p/c?command=sh&input=1&output=1&tty=1";
    let mut buffer = vec![0; want.len()];
    tokio::time::timeout(PATIENCE, io.read_exact(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer), want);
    io.write_all(b"hello").await.unwrap();
    let mut buffer = [0; 5];
    tokio::time::timeout(PATIENCE, io.read_exact(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer, b"hello");
}

#[tokio::test]
async fn a_refused_upgrade_is_only_an_answer() {
    let s = server_with_pod().await;
    let response = exec(&s, "command=refuse&stdout=true").await;
    assert_eq!(response.status(), 403);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "/exec/default/p/c?command=refuse&output=1");
}

/// CVE-2018-1002105: a connection whose upgrade the agent refused is the API server's again, not a tunnel to the agent.
#[tokio::test]
async fn a_refused_upgrade_leaves_no_tunnel() {
    let s = server_with_pod().await;
    let dev = s.with_identity(auth::Identity::new("dev", ["system:authenticated"]));
    let role = json!({"metadata": {"name": "exec"}, "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]}]});
    let binding = json!({"metadata": {"name": "exec"}, "roleRef": {"kind": "ClusterRole", "name": "exec",
        "apiGroup": "rbac.authorization.k8s.io"}, "subjects": [{"kind": "User", "name": "dev", "apiGroup": "rbac.authorization.k8s.io"}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    s.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
    s.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    let mut line = dev.connect().await;
    let upgrade = |uri: String| {
        Request::post(uri)
            .header("host", "api")
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .header("x-stream-protocol-version", "v4.channel.k8s.io")
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    let refused =
        line.send_request(upgrade(format!("{PODS}/p/exec?command=refuse&stdout=true"))).await.unwrap();
    assert_eq!(refused.status(), 403);
    refused.into_body().collect().await.unwrap();
    // The agent would answer this with what it was asked; the API server has no such path.
    let again = Request::get("/runningpods/").header("host", "api").body(Full::default()).unwrap();
    if let Ok(answer) = line.send_request(again).await {
        assert_ne!(answer.status(), 200);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("\"kind\":\"Status\""), "{body:?}");
    }
}

/// CVE-2020-8559: where an agent sends its caller, nobody goes.
#[tokio::test]
async fn no_redirect_of_an_agent_is_followed() {
    use futures_util::FutureExt;
    let s = server_with_pod().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let response = exec(&s, &format!("command=redirect{port}&stdout=true")).await;
    assert!(response.status() == 302 || response.status().is_server_error(), "{}", response.status());
    let reply = s.get(&format!("/api/v1/nodes/n1/proxy/redirect{port}")).await;
    assert_ne!(reply.code, 200);
    s.get(&format!("{PODS}/p/log?container=c&sinceTime=redirect{port}")).await;
    assert!(listener.accept().now_or_never().is_none(), "somebody came");
}

/// The agent again, over TLS with a certificate that nobody knows.
async fn tls_server() -> u16 {
    let folder = tempfile::tempdir().unwrap();
    let now = std::time::SystemTime::now();
    let ca = auth::Ca::load_or_create(folder.path(), now).unwrap();
    let issued = ca.issue_server("nobody", &["nobody".to_string()], &[], now).unwrap();
    let config = auth::server_config(&issued, ca.cert_pem(), &["http/1.1"]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = tokio_rustls::TlsAcceptor::from(config.clone()).accept(stream).await.unwrap();
            let serving = hyper::server::conn::http1::Builder::new();
            tokio::spawn(serving.serve_connection(TokioIo::new(stream), service_fn(agent)));
        }
    });
    port
}

#[tokio::test]
async fn a_pods_own_https_server_is_reached_whatever_its_certificate() {
    let s = server_with_pod().await;
    let port = tls_server().await;
    let status = json!({"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    s.patch(&format!("{PODS}/p/status"), "merge-patch", &status).await.expect(200);
    let reply = s.get(&format!("{PODS}/https:p:{port}/proxy/some/path?q=1")).await;
    assert_eq!(String::from_utf8_lossy(&reply.body), "/some/path?q=1");
    let proxy = format!("{PODS}/https:p:{port}/proxy");
    let reply = s.get(&format!("{proxy}/page")).await;
    assert_eq!(String::from_utf8_lossy(&reply.body), format!("<a href=\"{proxy}/x\">"));
    let request = Request::get(format!("{proxy}?q=1")).header("host", "api").body(Full::default()).unwrap();
    let moved = s.send(request).await;
    assert_eq!(moved.status(), 301);
    assert_eq!(moved.headers()["location"], format!("{proxy}/?q=1"));
    let why = s.get(&format!("{PODS}/ftp:p:{port}/proxy/")).await.fails(400, "BadRequest");
    assert_eq!(why, format!("invalid pod request \"ftp:p:{port}\""));
}
