//! The node's side: opening, the setup that all pods share, and applying services.
//!
//! Invariants: setup is idempotent and leaves a running node's services in place; the old value of
//! `ip_forward` is kept in the table's comment and lives as long as the change it describes; an apply is one
//! transaction, and the first after a start replaces the whole table in one.
//! Deliberately not here: pods' links (module `pods`), other nodes (`tunnel`), removal (`teardown`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use parking_lot::Mutex;
use sys::netlink::{NetlinkError, Protocol, Socket};

use crate::addr::Ipv4Net;
use crate::conntrack;
use crate::nft::{self, Table};
use crate::pods::Pods;
use crate::rt::{self, Link, RouteSpec};
use crate::services::{self, HostPort, Ruleset, ServicePort, render};
use crate::{base, teardown, tunnel};

/// Longest prefix: with it and its hash, a link's name still fits the kernel's 15 characters.
pub(crate) const PREFIX_MAX: usize = 8;
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

/// What the network of one node looks like.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Starts every link's name and is the nftables table's: 1–8 lower-case letters or digits, a letter first.
    pub prefix: String,
    /// The node's own address.
    pub node_ip: Ipv4Addr,
    /// This node's pods.
    pub pod_cidr: Ipv4Net,
    /// All nodes' pods.
    pub cluster_cidr: Ipv4Net,
    /// Services.
    pub service_cidr: Ipv4Net,
    /// The node's own DNS server listens here; an address of the service range.
    pub dns_ip: Ipv4Addr,
    /// Bytes in the largest packet of a pod.
    pub mtu: u32,
}

/// What can go wrong, by step.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The configuration makes no sense.
    #[error("network configuration: {0}")]
    Config(String),
    /// The kernel refused a step.
    #[error("{step}: {source}")]
    Netlink {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: NetlinkError,
    },
    /// A file of the kernel could not be read or written.
    #[error("{path}: {source}")]
    Sysctl {
        /// The file.
        path: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A pod's network namespace could not be opened.
    #[error("network namespace {path}: {source}")]
    Namespace {
        /// Where it should be.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Every address of the pod range is in use.
    #[error("no free pod address in {0}")]
    PoolEmpty(Ipv4Net),
    /// The address belongs to another pod or lies outside the pod range.
    #[error("pod address {0} is taken or not in the pod range")]
    AddressTaken(Ipv4Addr),
    /// No free link name (only if something else uses our prefix).
    #[error("no free link name for pod {0}")]
    LinkName(String),
}

/// Attaches the step's name to a netlink failure.
pub(crate) trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, NetError>;
}

impl<T> Step<T> for Result<T, NetlinkError> {
    fn step(self, step: &'static str) -> Result<T, NetError> {
        self.map_err(|source| NetError::Netlink { step, source })
    }
}

/// What an apply did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Number of changes against what was applied before.
    pub changes: usize,
    /// Whether the whole table was replaced.
    pub replaced: bool,
    /// UDP flows that were cut from endpoints that are gone.
    pub forgotten_flows: usize,
}

/// The network of one node. All methods block; call them from a thread that may.
#[derive(Debug)]
pub struct Network {
    pub(crate) config: NetConfig,
    pub(crate) pods: Mutex<Pods>,
    pub(crate) route: Mutex<Socket>,
    /// Removals take ~30 ms each, so they have their own socket and do not delay the next pod.
    pub(crate) reaper: Mutex<Socket>,
    services: Mutex<Services>,
}

#[derive(Debug)]
struct Services {
    socket: Socket,
    applied: Option<Ruleset>,
    /// The table's comment once known, in case somebody removes the table.
    comment: Option<String>,
}

/// Whether `prefix` may name links and a table.
pub(crate) fn check_prefix(prefix: &str) -> Result<(), NetError> {
    let good = (1..=PREFIX_MAX).contains(&prefix.len())
        && prefix.starts_with(|c: char| c.is_ascii_lowercase())
        && prefix.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    // A prefix of "lo" would claim the loopback link.
    if good && !"lo".starts_with(prefix) {
        return Ok(());
    }
    Err(NetError::Config(format!("prefix {prefix:?} is not 1–{PREFIX_MAX} lower-case letters or digits")))
}

impl NetConfig {
    fn check(&self) -> Result<(), NetError> {
        check_prefix(&self.prefix)?;
        if self.service_cidr.overlaps(self.cluster_cidr) {
            let (services, pods) = (self.service_cidr, self.cluster_cidr);
            return Err(NetError::Config(format!("service range {services} overlaps pod range {pods}")));
        }
        Ok(())
    }

