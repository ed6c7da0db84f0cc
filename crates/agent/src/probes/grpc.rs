//! The gRPC health check (`grpc.health.v1.Health/Check`) over one HTTP/2 connection.
//!
//! Both messages have one field, so they are written and read by hand.

use super::http_get::dial_error;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Larger answers are none.
const ANSWER_MAX: usize = 4096;
/// Values of `ServingStatus`.
const STATUS: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// `HealthCheckRequest{service}` in a gRPC frame.
fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    frame.extend(message);
    frame
}

/// `HealthCheckResponse.status` out of a gRPC frame; an empty message is 0.
fn status(frame: &[u8]) -> Option<usize> {
    match frame.get(5..)? {
        [] => Some(0),
        [0x08, value, ..] => Some(usize::from(*value)),
        _ => None,
    }
}

/// Asks a server for its health.
pub(super) async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let connected = TcpStream::connect((host, port)).await;
    let stream =
        connected.map_err(|e| format!("error: failed to connect: {}", dial_error(host, port, &e)))?;
    let failed = |e: &dyn std::fmt::Display| format!("error: health rpc failed: {e}");
    let shaken = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|e| failed(&e))?;
    let request = Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(Bytes::from(request(service))))
        .map_err(|e| failed(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let early = response.headers().get("grpc-status").and_then(|v| v.to_str().ok()).map(str::to_string);
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(|e| failed(&e))?;
        let late = body.trailers().and_then(|t| t.get("grpc-status")).and_then(|v| v.to_str().ok());
        match late.or(early.as_deref()) {
            Some("0") => {}
            Some("12") => {
                return Err(
                    "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                        .into(),
                );
            }
            other => return Err(failed(&format!("code {}", other.unwrap_or("unknown")))),
        }
        match status(&body.to_bytes()).map(|s| STATUS.get(s).copied().unwrap_or("UNKNOWN")) {
            Some("SERVING") => Ok(()),
            other => Err(format!("service unhealthy (responded with \"{}\")", other.unwrap_or("UNKNOWN"))),
        }
    };
    tokio::pin!(connection);
    tokio::pin!(exchange);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut exchange => return answer,
            _ = &mut connection, if open => open = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        assert_eq!(request(""), [0, 0, 0, 0, 0]);
        assert_eq!(request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(status(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(status(&[0, 0]), None);
    }
}
