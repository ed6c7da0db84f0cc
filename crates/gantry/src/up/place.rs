//! Where objects are kept: the embedded store, or an etcd named by the setting `store`.

use super::figures;
use anyhow::{Context, Result, bail};
use auth::Issued;
use std::path::Path;
use std::sync::Arc;
use store::{Embedded, EmbeddedOptions, Endpoint, Etcd, EtcdOptions, Store};

/// etcd's client port.
const ETCD_PORT: u16 = 2379;

/// An open store.
pub enum Place {
    /// In a file.
    Embedded(Arc<Embedded>),
    /// In a cluster.
    Etcd(Arc<Etcd>),
}

impl Place {
    /// Opens what the setting names; the embedded store is the file `store.db` in `folder`.
    pub async fn open(setting: &str, folder: &Path) -> Result<Place> {
        if let Some(options) = etcd(setting)? {
            return Ok(Place::Etcd(Arc::new(Etcd::connect(options).await?)));
        }
        let file = folder.join("store.db");
        let open = move || Embedded::open(&file, EmbeddedOptions::default());
        Ok(Place::Embedded(Arc::new(tokio::task::spawn_blocking(open).await??)))
    }

    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Place::Embedded(store) => store.clone(),
            Place::Etcd(store) => store.clone(),
        }
    }

    /// May other servers use it too?
    pub fn is_shared(&self) -> bool {
        matches!(self, Place::Etcd(_))
    }

    /// Its figures, as lines of `/metrics`.
    pub fn metrics(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        match self {
            Place::Embedded(store) => {
                let store = store.clone();
                Arc::new(move || figures::embedded(&store.stats()))
            }
            Place::Etcd(store) => {
                let store = store.clone();
                Arc::new(move || figures::etcd(&store.stats()))
            }
        }
    }

    /// Ends it; acknowledged writes are safe before that already.
    pub async fn close(self) {
        match self {
            Place::Embedded(store) => store.close().await,
            Place::Etcd(store) => store.close(),
        }
    }
}

/// `etcd://host:port[,host:port…]`, or `etcd+tls://…?ca=FILE&cert=FILE&key=FILE`; both take `prefix=/TEXT`.
/// `None` for the embedded store.
fn etcd(setting: &str) -> Result<Option<EtcdOptions>> {
    let Some((scheme, rest)) = setting.split_once("://") else {
        match setting {
            "" => return Ok(None),
            _ => bail!("--store {setting:?} is not of the form etcd://host:port[,host:port…]"),
        }
    };
    let (members, query) = rest.split_once('?').unwrap_or((rest, ""));
    let endpoints = members.split(',').map(endpoint).collect::<Result<_>>()?;
    let mut options = EtcdOptions::new(endpoints);
    let (mut ca, mut cert, mut key) = (None, None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) =
            pair.split_once('=').with_context(|| format!("--store: {pair:?} has no value"))?;
        let file = || std::fs::read_to_string(value).with_context(|| format!("--store: {value}"));
        match name {
            "ca" => ca = Some(file()?),
            "cert" => cert = Some(file()?),
            "key" => key = Some(file()?),
            "prefix" if value.starts_with('/') && !value.ends_with('/') => options.prefix = value.to_string(),
            "prefix" => bail!("--store: a prefix is of the form /text, not {value:?}"),
            _ => bail!("--store: no such option: {name} (ca, cert, key, prefix)"),
        }
    }
    match (scheme, ca, cert, key) {
        ("etcd", None, None, None) => {}
        ("etcd+tls", Some(ca), Some(cert_pem), Some(key_pem)) => {
            options.tls = Some(auth::client_config(&Issued { cert_pem, key_pem }, &ca)?);
        }
        ("etcd", ..) => bail!("--store: certificates are for etcd+tls://"),
        ("etcd+tls", ..) => bail!("--store: etcd+tls:// needs ?ca=FILE&cert=FILE&key=FILE"),
        _ => bail!("--store: {scheme} is not etcd or etcd+tls"),
    }
    Ok(Some(options))
}

fn endpoint(text: &str) -> Result<Endpoint> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().with_context(|| format!("--store: {text:?} has no port"))?)
        }
        _ => (text, ETCD_PORT),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
    if host.is_empty() {
        bail!("--store: {text:?} names no host");
    }
    Ok(Endpoint { host, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read() {
        let options = etcd("etcd://10.0.0.1:2380,[::1]:7,db?prefix=/a").unwrap().unwrap();
        let members: Vec<_> = options.endpoints.iter().map(|e| (e.host.as_str(), e.port)).collect();
        assert_eq!(members, [("10.0.0.1", 2380), ("::1", 7), ("db", 2379)]);
        assert_eq!(options.prefix, "/a");
        assert!(etcd("").unwrap().is_none());
    }

    #[test]
    fn bad_settings_say_what() {
        for (setting, words) in [
            ("/var/lib/x", "not of the form"),
            ("mysql://x", "mysql is not etcd"),
            ("etcd://", "names no host"),
            ("etcd://a:b", "no port"),
            ("etcd://a?prefix=x", "form /text"),
            ("etcd://a?x=y", "no such option: x"),
            ("etcd+tls://a", "needs ?ca=FILE"),
            ("etcd+tls://a?ca=/nowhere", "/nowhere"),
        ] {
            let error = etcd(setting).err().map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(error.contains(words), "{setting}: {error}");
        }
    }
}
