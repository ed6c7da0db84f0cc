//! Calls to servers that the operator named: audit webhook, token and access reviews, OpenID providers.
//!
//! An [`Endpoint`] comes from a kubeconfig or a URL. A connection a call: callers batch or remember answers. No
//! redirect is followed; a call ends by its deadline. Errors are sentences.
//! Deliberately not here: webhooks that API objects name (`webhooks`), which nobody trusts as far.

use crate::config::NameResolver;
use auth::Issued;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The largest answer that is read.
const ANSWER_MAX: usize = 4 << 20;

/// Answers that are gone when one asks again.
const PASSING: [u16; 3] = [429, 500, 504];
/// How often one asks again, and how long before the first time: half as long again each time (upstream's back-off).
const RETRIES: u32 = 4;
const RETRY: Duration = Duration::from_millis(500);

/// Why a call failed.
struct Failed {
    why: String,
    /// Is it worth asking again?
    passes: bool,
}

/// A server that the operator trusts to be called.
#[derive(Clone)]
pub struct Endpoint {
    url: Uri,
    /// PEM; "" is the machine's trust.
    ca_pem: String,
    token: String,
    shown: Option<Issued>,
    resolver: Option<Arc<dyn NameResolver>>,
    /// Is its certificate taken as it is?
    unchecked: bool,
    /// Who it must be; "": the URL's host.
    server_name: String,
    answer_max: usize,
}

/// How a server's certificate is checked, and what it is shown.
#[derive(Default)]
pub struct EndpointTls {
    /// PEM; "" is the machine's trust.
    pub ca_pem: String,
    /// Is its certificate taken as it is?
    pub unchecked: bool,
    /// Who it must be; "": the URL's host.
    pub server_name: String,
    /// A certificate for it, with its key.
    pub shown: Option<Issued>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({})", self.url)
    }
}

/// Inline data, or a file beside the kubeconfig.
fn material(folder: &Path, of: &Value, field: &str) -> Result<String, String> {
    if let Some(data) = of[format!("{field}-data")].as_str() {
        let bytes = BASE64_STANDARD.decode(data).map_err(|e| format!("{field}-data: {e}"))?;
        return String::from_utf8(bytes).map_err(|e| format!("{field}-data: {e}"));
    }
    match of[field].as_str() {
        None | Some("") => Ok(String::new()),
        Some(path) => {
            let path = folder.join(path);
            std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))
        }
    }
}

fn named<'a>(config: &'a Value, list: &str, name: &Value, field: &str) -> &'a Value {
    let all = config[list].as_array().into_iter().flatten();
    all.into_iter().find(|e| e["name"] == *name).map_or(&Value::Null, |e| &e[field])
}

impl Endpoint {
    /// A server by its URL.
    pub fn of_url(
        url: &str,
        ca_pem: &str,
        resolver: Option<Arc<dyn NameResolver>>,
    ) -> Result<Endpoint, String> {
        let parsed: Uri = url.parse().map_err(|e| format!("{url:?}: {e}"))?;
        if !matches!(parsed.scheme_str(), Some("https" | "http")) || parsed.host().is_none() {
            return Err(format!("{url:?} is no URL of a server"));
        }
        Ok(Endpoint {
            url: parsed,
            ca_pem: ca_pem.to_string(),
            token: String::new(),
            shown: None,
            resolver,
            unchecked: false,
            server_name: String::new(),
            answer_max: ANSWER_MAX,
        })
    }

    /// The same, spoken to in a way of its own; answers may be this long.
    pub fn speaking(self, tls: EndpointTls, answer_max: usize) -> Endpoint {
        let EndpointTls { ca_pem, unchecked, server_name, shown } = tls;
        Endpoint { ca_pem, unchecked, server_name, shown, answer_max, ..self }
    }

    /// The same, shown this token; "" is none.
    pub fn bearing(self, token: String) -> Endpoint {
        Endpoint { token, ..self }
    }

    /// The server of a kubeconfig's current context.
    pub fn of_kubeconfig(path: &Path, resolver: Option<Arc<dyn NameResolver>>) -> Result<Endpoint, String> {
        let text = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let config =
            machinery::body::yaml(&text).map_err(|e| format!("{}: {}", path.display(), e.message))?.value;
        let folder = path.parent().unwrap_or(Path::new("."));
        let context = named(&config, "contexts", &config["current-context"], "context");
        let cluster = match named(&config, "clusters", &context["cluster"], "cluster") {
            Value::Null => &config["clusters"][0]["cluster"],
            found => found,
        };
        let user = named(&config, "users", &context["user"], "user");
        let server = cluster["server"].as_str().unwrap_or_default();
        let ca_pem = material(folder, cluster, "certificate-authority")?;
        let mut endpoint = Endpoint::of_url(server, &ca_pem, resolver)?;
        endpoint.token = user["token"].as_str().unwrap_or_default().to_string();
        let cert_pem = material(folder, user, "client-certificate")?;
        if !cert_pem.is_empty() {
            endpoint.shown = Some(Issued { cert_pem, key_pem: material(folder, user, "client-key")? });
        }
        Ok(endpoint)
    }

