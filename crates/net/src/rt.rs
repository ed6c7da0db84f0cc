//! The routing family of netlink: the few messages that a pod network needs, and their parsers. Pure.
//!
//! Invariants: values here map one to one to `linux/rtnetlink.h`; nothing is sent from here.
//! Deliberately not here: decisions (modules `node`, `pods`, `tunnel`), bridges.

use std::net::Ipv4Addr;

use sys::netlink::flags::{CREATE, EXCL, REPLACE};
use sys::netlink::{Attrs, Message, Reply, attrs, ne16, ne32};

use crate::addr::{Ipv4Net, Mac};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const VXLAN_ID: u16 = 1;
const VXLAN_LOCAL: u16 = 4;
const VXLAN_LEARNING: u16 = 7;
const VXLAN_PORT: u16 = 15;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_NONE: u8 = 1;
const IFF_UP: u32 = 1;
const DEVCONF_RP_FILTER: u16 = 8;
const DEVCONF_ROUTE_LOCALNET: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RTNH_F_ONLINK: u32 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 2;

/// The main routing table.
pub(crate) const TABLE_MAIN: u32 = 254;
/// Scope of addresses that are valid on this host only: never picked as a source for other hosts.
const SCOPE_HOST: u8 = 254;
const SCOPE_LINK: u8 = 253;
const SCOPE_UNIVERSE: u8 = 0;
/// Our routes carry this protocol number (free in `/etc/iproute2/rt_protos`), so that they can be told apart.
pub(crate) const ROUTE_PROTOCOL: u8 = 103;
/// `RTN_UNICAST`.
pub(crate) const UNICAST: u8 = 1;
/// `RTN_UNREACHABLE`.
pub(crate) const UNREACHABLE: u8 = 7;

fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// One end of a new veth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub name: &'a str,
    pub mac: Mac,
}

/// Creates a veth pair whose far end is born in the namespace `ns_fd`.
pub(crate) fn new_veth(near: End<'_>, far: End<'_>, ns_fd: u32, mtu: u32) -> Message {
    let end = |end: End<'_>| {
        Attrs::new().str(IFLA_IFNAME, end.name).bytes(IFLA_ADDRESS, &end.mac).u32(IFLA_MTU, mtu)
    };
    // VETH_INFO_PEER holds an ifinfomsg and then attributes; an Attrs run starts behind it.
    let mut peer = ifinfo(0, 0, 0).to_vec();
    peer.extend_from_slice(end(far).u32(IFLA_NET_NS_FD, ns_fd).as_bytes());
    let data = Attrs::new().bytes(VETH_INFO_PEER, &peer);
    let info = Attrs::new().str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, data);
    Message::new(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0), end(near).nest(IFLA_LINKINFO, info))
}

/// How a VXLAN link carries packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vxlan {
    pub vni: u32,
    pub local: Ipv4Addr,
    pub port: u16,
}

/// Creates a VXLAN link that learns nothing.
pub(crate) fn new_vxlan(name: &str, mac: Mac, mtu: u32, vxlan: &Vxlan) -> Message {
    let data = Attrs::new()
        .u32(VXLAN_ID, vxlan.vni)
        .bytes(VXLAN_LOCAL, &vxlan.local.octets())
        .u8(VXLAN_LEARNING, 0)
        .bytes(VXLAN_PORT, &vxlan.port.to_be_bytes());
    let info = Attrs::new().str(IFLA_INFO_KIND, "vxlan").nest(IFLA_INFO_DATA, data);
    let link = Attrs::new().str(IFLA_IFNAME, name).bytes(IFLA_ADDRESS, &mac).u32(IFLA_MTU, mtu);
    Message::new(RTM_NEWLINK, CREATE | EXCL, &ifinfo(0, 0, 0), link.nest(IFLA_LINKINFO, info))
}

