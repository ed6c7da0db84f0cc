//! The kubelet's paths: one table from path and method to handler.
//!
//! Errors leave as plain text with their code, as the kubelet's do; the API server makes a `Status` of them.

use super::backend::{AttachSpec, Metrics, NodeBackend, Session, Target};
use super::query::{Query, decode};
use super::remote::{self, Wanted};
use super::upgrade::{self, Forward, Remote};
use super::{files, forward, logs, ws};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use machinery::status::ApiError;
use machinery::zpages::Answer;
use runtime::api::ExecSpec;
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

/// An answer's body: whole, or as it comes.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Where the pieces of a streamed body go.
pub(super) type Sink = mpsc::Sender<Bytes>;

/// What `/logs/` shows.
const LOG_FOLDER: &str = "/var/log";
/// Pieces of a streamed body that wait for the client.
const BODY_QUEUE: usize = 4;
/// Most ports of one WebSocket port-forward: channels are numbered in a byte.
const PORTS_MAX: usize = 100;

/// What handlers need.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) backend: Arc<dyn NodeBackend>,
    /// Changes or closes when the server stops.
    pub(super) stop: watch::Receiver<bool>,
    /// The connection's place among those allowed; whatever outlives the request keeps it.
    pub(super) place: Arc<OwnedSemaphorePermit>,
}

/// Answers a request of an admitted client.
pub(super) async fn handle(context: Context, request: Request<Incoming>) -> Response<Body> {
    route(context, request).await.unwrap_or_else(|error| {
        let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        plain(status, error.message)
    })
}

/// A plain text answer.
pub(super) fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    typed(status, "text/plain; charset=utf-8", text)
}

pub(super) fn typed(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

async fn route(context: Context, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let path = request.uri().path().to_string();
    let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let json = "application/json";
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["healthz"] | ["healthz", "ping" | "log" | "syncloop"]) => {
            Ok(plain(StatusCode::OK, "ok"))
        }
        (&Method::GET, [what @ ("pods" | "runningpods" | "configz")]) => {
            let backend = &context.backend;
            let answer = match *what {
                "pods" => backend.pods().await,
                "runningpods" => backend.running_pods(),
                _ => json!({"kubeletconfig": backend.config()}),
            };
            Ok(typed(StatusCode::OK, json, answer.to_string()))
        }
        (&Method::GET, [path @ ("statusz" | "flagz")]) => page(&context, path, request.headers()),
        (&Method::GET, ["logs", rest @ ..]) => {
            let (answer, send) = files::answer(LOG_FOLDER, rest.join("/")).await?;
            if let Some(send) = send {
                spawn(&context, async move {
                    let _ = tokio::task::spawn_blocking(send).await;
                });
            }
            Ok(answer)
        }
        (&Method::POST, ["checkpoint", namespace, pod, container]) => {
            let what = target(namespace, pod, &[container])?;
            context.backend.check(&what).await?;
            let why =
                "rpc error: code = Unimplemented desc = containers are not checkpointed by this runtime";
            let text = format!("checkpointing of {namespace}/{pod}/{container} failed ({why})");
            Err(ApiError::new(500, "InternalError", text))
        }
        (&Method::GET, ["stats", "summary"]) => {
            Ok(typed(StatusCode::OK, json, context.backend.stats_summary().await.to_string()))
        }
        (&Method::GET, ["metrics", rest @ ..]) => {
            let which = match rest {
                [] => Metrics::Own,
                ["resource"] => Metrics::Resource,
                ["cadvisor"] => Metrics::Cadvisor,
                ["probes"] => Metrics::Probes,
                _ => return Err(not_found()),
            };
            Ok(typed(StatusCode::OK, "text/plain; version=0.0.4", context.backend.metrics(which).await))
        }
        (&Method::POST, ["csi", driver, method]) => csi(&context, driver, method, request).await,
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            container_logs(&context, target(namespace, pod, &[container])?, &query, request).await
        }
        (&Method::GET | &Method::POST, ["exec", namespace, pod, rest @ ..]) => {
            exec(context, target(namespace, pod, rest)?, &query, request).await
        }
        (&Method::GET | &Method::POST, ["attach", namespace, pod, rest @ ..]) => {
            attach(context, target(namespace, pod, rest)?, &query, request).await
        }
        (&Method::GET | &Method::POST, ["portForward", namespace, pod, rest @ ..]) => {
            let uid = match rest {
                [] => None,
                [uid] => Some(uid.to_string()),
                _ => return Err(not_found()),
            };
            let (namespace, pod) = (namespace.to_string(), pod.to_string());
            port_forward(context, Target { namespace, pod, uid, container: String::new() }, &query, request)
                .await
        }
        (&Method::POST, ["run", namespace, pod, rest @ ..]) => {
            run(&context, target(namespace, pod, rest)?, &query).await
        }
        (_, ["exec" | "attach" | "portForward" | "run" | "containerLogs" | "checkpoint", ..]) => {
            Err(ApiError::new(405, "MethodNotAllowed", "method not allowed"))
        }
        _ => Err(not_found()),
    }
}

