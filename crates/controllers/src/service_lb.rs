//! Services of type LoadBalancer get an address: one from the configured pool, or the nodes' own.
//!
//! With the nodes' own addresses two Services cannot have the same port: the older one keeps it, the younger one
//! stays pending and an event says why.

use crate::context::{Context, Outcome, Reconcile, enqueue, run};
use async_trait::async_trait;
use client::cache::Cache;
use client::events::{EventType, Subject};
use client::queue::Queue;
use client::{Object, ObjectKey};
use k8s_openapi::api::core::v1 as core;
use k8s_schema::gvr;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use tokio::task::JoinHandle;

struct Controller {
    context: Context,
    services: Arc<Cache>,
    nodes: Arc<Cache>,
}

/// Starts it. One key stands for all: addresses and ports are shared.
pub fn start(context: &Context) -> Vec<JoinHandle<()>> {
    let queue = Arc::new(Queue::default());
    let (services, nodes) = (context.informers.of(&gvr::SERVICES), context.informers.of(&gvr::NODES));
    enqueue(&services, &queue, |service| {
        let concerns = service.view::<core::Service>().is_ok_and(|s| wants(&s) || !ingress(&s).is_empty());
        concerns.then(|| ObjectKey::cluster("all")).into_iter().collect()
    });
    let late = queue.clone();
    nodes.on_change(Box::new(move |old, new| {
        let addresses = |n: Option<&Arc<Object>>| n.map(|n| node_addresses(n)).unwrap_or_default();
        if addresses(old) != addresses(new) {
            late.add(ObjectKey::cluster("all"));
        }
    }));
    let caches = vec![services.clone(), nodes.clone()];
    run("service-lb", caches, queue, 1, Arc::new(Controller { context: context.clone(), services, nodes }))
}

fn wants(service: &core::Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() == Some("LoadBalancer")
        && spec.load_balancer_class.is_none()
        && service.metadata.deletion_timestamp.is_none()
}

fn ingress(service: &core::Service) -> Vec<String> {
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    status.into_iter().flat_map(|l| l.ingress.iter().flatten()).filter_map(|i| i.ip.clone()).collect()
}

fn ports(service: &core::Service) -> Vec<(String, i32)> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    ports.map(|p| (p.protocol.clone().unwrap_or("TCP".into()), p.port)).collect()
}

fn node_addresses(node: &Object) -> Vec<String> {
    let Ok(node) = node.view::<core::Node>() else { return Vec::new() };
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    addresses.filter(|a| a.type_ == "InternalIP").map(|a| a.address.clone()).collect()
}

/// What a Service gets.
#[derive(Debug, PartialEq)]
enum Grant {
    Addresses(Vec<String>),
    Refused(String),
}

/// Grants for all Services that want one, the oldest first, those that have one before those that have not.
fn decide(
    services: &BTreeMap<ObjectKey, Arc<core::Service>>,
    nodes: &[String],
    pool: Option<&RangeInclusive<Ipv4Addr>>,
    held: &BTreeMap<(String, i32), String>,
) -> BTreeMap<ObjectKey, Grant> {
    let mut order: Vec<(&ObjectKey, &Arc<core::Service>)> =
        services.iter().filter(|(_, s)| wants(s)).collect();
    order.sort_by_key(|(key, s)| {
        (ingress(s).is_empty(), s.metadata.creation_timestamp.clone(), (*key).clone())
    });
    let mut taken: BTreeMap<(String, (String, i32)), &ObjectKey> = BTreeMap::new();
    let mut used: BTreeSet<String> = BTreeSet::new();
    let mut grants = BTreeMap::new();
    for (key, service) in order {
        let asked =
            service.spec.as_ref().and_then(|s| s.load_balancer_ip.clone()).filter(|ip| !ip.is_empty());
        let grant = match pool {
            Some(pool) => from_pool(pool, asked, &ingress(service), &mut used),
            None => {
                let clash =
                    nodes.iter().flat_map(|n| ports(service).into_iter().map(move |p| (n.clone(), p)));
                match clash.clone().find_map(|place| Some((place.clone(), *taken.get(&place)?))) {
                    Some(((_, (protocol, port)), holder)) => Grant::Refused(format!(
                        "port {port}/{protocol} of the node is taken by service {holder}"
                    )),
                    None if nodes.is_empty() => Grant::Refused("there is no node with an address yet".into()),
                    None if let Some((port, holder)) = held_port(service, held) => {
                        Grant::Refused(format!("port {}/{} of the node is held by {holder}", port.1, port.0))
                    }
                    None => {
                        taken.extend(clash.map(|place| (place, key)));
                        Grant::Addresses(nodes.to_vec())
                    }
                }
            }
        };
        grants.insert(key.clone(), grant);
    }
    grants
}

/// The first port of a Service without an address that a process of the node holds.
fn held_port<'a>(
    service: &core::Service,
    held: &'a BTreeMap<(String, i32), String>,
) -> Option<((String, i32), &'a String)> {
    let mut ports = ports(service).into_iter().filter(|_| ingress(service).is_empty());
    ports.find_map(|p| Some((p.clone(), held.get(&p)?)))
}

