//! Asks targets how they are: one task a target, asleep between two checks.

use crate::config::Check;
use crate::health::{Failure, State};
use crate::state::{Live, Shared};
use crate::tls;
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Checks one target until it is gone from the configuration or the check changes (the caller aborts the task).
pub async fn watch(shared: Arc<Shared>, live: Arc<Live>, check: Check) {
    while !live.is_gone.load(Relaxed) {
        let started = tokio::time::Instant::now();
        let target = live.config.read().clone();
        let address = check.port.map_or(target.address, |port| SocketAddr::new(target.address.ip(), port));
        let outcome = tokio::time::timeout(check.timeout, probe(address, &check)).await;
        let outcome = outcome.unwrap_or(Err(Failure::Timeout));
        if let Err(failure) = &outcome {
            tracing::debug!(target = %target.id, %address, ?failure, "health check failed");
        }
        let (changed, state) = {
            let mut health = live.health.lock();
            (health.observe(outcome, &check), health.state.clone())
        };
        if changed {
            tracing::info!(target = %target.id, %address, ?state, "health changed");
            live.became(state == State::Healthy);
            shared.changed();
        }
        tokio::select! {
            () = tokio::time::sleep_until(started + check.interval) => {}
            () = live.gone.notified() => return,
        }
    }
}

async fn probe(address: SocketAddr, check: &Check) -> Result<(), Failure> {
    let stream = TcpStream::connect(address).await.map_err(|_| Failure::Connection)?;
    if !check.protocol.is_tls() {
        return if check.protocol.is_http() { ask(stream, address, check).await } else { Ok(()) };
    }
    let stream = tls::to_target(address, stream).await.map_err(|_| Failure::Connection)?;
    if check.protocol.is_http() { ask(stream, address, check).await } else { Ok(()) }
}

async fn ask<S>(stream: S, address: SocketAddr, check: &Check) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| Failure::Connection)?;
    let request = http::Request::get(&check.path)
        .header(http::header::HOST, address.to_string())
        .header(http::header::USER_AGENT, "ELB-HealthChecker/2.0")
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| Failure::Connection)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|_| Failure::Connection)?;
        let status = response.status().as_u16();
        let well = check.matcher.iter().any(|(low, high)| (*low..=*high).contains(&status));
        if well { Ok(()) } else { Err(Failure::Status(status)) }
    };
    tokio::select! {
        outcome = answer => outcome,
        // The connection ends first only when the target cut it.
        _ = async { if connection.await.is_ok() { std::future::pending::<()>().await } } => Err(Failure::Connection),
    }
}
