//! The node's components: images, network, agent, services, DNS.

use super::Instance;
use super::control::AdminView;
use crate::admin::Question;
use anyhow::{Context, Result};
use image::{Images, Sweep};
use net::{NetConfig, Network};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Largest packet of a pod: the usual device's.
const MTU: u32 = 1_500;

/// What the node's components leave for others.
#[derive(Default)]
pub struct Parts {
    images: Option<Images>,
    network: Option<Arc<Network>>,
}

impl Parts {
    /// The node's images.
    pub fn images(&self) -> Result<Images> {
        self.images.clone().context("images start before what uses them")
    }

    /// Stops in reverse order; containers run on.
    pub async fn stop(&mut self) {}
}

/// The image store.
pub async fn images(instance: &mut Instance) -> Result<()> {
    let folder = instance.config.data_dir.join("images");
    instance.node.images = Some(tokio::task::spawn_blocking(move || Images::open(folder)).await??);
    Ok(())
}

/// Links, routes and tables of the node.
pub async fn network(instance: &mut Instance) -> Result<()> {
    let facts = &instance.facts;
    let config = NetConfig {
        prefix: instance.config.name.clone(),
        node_ip: facts.node_ip,
        pod_cidr: facts.pod_cidr,
        cluster_cidr: facts.cluster_cidr,
        service_cidr: facts.service_cidr,
        dns_ip: facts.dns_ip,
        mtu: MTU,
    };
    let open = move || -> Result<Network> {
        let network = Network::open(config)?;
        network.setup_node()?;
        Ok(network)
    };
    instance.node.network = Some(Arc::new(tokio::task::spawn_blocking(open).await??));
    Ok(())
}

/// The node agent.
pub async fn agent(_instance: &mut Instance) -> Result<()> {
    Ok(())
}

/// Service maps.
pub async fn services(_instance: &mut Instance) -> Result<()> {
    Ok(())
}

/// Cluster DNS.
pub async fn dns(_instance: &mut Instance) -> Result<()> {
    Ok(())
}

/// Waits until the API shows the node Ready.
pub async fn wait_ready(_instance: &Instance) -> Result<()> {
    Ok(())
}

/// Answers questions about images.
pub async fn answer(view: &AdminView, question: Question) -> Result<Value> {
    match question {
        Question::ImageLoad { path } => {
            let loaded = view.images.load_async(path).await?;
            Ok(loaded
                .into_iter()
                .flat_map(|l| if l.names.is_empty() { vec![l.id] } else { l.names })
                .collect())
        }
        Question::ImageList => {
            let line =
                |name: &str, i: &image::Image| json!({"name": name, "id": i.id, "sizeBytes": i.size_bytes});
            let lines = |i: Arc<image::Image>| -> Vec<Value> {
                if i.names.is_empty() {
                    vec![line("<none>", &i)]
                } else {
                    i.names.iter().map(|n| line(n, &i)).collect()
                }
            };
            Ok(view.images.list().into_iter().flat_map(lines).collect())
        }
        _ => {
            let images = view.images.clone();
            let removed =
                tokio::task::spawn_blocking(move || images.gc(&BTreeSet::new(), Sweep::Unused)).await??;
            Ok(json!(removed.len()))
        }
    }
}
