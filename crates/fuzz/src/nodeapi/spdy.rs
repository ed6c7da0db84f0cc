//! SPDY/3.1 frames, one after the other through one inflater, as a connection reads them.

#[path = "../../../agent/src/nodeapi/spdy/frame.rs"]
#[expect(dead_code, reason = "only its parsers are called here")]
mod frame;
#[path = "../../../agent/src/nodeapi/spdy/headers.rs"]
mod headers;

use frame::{Frame, HEAD_BYTES, Head, encode_data};
use headers::{Deflater, Inflater};

/// As the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpdyError(&'static str);

/// Reads frames until the stream ends or is no SPDY.
pub fn read_all(input: &[u8]) {
    let (mut rest, mut inflater) = (input, Inflater::new());
    while let Some((head, tail)) = rest.split_first_chunk::<HEAD_BYTES>() {
        rest = tail;
        let Ok(head) = Head::decode(*head) else { return };
        let (Head::Data { length, .. } | Head::Control { length, .. }) = head;
        let Some((body, tail)) = rest.split_at_checked(length as usize) else { return };
        rest = tail;
        let Head::Control { kind, flags, .. } = head else { continue };
        let frame = match Frame::decode(kind, flags, body, &mut inflater) {
            Ok(frame) => frame,
            Err(SpdyError(words)) => return assert!(!words.is_empty()),
        };
        let mut bytes = Vec::new();
        frame.encode(&mut Deflater::new(), &mut bytes);
        let (head, body) = bytes.split_first_chunk::<HEAD_BYTES>().expect("a frame has a head");
        let Ok(Head::Control { kind, flags, .. }) = Head::decode(*head) else {
            panic!("not a frame: {frame:?}")
        };
        assert_eq!(Frame::decode(kind, flags, body, &mut Inflater::new()), Ok(frame));
    }
}

/// What kubectl sends to exec.
pub fn seeds() -> Vec<Vec<u8>> {
    let (mut deflater, mut session) = (Deflater::new(), Vec::new());
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        let headers = vec![("streamtype".to_owned(), kind.to_owned()), ("port".to_owned(), "80".to_owned())];
        Frame::SynStream { stream, fin: false, headers }.encode(&mut deflater, &mut session);
    }
    encode_data(3, true, b"hello", &mut session);
    let mut others = Vec::new();
    let reply = Frame::SynReply { stream: 1, fin: true, headers: vec![(":status".into(), "200".into())] };
    let simple = [
        reply,
        Frame::Ping { id: 1 },
        Frame::Settings,
        Frame::WindowUpdate { stream: 1, delta: 9 },
        Frame::Reset { stream: 1, status: 3 },
        Frame::GoAway { last: 5 },
    ];
    let mut deflater = Deflater::new();
    simple.iter().for_each(|frame| frame.encode(&mut deflater, &mut others));
    vec![session, others]
}
