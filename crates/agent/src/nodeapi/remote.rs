//! Exec and attach: joins a process's streams with a client's channels, and reports how it ended.
//!
//! The channels come from SPDY (each a stream with a `streamType` header) or WebSocket (0 stdin, 1 stdout,
//! 2 stderr, 3 error, 4 resize). Invariants: the status is the last thing sent, after all output; when the client
//! goes, every stream of the process is let go.

use super::backend::{Input, Output, Session};
use super::link::{CHUNK_BYTES, Gone, Inbound, Link, Outbound};
use super::spdy::Connection;
use super::ws;
use bytes::{Bytes, BytesMut};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// How long a client may take to open its streams, as in the kubelet.
const STREAMS_WITHIN: Duration = Duration::from_secs(30);
/// What a process answers to the last of a client's input, where the session ends with that.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Before 1.34 kubectl reads from a WebSocket before it has made its streams, and drops what comes for them ("Unknown
/// stream id 1"). Other nodes are slower with a process's first output than kubectl with its streams; this one waits.
const STREAMS_SETTLE: Duration = Duration::from_millis(30);
/// Output still open after the process ended (a child keeps it) is given up when silent for so long.
const ORPHANED_OUTPUT: Duration = Duration::from_secs(2);
/// Largest unfinished JSON text on the resize channel.
const RESIZE_MAX: usize = 4096;

/// Which channels there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// How the end is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    /// v4 and later: a `Status` in JSON, sent on success too. Before: the message of a failure.
    pub(super) json: bool,
    /// v3 and later: a resize stream beside a terminal.
    pub(super) resize: bool,
}

/// A client's channels.
pub(super) struct Channels {
    stdin: Option<Inbound>,
    stdout: Option<Outbound>,
    stderr: Option<Outbound>,
    error: Outbound,
    resize: Option<Inbound>,
    dialect: Dialect,
    link: Link,
    /// How long the client gets nothing.
    settle: Duration,
}

/// Waits until a SPDY client opened its streams.
pub(super) async fn spdy_channels(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    wanted: Wanted,
    dialect: Dialect,
) -> Option<Channels> {
    let mut connection = Connection::start(io);
    let resize = wanted.tty && dialect.resize;
    let mut missing: Vec<&str> = [
        (true, "error"),
        (wanted.stdin, "stdin"),
        (wanted.stdout, "stdout"),
        (wanted.stderr, "stderr"),
        (resize, "resize"),
    ]
    .into_iter()
    .filter_map(|(is_wanted, kind)| is_wanted.then_some(kind))
    .collect();
    let mut found = Vec::new();
    let collect = async {
        while !missing.is_empty() {
            let stream = connection.next().await?;
            let kind = stream.header("streamtype").and_then(|kind| missing.iter().position(|m| *m == kind));
            match kind {
                Some(at) => found.push((missing.remove(at), connection.accept(stream).await.ok()?)),
                None => connection.refuse(stream).await.ok()?,
            }
        }
        Some(())
    };
    if !matches!(tokio::time::timeout(STREAMS_WITHIN, collect).await, Ok(Some(()))) {
        tracing::debug!("the client did not open its streams");
        return None;
    }
    let mut take = |kind: &str| {
        let at = found.iter().position(|(found, _)| *found == kind)?;
        Some(found.swap_remove(at).1)
    };
    let (stdin, stdout, stderr, resize) = (take("stdin"), take("stdout"), take("stderr"), take("resize"));
    let (_, error) = take("error")?;
    Some(Channels {
        stdin: stdin.map(|(inbound, _)| inbound),
        stdout: stdout.map(|(_, outbound)| outbound),
        stderr: stderr.map(|(_, outbound)| outbound),
        error,
        resize: resize.map(|(inbound, _)| inbound),
        dialect,
        link: connection.into_link(),
        settle: Duration::ZERO,
    })
}

/// The channels of a WebSocket client: always there.
pub(super) async fn ws_channels(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    wanted: Wanted,
    dialect: Dialect,
    codec: ws::Codec,
) -> Option<Channels> {
    let (link, inbounds) = ws::channels(io, codec, 5);
    let [stdin, _, _, _, resize] = <[Inbound; 5]>::try_from(inbounds).ok()?;
    let channels = Channels {
        stdin: wanted.stdin.then_some(stdin),
        stdout: wanted.stdout.then(|| link.outbound(1)),
        stderr: wanted.stderr.then(|| link.outbound(2)),
        error: link.outbound(3),
        resize: wanted.tty.then_some(resize),
        dialect,
        link,
        settle: STREAMS_SETTLE,
    };
    // An empty message tells the client that the connection stands.
    let first = channels.stdout.as_ref().or(channels.stderr.as_ref()).unwrap_or(&channels.error);
    first.send(Bytes::new()).await.ok()?;
    Some(channels)
}

