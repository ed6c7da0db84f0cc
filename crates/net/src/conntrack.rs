//! Connection tracking: forgets UDP flows whose endpoint no longer serves them.
//!
//! Reads the kernel's table, deletes single entries.
//! Invariants: only entries whose first packet went to a touched front are deleted; flows that were merely
//! forwarded through a node port's number are left alone.
//! Deliberately not here: TCP (its clients notice by themselves).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use sys::netlink::{Attrs, Message, NetlinkError, Reply, Socket, attrs, be16, be32};

use crate::services::Socket as Address;

const SUBSYSTEM: u16 = 1;
const CT_GET: u16 = (SUBSYSTEM << 8) | 1;
const CT_DELETE: u16 = (SUBSYSTEM << 8) | 2;
const HEADER: [u8; 4] = [2, 0, 0, 0];
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_SRC: u16 = 1;
const IP_DST: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const UDP: u8 = 17;
const ENOENT: i32 = 2;

/// Fronts by address (none: a node port) and port, with the endpoints that may go on.
pub(crate) type Survivors = BTreeMap<(Option<Ipv4Addr>, u16), BTreeSet<Address>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    protocol: u8,
    source: Address,
    destination: Address,
}

fn find(run: &[u8], kind: u16) -> &[u8] {
    attrs(run).find(|(found, _)| *found == kind).map_or(&[], |(_, value)| value)
}

fn tuple(run: &[u8]) -> Tuple {
    let (ip, proto) = (find(run, TUPLE_IP), find(run, TUPLE_PROTO));
    let address = |kind| Ipv4Addr::from_bits(be32(find(ip, kind)));
    let port = |kind| be16(find(proto, kind));
    Tuple {
        protocol: find(proto, PROTO_NUM).first().copied().unwrap_or(0),
        source: (address(IP_SRC), port(PROTO_SRC_PORT)),
        destination: (address(IP_DST), port(PROTO_DST_PORT)),
    }
}

/// Whether a flow goes to a touched front and is served by none of its survivors.
fn is_stale(original: Tuple, reply: Tuple, survivors: &Survivors) -> bool {
    let (to, served_by) = (original.destination, reply.source);
    let translated = to != served_by;
    let stale = |key, must_be_translated: bool| {
        survivors
            .get(&key)
            .is_some_and(|left| !left.contains(&served_by) && (translated || !must_be_translated))
    };
    original.protocol == UDP && (stale((Some(to.0), to.1), false) || stale((None, to.1), true))
}

fn deletion(entry: &Reply, survivors: &Survivors) -> Option<Message> {
    let body = entry.body.get(HEADER.len()..)?;
    let original = find(body, CTA_TUPLE_ORIG);
    is_stale(tuple(original), tuple(find(body, CTA_TUPLE_REPLY)), survivors).then(|| {
        let nested =
            Attrs::new().nest(CTA_TUPLE_ORIG, Attrs::raw(original)).bytes(CTA_ID, find(body, CTA_ID));
        Message::new(CT_DELETE, 0, &HEADER, nested)
    })
}

/// Deletes stale entries; returns how many.
pub(crate) fn forget_stale(socket: &mut Socket, survivors: &Survivors) -> Result<usize, NetlinkError> {
    if survivors.is_empty() {
        return Ok(0);
    }
    let table = socket.dump(&Message::new(CT_GET, 0, &HEADER, Attrs::new()))?;
    let mut forgotten = 0;
    for deletion in table.iter().filter_map(|entry| deletion(entry, survivors)) {
        match socket.request(&[deletion]) {
            Ok(()) => forgotten += 1,
            // It timed out by itself meanwhile.
            Err(error) if error.errno() == Some(ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flows_of_touched_fronts_without_survivor_are_stale() {
        let at = |last, port| (Ipv4Addr::new(10, 0, 0, last), port);
        let flow = |to: Address, by: Address| {
            let original = Tuple { protocol: UDP, source: at(9, 999), destination: to };
            (original, Tuple { protocol: UDP, source: by, destination: at(9, 999) })
        };
        let survivors = Survivors::from([
            ((Some(at(1, 0).0), 53), BTreeSet::from([at(3, 5353)])),
            ((None, 30053), BTreeSet::new()),
        ]);
        let stale = |to, by| {
            let (original, reply) = flow(to, by);
            is_stale(original, reply, &survivors)
        };
        assert!(stale(at(1, 53), at(2, 5353)), "endpoint is gone");
        assert!(!stale(at(1, 53), at(3, 5353)), "endpoint still serves");
        assert!(stale(at(1, 53), at(1, 53)), "was not translated before the service came");
        assert!(!stale(at(4, 53), at(2, 5353)), "another front");
        assert!(stale(at(7, 30053), at(2, 53)), "node port, endpoint is gone");
        assert!(!stale(at(7, 30053), at(7, 30053)), "merely forwarded");
    }
}
