//! Cluster IPs and node ports: who has which.
//!
//! Two sorted maps from number to owner, filled from the stored services at start. Numbers are taken before the
//! service is stored and given back when that fails ([`Reservation`]), and freed when the service goes.

use client::ObjectKey;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A range of numbers and their owners.
pub struct Pool {
    first: u32,
    last: u32,
    /// Numbers below this one are given only on request or when all others are taken.
    dynamic_from: u32,
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
    /// An empty pool of `first..=last` whose low part (at most `static_max` numbers) is spared.
    pub fn new(first: u32, last: u32, static_divisor: u32, static_max: u32) -> Self {
        let size = last.saturating_sub(first) + 1;
        // Upstream's rule for both ranges: a sixteenth (or a 32nd) of it, at least 16, at most `static_max`.
        let spared = (size / static_divisor).clamp(16, static_max);
        let dynamic_from = if spared < size { first + spared } else { first };
        Pool { first, last, dynamic_from, used: BTreeMap::new() }
    }

    /// Takes one number for an owner; `false` when the owner holds it already (so nothing is to be given back).
    pub fn take(&mut self, number: u32, owner: &ObjectKey) -> Result<bool, Refused> {
        if !(self.first..=self.last).contains(&number) {
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

    /// Takes a free number, starting the search at a random one; the spared part comes last.
    pub fn take_any(&mut self, owner: &ObjectKey, random: u128, never: Option<u32>) -> Result<u32, Refused> {
        let parts = [(self.dynamic_from, self.last), (self.first, self.dynamic_from.saturating_sub(1))];
        for (from, to) in parts {
            if from > to {
                continue;
            }
            let size = u64::from(to - from) + 1;
            let start = (random % u128::from(size)) as u64;
            let numbers = (0..size).map(|i| from + ((start + i) % size) as u32);
            for number in numbers {
                if !self.used.contains_key(&number) && Some(number) != never {
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

    /// Gives everything of an owner back.
    pub fn release(&mut self, owner: &ObjectKey) {
        self.used.retain(|_, o| o != owner);
    }
}

/// Both pools of a realm.
pub struct ServicePools {
    /// Cluster IPs, as numbers.
    pub ips: Mutex<Pool>,
    /// Node ports.
    pub ports: Mutex<Pool>,
    /// The range as messages name it.
    pub ip_range: String,
    /// The port range as messages name it.
    pub port_range: String,
}

impl ServicePools {
    /// Empty pools for the configured ranges.
    pub fn new(cidr: crate::Ipv4Range, node_ports: &RangeInclusive<u16>) -> Self {
        let (first, last) = cidr.usable();
        let (low, high) = (u32::from(*node_ports.start()), u32::from(*node_ports.end()));
        ServicePools {
            ips: Mutex::new(Pool::new(first, last, 16, 256)),
            ports: Mutex::new(Pool::new(low, high, 32, 128)),
            ip_range: format!("{}/{}", cidr.network, cidr.prefix),
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

    /// Frees what a removed service held.
    pub fn release(&self, owner: &ObjectKey) {
        self.ips.lock().release(owner);
        self.ports.lock().release(owner);
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
        let mut pool = Pool::new(100, 139, 16, 256);
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..40 {
            let number = pool.take_any(&owner("a"), n * 7919, None).unwrap();
            assert!((100..=139).contains(&number) && seen.insert(number));
            assert!(n >= 24 || number >= 116, "the low part comes last");
        }
        assert_eq!(pool.take_any(&owner("a"), 1, None), Err(Refused::Full));
        assert_eq!(pool.take(100, &owner("b")), Err(Refused::Taken));
        assert_eq!(pool.take(99, &owner("b")), Err(Refused::OutOfRange));
        pool.release(&owner("a"));
        assert_eq!(pool.take(100, &owner("b")), Ok(true));
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
