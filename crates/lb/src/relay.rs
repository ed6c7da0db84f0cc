//! Copies bytes both ways between a client and a target: L4 listeners and upgraded connections.
//!
//! One side's end is passed on and the other side may go on (half-close); without any byte for the idle time, or when
//! the target leaves the configuration, both ends close.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes in flight in each direction: enough for a gigabit over a few milliseconds.
const BUFFER: usize = 32 * 1024;

/// A stream that counts what is read from it.
struct Counted<S> {
    inner: S,
    read: Arc<AtomicU64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.read.fetch_add((buf.filled().len() - before) as u64, Relaxed);
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Copies until both sides ended, one broke, or nothing moved for `idle`. Returns bytes (from `a`, from `b`).
pub async fn both<A, B>(a: A, b: B, idle: Duration) -> (u64, u64)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (from_a, from_b) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut a = Counted { inner: a, read: from_a.clone() };
    let mut b = Counted { inner: b, read: from_b.clone() };
    let moved = || (from_a.load(Relaxed), from_b.load(Relaxed));
    let silence = async {
        let mut last = moved();
        loop {
            tokio::time::sleep(idle).await;
            let now = moved();
            if now == last {
                return;
            }
            last = now;
        }
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional_with_sizes(&mut a, &mut b, BUFFER, BUFFER) => {}
        () = silence => {}
    }
    moved()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn a_half_closed_side_still_gets_the_answer() {
        let ((mut client, a), (b, mut target)) = (duplex(64), duplex(64));
        let relay = tokio::spawn(both(a, b, Duration::from_secs(30)));
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        target.read_to_string(&mut asked).await.unwrap();
        target.write_all(b"the answer").await.unwrap();
        drop(target);
        let mut answered = String::new();
        client.read_to_string(&mut answered).await.unwrap();
        assert_eq!((asked.as_str(), answered.as_str()), ("question", "the answer"));
        assert_eq!(relay.await.unwrap(), (8, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_connection() {
        let ((mut client, a), (b, _target)) = (duplex(64), duplex(64));
        let relay = tokio::spawn(both(a, b, Duration::from_secs(350)));
        client.write_all(b"x").await.unwrap();
        assert_eq!(relay.await.unwrap(), (1, 0));
    }
}
