//! TLS on listeners (certificate by server name) and to targets (unchecked, as ALB's).

use crate::config::{Certificate, Protocol};
use crate::route::like;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use tokio::net::TcpStream;

/// Why a listener's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("certificate {index}: {reason}")]
pub struct CertificateError {
    index: usize,
    reason: String,
}

#[derive(Debug)]
struct ByName(Vec<(Vec<String>, Arc<CertifiedKey>)>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or_default().to_ascii_lowercase();
        let fits = |names: &[String]| names.iter().any(|n| fits(&n.to_ascii_lowercase(), &name));
        self.0.iter().find(|(names, _)| fits(names)).or(self.0.first()).map(|(_, key)| key.clone())
    }
}

/// A wildcard stands for one label.
fn fits(pattern: &str, name: &str) -> bool {
    like(pattern, name) && pattern.matches('.').count() == name.matches('.').count()
}

/// The server side of a listener.
pub fn server(
    certificates: &[Certificate],
    protocol: Protocol,
) -> Result<Arc<ServerConfig>, CertificateError> {
    let keys: Result<Vec<_>, _> = certificates.iter().enumerate().map(certified).collect();
    let keys = keys?;
    if keys.is_empty() {
        return Err(CertificateError { index: 0, reason: "a TLS listener needs a certificate".to_string() });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("ring knows the default versions").with_no_client_auth();
    let mut config = builder.with_cert_resolver(Arc::new(ByName(keys)));
    if protocol.is_http() {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    Ok(Arc::new(config))
}

fn certified(
    (index, c): (usize, &Certificate),
) -> Result<(Vec<String>, Arc<CertifiedKey>), CertificateError> {
    let error = |reason: String| CertificateError { index, reason };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(c.chain.as_bytes()).collect();
    let chain = chain.map_err(|e| error(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(c.key.as_bytes()).map_err(|e| error(e.to_string()))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|e| error(e.to_string()))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|e| error(e.to_string()))?;
    Ok((c.names.clone(), Arc::new(certified)))
}

/// Takes every certificate: load balancers of AWS do not check their targets' either.
static CLIENT: LazyLock<tokio_rustls::TlsConnector> =
    LazyLock::new(|| auth::unchecked_client_config().expect("ring knows the default versions").into());

/// Speaks TLS to a target.
pub async fn to_target(
    address: SocketAddr,
    stream: TcpStream,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    CLIENT.connect(ServerName::IpAddress(address.ip().into()), stream).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_one_label() {
        assert!(fits("*.example.org", "a.example.org") && fits("example.org", "example.org"));
        assert!(!fits("*.example.org", "a.b.example.org") && !fits("*.example.org", "example.org"));
    }

    #[test]
    fn bad_certificates_say_which() {
        let bad = Certificate { names: Vec::new(), chain: "".into(), key: "nothing".into() };
        assert!(server(&[bad], Protocol::Https).unwrap_err().to_string().starts_with("certificate 0: "));
        assert!(server(&[], Protocol::Https).is_err());
    }
}
