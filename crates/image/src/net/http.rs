//! GET requests over HTTP/1.1, each on a connection of its own: nothing is kept between pulls.
//!
//! Invariants: connecting, waiting for an answer and every read have deadlines; a body that only drips is given up;
//! TLS verifies against the system's authorities and `/etc/docker/certs.d/<host>/*.crt`.

use super::resolve::resolve;
use super::url::Url;
use crate::spool::Pieces;
use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Offline names must not hang.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Addresses of a host that are tried.
const ADDRESSES_MAX: usize = 3;
/// TLS's handshake, and the head of an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Memory for the head of an answer.
const HEAD_BYTES: usize = 64 << 10;
/// The least that must come in each window: slower is no registry but a trap.
const WINDOW: Duration = Duration::from_secs(60);
const WINDOW_BYTES: u64 = 64 << 10;
const AUTHORITIES: &[&str] = &["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
const HOST_AUTHORITIES: &str = "/etc/docker/certs.d";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetError {
    /// No address.
    #[error("lookup {host}: {why}")]
    Resolve { host: String, why: String },
    /// No connection.
    #[error("dial {at}: {source}")]
    Connect { at: String, source: io::Error },
    /// The address is one that an answer from elsewhere may not lead to.
    #[error("{0} leads to an address of this machine or link")]
    Forbidden(String),
    /// No TLS.
    #[error("tls: {0}")]
    Tls(String),
    /// Not HTTP, or cut off.
    #[error("{0}")]
    Http(String),
    /// Too slow.
    #[error("{0}: i/o timeout")]
    Timeout(&'static str),
}

/// Makes the TLS configuration for one connection: certificates may have been renewed since the last.
pub type TlsSource = Arc<dyn Fn() -> Result<Arc<rustls::ClientConfig>, String> + Send + Sync>;

/// How long one waits, and whom one believes.
#[derive(Clone)]
pub(crate) struct Manners {
    pub(crate) connect: Duration,
    pub(crate) answer: Duration,
    pub(crate) window: Duration,
    /// Folder with further authorities: `<host>/*.crt`.
    pub(crate) authorities: Arc<Path>,
    /// Instead of the authorities: for a server that is not of the outside world.
    pub(crate) tls: Option<TlsSource>,
}

impl std::fmt::Debug for Manners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manners").field("authorities", &self.authorities).finish_non_exhaustive()
    }
}

impl Default for Manners {
    fn default() -> Self {
        let authorities = Path::new(HOST_AUTHORITIES).into();
        Manners { connect: CONNECT_MAX, answer: ANSWER_MAX, window: WINDOW, authorities, tls: None }
    }
}

/// An answer whose body is still to come.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    manners: Manners,
    window: (Instant, u64),
    /// Drives the connection; ends with the reply.
    _connection: JoinSet<()>,
}

impl Reply {
    /// A header as text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The whole body, when it has at most `max` bytes.
    pub(crate) async fn small(mut self, max: u64) -> Result<Option<Vec<u8>>, NetError> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.next().await? {
            if (bytes.len() + piece.len()) as u64 > max {
                return Ok(None);
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Some(bytes))
    }
}

impl Pieces for Reply {
    type Error = NetError;

    async fn next(&mut self) -> Result<Option<Bytes>, NetError> {
        loop {
            let frame = tokio::time::timeout(self.manners.answer, self.body.frame()).await;
            let frame = frame.map_err(|_| NetError::Timeout("reading the body"))?;
            let Some(frame) = frame else { return Ok(None) };
            let Ok(data) = frame.map_err(|e| NetError::Http(told(&e)))?.into_data() else { continue };
            self.window.1 += data.len() as u64;
            if self.window.0.elapsed() > self.manners.window {
                if self.window.1 < WINDOW_BYTES {
                    return Err(NetError::Timeout("the body only drips"));
                }
                self.window = (Instant::now(), 0);
            }
            return Ok(Some(data));
        }
    }
}

/// An error with its causes, which hyper keeps apart.
pub(super) fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where an address may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// From the operator or the image's name: anywhere.
    Named,
    /// From an answer of a remote registry: not to this machine or link (SSRF).
    Told,
}

/// The head of one request.
pub(crate) struct Ask<'a> {
    pub(crate) url: &'a Url,
    pub(crate) trust: Trust,
    pub(crate) headers: &'a [(&'a str, String)],
}

