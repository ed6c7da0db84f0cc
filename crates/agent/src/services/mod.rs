//! What kube-proxy does: keeps the node's service maps as Services and EndpointSlices say.
//!
//! Computing what is wanted ([`service_ports`]) is pure; `net` diffs and applies. Changes within
//! [`COALESCE`] share one apply, because the kernel waits up to 16 ms for each. When the API is gone, the last
//! applied state goes on working.

mod dns_extra;
mod dns_zone;
mod peers;

pub use dns_zone::feed as feed_dns;
pub use peers::start as feed_peers;

use client::ApiClient;
use client::cache::Cache;
use client::{ListOptions, Object};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_schema::gvr;
use net::{Endpoint, HostPort, Network, Protocol, ServicePort};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Changes within this time are applied together.
const COALESCE: Duration = Duration::from_millis(2);
/// Pause after the kernel refused an apply.
const RETRY: Backoff = Backoff { base: Duration::from_millis(100), factor: 2, max: Duration::from_secs(30) };
/// The label that ties a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Labels of a Service that somebody else, or nobody, is to make reachable.
const NOT_OURS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];

/// Starts keeping the maps of node `node`, the host ports of its pods among them; ends when the handle is aborted.
pub fn start(
    client: ApiClient,
    network: Arc<Network>,
    node: String,
    mut host_ports: watch::Receiver<Vec<HostPort>>,
) -> JoinHandle<()> {
    let all = ListOptions::default;
    let services = Cache::start(client.clone(), gvr::SERVICES, all());
    let slices = Cache::start(client, gvr::ENDPOINT_SLICES, all());
    tokio::spawn(async move {
        for cache in [&services, &slices] {
            cache.wait_synced().await;
        }
        let mut changes = [services.changed(), slices.changed()];
        let mut applied = None;
        let mut failures = 0;
        loop {
            changes.iter_mut().for_each(|c| drop(c.borrow_and_update()));
            let wanted = (
                all_service_ports(&services.list(), &slices.list(), &node),
                host_ports.borrow_and_update().clone(),
            );
            if applied.as_ref() != Some(&wanted) {
                let network = network.clone();
                let done = tokio::task::spawn_blocking(move || {
                    let result = network.apply(&wanted.0, &wanted.1);
                    (result, wanted)
                });
                match done.await {
                    Ok((Ok(_), wanted)) => (applied, failures) = (Some(wanted), 0),
                    Ok((Err(error), _)) => {
                        tracing::warn!(%error, "service maps were not applied");
                        tokio::time::sleep(RETRY.delay(failures)).await;
                        failures += 1;
                        continue;
                    }
                    Err(_) => return,
                }
            }
            let [a, b] = &mut changes;
            tokio::select! { _ = a.changed() => {}, _ = b.changed() => {}, gone = host_ports.changed() => if gone.is_err() { return } }
            tokio::time::sleep(COALESCE).await;
        }
    })
}

/// The slices of each Service, by namespace and name.
fn by_service(slices: &[Arc<Object>]) -> BTreeMap<(Arc<str>, String), Vec<Arc<discovery::EndpointSlice>>> {
    let mut map: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for slice in slices {
        let Some(service) = slice.meta().labels.get(SERVICE_NAME) else { continue };
        let Ok(view) = slice.view::<discovery::EndpointSlice>() else { continue };
        map.entry((slice.key.namespace.clone(), service.clone())).or_default().push(view);
    }
    map
}

