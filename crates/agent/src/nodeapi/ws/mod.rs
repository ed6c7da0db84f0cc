//! The server side of Kubernetes' WebSocket protocols: numbered channels, SPDY tunnelled in binary messages, or one
//! stream out.
//!
//! A message's first byte is its channel (`base64.` protocols: a digit, then base64 text). `v5.` adds a half close:
//! channel 255 with the number of the channel that ends.
//! Deliberately not here: the HTTP handshake (`upgrade`), what the channels mean (`remote`, `forward`).

pub(super) mod frame;

use super::link::{CHUNK_BYTES, Encode, Feed, Inbound, Link, Message, Queue, inbound};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use frame::{BINARY, CLOSE, Event, PONG, TEXT, WsError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

/// Close code: all is well.
const NORMAL: [u8; 2] = 1000u16.to_be_bytes();
/// Channel number that closes another one, in `v5.`.
const CLOSE_CHANNEL: u8 = 255;
/// Bytes that wait in a tunnel, each way.
const TUNNEL_BYTES: usize = 64 << 10;

/// How messages carry channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Codec {
    /// Text messages with base64 in them.
    pub(super) base64: bool,
    /// The client can close a channel.
    pub(super) half_close: bool,
}

/// Starts a connection of `count` channels; the client's side of each.
pub(super) fn channels(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    codec: Codec,
    count: usize,
) -> (Link, Vec<Inbound>) {
    let (mut read, write) = tokio::io::split(io);
    let (feeds, inbounds): (Vec<_>, Vec<_>) = (0..count).map(|_| inbound()).unzip();
    let mut feeds: Vec<Option<Feed>> = feeds.into_iter().map(Some).collect();
    let link = Link::start(write, ChannelEncoder { base64: codec.base64 }, |queue| async move {
        let mut partial = None;
        loop {
            match next(&mut read, &mut partial, &queue).await {
                Ok(Some(message)) => deliver(codec, &mut feeds, message).await,
                Ok(None) => return,
                Err(error) => return tracing::debug!(%error, "WebSocket connection ends"),
            }
        }
    });
    (link, inbounds)
}

/// Sends pieces as messages without channels, until there are no more or the client is gone.
pub(super) async fn pour(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    base64: bool,
    mut pieces: mpsc::Receiver<Bytes>,
) {
    let (mut read, write) = tokio::io::split(io);
    let link = Link::start(write, PlainEncoder { base64 }, |queue| async move {
        let mut partial = None;
        while let Ok(Some(_)) = next(&mut read, &mut partial, &queue).await {}
    });
    let (out, closed) = (link.outbound(0), link.closed());
    let copy = async {
        while let Some(piece) = pieces.recv().await {
            if out.send(piece).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = copy => {}
        () = closed => {}
    }
    link.close().await;
}

/// Starts a tunnel; what comes out is what the client put into binary messages, and the reverse.
pub(super) fn tunnel(io: impl AsyncRead + AsyncWrite + Send + 'static) -> DuplexStream {
    let (mut read, write) = tokio::io::split(io);
    let (inner, outer) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut from_inner, mut to_inner) = tokio::io::split(inner);
    let link = Link::start(write, PlainEncoder { base64: false }, |queue| async move {
        let mut partial = None;
        while let Ok(Some(message)) = next(&mut read, &mut partial, &queue).await {
            if to_inner.write_all(&message).await.is_err() {
                return;
            }
        }
        let _ = to_inner.shutdown().await;
    });
    let out = link.outbound(0);
    let closed = link.closed();
    tokio::spawn(async move {
        let copy = async {
            let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
            while matches!(from_inner.read_buf(&mut buffer).await, Ok(n) if n > 0) {
                if out.send(buffer.split().freeze()).await.is_err() {
                    return;
                }
                buffer.reserve(CHUNK_BYTES);
            }
        };
        tokio::select! {
            () = copy => {}
            () = closed => {}
        }
        link.close().await;
    });
    outer
}

/// The next message; answers pings by itself. `None`: the client closed.
async fn next(
    io: &mut (impl AsyncRead + Unpin),
    partial: &mut Option<BytesMut>,
    queue: &Queue,
) -> Result<Option<Bytes>, WsError> {
    loop {
        match frame::read(io, partial).await? {
            Event::Message(message) => return Ok(Some(message)),
            Event::Close => return Ok(None),
            Event::Ping(payload) => {
                if queue.send(Message::Pong(payload)).await.is_err() {
                    return Ok(None);
                }
            }
        }
    }
}

/// Hands a message to its channel. What names no channel, or is no base64, is dropped, as by the kubelet.
async fn deliver(codec: Codec, feeds: &mut [Option<Feed>], mut message: Bytes) {
    if message.is_empty() {
        return;
    }
    let first = message.split_to(1)[0];
    if codec.half_close && first == CLOSE_CHANNEL {
        if let Some(feed) = message.first().and_then(|n| feeds.get_mut(usize::from(*n))) {
            *feed = None;
        }
        return;
    }
    let number = if codec.base64 { first.wrapping_sub(b'0') } else { first };
    let Some(Some(feed)) = feeds.get(usize::from(number)) else { return };
    let bytes = match codec.base64 {
        true => STANDARD.decode(&message).map(Bytes::from).unwrap_or_default(),
        false => message,
    };
    feed.push(bytes).await;
}

struct ChannelEncoder {
    base64: bool,
}

impl Encode for ChannelEncoder {
    fn encode(&mut self, message: Message, out: &mut Vec<u8>) {
        match message {
            Message::Data(channel, bytes) => {
                let channel = u8::try_from(channel).expect("channels are few");
                match self.base64 {
                    true => {
                        frame::encode(TEXT, &[&[b'0' + channel], STANDARD.encode(&bytes).as_bytes()], out)
                    }
                    false => frame::encode(BINARY, &[&[channel], &bytes], out),
                }
            }
            other => encode_control(other, out),
        }
    }
}

/// No channel numbers.
struct PlainEncoder {
    base64: bool,
}

impl Encode for PlainEncoder {
    fn encode(&mut self, message: Message, out: &mut Vec<u8>) {
        match message {
            Message::Data(_, bytes) if self.base64 => {
                frame::encode(TEXT, &[STANDARD.encode(&bytes).as_bytes()], out)
            }
            Message::Data(_, bytes) => frame::encode(BINARY, &[&bytes], out),
            other => encode_control(other, out),
        }
    }
}

fn encode_control(message: Message, out: &mut Vec<u8>) {
    match message {
        Message::Pong(payload) => frame::encode(PONG, &[&payload], out),
        Message::Close => frame::encode(CLOSE, &[&NORMAL], out),
        // Channels are not opened, and a server's end of one is not told: the connection's end is.
        Message::Data(..) | Message::Finish(_) | Message::Accept(_) | Message::Refuse(_) => {}
    }
}
