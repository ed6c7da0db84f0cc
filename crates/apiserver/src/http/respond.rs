//! Responses: JSON bodies, lists streamed from stored bytes, compression, Status errors.

use super::negotiate::{Form, PROTOBUF};
use crate::heavy;
use bytes::Bytes;
use client::Object;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use machinery::status::ApiError;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;

/// Any body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Answers below this size are not compressed (upstream's threshold).
pub const GZIP_MIN: usize = 128 << 10;
/// Size of the pieces that a long list is sent in.
const CHUNK: usize = 128 << 10;
/// Longer lists are not indented: that takes the whole document as one value.
const PRETTY_MAX: usize = 4 << 20;

fn lift(error: Infallible) -> Box<dyn std::error::Error + Send + Sync> {
    match error {}
}

/// A body of known bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(lift).boxed_unsync()
}

/// A body from a stream of pieces.
pub fn streamed(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(pieces.map(|p| Ok::<_, Infallible>(Frame::data(p)))).map_err(lift).boxed_unsync()
}

/// A body from a stream of frames.
pub fn fallible(
    frames: impl Stream<Item = Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
) -> Body {
    StreamBody::new(frames).boxed_unsync()
}

/// How many bytes a streamed answer will have, before it is packed.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

/// An answer that keeps something until it is sent.
pub fn held(response: Response<Body>, guard: impl Send + 'static) -> Response<Body> {
    response.map(|body| {
        let held = body.map_frame(move |frame| {
            let _guard = &guard;
            frame
        });
        held.boxed_unsync()
    })
}

/// What a client asked about the shape of the answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// It takes gzip.
    pub gzip: bool,
    /// It wants indented JSON.
    pub pretty: bool,
}

/// An answer with a body as it is.
pub fn raw(code: u16, content_type: &str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// JSON text, indented or compressed where wished.
pub fn json_bytes(code: u16, content_type: &str, bytes: Bytes, wishes: Wishes) -> Response<Body> {
    let bytes = if wishes.pretty { pretty(bytes) } else { bytes };
    if wishes.gzip && bytes.len() >= GZIP_MIN {
        let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
        if let Ok(packed) = encoder.write_all(&bytes).and_then(|()| encoder.finish()) {
            let mut response = self::packed(content_type, packed.into());
            *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::OK);
            return response;
        }
    }
    raw(code, content_type, full(bytes))
}

/// An answer that is packed already.
pub fn packed(content_type: &str, body: Bytes) -> Response<Body> {
    let mut response = raw(200, content_type, full(body));
    mark_gzip(&mut response);
    response
}

fn mark_gzip(response: &mut Response<Body>) {
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// A JSON value.
pub fn json_value(code: u16, content_type: &str, value: &Value, wishes: Wishes) -> Response<Body> {
    json_bytes(code, content_type, serde_json::to_vec(value).unwrap_or_default().into(), wishes)
}

/// A value in the object form that was asked for.
pub fn value(code: u16, form: Form, value: &Value, wishes: Wishes) -> Result<Response<Body>, ApiError> {
    if form.is_protobuf() {
        return Ok(raw(code, PROTOBUF, full(machinery::protobuf::sealed(value)?)));
    }
    Ok(json_value(code, "application/json", value, wishes))
}

fn pretty(bytes: Bytes) -> Bytes {
    let indented = serde_json::from_slice::<Value>(&bytes).and_then(|v| serde_json::to_vec_pretty(&v));
    indented.map_or(bytes, Bytes::from)
}

/// The same answer in YAML, if it is JSON.
pub async fn as_yaml(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let form = parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok()?.strip_prefix("application/json"));
    let Some(content_type) = form.and_then(|f| HeaderValue::from_str(&format!("application/yaml{f}")).ok())
    else {
        return Response::from_parts(parts, body);
    };
    let Ok(json) = body.collect().await.map(|all| all.to_bytes()) else {
        return error(&ApiError::internal("the answer could not be made"));
    };
    // JSON is YAML too, should this not be read.
    let write = || serde_json::from_slice(&json).map(|value| machinery::yaml::text(&value));
    let text = heavy::run(json.len() as u64 >= heavy::BYTES, async { write() }).await;
    parts.headers.insert(header::CONTENT_TYPE, content_type);
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, full(text.map_or(json, Bytes::from)))
}

