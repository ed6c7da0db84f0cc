//! `/v2/<name>/manifests/<reference>`: reading, pushing, deleting; by tag or digest.

use crate::reply::{self, ApiError, DIGEST, Reply, set};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use image::{Depot, DepotError, ManifestRef};
use std::time::Duration;

/// Bytes of a manifest, as the specification suggests.
const MANIFEST_BYTES: usize = 4 << 20;
/// For the whole body.
const BODY_MAX: Duration = Duration::from_secs(60);
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

pub(crate) fn get(
    depot: &Depot,
    name: &str,
    reference: &ManifestRef,
    method: &Method,
) -> Result<Reply, ApiError> {
    let manifest = depot.manifest(name, reference)?;
    let length = manifest.bytes.len().to_string();
    let body = if method == Method::HEAD { reply::bytes("") } else { reply::bytes(manifest.bytes) };
    let mut reply = reply::with_body(StatusCode::OK, body);
    set(&mut reply, CONTENT_TYPE, &manifest.media_type);
    set(&mut reply, CONTENT_LENGTH, &length);
    set(&mut reply, DIGEST, manifest.digest.as_str());
    set(&mut reply, http::header::ETAG, &format!("\"{}\"", manifest.digest));
    Ok(reply)
}

pub(crate) async fn put(
    depot: Depot,
    name: String,
    reference: ManifestRef,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let (head, body) = request.into_parts();
    let collecting = Limited::new(body, MANIFEST_BYTES).collect();
    let collected = tokio::time::timeout(BODY_MAX, collecting).await;
    let collected = collected.map_err(|_| ApiError::CutOff("nothing came for too long".into()))?;
    let bytes = match collected {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let text = format!("a manifest exceeds the limit of {MANIFEST_BYTES} bytes");
            return Err(DepotError::TooBig(text).into());
        }
        Err(error) => return Err(ApiError::CutOff(error.to_string())),
    };
    let content_type = head.headers.get(CONTENT_TYPE).and_then(|t| t.to_str().ok()).map(String::from);
    let to = name.clone();
    let put =
        crate::blocking(move || Ok(depot.put_manifest(&to, &reference, content_type.as_deref(), &bytes)?));
    let put = put.await?;
    let mut reply = reply::created(&format!("/v2/{name}/manifests/{}", put.digest), &put.digest);
    if let Some(subject) = &put.subject {
        set(&mut reply, SUBJECT, subject.as_str());
    }
    Ok(reply)
}

pub(crate) fn delete(depot: &Depot, name: &str, reference: &ManifestRef) -> Result<Reply, ApiError> {
    depot.remove_manifest(name, reference)?;
    Ok(reply::empty(StatusCode::ACCEPTED))
}
