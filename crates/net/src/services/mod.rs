//! Service load balancing: `desired` computes the elements, `diff` the changes; module `render` turns them
//! into netlink messages. Pure.
//!
//! Shape: a *front* (address, protocol, port) points to a *group*, a chain that all fronts with the same
//! number of endpoints share; in the group, front and a random slot give the endpoint. So there are exactly
//! as many elements as endpoints, shares are even, and one change touches a few elements.
//! Invariants: a front occurs once, and so does a slot of a front; every group that is pointed to exists.
//! Deliberately not here: netlink, coalescing (the caller's), network policy (a later sibling module).

pub(crate) mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use crate::addr::Protocol;

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name:port`, for logs only.
    pub name: String,
    /// Cluster addresses.
    pub cluster_ips: Vec<Ipv4Addr>,
    /// External and load-balancer addresses.
    pub external_ips: Vec<Ipv4Addr>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port on cluster and external addresses.
    pub port: u16,
    /// The port on every address of the node.
    pub node_port: Option<u16>,
    /// Where the traffic goes; only endpoints that may receive.
    pub endpoints: Vec<Endpoint>,
    /// `sessionAffinity: ClientIP` with this timeout in seconds.
    pub affinity_secs: Option<u32>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
}

/// One endpoint of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod's (or host's) address.
    pub ip: Ipv4Addr,
    /// The port there.
    pub port: u16,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether it is left to other nodes or zones, which prefer what is near; a policy of `Local` asks it all the same.
    pub far: bool,
}

/// A pod's port that is reachable at the node (`hostPort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The node's address to listen at; `None` for all of them.
    pub host_ip: Option<Ipv4Addr>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port at the node.
    pub host_port: u16,
    /// The pod's address.
    pub pod_ip: Ipv4Addr,
    /// The port in the pod.
    pub pod_port: u16,
}

/// Which traffic a front is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// A given address, from anywhere.
    Address,
    /// A given address, from outside the node; asked before `Address`.
    AddressOutside,
    /// Any address of the node, from anywhere.
    Node,
    /// Any address of the node, from outside the node; asked before `Node`.
    NodeOutside,
}

impl View {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Address, Self::AddressOutside, Self::Node, Self::NodeOutside];

    /// Whether the destination address is part of the key.
    pub fn has_address(self) -> bool {
        matches!(self, Self::Address | Self::AddressOutside)
    }

    fn letter(self) -> char {
        match self {
            Self::Address => 'c',
            Self::AddressOutside => 'x',
            Self::Node => 'n',
            Self::NodeOutside => 'm',
        }
    }
}

/// What a client connects to. `ip` is there exactly in views with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Front {
    /// For which traffic.
    pub view: View,
    /// The address, unless any of the node.
    pub ip: Option<Ipv4Addr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// A chain that balances over `count` endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    /// The view whose key it looks up.
    pub view: View,
    /// Number of endpoints.
    pub count: u32,
    /// Session affinity timeout in seconds.
    pub affinity_secs: Option<u32>,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.view.letter(), self.count)?;
        self.affinity_secs.map_or(Ok(()), |secs| write!(f, "a{secs}"))
    }
}

/// What happens at a front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Balance.
    Group(Group),
    /// No endpoint at all: refuse.
    Reject,
    /// Endpoints, but none that this policy allows: drop, so that load balancers try another node.
    Drop,
}

/// An address and port.
pub type Socket = (Ipv4Addr, u16);

/// One element of one set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// Front → target.
    Front(Front, Target),
    /// Group, front, slot → endpoint.
    Back(Group, Front, u32, Socket),
    /// Front, endpoint's address → endpoint, for clients who are remembered (fronts with affinity only).
    Alive(Front, Socket),
    /// A local endpoint that may be sent back to itself.
    Hairpin(Ipv4Addr),
    /// An endpoint on another node: the source must become ours, so that answers come back through us.
    Remote(Protocol, Socket),
}

/// All that the kernel should hold for services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Elements of all sets.
    pub elements: BTreeSet<Element>,
    /// Chains.
    pub groups: BTreeSet<Group>,
}

/// One step from a ruleset to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Takes an element out.
    Remove(Element),
    /// Makes a chain and its map.
    AddGroup(Group),
    /// Puts an element in.
    Add(Element),
    /// Takes a chain and its map away.
    RemoveGroup(Group),
}

