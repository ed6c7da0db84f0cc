//! A slice of S3 for what containers start with: buckets, and objects that come and go in one piece.
//!
//! S3 is its own protocol (rest-xml, bucket in path or host), so this takes a verified request and gives an answer; no
//! table is behind it. Every other operation is refused as NotImplemented. Files are kept by [`store`], not as objects
//! of our API. Deliberately not here: multipart uploads, versions, policies, lists of access.

mod digest;
mod list;
mod request;
mod store;

pub use request::Ask;

use crate::protocol::{Reply, time, xml};
use crate::service::AwsError;
use ecs_model::refusal::refuse_if;
use request::Target;
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use store::{Bucket, Meta, Store, StoreError};

/// Bytes of the headers `x-amz-meta-*`, as in AWS.
const METADATA_MAX: usize = 2 << 10;
/// Bytes of a key, as in AWS.
const KEY_MAX: usize = 1_024;
/// Headers that come back with an object.
const KEPT: &str = "cache-control content-disposition content-encoding content-language content-type \
    expires";

/// The service.
pub struct S3 {
    store: Arc<Store>,
}

type Answer = Result<Reply, AwsError>;

fn refused(status: u16, code: &str, message: &str) -> AwsError {
    AwsError { status, ..AwsError::client(code, message) }
}

fn no_bucket() -> AwsError {
    refused(404, "NoSuchBucket", "The specified bucket does not exist")
}

fn no_key() -> AwsError {
    refused(404, "NoSuchKey", "The specified key does not exist.")
}

fn not_implemented() -> AwsError {
    refused(
        501,
        "NotImplemented",
        "A header or query you provided implies functionality that is not implemented",
    )
}

impl From<StoreError> for AwsError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Bucket => no_bucket(),
            StoreError::NotEmpty => {
                refused(409, "BucketNotEmpty", "The bucket you tried to delete is not empty")
            }
            StoreError::Full => refused(503, "ServiceUnavailable", "The store holds as much as it may."),
            StoreError::Disk(error) => {
                tracing::warn!(%error, "S3");
                AwsError::server("InternalError", "We encountered an internal error. Please try again.")
            }
        }
    }
}

/// The answer to a call that failed: here, or before it came here (in the words of the query protocol).
pub fn refuse(error: &AwsError, path: &str, id: &str) -> Reply {
    let (code, message, status) = match error.code.as_str() {
        "InvalidClientTokenId" => {
            ("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.", 403)
        }
        "MissingAuthenticationToken" => ("AccessDenied", "Access Denied", 403),
        "IncompleteSignature" => ("AuthorizationHeaderMalformed", error.message.as_str(), 400),
        "RequestEntityTooLargeException" => {
            ("EntityTooLarge", "Your proposed upload exceeds the maximum allowed object size.", 400)
        }
        "Throttling" => ("SlowDown", "Please reduce your request rate.", 503),
        code => (code, error.message.as_str(), error.status),
    };
    let body = format!(
        "{HEAD}<Error><Code>{}</Code><Message>{}</Message><Resource>{}</Resource><RequestId>{id}</RequestId></Error>",
        xml::escape(code),
        xml::escape(message),
        xml::escape(path)
    );
    answer(status, body)
}

const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Reply {
    let body = body.into();
    let kind = ("content-type".to_string(), "application/xml".to_string());
    Reply { status, headers: if body.is_empty() { Vec::new() } else { vec![kind] }, body }
}

fn iso(ms: u64) -> String {
    let text = time::iso(&json!(ms / 1_000));
    format!("{}.{:03}Z", text.trim_end_matches('Z'), ms % 1_000)
}

/// Lower-case letters, digits, dots and hyphens, 3 to 63, and no address.
fn is_bucket_name(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(b))
        && edge(bytes.first())
        && edge(bytes.last())
        && !name.contains("..")
        && name.parse::<std::net::Ipv4Addr>().is_err()
}

/// `bytes=a-b`, `bytes=a-`, `bytes=-n` of a body; `None`: all of it.
fn range(asked: &str, size: u64) -> Result<Option<Range<u64>>, AwsError> {
    let Some((from, to)) = asked.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
        return Ok(None);
    };
    let part = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) if from <= to => from..to.saturating_add(1).min(size),
        (Ok(from), Err(_)) if to.is_empty() => from..size,
        (Err(_), Ok(last)) if from.is_empty() && last > 0 => size.saturating_sub(last)..size,
        _ => return Ok(None),
    };
    refuse_if(part.start >= size, || refused(416, "InvalidRange", "The requested range is not satisfiable"))?;
    Ok(Some(part))
}

