//! Which authority a joining node believes: the one of an earlier join, or the one that the public `cluster-info` names
//! and the given hash confirms. What comes over a connection that nobody verified is used for nothing else.

use super::{Asked, publish};
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use client::remote::Remote;
use client::{ApiClient, ObjectKey};
use k8s_schema::gvr;
use std::path::Path;
use std::sync::Arc;

/// Where the server is: as the command says, else as at the last start.
pub fn server(folder: &Path, given: &str) -> Result<String> {
    let file = folder.join("server");
    if given.is_empty() {
        let kept =
            std::fs::read_to_string(&file).ok().context("which cluster? give --server https://HOST:6443")?;
        return Ok(kept.trim().to_string());
    }
    std::fs::write(&file, given).with_context(|| file.display().to_string())?;
    Ok(given.to_string())
}

/// The authority's certificate.
pub async fn trusted(folder: &Path, server: &str, asked: &Asked) -> Result<String> {
    let file = folder.join("cluster-ca.crt");
    if let Ok(kept) = std::fs::read_to_string(&file) {
        check(&kept, asked, true)?;
        return Ok(kept);
    }
    ensure!(
        !asked.ca_hash.is_empty() || asked.trust_first,
        "whom to trust? give --ca-hash (`gantry token create` prints it), or --insecure-trust-first to believe whoever answers"
    );
    let stranger: ApiClient = Arc::new(Remote::unverified(server)?);
    let key = ObjectKey::new(publish::CLUSTER_INFO.0, publish::CLUSTER_INFO.1);
    let info = stranger
        .get(&gvr::CONFIG_MAPS, &key)
        .await
        .with_context(|| format!("asking {server} for its authority"))?;
    let pem = authority_of(info.value()?["data"]["kubeconfig"].as_str().unwrap_or_default())
        .context("the server's cluster-info holds no authority")?;
    check(&pem, asked, false)?;
    std::fs::write(&file, &pem).with_context(|| file.display().to_string())?;
    Ok(pem)
}

fn check(pem: &str, asked: &Asked, known: bool) -> Result<()> {
    let hash = auth::csr::key_hash(pem).context("the authority is no certificate")?;
    if asked.ca_hash.is_empty() {
        if !known {
            println!("trusting the authority {hash} unseen");
        }
        return Ok(());
    }
    if !hash.eq_ignore_ascii_case(&asked.ca_hash) {
        let whose = if known { "this node joined a cluster with" } else { "the server has" };
        bail!("{whose} the authority {hash}, not {}", asked.ca_hash);
    }
    Ok(())
}

/// The authority in a kubeconfig of kubeadm's form. (A line is enough: it is one of ours or of kubeadm's making.)
pub fn authority_of(kubeconfig: &str) -> Option<String> {
    let line = kubeconfig.lines().find_map(|l| l.trim().strip_prefix("certificate-authority-data:"))?;
    String::from_utf8(BASE64_STANDARD.decode(line.trim()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn only_the_authority_of_that_hash_is_believed() {
        let folder = tempfile::tempdir().unwrap();
        let ca = auth::Ca::load_or_create(folder.path(), SystemTime::now()).unwrap();
        let pem = authority_of(&publish::cluster_info("https://h:1", ca.cert_pem())).unwrap();
        assert_eq!(pem, ca.cert_pem());
        let asked = |ca_hash: &str| Asked { ca_hash: ca_hash.into(), ..Asked::default() };
        let hash = auth::csr::key_hash(&pem).unwrap();
        check(&pem, &asked(&hash), false).unwrap();
        let error = check(&pem, &asked("sha256:00"), false).unwrap_err().to_string();
        assert!(error.contains(&hash) && error.contains("not sha256:00"), "{error}");
        assert_eq!(authority_of("clusters: []"), None);
    }

    #[test]
    fn the_server_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        assert!(server(folder.path(), "").unwrap_err().to_string().contains("--server"));
        server(folder.path(), "https://h:1").unwrap();
        assert_eq!(server(folder.path(), "").unwrap(), "https://h:1");
    }
}