/// Computes what the kernel should hold. `dns_ip` is the node's own DNS server: a service there without
/// endpoints is left to it. Of two claims to one front the first wins, services before host ports.
pub fn desired(services: &[ServicePort], host_ports: &[HostPort], dns_ip: Ipv4Addr) -> Ruleset {
    let mut build = Build { dns_ip, fronts: BTreeSet::new(), out: Ruleset::default() };
    for service in services {
        build.service(service);
    }
    for host_port in host_ports {
        let endpoints =
            [Endpoint { ip: host_port.pod_ip, port: host_port.pod_port, local: true, far: false }];
        let view = if host_port.host_ip.is_some() { View::Address } else { View::Node };
        let front =
            Front { view, ip: host_port.host_ip, protocol: host_port.protocol, port: host_port.host_port };
        build.front(front, &endpoints, &endpoints, None);
    }
    build.out
}

struct Build {
    dns_ip: Ipv4Addr,
    fronts: BTreeSet<Front>,
    out: Ruleset,
}

impl Build {
    fn service(&mut self, service: &ServicePort) {
        let all: Vec<Endpoint> =
            service.endpoints.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let local: Vec<Endpoint> = all.iter().copied().filter(|endpoint| endpoint.local).collect();
        let near: Vec<Endpoint> = all.iter().copied().filter(|endpoint| !endpoint.far).collect();
        let internal = if service.internal_local { &local } else { &near };
        let affinity = service.affinity_secs;
        let at = |view, ip, port| Front { view, ip, protocol: service.protocol, port };
        for ip in &service.cluster_ips {
            self.front(at(View::Address, Some(*ip), service.port), internal, &all, affinity);
        }
        for ip in &service.external_ips {
            self.front(at(View::Address, Some(*ip), service.port), &near, &all, affinity);
            if service.external_local {
                self.front(at(View::AddressOutside, Some(*ip), service.port), &local, &all, affinity);
            }
        }
        if let Some(port) = service.node_port {
            self.front(at(View::Node, None, port), &near, &all, affinity);
            if service.external_local {
                self.front(at(View::NodeOutside, None, port), &local, &all, affinity);
            }
        }
    }

    fn front(&mut self, front: Front, chosen: &[Endpoint], all: &[Endpoint], affinity_secs: Option<u32>) {
        let own_dns = front.ip == Some(self.dns_ip) && all.is_empty();
        if own_dns || !self.fronts.insert(front) {
            return;
        }
        let mut chosen = chosen.to_vec();
        if affinity_secs.is_some() {
            // A client is remembered by its endpoint's address.
            chosen.dedup_by_key(|endpoint| endpoint.ip);
        }
        let elements = &mut self.out.elements;
        let Some(count) = u32::try_from(chosen.len()).ok().filter(|count| *count > 0) else {
            let target = if all.is_empty() { Target::Reject } else { Target::Drop };
            elements.insert(Element::Front(front, target));
            return;
        };
        let group = Group { view: front.view, count, affinity_secs };
        self.out.groups.insert(group);
        elements.insert(Element::Front(front, Target::Group(group)));
        for (slot, endpoint) in (0..).zip(chosen) {
            let socket = (endpoint.ip, endpoint.port);
            elements.insert(Element::Back(group, front, slot, socket));
            if affinity_secs.is_some() {
                elements.insert(Element::Alive(front, socket));
            }
            elements.insert(if endpoint.local {
                Element::Hairpin(endpoint.ip)
            } else {
                Element::Remote(front.protocol, socket)
            });
        }
    }
}

/// The steps from `old` to `new`, in an order that the kernel accepts: nothing is added twice, and nothing
/// is taken away while it is pointed to.
pub fn diff(old: &Ruleset, new: &Ruleset) -> Vec<Change> {
    let mut changes = Vec::new();
    changes.extend(old.elements.difference(&new.elements).copied().map(Change::Remove));
    changes.extend(new.groups.difference(&old.groups).copied().map(Change::AddGroup));
    changes.extend(new.elements.difference(&old.elements).copied().map(Change::Add));
    changes.extend(old.groups.difference(&new.groups).copied().map(Change::RemoveGroup));
    changes
}

/// The UDP fronts that `changes` touch, with the endpoints that may go on serving them: connection tracking
/// would send a talkative client to a dead endpoint for ever. Views of one address and port count as one.
pub(crate) fn udp_survivors(
    changes: &[Change],
    new: &Ruleset,
) -> BTreeMap<(Option<Ipv4Addr>, u16), BTreeSet<Socket>> {
    let key = |front: &Front| (front.ip, front.port);
    let mut touched = BTreeMap::new();
    for change in changes {
        if let Change::Add(element) | Change::Remove(element) = change
            && let Element::Front(front, _) | Element::Back(_, front, ..) = element
            && front.protocol == Protocol::Udp
        {
            touched.insert(key(front), BTreeSet::new());
        }
    }
    for element in &new.elements {
        if let Element::Back(_, front, _, socket) = element
            && front.protocol == Protocol::Udp
            && let Some(survivors) = touched.get_mut(&key(front))
        {
            survivors.insert(*socket);
        }
    }
    touched
}

#[cfg(test)]
mod tests;
