//! The remote [`Client`](crate::Client): the same trait over HTTPS, on the `kube` library.
//!
//! Invariants: a failed call yields the server's own Status; a watch line longer than [`LINE_MAX_BYTES`] ends the
//! watch. Deliberately not here: retries (callers' caches list again) and kubeconfig discovery rules.

use crate::api::{
    Client, DeleteOptions, Event, EventKind, EventStream, ListOptions, ObjectList, PatchKind, Propagation,
    Verb, WatchOptions, Write,
};
use crate::metrics::Calls;
use crate::object::{Object, ObjectKey};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, BodyStream};
use k8s_schema::Gvr;
use kube::client::Body;
use machinery::status::{ApiError, Cause};
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest watch line: an object is 3 MiB at most, its event little more.
const LINE_MAX_BYTES: usize = 8 << 20;
/// Reasons that callers compare against; any other reads as "".
const REASONS: [&str; 17] = [
    "AlreadyExists",
    "BadRequest",
    "Conflict",
    "Expired",
    "Forbidden",
    "Gone",
    "InternalError",
    "Invalid",
    "MethodNotAllowed",
    "NotAcceptable",
    "NotFound",
    "RequestEntityTooLarge",
    "ServerTimeout",
    "ServiceUnavailable",
    "Timeout",
    "TooManyRequests",
    "Unauthorized",
];

/// A connection that is silent for so long is dead: on every watch the server sends a bookmark a minute.
const SILENCE_MAX: Duration = Duration::from_secs(150);
/// Longest wait for a server to accept.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// A client of an API server elsewhere.
pub struct Remote {
    client: RwLock<kube::Client>,
    calls: Calls,
}

/// `host:port`, as figures name it.
fn host(uri: &http::Uri) -> String {
    uri.authority().map(ToString::to_string).unwrap_or_default()
}

async fn connect(kubeconfig: &str) -> Result<(kube::Client, String), ApiError> {
    let kubeconfig = kube::config::Kubeconfig::from_yaml(kubeconfig).map_err(ApiError::internal)?;
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let config = config.map_err(ApiError::internal)?;
    let host = host(&config.cluster_url);
    Ok((bounded(config)?, host))
}

fn bounded(mut config: kube::Config) -> Result<kube::Client, ApiError> {
    config.connect_timeout = Some(CONNECT_MAX);
    config.read_timeout = Some(SILENCE_MAX);
    kube::Client::try_from(config).map_err(ApiError::internal)
}

impl Remote {
    /// Connects by a kubeconfig's current context. Nothing is sent before the first call.
    pub async fn from_kubeconfig(text: &str) -> Result<Remote, ApiError> {
        let (client, host) = connect(text).await?;
        Ok(Remote { client: RwLock::new(client), calls: Calls::new(host) })
    }

    /// A client without credentials of a server whose certificate nobody checks: for what is public and is checked
    /// by other means.
    pub fn unverified(server: &str) -> Result<Remote, ApiError> {
        let uri =
            server.parse::<http::Uri>().map_err(|e| ApiError::bad_request(format!("{server:?}: {e}")))?;
        let calls = Calls::new(host(&uri));
        let mut config = kube::Config::new(uri);
        config.accept_invalid_certs = true;
        Ok(Remote { client: RwLock::new(bounded(config)?), calls })
    }

    /// Goes on by another kubeconfig (new credentials, mostly); watches that stand go on as they are.
    pub async fn renew(&self, kubeconfig: &str) -> Result<(), ApiError> {
        let (client, _) = connect(kubeconfig).await?;
        *self.client.write() = client;
        Ok(())
    }

    /// Asks what is no part of Kubernetes' API: POSTs a document to a path of the server, and reads another.
    ///
    /// # Errors
    /// The server's own Status, or 503 where it cannot be reached.
    pub async fn ask(&self, path: &str, input: Value) -> Result<Value, ApiError> {
        let answer = self.bytes(Method::POST, path, Some(("application/json", input))).await?;
        serde_json::from_slice(&answer).map_err(ApiError::internal)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Value)>,
    ) -> Result<Response<Body>, ApiError> {
        let (name, begun) = (method_name(&method), Instant::now());
        let mut request = Request::builder().method(method).uri(path).header("accept", "application/json");
        let mut bytes = Vec::new();
        if let Some((content_type, body)) = body {
            request = request.header("content-type", content_type);
            bytes = serde_json::to_vec(&body).map_err(ApiError::internal)?;
        }
        let request = request.body(Body::from(bytes)).map_err(ApiError::internal)?;
        let client = self.client.read().clone();
        let response = client.send(request).await.map_err(unreachable_server)?;
        self.calls.done(name, response.status().as_u16(), begun.elapsed());
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        let text = response.into_body().collect().await.map_err(unreachable_server)?.to_bytes();
        Err(error_of(code, &text))
    }

    async fn bytes(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Value)>,
    ) -> Result<Bytes, ApiError> {
        let response = self.send(method, path, body).await?;
        Ok(response.into_body().collect().await.map_err(unreachable_server)?.to_bytes())
    }
}

