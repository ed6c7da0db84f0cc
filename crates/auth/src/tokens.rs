//! Service-account tokens: JWTs as Kubernetes issues them, and what of a token can be told without
//! looking anything up: form, signature, issuer, audience, time.
//!
//! Invariants: a token of another key, algorithm or issuer is never accepted; parsing is bounded
//! ([`TOKEN_MAX_BYTES`]) and takes any bytes.
//! Deliberately not here: keys (`keys`), whether the account and the bound object still exist (`apiserver` looks).

pub use crate::keys::{Algorithm, TokenKeyError};

use crate::keys::Keys;
use crate::oidc::Token;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use parking_lot::RwLock;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// A longer text is no token of ours: claims hold names, which are bounded, and few audiences.
pub const TOKEN_MAX_BYTES: usize = 16 << 10;
/// Signed tokens that are remembered, so that a program's next request costs no signature check. When there are
/// more they are all forgotten: a cluster has some hundred pods a node, and each shows one token.
const REMEMBERED_MAX: usize = 1_024;
/// Clocks may differ by that much before a token counts as not yet valid.
const LEEWAY_SECONDS: i64 = 60;
/// Where discovery finds the public key, below the issuer.
pub const JWKS_PATH: &str = "/openid/v1/jwks";

/// A signature of `content` by a bootstrap token, as kubeadm checks it: a JWS (HS256) whose content is left out
/// (RFC 7515, appendix F).
pub fn bootstrap_signature(content: &str, id: &str, secret: &str) -> String {
    let header = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let signed = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(content));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = ring::hmac::sign(&key, signed.as_bytes());
    format!("{header}..{}", BASE64_URL_SAFE_NO_PAD.encode(tag))
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three base64 parts with the JSON they should hold.
    #[error("the token is malformed")]
    Malformed,
    /// Signed with a key, or by an algorithm, that is not this realm's.
    #[error("the token is signed by an unknown key")]
    UnknownKey,
    /// The signature does not fit the text.
    #[error("the token's signature is wrong")]
    Forged,
    /// Issued for another realm.
    #[error("the token was issued by {0:?}, not by this realm")]
    ForeignIssuer(String),
    /// Its time has come.
    #[error("service account token has expired")]
    Expired,
    /// Its time is yet to come.
    #[error("service account token is not valid yet")]
    NotYetValid,
    /// Meant for others.
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
    /// The account or the object it is bound to has changed or gone.
    #[error("{0}")]
    Gone(String),
}

/// A name with the UID it stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// UID; "" where it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The private claim `kubernetes.io`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Namespace of everything named here.
    pub namespace: String,
    /// The node the pod runs on, or the node itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The account.
    pub serviceaccount: Reference,
    /// Seconds of the epoch from which a use is worth a warning: the life that was asked for ended then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// What a token says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Audiences.
    #[serde(default, deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    /// Seconds of the epoch.
    pub exp: i64,
    /// Issued at.
    pub iat: i64,
    /// Issuer.
    pub iss: String,
    /// Id of this token.
    #[serde(default)]
    pub jti: String,
    /// Whom it speaks for and what it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub bound: Bound,
    /// Not valid before.
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
}

fn one_or_many<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Either::deserialize(from)? {
        Either::One(text) => vec![text],
        Either::Many(list) => list,
    })
}

