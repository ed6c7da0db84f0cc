//! AWS access keys: configured pairs, and temporary ones that carry all that is known of them in their token.
//!
//! A session token is `base64(JSON facts ‖ HMAC)`; the temporary secret is derived from the token with the same
//! master key, so nothing is stored and any process with the key file can check it. Invariants: the master key is on
//! disk (mode 0600) before it is used; a token of another master is never accepted.
//! Deliberately not here: signatures ([`crate::sigv4`]), what a caller may do.

use crate::ca::{read, write_private};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A longer text is no token of ours.
const TOKEN_MAX_BYTES: usize = 8 << 10;
const TAG_BYTES: usize = 32;
/// Secrets shorter than this are known words (`testing`): they are good on this machine only.
const SECRET_MIN: usize = 16;

/// Why keys could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] crate::CaError),
    /// The file is not what we wrote.
    #[error("{0}: not an AWS key file")]
    Damaged(&'static str),
    /// No random numbers.
    #[error("no random numbers")]
    Random,
    /// A configured pair that is none.
    #[error("{0:?} is not of the form key:secret[@account]")]
    Pair(String),
}

/// Why a key is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No such key, or a token that is not its own.
    #[error("The security token included in the request is invalid.")]
    Unknown,
    /// Its time has come.
    #[error("The security token included in the request is expired")]
    Expired,
}

/// Whom a key speaks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Principal {
    /// 12 digits.
    pub account: String,
    /// `arn:aws:sts::123456789012:assumed-role/web/session`.
    pub arn: String,
    /// What `GetCallerIdentity` calls `UserId`.
    pub user_id: String,
}

impl Principal {
    /// The account itself.
    pub fn root(account: &str) -> Principal {
        Principal {
            account: account.into(),
            arn: format!("arn:aws:iam::{account}:root"),
            user_id: account.into(),
        }
    }
}

/// A key with its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// `AKIA…`.
    pub access_key: String,
    /// The secret.
    pub secret: String,
}

/// Temporary credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Temporary {
    /// Key and secret.
    pub pair: Pair,
    /// Goes with every request.
    pub token: String,
    /// Seconds since 1970.
    pub expires: i64,
}

/// What a token says.
#[derive(Serialize, Deserialize)]
struct Facts {
    k: String,
    p: Principal,
    e: i64,
}

struct Fixed {
    secret: String,
    principal: Principal,
}

/// All keys of an instance.
pub struct AccessKeys {
    fixed: BTreeMap<String, Fixed>,
    own: Pair,
    master: hmac::Key,
    random: SystemRandom,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    master: String,
    own: Pair,
}

const FILE: &str = "aws.key";
/// What the ids of lasting keys begin with.
pub const USER_KEY: &str = "AKIA";

/// The pair that was made for this instance; `None` before its first start.
pub fn generated(folder: &Path) -> Option<Pair> {
    let stored: Stored = serde_json::from_str(&read(&folder.join(FILE)).ok()?).ok()?;
    Some(stored.own)
}

