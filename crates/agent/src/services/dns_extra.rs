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
use std::sync::Arc;
use tokio::sync::watch;

/// The objects that names follow from.
pub struct Names {
    balancers: Arc<Cache>,
    namespaces: Arc<Cache>,
    services: Arc<Cache>,
    instances: Arc<Cache>,
}

impl Names {
    /// Starts watching them.
    pub fn start(client: &ApiClient) -> Names {
        let of = |gvr| {
            let options = ListOptions { namespace: Some(AWS_NAMESPACE.into()), ..ListOptions::default() };
            Cache::start(client.clone(), gvr, options)
        };
        Names {
            balancers: of(ELB_LOAD_BALANCERS),
            namespaces: of(DISCOVERY_NAMESPACES),
            services: of(DISCOVERY_SERVICES),
            instances: of(DISCOVERY_INSTANCES),
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
        out.extend(docs(&self.balancers).iter().filter_map(|b| balancer(b)));
        out
    }
}

/// A load balancer's name: at the address that its controller bound.
fn balancer(doc: &Doc) -> Option<ExtraZone> {
    let name = text(doc.spec(), "/DNSName").to_string();
    let address = text(doc.status(), "/Address").parse().ok()?;
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
        assert_eq!(balancer(&doc(Value::Null)), None);
        let zone = balancer(&doc(json!({"Address": "192.0.2.1"}))).unwrap();
        assert_eq!((zone.domain.as_str(), zone.records.len()), ("us-east-1.elb.cluster.local", 1));
    }
}
