//! Certificate requests: made by those who join, read by those who approve, signed by the authority.
//!
//! Invariants: a [`Request`] was signed by the key it names; nothing of a request is copied into a certificate but
//! its key and what [`Request`] shows. Deliberately not here: who may have which certificate (a controller's).

use crate::ca::{Ca, CaError, leaf_params};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    KeyPair, SanType,
};
use ring::digest::{SHA256, digest};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Calling the API server.
    Client,
    /// Serving.
    Server,
}

/// A certificate request, read and found to be signed by its own key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Common name.
    pub user: String,
    /// Organizations.
    pub groups: Vec<String>,
    /// DNS names.
    pub names: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Does it ask for more than that (an e-mail address, a URI, being an authority)?
    pub more: bool,
}

impl Request {
    /// Reads a PEM request.
    ///
    /// # Errors
    /// It is none, or its signature is wrong.
    pub fn parse(pem: &str) -> Result<Request, CaError> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| rcgen::Error::CouldNotParseCertificationRequest)?;
        let checked = CertificateSigningRequestParams::from_der(&der)?;
        let (_, csr) = X509CertificationRequest::from_der(&der)
            .map_err(|_| rcgen::Error::CouldNotParseCertificationRequest)?;
        let subject = &csr.certification_request_info.subject;
        let texts = |list: Vec<&str>| list.into_iter().map(String::from).collect::<Vec<_>>();
        let users = texts(subject.iter_common_name().filter_map(|n| n.as_str().ok()).collect());
        let groups = texts(subject.iter_organization().filter_map(|n| n.as_str().ok()).collect());
        let others = subject.iter_attributes().count() != users.len() + groups.len();
        let more = others || users.len() > 1 || checked.params.is_ca != rcgen::IsCa::NoCa;
        let user = users.into_iter().next().unwrap_or_default();
        let mut request = Request { user, groups, more, ..Request::default() };
        for extension in csr.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(list) = extension else { continue };
            list.general_names.iter().for_each(|name| request.take(name));
        }
        Ok(request)
    }

    fn take(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.names.push((*name).to_string()),
            GeneralName::IPAddress(bytes) => {
                let ip = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                match ip.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from)) {
                    Ok(ip) => self.ips.push(ip),
                    Err(_) => self.more = true,
                }
            }
            _ => self.more = true,
        }
    }
}

/// A request with a fresh key: (request, key), both PEM.
///
/// # Errors
/// A name that cannot stand in a certificate.
pub fn new_request(
    user: &str,
    group: &str,
    names: &[String],
    ips: &[IpAddr],
) -> Result<(String, String), CaError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.distinguished_name.push(DnType::CommonName, user);
    Ok((params.serialize_request(&key)?.pem()?, key.serialize_pem()))
}

impl Ca {
    /// Signs a request's key for what the request names.
    ///
    /// # Errors
    /// It cannot be read, or asks for what [`Request::more`] says, or for two groups (`rcgen` writes one O at most).
    pub fn sign(&self, pem: &str, usage: Usage, life: Duration, now: SystemTime) -> Result<String, CaError> {
        let request = Request::parse(pem)?;
        if request.more || request.groups.len() > 1 {
            return Err(CaError::Unsupported);
        }
        let purpose = match usage {
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        };
        let mut params =
            leaf_params(&request.user, request.groups.first().map(String::as_str), purpose, now)?;
        for name in &request.names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(request.ips.iter().copied().map(SanType::IpAddress));
        params.not_after = (now + life).into();
        let public_key = CertificateSigningRequestParams::from_pem(pem)?.public_key;
        Ok(CertificateSigningRequestParams { params, public_key }.signed_by(self.issuer())?.pem())
    }
}

/// The fingerprint of a certificate's public key, as kubeadm writes it: `sha256:` and 64 digits.
pub fn key_hash(cert_pem: &str) -> Option<String> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let mut text = "sha256:".to_string();
    for byte in digest(&SHA256, certificate.public_key().raw).as_ref() {
        write!(text, "{byte:02x}").ok()?;
    }
    Some(text)
}

/// Is a certificate for that name and that address?
pub fn serves(cert_pem: &str, name: &str, ip: IpAddr) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(cert_pem.as_bytes()) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    let Ok(Some(list)) = certificate.subject_alternative_name() else { return false };
    let mut held = Request::default();
    list.value.general_names.iter().for_each(|general| held.take(general));
    held.ips.contains(&ip) && held.names.iter().any(|n| n == name)
}

/// From when to when a certificate is valid, in seconds of the epoch.
pub fn validity(cert_pem: &str) -> Option<(i64, i64)> {
    let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some((certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity_of;
    use proptest::prelude::*;

    fn ca() -> (tempfile::TempDir, Ca) {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::load_or_create(folder.path(), SystemTime::now()).unwrap();
        (folder, ca)
    }

    #[test]
    fn a_request_becomes_a_certificate_that_speaks_for_it() {
        let (_folder, ca) = ca();
        let ip: IpAddr = "10.0.0.2".parse().unwrap();
        let (csr, key) = new_request("system:node:n", "system:nodes", &["n".into()], &[ip]).unwrap();
        let request = Request::parse(&csr).unwrap();
        assert_eq!((request.user.as_str(), request.more), ("system:node:n", false));
        assert_eq!(
            (request.groups, request.names, request.ips),
            (vec!["system:nodes".into()], vec!["n".into()], vec![ip])
        );
        let life = Duration::from_secs(3_600);
        let cert = ca.sign(&csr, Usage::Client, life, SystemTime::now()).unwrap();
        let chain = [CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        assert_eq!(identity_of(&chain).unwrap().groups, ["system:nodes", "system:authenticated"]);
        let (from, until) = validity(&cert).unwrap();
        assert!(until - from >= 3_600 && until - from < 3 * 3_600);
        let issued = crate::Issued { cert_pem: cert, key_pem: key };
        crate::client_config(&issued, ca.cert_pem()).unwrap();
    }

    #[test]
    fn what_is_not_understood_is_not_signed() {
        let (_folder, ca) = ca();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names.push(SanType::Rfc822Name("a@b.c".try_into().unwrap()));
        let mail = params.serialize_request(&key).unwrap().pem().unwrap();
        assert!(Request::parse(&mail).unwrap().more);
        let sign = |pem: &str| ca.sign(pem, Usage::Client, Duration::from_secs(60), SystemTime::now());
        assert!(matches!(sign(&mail), Err(CaError::Unsupported)));
        assert!(sign("junk").is_err());
    }

    #[test]
    fn a_key_hash_is_of_the_key_alone() {
        let (_folder, ca) = ca();
        let hash = key_hash(ca.cert_pem()).unwrap();
        assert!(hash.starts_with("sha256:") && hash.len() == 7 + 64);
        assert_ne!(Some(hash), key_hash(self::ca().1.cert_pem()));
        assert_eq!(key_hash("x"), None);
    }

    proptest! {
        #[test]
        fn a_damaged_request_is_refused_or_still_whole(at in 0usize..200, bit in 0u8..8) {
            let (csr, _) = new_request("u", "g", &[], &[]).unwrap();
            let whole = Request::parse(&csr).unwrap();
            let mut der = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).unwrap().to_vec();
            let at = at % der.len();
            der[at] ^= 1 << bit;
            use base64::Engine;
            let body = base64::prelude::BASE64_STANDARD.encode(&der);
            let damaged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
            if let Ok(read) = Request::parse(&damaged) {
                prop_assert_eq!(read, whole);
            }
        }
    }
}