fn from_pool(
    pool: &RangeInclusive<Ipv4Addr>,
    asked: Option<String>,
    present: &[String],
    used: &mut BTreeSet<String>,
) -> Grant {
    let inside = |ip: &String| ip.parse::<Ipv4Addr>().is_ok_and(|ip| pool.contains(&ip));
    if let Some(ip) = asked {
        if !inside(&ip) {
            return Grant::Refused(format!(
                "{ip} is not in the load-balancer pool {}-{}",
                pool.start(),
                pool.end()
            ));
        }
        if !used.insert(ip.clone()) {
            return Grant::Refused(format!("{ip} is taken by another service"));
        }
        return Grant::Addresses(vec![ip]);
    }
    let (first, last) = (u32::from(*pool.start()), u32::from(*pool.end()));
    let candidates = present.iter().filter(|ip| inside(ip)).cloned();
    let candidates = candidates.chain((first..=last).map(|n| Ipv4Addr::from(n).to_string()));
    match { candidates }.find(|ip| !used.contains(ip)) {
        Some(ip) => {
            used.insert(ip.clone());
            Grant::Addresses(vec![ip])
        }
        None => Grant::Refused(format!("the load-balancer pool {}-{} is used up", pool.start(), pool.end())),
    }
}

impl Controller {
    /// Ports of waiting Services that processes of the node hold. A granted Service's port is not asked for again.
    fn held<'a>(
        &self,
        services: impl Iterator<Item = &'a Arc<core::Service>>,
    ) -> BTreeMap<(String, i32), String> {
        let waiting = services.filter(|s| wants(s) && ingress(s).is_empty()).flat_map(|s| ports(s));
        let check = &self.context.config.port_check.0;
        waiting.filter_map(|p| Some((p.clone(), check(&p.0, u16::try_from(p.1).ok()?)?))).collect()
    }
}

#[async_trait]
impl Reconcile for Controller {
    async fn reconcile(&self, _: &ObjectKey) -> Outcome {
        let objects = self.services.list();
        let view = |o: &Arc<Object>| Some((o.key.clone(), o.view::<core::Service>().ok()?));
        let services: BTreeMap<ObjectKey, Arc<core::Service>> = objects.iter().filter_map(view).collect();
        let nodes: Vec<String> = self.nodes.list().iter().flat_map(|n| node_addresses(n)).collect();
        let held = self.held(services.values());
        let grants = decide(&services, &nodes, self.context.config.lb_pool.as_ref(), &held);
        for object in &objects {
            let Some(service) = services.get(&object.key) else { continue };
            let wanted: &[String] = match grants.get(&object.key) {
                Some(Grant::Addresses(addresses)) => addresses,
                Some(Grant::Refused(why)) => {
                    let words = format!("No address for the load balancer: {why}");
                    let subject = Subject::of("v1", "Service", object);
                    self.context.recorder.record(
                        subject,
                        EventType::Warning,
                        "SyncLoadBalancerFailed",
                        words,
                    );
                    &[]
                }
                // Another class, or another controller's: not ours to touch.
                None if service.spec.as_ref().is_some_and(|s| s.load_balancer_class.is_some()) => continue,
                None => &[],
            };
            if ingress(service) == wanted {
                continue;
            }
            let list: Vec<Value> = wanted.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
            let patch = json!({"status": {"loadBalancer": {"ingress": list}}});
            match self.context.client.merge_patch_status(&gvr::SERVICES, &object.key, patch).await {
                Ok(object) => self.services.observe(object),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(list: &[(&str, i32, &str)]) -> BTreeMap<ObjectKey, Arc<core::Service>> {
        let service = |(name, port, ip): &(&str, i32, &str)| {
            let ingress: Vec<Value> =
                [ip].iter().filter(|i| !i.is_empty()).map(|i| json!({"ip": i})).collect();
            let value = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": port}]},
                "status": {"loadBalancer": {"ingress": ingress}}});
            (ObjectKey::new("n", *name), Arc::new(serde_json::from_value(value).unwrap()))
        };
        list.iter().map(service).collect()
    }

    fn show(grants: BTreeMap<ObjectKey, Grant>) -> Vec<String> {
        let line = |(key, grant): (ObjectKey, Grant)| match grant {
            Grant::Addresses(addresses) => format!("{key} {}", addresses.join(",")),
            Grant::Refused(why) => format!("{key}: {why}"),
        };
        grants.into_iter().map(line).collect()
    }

    #[test]
    fn the_nodes_port_goes_to_who_has_it() {
        let nodes = ["10.0.0.1".to_string()];
        let all = services(&[("a", 80, ""), ("b", 80, "10.0.0.1"), ("c", 81, "")]);
        assert_eq!(
            show(decide(&all, &nodes, None, &BTreeMap::new())),
            ["n/a: port 80/TCP of the node is taken by service n/b", "n/b 10.0.0.1", "n/c 10.0.0.1"]
        );
        let held = [(("TCP".to_string(), 81), "sshd (pid 7)".to_string())].into();
        assert_eq!(
            show(decide(&all, &nodes, None, &held))[2],
            "n/c: port 81/TCP of the node is held by sshd (pid 7)"
        );
    }

    #[test]
    fn the_pool_is_given_out_and_ends() {
        let pool = Ipv4Addr::new(10, 0, 0, 1)..=Ipv4Addr::new(10, 0, 0, 2);
        let all = services(&[("a", 80, ""), ("b", 80, "10.0.0.1"), ("c", 80, "")]);
        assert_eq!(
            show(decide(&all, &[], Some(&pool), &BTreeMap::new())),
            ["n/a 10.0.0.2", "n/b 10.0.0.1", "n/c: the load-balancer pool 10.0.0.1-10.0.0.2 is used up"]
        );
    }
}
