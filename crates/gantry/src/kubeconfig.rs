//! Kubeconfig files: what kubectl and every Kubernetes client read.

use anyhow::{Context, Result};
use auth::Issued;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::Path;

/// The text of a kubeconfig with one cluster, one user and one context.
pub fn text(server: &str, ca_pem: &str, user: &str, issued: &Issued) -> String {
    let encode = |text: &str| BASE64_STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: gantry\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {}\n    \
         client-key-data: {}\ncontexts:\n- name: gantry\n  context:\n    cluster: gantry\n    user: {user}\n\
         current-context: gantry\n",
        encode(ca_pem),
        encode(&issued.cert_pem),
        encode(&issued.key_pem),
    )
}

/// The text of a kubeconfig whose user shows a token.
pub fn with_token(server: &str, ca_pem: &str, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: gantry\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\nusers:\n- name: bootstrap\n  user:\n    token: {token}\ncontexts:\n\
         - name: gantry\n  context:\n    cluster: gantry\n    user: bootstrap\ncurrent-context: gantry\n",
        BASE64_STANDARD.encode(ca_pem)
    )
}

/// Writes a file that only its owner reads; the owner is the user behind `sudo`, where there is one.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| temporary.display().to_string())?;
    file.write_all(text.as_bytes())?;
    let id = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u32>().ok());
    if let (Some(uid), Some(gid)) = (id("SUDO_UID"), id("SUDO_GID")) {
        chown(&temporary, Some(uid), Some(gid))?;
    }
    std::fs::rename(&temporary, path).with_context(|| path.display().to_string())
}
