//! The front end: from an HTTP request to an operation and back.
//!
//! Order: signature's head, key and time (before the body is read), body, signature, route, throttle, input,
//! constraints, permission, operation, answer. Invariants: nothing of a request is acted upon before its signature is found
//! right; every request gets an answer in its protocol's form with a request id; an operation that panics answers
//! 500. Unsigned calls reach only operations whose model says so.

mod body;
mod metrics;
mod permit;
mod route;
mod serve;
mod signature;
mod throttle;

use crate::protocol::{self, Reply, Wire, events, query};
use crate::service::{AwsError, Call, Caller, Service, Shared};
use crate::services::iam::bound::Bound;
use crate::services::s3::{self, S3};
use crate::validate;
use ::http::{Method, Response, header, request::Parts};
use auth::access::{AccessKeys, Principal, USER_KEY};
use auth::sigv4::Head;
use bytes::Bytes;
use ecs_model::refusal::refuse_if;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{BoxStream, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use route::{Asked, Route};
use serde_json::Value;
use signature::{Problem, Signer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

/// S3 in the credential scope.
const S3_SCOPE: &str = "s3";

/// Bodies of answers.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Wall-clock milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Paths that are not AWS's and are answered elsewhere: WebSockets (ECS Exec) and the like. Not signed: whoever
/// answers checks tokens of its own.
pub trait Upgrade: Send + Sync + 'static {
    /// Requests whose path starts so: `/_gantry/exec/`.
    fn prefix(&self) -> &'static str;
    /// Answers one, possibly by switching protocols (`hyper::upgrade::on`).
    fn answer(&self, request: ::http::Request<Incoming>) -> BoxFuture<'static, Response<Body>>;
}

/// What the front end is made of.
pub struct AwsConfig {
    /// The services.
    pub services: Vec<Arc<dyn Service>>,
    /// Access keys.
    pub keys: Arc<AccessKeys>,
    /// Account and region of those who do not say.
    pub shared: Shared,
    /// S3, which speaks a protocol of its own; without it, its calls are refused.
    pub s3: Option<Arc<S3>>,
    /// Other paths.
    pub upgrades: Vec<Arc<dyn Upgrade>>,
    /// The time.
    pub clock: Clock,
}

/// The AWS endpoint.
pub struct Aws {
    services: BTreeMap<&'static str, Arc<dyn Service>>,
    served: BTreeMap<&'static str, Vec<&'static str>>,
    keys: Arc<AccessKeys>,
    bound: Bound,
    shared: Shared,
    s3: Option<Arc<S3>>,
    upgrades: Vec<Arc<dyn Upgrade>>,
    clock: Clock,
    throttle: throttle::Throttle,
    metrics: metrics::Metrics,
}

/// A body from bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// What is left of a call when its answer is written.
struct Answered {
    wire: Wire,
    service: Option<&'static aws_schema::Service>,
    /// For the metrics.
    operation: Option<&'static aws_schema::Operation>,
    outcome: Result<Output, AwsError>,
}

enum Output {
    Whole(Reply),
    Stream(BoxStream<'static, Bytes>),
}

/// A request's head in the forms that are needed.
struct Asking<'a> {
    parts: &'a Parts,
    headers: Vec<(String, String)>,
    peer: SocketAddr,
    /// The request's id, given here.
    id: String,
    /// When it came.
    now_ms: u64,
}

impl Asking<'_> {
    fn head(&self) -> Head<'_> {
        Head {
            method: self.parts.method.as_str(),
            path: self.parts.uri.path(),
            query: self.parts.uri.query().unwrap_or_default(),
            headers: &self.headers,
        }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).unwrap_or_default()
    }

    /// Is it a call of S3, whoever signed it?
    fn is_for_s3(&self) -> bool {
        self.head().presented().ok().flatten().is_some_and(|p| p.service == S3_SCOPE)
    }

    fn for_s3(&self, signer: &Signer, body: Bytes) -> s3::Ask {
        s3::Ask {
            method: self.parts.method.to_string(),
            path: self.parts.uri.path().into(),
            query: self.parts.uri.query().unwrap_or_default().into(),
            headers: self.headers.clone(),
            body,
            account: signer.caller.account.clone(),
            region: signer.presented.region.clone(),
            now_ms: self.now_ms,
        }
    }

    fn call(&self, caller: Caller, region: String, operation: &'static str, input: Value) -> Call {
        Call {
            caller,
            region,
            operation,
            input,
            request_id: self.id.clone(),
            now_ms: self.now_ms,
            endpoint: format!("http://{}", self.header("host")),
        }
    }

    fn asked<'s>(&'s self, scope: Option<&'s str>) -> Asked<'s> {
        Asked {
            method: self.parts.method.as_str(),
            path: self.parts.uri.path(),
            target: self.header("x-amz-target"),
            smithy: self.header("smithy-protocol"),
            content_type: self.header("content-type"),
            scope,
        }
    }
}

