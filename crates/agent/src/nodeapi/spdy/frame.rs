//! SPDY/3.1 frames as bytes. Pure; both directions, because the tests play the client.
//!
//! Layout: control `1|version:15 type:16 | flags:8 length:24 | …`, data `0|stream:31 | flags:8 length:24 | bytes`.
//! Data is not held in frames: the connection passes it on piece by piece.

use super::SpdyError;
use super::headers::{Deflater, Headers, Inflater};

/// The head of every frame.
pub(super) const HEAD_BYTES: usize = 8;
/// Largest control frame taken: a header block deflates, so more is no honest one.
pub(super) const CONTROL_MAX: u32 = 64 << 10;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

/// The head of a frame, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    Data { stream: u32, fin: bool, length: u32 },
    Control { kind: u16, flags: u8, length: u32 },
}

impl Head {
    pub(super) fn decode(bytes: [u8; HEAD_BYTES]) -> Result<Head, SpdyError> {
        let [a, b, c, d, flags, l0, l1, l2] = bytes;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Ok(Head::Data { stream, fin: flags & FLAG_FIN != 0, length });
        }
        match u16::from_be_bytes([a & 0x7f, b]) {
            VERSION if length > CONTROL_MAX => Err(SpdyError("control frame too large")),
            VERSION => Ok(Head::Control { kind: u16::from_be_bytes([c, d]), flags, length }),
            _ => Err(SpdyError("not SPDY/3")),
        }
    }
}

/// Status of a stream's reset.
pub(super) const REFUSED_STREAM: u32 = 3;

/// A control frame. Fields that nothing here uses (priorities, associated streams, settings) are not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream { stream: u32, fin: bool, headers: Headers },
    SynReply { stream: u32, fin: bool, headers: Headers },
    Reset { stream: u32, status: u32 },
    Settings,
    Ping { id: u32 },
    GoAway { last: u32 },
    Headers { stream: u32, fin: bool, headers: Headers },
    WindowUpdate { stream: u32, delta: u32 },
}

impl Frame {
    /// Reads the body of a control frame. Header blocks always go through the inflater, else it loses step.
    pub(super) fn decode(
        kind: u16,
        flags: u8,
        body: &[u8],
        inflater: &mut Inflater,
    ) -> Result<Frame, SpdyError> {
        let number = |at: usize| {
            let bytes = body.get(at..at + 4).and_then(|b| b.first_chunk::<4>()).copied();
            bytes.map(u32::from_be_bytes).ok_or(SpdyError("truncated control frame"))
        };
        let stream = |at: usize| number(at).map(|id| id & 0x7fff_ffff);
        let mut headers = |at: usize| match body.get(at..) {
            Some(block) => inflater.headers(block),
            None => Err(SpdyError("truncated control frame")),
        };
        let fin = flags & FLAG_FIN != 0;
        Ok(match kind {
            1 => Frame::SynStream { stream: stream(0)?, fin, headers: headers(10)? },
            2 => Frame::SynReply { stream: stream(0)?, fin, headers: headers(4)? },
            3 => Frame::Reset { stream: stream(0)?, status: number(4)? },
            4 => Frame::Settings,
            6 => Frame::Ping { id: number(0)? },
            7 => Frame::GoAway { last: stream(0)? },
            8 => Frame::Headers { stream: stream(0)?, fin, headers: headers(4)? },
            9 => Frame::WindowUpdate { stream: stream(0)?, delta: number(4)? },
            _ => return Err(SpdyError("unknown control frame")),
        })
    }

