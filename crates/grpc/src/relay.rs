//! A call that a node's agent passes on to a plug-in there: HTTP/1.1 and JSON, so that only the node knows gRPC.
//!
//! `POST /csi/<driver>/<method>`: 200 with the answer, or 422 with `code` and `message` of the plug-in's status.

use crate::{Answer, MESSAGE_BYTES_MAX, Status, code};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

/// One call over a connection to the agent.
///
/// # Errors
/// The plug-in's own, or [`code::UNAVAILABLE`].
pub async fn relayed<S>(stream: S, driver: &str, method: &str, request: &Value) -> Answer
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let lost = |e: &dyn std::fmt::Display| Status::new(code::UNAVAILABLE, e);
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|e| lost(&e))?;
    let request = Request::post(format!("/csi/{driver}/{method}"))
        .header("host", "localhost")
        .body(Full::new(Bytes::from(request.to_string())))
        .map_err(|e| lost(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| lost(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MESSAGE_BYTES_MAX).collect().await;
        let body = body.map_err(|e| lost(&e))?.to_bytes();
        let value: Value = serde_json::from_slice(&body)
            .map_err(|_| lost(&format!("{status}: {}", String::from_utf8_lossy(&body))))?;
        match (status, value["code"].as_u64()) {
            (StatusCode::OK, _) => Ok(value),
            (StatusCode::UNPROCESSABLE_ENTITY, Some(number)) => Err(Status::new(
                u32::try_from(number).unwrap_or(code::UNKNOWN),
                value["message"].as_str().unwrap_or_default(),
            )),
            _ => Err(lost(&status)),
        }
    };
    tokio::pin!(connection, exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}
