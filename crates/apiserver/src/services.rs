//! Cluster IPs and node ports: who has which.
//!
//! Two sorted maps from number to owner, filled from the stored services at start. Numbers are taken before the
//! service is stored and given back when that fails ([`Reservation`]), and freed when the service goes. An address is
//! held by an IPAddress too, which is made before its service is stored: servers over one store agree by it.

use crate::storage::Swap;
use crate::{Api, Ipv4Range};
use client::ObjectKey;
use k8s_schema::gvr;
use machinery::field_errors::FieldErrors;
use machinery::kinds::get::{list, text, texts};
use machinery::status::ApiError;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Numbers without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    first: u32,
    last: u32,
    /// Numbers below this one are given only on request or when all others are taken.
    dynamic_from: u32,
}

impl Span {
    /// `first..=last`, whose low part (at most `static_max` numbers) is spared.
    pub fn new(first: u32, last: u32, static_divisor: u32, static_max: u32) -> Self {
        let size = last.saturating_sub(first).saturating_add(1);
        // Upstream's rule for both ranges: a sixteenth (or a 32nd) of it, at least 16, at most `static_max`.
        let spared = (size / static_divisor).clamp(16, static_max);
        let dynamic_from = if spared < size { first + spared } else { first };
        Span { first, last, dynamic_from }
    }

    /// The usable addresses of a range.
    pub fn of(range: crate::Ipv4Range) -> Self {
        let (first, last) = range.usable();
        Span::new(first, last, 16, 256)
    }
}

/// Ranges of numbers and their owners.
pub struct Pool {
    spans: Vec<Span>,
    used: BTreeMap<u32, ObjectKey>,
}

/// Why a number cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Outside the range.
    OutOfRange,
    /// Somebody has it.
    Taken,
    /// All are taken.
    Full,
}

impl Pool {
    /// An empty pool of these numbers.
    pub fn new(span: Span) -> Self {
        Pool { spans: vec![span], used: BTreeMap::new() }
    }

    /// From now on, numbers of these are given; what is taken stays so.
    pub fn set_spans(&mut self, spans: Vec<Span>) {
        self.spans = spans;
    }

    /// Takes one number for an owner; `false` when the owner holds it already (so nothing is to be given back).
    pub fn take(&mut self, number: u32, owner: &ObjectKey) -> Result<bool, Refused> {
        if !self.spans.iter().any(|s| (s.first..=s.last).contains(&number)) {
            return Err(Refused::OutOfRange);
        }
        match self.used.get(&number) {
            Some(other) if other != owner => Err(Refused::Taken),
            Some(_) => Ok(false),
            None => {
                self.used.insert(number, owner.clone());
                Ok(true)
            }
        }
    }

    /// Takes a number that is free here and elsewhere, starting the search at a random one; a range's spared part comes
    /// last.
    pub fn take_any(
        &mut self,
        owner: &ObjectKey,
        random: u128,
        free: impl Fn(u32) -> bool,
    ) -> Result<u32, Refused> {
        let parts = |s: &Span| [(s.dynamic_from, s.last), (s.first, s.dynamic_from.saturating_sub(1))];
        for (from, to) in self.spans.iter().flat_map(parts) {
            if from > to {
                continue;
            }
            let size = u64::from(to - from) + 1;
            let start = (random % u128::from(size)) as u64;
            let numbers = (0..size).map(|i| from + ((start + i) % size) as u32);
            for number in numbers {
                if !self.used.contains_key(&number) && free(number) {
                    self.used.insert(number, owner.clone());
                    return Ok(number);
                }
            }
        }
        Err(Refused::Full)
    }

    /// Gives a number back, if the owner has it.
    pub fn give_back(&mut self, number: u32, owner: &ObjectKey) {
        if self.used.get(&number) == Some(owner) {
            self.used.remove(&number);
        }
    }

    /// Gives everything of an owner back, and tells what that was.
    pub fn release(&mut self, owner: &ObjectKey) -> Vec<u32> {
        let own: Vec<u32> = self.used.iter().filter(|(_, o)| *o == owner).map(|(n, _)| *n).collect();
        own.iter().for_each(|n| drop(self.used.remove(n)));
        own
    }
}

/// Both pools of a realm.
pub struct ServicePools {
    /// Cluster IPs, as numbers.
    pub ips: Mutex<Pool>,
    /// Node ports.
    pub ports: Mutex<Pool>,
    /// The port range as messages name it.
    pub port_range: String,
}

impl ServicePools {
    /// Empty pools for the configured ranges.
    pub fn new(cidr: crate::Ipv4Range, node_ports: &RangeInclusive<u16>) -> Self {
        let (low, high) = (u32::from(*node_ports.start()), u32::from(*node_ports.end()));
        ServicePools {
            ips: Mutex::new(Pool::new(Span::of(cidr))),
            ports: Mutex::new(Pool::new(Span::new(low, high, 32, 128))),
            port_range: format!("{low}-{high}"),
        }
    }

