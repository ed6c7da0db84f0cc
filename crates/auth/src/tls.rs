//! rustls configurations from PEM: servers that take (but do not demand) client certificates, and clients.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::sync::{Arc, PoisonError, RwLock};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ca::Issued;

/// Why a TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM text could not be read.
    #[error("reading PEM: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// rustls refused the material.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The client-certificate verifier could not be built.
    #[error("client certificate verifier: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    Ok(Arc::new(roots))
}

fn material(issued: &Issued) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = CertificateDer::pem_slice_iter(issued.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes())?))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server's certificate, which can be renewed while it serves.
#[derive(Debug)]
pub struct Serving(RwLock<Arc<CertifiedKey>>);

impl Serving {
    /// From the next handshake on this certificate is shown.
    ///
    /// # Errors
    /// The material is no certificate with its key; the old one stays.
    pub fn renew(&self, issued: &Issued) -> Result<(), TlsError> {
        let key = certified(issued)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certified(issued: &Issued) -> Result<Arc<CertifiedKey>, TlsError> {
    let (chain, key) = material(issued)?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider())?))
}

/// A server that verifies client certificates of `ca_pem` where one is shown. `alpn` in order of preference.
pub fn server_config(
    issued: &Issued,
    ca_pem: &str,
    alpn: &[&str],
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    serving(issued, ca_pem, alpn).map(|(config, _)| config)
}

/// The same, with what renews its certificate.
pub fn serving(
    issued: &Issued,
    ca_pem: &str,
    alpn: &[&str],
) -> Result<(Arc<rustls::ServerConfig>, Arc<Serving>), TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider())
        .allow_unauthenticated()
        .build()?;
    let serving = Arc::new(Serving(RwLock::new(certified(issued)?)));
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving.clone());
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok((Arc::new(config), serving))
}

/// A client that trusts `ca_pem` and shows `issued`.
pub fn client_config(issued: &Issued, ca_pem: &str) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let (chain, key) = material(issued)?;
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// Where this machine keeps the authorities that everybody trusts.
const SYSTEM_AUTHORITIES: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// A client that shows no certificate and trusts the authorities, and the very certificates, of `ca_pem`; the machine's
/// authorities where that is empty. HTTP/1.1 only.
///
/// # Errors
/// `ca_pem` is no PEM of certificates, or there is nobody to trust.
pub fn trusting_client_config(ca_pem: &str) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(pinned(ca_pem)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The same for a server that is shown `issued`; without `ca_pem` its own certificate is not checked. HTTP/1.1 only.
///
/// # Errors
/// As above, or `issued` is no certificate with its key.
pub fn presenting_client_config(
    issued: &Issued,
    ca_pem: Option<&str>,
) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let verifier: Arc<dyn ServerCertVerifier> = match ca_pem {
        Some(ca_pem) => pinned(ca_pem)?,
        None => Arc::new(Unchecked(provider().signature_verification_algorithms.supported_schemes())),
    };
    let (chain, key) = material(issued)?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn pinned(ca_pem: &str) -> Result<Arc<Pinned>, TlsError> {
    let mut pinned: Vec<CertificateDer<'static>> = Vec::new();
    let mut roots = RootCertStore::empty();
    if ca_pem.is_empty() {
        let pem = SYSTEM_AUTHORITIES.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    }
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate?;
        roots.add(certificate.clone())?;
        pinned.push(certificate);
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    Ok(Arc::new(Pinned { inner, pinned }))
}

/// An authority whose clients are told apart from those of others that a server trusts as well.
#[derive(Debug)]
pub struct ClientAuthority(Arc<dyn ClientCertVerifier>);

impl ClientAuthority {
    /// # Errors
    /// `ca_pem` is no PEM of certificates.
    pub fn new(ca_pem: &str) -> Result<ClientAuthority, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider()).build()?;
        Ok(ClientAuthority(verifier))
    }

    /// Is the first certificate a client's of this authority now?
    pub fn signed(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((first, rest)) = chain.split_first() else { return false };
        self.0.verify_client_cert(first, rest, UnixTime::now()).is_ok()
    }
}

/// Chains to an authority, or the very certificate that is trusted: webpki refuses a self-signed one as a server's.
#[derive(Debug)]
struct Pinned {
    inner: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.pinned.iter().any(|p| p.as_ref() == certificate.as_ref()) {
            return self.inner.verify_server_cert(certificate, chain, name, ocsp, now);
        }
        let valid = X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| {
            let (from, to) =
                (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
            i64::try_from(now.as_secs()).is_ok_and(|now| (from..=to).contains(&now))
        });
        if !valid {
            return Err(rustls::CertificateError::Expired.into());
        }
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A client that takes any certificate and shows none: for servers whose address is all that is known of them (pods,
/// behind a probe or the API server's proxy).
pub fn unchecked_client_config() -> Result<Arc<rustls::ClientConfig>, TlsError> {
    let provider = provider();
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unchecked(schemes)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Unchecked(Vec<SignatureScheme>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ca, identity_of};
    use std::time::SystemTime;

    #[test]
    fn a_client_certificate_speaks_for_its_user_and_groups() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let ca = Ca::load_or_create(folder.path(), now).unwrap();
        let again = Ca::load_or_create(folder.path(), now).unwrap();
        assert_eq!(ca.cert_pem(), again.cert_pem(), "the authority is made once");
        let issued = again.issue_client("alice", Some("dev"), now).unwrap();
        let (chain, _) = material(&issued).unwrap();
        let identity = identity_of(&chain).unwrap();
        assert_eq!(identity.user, "alice");
        assert_eq!(identity.groups, ["dev", "system:authenticated"]);
        client_config(&issued, ca.cert_pem()).unwrap();
        let names = ["localhost".to_string()];
        let server = ca.issue_server("kube-apiserver", &names, &["127.0.0.1".parse().unwrap()], now).unwrap();
        server_config(&server, ca.cert_pem(), &["h2", "http/1.1"]).unwrap();
    }
}
