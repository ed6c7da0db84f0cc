//! OpenID Connect: tokens of providers outside, by their published keys and the operator's rules (`claims`).
//!
//! Keys are fetched when the first token comes and again when a token names an unknown one, at most every
//! [`REFETCH`]. Groups that a token only says who knows are asked there, which answers with a token of its own.

use super::claims::{Provider, Source as ClaimSource, elsewhere};
use crate::config::{NameResolver, TokenAuthenticator};
use crate::outbound::Endpoint;
use async_trait::async_trait;
use auth::Identity;
use auth::oidc::{Keys, Token};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Pause between two fetches of keys: tokens come from anybody.
const REFETCH: Duration = Duration::from_secs(10);
const FETCH_MAX: Duration = Duration::from_secs(10);
/// Keys are fetched anew after this long even when all are known: revoked ones must go.
const KEYS_LIFE: Duration = Duration::from_secs(3_600);
/// Issuers of groups whose keys are kept; beyond it all are forgotten. A provider has one or two.
const ISSUERS_MAX: usize = 16;

#[derive(Default)]
struct Fetched {
    keys: Arc<Keys>,
    at: Option<Instant>,
}

/// Who publishes keys, and what was fetched.
#[derive(Default)]
struct Source {
    issuer: String,
    /// Where its document is; "" is the usual place.
    discovery_url: String,
    fetched: Mutex<Fetched>,
}

/// A provider with its keys.
pub struct Oidc {
    provider: Provider,
    resolver: Option<Arc<dyn NameResolver>>,
    clock: Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>,
    own: Source,
    /// Those who sign groups, by issuer.
    others: parking_lot::Mutex<BTreeMap<String, Arc<Source>>>,
}

impl Oidc {
    /// For a checked provider.
    pub fn new(
        provider: Provider,
        resolver: Option<Arc<dyn NameResolver>>,
        clock: Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>,
    ) -> Oidc {
        let (issuer, discovery_url) = (provider.issuer.url.clone(), provider.issuer.discovery_url.clone());
        let own = Source { issuer, discovery_url, ..Source::default() };
        Oidc { provider, resolver, clock, own, others: parking_lot::Mutex::default() }
    }

    fn endpoint(&self, url: &str) -> Result<Endpoint, String> {
        if !url.starts_with("https://") {
            return Err(format!("{url:?} is no https URL"));
        }
        Endpoint::of_url(url, &self.provider.issuer.certificate_authority, self.resolver.clone())
    }

    async fn fetch(&self, source: &Source) -> Result<Keys, String> {
        let usual = format!("{}/.well-known/openid-configuration", source.issuer.trim_end_matches('/'));
        let url = if source.discovery_url.is_empty() { &usual } else { &source.discovery_url };
        let document = self.endpoint(url)?.get(FETCH_MAX).await?;
        if document["issuer"].as_str() != Some(&source.issuer) {
            return Err(format!(
                "issuer did not match: expected {:?} got {}",
                source.issuer, document["issuer"]
            ));
        }
        let keys = self.endpoint(document["jwks_uri"].as_str().unwrap_or_default())?.get(FETCH_MAX).await?;
        Ok(Keys::read(&keys))
    }

    /// The keys, anew where they are old or lack the token's.
    async fn keys(&self, source: &Source, token: &Token<'_>) -> Arc<Keys> {
        let mut fetched = source.fetched.lock().await;
        let age = fetched.at.map(|at| at.elapsed());
        let wanted = age.is_none_or(|a| a > KEYS_LIFE || (a > REFETCH && !fetched.keys.knows(token)));
        if wanted {
            fetched.at = Some(Instant::now());
            match self.fetch(source).await {
                Ok(keys) => fetched.keys = Arc::new(keys),
                Err(error) => {
                    tracing::warn!(issuer = source.issuer, error, "no keys of the provider")
                }
            }
        }
        fetched.keys.clone()
    }

    fn other(&self, issuer: &str) -> Arc<Source> {
        let mut others = self.others.lock();
        if others.len() >= ISSUERS_MAX && !others.contains_key(issuer) {
            others.clear();
        }
        let new = || Arc::new(Source { issuer: issuer.to_string(), ..Source::default() });
        others.entry(issuer.to_string()).or_insert_with(new).clone()
    }

    /// The groups, where the token only says who knows them.
    async fn groups_elsewhere(&self, claims: &Value) -> Result<Option<(String, Value)>, String> {
        let ClaimSource::Claim { name, .. } = &self.provider.groups else { return Ok(None) };
        let Some((url, access)) = elsewhere(claims, name)? else { return Ok(None) };
        let asked = self.endpoint(&url)?.bearing(access).get_text(FETCH_MAX).await;
        let text = asked.map_err(|e| format!("while getting distributed claim {name:?}: {e}"))?;
        let token = Token::read(text.trim()).ok_or("the distributed claim is no token")?;
        let issuer = token.claimed_issuer();
        let known = issuer == self.own.issuer;
        let other = if known { None } else { Some(self.other(issuer)) };
        let keys = self.keys(other.as_deref().unwrap_or(&self.own), &token).await;
        let found =
            keys.claims(&token).ok_or("verify distributed claim token: failed to verify signature")?;
        self.provider.verify(found, (self.clock)().as_second())?;
        match &found[name] {
            Value::Null => Err(format!("could not find distributed claim {name:?}")),
            groups => Ok(Some((name.clone(), groups.clone()))),
        }
    }

    async fn identity(&self, claims: &Value) -> Result<Identity, String> {
        let now = (self.clock)().as_second();
        // Nobody else is asked on behalf of a token that is no good itself.
        self.provider.verify(claims, now)?;
        let groups = self.groups_elsewhere(claims).await;
        match groups.map_err(|e| format!("oidc: could not expand distributed claims: {e}"))? {
            None => self.provider.identity(claims, now),
            Some((name, groups)) => {
                let mut claims = claims.clone();
                claims[name] = groups;
                self.provider.identity(&claims, now)
            }
        }
    }
}

#[async_trait]
impl TokenAuthenticator for Oidc {
    async fn authenticate(&self, token: &str) -> Option<Identity> {
        let token = Token::read(token)?;
        if token.claimed_issuer() != self.own.issuer {
            return None;
        }
        let keys = self.keys(&self.own, &token).await;
        let Some(claims) = keys.claims(&token) else {
            tracing::info!(issuer = self.own.issuer, "a token's signature is wrong");
            return None;
        };
        match self.identity(claims).await {
            Ok(identity) => Some(identity),
            Err(error) => {
                tracing::info!(error, "a provider's token was refused");
                None
            }
        }
    }
}
