//! `/v2/<name>/blobs/uploads/`: whole blobs in one request, chunks, resuming, mounting from another repository.
//!
//! An upload that a client lost sight of goes on where it stopped: `GET` says where, and a chunk must begin there.
//! What a cut-off request had sent by then is kept. A wrong digest ends the upload.

use crate::reply::{self, ApiError, Reply, set};
use crate::route::Query;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName, LOCATION, RANGE};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use image::{Depot, DepotError, Digest, Pieces, PumpError, Upload, Writing, is_repository, pump};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;

/// A client that sends nothing for so long is gone.
const BODY_IDLE_MAX: Duration = Duration::from_secs(60);
/// How long a request waits for the one before on the same upload: its client may be gone without a word.
const TURN_MAX: Duration = Duration::from_secs(10);
const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// `POST`: begins an upload; or mounts; or takes a whole blob.
pub(crate) async fn post(depot: Depot, name: String, request: Request<Incoming>) -> Result<Reply, ApiError> {
    let query = Query::of(request.uri());
    if let Some(digest) = query.get("mount") {
        let digest = parse_digest(digest)?;
        let from = query.get("from").map(String::from);
        if let Some(from) = from.as_ref().filter(|from| !is_repository(from)) {
            return Err(DepotError::NameInvalid(from.clone()).into());
        }
        let (to, wanted, store) = (name.clone(), digest.clone(), depot.clone());
        if crate::blocking(move || Ok(store.mount(&to, &wanted, from.as_deref())?)).await? {
            return Ok(reply::created(&format!("/v2/{name}/blobs/{digest}"), &digest));
        }
    }
    let digest = query.get("digest").map(parse_digest).transpose()?;
    let (store, to) = (depot.clone(), name.clone());
    let upload = crate::blocking(move || Ok(store.begin(&to)?)).await?;
    match digest {
        Some(digest) => {
            let taken = finish(&depot, &name, &upload, digest, request).await;
            if taken.is_err() {
                // Nobody knows its name: nobody can go on with it.
                depot.abort(&upload);
            }
            taken
        }
        None => Ok(standing(StatusCode::ACCEPTED, &name, &upload.id, 0)),
    }
}

/// Everything on an upload that is under way.
pub(crate) async fn on(
    depot: Depot,
    (name, id): (String, String),
    method: Method,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let upload = depot.upload(&name, &id)?;
    match method {
        Method::GET | Method::HEAD => {
            let offset = turn(&upload).await?.offset();
            Ok(standing(StatusCode::NO_CONTENT, &name, &id, offset))
        }
        Method::PATCH => {
            let writing = turn(&upload).await?;
            let expected = expected(request.headers(), writing.offset())?;
            let writing = receive(&depot, &upload, writing, request, expected).await?;
            Ok(standing(StatusCode::ACCEPTED, &name, &id, writing.offset()))
        }
        Method::PUT => {
            let query = Query::of(request.uri());
            let digest = query.get("digest").ok_or_else(|| {
                ApiError::Depot(DepotError::DigestInvalid("parameter \"digest\" is missing".into()))
            })?;
            finish(&depot, &name, &upload, parse_digest(digest)?, request).await
        }
        Method::DELETE => {
            depot.abort(&upload);
            Ok(reply::empty(StatusCode::NO_CONTENT))
        }
        _ => Err(ApiError::Method),
    }
}

/// Takes the last bytes and ends the upload.
async fn finish(
    depot: &Depot,
    name: &str,
    upload: &Arc<Upload>,
    digest: Digest,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    let writing = turn(upload).await?;
    let expected = expected(request.headers(), writing.offset())?;
    let mut writing = receive(depot, upload, writing, request, expected).await?;
    let (store, upload, wanted) = (depot.clone(), upload.clone(), digest.clone());
    crate::blocking(move || Ok(store.commit(&upload, &mut writing, &wanted)?)).await?;
    Ok(reply::created(&format!("/v2/{name}/blobs/{digest}"), &digest))
}

