//! nftables over netlink: messages for one table, and the expressions in [`expr`]. Pure.
//!
//! Invariants: everything is of family `ip` and names its table; element lists are split so that each
//! message fits; names follow `linux/netfilter/nf_tables.h`.
//! Deliberately not here: what our rules mean (modules `base` and `services`), other families.

pub(crate) mod expr;

use std::net::Ipv4Addr;

use sys::netlink::flags::{APPEND, CREATE};
use sys::netlink::{Attrs, Message, Reply, attrs, be32};

/// `NFNL_SUBSYS_NFTABLES`.
pub(crate) const SUBSYSTEM: u16 = 10;
const FAMILY_UNSPEC: u8 = 0;
const FAMILY_IP: u8 = 2;

const NEWTABLE: u16 = 0;
const GETTABLE: u16 = 1;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUM: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_DESC: u16 = 9;
const SET_ID: u16 = 10;
const SET_DESC_SIZE: u16 = 1;
const ELEM_TABLE: u16 = 1;
const ELEM_SET: u16 = 2;
const ELEM_LIST: u16 = 3;
const ELEM_KEY: u16 = 1;
const ELEM_DATA: u16 = 2;
const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const SET_F_MAP: u32 = 8;
const SET_F_TIMEOUT: u32 = 16;
const SET_F_EVAL: u32 = 32;
const TYPE_VERDICT: u32 = 0xffff_ff00;
/// In a table's user data, the tag of a comment that `nft list` shows.
const UDATA_COMMENT: u8 = 0;

/// Keeps one element message below the 64 KiB that one attribute can hold.
const ELEMENTS_BYTES_MAX: usize = 48 * 1024;

fn message(kind: u16, flags: u16, attrs: Attrs) -> Message {
    Message::new((SUBSYSTEM << 8) | kind, flags, &[FAMILY_IP, 0, 0, 0], attrs)
}

/// A field of a key or value, as `nft` numbers its data types; each takes a multiple of 4 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Ip = 7,
    Protocol = 12,
    Port = 13,
    /// A number in host order; `nft` has no better name for it than the packet mark's type.
    Number = 19,
}

fn concat(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |id, field| (id << 6) | *field as u32)
}

fn width(fields: &[Field]) -> u32 {
    4 * u32::try_from(fields.len()).expect("a key has a handful of fields")
}

