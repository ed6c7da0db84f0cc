//! The least of an etcd v3 client: Put and Range over gRPC, one HTTP/2 connection, no TLS.
//!
//! Spec: etcd's `rpc.proto` (`etcdserverpb.KV`) and gRPC over HTTP/2. Answers are checked for success only.
//! Deliberately not here: anything a product would need; the product's etcd store is in `store`.

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// A connection; clones share it.
#[derive(Clone)]
pub struct Etcd {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Etcd {
    /// Connects to a port of the loopback.
    pub async fn connect(port: u16) -> Result<Etcd> {
        let authority = format!("127.0.0.1:{port}");
        let stream = TcpStream::connect(&authority).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(async move {
            // An end by error shows in the next request.
            let _ = connection.await;
        });
        Ok(Etcd { sender, authority })
    }

    /// Writes one key; returns when it is on disk.
    pub async fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        self.call("Put", &[key.as_bytes(), value]).await.map(drop)
    }

    /// Reads one key, which must be there (a linearizable read).
    pub async fn get(&self, key: &str) -> Result<()> {
        let answer = self.call("Range", &[key.as_bytes()]).await?;
        ensure!(answer.len() > key.len(), "{key} is not there");
        Ok(())
    }

    /// Calls a method whose message has these byte fields, numbered from 1.
    async fn call(&self, method: &str, fields: &[&[u8]]) -> Result<Bytes> {
        let mut message = BytesMut::new();
        for (number, field) in (1u8..).zip(fields) {
            // Wire type 2: length-delimited.
            message.put_u8(number << 3 | 2);
            let mut length = field.len();
            while length > 0x7f {
                message.put_u8(length as u8 | 0x80);
                length >>= 7;
            }
            message.put_u8(length as u8);
            message.put_slice(field);
        }
        let mut frame = BytesMut::with_capacity(5 + message.len());
        frame.put_u8(0);
        frame.put_u32(message.len() as u32);
        frame.put_slice(&message);
        let request = http::Request::post(format!("http://{}/etcdserverpb.KV/{method}", self.authority))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(frame.freeze()))?;
        let response = self.sender.clone().send_request(request).await?;
        let early = response.headers().get("grpc-status").cloned();
        let body = response.into_body().collect().await?;
        let status = early.or_else(|| body.trailers()?.get("grpc-status").cloned());
        let status = status.context("no grpc-status")?;
        ensure!(status == "0", "{method}: grpc-status {status:?}");
        Ok(body.to_bytes())
    }
}