    /// Marks what a stored service holds (at start); what it should not hold is logged and left.
    pub fn adopt(&self, owner: &ObjectKey, service: &serde_json::Value) {
        if let Some(ip) = service["spec"]["clusterIP"].as_str().and_then(|t| t.parse::<Ipv4Addr>().ok())
            && let Err(refused) = self.ips.lock().take(ip.into(), owner)
        {
            tracing::warn!(service = %owner, %ip, ?refused, "the service's cluster IP cannot be reserved");
        }
        for port in service["spec"]["ports"].as_array().into_iter().flatten() {
            if let Some(number) = port["nodePort"].as_u64().filter(|n| *n > 0)
                && let Err(refused) = self.ports.lock().take(number as u32, owner)
            {
                tracing::warn!(service = %owner, number, ?refused, "the service's node port cannot be reserved");
            }
        }
    }

    /// Frees what a removed service held; tells the addresses.
    pub fn release(&self, owner: &ObjectKey) -> Vec<Ipv4Addr> {
        self.ports.lock().release(owner);
        self.ips.lock().release(owner).into_iter().map(Ipv4Addr::from).collect()
    }
}

impl Api {
    /// The ranges that addresses are given from: those of ServiceCIDRs that are ready and stay.
    pub(crate) fn service_spans(&self) -> Vec<Span> {
        let all = self.cached_all(&gvr::SERVICE_CIDRS);
        let ready = all.values().filter(|o| o.meta().deletion_timestamp.is_none());
        let ready = ready.filter_map(|o| o.value().ok()).filter(|range| {
            let mut conditions = list(range, "/status/conditions").iter();
            conditions.find(|c| text(c, "/type") == "Ready").is_none_or(|c| text(c, "/status") == "True")
        });
        let ranges: Vec<String> =
            ready.flat_map(|r| texts(&r, "/spec/cidrs").map(String::from).collect::<Vec<_>>()).collect();
        // Before there is any, the server's own.
        let own = all.is_empty().then(|| Span::of(self.config.service_cidr));
        ranges.iter().filter_map(|text| Ipv4Range::parse(text)).map(Span::of).chain(own).collect()
    }

    /// Does somebody hold this address, as far as IPAddresses say?
    pub(crate) fn is_address_held(&self, ip: Ipv4Addr) -> bool {
        self.cached(&gvr::IP_ADDRESSES, "", &ip.to_string()).is_some()
    }

    /// Makes the IPAddress of a service's address: whoever makes it first has the address, on whichever server. One
    /// that a service left behind is taken over.
    pub(crate) async fn hold_address(&self, owner: &ObjectKey, ip: Ipv4Addr) -> Result<(), ApiError> {
        let Some(resource) = self.registry.find(&gvr::IP_ADDRESSES) else { return Ok(()) };
        let key = ObjectKey::cluster(ip.to_string());
        let value = self.address_of(owner, ip);
        let Swap::Lost(mut present) = self.storage.create(&resource, &key, value.clone()).await? else {
            return Ok(());
        };
        while let Some(current) = present {
            let held = current.value().map_err(ApiError::internal)?;
            let parent = |part: &str| text(&held, &format!("/spec/parentRef/{part}")).to_string();
            let place = ObjectKey::new(parent("namespace"), parent("name"));
            let of_service = parent("group").is_empty() && parent("resource") == "services";
            let service = self.cached(&gvr::SERVICES, &place.namespace, &place.name);
            let alive = service.and_then(|s| s.value().ok());
            let alive = alive.is_some_and(|s| text(&s, "/spec/clusterIP") == ip.to_string());
            if of_service && place == *owner {
                return Ok(());
            }
            if !of_service || alive {
                let mut errors = FieldErrors::new();
                let why = format!("failed to allocate IP {ip}: provided IP is already allocated");
                errors.invalid("spec.clusterIPs", json!([ip.to_string()]), &why);
                return errors.into_result("", "Service", &owner.name);
            }
            match self.storage.replace(&resource, &current, value.clone()).await? {
                Swap::Done(_) => return Ok(()),
                Swap::Lost(now) => present = now,
            }
        }
        Err(ApiError::new(500, "ServerTimeout", format!("the address {ip} is being given back; try again")))
    }

    fn address_of(&self, owner: &ObjectKey, ip: Ipv4Addr) -> Value {
        let uid = uuid::Builder::from_random_bytes((self.config.random)().to_be_bytes()).into_uuid();
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {"name": ip.to_string(), "uid": uid.to_string(), "creationTimestamp": self.now_text(),
                "generation": 1, "labels": {"ipaddress.kubernetes.io/ip-family": "IPv4",
                    "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
            "spec": {"parentRef": {"group": "", "resource": "services", "namespace": &*owner.namespace,
                "name": &*owner.name}}})
    }

