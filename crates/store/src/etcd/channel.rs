//! gRPC over hyper's HTTP/2: one connection at a time, shared by all calls, to one of the endpoints.
//!
//! Invariants: a call ends by its deadline; an error says whether the request can have reached the server
//! ([`CallError::Lost`]) or cannot ([`CallError::Unreachable`]). A connection that failed is given up, and the next
//! call dials the next endpoint; nothing dials while nobody calls.
//! Deliberately not here: repeating calls (that depends on what they do), compression, names beyond `/etc/hosts`.

use super::messages::Method;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body, Frame};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use stdx::backoff::Backoff;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Between rounds over all endpoints: a restarted etcd is found soon, an absent one costs little.
const REDIAL: Backoff =
    Backoff { base: Duration::from_millis(50), factor: 2, max: Duration::from_millis(800) };
/// A silent peer is asked for a sign of life after this time. etcd takes offence below 5 s.
const PING_AFTER: Duration = Duration::from_secs(10);
/// And given up when it gives none.
const PONG_MAX: Duration = Duration::from_secs(5);
/// What one stream may send before it is read: a page of a listing without a pause.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same for all streams of the connection.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Largest answer taken: 10,000 records of 50 KiB. It bounds what a broken server makes us hold.
const MESSAGE_BYTES_MAX: usize = 512 << 20;
/// gRPC's code for "try elsewhere or later".
const UNAVAILABLE: u32 = 14;
/// Codes after which it is open whether the call took effect: cancelled, unknown, deadline, aborted, internal, unavailable.
const OPEN_ENDED: [u32; 6] = [1, 2, 4, 10, 13, UNAVAILABLE];

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// The request was not sent.
    #[error("{0}")]
    Unreachable(String),
    /// The request may have been carried out.
    #[error("{0}")]
    Lost(String),
    /// The server refused it; nothing happened.
    #[error("etcd: {0}")]
    Refused(String),
}

fn lost(error: impl std::fmt::Display) -> CallError {
    CallError::Lost(error.to_string())
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// An address, or a name in `/etc/hosts`.
    pub host: String,
    /// The client port, 2379 by default.
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Endpoint {
    fn ip(&self) -> Result<IpAddr, String> {
        if let Ok(ip) = self.host.parse() {
            return Ok(ip);
        }
        // A static binary has no resolver of the C library.
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let find = |line: &str| {
            let mut words = line.split('#').next()?.split_whitespace();
            let ip = words.next()?.parse().ok()?;
            words.any(|name| name == self.host).then_some(ip)
        };
        let unknown = || format!("{}: not an address and not in /etc/hosts", self.host);
        hosts.lines().find_map(find).ok_or_else(unknown)
    }
}

/// A request's body: one message, and for streams nothing more until the caller lets go.
pub(crate) struct Outgoing {
    message: Option<Bytes>,
    open: Option<oneshot::Receiver<Infallible>>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(message) = self.message.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        match &mut self.open {
            Some(open) => Pin::new(open).poll(context).map(|_| None),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.message.is_none() && self.open.is_none()
    }
}

/// The uncompressed-message frame of gRPC: a flag, the length, the message.
fn framed(message: &[u8]) -> Result<Bytes, CallError> {
    let too_large = |_| CallError::Refused("request is too large".into());
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).map_err(too_large)?);
    frame.put_slice(message);
    Ok(frame.freeze())
}

/// The answer's messages.
pub(crate) struct Incoming {
    body: hyper::body::Incoming,
    buffer: BytesMut,
    connection: Connection,
    _open: Option<oneshot::Sender<Infallible>>,
}

impl Incoming {
    /// The next message; `None` at an end without error.
    pub async fn message(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = next_message(&mut self.buffer)? {
                return Ok(Some(message));
            }
            let Some(frame) = self.body.frame().await else {
                return Err(lost("the answer broke off"));
            };
            match frame.map_err(lost)?.into_data() {
                Ok(data) => self.buffer.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return outcome(&trailers).unwrap_or_else(|| Err(lost("no status"))).map(|()| None);
                }
            }
        }
    }
}

