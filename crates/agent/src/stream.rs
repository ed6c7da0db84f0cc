//! A pipe or a terminal as an asynchronous byte stream.

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One descriptor.
pub struct FdStream(AsyncFd<OwnedFd>);

impl FdStream {
    #[expect(
        deprecated,
        reason = "the new constructor is unsafe; an OwnedFd meets its conditions by its type"
    )]
    /// Takes a descriptor over (it becomes non-blocking). Must be called in the asynchronous runtime.
    pub fn new(fd: OwnedFd) -> io::Result<FdStream> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(FdStream(AsyncFd::new(fd)?))
    }
}

impl AsyncRead for FdStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read = guard.try_io(|fd| match rustix::io::read(fd.get_ref(), buf.initialize_unfilled()) {
                // The other side of the terminal is closed.
                Err(Errno::IO) => Ok(0),
                other => other.map_err(io::Error::from),
            });
            match read {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for FdStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| rustix::io::write(fd.get_ref(), data).map_err(io::Error::from)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_pipe_carries_more_than_it_holds() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let (mut read, mut write) = (FdStream::new(read).unwrap(), FdStream::new(write).unwrap());
        let data = vec![7_u8; 300_000];
        let sent = data.clone();
        let writer = async move { write.write_all(&sent).await.unwrap() };
        let mut got = Vec::new();
        let (_, n) = tokio::join!(writer, read.read_to_end(&mut got));
        assert_eq!((n.unwrap(), got), (300_000, data));
    }
}