fn method_name(method: &Method) -> &'static str {
    let known = ["GET", "POST", "PUT", "PATCH", "DELETE"];
    known.into_iter().find(|known| known == method).unwrap_or("OTHER")
}

fn unreachable_server(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(503, "ServiceUnavailable", format!("the API server cannot be reached: {error}"))
}

fn error_of(code: StatusCode, text: &[u8]) -> ApiError {
    let status: Value = serde_json::from_slice(text).unwrap_or_default();
    let string = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let reason = REASONS.iter().find(|r| status["reason"] == **r).copied().unwrap_or_default();
    let message = match status["message"].as_str() {
        Some(message) => message.to_string(),
        None => String::from_utf8_lossy(text).into_owned(),
    };
    let mut error = ApiError::new(code.as_u16(), reason, message);
    let details = &status["details"];
    error.name = string(&details["name"]);
    error.group = string(&details["group"]);
    error.kind = string(&details["kind"]);
    error.uid = string(&details["uid"]);
    for cause in details["causes"].as_array().into_iter().flatten() {
        let (reason, message, field) =
            (string(&cause["reason"]), string(&cause["message"]), string(&cause["field"]));
        error.causes.push(Cause { reason, message, field });
    }
    error.retry_after_seconds = details["retryAfterSeconds"].as_u64().unwrap_or(0) as u32;
    error
}

fn parse(bytes: Bytes) -> Result<Arc<Object>, ApiError> {
    Object::parse(bytes).map(Arc::new).map_err(ApiError::internal)
}

/// The path of a collection, an object or a subresource.
fn path(gvr: &Gvr, namespace: &str, name: &str, subresource: &str) -> String {
    let mut path = match gvr.group.is_empty() {
        true => format!("/api/{}", gvr.version),
        false => format!("/apis/{}/{}", gvr.group, gvr.version),
    };
    if !namespace.is_empty() {
        path += &format!("/namespaces/{namespace}");
    }
    for part in [&gvr.resource, name, subresource] {
        if !part.is_empty() {
            path += &format!("/{part}");
        }
    }
    path
}

/// A value of a query: everything but RFC 3986's unreserved characters is encoded.
pub fn percent_encoded(text: &str) -> String {
    stdx::percent(text, stdx::UNRESERVED)
}

fn query(path: String, options: &ListOptions, more: &[(&str, String)]) -> String {
    let mut query = String::new();
    let selectors = [
        ("labelSelector", options.label_selector.clone()),
        ("fieldSelector", options.field_selector.clone()),
    ];
    for (key, value) in selectors.iter().chain(more).filter(|(_, v)| !v.is_empty()) {
        query.push(if query.is_empty() { '?' } else { '&' });
        query += key;
        query.push('=');
        query += &percent_encoded(value);
    }
    path + &query
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawList<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
    metadata: ListMeta,
    kind: &'a str,
    api_version: &'a str,
}

impl RawList<'_> {
    /// An item that says what it is, which built-in kinds leave to their list; `None` where it says so itself.
    fn item(&self, raw: &str) -> Option<Bytes> {
        let mut item: BTreeMap<&str, &RawValue> = serde_json::from_str(raw).ok()?;
        if item.contains_key("kind") {
            return None;
        }
        let kind = to_raw_value(self.kind.strip_suffix("List")?).ok()?;
        let version = to_raw_value(self.api_version).ok()?;
        item.extend([("kind", &*kind), ("apiVersion", &*version)]);
        serde_json::to_vec(&item).ok().map(Bytes::from)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

fn event_of(line: &[u8]) -> Result<Event, ApiError> {
    let raw: RawEvent<'_> = serde_json::from_slice(line).map_err(ApiError::internal)?;
    let object = raw.object.get().as_bytes();
    let kind = match raw.kind {
        "ADDED" => EventKind::Added,
        "MODIFIED" => EventKind::Modified,
        "DELETED" => EventKind::Deleted,
        "BOOKMARK" => EventKind::Bookmark,
        _ => {
            let status: Value = serde_json::from_slice(object).unwrap_or_default();
            let code = status["code"].as_u64().and_then(|c| StatusCode::from_u16(c as u16).ok());
            return Err(error_of(code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), object));
        }
    };
    Ok(Event { kind, object: parse(Bytes::copy_from_slice(object))? })
}

