//! Where load balancers listen: each at an address of its own, so that any number of them can have the same port, and
//! the oldest of those that want a port at the node's address too, for who comes from outside. Pure.

use super::world::World;
use machinery::kinds::get::{int, text};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

/// Ends the id of a listener's second socket, at the node's address.
pub const AT_NODE: &str = "@node";
/// Ends the id of the socket for datagrams of a TCP_UDP listener.
pub const DATAGRAMS: &str = "@udp";

/// What the controller was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's address, or the one that the user named; where there is no pool all listen there.
    pub bind: Ipv4Addr,
    /// What clients are told of `bind`.
    pub told: Ipv4Addr,
    /// Addresses to give out; `None`: all listen at `bind`.
    pub pool: Option<RangeInclusive<Ipv4Addr>>,
}

/// Who is where.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Addresses by load balancer; without a pool: none.
    pub own: BTreeMap<String, Ipv4Addr>,
    /// Listeners that are at the node's address too.
    pub at_node: BTreeSet<String>,
    /// Load balancers that got none, the pool being empty.
    pub homeless: BTreeSet<String>,
}

/// Decides. An address that a load balancer has (by its status) stays its own.
pub fn places(world: &World, settings: &Settings) -> Places {
    let mut out = Places::default();
    let Some(pool) = &settings.pool else { return out };
    let mut taken = BTreeSet::new();
    for (arn, balancer) in &world.balancers {
        let held = text(balancer.status(), "/Address").parse::<Ipv4Addr>().ok();
        if let Some(held) = held.filter(|a| pool.contains(a) && taken.insert(*a)) {
            out.own.insert(arn.clone(), held);
        }
    }
    let (first, last) = (pool.start().to_bits(), pool.end().to_bits());
    let mut free = (first..=last).map(Ipv4Addr::from_bits).filter(|a| !taken.contains(a));
    for arn in world.balancers.keys().filter(|arn| !out.own.contains_key(*arn)).cloned().collect::<Vec<_>>() {
        match free.next() {
            Some(address) => drop(out.own.insert(arn, address)),
            None => drop(out.homeless.insert(arn)),
        }
    }
    let age =
        |arn: &str| world.balancers.get(arn).and_then(|b| b.spec()["CreatedTime"].as_f64()).unwrap_or(0.0);
    let mut listeners: Vec<_> = world.listeners.iter().collect();
    listeners.sort_by(|(a, x), (b, y)| {
        let of = |spec| age(text(spec, "/LoadBalancerArn"));
        of(x.spec()).total_cmp(&of(y.spec())).then_with(|| a.cmp(b))
    });
    let mut ports = BTreeSet::new();
    for (arn, listener) in listeners {
        let protocol = text(listener.spec(), "/Protocol");
        let wanted: Vec<_> = [("UDP", protocol.contains("UDP")), ("TCP", protocol != "UDP")]
            .into_iter()
            .filter(|(_, wants)| *wants)
            .map(|(kind, _)| (kind, int(listener.spec(), "/Port")))
            .collect();
        if wanted.iter().all(|port| !ports.contains(port)) {
            ports.extend(wanted);
            out.at_node.insert(arn.clone());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ecs_model::doc::Doc;
    use serde_json::{Value, json};
    use std::sync::Arc;

    #[test]
    fn addresses_stay_and_the_oldest_has_the_nodes_port() {
        let doc = |value: Value| Arc::new(Doc(value));
        let balancer = |arn: &str, created: f64, address: &str| {
            let value = json!({"spec": {"LoadBalancerArn": arn, "CreatedTime": created}, "status": {"Address": address}});
            (arn.to_string(), doc(value))
        };
        let listener = |arn: &str, of: &str, protocol: &str| {
            let spec = json!({"LoadBalancerArn": of, "Port": 80, "Protocol": protocol});
            (arn.to_string(), doc(json!({"spec": spec})))
        };
        let world = World {
            balancers: [
                balancer("a", 2.0, ""),
                balancer("b", 1.0, "10.97.0.1"),
                balancer("c", 3.0, "10.97.0.1"),
                balancer("d", 4.0, "192.0.2.1"),
            ]
            .into(),
            listeners: [
                listener("l1", "a", "HTTP"),
                listener("l2", "b", "TCP"),
                listener("l3", "c", "UDP"),
                listener("l4", "d", "TCP_UDP"),
            ]
            .into(),
            ..World::default()
        };
        let ip = |last| Ipv4Addr::new(10, 97, 0, last);
        let mut settings = Settings { bind: ip(9), told: ip(9), pool: Some(ip(1)..=ip(3)) };
        let found = places(&world, &settings);
        let own: Vec<(&str, Ipv4Addr)> = found.own.iter().map(|(arn, a)| (arn.as_str(), *a)).collect();
        assert_eq!(own, [("a", ip(2)), ("b", ip(1)), ("c", ip(3))]);
        assert_eq!(found.homeless, BTreeSet::from(["d".to_string()]));
        assert_eq!(found.at_node, BTreeSet::from(["l2".to_string(), "l3".to_string()]));
        settings.pool = None;
        assert_eq!(places(&world, &settings), Places::default());
    }
}
