//! The HTTPS client for webhooks: a client configuration and a document in, the answered document out.
//!
//! Invariants: no redirect is followed and no credential is sent (attack 20); an address of this link only (where
//! clouds keep their metadata) is never dialled; a call ends by its deadline; connections are kept for the next call,
//! a few a target. Errors are sentences in upstream's words, for the caller to put into its own.
//! Deliberately not here: what is asked (admission reviews, conversion reviews).

use crate::Api;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use k8s_schema::gvr;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// The largest answer that is read: a list of converted objects is the largest that is of use.
const ANSWER_MAX: usize = 64 << 20;
/// Connections kept for one target.
const IDLE_MAX: usize = 16;
/// How long an unused connection is kept.
const IDLE_TIME: Duration = Duration::from_secs(90);
/// Trust bundles kept parsed; beyond it they are all parsed anew.
const BUNDLES_MAX: usize = 256;
/// How much of a refusal's text goes into the error.
const TEXT_MAX: usize = 1 << 10;

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// Connections and trust, shared by all calls of a server.
#[derive(Default)]
pub struct Connections {
    idle: Mutex<BTreeMap<Line, Vec<(Instant, Sender)>>>,
    trust: Mutex<BTreeMap<String, Arc<ClientConfig>>>,
}

/// What a connection is for: address, name in the certificate, trust.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    address: IpAddr,
    port: u16,
    name: String,
    bundle: String,
}

/// A client configuration, read.
#[derive(Debug, PartialEq)]
struct Target {
    /// `host:port` as URLs show it.
    authority: String,
    /// The host in the certificate.
    name: String,
    path: String,
    place: Place,
}

#[derive(Debug, PartialEq)]
enum Place {
    Host(String, u16),
    Service { namespace: String, name: String, port: u16 },
}

impl Target {
    fn read(config: &Value) -> Result<Target, String> {
        let text = |at: &str| config.pointer(at).and_then(Value::as_str).unwrap_or_default();
        if config["service"].is_object() {
            let (namespace, name) =
                (text("/service/namespace").to_string(), text("/service/name").to_string());
            let port = config["service"]["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443);
            let host = format!("{name}.{namespace}.svc");
            return Ok(Target {
                authority: format!("{host}:{port}"),
                name: host,
                path: rooted(text("/service/path")),
                place: Place::Service { namespace, name, port },
            });
        }
        let url = text("/url");
        if url.is_empty() {
            return Err("webhook configuration must have either service or URL".into());
        }
        let uri: Uri = url.parse().map_err(|e| format!("Unparsable URL: {e}"))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_string();
        if uri.scheme_str() != Some("https") || host.is_empty() {
            return Err(format!("Unparsable URL: {url} is no https URL"));
        }
        let port = uri.port_u16().unwrap_or(443);
        let authority = uri.authority().map_or_else(|| host.clone(), ToString::to_string);
        Ok(Target { authority, place: place(&host, port), name: host, path: rooted(uri.path()) })
    }
}

/// A name of a service in this cluster is looked up here: this process does not use the cluster's DNS.
fn place(host: &str, port: u16) -> Place {
    let parts: Vec<&str> = host.trim_end_matches('.').split('.').collect();
    match parts.as_slice() {
        [name, namespace, "svc"] | [name, namespace, "svc", "cluster", "local"] => {
            Place::Service { namespace: (*namespace).into(), name: (*name).into(), port }
        }
        _ => Place::Host(host.into(), port),
    }
}

fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.into() } else { format!("/{path}") }
}

fn url_of(target: &Target, timeout: Duration) -> String {
    format!("https://{}{}?timeout={}s", target.authority, target.path, timeout.as_secs())
}

/// Addresses that nobody has a webhook at: of this link only, none, or many.
pub(crate) fn is_barred(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast(),
    }
}

impl Api {
    /// Posts a document to a webhook and reads its answer. `config` is a `clientConfig`
    /// (`url` or `service`, `caBundle`); the error is a sentence.
    pub(crate) async fn ask_webhook(
        &self,
        config: &Value,
        document: &Value,
        timeout: Duration,
    ) -> Result<Value, String> {
        let target = Target::read(config)?;
        let bundle = config["caBundle"].as_str().unwrap_or_default();
        let body = Bytes::from(serde_json::to_vec(document).map_err(|e| e.to_string())?);
        let url = url_of(&target, timeout);
        let asked = async {
            let tls = self.webhooks.connections.trusted(bundle)?;
            let lines = self.lines(&target, bundle).await?;
            self.webhooks.connections.exchange(&lines, &tls, || request(&target, timeout, &body)).await
        };
        let posted = |why: &str| format!("Post {url:?}: {why}");
        let (status, answer) = match tokio::time::timeout(timeout, asked).await {
            Err(_) => return Err(posted("context deadline exceeded")),
            Ok(Err(why)) => return Err(posted(&why)),
            Ok(Ok(answer)) => answer,
        };
        read_answer(status, &answer)
    }

