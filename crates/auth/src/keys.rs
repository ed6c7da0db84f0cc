//! The keys that service-account tokens are signed with, and those that earlier ones were.
//!
//! `sa.key` (P-256) is made at first start; where tokens are to be RS256, as relying parties of clusters expect,
//! `sa-rs256.key` is derived from it. Further keys in the folder (`sa-<any>.key`, or `sa-<any>.pub` with a public key)
//! are accepted and published, never signed with: to change keys, rename both of the first and start again.
//! Invariants: a private key is on disk (mode 0600) before something is signed with it; a key's name (`kid`) is the
//! hash of what it is, so the same key has one name on all servers.
//! Deliberately not here: what tokens say (`tokens`), how signatures are checked (`oidc`).

use crate::ca::{read, write_private};
use crate::oidc;
use crate::rsa;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rcgen::PublicKeyData;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};
use x509_parser::public_key::PublicKey;

const EC_FILE: &str = "sa.key";
const RSA_FILE: &str = "sa-rs256.key";
/// Octets of a P-256 coordinate.
const COORDINATE: usize = 32;

/// How tokens are signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// RSA, as upstream's clusters have it and the verifiers of relying parties expect.
    #[default]
    Rs256,
    /// ECDSA on P-256: 17 µs a token where RSA takes 560.
    Es256,
}

impl Algorithm {
    /// Its name in tokens.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Rs256 => "RS256",
            Algorithm::Es256 => "ES256",
        }
    }

    /// By its name.
    pub fn named(name: &str) -> Option<Algorithm> {
        [Algorithm::Rs256, Algorithm::Es256].into_iter().find(|a| a.name() == name)
    }
}

/// Why a key could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenKeyError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] crate::CaError),
    /// A file holds no key of the form that it should.
    #[error("{0}: {1}")]
    Unreadable(String, String),
    /// No random numbers, or a broken key.
    #[error("making or using a service account key failed")]
    Crypto,
    /// The key was to be made in the background and was not.
    #[error("{0}")]
    Earlier(String),
}

enum Private {
    Es256(EcdsaKeyPair),
    Rs256(RsaKeyPair),
}

/// What signs, and everything that is believed.
pub struct Keyring {
    private: Private,
    /// Name of the signing key.
    pub kid: String,
    /// How it signs.
    pub algorithm: Algorithm,
    /// The public keys as JSON Web Keys, the signing one first.
    pub published: Vec<Value>,
    /// The same, for checks.
    pub keys: oidc::Keys,
    random: SystemRandom,
}

/// A keyring that may still be in the making: a first RSA key takes a while, and nobody waits who needs none.
pub struct Keys(LazyLock<Made, Box<dyn FnOnce() -> Made + Send>>);

type Made = Result<Keyring, String>;

impl Keys {
    /// Reads the keys of a folder; makes what lacks.
    pub fn open(folder: &Path, algorithm: Algorithm) -> Result<Keys, TokenKeyError> {
        let secret = ec_file(folder)?;
        let folder = folder.to_path_buf();
        if algorithm == Algorithm::Es256 || folder.join(RSA_FILE).exists() {
            let ring = Keyring::read(&folder, algorithm)?;
            return Ok(Keys(LazyLock::new(Box::new(|| Ok(ring)))));
        }
        let making = std::thread::spawn(move || {
            let key = rsa::derive(secret.secret_pkcs8_der()).ok_or(TokenKeyError::Crypto)?;
            write_pem(&folder.join(RSA_FILE), &key)?;
            Keyring::read(&folder, algorithm)
        });
        Ok(Keys(LazyLock::new(Box::new(move || match making.join() {
            Ok(ring) => ring.map_err(|e| e.to_string()),
            Err(_) => Err("making the RSA key of service accounts failed".into()),
        }))))
    }

    /// The keys, once they are there.
    pub fn ring(&self) -> Result<&Keyring, TokenKeyError> {
        self.0.as_ref().map_err(|why| TokenKeyError::Earlier(why.clone()))
    }
}