impl S3 {
    /// Opens the store in a folder that is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(root: PathBuf) -> std::io::Result<S3> {
        Ok(S3 { store: Arc::new(Store::open(root)?) })
    }

    /// Answers a request whose signature was found right; errors are answers too.
    pub async fn handle(&self, ask: Ask, id: &str) -> Reply {
        let (store, path) = (self.store.clone(), ask.path.clone());
        let done = tokio::task::spawn_blocking(move || run(&store, &ask)).await;
        let done = done.unwrap_or_else(|_| {
            Err(AwsError::server("InternalError", "The operation failed inside Gantry; its log says more"))
        });
        done.unwrap_or_else(|error| refuse(&error, &path, id))
    }

    /// An object's body, for those in this process; an error in S3's words.
    ///
    /// # Errors
    /// There is no such object, it is somebody else's, or the disk failed.
    pub async fn read(&self, account: &str, bucket: &str, key: &str) -> Result<Vec<u8>, String> {
        let (store, names) = (self.store.clone(), (account.to_string(), bucket.to_string(), key.to_string()));
        let read = tokio::task::spawn_blocking(move || {
            own_bucket(&store, &names.1, &names.0)?;
            let found = store.read(&names.1, &names.2, None);
            found.map(|(_, body)| body).map_err(read_error)
        });
        let words = |e: AwsError| format!("{}: {}", e.code, e.message);
        read.await.map_err(|e| e.to_string())?.map_err(words)
    }
}

fn read_error(error: std::io::Error) -> AwsError {
    match error.kind() {
        std::io::ErrorKind::NotFound => no_key(),
        _ => StoreError::Disk(error).into(),
    }
}

fn own_bucket(store: &Store, name: &str, account: &str) -> Result<Bucket, AwsError> {
    let bucket = store.bucket(name).ok_or_else(no_bucket)?;
    refuse_if(bucket.owner != account, || refused(403, "AccessDenied", "Access Denied"))?;
    Ok(bucket)
}

fn run(store: &Store, ask: &Ask) -> Answer {
    let target = ask.target(|name| store.bucket(name).is_some());
    refuse_if(ask.asks_more(&target), not_implemented)?;
    match (ask.method.as_str(), target) {
        ("GET", Target::Service) => Ok(list::buckets(store, ask)),
        ("PUT", Target::Bucket(name)) => create(store, ask, &name),
        (method, Target::Bucket(name)) => {
            let bucket = own_bucket(store, &name, &ask.account)?;
            match method {
                "HEAD" => {
                    let mut reply = answer(200, "");
                    reply.headers.push(("x-amz-bucket-region".into(), bucket.region));
                    Ok(reply)
                }
                "GET" if ask.has("location") => Ok(list::location(&bucket)),
                "GET" => list::objects(store, ask, &name),
                "DELETE" => store.unmake(&name).map(|()| answer(204, "")).map_err(Into::into),
                _ => Err(not_implemented()),
            }
        }
        (method, Target::Object(name, key)) => {
            own_bucket(store, &name, &ask.account)?;
            match method {
                "PUT" => put(store, ask, &name, &key),
                "GET" | "HEAD" => get(store, ask, &name, &key),
                "DELETE" => store.remove(&name, &key).map(|()| answer(204, "")).map_err(Into::into),
                _ => Err(not_implemented()),
            }
        }
        _ => Err(not_implemented()),
    }
}

fn create(store: &Store, ask: &Ask, name: &str) -> Answer {
    if !is_bucket_name(name) {
        return Err(refused(400, "InvalidBucketName", "The specified bucket is not valid."));
    }
    match store.bucket(name) {
        Some(there) if there.owner != ask.account => {
            let words = "The requested bucket name is not available. The bucket namespace is shared by all users of the \
                         system. Please select a different name and try again.";
            return Err(refused(409, "BucketAlreadyExists", words));
        }
        // The oldest region says nothing to a repetition; the others do.
        Some(there) if there.region != "us-east-1" || ask.region != "us-east-1" => {
            let words = "Your previous request to create the named bucket succeeded and you already own it.";
            return Err(refused(409, "BucketAlreadyOwnedByYou", words));
        }
        _ => {}
    }
    let bucket = Bucket { owner: ask.account.clone(), region: ask.region.clone(), created_ms: ask.now_ms };
    store.make(name, bucket)?;
    let mut reply = answer(200, "");
    reply.headers.push(("location".into(), format!("/{name}")));
    Ok(reply)
}

/// The conditions that a request puts on what is there.
fn conditions(ask: &Ask, there: Option<&Meta>) -> Result<(), AwsError> {
    let names = |list: &str| {
        let fits = |m: &Meta| {
            list.split(',').any(|e| matches!(e.trim().trim_matches('"'), t if t == m.etag || t == "*"))
        };
        there.is_some_and(fits)
    };
    let failed = || {
        refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
    };
    refuse_if(ask.header("if-match").is_some_and(|list| !names(list)), failed)?;
    match ask.header("if-none-match") {
        Some(list) if names(list) && ask.method == "PUT" => Err(failed()),
        Some(list) if names(list) => Err(refused(304, "NotModified", "Not Modified")),
        _ => Ok(()),
    }
}

