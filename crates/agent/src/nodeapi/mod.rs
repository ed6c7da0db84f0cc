//! The node API: the kubelet's HTTPS server, which the API server calls for logs, exec, attach and port-forward.
//!
//! Asks the agent through [`NodeBackend`]; speaks SPDY/3.1 and WebSocket by itself. Invariants: nothing is answered
//! to a client whose certificate the given check does not admit; every queue and wait is bounded; when a client goes,
//! what served it goes. Deliberately not here: how containers run, tokens (only certificates count), `/logs/`.

mod backend;
mod forward;
mod http;
mod link;
mod logs;
mod query;
mod remote;
mod spdy;
#[cfg(test)]
mod tests;
mod upgrade;
mod ws;

pub(crate) use logs::Watch as FolderWatch;

pub use backend::{AttachSpec, Duplex, Input, LogSource, Metrics, NodeBackend, Output, Session, Target};

use ::http::{Request, Response, StatusCode};
use http::{Body, Context};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Connections at a time. Each stream through the API server is one.
const CONNECTIONS_MAX: usize = 2048;
/// For a TLS handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// For the head of a request, and so for an idle connection: longer than clients keep one in their pools (90 s).
const HEAD_WITHIN: Duration = Duration::from_secs(120);
/// Pause after a failed accept (no descriptors left): neither spinning nor giving up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Decides on a client by its end-entity certificate, which TLS has verified to be from the right CA.
pub type Authorize = Arc<dyn Fn(&CertificateDer<'_>) -> bool + Send + Sync>;

/// The server, not yet serving.
#[derive(Clone)]
pub struct NodeApi {
    /// Must ask for client certificates; should only offer `http/1.1` by ALPN, or nothing.
    pub tls: Arc<rustls::ServerConfig>,
    /// Who may call.
    pub authorize: Authorize,
    /// The agent.
    pub backend: Arc<dyn NodeBackend>,
}

/// What is known of a connection's client.
#[derive(Clone, Copy)]
enum Client {
    Admitted,
    Refused,
    Anonymous,
}

impl NodeApi {
    /// Serves until `stop` resolves; then ends every connection. Port-forwards and sessions end with it,
    /// containers do not.
    pub async fn serve(self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let (_running, stopping) = watch::channel(false);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        let accept = async {
            loop {
                let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
                while connections.try_join_next().is_some() {}
                match listener.accept().await {
                    Ok((socket, _)) => {
                        let (api, stopping) = (self.clone(), stopping.clone());
                        connections.spawn(async move {
                            api.connection(socket, stopping, Arc::new(place)).await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the node API cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = stop => {}
        }
        connections.shutdown().await;
    }

    async fn connection(
        self,
        socket: TcpStream,
        stop: watch::Receiver<bool>,
        place: Arc<OwnedSemaphorePermit>,
    ) {
        // Keystrokes of a terminal must not wait for one another.
        let _ = socket.set_nodelay(true);
        let handshake = TlsAcceptor::from(self.tls.clone()).accept(socket);
        let tls = match tokio::time::timeout(HANDSHAKE_WITHIN, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake with the node API failed"),
            Err(_) => return tracing::debug!("TLS handshake with the node API took too long"),
        };
        let client = match tls.get_ref().1.peer_certificates().and_then(<[_]>::first) {
            None => Client::Anonymous,
            Some(certificate) if (self.authorize)(certificate) => Client::Admitted,
            Some(_) => Client::Refused,
        };
        let context = Context { backend: self.backend, stop, place };
        let service = service_fn(move |request| answer(client, context.clone(), request));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .serve_connection(TokioIo::new(tls), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a node API connection ends");
        }
    }
}

async fn answer(
    client: Client,
    context: Context,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    Ok(match client {
        Client::Admitted => http::handle(context, request).await,
        Client::Refused => http::plain(StatusCode::FORBIDDEN, "Forbidden"),
        Client::Anonymous => http::plain(StatusCode::UNAUTHORIZED, "Unauthorized"),
    })
}
