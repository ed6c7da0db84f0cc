//! OpenID Connect: tokens of providers outside, by their published keys and the operator's rules on claims.
//!
//! Keys are fetched when the first token comes and again when a token names an unknown one, at most every
//! [`REFETCH`]. Claims are judged by [`identity`], pure. Not here: distributed claims.

use crate::config::{NameResolver, TokenAuthenticator};
use crate::outbound::Endpoint;
use async_trait::async_trait;
use auth::Identity;
use auth::oidc::{Keys, Token};
use serde::Deserialize;
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

/// A claim with what is put before its value.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Mapping {
    claim: String,
    prefix: Option<String>,
    expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Extra {
    key: String,
    value_expression: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Mappings {
    username: Mapping,
    groups: Mapping,
    uid: Mapping,
    extra: Vec<Extra>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Validation {
    claim: String,
    required_value: String,
    expression: String,
    message: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Issuer {
    url: String,
    #[serde(rename = "discoveryURL")]
    discovery_url: String,
    certificate_authority: String,
    audiences: Vec<String>,
    audience_match_policy: String,
    egress_selector_type: String,
}

/// One provider, as `AuthenticationConfiguration` describes it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Provider {
    issuer: Issuer,
    claim_validation_rules: Vec<Validation>,
    claim_mappings: Mappings,
    user_validation_rules: Vec<Validation>,
}

impl Provider {
    /// A sentence on what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        let (issuer, mappings) = (&self.issuer, &self.claim_mappings);
        if !issuer.url.starts_with("https://") {
            return Err(format!("issuer.url: Invalid value: {:?}: URL scheme must be https", issuer.url));
        }
        if issuer.audiences.is_empty() {
            return Err("issuer.audiences: Required value: at least one issuer.audiences is required".into());
        }
        if mappings.username.claim.is_empty() || mappings.username.prefix.is_none() {
            return Err("claimMappings.username: Required value: claim and prefix are required".into());
        }
        if !mappings.groups.claim.is_empty() && mappings.groups.prefix.is_none() {
            return Err(
                "claimMappings.groups.prefix: Required value: prefix is required when claim is set".into()
            );
        }
        let rules = self.claim_validation_rules.iter().chain(&self.user_validation_rules);
        let expressions = [&mappings.username, &mappings.groups, &mappings.uid].map(|m| &m.expression);
        if !mappings.extra.is_empty()
            || expressions.iter().any(|e| !e.is_empty())
            || rules.into_iter().any(|r| !r.expression.is_empty())
        {
            return Err("expressions in an AuthenticationConfiguration are not supported: use claims".into());
        }
        Ok(())
    }
}

/// Upstream's `--oidc-*` flags.
#[derive(Clone, Debug, Default)]
pub struct OidcFlags {
    /// Issuer.
    pub issuer_url: String,
    /// Audience.
    pub client_id: String,
    /// Claim that is the user's name; "" is `sub`.
    pub username_claim: String,
    /// Put before it; "" is the issuer and `#` unless the claim is `email`; `-` is nothing.
    pub username_prefix: String,
    /// Claim with the groups; "" for none.
    pub groups_claim: String,
    /// Put before each.
    pub groups_prefix: String,
    /// `key=value,…` that must be.
    pub required_claims: String,
    /// Authority of the issuer's certificate, PEM; "" is the machine's trust.
    pub ca_pem: String,
}

impl From<OidcFlags> for Provider {
    fn from(flags: OidcFlags) -> Provider {
        let claim = if flags.username_claim.is_empty() { "sub".into() } else { flags.username_claim };
        let prefix = match flags.username_prefix.as_str() {
            "-" => String::new(),
            "" if claim == "email" => String::new(),
            "" => format!("{}#", flags.issuer_url),
            given => given.to_string(),
        };
        let required = flags.required_claims.split(',').filter_map(|pair| pair.split_once('='));
        let rules = required.map(|(claim, value)| Validation {
            claim: claim.trim().into(),
            required_value: value.trim().into(),
            ..Validation::default()
        });
        let groups = Mapping {
            prefix: Some(flags.groups_prefix),
            claim: flags.groups_claim,
            expression: String::new(),
        };
        Provider {
            issuer: Issuer {
                url: flags.issuer_url,
                certificate_authority: flags.ca_pem,
                audiences: vec![flags.client_id],
                ..Issuer::default()
            },
            claim_validation_rules: rules.collect(),
            claim_mappings: Mappings {
                username: Mapping { claim, prefix: Some(prefix), expression: String::new() },
                groups,
                ..Mappings::default()
            },
            user_validation_rules: Vec::new(),
        }
    }
}

/// A text, or each text of a list.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(all) => all.iter().map(|t| t.as_str().map(str::to_string)).collect(),
        _ => None,
    }
}

