//! The audit log: a record of who did what, as `audit.k8s.io/v1` events.
//!
//! A request's [`Record`] travels in a task-local: what handles the request adds its body and annotations
//! ([`annotate`], [`request_object`]) without knowing whether anybody listens. Nothing is paid without a policy.
//! Invariants: an event is made after the fact it tells; the log file waits for its disk (a slow disk slows requests
//! rather than losing events), the webhook never does (it loses events and counts them).

mod policy;
mod sinks;

pub use policy::{Level, Policy};
pub use sinks::LogConfig;

use crate::authz::Attributes;
use crate::http::respond::{self, Body};
use crate::outbound::Endpoint;
use auth::Identity;
use bytes::Bytes;
use futures_util::Stream;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use jiff::Timestamp;
use machinery::status::ApiError;
use parking_lot::Mutex;
use policy::{Extent, Stage};
use serde_json::{Map, Value, json};
use sinks::Sinks;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bodies above this size are not recorded (upstream bounds events at 10 MiB).
const BODY_MAX: usize = 10 << 20;
/// Annotations of one event: webhooks may add some each.
const ANNOTATIONS_MAX: usize = 256;

/// What is recorded and where it goes.
#[derive(Clone)]
pub struct AuditConfig {
    /// Which requests.
    pub policy: Policy,
    /// A file of JSON lines.
    pub log: Option<LogConfig>,
    /// A server that takes event lists.
    pub webhook: Option<Endpoint>,
}

/// The audit log of a running server.
pub struct Audit {
    policy: Policy,
    sinks: Sinks,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

/// Where a request came from, as a request extension.
#[derive(Clone, Copy, Debug)]
pub struct Source(pub IpAddr);

tokio::task_local! {
    static RECORD: Arc<Record>;
}

/// Adds an annotation to the event of the request that is being handled, if it is recorded. The first value stays.
pub fn annotate(key: &str, value: &str) {
    annotate_from(Level::None, key, value);
}

/// The same, only from this level on.
pub fn annotate_from(level: Level, key: &str, value: &str) {
    let _ = RECORD.try_with(|record| {
        let mut draft = record.draft.lock();
        if draft.extent.level >= level && draft.annotations.len() < ANNOTATIONS_MAX {
            draft.annotations.entry(key.into()).or_insert_with(|| value.into());
        }
    });
}

/// Adds the request's body.
pub fn request_object(body: &Value) {
    let _ = RECORD.try_with(|record| record.note_request(body));
}

#[derive(Default)]
struct Draft {
    extent: Extent,
    user: Value,
    impersonated: Option<Value>,
    constraint: Option<Value>,
    verb: String,
    object: Option<Map<String, Value>>,
    annotations: BTreeMap<String, String>,
    request: Option<Value>,
}

/// What is known of one request.
pub struct Record {
    audit: Arc<Audit>,
    id: String,
    received: Timestamp,
    uri: String,
    agent: String,
    sources: Vec<String>,
    draft: Mutex<Draft>,
}

impl Audit {
    /// Starts the sinks.
    pub fn new(
        config: AuditConfig,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> std::io::Result<Arc<Audit>> {
        let sinks = Sinks::start(config.log, config.webhook)?;
        Ok(Arc::new(Audit { policy: config.policy, sinks, clock }))
    }

    /// Lines for `/metrics`.
    pub fn metrics(&self) -> String {
        self.sinks.metrics()
    }

    /// A record of a request that has just come.
    pub fn begin<B>(self: &Arc<Self>, request: &Request<B>) -> Arc<Record> {
        let text = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let id = Some(text("audit-id")).filter(|id| !id.is_empty() && id.len() <= 64);
        let mut sources: Vec<String> = Vec::new();
        for hop in text("x-forwarded-for").split(',').map(str::trim) {
            sources.extend(hop.parse::<IpAddr>().ok().map(|ip| ip.to_string()));
        }
        sources.extend(request.extensions().get::<Source>().map(|s| s.0.to_canonical().to_string()));
        sources.dedup();
        Arc::new(Record {
            audit: self.clone(),
            id: id.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_string),
            received: (self.clock)(),
            uri: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
            agent: text("user-agent").chars().take(1024).collect(),
            sources,
            draft: Mutex::default(),
        })
    }

