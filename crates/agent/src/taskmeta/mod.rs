//! The task metadata endpoint (`169.254.170.2`): version 4 (and 3) documents, statistics, role credentials, task
//! protection; read by programs inside ECS tasks.
//!
//! Invariants: who asks must come from the task's own address and name an id that only the task's environment holds;
//! anything else gets the same "not found". Credentials are not kept here: the source makes them at each request.
//! Deliberately not here: the fault injection API.

mod document;
mod route;

use crate::ops::Node;
use crate::pod::PodView;
use async_trait::async_trait;
use bytes::Bytes;
use client::ObjectKey;
use ecs_model::annotation::TaskNote;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use route::Ask;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Open connections at most: each costs a task's program nothing to keep.
const CONNECTIONS_MAX: usize = 256;
/// Longest request body: a protection request has two members.
const BODY_MAX_BYTES: usize = 4096;
/// A connection that sends no request for this time is closed.
const HEADER_WAIT: Duration = Duration::from_secs(30);

/// A refusal: HTTP status, code, message.
pub type Refused = (u16, String, String);

/// What a task may ask for that the control plane answers. A task is named by its pod, which runs on this node.
#[async_trait]
pub trait TaskServices: Send + Sync + 'static {
    /// Temporary credentials of the task's role: `{RoleArn, AccessKeyId, SecretAccessKey, Token, Expiration}`.
    async fn credentials(&self, pod: &ObjectKey, task: &TaskNote) -> Result<Value, String>;
    /// Reads (`None`) or changes a task's scale-in protection: `{protectionEnabled, expiresInMinutes}` in, the members
    /// of GetTaskProtection's answer out.
    async fn protection(
        &self,
        pod: &ObjectKey,
        task: &TaskNote,
        change: Option<Value>,
    ) -> Result<Value, Refused>;
}

/// What the endpoint is made from.
pub(crate) struct Endpoint {
    pub node: Arc<Node>,
    pub services: Option<Arc<dyn TaskServices>>,
}

/// A task, found by whom asks and what for.
struct Found {
    pod: PodView,
    task: Arc<TaskNote>,
    /// The container whose id was named.
    container: String,
}

/// Serves until the task that runs this is ended.
pub(crate) async fn serve(endpoint: Arc<Endpoint>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "task metadata: accepting failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let endpoint = endpoint.clone();
        connections.spawn(async move {
            let answer = service_fn(|request| answer(endpoint.clone(), peer, request));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                // `nc` and the like close their half as soon as they have asked.
                .half_close(true)
                .header_read_timeout(HEADER_WAIT)
                .serve_connection(TokioIo::new(stream), answer)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "task metadata: connection ended");
            }
            drop(place);
        });
    }
}

