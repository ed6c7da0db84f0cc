//! The registry: its content, its listeners, and the puller that knows it.
//!
//! On the loopback it is plain and open, as every tool expects of `localhost`. A control plane also serves it on the
//! node's address, by TLS and to whom it knows (`registry_access`); nodes that join pull from there.

use super::Instance;
use super::registry_access::{ClusterUsers, FileUsers};
use crate::config::Config;
use crate::join::Joined;
use anyhow::{Context, Result, ensure};
use auth::{Identity, SYSTEM_MASTERS};
use image::{Depot, Keyring, Limits, PullConfig, Puller};
use registry::Guard;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::net::TcpListener;

/// Regions whose registry names (`<account>.dkr.ecr.<region>.amazonaws.com`) the certificate covers.
const REGIONS: [&str; 1] = ["us-east-1"];

/// Opens the content, serves it, and leaves the puller for the agent.
pub async fn start(instance: &mut Instance) -> Result<()> {
    let mut pull = pull_config(&instance.config)?;
    pull.parent = instance.control.joined.as_ref().and_then(Joined::registry);
    let port = instance.config.registry_port;
    let folder = instance.config.data_dir.join("registry");
    let open = move || Depot::open(folder, Limits::default());
    let depot = tokio::task::spawn_blocking(open).await??;
    let images = instance.node.images()?;
    if port != 0 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let serving = registry::serve(listener, depot.clone(), instance.stop.subscribe());
        instance.tasks.push(tokio::spawn(serving));
        guarded(instance, depot.clone()).await?;
        // Pods that wait for an image look again when one is pushed.
        let (mut pushed, waiting) = (depot.subscribe(), images.clone());
        instance.tasks.push(tokio::spawn(async move {
            while pushed.changed().await.is_ok() {
                waiting.poke();
            }
        }));
    }
    instance.node.puller = Some(Puller::new(images, Some(depot), pull));
    Ok(())
}

/// Where other nodes reach the registry; `None`: nowhere.
pub fn address(instance: &Instance) -> Option<SocketAddrV4> {
    let (ip, port) = (instance.facts.node_ip, instance.config.registry_port);
    (port != 0 && !ip.is_loopback() && instance.control.joined.is_none()).then(|| SocketAddrV4::new(ip, port))
}

/// The listener for everybody else.
async fn guarded(instance: &mut Instance, depot: Depot) -> Result<()> {
    let Some(address) = address(instance) else { return Ok(()) };
    let (config, ca) = (&instance.config, instance.control.ca()?);
    let mut names: Vec<String> = ["localhost", "registry"].map(String::from).into();
    names.push(format!("registry.{}", config.cluster_domain));
    names.push(instance.facts.node_name.clone());
    names.extend(REGIONS.iter().map(|region| format!("*.dkr.ecr.{region}.amazonaws.com")));
    let ips = [IpAddr::from(*address.ip()), Ipv4Addr::LOCALHOST.into()];
    let issued = ca.issue_server("registry", &names, &ips, SystemTime::now())?;
    let tls = auth::server_config(&issued, ca.cert_pem(), &["http/1.1"])?;
    let authorizers = instance.node.registry_users.clone();
    if !config.registry_users.is_empty() {
        let text = std::fs::read_to_string(&config.registry_users);
        let text = text.with_context(|| format!("--registry-users {}", config.registry_users))?;
        let users = FileUsers::parse(&text);
        let users = users.with_context(|| format!("--registry-users {}", config.registry_users))?;
        authorizers.add(Arc::new(users));
    }
    let client = instance.control.client(Identity::new("system:apiserver", [SYSTEM_MASTERS]))?;
    authorizers.add(Arc::new(ClusterUsers { client }));
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("listening at {address} (--registry-port)"))?;
    let guard = Guard { tls, authorizers };
    let serving = registry::serve_guarded(listener, depot, guard, instance.stop.subscribe());
    instance.tasks.push(tokio::spawn(serving));
    Ok(())
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

fn pull_config(config: &Config) -> Result<PullConfig> {
    let mut pull = PullConfig::default();
    for host in ["localhost", "127.0.0.1"] {
        pull.own.insert(format!("{host}:{}", config.registry_port));
    }
    for entry in entries(&config.registry_mirrors) {
        let (domain, url) = entry.split_once('=').unwrap_or((entry, ""));
        ensure!(
            url.starts_with("http://") || url.starts_with("https://"),
            "--registry-mirrors: {entry:?} is not of the form domain=http[s]://host[:port]"
        );
        pull.mirrors.entry(domain.into()).or_default().push(url.into());
    }
    pull.insecure.extend(entries(&config.insecure_registries).map(String::from));
    if !config.registry_auth.is_empty() {
        let file = std::fs::read(&config.registry_auth);
        let file = file.with_context(|| format!("--registry-auth {}", config.registry_auth))?;
        let mut keys = Keyring::default();
        keys.add_config_json(&file)
            .map_err(|e| anyhow::anyhow!("--registry-auth {}: {e}", config.registry_auth))?;
        pull.keys = keys;
    }
    Ok(pull)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_a_pull_configuration() {
        let of = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|a| a.to_string()).collect();
            pull_config(&Config::from_args(&args).unwrap().0)
        };
        let mirrors = "--registry-mirrors=docker.io=http://a:1, docker.io=https://b,quay.io=http://c";
        let config = of(&[mirrors, "--insecure-registries=x:80", "--registry-port=5001"]).unwrap();
        assert_eq!(config.mirrors["docker.io"], ["http://a:1", "https://b"]);
        assert!(config.insecure.contains("x:80") && config.own.contains("localhost:5001"));
        for bad in ["--registry-mirrors=docker.io", "--registry-auth=/nonexistent"] {
            assert!(of(&[bad]).is_err(), "{bad}");
        }
    }
}
