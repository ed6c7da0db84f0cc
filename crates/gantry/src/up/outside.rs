//! What the operator wires the API server to from outside the cluster: audit policy and sinks.
//!
//! Reads the files that the settings name; a file that is no good stops the start.

use crate::config::Config;
use anyhow::{Context, Result, anyhow};
use apiserver::{AuditConfig, AuditPolicy, Endpoint, LogConfig, NameResolver};
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
