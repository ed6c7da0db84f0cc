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
/// The label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";
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
    let slices = Cache::start(client.clone(), gvr::ENDPOINT_SLICES, all());
    let own = ListOptions { field_selector: format!("metadata.name={node}"), ..all() };
    let own = Cache::start(client, gvr::NODES, own);
    tokio::spawn(async move {
        for cache in [&services, &slices, &own] {
            cache.wait_synced().await;
        }
        let mut changes = [services.changed(), slices.changed(), own.changed()];
        let mut applied = None;
        let mut failures = 0;
        loop {
            changes.iter_mut().for_each(|c| drop(c.borrow_and_update()));
            let zone =
                own.list().first().and_then(|n| n.meta().labels.get(ZONE).cloned()).unwrap_or_default();
            let here = Here { node: &node, zone: &zone };
            let wanted = (
                all_service_ports(&services.list(), &slices.list(), here),
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
            let [a, b, c] = &mut changes;
            tokio::select! { _ = a.changed() => {}, _ = b.changed() => {}, _ = c.changed() => {}, gone = host_ports.changed() => if gone.is_err() { return } }
            tokio::time::sleep(COALESCE).await;
        }
    })
}

/// Where traffic starts.
#[derive(Clone, Copy)]
struct Here<'a> {
    node: &'a str,
    zone: &'a str,
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

fn all_service_ports(services: &[Arc<Object>], slices: &[Arc<Object>], here: Here) -> Vec<ServicePort> {
    let slices = by_service(slices);
    let mut ports = Vec::new();
    for object in services {
        let Ok(service) = object.view::<core::Service>() else { continue };
        let own = slices.get(&(object.key.namespace.clone(), object.key.name.to_string()));
        ports.extend(service_ports(&object.key.to_string(), &service, own.map_or(&[], |s| s), here));
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
    here: Here,
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
            endpoints: endpoints(port, slices, here),
            affinity_secs,
            external_local: spec.external_traffic_policy.as_deref() == Some("Local"),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        })
    };
    spec.ports.iter().flatten().filter_map(make).collect()
}

/// The endpoints that may receive: the ready ones; where there is none (here, for policies of `Local`), those that
/// serve while they leave.
fn endpoints(
    port: &core::ServicePort,
    slices: &[Arc<discovery::EndpointSlice>],
    here: Here,
) -> Vec<Endpoint> {
    let (mut ready, mut leaving) = (Vec::new(), BTreeSet::new());
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let same = |p: &&discovery::EndpointPort| {
            p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                && protocol(p.protocol.as_deref()) == protocol(port.protocol.as_deref())
        };
        let number = slice.ports.iter().flatten().find(same).and_then(|p| p.port);
        let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let local = endpoint.node_name.as_deref() == Some(here.node);
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|c| c.ready) != Some(false);
            let serves = conditions.is_some_and(|c| c.serving == Some(true) && c.terminating == Some(true));
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
                let one = Endpoint { ip, port: number, local, far: false };
                if is_ready {
                    ready.push((one, endpoint.hints.as_ref()));
                } else if serves {
                    leaving.insert(one);
                }
            }
        }
    }
    if ready.is_empty() {
        return leaving.into_iter().collect();
    }
    let near = nearness(&ready, here);
    let last_local = !ready.iter().any(|(endpoint, _)| endpoint.local);
    let placed = ready.into_iter().map(|(endpoint, hints)| Endpoint { far: !near(hints, here), ..endpoint });
    let mut all: BTreeSet<Endpoint> = placed.collect();
    if last_local {
        // Policies of `Local` keep to the node's own until the last one has left.
        all.extend(
            leaving.into_iter().filter(|e| e.local).map(|endpoint| Endpoint { far: true, ..endpoint }),
        );
    }
    all.into_iter().collect()
}

type Hints<'a> = Option<&'a discovery::EndpointHints>;
type Near = fn(Hints, Here) -> bool;

fn hinted_at_node(hints: Hints, here: Here) -> bool {
    hints.iter().flat_map(|h| h.for_nodes.iter().flatten()).any(|n| n.name == here.node)
}

fn hinted_at_zone(hints: Hints, here: Here) -> bool {
    hints.iter().flat_map(|h| h.for_zones.iter().flatten()).any(|z| z.name == here.zone)
}

/// How near endpoints must be: of this node, else of its zone; else all count. A hint that not every endpoint has says
/// nothing (slices may be older than the wish), nor do hints of which none is for here.
fn nearness(ready: &[(Endpoint, Hints)], here: Here) -> Near {
    let all = |has: fn(&discovery::EndpointHints) -> bool| ready.iter().all(|(_, h)| h.is_some_and(has));
    let any = |near: Near| ready.iter().any(|(_, hints)| near(*hints, here));
    if all(|h| h.for_nodes.as_ref().is_some_and(|n| !n.is_empty())) && any(hinted_at_node) {
        return hinted_at_node;
    }
    if all(|h| h.for_zones.as_ref().is_some_and(|z| !z.is_empty())) && any(hinted_at_zone) {
        return hinted_at_zone;
    }
    |_, _| true
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
        service_ports("n/s", &service.unwrap(), &[slice(endpoints)], Here { node: "here", zone: "z" })
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
    fn hints_hold_when_all_endpoints_have_them_and_one_is_for_here() {
        let near = |hints: [Value; 3]| -> Vec<u8> {
            let one = |(number, hints)| json!({"addresses": [format!("10.1.0.{number}")], "conditions": {"ready": true}, "hints": hints});
            let spec = json!({"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80}]});
            let all = ports(spec, Value::Array((1..).zip(hints).map(one).collect()));
            all[0].endpoints.iter().filter(|e| !e.far).map(|e| e.ip.octets()[3]).collect()
        };
        let hint =
            |node: &str, zone: &str| json!({"forNodes": [{"name": node}], "forZones": [{"name": zone}]});
        let zone = |zone: &str| json!({"forZones": [{"name": zone}]});
        assert_eq!(near([hint("here", "z"), hint("x", "z"), hint("y", "w")]), [1], "the node's own");
        assert_eq!(
            near([hint("v", "z"), hint("x", "z"), hint("y", "w")]),
            [1, 2],
            "none is the node's: its zone's"
        );
        assert_eq!(near([hint("here", "z"), zone("z"), zone("w")]), [1, 2], "a node hint is missing");
        assert_eq!(near([zone("z"), zone("w"), Value::Null]), [1, 2, 3], "a zone hint is missing");
        assert_eq!(near([zone("w"), zone("w"), zone("v")]), [1, 2, 3], "nothing in this zone");
    }

    #[test]
    fn leaving_endpoints_serve_when_no_other_does() {
        let spec = json!({"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80}]});
        let leaving = json!([{"addresses": ["10.1.0.3"],
            "conditions": {"ready": false, "serving": true, "terminating": true}}]);
        assert_eq!(ports(spec.clone(), leaving)[0].endpoints[0].ip, Ipv4Addr::new(10, 1, 0, 3));
        let own = json!([{"addresses": ["10.1.0.3"], "nodeName": "here",
                "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.1.0.4"], "nodeName": "there"}]);
        let all: Vec<_> = ports(spec, own)[0].endpoints.iter().map(|e| (e.local, e.far)).collect();
        assert_eq!(all, [(true, true), (false, false)], "for policies of Local only");
        assert!(ports(json!({"clusterIP": "None", "ports": []}), json!([])).is_empty());
    }
}
