//! The answer function: a zone and a query in, a reply or an instruction out. Pure.
//!
//! Invariants: any bytes get an [`Action`]; a reply carries the query's id and question and fits the
//! transport; an existing name without such records is "no data", never "no such name".
//! Deliberately not here: sockets, the cache.

use crate::message::{
    Answer, BadQuery, CLASS_ANY, CLASS_IN, Code, Data, Query, Reply, Sections, TCP_MAX, TTL, TYPE_A,
    TYPE_AAAA, TYPE_CNAME, write_question, write_refusal, write_reply,
};
use crate::name::Name;
use crate::zone::{Lookup, Zone};

/// Aliases inside the zone that are followed for one query; longer chains are somebody's mistake.
const ALIASES_MAX: usize = 8;

/// How the query came, which bounds the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A stream.
    Tcp,
}

/// What to do with a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this.
    Reply(Vec<u8>),
    /// It is not about the cluster: ask upstream as it is.
    Forward,
    /// An alias leads out of the cluster: ask upstream for [`Chase::question`], then send [`Chase::finish`].
    Chase(Chase),
    /// It deserves no answer.
    Ignore,
}

/// A half-answered query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chase {
    query: Query,
    aliases: Vec<Answer>,
    target: Name,
    limit: usize,
}

impl Chase {
    /// The question for upstream, with id 0.
    pub fn question(&self) -> Vec<u8> {
        write_question(&self.target, self.query.kind)
    }

    /// The reply to the client, given upstream's (or none in time).
    pub fn finish(&self, upstream: Option<&[u8]>) -> Vec<u8> {
        let read = upstream.and_then(|message| Some((message, Reply::read(message)?)));
        let Some((message, reply)) = read.filter(|(_, reply)| [0, 3].contains(&reply.code)) else {
            return write_reply(&self.query, Code::ServerFailure, &Sections::default(), self.limit);
        };
        let mut answers = self.aliases.clone();
        for record in reply.answers.iter().filter(|record| record.class == CLASS_IN) {
            let data = match record.kind {
                TYPE_CNAME => Name::read(message, &mut record.data.start.clone()).map(Data::Cname),
                TYPE_A | TYPE_AAAA => Some(Data::Opaque(record.kind, message[record.data.clone()].to_vec())),
                _ => None,
            };
            answers.extend(data.map(|data| Answer { owner: record.owner.clone(), ttl: record.ttl, data }));
        }
        let code = if reply.code == 3 { Code::NoSuchName } else { Code::NoError };
        write_reply(&self.query, code, &Sections { answers, ..Sections::default() }, self.limit)
    }
}

/// Answers a query.
pub fn answer(zone: &Zone, message: &[u8], transport: Transport) -> Action {
    let query = match Query::read(message) {
        Ok(query) => query,
        Err(BadQuery::Silence) => return Action::Ignore,
        Err(BadQuery::Refuse(id, flags, code)) => return Action::Reply(write_refusal(id, flags, code)),
    };
    let limit = match transport {
        Transport::Udp => query.udp_limit(),
        Transport::Tcp => TCP_MAX,
    };
    let reply =
        |query: &Query, code, sections: &Sections| Action::Reply(write_reply(query, code, sections, limit));
    if query.class != CLASS_IN && query.class != CLASS_ANY {
        let ours = query.name.is_within(zone.domain());
        return if ours {
            reply(&query, Code::NotImplemented, &Sections::default())
        } else {
            Action::Forward
        };
    }
    let (mut name, mut sections) = (query.name.clone(), Sections::default());
    for _ in 0..ALIASES_MAX {
        match zone.look_up(&name, query.kind) {
            Lookup::Found(records) => {
                answer_with(zone, &query, &name, records, &mut sections);
                return reply(&query, Code::NoError, &sections);
            }
            Lookup::Alias(target) => {
                let owner = std::mem::replace(&mut name, target.clone());
                sections.answers.push(Answer { owner, ttl: TTL, data: Data::Cname(target) });
            }
            Lookup::NotOurs if sections.answers.is_empty() => return Action::Forward,
            Lookup::NotOurs => {
                return Action::Chase(Chase { query, aliases: sections.answers, target: name, limit });
            }
            negative => {
                let (owner, data) = zone.authority(&name);
                sections.authority.push(Answer { owner, ttl: TTL, data });
                let code = if negative == Lookup::NoName { Code::NoSuchName } else { Code::NoError };
                return reply(&query, code, &sections);
            }
        }
    }
    reply(&query, Code::ServerFailure, &Sections::default())
}

/// Puts records into the sections, rotated by the query's id so that clients spread, with the addresses of
/// what they point to.
fn answer_with(zone: &Zone, query: &Query, owner: &Name, mut records: Vec<Data>, sections: &mut Sections) {
    let turn = usize::from(query.id) % records.len();
    records.rotate_left(turn);
    for data in records {
        if let Data::Srv { target, .. } = &data
            && let Lookup::Found(addresses) = zone.look_up(target, TYPE_A)
        {
            for data in addresses {
                let extra = Answer { owner: target.clone(), ttl: TTL, data };
                if !sections.additional.contains(&extra) {
                    sections.additional.push(extra);
                }
            }
        }
        sections.answers.push(Answer { owner: owner.clone(), ttl: TTL, data });
    }
}

#[cfg(test)]
mod tests;
