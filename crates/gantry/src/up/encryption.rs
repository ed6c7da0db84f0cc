//! What is encrypted at rest, and by which keys: AWS's secrets always, by a key of this installation; other resources as
//! upstream's `EncryptionConfiguration` says (`--encryption-provider-config`).
//!
//! The installation's key is `pki/encryption.key` in the data folder, made at the first start and copied to other servers
//! with the rest of that folder. In a configuration the first provider of a resource writes and all of them read; at each
//! start what is stored otherwise is written anew. Providers: `identity` and `aesgcm` (16 or 32 bytes); the others are
//! refused by name. Deliberately not here: the ciphers (`store::sealed`), reloading.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use k8s_schema::Gvr;
use k8s_schema::gvr::{AWS_SECRETS, SSM_PARAMETERS};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use store::{SealKey, SealRule};

/// Below `pki`.
const KEY_FILE: &str = "encryption.key";
/// Passwords of EventBridge's connections.
const CONNECTIONS: Gvr = Gvr::new("events.gantry.dev", "v1", "connections");
/// What is encrypted without being asked.
const ALWAYS: [Gvr; 3] = [AWS_SECRETS, SSM_PARAMETERS, CONNECTIONS];

/// Rules in their order, and keys that only read.
#[derive(Debug)]
pub struct Sealing {
    /// What is sealed by which key.
    pub rules: Vec<SealRule>,
    /// Further keys.
    pub keys: Vec<Arc<SealKey>>,
    /// The installation's key, as far as it may be told.
    pub fingerprint: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    kind: String,
    api_version: String,
    resources: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    resources: Vec<String>,
    providers: Vec<serde_json::Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    secret: String,
}

/// The installation's key, made where there is none.
fn own(pki: &Path) -> Result<SealKey> {
    let path = pki.join(KEY_FILE);
    if !path.exists() {
        let mut secret = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut secret)?;
        let text = json!({"version": 1, "name": "1", "secret": BASE64_STANDARD.encode(secret)}).to_string();
        crate::kubeconfig::write(&path, &text)?;
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    let secret = BASE64_STANDARD.decode(value["secret"].as_str().unwrap_or_default()).unwrap_or_default();
    let name = value["name"].as_str().filter(|n| !n.contains(':'));
    let key = name.zip(<&[u8; 32]>::try_from(secret.as_slice()).ok());
    let (name, secret) = key.with_context(|| format!("{} is not a key file of ours", path.display()))?;
    Ok(SealKey::envelope(name, secret))
}

/// What the settings and the data folder say. `config`: the file's path, "" for none.
pub fn load(pki: &Path, config: &str) -> Result<Sealing> {
    let own = Arc::new(own(pki)?);
    let (mut rules, mut keys) = (Vec::new(), vec![own.clone()]);
    if !config.is_empty() {
        let text = std::fs::read(config).with_context(|| format!("--encryption-provider-config {config}"))?;
        let read = parse(&text).with_context(|| format!("--encryption-provider-config {config}"))?;
        rules.extend(read.0);
        keys.extend(read.1);
    }
    rules.extend(ALWAYS.iter().map(|gvr| SealRule {
        group: gvr.group.to_string(),
        resource: gvr.resource.to_string(),
        key: Some(own.clone()),
    }));
    Ok(Sealing { rules, keys, fingerprint: own.fingerprint() })
}

/// The rules of a configuration, and all its keys.
fn parse(text: &[u8]) -> Result<(Vec<SealRule>, Vec<Arc<SealKey>>)> {
    let value = machinery::body::yaml(text).map_err(|e| anyhow::anyhow!(e.message))?.value;
    let file: File = serde_json::from_value(value)?;
    let known = matches!(&*file.api_version, "apiserver.config.k8s.io/v1" | "v1");
    ensure!(
        known && file.kind == "EncryptionConfiguration",
        "{} {} is no EncryptionConfiguration of apiserver.config.k8s.io/v1",
        file.api_version,
        file.kind
    );
    let (mut rules, mut keys) = (Vec::new(), Vec::new());
    for (at, entry) in file.resources.into_iter().enumerate() {
        let place = || format!("resources[{at}]");
        ensure!(
            !entry.resources.is_empty(),
            "resources[{at}].resources: Required value: at least one resource"
        );
        ensure!(
            !entry.providers.is_empty(),
            "resources[{at}].providers: Required value: at least one provider"
        );
        let mut providers: Vec<Option<Arc<SealKey>>> = Vec::new();
        for provider in entry.providers {
            providers.extend(provider_keys(provider).with_context(place)?);
        }
        keys.extend(providers.iter().flatten().cloned());
        let writes = providers.into_iter().next().flatten();
        for resource in entry.resources {
            rules.push(rule(&resource, writes.clone()).with_context(place)?);
        }
    }
    Ok((rules, keys))
}

/// `secrets`, `widgets.example.com`, `*.apps`, `*.` (the core group), `*.*`.
fn rule(text: &str, key: Option<Arc<SealKey>>) -> Result<SealRule> {
    let (resource, group) = text.split_once('.').unwrap_or((text, ""));
    let star = text.contains('*')
        && (resource != "*" || (group.contains('*') && group != "*") || !text.contains('.'));
    ensure!(
        !resource.is_empty() && !star,
        "{text:?} is no resource: resource, resource.group, *.group, *. or *.*"
    );
    let lower = text.bytes().all(|b| !b.is_ascii_uppercase() && b != b'/');
    ensure!(lower, "{text:?}: resource should be in lower case and without version");
    Ok(SealRule { group: group.into(), resource: resource.into(), key })
}

