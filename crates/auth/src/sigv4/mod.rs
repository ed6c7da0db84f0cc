//! AWS Signature Version 4, checked: the header form and the presigned form; and made, for our own clients ([`sign`]).
//!
//! Reads a request's head as text and decides; who the key belongs to and what its secret is, is the caller's
//! business ([`crate::access`]). Invariants: a signature is compared in constant time; a request whose `host`
//! (or target, or token) is not signed is refused; the clock is passed in. As on AWS, a signed request may be
//! repeated while it is fresh ([`SKEW_SECONDS`], or the presigned life): replay beyond that is refused.
//! Deliberately not here: error codes of protocols (`aws-server` words them), SigV4A.

mod canonical;
mod chunked;
mod sign;
mod time;

pub use canonical::unescape;
pub use chunked::{ChunkError, Chunks};
pub use sign::Signer;
pub use time::{compact, parse_compact};

use ring::{digest, hmac};

/// Clocks may differ by that much, either way.
pub const SKEW_SECONDS: i64 = 300;
/// Longest life of a presigned request: AWS's week.
pub const EXPIRES_MAX_SECONDS: i64 = 7 * 86_400;
const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// Headers that decide what a request does, or as whom: signed wherever they are sent.
const MUST_BE_SIGNED: [&str; 2] = ["x-amz-target", "x-amz-security-token"];
/// The body is not part of the signature.
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// A request's head as it came.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `POST`.
    pub method: &'a str,
    /// As sent, still percent-encoded.
    pub path: &'a str,
    /// As sent, without `?`; "" when there is none.
    pub query: &'a str,
    /// Names in lower case, in the order they came; `host` among them (HTTP/2 clients send it as `:authority`).
    pub headers: &'a [(String, String)],
}

/// Why a request is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Parts are missing or are not what they should be.
    #[error("{0}")]
    Incomplete(String),
    /// Signed too long ago, or too far ahead.
    #[error("{0}")]
    Time(String),
    /// The signature is another one.
    #[error(
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
         Access Key and signing method. Consult the service documentation for details."
    )]
    Mismatch,
}

/// How the body takes part in the signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// By its hash, in lower-case hex; `None`: the hash of what came.
    Hash(Option<String>),
    /// Not at all.
    Unsigned,
    /// In chunks, each with a signature of its own.
    SignedChunks,
    /// In chunks without signatures.
    UnsignedChunks,
}

/// What a request says about its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// Whose key.
    pub access_key: String,
    /// The session token that goes with a temporary key.
    pub token: Option<String>,
    /// Region of the scope.
    pub region: String,
    /// Service of the scope: `ecs`, `elasticloadbalancing`.
    pub service: String,
    /// Signature in the query, not in a header?
    pub presigned: bool,
    /// What of the body is signed.
    pub payload: Payload,
    /// `YYYYMMDD` of the scope.
    date: String,
    /// `YYYYMMDDTHHMMSSZ`.
    at: String,
    /// Presigned: seconds of life.
    expires: i64,
    signed_headers: Vec<String>,
    signature: Vec<u8>,
}

fn incomplete<T>(why: impl Into<String>) -> Result<T, SignatureError> {
    Err(SignatureError::Incomplete(why.into()))
}

impl<'a> Head<'a> {
    fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The signature's facts; `None` when the request shows no signature at all.
    ///
    /// # Errors
    /// It shows one that is not whole.
    pub fn presented(&self) -> Result<Option<Presented>, SignatureError> {
        let parameters = canonical::parameters(self.query);
        let parameter = |name: &str| parameters.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        if let Some(authorization) = self.header("authorization") {
            return self.header_form(authorization).map(Some);
        }
        match parameter("X-Amz-Algorithm") {
            None => Ok(None),
            Some(ALGORITHM) => self.query_form(parameter).map(Some),
            Some(other) => incomplete(format!("Unsupported AWS 'algorithm': '{other}'.")),
        }
    }

    fn payload(&self) -> Payload {
        match self.header("x-amz-content-sha256") {
            None => Payload::Hash(None),
            Some(UNSIGNED_PAYLOAD) => Payload::Unsigned,
            Some(text) if text == chunked::SIGNED || text == chunked::SIGNED_TRAILER => Payload::SignedChunks,
            Some(text) if text == chunked::UNSIGNED_TRAILER => Payload::UnsignedChunks,
            Some(text) => Payload::Hash(Some(text.to_ascii_lowercase())),
        }
    }

