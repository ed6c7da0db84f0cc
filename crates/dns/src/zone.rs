//! The cluster's names as one immutable value, made from services. Pure.
//!
//! Shape: a table from name to records, with empty entries for names that only have names below them; the
//! names of pods are computed (`a-b-c-d.<namespace>.pod.<domain>`, as CoreDNS does by default).
//! Follows the Kubernetes DNS specification, version 1.1.0.
//! Invariants: every name below the domain, or below an extra zone's, is ours; a reverse name is ours only if it is in the table.
//! Deliberately not here: messages, forwarding.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::message::{Data, TYPE_ANY, TYPE_CNAME};
use crate::name::Name;

const SPEC_VERSION: &str = "1.1.0";

/// A service as DNS sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecord {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What its name resolves to.
    pub kind: ServiceKind,
    /// Its ports; unnamed ones have an empty name.
    pub ports: Vec<PortRecord>,
}

/// What a service's name resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// The cluster address.
    ClusterIp(Ipv4Addr),
    /// Each endpoint that is ready (or all, if the service publishes unready ones).
    Headless(Vec<EndpointRecord>),
    /// Another name.
    External(String),
}

/// An endpoint of a headless service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRecord {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its host name, if it has one of its own (a stateful set's pod).
    pub hostname: Option<String>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRecord {
    /// Its name; empty if it has none.
    pub name: String,
    /// `tcp`, `udp` or `sctp`, in any case.
    pub protocol: String,
    /// The number (of the endpoint, for headless services).
    pub port: u16,
}

/// A zone beside the cluster's own: every name below its domain is ours too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraZone {
    /// `prod.local`.
    pub domain: String,
    /// Full names and what is there; names outside the domain are left out.
    pub records: Vec<(String, ExtraRecord)>,
}

/// A record of an [`ExtraZone`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtraRecord {
    /// An address.
    A(Ipv4Addr),
    /// Where a service is: port and host name.
    Srv(u16, String),
    /// Another name.
    Cname(String),
}

/// All names of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    domain: Name,
    /// Domains of the zones beside.
    others: Vec<Name>,
    pod_domain: Name,
    names: BTreeMap<Name, Vec<Data>>,
}

/// What a zone says about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Records, at least one.
    Found(Vec<Data>),
    /// The name is another's alias.
    Alias(Name),
    /// The name exists, such records do not.
    NoData,
    /// The name does not exist.
    NoName,
    /// The name is not this zone's.
    NotOurs,
}

impl Zone {
    /// Makes the zone `domain` (such as `cluster.local`) whose server is at `dns_ip`. Services whose names are
    /// no DNS labels are left out.
    ///
    /// # Panics
    /// If `domain` is no domain name; it is configuration, checked at start.
    pub fn new(domain: &str, dns_ip: Ipv4Addr, services: &[ServiceRecord]) -> Self {
        let domain = Name::parse(domain).expect("the cluster domain is a domain name");
        let below = |label: &str| domain.child(label).expect("the cluster domain leaves room for names");
        let mut zone = Self {
            pod_domain: below("pod"),
            names: BTreeMap::new(),
            others: Vec::new(),
            domain: domain.clone(),
        };
        let (server, contact) = (below("dns").child("ns"), below("hostmaster"));
        let server = server.expect("the cluster domain leaves room for names");
        zone.add(domain.clone(), Data::Soa { server: server.clone(), contact });
        zone.add(domain.clone(), Data::Ns(server.clone()));
        zone.add(server, Data::A(dns_ip));
        zone.add(below("dns-version"), Data::Txt(SPEC_VERSION));
        zone.exists(below("svc"));
        zone.exists(below("pod"));
        let svc = below("svc");
        for service in services {
            // A name that does not fit DNS cannot be asked for either.
            let _ = zone.add_service(&svc, service);
        }
        zone
    }

    /// The same with other zones; those whose domain is no name, or is the cluster's, are left out.
    pub fn with(mut self, extra: &[ExtraZone]) -> Self {
        for zone in extra {
            let Some(domain) = Name::parse(&zone.domain).filter(|d| *d != self.domain) else { continue };
            if !self.others.contains(&domain) {
                self.others.push(domain.clone());
                // Authority and server are the cluster's.
                let own: Vec<Data> =
                    self.names.get(&self.domain).into_iter().flatten().take(2).cloned().collect();
                own.into_iter().for_each(|data| self.add(domain.clone(), data));
            }
            for (name, record) in &zone.records {
                let data = match record {
                    ExtraRecord::A(ip) => Some(Data::A(*ip)),
                    ExtraRecord::Srv(port, target) => {
                        Name::parse(target).map(|target| Data::Srv { port: *port, target })
                    }
                    ExtraRecord::Cname(target) => Name::parse(target).map(Data::Cname),
                };
                let name = Name::parse(name).filter(|n| n.is_within(&domain));
                if let (Some(name), Some(data)) = (name, data) {
                    self.add(name, data);
                }
            }
        }
        self
    }

