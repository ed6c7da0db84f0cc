//! The nftables expressions that our rules are made of; each function is one expression. Pure.
//!
//! Invariants: registers are the 4-byte ones, numbered from 0; a key's fields lie in consecutive registers.
//! Deliberately not here: registers' lifetimes across rules (the kernel forgets them at a rule's end).

use std::net::Ipv4Addr;

use sys::netlink::Attrs;

use super::{Verdict, value};
use crate::addr::Ipv4Net;

/// `NFT_REG32_00`.
const REG32: u32 = 8;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const META_PRIORITY: u32 = 2;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_L4PROTO: u32 = 16;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const FIB_OIF: u32 = 1;
const FIB_ADDRTYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
const FIB_IIF: u32 = 8;
const FIB_PRESENT: u32 = 32;
const RTN_LOCAL: u32 = 2;
const CT_STATUS: u32 = 2;
const CT_STATUS_DST_NAT: u32 = 32;
const NAT_SOURCE: u32 = 0;
const NAT_DESTINATION: u32 = 1;
const FAMILY_IP: u32 = 2;
const RANGE_PORT_SPECIFIED: u32 = 2;
const ICMP_PORT_UNREACHABLE: u8 = 3;
const DYNSET_UPDATE: u32 = 1;
const DYNSET_DELETE: u32 = 2;

/// A 4-byte register, from 0 to 15.
pub(crate) type Reg = u32;

fn expr(name: &str, data: Attrs) -> Attrs {
    Attrs::new().str(EXPR_NAME, name).nest(EXPR_DATA, data)
}

fn load(base: u32, offset: u32, len: u32, to: Reg) -> Attrs {
    expr("payload", Attrs::new().be32(1, REG32 + to).be32(2, base).be32(3, offset).be32(4, len))
}

/// Source address.
pub(crate) fn saddr(to: Reg) -> Attrs {
    load(BASE_NETWORK, 12, 4, to)
}

/// Destination address.
pub(crate) fn daddr(to: Reg) -> Attrs {
    load(BASE_NETWORK, 16, 4, to)
}

/// Destination port (of any transport that has one in its bytes 2 and 3).
pub(crate) fn dport(to: Reg) -> Attrs {
    load(BASE_TRANSPORT, 2, 2, to)
}

fn meta(key: u32, to: Reg) -> Attrs {
    expr("meta", Attrs::new().be32(1, REG32 + to).be32(2, key))
}

/// Transport protocol.
pub(crate) fn l4proto(to: Reg) -> Attrs {
    meta(META_L4PROTO, to)
}

/// The packet's priority, which we use to carry a number from one rule to another.
pub(crate) fn scratch(to: Reg) -> Attrs {
    meta(META_PRIORITY, to)
}

/// Sets the packet's priority.
pub(crate) fn set_scratch(from: Reg) -> Attrs {
    expr("meta", Attrs::new().be32(2, META_PRIORITY).be32(3, REG32 + from))
}

fn compare(from: Reg, operator: u32, bytes: &[u8]) -> Attrs {
    expr("cmp", Attrs::new().be32(1, REG32 + from).be32(2, operator).nest(3, value(bytes)))
}

/// Whether a test must hold or must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    Is,
    IsNot,
}

impl Test {
    fn operator(self) -> u32 {
        match self {
            Self::Is => CMP_EQ,
            Self::IsNot => CMP_NEQ,
        }
    }
}

/// The packet came in by a link whose name starts with `prefix` (or did not).
pub(crate) fn came_in_by(test: Test, prefix: &str) -> [Attrs; 2] {
    [meta(META_IIFNAME, 0), compare(0, test.operator(), prefix.as_bytes())]
}

/// The packet goes out by a link whose name starts with `prefix` (or does not).
pub(crate) fn goes_out_by(test: Test, prefix: &str) -> [Attrs; 2] {
    [meta(META_OIFNAME, 0), compare(0, test.operator(), prefix.as_bytes())]
}

/// The packet goes out by a link that is (not) named exactly so.
pub(crate) fn goes_out_by_exactly(test: Test, name: &str) -> [Attrs; 2] {
    let mut padded = [0; 16];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    [meta(META_OIFNAME, 0), compare(0, test.operator(), &padded)]
}

fn masked(register: Reg, mask: [u8; 4]) -> Attrs {
    let attrs = Attrs::new().be32(1, REG32 + register).be32(2, REG32 + register).be32(3, 4);
    expr("bitwise", attrs.nest(4, value(&mask)).nest(5, value(&[0; 4])))
}

fn within(address: Attrs, test: Test, range: Ipv4Net) -> [Attrs; 3] {
    [address, masked(0, range.mask().octets()), compare(0, test.operator(), &range.base().octets())]
}

/// The source address lies in `range` (or does not).
pub(crate) fn from_range(test: Test, range: Ipv4Net) -> [Attrs; 3] {
    within(saddr(0), test, range)
}

