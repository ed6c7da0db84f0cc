//! A node's certificates: asked for by CertificateSigningRequest, kept in a file with their key, renewed at 80 % of
//! their life.

use anyhow::{Context, Result, bail};
use auth::Issued;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use client::{ApiClient, ListOptions, WatchOptions};
use futures_util::StreamExt;
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use stdx::backoff::Backoff;

/// How long somebody may take to approve a request that is not approved by itself.
const APPROVAL_MAX: Duration = Duration::from_secs(300);
/// After that long it is worth saying that nobody has approved yet.
const APPROVAL_SOON: Duration = Duration::from_secs(10);
/// Longest sleep before the clock is read again: machines are suspended and clocks are set.
const NAP_MAX: Duration = Duration::from_secs(3_600);
const RETRY: Backoff = Backoff { base: Duration::from_secs(1), factor: 2, max: Duration::from_secs(600) };

/// What to ask for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Common name.
    pub user: String,
    signer: &'static str,
    usage: &'static str,
    name: Option<(String, Ipv4Addr)>,
}

impl Ask {
    /// A node's certificate for calling the API.
    pub fn client(user: &str) -> Ask {
        let signer = "kubernetes.io/kube-apiserver-client-kubelet";
        Ask { user: user.into(), signer, usage: "client auth", name: None }
    }

    /// A node's certificate for its own API.
    pub fn serving(user: &str, name: &str, ip: Ipv4Addr) -> Ask {
        let (signer, usage) = ("kubernetes.io/kubelet-serving", "server auth");
        Ask { user: user.into(), signer, usage, name: Some((name.into(), ip)) }
    }

    /// Is that certificate for the address that is asked for?
    pub fn fits(&self, issued: &Issued) -> bool {
        self.name.as_ref().is_none_or(|(name, ip)| auth::csr::serves(&issued.cert_pem, name, (*ip).into()))
    }
}

/// A certificate in a file.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Certificate and key, PEM.
    pub file: PathBuf,
    /// What it is renewed by.
    pub ask: Ask,
}

const KEY_BEGINS: &str = "-----BEGIN PRIVATE KEY-----";

impl Kept {
    /// What is kept, if it is still valid at `now`.
    pub fn load(&self, now: SystemTime) -> Option<Issued> {
        let text = std::fs::read_to_string(&self.file).ok()?;
        let (cert, key) = text.split_at(text.find(KEY_BEGINS)?);
        let (_, until) = auth::csr::validity(cert)?;
        (seconds(now) < until).then(|| Issued { cert_pem: cert.into(), key_pem: key.into() })
    }

    /// Keeps it, readable by its owner only.
    pub fn keep(&self, issued: &Issued) -> Result<()> {
        crate::kubeconfig::write(&self.file, &format!("{}{}", issued.cert_pem, issued.key_pem))
    }
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// How long until a certificate is renewed, at 80 % of its life.
fn renewed_in(cert_pem: &str, now: SystemTime) -> Duration {
    let Some((from, until)) = auth::csr::validity(cert_pem) else { return Duration::ZERO };
    let at = from + (until - from) / 5 * 4;
    Duration::from_secs(u64::try_from(at - seconds(now)).unwrap_or(0))
}

/// Asks for a certificate with a fresh key and waits for it.
pub async fn request(client: &ApiClient, ask: &Ask) -> Result<Issued> {
    let (names, ips): (Vec<_>, Vec<_>) = ask.name.iter().map(|(n, ip)| (n.clone(), IpAddr::V4(*ip))).unzip();
    let (csr, key_pem) = auth::csr::new_request(&ask.user, "system:nodes", &names, &ips)?;
    let body = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"generateName": "node-csr-"},
        "spec": {"request": BASE64_STANDARD.encode(csr), "signerName": ask.signer,
            "usages": ["digital signature", ask.usage]}});
    let made = client.create(&gvr::CERTIFICATE_SIGNING_REQUESTS, body).await?;
    let name = made.key.name.to_string();
    let mut waiting = std::pin::pin!(tokio::time::timeout(APPROVAL_MAX, signed(client, &name)));
    let done = tokio::select! {
        done = &mut waiting => done,
        () = tokio::time::sleep(APPROVAL_SOON) => {
            println!("waiting for somebody to approve: kubectl certificate approve {name}");
            waiting.await
        }
    };
    let cert_pem = done.with_context(|| format!("nobody approved the certificate request {name}"))??;
    Ok(Issued { cert_pem, key_pem })
}

