//! WebSocket messages (RFC 6455), both sides: just what the data channel and exec streams need.
//!
//! A message is put together to at most [`MESSAGE_MAX`] bytes. Deliberately not here: extensions, sub-protocols.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use ecs_model::refusal::refuse_if;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Largest message: pieces of a terminal are far smaller.
pub const MESSAGE_MAX: usize = 1 << 20;
const CONTROL_MAX: u64 = 125;
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Kinds of messages, by their number in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text = 1,
    /// Bytes.
    Binary = 2,
    /// The end.
    Close = 8,
    /// To be answered by a pong with the same payload.
    Ping = 9,
    /// The answer.
    Pong = 10,
}

fn kind(number: u8) -> Option<Kind> {
    [Kind::Text, Kind::Binary, Kind::Close, Kind::Ping, Kind::Pong].into_iter().find(|k| *k as u8 == number)
}

/// What the `Sec-WebSocket-Accept` header answers to a key.
pub fn accept(key: &str) -> String {
    let sum = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{}{GUID}", key.trim()).as_bytes(),
    );
    STANDARD.encode(sum)
}

/// Appends a whole message. A client's must be masked.
pub fn encode(kind: Kind, payload: &[u8], mask: Option<[u8; 4]>, out: &mut Vec<u8>) {
    out.push(0x80 | kind as u8);
    let bit = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        short @ 0..=125 => out.push(bit | short as u8),
        middle @ 126..=0xffff => {
            out.push(bit | 126);
            out.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            out.push(bit | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    match mask {
        None => out.extend_from_slice(payload),
        Some(mask) => {
            out.extend_from_slice(&mask);
            out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, m)| byte ^ m));
        }
    }
}

fn breach(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("WebSocket: {text}"))
}

/// Reads messages. Not safe to cancel in the middle of one: keep it in a task of its own.
pub struct Reader<R> {
    io: R,
    masked: bool,
    partial: Option<(Kind, BytesMut)>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Over a stream; `masked`: the other side is the client.
    pub fn new(io: R, masked: bool) -> Self {
        Reader { io, masked, partial: None }
    }

    /// The next message.
    ///
    /// # Errors
    /// The stream ended, or the other side broke the protocol.
    pub async fn next(&mut self) -> io::Result<(Kind, Bytes)> {
        loop {
            let mut two = [0; 2];
            self.io.read_exact(&mut two).await?;
            let (last, number) = (two[0] & 0x80 != 0, two[0] & 0x0f);
            refuse_if(two[0] & 0x70 != 0, || breach("reserved bits are set"))?;
            let mut payload = BytesMut::new();
            if number >= Kind::Close as u8 {
                let kind = kind(number).ok_or_else(|| breach("unknown opcode"))?;
                refuse_if(!last || u64::from(two[1] & 0x7f) > CONTROL_MAX, || breach("bad control frame"))?;
                self.payload(two[1], &mut payload).await?;
                return Ok((kind, payload.freeze()));
            }
            let (kind, mut payload) = match (number, self.partial.take()) {
                (0, Some(partial)) => partial,
                (1 | 2, None) => (kind(number).ok_or_else(|| breach("unknown opcode"))?, payload),
                _ => return Err(breach("fragments out of order")),
            };
            self.payload(two[1], &mut payload).await?;
            if last {
                return Ok((kind, payload.freeze()));
            }
            self.partial = Some((kind, payload));
        }
    }

    async fn payload(&mut self, second: u8, into: &mut BytesMut) -> io::Result<()> {
        if (second & 0x80 != 0) != self.masked {
            return Err(breach("a client masks its frames, a server does not"));
        }
        let length = match second & 0x7f {
            126 => u64::from(self.io.read_u16().await?),
            127 => self.io.read_u64().await?,
            short => u64::from(short),
        };
        let mut mask = [0; 4];
        if self.masked {
            self.io.read_exact(&mut mask).await?;
        }
        let start = into.len();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        refuse_if(length > MESSAGE_MAX - start, || breach("message too large"))?;
        into.resize(start + length, 0);
        self.io.read_exact(&mut into[start..]).await?;
        into[start..].iter_mut().zip(mask.iter().cycle()).for_each(|(byte, m)| *byte ^= m);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_accept_value_of_the_standard() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    fn read_all(bytes: &[u8], masked: bool) -> Vec<(Kind, Bytes)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut reader, mut all) = (Reader::new(bytes, masked), Vec::new());
            while let Ok(message) = reader.next().await {
                all.push(message);
            }
            all
        })
    }

    proptest! {
        #[test]
        fn there_and_back(length in prop::sample::select(vec![0, 1, 125, 126, 65_535, 65_536, 100_000]), masked: bool) {
            let payload = vec![7; length];
            let mut bytes = Vec::new();
            encode(Kind::Binary, &payload, masked.then_some([1, 2, 3, 4]), &mut bytes);
            encode(Kind::Ping, b"p", masked.then_some([5, 6, 7, 8]), &mut bytes);
            let expected = vec![(Kind::Binary, payload.into()), (Kind::Ping, Bytes::from_static(b"p"))];
            prop_assert_eq!(read_all(&bytes, masked), expected);
            prop_assert_eq!(read_all(&bytes, !masked), []);
        }

        #[test]
        fn garbage_ends(bytes: Vec<u8>, masked: bool) {
            read_all(&bytes, masked);
        }
    }
}
