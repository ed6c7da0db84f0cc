//! Reading a page of events in order of time, over any number of streams, forward or backward. Pure but for `load`.
//!
//! Chunks are visited by their first time; the best candidates stand in a heap that is never larger than a page. So a
//! page costs its own size and one chunk in memory, and in the common case (events came in order) one or two chunks of
//! reading; where they came in any order whatever it costs more reading, never more memory.

use crate::index::Chunk;
use crate::record::Event;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;

/// What CloudWatch counts for an event beside its text.
pub const EVENT_OVERHEAD: usize = 26;

/// The place of an event among all events of a group: by time, then by stream, then by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Its time.
    pub timestamp_ms: u64,
    /// Its stream's number in the group, from 1.
    pub stream: u64,
    /// Its number in the stream.
    pub number: u64,
}

impl Position {
    /// The same order, turned round when reading backward.
    fn key(self, forward: bool) -> (u64, u64, u64) {
        match forward {
            true => (self.timestamp_ms, self.stream, self.number),
            false => (!self.timestamp_ms, !self.stream, !self.number),
        }
    }

    fn from_key(key: (u64, u64, u64), forward: bool) -> Position {
        let (timestamp_ms, stream, number) = if forward { key } else { (!key.0, !key.1, !key.2) };
        Position { timestamp_ms, stream, number }
    }
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Times, the end excluded.
    pub times_ms: Range<u64>,
    /// Only what lies beyond this in the direction of reading.
    pub beyond: Option<Position>,
    /// From the earliest on, or from the latest back.
    pub forward: bool,
    /// Events at most.
    pub count_max: usize,
    /// Bytes at most, each event counted with [`EVENT_OVERHEAD`]; the first event always fits.
    pub bytes_max: usize,
    /// Bytes of files to read before a page may end early.
    pub scan_max: u64,
}

/// An event and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it stands.
    pub at: Position,
    /// The event.
    pub event: Event,
}

/// What was found, in the direction of reading.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The events.
    pub events: Vec<Found>,
    /// There may be more beyond this.
    pub more_beyond: Option<Position>,
}

struct Candidate {
    key: (u64, u64, u64),
    cost: usize,
    event: Event,
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
impl Eq for Candidate {}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

/// The nearest candidates seen so far, no more than a page of them.
struct Nearest<'a> {
    wanted: &'a Wanted,
    heap: BinaryHeap<Candidate>,
    bytes: usize,
    dropped: bool,
}

impl Nearest<'_> {
    fn push(&mut self, candidate: Candidate) {
        self.bytes += candidate.cost;
        self.heap.push(candidate);
        while let Some(last) = self.heap.peek()
            && (self.heap.len() > self.wanted.count_max || self.bytes - last.cost >= self.wanted.bytes_max)
        {
            self.bytes -= last.cost;
            self.heap.pop();
            self.dropped = true;
        }
    }

    /// Is the page full with candidates that all lie before `first`?
    fn full_before(&self, first: u64) -> bool {
        (self.heap.len() >= self.wanted.count_max || self.bytes >= self.wanted.bytes_max)
            && self.heap.peek().is_some_and(|last| last.key.0 < first)
    }

    fn page(self, mut end: Option<(u64, u64, u64)>) -> Page {
        let wanted = self.wanted;
        let mut dropped = self.dropped;
        let mut page = Page::default();
        let mut left = wanted.bytes_max;
        let mut last = None;
        for candidate in self.heap.into_sorted_vec() {
            if end.is_some_and(|end| candidate.key >= end) {
                break;
            }
            if candidate.cost > left && last.is_some() {
                dropped = true;
                break;
            }
            left = left.saturating_sub(candidate.cost);
            last = Some(candidate.key);
            let at = Position::from_key(candidate.key, wanted.forward);
            page.events.push(Found { at, event: candidate.event });
        }
        if dropped {
            end = last.or(end);
        }
        page.more_beyond = end.map(|key| Position::from_key(key, wanted.forward));
        page
    }
}

