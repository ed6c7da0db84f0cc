//! One message of the data channel as bytes. Pure.
//!
//! Big endian: length of the head before the payload's length (116), type (32 bytes, spaces behind), version (1),
//! created (ms), sequence number, flags, id (its low half first), SHA-256 of the payload, payload type, payload's
//! length, payload.

use bytes::{BufMut, Bytes, BytesMut};
use ecs_model::refusal::refuse_if;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// From the other side: data.
pub(super) const INPUT: &str = "input_stream_data";
/// To the other side: data.
pub(super) const OUTPUT: &str = "output_stream_data";
/// Both ways: a message has arrived.
pub(super) const ACKNOWLEDGE: &str = "acknowledge";
/// To the other side: the end.
pub(super) const CLOSED: &str = "channel_closed";

/// Length of the head, the payload's length not counted.
const HEAD: usize = 116;
const TYPE_BYTES: usize = 32;

/// Types of payloads.
pub(super) mod payload {
    pub const BYTES: u32 = 1;
    pub const SIZE: u32 = 3;
    pub const HANDSHAKE_REQUEST: u32 = 5;
    pub const HANDSHAKE_RESPONSE: u32 = 6;
    pub const HANDSHAKE_COMPLETE: u32 = 7;
    pub const FLAG: u32 = 10;
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub kind: String,
    pub created_ms: u64,
    pub sequence: i64,
    pub flags: u64,
    pub id: Uuid,
    pub payload_type: u32,
    pub payload: Bytes,
}

/// The bytes are no message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("data channel: {0}")]
pub(super) struct BadMessage(&'static str);

/// Nobody acknowledges any more.
pub(super) const GONE: BadMessage = BadMessage("nobody acknowledges");

impl Message {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEAD + 4 + self.payload.len());
        out.put_u32(HEAD as u32);
        let mut kind = [b' '; TYPE_BYTES];
        kind[..self.kind.len()].copy_from_slice(self.kind.as_bytes());
        out.put_slice(&kind);
        out.put_u32(1);
        out.put_u64(self.created_ms);
        out.put_i64(self.sequence);
        out.put_u64(self.flags);
        let (high, low) = self.id.as_u64_pair();
        out.put_u64(low);
        out.put_u64(high);
        out.put_slice(&Sha256::digest(&self.payload));
        out.put_u32(self.payload_type);
        out.put_u32(self.payload.len() as u32);
        out.put_slice(&self.payload);
        out.freeze()
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Message, BadMessage> {
        let part = |at: usize, length: usize| bytes.get(at..at + length).ok_or(BadMessage("too short"));
        let word = |at: usize| Ok(u32::from_be_bytes(part(at, 4)?.try_into().expect("4 bytes")));
        let long = |at: usize| Ok(u64::from_be_bytes(part(at, 8)?.try_into().expect("8 bytes")));
        let head = word(0)? as usize;
        refuse_if(head != HEAD, || BadMessage("unknown length of the head"))?;
        let payload_length = word(HEAD)? as usize;
        let payload = bytes.slice(HEAD + 4..);
        refuse_if(payload.len() != payload_length, || BadMessage("wrong length of the payload"))?;
        if payload_length > 0 && part(80, 32)? != Sha256::digest(&payload).as_slice() {
            return Err(BadMessage("wrong digest of the payload"));
        }
        let kind = std::str::from_utf8(part(4, TYPE_BYTES)?).map_err(|_| BadMessage("type is no text"))?;
        Ok(Message {
            kind: kind.trim_matches(['\0', ' ']).into(),
            created_ms: long(40)?,
            sequence: long(48)?.cast_signed(),
            flags: long(56)?,
            id: Uuid::from_u64_pair(long(72)?, long(64)?),
            payload_type: word(112)?,
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(payload: Vec<u8>) -> Message {
        Message {
            kind: OUTPUT.into(),
            created_ms: 5,
            sequence: 7,
            flags: 3,
            id: Uuid::from_u64_pair(0x0102_0304_0506_0708, 0x090a_0b0c_0d0e_0f10),
            payload_type: 1,
            payload: payload.into(),
        }
    }

    #[test]
    fn layout() {
        let bytes = message(b"hi".to_vec()).encode();
        assert_eq!(&bytes[..40], b"\0\0\0\x74output_stream_data              \0\0\0\x01");
        assert_eq!(bytes[64], 0x09);
        assert_eq!(&bytes[112..], [0, 0, 0, 1, 0, 0, 0, 2, b'h', b'i']);
    }

    proptest! {
        #[test]
        fn there_and_back_or_refused(payload: Vec<u8>, at in 0usize..200, byte: u8, cut in 0usize..200) {
            let message = message(payload);
            let bytes = message.encode();
            prop_assert_eq!(Message::decode(&bytes).unwrap(), message);
            let mut broken = bytes.to_vec();
            if at < broken.len() { broken[at] = byte; }
            let _ = Message::decode(&broken.into());
            prop_assert!(cut >= bytes.len() || Message::decode(&bytes.slice(..cut)).is_err());
        }
    }
}
