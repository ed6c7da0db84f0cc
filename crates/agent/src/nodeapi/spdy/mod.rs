//! The server side of SPDY/3.1: streams that a client opens over one connection.
//!
//! What kubectl before 1.30 speaks for exec, attach, cp and port-forward, and what newer ones tunnel for
//! port-forward. Invariants: at most [`STREAMS_MAX`] streams; a protocol error ends the connection.
//! Deliberately not here: streams opened by the server, priorities, windows (see `link`).

#[cfg(test)]
pub(in crate::nodeapi) mod client;
mod frame;
mod headers;

use super::link::{CHUNK_BYTES, Encode, Feed, Gone, Inbound, Link, Message, Outbound, Queue, inbound};
use bytes::{Bytes, BytesMut};
use frame::{Frame, HEAD_BYTES, Head, REFUSED_STREAM, encode_data};
use headers::{Deflater, Inflater};
use std::collections::BTreeMap;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::mpsc;

pub(super) use headers::Headers;

/// Streams open at a time: 500 forwarded connections.
const STREAMS_MAX: usize = 1000;
/// Streams that wait to be taken.
const NEW_STREAMS: usize = 8;

/// A peer broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("SPDY: {0}")]
pub(super) struct SpdyError(&'static str);

/// A stream that the client opened: accept or refuse it.
pub(super) struct NewStream {
    /// Its number.
    pub(super) id: u32,
    headers: Headers,
    /// Bytes from the client.
    pub(super) inbound: Inbound,
}

impl NewStream {
    /// The value of a header; names in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A connection.
pub(super) struct Connection {
    link: Link,
    queue: Queue,
    streams: mpsc::Receiver<NewStream>,
}

impl Connection {
    /// Starts to speak SPDY on `io`.
    pub(super) fn start(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Connection {
        let (read, write) = tokio::io::split(io);
        let (sender, streams) = mpsc::channel(NEW_STREAMS);
        let mut answers = None;
        let link = Link::start(write, Encoder(Deflater::new()), |queue| {
            answers = Some(queue.clone());
            let reader = Reader {
                io: read,
                inflater: Inflater::new(),
                feeds: BTreeMap::new(),
                last: 0,
                queue,
                sender,
            };
            async move {
                if let Err(error) = reader.run().await {
                    tracing::debug!(%error, "SPDY connection ends");
                }
            }
        });
        Connection { link, queue: answers.expect("set by the closure above"), streams }
    }

    /// The next stream that the client opens; `None` when it is gone.
    pub(super) async fn next(&mut self) -> Option<NewStream> {
        self.streams.recv().await
    }

    /// Takes a stream; gives its two directions.
    pub(super) async fn accept(&self, stream: NewStream) -> Result<(Inbound, Outbound), Gone> {
        self.queue.send(Message::Accept(stream.id)).await?;
        Ok((stream.inbound, self.link.outbound(stream.id)))
    }

    /// Turns a stream away.
    pub(super) async fn refuse(&self, stream: NewStream) -> Result<(), Gone> {
        self.queue.send(Message::Refuse(stream.id)).await
    }

    /// The link below.
    pub(super) fn into_link(self) -> Link {
        self.link
    }
}

struct Encoder(Deflater);

impl Encode for Encoder {
    fn encode(&mut self, message: Message, out: &mut Vec<u8>) {
        let frame = match message {
            Message::Data(stream, bytes) => return encode_data(stream, false, &bytes, out),
            Message::Finish(stream) => return encode_data(stream, true, &[], out),
            Message::Accept(stream) => Frame::SynReply { stream, fin: false, headers: Headers::new() },
            Message::Refuse(stream) => Frame::Reset { stream, status: REFUSED_STREAM },
            Message::Pong(id) => {
                let id = id.first_chunk::<4>().copied().unwrap_or_default();
                Frame::Ping { id: u32::from_be_bytes(id) }
            }
            Message::Close => Frame::GoAway { last: 0 },
        };
        frame.encode(&mut self.0, out);
    }
}

struct Reader<R> {
    io: R,
    inflater: Inflater,
    /// Streams whose client side is open.
    feeds: BTreeMap<u32, Feed>,
    /// The highest stream so far: numbers only grow.
    last: u32,
    queue: Queue,
    sender: mpsc::Sender<NewStream>,
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Spdy(#[from] SpdyError),
    #[error(transparent)]
    Gone(#[from] Gone),
}

impl<R: AsyncRead + Unpin> Reader<R> {
    async fn run(mut self) -> Result<(), ReadError> {
        loop {
            let mut head = [0; HEAD_BYTES];
            match self.io.read_exact(&mut head).await {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => drop(other?),
            }
            match Head::decode(head)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    let mut body = vec![0; length as usize];
                    self.io.read_exact(&mut body).await?;
                    let frame = Frame::decode(kind, flags, &body, &mut self.inflater)?;
                    self.control(frame).await?;
                }
            }
        }
    }

    /// Passes a data frame on in pieces, so that its length costs no memory.
    async fn data(&mut self, stream: u32, fin: bool, length: u32) -> Result<(), ReadError> {
        let mut left = length as usize;
        while left > 0 {
            let mut piece = BytesMut::zeroed(left.min(CHUNK_BYTES));
            self.io.read_exact(&mut piece).await?;
            left -= piece.len();
            // Bytes for a stream that nobody listens to are dropped, as late ones always must be.
            if let Some(feed) = self.feeds.get(&stream)
                && !feed.push(piece.freeze()).await
            {
                self.feeds.remove(&stream);
            }
        }
        if fin {
            self.feeds.remove(&stream);
        }
        Ok(())
    }

    async fn control(&mut self, frame: Frame) -> Result<(), ReadError> {
        match frame {
            Frame::SynStream { stream, fin, headers } => self.open(stream, fin, headers).await,
            Frame::Ping { id } => {
                // An even number would answer a ping of ours; there are none.
                if !id.is_multiple_of(2) {
                    self.queue.send(Message::Pong(Bytes::copy_from_slice(&id.to_be_bytes()))).await?;
                }
                Ok(())
            }
            Frame::Reset { stream, .. } | Frame::Headers { stream, fin: true, .. } => {
                self.feeds.remove(&stream);
                Ok(())
            }
            Frame::SynReply { .. }
            | Frame::Settings
            | Frame::GoAway { .. }
            | Frame::Headers { .. }
            | Frame::WindowUpdate { .. } => Ok(()),
        }
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> Result<(), ReadError> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(SpdyError("stream number out of order").into());
        }
        self.last = id;
        self.feeds.retain(|_, feed| feed.is_open());
        if self.feeds.len() >= STREAMS_MAX {
            self.queue.send(Message::Refuse(id)).await?;
            return Ok(());
        }
        let (feed, inbound) = inbound();
        if !fin {
            self.feeds.insert(id, feed);
        }
        // Nobody takes streams any more (the session is over): not an error of the client's.
        let _ = self.sender.send(NewStream { id, headers, inbound }).await;
        Ok(())
    }
}
