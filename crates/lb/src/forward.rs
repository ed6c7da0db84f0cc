//! One request through an L7 listener: rule, target, answer.
//!
//! Statuses of our own follow ALB: 502 when the target refuses or breaks the connection, 503 when there is no target,
//! 504 when it does not answer in time, 400 when the request names no host. Bodies are framed anew on both sides,
//! so that what two parsers could read differently never travels on.

use crate::config::{Action, Fixed, Forward, Id, Listener, Protocol};
use crate::headers::{self, Entry, GROUP_COOKIE, TARGET_COOKIE};
use crate::state::{Held, LiveGroup, Shared};
use crate::{CONNECT_ATTEMPTS, CONNECT_TIMEOUT, balance, relay, route, tls};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Idle connections kept to one target.
const IDLE_PER_TARGET: usize = 64;
/// An unused connection to a target closes after this; shorter than what common servers close after (60 s and more),
/// so that a request seldom meets a closing connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A body on its way, in either direction.
pub type Payload = UnsyncBoxBody<Bytes, BoxError>;

/// The pool of connections to all targets.
pub struct Upstream(Client<Connector, Payload>);

/// Connects to `http(s)://address`.
#[derive(Clone)]
struct Connector;

/// A connection to a target.
enum Wire {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Upstream {
    pub fn new() -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_max_idle_per_host(IDLE_PER_TARGET).pool_idle_timeout(IDLE_TIMEOUT);
        Upstream(builder.pool_timer(TokioTimer::new()).build(Connector))
    }
}

/// What a listener hands to each of its requests.
pub struct Context7 {
    pub shared: Arc<Shared>,
    pub upstream: Arc<Upstream>,
    pub listener: Id,
    pub entry: Entry,
}

/// Answers one request.
pub async fn answer(context: Arc<Context7>, request: Request<Incoming>) -> Response<Payload> {
    let snapshot = context.shared.snapshot();
    let Some(listener) = snapshot.listeners.get(&context.listener).cloned() else {
        return plain(StatusCode::SERVICE_UNAVAILABLE);
    };
    let (parts, body) = request.into_parts();
    if route::host(&parts).is_empty() && parts.version != http::Version::HTTP_10 {
        let mut response = plain(StatusCode::BAD_REQUEST);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    match route::action(&listener, &parts, context.entry.source) {
        Action::Fixed(fixed) => fixed_answer(fixed),
        Action::Redirect(redirect) => {
            let location = route::location(redirect, &parts, context.entry.tls, context.entry.port);
            let Ok(location) = HeaderValue::from_str(&location) else {
                return plain(StatusCode::BAD_REQUEST);
            };
            let mut response = plain(StatusCode::from_u16(redirect.status).unwrap_or(StatusCode::FOUND));
            response.headers_mut().insert(header::LOCATION, location);
            response
        }
        Action::Forward(forward) => {
            let groups = |id: &Id| snapshot.groups.get(id).cloned();
            let Some(group) = choose_group(&context, forward, &parts, groups) else {
                return plain(StatusCode::SERVICE_UNAVAILABLE);
            };
            let mut response = through(&context, &listener, &group, Request::from_parts(parts, body)).await;
            if let Some(time) = forward.stickiness {
                headers::stay(response.headers_mut(), GROUP_COOKIE, &group.config.id, time.as_secs());
            }
            response
        }
    }
}

fn choose_group(
    context: &Context7,
    forward: &Forward,
    parts: &Parts,
    groups: impl Fn(&Id) -> Option<Arc<LiveGroup>>,
) -> Option<Arc<LiveGroup>> {
    if let Some(cookie) = forward.stickiness.and_then(|_| headers::cookie(&parts.headers, GROUP_COOKIE)) {
        let kept = forward.groups.iter().find(|(id, weight)| *weight > 0 && headers::token(id) == cookie);
        if let Some(group) = kept.and_then(|(id, _)| groups(id)) {
            return Some(group);
        }
    }
    let weights: Vec<u32> = forward.groups.iter().map(|(_, weight)| *weight).collect();
    let turn = context.shared.turn.fetch_add(1, Relaxed);
    groups(&forward.groups.get(balance::group(&weights, turn)?)?.0)
}

/// Sends a request to a target of the group.
async fn through(
    context: &Context7,
    listener: &Listener,
    group: &Arc<LiveGroup>,
    request: Request<Incoming>,
) -> Response<Payload> {
    group.counters.requests.fetch_add(1, Relaxed);
    let (mut parts, body) = request.into_parts();
    let upgrade = headers::wants_upgrade(&parts.headers).then(|| parts.extensions.remove());
    let client_side: Option<hyper::upgrade::OnUpgrade> = upgrade.flatten();
    headers::strip(&mut parts.headers, client_side.is_some());
    let trace = uuid::Uuid::new_v4().simple().to_string();
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    headers::tell(&mut parts, context.entry, &trace[..24], seconds);
    let sticky = group.config.stickiness.and_then(|_| headers::cookie(&parts.headers, TARGET_COOKIE));
    let sticky = sticky.map(str::to_string);

    let mut outgoing = Outgoing { parts, body: Some(body), skip: Vec::new() };
    let sent = loop {
        let Some(held) = group.choose(sticky.as_deref(), &outgoing.skip) else {
            break Err(if outgoing.skip.is_empty() {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::BAD_GATEWAY
            });
        };
        match outgoing.send(&context.upstream, &held, listener.idle_timeout).await {
            Sent::Answer(response) => break Ok((response, held)),
            Sent::Failed(status) => break Err(status),
            Sent::Refused => {}
        }
    };
    match sent {
        Err(status) => {
            group.counters.answers[0].fetch_add(1, Relaxed);
            plain(status)
        }
        Ok((response, held)) => finish(response, held, client_side, listener.idle_timeout),
    }
}

/// A request on its way, with the targets that refused it.
struct Outgoing {
    parts: Parts,
    body: Option<Incoming>,
    skip: Vec<Id>,
}

enum Sent {
    Answer(Response<Incoming>),
    /// Nothing was sent: another target may be asked.
    Refused,
    Failed(StatusCode),
}

impl Outgoing {
    async fn send(&mut self, upstream: &Upstream, held: &Held, timeout: Duration) -> Sent {
        let target = held.target.config.read().clone();
        let scheme = if held.group.config.protocol == Protocol::Https { "https" } else { "http" };
        let path = self.parts.uri.path_and_query().map_or("/", |p| p.as_str());
        let Ok(uri) = format!("{scheme}://{}{path}", target.address).parse::<Uri>() else {
            return Sent::Failed(StatusCode::BAD_REQUEST);
        };
        let empty = self.body.as_ref().is_none_or(Body::is_end_stream);
        let body: Payload = match self.body.take() {
            Some(body) if !empty => {
                let counters = held.group.counters.clone();
                body.map_frame(move |f| {
                    counters.bytes_in.fetch_add(f.data_ref().map_or(0, Bytes::len) as u64, Relaxed);
                    f
                })
                .map_err(Into::into)
                .boxed_unsync()
            }
            _ => Empty::new().map_err(|never| match never {}).boxed_unsync(),
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = self.parts.headers.clone();
        match tokio::time::timeout(timeout, upstream.0.request(request)).await {
            Err(_) => Sent::Failed(StatusCode::GATEWAY_TIMEOUT),
            Ok(Ok(response)) => Sent::Answer(response),
            Ok(Err(error)) => {
                tracing::debug!(target = %target.id, address = %target.address, %error, "no answer from the target");
                self.skip.push(target.id);
                let again = error.is_connect() && empty && self.skip.len() < CONNECT_ATTEMPTS;
                if again { Sent::Refused } else { Sent::Failed(status_of(&error)) }
            }
        }
    }
}

fn status_of(error: &Error) -> StatusCode {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|e| e.kind() == std::io::ErrorKind::TimedOut) {
            return StatusCode::GATEWAY_TIMEOUT;
        }
        cause = error.source();
    }
    StatusCode::BAD_GATEWAY
}

