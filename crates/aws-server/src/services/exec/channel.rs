//! The data channel's bookkeeping: sequence numbers, acknowledgements, what is sent again and when. Pure: bytes and
//! the time come in, bytes go out.
//!
//! Messages out are kept until acknowledged; the oldest is sent again when it waited too long. Messages in are given
//! on in order; later ones wait, bounded. The protocol's own rule: every data message is acknowledged, also twice.

use super::message::{ACKNOWLEDGE, BadMessage, INPUT, Message, OUTPUT};
use bytes::Bytes;
use ecs_model::refusal::refuse_if;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use uuid::Uuid;

/// Messages out that may be unacknowledged; beyond that the command waits.
const WINDOW: usize = 64;
/// Messages in that wait for an earlier one.
const HELD_MAX: usize = 256;
/// Waits of a message before it is sent again: the first, and the longest.
const RESEND_FIRST: Duration = Duration::from_millis(200);
const RESEND_MAX: Duration = Duration::from_secs(5);
/// A message that was sent so often reaches nobody (some minutes, with the longest wait).
const RESENDS_MAX: u32 = 60;
/// Both of SYN and FIN, as acknowledgements have them.
const ALONE: u64 = 3;

struct Sent {
    sequence: i64,
    bytes: Bytes,
    at: Duration,
    times: u32,
}

/// The state of a channel. Times count from its beginning.
#[derive(Default)]
pub(super) struct Channel {
    next_out: i64,
    next_in: i64,
    unacknowledged: VecDeque<Sent>,
    held: BTreeMap<i64, (u32, Bytes)>,
}

/// What follows from a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Received {
    /// To be sent.
    pub replies: Vec<Bytes>,
    /// Payloads in order, with their types.
    pub payloads: Vec<(u32, Bytes)>,
}

/// What of the world a message needs.
#[derive(Clone, Copy)]
pub(super) struct Stamp {
    /// Milliseconds since 1970.
    pub now_ms: u64,
    /// A new random id.
    pub id: Uuid,
    /// Since the channel's beginning.
    pub at: Duration,
}

impl Channel {
    /// May another message be sent?
    pub(super) fn has_room(&self) -> bool {
        self.unacknowledged.len() < WINDOW
    }

    /// Has everything arrived?
    pub(super) fn is_quiet(&self) -> bool {
        self.unacknowledged.is_empty()
    }

    /// A data message to be sent.
    pub(super) fn send(&mut self, payload_type: u32, payload: Bytes, stamp: Stamp) -> Bytes {
        let sequence = self.next_out;
        self.next_out += 1;
        let flags = u64::from(sequence == 0);
        let kind = OUTPUT.into();
        let message =
            Message { kind, created_ms: stamp.now_ms, sequence, flags, id: stamp.id, payload_type, payload };
        let bytes = message.encode();
        self.unacknowledged.push_back(Sent { sequence, bytes: bytes.clone(), at: stamp.at, times: 1 });
        bytes
    }

    /// Takes a message from the other side.
    pub(super) fn receive(&mut self, bytes: &Bytes, stamp: Stamp) -> Result<Received, BadMessage> {
        let message = Message::decode(bytes)?;
        let mut received = Received::default();
        match message.kind.as_str() {
            ACKNOWLEDGE => {
                let content: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
                let of = content["AcknowledgedMessageSequenceNumber"].as_i64();
                self.unacknowledged.retain(|sent| Some(sent.sequence) != of);
            }
            INPUT => {
                let sequence = message.sequence;
                if sequence > self.next_in && self.held.len() >= HELD_MAX {
                    return Ok(received);
                }
                received.replies.push(acknowledgement(&message, stamp));
                if sequence >= self.next_in {
                    self.held.insert(sequence, (message.payload_type, message.payload));
                }
                while let Some(next) = self.held.remove(&self.next_in) {
                    self.next_in += 1;
                    received.payloads.push(next);
                }
            }
            _ => {}
        }
        Ok(received)
    }

    /// When something must be sent again.
    pub(super) fn due_at(&self) -> Option<Duration> {
        self.unacknowledged.front().map(|sent| sent.at + wait(sent.times))
    }

