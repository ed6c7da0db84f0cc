//! What CoreDNS' kubernetes plugin does: names for Services and their endpoints, as a zone value, with the names that AWS
//! services give beside it. The server is `dns`'s.

use super::dns_extra::Names;
use super::{COALESCE, by_service};
use client::cache::Cache;
use client::{ApiClient, ListOptions, Object};
use dns::{EndpointRecord, PortRecord, ServiceKind, ServiceRecord, Zone};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_schema::gvr;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Starts keeping a zone: the receiver has its newest form (an empty zone before the first). `node` is this node's
/// own address.
pub fn feed(
    client: ApiClient,
    domain: String,
    (dns_ip, node): (Ipv4Addr, Ipv4Addr),
) -> (watch::Receiver<Arc<Zone>>, JoinHandle<()>) {
    let services = Cache::start(client.clone(), gvr::SERVICES, ListOptions::default());
    let slices = Cache::start(client.clone(), gvr::ENDPOINT_SLICES, ListOptions::default());
    let names = Names::start(&client, node);
    let sender = watch::Sender::new(Arc::new(Zone::new(&domain, dns_ip, &[])));
    let receiver = sender.subscribe();
    let task = tokio::spawn(async move {
        services.wait_synced().await;
        slices.wait_synced().await;
        let mut changes: Vec<_> =
            names.changed().into_iter().chain([services.changed(), slices.changed()]).collect();
        let mut last = (Vec::new(), Vec::new());
        loop {
            changes.iter_mut().for_each(|c| drop(c.borrow_and_update()));
            let wanted = (records(&services.list(), &slices.list()), names.zones());
            if wanted != last {
                sender.send_replace(Arc::new(Zone::new(&domain, dns_ip, &wanted.0).with(&wanted.1)));
                last = wanted;
            }
            let changed = futures_util::future::select_all(changes.iter_mut().map(|c| Box::pin(c.changed())));
            tokio::select! { _ = changed => {}, () = sender.closed() => return }
            tokio::time::sleep(COALESCE).await;
        }
    });
    (receiver, task)
}

fn records(services: &[Arc<Object>], slices: &[Arc<Object>]) -> Vec<ServiceRecord> {
    let slices = by_service(slices);
    let record = |object: &Arc<Object>| {
        let service = object.view::<core::Service>().ok()?;
        let own = slices.get(&(object.key.namespace.clone(), object.key.name.to_string()));
        record(object, &service, own.map_or(&[], |s| s))
    };
    services.iter().filter_map(record).collect()
}

fn record(
    object: &Object,
    service: &core::Service,
    slices: &[Arc<discovery::EndpointSlice>],
) -> Option<ServiceRecord> {
    let spec = service.spec.as_ref()?;
    let headless = spec.cluster_ip.as_deref() == Some("None");
    let kind = match spec.type_.as_deref() {
        Some("ExternalName") => ServiceKind::External(spec.external_name.clone()?),
        _ if headless => ServiceKind::Headless(endpoints(slices)),
        _ => ServiceKind::ClusterIp(spec.cluster_ip.as_ref()?.parse().ok()?),
    };
    let ports = if headless { endpoint_ports(slices) } else { service_ports(spec) };
    Some(ServiceRecord {
        namespace: object.key.namespace.to_string(),
        name: object.key.name.to_string(),
        kind,
        ports,
    })
}

fn port_record(name: Option<&String>, protocol: Option<&String>, port: i32) -> Option<PortRecord> {
    Some(PortRecord {
        name: name.cloned().unwrap_or_default(),
        protocol: protocol.cloned().unwrap_or("TCP".into()),
        port: u16::try_from(port).ok()?,
    })
}

fn service_ports(spec: &core::ServiceSpec) -> Vec<PortRecord> {
    let ports = spec.ports.iter().flatten();
    ports.filter_map(|p| port_record(p.name.as_ref(), p.protocol.as_ref(), p.port)).collect()
}

fn endpoint_ports(slices: &[Arc<discovery::EndpointSlice>]) -> Vec<PortRecord> {
    let mut ports = Vec::new();
    for port in slices.iter().flat_map(|s| s.ports.iter().flatten()) {
        let record = port.port.and_then(|n| port_record(port.name.as_ref(), port.protocol.as_ref(), n));
        ports.extend(record.filter(|r| !ports.contains(r)));
    }
    ports
}

/// The ready endpoints (the controller marks all ready where unready ones are published), each address once.
fn endpoints(slices: &[Arc<discovery::EndpointSlice>]) -> Vec<EndpointRecord> {
    let mut by_ip: BTreeMap<Ipv4Addr, Option<String>> = BTreeMap::new();
    for endpoint in
        slices.iter().filter(|s| s.address_type == "IPv4").flat_map(|s| s.endpoints.iter().flatten())
    {
        if endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
            continue;
        }
        for ip in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
            let hostname = by_ip.entry(ip).or_default();
            if hostname.is_none() {
                hostname.clone_from(&endpoint.hostname);
            }
        }
    }
    by_ip.into_iter().map(|(ip, hostname)| EndpointRecord { ip, hostname }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::{Value, json};

    fn object(value: Value) -> Arc<Object> {
        Arc::new(Object::parse(Bytes::from(value.to_string())).unwrap())
    }

    #[test]
    fn every_kind_of_service_has_its_record() {
        let services = [
            object(json!({"metadata": {"name": "a", "namespace": "n"},
                "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "http", "port": 80}]}})),
            object(json!({"metadata": {"name": "b", "namespace": "n"}, "spec": {"clusterIP": "None"}})),
            object(json!({"metadata": {"name": "c", "namespace": "n"},
                "spec": {"type": "ExternalName", "externalName": "example.com"}})),
        ];
        let slices = [object(
            json!({"metadata": {"name": "b-1", "namespace": "n", "labels": {"kubernetes.io/service-name": "b"}},
            "addressType": "IPv4", "ports": [{"name": "db", "port": 5432, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.1.0.1"], "hostname": "b-0", "conditions": {"ready": true}},
                {"addresses": ["10.1.0.2"], "conditions": {"ready": false}}]}),
        )];
        let records = records(&services, &slices);
        assert_eq!(records[0].kind, ServiceKind::ClusterIp(Ipv4Addr::new(10, 0, 0, 1)));
        let member = EndpointRecord { ip: Ipv4Addr::new(10, 1, 0, 1), hostname: Some("b-0".into()) };
        assert_eq!(records[1].kind, ServiceKind::Headless(vec![member]));
        assert_eq!((records[1].ports[0].name.as_str(), records[1].ports[0].port), ("db", 5432));
        assert_eq!(records[2].kind, ServiceKind::External("example.com".into()));
    }
}
