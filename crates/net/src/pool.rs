//! The node's pod addresses: a pure allocator.
//!
//! Invariants: an address is handed out once until it is released; the first and last of a range are never
//! handed out; a released address rests as long as others are free (peers may still remember it).
//! Deliberately not here: persistence; the devices are the record, and `reserve` rebuilds the pool from them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::addr::Ipv4Net;

/// The pool of one node's pod range.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    range: Ipv4Net,
    used: BTreeSet<Ipv4Addr>,
    next: u32,
}

impl Pool {
    /// An empty pool over `range`.
    pub(crate) fn new(range: Ipv4Net) -> Self {
        Self { range, used: BTreeSet::new(), next: 0 }
    }

    /// How many pods fit at all.
    pub(crate) fn capacity(&self) -> u64 {
        self.range.size().saturating_sub(2)
    }

    /// Takes the next free address after the one taken last; `None` when all are in use.
    pub(crate) fn allocate(&mut self) -> Option<Ipv4Addr> {
        let capacity = u32::try_from(self.capacity()).unwrap_or(u32::MAX);
        if self.used.len() as u64 >= self.capacity() {
            return None;
        }
        // At most `used + 1` steps: there is a free address among that many distinct ones.
        for step in 0..=u32::try_from(self.used.len()).unwrap_or(u32::MAX) {
            let offset = ((u64::from(self.next) + u64::from(step)) % u64::from(capacity)) as u32;
            let ip = Ipv4Addr::from_bits(self.range.base().to_bits() + 1 + offset);
            if self.used.insert(ip) {
                self.next = (offset + 1) % capacity;
                return Some(ip);
            }
        }
        None
    }

    /// Marks an address as taken; false if it is taken already or not of this range.
    pub(crate) fn reserve(&mut self, ip: Ipv4Addr) -> bool {
        self.range.contains(ip) && self.used.insert(ip)
    }

    /// Gives an address back.
    pub(crate) fn release(&mut self, ip: Ipv4Addr) {
        self.used.remove(&ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rests_released_addresses() {
        let mut pool = Pool::new("10.0.0.0/29".parse().unwrap());
        assert_eq!(pool.capacity(), 6);
        let first = pool.allocate().unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 0, 0, 1));
        pool.release(first);
        assert_eq!(pool.allocate().unwrap(), Ipv4Addr::new(10, 0, 0, 2));
        assert!(!pool.reserve(Ipv4Addr::new(10, 0, 0, 2)) && !pool.reserve(Ipv4Addr::new(10, 0, 1, 2)));
        assert!(pool.reserve(Ipv4Addr::new(10, 0, 0, 6)));
        let rest: Vec<u8> = std::iter::from_fn(|| pool.allocate()).map(|ip| ip.octets()[3]).collect();
        assert_eq!(rest, [3, 4, 5, 1]);
    }

    proptest! {
        #[test]
        fn never_hands_out_twice(len in 24u8..=32, steps in prop::collection::vec((any::<bool>(), 0usize..300), 0..400)) {
            let range = Ipv4Net::new(Ipv4Addr::new(10, 1, 2, 0), len);
            let mut pool = Pool::new(range);
            let mut held = Vec::new();
            for (take, pick) in steps {
                if take {
                    match pool.allocate() {
                        Some(ip) => {
                            prop_assert!(range.contains(ip) && !held.contains(&ip));
                            prop_assert!(ip != range.base());
                            held.push(ip);
                        }
                        None => prop_assert_eq!(held.len() as u64, pool.capacity()),
                    }
                } else if !held.is_empty() {
                    pool.release(held.swap_remove(pick % held.len()));
                }
            }
        }
    }
}
