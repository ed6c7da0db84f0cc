//! One event as bytes. Pure.
//!
//! Record: length of the body (u32), CRC-32 of the body (u32), body: time, time of arrival, number in the stream (u64
//! each), the message. Little endian. Whatever fails its check ends the readable part of a file.

/// Longest message in bytes (CloudWatch's: 1 MiB).
pub const MESSAGE_MAX: usize = 1 << 20;
/// Bytes before the body.
const HEAD: usize = 8;
/// Bytes of the body before the message.
const FIXED: usize = 24;

/// One log event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it happened, milliseconds since 1970.
    pub timestamp_ms: u64,
    /// When it came here.
    pub ingested_ms: u64,
    /// Its number in its stream; later ones have larger numbers.
    pub number: u64,
    /// The text.
    pub message: String,
}

impl Event {
    /// Bytes that it takes in a file.
    pub fn encoded_len(&self) -> usize {
        HEAD + FIXED + self.message.len()
    }

    /// Appends it to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let length = u32::try_from(FIXED + self.message.len()).expect("a message is at most 1 MiB");
        out.extend_from_slice(&length.to_le_bytes());
        let crc_at = out.len();
        out.extend_from_slice(&[0; 4]);
        for number in [self.timestamp_ms, self.ingested_ms, self.number] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(self.message.as_bytes());
        let crc = crc32fast::hash(&out[crc_at + 4..]);
        out[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    }
}

/// The first event of `bytes` and its length there; `None` at the end or at the first damage.
pub fn decode(bytes: &[u8]) -> Option<(Event, usize)> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let length = number(0)? as usize;
    if !(FIXED..=FIXED + MESSAGE_MAX).contains(&length) {
        return None;
    }
    let body = bytes.get(HEAD..HEAD + length)?;
    if crc32fast::hash(body) != number(4)? {
        return None;
    }
    let word = |at: usize| Some(u64::from_le_bytes(body[at..at + 8].try_into().ok()?));
    let message = String::from_utf8(body[FIXED..].to_vec()).ok()?;
    let event = Event { timestamp_ms: word(0)?, ingested_ms: word(8)?, number: word(16)?, message };
    Some((event, HEAD + length))
}

/// All events of `bytes` up to the end or the first damage.
pub fn decode_all(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some((event, length)) = decode(bytes) {
        events.push(event);
        bytes = &bytes[length..];
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whole_records_survive_any_cut(texts in prop::collection::vec(".{0,40}", 0..8), cut in 0usize..400) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            let mut events = Vec::new();
            for (number, message) in texts.into_iter().enumerate() {
                let event = Event { timestamp_ms: 7, ingested_ms: 9, number: number as u64, message };
                event.encode(&mut bytes);
                ends.push(bytes.len());
                events.push(event);
            }
            let cut = cut.min(bytes.len());
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            prop_assert_eq!(decode_all(&bytes[..cut]), &events[..whole]);
        }

        #[test]
        fn a_flipped_bit_is_seen(at in 0usize..37, bit in 0u8..8) {
            let event = Event { timestamp_ms: 1, ingested_ms: 2, number: 3, message: "hello".into() };
            let mut bytes = Vec::new();
            event.encode(&mut bytes);
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes).is_none());
        }
    }
}
