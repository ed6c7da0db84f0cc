//! Sockets: accept, TLS, HTTP/1.1 and HTTP/2, bounds, an orderly end.

use super::Peer;
use super::respond::{self, Body};
use crate::Api;
use ::http::{Request, Response};
use auth::Identity;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use machinery::status::ApiError;
use rustls::pki_types::CertificateDer;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// Open connections: each costs a task and its buffers.
const CONNECTIONS_MAX: usize = 8_192;
/// A TLS handshake that takes longer is given up.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Request headers that take longer are given up.
const HEADERS_MAX: Duration = Duration::from_secs(30);
/// Bytes of request headers (upstream: Go's default of 1 MiB is more than anybody needs).
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Requests at once on one HTTP/2 connection; informers of one client share it.
const STREAMS_MAX: u32 = 1_000;
/// Pause after a failed accept (descriptors run out, mostly), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that have not ended this long after the close are dropped.
const DRAIN_MAX: Duration = Duration::from_secs(5);

impl Api {
    /// Serves HTTPS on a listener until `shutdown` turns true (or its sender goes) or the server is closed.
    pub async fn serve(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let acceptor = TlsAcceptor::from(tls);
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut closing = self.closing();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = shutdown.wait_for(|s| *s) => break,
                _ = closing.wait_for(|c| *c) => break,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                tracing::warn!(max = CONNECTIONS_MAX, "too many connections; one was refused");
                continue;
            };
            let (api, acceptor) = (self.clone(), acceptor.clone());
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                if let Err(error) = api.serve_tls(stream, address.ip(), acceptor).await {
                    tracing::debug!(%error, "a connection ended");
                }
                drop(slot);
            });
        }
        self.close();
        let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(DRAIN_MAX, slots.acquire_many(all)).await;
    }

    async fn serve_tls(
        self: Arc<Self>,
        stream: tokio::net::TcpStream,
        source: IpAddr,
        acceptor: TlsAcceptor,
    ) -> io::Result<()> {
        let handshake = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(stream)).await;
        let stream = handshake.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake"))??;
        let peer = self.peer(stream.get_ref().1.peer_certificates().unwrap_or_default());
        self.serve_peer(stream, peer, Some(source)).await
    }

    /// Whom a verified chain speaks for.
    fn peer(&self, chain: &[CertificateDer<'_>]) -> Peer {
        if self.front_proxies.as_ref().is_some_and(|authority| authority.signed(chain)) {
            let name = auth::identity_of(chain).map(|i| i.user).unwrap_or_default();
            return if name == crate::FRONT_PROXY_CLIENT { Peer::FrontProxy } else { Peer::Unknown };
        }
        auth::identity_of(chain).map_or(Peer::Unknown, |identity| Peer::Known(Arc::new(identity)))
    }

    /// Serves HTTP on one stream whose peer is known by other means (or not at all).
    pub async fn serve_connection<S>(self: Arc<Self>, stream: S, identity: Option<Identity>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve_peer(stream, identity.map_or(Peer::Unknown, |i| Peer::Known(Arc::new(i))), None).await
    }

    async fn serve_peer<S>(self: Arc<Self>, stream: S, peer: Peer, source: Option<IpAddr>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _open = self.metrics.connected();
        let mut closing = self.closing();
        let api = self.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(source) = source {
                request.extensions_mut().insert(crate::audit::Source(source));
            }
            let (api, peer) = (api.clone(), peer.clone());
            // On the heap, to be gone when the answer begins: a watch would keep its room for as long as it lasts.
            Box::pin(async move { Ok::<_, Infallible>(reply(api, peer, request).await) })
        });
        let builder = builder();
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(io::Error::other),
            _ = closing.wait_for(|c| *c) => connection.as_mut().graceful_shutdown(),
        }
        match tokio::time::timeout(DRAIN_MAX, connection).await {
            Ok(ended) => ended.map_err(io::Error::other),
            Err(_) => Ok(()),
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX * 2);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX as u32)
        .keep_alive_interval(Some(HEADERS_MAX));
    builder
}

async fn reply(api: Arc<Api>, peer: Peer, request: Request<Incoming>) -> Response<Body> {
    let bytes: usize = request.headers().iter().map(|(k, v)| k.as_str().len() + v.len()).sum();
    if bytes > HEADER_BYTES_MAX {
        return respond::error(&ApiError::new(431, "", "request headers are too large"));
    }
    super::handle(api, peer, request).await
}
