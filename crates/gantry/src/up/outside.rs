//! What the operator wires the API server to from outside the cluster: audit, token providers, reviewers.
//!
//! Reads the files that the settings name; a file that is no good stops the start.

use crate::config::Config;
use anyhow::{Context, Result, anyhow};
use apiserver::authz::Step;
use apiserver::{
    AccessWebhook, Anonymous, Api, AuditConfig, AuditPolicy, AuthenticationFile, Endpoint, LogConfig, Manner,
    NameResolver, Providers, TokenAuthenticator, TokenWebhook, authorization_file, outside_tokens,
};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// How often it is looked whether a file that may change has: one `stat`.
const LOOK_EVERY: Duration = Duration::from_secs(10);

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

/// Whom servers outside know, who may be nobody, who has a say about access.
pub struct Callers {
    /// Judges tokens that are not this cluster's.
    pub tokens: Arc<dyn TokenAuthenticator>,
    /// Requests without credentials.
    pub anonymous: Anonymous,
    /// Judges access, in order.
    pub authorization: Vec<Step>,
    /// What follows the files.
    pub followed: Followed,
}

/// Providers, reviewers, anonymous limits. `own_issuer` is this cluster's.
pub fn callers(
    config: &Config,
    resolver: &Option<Arc<dyn NameResolver>>,
    own_issuer: &str,
) -> Result<Callers> {
    let own_issuers = vec![own_issuer.to_string()];
    let mut file = AuthenticationFile::default();
    let path = &config.authentication_config;
    if !path.is_empty() {
        let text = std::fs::read(path).with_context(|| path.clone())?;
        file = AuthenticationFile::read(&text, &own_issuers).map_err(|e| anyhow!("{path}: {e}"))?;
    }
    if !config.oidc.issuer_url.is_empty() {
        if !path.is_empty() {
            return Err(anyhow!("authentication-config and oidc-issuer-url exclude each other"));
        }
        file.providers.push(config.oidc.clone().provider(&own_issuers).map_err(|e| anyhow!("oidc: {e}"))?);
    }
    if !config.anonymous_auth {
        file.anonymous = Anonymous::Refused;
    }
    let reviewer = endpoint(&config.authentication_webhook, resolver)?;
    let reviewer = reviewer.map(|endpoint| TokenWebhook::new(endpoint, Vec::new()));
    let providers = Arc::new(Providers::new(file.providers, resolver));
    Ok(Callers {
        tokens: outside_tokens(providers.clone(), reviewer),
        anonymous: file.anonymous,
        authorization: authorization(config, resolver)?,
        followed: Followed {
            providers,
            resolver: resolver.clone(),
            own_issuers,
            authentication: Followable::of(&config.authentication_config),
            authorization: Followable::of(&config.authorization_config),
        },
    })
}

/// Which admission plug-ins run.
pub fn plugins(config: &Config) -> Result<apiserver::Plugins> {
    apiserver::Plugins::read(&config.plugins_on, &config.plugins_off).map_err(|e| anyhow!(e))
}

fn authorization(config: &Config, resolver: &Option<Arc<dyn NameResolver>>) -> Result<Vec<Step>> {
    let path = &config.authorization_config;
    let access = endpoint(&config.authorization_webhook, resolver)?;
    if path.is_empty() {
        let webhook = access.map(|endpoint| Arc::new(AccessWebhook::new(endpoint, Manner::default())));
        return Ok([Step::Node, Step::Rbac].into_iter().chain(webhook.map(Step::Webhook)).collect());
    }
    if access.is_some() {
        return Err(anyhow!("authorization-config and authorization-webhook exclude each other"));
    }
    let text = std::fs::read(path).with_context(|| path.clone())?;
    authorization_file(&text, resolver).map_err(|e| anyhow!("{path}: {e}"))
}

/// A file whose changes take effect without a restart.
#[derive(Clone)]
struct Followable {
    path: String,
    stamp: Option<(SystemTime, u64)>,
    /// Changes that took effect, and those that were no good.
    counts: Arc<[AtomicU64; 2]>,
}

impl Followable {
    fn of(path: &str) -> Followable {
        Followable { path: path.to_string(), stamp: stamp(path), counts: Arc::default() }
    }

    /// Looks again and again, as long as nobody stops it. One that is no good changes nothing.
    async fn follow(mut self, apply: impl Fn(&[u8]) -> Result<(), String>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = stamp(&self.path);
            if now.is_none() || now == self.stamp {
                continue;
            }
            self.stamp = now;
            let applied = std::fs::read(&self.path).map_err(|e| e.to_string()).and_then(|text| apply(&text));
            self.counts[usize::from(applied.is_err())].fetch_add(1, Ordering::Relaxed);
            match applied {
                Ok(()) => tracing::info!(path = self.path, "a changed file is in effect"),
                Err(error) => {
                    tracing::error!(path = self.path, error, "a changed file is no good; the last one stays")
                }
            }
        }
    }
}

fn stamp(path: &str) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// The files that say who callers are and what they may do.
#[derive(Clone)]
pub struct Followed {
    providers: Arc<Providers>,
    resolver: Option<Arc<dyn NameResolver>>,
    own_issuers: Vec<String>,
    authentication: Followable,
    authorization: Followable,
}

impl Followed {
    /// Follows the files that are set. (Anonymous limits are as they were at the start, as upstream.)
    pub fn start(self, api: &Arc<Api>) -> Vec<tokio::task::JoinHandle<()>> {
        let mut tasks = Vec::new();
        let Followed { providers, resolver, own_issuers, authentication, authorization } = self;
        if !authentication.path.is_empty() {
            tasks.push(tokio::spawn(authentication.follow(move |text| {
                providers.replace(AuthenticationFile::read(text, &own_issuers)?.providers);
                Ok(())
            })));
        }
        if !authorization.path.is_empty() {
            let api = Arc::downgrade(api);
            tasks.push(tokio::spawn(authorization.follow(move |text| {
                let steps = authorization_file(text, &resolver)?;
                api.upgrade().into_iter().for_each(|api| api.reorder_authorizers(steps.clone()));
                Ok(())
            })));
        }
        tasks
    }

    /// Lines for `/metrics`.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        for (what, file) in [("authentication", &self.authentication), ("authorization", &self.authorization)]
        {
            if file.path.is_empty() {
                continue;
            }
            let name = format!("apiserver_{what}_config_controller_automatic_reloads_total");
            let _ = writeln!(text, "# TYPE {name} counter");
            for (status, count) in ["success", "failure"].into_iter().zip(file.counts.iter()) {
                let _ = writeln!(text, "{name}{{status=\"{status}\"}} {}", count.load(Ordering::Relaxed));
            }
        }
        text
    }
}
