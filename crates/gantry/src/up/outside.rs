//! What the operator wires the API server to from outside the cluster: audit, token providers, reviewers.
//!
//! Reads the files that the settings name; a file that is no good stops the start.

use crate::config::Config;
use anyhow::{Context, Result, anyhow};
use apiserver::{
    AccessWebhook, Anonymous, AuditConfig, AuditPolicy, AuthenticationFile, Endpoint, LogConfig,
    NameResolver, Provider, TokenAuthenticator, TokenWebhook, outside_tokens,
};
use std::path::Path;
use std::sync::Arc;

fn endpoint(path: &str, resolver: &Option<Arc<dyn NameResolver>>) -> Result<Option<Endpoint>> {
    if path.is_empty() {
        return Ok(None);
    }
    Endpoint::of_kubeconfig(Path::new(path), resolver.clone()).map(Some).map_err(|e| anyhow!(e))
}

/// What is recorded, and where.
pub fn audit(config: &Config, resolver: &Option<Arc<dyn NameResolver>>) -> Result<Option<AuditConfig>> {
    if config.audit_policy.is_empty() {
        return Ok(None);
    }
    let text = std::fs::read(&config.audit_policy).with_context(|| config.audit_policy.clone())?;
    let policy = AuditPolicy::read(&text).map_err(|e| anyhow!("{}: {e}", config.audit_policy))?;
    let log = (!config.audit_log.is_empty()).then(|| LogConfig {
        path: config.audit_log.clone().into(),
        max_size_mib: config.audit_log_size,
        max_age_days: config.audit_log_age,
        max_backups: config.audit_log_backups,
    });
    Ok(Some(AuditConfig { policy, log, webhook: endpoint(&config.audit_webhook, resolver)? }))
}

/// Whom servers outside know, and who may be nobody.
pub struct Callers {
    /// Judges tokens that are not this cluster's.
    pub tokens: Option<Arc<dyn TokenAuthenticator>>,
    /// Requests without credentials.
    pub anonymous: Anonymous,
    /// Judges access where roles allow nothing.
    pub access: Option<Arc<AccessWebhook>>,
}

/// Providers, reviewers, anonymous limits.
pub fn callers(config: &Config, resolver: &Option<Arc<dyn NameResolver>>) -> Result<Callers> {
    let mut file = AuthenticationFile::default();
    let path = &config.authentication_config;
    if !path.is_empty() {
        let text = std::fs::read(path).with_context(|| path.clone())?;
        file = AuthenticationFile::read(&text).map_err(|e| anyhow!("{path}: {e}"))?;
    }
    if !config.oidc.issuer_url.is_empty() {
        if !path.is_empty() {
            return Err(anyhow!("authentication-config and oidc-issuer-url exclude each other"));
        }
        let provider = Provider::from(config.oidc.clone());
        provider.check().map_err(|e| anyhow!("oidc: {e}"))?;
        file.providers.push(provider);
    }
    if !config.anonymous_auth {
        file.anonymous = Anonymous::Refused;
    }
    let tokens = endpoint(&config.authentication_webhook, resolver)?;
    let reviewer = tokens.map(|endpoint| TokenWebhook::new(endpoint, Vec::new()));
    let access = endpoint(&config.authorization_webhook, resolver)?;
    Ok(Callers {
        tokens: outside_tokens(file.providers, reviewer, resolver),
        anonymous: file.anonymous,
        access: access.map(|endpoint| Arc::new(AccessWebhook::new(endpoint))),
    })
}
