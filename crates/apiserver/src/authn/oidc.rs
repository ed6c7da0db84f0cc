//! OpenID Connect: tokens of providers outside, by their published keys and the operator's rules (`claims`).
//!
//! Keys are fetched when the first token comes and again when a token names an unknown one, at most every
//! [`REFETCH`].

use super::claims::Provider;
use crate::config::{NameResolver, TokenAuthenticator};
use crate::outbound::Endpoint;
use async_trait::async_trait;
use auth::Identity;
use auth::oidc::{Keys, Token};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Pause between two fetches of keys: tokens come from anybody.
const REFETCH: Duration = Duration::from_secs(10);
const FETCH_MAX: Duration = Duration::from_secs(10);
/// Keys are fetched anew after this long even when all are known: revoked ones must go.
const KEYS_LIFE: Duration = Duration::from_secs(3_600);

#[derive(Default)]
struct Fetched {
    keys: Arc<Keys>,
    at: Option<Instant>,
}

/// A provider with its keys.
pub struct Oidc {
    provider: Provider,
    resolver: Option<Arc<dyn NameResolver>>,
    clock: Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>,
    fetched: Mutex<Fetched>,
}

impl Oidc {
    /// For a checked provider.
    pub fn new(
        provider: Provider,
        resolver: Option<Arc<dyn NameResolver>>,
        clock: Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>,
    ) -> Oidc {
        Oidc { provider, resolver, clock, fetched: Mutex::default() }
    }

    fn endpoint(&self, url: &str) -> Result<Endpoint, String> {
        if !url.starts_with("https://") {
            return Err(format!("{url:?} is no https URL"));
        }
        Endpoint::of_url(url, &self.provider.issuer.certificate_authority, self.resolver.clone())
    }

    async fn fetch(&self) -> Result<Keys, String> {
        let issuer = &self.provider.issuer;
        let own = format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/'));
        let url = if issuer.discovery_url.is_empty() { &own } else { &issuer.discovery_url };
        let document = self.endpoint(url)?.get(FETCH_MAX).await?;
        if document["issuer"].as_str() != Some(&issuer.url) {
            return Err(format!(
                "issuer did not match: expected {:?} got {}",
                issuer.url, document["issuer"]
            ));
        }
        let keys = self.endpoint(document["jwks_uri"].as_str().unwrap_or_default())?.get(FETCH_MAX).await?;
        Ok(Keys::read(&keys))
    }

    /// The keys, anew where they are old or lack the token's.
    async fn keys(&self, token: &Token<'_>) -> Arc<Keys> {
        let mut fetched = self.fetched.lock().await;
        let age = fetched.at.map(|at| at.elapsed());
        let wanted = age.is_none_or(|a| a > KEYS_LIFE || (a > REFETCH && !fetched.keys.knows(token)));
        if wanted {
            fetched.at = Some(Instant::now());
            match self.fetch().await {
                Ok(keys) => fetched.keys = Arc::new(keys),
                Err(error) => {
                    tracing::warn!(issuer = self.provider.issuer.url, error, "no keys of the provider")
                }
            }
        }
        fetched.keys.clone()
    }
}

#[async_trait]
impl TokenAuthenticator for Oidc {
    async fn authenticate(&self, token: &str) -> Option<Identity> {
        let token = Token::read(token)?;
        if token.claimed_issuer() != self.provider.issuer.url {
            return None;
        }
        let keys = self.keys(&token).await;
        let Some(claims) = keys.claims(&token) else {
            tracing::info!(issuer = self.provider.issuer.url, "a token's signature is wrong");
            return None;
        };
        match self.provider.identity(claims, (self.clock)().as_second()) {
            Ok(identity) => Some(identity),
            Err(error) => {
                tracing::info!(error, "a provider's token was refused");
                None
            }
        }
    }
}
