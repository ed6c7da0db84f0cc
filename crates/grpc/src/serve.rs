//! A server of calls on a unix socket.

use crate::call::{Answer, framed, unframed};
use crate::schema::Schema;
use crate::{MESSAGE_BYTES_MAX, Status, code};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::mpsc;

/// Pause after a failed accept: neither spinning nor giving up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers calls.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// A call of the method of that name.
    async fn call(&self, method: &str, request: Value) -> Answer;

    /// The answers to a call of a method that has many; `None`: it has one.
    fn stream(&self, _method: &str, _request: &Value) -> Option<mpsc::Receiver<Value>> {
        None
    }
}

/// Serves for ever.
pub async fn serve(listener: UnixListener, schema: &'static Schema, handler: Arc<dyn Handler>) {
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let handler = handler.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let handler = handler.clone();
            async move {
                let answer = respond(schema, &*handler, request).await;
                Ok::<_, Infallible>(answer.unwrap_or_else(refusal))
            }
        });
        tokio::spawn(async move {
            let served =
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a plug-in's connection ends");
            }
        });
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn respond(
    schema: &'static Schema,
    handler: &dyn Handler,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let path = request.uri().path().to_string();
    let unknown = || Status::new(code::UNIMPLEMENTED, format!("unknown method {path}"));
    let method = schema.at(&path).ok_or_else(unknown)?;
    let body = Limited::new(request.into_body(), MESSAGE_BYTES_MAX).collect().await;
    let body = body.map_err(|e| Status::new(code::RESOURCE_EXHAUSTED, e))?.to_bytes();
    let request = schema.decode(method.request, unframed(&body)?)?;
    if let Some(answers) = handler.stream(method.name, &request) {
        let frames = futures_util::stream::unfold(Some(answers), move |rest| async move {
            let mut rest = rest?;
            Some(match rest.recv().await {
                Some(answer) => {
                    (Ok(Frame::data(framed(&schema.encode(method.response, &answer)))), Some(rest))
                }
                None => (Ok(Frame::trailers(done())), None),
            })
        });
        return Ok(grpc(StreamBody::new(frames).boxed_unsync()));
    }
    let answer = schema.encode(method.response, &handler.call(method.name, request).await?);
    let body = Full::new(framed(&answer)).with_trailers(std::future::ready(Some(Ok(done()))));
    Ok(grpc(body.boxed_unsync()))
}

fn done() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

fn grpc(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// Headers alone, as an answer without a message has it.
fn refusal(status: Status) -> Response<Body> {
    let mut response = grpc(Full::default().boxed_unsync());
    let plain = |c: char| c.is_ascii_graphic() && c != '%' || c == ' ';
    let mut message = String::new();
    for c in status.message.chars() {
        match plain(c) {
            true => message.push(c),
            false => c.to_string().bytes().for_each(|b| message += &format!("%{b:02X}")),
        }
    }
    let headers = response.headers_mut();
    headers.insert("grpc-status", HeaderValue::from(status.code));
    headers.insert("grpc-message", HeaderValue::try_from(message).expect("only printable characters"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CSI, Call, DEVICES};
    use serde_json::json;

    struct Echo;

    #[async_trait]
    impl Handler for Echo {
        async fn call(&self, method: &str, request: Value) -> Answer {
            match method {
                "NodeGetInfo" => Ok(json!({"node_id": "n", "max_volumes_per_node": 5})),
                "DeleteVolume" => Err(Status::new(code::FAILED_PRECONDITION, "100 % \"ü\"\n")),
                _ => Ok(json!({"volume": {"volume_id": request["name"], "capacity_bytes": 1_i64 << 40}})),
            }
        }
    }

    struct Lists;

    #[async_trait]
    impl Handler for Lists {
        async fn call(&self, _: &str, _: Value) -> Answer {
            Ok(json!({}))
        }

        fn stream(&self, method: &str, _: &Value) -> Option<mpsc::Receiver<Value>> {
            let (send, receive) = mpsc::channel(2);
            for id in ["a", "b"] {
                send.try_send(json!({"devices": [{"ID": id, "topology": {"nodes": [{"ID": 1}]}}]})).unwrap();
            }
            (method == "ListAndWatch").then_some(receive)
        }
    }

    #[tokio::test]
    async fn many_answers() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), &DEVICES, Arc::new(Lists)));
        let call = Call { schema: &DEVICES, socket: &socket, within: Duration::from_secs(5) };
        let mut stream = call.stream("ListAndWatch", &json!({})).await.unwrap();
        for id in ["a", "b"] {
            let said = stream.next().await.unwrap().unwrap();
            assert_eq!(said, json!({"devices": [{"ID": id, "topology": {"nodes": [{"ID": 1}]}}]}));
        }
        assert_eq!(stream.next().await, Ok(None));
        assert_eq!(call.call("Allocate", &json!({})).await, Ok(json!({})));
        server.abort();
    }

    #[tokio::test]
    async fn calls_and_refusals() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let server = tokio::spawn(serve(UnixListener::bind(&socket).unwrap(), &CSI, Arc::new(Echo)));
        let call = Call { schema: &CSI, socket: &socket, within: Duration::from_secs(5) };
        let info = call.call("NodeGetInfo", &json!({})).await.unwrap();
        assert_eq!(info, json!({"node_id": "n", "max_volumes_per_node": 5}));
        let volume = call.call("CreateVolume", &json!({"name": "x"})).await.unwrap();
        assert_eq!(volume["volume"], json!({"volume_id": "x", "capacity_bytes": 1_i64 << 40}));
        let refused = call.call("DeleteVolume", &json!({})).await.unwrap_err();
        assert_eq!(refused, Status::new(code::FAILED_PRECONDITION, "100 % \"ü\"\n"));
        assert_eq!(call.call("Nope", &json!({})).await.unwrap_err().code, code::UNIMPLEMENTED);
        let nobody = Call { socket: &folder.path().join("t"), ..call };
        assert_eq!(nobody.call("NodeGetInfo", &json!({})).await.unwrap_err().code, code::UNAVAILABLE);
        server.abort();
    }
}
