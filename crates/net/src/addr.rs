//! Values of the network: ranges, protocols, MAC addresses. Pure.
//!
//! Invariants: an [`Ipv4Net`] has no host bits set.
//! Deliberately not here: IPv6 (not served yet), name look-ups.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 range such as `10.244.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4Net {
    base: Ipv4Addr,
    len: u8,
}

/// Why a text is no range.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not an IPv4 range such as 10.244.0.0/16")]
pub struct BadRange(String);

impl Ipv4Net {
    /// The range of `len` (0–32) leading bits around `ip`; host bits are cleared, longer lengths count as 32.
    pub fn new(ip: Ipv4Addr, len: u8) -> Self {
        let len = len.min(32);
        Self { base: Ipv4Addr::from_bits(ip.to_bits() & mask(len)), len }
    }

    /// One address.
    pub fn host(ip: Ipv4Addr) -> Self {
        Self::new(ip, 32)
    }

    /// The lowest address.
    pub fn base(self) -> Ipv4Addr {
        self.base
    }

    /// Number of leading bits.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// The netmask.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.len))
    }

    /// Number of addresses.
    pub fn size(self) -> u64 {
        1 << (32 - self.len)
    }

    /// Whether `ip` lies inside.
    pub fn contains(self, ip: Ipv4Addr) -> bool {
        ip.to_bits() & mask(self.len) == self.base.to_bits()
    }

    /// Whether the two ranges share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

fn mask(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

impl FromStr for Ipv4Net {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange(text.to_owned());
        let (ip, len) = text.split_once('/').ok_or_else(bad)?;
        let len: u8 = len.parse().ok().filter(|len| *len <= 32).ok_or_else(bad)?;
        let ip = ip.parse().map_err(|_| bad())?;
        Ok(Self::new(ip, len))
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

/// A transport protocol that services know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// The MAC address of a pod's end: made from its address, so that both ends know it without asking.
pub(crate) fn pod_mac(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x0a, 0x58, a, b, c, d]
}

/// The MAC address of every host end: links are point to point, so one is enough.
pub(crate) const HOST_MAC: [u8; 6] = [0xee; 6];

/// The gateway inside every pod; link-local, never on the wire outside the veth.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_and_compare() {
        let net: Ipv4Net = "10.244.3.7/16".parse().unwrap();
        assert_eq!(net.to_string(), "10.244.0.0/16");
        assert_eq!(net.mask(), Ipv4Addr::new(255, 255, 0, 0));
        assert!(net.contains(Ipv4Addr::new(10, 244, 255, 1)) && !net.contains(Ipv4Addr::new(10, 245, 0, 1)));
        let all: Ipv4Net = "0.0.0.0/0".parse().unwrap();
        assert!(all.overlaps(net) && net.overlaps(all) && all.size() == 1 << 32);
        assert!(!net.overlaps("10.96.0.0/12".parse().unwrap()));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "a/8"] {
            assert!(bad.parse::<Ipv4Net>().is_err(), "{bad}");
        }
    }
}
