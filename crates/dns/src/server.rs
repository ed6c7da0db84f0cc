//! The DNS server: UDP and TCP listeners around the answer function.
//!
//! Reads: the latest zone at each query. Writes: replies, counters.
//! Invariants: one task a listener owns all its tasks; connections, their idle time and questions upstream
//! are bounded; a query about the cluster is answered without waiting for anything.
//! Deliberately not here: making zones, choosing addresses.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::answer::{Action, Transport, answer};
use crate::cache::Cache;
use crate::forward::{OUTSTANDING_MAX, Upstreams, read_frame, write_frame};
use crate::message::{Query, Reply, write_failure};
use crate::zone::Zone;

/// Largest query over UDP; a question is at most 271 bytes, the rest is EDNS options.
const QUERY_MAX: usize = 4096;
/// TCP connections at once, a listener.
const CONNECTIONS_MAX: usize = 256;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after a failing accept or receive (such as no free descriptors), so that it does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Queries received.
    pub queries: AtomicU64,
    /// Answered from the zone.
    pub local: AtomicU64,
    /// Answered from the cache.
    pub cached: AtomicU64,
    /// Sent upstream.
    pub forwarded: AtomicU64,
    /// Answered with "server failure", because upstream did not answer or too much was under way.
    pub failed: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A running server; ends when dropped.
#[derive(Debug)]
pub struct Server {
    listeners: JoinSet<()>,
    addresses: Vec<SocketAddr>,
}

#[derive(Debug)]
struct Shared {
    zone: watch::Receiver<Arc<Zone>>,
    upstreams: Upstreams,
    cache: Mutex<Cache>,
    metrics: Arc<Metrics>,
}

impl Server {
    /// Binds UDP and TCP at each address (port 0: any, the same for both) and serves the latest zone. Queries
    /// about other names go to `upstreams`, those of our own addresses excepted.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub async fn start(
        binds: &[SocketAddr],
        zone: watch::Receiver<Arc<Zone>>,
        upstreams: Vec<SocketAddr>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for bind in binds {
            let tcp = TcpListener::bind(bind).await?;
            let address = tcp.local_addr()?;
            sockets.push((UdpSocket::bind(address).await?, tcp, address));
        }
        let addresses: Vec<SocketAddr> = sockets.iter().map(|(_, _, address)| *address).collect();
        let upstreams = upstreams.into_iter().filter(|upstream| !addresses.contains(upstream)).collect();
        let cache = Mutex::new(Cache::default());
        let shared = Arc::new(Shared { zone, upstreams: Upstreams::new(upstreams), cache, metrics });
        let mut listeners = JoinSet::new();
        for (udp, tcp, _) in sockets {
            listeners.spawn(serve_udp(Arc::new(udp), Arc::clone(&shared)));
            listeners.spawn(serve_tcp(tcp, Arc::clone(&shared)));
        }
        Ok(Self { listeners, addresses })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops and frees the addresses.
    pub async fn stop(mut self) {
        self.listeners.shutdown().await;
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let (mut buffer, mut waiting) = (vec![0; QUERY_MAX], JoinSet::new());
    loop {
        while waiting.try_join_next().is_some() {}
        let (message, client) = match socket.recv_from(&mut buffer).await {
            Ok((len, client)) => (&buffer[..len], client),
            Err(error) => {
                tracing::debug!(%error, "receiving a DNS query");
                sleep(PAUSE).await;
                continue;
            }
        };
        let reply = match shared.at_once(message, Transport::Udp) {
            Ok(reply) => reply,
            Err(_) if waiting.len() >= OUTSTANDING_MAX => shared.failure(message),
            Err(later) => {
                let (socket, shared, message) = (Arc::clone(&socket), Arc::clone(&shared), message.to_vec());
                waiting.spawn(async move {
                    let reply = shared.upstream(later, &message, Transport::Udp).await;
                    send(&socket, reply.as_deref(), client).await;
                });
                continue;
            }
        };
        send(&socket, reply.as_deref(), client).await;
    }
}

async fn send(socket: &UdpSocket, reply: Option<&[u8]>, client: SocketAddr) {
    if let Some(reply) = reply
        && let Err(error) = socket.send_to(reply, client).await
    {
        tracing::debug!(%client, %error, "sending a DNS reply");
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(converse(stream, Arc::clone(&shared)));
            }
            Err(error) => {
                tracing::debug!(%error, "accepting a DNS connection");
                sleep(PAUSE).await;
            }
        }
    }
}

/// One query after the other, until silence, an error or a query that deserves no answer.
async fn converse(mut stream: TcpStream, shared: Arc<Shared>) {
    while let Ok(Ok(message)) = timeout(IDLE, read_frame(&mut stream)).await {
        let reply = match shared.at_once(&message, Transport::Tcp) {
            Ok(reply) => reply,
            Err(later) => shared.upstream(later, &message, Transport::Tcp).await,
        };
        let Some(reply) = reply else { return };
        if !matches!(timeout(IDLE, write_frame(&mut stream, &reply)).await, Ok(Ok(()))) {
            return;
        }
    }
}

impl Shared {
    /// What can be answered without waiting (`None`: with silence); otherwise what is left to do.
    fn at_once(&self, message: &[u8], transport: Transport) -> Result<Option<Vec<u8>>, Action> {
        count(&self.metrics.queries);
        let zone = Arc::clone(&self.zone.borrow());
        match answer(&zone, message, transport) {
            Action::Reply(reply) => {
                count(&self.metrics.local);
                Ok(Some(reply))
            }
            Action::Ignore => Ok(None),
            Action::Forward => {
                let Ok(query) = Query::read(message) else { return Ok(None) };
                let cached = self.cache.lock().get(Instant::now(), message, &query, transport);
                let reply = cached.ok_or(Action::Forward)?;
                count(&self.metrics.cached);
                Ok(Some(reply))
            }
            chase => Err(chase),
        }
    }

    async fn upstream(&self, action: Action, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        count(&self.metrics.forwarded);
        if let Action::Chase(chase) = action {
            let question = chase.question();
            let mut reply = self.upstreams.ask(&question, Transport::Udp).await;
            if reply.as_deref().and_then(Reply::read).is_some_and(|reply| reply.truncated) {
                reply = self.upstreams.ask(&question, Transport::Tcp).await;
            }
            return Some(chase.finish(reply.as_deref()));
        }
        let Some(reply) = self.upstreams.ask(message, transport).await else { return self.failure(message) };
        if let Ok(query) = Query::read(message) {
            self.cache.lock().put(Instant::now(), (message, &query, transport), &reply);
        }
        Some(reply)
    }

    fn failure(&self, message: &[u8]) -> Option<Vec<u8>> {
        count(&self.metrics.failed);
        Query::read(message).ok().map(|query| write_failure(&query))
    }
}
