//! `gantry agent`: a node of a cluster whose control plane runs elsewhere.
//!
//! The first start needs a token (`gantry token create` prints the whole command); it ends with a certificate of the
//! cluster under `data-dir/pki`, by which every later start comes back, and which renews itself. What else a node must
//! know (ranges, the domain) it reads from the cluster, and keeps for a start while the server is away. While the server is away pods run on, services keep their last
//! state, and every part comes back by itself.
//! A bootstrap token does not get the name of a node that is Ready: two machines with one name cannot both join.

mod authority;
mod certificates;
pub mod publish;
mod server;
pub mod token;

use crate::config::Config;
use crate::up::{self, Component, Instance, ecs, facts::Facts, logs, node, registry};
use crate::{kubeconfig, preflight};
use anyhow::{Context, Result, bail};
use auth::Issued;
use certificates::{Ask, Kept};
use client::remote::Remote;
use client::{ApiClient, ObjectKey};
use k8s_schema::gvr;
use machinery::status::ApiError;
use serde_json::Value;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use stdx::backoff::Backoff;

/// Pause between attempts to reach the server.
const RETRY: Backoff = Backoff { base: Duration::from_millis(200), factor: 2, max: Duration::from_secs(10) };

/// How long a node that was here before waits for its server.
const AWAY_AFTER: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// The components of a node, in the order they start.
const COMPONENTS: &[Component] = &[
    ("connection to the cluster", |i| Box::pin(connect(i))),
    ("node's pod range", |i| Box::pin(node::range(i))),
    ("serving certificate", |i| Box::pin(serving(i))),
    ("images", |i| Box::pin(node::images(i))),
    ("registry", |i| Box::pin(registry::start(i))),
    ("network", |i| Box::pin(node::network(i))),
    ("node agent", |i| Box::pin(node::agent(i))),
    ("peers", |i| Box::pin(node::peers(i))),
    ("services", |i| Box::pin(node::services(i))),
    ("DNS", |i| Box::pin(node::dns(i))),
    ("log drivers", |i| Box::pin(logs::drivers(i))),
    ("task metadata", |i| Box::pin(ecs::metadata(i))),
    ("admin socket", |i| Box::pin(up::admin(i))),
];

/// What the command line says about the cluster.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    server: String,
    token: String,
    ca_hash: String,
    trust_first: bool,
}

/// A node's standing in a cluster elsewhere.
pub struct Joined {
    /// The API, as this node.
    pub client: ApiClient,
    /// Where it is.
    pub server: String,
    /// For the node API; set once there is a serving certificate.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// The cluster's registry; "" when it serves none.
    registry: String,
    ca_pem: String,
    remote: Arc<Remote>,
    identity: Kept,
}

impl Joined {
    /// What the servers do for this node's tasks.
    pub fn server(&self) -> Arc<server::Server> {
        Arc::new(server::Server(self.remote.clone()))
    }

    /// The cluster's registry, as this node reaches it.
    pub fn registry(&self) -> Option<image::Parent> {
        let (identity, ca_pem) = (self.identity.clone(), self.ca_pem.clone());
        let tls: image::TlsSource = Arc::new(move || {
            // Read anew: it renews itself.
            let issued =
                identity.load(std::time::SystemTime::now()).ok_or("this node has no valid certificate")?;
            auth::client_config(&issued, &ca_pem).map_err(|e| e.to_string())
        });
        (!self.registry.is_empty()).then(|| image::Parent { url: self.registry.clone(), tls })
    }
}

/// Runs until told to stop.
pub fn run(config: Config, words: &[String]) -> Result<()> {
    let asked = asked(words)?;
    preflight::check_node(&config)?;
    up::serve(config, COMPONENTS, Some(asked))
}