/// A failure as a Status.
pub fn error(error: &ApiError) -> Response<Body> {
    let mut response = json_value(error.code, "application/json", &error.to_status(), Wishes::default());
    if error.retry_after_seconds > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, error.retry_after_seconds.into());
    }
    if error.code == 401 {
        let scheme = HeaderValue::from_static("Bearer realm=\"kubernetes\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
    }
    response
}

/// Adds `Warning: 299 - "…"` headers.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for text in warnings {
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// The frame of a list: what stands before and after its items.
pub struct ListFrame {
    /// `PodList`.
    pub kind: String,
    /// `v1`.
    pub api_version: String,
    /// Revision.
    pub revision: u64,
    /// Continue token or "".
    pub next: String,
    /// Objects behind the page, where known.
    pub remaining: Option<usize>,
    /// What the items are called.
    pub items: &'static str,
    /// The columns of a Table.
    pub columns: Option<Value>,
}

/// Makes an item of an object.
pub type Encode = Box<dyn Fn(&Arc<Object>) -> Result<Bytes, ApiError> + Send>;

impl ListFrame {
    /// The list's metadata.
    pub fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if !self.next.is_empty() {
            metadata["continue"] = json!(self.next);
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
        metadata
    }

    fn around(&self) -> (String, String) {
        let (kind, version) = (json!(self.kind), json!(self.api_version));
        let mut head = format!("{{\"kind\":{kind},\"apiVersion\":{version},\"metadata\":{}", self.metadata());
        if let Some(columns) = &self.columns {
            head += &format!(",\"columnDefinitions\":{columns}");
        }
        head += &format!(",\"{}\":[", self.items);
        (head, "]}\n".into())
    }
}

/// Canonical JSON without `apiVersion` and `kind`.
pub fn untyped(raw: &Bytes) -> Bytes {
    let rest = raw.strip_prefix(b"{\"apiVersion\":\"").and_then(after_text);
    let rest = rest.and_then(|rest| rest.strip_prefix(b",\"kind\":\"")).and_then(after_text);
    if let Some([b',', rest @ ..]) = rest {
        return [b"{", rest].concat().into();
    }
    // Something stands between them.
    let Ok(mut map) = serde_json::from_slice::<BTreeMap<&str, &RawValue>>(raw) else { return raw.clone() };
    map.retain(|key, _| !matches!(*key, "apiVersion" | "kind"));
    serde_json::to_vec(&map).map_or_else(|_| raw.clone(), Bytes::from)
}

/// What follows a text without escapes that has begun.
fn after_text(rest: &[u8]) -> Option<&[u8]> {
    let end = rest.iter().position(|b| *b == b'"')?;
    rest.get(end + 1..)
}

/// A list whose items are made as they are sent: of stored bytes, mostly, and no item is parsed. What cannot be made is
/// an error where it is known in time, else the end of the answer.
pub fn list(
    frame: &ListFrame,
    content_type: &str,
    (items, encode): (Vec<Arc<Object>>, Encode),
    wishes: Wishes,
) -> Result<Response<Body>, ApiError> {
    let size: usize = items.iter().map(|o| o.raw.len() + 1).sum();
    let gzip = wishes.gzip && size >= GZIP_MIN;
    let short = size < CHUNK || (wishes.pretty && size < PRETTY_MAX);
    let mut pieces = Pieces::new(frame, (items, encode), gzip && !short);
    if short {
        let all = pieces.by_ref().collect::<Result<Vec<Bytes>, ApiError>>()?.concat();
        return Ok(json_bytes(200, content_type, all.into(), wishes));
    }
    // A reader that is fast enough would else have its list made without a pause.
    let frames = stream::iter(pieces).then(async |piece| {
        tokio::task::yield_now().await;
        piece.map(Frame::data).map_err(Into::into)
    });
    let mut response = raw(200, content_type, fallible(frames));
    response.extensions_mut().insert(Size(size as u64));
    if gzip {
        mark_gzip(&mut response);
    }
    Ok(response)
}

/// Iterates the pieces of a list's body.
struct Pieces {
    head: Option<String>,
    tail: String,
    items: std::vec::IntoIter<Arc<Object>>,
    encode: Encode,
    first: bool,
    gzip: Option<GzEncoder<Vec<u8>>>,
    done: bool,
}