fn next_message(buffer: &mut BytesMut) -> Result<Option<Bytes>, CallError> {
    let Some(mut head) = buffer.get(..5) else { return Ok(None) };
    let flag = head.get_u8();
    let length = head.get_u32() as usize;
    if flag != 0 || length > MESSAGE_BYTES_MAX {
        return Err(lost(format!("a message that cannot be taken: flag {flag}, {length} bytes")));
    }
    if buffer.len() < 5 + length {
        buffer.reserve(5 + length - buffer.len());
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// What trailers (or headers alone) say, if they say it.
fn outcome(trailers: &HeaderMap) -> Option<Result<(), CallError>> {
    let code: u32 = trailers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    if code == 0 {
        return Some(Ok(()));
    }
    let text = trailers.get("grpc-message").map(|text| percent_decoded(text.as_bytes())).unwrap_or_default();
    Some(Err(if OPEN_ENDED.contains(&code) { CallError::Lost(text) } else { CallError::Refused(text) }))
}

fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let hex =
            tail.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        let decoded = hex.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[derive(Clone)]
struct Connection {
    sender: http2::SendRequest<Outgoing>,
    endpoint: usize,
    number: u64,
}

/// What the calls share.
pub(crate) struct Channel {
    endpoints: Vec<Endpoint>,
    tls: Option<tokio_rustls::TlsConnector>,
    dial_max: Duration,
    current: Mutex<Option<Connection>>,
    /// One dials, the others wait for it.
    dialing: tokio::sync::Mutex<()>,
    /// The endpoint to try next.
    next: AtomicUsize,
    connects: AtomicU64,
    last_error: Mutex<String>,
}

impl Channel {
    pub fn new(endpoints: Vec<Endpoint>, tls: Option<Arc<rustls::ClientConfig>>, dial_max: Duration) -> Self {
        let tls = tls.map(|config| {
            let mut config = rustls::ClientConfig::clone(&config);
            config.alpn_protocols = vec![b"h2".to_vec()];
            tokio_rustls::TlsConnector::from(Arc::new(config))
        });
        Channel {
            endpoints,
            tls,
            dial_max,
            current: Mutex::default(),
            dialing: tokio::sync::Mutex::default(),
            next: AtomicUsize::new(0),
            connects: AtomicU64::new(0),
            last_error: Mutex::default(),
        }
    }

    /// Connections made so far.
    pub fn connects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    /// The endpoint in use.
    pub fn endpoint(&self) -> Option<String> {
        self.usable().map(|connection| self.endpoints[connection.endpoint].to_string())
    }

    /// One request, one answer.
    pub async fn unary(&self, method: Method, message: &[u8], deadline: Instant) -> Result<Bytes, CallError> {
        let connection = self.connection(deadline).await?;
        let answer = async {
            let mut incoming = self.send(&connection, method, message, None).await?;
            let message = incoming.message().await?.ok_or_else(|| lost("an empty answer"))?;
            // What follows can only be the trailers of a success: the connection is free for reuse with them.
            incoming.message().await?;
            Ok(message)
        };
        let result = timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(lost("no answer in time")));
        if let Err(CallError::Lost(_) | CallError::Unreachable(_)) = &result {
            self.give_up(&connection);
        }
        result
    }

    /// One request, and answers until one side ends it; dropping what is returned does.
    pub async fn stream(
        &self,
        method: Method,
        message: &[u8],
        deadline: Instant,
    ) -> Result<Incoming, CallError> {
        let connection = self.connection(deadline).await?;
        let (open, closed) = oneshot::channel();
        let send = async {
            let mut incoming = self.send(&connection, method, message, Some(closed)).await?;
            incoming._open = Some(open);
            Ok(incoming)
        };
        let result = timeout_at(deadline, send).await.unwrap_or_else(|_| Err(lost("no answer in time")));
        if result.is_err() {
            self.give_up(&connection);
        }
        result
    }

    async fn send(
        &self,
        connection: &Connection,
        method: Method,
        message: &[u8],
        open: Option<oneshot::Receiver<Infallible>>,
    ) -> Result<Incoming, CallError> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let request =
            hyper::Request::post(format!("{scheme}://{}{method}", self.endpoints[connection.endpoint]))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                // A member that has lost its leader ends the stream instead of staying silent.
                .header("hasleader", "true")
                .body(Outgoing { message: Some(framed(message)?), open })
                .map_err(|error| CallError::Refused(error.to_string()))?;
        let sent = connection.sender.clone().try_send_request(request).await;
        let response = sent.map_err(|mut failed| match failed.take_message() {
            Some(_) => CallError::Unreachable(failed.into_error().to_string()),
            None => lost(failed.into_error()),
        })?;
        if let Some(Err(error)) = outcome(response.headers()) {
            return Err(error);
        }
        if response.status() != hyper::StatusCode::OK {
            return Err(lost(format!("HTTP status {}", response.status())));
        }
        let body = response.into_body();
        Ok(Incoming { body, buffer: BytesMut::new(), connection: connection.clone(), _open: None })
    }

    fn usable(&self) -> Option<Connection> {
        self.current.lock().clone().filter(|connection| !connection.sender.is_closed())
    }

    /// Gives up the connection that a stream came over.
    pub fn give_up_with(&self, incoming: &Incoming) {
        self.give_up(&incoming.connection);
    }

    /// No further call goes over this connection, and the next one elsewhere.
    fn give_up(&self, connection: &Connection) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|current| current.number == connection.number) {
            *current = None;
            self.next.store(connection.endpoint + 1, Ordering::Relaxed);
        }
    }

    async fn connection(&self, deadline: Instant) -> Result<Connection, CallError> {
        let deadline = deadline.min(Instant::now() + self.dial_max);
        let dialed = timeout_at(deadline, self.dial_any()).await;
        dialed.map_err(|_| {
            CallError::Unreachable(match &**self.last_error.lock() {
                "" => "etcd does not answer".to_owned(),
                error => error.to_owned(),
            })
        })
    }

    async fn dial_any(&self) -> Connection {
        if let Some(connection) = self.usable() {
            return connection;
        }
        let _dialing = self.dialing.lock().await;
        if let Some(connection) = self.usable() {
            return connection;
        }
        let share = self.dial_max / u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX).max(1);
        for attempt in 0.. {
            for _ in &self.endpoints {
                let place = self.next.load(Ordering::Relaxed) % self.endpoints.len();
                let endpoint = &self.endpoints[place];
                // One that is silent must not take the time of the others.
                let dialed = timeout(share, self.dial(endpoint)).await;
                match dialed.unwrap_or_else(|_| Err("it does not answer".into())) {
                    Ok(sender) => {
                        let number = self.connects.fetch_add(1, Ordering::Relaxed);
                        let connection = Connection { sender, endpoint: place, number };
                        *self.current.lock() = Some(connection.clone());
                        return connection;
                    }
                    Err(error) => *self.last_error.lock() = format!("etcd at {endpoint}: {error}"),
                }
                self.next.store(place + 1, Ordering::Relaxed);
            }
            sleep(REDIAL.delay(attempt)).await;
        }
        unreachable!("attempts do not run out")
    }

    async fn dial(&self, endpoint: &Endpoint) -> Result<http2::SendRequest<Outgoing>, String> {
        let text = |error: std::io::Error| error.to_string();
        let stream = TcpStream::connect((endpoint.ip()?, endpoint.port)).await.map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let Some(tls) = &self.tls else { return handshake(stream).await };
        let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| error.to_string())?;
        handshake(tls.connect(name, stream).await.map_err(text)?).await
    }
}