    /// Appends the frame.
    pub(super) fn encode(&self, deflater: &mut Deflater, out: &mut Vec<u8>) {
        let start = out.len();
        let mut head = |kind: u16, fin: bool, words: &[u32]| {
            out.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&[u8::from(fin), 0, 0, 0]);
            words.iter().for_each(|word| out.extend_from_slice(&word.to_be_bytes()));
        };
        match self {
            Frame::SynStream { stream, fin, headers } => {
                head(1, *fin, &[*stream, 0]);
                out.extend_from_slice(&[0, 0]);
                deflater.deflate(headers, out);
            }
            Frame::SynReply { stream, fin, headers } => {
                head(2, *fin, &[*stream]);
                deflater.deflate(headers, out);
            }
            Frame::Reset { stream, status } => head(3, false, &[*stream, *status]),
            Frame::Settings => head(4, false, &[0]),
            Frame::Ping { id } => head(6, false, &[*id]),
            Frame::GoAway { last } => head(7, false, &[*last, 0]),
            Frame::Headers { stream, fin, headers } => {
                head(8, *fin, &[*stream]);
                deflater.deflate(headers, out);
            }
            Frame::WindowUpdate { stream, delta } => head(9, false, &[*stream, *delta]),
        }
        let length = u32::try_from(out.len() - start - HEAD_BYTES).expect("frames are small").to_be_bytes();
        out[start + 5..start + 8].copy_from_slice(&length[1..]);
    }
}

/// Appends a data frame; `bytes` are at most one chunk.
pub(super) fn encode_data(stream: u32, fin: bool, bytes: &[u8], out: &mut Vec<u8>) {
    let length = u32::try_from(bytes.len()).expect("chunks are small").to_be_bytes();
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(&[u8::from(fin), length[1], length[2], length[3]]);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let stream = 0u32..1 << 31;
        let headers = prop::collection::vec(("[a-z]{1,9}", "\\PC{0,40}"), 0..6);
        prop_oneof![
            (stream.clone(), any::<bool>(), headers.clone())
                .prop_map(|(stream, fin, headers)| Frame::SynStream { stream, fin, headers }),
            (stream.clone(), any::<bool>(), headers.clone())
                .prop_map(|(stream, fin, headers)| Frame::SynReply { stream, fin, headers }),
            (stream.clone(), any::<bool>(), headers).prop_map(|(stream, fin, headers)| Frame::Headers {
                stream,
                fin,
                headers
            }),
            (stream.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::Reset { stream, status }),
            Just(Frame::Settings),
            any::<u32>().prop_map(|id| Frame::Ping { id }),
            stream.clone().prop_map(|last| Frame::GoAway { last }),
            (stream, any::<u32>()).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
        ]
    }

    fn decode(bytes: &[u8], inflater: &mut Inflater) -> Result<Frame, SpdyError> {
        let (head, body) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(SpdyError("short"))?;
        match Head::decode(*head)? {
            Head::Control { kind, flags, length } if length as usize == body.len() => {
                Frame::decode(kind, flags, body, inflater)
            }
            _ => Err(SpdyError("not one control frame")),
        }
    }

    proptest! {
        #[test]
        fn a_connection_round_trips(list in prop::collection::vec(frames(), 1..20)) {
            let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
            for frame in list {
                let mut bytes = Vec::new();
                frame.encode(&mut deflater, &mut bytes);
                prop_assert_eq!(decode(&bytes, &mut inflater).unwrap(), frame);
            }
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100), kind in 0u16..12) {
            let _ = decode(&bytes, &mut Inflater::new());
            let _ = Frame::decode(kind, 1, &bytes, &mut Inflater::new());
        }
    }

    #[test]
    fn heads() {
        let mut bytes = Vec::new();
        encode_data(5, true, b"abc", &mut bytes);
        assert_eq!(bytes, [0, 0, 0, 5, 1, 0, 0, 3, b'a', b'b', b'c']);
        assert_eq!(
            Head::decode([0, 0, 0, 5, 1, 0, 0, 3]),
            Ok(Head::Data { stream: 5, fin: true, length: 3 })
        );
        assert!(Head::decode([0x80, 2, 0, 1, 0, 0, 0, 0]).is_err(), "SPDY/2");
        assert!(Head::decode([0x80, 3, 0, 1, 0, 0xff, 0, 0]).is_err(), "too large");
    }
}
