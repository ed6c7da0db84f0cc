//! The way to other nodes' pods: one VXLAN link, told everything, learning nothing.
//!
//! Every node's end has an address and a MAC address that all can compute from what the Node objects say: the first
//! address of the node's pod range (no pod ever has it) and its own address. What is on the link is the only record:
//! [`desired`] and [`diff`] are pure, [`Network::set_peers`] reads, applies, and can be called again at any time.
//! Invariants: no entry names this node; a link that is not ours is never touched; without peers there is no link.
//! Deliberately not here: encryption, IPv6, nodes that reach each other without a tunnel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use sys::netlink::{Message, NetlinkError, Socket};

use crate::addr::{Ipv4Net, Mac};
use crate::node::{NetConfig, NetError, Network, Step, link_by_name};
use crate::rt::{self, Link, Neighbour, Route, RouteSpec, Vxlan};

/// The number of the virtual network: any would do, as long as all nodes have the same.
const VNI: u32 = 0x6774;
/// UDP port of VXLAN (IANA's).
const PORT: u16 = 4_789;
/// Messages in one write: the kernel takes what fits into a socket buffer of 200 KiB.
const BATCH_MAX: usize = 500;
const ENODEV: i32 = 19;

/// Another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its address.
    pub node_ip: Ipv4Addr,
    /// Its pods.
    pub pod_cidr: Ipv4Net,
}

/// What a tunnel link holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    /// Pod ranges behind the link, and the address they are behind.
    routes: BTreeMap<Ipv4Net, Ipv4Addr>,
    /// MAC address of each address on the link.
    neighbours: BTreeMap<Ipv4Addr, Mac>,
    /// The node that each MAC address is at.
    forwards: BTreeMap<Mac, Ipv4Addr>,
}

/// The name of the tunnel link.
pub(crate) fn link_name(prefix: &str) -> String {
    format!("{prefix}x")
}

/// The MAC address of a node's end.
fn mac(node_ip: Ipv4Addr) -> Mac {
    let [a, b, c, d] = node_ip.octets();
    [0x0a, 0x59, a, b, c, d]
}

fn alias(config: &NetConfig) -> String {
    format!("gantry tunnel {} {} {}", config.prefix, config.node_ip, config.pod_cidr)
}

/// Whether a link is the tunnel of `prefix`.
pub(crate) fn is_ours(prefix: &str, link: &Link) -> bool {
    let alias = link.alias.strip_prefix("gantry tunnel ").and_then(|a| a.strip_prefix(prefix));
    link.kind == "vxlan" && link.name == link_name(prefix) && alias.is_some_and(|rest| rest.starts_with(' '))
}

/// What the link must hold for these peers. Of two that claim one range the lower address gets it.
fn desired(config: &NetConfig, peers: &[Peer]) -> Entries {
    let mut entries = Entries::default();
    for peer in peers.iter().collect::<BTreeSet<_>>() {
        let own = peer.node_ip == config.node_ip || peer.pod_cidr.overlaps(config.pod_cidr);
        if own || entries.routes.keys().any(|range| range.overlaps(peer.pod_cidr)) {
            continue;
        }
        let end = peer.pod_cidr.base();
        entries.routes.insert(peer.pod_cidr, end);
        entries.neighbours.insert(end, mac(peer.node_ip));
        entries.forwards.insert(mac(peer.node_ip), peer.node_ip);
    }
    entries
}