/// Headers as text, names in lower case; `host` also where HTTP/2 has `:authority`.
fn headers(parts: &Parts) -> Vec<(String, String)> {
    let text = |v: &::http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
    let mut list: Vec<_> = parts.headers.iter().map(|(n, v)| (n.as_str().to_string(), text(v))).collect();
    if !parts.headers.contains_key(header::HOST)
        && let Some(authority) = parts.uri.authority()
    {
        list.push(("host".into(), authority.to_string()));
    }
    list
}

impl Aws {
    /// The endpoint of these services.
    pub fn new(config: AwsConfig) -> Arc<Aws> {
        let services: BTreeMap<_, _> = config.services.into_iter().map(|s| (s.name(), s)).collect();
        let served = services.iter().map(|(name, s)| (*name, s.served())).collect();
        Arc::new(Aws {
            services,
            served,
            keys: config.keys,
            bound: Bound::new(&config.shared),
            shared: config.shared,
            s3: config.s3,
            upgrades: config.upgrades,
            clock: config.clock,
            throttle: throttle::Throttle::default(),
            metrics: metrics::Metrics::default(),
        })
    }

    /// Prometheus lines about calls.
    pub fn metrics_text(&self) -> String {
        self.metrics.text()
    }

    /// Answers one request.
    pub async fn handle(&self, request: ::http::Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        if let Some(upgrade) = self.upgrades.iter().find(|u| request.uri().path().starts_with(u.prefix())) {
            return upgrade.answer(request).await;
        }
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let (id, now_ms) = (uuid::Uuid::new_v4().to_string(), (self.clock)());
        let asking = Asking { headers: headers(&parts), parts: &parts, peer, id, now_ms };
        if let Some(response) = self.probe(&asking) {
            return response;
        }
        let answered = self.answer(&asking, body).await;
        let code = match &answered.outcome {
            Ok(_) => "200",
            Err(error) => error.code.as_str(),
        };
        let of = answered.service.map_or("unknown", |s| s.head.name);
        let operation = answered.operation.map_or("unknown", |o| o.name);
        self.metrics.called(of, operation, code, started.elapsed());
        if let Err(error) = &answered.outcome {
            let level_up = error.status >= 500;
            match level_up {
                true => tracing::warn!(service = of, operation, %error, "AWS call"),
                false => tracing::debug!(service = of, operation, %error, "AWS call"),
            }
        }
        match &answered.outcome {
            Err(error) if self.s3.is_some() && asking.is_for_s3() => {
                let reply = s3::refuse(error, parts.uri.path(), &asking.id);
                respond(Answered { outcome: Ok(Output::Whole(reply)), ..answered }, &asking.id)
            }
            _ => respond(answered, &asking.id),
        }
    }

    /// What is asked without a signature by those who only look whether somebody is there.
    fn probe(&self, asking: &Asking<'_>) -> Option<Response<Body>> {
        let (method, path) = (&asking.parts.method, asking.parts.uri.path());
        let signed = !asking.header("authorization").is_empty() || asking.parts.uri.query().is_some();
        let plain = |text: String| Response::new(full(text));
        match (method, path) {
            (&Method::OPTIONS, _) => {
                let response = Response::builder()
                    .status(204)
                    .header(header::ALLOW, "GET, HEAD, POST, PUT, PATCH, DELETE");
                response.body(full("")).ok()
            }
            (&Method::GET | &Method::HEAD, "/" | "/health" | "/_gantry/health") if !signed => {
                Some(plain(format!("{}\n", serde_json::json!({"gantry": "aws", "status": "running"}))))
            }
            (&Method::GET, "/_gantry/metrics") if asking.peer.ip().is_loopback() => {
                Some(plain(self.metrics_text()))
            }
            _ => None,
        }
    }

