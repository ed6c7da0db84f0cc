//! Who a caller is: certificates, front proxies, tokens, nobody.
//!
//! The order is upstream's: front proxy, certificate, tokens (this cluster's, then those of providers and reviewers
//! outside), and where no credential was shown the anonymous user, if such a request may have one.
//! Static token files are not served: such tokens never end.

mod claims;
mod oidc;
mod provider;
mod webhook;

pub use claims::Provider;
pub use oidc::Oidc;
pub use provider::OidcFlags;
pub(crate) use provider::{expression, sentence};
pub use webhook::TokenWebhook;

use crate::Api;
use crate::aggregation;
use crate::config::{NameResolver, TokenAuthenticator};
use crate::http::{Inbound, Peer};
use async_trait::async_trait;
use auth::Identity;
use http::header;
use machinery::status::ApiError;
use parking_lot::RwLock;
use serde::Deserialize;
use std::sync::Arc;

/// Requests without credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// Are the anonymous user's.
    #[default]
    Allowed,
    /// Are refused.
    Refused,
    /// Are the anonymous user's at these paths only.
    At(Vec<String>),
}

impl Anonymous {
    fn allows(&self, path: &str) -> bool {
        match self {
            Anonymous::Allowed => true,
            Anonymous::Refused => false,
            Anonymous::At(paths) => paths.iter().any(|p| p == path),
        }
    }
}

/// Several authenticators: the first that knows a token decides.
pub struct Chain(pub Vec<Arc<dyn TokenAuthenticator>>);

