//! Requests that another server answers: an agent (logs, exec, attach, port-forward, node proxy) or a pod.
//!
//! The backend connection is made for one request and never used again, so that a refused upgrade cannot be
//! followed by smuggled requests (CVE-2018-1002105). An upgraded stream is spliced as bytes both ways; which
//! protocol it speaks is the business of its ends. The caller's credentials are not passed on.

use super::respond::{self, Body};
use super::rewrite::Links;
use super::{Inbound, no_upgrade};
use crate::Api;
use crate::config::Duplex;
use crate::path::Query;
use crate::verbs::list::Freshness;
use crate::verbs::{Call, no_such_resource, not_allowed};
use ::http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri, header};
use client::ObjectKey;
use client::remote::percent_encoded;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_schema::gvr;
use machinery::status::ApiError;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A backend that does not take a connection within this time is reported.
const DIAL_MAX: Duration = Duration::from_secs(10);
/// An agent's refusal is a sentence.
const REFUSAL_MAX: usize = 16 << 10;
/// Subresources answered elsewhere.
const PROXIED: [&str; 5] = ["attach", "exec", "log", "portforward", "proxy"];
/// Headers about one connection only, and credentials.
const NOT_PASSED: [HeaderName; 10] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::HOST,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Is this subresource answered by another server?
pub fn is_proxied(call: &Call) -> bool {
    PROXIED.contains(&call.subresource.as_str())
}

/// Where a request goes.
pub(crate) struct Route {
    pub stream: Box<dyn Duplex>,
    pub host: String,
    pub path: String,
}

/// Answers an authorized request on a proxied subresource.
pub async fn answer(
    api: &Arc<Api>,
    inbound: Inbound,
    call: Call,
    rest: &str,
) -> Result<Response<Body>, ApiError> {
    let method = inbound.request.method();
    let allowed = match call.subresource.as_str() {
        "log" => method == Method::GET,
        "proxy" => true,
        _ => method == Method::GET || method == Method::POST,
    };
    if !allowed {
        return Err(not_allowed());
    }
    if call.subresource == "proxy" && rest.is_empty() && (method == Method::GET || method == Method::HEAD) {
        return with_slash(inbound.request.uri());
    }
    admit(api, &call, &inbound.query, rest).await?;
    let links = links(&inbound, &call, rest);
    let route = match (call.resource.name(), call.subresource.as_str()) {
        ("pods", "proxy") => pod_route(api, &call, rest, &inbound).await?,
        ("services", "proxy") => service_route(api, &call, rest, &inbound).await?,
        ("nodes", "proxy") => {
            let (_, node, _) = split_name(&call.key.name);
            let path = with_query(rest, inbound.request.uri().query());
            Route { stream: dial_node(api, node).await?, host: node.to_string(), path }
        }
        ("pods", _) => agent_route(api, &call, &inbound.query).await?,
        _ => return Err(no_such_resource()),
    };
    let answer = forward(inbound.request, route, links).await?;
    if call.subresource == "log" { refused_log(answer).await } else { Ok(answer) }
}

/// Asks admission about a connection; reading logs is none.
async fn admit(api: &Api, call: &Call, query: &Query, rest: &str) -> Result<(), ApiError> {
    let kind = match (call.resource.name(), call.subresource.as_str()) {
        ("pods", "exec") => "PodExecOptions",
        ("pods", "attach") => "PodAttachOptions",
        ("pods", "portforward") => "PodPortForwardOptions",
        ("pods", "proxy") => "PodProxyOptions",
        ("services", "proxy") => "ServiceProxyOptions",
        ("nodes", "proxy") => "NodeProxyOptions",
        _ => return Ok(()),
    };
    let mut options = serde_json::json!({"kind": kind, "apiVersion": "v1"});
    match call.subresource.as_str() {
        "proxy" => options["path"] = rest.into(),
        "portforward" => {
            options["ports"] = query.all("ports").filter_map(|p| p.parse::<u16>().ok()).collect()
        }
        _ => {
            for stream in ["stdin", "stdout", "stderr", "tty"].into_iter().filter(|s| query.flag(s)) {
                options[stream] = true.into();
            }
            if let Some(name) = query.find("container") {
                options["container"] = name.into();
            }
            if call.subresource == "exec" {
                options["command"] = query.all("command").collect();
            }
        }
    }
    // What a webhook would change about it has no effect: the request goes on as it came.
    crate::admission::review_own(api, call, "CONNECT", &mut options).await.map(drop)
}

