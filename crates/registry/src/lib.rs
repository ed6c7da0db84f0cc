//! The registry: the OCI distribution API v1.1 over the node's own [`image::Depot`].
//!
//! Reads and writes the depot, nothing else. HTTP/1.1 on the listener that it is given: plain and open to all
//! ([`serve`], for the loopback), or by TLS and for those whom an [`Authorizer`] knows ([`serve_guarded`]). Invariants: bodies go to disk as they come; every wait for a client has a deadline; at most
//! [`CONNECTIONS_MAX`] clients at a time, each with a bounded buffer; every error is in the specification's JSON.
//! Deliberately not here: where users and rights come from, image formats (`image` checks what it takes).

mod access;
mod blobs;
mod guard;
mod lists;
mod manifests;
mod reply;
mod route;
mod uploads;

pub use access::{Action, Authorizer, Authorizers, Credentials, Principal};
pub use guard::Guard;

use guard::{HANDSHAKE_MAX, Visitor};
use http::{Method, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use image::{Depot, DepotError};
use reply::{ApiError, Reply};
use route::Route;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Clients at a time; further ones wait to be accepted.
pub const CONNECTIONS_MAX: usize = 128;
/// For the head of a request; also how long an idle connection is kept.
const HEAD_MAX: Duration = Duration::from_secs(30);
/// A client that takes nothing for so long is cut off by the kernel.
const SEND_MAX_MS: u32 = 60_000;
/// After a failed `accept` (out of files, mostly).
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Memory for reading from one client. Large uploads come in pieces of this size at most.
const BUFFER_BYTES: usize = 512 << 10;

/// Serves everybody until `stop` says so; then unfinished requests are cut off.
pub async fn serve(listener: TcpListener, depot: Depot, stop: watch::Receiver<bool>) {
    accept(listener, depot, None, stop).await;
}

/// The same by TLS, and only what the guard lets through.
pub async fn serve_guarded(listener: TcpListener, depot: Depot, guard: Guard, stop: watch::Receiver<bool>) {
    accept(listener, depot, Some(guard), stop).await;
}

async fn accept(listener: TcpListener, depot: Depot, guard: Option<Guard>, mut stop: watch::Receiver<bool>) {
    let mut clients = JoinSet::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = tokio::select! {
            permit = room.clone().acquire_owned() => permit,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = clients.join_next() => continue,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "registry: accept");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, SEND_MAX_MS);
        let (depot, guard) = (depot.clone(), guard.clone());
        clients.spawn(async move {
            match guard {
                None => connection(stream, depot, None).await,
                Some(guard) => guarded(stream, depot, guard).await,
            }
            drop(permit);
        });
    }
}

async fn guarded(stream: TcpStream, depot: Depot, guard: Guard) {
    let handshake = TlsAcceptor::from(guard.tls).accept(stream);
    let stream = match tokio::time::timeout(HANDSHAKE_MAX, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "registry: TLS handshake"),
        Err(_) => return tracing::debug!("registry: TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    let visitor = Visitor::new(guard.authorizers, certificate.map(|c| c.into_owned()));
    connection(stream, depot, Some(Arc::new(visitor))).await;
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    depot: Depot,
    visitor: Option<Arc<Visitor>>,
) {
    let service = hyper::service::service_fn(move |request| handle(depot.clone(), visitor.clone(), request));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "registry: connection");
    }
}

/// Answers one request.
async fn handle(
    depot: Depot,
    visitor: Option<Arc<Visitor>>,
    request: Request<Incoming>,
) -> Result<Reply, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let checked = async {
        let route = Route::parse(&path)?;
        if let Some(visitor) = visitor {
            visitor.check(&route, &request).await?;
        }
        answer(depot, route, request).await
    };
    Ok(checked.await.unwrap_or_else(|error| {
        let (status, code) = (error.status(), error.code());
        if status.is_server_error() {
            tracing::warn!(%method, path, %error, "registry");
        } else {
            tracing::debug!(%method, path, code, %error, "registry");
        }
        error.reply(&method)
    }))
}

async fn answer(depot: Depot, route: Route, request: Request<Incoming>) -> Result<Reply, ApiError> {
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    match (route, request.method().clone()) {
        (Route::Base, _) if get => Ok(reply::json(&serde_json::json!({}))),
        (Route::Catalog, _) if get => lists::catalog(&depot, request.uri()),
        (Route::Tags(name), _) if get => lists::tags(&depot, &name, request.uri()),
        (Route::Referrers(name, digest), _) if get => {
            let query = route::Query::of(request.uri());
            blocking(move || lists::referrers(&depot, &name, &digest, &query)).await
        }
        (Route::Manifest(name, reference), Method::PUT) => {
            manifests::put(depot, name, reference, request).await
        }
        (Route::Manifest(name, reference), Method::DELETE) => {
            blocking(move || manifests::delete(&depot, &name, &reference)).await
        }
        (Route::Manifest(name, reference), method) if get => {
            blocking(move || manifests::get(&depot, &name, &reference, &method)).await
        }
        (Route::Blob(name, digest), Method::DELETE) => {
            blocking(move || blobs::delete(&depot, &name, &digest)).await
        }
        (Route::Blob(name, digest), _) if get => blobs::get(depot, name, digest, request).await,
        (Route::Uploads(name), Method::POST) => uploads::post(depot, name, request).await,
        (Route::Upload(name, id), method) => uploads::on(depot, (name, id), method, request).await,
        _ => Err(ApiError::Method),
    }
}

/// Runs what waits for the disk on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::Depot(DepotError::Image(image::ImageError::Cancelled))))
}