pub(super) fn not_found() -> ApiError {
    ApiError::new(404, "NotFound", "404 page not found")
}

/// `/statusz` or `/flagz` as the client wants it.
fn page(context: &Context, path: &str, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    let page = context.backend.page(path).ok_or_else(not_found)?;
    match page.answer(accept.unwrap_or_default()) {
        None => Err(ApiError::new(406, "NotAcceptable", "406 Not Acceptable")),
        Some(Answer::Text(text)) => Ok(plain(StatusCode::OK, text)),
        Some(Answer::Document(fields, old)) => {
            let mut answer = typed(StatusCode::OK, "application/json", fields.to_string());
            let warning = old.and_then(|words| HeaderValue::try_from(format!("299 - \"{words}\"")).ok());
            answer.headers_mut().extend(warning.map(|value| (header::WARNING, value)));
            Ok(answer)
        }
    }
}

/// A call of a CSI driver: requests and answers in JSON, failures as 422 with code and message.
async fn csi(
    context: &Context,
    driver: &str,
    method: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let body = Limited::new(request.into_body(), grpc::MESSAGE_BYTES_MAX).collect().await;
    let body = body.map_err(|e| ApiError::bad_request(e.to_string()))?.to_bytes();
    let request = serde_json::from_slice(&body).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let (status, answer) = match context.backend.csi(driver, method, &request).await {
        Ok(answer) => (StatusCode::OK, answer),
        Err(e) => (StatusCode::UNPROCESSABLE_ENTITY, json!({"code": e.code, "message": e.message})),
    };
    Ok(typed(status, "application/json", answer.to_string()))
}

/// `{container}` or `{uid}/{container}` behind namespace and pod.
fn target(namespace: &str, pod: &str, rest: &[&str]) -> Result<Target, ApiError> {
    let (uid, container) = match rest {
        [container] => (None, container),
        [uid, container] => (Some(uid.to_string()), container),
        _ => return Err(not_found()),
    };
    Ok(Target { namespace: namespace.into(), pod: pod.into(), uid, container: container.to_string() })
}

async fn container_logs(
    context: &Context,
    target: Target,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let options = logs::Options::parse(query, jiff::Timestamp::now())?;
    let source = context.backend.logs(&target, options.previous).await?;
    // Upstream's API server turns logs into WebSocket messages; here the other end of its connection does.
    let (base64, headers) = match upgrade::out(request.headers()) {
        Ok(Some(agreed)) => agreed,
        Ok(None) => {
            let (out, body) = streamed();
            spawn(context, logs::send(source, options, out));
            return Ok(body);
        }
        Err(refusal) => return Ok(whole(refusal)),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    spawn(context, async move {
        let Ok(io) = upgraded.await else { return };
        let (out, pieces) = mpsc::channel(BODY_QUEUE);
        tokio::join!(logs::send(source, options, out), ws::pour(TokioIo::new(io), base64, pieces));
    });
    Ok(whole(upgrade::switching(headers)))
}

/// A body that is sent as it comes; its sender closes when the client goes.
pub(super) fn streamed() -> (Sink, Response<Body>) {
    let (out, pieces) = mpsc::channel::<Bytes>(BODY_QUEUE);
    let pieces = stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) });
    let body = StreamBody::new(pieces.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes))));
    let mut response = Response::new(body.boxed_unsync());
    let kind = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    (out, response)
}

async fn exec(
    context: Context,
    target: Target,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let wanted = wanted(query)?;
    let args: Vec<String> = query.all("command").map(String::from).collect();
    if args.is_empty() {
        return Err(ApiError::bad_request("you must specify at least 1 command"));
    }
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    let spec = ExecSpec { args, tty, stdin, stdout, stderr };
    context.backend.check(&target).await?;
    let backend = context.backend.clone();
    let start = async move { backend.exec(&target, spec).await }.boxed();
    Ok(upgrade_remote(&context, wanted, request, start))
}