    /// What must be sent again now; an error when the other side is gone.
    pub(super) fn resend(&mut self, now: Duration) -> Result<Option<Bytes>, BadMessage> {
        let Some(oldest) = self.unacknowledged.front_mut().filter(|s| s.at + wait(s.times) <= now) else {
            return Ok(None);
        };
        refuse_if(oldest.times >= RESENDS_MAX, || super::message::GONE)?;
        (oldest.times, oldest.at) = (oldest.times + 1, now);
        Ok(Some(oldest.bytes.clone()))
    }
}

fn wait(times: u32) -> Duration {
    (RESEND_FIRST * 2u32.saturating_pow(times.saturating_sub(1).min(8))).min(RESEND_MAX)
}

fn acknowledgement(message: &Message, stamp: Stamp) -> Bytes {
    let content = json!({
        "AcknowledgedMessageType": message.kind, "AcknowledgedMessageId": message.id.to_string(),
        "AcknowledgedMessageSequenceNumber": message.sequence, "IsSequentialMessage": true,
    });
    let acknowledgement = Message {
        kind: ACKNOWLEDGE.into(),
        created_ms: stamp.now_ms,
        sequence: 0,
        flags: ALONE,
        id: stamp.id,
        payload_type: 0,
        payload: content.to_string().into(),
    };
    acknowledgement.encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(ms: u64) -> Stamp {
        Stamp { now_ms: ms, id: Uuid::nil(), at: Duration::from_millis(ms) }
    }

    fn input(sequence: i64, text: &str) -> Bytes {
        let (kind, payload) = (INPUT.into(), Bytes::from(text.to_string()));
        let (created_ms, flags, id, payload_type) = (1, 0, Uuid::nil(), 1);
        Message { kind, created_ms, sequence, flags, id, payload_type, payload }.encode()
    }

    fn acknowledged(bytes: &Bytes) -> i64 {
        let message = Message::decode(bytes).unwrap();
        let content: Value = serde_json::from_slice(&message.payload).unwrap();
        content["AcknowledgedMessageSequenceNumber"].as_i64().unwrap()
    }

    #[test]
    fn sent_again_until_acknowledged() {
        let mut channel = Channel::default();
        let first = channel.send(1, "a".into(), stamp(0));
        channel.send(1, "b".into(), stamp(0));
        assert_eq!(channel.due_at(), Some(Duration::from_millis(200)));
        assert_eq!(channel.resend(Duration::from_millis(199)), Ok(None));
        assert_eq!(channel.resend(Duration::from_millis(200)), Ok(Some(first.clone())));
        assert_eq!(channel.due_at(), Some(Duration::from_millis(600)));
        let content = json!({"AcknowledgedMessageSequenceNumber": 0}).to_string();
        let mut ack = Message::decode(&first).unwrap();
        (ack.kind, ack.payload) = (ACKNOWLEDGE.into(), content.into());
        channel.receive(&ack.encode(), stamp(300)).unwrap();
        assert_eq!(Message::decode(&channel.unacknowledged[0].bytes).unwrap().payload, "b");
        let mut now = Duration::ZERO;
        let end = (0..1000).find_map(|_| {
            now += RESEND_MAX;
            channel.resend(now).err()
        });
        assert!(end.is_some(), "a client that never answers ends the channel");
    }

    proptest! {
        #[test]
        fn input_comes_in_order_once(order in prop::collection::vec(0i64..12, 0..80)) {
            let mut channel = Channel::default();
            let mut got = Vec::new();
            for sequence in &order {
                let received = channel.receive(&input(*sequence, &sequence.to_string()), stamp(0)).unwrap();
                prop_assert_eq!(received.replies.iter().map(acknowledged).collect::<Vec<_>>(), [*sequence]);
                got.extend(received.payloads.into_iter().map(|(_, text)| text));
            }
            let complete = (0..12).take_while(|n| order.contains(n)).map(|n| Bytes::from(n.to_string()));
            prop_assert_eq!(got, complete.collect::<Vec<_>>());
        }
    }
}
