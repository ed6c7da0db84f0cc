//! Sockets: the difference between two configurations, applied.
//!
//! A listener whose address, protocol and certificates stay keeps its socket and its connections; one that leaves
//! stops accepting at once and lets connections end (HTTP: after the request under way). Another protocol or
//! certificate is spoken on the same socket by those who come next: no client is refused meanwhile.

use crate::check;
use crate::config::{Action, Certificate, Check, Config, Id, Listener, Protocol};
use crate::forward::{self, Context7, Upstream};
use crate::headers::Entry;
use crate::relay;
use crate::state::{Live, LiveGroup, Shared, Snapshot, TargetHealth};
use crate::tls::{self, CertificateError};
use crate::{CONNECT_TIMEOUT, HEAD_TIMEOUT, MAX_CONNECTIONS, MAX_HEAD_BYTES, MAX_HEADERS, balance, udp};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// Why a listener does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be bound: taken, or not this machine's.
    #[error("{address}: {source}")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// A certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// A running load balancer; dropping it ends its listeners and checks.
pub struct Balancer {
    shared: Arc<Shared>,
    upstream: Arc<Upstream>,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    listeners: BTreeMap<Id, Socket>,
    checks: Vec<(Arc<Live>, Check, JoinHandle<()>)>,
}

struct Socket {
    /// What a change of needs a new socket: the address asked for, and whether it takes datagrams.
    key: (SocketAddr, bool),
    /// What is spoken to those who come now.
    speaks: (Protocol, Vec<Certificate>),
    address: SocketAddr,
    accepting: JoinHandle<()>,
    door: Arc<RwLock<Arc<Door>>>,
    /// Turned on when the listener leaves or speaks otherwise.
    closing: watch::Sender<bool>,
}

fn key(listener: &Listener) -> (SocketAddr, bool) {
    (listener.address, listener.protocol == Protocol::Udp)
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.accepting.abort();
        self.closing.send_replace(true);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.checks.iter().for_each(|(_, _, task)| task.abort());
    }
}

impl Default for Balancer {
    fn default() -> Self {
        Balancer {
            shared: Arc::new(Shared::new()),
            upstream: Arc::new(Upstream::new()),
            running: Mutex::default(),
        }
    }
}

impl Balancer {
    /// Makes this configuration the one in force. Returns, by listener, the bound address or why there is none; the
    /// others serve all the same. Applying the same configuration again retries what failed.
    pub fn apply(&self, config: &Config) -> BTreeMap<Id, Result<SocketAddr, ListenError>> {
        let mut running = self.running.lock();
        let before = self.shared.snapshot();
        let next = Arc::new(Snapshot::next(config, &before));
        *self.shared.now.write() = next.clone();
        self.sync_checks(&mut running, &next);
        next.dismiss(&before);
        running.listeners.retain(|id, socket| next.listeners.get(id).is_some_and(|l| key(l) == socket.key));
        let mut outcome = BTreeMap::new();
        for (id, listener) in &next.listeners {
            let bound = match running.listeners.get_mut(id) {
                Some(socket) => self.change(socket, listener).map(|()| socket.address),
                None => self.open(listener).map(|socket| {
                    let address = socket.address;
                    running.listeners.insert(id.clone(), socket);
                    address
                }),
            };
            outcome.insert(id.clone(), bound);
        }
        outcome
    }

    /// What the checks say about every target now.
    pub fn health(&self) -> Vec<TargetHealth> {
        self.shared.snapshot().health()
    }

    /// Wakes at every change of a target's health.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Counters, as Prometheus text.
    pub fn metrics(&self) -> String {
        let open = self.shared.connections.load(Relaxed);
        format!("gantry_lb_connections {open}\n{}", self.shared.snapshot().metrics())
    }