fn write_pem(path: &Path, der: &[u8]) -> Result<(), TokenKeyError> {
    let body: Vec<u8> = BASE64_STANDARD.encode(der).into_bytes();
    let lines: Vec<_> = body.chunks(64).map(String::from_utf8_lossy).collect();
    let text = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    Ok(write_private(path, &text)?)
}

/// The P-256 key of a folder, made if it is not there.
fn ec_file(folder: &Path) -> Result<PrivatePkcs8KeyDer<'static>, TokenKeyError> {
    let path = folder.join(EC_FILE);
    if !path.exists() {
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        write_pem(&path, made.map_err(|_| TokenKeyError::Crypto)?.as_ref())?;
    }
    private_file(&path)
}

fn unreadable(path: &Path) -> impl Fn(&dyn std::fmt::Display) -> TokenKeyError {
    move |why| TokenKeyError::Unreadable(path.display().to_string(), why.to_string())
}

fn private_file(path: &Path) -> Result<PrivatePkcs8KeyDer<'static>, TokenKeyError> {
    PrivatePkcs8KeyDer::from_pem_slice(read(path)?.as_bytes()).map_err(|e| unreadable(path)(&e))
}

/// The public part of a key file, as SubjectPublicKeyInfo.
fn public_of(path: &Path) -> Result<Vec<u8>, TokenKeyError> {
    if path.extension().is_some_and(|e| e == "pub") {
        let spki = SubjectPublicKeyInfoDer::from_pem_slice(read(path)?.as_bytes());
        return Ok(spki.map_err(|e| unreadable(path)(&e))?.to_vec());
    }
    let pair = rcgen::KeyPair::try_from(private_file(path)?.secret_pkcs8_der());
    Ok(pair.map_err(|e| unreadable(path)(&e))?.subject_public_key_info())
}

/// A public key as a JSON Web Key; `None` for kinds that no token of ours is signed with.
fn jwk(spki: &[u8]) -> Option<Value> {
    let (_, parsed) = SubjectPublicKeyInfo::from_der(spki).ok()?;
    let text = |octets: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(octets);
    // DER integers may begin with a zero that is no part of the number.
    let number = |octets: &[u8]| text(&octets[octets.iter().take_while(|b| **b == 0).count()..]);
    let mut jwk = match parsed.parsed().ok()? {
        PublicKey::RSA(key) => {
            json!({"kty": "RSA", "alg": "RS256", "n": number(key.modulus), "e": number(key.exponent)})
        }
        PublicKey::EC(point) if point.data().len() == 2 * COORDINATE + 1 => {
            let (x, y) = point.data().get(1..)?.split_at(COORDINATE);
            json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "x": text(x), "y": text(y)})
        }
        _ => return None,
    };
    jwk["use"] = json!("sig");
    jwk["kid"] = json!(text(digest(&SHA256, spki).as_ref()));
    Some(jwk)
}

/// Key files besides the one that signs, by name.
fn others(folder: &Path, but: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder).into_iter().flatten().filter_map(|f| Some(f.ok()?.path()));
    let mut found: Vec<PathBuf> = files
        .filter(|path| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let ours = name == EC_FILE || name.starts_with("sa-");
            ours && (name.ends_with(".key") || name.ends_with(".pub")) && path != but
        })
        .collect();
    found.sort();
    found
}