    /// Removes the IPAddress of an address that a service let go. What fails here, a controller makes up for.
    pub(crate) async fn let_go(&self, owner: &ObjectKey, ip: Ipv4Addr) {
        let Some(resource) = self.registry.find(&gvr::IP_ADDRESSES) else { return };
        let Some(held) = self.cached(&gvr::IP_ADDRESSES, "", &ip.to_string()) else { return };
        let value = held.value().unwrap_or_default();
        let parent = &value["spec"]["parentRef"];
        if (&parent["namespace"], &parent["name"]) == (&json!(*owner.namespace), &json!(*owner.name)) {
            let _ = self.storage.remove(&resource, &held).await;
        }
    }
}

/// What one write took and would free. Dropped without [`Reservation::commit`], it gives back what it took.
pub struct Reservation {
    pools: Arc<ServicePools>,
    owner: Option<ObjectKey>,
    taken_ips: Vec<u32>,
    taken_ports: Vec<u32>,
    /// Freed when the write lands.
    pub freed_ips: Vec<u32>,
    /// Freed when the write lands.
    pub freed_ports: Vec<u32>,
}

impl Reservation {
    /// Nothing reserved.
    pub fn none(pools: &Arc<ServicePools>) -> Self {
        Reservation {
            pools: pools.clone(),
            owner: None,
            taken_ips: Vec::new(),
            taken_ports: Vec::new(),
            freed_ips: Vec::new(),
            freed_ports: Vec::new(),
        }
    }

    /// A reservation for this service.
    pub fn of(pools: &Arc<ServicePools>, owner: &ObjectKey) -> Self {
        let mut reservation = Self::none(pools);
        reservation.owner = Some(owner.clone());
        reservation
    }

    /// Notes a taken cluster IP.
    pub fn took_ip(&mut self, number: u32) {
        self.taken_ips.push(number);
    }

    /// The addresses that this write takes.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.taken_ips.iter().map(|ip| Ipv4Addr::from(*ip))
    }

    /// Notes a taken node port.
    pub fn took_port(&mut self, number: u32) {
        self.taken_ports.push(number);
    }

    /// The write landed: keeps what was taken, frees what it let go.
    pub fn commit(mut self) {
        self.taken_ips = std::mem::take(&mut self.freed_ips);
        self.taken_ports = std::mem::take(&mut self.freed_ports);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let Some(owner) = &self.owner else { return };
        for ip in &self.taken_ips {
            self.pools.ips.lock().give_back(*ip, owner);
        }
        for port in &self.taken_ports {
            self.pools.ports.lock().give_back(*port, owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    #[test]
    fn numbers_are_unique_until_none_is_left() {
        let mut pool = Pool::new(Span::new(100, 139, 16, 256));
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..40 {
            let number = pool.take_any(&owner("a"), n * 7919, |_| true).unwrap();
            assert!((100..=139).contains(&number) && seen.insert(number));
            assert!(n >= 24 || number >= 116, "the low part comes last");
        }
        assert_eq!(pool.take_any(&owner("a"), 1, |_| true), Err(Refused::Full));
        assert_eq!(pool.take(100, &owner("b")), Err(Refused::Taken));
        assert_eq!(pool.take(99, &owner("b")), Err(Refused::OutOfRange));
        pool.release(&owner("a"));
        assert_eq!(pool.take(100, &owner("b")), Ok(true));
        pool.set_spans(vec![Span::new(100, 101, 16, 256), Span::new(300, 301, 16, 256)]);
        assert_eq!(pool.take_any(&owner("a"), 0, |n| n != 101), Ok(300), "another range has one left");
        assert_eq!(pool.take(200, &owner("a")), Err(Refused::OutOfRange));
    }

    #[test]
    fn a_dropped_reservation_gives_back() {
        let range = crate::Ipv4Range::parse("10.96.0.0/16").unwrap();
        let pools = Arc::new(ServicePools::new(range, &(30000..=32767)));
        let mut reservation = Reservation::of(&pools, &owner("a"));
        pools.ports.lock().take(30080, &owner("a")).unwrap();
        reservation.took_port(30080);
        drop(reservation);
        assert_eq!(pools.ports.lock().take(30080, &owner("b")), Ok(true));
        let mut reservation = Reservation::of(&pools, &owner("b"));
        reservation.freed_ports.push(30080);
        reservation.commit();
        assert_eq!(pools.ports.lock().take(30080, &owner("c")), Ok(true));
    }
}