    /// One checking task a target; those whose target or check changed start anew.
    fn sync_checks(&self, running: &mut Running, next: &Snapshot) {
        let wanted: Vec<(Arc<Live>, Check)> = next
            .groups
            .values()
            .filter_map(|g| Some((g, g.config.check.clone()?)))
            .flat_map(|(g, check)| g.targets.iter().map(move |t| (t.clone(), check.clone())))
            .collect();
        let same =
            |a: &Arc<Live>, check: &Check, b: &(Arc<Live>, Check)| Arc::ptr_eq(a, &b.0) && *check == b.1;
        running.checks.retain(|(live, check, task)| {
            let keep = wanted.iter().any(|w| same(live, check, w));
            if !keep {
                task.abort();
            }
            keep
        });
        for (live, check) in wanted {
            if !running.checks.iter().any(|(l, c, _)| same(l, c, &(live.clone(), check.clone()))) {
                let task = tokio::spawn(check::watch(self.shared.clone(), live.clone(), check.clone()));
                running.checks.push((live, check, task));
            }
        }
    }

    /// Lets the socket speak what the listener wants from now on. A certificate that cannot be used changes nothing.
    fn change(&self, socket: &mut Socket, listener: &Listener) -> Result<(), ListenError> {
        if socket.speaks.0 == listener.protocol && socket.speaks.1 == listener.certificates {
            return Ok(());
        }
        let (door, closing) = self.door(listener, tls(listener)?, socket.address.port());
        *socket.door.write() = door;
        socket.speaks = (listener.protocol, listener.certificates.clone());
        std::mem::replace(&mut socket.closing, closing).send_replace(true);
        Ok(())
    }

    fn door(
        &self,
        listener: &Listener,
        tls: Option<TlsAcceptor>,
        port: u16,
    ) -> (Arc<Door>, watch::Sender<bool>) {
        let (closing, closed) = watch::channel(false);
        let (shared, upstream) = (self.shared.clone(), self.upstream.clone());
        let (id, protocol) = (listener.id.clone(), listener.protocol);
        (Arc::new(Door { shared, upstream, id, protocol, tls, port, closed }), closing)
    }

    fn open(&self, listener: &Listener) -> Result<Socket, ListenError> {
        let tls = tls(listener)?;
        let bind = |source| ListenError::Bind { address: listener.address, source };
        let (key, speaks) = (key(listener), (listener.protocol, listener.certificates.clone()));
        if listener.protocol == Protocol::Udp {
            let socket = std::net::UdpSocket::bind(listener.address).map_err(bind)?;
            socket.set_nonblocking(true).map_err(bind)?;
            let socket = UdpSocket::from_std(socket).map_err(bind)?;
            let address = socket.local_addr().map_err(bind)?;
            let (door, closing) = self.door(listener, tls, address.port());
            let accepting = tokio::spawn(udp::serve(door.clone(), socket));
            return Ok(Socket { key, speaks, address, accepting, door: Arc::new(door.into()), closing });
        }
        let socket = std::net::TcpListener::bind(listener.address).map_err(bind)?;
        socket.set_nonblocking(true).map_err(bind)?;
        let address = socket.local_addr().map_err(bind)?;
        let socket = TcpListener::from_std(socket).map_err(bind)?;
        let (door, closing) = self.door(listener, tls, address.port());
        let door = Arc::new(RwLock::new(door));
        let accepting = tokio::spawn(accept(door.clone(), socket));
        Ok(Socket { key, speaks, address, accepting, door, closing })
    }
}

/// The TLS that a listener speaks, if it does.
fn tls(listener: &Listener) -> Result<Option<TlsAcceptor>, ListenError> {
    let tls = listener.protocol.is_tls().then(|| tls::server(&listener.certificates, listener.protocol));
    Ok(tls.transpose()?.map(TlsAcceptor::from))
}

/// What every connection of a listener knows.
pub(crate) struct Door {
    pub(crate) shared: Arc<Shared>,
    upstream: Arc<Upstream>,
    pub(crate) id: Id,
    protocol: Protocol,
    tls: Option<TlsAcceptor>,
    port: u16,
    closed: watch::Receiver<bool>,
}