impl AccessKeys {
    /// Reads `aws.key` in `folder`, or makes it with a pair of its own. `pairs`: `key:secret[@account],…`.
    ///
    /// # Errors
    /// The file, or a pair that is none.
    pub fn load_or_create(folder: &Path, account: &str, pairs: &str) -> Result<AccessKeys, AccessError> {
        let (path, random) = (folder.join(FILE), SystemRandom::new());
        if !path.exists() {
            let mut bytes = [0; 64];
            random.fill(&mut bytes).map_err(|_| AccessError::Random)?;
            let own =
                Pair { access_key: key_id(USER_KEY, &bytes[32..42]), secret: secret_text(&bytes[34..]) };
            let stored = Stored { version: 1, master: BASE64_STANDARD.encode(&bytes[..32]), own };
            write_private(&path, &serde_json::to_string(&stored).map_err(|_| AccessError::Damaged(FILE))?)?;
        }
        let stored: Stored = serde_json::from_str(&read(&path)?).map_err(|_| AccessError::Damaged(FILE))?;
        let master = BASE64_STANDARD.decode(&stored.master).map_err(|_| AccessError::Damaged(FILE))?;
        let mut fixed = BTreeMap::new();
        for pair in pairs.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let wrong = || AccessError::Pair(pair.into());
            let (key, rest) = pair.split_once(':').ok_or_else(wrong)?;
            let (secret, of) = rest.rsplit_once('@').unwrap_or((rest, account));
            if key.is_empty()
                || secret.is_empty()
                || of.len() != 12
                || !of.bytes().all(|b| b.is_ascii_digit())
            {
                return Err(wrong());
            }
            fixed.insert(key.into(), Fixed { secret: secret.into(), principal: Principal::root(of) });
        }
        let own = Fixed { secret: stored.own.secret.clone(), principal: Principal::root(account) };
        fixed.insert(stored.own.access_key.clone(), own);
        let master = hmac::Key::new(hmac::HMAC_SHA256, &master);
        Ok(AccessKeys { fixed, own: stored.own, master, random })
    }

    /// The pair that was made for this instance.
    pub fn own(&self) -> &Pair {
        &self.own
    }

    /// The secret of a key and whom it speaks for. `near`: the caller is on this machine; `now` in seconds.
    ///
    /// # Errors
    /// There is no such key here and now.
    pub fn find(
        &self,
        access_key: &str,
        token: Option<&str>,
        near: bool,
        now: i64,
    ) -> Result<(String, Principal), KeyError> {
        if let Some(token) = token.filter(|t| !t.is_empty()) {
            let facts = self.facts(token).filter(|f| f.k == access_key).ok_or(KeyError::Unknown)?;
            if facts.e <= now {
                return Err(KeyError::Expired);
            }
            return Ok((self.secret_of(token), facts.p));
        }
        let fixed = self.fixed.get(access_key).filter(|f| near || f.secret.len() >= SECRET_MIN);
        fixed.map(|f| (f.secret.clone(), f.principal.clone())).ok_or(KeyError::Unknown)
    }

    /// Is it one of the configured pairs, or this instance's own?
    pub fn is_configured(&self, access_key: &str) -> bool {
        self.fixed.contains_key(access_key)
    }

    /// A new pair for a user, whose secret only the id and the master key tell.
    ///
    /// # Errors
    /// No random numbers.
    pub fn user_pair(&self) -> Result<Pair, AccessError> {
        let mut bytes = [0; 10];
        self.random.fill(&mut bytes).map_err(|_| AccessError::Random)?;
        let access_key = key_id(USER_KEY, &bytes);
        let secret = self.user_secret(&access_key);
        Ok(Pair { access_key, secret })
    }

    /// The secret of such a pair. Whether it is good, who keeps the ids knows.
    pub fn user_secret(&self, access_key: &str) -> String {
        secret_text(hmac::sign(&self.master, format!("user\n{access_key}").as_bytes()).as_ref())
    }

    /// New credentials for somebody, until `expires` (seconds since 1970).
    ///
    /// # Errors
    /// No random numbers.
    pub fn issue(&self, principal: Principal, expires: i64) -> Result<Temporary, AccessError> {
        let mut bytes = [0; 10];
        self.random.fill(&mut bytes).map_err(|_| AccessError::Random)?;
        let access_key = key_id("ASIA", &bytes);
        let facts = Facts { k: access_key.clone(), p: principal, e: expires };
        let mut body = serde_json::to_vec(&facts).map_err(|_| AccessError::Damaged(FILE))?;
        body.extend_from_slice(hmac::sign(&self.master, &body).as_ref());
        let token = BASE64_STANDARD.encode(body);
        Ok(Temporary { pair: Pair { access_key, secret: self.secret_of(&token) }, token, expires })
    }

    /// A password of limited life for one purpose, which says for itself whose it is.
    ///
    /// # Errors
    /// Never in practice: the facts always serialize.
    pub fn ticket(&self, purpose: &str, principal: Principal, expires: i64) -> Result<String, AccessError> {
        let facts = Facts { k: purpose.into(), p: principal, e: expires };
        let mut body = serde_json::to_vec(&facts).map_err(|_| AccessError::Damaged(FILE))?;
        let tag = hmac::sign(&self.master, &ticket_text(purpose, &body));
        body.extend_from_slice(tag.as_ref());
        Ok(BASE64_STANDARD.encode(body))
    }

    /// Whose such a password is; `now` in seconds.
    ///
    /// # Errors
    /// It is none of ours for that purpose, or its time has come.
    pub fn holder(&self, purpose: &str, ticket: &str, now: i64) -> Result<Principal, KeyError> {
        let facts = self.sealed(ticket, |body| ticket_text(purpose, body)).ok_or(KeyError::Unknown)?;
        if facts.e <= now { Err(KeyError::Expired) } else { Ok(facts.p) }
    }

    /// A text that only this instance can make, for things that it gives out and takes back.
    pub fn seal(&self, purpose: &str, text: &str) -> String {
        hex_tag(&self.master, purpose, text)
    }

    fn facts(&self, token: &str) -> Option<Facts> {
        self.sealed(token, <[u8]>::to_vec)
    }

    /// The facts of a sealed text; `signed`: what its tag is over.
    fn sealed(&self, token: &str, signed: impl Fn(&[u8]) -> Vec<u8>) -> Option<Facts> {
        if token.len() > TOKEN_MAX_BYTES {
            return None;
        }
        let bytes = BASE64_STANDARD.decode(token).ok()?;
        let (body, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG_BYTES)?)?;
        hmac::verify(&self.master, &signed(body), tag).ok()?;
        serde_json::from_slice(body).ok()
    }

    fn secret_of(&self, token: &str) -> String {
        secret_text(hmac::sign(&self.master, format!("secret\n{token}").as_bytes()).as_ref())
    }
}

