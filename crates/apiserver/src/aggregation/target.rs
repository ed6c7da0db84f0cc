//! Where an extension server is and how it is reached: a service's endpoints, TLS, front-proxy headers.
//!
//! Addresses of this link only are never dialled (attack 20).

use super::Answer;
use crate::Api;
use crate::config::Duplex;
use crate::outbound;
use crate::webhooks::client::{Backends, is_barred};
use ::http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use auth::Identity;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Full;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A server that does not take a connection within this time is tried at its next address.
const DIAL_MAX: Duration = Duration::from_secs(5);
/// How long discovery and documents may take.
const ASK_MAX: Duration = Duration::from_secs(5);
/// The largest document that is read.
const ANSWER_MAX: usize = 16 << 20;
/// Addresses tried for one request.
const ADDRESSES_MAX: usize = 5;

const USER: &str = "x-remote-user";
const UID: &str = "x-remote-uid";
const GROUP: &str = "x-remote-group";
const EXTRA: &str = "x-remote-extra-";

/// A service with what its certificate is checked by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// PEM; "" is the machine's own trust.
    ca_pem: String,
    unchecked: bool,
}

impl Target {
    /// Of an APIService with a service.
    pub fn of(spec: &Value) -> Option<Target> {
        let text = |at: &str| spec.pointer(at).and_then(Value::as_str).unwrap_or_default();
        spec["service"].as_object()?;
        let pem = BASE64_STANDARD.decode(text("/caBundle")).unwrap_or_default();
        Some(Target {
            namespace: text("/service/namespace").into(),
            service: text("/service/name").into(),
            port: spec["service"]["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
            ca_pem: String::from_utf8_lossy(&pem).into_owned(),
            unchecked: spec["insecureSkipTLSVerify"] == true,
        })
    }

    /// The name in its certificate.
    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}

/// Takes away what only a front proxy may say, and says who the caller is.
pub(super) fn set_identity(headers: &mut HeaderMap, identity: &Identity) {
    let names: Vec<HeaderName> = headers
        .keys()
        .filter(|n| n.as_str().starts_with("x-remote-") || n.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
    headers.remove(header::AUTHORIZATION);
    let mut add = |name: &str, value: &str| {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_bytes(value.as_bytes()))
        {
            headers.append(name, value);
        }
    };
    add(USER, &identity.user);
    if !identity.uid.is_empty() {
        add(UID, &identity.uid);
    }
    identity.groups.iter().for_each(|group| add(GROUP, group));
    for (key, values) in &identity.extra {
        let name = format!("{EXTRA}{}", escaped(key));
        values.iter().for_each(|value| add(&name, value));
    }
}

/// A key of extra facts as part of a header's name: lower-case tokens stay, the rest is percent-encoded.
fn escaped(key: &str) -> String {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$&'*+-.^_`|~".contains(&b);
    key.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02x}") }).collect()
}

/// The reverse: whom a front proxy's headers name. `None` when they name nobody.
pub fn named_by(headers: &HeaderMap) -> Option<Identity> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let user = headers.get(USER).map(text).filter(|u| !u.is_empty())?;
    let mut identity = Identity {
        user,
        uid: headers.get(UID).map(text).unwrap_or_default(),
        groups: headers.get_all(GROUP).iter().map(text).collect(),
        ..Identity::default()
    };
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            identity.extra.entry(crate::path::decode(key)).or_default().push(text(value));
        }
    }
    if !identity.groups.iter().any(|g| g == "system:authenticated") {
        identity.groups.push("system:authenticated".into());
    }
    Some(identity)
}