/// Whom signed claims speak for now, or why for nobody.
pub fn identity(provider: &Provider, claims: &Value, now: i64) -> Result<Identity, String> {
    let number = |name: &str| claims[name].as_f64().map(|n| n as i64);
    let expires = number("exp").ok_or("oidc: verify token: the token has no exp claim")?;
    if expires <= now {
        return Err(format!("oidc: verify token: oidc: token is expired (Token Expiry: {expires})"));
    }
    // Five minutes for clocks that differ, as upstream's library has it.
    if number("nbf").is_some_and(|nbf| nbf > now + 300) {
        return Err("oidc: verify token: oidc: current time is before the nbf (not before) time".into());
    }
    let audiences = texts(&claims["aud"]).unwrap_or_default();
    if !audiences.iter().any(|a| provider.issuer.audiences.contains(a)) {
        let wanted = &provider.issuer.audiences;
        return Err(format!("oidc: verify token: oidc: expected audience in {wanted:?} got {audiences:?}"));
    }
    for rule in &provider.claim_validation_rules {
        let value = claims[&rule.claim].as_str();
        if value != Some(rule.required_value.as_str()) {
            return Err(format!("oidc: required claim {} value does not match", rule.claim));
        }
    }
    let mappings = &provider.claim_mappings;
    let name = &mappings.username;
    let user = claims[&name.claim].as_str().filter(|u| !u.is_empty());
    let user =
        user.ok_or_else(|| format!("oidc: parse username claims {:?}: claim not present", name.claim))?;
    if name.claim == "email" && !claims["email_verified"].is_null() && claims["email_verified"] != true {
        return Err("oidc: email not verified".into());
    }
    let mut groups = Vec::new();
    if !mappings.groups.claim.is_empty() && !claims[&mappings.groups.claim].is_null() {
        let claim = &mappings.groups.claim;
        let all =
            texts(&claims[claim]).ok_or_else(|| format!("oidc: parse groups claim {claim:?}: no texts"))?;
        let prefix = mappings.groups.prefix.as_deref().unwrap_or_default();
        groups.extend(all.into_iter().map(|group| format!("{prefix}{group}")));
    }
    let uid = claims[&mappings.uid.claim].as_str().filter(|_| !mappings.uid.claim.is_empty());
    groups.push("system:authenticated".into());
    let mut extra = BTreeMap::new();
    if let Some(jti) = claims["jti"].as_str() {
        extra.insert("authentication.kubernetes.io/credential-id".to_string(), vec![format!("JTI={jti}")]);
    }
    let user = format!("{}{user}", name.prefix.as_deref().unwrap_or_default());
    Ok(Identity { user, uid: uid.unwrap_or_default().to_string(), groups, extra })
}

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
        match identity(&self.provider, claims, (self.clock)().as_second()) {
            Ok(identity) => Some(identity),
            Err(error) => {
                tracing::info!(error, "a provider's token was refused");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn provider() -> Provider {
        OidcFlags {
            issuer_url: "https://i".into(),
            client_id: "me".into(),
            groups_claim: "groups".into(),
            groups_prefix: "oidc:".into(),
            required_claims: "hd=example.com".into(),
            ..OidcFlags::default()
        }
        .into()
    }

    fn claims() -> Value {
        json!({"iss": "https://i", "aud": ["x", "me"], "sub": "alice", "exp": 100, "hd": "example.com",
            "groups": ["dev", "ops"]})
    }

    #[test]
    fn claims_become_an_identity() {
        provider().check().unwrap();
        let who = identity(&provider(), &claims(), 50).unwrap();
        assert_eq!(who.user, "https://i#alice");
        assert_eq!(who.groups, ["oidc:dev", "oidc:ops", "system:authenticated"]);
        for (claim, value) in [
            ("exp", json!(50)),
            ("exp", Value::Null),
            ("nbf", json!(1_000)),
            ("aud", json!("other")),
            ("hd", json!("evil.com")),
            ("sub", json!("")),
            ("groups", json!([1])),
        ] {
            let mut claims = claims();
            claims[claim] = value;
            assert!(identity(&provider(), &claims, 50).is_err(), "{claim}");
        }
        let mut one = claims();
        one["groups"] = json!("solo");
        assert_eq!(identity(&provider(), &one, 50).unwrap().groups[0], "oidc:solo");
    }

    #[test]
    fn an_address_that_nobody_verified_is_no_name() {
        let flags = OidcFlags {
            issuer_url: "https://i".into(),
            client_id: "me".into(),
            username_claim: "email".into(),
            ..OidcFlags::default()
        };
        let mut claims = claims();
        claims["email"] = json!("a@b");
        let of = |claims: &Value| identity(&flags.clone().into(), claims, 50).map(|i| i.user);
        assert_eq!(of(&claims).unwrap(), "a@b");
        claims["email_verified"] = json!(false);
        assert!(of(&claims).is_err());
    }
}