/// Asks for one link by name.
pub(crate) fn get_link(name: &str) -> Message {
    Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0), Attrs::new().str(IFLA_IFNAME, name))
}

/// Asks for all links (a dump).
pub(crate) fn get_links() -> Message {
    Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0), Attrs::new())
}

/// Raises a link.
pub(crate) fn set_up(index: u32) -> Message {
    Message::new(RTM_SETLINK, 0, &ifinfo(index, IFF_UP, IFF_UP), Attrs::new())
}

/// Names the owner of a host end (of a pod's link or the tunnel) and sets its knobs: reverse-path filter 2 (which on a link without address
/// checks strictly; our own rule does so whatever the host says later) and `route_localnet`, for node ports on
/// 127.0.0.1.
pub(crate) fn set_host_end(index: u32, alias: &str) -> Message {
    let knobs = Attrs::new().u32(DEVCONF_RP_FILTER, 2).u32(DEVCONF_ROUTE_LOCALNET, 1);
    let inet = Attrs::new().nest(IFLA_INET_CONF, knobs);
    let spec = Attrs::new().nest(u16::from(AF_INET), inet);
    let attrs = Attrs::new().bytes(IFLA_IFALIAS, alias.as_bytes()).nest(IFLA_AF_SPEC, spec);
    Message::new(RTM_SETLINK, 0, &ifinfo(index, 0, 0), attrs)
}

/// Keeps the kernel from giving a link an IPv6 address by itself. Fails where IPv6 is switched off.
pub(crate) fn no_ipv6_address(index: u32) -> Message {
    let inet6 = Attrs::new().u8(IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_NONE);
    let spec = Attrs::new().nest(u16::from(AF_INET6), inet6);
    Message::new(RTM_SETLINK, 0, &ifinfo(index, 0, 0), Attrs::new().nest(IFLA_AF_SPEC, spec))
}

/// Puts a link into a device group.
pub(crate) fn set_group(index: u32, group: u32) -> Message {
    Message::new(RTM_SETLINK, 0, &ifinfo(index, 0, 0), Attrs::new().u32(IFLA_GROUP, group))
}

/// Deletes one link.
pub(crate) fn del_link(index: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &ifinfo(index, 0, 0), Attrs::new())
}

/// Deletes all links of a group at once (one grace period instead of one a link).
pub(crate) fn del_group(group: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &ifinfo(0, 0, 0), Attrs::new().u32(IFLA_GROUP, group))
}

