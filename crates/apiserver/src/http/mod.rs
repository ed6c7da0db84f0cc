//! HTTP: from a request to an answer.
//!
//! [`handle`] authenticates, authorizes, routes, counts, and turns every failure (a panic too) into a Status.
//! Deliberately not here: sockets (`serve`), what verbs do (`verbs`).

mod body;
mod impersonate;
mod meta;
mod negotiate;
pub(crate) mod proxy;
mod requests;
pub(crate) mod respond;
mod rewrite;
mod serve;
mod watch;
mod zpages;

use crate::Api;
use crate::aggregation;
use crate::audit;
use crate::authn;
use crate::authz::Attributes;
use crate::fairness::{self, Class};
use crate::metrics::{Finished, RequestKind, verb_name};
use crate::path::{self, Path, Query, ResourcePath};
use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use auth::Identity;
use futures_util::FutureExt;
use hyper::body::{Body as _, Incoming};
use k8s_schema::Gvr;
use machinery::status::ApiError;
use respond::{Body, Wishes};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::time::Instant;

/// One request, read as far as every handler needs it.
pub(crate) struct Inbound {
    /// The caller.
    pub identity: Arc<Identity>,
    /// The parameters.
    pub query: Query,
    /// The request itself.
    pub request: Request<Incoming>,
}

impl Inbound {
    /// A header's text; "" when absent or not text.
    pub fn header(&self, name: HeaderName) -> &str {
        header_text(self.request.headers(), name)
    }

    /// What the client said about the shape of the answer.
    pub fn wishes(&self) -> Wishes {
        let gzip = self.header(header::ACCEPT_ENCODING).split(',').any(|e| {
            let mut parts = e.split(';').map(str::trim);
            parts.next() == Some("gzip") && !parts.any(|p| matches!(p, "q=0" | "q=0.0"))
        });
        let browser =
            ["curl", "Wget", "Mozilla/5.0"].iter().any(|a| self.header(header::USER_AGENT).starts_with(a));
        let pretty = if self.query.find("pretty").is_some() { self.query.flag("pretty") } else { browser };
        Wishes { gzip, pretty }
    }
}

/// A backend switched protocols although nobody asked it to.
fn no_upgrade() -> ApiError {
    ApiError::new(500, "InternalError", "the backend switched protocols without being asked")
}

fn header_text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

/// Who the other end of a connection is, as far as TLS knows.
#[derive(Clone)]
pub(crate) enum Peer {
    /// It showed no certificate.
    Unknown,
    /// A certificate's holder.
    Known(Arc<Identity>),
    /// A server that speaks for others, by headers.
    FrontProxy,
}

/// Answers one request. `peer` is who the TLS certificate says is calling.
pub(crate) async fn handle(api: Arc<Api>, peer: Peer, mut request: Request<Incoming>) -> Response<Body> {
    let started = Instant::now();
    let path = path::parse(request.uri().path());
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let verb = verb_of(&request, &path, &query);
    let kind = request_kind(&api, &path, &verb, (&request, &query));
    let attributes = attributes(&path, &verb, request.method().as_str());
    let attributes = match verb.as_str() {
        "list" | "watch" | "deletecollection" => {
            attributes.selecting(query.get("fieldSelector"), query.get("labelSelector"))
        }
        _ => attributes,
    };
    let record = api.audit.as_ref().map(|audit| audit.begin(&request));
    let long = is_long(&path, &verb, &query);
    let yaml =
        !long && is_own(&api, &path) && negotiate::wants_yaml(header_text(request.headers(), header::ACCEPT));
    if yaml {
        // The answer is read once more.
        request.headers_mut().remove(header::ACCEPT_ENCODING);
    }
    let _running = api.metrics.running(!matches!(verb.as_str(), "get" | "list" | "watch"), long);
    // A watch's answer outlives this function, and counts itself.
    let _lasting = (long && verb != "watch").then(|| api.metrics.lasting(&kind));
    let mut class = Class::default();
    // On the heap: the wrappers around it would each move its many kilobytes.
    let work = Box::pin(answer(
        &api,
        peer,
        Inbound { identity: Arc::default(), query, request },
        (path, attributes),
        &mut class,
    ));
    let work = AssertUnwindSafe(work).catch_unwind();
    let (mut response, error) = match audit::scope(record.clone(), work).await {
        Ok(Ok(response)) => (response, None),
        Ok(Err(error)) => (respond::error(&error), Some(error)),
        Err(_) => {
            tracing::error!(verb, "a handler panicked");
            let message = "This request caused apiserver to panic. Look in the logs for details.";
            if let Some(record) = &record {
                record.panicked().await;
            }
            (respond::error(&ApiError::new(500, "InternalError", message)), None)
        }
    };
    mark_class(&mut response, &class);
    if verb == "watch" && response.status().is_success() {
        response = respond::held(response, api.metrics.lasting(&kind));
    }
    let size =
        response.extensions().get::<respond::Size>().map(|s| s.0).or(response.body().size_hint().exact());
    let done = Finished { code: response.status().as_u16(), took: started.elapsed(), size };
    api.metrics.finished(kind, long, &done);
    if let Some(record) = record {
        response = record.answered(response, error.as_ref(), long).await;
    }
    if yaml { respond::as_yaml(response).await } else { response }
}