async fn accept(door: Arc<RwLock<Arc<Door>>>, socket: TcpListener) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, peer)) => {
                let door = door.read().clone();
                tokio::spawn(async move {
                    door.shared.connections.fetch_add(1, Relaxed);
                    door.greet(stream, peer).await;
                    door.shared.connections.fetch_sub(1, Relaxed);
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: the next try needs somebody to close.
                tracing::warn!(listener = %door.read().id, %error, "accept");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

impl Door {
    async fn greet(&self, stream: TcpStream, peer: SocketAddr) {
        if stream.set_nodelay(true).is_err() {
            return;
        }
        match &self.tls {
            None => self.speak(stream, peer).await,
            Some(acceptor) => {
                let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await else {
                    return;
                };
                self.speak(stream, peer).await;
            }
        }
    }

    async fn speak<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S, peer: SocketAddr) {
        if self.protocol.is_http() { self.requests(stream, peer).await } else { self.bytes(stream).await }
    }

    async fn requests<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        peer: SocketAddr,
    ) {
        let entry = Entry { source: peer.ip(), port: self.port, tls: self.tls.is_some() };
        let context = Arc::new(Context7 {
            shared: self.shared.clone(),
            upstream: self.upstream.clone(),
            listener: self.id.clone(),
            entry,
        });
        let service = service_fn(move |request| {
            let context = context.clone();
            async move { Ok::<_, std::convert::Infallible>(forward::answer(context, request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_headers(MAX_HEADERS);
        builder.http1().max_buf_size(MAX_HEAD_BYTES).half_close(true);
        builder.http2().timer(TokioTimer::new()).max_header_list_size(MAX_HEAD_BYTES as u32);
        builder.http2().keep_alive_interval(HEAD_TIMEOUT);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut closed = self.closed.clone();
        tokio::select! {
            outcome = connection.as_mut() => return quietly(outcome),
            _ = closed.wait_for(|closed| *closed) => connection.as_mut().graceful_shutdown(),
        }
        quietly(connection.await);
    }

    /// The group whose turn it is, of a listener that forwards only; its request is counted.
    pub(crate) fn group(&self, snapshot: &Snapshot) -> Option<Arc<LiveGroup>> {
        let Action::Forward(forward) = &snapshot.listeners.get(&self.id)?.default else { return None };
        let weights: Vec<u32> = forward.groups.iter().map(|(_, w)| *w).collect();
        let turn = self.shared.turn.fetch_add(1, Relaxed);
        let group = snapshot.groups.get(&forward.groups[balance::group(&weights, turn)?].0)?;
        group.counters.requests.fetch_add(1, Relaxed);
        Some(group.clone())
    }

    /// An L4 connection: a target of the default action's group, then bytes.
    async fn bytes<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) {
        let snapshot = self.shared.snapshot();
        let Some(listener) = snapshot.listeners.get(&self.id) else { return };
        let Some(group) = self.group(&snapshot) else { return };
        let mut refused = Vec::new();
        while let Some(held) = group.choose(None, &refused) {
            let target = held.target.config.read().clone();
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target.address)).await;
            let Ok(Ok(upstream)) = connected else {
                refused.push(target.id);
                if refused.len() < crate::CONNECT_ATTEMPTS { continue } else { break }
            };
            let _ = upstream.set_nodelay(true);
            let gone = held.target.clone();
            let relayed = async {
                if group.config.protocol.is_tls() {
                    let Ok(upstream) = tls::to_target(target.address, upstream).await else { return (0, 0) };
                    relay::both(stream, upstream, listener.idle_timeout).await
                } else {
                    relay::both(stream, upstream, listener.idle_timeout).await
                }
            };
            tokio::select! {
                (up, down) = relayed => {
                    group.counters.bytes_in.fetch_add(up, Relaxed);
                    group.counters.bytes_out.fetch_add(down, Relaxed);
                }
                () = gone.gone.notified() => {}
            }
            return;
        }
        group.counters.answers[0].fetch_add(1, Relaxed);
    }
}

fn quietly(outcome: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client's connection ended badly");
    }
}