impl Keyring {
    fn read(folder: &Path, algorithm: Algorithm) -> Result<Keyring, TokenKeyError> {
        let random = SystemRandom::new();
        let own = folder.join(if algorithm == Algorithm::Rs256 { RSA_FILE } else { EC_FILE });
        let der = private_file(&own)?;
        let der = der.secret_pkcs8_der();
        let private = match algorithm {
            Algorithm::Rs256 => RsaKeyPair::from_pkcs8(der).map(Private::Rs256),
            Algorithm::Es256 => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random).map(Private::Es256)
            }
        };
        let private = private.map_err(|e| unreadable(&own)(&e))?;
        let mut published = Vec::new();
        for path in std::iter::once(own.clone()).chain(others(folder, &own)) {
            let key = jwk(&public_of(&path)?);
            published.push(key.ok_or_else(|| unreadable(&path)(&"neither RSA nor P-256"))?);
        }
        let keys = oidc::Keys::read(&json!({"keys": published}));
        let kid = published.first().and_then(|k| k["kid"].as_str()).unwrap_or_default().to_string();
        Ok(Keyring { private, kid, algorithm, published, keys, random })
    }

    /// Signs.
    pub fn sign(&self, text: &[u8]) -> Result<Vec<u8>, TokenKeyError> {
        match &self.private {
            Private::Es256(key) => {
                let made = key.sign(&self.random, text).map_err(|_| TokenKeyError::Crypto)?;
                Ok(made.as_ref().to_vec())
            }
            Private::Rs256(key) => {
                let mut made = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &self.random, text, &mut made)
                    .map_err(|_| TokenKeyError::Crypto)?;
                Ok(made)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::{Claims, ServiceTokens, TokenError};

    /// One for all tests: deriving takes a tenth of a second.
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        Keys::open(folder.path(), Algorithm::Rs256).unwrap().ring().unwrap();
        folder
    });

    fn open(folder: &Path, algorithm: Algorithm) -> ServiceTokens {
        ServiceTokens::open(folder, "https://issuer", algorithm).unwrap()
    }

    fn claims() -> Claims {
        Claims { iss: "https://issuer".into(), exp: 100, ..Claims::default() }
    }

    #[test]
    fn both_algorithms_sign_and_both_keys_are_believed() {
        let folder = FOLDER.path();
        let (rsa, ec) = (open(folder, Algorithm::Rs256), open(folder, Algorithm::Es256));
        for (signer, other) in [(&rsa, &ec), (&ec, &rsa)] {
            let token = signer.sign(&claims()).unwrap();
            assert_eq!(signer.verify(&token, 50), Ok(claims()));
            assert_eq!(other.verify(&token, 50), Ok(claims()));
            // What a relying party does: the published set, and nothing else.
            let parts = oidc::Token::read(&token).unwrap();
            assert!(oidc::Keys::read(&other.jwks()).claims(&parts).is_some());
            assert!(!token.contains('='));
        }
        assert_eq!(rsa.jwks()["keys"][0]["alg"], "RS256");
        assert_eq!(rsa.jwks()["keys"][0]["e"], "AQAB");
        assert_eq!(ec.jwks()["keys"][0]["alg"], "ES256");
        assert_eq!(rsa.discovery()["id_token_signing_alg_values_supported"], json!(["ES256", "RS256"]));
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(folder.join(RSA_FILE)).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn changed_keys_leave_old_tokens_good_and_strangers_out() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let old = open(folder, Algorithm::Es256).sign(&claims()).unwrap();
        std::fs::rename(folder.join(EC_FILE), folder.join("sa-2025.key")).unwrap();
        std::fs::copy(FOLDER.path().join(RSA_FILE), folder.join("sa-other.key")).unwrap();
        let now = open(folder, Algorithm::Es256);
        assert_eq!(now.verify(&old, 50), Ok(claims()));
        assert_eq!(now.jwks()["keys"].as_array().unwrap().len(), 3);
        assert_ne!(now.jwks()["keys"][0]["kid"], now.jwks()["keys"][1]["kid"]);
        std::fs::remove_file(folder.join("sa-2025.key")).unwrap();
        assert_eq!(open(folder, Algorithm::Es256).verify(&old, 50), Err(TokenError::UnknownKey));
        std::fs::write(folder.join("sa-x.pub"), "rubbish").unwrap();
        assert!(ServiceTokens::open(folder, "https://issuer", Algorithm::Es256).is_err());
    }

    #[test]
    fn servers_that_share_a_key_derive_the_same() {
        let other = tempfile::tempdir().unwrap();
        std::fs::copy(FOLDER.path().join(EC_FILE), other.path().join(EC_FILE)).unwrap();
        let token = open(FOLDER.path(), Algorithm::Rs256).sign(&claims()).unwrap();
        assert_eq!(open(other.path(), Algorithm::Rs256).verify(&token, 50), Ok(claims()));
    }
}
