//! A call whose answers come one by one, for as long as both sides live.

use crate::call::{Call, connected, framed, posted, status};
use crate::schema::Schema;
use crate::{MESSAGE_BYTES_MAX, Status, code};
use bytes::{Buf, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::task::JoinSet;

/// Answers that are still coming. Dropping it ends the call.
pub struct Stream<'a> {
    schema: &'a Schema,
    response: &'static str,
    body: Incoming,
    buffer: BytesMut,
    /// Drives the connection.
    _connection: JoinSet<()>,
}

impl<'a> Call<'a> {
    /// Begins a call with many answers; the deadline is for its beginning.
    ///
    /// # Errors
    /// The plug-in's own, or why there was no answer.
    pub async fn stream(&self, method: &str, request: &Value) -> Result<Stream<'a>, Status> {
        let method = self.method(method)?;
        let lost = |e: hyper::Error| Status::new(code::UNAVAILABLE, e);
        let begin = async {
            let socket = connected(self.socket).await?;
            let shaken =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await;
            let (mut sender, connection) = shaken.map_err(lost)?;
            let mut driver = JoinSet::new();
            driver.spawn(async move { drop(connection.await) });
            let message = framed(&self.schema.encode(method.request, request));
            let path = format!("/{}/{}", method.service, method.name);
            let response = sender.send_request(posted("localhost", &path, message)?).await.map_err(lost)?;
            if let Some(early) = status(response.headers()) {
                early?;
            }
            Ok((response.into_body(), driver))
        };
        let late = |_| Status::new(code::DEADLINE_EXCEEDED, "context deadline exceeded");
        let (body, connection) = tokio::time::timeout(self.within, begin).await.map_err(late)??;
        let (schema, response) = (self.schema, method.response);
        Ok(Stream { schema, response, body, buffer: BytesMut::new(), _connection: connection })
    }
}

impl Stream<'_> {
    /// The next answer; `None`: that was all.
    ///
    /// # Errors
    /// The plug-in's own, or why there will be no more.
    pub async fn next(&mut self) -> Result<Option<Value>, Status> {
        loop {
            if let [flag, a, b, c, d, ..] = self.buffer[..] {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if flag != 0 || length > MESSAGE_BYTES_MAX {
                    return Err(Status::new(code::RESOURCE_EXHAUSTED, "a message too large, or compressed"));
                }
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    let message = self.buffer.split_to(length);
                    return self.schema.decode(self.response, &message).map(Some);
                }
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|e| Status::new(code::UNAVAILABLE, e))?;
            match frame.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(other) => {
                    if let Some(end) = other.trailers_ref().and_then(status) {
                        return end.map(|()| None);
                    }
                }
            }
        }
    }
}
