//! Findings about the host: what eats pods' traffic or clashes with our ranges. Changes nothing.
//!
//! Invariants: a finding says what is wrong and the one command that helps, if there is one.
//! Deliberately not here: ports in use (the binary's), repairs.

use std::fmt;

use sys::netlink::{Protocol, Socket};

use crate::addr::Ipv4Net;
use crate::nft;
use crate::node::{NetConfig, NetError, Step, read_forwarding};
use crate::rt::{self, Link, Route};

/// A range of ours that the host routes elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Our range.
    pub range: Ipv4Net,
    /// The host's route.
    pub route: Ipv4Net,
    /// The link that the route uses; empty if it uses none.
    pub link: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, route, link } = self;
        write!(f, "range {range} overlaps the host's route {route}")?;
        if link.is_empty() { Ok(()) } else { write!(f, " on {link}") }
    }
}

/// Something on the host that the user should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A base chain of somebody else drops forwarded packets that it does not know.
    ForwardDrop {
        /// `ip` or `inet`.
        family: &'static str,
        /// The table.
        table: String,
        /// The chain.
        chain: String,
        /// The links that need a pass.
        prefix: String,
    },
    /// The old iptables back end filters too; its chains cannot be read from here.
    LegacyIptables,
    /// Forwarding is off, so that no pod reaches another.
    ForwardingOff,
    /// A range of ours is in use.
    Overlap(Conflict),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForwardDrop { family, table, chain, prefix } if chain == "FORWARD" => write!(
                f,
                "the firewall drops forwarded pod traffic (nftables {family} {table} {chain}, policy drop); \
                 to let it pass: iptables -I FORWARD -i {prefix}+ -j ACCEPT && iptables -I FORWARD -o {prefix}+ -j ACCEPT"
            ),
            Self::ForwardDrop { family, table, chain, prefix } => write!(
                f,
                "the firewall drops forwarded pod traffic (nftables {family} {table} {chain}, policy drop); \
                 to let it pass: nft insert rule {family} {table} {chain} iifname \"{prefix}*\" accept && \
                 nft insert rule {family} {table} {chain} oifname \"{prefix}*\" accept"
            ),
            Self::LegacyIptables => write!(
                f,
                "iptables-legacy has a filter table; if pods cannot reach each other, see: iptables-legacy -S FORWARD"
            ),
            Self::ForwardingOff => {
                write!(f, "IPv4 forwarding is off; to switch it on: sysctl -w net.ipv4.ip_forward=1")
            }
            Self::Overlap(conflict) => conflict.fmt(f),
        }
    }
}

/// The routes of the host that overlap `ranges`; default routes and those of instance `prefix` do not count.
///
/// # Errors
/// Netlink does not answer.
pub fn overlaps(prefix: &str, ranges: &[Ipv4Net]) -> Result<Vec<Conflict>, NetError> {
    let mut socket = Socket::open(Protocol::Route).step("opening netlink")?;
    let routes: Vec<Route> =
        socket.dump(&rt::get_routes()).step("listing routes")?.iter().filter_map(Route::parse).collect();
    let links: Vec<Link> =
        socket.dump(&rt::get_links()).step("listing links")?.iter().map(Link::parse).collect();
    Ok(conflicts(prefix, ranges, &routes, &links))
}

fn conflicts(prefix: &str, ranges: &[Ipv4Net], routes: &[Route], links: &[Link]) -> Vec<Conflict> {
    let mut found: Vec<Conflict> = Vec::new();
    for route in routes {
        let link = links.iter().find(|link| Some(link.index) == route.link);
        let link = link.map(|link| link.name.clone()).unwrap_or_default();
        // Another instance's routes have the same protocol, but not our metric or link.
        let own = route.protocol == rt::ROUTE_PROTOCOL
            && (route.metric == Some(NetConfig::metric(prefix)) || link.starts_with(prefix));
        // Local and broadcast routes repeat what the main table says, except for addresses such as our own.
        let counts = route.table == rt::TABLE_MAIN && !own && route.to.prefix_len() > 0;
        for range in ranges.iter().filter(|range| counts && range.overlaps(route.to)) {
            found.push(Conflict { range: *range, route: route.to, link: link.clone() });
        }
    }
    found
}

/// Looks at the host for what would keep `config` from working. Meant for a node that is set up; before that
/// it reports forwarding as off.
///
/// # Errors
/// Netlink does not answer.
pub fn doctor(config: &NetConfig) -> Result<Vec<Finding>, NetError> {
    let mut findings = Vec::new();
    if read_forwarding()? != "1" {
        findings.push(Finding::ForwardingOff);
    }
    let mut netfilter = Socket::open(Protocol::Netfilter).step("opening netlink")?;
    let chains = netfilter.dump(&nft::get_chains()).step("listing nftables chains")?;
    for drop in chains.iter().filter_map(nft::parse_forward_drop) {
        let family = if drop.family == 1 { "inet" } else { "ip" };
        let (table, chain, prefix) = (drop.table, drop.chain, config.prefix.clone());
        findings.push(Finding::ForwardDrop { family, table, chain, prefix });
    }
    let legacy = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    if legacy.lines().any(|table| table == "filter") {
        findings.push(Finding::LegacyIptables);
    }
    let ranges = [config.cluster_cidr, config.service_cidr];
    findings.extend(overlaps(&config.prefix, &ranges)?.into_iter().map(Finding::Overlap));
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_foreign_routes_of_the_main_table_conflict() {
        let route = |to: &str, table, protocol| Route {
            to: to.parse().unwrap(),
            table,
            protocol,
            kind: rt::UNICAST,
            link: Some(3),
            gateway: None,
            metric: Some(NetConfig::metric("gt")).filter(|_| protocol == rt::ROUTE_PROTOCOL),
        };
        let links = [Link { index: 3, name: "docker0".into(), ..Link::default() }];
        let routes = [
            route("0.0.0.0/0", rt::TABLE_MAIN, 3),
            route("10.244.7.0/24", rt::TABLE_MAIN, 2),
            route("10.244.8.0/24", rt::TABLE_MAIN, rt::ROUTE_PROTOCOL),
            route("10.244.9.1/32", 255, 2),
            route("192.168.0.0/16", rt::TABLE_MAIN, 2),
        ];
        let found = conflicts("gt", &["10.244.0.0/16".parse().unwrap()], &routes, &links);
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["range 10.244.0.0/16 overlaps the host's route 10.244.7.0/24 on docker0"]);
        let other = conflicts("other", &["10.244.8.0/22".parse().unwrap()], &routes, &links);
        assert_eq!(other.len(), 1, "another instance's routes count: {other:?}");
    }
}
