//! Asking upstream resolvers.
//!
//! Reads and writes: one fresh socket a question (so that its port is a second secret beside the id).
//! Invariants: at most [`OUTSTANDING_MAX`] questions at once; a resolver that does not answer costs
//! [`TIMEOUT`], once, and then others go first; a reply counts only if id and question match.
//! Deliberately not here: the cache, encrypted transports.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::answer::Transport;
use crate::message::{Query, Reply};

/// How long one resolver may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Questions in flight; each holds a socket and a buffer, so this is 16 MiB at worst.
pub(crate) const OUTSTANDING_MAX: usize = 1024;
/// The longest datagram taken from upstream; clients do not ask for more than 4 KiB in practice.
const DATAGRAM_MAX: usize = 16 * 1024;
/// As the C library: further name servers are ignored.
const UPSTREAMS_MAX: usize = 3;
const DNS_PORT: u16 = 53;
const SERVER_FAILURE: u16 = 2;
const REFUSED: u16 = 5;

/// The name servers in a `resolv.conf`.
pub fn upstreams_from(resolv_conf: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A zone such as fe80::1%eth0 has no portable form here.
        let ip: IpAddr = address.parse().ok()?;
        Some(SocketAddr::new(ip, DNS_PORT))
    };
    resolv_conf.lines().filter_map(server).take(UPSTREAMS_MAX).collect()
}

/// The resolvers that get what is not about the cluster.
#[derive(Debug)]
pub(crate) struct Upstreams {
    servers: Vec<SocketAddr>,
    /// The one that answered last goes first.
    preferred: AtomicUsize,
    permits: Semaphore,
    secrets: RandomState,
    asked: AtomicUsize,
}

impl Upstreams {
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Self {
        Self {
            servers,
            preferred: AtomicUsize::new(0),
            permits: Semaphore::new(OUTSTANDING_MAX),
            secrets: RandomState::new(),
            asked: AtomicUsize::new(0),
        }
    }

    /// Asks one resolver after the other; the reply carries the message's id. `None` if nobody answers.
    pub(crate) async fn ask(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = Query::read(message).ok()?;
        let _permit = self.permits.try_acquire().ok()?;
        let first = self.preferred.load(Ordering::Relaxed);
        let mut fallback = None;
        for step in 0..self.servers.len() {
            let index = (first + step) % self.servers.len();
            let server = self.servers[index];
            let mut question = message.to_vec();
            question[..2].copy_from_slice(&self.fresh_id().to_be_bytes());
            let asked = timeout(TIMEOUT, async {
                match transport {
                    Transport::Udp => over_udp(server, &question, &query).await,
                    Transport::Tcp => over_tcp(server, &question, &query).await,
                }
            });
            match asked.await {
                Ok(Ok((mut reply, code))) => {
                    reply[..2].copy_from_slice(&query.id.to_be_bytes());
                    if code != SERVER_FAILURE && code != REFUSED {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Some(reply);
                    }
                    fallback.get_or_insert(reply);
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "upstream resolver failed"),
                Err(_) => tracing::debug!(%server, "upstream resolver is silent"),
            }
        }
        fallback
    }

    /// Unpredictable without the process's secret keys.
    fn fresh_id(&self) -> u16 {
        let mut hasher = self.secrets.build_hasher();
        hasher.write_usize(self.asked.fetch_add(1, Ordering::Relaxed));
        (hasher.finish() & 0xffff) as u16
    }
}

/// The response code, if `reply` answers `question`.
fn matches(question: &[u8], query: &Query, reply: &[u8]) -> Option<u16> {
    let read = Reply::read(reply)?;
    let same = (&read.name, read.kind, read.class) == (&query.name, query.kind, query.class);
    (same && reply[..2] == question[..2]).then_some(read.code)
}

async fn over_udp(server: SocketAddr, question: &[u8], query: &Query) -> io::Result<(Vec<u8>, u16)> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if let Some(code) = matches(question, query, &buffer[..len]) {
            buffer.truncate(len);
            return Ok((buffer, code));
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8], query: &Query) -> io::Result<(Vec<u8>, u16)> {
    let mut stream = TcpStream::connect(server).await?;
    write_frame(&mut stream, question).await?;
    let reply = read_frame(&mut stream).await?;
    let code = matches(question, query, &reply).ok_or(io::ErrorKind::InvalidData)?;
    Ok((reply, code))
}

/// Writes a message with its length in front.
pub(crate) async fn write_frame(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // One write, so that it travels as one segment.
    let mut frame = len.to_be_bytes().to_vec();
    frame.extend_from_slice(message);
    stream.write_all(&frame).await
}

/// Reads a message with its length in front.
pub(crate) async fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 10.0.0.2\n nameserver\tfd00::1 # x\nnameserver bad\n\
                    nameserver fe80::1%eth0\nnameserver 127.0.0.53\nnameserver 9.9.9.9\n";
        let read: Vec<String> = upstreams_from(text).iter().map(ToString::to_string).collect();
        assert_eq!(read, ["10.0.0.2:53", "[fd00::1]:53", "127.0.0.53:53"]);
    }
}
