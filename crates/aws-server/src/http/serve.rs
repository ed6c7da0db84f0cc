//! The socket: accept, HTTP/1.1 and HTTP/2 in the clear, bounds, an orderly end.

use super::Aws;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Clients at a time; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 2_048;
/// Request headers that take longer are given up; so is an idle connection.
const HEADERS_MAX: Duration = Duration::from_secs(60);
/// Bytes of request headers: a session token and a long `Authorization` are a few kilobytes.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 250;
/// Pause after a failed accept (descriptors run out, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Aws {
    /// Serves until `stop` says so; then unfinished requests are cut off.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let mut clients = JoinSet::new();
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let slot = tokio::select! {
                slot = slots.clone().acquire_owned() => slot,
                _ = stop.wait_for(|s| *s) => return,
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = clients.join_next() => continue,
                _ = stop.wait_for(|s| *s) => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "AWS endpoint: accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let _ = stream.set_nodelay(true);
            let aws = self.clone();
            clients.spawn(async move {
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let aws = aws.clone();
                    async move { Ok::<_, Infallible>(aws.handle(request, peer).await) }
                });
                let builder = builder();
                if let Err(error) =
                    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await
                {
                    tracing::debug!(%error, "AWS endpoint: a connection ended");
                }
                drop(slot);
            });
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
