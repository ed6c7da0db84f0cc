//! Port forwarding: pairs a client's data and error channels and joins each pair with a connection into the pod.
//!
//! SPDY (`portforward.k8s.io`): any number of pairs, found by `requestID`. WebSocket (`v4.channel.k8s.io`): channels
//! 2n and 2n+1 for the n-th port of the query, each begun with the port in two bytes, little endian.

use super::backend::{NodeBackend, Target};
use super::link::{CHUNK_BYTES, Inbound, Link, Outbound};
use super::spdy::{Connection, NewStream};
use super::ws;
use bytes::{Bytes, BytesMut};
use machinery::status::ApiError;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

/// How long one stream of a pair waits for the other.
const PAIR_WITHIN: Duration = Duration::from_secs(30);

/// A forwarded connection's channels.
struct Pair {
    port: u16,
    data: (Inbound, Outbound),
    error: Outbound,
}

#[derive(Default)]
struct Half {
    data: Option<(Inbound, Outbound)>,
    error: Option<Outbound>,
    since: Option<Instant>,
}

/// Serves a SPDY client until it goes.
pub(super) async fn spdy(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    backend: Arc<dyn NodeBackend>,
    target: Target,
) {
    let mut connection = Connection::start(io);
    let mut running = JoinSet::new();
    let mut halves: BTreeMap<String, Half> = BTreeMap::new();
    while let Some(stream) = connection.next().await {
        while running.try_join_next().is_some() {}
        for half in expired(&mut halves) {
            running.spawn(complain(half));
        }
        let Some((port, is_data)) = port_and_kind(&stream) else {
            if connection.refuse(stream).await.is_err() {
                break;
            }
            continue;
        };
        let id = request_id(&stream, is_data);
        let Ok(channel) = connection.accept(stream).await else { break };
        let half = halves.entry(id.clone()).or_default();
        half.since.get_or_insert_with(Instant::now);
        match is_data {
            true => half.data = Some(channel),
            false => half.error = Some(channel.1),
        }
        if half.data.is_some()
            && half.error.is_some()
            && let Some(Half { data: Some(data), error: Some(error), .. }) = halves.remove(&id)
        {
            running.spawn(forward(Pair { port, data, error }, backend.clone(), target.clone()));
        }
    }
    // The client is gone: its connections into the pod go with it.
    running.shutdown().await;
}

/// Serves a WebSocket client that named its ports beforehand.
pub(super) async fn websocket(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    codec: ws::Codec,
    ports: Vec<u16>,
    backend: Arc<dyn NodeBackend>,
    target: Target,
) {
    let (link, inbounds) = ws::channels(io, codec, ports.len() * 2);
    let mut inbounds = inbounds.into_iter();
    let mut running = JoinSet::new();
    for (number, port) in (0u32..).step_by(2).zip(ports) {
        let (Some(inbound), Some(_)) = (inbounds.next(), inbounds.next()) else { return };
        let pair = Pair { port, data: (inbound, link.outbound(number)), error: link.outbound(number + 1) };
        let greeting = Bytes::copy_from_slice(&port.to_le_bytes());
        if pair.data.1.send(greeting.clone()).await.is_err() || pair.error.send(greeting).await.is_err() {
            return;
        }
        running.spawn(forward(pair, backend.clone(), target.clone()));
    }
    finish_with(link, running).await;
}

async fn finish_with(link: Link, mut running: JoinSet<()>) {
    let closed = link.closed();
    let all = async { while running.join_next().await.is_some() {} };
    tokio::select! {
        () = all => link.close().await,
        () = closed => {}
    }
}

/// Port and kind (is it data?) of a stream; `None` for what is no port-forward stream.
fn port_and_kind(stream: &NewStream) -> Option<(u16, bool)> {
    let port = stream.header("port")?.parse().ok().filter(|port| *port > 0)?;
    match stream.header("streamtype")? {
        "data" => Some((port, true)),
        "error" => Some((port, false)),
        _ => None,
    }
}

/// Clients older than 1.2 send no id: their error stream comes first and the data stream right behind.
fn request_id(stream: &NewStream, is_data: bool) -> String {
    match stream.header("requestid") {
        Some(id) => id.to_string(),
        None => format!("#{}", if is_data { stream.id.wrapping_sub(2) } else { stream.id }),
    }
}

fn expired(halves: &mut BTreeMap<String, Half>) -> Vec<Half> {
    let is_old = |half: &Half| half.since.is_some_and(|since| since.elapsed() > PAIR_WITHIN);
    halves.extract_if(.., |_, half| is_old(half)).map(|(_, half)| half).collect()
}

async fn complain(half: Half) {
    if let Some(error) = half.error {
        let _ = error.send("timed out waiting for streams".into()).await;
        let _ = error.finish().await;
    }
}

async fn forward(pair: Pair, backend: Arc<dyn NodeBackend>, target: Target) {
    let Pair { port, data: (inbound, outbound), error } = pair;
    let result = match backend.port_forward(&target, port).await {
        Ok(io) => {
            copy(io, inbound, &outbound).await;
            Ok(())
        }
        Err(error) => Err(error),
    };
    if let Err(ApiError { message, .. }) = result {
        let uid = target.uid.as_deref().unwrap_or_default();
        let text = format!("error forwarding port {port} to pod {}, uid {uid}: {message}", target.pod);
        tracing::debug!(pod = target.pod, port, message, "port-forward failed");
        let _ = error.send(text.into()).await;
    }
    let _ = error.finish().await;
    let _ = outbound.finish().await;
}

/// Copies until the pod's side ends; the client's end is passed on as a half close.
async fn copy(io: impl AsyncRead + AsyncWrite, mut from: Inbound, to: &Outbound) {
    let (mut read, mut write) = tokio::io::split(io);
    let inwards = async {
        while let Some(bytes) = from.next().await {
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
        std::future::pending::<()>().await;
    };
    let outwards = async {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        while matches!(read.read_buf(&mut buffer).await, Ok(n) if n > 0) {
            if to.send(buffer.split().freeze()).await.is_err() {
                break;
            }
            buffer.reserve(CHUNK_BYTES);
        }
    };
    tokio::select! {
        () = outwards => {}
        () = inwards => {}
    }
}
