//! WebSocket frames (RFC 6455), server side: reads masked frames, writes plain ones. Pure but for the reading.
//!
//! Invariants: an unmasked, fragmented-control, reserved-bit or over-long frame is an error with its close code;
//! a message is put together to at most [`MESSAGE_MAX`] bytes, allocated as they arrive.

use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Largest message. Clients send chunks of 32 KiB; Python's sends a whole stdin at once.
pub(super) const MESSAGE_MAX: usize = 16 << 20;
/// Largest control frame by the standard.
const CONTROL_MAX: u64 = 125;
/// Memory grows in such steps, not by what a frame claims.
const STEP: usize = 64 << 10;

pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A whole message, text or binary.
    Message(Bytes),
    /// A ping and what to answer.
    Ping(Bytes),
    /// A close; nothing follows.
    Close,
}

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum WsError {
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error("WebSocket: {0}")]
    Protocol(&'static str),
}

struct Head {
    last: bool,
    opcode: u8,
    length: u64,
    mask: [u8; 4],
}

/// Reads the next event; `partial` keeps a fragmented message between control frames.
pub(super) async fn read(
    io: &mut (impl AsyncRead + Unpin),
    partial: &mut Option<BytesMut>,
) -> Result<Event, WsError> {
    loop {
        let head = read_head(io).await?;
        let is_control = head.opcode >= CLOSE;
        if is_control {
            if !head.last || head.length > CONTROL_MAX {
                return Err(WsError::Protocol("bad control frame"));
            }
            let mut payload = BytesMut::new();
            read_payload(io, &head, &mut payload).await?;
            match head.opcode {
                CLOSE => return Ok(Event::Close),
                PING => return Ok(Event::Ping(payload.freeze())),
                PONG => continue,
                _ => return Err(WsError::Protocol("unknown opcode")),
            }
        }
        let mut message = match (head.opcode, partial.take()) {
            (TEXT | BINARY, None) => BytesMut::new(),
            (0, Some(message)) => message,
            _ => return Err(WsError::Protocol("fragments out of order")),
        };
        read_payload(io, &head, &mut message).await?;
        if head.last {
            return Ok(Event::Message(message.freeze()));
        }
        *partial = Some(message);
    }
}

async fn read_head(io: &mut (impl AsyncRead + Unpin)) -> Result<Head, WsError> {
    let mut two = [0; 2];
    io.read_exact(&mut two).await?;
    if two[0] & 0x70 != 0 {
        return Err(WsError::Protocol("reserved bits are set"));
    }
    if two[1] & 0x80 == 0 {
        return Err(WsError::Protocol("a client must mask its frames"));
    }
    let length = match two[1] & 0x7f {
        126 => u64::from(io.read_u16().await?),
        127 => io.read_u64().await?,
        short => u64::from(short),
    };
    let mut mask = [0; 4];
    io.read_exact(&mut mask).await?;
    Ok(Head { last: two[0] & 0x80 != 0, opcode: two[0] & 0x0f, length, mask })
}

async fn read_payload(
    io: &mut (impl AsyncRead + Unpin),
    head: &Head,
    into: &mut BytesMut,
) -> Result<(), WsError> {
    let start = into.len();
    let length = usize::try_from(head.length).unwrap_or(usize::MAX);
    if length > MESSAGE_MAX - start {
        return Err(WsError::Protocol("message too large"));
    }
    while into.len() - start < length {
        let at = into.len();
        into.resize(at + (length - (at - start)).min(STEP), 0);
        io.read_exact(&mut into[at..]).await?;
    }
    into[start..].iter_mut().zip(head.mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok(())
}

/// Appends a whole frame whose payload comes in parts.
pub(super) fn encode(opcode: u8, parts: &[&[u8]], out: &mut Vec<u8>) {
    encode_head(opcode, parts.iter().map(|part| part.len()).sum(), 0, out);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

fn encode_head(opcode: u8, length: usize, mask_bit: u8, out: &mut Vec<u8>) {
    out.push(0x80 | opcode);
    match length {
        0..=125 => out.push(mask_bit | length as u8),
        126..=0xffff => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
pub(in crate::nodeapi) fn encode_masked(opcode: u8, last: bool, payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    encode_head(opcode, payload.len(), 0x80, out);
    if !last {
        out[start] &= 0x7f;
    }
    let mask = [0x12, 0x34, 0x56, 0x78];
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(mut bytes: &[u8]) -> (Vec<Event>, WsError) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut events, mut partial) = (Vec::new(), None);
            loop {
                match read(&mut bytes, &mut partial).await {
                    Ok(event) => events.push(event),
                    Err(error) => return (events, error),
                }
            }
        })
    }

    proptest! {
        #[test]
        fn messages_survive_any_fragmentation(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6)
        ) {
            let mut bytes = Vec::new();
            for (n, piece) in pieces.iter().enumerate() {
                encode_masked(if n == 0 { BINARY } else { 0 }, n + 1 == pieces.len(), piece, &mut bytes);
                encode_masked(PING, true, b"p", &mut bytes);
            }
            let (events, _) = read_all(&bytes);
            let message = Event::Message(pieces.concat().into());
            prop_assert!(events.contains(&message));
            prop_assert_eq!(events.len(), pieces.len() + 1);
        }

        #[test]
        fn garbage_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            read_all(&bytes);
        }
    }

    #[test]
    fn lengths() {
        for length in [0, 1, 125, 126, 65_535, 65_536, 200_000] {
            let mut bytes = Vec::new();
            encode_masked(BINARY, true, &vec![7; length], &mut bytes);
            let (events, _) = read_all(&bytes);
            assert_eq!(events, [Event::Message(vec![7; length].into())]);
        }
    }

    #[test]
    fn breaches_are_refused() {
        let error = |bytes: &[u8]| read_all(bytes).1.to_string();
        assert!(error(&[0x82, 1, b'x']).contains("mask"));
        assert!(error(&[0xc2, 0x80, 0, 0, 0, 0]).contains("reserved"));
        assert!(error(&[0x80, 0x80, 0, 0, 0, 0]).contains("out of order"));
        assert!(error(&[0x09, 0x80, 0, 0, 0, 0]).contains("control"));
        assert!(error(&[0x82, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).contains("too large"));
    }
}