fn reply(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

async fn answer(
    endpoint: Arc<Endpoint>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let put = request.method() == Method::PUT;
    let Some(ask) = Ask::parse(request.uri().path()).filter(|_| put || request.method() == Method::GET)
    else {
        return Ok(reply(StatusCode::NOT_FOUND, &json!("404 page not found")));
    };
    let Some(found) = endpoint.find(&ask, peer.ip()) else {
        return Ok(ask.unknown());
    };
    let (status, body) = match ask {
        Ask::Credentials(_) => endpoint.credentials(&found).await,
        Ask::Protection(_) => {
            let change = if put { Some(request.into_body()) } else { None };
            endpoint.protection(&found, change).await
        }
        Ask::Container(_) => (StatusCode::OK, document::container(&found.pod, &found.task, &found.container)),
        Ask::Task(_, tags) => (StatusCode::OK, document::task(&found.pod, &found.task, tags)),
        Ask::Stats(_) => (StatusCode::OK, endpoint.stats(&found.pod, &found.container)),
        Ask::TaskStats(_) => {
            let all = found.task.containers.keys();
            let one = |name: &String| {
                let id = document::docker_id(&found.pod, name);
                (id, endpoint.stats(&found.pod, name))
            };
            let stats: serde_json::Map<String, Value> =
                all.map(one).filter(|(id, _)| !id.is_empty()).collect();
            (StatusCode::OK, Value::Object(stats))
        }
    };
    Ok(reply(status, &body))
}

impl Endpoint {
    /// The task that may ask this.
    fn find(&self, ask: &Ask, from: IpAddr) -> Option<Found> {
        let ours = |ip: &IpAddr| ip.is_loopback() || self.node.facts.host_ips.contains(ip);
        self.node.pods.list().into_iter().find_map(|object| {
            if !object.key.namespace.starts_with("ecs-") {
                return None;
            }
            let pod = PodView::new(object).ok()?;
            let task = pod.task.clone()?;
            let container = ask.container(&task)?;
            let status = pod.pod.status.as_ref();
            let own = status.and_then(|s| s.pod_ip.as_deref()).is_some_and(|ip| ip.parse() == Ok(from));
            // The address is in the API a moment after the first program runs.
            let known = own || self.node.network.pod(pod.uid()).is_some_and(|n| IpAddr::from(n.ip) == from);
            let allowed = if pod.host_network() { ours(&from) } else { known };
            allowed.then_some(Found { container, task, pod })
        })
    }

    async fn credentials(&self, found: &Found) -> (StatusCode, Value) {
        let refuse = |why: String| {
            let body = json!({"code": "CredentialsUninitialized", "HTTPErrorCode": 503,
                "message": format!("CredentialsV2Request: {why}")});
            (StatusCode::SERVICE_UNAVAILABLE, body)
        };
        let Some(services) = &self.services else {
            return refuse("this node has no source of credentials".into());
        };
        match services.credentials(&found.pod.object.key, &found.task).await {
            Ok(credentials) => (StatusCode::OK, credentials),
            Err(error) => {
                tracing::warn!(task = found.pod.name(), error, "no credentials for a task");
                refuse(error)
            }
        }
    }

    async fn protection(&self, found: &Found, change: Option<Incoming>) -> (StatusCode, Value) {
        let arn = found.task.task.arn.clone();
        let fail = |status: u16, code: &str, message: String| {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, json!({"error": {"Arn": arn, "Code": code, "Message": message}}))
        };
        let change = match change {
            None => None,
            Some(body) => {
                let read = Limited::new(body, BODY_MAX_BYTES).collect().await.ok().map(|b| b.to_bytes());
                let parsed = read.and_then(|b| serde_json::from_slice::<Value>(&b).ok());
                match parsed {
                    Some(value) if value["ProtectionEnabled"].is_boolean() => {
                        let mut change = json!({"protectionEnabled": value["ProtectionEnabled"]});
                        if !value["ExpiresInMinutes"].is_null() {
                            change["expiresInMinutes"] = value["ExpiresInMinutes"].clone();
                        }
                        Some(change)
                    }
                    _ => {
                        let words = "UpdateTaskProtection: failed to decode request";
                        return fail(400, "InvalidParameterException", words.into());
                    }
                }
            }
        };
        let Some(services) = &self.services else {
            return fail(503, "ServerException", "this node cannot reach the control plane".into());
        };
        match services.protection(&found.pod.object.key, &found.task, change).await {
            Ok(protection) => (StatusCode::OK, document::protection(&protection)),
            Err((status, code, message)) => fail(status, &code, message),
        }
    }

    /// What Docker would say of a container's use; null when it does not run.
    fn stats(&self, pod: &PodView, container: &str) -> Value {
        let Some(live) = self.node.live(pod.uid()) else { return Value::Null };
        let newest =
            live.containers.iter().filter(|c| c.spec.name == container).max_by_key(|c| c.spec.attempt);
        let Some(info) = newest else { return Value::Null };
        match self.node.runtime.usage(pod.uid(), Some(&info.spec.id)) {
            Ok(usage) => document::stats(pod, container, &usage, &jiff::Timestamp::now().to_string()),
            Err(_) => Value::Null,
        }
    }
}