    async fn answer(&self, asking: &Asking<'_>, body: Incoming) -> Answered {
        let early = |error: AwsError, scope: Option<&str>| {
            let wire = route::manner(&asking.asked(scope));
            Answered { wire, service: None, operation: None, outcome: Err(error) }
        };
        let (now_ms, head) = (asking.now_ms, asking.head());
        // A page in a browser on this machine is not this machine's user: it could sign with well-known keys.
        let near = asking.peer.ip().is_loopback() && asking.header("origin").is_empty();
        let problem =
            |p: Problem, scope: Option<&str>| early(p.worded(route::manner(&asking.asked(scope))), scope);
        let user = self.user(&head).await;
        let signer = match signature::signer(&self.keys, user, &head, near, (now_ms / 1_000) as i64) {
            Ok(signer) => signer,
            Err(p) => {
                let presented = head.presented().ok().flatten();
                return problem(p, presented.as_ref().map(|p| p.service.as_str()));
            }
        };
        let scope = signer.as_ref().map(|s| s.presented.service.as_str());
        let max = if signer.is_some() { body::SIGNED_MAX } else { body::UNSIGNED_MAX };
        let body = match body::read(body, max).await {
            Ok(body) => body,
            Err(error) => return early(error, scope),
        };
        let body = match &signer {
            Some(signer) => match signer.verify(&head, body) {
                Ok(body) => body,
                Err(p) => return problem(p, scope),
            },
            None => body,
        };
        if let (Some(signer), Some(s3)) =
            (signer.as_ref().filter(|s| s.presented.service == S3_SCOPE), &self.s3)
        {
            if !self.throttle.admit(&signer.caller.access_key, now_ms) {
                return early(throttled(route::manner(&asking.asked(scope))), scope);
            }
            let reply = match self.permit_s3(asking, signer).await {
                Ok(()) => s3.handle(asking.for_s3(signer, body), &asking.id).await,
                Err(error) => s3::refuse(&error, asking.parts.uri.path(), &asking.id),
            };
            let wire = route::manner(&asking.asked(scope));
            return Answered { wire, service: None, operation: None, outcome: Ok(Output::Whole(reply)) };
        }
        let body = match body::unpacked(body, asking.header("content-encoding")) {
            Ok(body) => body,
            Err(error) => return early(error, scope),
        };
        let form = || query::parameters(head.query, &body).ok();
        let route = match route::route(&asking.asked(scope), form) {
            Ok(route) => route,
            Err(astray) => {
                let (wire, service, error) = *astray;
                let error = if signer.is_none() { Problem::Missing.worded(wire) } else { error };
                return Answered { wire, service, operation: None, outcome: Err(error) };
            }
        };
        let outcome = self.run(asking, &route, signer, &body).await;
        Answered { wire: route.wire, service: Some(route.service), operation: Some(route.operation), outcome }
    }

    /// The user whose key signed, where it is a user's.
    async fn user(&self, head: &Head<'_>) -> Option<(String, Principal)> {
        let presented = head.presented().ok()??;
        let id = &presented.access_key;
        if presented.token.is_some() || !id.starts_with(USER_KEY) || self.keys.is_configured(id) {
            return None;
        }
        let holder = self.bound.holder(id).await;
        let holder = holder.inspect_err(|error| tracing::warn!(%error, "a user's access key")).ok()??;
        Some((self.keys.user_secret(id), holder))
    }

    /// May the caller do this? Its account may always.
    async fn permit(&self, call: &Call, route: &Route, from: SocketAddr) -> Result<(), AwsError> {
        match self.bound.policies(&call.caller).await? {
            None => Ok(()),
            Some(policies) => {
                let service = route.service.head.signing_name;
                permit::check(&policies, service, call, &from.ip().to_string(), route.wire)
            }
        }
    }

    /// The same for S3. Who copies must be allowed to read, too.
    async fn permit_s3(&self, asking: &Asking<'_>, signer: &Signer) -> Result<(), AwsError> {
        let Some(policies) = self.bound.policies(&signer.caller).await? else { return Ok(()) };
        let call = asking.call(signer.caller.clone(), signer.presented.region.clone(), "", Value::Null);
        let from = asking.peer.ip().to_string();
        let uri = &asking.parts.uri;
        let own = (asking.parts.method.as_str(), uri.path(), uri.query().unwrap_or_default());
        let copied = asking.header("x-amz-copy-source");
        permit::check_s3(&policies, own, &call, &from)?;
        if copied.is_empty() {
            Ok(())
        } else {
            permit::check_s3(&policies, ("GET", copied, ""), &call, &from)
        }
    }