#[async_trait]
impl TokenAuthenticator for Chain {
    async fn authenticate(&self, token: &str) -> Option<Identity> {
        for one in &self.0 {
            if let Some(identity) = one.authenticate(token).await {
                return Some(identity);
            }
        }
        None
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Condition {
    path: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct AnonymousFile {
    enabled: bool,
    conditions: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct File {
    kind: String,
    api_version: String,
    jwt: Vec<provider::Written>,
    anonymous: Option<AnonymousFile>,
}

/// An `AuthenticationConfiguration`, read and checked.
#[derive(Debug, Default)]
pub struct AuthenticationFile {
    /// The providers.
    pub providers: Vec<Provider>,
    /// Requests without credentials.
    pub anonymous: Anonymous,
}

impl AuthenticationFile {
    /// Reads YAML or JSON; the error is a sentence. `own_issuers`: whose tokens no provider may claim to issue.
    pub fn read(text: &[u8], own_issuers: &[String]) -> Result<AuthenticationFile, String> {
        let value = machinery::body::yaml(text).map_err(|e| e.message)?.value;
        let file: File = serde_json::from_value(value).map_err(|e| e.to_string())?;
        let known = file.api_version.starts_with("apiserver.config.k8s.io/v1");
        if file.kind != "AuthenticationConfiguration" || !known {
            return Err(format!("{}/{} is no AuthenticationConfiguration", file.api_version, file.kind));
        }
        let anonymous = match file.anonymous {
            None => Anonymous::Allowed,
            Some(a) if !a.enabled && !a.conditions.is_empty() => {
                return Err(
                    "anonymous.conditions: Invalid value: enabled should be set to true when conditions are defined"
                        .into(),
                );
            }
            Some(a) if !a.enabled => Anonymous::Refused,
            Some(a) if a.conditions.is_empty() => Anonymous::Allowed,
            Some(a) => Anonymous::At(a.conditions.into_iter().map(|c| c.path).collect()),
        };
        Ok(AuthenticationFile { providers: provider::compile_all(file.jwt, own_issuers)?, anonymous })
    }
}

/// Providers that can be replaced while the server runs.
pub struct Providers {
    now: RwLock<Arc<Chain>>,
    resolver: Option<Arc<dyn NameResolver>>,
}

impl Providers {
    /// These, to begin with.
    pub fn new(providers: Vec<Provider>, resolver: &Option<Arc<dyn NameResolver>>) -> Providers {
        let all = Providers { now: RwLock::new(Arc::new(Chain(Vec::new()))), resolver: resolver.clone() };
        all.replace(providers);
        all
    }

    /// These from now on; their keys are fetched when a token comes.
    pub fn replace(&self, providers: Vec<Provider>) {
        let clock = Arc::new(jiff::Timestamp::now);
        let oidc = |p| Arc::new(Oidc::new(p, self.resolver.clone(), clock.clone())) as Arc<_>;
        *self.now.write() = Arc::new(Chain(providers.into_iter().map(oidc).collect()));
    }
}

#[async_trait]
impl TokenAuthenticator for Providers {
    async fn authenticate(&self, token: &str) -> Option<Identity> {
        let now = self.now.read().clone();
        now.authenticate(token).await
    }
}

/// Authenticators of tokens from outside, in order.
pub fn outside(providers: Arc<Providers>, webhook: Option<TokenWebhook>) -> Arc<dyn TokenAuthenticator> {
    let mut all: Vec<Arc<dyn TokenAuthenticator>> = vec![providers];
    all.extend(webhook.map(|w| Arc::new(w) as Arc<_>));
    Arc::new(Chain(all))
}

fn unauthorized() -> ApiError {
    ApiError::new(401, "Unauthorized", "Unauthorized")
}

/// Who makes a request.
pub(crate) async fn authenticate(
    api: &Api,
    peer: Peer,
    inbound: &Inbound,
) -> Result<Arc<Identity>, ApiError> {
    let credentials = inbound.header(header::AUTHORIZATION);
    match peer {
        Peer::Known(identity) => return Ok(identity),
        // A front proxy that names nobody is nobody either, but its other credentials count.
        Peer::FrontProxy => match aggregation::named_by(inbound.request.headers()) {
            Some(identity) => return Ok(Arc::new(identity)),
            None if credentials.is_empty() => return Err(unauthorized()),
            None => {}
        },
        Peer::Unknown => {}
    }
    if credentials.is_empty() {
        let allowed = api.config.anonymous.allows(inbound.request.uri().path());
        return if allowed { Ok(Arc::new(Identity::anonymous())) } else { Err(unauthorized()) };
    }
    let token = credentials.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    if let Some((_, token)) = token {
        match api.bearer(token.trim(), &api.own_audiences()).await {
            Ok(Some(bearer)) => return Ok(Arc::new(bearer.identity)),
            Ok(None) => {}
            Err(error) => tracing::info!(%error, "a bearer token was refused"),
        }
    }
    Err(unauthorized())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read_and_what_is_not_understood_is_refused() {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n";
        let jwt = "jwt:\n- issuer: {url: 'https://i', audiences: [me]}\n  claimMappings:\n    username: {claim: sub, prefix: ''}\n";
        let anonymous = "anonymous: {enabled: true, conditions: [{path: /livez}]}\n";
        let read = |text: String| AuthenticationFile::read(text.as_bytes(), &["https://own".to_string()]);
        let file = read(format!("{head}{jwt}{anonymous}")).unwrap();
        assert_eq!(file.providers.len(), 1);
        assert!(file.anonymous.allows("/livez") && !file.anonymous.allows("/api"));
        assert_eq!(
            read(format!("{head}anonymous: {{enabled: false}}")).unwrap().anonymous,
            Anonymous::Refused
        );
        for bad in [
            jwt.to_string(),
            format!("{head}jwt: [{{issuer: {{url: 'http://i', audiences: [me]}}}}]"),
            format!("{head}jwt: [{{issuer: {{url: 'https://i'}}}}]"),
            format!("{head}{}", jwt.replace("https://i", "https://own")),
            format!("{head}anonymous: {{enabled: false, conditions: [{{path: /livez}}]}}"),
            format!("{head}unknown: 1"),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