/// The messages that turn `old` into `new`: a way is there before its route, and goes after it.
fn diff(
    old: &Entries,
    new: &Entries,
    spec: impl Fn(Ipv4Net, Ipv4Addr) -> RouteSpec,
    link: u32,
) -> Vec<Message> {
    let lacks = |has: bool| !has;
    let mut messages = Vec::new();
    let gone = old.routes.iter().filter(|(to, _)| lacks(new.routes.contains_key(to)));
    messages.extend(gone.map(|(to, by)| spec(*to, *by).del()));
    let gone = old.neighbours.iter().filter(|(ip, _)| lacks(new.neighbours.contains_key(ip)));
    messages.extend(gone.map(|(ip, mac)| rt::del_neighbour(link, *ip, *mac)));
    let gone = old.forwards.iter().filter(|(mac, ip)| lacks(new.forwards.get(*mac) == Some(ip)));
    messages.extend(gone.map(|(mac, ip)| rt::del_forward(link, *mac, *ip)));
    let fresh = new.forwards.iter().filter(|(mac, ip)| lacks(old.forwards.get(*mac) == Some(ip)));
    messages.extend(fresh.map(|(mac, ip)| rt::add_forward(link, *mac, *ip)));
    let fresh = new.neighbours.iter().filter(|(ip, mac)| lacks(old.neighbours.get(*ip) == Some(mac)));
    messages.extend(fresh.map(|(ip, mac)| rt::add_neighbour(link, *ip, *mac)));
    let fresh = new.routes.iter().filter(|(to, by)| lacks(old.routes.get(*to) == Some(by)));
    messages.extend(fresh.map(|(to, by)| spec(*to, *by).add()));
    messages
}

fn observe(socket: &mut Socket, link: u32, metric: u32) -> Result<Entries, NetError> {
    let mut entries = Entries::default();
    for route in socket.dump(&rt::get_routes()).step("listing routes")?.iter().filter_map(Route::parse) {
        if route.link == Some(link) && route.metric == Some(metric) && route.protocol == rt::ROUTE_PROTOCOL {
            entries.routes.insert(route.to, route.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED));
        }
    }
    let mut of_link = |message| -> Result<Vec<Neighbour>, NetlinkError> {
        let replies = socket.dump(&message)?;
        Ok(replies.iter().filter_map(Neighbour::parse).filter(|n| n.link == link && n.permanent).collect())
    };
    let neighbours = of_link(rt::get_neighbours()).step("listing neighbours")?;
    entries.neighbours = neighbours.into_iter().map(|n| (n.ip, n.mac)).collect();
    let forwards = of_link(rt::get_forwards()).step("listing the tunnel's table")?;
    entries.forwards = forwards.into_iter().map(|n| (n.mac, n.ip)).collect();
    Ok(entries)
}

/// The tunnel link of `prefix`, if there is one.
pub(crate) fn find(socket: &mut Socket, prefix: &str) -> Result<Option<Link>, NetError> {
    match socket.query(&rt::get_link(&link_name(prefix))) {
        Ok(replies) => Ok(replies.first().map(Link::parse).filter(|link| is_ours(prefix, link))),
        Err(error) if error.errno() == Some(ENODEV) => Ok(None),
        Err(error) => Err(error).step("looking the tunnel up"),
    }
}

/// The ranges behind the tunnel of an earlier run, which go on being served until somebody says otherwise.
pub(crate) fn ranges(socket: &mut Socket, config: &NetConfig) -> Result<Vec<Ipv4Net>, NetError> {
    let Some(link) = find(socket, &config.prefix)? else { return Ok(Vec::new()) };
    let entries = observe(socket, link.index, NetConfig::metric(&config.prefix))?;
    Ok(entries.routes.into_keys().collect())
}

impl Network {
    /// Makes exactly these nodes' pods reachable; returns the number of changes. The node itself may be among them.
    ///
    /// # Errors
    /// The kernel refused a step (it has no VXLAN, or the name is taken); calling again is safe.
    pub fn set_peers(&self, peers: &[Peer]) -> Result<usize, NetError> {
        let config = &self.config;
        let wanted = desired(config, peers);
        let mut socket = self.reaper.lock();
        let mut present = find(&mut socket, &config.prefix)?;
        if let Some(link) = present.take_if(|link| wanted.routes.is_empty() || link.alias != alias(config)) {
            socket.request(&[rt::del_link(link.index)]).step("removing the tunnel")?;
        }
        if wanted.routes.is_empty() {
            return Ok(0);
        }
        let link = match present {
            Some(link) => link.index,
            None => create(&mut socket, config)?,
        };
        let metric = NetConfig::metric(&config.prefix);
        let observed = observe(&mut socket, link, metric)?;
        let source = Some(config.pod_cidr.base());
        let spec = |to, by| RouteSpec {
            gateway: Some(by),
            metric: Some(metric),
            source,
            ..RouteSpec::link(to, link)
        };
        let messages = diff(&observed, &wanted, spec, link);
        for batch in messages.chunks(BATCH_MAX) {
            socket.request(batch).step("telling the tunnel about nodes")?;
        }
        Ok(messages.len())
    }
}

