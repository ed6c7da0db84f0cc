//! Paths that are about no resource: health, version, metrics, discovery, OpenAPI, the index.

use super::respond::{self, Body, Wishes};
use super::{Inbound, body, zpages};
use crate::Api;
use crate::aggregation;
use crate::discovery::{self, Form, Root};
use crate::openapi::Document;
use crate::resources::Registry;
use crate::verbs::{no_such_resource, not_allowed};
use ::http::{HeaderValue, Method, Response, header};
use k8s_schema::{ResourceRow, gates, gvr};
use machinery::status::ApiError;
use serde_json::{Value, json};
use std::sync::Arc;

/// The health checks by name; each is a look at something that can really fail.
type Check = (&'static str, fn(&Api) -> bool);
const CHECKS: [Check; 5] = [
    ("ping", |_| true),
    ("log", |_| true),
    ("etcd", filled),
    ("informer-sync", filled),
    ("shutdown", |api| !*api.closing().borrow()),
];

/// What upstream starts by hooks: ours is there as soon as the cache is filled.
const HOOKS: [&str; 18] = [
    "poststarthook/start-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/storage-readiness",
    "poststarthook/start-apiextensions-informers",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/start-service-ip-repair-controllers",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/start-cluster-authentication-info-controller",
    "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-registration-controller",
    "poststarthook/apiservice-status-local-available-controller",
    "poststarthook/apiservice-status-remote-available-controller",
    "poststarthook/kube-apiserver-autoregistration",
    "autoregister-completion",
    "poststarthook/apiservice-openapi-controller",
];

fn filled(api: &Api) -> bool {
    api.storage.cache.revision() > 0
}

fn checks() -> impl Iterator<Item = Check> {
    let hooks = HOOKS.into_iter().map(|name| (name, filled as fn(&Api) -> bool));
    CHECKS.into_iter().chain(hooks)
}

/// A batch of log lines (512 KiB of text at most) as JSON, where every character may take six.
const DOOR_BODY_MAX: usize = 8 << 20;

/// Asks the door, which authorizes.
pub async fn ask(door: &dyn crate::Door, path: &str, inbound: Inbound) -> Result<Response<Body>, ApiError> {
    if *inbound.request.method() != Method::POST {
        return Err(not_allowed());
    }
    let wishes = inbound.wishes();
    let body = body::read_up_to(DOOR_BODY_MAX, inbound.request).await?;
    let input = serde_json::from_slice(&body).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let answer = door.answer(&inbound.identity, path, input).await?;
    Ok(respond::json_value(200, "application/json", &answer, wishes))
}

/// Answers an authorized request.
pub async fn answer(api: &Arc<Api>, inbound: &Inbound, path: &str) -> Result<Response<Body>, ApiError> {
    if !matches!(*inbound.request.method(), Method::GET | Method::HEAD) {
        return Err(not_allowed());
    }
    let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    let wishes = inbound.wishes();
    let json = |value: Value| Ok(respond::json_value(200, "application/json", &value, wishes));
    let registry = api.registry.now();
    match segments.as_slice() {
        [] => json(json!({"paths": index(api)})),
        ["healthz" | "livez" | "readyz", rest @ ..] => health(api, inbound, segments[0], rest),
        ["version"] => json(version()),
        ["metrics"] => {
            let text = api.metrics.text(&api.storage.cache)
                + &api.audit.as_ref().map(|a| a.metrics()).unwrap_or_default()
                + &api.fairness.metrics()
                + &crate::metrics::features(&api.config.gates)
                + &(api.config.more_metrics)();
            Ok(respond::raw(200, "text/plain; version=0.0.4; charset=utf-8", respond::full(text)))
        }
        ["metrics", "resources"] => {
            let text = crate::metrics::resources::text(&api.cached_all(&gvr::PODS));
            Ok(respond::raw(200, "text/plain; version=0.0.4; charset=utf-8", respond::full(text)))
        }
        ["metrics", "slis"] => {
            let text = respond::full(api.metrics.slis());
            Ok(respond::raw(200, "text/plain; version=0.0.4; charset=utf-8", text))
        }
        ["statusz"] if api.config.gates.on(gates::COMPONENT_STATUSZ) => {
            zpages::status(api, inbound, &index(api))
        }
        ["flagz"] if api.config.gates.on(gates::COMPONENT_FLAGZ) => zpages::flags(api, inbound),
        ["api"] => root(api, inbound, Root::Core).await,
        ["apis"] => root(api, inbound, Root::Groups).await,
        ["apis", group] => {
            let own = discovery::group(&rows(&registry), group);
            json(
                aggregation::discovery::group(own, &api.aggregator.now(), group)
                    .ok_or_else(no_such_resource)?,
            )
        }
        ["api", version] => {
            json(discovery::resource_list(&rows(&registry), "", version).ok_or_else(no_such_resource)?)
        }
        ["apis", group, version] => {
            json(discovery::resource_list(&rows(&registry), group, version).ok_or_else(no_such_resource)?)
        }
        ["openapi", ..] => openapi(api, inbound, path).await,
        [".well-known", "openid-configuration"] => match &api.config.service_tokens {
            Some(tokens) => json(tokens.discovery()),
            None => Err(no_such_resource()),
        },
        ["openid", "v1", "jwks"] => match &api.config.service_tokens {
            Some(tokens) => Ok(respond::json_value(200, "application/jwk-set+json", &tokens.jwks(), wishes)),
            None => Err(no_such_resource()),
        },
        _ => Err(no_such_resource()),
    }
}

/// What is served now; keeps the rows alive that [`rows`] borrows.
fn rows(registry: &Registry) -> Vec<&ResourceRow> {
    registry.all().map(|r| &*r.row).collect()
}

fn index(api: &Api) -> Vec<String> {
    let registry = api.registry.now();
    let mut paths = vec!["/api".to_string(), "/api/v1".into(), "/apis".into()];
    for row in rows(&registry).into_iter().filter(|r| !r.gvr.group.is_empty()) {
        paths.push(format!("/apis/{}", row.gvr.group));
        paths.push(format!("/apis/{}", row.api_version()));
    }
    if api.config.service_tokens.is_some() {
        paths.extend(["/.well-known/openid-configuration".into(), auth::tokens::JWKS_PATH.into()]);
    }
    for (gate, path) in [(gates::COMPONENT_FLAGZ, "/flagz"), (gates::COMPONENT_STATUSZ, "/statusz")] {
        if api.config.gates.on(gate) {
            paths.push(path.into());
        }
    }
    for fixed in [
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/resources",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ] {
        paths.push(fixed.into());
    }
    paths.sort();
    paths.dedup();
    paths
}

async fn root(api: &Arc<Api>, inbound: &Inbound, root: Root) -> Result<Response<Body>, ApiError> {
    let form = Form::negotiate(inbound.header(header::ACCEPT));
    let (registry, remotes) = (api.registry.now(), api.listed_remotes());
    if (root, form) == (Root::Core, Form::Plain) {
        let value = discovery::api_versions(&rows(&registry), inbound.header(header::HOST));
        return Ok(respond::json_value(200, form.content_type(), &value, inbound.wishes()));
    }
    let own = api.clone();
    // Thousands of custom kinds take a while.
    let made = tokio::task::spawn_blocking(move || {
        own.discovery.get(&registry, &remotes, (root, form), || {
            let rows = rows(&registry);
            let mut value = match form {
                Form::Plain => discovery::group_list(&rows),
                _ => discovery::aggregated(&rows, root, form),
            };
            if form == Form::Plain {
                aggregation::discovery::add_to_list(&mut value, &remotes);
            }
            aggregation::discovery::add_to_aggregated(&mut value, &remotes, root, form);
            value
        })
    });
    document(inbound, made.await.map_err(ApiError::internal)?).await
}

async fn openapi(api: &Arc<Api>, inbound: &Inbound, path: &str) -> Result<Response<Body>, ApiError> {
    let (own, asked, accept) = (api.clone(), path.to_string(), inbound.header(header::ACCEPT).to_string());
    // The first request for a document builds it, which takes a while.
    let built = tokio::task::spawn_blocking(move || own.documents().get(&asked, &accept)).await;
    let built = built.map_err(ApiError::internal)?.map_err(|_| super::negotiate::not_acceptable())?;
    document(inbound, joined(api, path, built.ok_or_else(no_such_resource)?)).await
}

/// Answers with a document that is kept: not at all where the client has it, packed once for all.
async fn document(inbound: &Inbound, document: Document) -> Result<Response<Body>, ApiError> {
    let etag = HeaderValue::from_str(&document.etag).map_err(ApiError::internal)?;
    let known = inbound.header(header::IF_NONE_MATCH).split(',').any(|t| t.trim() == document.etag);
    let wishes = inbound.wishes();
    let mut response = if known {
        respond::raw(304, document.content_type, respond::full(""))
    } else if wishes.gzip && document.body.len() >= respond::GZIP_MIN {
        let content_type = document.content_type;
        let packed = tokio::task::spawn_blocking(move || document.packed()).await;
        respond::packed(content_type, packed.map_err(ApiError::internal)?)
    } else {
        let wishes = Wishes { pretty: wishes.pretty && document.body.len() < respond::GZIP_MIN, gzip: false };
        respond::json_bytes(200, document.content_type, document.body, wishes)
    };
    response.headers_mut().insert(header::ETAG, etag);
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

/// The index of v3 documents names other servers' too.
fn joined(api: &Api, path: &str, document: Document) -> Document {
    let remotes = api.aggregator.now();
    if path.trim_end_matches('/') != "/openapi/v3" || remotes.values().all(|r| r.v3.is_none()) {
        return document;
    }
    let Ok(mut index) = serde_json::from_slice::<Value>(&document.body) else { return document };
    aggregation::discovery::add_to_v3(&mut index, &remotes);
    Document::json(&index)
}

fn health(api: &Api, inbound: &Inbound, probe: &str, rest: &[&str]) -> Result<Response<Body>, ApiError> {
    let text =
        |code: u16, text: String| Ok(respond::raw(code, "text/plain; charset=utf-8", respond::full(text)));
    if !rest.is_empty() {
        let wanted = rest.join("/");
        let check = checks().find(|(name, _)| *name == wanted).ok_or_else(no_such_resource)?;
        let good = (check.1)(api);
        api.metrics.checked_health(check.0, probe, good);
        let failed = || format!("internal server error: {} failed: reason withheld\n", check.0);
        return if good { text(200, "ok".into()) } else { text(500, failed()) };
    }
    let excluded: Vec<&str> = inbound.query.all("exclude").collect();
    let mut report = String::new();
    let mut failed = false;
    for (name, check) in checks() {
        let excluded = excluded.contains(&name);
        let good = excluded || check(api);
        if !excluded {
            api.metrics.checked_health(name, probe, good);
        }
        let line = match (excluded, good) {
            (true, _) => format!("[+]{name} excluded: ok\n"),
            (false, true) => format!("[+]{name} ok\n"),
            (false, false) => {
                failed = true;
                format!("[-]{name} failed: reason withheld\n")
            }
        };
        report.push_str(&line);
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|name| !checks().any(|(n, _)| n == **name))
        .map(|name| format!("{name:?}"))
        .collect();
    if !unknown.is_empty() {
        let all = unknown.join(", ");
        report.push_str(&format!("warn: some health checks cannot be excluded: no matches for {all}\n"));
    }
    match (failed, inbound.query.find("verbose").is_some()) {
        (true, _) => text(500, format!("{report}{probe} check failed\n")),
        (false, true) => text(200, format!("{report}{probe} check passed\n")),
        (false, false) => text(200, "ok".into()),
    }
}

/// An architecture as Go names it.
fn go_arch(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36",
        "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": concat!("v1.36.0+gantry", env!("CARGO_PKG_VERSION")),
        "gitCommit": option_env!("GANTRY_COMMIT").unwrap_or_default(), "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": machinery::zpages::COMPILER, "compiler": "rustc",
        "platform": format!("linux/{}", go_arch(std::env::consts::ARCH)),
    })
}
