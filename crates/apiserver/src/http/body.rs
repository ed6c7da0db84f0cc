//! Request bodies: bounded, of a known type, parsed.

use super::negotiate::{self, Format};
use ::http::{Request, header};
use bytes::Bytes;
use client::PatchKind;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use machinery::body::{Body, Repeats};
use machinery::status::ApiError;
use serde_json::Value;
use std::time::Duration;

/// Largest request body, as upstream: what etcd takes, twice.
pub const BODY_MAX: usize = 3 << 20;

/// A body that takes longer to arrive is given up (upstream's request timeout).
const BODY_WAIT_MAX: Duration = Duration::from_secs(60);

fn too_large(max: usize) -> ApiError {
    let message = format!("Request entity too large: limit is {max}");
    ApiError::new(413, "RequestEntityTooLarge", message)
}

/// Reads the whole body.
pub async fn read(request: Request<Incoming>) -> Result<Bytes, ApiError> {
    read_up_to(BODY_MAX, request).await
}

/// The same with another limit, in bytes.
pub async fn read_up_to(max: usize, request: Request<Incoming>) -> Result<Bytes, ApiError> {
    let declared =
        super::header_text(request.headers(), header::CONTENT_LENGTH).parse::<usize>().unwrap_or(0);
    if declared > max {
        return Err(too_large(max));
    }
    let body = Limited::new(request.into_body(), max).collect();
    let Ok(body) = tokio::time::timeout(BODY_WAIT_MAX, body).await else {
        return Err(ApiError::new(408, "Timeout", "the request's body did not arrive in time"));
    };
    match body {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large(max)),
        Err(error) => Err(ApiError::bad_request(format!("reading the body: {error}"))),
    }
}

/// Reads and parses an object, which should be of this kind.
pub async fn object(request: Request<Incoming>, kind: &str) -> Result<Body, ApiError> {
    let content_type = super::header_text(request.headers(), header::CONTENT_TYPE).to_string();
    let format = negotiate::format(&content_type)?;
    let bytes = read(request).await?;
    let body = parse(format, &bytes).map_err(|error| unrecognized(&error, kind, &bytes))?;
    crate::audit::request_object(&body.value);
    Ok(body)
}

/// How much of a body that nobody understands is told.
const SUMMARY_MAX: usize = 30;

/// Of a body that is no document at all its beginning is told: JSON as it is, else as bytes.
fn unrecognized(error: &ApiError, kind: &str, bytes: &[u8]) -> ApiError {
    let begin = &bytes[..bytes.len().min(SUMMARY_MAX)];
    let more = if begin.len() < bytes.len() { " ..." } else { "" };
    let begin = match bytes.first() {
        None => "<empty>".into(),
        Some(b'{') => String::from_utf8_lossy(begin).into_owned(),
        Some(_) => begin.iter().map(|b| format!("{b:02x}")).collect(),
    };
    let words = &error.message;
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {words} ({begin}{more})"
    ))
}

/// Reads and parses an optional object; an empty body is null.
pub async fn optional(request: Request<Incoming>) -> Result<Value, ApiError> {
    let content_type = super::header_text(request.headers(), header::CONTENT_TYPE).to_string();
    let bytes = read(request).await?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let value = parse(negotiate::format(&content_type)?, &bytes)?.value;
    crate::audit::request_object(&value);
    Ok(value)
}

fn parse(format: Format, bytes: &[u8]) -> Result<Body, ApiError> {
    match format {
        Format::Json => machinery::body::json(bytes),
        Format::Yaml => machinery::body::yaml(bytes),
        // Every field comes once or is merged: there are no duplicates to tell.
        Format::Protobuf => {
            Ok(Body { value: machinery::protobuf::object(bytes)?, duplicates: Repeats::default() })
        }
    }
}

/// What an applied configuration is sent as: YAML, which JSON is too.
pub const APPLY: &str = "application/apply-patch+yaml";

const PATCH_TYPES: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";

const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Reads and parses a patch; custom resources know no strategic ones.
pub async fn patch(request: Request<Incoming>, strategic: bool) -> Result<(PatchKind, Body), ApiError> {
    let content_type = super::header_text(request.headers(), header::CONTENT_TYPE).to_string();
    let kind = match negotiate::media_type(&content_type) {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        STRATEGIC if strategic => PatchKind::Strategic,
        APPLY => PatchKind::Apply,
        _ if strategic => return Err(negotiate::unsupported(PATCH_TYPES)),
        _ => return Err(negotiate::unsupported(&PATCH_TYPES.replace(&format!("{STRATEGIC}, "), ""))),
    };
    let bytes = read(request).await?;
    let format = if kind == PatchKind::Apply { Format::Yaml } else { Format::Json };
    let body = parse(format, &bytes)?;
    crate::audit::request_object(&body.value);
    Ok((kind, body))
}
