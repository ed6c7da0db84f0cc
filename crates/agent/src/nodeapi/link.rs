//! A multiplexed connection to a client: numbered byte channels in both directions over one byte stream.
//!
//! SPDY and WebSocket share everything here but their framing. Invariants: every queue is bounded, so a client that
//! does not read stops the process that writes, and the reverse; when the connection ends, [`Link::closed`]
//! resolves, inbound channels end and sends fail; dropping the link ends its tasks.
//! SPDY's own windows are not used: spdystream (kubectl, client-go) neither keeps nor sends them; TCP's are enough.

use bytes::Bytes;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Bytes read from a process at a time, and the largest piece put into one frame.
pub(super) const CHUNK_BYTES: usize = 32 << 10;
/// Frames that wait for the socket: with [`CHUNK_BYTES`], 512 KiB a connection.
const SEND_QUEUE: usize = 16;
/// Pieces that wait for the process: 512 KiB a channel.
const RECEIVE_QUEUE: usize = 16;
/// How long a closing connection waits for the client to take what was sent and close too. Closing at once with
/// unread input makes the kernel reset the connection, and the client may lose the end of the output.
const LINGER: Duration = Duration::from_secs(5);

/// What to send. Channels are SPDY stream ids or WebSocket channel numbers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Bytes on a channel.
    Data(u32, Bytes),
    /// No more bytes on a channel.
    Finish(u32),
    /// The channel that the client opened is taken.
    Accept(u32),
    /// The channel that the client opened is not taken.
    Refuse(u32),
    /// An answer to the client's ping.
    Pong(Bytes),
    /// Say good-bye.
    Close,
}

/// The framing of one protocol.
pub(super) trait Encode: Send + 'static {
    /// Appends the frames of `message` to `out`.
    fn encode(&mut self, message: Message, out: &mut Vec<u8>);
}

/// The connection is gone.
#[derive(Debug, thiserror::Error)]
#[error("the client is gone")]
pub(super) struct Gone;

/// A connection and its two tasks.
pub(super) struct Link {
    queue: mpsc::Sender<Message>,
    closed: watch::Receiver<bool>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

/// Sends on a link.
#[derive(Clone)]
pub(super) struct Queue(mpsc::Sender<Message>);

impl Queue {
    pub(super) async fn send(&self, message: Message) -> Result<(), Gone> {
        self.0.send(message).await.map_err(|_| Gone)
    }
}

impl Link {
    /// Starts the tasks. `read` makes the reading task from a queue for its answers; its end is the connection's.
    pub(super) fn start<R>(
        write: impl AsyncWrite + Unpin + Send + 'static,
        encoder: impl Encode,
        read: impl FnOnce(Queue) -> R,
    ) -> Link
    where
        R: Future<Output = ()> + Send + 'static,
    {
        let (queue, messages) = mpsc::channel(SEND_QUEUE);
        let (end, closed) = watch::channel(false);
        let ended = end.clone();
        let reading = read(Queue(queue.clone()));
        let reader = tokio::spawn(async move {
            reading.await;
            end.send_replace(true);
        });
        let writer = tokio::spawn(async move {
            if send_all(write, encoder, messages).await.is_err() {
                ended.send_replace(true);
            }
        });
        Link { queue, closed, reader, writer }
    }

    /// The sending side of a channel.
    pub(super) fn outbound(&self, id: u32) -> Outbound {
        Outbound { id, queue: Queue(self.queue.clone()) }
    }

    /// Resolves when the client is gone.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.closed.clone();
        async move {
            // An error means that both tasks are gone: closed as well.
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// Sends what is queued and a good-bye, then waits a little for the client to close.
    pub(super) async fn close(mut self) {
        let finish = async {
            if self.queue.send(Message::Close).await.is_ok() {
                let _ = (&mut self.writer).await;
            }
            let _ = (&mut self.reader).await;
        };
        let _ = tokio::time::timeout(LINGER, finish).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

async fn send_all(
    mut write: impl AsyncWrite + Unpin,
    mut encoder: impl Encode,
    mut messages: mpsc::Receiver<Message>,
) -> std::io::Result<()> {
    let mut out = Vec::new();
    while let Some(first) = messages.recv().await {
        out.clear();
        let mut last = false;
        let mut next = Some(first);
        while let Some(message) = next {
            last |= message == Message::Close;
            encoder.encode(message, &mut out);
            // Small frames that wait together leave together.
            next = if out.len() < CHUNK_BYTES && !last { messages.try_recv().ok() } else { None };
        }
        write.write_all(&out).await?;
        write.flush().await?;
        if last {
            break;
        }
    }
    write.shutdown().await
}

/// Sends on one channel.
pub(super) struct Outbound {
    id: u32,
    queue: Queue,
}

impl Outbound {
    /// Sends bytes, waiting while the client is slow.
    pub(super) async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        while bytes.len() > CHUNK_BYTES {
            let piece = bytes.split_to(CHUNK_BYTES);
            self.queue.send(Message::Data(self.id, piece)).await?;
        }
        self.queue.send(Message::Data(self.id, bytes)).await
    }

    /// Ends the channel.
    pub(super) async fn finish(self) -> Result<(), Gone> {
        self.queue.send(Message::Finish(self.id)).await
    }
}

/// The receiving side of a channel, for the process.
pub(super) struct Inbound(mpsc::Receiver<Bytes>);

impl Inbound {
    /// The next bytes; `None` when the client closed the channel or is gone.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

/// The receiving side of a channel, for the reading task.
#[derive(Clone)]
pub(super) struct Feed(mpsc::Sender<Bytes>);

impl Feed {
    /// Hands bytes on, waiting while the process is slow; false: nobody wants them any more.
    pub(super) async fn push(&self, bytes: Bytes) -> bool {
        bytes.is_empty() || self.0.send(bytes).await.is_ok()
    }

    /// Is there still somebody who wants bytes?
    pub(super) fn is_open(&self) -> bool {
        !self.0.is_closed()
    }
}

/// A channel from the client.
pub(super) fn inbound() -> (Feed, Inbound) {
    let (sender, receiver) = mpsc::channel(RECEIVE_QUEUE);
    (Feed(sender), Inbound(receiver))
}