fn create(socket: &mut Socket, config: &NetConfig) -> Result<u32, NetError> {
    let name = link_name(&config.prefix);
    let vxlan = Vxlan { vni: VNI, local: config.node_ip, port: PORT };
    let message = rt::new_vxlan(&name, mac(config.node_ip), config.mtu, &vxlan);
    socket.request(&[message]).step("creating the tunnel (does the kernel have VXLAN?)")?;
    let link = link_by_name(socket, &name)?.index;
    // Fails where IPv6 is off, where there is nothing to prevent.
    let _ = socket.request(&[rt::no_ipv6_address(link)]);
    let raise = [
        rt::set_host_end(link, &alias(config)),
        rt::add_pod_address(link, config.pod_cidr.base()),
        rt::set_up(link),
    ];
    socket.request(&raise).step("raising the tunnel")?;
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config() -> NetConfig {
        NetConfig {
            prefix: "gtt".into(),
            node_ip: Ipv4Addr::new(192, 168, 0, 1),
            pod_cidr: "10.244.0.0/24".parse().unwrap(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/12".parse().unwrap(),
            dns_ip: Ipv4Addr::new(10, 96, 0, 10),
            mtu: 1450,
        }
    }

    fn peer(n: u8) -> Peer {
        let pod_cidr = format!("10.244.{n}.0/24").parse().unwrap();
        Peer { node_ip: Ipv4Addr::new(192, 168, 0, n), pod_cidr }
    }

    #[test]
    fn a_node_is_no_peer_of_itself_and_a_range_has_one_owner() {
        let twin = Peer { node_ip: Ipv4Addr::new(192, 168, 0, 9), ..peer(2) };
        let thief = Peer { pod_cidr: config().pod_cidr, ..peer(3) };
        let entries = desired(&config(), &[twin, peer(2), peer(1), thief]);
        assert_eq!(entries.routes.len(), 1);
        let end = Ipv4Addr::new(10, 244, 2, 0);
        assert_eq!(entries.neighbours, [(end, [0x0a, 0x59, 192, 168, 0, 2])].into());
        assert_eq!(entries.forwards.values().collect::<Vec<_>>(), [&Ipv4Addr::new(192, 168, 0, 2)]);
    }

    #[test]
    fn only_our_tunnel_is_ours() {
        let link = |name: &str, alias: &str, kind: &str| Link {
            name: name.into(),
            alias: alias.into(),
            kind: kind.into(),
            ..Link::default()
        };
        let alias = alias(&config());
        assert!(is_ours("gtt", &link("gttx", &alias, "vxlan")));
        assert!(!is_ours("gtt", &link("gttx", "", "vxlan")));
        assert!(!is_ours("gtt", &link("gttx", &alias, "veth")));
        assert!(
            !is_ours("gt", &link("gttx", &alias, "vxlan")) && !is_ours("gt", &link("gtx", &alias, "vxlan"))
        );
    }

    proptest! {
        /// A change says something about every peer that differs, and nothing when none does.
        #[test]
        fn a_change_is_as_large_as_the_difference(old in prop::collection::btree_set(2u8..20, 0..8),
                new in prop::collection::btree_set(2u8..20, 0..8)) {
            let of = |set: &BTreeSet<u8>| desired(&config(), &set.iter().map(|n| peer(*n)).collect::<Vec<_>>());
            let messages = diff(&of(&old), &of(&new), |to, by| RouteSpec { gateway: Some(by), ..RouteSpec::link(to, 7) }, 7);
            prop_assert_eq!(messages.len(), 3 * old.symmetric_difference(&new).count());
        }
    }
}