/// What of the request's headers stays with the object.
fn kept(ask: &Ask) -> Result<BTreeMap<String, String>, AwsError> {
    let own = |name: &str| {
        KEPT.split(' ').any(|kept| kept == name)
            || name.starts_with("x-amz-meta-")
            || digest::CHECKED[1..].contains(&name)
    };
    let mut headers: BTreeMap<String, String> = ask
        .headers
        .iter()
        .filter(|(name, _)| own(name))
        .map(|(name, value)| match name.as_str() {
            // How it was sent, not what it is.
            "content-encoding" => {
                let rest = value.split(',').map(str::trim).filter(|e| *e != "aws-chunked");
                (name.clone(), rest.collect::<Vec<_>>().join(","))
            }
            _ => (name.clone(), value.clone()),
        })
        .filter(|(_, value)| !value.is_empty())
        .collect();
    headers.entry("content-type".into()).or_insert_with(|| "binary/octet-stream".into());
    let meta = headers.iter().filter_map(|(n, v)| Some(n.strip_prefix("x-amz-meta-")?.len() + v.len()));
    refuse_if(meta.sum::<usize>() > METADATA_MAX, || {
        refused(400, "MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size.")
    })?;
    Ok(headers)
}

fn put(store: &Store, ask: &Ask, bucket: &str, key: &str) -> Answer {
    refuse_if(key.len() > KEY_MAX, || refused(400, "KeyTooLongError", "Your key is too long"))?;
    conditions(ask, store.meta(bucket, key).as_ref())?;
    for header in digest::CHECKED {
        let Some(given) = ask.header(header) else { continue };
        refuse_if(digest::expected(header, &ask.body).as_deref() != Some(given), || {
            refused(400, "BadDigest", "The digest you specified did not match what we received.")
        })?;
    }
    let mut headers = kept(ask)?;
    let copied = match ask.header("x-amz-copy-source") {
        None => None,
        Some(source) => {
            let source = auth::sigv4::unescape(source);
            let (from, from_key) =
                source.trim_start_matches('/').split_once('/').ok_or_else(not_implemented)?;
            own_bucket(store, from, &ask.account)?;
            let (meta, body) = store.read(from, from_key, None).map_err(read_error)?;
            if ask.header("x-amz-metadata-directive") != Some("REPLACE") {
                headers = meta.headers;
            }
            Some(body)
        }
    };
    let body = copied.as_deref().unwrap_or(&ask.body);
    let etag: String = digest::md5(body).iter().map(|b| format!("{b:02x}")).collect();
    let meta = Meta {
        key: key.to_string(),
        size: body.len() as u64,
        etag: etag.clone(),
        modified_ms: ask.now_ms,
        headers,
    };
    let sums: Vec<_> =
        meta.headers.clone().into_iter().filter(|(n, _)| n.starts_with("x-amz-checksum")).collect();
    store.put(bucket, meta, body)?;
    let mut reply = answer(200, "");
    if copied.is_some() {
        let when = iso(ask.now_ms);
        let result = format!(
            "{HEAD}<CopyObjectResult><LastModified>{when}</LastModified><ETag>&quot;{etag}&quot;</ETag></CopyObjectResult>"
        );
        reply = answer(200, result);
    }
    reply.headers.push(("etag".into(), format!("\"{etag}\"")));
    reply.headers.extend(sums);
    Ok(reply)
}

fn get(store: &Store, ask: &Ask, bucket: &str, key: &str) -> Answer {
    let meta = store.meta(bucket, key).ok_or_else(no_key)?;
    conditions(ask, Some(&meta))?;
    let part = ask.header("range").map_or(Ok(None), |r| range(r, meta.size))?;
    let wants_sums = ask.header("x-amz-checksum-mode") == Some("ENABLED") && part.is_none();
    let (meta, body) = match ask.method.as_str() {
        "HEAD" => (meta, Vec::new()),
        _ => store.read(bucket, key, part.clone()).map_err(read_error)?,
    };
    let length = part.as_ref().map_or(meta.size, |p| p.end - p.start);
    let mut reply = Reply { status: 200, headers: Vec::new(), body };
    let mut say = |name: &str, value: String| reply.headers.push((name.to_string(), value));
    say("accept-ranges", "bytes".into());
    say("content-length", length.to_string());
    say("etag", format!("\"{}\"", meta.etag));
    say("last-modified", time::http(&json!(meta.modified_ms / 1_000)));
    if let Some(part) = &part {
        say("content-range", format!("bytes {}-{}/{}", part.start, part.end - 1, meta.size));
    }
    for (name, value) in meta.headers {
        // A presigned link may say how the answer is to be shown.
        let shown = ask.query(&format!("response-{name}")).unwrap_or(value);
        if wants_sums || !name.starts_with("x-amz-checksum") {
            say(&name, shown);
        }
    }
    if part.is_some() {
        reply.status = 206;
    }
    Ok(reply)
}

#[cfg(test)]
mod tests;
