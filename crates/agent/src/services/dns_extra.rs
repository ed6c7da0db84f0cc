//! Names that AWS services give: load balancers, and the private zones of Cloud Map.

use client::cache::Cache;
use client::{ApiClient, ListOptions, Object};
use dns::{ExtraRecord, ExtraZone};
use ecs_model::discovery::{Record, zones};
use ecs_model::doc::Doc;
use ecs_model::names::AWS_NAMESPACE;
use k8s_schema::gvr::{DISCOVERY_INSTANCES, DISCOVERY_NAMESPACES, DISCOVERY_SERVICES, ELB_LOAD_BALANCERS};
use machinery::kinds::get::text;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::sync::watch;

/// The objects that names follow from.
pub struct Names {
    balancers: Arc<Cache>,
    namespaces: Arc<Cache>,
    services: Arc<Cache>,
    instances: Arc<Cache>,
    node: Ipv4Addr,
}

impl Names {
    /// Starts watching them, on the node with that address.
    pub fn start(client: &ApiClient, node: Ipv4Addr) -> Names {
        let of = |gvr| {
            let options = ListOptions { namespace: Some(AWS_NAMESPACE.into()), ..ListOptions::default() };
            Cache::start(client.clone(), gvr, options)
        };
        Names {
            balancers: of(ELB_LOAD_BALANCERS),
            namespaces: of(DISCOVERY_NAMESPACES),
            services: of(DISCOVERY_SERVICES),
            instances: of(DISCOVERY_INSTANCES),
            node,
        }
    }

    /// They change with the objects.
    pub fn changed(&self) -> [watch::Receiver<u64>; 4] {
        [&self.balancers, &self.namespaces, &self.services, &self.instances].map(|c| c.changed())
    }

    /// The zones as they are now.
    pub fn zones(&self) -> Vec<ExtraZone> {
        let docs = |cache: &Cache| -> Vec<Arc<Doc>> {
            cache.list().iter().filter_map(|o: &Arc<Object>| o.view::<Doc>().ok()).collect()
        };
        let all = [&self.namespaces, &self.services, &self.instances].map(|c| docs(c));
        let [namespaces, services, instances] =
            [0, 1, 2].map(|at| all[at].iter().map(|d| d.spec()).collect::<Vec<&Value>>());
        let record = |(name, record)| {
            let record = match record {
                Record::A(ip) => ExtraRecord::A(ip),
                Record::Srv(port, target) => ExtraRecord::Srv(port, target),
                Record::Cname(target) => ExtraRecord::Cname(target),
            };
            (name, record)
        };
        let private = zones(namespaces.into_iter(), &services, &instances);
        let mut out: Vec<ExtraZone> = private
            .into_iter()
            .map(|(domain, records)| ExtraZone { domain, records: records.into_iter().map(record).collect() })
            .collect();
        out.extend(docs(&self.balancers).iter().filter_map(|b| balancer(b, self.node)));
        out
    }
}

/// A load balancer's name: at its own address on its node, at the node's address elsewhere, where that one leads nowhere.
fn balancer(doc: &Doc, node: Ipv4Addr) -> Option<ExtraZone> {
    let name = text(doc.spec(), "/DNSName").to_string();
    let address = |at: &str| text(doc.status(), at).parse::<Ipv4Addr>().ok();
    let address = address("/NodeAddress").filter(|n| *n != node).or_else(|| address("/Address"))?;
    let (_, domain) = name.split_once('.')?;
    Some(ExtraZone { domain: domain.to_string(), records: vec![(name.clone(), ExtraRecord::A(address))] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_load_balancer_has_a_name_once_it_has_an_address() {
        let doc = |status: Value| {
            Doc(json!({"spec": {"DNSName": "web-1.us-east-1.elb.cluster.local"}, "status": status}))
        };
        let node = Ipv4Addr::new(192, 0, 2, 1);
        assert_eq!(balancer(&doc(Value::Null), node), None);
        let status = json!({"Address": "10.97.0.1", "NodeAddress": "192.0.2.1"});
        let at = |node| balancer(&doc(status.clone()), node).unwrap();
        let zone = at(node);
        assert_eq!((zone.domain.as_str(), zone.records.len()), ("us-east-1.elb.cluster.local", 1));
        assert!(matches!(zone.records[0].1, ExtraRecord::A(ip) if ip == Ipv4Addr::new(10, 97, 0, 1)));
        // From another node there is no way to that address.
        assert!(matches!(at(Ipv4Addr::new(192, 0, 2, 2)).records[0].1, ExtraRecord::A(ip) if ip == node));
    }
}