/// Sends the caller to the proxy's root: without the slash its relative links would lead elsewhere.
fn with_slash(uri: &Uri) -> Result<Response<Body>, ApiError> {
    let target = with_query(&format!("{}/", uri.path()), uri.query());
    let mut out = Response::new(respond::full(""));
    *out.status_mut() = StatusCode::MOVED_PERMANENTLY;
    out.headers_mut().insert(header::LOCATION, target.parse().map_err(ApiError::internal)?);
    Ok(out)
}

/// What must change in the backend's links; nothing where no page is proxied.
fn links(inbound: &Inbound, call: &Call, rest: &str) -> Option<Links> {
    let uri = inbound.request.uri();
    let prefix = uri.path().strip_suffix(rest).filter(|_| call.subresource == "proxy")?;
    let host = uri.authority().map_or_else(|| inbound.header(header::HOST), |a| a.as_str());
    Some(Links { prefix: prefix.into(), hosts: [String::new(), host.into()] })
}

/// Agents refuse in plain text; callers of `log` are promised a Status.
async fn refused_log(answer: Response<Body>) -> Result<Response<Body>, ApiError> {
    let status = answer.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    let mut body = answer.into_body();
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        bytes.extend(frame.into_data().unwrap_or_default());
        if bytes.len() > REFUSAL_MAX {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes).trim().to_string();
    Err(match status {
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::NOT_FOUND => ApiError::new(404, "NotFound", text),
        StatusCode::INTERNAL_SERVER_ERROR => ApiError::internal(text),
        other => ApiError::new(other.as_u16(), "", text),
    })
}

fn unreachable(host: impl Display, error: impl Display) -> ApiError {
    let mut failure =
        ApiError::new(503, "ServiceUnavailable", format!("error trying to reach service: {host}: {error}"));
    failure.retry_after_seconds = 0;
    failure
}

async fn dial_node(api: &Api, node: &str) -> Result<Box<dyn Duplex>, ApiError> {
    let Some(dialer) = &api.config.nodes else {
        return Err(ApiError::new(501, "NotImplemented", "this server has no connection to its nodes"));
    };
    match tokio::time::timeout(DIAL_MAX, dialer.dial(node)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(unreachable(node, error)),
        Err(_) => Err(unreachable(node, "timed out")),
    }
}

async fn dial_tcp(host: &str, port: u16) -> Result<Box<dyn Duplex>, ApiError> {
    // Addresses come from objects and are literal IPs, so nothing is resolved here.
    let address: std::net::IpAddr = host.parse().map_err(|e| unreachable(host, e))?;
    match tokio::time::timeout(DIAL_MAX, TcpStream::connect((address, port))).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(unreachable(host, error)),
        Err(_) => Err(unreachable(host, "timed out")),
    }
}

/// The agent of the pod's node, at the kubelet's path.
async fn agent_route(api: &Api, call: &Call, query: &Query) -> Result<Route, ApiError> {
    let pod = api.get(call, Freshness::Current).await?.value().map_err(ApiError::internal)?;
    let name = &*call.key.name;
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let wanted = query.get("container");
    let place = format!("{}/{}", call.key.namespace, name);
    let path = match call.subresource.as_str() {
        "portforward" => {
            let ports: Vec<String> =
                query.all("ports").map(|p| format!("port={}", percent_encoded(p))).collect();
            with_query(&format!("/portForward/{place}"), Some(&ports.join("&")))
        }
        "log" => {
            let container = container(&pod, name, wanted)?;
            let passed = query.pairs().filter(|(k, _)| *k != "container");
            let passed: Vec<String> =
                passed.map(|(k, v)| format!("{}={}", percent_encoded(k), percent_encoded(v))).collect();
            with_query(&format!("/containerLogs/{place}/{container}"), Some(&passed.join("&")))
        }
        sub => {
            let container = container(&pod, name, wanted)?;
            with_query(&format!("/{sub}/{place}/{container}"), Some(&streams(query)))
        }
    };
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    Ok(Route { stream: dial_node(api, node).await?, host: node.to_string(), path })
}

/// Exec and attach options as the kubelet names them.
fn streams(query: &Query) -> String {
    let mut out: Vec<String> =
        query.all("command").map(|c| format!("command={}", percent_encoded(c))).collect();
    for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if query.flag(ours) {
            out.push(format!("{theirs}=1"));
        }
    }
    out.join("&")
}

/// The container meant: the named one, the only one, or the annotated default.
fn container(pod: &Value, pod_name: &str, wanted: &str) -> Result<String, ApiError> {
    let names = |field: &str| -> Vec<&str> {
        pod["spec"][field].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    let exists = |name: &str| {
        main.contains(&name) || init.contains(&name) || names("ephemeralContainers").contains(&name)
    };
    if !wanted.is_empty() {
        return match exists(wanted) {
            true => Ok(wanted.to_string()),
            false => {
                Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {pod_name}")))
            }
        };
    }
    let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    if let Some(name) = annotated.filter(|n| exists(n)) {
        return Ok(name.to_string());
    }
    match main.as_slice() {
        [only] => Ok((*only).to_string()),
        [] => Err(ApiError::bad_request(format!("a container name must be specified for pod {pod_name}"))),
        many => {
            let mut text = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                many.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::bad_request(text))
        }
    }
}