    /// Records a write of a component in this process: it has no connection, but it has a name.
    pub async fn component(
        self: &Arc<Self>,
        identity: &Identity,
        attributes: &Attributes,
        body: Option<&Value>,
        outcome: Result<u16, &ApiError>,
    ) {
        let record = Arc::new(Record {
            audit: self.clone(),
            id: uuid::Uuid::new_v4().to_string(),
            received: (self.clock)(),
            uri: uri_of(attributes),
            agent: "gantry".into(),
            sources: vec!["127.0.0.1".into()],
            draft: Mutex::default(),
        });
        record.known(identity, attributes).await;
        if let Some(body) = body {
            record.note_request(body);
        }
        record.authorized(outcome.is_ok() || outcome.is_err_and(|e| e.code != 403), "");
        let status = match outcome {
            Ok(code) => json!({"metadata": {}, "code": code}),
            Err(error) => failure(error),
        };
        record.emit(Stage::ResponseComplete, Some(status), None).await;
    }
}

fn uri_of(a: &Attributes) -> String {
    let mut path = if a.group.is_empty() {
        format!("/api/{}", a.version)
    } else {
        format!("/apis/{}/{}", a.group, a.version)
    };
    if !a.namespace.is_empty() {
        path += &format!("/namespaces/{}", a.namespace);
    }
    for part in [&a.resource, &a.name, &a.subresource] {
        if !part.is_empty() {
            path += "/";
            path += part;
        }
    }
    path
}

fn failure(error: &ApiError) -> Value {
    let mut status = error.to_status();
    if let Some(status) = status.as_object_mut() {
        status.remove("kind");
        status.remove("apiVersion");
    }
    status
}

/// Runs the handling of a request with its record at hand.
pub async fn scope<T>(record: Option<Arc<Record>>, work: impl Future<Output = T>) -> T {
    match record {
        Some(record) => RECORD.scope(record, work).await,
        None => work.await,
    }
}

/// The record at hand.
pub fn current() -> Option<Arc<Record>> {
    RECORD.try_with(Arc::clone).ok()
}

fn user(identity: &Identity) -> Value {
    let mut user = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        user["uid"] = json!(identity.uid);
    }
    if !identity.extra.is_empty() {
        user["extra"] = json!(identity.extra);
    }
    user
}

fn without_managed_fields(value: &mut Value) {
    let strip = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    strip(value);
    if let Some(items) = value.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(strip);
    }
}

impl Record {
    /// Who asks for what is known now: the policy decides, the first stage is recorded. The level.
    pub async fn known(&self, identity: &Identity, attributes: &Attributes) -> Level {
        let extent = self.audit.policy.extent(identity, attributes);
        let level = extent.level;
        if level > Level::None {
            let mut draft = self.draft.lock();
            draft.extent = extent;
            draft.user = user(identity);
            draft.verb = attributes.verb.clone();
            draft.object = attributes.is_resource().then(|| {
                let mut object = Map::new();
                for (field, text) in [
                    ("resource", &attributes.resource),
                    ("namespace", &attributes.namespace),
                    ("name", &attributes.name),
                    ("apiGroup", &attributes.group),
                    ("apiVersion", &attributes.version),
                    ("subresource", &attributes.subresource),
                ] {
                    if !text.is_empty() {
                        object.insert(field.into(), text.as_str().into());
                    }
                }
                object
            });
        }
        self.audit.sinks.counted(level);
        self.emit(Stage::RequestReceived, None, None).await;
        level
    }

    /// The caller acts as somebody else; `constraint` is the verb that lets him, "" for the old one.
    pub fn impersonating(&self, identity: &Identity, constraint: &str) {
        let mut draft = self.draft.lock();
        draft.impersonated = Some(user(identity));
        if !constraint.is_empty() {
            draft.constraint = Some(json!({"impersonationConstraint": constraint}));
        }
    }

    /// What the authorizer said.
    pub fn authorized(&self, allowed: bool, reason: &str) {
        let mut draft = self.draft.lock();
        let decision = if allowed { "allow" } else { "forbid" };
        draft.annotations.insert("authorization.k8s.io/decision".into(), decision.into());
        draft.annotations.insert("authorization.k8s.io/reason".into(), reason.into());
    }

    fn note_request(&self, body: &Value) {
        let mut draft = self.draft.lock();
        if let Some(object) = &mut draft.object {
            for field in ["name", "namespace", "uid", "resourceVersion"] {
                let text = body["metadata"][field].as_str().filter(|t| !t.is_empty());
                if let Some(text) = text {
                    object.entry(field).or_insert_with(|| text.into());
                }
            }
        }
        if draft.extent.level >= Level::Request {
            let mut body = body.clone();
            if draft.extent.omit_managed_fields {
                without_managed_fields(&mut body);
            }
            draft.request = Some(body);
        }
    }

