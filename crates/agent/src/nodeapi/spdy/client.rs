//! A SPDY client as small as tests need: opens streams, sends, collects what comes.

use super::frame::{Frame, HEAD_BYTES, Head, encode_data};
use super::headers::{Deflater, Inflater};
use std::collections::BTreeMap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The client's end.
pub(in crate::nodeapi) struct Client<T> {
    io: T,
    deflater: Deflater,
    inflater: Inflater,
    next: u32,
    /// What came, by stream.
    pub(in crate::nodeapi) data: BTreeMap<u32, Vec<u8>>,
    /// What happened, in order: `reply 1`, `end 3`, `reset 5`, `pong 7`, `goaway`, `eof`.
    pub(in crate::nodeapi) events: Vec<String>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
    pub(in crate::nodeapi) fn new(io: T) -> Client<T> {
        let (deflater, inflater) = (Deflater::new(), Inflater::new());
        Client { io, deflater, inflater, next: 1, data: BTreeMap::new(), events: Vec::new() }
    }

    async fn frame(&mut self, frame: Frame) {
        let mut out = Vec::new();
        frame.encode(&mut self.deflater, &mut out);
        self.io.write_all(&out).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// Opens a stream and waits for its reply, as kubectl does.
    pub(in crate::nodeapi) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        self.frame(Frame::SynStream { stream, fin: false, headers }).await;
        self.until(|c| c.has(&format!("reply {stream}")) || c.has(&format!("reset {stream}"))).await;
        stream
    }

    pub(in crate::nodeapi) async fn send(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        let mut out = Vec::new();
        encode_data(stream, fin, bytes, &mut out);
        self.io.write_all(&out).await.unwrap();
        self.io.flush().await.unwrap();
    }

    pub(in crate::nodeapi) async fn ping(&mut self, id: u32) {
        self.frame(Frame::Ping { id }).await;
    }

    pub(in crate::nodeapi) fn has(&self, event: &str) -> bool {
        self.events.iter().any(|e| e == event)
    }

    pub(in crate::nodeapi) fn text(&self, stream: u32) -> String {
        String::from_utf8_lossy(self.data.get(&stream).map_or(&[][..], |v| v)).into_owned()
    }

    /// Reads until the condition holds.
    pub(in crate::nodeapi) async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            assert!(!self.has("eof"), "the connection ended first: {:?} {:?}", self.events, self.data);
            self.step().await;
        }
    }

    async fn step(&mut self) {
        let mut head = [0; HEAD_BYTES];
        if self.io.read_exact(&mut head).await.is_err() {
            return self.events.push("eof".into());
        }
        match Head::decode(head).unwrap() {
            Head::Data { stream, fin, length } => {
                let mut data = vec![0; length as usize];
                self.io.read_exact(&mut data).await.unwrap();
                self.data.entry(stream).or_default().extend(data);
                if fin {
                    self.events.push(format!("end {stream}"));
                }
            }
            Head::Control { kind, flags, length } => {
                let mut body = vec![0; length as usize];
                self.io.read_exact(&mut body).await.unwrap();
                self.events.push(match Frame::decode(kind, flags, &body, &mut self.inflater).unwrap() {
                    Frame::SynReply { stream, .. } => format!("reply {stream}"),
                    Frame::Reset { stream, .. } => format!("reset {stream}"),
                    Frame::Ping { id } => format!("pong {id}"),
                    Frame::GoAway { .. } => "goaway".into(),
                    other => panic!("a server never sends {other:?}"),
                });
            }
        }
    }
}
