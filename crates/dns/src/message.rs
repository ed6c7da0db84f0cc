//! DNS messages: reading a query, walking a reply's records, writing a reply. Pure.
//!
//! Invariants: a reply repeats the question byte for byte (so clients that mix case get theirs back, and so do
//! owners that point to it) and never exceeds its limit: what does not fit is cut and marked as cut.
//! Deliberately not here: which records to answer with.

use std::net::Ipv4Addr;

use crate::name::Name;

const HEADER: usize = 12;
/// What we tell clients we accept, and the most we send over UDP whatever they accept: below any usual MTU.
pub(crate) const UDP_MAX: usize = 1232;
const UDP_MIN: usize = 512;
pub(crate) const TCP_MAX: usize = 65_535;
/// Seconds that answers may be kept; the Kubernetes plugin of CoreDNS uses the same.
pub(crate) const TTL: u32 = 5;

pub(crate) const TYPE_A: u16 = 1;
pub(crate) const TYPE_NS: u16 = 2;
pub(crate) const TYPE_CNAME: u16 = 5;
pub(crate) const TYPE_SOA: u16 = 6;
pub(crate) const TYPE_PTR: u16 = 12;
pub(crate) const TYPE_TXT: u16 = 16;
pub(crate) const TYPE_AAAA: u16 = 28;
pub(crate) const TYPE_SRV: u16 = 33;
pub(crate) const TYPE_OPT: u16 = 41;
pub(crate) const TYPE_ANY: u16 = 255;
pub(crate) const CLASS_IN: u16 = 1;
pub(crate) const CLASS_ANY: u16 = 255;

const FLAG_REPLY: u16 = 0x8000;
const FLAG_AUTHORITATIVE: u16 = 0x0400;
const FLAG_TRUNCATED: u16 = 0x0200;
const FLAG_RECURSE: u16 = 0x0100;
const FLAG_RECURSION_OFFERED: u16 = 0x0080;

/// Response codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
}

pub(crate) fn be16(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn be32(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?))
}

/// A query with one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    pub id: u16,
    pub flags: u16,
    pub name: Name,
    pub kind: u16,
    pub class: u16,
    /// The question as it came.
    pub question: Vec<u8>,
    /// The client's UDP size, if it speaks EDNS.
    pub edns: Option<u16>,
}

/// Why bytes are no query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadQuery {
    /// Not worth an answer: too short, or a reply.
    Silence,
    /// Answered with a code and no question.
    Refuse(u16, u16, Code),
}

impl Query {
    pub(crate) fn read(message: &[u8]) -> Result<Self, BadQuery> {
        let (Some(id), Some(flags)) = (be16(message, 0), be16(message, 2)) else {
            return Err(BadQuery::Silence);
        };
        if message.len() < HEADER || flags & FLAG_REPLY != 0 {
            return Err(BadQuery::Silence);
        }
        if (flags >> 11) & 0xf != 0 {
            return Err(BadQuery::Refuse(id, flags, Code::NotImplemented));
        }
        Self::read_body(message, id, flags).ok_or(BadQuery::Refuse(id, flags, Code::FormatError))
    }

    fn read_body(message: &[u8], id: u16, flags: u16) -> Option<Self> {
        let count = |at| be16(message, at);
        if count(4)? != 1 {
            return None;
        }
        let mut at = HEADER;
        let name = Name::read(message, &mut at)?;
        // A compressed question cannot be repeated byte for byte, and nobody sends one.
        if at != HEADER + name.wire().len() {
            return None;
        }
        let (kind, class) = (be16(message, at)?, be16(message, at + 2)?);
        at += 4;
        let question = message[HEADER..at].to_vec();
        let records = usize::from(count(6)?) + usize::from(count(8)?) + usize::from(count(10)?);
        let mut edns = None;
        for _ in 0..records {
            let record = Record::read(message, &mut at)?;
            if record.kind == TYPE_OPT {
                edns = Some(record.class);
            }
        }
        Some(Self { id, flags, name, kind, class, question, edns })
    }

