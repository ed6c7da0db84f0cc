//! Addresses and networks.

use crate::cel::table::{Cost, Row};
use crate::cel::value::{EvalError, Ext, Value};
use std::fmt;
use std::net::IpAddr;

/// A network: an address of it and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Rows of this library.
pub const ROWS: &[Row] = &[
    ("ip(string) ip", Cost::Scan, |a| {
        let text = a[0].as_str().unwrap_or_default();
        let bad =
            || EvalError::failed(format!("IP Address {text:?} parse error during conversion from string"));
        parse_ip(text).map(|ip| Ext::Ip(ip).into()).ok_or_else(bad)
    }),
    ("isIP(string) bool", Cost::Scan, |a| Ok(parse_ip(a[0].as_str().unwrap_or_default()).is_some().into())),
    ("ip.isCanonical(string) bool", Cost::Scan, |a| {
        let text = a[0].as_str().unwrap_or_default();
        let ip =
            parse_ip(text).ok_or_else(|| EvalError::failed(format!("IP Address {text:?} parse error")))?;
        Ok((ip.to_string() == text).into())
    }),
    ("ip:family() int", Cost::Flat, |a| Ok(Value::Int(if address(a, 0)?.is_ipv4() { 4 } else { 6 }))),
    ("ip:isUnspecified() bool", Cost::Flat, |a| Ok(address(a, 0)?.is_unspecified().into())),
    ("ip:isLoopback() bool", Cost::Flat, |a| Ok(address(a, 0)?.is_loopback().into())),
    ("ip:isLinkLocalMulticast() bool", Cost::Flat, |a| Ok(link_local_multicast(address(a, 0)?).into())),
    ("ip:isLinkLocalUnicast() bool", Cost::Flat, |a| Ok(link_local_unicast(address(a, 0)?).into())),
    ("ip:isGlobalUnicast() bool", Cost::Flat, |a| {
        let ip = address(a, 0)?;
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        let other = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local_unicast(ip);
        Ok((!broadcast && !other).into())
    }),
    ("cidr(string) cidr", Cost::Scan, |a| {
        let text = a[0].as_str().unwrap_or_default();
        let bad = || {
            EvalError::failed(format!("network address parse error during conversion from string: {text:?}"))
        };
        parse_cidr(text).map(|cidr| Ext::Cidr(cidr).into()).ok_or_else(bad)
    }),
    ("isCIDR(string) bool", Cost::Scan, |a| {
        Ok(parse_cidr(a[0].as_str().unwrap_or_default()).is_some().into())
    }),
    ("cidr:containsIP(ip) bool; cidr:containsIP(string) bool", Cost::Flat, |a| {
        let (net, ip) = (network(a, 0)?, address(a, 1)?);
        Ok(holds(net, Cidr { address: ip, prefix: width(ip) }).into())
    }),
    ("cidr:containsCIDR(cidr) bool; cidr:containsCIDR(string) bool", Cost::Flat, |a| {
        Ok(holds(network(a, 0)?, network(a, 1)?).into())
    }),
    ("cidr:ip() ip", Cost::Flat, |a| Ok(Ext::Ip(network(a, 0)?.address).into())),
    ("cidr:masked() cidr", Cost::Flat, |a| {
        let net = network(a, 0)?;
        let address = from_bits(net.address, bits(net.address) & mask(net));
        Ok(Ext::Cidr(Cidr { address, prefix: net.prefix }).into())
    }),
    ("cidr:prefixLength() int", Cost::Flat, |a| Ok(Value::Int(network(a, 0)?.prefix.into()))),
];

fn parse_ip(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    // An IPv4 address in IPv6's clothes is refused, as upstream does.
    let mapped = matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    (!mapped).then_some(ip)
}

fn parse_cidr(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.split_once('/')?;
    let address = parse_ip(address)?;
    let plain = !prefix.is_empty()
        && prefix.bytes().all(|b| b.is_ascii_digit())
        && !(prefix.len() > 1 && prefix.starts_with('0'));
    let prefix = prefix.parse().ok().filter(|p| plain && *p <= width(address))?;
    Some(Cidr { address, prefix })
}

fn address(a: &[Value], i: usize) -> Result<IpAddr, EvalError> {
    match &a[i] {
        Value::Ext(ext) if matches!(&**ext, Ext::Ip(_)) => match &**ext {
            Ext::Ip(ip) => Ok(*ip),
            _ => Err(EvalError::no_such_overload()),
        },
        other => parse_ip(other.as_str().unwrap_or_default())
            .ok_or_else(|| EvalError::failed("IP Address parse error during conversion from string")),
    }
}

fn network(a: &[Value], i: usize) -> Result<Cidr, EvalError> {
    match &a[i] {
        Value::Ext(ext) if matches!(&**ext, Ext::Cidr(_)) => match &**ext {
            Ext::Cidr(cidr) => Ok(*cidr),
            _ => Err(EvalError::no_such_overload()),
        },
        other => parse_cidr(other.as_str().unwrap_or_default())
            .ok_or_else(|| EvalError::failed("network address parse error during conversion from string")),
    }
}

fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn from_bits(like: IpAddr, bits: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4((bits as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(bits.into()),
    }
}

fn mask(net: Cidr) -> u128 {
    let host = u32::from(width(net.address) - net.prefix);
    u128::MAX.checked_shl(host).unwrap_or(0)
}

fn holds(net: Cidr, part: Cidr) -> bool {
    net.address.is_ipv4() == part.address.is_ipv4()
        && net.prefix <= part.prefix
        && bits(net.address) & mask(net) == bits(part.address) & mask(net)
}

fn link_local_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}