/// Runs a session to its end. `start` is called once the channels stand, as its failure is told through them.
pub(super) async fn run(channels: Channels, start: impl Future<Output = Result<Session, ApiError>>) {
    let Channels { stdin, stdout, stderr, error, resize, dialect, link, settle } = channels;
    let session = async {
        let session = match tokio::join!(start, tokio::time::sleep(settle)).0 {
            Ok(session) => session,
            Err(error) => return Err(error),
        };
        let (ended, has_ended) = watch::channel(false);
        let resizes = resizes(resize, session.resize);
        let ends = session.ends_with_input && stdin.is_some();
        let fed = async {
            pump_in(stdin, session.stdin).await;
            match ends {
                true => tokio::time::sleep(LAST_WORDS).await,
                false => std::future::pending().await,
            }
        };
        let inputs = async {
            let sized = async {
                resizes.await;
                std::future::pending::<()>().await;
            };
            tokio::select! { () = fed => {}, () = sized => {} }
        };
        let outputs = async {
            let done = async {
                let result = session.done.await;
                ended.send_replace(true);
                result
            };
            let out = pump_out(session.stdout, stdout, has_ended.clone());
            let err = pump_out(session.stderr, stderr, has_ended);
            tokio::join!(done, out, err).0
        };
        tokio::select! {
            result = outputs => result,
            () = inputs => Ok(0),
        }
    };
    let closed = link.closed();
    let result = tokio::select! {
        result = session => result,
        () = closed => return tracing::debug!("the client left a running session"),
    };
    let report = report(result, dialect);
    if report.is_empty() || error.send(report).await.is_ok() {
        let _ = error.finish().await;
    }
    link.close().await;
}

/// Client to process. The end is passed on by dropping the process's side.
async fn pump_in(from: Option<Inbound>, to: Option<Input>) {
    let (Some(mut from), Some(mut to)) = (from, to) else { return };
    while let Some(bytes) = from.next().await {
        // A process that closed its stdin wants no more; the rest is dropped with the channel.
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Process to client, then the end of the channel.
async fn pump_out(from: Option<Output>, to: Option<Outbound>, mut ended: watch::Receiver<bool>) {
    let Some(to) = to else { return };
    if let Some(mut from) = from {
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        loop {
            let n = tokio::select! {
                // A terminal whose last process ended reads as EIO: an end like any other.
                n = from.read_buf(&mut buffer) => n.unwrap_or(0),
                () = silence_after(&mut ended) => 0,
            };
            if n == 0 || to.send(buffer.split().freeze()).await.is_err() {
                break;
            }
            buffer.reserve(CHUNK_BYTES);
        }
    }
    let _ = to.finish().await;
}

async fn silence_after(ended: &mut watch::Receiver<bool>) {
    if ended.wait_for(|ended| *ended).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(ORPHANED_OUTPUT).await;
}

/// Terminal sizes, a JSON object each, however the client cut them into messages.
async fn resizes(from: Option<Inbound>, set: Option<Box<dyn Fn(u16, u16) + Send + Sync>>) {
    let (Some(mut from), Some(set)) = (from, set) else { return };
    let mut pending = Vec::new();
    while let Some(bytes) = from.next().await {
        pending.extend_from_slice(&bytes);
        let mut objects = serde_json::Deserializer::from_slice(&pending).into_iter::<Value>();
        let mut used = 0;
        while let Some(Ok(size)) = objects.next() {
            used = objects.byte_offset();
            let side = |name: &str| size[name].as_u64().and_then(|n| u16::try_from(n).ok());
            if let (Some(width), Some(height)) = (side("Width"), side("Height")) {
                set(width, height);
            }
        }
        pending.drain(..used);
        if pending.len() > RESIZE_MAX {
            return;
        }
    }
}

/// What the error channel says.
fn report(result: Result<i32, ApiError>, dialect: Dialect) -> Bytes {
    let status = match result {
        Ok(0) if dialect.json => json!({"metadata": {}, "status": "Success"}),
        Ok(0) => return Bytes::new(),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) if error.code == 500 => error.to_status(),
        Err(error) => {
            ApiError::internal(format!("error executing command in container: {}", error.message)).to_status()
        }
    };
    let text =
        if dialect.json { status.to_string() } else { status["message"].as_str().unwrap_or("").to_string() };
    text.into()
}

/// Sends everything a command writes, for `/run`.
pub(super) async fn output_only(
    session: Session,
    out: &tokio::sync::mpsc::Sender<Bytes>,
) -> Result<(), Gone> {
    let (ended, mut has_ended) = watch::channel(false);
    let done = async {
        let result = session.done.await;
        ended.send_replace(true);
        match result {
            Ok(_) => Ok(()),
            Err(error) => out.send(error.message.into()).await.map_err(|_| Gone),
        }
    };
    let copy = async {
        let Some(mut from) = session.stdout else { return Ok(()) };
        let mut buffer = BytesMut::with_capacity(CHUNK_BYTES);
        loop {
            let n = tokio::select! {
                n = from.read_buf(&mut buffer) => n.unwrap_or(0),
                () = silence_after(&mut has_ended) => 0,
            };
            if n == 0 {
                return Ok(());
            }
            out.send(buffer.split().freeze()).await.map_err(|_| Gone)?;
            buffer.reserve(CHUNK_BYTES);
        }
    };
    tokio::try_join!(done, copy).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_in_every_dialect() {
        let text = |result, json| {
            String::from_utf8(report(result, Dialect { json, resize: true }).to_vec()).unwrap()
        };
        assert_eq!(text(Ok(0), true), r#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(text(Ok(0), false), "");
        let failed: Value = serde_json::from_str(&text(Ok(42), true)).unwrap();
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "42"}));
        assert!(text(Ok(42), false).contains("exit status 42"));
        let missing = ApiError::bad_request("exec: \"x\": executable file not found in $PATH: unknown");
        let message = text(Err(missing), false);
        assert!(message.starts_with("Internal error occurred: error executing command in container: exec:"));
    }
}