    fn header_form(&self, authorization: &str) -> Result<Presented, SignatureError> {
        let Some(rest) = authorization.strip_prefix(ALGORITHM).filter(|r| r.starts_with([' ', '\t'])) else {
            let word = authorization.split_whitespace().next().unwrap_or_default();
            return incomplete(format!("Unsupported AWS 'algorithm': '{word}'."));
        };
        let part = |name: &str| {
            let mut parts = rest.split(',').filter_map(|p| p.trim().split_once('='));
            parts.find(|(n, _)| *n == name).map(|(_, v)| v)
        };
        let (credential, headers, signature) = (part("Credential"), part("SignedHeaders"), part("Signature"));
        let lacking: String =
            [("Credential", credential), ("Signature", signature), ("SignedHeaders", headers)]
                .iter()
                .filter(|(_, value)| value.is_none())
                .map(|(name, _)| format!("Authorization header requires '{name}' parameter. "))
                .collect();
        let at = self.header("x-amz-date").or(self.header("date"));
        let no_date = "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ";
        let lacking = lacking + if at.is_none() { no_date } else { "" };
        let (Some(credential), Some(headers), Some(signature), Some(at)) =
            (credential, headers, signature, at)
        else {
            return incomplete(format!("{lacking}Authorization={authorization}"));
        };
        let token = self.header("x-amz-security-token").map(String::from);
        presented(
            credential,
            headers,
            signature,
            at,
            Presented { token, payload: self.payload(), ..empty(false) },
        )
    }

    fn query_form<'p>(
        &self,
        parameter: impl Fn(&str) -> Option<&'p str>,
    ) -> Result<Presented, SignatureError> {
        let need = |name: &str| match parameter(name) {
            Some(value) => Ok(value),
            None => incomplete(format!("AWS query-string parameters must include '{name}'.")),
        };
        let expires = need("X-Amz-Expires")?.parse::<i64>().ok();
        let Some(expires) = expires.filter(|e| (0..=EXPIRES_MAX_SECONDS).contains(e)) else {
            return incomplete("X-Amz-Expires must be between 0 and 604800 seconds");
        };
        let token = parameter("X-Amz-Security-Token").map(String::from);
        let (credential, signature) = (need("X-Amz-Credential")?, need("X-Amz-Signature")?);
        let (headers, at) = (need("X-Amz-SignedHeaders")?, need("X-Amz-Date")?);
        presented(
            credential,
            headers,
            signature,
            at,
            Presented { token, expires, payload: self.payload(), ..empty(true) },
        )
        // Who is given a link to S3 sends or fetches what its maker need not know.
        .map(|p| match (p.service.as_str(), &p.payload) {
            ("s3", Payload::Hash(None)) => Presented { payload: Payload::Unsigned, ..p },
            _ => p,
        })
    }
}

fn empty(presigned: bool) -> Presented {
    Presented {
        access_key: String::new(),
        token: None,
        region: String::new(),
        service: String::new(),
        presigned,
        payload: Payload::Unsigned,
        date: String::new(),
        at: String::new(),
        expires: 0,
        signed_headers: Vec::new(),
        signature: Vec::new(),
    }
}

/// Fills in what both forms share.
fn presented(
    credential: &str,
    headers: &str,
    signature: &str,
    at: &str,
    base: Presented,
) -> Result<Presented, SignatureError> {
    // A key may hold slashes, the scope has four parts.
    let mut parts: Vec<&str> = credential.rsplitn(5, '/').collect();
    parts.reverse();
    let [key, date, region, service, "aws4_request"] = parts[..] else {
        return incomplete(format!(
            "Credential must have exactly 5 slash-delimited elements, e.g. \
             keyid/date/region/service/term, got '{credential}'"
        ));
    };
    let Some(seconds) = parse_compact(at) else {
        return incomplete(format!("Date must be in ISO-8601 'basic format'. Got '{at}'."));
    };
    if compact(seconds).get(..8) != Some(date) {
        return incomplete(format!(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: \
             '{date}' != '{}', from '{at}'.",
            &at[..8]
        ));
    }
    let signed_headers: Vec<String> = headers.split(';').map(str::to_string).collect();
    if !signed_headers.iter().any(|h| h == "host" || h == ":authority") {
        return incomplete("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.");
    }
    let Some(signature) = unhex(signature).filter(|s| s.len() == digest::SHA256_OUTPUT_LEN) else {
        return Err(SignatureError::Mismatch);
    };
    let (access_key, region, service) = (key.to_string(), region.to_string(), service.to_string());
    let (date, at) = (date.to_string(), at.to_string());
    Ok(Presented { access_key, region, service, date, at, signed_headers, signature, ..base })
}