/// What a map's elements hold.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Holds {
    /// Nothing: a set.
    Nothing,
    /// A verdict.
    Verdict,
    /// Fields.
    Fields(&'static [Field]),
    /// Fields, written by rules, each entry with its own timeout; at most so many entries.
    Learned(&'static [Field], u32),
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

impl Verdict {
    fn data(&self) -> Attrs {
        let (code, chain): (i32, _) = match self {
            Self::Drop => (0, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        let attrs = Attrs::new().be32(VERDICT_CODE, code.cast_unsigned());
        let attrs = match chain {
            Some(chain) => attrs.str(VERDICT_CHAIN, chain),
            None => attrs,
        };
        Attrs::new().nest(DATA_VERDICT, attrs)
    }
}

/// Bytes of a key or value: every field padded to 4 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes(Vec<u8>);

impl Bytes {
    pub(crate) fn ip(mut self, ip: Ipv4Addr) -> Self {
        self.0.extend_from_slice(&ip.octets());
        self
    }

    pub(crate) fn protocol(mut self, protocol: u8) -> Self {
        self.0.extend_from_slice(&[protocol, 0, 0, 0]);
        self
    }

    pub(crate) fn port(mut self, port: u16) -> Self {
        let [high, low] = port.to_be_bytes();
        self.0.extend_from_slice(&[high, low, 0, 0]);
        self
    }

    pub(crate) fn number(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_ne_bytes());
        self
    }
}

/// What an element maps to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Nothing,
    Bytes(Bytes),
    Verdict(Verdict),
}

fn value(bytes: &[u8]) -> Attrs {
    Attrs::new().bytes(DATA_VALUE, bytes)
}

/// Builds the messages of one table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'a>(pub &'a str);

impl Table<'_> {
    /// Creates the table (no error if it exists).
    pub(crate) fn add(self, comment: &str) -> Message {
        let mut udata = vec![UDATA_COMMENT, u8::try_from(comment.len() + 1).expect("our comment is short")];
        udata.extend_from_slice(comment.as_bytes());
        udata.push(0);
        message(NEWTABLE, CREATE, Attrs::new().str(TABLE_NAME, self.0).bytes(TABLE_USERDATA, &udata))
    }

    /// Deletes the table and all in it.
    pub(crate) fn del(self) -> Message {
        message(DELTABLE, 0, Attrs::new().str(TABLE_NAME, self.0))
    }

    fn chain(self, name: &str) -> Attrs {
        Attrs::new().str(CHAIN_TABLE, self.0).str(CHAIN_NAME, name)
    }

    /// Creates a chain that is reached by jumps only.
    pub(crate) fn add_chain(self, name: &str) -> Message {
        message(NEWCHAIN, CREATE, self.chain(name))
    }

    /// Creates a base chain: `kind` is `nat` or `filter`, policy accept.
    pub(crate) fn add_base_chain(self, name: &str, kind: &str, hook: Hook, priority: i32) -> Message {
        let hook = Attrs::new().be32(HOOK_NUM, hook as u32).be32(HOOK_PRIORITY, priority.cast_unsigned());
        let attrs = self.chain(name).nest(CHAIN_HOOK, hook).be32(CHAIN_POLICY, 1).str(CHAIN_TYPE, kind);
        message(NEWCHAIN, CREATE, attrs)
    }

    /// Empties a chain.
    pub(crate) fn flush_chain(self, name: &str) -> Message {
        message(DELRULE, 0, Attrs::new().str(RULE_TABLE, self.0).str(RULE_CHAIN, name))
    }

    /// Deletes an empty chain that nothing refers to.
    pub(crate) fn del_chain(self, name: &str) -> Message {
        message(DELCHAIN, 0, self.chain(name))
    }

    /// Appends a rule.
    pub(crate) fn add_rule(self, chain: &str, expressions: impl IntoIterator<Item = Attrs>) -> Message {
        let list = expressions.into_iter().fold(Attrs::new(), |list, one| list.nest(LIST_ELEM, one));
        let attrs = Attrs::new().str(RULE_TABLE, self.0).str(RULE_CHAIN, chain).nest(RULE_EXPRESSIONS, list);
        message(NEWRULE, CREATE | APPEND, attrs)
    }

    /// Creates a set or map.
    pub(crate) fn add_set(self, name: &str, key: &[Field], holds: Holds) -> Message {
        let (flags, data, size) = match holds {
            Holds::Nothing => (0, None, None),
            Holds::Verdict => (SET_F_MAP, Some((TYPE_VERDICT, 0)), None),
            Holds::Fields(fields) => (SET_F_MAP, Some((concat(fields), width(fields))), None),
            Holds::Learned(fields, size) => {
                let flags = SET_F_MAP | SET_F_TIMEOUT | SET_F_EVAL;
                (flags, Some((concat(fields), width(fields))), Some(size))
            }
        };
        let mut attrs = Attrs::new()
            .str(SET_TABLE, self.0)
            .str(SET_NAME, name)
            .be32(SET_FLAGS, flags)
            .be32(SET_KEY_TYPE, concat(key))
            .be32(SET_KEY_LEN, width(key))
            .be32(SET_ID, 1);
        if let Some((kind, len)) = data {
            attrs = attrs.be32(SET_DATA_TYPE, kind).be32(SET_DATA_LEN, len);
        }
        if let Some(size) = size {
            attrs = attrs.nest(SET_DESC, Attrs::new().be32(SET_DESC_SIZE, size));
        }
        message(NEWSET, CREATE, attrs)
    }

    /// Deletes a set that no rule refers to.
    pub(crate) fn del_set(self, name: &str) -> Message {
        message(DELSET, 0, Attrs::new().str(SET_TABLE, self.0).str(SET_NAME, name))
    }

    /// Adds elements, in as many messages as it takes.
    pub(crate) fn add_elements(self, set: &str, elements: &[(Bytes, Value)]) -> Vec<Message> {
        self.elements(NEWSETELEM, CREATE, set, elements)
    }

    /// Deletes elements by key; all must exist.
    pub(crate) fn del_elements(self, set: &str, elements: &[(Bytes, Value)]) -> Vec<Message> {
        self.elements(DELSETELEM, 0, set, elements)
    }

    fn elements(self, kind: u16, flags: u16, set: &str, elements: &[(Bytes, Value)]) -> Vec<Message> {
        let send = |list: Attrs| {
            let attrs = Attrs::new().str(ELEM_TABLE, self.0).str(ELEM_SET, set).nest(ELEM_LIST, list);
            message(kind, flags, attrs)
        };
        let (mut messages, mut list) = (Vec::new(), Attrs::new());
        for (key, data) in elements {
            if list.len() > ELEMENTS_BYTES_MAX {
                messages.push(send(std::mem::take(&mut list)));
            }
            let element = Attrs::new().nest(ELEM_KEY, value(&key.0));
            let element = match data {
                Value::Nothing => element,
                Value::Bytes(bytes) => element.nest(ELEM_DATA, value(&bytes.0)),
                Value::Verdict(verdict) => element.nest(ELEM_DATA, verdict.data()),
            };
            list = list.nest(LIST_ELEM, element);
        }
        if !list.is_empty() {
            messages.push(send(list));
        }
        messages
    }
}

/// Where a base chain hangs (`NF_INET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting = 0,
    Output = 3,
    Postrouting = 4,
}

