//! Answers: bodies, headers, and the specification's errors (`{"errors": [{"code", "message", "detail"}]}`).

use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Method, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use image::{DepotError, Digest, ImageError};
use serde_json::{Value, json};
use std::io;

pub(crate) type Body = BoxBody<Bytes, io::Error>;
pub(crate) type Reply = Response<Body>;

const API_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("docker-distribution-api-version"), HeaderValue::from_static("registry/2.0"));
pub(crate) const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// When there may be room again.
const AGAIN_SECONDS: HeaderValue = HeaderValue::from_static("30");

/// The scheme that every client knows.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"gantry\"");

pub(crate) fn empty(status: StatusCode) -> Reply {
    with_body(status, Empty::new().map_err(|e| match e {}).boxed())
}

pub(crate) fn with_body(status: StatusCode, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(API_VERSION.0, API_VERSION.1);
    reply
}

pub(crate) fn bytes(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|e| match e {}).boxed()
}

pub(crate) fn json(value: &Value) -> Reply {
    let text = value.to_string();
    let length = HeaderValue::from(text.len());
    let mut reply = with_body(StatusCode::OK, bytes(text));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply.headers_mut().insert(CONTENT_LENGTH, length);
    reply
}

/// Sets a header whose value is made of digests, checked names and numbers.
pub(crate) fn set(reply: &mut Reply, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("names and digests are plain ASCII");
    reply.headers_mut().insert(name, value);
}

/// `201 Created` at a place, with a digest.
pub(crate) fn created(location: &str, digest: &Digest) -> Reply {
    let mut reply = empty(StatusCode::CREATED);
    set(&mut reply, LOCATION, location);
    set(&mut reply, DIGEST, digest.as_str());
    reply
}

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The content says no.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// No such path.
    #[error("no such path in this API")]
    NoSuchPath,
    /// Not with this method.
    #[error("the operation is unsupported")]
    Method,
    /// A chunk that does not begin where the upload ends: there.
    #[error("the upload has {0} bytes")]
    Range(u64),
    /// A header or parameter that is malformed.
    #[error("{0}")]
    Malformed(String),
    /// A page size that is none.
    #[error("invalid number of results requested")]
    Page,
    /// No credentials, or wrong ones.
    #[error("authentication required")]
    Unauthorized,
    /// Not with these credentials.
    #[error("requested access to the resource is denied")]
    Denied,
    /// The client stopped sending.
    #[error("the request body ended early: {0}")]
    CutOff(String),
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> ApiError {
        ApiError::Depot(error.into())
    }
}

impl ApiError {
    /// The status and the specification's code: one table.
    fn row(&self) -> (StatusCode, &'static str) {
        use DepotError as D;
        match self {
            ApiError::NoSuchPath => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
            ApiError::Method => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            ApiError::Range(_) => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            ApiError::Malformed(_) | ApiError::CutOff(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            ApiError::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            ApiError::Denied => (StatusCode::FORBIDDEN, "DENIED"),
            ApiError::Page => (StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID"),
            ApiError::Depot(error) => match error {
                D::NameInvalid(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
                D::NameUnknown(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
                D::BlobUnknown(_) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
                D::UploadUnknown(_) => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
                D::UploadInvalid(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
                D::DigestInvalid(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
                D::TooBig(_) | D::Image(ImageError::TooBig { .. }) => {
                    (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID")
                }
                D::ManifestUnknown(_) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
                D::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
                D::ManifestBlobUnknown(_) => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
                D::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
                D::Denied(_) => (StatusCode::FORBIDDEN, "DENIED"),
                D::Image(ImageError::NoSpace { .. }) => (StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN"),
                D::Image(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
            },
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.row().0
    }

    pub(crate) fn code(&self) -> &'static str {
        self.row().1
    }

    pub(crate) fn reply(&self, method: &Method) -> Reply {
        let (status, code) = self.row();
        let error = |detail: Value| json!({"code": code, "message": self.to_string(), "detail": detail});
        let errors: Vec<Value> = match self {
            ApiError::Depot(DepotError::ManifestBlobUnknown(list)) => {
                list.iter().map(|digest| error(json!({"digest": digest}))).collect()
            }
            _ => vec![error(Value::Null)],
        };
        let mut reply = json(&json!({"errors": errors}));
        *reply.status_mut() = status;
        if let ApiError::Range(offset) = self {
            set(&mut reply, http::header::RANGE, &range(*offset));
        }
        if status == StatusCode::UNAUTHORIZED {
            reply.headers_mut().insert(WWW_AUTHENTICATE, CHALLENGE);
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            reply.headers_mut().insert(RETRY_AFTER, AGAIN_SECONDS);
        }
        if method == Method::HEAD {
            *reply.body_mut() = bytes("");
        }
        reply
    }
}

/// What an upload has, in the API's odd form: both ends, the last included, and `0-0` for nothing.
pub(crate) fn range(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}