fn all_service_ports(services: &[Arc<Object>], slices: &[Arc<Object>], node: &str) -> Vec<ServicePort> {
    let slices = by_service(slices);
    let mut ports = Vec::new();
    for object in services {
        let Ok(service) = object.view::<core::Service>() else { continue };
        let own = slices.get(&(object.key.namespace.clone(), object.key.name.to_string()));
        ports.extend(service_ports(&object.key.to_string(), &service, own.map_or(&[], |s| s), node));
    }
    ports
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<Ipv4Addr> {
    let set: BTreeSet<Ipv4Addr> = texts.filter_map(|t| t.parse().ok()).collect();
    set.into_iter().collect()
}

fn protocol(name: Option<&str>) -> Protocol {
    match name {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

/// What the node must do for one Service.
fn service_ports(
    name: &str,
    service: &core::Service,
    slices: &[Arc<discovery::EndpointSlice>],
    node: &str,
) -> Vec<ServicePort> {
    let ours = !service.metadata.labels.iter().flatten().any(|(label, _)| NOT_OURS.contains(&label.as_str()));
    let wanted = |s: &&core::ServiceSpec| ours && s.type_.as_deref() != Some("ExternalName");
    let Some(spec) = service.spec.as_ref().filter(wanted) else { return Vec::new() };
    let cluster_ips = addresses(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip));
    if cluster_ips.is_empty() {
        return Vec::new();
    }
    let ingress = service
        .status
        .iter()
        .filter_map(|s| s.load_balancer.as_ref())
        .flat_map(|l| l.ingress.iter().flatten());
    let balancer = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref());
    let external_ips = addresses(spec.external_ips.iter().flatten().chain(balancer));
    let affinity_secs = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        const DEFAULT_SECS: i32 = 10_800;
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        config.and_then(|c| c.timeout_seconds).unwrap_or(DEFAULT_SECS) as u32
    });
    let port_of = |number: i32| u16::try_from(number).ok();
    let make = |port: &core::ServicePort| {
        Some(ServicePort {
            name: format!("{name}:{}", port.name.as_deref().unwrap_or_default()),
            cluster_ips: cluster_ips.clone(),
            external_ips: external_ips.clone(),
            protocol: protocol(port.protocol.as_deref()),
            port: port_of(port.port)?,
            node_port: port.node_port.and_then(port_of).filter(|p| *p > 0),
            endpoints: endpoints(port, slices, node),
            affinity_secs,
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        })
    };
    spec.ports.iter().flatten().filter_map(make).collect()
}

/// The endpoints that may receive: the ready ones; where there is none, those that serve while they leave.
fn endpoints(
    port: &core::ServicePort,
    slices: &[Arc<discovery::EndpointSlice>],
    node: &str,
) -> Vec<Endpoint> {
    let (mut ready, mut leaving) = (BTreeSet::new(), BTreeSet::new());
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let same = |p: &&discovery::EndpointPort| {
            p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && protocol(p.protocol.as_deref()) == protocol(port.protocol.as_deref())
        };
        let number = slice.ports.iter().flatten().find(same).and_then(|p| p.port);
        let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let local = endpoint.node_name.as_deref() == Some(node);
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|c| c.ready) != Some(false);
            let serves = conditions.is_some_and(|c| c.serving == Some(true) && c.terminating == Some(true));
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
                let endpoint = Endpoint { ip, port: number, local };
                if is_ready {
                    ready.insert(endpoint);
                } else if serves {
                    leaving.insert(endpoint);
                }
            }
        }
    }
    if ready.is_empty() { leaving } else { ready }.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn slice(endpoints: Value) -> Arc<discovery::EndpointSlice> {
        let value = json!({"metadata": {}, "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn ports(spec: Value, endpoints: Value) -> Vec<ServicePort> {
        labelled(json!({}), spec, endpoints)
    }

    fn labelled(labels: Value, spec: Value, endpoints: Value) -> Vec<ServicePort> {
        let service = serde_json::from_value(json!({"metadata": {"labels": labels}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}}}));
        service_ports("n/s", &service.unwrap(), &[slice(endpoints)], "here")
    }

    #[test]
    fn a_service_with_all_addresses() {
        let spec = json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "type": "LoadBalancer",
            "externalIPs": ["192.0.2.9"], "sessionAffinity": "ClientIP",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
        let endpoints = json!([
            {"addresses": ["10.1.0.1"], "conditions": {"ready": true}, "nodeName": "here"},
            {"addresses": ["10.1.0.2"], "conditions": {"ready": true}, "nodeName": "there"},
            {"addresses": ["10.1.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        ]);
        let all = ports(spec, endpoints);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].port, all[0].node_port, all[0].affinity_secs), (80, Some(30080), Some(10_800)));
        assert_eq!(all[0].external_ips.len(), 2);
        let members: Vec<(String, bool)> =
            all[0].endpoints.iter().map(|e| (e.ip.to_string(), e.local)).collect();
        assert_eq!(members, [("10.1.0.1".to_string(), true), ("10.1.0.2".into(), false)]);
    }

    #[test]
    fn what_another_proxy_serves_is_left_to_it() {
        let spec = json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]});
        assert_eq!(labelled(json!({"app": "x"}), spec.clone(), json!([])).len(), 1);
        for label in NOT_OURS {
            assert!(labelled(json!({label: ""}), spec.clone(), json!([])).is_empty(), "{label}");
        }
    }

    #[test]
    fn leaving_endpoints_serve_when_no_other_does() {
        let spec = json!({"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80}]});
        let leaving = json!([{"addresses": ["10.1.0.3"],
            "conditions": {"ready": false, "serving": true, "terminating": true}}]);
        assert_eq!(ports(spec, leaving)[0].endpoints[0].ip, Ipv4Addr::new(10, 1, 0, 3));
        assert!(ports(json!({"clusterIP": "None", "ports": []}), json!([])).is_empty());
    }
}
