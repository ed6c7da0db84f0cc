//! Encryption at rest on a whole instance: AWS's secrets always, Kubernetes' as upstream's configuration says; old values
//! are written anew, and a wrong key stops the start with a reason.

use crate::has;
use anyhow::{Result, ensure};
use std::path::Path;
use testkit::cluster::Cluster;

/// A configuration whose key is sixteen times `letter`, in base64.
fn configure(path: &Path, providers: &[&str], secret: &str) -> Result<()> {
    let provider = |kind: &&str| match *kind {
        "identity" => "  - identity: {}\n".to_string(),
        _ => format!("  - aesgcm: {{keys: [{{name: k1, secret: {secret}}}]}}\n"),
    };
    let providers: String = providers.iter().map(provider).collect();
    let head = "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n- resources: [secrets]\n  providers:\n";
    Ok(std::fs::write(path, format!("{head}{providers}"))?)
}

/// Is a text somewhere in the store's files?
fn stored(cluster: &Cluster, text: &str) -> Result<bool> {
    let mut found = false;
    for entry in std::fs::read_dir(cluster.folder().join("state"))?.flatten() {
        // (One may be replaced just now.)
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        found |= bytes.windows(text.len()).any(|w| w == text.as_bytes());
    }
    Ok(found)
}

fn word(cluster: &Cluster, name: &str) -> Result<String> {
    cluster.field(&["secret", name], "/data/word")
}

#[test]
fn secrets_are_encrypted_at_rest() -> Result<()> {
    const KEY: &str = "QUFBQUFBQUFBQUFBQUFBQQ==";
    const OTHER: &str = "QkJCQkJCQkJCQkJCQkJCQg==";
    let file = tempfile::NamedTempFile::new()?;
    configure(file.path(), &["identity", "aesgcm"], KEY)?;
    let flag = file.path().display().to_string();
    let mut cluster = Cluster::start(env!("CARGO_BIN_EXE_gantry"), &["--encryption-provider-config", &flag])?;
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/boto3/bin/python");
    // `./dev test` makes this environment.
    ensure!(python.exists(), "{} is missing: run ./dev test", python.display());
    let ssm = |what: &str| {
        let client = "boto3.client('ssm', region_name='us-east-1', endpoint_url='http://127.0.0.1:4566', \
                      aws_access_key_id='testing', aws_secret_access_key='testing')";
        cluster.sh(&format!("{} -c \"import boto3; s = {client}; print(s.{what})\"", python.display()))
    };
    ssm("put_parameter(Name='/a', Value='ssm-word', Type='SecureString')")?;
    ensure!(!stored(&cluster, "ssm-word")? && stored(&cluster, "k8s:enc:gantry:v1:1:")?);
    cluster.kubectl(&["create", "secret", "generic", "old", "--from-literal=word=old-word"])?;
    let old = word(&cluster, "old")?;
    ensure!(stored(&cluster, &old)?, "the first provider is identity");

    configure(file.path(), &["aesgcm", "identity"], KEY)?;
    cluster.kill9()?;
    cluster.up()?;
    cluster.eventually("the old value is written anew", || {
        ensure!(stored(&cluster, "k8s:enc:aesgcm:v1:k1:")?);
        Ok(())
    })?;
    cluster.kubectl(&["create", "secret", "generic", "new", "--from-literal=word=new-word"])?;
    let new = word(&cluster, "new")?;
    ensure!(!stored(&cluster, &new)? && word(&cluster, "old")? == old, "{new}");

    configure(file.path(), &["aesgcm", "identity"], OTHER)?;
    cluster.kill9()?;
    let error = cluster.up().err().map(|e| format!("{e:#}")).unwrap_or_default();
    has(&error, &["/main/core/secrets/", "(k8s:enc:aesgcm:v1:k1)", "that key is another one now"])?;
    configure(file.path(), &["kms"], KEY).and_then(|()| {
        let text = std::fs::read_to_string(file.path())?.replace("aesgcm", "kms");
        Ok(std::fs::write(file.path(), text)?)
    })?;
    let error = cluster.up().err().map(|e| format!("{e:#}")).unwrap_or_default();
    has(&error, &["--encryption-provider-config", "the provider kms is not served"])?;
    configure(file.path(), &["aesgcm"], KEY)?;
    cluster.up()?;
    ensure!(word(&cluster, "new")? == new && word(&cluster, "old")? == old);
    Ok(())
}