/// `scheme:name:port`, `name:port` or `name`.
fn split_name(text: &str) -> (&str, &str, &str) {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        [name, port] => ("", name, port),
        [scheme, name, port] => (scheme, name, port),
        _ => ("", text, ""),
    }
}

/// Is TLS asked for? `what` is `pod` or `service`, for the refusal.
fn wants_tls(scheme: &str, what: &str, asked: &str) -> Result<bool, ApiError> {
    match scheme {
        "" | "http" => Ok(false),
        "https" => Ok(true),
        _ => Err(ApiError::bad_request(format!("invalid {what} request {asked:?}"))),
    }
}

/// A pod's or a service's own server; its certificate is not checked, as upstream does not either.
pub(crate) async fn dial_backend(host: &str, port: u16, tls: bool) -> Result<Box<dyn Duplex>, ApiError> {
    let stream = dial_tcp(host, port).await?;
    if !tls {
        return Ok(stream);
    }
    let name = ServerName::try_from(host.to_string()).map_err(|e| unreachable(host, e))?;
    let connector = TlsConnector::from(auth::unchecked_client_config().map_err(ApiError::internal)?);
    match tokio::time::timeout(DIAL_MAX, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(Box::new(stream)),
        Ok(Err(error)) => Err(unreachable(host, error)),
        Err(_) => Err(unreachable(host, "timed out")),
    }
}

async fn pod_route(api: &Api, call: &Call, rest: &str, inbound: &Inbound) -> Result<Route, ApiError> {
    let (scheme, name, port) = split_name(&call.key.name);
    let tls = wants_tls(scheme, "pod", &call.key.name)?;
    let one = Call { key: ObjectKey::new(call.key.namespace.clone(), name), ..call.clone() };
    let pod = api.get(&one, Freshness::Current).await?.value().map_err(ApiError::internal)?;
    let ip = pod["status"]["podIP"].as_str().ok_or_else(|| ApiError::bad_request("address not allowed"))?;
    let first = pod["spec"]["containers"][0]["ports"][0]["containerPort"].as_u64().unwrap_or(80);
    let port = if port.is_empty() { first as u16 } else { port_number(port)? };
    let path = with_query(rest, inbound.request.uri().query());
    Ok(Route { stream: dial_backend(ip, port, tls).await?, host: format!("{ip}:{port}"), path })
}

fn port_number(text: &str) -> Result<u16, ApiError> {
    text.parse().map_err(|_| ApiError::bad_request(format!("invalid port {text:?}")))
}

async fn service_route(api: &Api, call: &Call, rest: &str, inbound: &Inbound) -> Result<Route, ApiError> {
    let (scheme, name, port) = split_name(&call.key.name);
    let tls = wants_tls(scheme, "service", &call.key.name)?;
    let one = Call { key: ObjectKey::new(call.key.namespace.clone(), name), ..call.clone() };
    let service = api.get(&one, Freshness::Current).await?.value().map_err(ApiError::internal)?;
    let none = |what: &str| {
        ApiError::new(503, "ServiceUnavailable", format!("no {what} available for service {name:?}"))
    };
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let wanted = ports.iter().find(|p| {
        port.is_empty() || p["name"] == port || p["port"].as_u64().is_some_and(|n| n.to_string() == port)
    });
    let port_name = wanted.ok_or_else(|| none("such port"))?["name"].as_str().unwrap_or_default().to_string();
    let endpoints =
        api.cached(&gvr::ENDPOINTS, &call.key.namespace, name).ok_or_else(|| none("endpoints"))?;
    let endpoints = endpoints.value().map_err(ApiError::internal)?;
    let target = endpoints["subsets"].as_array().into_iter().flatten().find_map(|subset| {
        let port = subset["ports"]
            .as_array()?
            .iter()
            .find(|p| p["name"].as_str().unwrap_or_default() == port_name)?;
        let ip = subset["addresses"][0]["ip"].as_str()?;
        Some((ip.to_string(), u16::try_from(port["port"].as_u64()?).ok()?))
    });
    let (ip, port) = target.ok_or_else(|| none("endpoints"))?;
    let path = with_query(rest, inbound.request.uri().query());
    Ok(Route { stream: dial_backend(&ip, port, tls).await?, host: format!("{ip}:{port}"), path })
}