/// The user name of a service account.
pub fn account_user(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// Signs and checks the tokens of one realm.
pub struct ServiceTokens {
    keys: Keys,
    issuer: String,
    /// What tokens say whose signature was found right.
    remembered: RwLock<HashMap<Box<str>, Claims>>,
}

impl ServiceTokens {
    /// Reads the keys in `folder`, or makes them. `issuer` is a URL that names the realm.
    pub fn open(
        folder: &Path,
        issuer: impl Into<String>,
        algorithm: Algorithm,
    ) -> Result<ServiceTokens, TokenKeyError> {
        let keys = Keys::open(folder, algorithm)?;
        Ok(ServiceTokens { keys, issuer: issuer.into(), remembered: RwLock::default() })
    }

    /// The same with ES256, whose key is made at once.
    pub fn load_or_create(folder: &Path, issuer: impl Into<String>) -> Result<ServiceTokens, TokenKeyError> {
        ServiceTokens::open(folder, issuer, Algorithm::Es256)
    }

    /// Whose tokens these are.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The token that says this.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, TokenKeyError> {
        let ring = self.keys.ring()?;
        let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({"alg": ring.algorithm.name(), "kid": ring.kid}));
        let text = format!("{header}.{}", part(json!(claims)));
        let signature = ring.sign(text.as_bytes())?;
        Ok(format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }

    /// What a token of this realm says, if it is one and its time is now. `now` in seconds of the epoch.
    pub fn verify(&self, token: &str, now: i64) -> Result<Claims, TokenError> {
        let known = self.remembered.read().get(token).cloned();
        let claims = match known {
            Some(claims) => claims,
            None => {
                let claims = self.signed(token)?;
                let mut remembered = self.remembered.write();
                if remembered.len() >= REMEMBERED_MAX {
                    remembered.clear();
                }
                remembered.insert(token.into(), claims.clone());
                claims
            }
        };
        if claims.exp <= now {
            return Err(TokenError::Expired);
        }
        if claims.nbf > now.saturating_add(LEEWAY_SECONDS) {
            return Err(TokenError::NotYetValid);
        }
        Ok(claims)
    }

    /// What a token says that this realm signed, whenever that was.
    fn signed(&self, text: &str) -> Result<Claims, TokenError> {
        let token = Some(text).filter(|t| t.len() <= TOKEN_MAX_BYTES).and_then(Token::read);
        let token = token.ok_or(TokenError::Malformed)?;
        let ring = self.keys.ring().map_err(|_| TokenError::UnknownKey)?;
        if !ring.keys.knows(&token) {
            // Who it claims to be from makes the better message; nothing else of it is believed.
            let issuer = token.claimed_issuer();
            let ours = issuer.is_empty() || issuer == self.issuer;
            return Err(if ours {
                TokenError::UnknownKey
            } else {
                TokenError::ForeignIssuer(issuer.to_string())
            });
        }
        let claims = ring.keys.claims(&token).ok_or(TokenError::Forged)?;
        let claims = Claims::deserialize(claims).map_err(|_| TokenError::Malformed)?;
        if claims.iss != self.issuer {
            return Err(TokenError::ForeignIssuer(claims.iss));
        }
        Ok(claims)
    }

    /// The public keys as a JSON Web Key Set.
    pub fn jwks(&self) -> Value {
        json!({"keys": self.keys.ring().map(|r| r.published.clone()).unwrap_or_default()})
    }

    /// The OpenID Connect discovery document.
    pub fn discovery(&self) -> Value {
        let published = self.keys.ring().map(|r| r.published.as_slice()).unwrap_or_default();
        let algorithms: BTreeSet<&str> = published.iter().filter_map(|k| k["alg"].as_str()).collect();
        json!({"issuer": self.issuer, "jwks_uri": format!("{}{JWKS_PATH}", self.issuer),
            "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms})
    }
}

impl Claims {
    /// The audiences of `wanted` that the token is meant for; an error when there is none.
    pub fn audiences(&self, wanted: &[String]) -> Result<Vec<String>, TokenError> {
        let both: Vec<String> = wanted.iter().filter(|a| self.aud.contains(a)).cloned().collect();
        if both.is_empty() {
            return Err(TokenError::Audience(self.aud.clone(), wanted.to_vec()));
        }
        Ok(both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    fn decode(part: &str) -> Value {
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    fn tokens(issuer: &str) -> ServiceTokens {
        ServiceTokens::load_or_create(tempfile::tempdir().unwrap().path(), issuer).unwrap()
    }

    static TOKENS: LazyLock<ServiceTokens> = LazyLock::new(|| tokens(ISSUER));

    fn claims() -> Claims {
        Claims {
            aud: vec![ISSUER.into()],
            exp: 2_000,
            iat: 1_000,
            nbf: 1_000,
            iss: ISSUER.into(),
            jti: "j".into(),
            sub: account_user("n", "a"),
            bound: Bound {
                namespace: "n".into(),
                serviceaccount: Reference { name: "a".into(), uid: "u".into() },
                pod: Some(Reference { name: "p".into(), uid: "pu".into() }),
                ..Bound::default()
            },
        }
    }

    #[test]
    fn a_token_says_what_was_signed_and_survives_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let load = || ServiceTokens::load_or_create(folder.path(), ISSUER).unwrap();
        let token = load().sign(&claims()).unwrap();
        assert_eq!(load().verify(&token, 1_500), Ok(claims()));
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(folder.path().join("sa.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let body = decode(token.split('.').nth(1).unwrap());
        assert_eq!(body["kubernetes.io"]["pod"], json!({"name": "p", "uid": "pu"}));
        assert_eq!(body["sub"], "system:serviceaccount:n:a");
        let jwks = load().jwks();
        let header = decode(token.split('.').next().unwrap());
        assert_eq!(header["kid"], jwks["keys"][0]["kid"]);
        assert_eq!(jwks["keys"][0]["x"].as_str().unwrap().len(), 43);
    }

    #[test]
    fn every_wrong_token_is_refused_for_its_own_reason() {
        let token = TOKENS.sign(&claims()).unwrap();
        assert_eq!(TOKENS.verify(&token, 2_000), Err(TokenError::Expired));
        assert_eq!(TOKENS.verify(&token, 900), Err(TokenError::NotYetValid));
        let (text, _) = token.rsplit_once('.').unwrap();
        let forged = format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode([1; 64]));
        assert_eq!(TOKENS.verify(&forged, 1_500), Err(TokenError::Forged));
        let mut other = claims();
        other.bound.serviceaccount.name = "root".into();
        let body = BASE64_URL_SAFE_NO_PAD.encode(json!(other).to_string());
        let parts: Vec<&str> = token.split('.').collect();
        let swapped = format!("{}.{body}.{}", parts[0], parts[2]);
        assert_eq!(TOKENS.verify(&swapped, 1_500), Err(TokenError::Forged));
        assert_eq!(tokens(ISSUER).verify(&token, 1_500), Err(TokenError::UnknownKey));
        let foreign = tokens("https://other").sign(&Claims { iss: "https://other".into(), ..claims() });
        let error = TOKENS.verify(&foreign.unwrap(), 1_500);
        assert_eq!(error, Err(TokenError::ForeignIssuer("https://other".into())));
        let same_key = TOKENS.sign(&Claims { iss: "https://other".into(), ..claims() }).unwrap();
        assert_eq!(TOKENS.verify(&same_key, 1_500), Err(TokenError::ForeignIssuer("https://other".into())));
        let none = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "none"}).to_string());
        assert_eq!(TOKENS.verify(&format!("{none}.{}.", parts[1]), 1_500), Err(TokenError::UnknownKey));
        assert_eq!(TOKENS.verify(&"x".repeat(TOKEN_MAX_BYTES + 1), 0), Err(TokenError::Malformed));
    }

    #[test]
    fn a_remembered_token_still_expires_and_memory_is_bounded() {
        let tokens = tokens(ISSUER);
        let token = tokens.sign(&claims()).unwrap();
        for now in [1_500, 1_600] {
            assert_eq!(tokens.verify(&token, now), Ok(claims()));
        }
        assert_eq!(tokens.remembered.read().len(), 1);
        assert_eq!(tokens.verify(&token, 2_000), Err(TokenError::Expired));
        let texts: Vec<Box<str>> = (0..REMEMBERED_MAX).map(|n| n.to_string().into()).collect();
        tokens.remembered.write().extend(texts.into_iter().map(|t| (t, claims())));
        let other = tokens.sign(&Claims { jti: "k".into(), ..claims() }).unwrap();
        tokens.verify(&other, 1_500).unwrap();
        assert_eq!(tokens.remembered.read().len(), 1);
        assert!(tokens.verify("a.b.c", 1_500).is_err());
        assert_eq!(tokens.remembered.read().len(), 1, "what is refused is not remembered");
    }

    #[test]
    fn audiences_meet_or_not() {
        let list = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect::<Vec<_>>();
        let claims = Claims { aud: list(&["a", "b"]), ..Claims::default() };
        assert_eq!(claims.audiences(&list(&["b", "c"])), Ok(list(&["b"])));
        assert!(matches!(claims.audiences(&list(&["c"])), Err(TokenError::Audience(..))));
    }

    proptest! {
        #[test]
        fn hostile_text_is_refused(text in ".{0,80}") {
            prop_assert!(TOKENS.verify(&text, 1_500).is_err());
        }

        /// Three base64 parts with any JSON of the right shape, signed by nobody.
        #[test]
        fn hostile_parts_are_refused(header in "\\{\"alg\":\"(ES256|none|HS256)\"(,\"kid\":\"[a-z]{0,3}\")?\\}", body in "(\\{.{0,30}\\}|[\\[{]{0,40})", signature in prop::collection::vec(any::<u8>(), 0..80)) {
            let part = |t: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(t);
            let token = format!("{}.{}.{}", part(header.as_bytes()), part(body.as_bytes()), part(&signature));
            prop_assert!(TOKENS.verify(&token, 1_500).is_err());
        }

        /// One flipped byte anywhere breaks a token.
        #[test]
        fn a_changed_token_is_refused(at in any::<prop::sample::Index>(), flip in 1u8..128) {
            let token = TOKENS.sign(&claims()).unwrap();
            let mut bytes = token.clone().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            let Ok(changed) = String::from_utf8(bytes) else { return Ok(()) };
            prop_assert!(TOKENS.verify(&changed, 1_500).is_err(), "{changed}");
        }
    }
}