impl Pieces {
    fn new(frame: &ListFrame, (items, encode): (Vec<Arc<Object>>, Encode), gzip: bool) -> Self {
        let (head, tail) = frame.around();
        let gzip = gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
        let items = items.into_iter();
        Pieces { head: Some(head), tail, items, encode, first: true, gzip, done: false }
    }

    fn plain(&mut self) -> Result<Vec<u8>, ApiError> {
        let mut piece = self.head.take().map(String::into_bytes).unwrap_or_default();
        while piece.len() < CHUNK {
            let Some(object) = self.items.next() else {
                piece.extend_from_slice(self.tail.as_bytes());
                self.done = true;
                break;
            };
            if !std::mem::take(&mut self.first) {
                piece.push(b',');
            }
            piece.extend_from_slice(&(self.encode)(&object)?);
        }
        Ok(piece)
    }

    fn piece(&mut self) -> Result<Option<Bytes>, ApiError> {
        while !self.done {
            let plain = self.plain()?;
            let Some(encoder) = &mut self.gzip else { return Ok(Some(plain.into())) };
            encoder.write_all(&plain).map_err(ApiError::internal)?;
            if self.done {
                let last = self.gzip.take().map(GzEncoder::finish).transpose().map_err(ApiError::internal)?;
                return Ok(last.map(Bytes::from));
            }
            let packed = std::mem::take(encoder.get_mut());
            if !packed.is_empty() {
                return Ok(Some(packed.into()));
            }
        }
        Ok(None)
    }
}

impl Iterator for Pieces {
    type Item = Result<Bytes, ApiError>;
    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.piece();
        self.done |= piece.is_err();
        piece.transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::ObjectKey;
    use std::io::Read;

    fn objects(n: usize) -> Vec<Arc<Object>> {
        let one = |i: usize| {
            let raw = json!({"metadata": {"name": format!("n{i}"), "x": "y".repeat(i % 999)}}).to_string();
            Arc::new(Object::new(ObjectKey::new("", format!("n{i}")), 1, raw.into()))
        };
        (0..n).map(one).collect()
    }

    fn frame() -> ListFrame {
        ListFrame {
            kind: "PodList".into(),
            api_version: "v1".into(),
            revision: 7,
            next: "t".into(),
            remaining: Some(3),
            items: "items",
            columns: None,
        }
    }

    fn pieces(n: usize, gzip: bool) -> Vec<u8> {
        let encode: Encode = Box::new(|object| Ok(object.raw.clone()));
        Pieces::new(&frame(), (objects(n), encode), gzip).flat_map(Result::unwrap).collect()
    }

    #[test]
    fn items_of_built_in_lists_do_not_say_what_they_are() {
        for (raw, want) in [
            (r#"{"apiVersion":"v1","kind":"Pod","metadata":{"kind":"x"}}"#, r#"{"metadata":{"kind":"x"}}"#),
            (r#"{"apiVersion":"v1","data":{"kind":"y"},"kind":"Secret"}"#, r#"{"data":{"kind":"y"}}"#),
            (r#"{"action":"a","apiVersion":"v1","kind":"Event","type":""}"#, r#"{"action":"a","type":""}"#),
            (r#"{"apiVersion":"v1","kind":"Pod"}"#, "{}"),
        ] {
            assert_eq!(untyped(&Bytes::from_static(raw.as_bytes())), want);
        }
    }

    #[test]
    fn pieces_are_one_json_list() {
        for n in [0, 1, 2, 2_000] {
            let plain = pieces(n, false);
            let value: Value = serde_json::from_slice(&plain).unwrap();
            assert_eq!(value["items"].as_array().unwrap().len(), n);
            assert_eq!(
                value["metadata"],
                json!({"resourceVersion": "7", "continue": "t", "remainingItemCount": 3})
            );
            let packed = pieces(n, true);
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(&*packed).read_to_end(&mut unpacked).unwrap();
            assert_eq!(unpacked, plain);
        }
    }

    #[test]
    fn warnings_cannot_break_the_header() {
        let mut response = raw(200, "application/json", full(""));
        warn(&mut response, &["a \"b\"\r\nx: y".into()]);
        assert_eq!(response.headers()[header::WARNING], "299 - \"a \\\"b\\\"x: y\"");
    }
}