/// Labelled addresses are for this host only, others for the world.
fn address(kind: u16, flags: u16, index: u32, ip: Ipv4Addr, label: Option<&str>) -> Message {
    let scope = if label.is_some() { SCOPE_HOST } else { SCOPE_UNIVERSE };
    let mut header = [AF_INET, 32, 0, scope, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    let attrs = Attrs::new().bytes(IFA_LOCAL, &ip.octets()).bytes(IFA_ADDRESS, &ip.octets());
    let attrs = match label {
        Some(label) => attrs.str(IFA_LABEL, label),
        None => attrs,
    };
    Message::new(kind, flags, &header, attrs)
}

/// Gives a pod's link its /32.
pub(crate) fn add_pod_address(index: u32, ip: Ipv4Addr) -> Message {
    address(RTM_NEWADDR, CREATE | REPLACE, index, ip, None)
}

/// Adds a labelled address that only this host uses as a source.
pub(crate) fn add_host_address(index: u32, ip: Ipv4Addr, label: &str) -> Message {
    address(RTM_NEWADDR, CREATE | REPLACE, index, ip, Some(label))
}

/// Deletes an address.
pub(crate) fn del_host_address(index: u32, ip: Ipv4Addr, label: &str) -> Message {
    address(RTM_DELADDR, 0, index, ip, Some(label))
}

/// Asks for all IPv4 addresses (a dump).
pub(crate) fn get_addresses() -> Message {
    Message::new(RTM_GETADDR, 0, &[AF_INET, 0, 0, 0, 0, 0, 0, 0], Attrs::new())
}

fn neighbour(kind: u16, flags: u16, (family, link, own): (u8, u32, u8), ip: Ipv4Addr, mac: Mac) -> Message {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    header[10] = own;
    let attrs = Attrs::new().bytes(NDA_DST, &ip.octets()).bytes(NDA_LLADDR, &mac);
    Message::new(kind, flags, &header, attrs)
}

/// A permanent neighbour: exempt from the neighbour table's limit, and no ARP is ever sent.
pub(crate) fn add_neighbour(index: u32, ip: Ipv4Addr, mac: Mac) -> Message {
    neighbour(RTM_NEWNEIGH, CREATE | REPLACE, (AF_INET, index, 0), ip, mac)
}

/// Deletes a neighbour.
pub(crate) fn del_neighbour(index: u32, ip: Ipv4Addr, mac: Mac) -> Message {
    neighbour(RTM_DELNEIGH, 0, (AF_INET, index, 0), ip, mac)
}

/// Tells a VXLAN link at which host a MAC address is.
pub(crate) fn add_forward(index: u32, mac: Mac, host: Ipv4Addr) -> Message {
    neighbour(RTM_NEWNEIGH, CREATE | REPLACE, (AF_BRIDGE, index, NTF_SELF), host, mac)
}

/// Makes a VXLAN link forget it.
pub(crate) fn del_forward(index: u32, mac: Mac, host: Ipv4Addr) -> Message {
    neighbour(RTM_DELNEIGH, 0, (AF_BRIDGE, index, NTF_SELF), host, mac)
}

/// Asks for all IPv4 neighbours (a dump).
pub(crate) fn get_neighbours() -> Message {
    neighbours_of(AF_INET)
}

/// Asks for the tables of all links that forward by MAC address (a dump).
pub(crate) fn get_forwards() -> Message {
    neighbours_of(AF_BRIDGE)
}

fn neighbours_of(family: u8) -> Message {
    let mut header = [0; 12];
    header[0] = family;
    Message::new(RTM_GETNEIGH, 0, &header, Attrs::new())
}

/// A route of ours in the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteSpec {
    pub to: Ipv4Net,
    /// `UNICAST` or `UNREACHABLE`.
    pub kind: u8,
    /// Output link; none for `UNREACHABLE`.
    pub link: Option<u32>,
    /// Next hop, reached on that link whatever the routing table says; none for a link-scope route.
    pub gateway: Option<Ipv4Addr>,
    pub metric: Option<u32>,
    /// Source address of this host's own packets.
    pub source: Option<Ipv4Addr>,
}

impl RouteSpec {
    /// `to` is directly behind `link`.
    pub(crate) fn link(to: Ipv4Net, link: u32) -> Self {
        Self { to, kind: UNICAST, link: Some(link), gateway: None, metric: None, source: None }
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        let scope = if self.kind == UNICAST && self.gateway.is_none() { SCOPE_LINK } else { SCOPE_UNIVERSE };
        let table = TABLE_MAIN as u8;
        let mut header =
            [AF_INET, self.to.prefix_len(), 0, 0, table, ROUTE_PROTOCOL, scope, self.kind, 0, 0, 0, 0];
        if self.gateway.is_some() {
            header[8..].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
        }
        let mut attrs = Attrs::new().bytes(RTA_DST, &self.to.base().octets());
        if let Some(link) = self.link {
            attrs = attrs.u32(RTA_OIF, link);
        }
        if let Some(gateway) = self.gateway {
            attrs = attrs.bytes(RTA_GATEWAY, &gateway.octets());
        }
        if let Some(metric) = self.metric {
            attrs = attrs.u32(RTA_PRIORITY, metric);
        }
        if let Some(source) = self.source {
            attrs = attrs.bytes(RTA_PREFSRC, &source.octets());
        }
        Message::new(kind, flags, &header, attrs)
    }