pub(crate) fn with_query(path: &str, query: Option<&str>) -> String {
    let path = if path.is_empty() { "/" } else { path };
    match query {
        Some(query) if !query.is_empty() => format!("{path}?{query}"),
        _ => path.to_string(),
    }
}

/// The protocol that the client wants to switch to.
fn wanted_upgrade(headers: &HeaderMap) -> Option<&str> {
    let connection = super::header_text(headers, header::CONNECTION);
    let asks = connection.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade"));
    Some(super::header_text(headers, header::UPGRADE)).filter(|u| asks && !u.is_empty())
}

fn passed_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        if !NOT_PASSED.contains(name) {
            to.append(name, value.clone());
        }
    }
}

pub(crate) async fn forward(
    mut request: Request<Incoming>,
    route: Route,
    links: Option<Links>,
) -> Result<Response<Body>, ApiError> {
    let upgrade = wanted_upgrade(request.headers()).map(str::to_string);
    let caller = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let host = route.host.clone();
    let failed = move |error: hyper::Error| unreachable(&host, error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(route.stream)).await.map_err(&failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let (parts, body) = request.into_parts();
    let mut outbound =
        Request::builder().method(parts.method).uri(&route.path).header(header::HOST, &route.host);
    if let Some(headers) = outbound.headers_mut() {
        passed_headers(&parts.headers, headers);
        if links.is_some() {
            headers.insert("x-forwarded-uri", parts.uri.path().parse().map_err(ApiError::internal)?);
        }
        if let Some(protocol) = &upgrade {
            headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, protocol.parse().map_err(ApiError::internal)?);
        }
    }
    let outbound = outbound.body(body).map_err(ApiError::internal)?;
    let links = links.map(|mut links| {
        links.hosts[0] = route.host;
        links
    });
    let response = sender.send_request(outbound).await.map_err(&failed)?;
    match caller {
        Some(caller) if response.status() == StatusCode::SWITCHING_PROTOCOLS => splice(caller, response),
        // A refused upgrade: its answer goes back, the backend connection is not used again.
        _ if response.status() == StatusCode::SWITCHING_PROTOCOLS => Err(no_upgrade()),
        _ => Ok(pass_back(response, links)),
    }
}

fn pass_back(response: Response<Incoming>, links: Option<Links>) -> Response<Body> {
    let response = match links {
        Some(links) => links.apply(response),
        None => response.map(|body| {
            body.map_err(|e| Box::new(e) as Box<dyn std::error::Error + Send + Sync>).boxed_unsync()
        }),
    };
    let (parts, body) = response.into_parts();
    let mut out = Response::new(body);
    *out.status_mut() = parts.status;
    passed_headers(&parts.headers, out.headers_mut());
    out
}

/// Answers 101 and joins both connections until one ends.
fn splice(
    caller: hyper::upgrade::OnUpgrade,
    mut response: Response<Incoming>,
) -> Result<Response<Body>, ApiError> {
    let backend = hyper::upgrade::on(&mut response);
    let mut out = Response::new(respond::full(""));
    *out.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in response.headers() {
        if name != header::TRANSFER_ENCODING && name != header::CONTENT_LENGTH {
            out.headers_mut().append(name, value.clone());
        }
    }
    tokio::spawn(async move {
        let (caller, backend) = match tokio::try_join!(caller, backend) {
            Ok(both) => both,
            Err(error) => {
                tracing::debug!(%error, "an upgrade failed");
                return;
            }
        };
        let (mut caller, mut backend) = (TokioIo::new(caller), TokioIo::new(backend));
        if let Err(error) = tokio::io::copy_bidirectional(&mut caller, &mut backend).await {
            tracing::debug!(%error, "a spliced stream ended");
        }
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers_default_as_kubectl_expects() {
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(
            container(&two, "p", "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&two, "p", "i").unwrap(), "i");
        assert_eq!(container(&two, "p", "x").unwrap_err().message, "container x is not valid for pod p");
        let mut annotated = two.clone();
        annotated["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] = json!("b");
        assert_eq!(container(&annotated, "p", "").unwrap(), "b");
        assert_eq!(container(&json!({"spec": {"containers": [{"name": "a"}]}}), "p", "").unwrap(), "a");
    }

    #[test]
    fn exec_options_become_the_kubelets() {
        let query =
            Query::parse("command=sh&command=-c&command=a%20b&stdin=true&stdout=true&tty=false&container=x");
        assert_eq!(streams(&query), "command=sh&command=-c&command=a%20b&input=1&output=1");
        assert_eq!(split_name("https:web:443"), ("https", "web", "443"));
        assert_eq!(split_name("web:http"), ("", "web", "http"));
    }
}
