//! What an instance finds out before it starts: addresses, ranges, names.

use crate::config::Config;
use anyhow::{Context, Result};
use apiserver::Ipv4Range;
use net::Ipv4Net;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;

/// Place of the cluster DNS service in the service range, as everywhere in the field.
const DNS_PLACE: u32 = 10;
/// Prefix length of a node's part of the pod range: room for 1,000 pods and more.
const NODE_PREFIX: u8 = 22;
const DNS_PORT: u16 = 53;

/// The facts.
pub struct Facts {
    /// Node name.
    pub node_name: String,
    /// Node address.
    pub node_ip: Ipv4Addr,
    /// All pods.
    pub cluster_cidr: Ipv4Net,
    /// This node's pods: the first part of the range.
    pub pod_cidr: Ipv4Net,
    /// Services.
    pub service_cidr: Ipv4Net,
    /// The same, as the API server wants it.
    pub service_range: Ipv4Range,
    /// The `kubernetes` service.
    pub api_service_ip: Ipv4Addr,
    /// The DNS service.
    pub dns_ip: Ipv4Addr,
    /// Where names outside the cluster are resolved.
    pub upstreams: Vec<SocketAddr>,
    /// Load-balancer addresses.
    pub lb_pool: Option<RangeInclusive<Ipv4Addr>>,
}

impl Facts {
    /// Finds them out.
    pub fn find(config: &Config) -> Result<Facts> {
        let range = |name: &str, text: &str| {
            text.parse::<Ipv4Net>().map_err(|e| anyhow::anyhow!("--{name} {text:?}: {e}"))
        };
        let cluster_cidr = range("pod-cidr", &config.pod_cidr)?;
        let service_cidr = range("service-cidr", &config.service_cidr)?;
        let node_name = match config.node_name.as_str() {
            "" => hostname()?,
            name => name.to_string(),
        };
        let place = |n: u32| Ipv4Addr::from(u32::from(service_cidr.base()) + n);
        Ok(Facts {
            node_name,
            node_ip: config.node_ip.map_or_else(default_address, Ok)?,
            cluster_cidr,
            pod_cidr: Ipv4Net::new(cluster_cidr.base(), cluster_cidr.prefix_len().max(NODE_PREFIX)),
            service_cidr,
            service_range: Ipv4Range::parse(&config.service_cidr)
                .context("the service range was read before")?,
            api_service_ip: place(1),
            dns_ip: place(DNS_PLACE),
            upstreams: upstreams(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
            lb_pool: pool("lb-pool", &config.lb_pool)?,
        })
    }

    /// Prefix length of each node's part.
    pub fn node_prefix(&self) -> u8 {
        self.pod_cidr.prefix_len()
    }
}

fn hostname() -> Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the host's name")?;
    Ok(name.trim().to_ascii_lowercase().replace('_', "-"))
}

/// The address packets to the outside would carry. Nothing is sent: a connected UDP socket only asks the routes.
fn default_address() -> Result<Ipv4Addr> {
    const DOCUMENTATION: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
    let ask = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(DOCUMENTATION)?;
        socket.local_addr()
    };
    match ask() {
        Ok(SocketAddr::V4(address)) => Ok(*address.ip()),
        _ => anyhow::bail!(
            "this host has no default route to take the node's address from: give one by --node-ip"
        ),
    }
}

fn upstreams(resolv_conf: &str) -> Vec<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|l| l.trim().strip_prefix("nameserver"));
    servers.filter_map(|s| Some(SocketAddr::new(s.trim().parse().ok()?, DNS_PORT))).collect()
}

/// A range of addresses, `first-last`; "" is none.
pub fn pool(name: &str, text: &str) -> Result<Option<RangeInclusive<Ipv4Addr>>> {
    if text.is_empty() {
        return Ok(None);
    }
    let parse = || {
        let (first, last) = text.split_once('-')?;
        let (first, last): (Ipv4Addr, Ipv4Addr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last).then_some(first..=last)
    };
    parse().map(Some).with_context(|| format!("--{name} {text:?} is not of the form first-last"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_follow_settings() {
        let args: Vec<String> =
            ["--node-ip=10.0.0.5", "--node-name=n", "--lb-pool=10.0.1.1-10.0.1.9"].map(String::from).into();
        let facts = Facts::find(&Config::from_args(&args).unwrap().0).unwrap();
        assert_eq!(facts.dns_ip, Ipv4Addr::new(10, 96, 0, 10));
        assert_eq!(facts.pod_cidr.to_string(), "10.244.0.0/22");
        assert_eq!(facts.lb_pool.unwrap().count(), 9);
        assert!(pool("lb-pool", "10.0.0.9-10.0.0.1").is_err());
        assert_eq!(upstreams("search x\nnameserver 10.0.0.2\n").len(), 1);
    }
}
