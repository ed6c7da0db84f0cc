//! Tokens of OpenID providers: a provider's keys, a token's parts, its signature. Pure.
//!
//! Invariants: a token is read as bytes of bounded length; `alg` decides how a signature is checked only among
//! asymmetric algorithms, and only with a key of that very kind; nothing unsigned is ever accepted.
//! Deliberately not here: fetching keys, what claims mean (`apiserver::authn`).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::Value;

/// A longer text is no token.
const TOKEN_MAX: usize = 64 << 10;
/// Keys of one provider that are kept.
const KEYS_MAX: usize = 64;

/// RSA algorithms by their names in tokens.
const RSA: [(&str, &RsaParameters); 6] = [
    ("RS256", &RSA_PKCS1_2048_8192_SHA256),
    ("RS384", &RSA_PKCS1_2048_8192_SHA384),
    ("RS512", &RSA_PKCS1_2048_8192_SHA512),
    ("PS256", &RSA_PSS_2048_8192_SHA256),
    ("PS384", &RSA_PSS_2048_8192_SHA384),
    ("PS512", &RSA_PSS_2048_8192_SHA512),
];

/// Curves by algorithm: name of the curve, octets of a coordinate.
fn curve(alg: &str) -> Option<(&'static str, usize, &'static dyn VerificationAlgorithm)> {
    match alg {
        "ES256" => Some(("P-256", 32, &ECDSA_P256_SHA256_FIXED)),
        "ES384" => Some(("P-384", 48, &ECDSA_P384_SHA384_FIXED)),
        _ => None,
    }
}

enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Point { curve: String, point: Vec<u8> },
}

struct Key {
    kid: String,
    material: Material,
}

/// A provider's public keys (a JWK set).
#[derive(Default)]
pub struct Keys(Vec<Key>);

/// A token's parts; nothing of it is trusted yet.
pub struct Token<'a> {
    alg: String,
    kid: String,
    claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

fn octets(value: &Value) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(value.as_str()?.trim_end_matches('=')).ok()
}

impl Keys {
    /// Reads a JWK set; keys of other kinds and uses are left out.
    pub fn read(set: &Value) -> Keys {
        let all = set["keys"].as_array().into_iter().flatten();
        Keys(all.filter_map(Key::read).take(KEYS_MAX).collect())
    }

    /// Does one of them carry this token's name?
    pub fn knows(&self, token: &Token<'_>) -> bool {
        self.0.iter().any(|key| key.kid == token.kid)
    }

    /// The claims, when one of the keys signed them.
    pub fn claims<'t>(&self, token: &'t Token<'_>) -> Option<&'t Value> {
        let named = |key: &&Key| token.kid.is_empty() || key.kid.is_empty() || key.kid == token.kid;
        self.0.iter().filter(named).any(|key| key.signed(token)).then_some(&token.claims)
    }
}

impl Key {
    fn read(jwk: &Value) -> Option<Key> {
        if jwk["use"].as_str().is_some_and(|u| u != "sig") {
            return None;
        }
        let kid = jwk["kid"].as_str().unwrap_or_default().to_string();
        let material = match jwk["kty"].as_str()? {
            "RSA" => Material::Rsa { n: octets(&jwk["n"])?, e: octets(&jwk["e"])? },
            "EC" => {
                let point = [&[4][..], &octets(&jwk["x"])?, &octets(&jwk["y"])?].concat();
                Material::Point { curve: jwk["crv"].as_str()?.to_string(), point }
            }
            _ => return None,
        };
        Some(Key { kid, material })
    }

    fn signed(&self, token: &Token<'_>) -> bool {
        let (text, signature) = (token.signed.as_bytes(), &token.signature);
        match &self.material {
            Material::Rsa { n, e } => {
                let Some((_, parameters)) = RSA.iter().find(|(name, _)| *name == token.alg) else {
                    return false;
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, text, signature).is_ok()
            }
            Material::Point { curve: own, point } => {
                let Some((name, octets, algorithm)) = curve(&token.alg) else { return false };
                *own == name
                    && point.len() == 2 * octets + 1
                    && UnparsedPublicKey::new(algorithm, point).verify(text, signature).is_ok()
            }
        }
    }
}

impl<'a> Token<'a> {
    /// Takes a token apart; `None` when it is no signed JWT.
    pub fn read(text: &'a str) -> Option<Token<'a>> {
        if text.len() > TOKEN_MAX {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (head, body) = signed.split_once('.')?;
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).ok();
        let head: Value = serde_json::from_slice(&part(head)?).ok()?;
        let claims: Value = serde_json::from_slice(&part(body)?).ok()?;
        claims.as_object()?;
        let text = |field: &str| head[field].as_str().unwrap_or_default().to_string();
        // Extensions that must be understood are not.
        if !head["crit"].is_null() {
            return None;
        }
        Some(Token { alg: text("alg"), kid: text("kid"), claims, signed, signature: part(signature)? })
    }

    /// Who it says issued it.
    pub fn claimed_issuer(&self) -> &str {
        self.claims["iss"].as_str().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn issuer() -> (crate::ServiceTokens, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (crate::ServiceTokens::load_or_create(folder.path(), "https://issuer".to_string()).unwrap(), folder)
    }

    fn token(tokens: &crate::ServiceTokens) -> String {
        let bound = crate::tokens::Bound::default();
        let (iss, sub) = ("https://issuer".to_string(), "system:serviceaccount:n:a".to_string());
        let claims = crate::tokens::Claims {
            aud: vec!["me".into()],
            exp: 2,
            iat: 1,
            iss,
            jti: "j".into(),
            nbf: 1,
            sub,
            bound,
        };
        tokens.sign(&claims).unwrap()
    }

    #[test]
    fn a_providers_key_verifies_and_another_does_not() {
        let ((ours, _a), (others, _b)) = (issuer(), issuer());
        let text = token(&ours);
        let token = Token::read(&text).unwrap();
        assert_eq!(token.claimed_issuer(), "https://issuer");
        let keys = Keys::read(&ours.jwks());
        assert!(keys.knows(&token));
        assert_eq!(keys.claims(&token).unwrap()["aud"], json!(["me"]));
        let other = Keys::read(&others.jwks());
        assert!(!other.knows(&token) && other.claims(&token).is_none());
        let mut nameless = others.jwks();
        nameless["keys"][0].as_object_mut().unwrap().remove("kid");
        assert!(Keys::read(&nameless).claims(&token).is_none(), "tried, and wrong");
    }

    #[test]
    fn what_is_unsigned_or_symmetric_is_nothing() {
        let (ours, _folder) = issuer();
        let text = token(&ours);
        let body = text.split('.').nth(1).unwrap();
        for alg in ["none", "HS256", "RS256", ""] {
            let head = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": alg}).to_string());
            let forged = format!("{head}.{body}.{}", BASE64_URL_SAFE_NO_PAD.encode("x"));
            let token = Token::read(&forged).unwrap();
            assert!(Keys::read(&ours.jwks()).claims(&token).is_none(), "{alg}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[A-Za-z0-9._-]{0,200}") {
            if let Some(token) = Token::read(&text) {
                prop_assert!(Keys::default().claims(&token).is_none());
            }
        }
    }
}