/// Appends a request's body.
async fn receive(
    depot: &Depot,
    upload: &Upload,
    writing: OwnedMutexGuard<Writing>,
    request: Request<Incoming>,
    expected: Option<u64>,
) -> Result<OwnedMutexGuard<Writing>, ApiError> {
    let before = writing.offset();
    let (writing, pumped) = pump(writing, &mut Received(request.into_body())).await;
    match (pumped, writing) {
        (Ok(()), Some(writing)) => match expected {
            Some(length) if writing.offset() - before != length => {
                depot.abort(upload);
                Err(ApiError::Malformed("Content-Range and the body have different lengths".into()))
            }
            _ => Ok(writing),
        },
        (Err(PumpError::Input(error)), _) => Err(ApiError::CutOff(error)),
        (Err(PumpError::Disk(error)), _) => {
            depot.abort(upload);
            Err(error.into())
        }
        (Ok(()), None) => Err(image::ImageError::Cancelled.into()),
    }
}

struct Received(Incoming);

impl Pieces for Received {
    type Error = String;

    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let frame = tokio::time::timeout(BODY_IDLE_MAX, self.0.frame()).await;
            match frame.map_err(|_| "nothing came for too long".to_string())? {
                None => return Ok(None),
                Some(Err(error)) => return Err(error.to_string()),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                },
            }
        }
    }
}

async fn turn(upload: &Upload) -> Result<OwnedMutexGuard<Writing>, ApiError> {
    let busy = || ApiError::Malformed("another request is writing to this upload".into());
    tokio::time::timeout(TURN_MAX, upload.lock()).await.map_err(|_| busy())
}

/// The length that `Content-Range` promises, when there is one; it must begin where the upload ends.
fn expected(headers: &HeaderMap, offset: u64) -> Result<Option<u64>, ApiError> {
    let Some(header) = headers.get(CONTENT_RANGE) else { return Ok(None) };
    let text = header.to_str().unwrap_or_default();
    let malformed = || ApiError::Malformed(format!("Content-Range {text:?} is not of the form first-last"));
    let bare = text.trim_start_matches("bytes").trim_start_matches(['=', ' ']);
    let bare = bare.split('/').next().unwrap_or_default();
    let (first, last) = bare.split_once('-').ok_or_else(malformed)?;
    let number = |text: &str| text.trim().parse::<u64>().map_err(|_| malformed());
    let (first, last) = (number(first)?, number(last)?);
    let body = headers.get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()).and_then(|l| l.parse::<u64>().ok());
    if first != offset {
        return Err(ApiError::Range(offset));
    }
    // Nothing in the form `0-0`, which the specification also gives a single byte.
    if (first, last, body) == (0, 0, Some(0)) {
        return Ok(None);
    }
    let length = last.checked_sub(first).and_then(|n| n.checked_add(1)).ok_or_else(malformed)?;
    match body {
        Some(body) if body != length => Err(malformed()),
        _ => Ok(Some(length)),
    }
}

fn standing(status: StatusCode, name: &str, id: &str, offset: u64) -> Reply {
    let mut reply = reply::empty(status);
    set(&mut reply, LOCATION, &format!("/v2/{name}/blobs/uploads/{id}"));
    set(&mut reply, RANGE, &reply::range(offset));
    set(&mut reply, UPLOAD_ID, id);
    reply
}

fn parse_digest(text: &str) -> Result<Digest, ApiError> {
    let unsupported = || DepotError::DigestInvalid(format!("unsupported digest {text:?}"));
    Ok(Digest::parse(text).ok_or_else(unsupported)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_must_fit() {
        let of = |range: &str, length: &str, offset: u64| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, range.parse().unwrap());
            headers.insert(CONTENT_LENGTH, length.parse().unwrap());
            expected(&headers, offset).map_err(|e| e.status().as_u16())
        };
        assert_eq!(of("0-9", "10", 0), Ok(Some(10)));
        assert_eq!(of("bytes 10-19/*", "10", 10), Ok(Some(10)));
        assert_eq!(of("0-0", "0", 0), Ok(None));
        assert_eq!(of("0-0", "1", 0), Ok(Some(1)));
        assert_eq!(of("5-9", "5", 10), Err(416));
        assert_eq!(of("0-9", "5", 0), Err(400));
        assert_eq!(of("9-5", "5", 9), Err(400));
        assert_eq!(of("0-18446744073709551615", "5", 0), Err(400));
        assert_eq!(of("x", "5", 0), Err(400));
    }
}
