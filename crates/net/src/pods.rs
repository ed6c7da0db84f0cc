//! Pods' links: attach, detach, and recovery from what is on the node.
//!
//! Invariants: a link's alias says whose it is and which address it has, and is set before the link is up, so
//! a crash at any point leaves nothing that recovery cannot read; a link without our alias is never touched;
//! attaching touches no nftables state.
//! Deliberately not here: making or pinning the network namespace (the runtime's).

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use sys::netlink::{NetlinkError, Protocol, Socket};

use crate::addr::{GATEWAY, HOST_MAC, Ipv4Net, pod_mac};
use crate::node::{NetConfig, NetError, Network, Step, link_by_name};
use crate::pool::Pool;
use crate::rt::{self, End, Link, RouteSpec};

const POD_LINK: &str = "eth0";
const HASH_DIGITS: usize = 7;
/// Two pods of one node share a hash of 35 bits about never; more attempts than this mean foreign links.
const NAME_ATTEMPTS: u32 = 4;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;

/// A pod's place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNet {
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// The name of the host's end of the link.
    pub host_link: String,
}

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Live pods whose link is in place.
    pub adopted: Vec<String>,
    /// Owners of links that no live pod claims; the links are gone.
    pub removed: Vec<String>,
    /// Live pods without a link (or with another address): their network must be made anew.
    pub missing: Vec<String>,
}

/// The pods that this node knows, and the addresses they hold.
#[derive(Debug)]
pub(crate) struct Pods {
    pool: Pool,
    by_uid: BTreeMap<String, PodNet>,
}

impl Pods {
    /// Reads pods out of a node's links.
    pub(crate) fn adopt(config: &NetConfig, links: impl Iterator<Item = Link>) -> Self {
        let mut pods = Self { pool: Pool::new(config.pod_cidr), by_uid: BTreeMap::new() };
        for link in links {
            if let Some((uid, ip)) = owner(&config.prefix, &link) {
                // Out of range after a change of configuration: kept, but not the pool's business.
                pods.pool.reserve(ip);
                pods.by_uid.insert(uid, PodNet { ip, host_link: link.name });
            }
        }
        pods
    }

    /// The pod's place, with a new address if it is new.
    fn place(&mut self, config: &NetConfig, uid: &str) -> Result<PodNet, NetError> {
        if let Some(pod) = self.by_uid.get(uid) {
            return Ok(pod.clone());
        }
        let free = |name: &String| self.by_uid.values().all(|pod| pod.host_link != *name);
        let mut names = (0..NAME_ATTEMPTS).map(|attempt| link_name(&config.prefix, uid, attempt));
        let host_link = names.find(free).ok_or_else(|| NetError::LinkName(uid.to_owned()))?;
        let ip = self.pool.allocate().ok_or(NetError::PoolEmpty(config.pod_cidr))?;
        let pod = PodNet { ip, host_link };
        self.by_uid.insert(uid.to_owned(), pod.clone());
        Ok(pod)
    }

    fn forget(&mut self, uid: &str) {
        if let Some(pod) = self.by_uid.remove(uid) {
            self.pool.release(pod.ip);
        }
    }
}

