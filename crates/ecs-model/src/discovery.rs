//! Cloud Map as values: names of its objects, and what its services mean for DNS. Pure.
//!
//! `namespaces`, `services` and `instances` of `servicediscovery.gantry.dev` are in namespace `aws`. The first two are
//! named by their ids (`ns-…`, `srv-…`); an instance by its service's id and its own. An instance's `spec` is
//! `{ServiceId, Id, Attributes, health}`; `health` is `HEALTHY` or `UNHEALTHY`.

use crate::names::{AWS_NAMESPACE, Arn, Place, derived_id, object_name};
use machinery::kinds::get::{list, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The label that ties an instance's object to its service, by id.
pub const SERVICE_LABEL: &str = "servicediscovery.gantry.dev/service";
/// Addresses of one name at a time; Route 53's limit for multivalue answers.
const ANSWERS_MAX: usize = 8;
/// Digits of an instance's name in its object's.
const DIGITS: usize = 20;

/// The service that a registry's ARN names (`…:service/srv-…`): its object's name.
pub fn service_id(arn: &str) -> Option<&str> {
    let arn = Arn::parse(arn).filter(|a| a.service == "servicediscovery")?;
    arn.resource.strip_prefix("service/").filter(|id| id.starts_with("srv-") && !id.contains('/'))
}

/// The name of an instance's object.
pub fn instance_name(service_id: &str, instance: &str) -> String {
    let digits = derived_id(instance);
    format!("{service_id}-{}", digits.get(..DIGITS).unwrap_or(&digits))
}

/// An instance's object: attributes are Cloud Map's (`AWS_INSTANCE_IPV4`, `AWS_INSTANCE_PORT`, own ones).
/// `defaults` is the account and region whose names stay short.
pub fn instance(
    (place, defaults): (&Place, &Place),
    service_id: &str,
    id: &str,
    attributes: &BTreeMap<String, String>,
) -> Value {
    let name = object_name(&place.account, &place.region, defaults, &instance_name(service_id, id));
    let health = attributes.get("AWS_INIT_HEALTH_STATUS").map_or("HEALTHY", String::as_str);
    json!({
        "apiVersion": "servicediscovery.gantry.dev/v1", "kind": "Instance",
        "metadata": {"namespace": AWS_NAMESPACE, "name": name,
            "labels": {"aws.gantry.dev/account": place.account, "aws.gantry.dev/region": place.region,
                SERVICE_LABEL: service_id}},
        "spec": {"ServiceId": service_id, "Id": id, "Attributes": attributes, "health": health},
    })
}

/// A record that a private zone has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An address.
    A(Ipv4Addr),
    /// Port and host name.
    Srv(u16, String),
    /// Another name.
    Cname(String),
}

/// The private zones: domain, and full names with their records. All arguments are `spec`s.
pub fn zones<'a>(
    namespaces: impl Iterator<Item = &'a Value>,
    services: &[&Value],
    instances: &[&Value],
) -> Vec<(String, Vec<(String, Record)>)> {
    let private = namespaces.filter(|n| text(n, "/Type") == "DNS_PRIVATE");
    let zone = |namespace: &Value| {
        let domain = text(namespace, "/Name");
        let own = services.iter().filter(|s| s["NamespaceId"] == namespace["Id"]);
        let records = own.flat_map(|service| {
            let all: Vec<&Value> =
                instances.iter().filter(|i| i["ServiceId"] == service["Id"]).copied().collect();
            records(&format!("{}.{domain}", text(service, "/Name")), service, &all)
        });
        (domain.to_string(), records.collect())
    };
    private.map(zone).collect()
}

fn records(name: &str, service: &Value, all: &[&Value]) -> Vec<(String, Record)> {
    let healthy: Vec<&Value> = all.iter().filter(|i| text(i, "/health") != "UNHEALTHY").copied().collect();
    // Nobody healthy: all are tried, as Route 53 does.
    let chosen = if healthy.is_empty() { all } else { &healthy[..] };
    let kinds: Vec<&str> = list(service, "/DnsConfig/DnsRecords").iter().map(|r| text(r, "/Type")).collect();
    let mut out = Vec::new();
    for instance in chosen.iter().take(ANSWERS_MAX) {
        let attribute = |key: &str| text(&instance["Attributes"][key], "");
        let ip = attribute("AWS_INSTANCE_IPV4").parse::<Ipv4Addr>().ok();
        let port = attribute("AWS_INSTANCE_PORT").parse::<u16>().ok();
        let cname = Some(attribute("AWS_INSTANCE_CNAME")).filter(|c| !c.is_empty());
        let own = format!("{}.{name}", text(instance, "/Id"));
        for kind in &kinds {
            match (*kind, ip, port, cname) {
                ("A", Some(ip), ..) => out.push((name.to_string(), Record::A(ip))),
                ("SRV", Some(ip), Some(port), _) => {
                    out.push((name.to_string(), Record::Srv(port, own.clone())));
                    out.push((own.clone(), Record::A(ip)));
                }
                ("CNAME", _, _, Some(target)) => {
                    out.push((name.to_string(), Record::Cname(target.to_string())));
                }
                _ => {}
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_objects() {
        let arn = "arn:aws:servicediscovery:us-east-1:123456789012:service/srv-0123456789abcdef";
        assert_eq!(service_id(arn), Some("srv-0123456789abcdef"));
        assert_eq!(service_id("arn:aws:servicediscovery:us-east-1:1:namespace/ns-1"), None);
        let name = instance_name("srv-0123456789abcdef", "Any_Text");
        assert!(name.len() < 63 && name != instance_name("srv-0123456789abcdef", "any_text"), "{name}");
        let place = Place::new("1", "r");
        let made = instance((&place, &place), "srv-1", "i", &BTreeMap::new());
        assert_eq!(made["spec"]["health"], "HEALTHY");
    }

    #[test]
    fn services_are_names_in_their_zone() {
        let namespaces = [
            json!({"Id": "ns-1", "Name": "prod.local", "Type": "DNS_PRIVATE"}),
            json!({"Id": "ns-2", "Name": "http", "Type": "HTTP"}),
        ];
        let service = |id: &str, name: &str, kind: &str| json!({"Id": id, "Name": name, "NamespaceId": "ns-1", "DnsConfig": {"DnsRecords": [{"Type": kind}]}});
        let services = [service("srv-1", "web", "A"), service("srv-2", "api", "SRV")];
        let instance = |service: &str, id: &str, ip: &str, health: &str| {
            json!({"ServiceId": service, "Id": id, "health": health,
                "Attributes": {"AWS_INSTANCE_IPV4": ip, "AWS_INSTANCE_PORT": "8080"}})
        };
        let instances = [
            instance("srv-1", "a", "10.0.0.1", "HEALTHY"),
            instance("srv-1", "b", "10.0.0.2", "UNHEALTHY"),
            instance("srv-2", "c", "10.0.0.3", "UNHEALTHY"),
        ];
        let (services, instances): (Vec<_>, Vec<_>) = (services.iter().collect(), instances.iter().collect());
        let zones = zones(namespaces.iter(), &services, &instances);
        let a = |last| Record::A(Ipv4Addr::new(10, 0, 0, last));
        let wanted = vec![
            ("web.prod.local".to_string(), a(1)),
            ("api.prod.local".to_string(), Record::Srv(8080, "c.api.prod.local".into())),
            ("c.api.prod.local".to_string(), a(3)),
        ];
        assert_eq!(zones, vec![("prod.local".to_string(), wanted)]);
    }
}