    /// The largest reply that the client takes over UDP.
    pub(crate) fn udp_limit(&self) -> usize {
        usize::from(self.edns.unwrap_or(0)).clamp(UDP_MIN, UDP_MAX)
    }
}

/// One record of a message, its data left in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub owner: Name,
    pub kind: u16,
    pub class: u16,
    pub ttl: u32,
    /// Where the TTL is.
    pub ttl_at: usize,
    /// Where the data is.
    pub data: std::ops::Range<usize>,
}

impl Record {
    pub(crate) fn read(message: &[u8], at: &mut usize) -> Option<Self> {
        let owner = Name::read(message, at)?;
        let fixed = *at;
        let start = fixed + 10;
        let end = start + usize::from(be16(message, fixed + 8)?);
        message.get(start..end)?;
        *at = end;
        Some(Self {
            owner,
            kind: be16(message, fixed)?,
            class: be16(message, fixed + 2)?,
            ttl: be32(message, fixed + 4)?,
            ttl_at: fixed + 4,
            data: start..end,
        })
    }
}

/// A reply, taken apart as far as we need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub id: u16,
    pub code: u16,
    pub truncated: bool,
    pub name: Name,
    pub kind: u16,
    pub class: u16,
    pub answers: Vec<Record>,
    pub authority: Vec<Record>,
    pub additional: Vec<Record>,
}

impl Reply {
    /// `None` unless it is a well-formed reply with one uncompressed question.
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        let flags = be16(message, 2)?;
        if flags & FLAG_REPLY == 0 || be16(message, 4)? != 1 {
            return None;
        }
        let mut at = HEADER;
        let name = Name::read(message, &mut at)?;
        if at != HEADER + name.wire().len() {
            return None;
        }
        let (kind, class) = (be16(message, at)?, be16(message, at + 2)?);
        at += 4;
        let mut section = |count_at| -> Option<Vec<Record>> {
            (0..be16(message, count_at)?).map(|_| Record::read(message, &mut at)).collect()
        };
        Some(Self {
            id: be16(message, 0)?,
            code: flags & 0xf,
            truncated: flags & FLAG_TRUNCATED != 0,
            name,
            kind,
            class,
            answers: section(6)?,
            authority: section(8)?,
            additional: section(10)?,
        })
    }
}

/// A record's data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Data {
    A(Ipv4Addr),
    Ns(Name),
    Cname(Name),
    Soa {
        server: Name,
        contact: Name,
    },
    Ptr(Name),
    Txt(&'static str),
    Srv {
        port: u16,
        target: Name,
    },
    /// Data of a type without names in it, as it came from elsewhere.
    Opaque(u16, Vec<u8>),
}

impl Data {
    pub(crate) fn kind(&self) -> u16 {
        match self {
            Self::A(_) => TYPE_A,
            Self::Ns(_) => TYPE_NS,
            Self::Cname(_) => TYPE_CNAME,
            Self::Soa { .. } => TYPE_SOA,
            Self::Ptr(_) => TYPE_PTR,
            Self::Txt(_) => TYPE_TXT,
            Self::Srv { .. } => TYPE_SRV,
            Self::Opaque(kind, _) => *kind,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::A(ip) => out.extend_from_slice(&ip.octets()),
            Self::Ns(name) | Self::Cname(name) | Self::Ptr(name) => out.extend_from_slice(name.wire()),
            Self::Soa { server, contact } => {
                out.extend_from_slice(server.wire());
                out.extend_from_slice(contact.wire());
                // Serial, refresh, retry, expire: nobody transfers this zone. Minimum: negative TTL (RFC 2308).
                for number in [1, 7200, 1800, 86_400, TTL] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
            }
            Self::Txt(text) => {
                out.push(u8::try_from(text.len()).expect("our texts are short"));
                out.extend_from_slice(text.as_bytes());
            }
            Self::Srv { port, target } => {
                // Priority 0, weight 100, as the Kubernetes DNS specification has it free.
                out.extend_from_slice(&[0, 0, 0, 100]);
                out.extend_from_slice(&port.to_be_bytes());
                out.extend_from_slice(target.wire());
            }
            Self::Opaque(_, bytes) => out.extend_from_slice(bytes),
        }
    }
}

