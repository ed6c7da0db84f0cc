//! A bounded cache of upstream replies. Pure: the caller brings the time.
//!
//! Invariants: at most [`ENTRIES_MAX`] replies of at most [`REPLY_MAX`] bytes; a reply is kept no longer than
//! its shortest TTL and never longer than the caps; what is handed out carries the TTL that is left, the
//! asker's id and the asker's spelling.
//! Deliberately not here: answers about the cluster (they are cheaper to make than to keep).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::answer::Transport;
use crate::message::{Query, Reply, TYPE_OPT, TYPE_SOA, be32};

/// With [`REPLY_MAX`] this bounds the cache to 8 MiB; usual replies are a twentieth of that size.
const ENTRIES_MAX: usize = 2048;
const REPLY_MAX: usize = 4096;
/// Positive answers are kept at most so long: short, because upstream has a cache of its own.
const TTL_MAX: u32 = 60;
/// "No such name" hurts when it is outdated.
const NEGATIVE_TTL_MAX: u32 = 10;
const QUESTION_AT: usize = 12;

/// What must be equal for a reply to be reused: transport and the query without id, in lower case.
type Key = (bool, Vec<u8>);

#[derive(Debug)]
struct Entry {
    reply: Vec<u8>,
    ttls_at: Vec<usize>,
    stored: Instant,
    expires: Instant,
}

/// The cache. Evicts the oldest.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Key, Entry>,
    order: VecDeque<Key>,
}

fn key(message: &[u8], query: &Query, transport: Transport) -> Key {
    let mut canonical = message[2..].to_vec();
    let name = QUESTION_AT - 2;
    canonical[name..name + query.name.wire().len()].copy_from_slice(query.name.wire());
    (transport == Transport::Tcp, canonical)
}

/// Seconds that a reply may be kept, and where its TTLs are; `None` if not at all.
fn keeps(bytes: &[u8]) -> Option<(u32, Vec<usize>)> {
    let reply = Reply::read(bytes).filter(|_| bytes.len() <= REPLY_MAX)?;
    if reply.truncated || ![0, 3].contains(&reply.code) {
        return None;
    }
    let records = || reply.answers.iter().chain(&reply.authority).chain(&reply.additional);
    let plain = || records().filter(|record| record.kind != TYPE_OPT);
    let shortest = plain().map(|record| record.ttl).min()?;
    let cap = if reply.code == 3 || reply.answers.is_empty() {
        // RFC 2308: a negative answer is kept by its start of authority, or not at all.
        let soa = reply.authority.iter().find(|record| record.kind == TYPE_SOA)?;
        be32(bytes, soa.data.end.checked_sub(4)?)?.min(NEGATIVE_TTL_MAX)
    } else {
        TTL_MAX
    };
    let seconds = shortest.min(cap);
    (seconds > 0).then(|| (seconds, plain().map(|record| record.ttl_at).collect()))
}

impl Cache {
    /// The reply to a query, if a fresh one is there.
    pub(crate) fn get(
        &self,
        now: Instant,
        message: &[u8],
        query: &Query,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let entry = self.entries.get(&key(message, query, transport)).filter(|entry| now < entry.expires)?;
        let age = u32::try_from(now.saturating_duration_since(entry.stored).as_secs()).unwrap_or(u32::MAX);
        let mut reply = entry.reply.clone();
        reply[..2].copy_from_slice(&query.id.to_be_bytes());
        reply[QUESTION_AT..QUESTION_AT + query.question.len()].copy_from_slice(&query.question);
        for at in &entry.ttls_at {
            let left = be32(&reply, *at)?.saturating_sub(age);
            reply[*at..at + 4].copy_from_slice(&left.to_be_bytes());
        }
        Some(reply)
    }