fn asked(words: &[String]) -> Result<Asked> {
    let mut asked = Asked::default();
    for word in words {
        match word.strip_prefix("--").and_then(|w| w.split_once('=')) {
            Some(("server", url)) => asked.server = url.trim_end_matches('/').into(),
            Some(("token", token)) => asked.token = token.into(),
            Some(("ca-hash", hash)) => asked.ca_hash = hash.into(),
            Some(("insecure-trust-first", _)) => asked.trust_first = true,
            _ => bail!("{word:?} is not understood (gantry help)"),
        }
    }
    if !asked.server.is_empty() && !asked.server.starts_with("https://") {
        bail!("--server {:?} is not of the form https://HOST:PORT", asked.server);
    }
    Ok(asked)
}

/// Certificates and keys of this node.
pub fn pki(config: &Config) -> std::path::PathBuf {
    config.data_dir.join("pki")
}

/// Gets, or comes back with, the certificate that makes this machine a node, and reads the cluster's settings.
async fn connect(instance: &mut Instance) -> Result<()> {
    let asked = instance.asked.clone().context("the command says which cluster")?;
    let folder = pki(&instance.config);
    up::private_folder(&folder)?;
    let server = authority::server(&folder, &asked.server)?;
    let ca_pem = authority::trusted(&folder, &server, &asked).await?;
    let user = format!("system:node:{}", instance.facts.node_name);
    let identity = Kept { file: folder.join("node-client.pem"), ask: Ask::client(&user) };
    let issued = match identity.load(std::time::SystemTime::now()) {
        Some(issued) => issued,
        None => first_certificate(&server, &ca_pem, &asked.token, &identity).await?,
    };
    let text = kubeconfig::text(&server, &ca_pem, &user, &issued);
    let remote = Arc::new(Remote::from_kubeconfig(&text).await?);
    let client: ApiClient = remote.clone();
    let key = ObjectKey::new(publish::SETTINGS.0, publish::SETTINGS.1);
    let maps = gvr::CONFIG_MAPS;
    let read = || async { client.get(&maps, &key).await?.value().map_err(ApiError::internal) };
    let settings = remembered("reading the cluster's settings", &folder.join("settings.json"), read).await?;
    instance.config.adopt(&settings["data"])?;
    let registry = settings["data"][publish::REGISTRY].as_str().unwrap_or_default().to_string();
    instance.facts = Facts::find(&instance.config)?;
    preflight::check_ranges(&instance.config)?;
    println!("joined {server} as node {}", instance.facts.node_name);
    instance.control.joined = Some(Joined { client, server, tls: None, registry, ca_pem, remote, identity });
    Ok(())
}

async fn first_certificate(server: &str, ca_pem: &str, token: &str, identity: &Kept) -> Result<Issued> {
    if token.is_empty() {
        bail!(
            "this node has no valid certificate yet: give a --token (`gantry token create` on the server makes one)"
        );
    }
    let bootstrap = Remote::from_kubeconfig(&kubeconfig::with_token(server, ca_pem, token)).await?;
    let client: ApiClient = Arc::new(bootstrap);
    let issued = certificates::request(&client, &identity.ask).await.map_err(|error| match error.downcast_ref::<ApiError>() {
        Some(refused) if refused.code == 401 => {
            anyhow::anyhow!("the server does not accept the token: it is wrong, expired or removed (`gantry token create` makes another)")
        }
        _ => error,
    })?;
    identity.keep(&issued)?;
    Ok(issued)
}

