//! Which API servers there are: each has a Lease in `kube-system` that says so, as upstream's (`APIServerIdentity`).
//!
//! The name comes from the machine and the address, so that a server that starts again takes its own up. Upstream renews
//! every ten seconds; a lease is good for an hour, so a quarter of that does, and an idle server stays idle. Leases of
//! servers that are gone are removed by whoever renews. What is gone is decided by [`is_gone`], pure.

use crate::Api;
use client::{ApiClient, DeleteOptions, ListOptions, ObjectKey};
use jiff::Timestamp;
use k8s_schema::gvr::LEASES;
use machinery::kinds::get::{int, text};
use machinery::status::ApiError;
use machinery::time::{format_micro, parse, since};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Weak;
use std::time::Duration;

const NAMESPACE: &str = "kube-system";
const LABEL: &str = "apiserver.kubernetes.io/identity";
const LABEL_VALUE: &str = "kube-apiserver";
const HOSTNAME: &str = "kubernetes.io/hostname";
/// How long a lease is good.
const LEASE: Duration = Duration::from_secs(3_600);
/// Between two renewals.
const RENEW: Duration = Duration::from_secs(900);

/// The name of a server's lease.
fn name(host: &str, address: &str) -> String {
    use std::fmt::Write;
    let digest = Sha256::digest(format!("{host}/{address}"));
    digest.iter().take(13).fold("apiserver-".to_string(), |mut out, byte| {
        // Writing to a String does not fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Has this lease not been renewed in time?
fn is_gone(lease: &Value, now: Timestamp) -> bool {
    let renewed = parse(text(lease, "/spec/renewTime")).unwrap_or(Timestamp::UNIX_EPOCH);
    let lasts = int(lease, "/spec/leaseDurationSeconds").and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
    since(now, renewed) > Duration::from_secs(lasts)
}

/// Keeps the server's lease until the server closes.
pub async fn run(api: Weak<Api>, client: ApiClient, host: String) {
    let Some(mut closing) = api.upgrade().map(|api| api.closing()) else { return };
    loop {
        let Some(now) = api.upgrade() else { return };
        if let Err(error) = round(&now, &client, &host).await {
            tracing::debug!(%error, "the server's lease was not renewed");
        }
        drop(now);
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            _ = closing.wait_for(|c| *c) => return,
        }
    }
}

async fn round(api: &Api, client: &ApiClient, host: &str) -> Result<(), ApiError> {
    let address = api.config.advertise.map(|(ip, port)| format!("{ip}:{port}")).unwrap_or_default();
    let (now, key) = ((api.config.clock)(), ObjectKey::new(NAMESPACE, name(host, &address)));
    let time = format_micro(now);
    let spec = json!({"holderIdentity": format!("{}_{:032x}", key.name, (api.config.random)()),
        "leaseDurationSeconds": LEASE.as_secs(), "acquireTime": time, "renewTime": time});
    let labels = json!({LABEL: LABEL_VALUE, HOSTNAME: host});
    if api.cached(&LEASES, NAMESPACE, &key.name).is_some() {
        let patch = json!({"metadata": {"labels": labels}, "spec": {"renewTime": time}});
        client.merge_patch(&LEASES, &key, patch).await?;
    } else {
        let metadata = json!({"name": &*key.name, "namespace": NAMESPACE, "labels": labels});
        let body = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec});
        client.create(&LEASES, body).await?;
    }
    let own = ListOptions {
        namespace: Some(NAMESPACE.into()),
        label_selector: format!("{LABEL}={LABEL_VALUE}"),
        ..ListOptions::default()
    };
    for lease in client.list(&LEASES, &own).await?.items {
        if lease.value().is_ok_and(|value| is_gone(&value, now)) {
            let resource_version = Some(lease.revision.to_string());
            let options = DeleteOptions { resource_version, ..DeleteOptions::default() };
            client.delete(&LEASES, &lease.key, options).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_its_name_and_an_old_lease_is_gone() {
        assert_eq!(name("a", "10.0.0.1:6443"), name("a", "10.0.0.1:6443"));
        assert_ne!(name("a", "10.0.0.1:6443"), name("a", "10.0.0.2:6443"));
        assert_eq!(name("a", "").len(), "apiserver-".len() + 26);
        let at = |s: i64| Timestamp::from_second(1_800_000_000 + s).unwrap();
        let lease = json!({"spec": {"leaseDurationSeconds": 3_600, "renewTime": format_micro(at(0))}});
        assert!(!is_gone(&lease, at(3_600)) && is_gone(&lease, at(3_601)) && is_gone(&json!({}), at(0)));
    }
}