fn events_of(response: Response<Body>) -> EventStream {
    let frames = BodyStream::new(response.into_body());
    let lines =
        futures_util::stream::unfold((frames, BytesMut::new()), |(mut frames, mut buffer)| async move {
            loop {
                if let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                    let line = buffer.split_to(end + 1);
                    return Some((event_of(&line[..end]), (frames, buffer)));
                }
                if buffer.len() > LINE_MAX_BYTES {
                    return None;
                }
                match frames.next().await {
                    Some(Ok(frame)) => {
                        buffer.extend_from_slice(frame.data_ref().map(|d| &d[..]).unwrap_or_default())
                    }
                    Some(Err(error)) => {
                        return Some((Err(unreachable_server(error)), (frames, BytesMut::new())));
                    }
                    None => return None,
                }
            }
        });
    Box::pin(lines)
}

fn delete_body(options: &DeleteOptions) -> Value {
    let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
    if let Some(seconds) = options.grace_period_seconds {
        body["gracePeriodSeconds"] = json!(seconds);
    }
    if let Some(propagation) = options.propagation {
        body["propagationPolicy"] = json!(match propagation {
            Propagation::Orphan => "Orphan",
            Propagation::Background => "Background",
            Propagation::Foreground => "Foreground",
        });
    }
    if let Some(uid) = &options.uid {
        body["preconditions"]["uid"] = json!(uid);
    }
    if let Some(version) = &options.resource_version {
        body["preconditions"]["resourceVersion"] = json!(version);
    }
    body
}

#[async_trait]
impl Client for Remote {
    async fn get(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        parse(self.bytes(Method::GET, &path(gvr, &key.namespace, &key.name, ""), None).await?)
    }

    async fn scale(&self, gvr: &Gvr, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        parse(self.bytes(Method::GET, &path(gvr, &key.namespace, &key.name, "scale"), None).await?)
    }

    async fn list(&self, gvr: &Gvr, options: &ListOptions) -> Result<ObjectList, ApiError> {
        let namespace = options.namespace.as_deref().unwrap_or_default();
        let bytes = self.bytes(Method::GET, &query(path(gvr, namespace, "", ""), options, &[]), None).await?;
        let list: RawList<'_> = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
        let item = |raw: &&RawValue| {
            let own = || bytes.slice_ref(raw.get().as_bytes());
            parse(list.item(raw.get()).unwrap_or_else(own))
        };
        let items = list.items.iter().map(item).collect::<Result<_, _>>()?;
        Ok(ObjectList { items, revision: list.metadata.resource_version.parse().unwrap_or(0) })
    }

    async fn watch(&self, gvr: &Gvr, options: &WatchOptions) -> Result<EventStream, ApiError> {
        let namespace = options.list.namespace.as_deref().unwrap_or_default();
        let mut more = vec![("watch", "true".to_string()), ("allowWatchBookmarks", "true".into())];
        match options.after {
            Some(revision) => more.push(("resourceVersion", revision.to_string())),
            None => {
                more.push(("sendInitialEvents", "true".into()));
                more.push(("resourceVersionMatch", "NotOlderThan".into()));
            }
        }
        let path = query(path(gvr, namespace, "", ""), &options.list, &more);
        Ok(events_of(self.send(Method::GET, &path, None).await?))
    }

    async fn write(&self, write: Write) -> Result<Arc<Object>, ApiError> {
        let Write { gvr, key, subresource, verb } = write;
        let name = match (&verb, subresource) {
            (Verb::Create(_), "") => "",
            _ => &*key.name,
        };
        let path = path(&gvr, &key.namespace, name, subresource);
        const JSON: &str = "application/json";
        let (method, content_type, body) = match verb {
            Verb::Create(body) => (Method::POST, JSON, body),
            Verb::Update(body) => (Method::PUT, JSON, body),
            Verb::Delete(options) => (Method::DELETE, JSON, delete_body(&options)),
            Verb::Patch(PatchKind::Json, body) => (Method::PATCH, "application/json-patch+json", body),
            Verb::Patch(PatchKind::Merge, body) => (Method::PATCH, "application/merge-patch+json", body),
            Verb::Patch(PatchKind::Strategic, body) => {
                (Method::PATCH, "application/strategic-merge-patch+json", body)
            }
            Verb::Patch(PatchKind::Apply, body) => (Method::PATCH, "application/apply-patch+yaml", body),
        };
        parse(self.bytes(method, &path, Some((content_type, body))).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries() {
        assert_eq!(path(&k8s_schema::gvr::PODS, "ns", "p", "status"), "/api/v1/namespaces/ns/pods/p/status");
        assert_eq!(path(&k8s_schema::gvr::DEPLOYMENTS, "", "", ""), "/apis/apps/v1/deployments");
        let options = ListOptions { label_selector: "a in (b,c)".into(), ..ListOptions::default() };
        assert_eq!(
            query("/x".into(), &options, &[("watch", "true".into())]),
            "/x?labelSelector=a%20in%20%28b%2Cc%29&watch=true"
        );
    }

    #[test]
    fn an_error_event_ends_in_the_servers_own_status() {
        let line = br#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#;
        let error = event_of(line).unwrap_err();
        assert_eq!((error.code, error.reason, error.message.as_str()), (410, "Expired", "too old"));
    }
}
