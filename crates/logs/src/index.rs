//! The sparse index of a stream: one entry for some 64 KiB of events. Pure.
//!
//! Events lie in the order in which they came; entries say which times they span, so that a reader finds the few
//! chunks that it needs.

use serde::{Deserialize, Serialize};

/// A chunk is closed when it has so many bytes. A stream of 1 GiB has 16,000 entries: under 1 MiB of memory.
pub const CHUNK_BYTES: u64 = 64 << 10;

/// A run of events in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Number of the segment (that of its first event).
    pub segment: u64,
    /// Where it begins in the segment's file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// Earliest time in it.
    pub min_ms: u64,
    /// Latest time in it.
    pub max_ms: u64,
}

/// Books an event of `length` bytes, which follows directly on what was booked before in this segment.
pub fn book(chunks: &mut Vec<Chunk>, segment: u64, length: u64, time_ms: u64) {
    let end = match chunks.last_mut() {
        Some(last) if last.segment == segment => {
            if last.length < CHUNK_BYTES {
                last.length += length;
                last.min_ms = last.min_ms.min(time_ms);
                last.max_ms = last.max_ms.max(time_ms);
                return;
            }
            last.offset + last.length
        }
        _ => 0,
    };
    chunks.push(Chunk { segment, offset: end, length, min_ms: time_ms, max_ms: time_ms });
}

/// Bytes of a segment that the index knows.
pub fn segment_length(chunks: &[Chunk], segment: u64) -> u64 {
    chunks.iter().rev().find(|c| c.segment == segment).map_or(0, |c| c.offset + c.length)
}

/// Numbers of the segments, oldest first, with their latest time and their bytes.
pub fn segments(chunks: &[Chunk]) -> Vec<(u64, u64, u64)> {
    let mut list: Vec<(u64, u64, u64)> = Vec::new();
    for chunk in chunks {
        match list.last_mut() {
            Some((number, max_ms, bytes)) if *number == chunk.segment => {
                *max_ms = (*max_ms).max(chunk.max_ms);
                *bytes += chunk.length;
            }
            _ => list.push((chunk.segment, chunk.max_ms, chunk.length)),
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_close_by_size_and_by_segment() {
        let mut chunks = Vec::new();
        book(&mut chunks, 0, 40_000, 5);
        book(&mut chunks, 0, 40_000, 3);
        book(&mut chunks, 0, 10, 4);
        book(&mut chunks, 3, 10, 9);
        let all: Vec<_> =
            chunks.iter().map(|c| (c.segment, c.offset, c.length, c.min_ms, c.max_ms)).collect();
        assert_eq!(all, [(0, 0, 80_000, 3, 5), (0, 80_000, 10, 4, 4), (3, 0, 10, 9, 9)]);
        assert_eq!((segment_length(&chunks, 0), segment_length(&chunks, 9)), (80_010, 0));
        assert_eq!(segments(&chunks), [(0, 5, 80_010), (3, 9, 10)]);
    }
}