/// Is the answer an object of this server?
fn is_own(api: &Api, path: &Path) -> bool {
    let object = match path {
        Path::Resource(_) => true,
        Path::Other(path) => path.starts_with("/api"),
    };
    object && api.aggregator.route(path).is_none()
}

/// Does the answer last as long as its reader likes?
fn is_long(path: &Path, verb: &str, query: &Query) -> bool {
    let Path::Resource(path) = path else { return false };
    match path.subresource.as_str() {
        "exec" | "attach" | "portforward" | "proxy" => true,
        "log" => query.flag("follow"),
        _ => verb == "watch",
    }
}

async fn answer(
    api: &Arc<Api>,
    peer: Peer,
    mut inbound: Inbound,
    (path, attributes): (Path, Attributes),
    class: &mut Class,
) -> Result<Response<Body>, ApiError> {
    let record = audit::current();
    let long = is_long(&path, &attributes.verb, &inbound.query);
    check_timeout(inbound.query.get("timeout"), long)?;
    let caller = match authn::authenticate(api, peer, &inbound).await {
        Ok(caller) => {
            api.metrics.authenticated(true);
            caller
        }
        Err(error) => {
            api.metrics.authenticated(false);
            if let Some(record) = &record {
                record.known(&Identity::default(), &attributes).await;
            }
            return Err(error);
        }
    };
    if let Some(record) = &record
        && record.known(&caller, &attributes).await == audit::Level::RequestResponse
    {
        // The answer is read for the record.
        inbound.request.headers_mut().remove(header::ACCEPT_ENCODING);
    }
    let acting = impersonate::apply(api, &caller, inbound.request.headers(), &attributes).await?;
    inbound.identity = acting.as_ref().map_or_else(|| caller.clone(), |acting| acting.identity.clone());
    let identity = inbound.identity.clone();
    let limited = attributes.verb == "watch" || !long;
    let _seat = match limited {
        true => {
            let (seen, seat) =
                api.fairness.admit(&identity, &attributes, || seats(api, &attributes, &inbound.query)).await;
            *class = seen;
            seat?
        }
        false => None,
    };
    if let (Path::Other(path), Some(door)) = (&path, &api.config.door)
        && let Some(path) = path.strip_prefix(crate::DOOR)
    {
        return meta::ask(door.as_ref(), path, inbound).await;
    }
    let allowed = api.authorize(&inbound.identity, &attributes).await;
    api.metrics.authorized(allowed.is_ok());
    if let Some(record) = &record {
        if let Some(acting) = &acting {
            record.impersonating(&acting.identity, &acting.constraint);
        }
        record.authorized(allowed.is_ok(), &api.authorizer.explain(&inbound.identity, &attributes));
    }
    allowed?;
    if let Some(remote) = api.aggregator.route(&path) {
        return aggregation::proxy::answer(api, inbound, &path, &remote).await;
    }
    if let Some(answered) = api.answer_figures(&inbound, &path).await {
        return answered;
    }
    match path {
        Path::Resource(path) => requests::answer(api, inbound, path, &attributes.verb).await,
        Path::Other(path) => meta::answer(api, &inbound, &path).await,
    }
}

