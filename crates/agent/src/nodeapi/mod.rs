//! The node API: the kubelet's HTTPS server, which the API server calls for logs, exec, attach and port-forward.
//!
//! Asks the agent through [`NodeBackend`]; speaks SPDY/3.1 and WebSocket by itself. Invariants: nothing is answered
//! to a client that neither the given check nor the API server admits; every queue and wait is bounded; when a client
//! goes, what served it goes. Deliberately not here: how containers run.

mod access;
mod backend;
mod files;
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

pub use access::Reviews;
pub use backend::{AttachSpec, Duplex, Input, LogSource, Metrics, NodeBackend, Output, Session, Target};

use ::http::{Request, Response, StatusCode};
use auth::Identity;
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
    /// Who may call without being asked about.
    pub authorize: Authorize,
    /// Asks about all others; `None`: they are refused.
    pub reviews: Option<Arc<Reviews>>,
    /// The agent.
    pub backend: Arc<dyn NodeBackend>,
}

/// What TLS knows of a connection's client.
#[derive(Clone)]
enum Client {
    Admitted,
    Known(Arc<Identity>),
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
            Some(certificate) => match auth::identity_of(std::slice::from_ref(certificate)) {
                Some(identity) => Client::Known(Arc::new(identity)),
                None => Client::Anonymous,
            },
        };
        let reviews = self.reviews;
        let context = Context { backend: self.backend, stop, place };
        let service = service_fn(move |request| {
            let (client, reviews, context) = (client.clone(), reviews.clone(), context.clone());
            async move {
                let answered = match refusal(client, reviews, &request).await {
                    None => http::handle(context, request).await,
                    Some((code, text)) => {
                        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::FORBIDDEN);
                        http::plain(status, text)
                    }
                };
                Ok::<Response<Body>, Infallible>(answered)
            }
        });
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

/// Why a request is not answered; `None`: it is.
async fn refusal(
    client: Client,
    reviews: Option<Arc<Reviews>>,
    request: &Request<Incoming>,
) -> Option<access::Refusal> {
    let caller = match (client, &reviews) {
        (Client::Admitted, _) => return None,
        (Client::Known(identity), _) => Some(identity),
        (Client::Anonymous, Some(reviews)) => reviews.holder(request.headers()).await.map(Arc::new),
        (Client::Anonymous, None) => None,
    };
    match (caller, reviews) {
        (None, _) => Some((401, "Unauthorized".into())),
        (Some(_), None) => Some((403, "Forbidden".into())),
        (Some(caller), Some(reviews)) => {
            reviews.check(&caller, request.method(), request.uri().path()).await.err()
        }
    }
}
