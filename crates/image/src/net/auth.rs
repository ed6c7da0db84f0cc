//! A registry's challenge (`WWW-Authenticate`), and the token that answers it.

use super::http::{Ask, Manners, NetError, Trust, get};
use super::keyring::Credentials;
use super::url::Url;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use std::fmt::Write;

/// What stays as it is in a part of a query.
const PLAIN: &[u8] = b"-._~:/,";
/// A larger answer is no token.
const TOKEN_BYTES: u64 = 64 << 10;

/// What a registry wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    /// Reads a header; the first scheme that we know wins, `Bearer` over `Basic`.
    pub(crate) fn parse(header: &str) -> Option<Challenge> {
        let lower = header.to_ascii_lowercase();
        let Some(at) = lower.find("bearer ") else {
            return lower.trim_start().starts_with("basic").then_some(Challenge::Basic);
        };
        let field = |name: &str| parameter(&header[at + "bearer ".len()..], name).unwrap_or_default();
        Some(Challenge::Bearer { realm: field("realm"), service: field("service"), scope: field("scope") })
    }
}

/// One `name="value"` of a list.
fn parameter(mut rest: &str, wanted: &str) -> Option<String> {
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        let (name, after) = rest.split_once('=')?;
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value.to_string());
        }
        rest = next;
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    /// The registry wants a name and a password, and we have none.
    #[error("no basic auth credentials")]
    NoCredentials,
    /// The challenge cannot be met.
    #[error("{0}")]
    Challenge(String),
    /// The token server refuses.
    #[error("failed to fetch {kind} token: unexpected status from GET request to {realm}: {status}")]
    Refused { kind: &'static str, realm: String, status: http::StatusCode },
    /// No answer.
    #[error(transparent)]
    Net(#[from] NetError),
}

/// The value of the `Authorization` header that meets a challenge of `registry` for reading `repository`.
pub(crate) async fn authorize(
    challenge: &Challenge,
    registry: &Url,
    repository: &str,
    credentials: Option<&Credentials>,
    manners: &Manners,
) -> Result<String, AuthError> {
    let Challenge::Bearer { realm, service, scope } = challenge else {
        return credentials.map(Credentials::basic).ok_or(AuthError::NoCredentials);
    };
    let bad = |why: &str| AuthError::Challenge(format!("token realm {realm:?}: {why}"));
    let mut url = Url::parse(realm).ok_or_else(|| bad("not a URL"))?;
    if registry.tls && !url.tls {
        return Err(bad("an encrypted registry may not send us to an unencrypted token server"));
    }
    let own = format!("repository:{repository}:pull");
    let scope = if scope.is_empty() { &own } else { scope };
    let joint = if url.path.contains('?') { '&' } else { '?' };
    let part = |text: &str| stdx::percent(text, PLAIN);
    let _ = write!(url.path, "{joint}service={}&scope={}", part(service), part(scope));
    let headers: Vec<(&str, String)> =
        credentials.map(|c| (AUTHORIZATION.as_str(), c.basic())).into_iter().collect();
    let near = url.host == registry.host || !registry.tls;
    let trust = if near { Trust::Named } else { Trust::Told };
    let reply = get(Ask { url: &url, trust, headers: &headers }, manners).await?;
    if !reply.status.is_success() {
        let kind = if credentials.is_some() { "oauth" } else { "anonymous" };
        return Err(AuthError::Refused { kind, realm: realm.clone(), status: reply.status });
    }
    let body = reply.small(TOKEN_BYTES).await?.ok_or_else(|| bad("the answer is too large"))?;
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| bad("the answer holds no token"))?;
    let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token).filter(|t| !t.is_empty());
    token.map(|token| format!("Bearer {token}")).ok_or_else(|| bad("the answer holds no token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: &str, scope: &str| {
            Some(Challenge::Bearer { realm: realm.into(), service: service.into(), scope: scope.into() })
        };
        let header = r#"Bearer realm="https://a.io/token",service="r.io",scope="repository:x:pull,push""#;
        assert_eq!(Challenge::parse(header), bearer("https://a.io/token", "r.io", "repository:x:pull,push"));
        assert_eq!(
            Challenge::parse("bearer Realm=https://a.io/t, service=s"),
            bearer("https://a.io/t", "s", "")
        );
        assert_eq!(Challenge::parse(r#"Basic realm="x""#), Some(Challenge::Basic));
        assert_eq!(Challenge::parse(r#"Basic realm="x", Bearer realm="y""#), bearer("y", "", ""));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer realm"), bearer("", "", ""));
        assert_eq!(stdx::percent("a b&c=d/é", PLAIN), "a%20b%26c%3Dd/%C3%A9");
    }
}