/// An owner, seconds to keep, and data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub owner: Name,
    pub ttl: u32,
    pub data: Data,
}

/// The sections of a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sections {
    pub answers: Vec<Answer>,
    pub authority: Vec<Answer>,
    pub additional: Vec<Answer>,
}

/// Writes a reply of at most `limit` bytes.
pub(crate) fn write_reply(query: &Query, code: Code, sections: &Sections, limit: usize) -> Vec<u8> {
    let opt = query.edns.map(|_| {
        let size = u16::try_from(UDP_MAX).expect("fits").to_be_bytes();
        [0, 0, 41, size[0], size[1], 0, 0, 0, 0, 0, 0]
    });
    let room = limit - opt.map_or(0, |opt| opt.len());
    let mut flags = FLAG_REPLY | FLAG_AUTHORITATIVE | FLAG_RECURSION_OFFERED;
    flags |= (query.flags & FLAG_RECURSE) | code as u16;
    let mut out = Vec::with_capacity(UDP_MIN);
    out.extend_from_slice(&query.id.to_be_bytes());
    out.extend_from_slice(&[0; HEADER - 2]);
    out.extend_from_slice(&query.question);
    let mut counts = [1, 0, 0, 0];
    for (index, section) in
        [&sections.answers, &sections.authority, &sections.additional].into_iter().enumerate()
    {
        for answer in section {
            let before = out.len();
            write_record(&mut out, query, answer);
            if out.len() > room {
                out.truncate(before);
                // Additional records are a courtesy; their absence is not worth a second try over TCP.
                flags |= if index < 2 { FLAG_TRUNCATED } else { 0 };
                break;
            }
            counts[index + 1] += 1;
        }
    }
    if let Some(opt) = opt {
        out.extend_from_slice(&opt);
        counts[3] += 1;
    }
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    for (slot, count) in out[4..HEADER].chunks_exact_mut(2).zip(counts) {
        slot.copy_from_slice(&u16::to_be_bytes(count));
    }
    out
}

fn write_record(out: &mut Vec<u8>, query: &Query, answer: &Answer) {
    if answer.owner == query.name {
        out.extend_from_slice(&[0xc0, HEADER as u8]);
    } else {
        out.extend_from_slice(answer.owner.wire());
    }
    out.extend_from_slice(&answer.data.kind().to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&answer.ttl.to_be_bytes());
    let len_at = out.len();
    out.extend_from_slice(&[0; 2]);
    answer.data.write(out);
    let len = u16::try_from(out.len() - len_at - 2).expect("one record's data is far below 64 KiB");
    out[len_at..len_at + 2].copy_from_slice(&len.to_be_bytes());
}

/// "Server failure" to a query that is not about the cluster.
pub(crate) fn write_failure(query: &Query) -> Vec<u8> {
    let mut out = write_reply(query, Code::ServerFailure, &Sections::default(), UDP_MIN);
    let flags = be16(&out, 2).unwrap_or_default() & !FLAG_AUTHORITATIVE;
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    out
}

/// A reply without a question, to something that had no readable one.
pub(crate) fn write_refusal(id: u16, flags: u16, code: Code) -> Vec<u8> {
    let flags = FLAG_REPLY | FLAG_RECURSION_OFFERED | (flags & (FLAG_RECURSE | 0x7800)) | code as u16;
    let mut out = id.to_be_bytes().to_vec();
    out.extend_from_slice(&flags.to_be_bytes());
    out.resize(HEADER, 0);
    out
}

/// A plain question, as we send it upstream.
pub(crate) fn write_question(name: &Name, kind: u16) -> Vec<u8> {
    let mut out = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    out.extend_from_slice(name.wire());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out
}