    /// Where a target can be dialled, best first.
    async fn lines(&self, target: &Target, bundle: &str) -> Result<Vec<Line>, String> {
        let line = |address: IpAddr, port: u16| Line {
            address,
            port,
            name: target.name.clone(),
            bundle: bundle.to_string(),
        };
        let (host, port) = match &target.place {
            Place::Host(host, port) => (host.clone(), *port),
            Place::Service { namespace, name, port } => match self.endpoints(namespace, name, *port)? {
                Backends::Pods(mut all) => {
                    let first = usize::try_from((self.config.random)() % all.len() as u128).unwrap_or(0);
                    all.rotate_left(first);
                    return Ok(all.into_iter().map(|(address, port)| line(address, port)).collect());
                }
                Backends::Elsewhere(host) => (host, *port),
            },
        };
        let known: Vec<IpAddr> = match (host.parse(), &self.config.resolver) {
            (Ok(ip), _) => vec![ip],
            (Err(_), _) if host == "localhost" => vec![IpAddr::from([127, 0, 0, 1])],
            (Err(_), Some(resolver)) => resolver.resolve(&host).await?,
            (Err(_), None) => Vec::new(),
        };
        let allowed: Vec<Line> =
            known.iter().filter(|ip| !is_barred(**ip)).map(|ip| line(*ip, port)).collect();
        match (allowed.is_empty(), known.first()) {
            (false, _) => Ok(allowed),
            (true, Some(ip)) => {
                Err(format!("dial tcp {ip}:{port}: webhooks at such addresses are not called"))
            }
            (true, None) => Err(format!("dial tcp: lookup {host}: no such host")),
        }
    }

    /// The pods behind a service's port.
    pub(crate) fn endpoints(&self, namespace: &str, name: &str, port: u16) -> Result<Backends, String> {
        let object = |gvr: &k8s_schema::Gvr| self.cached(gvr, namespace, name).and_then(|o| o.value().ok());
        let service = object(&gvr::SERVICES).ok_or_else(|| format!("service {name:?} not found"))?;
        if service["spec"]["type"] == "ExternalName" {
            return Ok(Backends::Elsewhere(
                service["spec"]["externalName"].as_str().unwrap_or_default().into(),
            ));
        }
        let ports = service["spec"]["ports"].as_array();
        let wanted = ports.into_iter().flatten().find(|p| p["port"].as_u64() == Some(port.into()));
        let wanted = wanted.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
        let wanted = wanted["name"].as_str().unwrap_or_default();
        let endpoints = object(&gvr::ENDPOINTS).unwrap_or_default();
        let found = backends(&endpoints, wanted);
        if found.is_empty() {
            return Err(format!("no endpoints available for service {name:?}"));
        }
        Ok(Backends::Pods(found))
    }
}

pub(crate) enum Backends {
    Pods(Vec<(IpAddr, u16)>),
    Elsewhere(String),
}

/// The ready addresses of a named port.
fn backends(endpoints: &Value, port_name: &str) -> Vec<(IpAddr, u16)> {
    let mut found = Vec::new();
    for subset in endpoints["subsets"].as_array().into_iter().flatten() {
        let ports = subset["ports"].as_array();
        let named = |p: &&Value| p["name"].as_str().unwrap_or_default() == port_name;
        let port = ports.into_iter().flatten().find(named).and_then(|p| p["port"].as_u64());
        let Some(port) = port.and_then(|p| u16::try_from(p).ok()) else { continue };
        let addresses = subset["addresses"].as_array().into_iter().flatten();
        let parsed = addresses.filter_map(|a| a["ip"].as_str()?.parse().ok());
        found.extend(parsed.filter(|ip| !is_barred(*ip)).map(|ip| (ip, port)));
    }
    found
}

