//! OpenAPI documents made from resource rows: v2 (JSON and gnostic protobuf) and v3 (JSON).
//!
//! Mount it so: keep one [`Documents`] a realm, made again when a CustomResourceDefinition changes, and
//! hand every `GET /openapi/…` to [`Documents::get`]:
//! `Ok(Some(Document { content_type, etag, body }))` → 200 with `Content-Type`, `ETag` (it is quoted already),
//! `Vary: Accept`, 304 when `If-None-Match` equals it; `Ok(None)` → 404; `Err(NotAcceptable)` → 406.
//! Bodies are big (about 1 MB): compress them when the client accepts gzip.
//!
//! Documents are built on the first request and kept. Building costs tens of milliseconds: call
//! [`Documents::get`] off the event loop (`spawn_blocking`) if that matters.
//! Not here: HTTP, descriptions of built-in fields (the tables are doc-free), the protobuf form of v3 (no client asks for it alone).

mod document;
mod operations;
mod proto;
mod schemas;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use k8s_schema::{DefRef, Held, ResourceRow, TABLE_HASH};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::custom::Version;
use document::v3 as v3_json;
use flate2::Compression;
use flate2::write::GzEncoder;
use schemas::{Dialect, Schemas, body_name, list_name};

const JSON: &str = "application/json";
/// What v2 protobuf is answered as: the form without `@` is a valid media type, and clients take both.
const V2_PROTO: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What clients call it.
const V2_PROTO_ASKED: [&str; 2] = [V2_PROTO, "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"];

/// A row, borrowed, with its custom schema.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    /// The row.
    pub row: &'a ResourceRow,
    /// Of a custom resource: whose schema it is.
    pub custom: Option<&'a Version>,
}

impl<'a> From<&'a ResourceRow> for Shown<'a> {
    fn from(row: &'a ResourceRow) -> Self {
        Shown { row, custom: None }
    }
}

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Document {
    /// For `Content-Type`.
    pub content_type: &'static str,
    /// For `ETag`, with its quotes.
    pub etag: String,
    /// The body, not compressed.
    pub body: Bytes,
    packed: Arc<OnceLock<Bytes>>,
}

impl Document {
    fn new(content_type: &'static str, body: Vec<u8>) -> Self {
        let digest = Sha256::digest(&body);
        let hex: String = digest[..16].iter().map(|b| format!("{b:02X}")).collect();
        Document { content_type, etag: format!("\"{hex}\""), body: body.into(), packed: Arc::default() }
    }

    /// The body with gzip, packed when first asked for. Big documents take a while: not on the event loop.
    pub fn packed(&self) -> Bytes {
        let pack = || {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            // Writing to a Vec does not fail.
            let _ = encoder.write_all(&self.body);
            encoder.finish().unwrap_or_default().into()
        };
        self.packed.get_or_init(pack).clone()
    }

    pub(crate) fn json(value: &Value) -> Self {
        Document::new(JSON, value.to_string().into_bytes())
    }
}

/// The client's `Accept` names no form in which this document exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("only application/json and application/com.github.proto-openapi.* are served here")]
pub struct NotAcceptable;

/// A resource as the documents show it.
#[derive(Clone)]
pub struct Row {
    /// `Held::Static(row)` for built-in ones, `Held::Shared(arc)` for custom ones.
    pub row: Held<ResourceRow>,
    /// A custom resource's version; `None` for built-in ones.
    pub custom: Option<Arc<Version>>,
}

/// The documents of one set of resource rows; cheap to make, documents are built when first asked for.
pub struct Documents {
    rows: Vec<Row>,
    /// Parts of other servers' v2 documents.
    foreign: Vec<Arc<Value>>,
    v2_json: OnceLock<Document>,
    v2_proto: OnceLock<Document>,
    v3_index: OnceLock<Document>,
    /// By group version path (`apis/apps/v1`); only those that were asked for.
    v3: Mutex<BTreeMap<String, Document>>,
}

impl Documents {
    /// For these rows, and what other servers add to v2.
    pub fn new(rows: Vec<Row>, foreign: Vec<Arc<Value>>) -> Self {
        Documents {
            rows,
            foreign,
            v2_json: OnceLock::new(),
            v2_proto: OnceLock::new(),
            v3_index: OnceLock::new(),
            v3: Mutex::default(),
        }
    }

    /// Answers `GET {path}`: `/openapi/v2`, `/openapi/v3`, `/openapi/v3/api/v1`, `/openapi/v3/apis/{g}/{v}`.
    /// `accept` is the header's text, "" when there was none.
    pub fn get(&self, path: &str, accept: &str) -> Result<Option<Document>, NotAcceptable> {
        let path = path.trim_end_matches('/');
        if path == "/openapi/v2" {
            let proto = || self.v2_proto.get_or_init(|| Document::new(V2_PROTO, self.v2_as_proto()));
            let json = || self.v2_json.get_or_init(|| Document::new(JSON, self.v2_as_json()));
            return Ok(Some(if wants_proto(accept)? { proto() } else { json() }.clone()));
        }
        let Some(rest) = path.strip_prefix("/openapi/v3") else { return Ok(None) };
        if !accepts_json(accept) {
            return Err(NotAcceptable);
        }
        Ok(match rest.strip_prefix('/') {
            None if rest.is_empty() => {
                Some(self.v3_index.get_or_init(|| Document::json(&v3_index(&self.refs()))).clone())
            }
            None => None,
            Some(group_version) => self.group_version(group_version),
        })
    }