/// A small stable hash; names need spreading, not secrecy.
pub(crate) fn fnv1a(text: &str, salt: u32) -> u64 {
    let bytes = text.bytes().chain(salt.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn link_name(prefix: &str, uid: &str, attempt: u32) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    // FNV's low bits are its weak ones: fold the high half in.
    let hash = fnv1a(uid, attempt);
    let mut hash = hash ^ (hash >> 32);
    let mut name = prefix.to_owned();
    for _ in 0..HASH_DIGITS {
        name.push(char::from(DIGITS[(hash % 32) as usize]));
        hash /= 32;
    }
    name
}

fn alias(prefix: &str, uid: &str, ip: Ipv4Addr) -> String {
    format!("gantry pod {prefix} {ip} {uid}")
}

/// The pod and address that a link of ours belongs to; `None` if it is not ours.
pub(crate) fn owner(prefix: &str, link: &Link) -> Option<(String, Ipv4Addr)> {
    if link.kind != "veth" || !link.name.starts_with(prefix) {
        return None;
    }
    let rest = link.alias.strip_prefix("gantry pod ")?.strip_prefix(prefix)?.strip_prefix(' ')?;
    let (ip, uid) = rest.split_once(' ')?;
    Some((uid.to_owned(), ip.parse().ok()?))
}

impl Network {
    /// Gives a pod its link, address and routes in the network namespace at `netns`. Attaching again is
    /// harmless: a link that is in place stays, one in another namespace is replaced; the address is kept.
    ///
    /// # Errors
    /// The pool is empty, the namespace cannot be entered, or the kernel refuses; nothing is left behind then.
    pub fn attach(&self, uid: &str, netns: &Path) -> Result<PodNet, NetError> {
        let pod = self.pods.lock().place(&self.config, uid)?;
        let outcome = self.connect(uid, &pod, netns);
        if outcome.is_err() {
            // Removes the half-made link first: the address must not be given out while it exists.
            match self.detach(uid) {
                Ok(()) => {}
                Err(error) => tracing::warn!(uid, %error, "a half-made pod link is left behind"),
            }
        }
        outcome.map(|()| pod)
    }

    fn connect(&self, uid: &str, pod: &PodNet, netns: &Path) -> Result<(), NetError> {
        let open = File::open(netns);
        let ns = open.map_err(|source| NetError::Namespace { path: netns.display().to_string(), source })?;
        let mut inside = Socket::open_in(ns.as_fd(), Protocol::Route).step("entering the pod's namespace")?;
        let mac = pod_mac(pod.ip);
        let mut host = self.route.lock();
        let near = End { name: &pod.host_link, mac: HOST_MAC };
        let far = End { name: POD_LINK, mac };
        let create = rt::new_veth(near, far, ns.as_raw_fd().cast_unsigned(), self.config.mtu);
        match host.request(std::slice::from_ref(&create)) {
            Err(error) if error.errno() == Some(EEXIST) => {
                let old = link_by_name(&mut host, &pod.host_link)?;
                let is_ours = owner(&self.config.prefix, &old).is_some_and(|(owner, _)| owner == uid);
                let half_made = old.kind == "veth" && old.alias.is_empty();
                if !is_ours && !half_made {
                    return Err(NetError::LinkName(uid.to_owned()));
                }
                let in_place = link_by_name(&mut inside, POD_LINK).is_ok_and(|link| link.mac == mac);
                if !(is_ours && in_place) {
                    host.request(&[rt::del_link(old.index)]).step("removing the pod's old link")?;
                    host.request(&[create]).step("creating the pod's link")?;
                }
            }
            other => other.step("creating the pod's link")?,
        }
        let near = link_by_name(&mut host, &pod.host_link)?.index;
        raise_host_end(&mut host, near, pod.ip, &alias(&self.config.prefix, uid, pod.ip))?;
        drop(host);
        raise_pod_end(&mut inside, pod.ip)
    }

    /// Takes a pod's link away and frees its address. Takes ~30 ms; no error if the link is gone already.
    ///
    /// # Errors
    /// The kernel refuses; the address stays taken then.
    pub fn detach(&self, uid: &str) -> Result<(), NetError> {
        let Some(pod) = self.pods.lock().by_uid.get(uid).cloned() else { return Ok(()) };
        let mut reaper = self.reaper.lock();
        match reaper.query(&rt::get_link(&pod.host_link)) {
            Ok(replies) => {
                let link = replies.first().map(Link::parse).unwrap_or_default();
                // Half-made links have no alias yet; another pod's or program's link is left alone.
                let is_ours = owner(&self.config.prefix, &link).is_some_and(|(owner, _)| owner == uid)
                    || (link.kind == "veth" && link.alias.is_empty());
                if is_ours {
                    gone(reaper.request(&[rt::del_link(link.index)])).step("removing the pod's link")?;
                }
            }
            other => gone(other.map(|_| ())).step("looking the pod's link up")?,
        }
        self.pods.lock().forget(uid);
        Ok(())
    }

    /// Marks an address as taken by a pod that this node will bring back itself.
    ///
    /// # Errors
    /// [`NetError::AddressTaken`].
    pub fn reserve(&self, ip: Ipv4Addr) -> Result<(), NetError> {
        if self.pods.lock().pool.reserve(ip) { Ok(()) } else { Err(NetError::AddressTaken(ip)) }
    }

    /// The pod's place, if it is attached.
    pub fn pod(&self, uid: &str) -> Option<PodNet> {
        self.pods.lock().by_uid.get(uid).cloned()
    }

    /// Compares the links on the node with the pods that live: keeps (and repairs the host's end of) what
    /// belongs to them, removes the rest.
    ///
    /// # Errors
    /// The kernel refuses; calling again is safe.
    pub fn recover(&self, live: &[(String, Ipv4Addr)]) -> Result<Recovered, NetError> {
        let live: BTreeMap<&str, Ipv4Addr> = live.iter().map(|(uid, ip)| (uid.as_str(), *ip)).collect();
        let links: Vec<Link> = {
            let mut route = self.route.lock();
            route.dump(&rt::get_links()).step("listing links")?.iter().map(Link::parse).collect()
        };
        let mut found = Recovered::default();
        *self.pods.lock() = Pods::adopt(&self.config, links.iter().cloned());
        for link in links {
            let Some((uid, ip)) = owner(&self.config.prefix, &link) else { continue };
            if live.get(uid.as_str()) == Some(&ip) {
                let alias = alias(&self.config.prefix, &uid, ip);
                raise_host_end(&mut self.route.lock(), link.index, ip, &alias)?;
                found.adopted.push(uid);
            } else {
                self.detach(&uid)?;
                found.removed.push(uid);
            }
        }
        let adopted = |uid: &&str| found.adopted.iter().any(|one| one == *uid);
        found.missing = live.keys().filter(|uid| !adopted(uid)).map(|uid| (*uid).to_owned()).collect();
        Ok(found)
    }
}

fn gone(outcome: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match outcome {
        Err(error) if error.errno() == Some(ENODEV) => Ok(()),
        other => other,
    }
}

fn raise_host_end(host: &mut Socket, link: u32, ip: Ipv4Addr, alias: &str) -> Result<(), NetError> {
    // Fails where IPv6 is off, where there is nothing to prevent.
    let _ = host.request(&[rt::no_ipv6_address(link)]);
    host.request(&[
        rt::set_host_end(link, alias),
        rt::set_up(link),
        rt::add_neighbour(link, ip, pod_mac(ip)),
        RouteSpec::link(Ipv4Net::host(ip), link).add(),
    ])
    .step("raising the host's end of the pod's link")
}

fn raise_pod_end(inside: &mut Socket, ip: Ipv4Addr) -> Result<(), NetError> {
    let lo = link_by_name(inside, "lo")?.index;
    let link = link_by_name(inside, POD_LINK)?.index;
    let _ = inside.request(&[rt::no_ipv6_address(link)]);
    let everywhere = Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 0);
    let default = RouteSpec { gateway: Some(GATEWAY), ..RouteSpec::link(everywhere, link) };
    inside
        .request(&[
            rt::set_up(lo),
            rt::set_up(link),
            rt::add_pod_address(link, ip),
            rt::add_neighbour(link, GATEWAY, HOST_MAC),
            RouteSpec::link(Ipv4Net::host(GATEWAY), link).add(),
            default.add(),
        ])
        .step("raising the pod's end of its link")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_spread() {
        let names: std::collections::BTreeSet<String> =
            (0..10_000).map(|n| link_name("gantry12", &format!("uid-{n}"), 0)).collect();
        assert_eq!(names.len(), 10_000);
        assert!(names.iter().all(|name| name.len() == 15 && name.starts_with("gantry12")));
        assert_ne!(link_name("gt", "a", 0), link_name("gt", "a", 1));
    }

    #[test]
    fn only_our_links_have_an_owner() {
        let ip = Ipv4Addr::new(10, 244, 0, 5);
        let link = |name: &str, alias: &str, kind: &str| Link {
            name: name.into(),
            alias: alias.into(),
            kind: kind.into(),
            ..Link::default()
        };
        let ours = alias("gt", "uid 1", ip);
        assert_eq!(owner("gt", &link("gtabc", &ours, "veth")), Some(("uid 1".into(), ip)));
        assert_eq!(owner("gt", &link("gtabc", &ours, "dummy")), None);
        assert_eq!(owner("gt", &link("gtabc", "", "veth")), None);
        assert_eq!(owner("gt", &link("gtabc", &alias("gtx", "uid", ip), "veth")), None);
        assert_eq!(owner("g", &link("gtabc", &ours, "veth")), None);
    }
}