fn ticket_text(purpose: &str, body: &[u8]) -> Vec<u8> {
    [b"ticket\n", purpose.as_bytes(), b"\n", body].concat()
}

fn hex_tag(key: &hmac::Key, purpose: &str, text: &str) -> String {
    crate::sigv4::hex(hmac::sign(key, format!("seal\n{purpose}\n{text}").as_bytes()).as_ref())
}

/// 40 characters, as AWS's have.
fn secret_text(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(&bytes[..30])
}

/// A key's name: a prefix and 16 of A–Z, 2–7.
fn key_id(prefix: &str, bytes: &[u8]) -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let number = bytes.iter().take(10).fold(0u128, |n, b| n << 8 | u128::from(*b));
    let letters = (0..16).rev().map(|i| char::from(LETTERS[(number >> (5 * i)) as usize & 31]));
    prefix.chars().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(folder: &Path) -> AccessKeys {
        AccessKeys::load_or_create(folder, "123456789012", "testing:testing, k:0123456789abcdef@000000000001")
            .unwrap()
    }

    #[test]
    fn configured_keys_belong_to_accounts_and_short_secrets_to_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        let keys = keys(folder.path());
        let (secret, principal) = keys.find("testing", None, true, 0).unwrap();
        assert_eq!((secret.as_str(), principal.arn.as_str()), ("testing", "arn:aws:iam::123456789012:root"));
        assert_eq!(keys.find("testing", None, false, 0), Err(KeyError::Unknown));
        assert_eq!(keys.find("k", None, false, 0).unwrap().1.account, "000000000001");
        let own = generated(folder.path()).unwrap();
        assert_eq!(keys.find(&own.access_key, None, false, 0).unwrap().0, own.secret);
        assert!(own.access_key.len() == 20 && own.secret.len() == 40);
        for bad in ["x", "a:b@1", ":b", "a:"] {
            assert!(AccessKeys::load_or_create(folder.path(), "123456789012", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ticket_is_for_one_purpose() {
        let folder = tempfile::tempdir().unwrap();
        let keys = keys(folder.path());
        let ticket = keys.ticket("ecr", Principal::root("123456789012"), 1_000).unwrap();
        assert_eq!(keys.holder("ecr", &ticket, 999), Ok(Principal::root("123456789012")));
        assert_eq!(keys.holder("ecr", &ticket, 1_000), Err(KeyError::Expired));
        assert_eq!(keys.holder("other", &ticket, 1), Err(KeyError::Unknown));
        let token = keys.issue(Principal::root("123456789012"), 1_000).unwrap().token;
        assert_eq!(keys.holder("ecr", &token, 1), Err(KeyError::Unknown));
    }

    #[test]
    fn a_token_is_good_until_its_end_and_across_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let who = Principal { account: "123456789012".into(), arn: "arn".into(), user_id: "AROA:s".into() };
        let given = keys(folder.path()).issue(who.clone(), 1_000).unwrap();
        let find =
            |token: &str, now| keys(folder.path()).find(&given.pair.access_key, Some(token), false, now);
        assert_eq!(find(&given.token, 999), Ok((given.pair.secret.clone(), who)));
        assert_eq!(find(&given.token, 1_000), Err(KeyError::Expired));
        assert_eq!(find(&format!("{}AA", given.token), 1), Err(KeyError::Unknown));
        assert_eq!(find("bm9uc2Vuc2U=", 1), Err(KeyError::Unknown));
        assert_eq!(keys(folder.path()).find(&given.pair.access_key, None, true, 1), Err(KeyError::Unknown));
        assert_eq!(
            keys(folder.path()).find("ASIAOTHER", Some(&given.token), true, 1),
            Err(KeyError::Unknown)
        );
        let other = tempfile::tempdir().unwrap();
        assert_eq!(
            keys(other.path()).find(&given.pair.access_key, Some(&given.token), true, 1),
            Err(KeyError::Unknown)
        );
    }
}
