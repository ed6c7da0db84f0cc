//! One request with a body to somebody else's HTTP server, as webhooks are sent. The answer's body is not read.
//!
//! Here because this crate has the way out: names without a C library, connections, TLS by the system's authorities.

use super::http::{Manners, Trust, connect, told};
use super::url::Url;
use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use std::time::Duration;

/// A request. `url` is `http[s]://…`, from the operator: any address will do.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// `POST`.
    pub method: String,
    /// Absolute, without user information.
    pub url: String,
    /// Beside `host`, `user-agent` and the length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// Sends it and waits for the answer's status, for `limit` in all.
///
/// # Errors
/// It could not be sent, or nothing came back in time: why, in words.
pub async fn send(outgoing: Outgoing, limit: Duration) -> Result<u16, String> {
    let done = tokio::time::timeout(limit, exchange(outgoing)).await;
    done.unwrap_or_else(|_| Err("no answer in time".into()))
}

async fn exchange(outgoing: Outgoing) -> Result<u16, String> {
    let url = Url::parse(&outgoing.url).ok_or_else(|| format!("{:?} is no URL", outgoing.url))?;
    let method: Method = outgoing.method.parse().map_err(|_| format!("no method {:?}", outgoing.method))?;
    let stream = connect(&url, Trust::Named, &Manners::default()).await.map_err(|e| told(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| told(&e))?;
    let mut request = Request::builder()
        .method(method)
        .uri(url.path.as_str())
        .header(HOST, url.authority())
        .header(USER_AGENT, concat!("gantry/", env!("CARGO_PKG_VERSION")));
    for (name, value) in &outgoing.headers {
        let name: HeaderName = name.parse().map_err(|_| format!("no header {name:?}"))?;
        let value = HeaderValue::from_str(value).map_err(|_| format!("no value for header {name}"))?;
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(outgoing.body))).map_err(|e| e.to_string())?;
    // The connection is driven until the head of the answer is there; when it ends first, it has left the answer or
    // the reason why there is none.
    let mut answer = std::pin::pin!(sender.send_request(request));
    let answer = tokio::select! {
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    answer.map(|a| a.status().as_u16()).map_err(|e| told(&e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_request_arrives_whole() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"{\"a\":1}") {
                let mut piece = [0; 1024];
                let n = stream.read(&mut piece).await.unwrap();
                seen.extend_from_slice(&piece[..n]);
            }
            stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(seen).unwrap()
        });
        let outgoing = Outgoing {
            method: "PUT".into(),
            url,
            headers: vec![("x-key".into(), "k".into())],
            body: b"{\"a\":1}".to_vec(),
        };
        assert_eq!(send(outgoing.clone(), Duration::from_secs(5)).await, Ok(202));
        let seen = server.await.unwrap();
        assert!(seen.starts_with("PUT /hook?a=b HTTP/1.1\r\n") && seen.contains("x-key: k\r\n"), "{seen}");
        for (url, words) in [("ftp://x/", "is no URL"), ("http://127.0.0.1:1/", "dial")] {
            let error = send(Outgoing { url: url.into(), ..outgoing.clone() }, Duration::from_secs(5)).await;
            assert!(error.clone().unwrap_err().contains(words), "{error:?}");
        }
    }
}