/// Reads a page. `chunks` are (stream, chunk); `load` reads a chunk's events; `matches` chooses.
///
/// # Errors
/// Those of `load`.
pub fn scan<E>(
    chunks: &[(u64, Chunk)],
    wanted: &Wanted,
    mut matches: impl FnMut(&Event) -> bool,
    mut load: impl FnMut(u64, &Chunk) -> Result<Vec<Event>, E>,
) -> Result<Page, E> {
    let forward = wanted.forward;
    let beyond = wanted.beyond.map(|at| at.key(forward));
    let span = |c: &Chunk| if forward { (c.min_ms, c.max_ms) } else { (!c.max_ms, !c.min_ms) };
    let is_near = |c: &Chunk| {
        c.max_ms >= wanted.times_ms.start
            && c.min_ms < wanted.times_ms.end
            && beyond.is_none_or(|beyond| span(c).1 >= beyond.0)
    };
    let mut order: Vec<&(u64, Chunk)> = chunks.iter().filter(|(_, c)| is_near(c)).collect();
    order.sort_by_key(|(stream, c)| (span(c).0, *stream, c.segment, c.offset));
    let mut nearest = Nearest { wanted, heap: BinaryHeap::new(), bytes: 0, dropped: false };
    let mut scanned = 0;
    for (stream, chunk) in order {
        let first = span(chunk).0;
        if nearest.full_before(first) {
            nearest.dropped = true;
            break;
        }
        // Everything before this chunk's first time is known: a page may end there, if that is any progress.
        if scanned >= wanted.scan_max && beyond.is_none_or(|beyond| beyond.0 < first) {
            return Ok(nearest.page(Some((first, 0, 0))));
        }
        scanned += chunk.length;
        for event in load(*stream, chunk)? {
            let at = Position { timestamp_ms: event.timestamp_ms, stream: *stream, number: event.number };
            let key = at.key(forward);
            let chosen = wanted.times_ms.contains(&event.timestamp_ms)
                && beyond.is_none_or(|beyond| key > beyond)
                && matches(&event);
            if chosen {
                let cost = event.message.len() + EVENT_OVERHEAD;
                nearest.push(Candidate { key, cost, event });
            }
        }
    }
    Ok(nearest.page(None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::book;
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// Events by (stream, chunk): a chunk closes every third event.
    type World = Vec<(u64, Chunk, Vec<Event>)>;

    fn world(times: &[(u64, u64)]) -> World {
        let mut world: World = Vec::new();
        for stream in 1..=2 {
            let mine: Vec<u64> = times.iter().filter(|(s, _)| *s == stream).map(|(_, t)| *t).collect();
            for (n, part) in mine.chunks(3).enumerate() {
                let mut chunks = Vec::new();
                let event = |(i, t): (usize, &u64)| {
                    book(&mut chunks, n as u64, 50, *t);
                    let number = (n * 3 + i) as u64;
                    Event { timestamp_ms: *t, ingested_ms: 0, number, message: format!("{stream}/{number}") }
                };
                let events = part.iter().enumerate().map(event).collect();
                world.push((stream, chunks[0], events));
            }
        }
        world
    }

    fn all_pages(world: &World, wanted: &Wanted) -> Vec<String> {
        let chunks: Vec<(u64, Chunk)> = world.iter().map(|(s, c, _)| (*s, *c)).collect();
        let (mut wanted, mut texts) = (wanted.clone(), Vec::new());
        for _ in 0..1_000 {
            let load = |stream: u64, chunk: &Chunk| {
                let found = world.iter().find(|(s, c, _)| *s == stream && c == chunk).unwrap();
                Ok::<_, Infallible>(found.2.clone())
            };
            let page = scan(&chunks, &wanted, |e| e.number % 5 != 4, load).unwrap();
            assert!(page.events.len() <= wanted.count_max);
            texts.extend(page.events.into_iter().map(|f| f.event.message));
            let Some(next) = page.more_beyond else { return texts };
            wanted.beyond = Some(next);
        }
        panic!("no end");
    }

    proptest! {
        #[test]
        fn pages_together_are_everything_in_order(
            times in prop::collection::vec((1u64..=2, 0u64..30), 0..60),
            from in 0u64..10, until in 10u64..35, count_max in 1usize..7, bytes_max in 20usize..200,
            scan_max in 1u64..400, forward: bool,
        ) {
            let world = world(&times);
            let mut expected: Vec<(u64, u64, u64, String)> = world.iter().flat_map(|(s, _, events)| {
                events.iter().map(|e| (e.timestamp_ms, *s, e.number, e.message.clone()))
            }).filter(|(t, _, n, _)| (from..until).contains(t) && n % 5 != 4).collect();
            expected.sort();
            if !forward { expected.reverse(); }
            let wanted = Wanted { times_ms: from..until, beyond: None, forward, count_max, bytes_max, scan_max };
            let expected: Vec<String> = expected.into_iter().map(|e| e.3).collect();
            prop_assert_eq!(all_pages(&world, &wanted), expected);
        }
    }
}
