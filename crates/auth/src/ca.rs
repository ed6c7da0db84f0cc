//! The certificate authority of one realm: made at first start, kept in the data folder.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The group whose members may do everything.
pub const SYSTEM_MASTERS: &str = "system:masters";

const DAY: Duration = Duration::from_secs(86_400);
/// Life of the authority itself, as kubeadm has it.
const CA_LIFE: Duration = Duration::from_secs(3_650 * 86_400);
/// Life of an issued certificate; Gantry issues anew at each start, so this only bounds one uptime.
const LEAF_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Certificates are valid from this long before their issue, for clocks that lag.
const BACKDATE: Duration = Duration::from_secs(3_600);

/// Why the authority could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Making, parsing or signing failed.
    #[error("certificate authority: {0}")]
    Crypto(#[from] rcgen::Error),
    /// A request for more than this authority signs.
    #[error("the request names something that this authority does not sign")]
    Unsupported,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    /// Certificate.
    pub cert_pem: String,
    /// Private key (PKCS#8).
    pub key_pem: String,
}

/// A certificate authority.
pub struct Ca {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ca")
    }
}

impl Ca {
    /// Reads `ca.crt` and `ca.key` in `folder`, or makes both.
    pub fn load_or_create(folder: &Path, now: SystemTime) -> Result<Ca, CaError> {
        Ca::named(folder, "ca", now)
    }

    /// The same for another authority: `<name>.crt` and `<name>.key`.
    pub fn named(folder: &Path, name: &str, now: SystemTime) -> Result<Ca, CaError> {
        let (cert_path, key_path) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        if !(cert_path.exists() && key_path.exists()) {
            let key = KeyPair::generate()?;
            let certificate = ca_params(name, now)?.self_signed(&key)?;
            write_private(&key_path, &key.serialize_pem())?;
            write_private(&cert_path, &certificate.pem())?;
        }
        let cert_pem = read(&cert_path)?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, KeyPair::from_pem(&read(&key_path)?)?)?;
        Ok(Ca { cert_pem, issuer })
    }

    /// The authority's certificate.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Issues a server certificate for these names and addresses.
    pub fn issue_server(
        &self,
        cn: &str,
        names: &[String],
        ips: &[IpAddr],
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        let mut params = leaf_params(cn, None, ExtendedKeyUsagePurpose::ServerAuth, now)?;
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
        self.issue(&params)
    }

    /// Issues a client certificate for a user and its group, if it has one. (`rcgen` writes one O at most.)
    pub fn issue_client(&self, user: &str, group: Option<&str>, now: SystemTime) -> Result<Issued, CaError> {
        self.issue(&leaf_params(user, group, ExtendedKeyUsagePurpose::ClientAuth, now)?)
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    fn issue(&self, params: &CertificateParams) -> Result<Issued, CaError> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

fn ca_params(name: &str, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("gantry-{name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = (now - DAY).into();
    params.not_after = (now + CA_LIFE).into();
    Ok(params)
}

pub(crate) fn leaf_params(
    cn: &str,
    group: Option<&str>,
    usage: ExtendedKeyUsagePurpose,
    now: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, cn);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + LEAF_LIFE).into();
    Ok(params)
}

pub(crate) fn read(path: &Path) -> Result<String, CaError> {
    std::fs::read_to_string(path).map_err(|source| CaError::File { path: path.display().to_string(), source })
}

pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), CaError> {
    let write = || {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| CaError::File { path: path.display().to_string(), source })
}