impl Presented {
    /// Is the signature fresh? `now` in seconds since 1970.
    ///
    /// # Errors
    /// It is not: AWS's words.
    pub fn check_time(&self, now: i64) -> Result<(), SignatureError> {
        let at = parse_compact(&self.at).unwrap_or_default();
        let life = if self.presigned { self.expires } else { SKEW_SECONDS };
        let stamp = compact(now);
        if at < now - life {
            return Err(SignatureError::Time(format!(
                "Signature expired: {} is now earlier than {} ({stamp} - {} min.)",
                self.at,
                compact(now - life),
                life / 60
            )));
        }
        if at > now + SKEW_SECONDS {
            return Err(SignatureError::Time(format!(
                "Signature not yet current: {} is still later than {} ({stamp} + {} min.)",
                self.at,
                compact(now + SKEW_SECONDS),
                SKEW_SECONDS / 60
            )));
        }
        Ok(())
    }

    /// Is it the signature of this request, by this secret? `body` is all of it as it came (chunks and all).
    ///
    /// # Errors
    /// It is not, or something that must be signed is not.
    pub fn verify(&self, head: &Head<'_>, secret: &str, body: &[u8]) -> Result<(), SignatureError> {
        let there =
            |name: &str| head.header(name).is_some() && !self.signed_headers.iter().any(|h| h == name);
        if let Some(name) = MUST_BE_SIGNED.iter().find(|name| there(name)) {
            return incomplete(format!("'{name}' must be a 'SignedHeader' in the AWS Authorization."));
        }
        let payload = match &self.payload {
            Payload::Hash(None) => hex(digest::digest(&digest::SHA256, body).as_ref()),
            Payload::Hash(Some(said)) => {
                let found = hex(digest::digest(&digest::SHA256, body).as_ref());
                if *said != found {
                    return Err(SignatureError::Mismatch);
                }
                found
            }
            Payload::Unsigned => UNSIGNED_PAYLOAD.to_string(),
            Payload::SignedChunks | Payload::UnsignedChunks => {
                head.header("x-amz-content-sha256").unwrap_or_default().to_string()
            }
        };
        let key = self.signing_key(secret);
        let fits = |canonical: String| {
            let hash = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
            let text = format!("{ALGORITHM}\n{}\n{}\n{hash}", self.at, self.scope());
            hmac::verify(&key, text.as_bytes(), &self.signature).is_ok()
        };
        let canonical =
            |double| canonical::request(head, &self.signed_headers, self.presigned, double, &payload);
        // All services but S3 encode the path once more; clients of S3-like services do not.
        let single = self.service == "s3";
        if fits(canonical(!single)) || (!single && head.path.contains('%') && fits(canonical(false))) {
            return Ok(());
        }
        Err(SignatureError::Mismatch)
    }

    fn scope(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }

    fn signing_key(&self, secret: &str) -> hmac::Key {
        let start = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{secret}").as_bytes());
        [&self.date, &self.region, &self.service, "aws4_request"].iter().fold(start, |key, part| {
            hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref())
        })
    }

    /// Reads a body sent in chunks; their signatures (where they have any) follow this one.
    pub fn chunks(&self, secret: &str) -> Chunks {
        let signed = self.payload == Payload::SignedChunks;
        let key = signed.then(|| self.signing_key(secret));
        Chunks::new(key, format!("{}\n{}", self.at, self.scope()), &self.signature)
    }
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2).map(|p| match p {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