    /// Posts a document; the answered document. Asked again, later each time, where the server is in trouble.
    pub async fn post(&self, document: &Value, timeout: Duration) -> Result<Value, String> {
        let body = Bytes::from(serde_json::to_vec(document).map_err(|e| e.to_string())?);
        let mut tries = 0;
        let answer = loop {
            match self.exchange("POST", body.clone(), timeout).await {
                Err(Failed { passes: true, .. }) if tries < RETRIES => {
                    tokio::time::sleep(RETRY * 3_u32.pow(tries) / 2_u32.pow(tries)).await;
                    tries += 1;
                }
                answer => break answer.map_err(|failed| failed.why)?,
            }
        };
        if answer.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer).map_err(|e| format!("the answer of {}: {e}", self.url))
    }

    /// Gets a document.
    pub async fn get(&self, timeout: Duration) -> Result<Value, String> {
        let answer = self.exchange("GET", Bytes::new(), timeout).await.map_err(|failed| failed.why)?;
        serde_json::from_slice(&answer).map_err(|e| format!("the answer of {}: {e}", self.url))
    }

    /// Gets a text.
    pub async fn get_text(&self, timeout: Duration) -> Result<String, String> {
        let answer = self.exchange("GET", Bytes::new(), timeout).await.map_err(|failed| failed.why)?;
        String::from_utf8(answer.into()).map_err(|e| format!("the answer of {}: {e}", self.url))
    }

    async fn exchange(&self, method: &str, body: Bytes, timeout: Duration) -> Result<Bytes, Failed> {
        let exchanged = tokio::time::timeout(timeout, self.send(method, body)).await;
        let failed =
            |why: &str, passes: bool| Failed { why: format!("{method} {}: {why}", self.url), passes };
        let (code, body) =
            exchanged.map_err(|_| failed("timed out", false))?.map_err(|e| failed(&e, false))?;
        if !code.is_success() {
            let why = format!("the server responded with the status code {}", code.as_u16());
            return Err(failed(&why, PASSING.contains(&code.as_u16())));
        }
        Ok(body)
    }

    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        match (host.parse(), &self.resolver) {
            (Ok(ip), _) => Ok(vec![ip]),
            (Err(_), _) if host == "localhost" => Ok(vec![IpAddr::from([127, 0, 0, 1])]),
            (Err(_), Some(resolver)) => resolver.resolve(host).await,
            (Err(_), None) => Err(format!("lookup {host}: no such host")),
        }
    }

    async fn send(&self, method: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        let host = self.url.host().unwrap_or_default().trim_matches(['[', ']']);
        let tls = self.url.scheme_str() == Some("https");
        let port = self.url.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let mut stream = Err("no address".to_string());
        for ip in self.addresses(host).await? {
            stream = TcpStream::connect((ip, port)).await.map_err(|e| format!("dial tcp {ip}:{port}: {e}"));
            if stream.is_ok() {
                break;
            }
        }
        let stream = stream?;
        if !tls {
            return self.speak(stream, method, body).await;
        }
        let config = match &self.shown {
            Some(shown) => {
                auth::presenting_client_config(shown, (!self.unchecked).then_some(self.ca_pem.as_str()))
            }
            None if self.unchecked => auth::unchecked_client_config(),
            None => auth::trusting_client_config(&self.ca_pem),
        };
        let connector = TlsConnector::from(config.map_err(|e| e.to_string())?);
        let name = if self.server_name.is_empty() { host } else { &self.server_name };
        let name = ServerName::try_from(name.to_string()).map_err(|e| e.to_string())?;
        let stream = connector.connect(name, stream).await.map_err(|e| format!("tls: {e}"))?;
        self.speak(stream, method, body).await
    }

    async fn speak<S>(&self, stream: S, method: &str, body: Bytes) -> Result<(StatusCode, Bytes), String>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let path = self.url.path_and_query().map_or("/", |p| p.as_str());
        let authority = self.url.authority().map_or("", |a| a.as_str());
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json, */*")
            .header(header::CONTENT_TYPE, "application/json");
        if !self.token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", self.token));
        }
        let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
        let (head, body) = over(stream, request, self.answer_max).await?;
        Ok((head.status, body))
    }
}

/// One request over a connection that is then given up; its answer is read whole, up to `most` bytes.
pub(crate) async fn over<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    most: usize,
) -> Result<(http::response::Parts, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let text = |e: hyper::Error| e.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a call's connection ended");
        }
    });
    let (head, body) = sender.send_request(request).await.map_err(text)?.into_parts();
    let body = Limited::new(body, most).collect().await;
    Ok((head, body.map_err(|e| format!("reading the answer: {e}"))?.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_names_a_server_and_how_to_speak_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hook.yaml");
        std::fs::write(folder.path().join("ca.pem"), "PEM").unwrap();
        let text = "clusters: [{name: c, cluster: {server: 'https://hook:8443/x?y=1', certificate-authority: ca.pem}}]\n\
            users: [{name: u, user: {token: t}}]\ncurrent-context: d\n\
            contexts: [{name: d, context: {cluster: c, user: u}}]\n";
        std::fs::write(&path, text).unwrap();
        let endpoint = Endpoint::of_kubeconfig(&path, None).unwrap();
        assert_eq!((endpoint.ca_pem.as_str(), endpoint.token.as_str()), ("PEM", "t"));
        assert_eq!(endpoint.url, "https://hook:8443/x?y=1");
        assert!(Endpoint::of_url("ftp://x", "", None).is_err());
        assert!(Endpoint::of_kubeconfig(&folder.path().join("none"), None).is_err());
    }
}