/// The target's answer, made fit for the client; an upgraded connection is relayed in the background.
fn finish(
    mut response: Response<Incoming>,
    held: Held,
    client_side: Option<hyper::upgrade::OnUpgrade>,
    idle: Duration,
) -> Response<Payload> {
    let class = usize::from(response.status().as_u16() / 100).min(5);
    held.group.counters.answers[class].fetch_add(1, Relaxed);
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    headers::strip(response.headers_mut(), upgraded);
    if let Some(time) = held.group.config.stickiness {
        let id = held.target.config.read().id.clone();
        headers::stay(response.headers_mut(), TARGET_COOKIE, &id, time.as_secs());
    }
    if let (true, Some(client_side)) = (upgraded, client_side) {
        let target_side = hyper::upgrade::on(&mut response);
        tokio::spawn(async move {
            let (Ok(client), Ok(target)) = tokio::join!(client_side, target_side) else { return };
            let gone = held.target.clone();
            tokio::select! {
                (up, down) = relay::both(TokioIo::new(client), TokioIo::new(target), idle) => {
                    held.group.counters.bytes_in.fetch_add(up, Relaxed);
                    held.group.counters.bytes_out.fetch_add(down, Relaxed);
                }
                () = gone.gone.notified() => {}
            }
        });
        return response.map(|_| Empty::new().map_err(|never| match never {}).boxed_unsync());
    }
    response.map(|body| Answer { body, held, idle, timer: Box::pin(tokio::time::sleep(idle)) }.boxed_unsync())
}

/// An answer's body: counts at its target until it ends, and gives up when the target falls silent.
struct Answer {
    body: Incoming,
    held: Held,
    idle: Duration,
    timer: Pin<Box<tokio::time::Sleep>>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some(Ok(frame)) = &frame {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    self.held.group.counters.bytes_out.fetch_add(length as u64, Relaxed);
                    let next = tokio::time::Instant::now() + self.idle;
                    self.timer.as_mut().reset(next);
                }
                Poll::Ready(frame.map(|f| f.map_err(Into::into)))
            }
            Poll::Pending => {
                std::task::ready!(self.timer.as_mut().poll(cx));
                Poll::Ready(Some(Err("the target fell silent".into())))
            }
        }
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn fixed_answer(fixed: &Fixed) -> Response<Payload> {
    let body = Full::new(Bytes::from(fixed.body.clone())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(fixed.status).unwrap_or(StatusCode::OK);
    if let Ok(kind) = HeaderValue::from_str(&fixed.content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}

/// An answer of our own: the status in words.
fn plain(status: StatusCode) -> Response<Payload> {
    let text = format!("{} {}\n", status.as_str(), status.canonical_reason().unwrap_or_default());
    fixed_answer(&Fixed { status: status.as_u16(), content_type: "text/plain".to_string(), body: text })
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(async move {
            let address = uri.authority().and_then(|a| a.as_str().parse::<SocketAddr>().ok());
            let address = address.ok_or(std::io::ErrorKind::InvalidInput)?;
            let connect = async {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                if uri.scheme_str() != Some("https") {
                    return Ok(Wire::Plain(stream));
                }
                Ok(Wire::Tls(Box::new(tls::to_target(address, stream).await?)))
            };
            tokio::time::timeout(CONNECT_TIMEOUT, connect).await?.map(TokioIo::new)
        })
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Wire::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Wire::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