    /// The event of a stage; `None` when it is not wanted.
    fn event(&self, stage: Stage, status: Option<Value>, answer: Option<Value>) -> Option<Value> {
        let draft = self.draft.lock();
        if draft.extent.level == Level::None || draft.extent.omit_stages.contains(&stage) {
            return None;
        }
        let time = |t: Timestamp| json!(machinery::time::format_micro(t));
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1",
            "level": draft.extent.level.name(), "auditID": self.id, "stage": stage.name(),
            "requestURI": self.uri, "verb": draft.verb, "user": draft.user,
            "sourceIPs": self.sources, "userAgent": self.agent,
            "requestReceivedTimestamp": time(self.received), "stageTimestamp": time((self.audit.clock)()),
        });
        let mut add = |field: &str, value: Option<Value>| {
            if let Some(value) = value {
                event[field] = value;
            }
        };
        add("impersonatedUser", draft.impersonated.clone());
        add("authenticationMetadata", draft.constraint.clone());
        add("objectRef", draft.object.clone().map(Value::Object));
        add("responseStatus", status);
        if stage != Stage::RequestReceived {
            add("requestObject", draft.request.clone());
        }
        add("responseObject", answer);
        if !draft.annotations.is_empty() {
            event["annotations"] = json!(draft.annotations);
        }
        Some(event)
    }

    async fn emit(&self, stage: Stage, status: Option<Value>, answer: Option<Value>) {
        if let Some(event) = self.event(stage, status, answer) {
            self.audit.sinks.take(event).await;
        }
    }

    /// The handler broke.
    pub async fn panicked(&self) {
        let status = json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": "APIServer panic'd"});
        self.emit(Stage::Panic, Some(status), None).await;
    }

    /// Records an answer; a long one again at its end. `error`: why it is a failure, where that is known.
    pub async fn answered(
        self: &Arc<Self>,
        response: Response<Body>,
        error: Option<&ApiError>,
        long: bool,
    ) -> Response<Body> {
        let level = self.draft.lock().extent.level;
        if level == Level::None {
            return response;
        }
        let code = response.status().as_u16();
        let status = match error {
            Some(error) => failure(error),
            None => json!({"metadata": {}, "code": code}),
        };
        if long && error.is_none() {
            self.emit(Stage::ResponseStarted, Some(status.clone()), None).await;
            let end = End { record: self.clone(), status };
            let (parts, body) = response.into_parts();
            return Response::from_parts(parts, respond::fallible(Followed { body, _end: end }));
        }
        let (response, answer) = match level {
            Level::RequestResponse => self.read(response).await,
            _ => (response, None),
        };
        self.emit(Stage::ResponseComplete, Some(status), answer).await;
        response
    }

    async fn read(&self, response: Response<Body>) -> (Response<Body>, Option<Value>) {
        let kind =
            response.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if !kind.starts_with("application/json") {
            return (response, None);
        }
        let (parts, body) = response.into_parts();
        let Ok(bytes) = body.collect().await.map(|b| b.to_bytes()) else {
            return (Response::from_parts(parts, respond::full("")), None);
        };
        let small = bytes.len() <= BODY_MAX;
        let mut value: Option<Value> = small.then(|| serde_json::from_slice(&bytes).ok()).flatten();
        if let Some(value) = &mut value
            && self.draft.lock().extent.omit_managed_fields
        {
            without_managed_fields(value);
        }
        (Response::from_parts(parts, respond::full(bytes)), value)
    }
}

/// Records the end of an answer when it goes.
struct End {
    record: Arc<Record>,
    status: Value,
}

impl Drop for End {
    fn drop(&mut self) {
        if let Some(event) = self.record.event(Stage::ResponseComplete, Some(self.status.take()), None) {
            self.record.audit.sinks.take_now(event);
        }
    }
}

/// A body whose end is recorded.
struct Followed {
    body: Body,
    _end: End,
}

type Frame = hyper::body::Frame<Bytes>;

impl Stream for Followed {
    type Item = Result<Frame, Box<dyn std::error::Error + Send + Sync>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        hyper::body::Body::poll_frame(Pin::new(&mut self.body), context)
    }
}