/// A provider's keys in their order; `None` stands for `identity`.
fn provider_keys(provider: serde_json::Map<String, Value>) -> Result<Vec<Option<Arc<SealKey>>>> {
    ensure!(provider.len() == 1, "a provider has exactly one of identity, aesgcm");
    let (name, settings) = provider.into_iter().next().context("a provider has a name")?;
    match name.as_str() {
        "identity" => return Ok(vec![None]),
        "aesgcm" => {}
        "kms" | "secretbox" | "aescbc" => {
            bail!("the provider {name} is not served by Gantry: identity and aesgcm are")
        }
        _ => bail!("there is no provider {name:?}: identity and aesgcm are served"),
    }
    let list: Keys = serde_json::from_value(settings).context("aesgcm")?;
    ensure!(!list.keys.is_empty(), "aesgcm.keys: Required value: at least one key");
    let mut keys: Vec<Option<Arc<SealKey>>> = Vec::new();
    let mut names = Vec::new();
    for key in list.keys {
        ensure!(
            !key.name.is_empty() && !key.name.contains(':'),
            "aesgcm.keys: {:?} is no key's name",
            key.name
        );
        ensure!(!names.contains(&key.name), "aesgcm.keys: Duplicate value: {:?}", key.name);
        // The secret itself is never repeated.
        let secret = BASE64_STANDARD.decode(key.secret.trim());
        let secret =
            secret.with_context(|| format!("aesgcm.keys: the secret of {:?} is not base64", key.name))?;
        let made = SealKey::aesgcm(&key.name, &secret);
        let length = secret.len();
        let made = made.with_context(|| {
            format!("aesgcm.keys: the secret of {:?} has {length} bytes; 32 or 16 are served", key.name)
        })?;
        keys.push(Some(Arc::new(made)));
        names.push(key.name);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n";

    fn of(entries: &str) -> Result<(Vec<SealRule>, Vec<Arc<SealKey>>)> {
        parse(format!("{HEAD}{entries}").as_bytes())
    }

    #[test]
    fn the_first_provider_writes_and_all_read() {
        let secret = BASE64_STANDARD.encode([1; 32]);
        let text = format!(
            "- resources: [secrets, '*.apps', '*.', '*.*']\n  providers:\n  - aesgcm: {{keys: [{{name: a, secret: {secret}}}, {{name: b, secret: {secret}}}]}}\n  - identity: {{}}\n\
             - resources: [configmaps]\n  providers:\n  - identity: {{}}\n  - aesgcm: {{keys: [{{name: c, secret: {secret}}}]}}\n"
        );
        let (rules, keys) = of(&text).unwrap();
        let names: Vec<_> = rules.iter().map(|r| (&*r.group, &*r.resource, format!("{:?}", r.key))).collect();
        let a = "Some(k8s:enc:aesgcm:v1:a:)".to_string();
        let expected = [("", "secrets"), ("apps", "*"), ("", "*"), ("*", "*")];
        assert_eq!(names[..4], expected.map(|(g, r)| (g, r, a.clone())));
        assert_eq!((names[4].1, &*names[4].2, keys.len()), ("configmaps", "None", 3));
    }

    #[test]
    fn what_is_not_served_is_refused_clearly() {
        let with = |provider: &str| format!("- resources: [secrets]\n  providers:\n  - {provider}\n");
        let short = BASE64_STANDARD.encode([1; 24]);
        for (text, words) in [
            (with("kms: {apiVersion: v2, name: x, endpoint: unix:///x}"), "provider kms is not served"),
            (with("secretbox: {keys: []}"), "provider secretbox is not served"),
            (with("rot13: {}"), "no provider \"rot13\""),
            (with("aesgcm: {keys: []}"), "at least one key"),
            (with(&format!("aesgcm: {{keys: [{{name: a, secret: {short}}}]}}")), "has 24 bytes"),
            (with("aesgcm: {keys: [{name: a, secret: '%'}]}"), "not base64"),
            ("- {resources: [secrets], providers: []}\n".into(), "at least one provider"),
            ("- {resources: ['*'], providers: [{identity: {}}]}\n".into(), "is no resource"),
            ("- {resources: [Secrets], providers: [{identity: {}}]}\n".into(), "lower case"),
            ("- {resources: [secrets], providers: [{identity: {}}], more: 1}\n".into(), "unknown field"),
        ] {
            let error = format!("{:#}", of(&text).unwrap_err());
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(parse(b"kind: X\napiVersion: v1\nresources: []\n").is_err());
    }

    #[test]
    fn the_installations_key_stays() {
        let folder = tempfile::tempdir().unwrap();
        let first = load(folder.path(), "").unwrap();
        assert_eq!(first.fingerprint, load(folder.path(), "").unwrap().fingerprint);
        assert_eq!(first.rules.len(), ALWAYS.len());
        std::fs::write(folder.path().join(KEY_FILE), "{}").unwrap();
        assert!(load(folder.path(), "").unwrap_err().to_string().contains("not a key file"));
    }
}