async fn attach(
    context: Context,
    target: Target,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let wanted = wanted(query)?;
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    context.backend.check(&target).await?;
    let backend = context.backend.clone();
    let spec = AttachSpec { stdin, stdout, stderr, tty };
    let start = async move { backend.attach(&target, spec).await }.boxed();
    Ok(upgrade_remote(&context, wanted, request, start))
}

/// Streams of a query: in the kubelet's words (`input=1`) or the API's (`stdin=true`).
fn wanted(query: &Query) -> Result<Wanted, ApiError> {
    let tty = query.is_on(&["tty"]);
    let wanted = Wanted {
        stdin: query.is_on(&["input", "stdin"]),
        stdout: query.is_on(&["output", "stdout"]),
        // A terminal has one output.
        stderr: query.is_on(&["error", "stderr"]) && !tty,
        tty,
    };
    if !wanted.stdin && !wanted.stdout && !wanted.stderr {
        return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
    }
    Ok(wanted)
}

fn upgrade_remote(
    context: &Context,
    wanted: Wanted,
    mut request: Request<Incoming>,
    start: BoxFuture<'static, Result<Session, ApiError>>,
) -> Response<Body> {
    let (protocol, headers) = match upgrade::remote(request.headers()) {
        Ok(agreed) => agreed,
        Err(refusal) => return whole(refusal),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    spawn(context, async move {
        let Ok(io) = upgraded.await else { return };
        let io = TokioIo::new(io);
        let channels = match protocol {
            Remote::Spdy(dialect) => remote::spdy_channels(io, wanted, dialect).await,
            Remote::WebSocket(codec, dialect) => remote::ws_channels(io, wanted, dialect, codec).await,
        };
        if let Some(channels) = channels {
            remote::run(channels, start).await;
        }
    });
    whole(upgrade::switching(headers))
}

async fn port_forward(
    context: Context,
    target: Target,
    query: &Query,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    context.backend.check(&target).await?;
    let (protocol, headers) = match upgrade::forward(request.headers()) {
        Ok(agreed) => agreed,
        Err(refusal) => return Ok(whole(refusal)),
    };
    let ports = match protocol {
        Forward::WebSocket(_) => ports(query)?,
        Forward::Spdy | Forward::Tunnel => Vec::new(),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let backend = context.backend.clone();
    spawn(&context, async move {
        let Ok(io) = upgraded.await else { return };
        let io = TokioIo::new(io);
        match protocol {
            Forward::Spdy => forward::spdy(io, backend, target).await,
            Forward::Tunnel => forward::spdy(ws::tunnel(io), backend, target).await,
            Forward::WebSocket(codec) => forward::websocket(io, codec, ports, backend, target).await,
        }
    });
    Ok(whole(upgrade::switching(headers)))
}

/// `port=80,81&port=82`; the API's own name for it is `ports`.
fn ports(query: &Query) -> Result<Vec<u16>, ApiError> {
    let texts = query.all("port").chain(query.all("ports")).flat_map(|text| text.split(','));
    let port = |text: &str| match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(ApiError::bad_request(format!("unable to parse \"{text}\" as a port"))),
    };
    let ports = texts.map(port).collect::<Result<Vec<u16>, _>>()?;
    match ports.len() {
        0 => Err(ApiError::bad_request("query parameter \"port\" is required")),
        n if n > PORTS_MAX => Err(ApiError::bad_request(format!("more than {PORTS_MAX} ports"))),
        _ => Ok(ports),
    }
}

async fn run(context: &Context, target: Target, query: &Query) -> Result<Response<Body>, ApiError> {
    let args: Vec<String> =
        query.get("cmd").unwrap_or_default().split_whitespace().map(String::from).collect();
    if args.is_empty() {
        return Err(ApiError::bad_request("query parameter \"cmd\" is required"));
    }
    context.backend.check(&target).await?;
    let spec = ExecSpec { args, stdout: true, ..Default::default() };
    let session = context.backend.exec(&target, spec).await?;
    let (out, body) = streamed();
    spawn(context, async move {
        let _ = remote::output_only(session, &out).await;
    });
    Ok(body)
}

fn whole(response: Response<String>) -> Response<Body> {
    response.map(|text| Full::new(Bytes::from(text)).boxed_unsync())
}

/// Runs what outlives its request until it ends or the server stops.
fn spawn(context: &Context, task: impl Future<Output = ()> + Send + 'static) {
    let Context { mut stop, place, .. } = context.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = task => {}
            _ = stop.changed() => {}
        }
        drop(place);
    });
}