    /// Keeps a reply whose question is the query's, if it may be kept.
    pub(crate) fn put(&mut self, now: Instant, asked: (&[u8], &Query, Transport), reply: &[u8]) {
        let Some((seconds, ttls_at)) = keeps(reply) else { return };
        let key = key(asked.0, asked.1, asked.2);
        let expires = now + Duration::from_secs(u64::from(seconds));
        let entry = Entry { reply: reply.to_vec(), ttls_at, stored: now, expires };
        if self.entries.insert(key.clone(), entry).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.entries.len() > ENTRIES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::message::{Answer, Code, Data, Sections, TYPE_A, write_question, write_reply};
    use crate::name::Name;

    fn ask(name: &str) -> (Vec<u8>, Query) {
        let message = write_question(&Name::parse(name).unwrap(), TYPE_A);
        let query = Query::read(&message).unwrap();
        (message, query)
    }

    fn reply(query: &Query, code: Code, ttl: u32) -> Vec<u8> {
        let answer = Answer { owner: query.name.clone(), ttl, data: Data::A(Ipv4Addr::LOCALHOST) };
        let answers = if code == Code::NoError { vec![answer] } else { vec![] };
        write_reply(query, code, &Sections { answers, ..Sections::default() }, 512)
    }

    #[test]
    fn replies_age_and_take_the_askers_spelling() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        let (message, query) = ask("example.com");
        cache.put(now, (&message, &query, Transport::Udp), &reply(&query, Code::NoError, 30));
        let mut shouted = message.clone();
        shouted[13..20].make_ascii_uppercase();
        shouted[0] = 9;
        let asker = Query::read(&shouted).unwrap();
        let later = now + Duration::from_secs(20);
        let got = cache.get(later, &shouted, &asker, Transport::Udp).unwrap();
        assert_eq!((got[0], &got[12..shouted.len()]), (9, &shouted[12..]));
        assert_eq!(Reply::read(&got).unwrap().answers[0].ttl, 10);
        assert_eq!(cache.get(later, &shouted, &asker, Transport::Tcp), None);
        assert_eq!(cache.get(now + Duration::from_secs(30), &message, &query, Transport::Udp), None);
    }

    #[test]
    fn failures_and_bare_negatives_are_not_kept() {
        let (_, query) = ask("example.com");
        assert!(keeps(&reply(&query, Code::NoError, 30)).is_some_and(|(seconds, _)| seconds == 30));
        assert!(keeps(&reply(&query, Code::NoError, 9999)).is_some_and(|(seconds, _)| seconds == TTL_MAX));
        assert_eq!(keeps(&reply(&query, Code::NoError, 0)), None);
        assert_eq!(keeps(&reply(&query, Code::ServerFailure, 30)), None);
        assert_eq!(keeps(&reply(&query, Code::NoSuchName, 30)), None);
        let (server, contact) = (Name::parse("ns").unwrap(), Name::parse("hm").unwrap());
        let soa = Answer { owner: query.name.clone(), ttl: 100, data: Data::Soa { server, contact } };
        let sections = Sections { authority: vec![soa], ..Sections::default() };
        let negative = write_reply(&query, Code::NoSuchName, &sections, 512);
        assert!(keeps(&negative).is_some_and(|(seconds, _)| seconds == 5));
    }

    #[test]
    fn the_oldest_makes_room() {
        let (now, mut cache) = (Instant::now(), Cache::default());
        for n in 0..=ENTRIES_MAX {
            let (message, query) = ask(&format!("n{n}.example.com"));
            for _ in 0..2 {
                cache.put(now, (&message, &query, Transport::Udp), &reply(&query, Code::NoError, 30));
            }
        }
        assert_eq!((cache.entries.len(), cache.order.len()), (ENTRIES_MAX, ENTRIES_MAX));
        let hit = |n: usize| {
            let (message, query) = ask(&format!("n{n}.example.com"));
            cache.get(now, &message, &query, Transport::Udp).is_some()
        };
        assert!(!hit(0) && hit(1) && hit(ENTRIES_MAX));
    }
}
