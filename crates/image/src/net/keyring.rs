//! Which user names and passwords are for which registry: Docker's config files, as the kubelet matches them. Pure.
//!
//! A key is a host, perhaps with a scheme, a port, a path and `*` within labels; the longest key that fits an image
//! goes first. Deliberately not here: credential helpers (programs) and identity tokens.

use crate::digest::Digest;
use crate::reference::Reference;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;
use std::collections::BTreeMap;

/// A larger file is none.
const FILE_BYTES: usize = 1 << 20;

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: String,
    password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({})", self.username)
    }
}

impl Credentials {
    /// Tells them apart from others, and does not give them away.
    pub(crate) fn mark(&self) -> String {
        let mut text = b"gantry credentials\0".to_vec();
        for part in [&self.username, &self.password] {
            text.extend(part.as_bytes());
            text.push(0);
        }
        Digest::of(&text).hex().to_string()
    }

    /// The value of an `Authorization` header.
    pub(crate) fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password)))
    }
}

/// Credentials by registry.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    entries: Vec<(Key, Credentials)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    host: String,
    port: Option<String>,
    path: String,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
}

impl Keyring {
    /// Adds what a `config.json` of Docker (`.dockerconfigjson` of a Secret) holds.
    ///
    /// # Errors
    /// It is not such a file; the error never repeats its content.
    pub fn add_config_json(&mut self, text: &[u8]) -> Result<(), String> {
        let file: File = read(text)?;
        self.add(file.auths)
    }

    /// Adds what a `.dockercfg` holds.
    ///
    /// # Errors
    /// It is not such a file.
    pub fn add_dockercfg(&mut self, text: &[u8]) -> Result<(), String> {
        let auths: BTreeMap<String, Entry> = read(text)?;
        self.add(auths)
    }

    /// Adds all of another keyring behind what is there.
    pub fn extend(&mut self, other: &Keyring) {
        self.entries.extend(other.entries.iter().cloned());
    }

    fn add(&mut self, auths: BTreeMap<String, Entry>) -> Result<(), String> {
        for (key, entry) in auths {
            let credentials = match entry.auth.as_str() {
                "" => Credentials { username: entry.username, password: entry.password },
                auth => decode(auth).ok_or_else(|| format!("bad auth field for {key:?}"))?,
            };
            if !credentials.username.is_empty() {
                self.entries.push((Key::parse(&key), credentials));
            }
        }
        Ok(())
    }

    /// What tells the credentials for an image's repository apart from others'.
    pub fn marks(&self, image: &Reference) -> Vec<String> {
        self.matching(&image.domain, &image.path).iter().map(Credentials::mark).collect()
    }

    /// Credentials for a repository, the most specific first.
    pub(crate) fn matching(&self, domain: &str, path: &str) -> Vec<Credentials> {
        let mut fit: Vec<&(Key, Credentials)> =
            self.entries.iter().filter(|(k, _)| k.fits(domain, path)).collect();
        fit.sort_by_key(|(key, _)| std::cmp::Reverse((key.path.len(), key.host.len())));
        let mut list: Vec<Credentials> = Vec::new();
        for (_, credentials) in fit {
            if !list.contains(credentials) {
                list.push(credentials.clone());
            }
        }
        list
    }
}

fn read<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, String> {
    if text.len() > FILE_BYTES {
        return Err("too large".into());
    }
    // serde's message could quote a secret.
    serde_json::from_slice(text).map_err(|e| format!("not a Docker config file (line {})", e.line()))
}

fn decode(auth: &str) -> Option<Credentials> {
    let auth = auth.trim();
    let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth)).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    // Docker pads with NUL.
    Some(Credentials { username: username.into(), password: password.trim_end_matches('\0').into() })
}

impl Key {
    fn parse(text: &str) -> Key {
        let bare = text.trim_start_matches("https://").trim_start_matches("http://");
        let (authority, path) = bare.split_once('/').unwrap_or((bare, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port.to_string())),
            _ => (authority, None),
        };
        // Docker Hub's old names, and the API versions that old files end in.
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            host => host,
        };
        let path = path.trim_end_matches('/');
        let path = if matches!(path, "v1" | "v2") { "" } else { path };
        Key { host: host.to_ascii_lowercase(), port, path: path.into() }
    }

    fn fits(&self, domain: &str, path: &str) -> bool {
        let wanted = Key::parse(domain);
        let labels = |host: &str| host.split('.').map(String::from).collect::<Vec<_>>();
        let (own, theirs) = (labels(&self.host), labels(&wanted.host));
        let below = path
            .strip_prefix(self.path.as_str())
            .is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'));
        below
            && self.port == wanted.port
            && own.len() == theirs.len()
            && own.iter().zip(&theirs).all(|(pattern, label)| glob(pattern, label))
    }
}

/// `*` stands for any characters within one label.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = text.find(part) else { return false };
        text = &text[at + part.len()..];
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(json: &str, domain: &str, path: &str) -> Vec<String> {
        let mut keys = Keyring::default();
        keys.add_config_json(json.as_bytes()).unwrap();
        keys.matching(domain, path).into_iter().map(|c| c.username).collect()
    }

    #[test]
    fn matches_as_the_kubelet_does() {
        let json = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "r.io": {"username": "whole", "password": "x"},
            "r.io/team": {"username": "team", "password": "x"},
            "*.r.io:5000": {"username": "star", "password": "x"},
            "empty.io": {}
        }}"#;
        assert_eq!(users(json, "docker.io", "library/nginx"), ["hub"]);
        assert_eq!(users(json, "r.io", "team/app"), ["team", "whole"]);
        assert_eq!(users(json, "r.io", "teams/app"), ["whole"]);
        assert_eq!(users(json, "a.r.io:5000", "x"), ["star"]);
        for domain in ["a.r.io", "a.b.r.io:5000", "r.io:5000", "evil-r.io", "empty.io"] {
            assert_eq!(users(json, domain, "x"), [""; 0], "{domain}");
        }
        let mut keys = Keyring::default();
        keys.add_dockercfg(br#"{"r.io": {"auth": "dTpwOnE="}}"#).unwrap();
        assert_eq!(
            keys.matching("r.io", "x")[0],
            Credentials { username: "u".into(), password: "p:q".into() }
        );
    }

    #[test]
    fn errors_keep_secrets() {
        let mut keys = Keyring::default();
        let error = keys.add_config_json(br#"{"auths": {"r.io": "hunter2"}}"#).unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(keys.add_config_json(br#"{"auths": {"r.io": {"auth": "%%"}}}"#).is_err());
        let credentials = Credentials { username: "u".into(), password: "hunter2".into() };
        assert_eq!(format!("{credentials:?}"), "Credentials(u)");
    }

    #[test]
    fn globs() {
        assert!(glob("*", "") && glob("a*c", "abc") && glob("a*b*c", "axbxc") && glob("*a", "ba"));
        assert!(!glob("a*a", "a") && !glob("a*c", "ab") && !glob("b", "a"));
    }
}