    /// The domain that a name is below of, the nearest one.
    fn nearest(&self, name: &Name) -> Option<&Name> {
        let all = std::iter::once(&self.domain).chain(&self.others);
        all.filter(|domain| name.is_within(domain)).max_by_key(|domain| domain.wire().len())
    }

    /// The zone's own name.
    pub fn domain(&self) -> &Name {
        &self.domain
    }

    fn exists(&mut self, name: Name) {
        let mut next = Some(name);
        while let Some(name) = next.filter(|name| self.nearest(name).is_some()) {
            next = name.parent();
            if self.names.contains_key(&name) {
                return;
            }
            self.names.insert(name, Vec::new());
        }
    }

    fn add(&mut self, name: Name, data: Data) {
        self.exists(name.clone());
        let records = self.names.entry(name).or_default();
        if !records.contains(&data) {
            records.push(data);
        }
    }

    fn add_service(&mut self, svc: &Name, service: &ServiceRecord) -> Option<()> {
        let name = svc.child(&service.namespace)?.child(&service.name)?;
        // (target, address) of each thing that serves.
        let servers = match &service.kind {
            ServiceKind::External(target) => {
                self.add(name, Data::Cname(Name::parse(target)?));
                return Some(());
            }
            ServiceKind::ClusterIp(ip) => vec![(name.clone(), *ip)],
            ServiceKind::Headless(endpoints) => {
                let server = |endpoint: &EndpointRecord| {
                    let dashed = || endpoint.ip.to_string().replace('.', "-");
                    let label =
                        endpoint.hostname.clone().filter(|name| !name.is_empty()).unwrap_or_else(dashed);
                    Some((name.child(&label)?, endpoint.ip))
                };
                endpoints.iter().filter_map(server).collect()
            }
        };
        // A headless service without endpoints still exists.
        self.exists(name.clone());
        for (target, ip) in &servers {
            self.add(name.clone(), Data::A(*ip));
            self.add(target.clone(), Data::A(*ip));
            self.add(reverse(*ip), Data::Ptr(target.clone()));
        }
        for port in &service.ports {
            let named = (!port.name.is_empty())
                .then(|| name.child(&format!("_{}", port.protocol))?.child(&format!("_{}", port.name)))
                .flatten();
            for (target, _) in &servers {
                let data = Data::Srv { port: port.port, target: target.clone() };
                self.add(name.clone(), data.clone());
                if let Some(named) = &named {
                    self.add(named.clone(), data);
                }
            }
        }
        Some(())
    }

    /// The records of one type (or of all) at a name.
    pub(crate) fn look_up(&self, name: &Name, kind: u16) -> Lookup {
        let Some(records) = self.names.get(name) else {
            return match self.pod(name) {
                Some(ip) => select(&[Data::A(ip)], kind),
                None if self.is_pod_parent(name) => Lookup::NoData,
                None if self.nearest(name).is_some() => Lookup::NoName,
                None => Lookup::NotOurs,
            };
        };
        select(records, kind)
    }

    /// The address in `a-b-c-d.<namespace>.pod.<domain>`.
    fn pod(&self, name: &Name) -> Option<Ipv4Addr> {
        let parent = name.parent()?;
        if !self.is_pod_parent(&parent) {
            return None;
        }
        std::str::from_utf8(name.labels().next()?).ok()?.replace('-', ".").parse().ok()
    }

    /// Whether this is `<namespace>.pod.<domain>`.
    fn is_pod_parent(&self, name: &Name) -> bool {
        name.parent().as_ref() == Some(&self.pod_domain)
    }

    /// The start of authority of the zone that a name is in, which goes with every negative answer.
    pub(crate) fn authority(&self, name: &Name) -> (Name, Data) {
        let soa = self.names.get(&self.domain).and_then(|records| records.first().cloned());
        let domain = self.nearest(name).unwrap_or(&self.domain);
        (domain.clone(), soa.expect("the zone starts with it"))
    }
}

fn select(records: &[Data], kind: u16) -> Lookup {
    if let Some(Data::Cname(target)) = records.first().filter(|_| kind != TYPE_CNAME && kind != TYPE_ANY) {
        return Lookup::Alias(target.clone());
    }
    let found: Vec<Data> =
        records.iter().filter(|data| kind == TYPE_ANY || data.kind() == kind).cloned().collect();
    if found.is_empty() { Lookup::NoData } else { Lookup::Found(found) }
}

fn reverse(ip: Ipv4Addr) -> Name {
    let [a, b, c, d] = ip.octets();
    Name::parse(&format!("{d}.{c}.{b}.{a}.in-addr.arpa")).expect("numbers are labels")
}