async fn handshake<S>(stream: S) -> Result<http2::SendRequest<Outgoing>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PONG_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // It ends when the last call is done and nobody can make another.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to etcd ended");
        }
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames() {
        let mut buffer = BytesMut::from(&framed(b"one").unwrap()[..]);
        buffer.extend_from_slice(&framed(b"").unwrap());
        buffer.extend_from_slice(&framed(b"three").unwrap()[..7]);
        assert_eq!(next_message(&mut buffer).unwrap().unwrap(), "one");
        assert_eq!(next_message(&mut buffer).unwrap().unwrap(), "");
        assert_eq!(next_message(&mut buffer).unwrap(), None);
        buffer.extend_from_slice(b"ree");
        assert_eq!(next_message(&mut buffer).unwrap().unwrap(), "three");
        assert!(next_message(&mut BytesMut::from(&b"\x01\0\0\0\0"[..])).is_err(), "compressed");
        assert!(next_message(&mut BytesMut::from(&b"\0\xff\0\0\0"[..])).is_err(), "too large");
    }

    #[test]
    fn statuses() {
        let trailers = |code: &str, message: &str| {
            let mut map = HeaderMap::new();
            map.insert("grpc-status", code.parse().unwrap());
            map.insert("grpc-message", message.parse().unwrap());
            outcome(&map)
        };
        assert_eq!(trailers("0", ""), Some(Ok(())));
        assert_eq!(trailers("11", "a%20b%"), Some(Err(CallError::Refused("a b%".into()))));
        assert_eq!(trailers("14", "x"), Some(Err(CallError::Lost("x".into()))));
        assert_eq!(trailers("many", ""), None);
    }

    #[test]
    fn endpoints() {
        let endpoint = |host: &str| Endpoint { host: host.into(), port: 1 };
        assert_eq!(endpoint("::1").ip(), Ok("::1".parse().unwrap()));
        assert_eq!(endpoint("::1").to_string(), "[::1]:1");
        assert!(endpoint("nowhere.invalid").ip().unwrap_err().contains("/etc/hosts"));
    }
}
