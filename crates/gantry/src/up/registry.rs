//! The registry: its content, its listener on the loopback, and the puller that knows it.

use super::Instance;
use crate::config::Config;
use anyhow::{Context, Result, ensure};
use image::{Depot, Keyring, Limits, PullConfig, Puller};
use std::net::Ipv4Addr;
use tokio::net::TcpListener;

/// Opens the content, serves it, and leaves the puller for the agent.
pub async fn start(instance: &mut Instance) -> Result<()> {
    let config = &instance.config;
    let pull = pull_config(config)?;
    let folder = config.data_dir.join("registry");
    let open = move || Depot::open(folder, Limits::default());
    let depot = tokio::task::spawn_blocking(open).await??;
    let images = instance.node.images()?;
    if config.registry_port != 0 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, config.registry_port)).await?;
        let serving = registry::serve(listener, depot.clone(), instance.stop.subscribe());
        instance.tasks.push(tokio::spawn(serving));
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