/// The destination address lies in `range` (or does not).
pub(crate) fn to_range(test: Test, range: Ipv4Net) -> [Attrs; 3] {
    within(daddr(0), test, range)
}

/// The transport protocol is this one.
pub(crate) fn is_protocol(number: u8) -> [Attrs; 2] {
    [l4proto(0), compare(0, CMP_EQ, &[number])]
}

/// The destination is an address of this host.
pub(crate) fn to_this_host() -> [Attrs; 2] {
    let attrs = Attrs::new().be32(1, REG32).be32(2, FIB_ADDRTYPE).be32(3, FIB_DADDR);
    [expr("fib", attrs), compare(0, CMP_EQ, &RTN_LOCAL.to_ne_bytes())]
}

/// There is no route back to the source by the link that the packet came in by.
pub(crate) fn source_is_foreign_to_link() -> [Attrs; 2] {
    let attrs = Attrs::new().be32(1, REG32).be32(2, FIB_OIF).be32(3, FIB_SADDR | FIB_IIF | FIB_PRESENT);
    [expr("fib", attrs), compare(0, CMP_EQ, &[0; 4])]
}

/// The connection's destination was translated.
pub(crate) fn was_dnatted() -> [Attrs; 3] {
    [
        expr("ct", Attrs::new().be32(1, REG32).be32(2, CT_STATUS)),
        masked(0, CT_STATUS_DST_NAT.to_ne_bytes()),
        compare(0, CMP_NEQ, &[0; 4]),
    ]
}

/// A random number below `modulus`, in host order.
pub(crate) fn random(modulus: u32, to: Reg) -> Attrs {
    expr("numgen", Attrs::new().be32(1, REG32 + to).be32(2, modulus).be32(3, 1))
}

/// The key at `key` is in the set; the rule ends here if it is not.
pub(crate) fn in_set(set: &str, key: Reg) -> Attrs {
    expr("lookup", Attrs::new().str(1, set).be32(2, REG32 + key))
}

/// Looks the key at `key` up and stores the data at `to`; the rule ends here if there is none.
pub(crate) fn look_up(map: &str, key: Reg, to: Reg) -> Attrs {
    expr("lookup", Attrs::new().str(1, map).be32(2, REG32 + key).be32(3, REG32 + to))
}

/// Looks the key at `key` up and does what the map says.
pub(crate) fn dispatch(map: &str, key: Reg) -> Attrs {
    // Destination register 0 is the verdict register.
    expr("lookup", Attrs::new().str(1, map).be32(2, REG32 + key).be32(3, 0))
}

fn learn(operation: u32, map: &str, key: Reg, data: Reg) -> Attrs {
    Attrs::new().str(1, map).be32(3, operation).be32(4, REG32 + key).be32(5, REG32 + data)
}

/// Stores the data at `data` under the key at `key` for so long, or prolongs the entry that is there.
pub(crate) fn remember(map: &str, key: Reg, data: Reg, timeout_ms: u64) -> Attrs {
    expr("dynset", learn(DYNSET_UPDATE, map, key, data).be64(6, timeout_ms))
}

/// Forgets the entry under the key at `key`, if there is one.
pub(crate) fn forget(map: &str, key: Reg, data: Reg) -> Attrs {
    expr("dynset", learn(DYNSET_DELETE, map, key, data))
}

/// Ends the rule with a verdict.
pub(crate) fn verdict(verdict: &Verdict) -> Attrs {
    expr("immediate", Attrs::new().be32(1, 0).nest(2, verdict.data()))
}

/// Redirects to the address at `at` and the port in the register after it.
pub(crate) fn dnat(at: Reg) -> Attrs {
    let attrs = Attrs::new().be32(1, NAT_DESTINATION).be32(2, FAMILY_IP).be32(3, REG32 + at);
    expr("nat", attrs.be32(5, REG32 + at + 1).be32(7, RANGE_PORT_SPECIFIED))
}

/// Makes `ip` the source.
pub(crate) fn snat(ip: Ipv4Addr) -> [Attrs; 2] {
    [
        expr("immediate", Attrs::new().be32(1, REG32).nest(2, value(&ip.octets()))),
        expr("nat", Attrs::new().be32(1, NAT_SOURCE).be32(2, FAMILY_IP).be32(3, REG32)),
    ]
}

/// Makes the outgoing link's address the source.
pub(crate) fn masquerade() -> Attrs {
    expr("masq", Attrs::new())
}

/// Answers with a TCP reset.
pub(crate) fn reject_with_reset() -> Attrs {
    expr("reject", Attrs::new().be32(1, 1).u8(2, 0))
}

/// Answers with ICMP port unreachable.
pub(crate) fn reject() -> Attrs {
    expr("reject", Attrs::new().be32(1, 0).u8(2, ICMP_PORT_UNREACHABLE))
}