/// The certificate of the node API; from here on both renew themselves.
async fn serving(instance: &mut Instance) -> Result<()> {
    let (name, ip) = (instance.facts.node_name.clone(), instance.facts.node_ip);
    let file = pki(&instance.config).join("node-serving.pem");
    let joined = instance.control.joined.as_mut().context("the node joins before it serves")?;
    let kept = Kept { file, ask: Ask::serving(&format!("system:node:{name}"), &name, ip) };
    let issued = match kept.load(std::time::SystemTime::now()).filter(|i| kept.ask.fits(i)) {
        Some(issued) => issued,
        None => {
            let issued = certificates::request(&joined.client, &kept.ask).await?;
            kept.keep(&issued)?;
            issued
        }
    };
    let (tls, resolver) = auth::serving(&issued, &joined.ca_pem, &["http/1.1"])?;
    joined.tls = Some(tls);
    let (remote, server, ca_pem) = (joined.remote.clone(), joined.server.clone(), joined.ca_pem.clone());
    let user = joined.identity.ask.user.clone();
    let renew_client = move |issued: Issued| {
        let (remote, text) = (remote.clone(), kubeconfig::text(&server, &ca_pem, &user, &issued));
        async move { Ok(remote.renew(&text).await?) }
    };
    let renew_serving = move |issued: Issued| {
        let resolver = resolver.clone();
        async move { Ok(resolver.renew(&issued)?) }
    };
    let client = joined.client.clone();
    let identity = joined.identity.clone();
    instance.tasks.push(tokio::spawn(certificates::keep_fresh(client.clone(), identity, renew_client)));
    instance.tasks.push(tokio::spawn(certificates::keep_fresh(client, kept, renew_serving)));
    Ok(())
}

/// The same for what a node must know before it starts: while the server is away, the file's last answer counts, so that
/// what belongs to this node (its static pods, those that ran) does not wait.
pub async fn remembered<F>(what: &str, file: &Path, attempt: impl Fn() -> F) -> Result<Value>
where
    F: Future<Output = Result<Value, ApiError>>,
{
    let last = std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let patience = if last.is_some() { AWAY_AFTER } else { Duration::MAX };
    match (tokio::time::timeout(patience, patiently(what, attempt)).await, last) {
        (Ok(told), _) => {
            let told = told?;
            std::fs::write(file, told.to_string()).with_context(|| file.display().to_string())?;
            Ok(told)
        }
        (Err(_), Some(last)) => {
            println!("{what}: the server is away; what it said last counts");
            Ok(last)
        }
        (Err(_), None) => bail!("{what}: no answer"),
    }
}

/// Tries until the server answers; what it refuses ends the attempt.
pub async fn patiently<T, F>(what: &str, attempt: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let mut failures = 0;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if error.code == 401 => {
                bail!(
                    "{what}: the server does not accept this node's certificate; to join anew, remove the folder pki and give a --token"
                );
            }
            Err(error) if error.code < 500 => return Err(error).with_context(|| what.to_string()),
            Err(error) => {
                if failures == 0 {
                    println!("{what}: {error}; trying until it succeeds");
                }
                tokio::time::sleep(RETRY.delay(failures)).await;
                failures += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_said_last_counts_while_the_server_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.json");
        let away = || async { Err(ApiError::new(503, "ServiceUnavailable", "away")) };
        let first = tokio::time::timeout(AWAY_AFTER, remembered("a", &file, away)).await;
        assert!(first.is_err(), "nothing is known: it waits");
        let says = |text: &'static str| move || async move { Ok(Value::from(text)) };
        assert_eq!(remembered("a", &file, says("x")).await.unwrap(), "x");
        assert_eq!(remembered("a", &file, away).await.unwrap(), "x");
        assert_eq!(remembered("a", &file, says("y")).await.unwrap(), "y");
        let refused = || async { Err(ApiError::new(403, "Forbidden", "no")) };
        assert!(remembered("a", &file, refused).await.is_err(), "a refusal counts");
        assert_eq!(remembered("a", &file, away).await.unwrap(), "y");
    }

    #[test]
    fn flags_say_which_cluster() {
        let of = |words: &[&str]| asked(&words.iter().map(|w| w.to_string()).collect::<Vec<_>>());
        let all =
            of(&["--server=https://h:1/", "--token=t", "--ca-hash=sha256:x", "--insecure-trust-first=yes"]);
        let all = all.unwrap();
        assert_eq!((all.server.as_str(), all.token.as_str(), all.trust_first), ("https://h:1", "t", true));
        assert!(of(&["--server=http://h"]).is_err());
        assert!(of(&["stray"]).is_err());
    }
}
