//! One HTTP GET as Kubernetes probes do it: any status below 400 is a success, certificates are not checked,
//! redirects are followed on the same host only.

use http::header::{HOST, HeaderName, HeaderValue, LOCATION};
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::{Arc, LazyLock};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// As Go's client.
const REDIRECTS_MAX: usize = 10;
/// What is read of a body: upstream's limit.
const BODY_MAX: usize = 10 << 10;

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// HTTPS?
    pub tls: bool,
    /// Host.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query, beginning with `/`.
    pub path: String,
    /// Headers; `Host` overrides.
    pub headers: Vec<(String, String)>,
}

impl Get {
    /// The URL, for messages.
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("{scheme}://{host}:{}{}", self.port, self.path)
    }
}

/// A failed connect in Go's words, which people search for.
pub(super) fn dial_error(host: &str, port: u16, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_string(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_string(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_string(),
        _ => error.to_string(),
    };
    format!("dial tcp {host}:{port}: {why}")
}

/// Asks once (redirects included).
pub(super) async fn get(first: &Get) -> Result<(), String> {
    let mut get = first.clone();
    for _ in 0..=REDIRECTS_MAX {
        let (status, location) = once(&get).await.map_err(|e| format!("Get \"{}\": {e}", get.url()))?;
        if status >= 400 {
            return Err(format!("HTTP probe failed with statuscode: {status}"));
        }
        match location.filter(|_| (300..400).contains(&status)).and_then(|to| redirect(&get, &to)) {
            Some(next) => get = next,
            None => return Ok(()),
        }
    }
    Err(format!("Get \"{}\": stopped after {REDIRECTS_MAX} redirects", first.url()))
}

/// Where a redirect leads; `None` when to another host, which counts as a success.
fn redirect(from: &Get, location: &str) -> Option<Get> {
    let uri: Uri = location.parse().ok()?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_string();
    let Some(host) = uri.host() else { return Some(Get { path, ..from.clone() }) };
    if host != from.host {
        return None;
    }
    let tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    Some(Get { tls, port, path, ..from.clone() })
}

async fn once(get: &Get) -> Result<(u16, Option<String>), String> {
    let connected = TcpStream::connect((get.host.as_str(), get.port)).await;
    let stream = connected.map_err(|e| dial_error(&get.host, get.port, &e))?;
    if !get.tls {
        return ask(get, stream).await;
    }
    let name = ServerName::try_from(get.host.clone()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(TLS.clone());
    ask(get, connector.connect(name, stream).await.map_err(|e| e.to_string())?).await
}

async fn ask(
    get: &Get,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<(u16, Option<String>), String> {
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|e| e.to_string())?;
    let mut request = Request::get(get.path.as_str())
        .header(HOST, format!("{}:{}", get.host, get.port))
        .header("user-agent", "kube-probe/1.36")
        .header("accept", "*/*")
        .header("connection", "close")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|e| e.to_string())?;
    for (name, value) in &get.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            request.headers_mut().insert(name, value);
        }
    }
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).map(str::to_string);
        // The body is not looked at; reading a little lets well-behaved servers finish.
        let _ = Limited::new(response.into_body(), BODY_MAX).collect().await;
        Ok((status, location))
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut exchange => return answer,
            _ = &mut connection, if open => open = false,
        }
    }
}

/// Probes trust every certificate: they ask whether a server lives, not who it is.
static TLS: LazyLock<Arc<ClientConfig>> =
    LazyLock::new(|| auth::unchecked_client_config().expect("ring's provider has the default versions"));