/// Sends a GET and waits for the head of the answer.
pub(crate) async fn get(ask: Ask<'_>, manners: &Manners) -> Result<Reply, NetError> {
    let stream = connect(ask.url, ask.trust, manners).await?;
    let handshake = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_BYTES.max(512 << 10))
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|e| NetError::Http(told(&e)))?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to a registry");
        }
    });
    let mut request = Request::get(ask.url.path.as_str())
        .header(HOST, ask.url.authority())
        .header(USER_AGENT, concat!("gantry/", env!("CARGO_PKG_VERSION")));
    for (name, value) in ask.headers {
        request = request.header(*name, value);
    }
    let request = request.body(Empty::new()).map_err(|e| NetError::Http(e.to_string()))?;
    let answer = tokio::time::timeout(manners.answer, sender.send_request(request)).await;
    let answer = answer.map_err(|_| NetError::Timeout("awaiting headers"))?;
    let (head, body) = answer.map_err(|e| NetError::Http(told(&e)))?.into_parts();
    let window = (Instant::now(), 0);
    Ok(Reply {
        status: head.status,
        headers: head.headers,
        body,
        manners: manners.clone(),
        window,
        _connection: tasks,
    })
}

pub(super) async fn connect(url: &Url, trust: Trust, manners: &Manners) -> Result<Box<dyn Stream>, NetError> {
    let found = tokio::time::timeout(manners.connect, resolve(&url.host)).await;
    let found = found.unwrap_or_else(|_| Err("i/o timeout".into()));
    let addresses = found.map_err(|why| NetError::Resolve { host: url.host.clone(), why })?;
    let mut failed = NetError::Resolve { host: url.host.clone(), why: "no such host".into() };
    for ip in addresses.into_iter().take(ADDRESSES_MAX) {
        if trust == Trust::Told && is_near(ip) {
            return Err(NetError::Forbidden(url.authority()));
        }
        let connected = tokio::time::timeout(manners.connect, TcpStream::connect((ip, url.port))).await;
        let connected = connected.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)));
        match connected {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return match url.tls {
                    false => Ok(Box::new(stream)),
                    true => encrypted(stream, url, manners).await,
                };
            }
            Err(source) => failed = NetError::Connect { at: format!("tcp {ip}:{}", url.port), source },
        }
    }
    Err(failed)
}

/// This machine, or what only this link has (metadata services live there).
fn is_near(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
    }
}

async fn encrypted(stream: TcpStream, url: &Url, manners: &Manners) -> Result<Box<dyn Stream>, NetError> {
    let told = |e: &dyn std::fmt::Display| NetError::Tls(e.to_string());
    let host = url.authority();
    let own = manners.authorities.join(host);
    let source = manners.tls.clone();
    let config = tokio::task::spawn_blocking(move || match source {
        Some(source) => source().map_err(NetError::Tls),
        None => tls_config(&own),
    })
    .await;
    let config = config.map_err(|e| told(&e))??;
    let name = ServerName::try_from(url.host.clone()).map_err(|e| told(&e))?;
    let connecting = tokio_rustls::TlsConnector::from(config).connect(name, stream);
    let connected = tokio::time::timeout(manners.answer, connecting).await;
    let connected = connected.map_err(|_| NetError::Timeout("TLS handshake"))?;
    Ok(Box::new(connected.map_err(|e| told(&e))?))
}

/// Read anew for each connection (2 ms): a pull is rare, and kept authorities would cost memory for ever.
fn tls_config(own: &Path) -> Result<Arc<rustls::ClientConfig>, NetError> {
    let mut roots = rustls::RootCertStore::empty();
    let mut add = |path: &Path| {
        let pem = std::fs::read(path).unwrap_or_default();
        for certificate in CertificateDer::pem_slice_iter(&pem).flatten() {
            // Some bundles hold certificates that rustls finds malformed; the others count.
            let _ = roots.add(certificate);
        }
    };
    AUTHORITIES.iter().map(Path::new).find(|path| path.exists()).into_iter().for_each(&mut add);
    let own = std::fs::read_dir(own).into_iter().flatten().flatten();
    own.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "crt")).for_each(|p| add(&p));
    if roots.is_empty() {
        return Err(NetError::Tls(
            "this machine has no certificate authorities (package ca-certificates)".into(),
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|e| NetError::Tls(e.to_string()))?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_addresses() {
        let near = |text: &str| is_near(text.parse().unwrap());
        for ip in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "::ffff:127.0.0.1"] {
            assert!(near(ip), "{ip}");
        }
        assert!(!near("10.0.0.1") && !near("2001:db8::1"));
    }
}