impl Api {
    /// A TLS connection to one of the server's endpoints.
    pub(super) async fn dial_extension(&self, target: &Target) -> Result<Box<dyn Duplex>, String> {
        let ca_pem = (!target.unchecked).then_some(target.ca_pem.as_str());
        let config = match (&self.config.front_proxy, ca_pem) {
            (Some(proxy), ca_pem) => auth::presenting_client_config(&proxy.client, ca_pem),
            (None, Some(ca_pem)) => auth::trusting_client_config(ca_pem),
            (None, None) => auth::unchecked_client_config(),
        };
        let connector = TlsConnector::from(config.map_err(|e| e.to_string())?);
        let name = ServerName::try_from(target.host()).map_err(|e| e.to_string())?;
        let mut why = "no address".to_string();
        for (ip, port) in self.extension_addresses(target).await?.into_iter().take(ADDRESSES_MAX) {
            let dialled = async {
                let stream = TcpStream::connect((ip, port)).await?;
                stream.set_nodelay(true)?;
                connector.connect(name.clone(), stream).await
            };
            match tokio::time::timeout(DIAL_MAX, dialled).await {
                Ok(Ok(stream)) => return Ok(Box::new(stream)),
                Ok(Err(error)) => why = format!("dial tcp {ip}:{port}: {error}"),
                Err(_) => why = format!("dial tcp {ip}:{port}: i/o timeout"),
            }
        }
        Err(why)
    }

    /// The endpoints, in random order of the first.
    async fn extension_addresses(&self, target: &Target) -> Result<Vec<(IpAddr, u16)>, String> {
        match self.endpoints(&target.namespace, &target.service, target.port)? {
            Backends::Pods(mut all) => {
                let first = usize::try_from((self.config.random)() % all.len().max(1) as u128).unwrap_or(0);
                all.rotate_left(first);
                all.retain(|(ip, _)| !is_barred(*ip));
                Ok(all)
            }
            Backends::Elsewhere(host) => {
                let mut known: Vec<IpAddr> = match (host.parse(), &self.config.resolver) {
                    (Ok(ip), _) => vec![ip],
                    (Err(_), _) if host == "localhost" => vec![IpAddr::from([127, 0, 0, 1])],
                    (Err(_), Some(resolver)) => resolver.resolve(&host).await?,
                    (Err(_), None) => return Err(format!("dial tcp: lookup {host}: no such host")),
                };
                known.retain(|ip| !is_barred(*ip));
                Ok(known.into_iter().map(|ip| (ip, target.port)).collect())
            }
        }
    }

    /// Asks an extension server for a document, as the aggregator itself.
    pub(super) async fn ask_extension(
        &self,
        target: &Target,
        path: &str,
        tag: &str,
    ) -> Result<Answer, String> {
        let me = Identity::new("system:kube-aggregator", [auth::SYSTEM_MASTERS]);
        self.ask_extension_as(&me, target, path, tag).await
    }

    /// The same as somebody.
    pub(super) async fn ask_extension_as(
        &self,
        identity: &Identity,
        target: &Target,
        path: &str,
        tag: &str,
    ) -> Result<Answer, String> {
        let url = format!("https://{}:{}{path}", target.host(), target.port);
        let asked = async {
            let stream = self.dial_extension(target).await?;
            let mut request = Request::get(path)
                .header(header::HOST, target.host())
                .header(header::ACCEPT, "application/json")
                .header(header::IF_NONE_MATCH, tag)
                .body(Full::default())
                .map_err(|e| e.to_string())?;
            set_identity(request.headers_mut(), identity);
            let (head, body) = outbound::over(stream, request, ANSWER_MAX).await?;
            let tag = head.headers.get(header::ETAG).and_then(|t| t.to_str().ok()).unwrap_or_default();
            Ok::<_, String>(Answer { code: head.status.as_u16(), tag: tag.to_string(), body })
        };
        match tokio::time::timeout(ASK_MAX, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(why)) => Err(format!("failing or missing response from {url}: Get {url:?}: {why}")),
            Err(_) => {
                let why = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
                Err(format!("failing or missing response from {url}: Get {url:?}: {why}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_named_and_nothing_else_passes() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("x-remote-user", "root"),
            ("x-remote-group", "system:masters"),
            ("impersonate-user", "root"),
            ("accept", "application/json"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut identity = Identity::new("alice", ["dev", "system:authenticated"]);
        identity.uid = "7".into();
        identity.extra.insert("example.com/Scope".into(), vec!["a".into(), "b".into()]);
        set_identity(&mut headers, &identity);
        assert!(headers.get("authorization").is_none() && headers.get("impersonate-user").is_none());
        assert_eq!(headers.get("accept").unwrap(), "application/json");
        assert_eq!(headers.get("x-remote-extra-example.com%2f%53cope").unwrap(), "a");
        assert_eq!(named_by(&headers).unwrap(), identity);
        assert_eq!(named_by(&HeaderMap::new()), None);
    }
}