    /// The v2 document part by part, so that it is never held as one value: thousands of definitions take gigabytes so.
    /// The first part is the whole document of the built-in rows, the others are paths and definitions beside it. A part
    /// is only made where it is called for.
    fn v2_parts(&self, mut add: impl FnMut(Option<&Version>, &mut dyn FnMut() -> Value)) {
        let (builtin, custom): (Vec<Shown>, Vec<Shown>) =
            self.refs().into_iter().partition(|r| r.custom.is_none());
        let mut schemas = Schemas::new(Dialect::V2);
        add(None, &mut || document::v2(&builtin, &mut schemas));
        for row in &custom {
            add(row.custom, &mut || document::v2_part(std::slice::from_ref(row), &mut schemas));
        }
        let own = custom.iter().flat_map(|r| [body_name(r.row), list_name(r.row)]);
        let mut known: BTreeSet<String> = schemas.given().iter().cloned().chain(own).collect();
        for part in &self.foreign {
            add(None, &mut || crate::aggregation::discovery::only_new(part, &mut known));
        }
    }

    /// A custom resource's part is kept with it: a change of one does not encode the others again. A field that comes
    /// again adds to what came before, so parts can simply follow each other.
    fn v2_as_proto(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.v2_parts(|version, make| match version {
            Some(version) => {
                out.extend_from_slice(version.v2_proto.get_or_init(|| proto::encode(&make()).into()));
            }
            None => out.extend(proto::encode(&make())),
        });
        out
    }

    fn v2_as_json(&self) -> Vec<u8> {
        let mut head = Value::Null;
        let mut texts = [("paths", String::new()), ("definitions", String::new())];
        self.v2_parts(|_, make| {
            let mut part = make();
            for (field, text) in &mut texts {
                let Value::Object(entries) = part[*field].take() else { continue };
                for (key, value) in entries {
                    let comma = if text.is_empty() { "" } else { "," };
                    // Writing to a String does not fail.
                    let _ = write!(text, "{comma}{}:{value}", Value::String(key));
                }
            }
            if head.is_null() {
                head = part;
            }
        });
        let [paths, definitions] = texts.map(|(_, text)| text);
        let mut out = format!("{{\"paths\":{{{paths}}},\"definitions\":{{{definitions}}}");
        for (key, value) in head.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null()) {
            let _ = write!(out, ",\"{key}\":{value}");
        }
        out.push('}');
        out.into_bytes()
    }

    fn refs(&self) -> Vec<Shown<'_>> {
        self.rows.iter().map(|r| Shown { row: &r.row, custom: r.custom.as_deref() }).collect()
    }

    fn group_version(&self, path: &str) -> Option<Document> {
        let rows: Vec<Shown> = self.refs().into_iter().filter(|r| index_key(r.row) == path).collect();
        if rows.is_empty() {
            return None;
        }
        let mut kept = self.v3.lock();
        Some(kept.entry(path.to_owned()).or_insert_with(|| Document::json(&v3_json(&rows))).clone())
    }
}

/// `/openapi/v3`: where each group version's document is, with a hash that changes when its rows do.
pub fn v3_index(rows: &[Shown]) -> Value {
    let mut hashers: BTreeMap<String, DefaultHasher> = BTreeMap::new();
    for shown in rows {
        let hasher = hashers.entry(index_key(shown.row)).or_default();
        hash_row(shown.row, hasher);
        shown.custom.map(|version| version.hash).hash(hasher);
    }
    let paths: Map<String, Value> = hashers
        .into_iter()
        .map(|(key, hasher)| {
            let url = format!("/openapi/v3/{key}?hash={:016X}", hasher.finish());
            (key, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// `api/v1` or `apis/{group}/{version}`.
fn index_key(row: &ResourceRow) -> String {
    operations::root(&row.gvr.group, &row.gvr.version).trim_start_matches('/').to_owned()
}

fn hash_row(row: &ResourceRow, hasher: &mut DefaultHasher) {
    TABLE_HASH.hash(hasher);
    row.gvr.hash(hasher);
    match &row.def {
        DefRef::Builtin(_) => {}
        DefRef::Shared(_) => format!("{row:?}").hash(hasher),
        DefRef::Later(_) => {
            format!("{:?}", (&row.kind, &row.singular, &row.short_names, &row.categories)).hash(hasher);
            format!("{:?}", (row.namespaced, &row.subresources)).hash(hasher);
        }
    }
}

/// Media types of an `Accept` header, without parameters, in its order.
fn media_types(accept: &str) -> impl Iterator<Item = &str> {
    accept.split(',').filter_map(|range| range.split(';').next()).map(str::trim).filter(|t| !t.is_empty())
}

fn is_json(media_type: &str) -> bool {
    matches!(media_type, JSON | "application/*" | "*/*")
}

fn accepts_json(accept: &str) -> bool {
    media_types(accept).next().is_none() || media_types(accept).any(is_json)
}

/// Which of protobuf (true) and JSON (false) the client named first.
fn wants_proto(accept: &str) -> Result<bool, NotAcceptable> {
    if media_types(accept).next().is_none() {
        return Ok(false);
    }
    let choice = |t| if is_json(t) { Some(false) } else { V2_PROTO_ASKED.contains(&t).then_some(true) };
    media_types(accept).find_map(choice).ok_or(NotAcceptable)
}

#[cfg(test)]
mod tests;