/// `NF_INET_FORWARD`, for reading other people's chains.
const HOOK_FORWARD: u32 = 2;

/// Asks for all tables of the `ip` family (a dump).
pub(crate) fn get_tables() -> Message {
    message(GETTABLE, 0, Attrs::new())
}

/// A table's name and comment.
pub(crate) fn parse_table(reply: &Reply) -> (String, String) {
    let (mut name, mut comment) = (String::new(), String::new());
    for (kind, value) in reply.attrs(4) {
        match kind {
            TABLE_NAME => name = text(value),
            TABLE_USERDATA => {
                let [tag, len, rest @ ..] = value else { continue };
                if *tag == UDATA_COMMENT {
                    comment = text(rest.get(..usize::from(*len)).unwrap_or(rest));
                }
            }
            _ => {}
        }
    }
    (name, comment)
}

/// Asks for all chains of all families (a dump).
pub(crate) fn get_chains() -> Message {
    Message::new((SUBSYSTEM << 8) | GETCHAIN, 0, &[FAMILY_UNSPEC, 0, 0, 0], Attrs::new())
}

/// A chain that drops what it does not accept, on the path of forwarded packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ForwardDrop {
    pub family: u8,
    pub table: String,
    pub chain: String,
}

/// Reads a chain; `None` unless it is on the forward hook with policy drop.
pub(crate) fn parse_forward_drop(reply: &Reply) -> Option<ForwardDrop> {
    let family = *reply.body.first()?;
    let (mut table, mut chain, mut hook, mut policy) = (String::new(), String::new(), None, None);
    for (kind, value) in reply.attrs(4) {
        match kind {
            CHAIN_TABLE => table = text(value),
            CHAIN_NAME => chain = text(value),
            CHAIN_POLICY => policy = Some(be32(value)),
            CHAIN_HOOK => hook = attrs(value).find(|(kind, _)| *kind == HOOK_NUM).map(|(_, v)| be32(v)),
            _ => {}
        }
    }
    // Families that carry IPv4 through the forward hook: inet and ip.
    let carries = family == 1 || family == FAMILY_IP;
    (carries && hook == Some(HOOK_FORWARD) && policy == Some(0)).then_some(ForwardDrop {
        family,
        table,
        chain,
    })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}