async fn signed(client: &ApiClient, name: &str) -> Result<String> {
    loop {
        let list = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
        let watch = WatchOptions { list, after: None };
        let mut events = client.watch(&gvr::CERTIFICATE_SIGNING_REQUESTS, &watch).await?;
        while let Some(event) = events.next().await {
            if let Some(certificate) = outcome(&event?.object.value()?)? {
                return Ok(certificate);
            }
        }
    }
}

/// The certificate, once there is one; an error if there will be none.
fn outcome(csr: &Value) -> Result<Option<String>> {
    let status = &csr["status"];
    let ended = |c: &&Value| c["type"] == "Denied" || c["type"] == "Failed";
    if let Some(condition) = status["conditions"].as_array().into_iter().flatten().find(ended) {
        let text = |field: &str| condition[field].as_str().unwrap_or_default();
        bail!("the certificate was refused ({}): {}", text("type"), text("message"));
    }
    let Some(certificate) = status["certificate"].as_str() else { return Ok(None) };
    Ok(Some(String::from_utf8(BASE64_STANDARD.decode(certificate)?)?))
}

/// Renews a certificate for ever; `renewed` makes the process use it.
pub async fn keep_fresh<F, R>(client: ApiClient, kept: Kept, renewed: F)
where
    F: Fn(Issued) -> R,
    R: Future<Output = Result<()>>,
{
    let mut failures = 0;
    loop {
        let text = std::fs::read_to_string(&kept.file).unwrap_or_default();
        let rest = renewed_in(&text, SystemTime::now());
        if !rest.is_zero() {
            tokio::time::sleep(rest.min(NAP_MAX)).await;
            continue;
        }
        let renew = async {
            let issued = request(&client, &kept.ask).await?;
            kept.keep(&issued)?;
            renewed(issued).await
        };
        match renew.await {
            Ok(()) => {
                tracing::info!(file = %kept.file.display(), "certificate renewed");
                failures = 0;
            }
            Err(error) => {
                tracing::warn!(%error, file = %kept.file.display(), "certificate not renewed");
                tokio::time::sleep(RETRY.delay(failures)).await;
                failures += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_kept_until_it_ends_and_renewed_before() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let ca = auth::Ca::load_or_create(folder.path(), now).unwrap();
        let kept = Kept { file: folder.path().join("c.pem"), ask: Ask::client("system:node:n") };
        assert!(kept.load(now).is_none());
        let (csr, key_pem) = auth::csr::new_request("system:node:n", "system:nodes", &[], &[]).unwrap();
        // Valid from an hour ago.
        let life = Duration::from_secs(9 * 3_600);
        let cert_pem = ca.sign(&csr, auth::csr::Usage::Client, life, now).unwrap();
        kept.keep(&Issued { cert_pem, key_pem: key_pem.clone() }).unwrap();
        let loaded = kept.load(now).unwrap();
        assert_eq!(loaded.key_pem, key_pem);
        let hours = renewed_in(&loaded.cert_pem, now).as_secs_f64() / 3_600.0;
        assert!((6.9..7.1).contains(&hours), "{hours}");
        let late = now + Duration::from_secs(8 * 3_600);
        assert_eq!(renewed_in(&loaded.cert_pem, late), Duration::ZERO);
        assert!(kept.load(late).is_some() && kept.load(late + Duration::from_secs(3_700)).is_none());
    }

    #[test]
    fn a_request_ends_in_a_certificate_or_a_reason() {
        assert_eq!(outcome(&json!({"status": {}})).unwrap(), None);
        let approved = json!({"status": {"conditions": [{"type": "Approved"}], "certificate": "cGVt"}});
        assert_eq!(outcome(&approved).unwrap().as_deref(), Some("pem"));
        let denied = json!({"status": {"conditions": [{"type": "Denied", "message": "no"}]}});
        assert!(outcome(&denied).unwrap_err().to_string().contains("(Denied): no"));
    }

    #[test]
    fn a_serving_certificate_is_for_an_address() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let ca = auth::Ca::load_or_create(folder.path(), now).unwrap();
        let issued = ca.issue_server("x", &["n".into()], &["10.0.0.1".parse().unwrap()], now).unwrap();
        let ask = |name: &str, ip: [u8; 4]| Ask::serving("x", name, ip.into());
        assert!(ask("n", [10, 0, 0, 1]).fits(&issued));
        assert!(!ask("n", [10, 0, 0, 2]).fits(&issued) && !ask("m", [10, 0, 0, 1]).fits(&issued));
    }
}
