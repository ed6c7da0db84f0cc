//! One unary call over a fresh connection: plug-ins are called rarely, and a connection kept would have to be watched.

use crate::schema::{Method, Schema};
use crate::{MESSAGE_BYTES_MAX, Status, code};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

/// What came of a call.
pub type Answer = Result<Value, Status>;

/// Where calls go.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The protocol.
    pub schema: &'a Schema,
    /// The plug-in's socket.
    pub socket: &'a Path,
    /// How long it may take.
    pub within: Duration,
}

/// The frame of an uncompressed message: a flag, the length, the message.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// The one message of a body.
pub(crate) fn unframed(body: &[u8]) -> Result<&[u8], Status> {
    match body {
        [0, a, b, c, d, message @ ..] if u32::from_be_bytes([*a, *b, *c, *d]) as usize == message.len() => {
            Ok(message)
        }
        [1, ..] => Err(Status::new(code::UNIMPLEMENTED, "compressed messages are not taken")),
        _ => Err(Status::new(code::INTERNAL, "not one message")),
    }
}

impl Call<'_> {
    /// Calls a method of the protocol.
    ///
    /// # Errors
    /// The plug-in's own, or why there was no answer.
    pub async fn call(&self, method: &str, request: &Value) -> Answer {
        let method = self.method(method)?;
        let path = format!("/{}/{}", method.service, method.name);
        let exchange = async {
            let stream = connected(self.socket).await?;
            unary(stream, "localhost", &path, &self.schema.encode(method.request, request)).await
        };
        let late = |_| Status::new(code::DEADLINE_EXCEEDED, "context deadline exceeded");
        let bytes = tokio::time::timeout(self.within, exchange).await.map_err(late)??;
        self.schema.decode(method.response, &bytes)
    }

    pub(crate) fn method(&self, name: &str) -> Result<Method, Status> {
        let unknown = || Status::new(code::UNIMPLEMENTED, format!("unknown method {name}"));
        self.schema.method(name).ok_or_else(unknown)
    }
}

pub(crate) async fn connected(socket: &Path) -> Result<UnixStream, Status> {
    let failed = |e| Status::new(code::UNAVAILABLE, format!("{}: {e}", socket.display()));
    UnixStream::connect(socket).await.map_err(failed)
}

pub(crate) fn posted(authority: &str, path: &str, frame: Bytes) -> Result<Request<Full<Bytes>>, Status> {
    let request = Request::post(format!("http://{authority}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    request.body(Full::new(frame)).map_err(|e| Status::new(code::UNAVAILABLE, e))
}

/// One call over a connection of its own: the answer's message.
///
/// # Errors
/// The server's status, or [`code::UNAVAILABLE`].
pub async fn unary<S>(stream: S, authority: &str, path: &str, message: &[u8]) -> Result<Bytes, Status>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let lost = |e: &dyn std::fmt::Display| Status::new(code::UNAVAILABLE, e);
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|e| lost(&e))?;
    let request = posted(authority, path, framed(message))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| lost(&e))?;
        if let Some(early) = status(response.headers()) {
            early?;
        }
        let taken = Limited::new(response.into_body(), MESSAGE_BYTES_MAX).collect().await;
        let body = taken.map_err(|e| lost(&e))?;
        if let Some(late) = body.trailers().and_then(status) {
            late?;
        }
        let bytes = body.to_bytes();
        unframed(&bytes).map(|message| bytes.slice_ref(message))
    };
    tokio::pin!(connection, exchange);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut exchange => return answer,
            _ = &mut connection, if open => open = false,
        }
    }
}

/// What headers or trailers say, if they say it.
pub(crate) fn status(headers: &HeaderMap) -> Option<Result<(), Status>> {
    let text = |name: &str| headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let number: u32 = text("grpc-status")?.parse().unwrap_or(code::UNKNOWN);
    if number == 0 {
        return Some(Ok(()));
    }
    Some(Err(Status::new(number, percent_decoded(&text("grpc-message").unwrap_or_default()))))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digits = tail.get(..2).filter(|_| *first == b'%').and_then(|d| std::str::from_utf8(d).ok());
        let decoded = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