/// How long a client will wait: a duration in Go's notation. What lasts as long as its reader likes ignores it.
fn check_timeout(text: &str, long: bool) -> Result<(), ApiError> {
    if long || text.is_empty() || machinery::cel::duration(text).is_some() {
        return Ok(());
    }
    let unit = if text.bytes().all(|b| b.is_ascii_digit()) { "missing unit in" } else { "invalid" };
    let why = format!("invalid timeout specified in the request URL - time: {unit} duration {text:?}");
    Err(ApiError::bad_request(why))
}

/// What a request weighs: a list by its objects.
fn seats(api: &Api, attributes: &Attributes, query: &Query) -> u32 {
    if attributes.verb != "list" {
        return 1;
    }
    let gvr = Gvr {
        group: attributes.group.clone().into(),
        version: attributes.version.clone().into(),
        resource: attributes.resource.clone().into(),
    };
    let most = query.get("limit").parse().ok().filter(|n| *n > 0).unwrap_or(usize::MAX);
    fairness::list_seats(api.cached_all(&gvr).len().min(most))
}

/// Tells a client how its request was sorted.
fn mark_class(response: &mut Response<Body>, class: &Class) {
    for (name, uid) in [
        ("x-kubernetes-pf-flowschema-uid", &class.schema_uid),
        ("x-kubernetes-pf-prioritylevel-uid", &class.level_uid),
    ] {
        if let Some(uid) = HeaderValue::from_str(uid).ok().filter(|uid| !uid.is_empty()) {
            response.headers_mut().insert(HeaderName::from_static(name), uid);
        }
    }
}

/// The API verb of a request; for other paths the lower-case method.
fn verb_of(request: &Request<Incoming>, path: &Path, query: &Query) -> String {
    let method = request.method().as_str();
    let Path::Resource(path) = path else { return method.to_lowercase() };
    let verb = match method {
        "GET" | "HEAD" if path.watch => "watch",
        "GET" | "HEAD" if !path.name.is_empty() => "get",
        "GET" | "HEAD" if query.flag("watch") => "watch",
        "GET" | "HEAD" => "list",
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" if path.name.is_empty() => "deletecollection",
        "DELETE" => "delete",
        _ => "",
    };
    verb.to_string()
}

fn attributes(path: &Path, verb: &str, method: &str) -> Attributes {
    match path {
        Path::Resource(p) => Attributes {
            verb: verb.to_string(),
            group: p.group.clone(),
            version: p.version.clone(),
            resource: p.resource.clone(),
            subresource: p.subresource.clone(),
            namespace: p.namespace.clone(),
            name: p.name.clone(),
            ..Attributes::default()
        },
        Path::Other(p) => Attributes {
            verb: method.to_lowercase().replace("head", "get"),
            path: p.clone(),
            ..Attributes::default()
        },
    }
}

fn request_kind(
    api: &Api,
    path: &Path,
    verb: &str,
    (request, query): (&Request<Incoming>, &Query),
) -> RequestKind {
    let scope = match path {
        Path::Resource(p) if !p.name.is_empty() || verb == "create" => "resource",
        Path::Resource(p) if !p.namespace.is_empty() => "namespace",
        Path::Resource(_) => "cluster",
        Path::Other(_) => "",
    };
    let known = |p: &&ResourcePath| {
        // What nobody serves is one row, whatever clients call it.
        api.registry.now().serves(&p.group, &p.version, &p.resource) || api.aggregator.route(path).is_some()
    };
    let (group, version, resource, subresource) = match path {
        Path::Resource(p) => Some(p)
            .filter(known)
            .map(|p| (p.group.clone(), p.version.clone(), p.resource.clone(), p.subresource.clone()))
            .unwrap_or_default(),
        Path::Other(_) => Default::default(),
    };
    let applies =
        verb == "patch" && header_text(request.headers(), header::CONTENT_TYPE).starts_with(body::APPLY);
    let verb = if applies { "APPLY".into() } else { verb_name(verb) };
    let dry_run = if query.get("dryRun") == "All" { "All" } else { "" };
    RequestKind { verb, group, version, resource, subresource, scope, dry_run }
}