    /// The label of our address on the loopback link, by which teardown finds it.
    pub(crate) fn label(prefix: &str) -> String {
        format!("lo:{prefix}")
    }

    /// The metric of our routes: with the protocol number it tells two prefixes on one node apart.
    pub(crate) fn metric(prefix: &str) -> u32 {
        0x1000_0000 | (crate::pods::fnv1a(prefix, 0) as u32 & 0x0fff_ffff)
    }
}

impl Network {
    /// Opens the network in the caller's namespace and adopts the pods whose links are there already.
    ///
    /// # Errors
    /// A bad configuration, or no right to use netlink.
    pub fn open(config: NetConfig) -> Result<Self, NetError> {
        config.check()?;
        let open = |protocol| Socket::open(protocol).step("opening netlink");
        let mut route = open(Protocol::Route)?;
        let links = route.dump(&rt::get_links()).step("listing links")?;
        let pods = Pods::adopt(&config, links.iter().map(Link::parse));
        Ok(Self {
            pods: Mutex::new(pods),
            route: Mutex::new(route),
            reaper: Mutex::new(open(Protocol::Route)?),
            services: Mutex::new(Services {
                socket: open(Protocol::Netfilter)?,
                applied: None,
                comment: None,
            }),
            config,
        })
    }

    /// Prepares the node: forwarding, loopback, the service route, the DNS address, the base table. A table
    /// that is there already keeps serving until the first [`Network::apply`]; routes and addresses of an
    /// earlier configuration go, those to other nodes' pods stay.
    ///
    /// # Errors
    /// The first step that failed; calling again is safe.
    pub fn setup_node(&self) -> Result<(), NetError> {
        let comment = {
            let mut services = self.services.lock();
            let (comment, exists) = self.record(&mut services)?;
            if !exists {
                let messages = base::messages(&self.config, &comment);
                services.socket.transact(nft::SUBSYSTEM, &messages).step("creating the nftables table")?;
            }
            comment
        };
        tracing::debug!(comment, "node network record");
        if read_forwarding()? != "1" {
            write_forwarding("1")?;
        }
        let mut route = self.route.lock();
        let lo = link_by_name(&mut route, "lo")?.index;
        let prefix = &self.config.prefix;
        let metric = Some(NetConfig::metric(prefix));
        let service_route = RouteSpec {
            to: self.config.service_cidr,
            kind: rt::UNICAST,
            link: Some(lo),
            gateway: None,
            metric,
            source: None,
        };
        let no_such_pod = RouteSpec {
            to: self.config.pod_cidr,
            kind: rt::UNREACHABLE,
            link: None,
            gateway: None,
            metric,
            source: None,
        };
        let label = NetConfig::label(prefix);
        let mut keep = tunnel::ranges(&mut route, &self.config)?;
        keep.extend([service_route.to, no_such_pod.to]);
        teardown::routes(&mut route, prefix, &keep)?;
        teardown::addresses(&mut route, prefix, Some(self.config.dns_ip))?;
        route
            .request(&[
                rt::set_up(lo),
                rt::add_host_address(lo, self.config.dns_ip, &label),
                service_route.add(),
                no_such_pod.add(),
            ])
            .step("preparing the loopback link and routes")
    }