fn request(target: &Target, timeout: Duration, body: &Bytes) -> Result<Request<Full<Bytes>>, String> {
    Request::post(format!("{}?timeout={}s", target.path, timeout.as_secs()))
        .header(header::HOST, &target.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json, */*")
        .header(
            header::USER_AGENT,
            concat!("kube-apiserver-admission (gantry ", env!("CARGO_PKG_VERSION"), ")"),
        )
        .body(Full::new(body.clone()))
        .map_err(|e| e.to_string())
}

/// A document, or what went wrong in client-go's words.
fn read_answer(status: StatusCode, body: &[u8]) -> Result<Value, String> {
    let text = String::from_utf8_lossy(&body[..body.len().min(TEXT_MAX)]).trim().to_string();
    match status.as_u16() {
        200..=206 => serde_json::from_slice(body)
            .map_err(|e| format!("couldn't get version/kind; json parse error: {e}")),
        404 => Err("the server could not find the requested resource".into()),
        403 => Err("forbidden: unknown".into()),
        500.. => Err(format!("an error on the server ({text:?}) has prevented the request from succeeding")),
        code => Err(format!(
            "the server responded with the status code {code} but did not return more information"
        )),
    }
}

impl Connections {
    /// The TLS configuration for a base64 bundle ("" for the machine's own trust).
    fn trusted(&self, bundle: &str) -> Result<Arc<ClientConfig>, String> {
        if let Some(known) = self.trust.lock().get(bundle) {
            return Ok(known.clone());
        }
        let pem = BASE64_STANDARD.decode(bundle).map_err(|e| format!("the CA bundle is no base64: {e}"))?;
        let made = auth::trusting_client_config(&String::from_utf8_lossy(&pem)).map_err(|e| e.to_string())?;
        let mut trust = self.trust.lock();
        if trust.len() >= BUNDLES_MAX {
            trust.clear();
        }
        trust.insert(bundle.to_string(), made.clone());
        Ok(made)
    }

    /// Sends a request by a kept connection or a new one, to the first line that takes it.
    async fn exchange(
        &self,
        lines: &[Line],
        tls: &Arc<ClientConfig>,
        request: impl Fn() -> Result<Request<Full<Bytes>>, String>,
    ) -> Result<(StatusCode, Bytes), String> {
        for line in lines {
            while let Some(mut sender) = self.take(line) {
                // A kept connection may have been closed by the other side: the next one, or a new one, will do.
                if sender.ready().await.is_ok()
                    && let Ok(answer) = self.send(line, sender, request()?).await
                {
                    return Ok(answer);
                }
            }
        }
        let mut why = "no address".to_string();
        for line in lines {
            match connect(line, tls).await {
                Ok(sender) => return self.send(line, sender, request()?).await,
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    async fn send(
        &self,
        line: &Line,
        mut sender: Sender,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), String> {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|e| format!("reading the answer: {e}"))?.to_bytes();
        self.keep(line, sender);
        Ok((status, body))
    }

    fn take(&self, line: &Line) -> Option<Sender> {
        self.idle.lock().get_mut(line)?.pop().map(|(_, sender)| sender)
    }

    fn keep(&self, line: &Line, sender: Sender) {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        idle.retain(|_, kept| {
            kept.retain(|(since, sender)| now.duration_since(*since) < IDLE_TIME && !sender.is_closed());
            !kept.is_empty()
        });
        let kept = idle.entry(line.clone()).or_default();
        if kept.len() < IDLE_MAX && !sender.is_closed() {
            kept.push((now, sender));
        }
    }
}

async fn connect(line: &Line, tls: &Arc<ClientConfig>) -> Result<Sender, String> {
    let (address, port) = (line.address, line.port);
    let failed = |e: std::io::Error| format!("dial tcp {address}:{port}: {e}");
    let stream = TcpStream::connect((address, port)).await.map_err(failed)?;
    // A review is one small request: it must not wait for more.
    stream.set_nodelay(true).map_err(failed)?;
    let name = ServerName::try_from(line.name.clone()).map_err(|e| e.to_string())?;
    let stream = TlsConnector::from(tls.clone()).connect(name, stream).await;
    let stream = stream.map_err(|e| format!("tls: failed to verify certificate: {e}"))?;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a webhook's connection ended");
        }
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configurations_are_read() {
        let service = json!({"service": {"namespace": "n", "name": "s", "path": "a/b"}});
        let read = Target::read(&service).unwrap();
        assert_eq!(url_of(&read, Duration::from_secs(7)), "https://s.n.svc:443/a/b?timeout=7s");
        let url = Target::read(&json!({"url": "https://s.n.svc:8443/x"})).unwrap();
        assert_eq!(url.place, Place::Service { namespace: "n".into(), name: "s".into(), port: 8443 });
        let url = Target::read(&json!({"url": "https://[::1]/x"})).unwrap();
        assert_eq!((url.place, url.path.as_str()), (Place::Host("::1".into(), 443), "/x"));
        for bad in [json!({}), json!({"url": "http://a/b"}), json!({"url": "https:///b"})] {
            assert!(Target::read(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_of_one_link_are_barred() {
        for ip in ["169.254.169.254", "fe80::1", "0.0.0.0", "::ffff:169.254.1.1", "224.0.0.1"] {
            assert!(is_barred(ip.parse().unwrap()), "{ip}");
        }
        assert!(!is_barred("10.0.0.1".parse().unwrap()));
        let endpoints = json!({"subsets": [{"addresses": [{"ip": "10.1.0.1"}, {"ip": "169.254.169.254"}],
            "ports": [{"name": "x", "port": 1}, {"name": "y", "port": 2}]}]});
        assert_eq!(backends(&endpoints, "y"), [("10.1.0.1".parse().unwrap(), 2)]);
    }

    #[test]
    fn only_documents_are_answers() {
        assert_eq!(read_answer(StatusCode::OK, b"{}"), Ok(json!({})));
        for code in [301, 302, 307, 400, 404, 500] {
            assert!(read_answer(StatusCode::from_u16(code).unwrap(), b"{}").is_err(), "{code}");
        }
        assert!(read_answer(StatusCode::OK, b"<html>").is_err());
    }
}
