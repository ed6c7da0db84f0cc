//! Removal of all that carries a prefix, with nothing running: links, routes, the loopback address, the
//! table, and `ip_forward` if it was us who set it.
//!
//! Invariants: only links with our alias, routes with our protocol and metric, addresses with our label and
//! the table of our name are touched; running it twice is harmless.
//! Deliberately not here: anything that needs a configuration.

use std::net::Ipv4Addr;

use sys::netlink::{NetlinkError, Protocol, Socket};

use crate::addr::Ipv4Net;
use crate::nft::{self, Table};
use crate::node::{NetConfig, NetError, Step, check_prefix, link_by_name, read_forwarding, write_forwarding};
use crate::pods::{fnv1a, owner};
use crate::rt::{self, Address, Link, Route, RouteSpec};
use crate::tunnel;

const COMMENT: &str = "gantry ip_forward=";
const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const ENODEV: i32 = 19;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pods' links and the tunnel.
    pub links: usize,
    /// Routes.
    pub routes: usize,
    /// Addresses on the loopback link.
    pub addresses: usize,
    /// Whether the nftables table was there.
    pub table: bool,
    /// Whether `ip_forward` was switched off again.
    pub forwarding_restored: bool,
}

/// The table's comment: what teardown must know.
pub(crate) fn comment(old_forwarding: &str) -> String {
    format!("{COMMENT}{old_forwarding}")
}

/// The value of `ip_forward` before us, if the comment is one of ours.
fn old_forwarding(comment: &str) -> Option<&str> {
    comment.strip_prefix(COMMENT)
}

/// Whether a table with this comment is one of ours.
pub(crate) fn is_ours(comment: &str) -> bool {
    old_forwarding(comment).is_some()
}

/// The comment of the table named `prefix`, if there is such a table.
pub(crate) fn recorded(socket: &mut Socket, prefix: &str) -> Result<Option<String>, NetError> {
    let tables = socket.dump(&nft::get_tables()).step("listing nftables tables")?;
    let found = tables.iter().map(nft::parse_table).find(|(name, _)| name == prefix);
    Ok(found.map(|(_, comment)| comment))
}

/// Removes everything that carries `prefix` from the caller's network namespace.
///
/// # Errors
/// The first step that failed; calling again is safe.
pub fn teardown(prefix: &str) -> Result<Removed, NetError> {
    check_prefix(prefix)?;
    let mut route = Socket::open(Protocol::Route).step("opening netlink")?;
    let mut netfilter = Socket::open(Protocol::Netfilter).step("opening netlink")?;
    let mut removed = Removed { links: links(&mut route, prefix)?, ..Removed::default() };
    removed.routes = routes(&mut route, prefix, &[])?;
    removed.addresses = addresses(&mut route, prefix, None)?;
    let Some(comment) = recorded(&mut netfilter, prefix)? else { return Ok(removed) };
    let Some(old_forwarding) = old_forwarding(&comment) else {
        tracing::warn!(prefix, "the nftables table of our name is not ours; it stays");
        return Ok(removed);
    };
    if old_forwarding == "0" && read_forwarding()? == "1" {
        write_forwarding("0")?;
        removed.forwarding_restored = true;
    }
    let outcome = netfilter.transact(nft::SUBSYSTEM, &[Table(prefix).del()]);
    unless_gone(outcome).step("removing the nftables table")?;
    removed.table = true;
    Ok(removed)
}

/// All links at once, by a group made for the purpose: one link takes ~30 ms, and so do a thousand in a group.
fn links(route: &mut Socket, prefix: &str) -> Result<usize, NetError> {
    let links = route.dump(&rt::get_links()).step("listing links")?;
    let links: Vec<Link> = links
        .iter()
        .map(Link::parse)
        .filter(|l| owner(prefix, l).is_some() || tunnel::is_ours(prefix, l))
        .collect();
    if links.is_empty() {
        return Ok(0);
    }
    let group = 0x6000_0000 | (fnv1a(prefix, std::process::id()) as u32 & 0x0fff_ffff);
    let join: Vec<_> = links.iter().map(|link| rt::set_group(link.index, group)).collect();
    // A pod's namespace that ends meanwhile takes its link along.
    unless_gone(route.request(&join)).step("grouping our links")?;
    unless_gone(route.request(&[rt::del_group(group)])).step("removing our links")?;
    Ok(links.len())
}

/// Not an error: what was to be removed is not there.
fn unless_gone(outcome: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match outcome {
        Err(error) if matches!(error.errno(), Some(ENOENT | ESRCH | ENODEV)) => Ok(()),
        other => other,
    }
}

/// Removes our routes, except those to `keep`.
pub(crate) fn routes(route: &mut Socket, prefix: &str, keep: &[Ipv4Net]) -> Result<usize, NetError> {
    let metric = Some(NetConfig::metric(prefix));
    let routes = route.dump(&rt::get_routes()).step("listing routes")?;
    let ours = |route: &Route| {
        route.protocol == rt::ROUTE_PROTOCOL
            && route.metric == metric
            && route.table == rt::TABLE_MAIN
            && !keep.contains(&route.to)
    };
    let removals: Vec<_> = routes
        .iter()
        .filter_map(Route::parse)
        .filter(ours)
        .map(|Route { to, kind, link, gateway, metric, .. }| {
            RouteSpec { to, kind, link, gateway, metric, source: None }.del()
        })
        .collect();
    unless_gone(route.request(&removals)).step("removing our routes")?;
    Ok(removals.len())
}

/// Removes our loopback addresses, except `keep`.
pub(crate) fn addresses(route: &mut Socket, prefix: &str, keep: Option<Ipv4Addr>) -> Result<usize, NetError> {
    let label = NetConfig::label(prefix);
    let lo = link_by_name(route, "lo")?.index;
    let addresses = route.dump(&rt::get_addresses()).step("listing addresses")?;
    let removals: Vec<_> = addresses
        .iter()
        .map(Address::parse)
        .filter(|address| address.link == lo && address.label == label && Some(address.ip) != keep)
        .map(|address| rt::del_host_address(lo, address.ip, &label))
        .collect();
    route.request(&removals).step("removing our loopback address")?;
    Ok(removals.len())
}