    /// Gives the node one more address on the loopback link, which pods reach through their gateway; it goes with the
    /// network's teardown.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn add_address(&self, ip: Ipv4Addr) -> Result<(), NetError> {
        let mut route = self.route.lock();
        let lo = link_by_name(&mut route, "lo")?.index;
        let label = NetConfig::label(&self.config.prefix);
        route.request(&[rt::add_host_address(lo, ip, &label)]).step("adding an address to the loopback link")
    }

    /// Makes this host have exactly these of the addresses of a range, for itself; others of ours stay.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn keep_addresses(
        &self,
        range: &RangeInclusive<Ipv4Addr>,
        wanted: &BTreeSet<Ipv4Addr>,
    ) -> Result<(), NetError> {
        let mut route = self.route.lock();
        let lo = link_by_name(&mut route, "lo")?.index;
        let label = NetConfig::label(&self.config.prefix);
        let held = route.dump(&rt::get_addresses()).step("listing addresses")?;
        let held: BTreeSet<Ipv4Addr> = held
            .iter()
            .map(rt::Address::parse)
            .filter(|a| a.link == lo && a.label == label && range.contains(&a.ip))
            .map(|a| a.ip)
            .collect();
        let removed = held.difference(wanted).map(|ip| rt::del_host_address(lo, *ip, &label));
        let added = wanted.difference(&held).map(|ip| rt::add_host_address(lo, *ip, &label));
        let changes: Vec<_> = removed.chain(added).collect();
        route.request(&changes).step("changing addresses of the loopback link")
    }

    /// Makes the kernel's service table be what `services` and `host_ports` say. The caller coalesces.
    ///
    /// # Errors
    /// The kernel refused even a full replacement; what was there before is still there.
    pub fn apply(&self, services: &[ServicePort], host_ports: &[HostPort]) -> Result<Applied, NetError> {
        let new = services::desired(services, host_ports, self.config.dns_ip);
        let mut held = self.services.lock();
        let changes = services::diff(held.applied.as_ref().unwrap_or(&Ruleset::default()), &new);
        let mut applied = Applied { changes: changes.len(), ..Applied::default() };
        let incremental = held.applied.is_some();
        if incremental && changes.is_empty() {
            return Ok(applied);
        }
        let table = Table(&self.config.prefix);
        let outcome = if incremental {
            held.socket.transact(nft::SUBSYSTEM, &render::changes(table, &changes))
        } else {
            Ok(())
        };
        if let Err(error) = &outcome {
            tracing::warn!(%error, "changing the service table failed; replacing it");
        }
        if !incremental || outcome.is_err() {
            held.applied = None;
            self.replace(&mut held, &new)?;
            applied.replaced = true;
        }
        let survivors = services::udp_survivors(&changes, &new);
        held.applied = Some(new);
        match conntrack::forget_stale(&mut held.socket, &survivors) {
            Ok(count) => applied.forgotten_flows = count,
            // The flows end by themselves within minutes; the table itself is right.
            Err(error) => tracing::warn!(%error, "stale UDP flows could not be cut"),
        }
        Ok(applied)
    }

    /// The comment of our table, or the one for a new table, and whether the table exists.
    fn record(&self, held: &mut Services) -> Result<(String, bool), NetError> {
        let prefix = &self.config.prefix;
        let (comment, exists) = match teardown::recorded(&mut held.socket, prefix)? {
            Some(comment) if teardown::is_ours(&comment) => (comment, true),
            Some(_) => {
                let problem = format!("there is an nftables table \"ip {prefix}\" that is not ours");
                return Err(NetError::Config(problem));
            }
            None => match held.comment.take() {
                Some(comment) => (comment, false),
                None => (teardown::comment(&read_forwarding()?), false),
            },
        };
        held.comment = Some(comment.clone());
        Ok((comment, exists))
    }

    fn replace(&self, held: &mut Services, new: &Ruleset) -> Result<(), NetError> {
        let table = Table(&self.config.prefix);
        let (comment, _) = self.record(held)?;
        // Created if missing, so that the deletion cannot fail.
        let mut messages = vec![table.add(&comment), table.del()];
        messages.extend(base::messages(&self.config, &comment));
        messages.extend(render::changes(table, &services::diff(&Ruleset::default(), new)));
        held.socket.transact(nft::SUBSYSTEM, &messages).step("replacing the nftables table")
    }
}

pub(crate) fn link_by_name(socket: &mut Socket, name: &str) -> Result<Link, NetError> {
    let replies = socket.query(&rt::get_link(name)).step("looking a link up")?;
    Ok(replies.first().map(Link::parse).unwrap_or_default())
}

pub(crate) fn read_forwarding() -> Result<String, NetError> {
    let text =
        fs::read_to_string(IP_FORWARD).map_err(|source| NetError::Sysctl { path: IP_FORWARD, source })?;
    Ok(text.trim().to_owned())
}

pub(crate) fn write_forwarding(value: &str) -> Result<(), NetError> {
    fs::write(IP_FORWARD, value).map_err(|source| NetError::Sysctl { path: IP_FORWARD, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_checked() {
        for good in ["gt", "gantry", "g1234567"] {
            check_prefix(good).unwrap();
        }
        for bad in ["", "lo", "l", "1a", "gt-", "Gt", "ninechars", "g/x", "g*"] {
            assert!(check_prefix(bad).is_err(), "{bad}");
        }
    }
}
