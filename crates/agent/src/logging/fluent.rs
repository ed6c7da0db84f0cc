//! The forward protocol to a log router in the same pod: one message a batch, acknowledged by its chunk's id.

use super::{LogEvent, Route, SinkError, msgpack};
use crate::nodeapi::{Duplex, NodeBackend, Target};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Where routers listen, as AWS generates their configuration.
const PORT: u16 = 24_224;
/// For the acknowledgement of a batch.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(10);
/// Longest acknowledgement: `{"ack": <id>}`.
const ACKNOWLEDGEMENT_MAX: usize = 256;

/// A connection that is made when it is needed.
pub(super) struct Router {
    backend: Arc<dyn NodeBackend>,
    route: Route,
    stream: Option<Box<dyn Duplex>>,
    sent: u64,
}

fn later(error: impl std::fmt::Display) -> SinkError {
    SinkError::Later(error.to_string())
}

/// One batch as a message: `[tag, [[time, record], …], {"size": n, "chunk": id}]`.
fn message(route: &Route, chunk: &str, events: &[LogEvent]) -> Vec<u8> {
    let mut out = Vec::new();
    msgpack::list(&mut out, if route.acknowledged { 3 } else { 2 });
    msgpack::text(&mut out, &route.tag);
    msgpack::list(&mut out, events.len());
    for event in events {
        msgpack::list(&mut out, 2);
        msgpack::event_time(&mut out, event.time_ms);
        msgpack::map(&mut out, route.facts.len() + 2);
        let source = if event.is_error { "stderr" } else { "stdout" };
        let own = [("log", event.message.as_str()), ("source", source)];
        let facts = route.facts.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        for (key, value) in own.into_iter().chain(facts) {
            msgpack::text(&mut out, key);
            msgpack::text(&mut out, value);
        }
    }
    if route.acknowledged {
        msgpack::map(&mut out, 1);
        msgpack::text(&mut out, "chunk");
        msgpack::text(&mut out, chunk);
    }
    out
}

/// The router's socket. The folder is the router's: what is not a socket itself, such as a link, leads nowhere.
async fn by_socket(path: &Path) -> std::io::Result<UnixStream> {
    use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW;
    let place = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if !place.metadata()?.file_type().is_socket() {
        return Err(std::io::Error::other("the log router's socket is none"));
    }
    // Longer paths than a socket's address can hold, and no second look-up.
    UnixStream::connect(format!("/proc/self/fd/{}", place.as_raw_fd())).await
}

impl Router {
    pub(super) fn new(backend: Arc<dyn NodeBackend>, route: Route) -> Router {
        Router { backend, route, stream: None, sent: 0 }
    }

    async fn dial(&mut self) -> Result<Box<dyn Duplex>, SinkError> {
        if let Some(path) = &self.route.socket {
            return Ok(Box::new(by_socket(path).await.map_err(later)?));
        }
        let target = Target {
            namespace: self.route.pod.namespace.to_string(),
            pod: self.route.pod.name.to_string(),
            uid: None,
            container: String::new(),
        };
        self.backend.port_forward(&target, PORT).await.map_err(|e| later(e.message))
    }

    /// Sends a batch and waits until the router has it.
    pub(super) async fn put(&mut self, events: &[LogEvent]) -> Result<(), SinkError> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.dial().await?,
        };
        self.sent += 1;
        let chunk = format!("{}-{}", self.route.tag, self.sent);
        let send = async {
            stream.write_all(&message(&self.route, &chunk, events)).await?;
            stream.flush().await?;
            if !self.route.acknowledged {
                return Ok(());
            }
            acknowledged(&mut stream, &chunk).await
        };
        tokio::time::timeout(ACKNOWLEDGED_WITHIN, send).await.map_err(later)?.map_err(later)?;
        self.stream = Some(stream);
        Ok(())
    }
}

/// Reads `{"ack": chunk}`. Only one chunk is ever on its way, so that its id in the answer is enough.
async fn acknowledged(stream: &mut Box<dyn Duplex>, chunk: &str) -> std::io::Result<()> {
    let mut wanted = Vec::new();
    msgpack::map(&mut wanted, 1);
    msgpack::text(&mut wanted, "ack");
    msgpack::text(&mut wanted, chunk);
    let mut got = Vec::new();
    while got.len() < ACKNOWLEDGEMENT_MAX {
        if stream.read_buf(&mut got).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if got.windows(wanted.len()).any(|window| window == wanted) {
            return Ok(());
        }
    }
    Err(std::io::Error::other("the router acknowledged something else"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::ObjectKey;

    #[test]
    fn a_message() {
        let pod = ObjectKey::new("n", "p");
        let facts = vec![("k".to_string(), "v".to_string())];
        let route = Route { facts, ..Route::to(pod, "t") };
        let event = LogEvent { time_ms: 1_000, message: "m".into(), is_error: true };
        let bytes = message(&route, "c", &[event]);
        let expected: &[&[u8]] = &[
            b"\x93\xa1t\x91\x92",
            &[0xd7, 0, 0, 0, 0, 1, 0, 0, 0, 0],
            b"\x83\xa3log\xa1m\xa6source\xa6stderr\xa1k\xa1v",
            b"\x81\xa5chunk\xa1c",
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[tokio::test]
    async fn a_socket_is_taken_and_a_link_to_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        // Deeper than an address can say.
        let deep = folder.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let at = std::fs::File::open(&deep).unwrap();
        let path = format!("/proc/self/fd/{}/s", at.as_raw_fd());
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        std::os::unix::fs::symlink("s", deep.join("link")).unwrap();
        by_socket(&deep.join("s")).await.unwrap();
        listener.accept().unwrap();
        assert!(by_socket(&deep.join("link")).await.is_err());
    }
}