    /// Adds or replaces the route.
    pub(crate) fn add(&self) -> Message {
        self.message(RTM_NEWROUTE, CREATE | REPLACE)
    }

    /// Deletes the route.
    pub(crate) fn del(&self) -> Message {
        self.message(RTM_DELROUTE, 0)
    }
}

/// Asks for all IPv4 routes of all tables (a dump).
pub(crate) fn get_routes() -> Message {
    Message::new(RTM_GETROUTE, 0, &[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Attrs::new())
}

/// A link as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    pub alias: String,
    pub kind: String,
    pub mac: Vec<u8>,
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

fn ip(value: &[u8]) -> Ipv4Addr {
    Ipv4Addr::from_bits(sys::netlink::be32(value))
}

impl Link {
    pub(crate) fn parse(reply: &Reply) -> Self {
        let mut link = Self { index: ne32(reply.body.get(4..).unwrap_or_default()), ..Self::default() };
        for (kind, value) in reply.attrs(16) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_IFALIAS => link.alias = text(value),
                IFLA_ADDRESS => link.mac = value.to_vec(),
                IFLA_LINKINFO => {
                    let info = attrs(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                    link.kind = info.map(|(_, value)| text(value)).unwrap_or_default();
                }
                _ => {}
            }
        }
        link
    }
}

/// An address as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub link: u32,
    pub ip: Ipv4Addr,
    pub label: String,
}

impl Address {
    pub(crate) fn parse(reply: &Reply) -> Self {
        let link = ne32(reply.body.get(4..).unwrap_or_default());
        let mut address = Self { link, ip: Ipv4Addr::UNSPECIFIED, label: String::new() };
        for (kind, value) in reply.attrs(8) {
            match kind {
                IFA_LOCAL => address.ip = ip(value),
                IFA_LABEL => address.label = text(value),
                _ => {}
            }
        }
        address
    }
}

/// A route as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub to: Ipv4Net,
    pub table: u32,
    pub protocol: u8,
    pub kind: u8,
    pub link: Option<u32>,
    pub gateway: Option<Ipv4Addr>,
    pub metric: Option<u32>,
}

impl Route {
    pub(crate) fn parse(reply: &Reply) -> Option<Self> {
        let header: &[u8] = reply.body.get(..12)?;
        let mut to = Ipv4Addr::UNSPECIFIED;
        let (mut table, mut link, mut gateway, mut metric) = (u32::from(header[4]), None, None, None);
        for (kind, value) in reply.attrs(12) {
            match kind {
                RTA_DST => to = ip(value),
                RTA_TABLE => table = ne32(value),
                RTA_OIF => link = Some(ne32(value)),
                RTA_GATEWAY => gateway = Some(ip(value)),
                RTA_PRIORITY => metric = Some(ne32(value)),
                _ => {}
            }
        }
        let to = Ipv4Net::new(to, header[1]);
        Some(Self { to, table, protocol: header[5], kind: header[7], link, gateway, metric })
    }
}

/// A neighbour, or an entry of a link that forwards by MAC address, as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub link: u32,
    pub permanent: bool,
    pub ip: Ipv4Addr,
    pub mac: Mac,
}

impl Neighbour {
    /// `None`: without an IPv4 address or a MAC address.
    pub(crate) fn parse(reply: &Reply) -> Option<Self> {
        let header: &[u8] = reply.body.get(..12)?;
        let (mut address, mut mac) = (None, None);
        for (kind, value) in reply.attrs(12) {
            match kind {
                NDA_DST if value.len() == 4 => address = Some(ip(value)),
                NDA_LLADDR => mac = Mac::try_from(value).ok(),
                _ => {}
            }
        }
        let permanent = ne16(header.get(8..)?) & NUD_PERMANENT != 0;
        Some(Self { link: ne32(header.get(4..)?), permanent, ip: address?, mac: mac? })
    }
}
