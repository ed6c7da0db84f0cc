//! Hands a request on to the server that serves its group version.
//!
//! The caller is already known and authorized here; the other server is told who it is by front-proxy headers over a
//! connection that shows our front-proxy certificate. A redirect is not passed on: it could lead the caller's
//! credentials anywhere (CVE-2022-3172).

use super::{Remote, target};
use crate::Api;
use crate::http::Inbound;
use crate::http::proxy::{Route, forward};
use crate::http::respond::{self, Body};
use crate::path::Path;
use ::http::{Response, StatusCode, header};
use auth::Identity;
use machinery::status::ApiError;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Discovery must not wait long for one server of many.
const DISCOVERY_MAX: Duration = Duration::from_secs(5);
const TEXT: &str = "text/plain; charset=utf-8";

/// Answers by asking the other server.
pub async fn answer(
    api: &Arc<Api>,
    mut inbound: Inbound,
    path: &Path,
    remote: &Remote,
) -> Result<Response<Body>, ApiError> {
    let unavailable = || respond::raw(503, TEXT, respond::full("service unavailable\n"));
    if !remote.available {
        return Ok(unavailable());
    }
    let stream = match api.dial_extension(&remote.target).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::info!(service = remote.name, error, "an extension server could not be reached");
            return Ok(unavailable());
        }
    };
    target::set_identity(inbound.request.headers_mut(), &inbound.identity);
    let uri = inbound.request.uri();
    let route = Route {
        stream,
        host: remote.target.host(),
        path: uri.path_and_query().map_or_else(|| uri.path().to_string(), ToString::to_string),
    };
    let forwarded = forward(inbound.request, route, None);
    let answered = match path {
        Path::Resource(_) => forwarded.await,
        Path::Other(_) => match tokio::time::timeout(DISCOVERY_MAX, forwarded).await {
            Ok(answered) => answered,
            Err(_) => return Ok(unavailable()),
        },
    }?;
    Ok(without_redirect(answered))
}

impl Api {
    /// What the other server answers a component of this process that reads; its failures in its words.
    pub(crate) async fn ask_remote(
        &self,
        identity: &Identity,
        remote: &Remote,
        path: &str,
    ) -> Result<Value, ApiError> {
        let unavailable = |why: String| ApiError::new(503, "ServiceUnavailable", why);
        if !remote.available {
            return Err(unavailable("the server is currently unable to handle the request".into()));
        }
        let answer = self.ask_extension_as(identity, &remote.target, path, "").await.map_err(unavailable)?;
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if (200..300).contains(&answer.code) {
            return Ok(body);
        }
        let message = body["message"]
            .as_str()
            .map_or_else(|| format!("the server answered {path} with {}", answer.code), ToString::to_string);
        let reason = if answer.code == 404 { "NotFound" } else { "" };
        Err(ApiError::new(answer.code, reason, message))
    }
}

fn without_redirect(answer: Response<Body>) -> Response<Body> {
    if !answer.status().is_redirection() || !answer.headers().contains_key(header::LOCATION) {
        return answer;
    }
    let text = "the backend attempted to redirect this request, which is not permitted";
    respond::raw(StatusCode::BAD_GATEWAY.as_u16(), TEXT, respond::full(text))
}
