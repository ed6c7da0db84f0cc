//! The way to other nodes' pods: tells the network which nodes there are, as the Node objects say.
//!
//! What is wanted ([`peers`]) is pure; `net` diffs and applies. A node counts as long as its object is there, Ready
//! or not; when the API is gone, the last known nodes stay reachable.

use super::RETRY;
use client::cache::Cache;
use client::{ApiClient, ListOptions, Object};
use k8s_openapi::api::core::v1::Node;
use k8s_schema::gvr;
use net::{Network, Peer};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Nodes that come together are told together.
const COALESCE: Duration = Duration::from_millis(20);

/// Starts telling the network of node `node` about the others; ends when the handle is aborted.
pub fn start(client: ApiClient, network: Arc<Network>, node: String) -> JoinHandle<()> {
    let nodes = Cache::start(client, gvr::NODES, ListOptions::default());
    tokio::spawn(async move {
        nodes.wait_synced().await;
        let mut changed = nodes.changed();
        let mut told = None;
        let mut failures = 0;
        loop {
            changed.borrow_and_update();
            let wanted = peers(&nodes.list(), &node);
            if told.as_ref() != Some(&wanted) {
                let network = network.clone();
                let tell = tokio::task::spawn_blocking(move || (network.set_peers(&wanted), wanted));
                match tell.await {
                    Ok((Ok(changes), wanted)) => {
                        tracing::debug!(peers = wanted.len(), changes, "peers told");
                        (told, failures) = (Some(wanted), 0);
                    }
                    Ok((Err(error), _)) => {
                        tracing::warn!(%error, "pods of other nodes may be out of reach");
                        tokio::time::sleep(RETRY.delay(failures)).await;
                        failures += 1;
                        continue;
                    }
                    Err(_) => return,
                }
            }
            if changed.changed().await.is_err() {
                return;
            }
            tokio::time::sleep(COALESCE).await;
        }
    })
}

/// All nodes but `own` that have an address and a pod range, sorted.
fn peers(nodes: &[Arc<Object>], own: &str) -> Vec<Peer> {
    let peer = |object: &Arc<Object>| {
        let node = object.view::<Node>().ok()?;
        let addresses = node.status.as_ref()?.addresses.as_deref().unwrap_or_default();
        let node_ip = addresses.iter().find(|a| a.type_ == "InternalIP")?.address.parse().ok()?;
        Some(Peer { node_ip, pod_cidr: node.spec.as_ref()?.pod_cidr.as_ref()?.parse().ok()? })
    };
    let mut peers: Vec<Peer> = nodes.iter().filter(|n| *n.key.name != *own).filter_map(peer).collect();
    peers.sort();
    peers
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_peer_has_an_address_and_a_range() {
        let node = |name: &str, range: Value, addresses: Value| {
            let body = json!({"metadata": {"name": name}, "spec": {"podCIDR": range}, "status": {"addresses": addresses}});
            Arc::new(Object::parse(body.to_string().into()).unwrap())
        };
        let at =
            |ip: &str| json!([{"type": "Hostname", "address": "x"}, {"type": "InternalIP", "address": ip}]);
        let nodes = [
            node("own", json!("10.244.0.0/22"), at("10.0.0.1")),
            node("b", json!("10.244.4.0/22"), at("10.0.0.2")),
            node("rangeless", Value::Null, at("10.0.0.3")),
            node("addressless", json!("10.244.8.0/22"), Value::Null),
            node("six", json!("fd00::/64"), at("10.0.0.4")),
        ];
        let found = peers(&nodes, "own");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pod_cidr.to_string(), "10.244.4.0/22");
    }
}