    /// Runs the operation that was found.
    async fn run(
        &self,
        asking: &Asking<'_>,
        route: &Route,
        signer: Option<Signer>,
        body: &[u8],
    ) -> Result<Output, AwsError> {
        let (table, operation) = (route.service, route.operation);
        let (caller, region) = match signer {
            Some(signer) => (signer.caller, signer.presented.region),
            None if operation.unsigned => (anonymous(), self.shared.region.clone()),
            None => return Err(Problem::Missing.worded(route.wire)),
        };
        refuse_if(!self.throttle.admit(&caller.access_key, asking.now_ms), || throttled(route.wire))?;
        let served = self.served.get(table.head.name).is_some_and(|list| list.contains(&operation.name));
        let Some(service) = self.services.get(table.head.name).filter(|_| served && operation.modelled)
        else {
            return Err(not_served(route));
        };
        let request = protocol::Request {
            query: asking.parts.uri.query().unwrap_or_default(),
            headers: &asking.headers,
            body,
            labels: &route.labels,
        };
        let input = protocol::decode(route.wire, table, operation, &request)
            .map_err(|e| unreadable(route.wire, e))?;
        if let Some(shape) = operation.input {
            validate::check(table, operation.name, shape, &input)?;
        }
        let call = asking.call(caller, region, operation.name, input);
        self.permit(&call, route, asking.peer).await?;
        let panicked =
            |_| AwsError::server("InternalFailure", "The operation failed inside Gantry; its log says more");
        if let Some(streaming) = service.stream(&call) {
            let events = AssertUnwindSafe(streaming).catch_unwind().await.map_err(panicked)??;
            return Ok(Output::Stream(frames(table, operation, events)));
        }
        let output = AssertUnwindSafe(service.call(&call)).catch_unwind().await.map_err(panicked)??;
        Ok(Output::Whole(protocol::encode(route.wire, table, operation, &output, &asking.id)))
    }
}

fn frames(
    service: &'static aws_schema::Service,
    operation: &'static aws_schema::Operation,
    events: BoxStream<'static, Result<crate::service::StreamEvent, AwsError>>,
) -> BoxStream<'static, Bytes> {
    let first = futures_util::stream::once(async { Bytes::from(events::initial()) });
    let rest = events.map(move |event| {
        Bytes::from(match event {
            Ok((name, value)) => events::event(service, operation, name, &value),
            Err(error) => events::exception(&error),
        })
    });
    first.chain(rest).boxed()
}

/// Callers of operations that need no signature.
fn anonymous() -> Caller {
    Caller {
        account: String::new(),
        access_key: "anonymous".into(),
        arn: String::new(),
        user_id: String::new(),
    }
}

fn throttled(wire: Wire) -> AwsError {
    use aws_schema::Protocol;
    match wire.protocol {
        Protocol::Ec2 => {
            AwsError { status: 503, ..AwsError::client("RequestLimitExceeded", "Request limit exceeded.") }
        }
        Protocol::Query => AwsError::client("Throttling", "Rate exceeded"),
        Protocol::RestJson => {
            AwsError { status: 429, ..AwsError::client("ThrottlingException", "Rate exceeded") }
        }
        Protocol::Json | Protocol::Cbor => AwsError::client("ThrottlingException", "Rate exceeded"),
    }
}

/// A known operation that is not served.
fn not_served(route: &Route) -> AwsError {
    use aws_schema::Protocol;
    let (name, service) = (route.operation.name, route.service.head.service_id);
    let code = match route.wire.protocol {
        Protocol::Query | Protocol::Ec2 => "InvalidAction",
        _ => "UnknownOperationException",
    };
    AwsError::client(code, format!("The operation {name} of {service} is not implemented by Gantry"))
}

fn unreadable(wire: Wire, error: protocol::DecodeError) -> AwsError {
    use aws_schema::Protocol;
    match wire.protocol {
        Protocol::Query if error.member.is_empty() => AwsError::client("MalformedQueryString", error.message),
        Protocol::Query => AwsError::client("MalformedInput", error.message),
        Protocol::Ec2 => {
            let text = format!("Value for parameter {} is invalid. {}", error.member, error.message);
            AwsError::client("InvalidParameterValue", text)
        }
        _ => AwsError::client("SerializationException", error.message),
    }
}

fn respond(answered: Answered, id: &str) -> Response<Body> {
    let reply = match answered.outcome {
        Ok(Output::Stream(frames)) => {
            let body = StreamBody::new(frames.map(|f| Ok::<_, Infallible>(Frame::data(f))));
            let response = Response::builder()
                .header(header::CONTENT_TYPE, events::CONTENT_TYPE)
                .header("x-amzn-requestid", id)
                .body(body.boxed_unsync());
            return response.unwrap_or_else(|_| Response::new(full("")));
        }
        Ok(Output::Whole(reply)) => reply,
        Err(error) => protocol::refuse(answered.wire, answered.service, &error, id),
    };
    let mut response = Response::builder().status(reply.status).header("x-amzn-requestid", id);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    response.body(full(reply.body)).unwrap_or_else(|_| Response::new(full("")))
}
